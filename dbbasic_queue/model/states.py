"""A job's statuses, the legal changes between them, and the backoff. No clock, no I/O.

            enqueue
               |          cancel
            pending ----------------------> cancelled <----,
               |  ^                                        |
               |  |-- error, attempts left: run_at = now + backoff
         claim |  |-- not started, or interrupted: due as before, the attempt returned
               |  |-- its handler raised Delay: due at that time, the attempt returned
   attempts +1 |  |-- its pass died, attempts left: run_at = now + backoff, run after all others
               v  |                                        |
           processing --- error, no attempt left ---> failed
               |  |                                        |
               |  '-- a stop was requested, not completed -'
           completed

A move to another queue cancels a pending job here, and adds it there: `withdraw`, `end_move`.

Every change is a function that takes a state and returns the next one, or None if the change isn't
legal. Its texts (`error`, `reason`, `result`) are as in the file, and its times are Unix seconds.
No change applies to a completed job, and only `requeue` to a failed or cancelled one: a recorded
outcome is final, unless someone requeues the job.
"""

from __future__ import annotations

import math

from dbbasic_queue.model.escaping import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PENDING: Final = "pending"
PROCESSING: Final = "processing"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
FINISHED = (COMPLETED, FAILED, CANCELLED)
STATUSES = (PENDING, PROCESSING, COMPLETED, FAILED, CANCELLED)

OUTCOMES = (
    "completed",
    "failed",
    "retried",
    "stopped",
    "delayed",
    "interrupted",
    "died",
    "late",
)
"""How an attempt can end, as the history has it."""

DELAYED = "delayed"
"""The error of a job that its handler has delayed begins with this."""

TEMPORARY = "exit code 75"
"""The error of a job whose command wants to be run again later (EX_TEMPFAIL) begins with this."""

DIED = "worker died in attempt"
"""The error of a job whose pass died while it ran begins with this."""

STOP_REQUESTED = "Stop requested by user"
"""The error of a processing job that is to be stopped. No claim writes it."""

STOPPED = "Stopped by user"
"""The error of a job that was stopped while it was processing."""

MOVE_MARKS = _MOVING, MOVED = "Moving to ", "Moved to "
"""With these, the error begins of a job that is being moved, or was moved, to another queue."""

_BEFORE_ERROR = ": "
"""between the address and the error that the job had before"""

HIGHEST_ATTEMPT = 999_999_999
"""Attempts aren't counted above this: a reader of the file accepts nine digits."""

CLOCK_TOLERANCE_SECONDS = 60
"""Seconds by which the clocks of two processes may differ."""

LATEST = 253_402_300_799
"""The last instant that a job may have: 9999-12-31T23:59:59Z, in Unix seconds."""


class State:
    """What can change in a job: the columns after its payload.

    `error` and `result` are text as in the file: the error escaped, the result JSON.
    """

    __slots__ = ("attempts", "created_at", "error", "result", "run_at", "status")

    def __init__(
        self, status: str, created_at: int, run_at: int, attempts: int, error: str, result: str
    ) -> None:
        self.status = status
        self.created_at = created_at
        self.run_at = run_at
        self.attempts = attempts
        self.error = error
        self.result = result


def backoff(attempt: int) -> int:
    """Return the seconds to wait after attempt number `attempt` failed: `60 * 2**attempt`.

    >>> [backoff(n) for n in (1, 2, 3)]
    [120, 240, 480]

    It is at most `LATEST`, whatever the attempt.
    """
    return min(60 << min(attempt, 40), LATEST)


def later(now: float, seconds: float) -> int:
    """Return the first whole second that is not before `now + seconds`, at most `LATEST`.

    >>> later(1000.5, 120)
    1121
    """
    return min(math.ceil(now + seconds), LATEST)


def retry_at(now: float, seconds: float) -> int:
    """Return when to retry, after a backoff of `seconds`: the first whole second after it.

    A backoff of a minute or more ends at a full minute, rounded down, because cron starts a pass
    just after that. Otherwise a retry due at second 2 would wait for the pass of the next minute.

    >>> retry_at(1000.5, 30), retry_at(1000.5, 120)
    (1031, 1080)
    """
    at = later(now, seconds)
    return at - at % 60 if seconds >= 60 else at


