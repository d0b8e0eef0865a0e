"""What a running job reports to its pass: see `handlers.Link`."""

from __future__ import annotations

from dbbasic_queue.errors import QueueError
from dbbasic_queue.passes import log_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.handlers import Job
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Claims


class PassLink:
    """The `Link` of all jobs of one pass, also in a process that the pass has forked for a job.

    `now` returns the time in Unix seconds.
    """

    def __init__(self, claims: Claims, now: Callable[[], float]) -> None:
        self.now = now
        self.is_in_pass = True
        """False in a process that was forked for a job: to stop, that gets a signal"""
        self._claims = claims
        self._progress = claims.progress

    def is_to_stop(self, row: Row) -> bool:
        """Return whether a stop was requested for a claimed job; False in a forked process."""
        return self.is_in_pass and self._claims.is_to_stop(row)

    def report_progress(
        self, job: Job, at: float, done: float, total: float | None, note: str
    ) -> None:
        """Keep how far a job is. An error is logged, once, and changes nothing for the job."""
        try:
            self._progress.note(job.id, job.attempt, job.started_at, at, done, total, note)
        except QueueError:
            return  # called by a signal handler inside a call of the queue, or in a forked child
        if (error := self._progress.take_error()) and (log := log_lines.logger()):
            log_lines.lost(log, "the progress of a job", error)
