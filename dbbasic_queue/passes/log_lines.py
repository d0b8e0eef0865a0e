"""One log record for each outcome, after it is on the disk; nothing where nobody listens.

`logging` is not imported here: a pass that nobody watches need not pay for it. A filter or handler
of the program's that raises is reported on stderr, once, and is an error of no pass and no job.
"""

from __future__ import annotations

import sys

from dbbasic_queue.errors import QueueError
from dbbasic_queue.model.escaping import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from logging import Logger

    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.protocol import Store

INFO, WARNING, ERROR = 20, 30, 40
_LEVELS = {"completed": INFO, "delayed": INFO, "retried": WARNING, "failed": ERROR}


_complained = False


def logger() -> Logger | None:
    """Return the package's logger; None where nobody has imported `logging`, so nobody listens."""
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "captureWarnings"):  # its last name: half imported
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
    """Log one record, with an error's traceback; `extra` are its attributes.

    Raises nothing that logging raises.
    """
    global _complained
    try:
        log.log(level, message, *facts, exc_info=error, extra=extra)
    except Exception as e:  # noqa: BLE001 - whatever it is: the queue's work goes on
        if not _complained:
            _complained = True
            _complain(f"the program's logging raised {type(e).__name__}, a record is lost")


def _complain(text: str) -> None:
    from contextlib import suppress

    with suppress(Exception):  # stderr may be missing, or closed
        sys.stderr.write(f"dbbasic_queue: {text}\n")


def outcome(
    log: Logger, name: str, job_id: str, job_type: str, state: State, seconds: float | None
) -> None:
    """Log how an attempt ended; an error beside a completed job is a warning."""
    level = WARNING if name == "completed" and state.error else _LEVELS[name]
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


def late(log: Logger, job_id: str, job_type: str, attempt: int) -> None:
    """Log that an attempt which is no longer the current one has ended."""
    write(
        log,
        WARNING,
        "%s %s: the outcome of attempt %d came too late and is not recorded",
        escape(job_type),
        job_id,
        attempt,
    )


def pulled_in(log: Logger, count: int) -> None:
    """Log that jobs are due now, which a wrong clock had put off."""
    write(log, WARNING, "%d jobs were enqueued while the clock was ahead: they are due now", count)


def no_queue(log: Logger, path: str) -> None:
    """Log that there is no queue, which may be an error in its path or the working directory."""
    write(
        log,
        WARNING,
        "%s: there is no queue yet (enqueue creates it; is this the path that you mean?)",
        path,
    )


def not_folded(log: Logger, error: Exception) -> None:
    """Log that the changes of a pass stay in the journal for now."""
    write(log, ERROR, "the journal could not be folded, and nothing is lost: %s", error)


def exit_held(log: Logger, error: BaseException) -> None:
    """Log that a task has tried to end the program."""
    text = escape(f"{type(error).__name__}: {error}")
    write(log, ERROR, "a task on the event loop raised %s; the pass and its jobs go on", text)


def history_lost(log: Logger, error: Exception) -> None:
    """Log that attempts are not in the history."""
    write(
        log, ERROR, "attempts could not be written to the history, and the queue is well: %s", error
    )


def skipped_history(log: Logger, path: str, lines: Sequence[str]) -> None:
    """Log that lines of the history were skipped."""
    write(
        log,
        WARNING,
        "%s.history: skipped %d lines that are not rows of a history, the first one: %s",
        path,
        len(lines),
        escape(lines[0]),
    )


def worker_failed(text: str, error: BaseException, pause: float) -> None:
    """Log why a worker starts again, with the traceback of an error that nobody foresaw."""
    unforeseen = None if isinstance(error, QueueError) else error
    _alarm(f"the worker starts again in {pause:.0f} seconds: {text}", unforeseen)


def replaced(error: Exception | None, pause: float) -> None:
    """Log that one of several passes has ended that should have stayed."""
    reason = "it was asked to end by itself" if error is None else str(error)
    _alarm(f"a pass has ended, and is replaced in {pause:.1f} seconds: {reason}")


def _alarm(text: str, error: BaseException | None = None) -> None:
    """Log an error of a worker that stays; on stderr if nobody listens: it is never silent."""
    log = listener = logger()
    while listener is not None:
        if any(type(handler).__name__ != "NullHandler" for handler in listener.handlers):
            assert log is not None
            return write(log, ERROR, "%s", text, error=error)
        listener = listener.parent if listener.propagate else None
    return _complain(text)


def refused(log: Logger, error: Exception) -> None:
    """Log that the system refuses a thread or a process, which costs no job an attempt."""
    write(log, ERROR, "%s; no job is charged for that", error)


def unreadable(log: Logger, store: Store) -> None:
    """Log which lines are no jobs, and how many records of the journal were skipped."""
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
            "%d lines with NULs and the like were moved to %s.rejected, and are no jobs",
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
