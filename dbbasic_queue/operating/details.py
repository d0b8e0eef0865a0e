"""All about one job."""

from __future__ import annotations

from dbbasic_queue.monitoring.why import why

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.model.rows import Row


class JobDetails:
    """All about one job at the instant `now`, in Unix seconds."""

    def __init__(self, queue: Queue, row: Row) -> None:
        self.row = row
        self.now = queue.now()
        self.why = why(queue.store, row, self.now)
        self.progress = queue.store.progress([row]).get(row.id)
        self.attempts = queue.history(row.id)
        self.output = queue.output(row.id)
        self.traceback = next(
            (a["traceback"] for a in reversed(self.attempts) if a["traceback"]), None
        )