def claim(state: State) -> State | None:
    """Start an attempt. It is counted now, so an attempt that kills its worker is counted, too."""
    if state.status != PENDING:
        return None
    attempts = min(state.attempts + 1, HIGHEST_ATTEMPT)
    error = "" if state.error == STOP_REQUESTED else state.error  # a handler's error may be that
    return State(PROCESSING, state.created_at, state.run_at, attempts, error, "")


def complete(state: State, result: str, error: str = "") -> State | None:
    """The handler returned. `error` is the reason if its result could not be kept."""
    if state.status != PROCESSING:
        return None
    return State(COMPLETED, state.created_at, state.run_at, state.attempts, error, result)


def without_result(state: State, error: str) -> State | None:
    """Return an outcome that isn't recorded yet with an error instead of its result.

    Returns None if it has no result.
    """
    if not state.result:
        return None
    return State(state.status, state.created_at, state.run_at, state.attempts, error, "")


def fail(state: State, error: str) -> State | None:
    """The handler raised, and no attempt is left, or another attempt can't help."""
    if state.status != PROCESSING:
        return None
    return State(FAILED, state.created_at, state.run_at, state.attempts, error, "")


def retry(state: State, error: str, run_at: int) -> State | None:
    """The handler raised, and attempts are left: run again at `run_at`, after the backoff."""
    if state.status != PROCESSING:
        return None
    return State(PENDING, state.created_at, run_at, state.attempts, error, "")


def delay(state: State, reason: str, run_at: int) -> State | None:
    """The handler asked to be run at a later time: the attempt isn't counted."""
    if state.status != PROCESSING:
        return None
    error = f"{DELAYED}: {reason}" if reason else DELAYED
    return State(PENDING, state.created_at, run_at, max(state.attempts - 1, 0), error, "")


def unclaim(state: State, error: str = "") -> State | None:
    """The pass stops, or hasn't started the job: pending as before, the attempt isn't counted."""
    if state.status != PROCESSING:
        return None
    attempts = max(state.attempts - 1, 0)
    return State(PENDING, state.created_at, state.run_at, attempts, error or state.error, "")


def recover(state: State, max_attempts: int, run_at: int) -> State | None:
    """The pass that ran the job is dead: run it again at `run_at`, or fail if no attempt is left.

    `run_at` is after the backoff: the job may have killed its pass.
    """
    if state.status != PROCESSING:
        return None
    error = f"{DIED} {state.attempts}"
    if state.attempts >= max_attempts:
        return State(FAILED, state.created_at, state.run_at, state.attempts, error, "")
    return State(PENDING, state.created_at, run_at, state.attempts, error, "")


def may_kill(state: State) -> bool:
    """Return whether the last attempt ended because its pass died: the job may have killed it."""
    return state.error.startswith(DIED)


def clamp(state: State, latest: int) -> State | None:
    """Make a retry due at `latest`, the latest time that its backoff allows, if it is due later.

    The clock must have been wrong when the retry was set.
    """
    if state.status != PENDING or state.attempts == 0 or state.run_at <= latest:
        return None
    if state.error.startswith(DELAYED):
        return None  # its handler asked for that time
    return State(PENDING, state.created_at, latest, state.attempts, state.error, "")


def pull_in(state: State, now: float) -> State | None:
    """Make a job due now if it was meant to be due at once, but the clock was ahead at that time.

    Its `created_at` becomes now, too.
    """
    if state.status != PENDING or state.attempts or state.run_at > state.created_at + 1:
        return None
    if state.created_at <= now + CLOCK_TOLERANCE_SECONDS:
        return None
    return State(PENDING, int(now), int(now), 0, state.error, "")


def requeue(state: State, now: float, run_at: int | None = None) -> State | None:
    """Run a failed or cancelled job again, as if it were new.

    By default a failed job is due now, and a cancelled one at its old `run_at`: a reminder for
    tomorrow isn't sent today.
    """
    if state.status not in (FAILED, CANCELLED) or is_moving(state) or is_moved(state):
        return None
    if run_at is None:
        run_at = int(now) if state.status == FAILED else state.run_at
    return State(PENDING, state.created_at, run_at, 0, "", "")


