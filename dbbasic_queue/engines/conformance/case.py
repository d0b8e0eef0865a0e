"""What the suites share: an engine of the test's own, on a clock that stands still."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dbbasic_queue.engines.protocol import Engine


NOW = 1_800_000_000
DAY = 86_400
STATUSES = ("pending", "processing", "completed", "failed", "cancelled")
NONE = dict.fromkeys(("completed", "failed", "retried", "delayed", "recovered"), 0)
EMPTY = dict.fromkeys((*STATUSES, "paused"), 0)


def job(queue: Engine, job_id: str) -> Any:
    found = queue.get_job(job_id)
    assert found is not None, f"there is no job {job_id}"
    return found


def raises(*errors: BaseException) -> Callable[[Any], str]:
    """Return a handler that raises these, one a call, and then returns "done"."""
    left = list(errors)

    def handler(_: Any) -> str:
        if left:
            raise left.pop(0)
        return "done"

    return handler


def at_once(*calls: Callable[[], object]) -> None:
    """Make the calls in threads of their own, all at the same moment; raise what one raises."""
    barrier = threading.Barrier(len(calls))
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:

        try:
            barrier.wait()
            call()
        except BaseException as e:  # noqa: BLE001 - it is raised below
            errors.append(e)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class EngineCase:
    """Gives each test an engine of its own."""

    def engine(self, clock: Clock, directory: Path) -> Engine:
        """Return the engine on this clock; the same jobs for the same directory, others for others.

        Its jobs are gone with the test. Only what `SharesItsJobs` declares calls it twice.
        """
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock(NOW)

    @pytest.fixture
    def queue(self, clock: Clock, tmp_path: Path) -> Iterator[Engine]:
        with self.engine(clock, tmp_path) as queue:
            yield queue
