"""The log records of passes: one per outcome, after it is on the disk, and one per problem.

- `logging` isn't imported here: if the program hasn't imported it, nothing is logged, and a pass
  doesn't pay for the import. Only an error that makes a worker restart is then written to stderr.
- An error in the program's logging, such as a filter that raises, is reported on stderr once. It
  never reaches the pass or a job.
"""

from __future__ import annotations

import sys

from dbbasic_queue.errors import QueueError
from dbbasic_queue.model.escaping import escape
from dbbasic_queue.model.states import PENDING, TEMPORARY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from logging import Logger

    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.protocol import Store

INFO, WARNING, ERROR = 20, 30, 40
_LEVELS = {
    "completed": INFO,
    "delayed": INFO,
    "stopped": INFO,
    "retried": WARNING,
    "failed": ERROR,
}

_complained = False
"""whether an error in the program's logging was reported"""


def logger() -> Logger | None:
    """Return the package's logger, or None if `logging` isn't imported, or not completely."""
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "captureWarnings"):  # defined last
        return None
    log: Logger = logging.getLogger("dbbasic_queue")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return log


def write(
    log: Logger,
    level: int,
    message: str,
    *facts: object,
    error: BaseException | None = None,
    **extra: object,
) -> None:
    """Log one record, with the traceback of `error`. `extra` become attributes of the record.

    `facts` are the arguments of `message`. An exception in the program's logging isn't raised.
    """
    global _complained
    try:
        log.log(level, message, *facts, exc_info=error, extra=extra)
    except Exception as e:  # noqa: BLE001 - whatever it is: the pass goes on
        if not _complained:
            _complained = True
            _complain(f"the program's logging raised {type(e).__name__}; a log record was lost")


def _complain(text: str) -> None:
    from contextlib import suppress

    with suppress(Exception):  # stderr may be missing, or closed
        sys.stderr.write(f"dbbasic_queue: {text}\n")


def outcome(
    log: Logger, name: str, job_id: str, job_type: str, state: State, seconds: float | None
) -> None:
    """Log how an attempt ended. A completed job with an error is a warning: its result is lost.

    A retry that a command has asked for isn't one. `seconds` is how long the handler ran, None if
    that is unknown.
    """
    level = WARNING if name == "completed" and state.error else _LEVELS[name]
    if level == WARNING and name == "retried" and state.error.startswith(TEMPORARY):
        level = INFO
    if not log.isEnabledFor(level):
        return
    write(
        log,
        level,
        "%s %s %s, attempt %d%s",
        escape(job_type),
        job_id,
        name,
        state.attempts,
        f": {state.error}" if state.error else "",
        job_id=job_id,
        job_type=job_type,
        status=state.status,
        attempt=state.attempts,
        seconds=seconds,
    )


def died(log: Logger, job_id: str, job_type: str, state: State) -> None:
    """Log that a job was running when its pass died, and when it runs again."""
    from time import gmtime, strftime

    again = ""
    if state.status == PENDING:
        again = f"; it runs again at {strftime('%Y-%m-%dT%H:%M:%SZ', gmtime(state.run_at))}"
    write(
        log,
        WARNING,
        "%s %s was running when its pass died, in attempt %d%s",
        escape(job_type),
        job_id,
        state.attempts,
        again,
        job_id=job_id,
        job_type=job_type,
        status=state.status,
        attempt=state.attempts,
        seconds=None,
    )


def hook_failed(
    log: Logger, kind: str, hook: str, job_id: str, job_type: str, error: BaseException
) -> None:
    """Log, with the traceback, that a hook has raised: the outcome of the job is not affected."""
    write(
        log,
        ERROR,
        "the %s hook %s raised %s for %s %s; the job's outcome is recorded, and isn't affected",
        kind,
        escape(hook),
        type(error).__name__,
        escape(job_type),
        job_id,
        error=error,
    )


def not_sent(log: Logger, what: str, count: int, queue: str, reason: str) -> None:
    """Log that a digest about `count` failed jobs could not be sent. `reason` is escaped."""
    write(
        log,
        ERROR,
        "could not send %s about %s in %s: %s (it is tried again with the next one; no job is "
        "affected)",
        what,
        "1 failed job" if count == 1 else f"{count} failed jobs",
        escape(queue),
        reason,
    )


def slow_digest(log: Logger, what: str, seconds: float) -> None:
    """Log that a pass doesn't wait longer for a digest to be sent."""
    write(
        log,
        ERROR,
        "%s about failed jobs was not sent within %.0f seconds, and is lost if the program ends "
        "now; no job is affected",
        what,
        seconds,
    )


def recipients_refused(log: Logger, addresses: list[str]) -> None:
    """Log to which addresses a mail server didn't accept a mail, if it accepted it for others."""
    write(log, ERROR, "the mail about failed jobs was not accepted for: %s", escape(str(addresses)))


def not_pinged(log: Logger, place: str, reason: str) -> None:
    """Log that the ping after a pass has failed. `reason` is escaped."""
    write(log, WARNING, "the ping to %s failed: %s (no job is affected)", place, reason)