def run_now(state: State, now: float) -> State | None:
    """Make a pending job due now, unless it already is."""
    if state.status != PENDING:
        return None
    run_at = min(state.run_at, int(now))
    return State(PENDING, state.created_at, run_at, state.attempts, state.error, "")


def is_old(state: State, before: float) -> bool:
    """Return whether a job is finished, and was due and enqueued before this instant.

    A `run_at` far in the past may only mean that the job was to run before all others.
    """
    is_finished = state.status in FINISHED and not is_moving(state)
    return is_finished and max(state.run_at, state.created_at) < before


def cancel(state: State) -> State | None:
    """Cancel a job that hasn't been started."""
    if state.status != PENDING:
        return None
    return State(CANCELLED, state.created_at, state.run_at, state.attempts, "Cancelled by user", "")


def request_stop(state: State) -> State | None:
    """Mark a processing job as one to stop. Its pass ends it, or the next pass if that one died."""
    if state.status != PROCESSING:
        return None
    return State(PROCESSING, state.created_at, state.run_at, state.attempts, STOP_REQUESTED, "")


def is_to_stop(state: State) -> bool:
    """Return whether `request_stop` has marked the job."""
    return state.status == PROCESSING and state.error == STOP_REQUESTED


def stop(state: State, attempts: int) -> State | None:
    """The job was stopped, and never runs again. `attempts` is how many have started."""
    if state.status != PROCESSING:
        return None
    return State(CANCELLED, state.created_at, state.run_at, attempts, STOPPED, "")


# -- moving a job to another queue; `address` is what `as_address` returns for that one ------------


def withdraw(state: State, address: str) -> State | None:
    """Begin to move a pending job: it can't be claimed or changed here any more.

    >>> withdraw(State(PENDING, 5, 7, 1, "no", ""), "b.tsv").error
    'Moving to b.tsv: no'
    """
    if state.status != PENDING:
        return None
    error = f"{_MOVING}{address}" + (f"{_BEFORE_ERROR}{state.error}" if state.error else "")
    return State(CANCELLED, state.created_at, state.run_at, state.attempts, error, "")


def restore(state: State, address: str) -> State | None:
    """Return the state that a job had before it was withdrawn to move it to this address."""
    begin = _MOVING + address
    if state.status != CANCELLED or not (
        state.error == begin or state.error.startswith(begin + _BEFORE_ERROR)
    ):
        return None
    error = state.error[len(begin) + len(_BEFORE_ERROR) :]
    return State(PENDING, state.created_at, state.run_at, state.attempts, error, "")


def end_move(state: State, address: str) -> State | None:
    """The job is in the other queue."""
    if not is_moving(state):
        return None
    error = MOVED + address
    return State(CANCELLED, state.created_at, state.run_at, state.attempts, error, "")


def is_moving(state: State) -> bool:
    """Return whether a job was withdrawn: it may be in the other queue by now, or not."""
    return state.status == CANCELLED and state.error.startswith(_MOVING)


def is_moved(state: State) -> bool:
    """Return whether a job was moved to another queue."""
    return state.status == CANCELLED and state.error.startswith(MOVED)


def is_moved_to(state: State, address: str) -> bool:
    """Return whether a job was moved to the queue with this address."""
    return state.status == CANCELLED and state.error == MOVED + address


def move_address(error: str) -> str:
    """Return where a cancelled job with this error is moved, or was moved, to; "" if nowhere.

    >>> move_address("Moving to b.tsv: no"), move_address("Cancelled by user")
    ('b.tsv', '')
    """
    if error.startswith(MOVED):
        return error.removeprefix(MOVED)
    if error.startswith(_MOVING):
        return error.removeprefix(_MOVING).partition(_BEFORE_ERROR)[0]
    return ""


def as_address(text: str) -> str:
    r"""Return the path or URL of a queue as the other functions take it.

    >>> print(as_address("/srv/no: error.tsv"))
    /srv/no:\x20error.tsv
    """
    return escape(text).replace(_BEFORE_ERROR, r":\x20")
