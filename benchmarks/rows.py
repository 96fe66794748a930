"""The rows of the table and what each should reach."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from benchmarks import floors, ours, peers
from benchmarks.contest import Measure, Rival, Row
from benchmarks.events import TRADE
from benchmarks.measuring import LATENCY, RATE, Processors, apart, together

SMALL = b"x" * 100


def all_rows() -> list[Row]:
    """Every row, in the order of the table."""
    frame = ours.frame_size()
    return [*_publishing(frame), *_calling(frame), *_queueing(), *_resting()]


def _peers(*rivals: Rival) -> tuple[Rival, ...]:
    return rivals if peers.available() else ()


def _publishing(frame: int) -> list[Row]:
    return [
        Row(
            "events",
            "typed event, one subscriber",
            "events/s",
            ours.events,
            (
                Rival(f"bare FIFO, frames of {frame} bytes", partial(floors.fifo_frames, size=frame), at_least=0.28),
                *_peers(
                    Rival("zmq PUSH/PULL, TypeAdapter", partial(peers.push_events, held=False), at_least=1.0),
                    Rival("zmq PUSH/PULL, held serializer", partial(peers.push_events, held=True), at_least=0.8),
                ),
            ),
        ),
        Row(
            "publish",
            "one publish of it",
            "us",
            ours.publish_cost,
            (Rival("bare write of the frame", partial(floors.fifo_write, size=frame), at_most=3.5),),
        ),
        Row(
            "fan-out",
            "typed event, four subscribers",
            "deliveries/s",
            partial(ours.events, subscribers=4, count=20_000),
            _peers(
                Rival("zmq PUB/SUB, TypeAdapter", partial(peers.publish_events, held=False, subscribers=4), at_least=0.6),
                Rival("zmq PUB/SUB, held serializer", partial(peers.publish_events, held=True, subscribers=4)),
            ),
        ),
        Row(
            "fan-out-cost",
            "one publish to eight subscribers",
            "us",
            partial(ours.publish_cost, subscribers=8),
            (Rival("pymq, one subscriber", ours.publish_cost, at_most=6),),
        ),
        Row(
            "crowd",
            "one publish beside 1,000 channels, 100 patterns",
            "us",
            partial(ours.publish_cost, crowd=True),
            (Rival("pymq without them", ours.publish_cost, at_most=1.1),),
        ),
        _payload_row("64 KiB", 64 << 10, 4000, 5),
        _payload_row("1 MiB", 1 << 20, 300, 2.5),
    ]


def _payload_row(label: str, size: int, count: int, reach: float) -> Row:
    return Row(
        label.lower().replace(" ", "-"),
        f"bytes of {label}",
        "messages/s",
        partial(ours.payloads, size=size, count=count),
        _peers(Rival("zmq PUSH/PULL", partial(peers.push_bytes, size=size, count=count), at_least=reach)),
    )


def _calling(frame: int) -> list[Row]:
    two, one, spin = 1500, 4000, partial(ours.remote_calls, spin=ours.SPIN)
    return [
        Row(
            "call-latency",
            "typed call, two processors, p50",
            "us",
            partial(ours.remote_calls, place=apart, figure=LATENCY, count=two),
            (_ping_pong(frame, partial(floors.ping_pong, place=apart, count=two), 1.3),),
        ),
        Row(
            "call-latency-one",
            "typed call, one processor, p50",
            "us",
            partial(ours.remote_calls, place=together, figure=LATENCY, count=one),
            (_ping_pong(frame, partial(floors.ping_pong, place=together, count=one), 6),),
        ),
        Row(
            "call-latency-spin",
            f"typed call, spin={ours.SPIN:g}, p50",
            "us",
            partial(spin, place=apart, figure=LATENCY, count=one),
            (_ping_pong(frame, partial(floors.ping_pong, place=apart, count=two), None),),
            limit=10,
        ),
        _calls_row("calls", "typed calls, two processors", ours.remote_calls, place=apart, count=two, reach=1.0),
        _calls_row("calls-one", "typed calls, one processor", ours.remote_calls, place=together, count=one, reach=1.4),
        _calls_row("calls-spin", f"typed calls, spin={ours.SPIN:g}", spin, place=apart, count=one, reach=1.4),
    ]


def _ping_pong(frame: int, floor: Callable[..., AbstractContextManager[Measure]], reach: float | None) -> Rival:
    return Rival("bare FIFO ping-pong", partial(floor, size=frame, figure=LATENCY), at_most=reach)


def _calls_row(
    name: str,
    title: str,
    contestant: Callable[..., AbstractContextManager[Measure]],
    *,
    place: Callable[[], Processors],
    count: int,
    reach: float,
) -> Row:
    theirs = partial(peers.request_reply, place=place, figure=RATE, count=count)
    return Row(
        name,
        title,
        "calls/s",
        partial(contestant, place=place, figure=RATE, count=count),
        _peers(
            Rival("zmq REQ/REP, TypeAdapter", partial(theirs, held=False), at_least=reach),
            Rival("zmq REQ/REP, held serializer", partial(theirs, held=True)),
        ),
    )


def _queueing() -> list[Row]:
    count = 20_000
    return [
        Row(
            "queue",
            "queue of typed events, put to get",
            "items/s",
            partial(ours.queue_items, item=TRADE, count=count),
            (Rival("multiprocessing.Queue", partial(floors.multiprocessing_queue, item=TRADE, count=count), at_least=1.0),),
        ),
        Row(
            "queue-bytes",
            "queue of 100 bytes, put to get",
            "items/s",
            partial(ours.queue_items, item=SMALL, count=count),
            (Rival("multiprocessing.Queue", partial(floors.multiprocessing_queue, item=SMALL, count=count), at_least=1.0),),
        ),
        Row(
            "group",
            "consumer group, handled and acked",
            "events/s",
            partial(ours.group, count=count),
            (Rival("pymq queue, put to get", partial(ours.queue_items, item=TRADE, count=count), at_least=0.5),),
        ),
    ]


def _resting() -> list[Row]:
    return [
        Row("import", "import pymq", "ms", partial(ours.importing, line=0)),
        Row("modules", "packages it loads besides the standard library", "", partial(ours.importing, line=1), limit=0, runs=1),
        Row("idle", "system calls of an idle bus in 5 s", "", ours.idle_calls, limit=0, runs=1),
    ]