def late(log: Logger, job_id: str, job_type: str, attempt: int) -> None:
    """Log that an attempt has ended after a newer one has started."""
    write(
        log,
        WARNING,
        "%s %s: the outcome of attempt %d came too late and was not recorded",
        escape(job_type),
        job_id,
        attempt,
    )


def pulled_in(log: Logger, count: int) -> None:
    """Log that `count` jobs are due now: a clock that was ahead had postponed them."""
    write(log, WARNING, "%d jobs were enqueued while the clock was ahead: they are due now", count)


def no_queue(log: Logger, path: str) -> None:
    """Log that the queue doesn't exist: its path or the working directory may be wrong."""
    write(
        log,
        WARNING,
        "%s: there is no queue yet (enqueue creates it; is this the right path?)",
        path,
    )


def schedules_removed(log: Logger, names: Sequence[str], program: str) -> None:
    """Log that schedules were removed from the file."""
    write(
        log,
        INFO,
        "removed the schedules that %s no longer declares: %s",
        escape(program),
        escape(", ".join(names)),
    )


def not_folded(log: Logger, error: Exception) -> None:
    """Log that the changes of a pass stay in the journal for now."""
    write(
        log,
        ERROR,
        "could not merge the journal into the queue file; nothing is lost, will retry: %s",
        error,
    )


def removed_old(log: Logger, count: int, seconds: float) -> None:
    """Log that finished jobs were removed because they were due over `seconds` ago."""
    write(log, INFO, "removed %d finished jobs that were due over %.0f s ago", count, seconds)


def not_removed(log: Logger, error: Exception) -> None:
    """Log that old finished jobs stay in the queue for now."""
    write(log, ERROR, "could not remove old finished jobs, will retry: %s", error)


def exit_ignored(log: Logger, error: BaseException) -> None:
    """Log that a task on the event loop has tried to end the program, and couldn't."""
    text = escape(f"{type(error).__name__}: {error}")
    write(
        log, ERROR, "a task on the event loop raised %s; the pass and its jobs keep running", text
    )


def lost(log: Logger, what: str, error: Exception) -> None:
    """Log that rows are missing from a file that nothing depends on."""
    write(log, ERROR, "could not write %s (the queue is not affected): %s", what, error)


def skipped_history(log: Logger, path: str, lines: Sequence[str]) -> None:
    """Log that lines of the history were skipped."""
    write(
        log,
        WARNING,
        "%s.history: skipped %d invalid lines; the first is: %s",
        path,
        len(lines),
        escape(lines[0]),
    )


def worker_failed(text: str, error: BaseException, seconds: float) -> None:
    """Log that a worker restarts `seconds` from now, and why.

    The log has a traceback if the error isn't one of this package's.
    """
    unforeseen = None if isinstance(error, QueueError) else error
    _alarm(f"the worker restarts in {seconds:.0f} seconds: {text}", unforeseen)


def replaced(error: Exception | None, seconds: float) -> None:
    """Log that one of a worker's passes has ended, and is replaced `seconds` from now.

    `error` is None if the pass was asked to end, and its supervisor wasn't.
    """
    reason = "it was asked to stop" if error is None else str(error)
    _alarm(f"a pass has ended, and will be replaced in {seconds:.1f} seconds: {reason}")


def _alarm(text: str, error: BaseException | None = None) -> None:
    """Log an error of a long-running worker, or write it to stderr if no log handler gets it."""
    log = listener = logger()
    while listener is not None:
        if any(type(handler).__name__ != "NullHandler" for handler in listener.handlers):
            assert log is not None
            return write(log, ERROR, "%s", text, error=error)
        listener = listener.parent if listener.propagate else None
    return _complain(text)


def refused(log: Logger, error: Exception) -> None:
    """Log that the system refuses a thread or a process. No attempt is counted for that."""
    write(log, ERROR, "%s", error)


def server_warning(log: Logger, queue: str, warning: str) -> None:
    """Log what in the settings of a queue's server could lose jobs."""
    write(log, WARNING, "%s: %s", queue, warning)


def unreadable(log: Logger, store: Store) -> None:
    """Log what the store has skipped or moved since the last call; see `Store.take_skipped`."""
    rejected, skipped, lines = store.take_skipped()
    if skipped:
        write(
            log,
            WARNING,
            "%s.journal: skipped %d damaged records (cut short by a crash, or written by another "
            "program)",
            store.path,
            skipped,
        )
    if rejected:
        write(
            log,
            WARNING,
            "moved %d invalid lines (with a NUL byte, or not UTF-8) to %s.rejected",
            rejected,
            store.path,
        )
    if lines:
        write(
            log,
            WARNING,
            "%s: ignoring %d invalid lines (kept as they are; `dbbasic-queue unreadable` says "
            "why): line %s%s",
            store.path,
            len(lines),
            ", ".join(map(str, lines[:10])),
            " ..." if len(lines) > 10 else "",
        )
