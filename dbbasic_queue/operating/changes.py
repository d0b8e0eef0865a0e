"""Changes of many jobs: cancel, run now, requeue, stop, remove.

Each leaves alone the jobs whose status doesn't allow it. A job that changes in the meantime isn't
changed again.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

from dbbasic_queue.errors import JobNotFound
from dbbasic_queue.model import states
from dbbasic_queue.model.states import CANCELLED, FAILED, PENDING, PROCESSING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.monitoring.selecting import Filter

_BATCH = 500


class Verb:
    """A change of jobs.

    `done`      what has happened to a changed job
    `which`     the jobs that can be changed
    `statuses`  their statuses
    `one`       makes the change for one job, given by its id; returns False if it can't be changed
    `change`    returns a job's new state, at an instant; None if it can't be changed
    """

    def __init__(
        self,
        done: str,
        which: str,
        statuses: tuple[str, ...],
        one: Callable[[Queue, str], bool],
        change: Callable[[State, float], State | None],
    ) -> None:
        self.done = done
        self.which = which
        self.statuses = statuses
        self.one = one
        self.change = change

    def many(self, queue: Queue, rows: Iterator[Row]) -> Iterator[Row]:
        """Change jobs; yield those that were changed.

        Each batch is on the disk when the first job of it is yielded.
        """
        now = queue.now()
        while batch := list(islice(rows, _BATCH)):
            changes = [
                (row, new) for row in batch if (new := self.change(row.state, now)) is not None
            ]
            yield from (row for row in queue.store.exchange(changes) if row is not None)


CANCEL = Verb(
    "cancelled",
    "a pending job",
    (PENDING,),
    lambda queue, job_id: queue.cancel_job(job_id),
    lambda state, now: states.cancel(state),
)
RUN_NOW = Verb(
    "made due",
    "a pending job",
    (PENDING,),
    lambda queue, job_id: queue.get_job(job_id) is not None and queue.run_now(job_id),
    states.run_now,
)
REQUEUE = Verb(
    "requeued",
    "a failed or cancelled job",
    (FAILED, CANCELLED),
    lambda queue, job_id: queue.requeue(job_id),
    states.requeue,
)


def stop(queue: Queue, chosen: Filter) -> Iterator[tuple[str, Row]]:
    """Cancel the pending jobs of a filter, and stop the running ones.

    Yields each job with what was done: cancelled, stopped, or requested (it was asked to stop).
    """
    pending = (row for row in chosen.rows(queue.store) if row.state.status == PENDING)
    for row in CANCEL.many(queue, pending):
        yield "cancelled", row
    for row in chosen.rows(queue.store):  # running, or started in the meantime
        with suppress(JobNotFound):
            if (done := queue.stop_job(row.id)) is not None:
                yield done, row


def can_be_removed(row: Row) -> bool:
    """Return whether a job may leave the queue: it isn't running, nor being moved."""
    return row.state.status != PROCESSING and not states.is_moving(row.state)


def remove(
    queue: Queue, chosen: Filter, unwanted: Callable[[Row], bool], archive: str | None = None
) -> dict[str, int]:
    """Remove the unwanted jobs of a filter; return type -> how many were removed.

    With `archive`, the path of a file, they are appended to it first.
    """
    removed: dict[str, int] = {}

    def is_unwanted(row: Row) -> bool:
        if not (chosen.matches(row) and unwanted(row)):
            return False
        removed[row.type] = removed.get(row.type, 0) + 1
        return True

    queue.store.remove(is_unwanted, archive=archive, statuses=chosen.statuses)
    return removed
