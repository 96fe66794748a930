"""The conformance suite: what `pymq.provider.base` promises, as tests for any provider.

A provider's whole test::

    class TestMine(ProviderSuite):
        def config(self):
            return MyConfig(namespace=secrets.token_hex(4))

Run it with pytest. The suite asks for what the provider's `Features` declare, and that it says so where it cannot. It also works
without pytest: `setup_method`, one `test_…`, `teardown_method`.
"""

from __future__ import annotations

from pymq.testing._bindings import Bindings
from pymq.testing._consumers import Consumers
from pymq.testing._leases import Leases
from pymq.testing._lifecycle import Lifecycle
from pymq.testing._names import Names
from pymq.testing._processes import Processes
from pymq.testing._queues import Queues
from pymq.testing._readiness import Ready

__all__ = ["ProviderSuite"]


class ProviderSuite(Lifecycle, Names, Queues, Leases, Bindings, Consumers, Ready, Processes):
    """Subclass it, say `config`, run it. Attributes and the other hooks are for providers that are far away."""
