"""pymq for event loops: the same names, awaited; under asyncio and uvloop, several loops in one process.

::

    async with pymq.asyncio.connect() as bus:
        await bus.publish(OrderPlaced(1))
        async for event, message in bus.events(OrderPlaced):
            ...
"""

from pymq.asyncio._bus import EventBus, Group, Topic, connect
from pymq.asyncio._calls import MultiStub, Results, Stub
from pymq.asyncio._events import Events
from pymq.asyncio._queues import DeadLetters, Delivery, Queue

__all__ = ["DeadLetters", "Delivery", "EventBus", "Events", "Group", "MultiStub", "Queue", "Results", "Stub", "Topic", "connect"]
