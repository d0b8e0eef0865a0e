"""What every engine has to pass: the sentences of `protocol.Engine` as tests, for pytest.

A third party runs them against its own engine by a class of its own:

    from dbbasic_queue.engines.conformance import EngineTests, SharesItsJobs

    class TestRedis(EngineTests, SharesItsJobs):
        def engine(self, clock, directory):
            return RedisQueue(f"redis://localhost/0?prefix={directory.name}", clock=clock)

`EngineTests` is for all. What only some engines can do is a class of its own, and is declared by
deriving from it: `SharesItsJobs`, `OutlivesItsProcess`, `Archives`.

The tests call nothing but the protocol, and move the clock instead of waiting.
"""

from __future__ import annotations

from dbbasic_queue.engines.conformance.capabilities import (
    Archives,
    OutlivesItsProcess,
    SharesItsJobs,
)
from dbbasic_queue.engines.conformance.enqueueing import EnqueueTests
from dbbasic_queue.engines.conformance.living import LivingTests
from dbbasic_queue.engines.conformance.outcomes import OutcomeTests
from dbbasic_queue.engines.conformance.passes import PassTests

__all__ = ["Archives", "EngineTests", "OutlivesItsProcess", "SharesItsJobs"]


class EngineTests(EnqueueTests, PassTests, OutcomeTests, LivingTests):
    """What holds for every engine; `engine` is to be defined."""
