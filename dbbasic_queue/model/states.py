"""A job's statuses, the legal changes between them, and the backoff: no clock, no disk.

            enqueue
               |          cancel
            pending ----------------------> cancelled
               |  ^
               |  |-- error, attempts left: run_at = now + backoff
         claim |  |-- given back unbegun, or stopped: due at once, the attempt returned
               |  |-- its handler raised Delay: due when that says, the attempt returned
   attempts +1 |  |-- its pass died: due at once, after the others; failed if no attempt is left
               v  |
           processing --- error, no attempt left ---> failed
               |
           completed

Every function here takes a state and returns the next one, or None where the change is not legal;
so a recorded outcome, which no function starts from, is final.
"""

from __future__ import annotations

import math

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

DELAYED = "delayed"
"""How the error of a job begins that its handler has put off."""

DIED = "worker died in attempt"
"""How the error of a job begins whose pass died while it ran."""

MOST_ATTEMPTS = 999_999_999
"""The count of attempts stays there: the file's readers take nine digits."""

CLOCK_TOLERANCE = 60
"""Seconds by which the clocks of two processes may differ."""

LATEST = 253_402_300_799
"""The last instant that a job may carry: 9999-12-31T23:59:59Z, in Unix seconds."""


class State:
    """What may change in a job: the columns after its payload.

    `error` and `result` are in the file's own text: escaped, and JSON.
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

    The wait ends by `LATEST` whatever the attempt, so no number here can overflow.
    """
    return min(60 << min(attempt, 40), LATEST)


def later(now: float, seconds: float) -> int:
    """Return the first whole second that is not before `now + seconds`, at most `LATEST`."""
    return min(math.ceil(now + seconds), LATEST)


def claim(state: State) -> State | None:
    """A pass takes the job: the attempt is counted now, so that a job that kills counts too."""
    if state.status != PENDING:
        return None
    attempts = min(state.attempts + 1, MOST_ATTEMPTS)
    return State(PROCESSING, state.created_at, state.run_at, attempts, state.error, "")


def complete(state: State, result: str, error: str = "") -> State | None:
    """The handler returned; `error` says why its result could not be kept, if it could not."""
    if state.status != PROCESSING:
        return None
    return State(COMPLETED, state.created_at, state.run_at, state.attempts, error, result)


def without_result(state: State, error: str) -> State | None:
    """The same outcome, where its result cannot be kept; None where it has none."""
    if not state.result:
        return None
    return State(state.status, state.created_at, state.run_at, state.attempts, error, "")


def fail(state: State, error: str) -> State | None:
    """The handler raised, and no attempt is left, or none would help."""
    if state.status != PROCESSING:
        return None
    return State(FAILED, state.created_at, state.run_at, state.attempts, error, "")


def retry(state: State, error: str, run_at: int) -> State | None:
    """The handler raised, and attempts are left: again after the backoff."""
    if state.status != PROCESSING:
        return None
    return State(PENDING, state.created_at, run_at, state.attempts, error, "")


def delay(state: State, reason: str, run_at: int) -> State | None:
    """The handler asked for a later time: the attempt is returned."""
    if state.status != PROCESSING:
        return None
    error = f"{DELAYED}: {reason}" if reason else DELAYED
    return State(PENDING, state.created_at, run_at, max(state.attempts - 1, 0), error, "")


def give_back(state: State, error: str = "") -> State | None:
    """The pass stops, or has not begun the job: pending as before, the attempt returned."""
    if state.status != PROCESSING:
        return None
    attempts = max(state.attempts - 1, 0)
    return State(PENDING, state.created_at, state.run_at, attempts, error or state.error, "")


def recover(state: State, max_attempts: int, now: float) -> State | None:
    """The pass that had the job is dead: due at once, or failed when no attempt is left."""
    if state.status != PROCESSING:
        return None
    error = f"{DIED} {state.attempts}"
    if state.attempts >= max_attempts:
        return State(FAILED, state.created_at, state.run_at, state.attempts, error, "")
    run_at = min(state.run_at, int(now))
    return State(PENDING, state.created_at, run_at, state.attempts, error, "")


def may_kill(state: State) -> bool:
    """Tell whether the job's last attempt ended with its pass: the job may have killed it."""
    return state.error.startswith(DIED)


def clamp(state: State, latest: int) -> State | None:
    """A retry that waits longer than its backoff explains was set by a clock that ran ahead."""
    run_at = latest
    if state.status != PENDING or state.attempts == 0 or state.run_at <= run_at:
        return None
    if state.error.startswith(DELAYED):
        return None  # its handler's own wish
    return State(PENDING, state.created_at, run_at, state.attempts, state.error, "")


def pull_in(state: State, now: float) -> State | None:
    """Due now: the job was meant for then, and enqueued while the clock ran ahead."""
    if state.status != PENDING or state.attempts or state.run_at > state.created_at + 1:
        return None
    if state.created_at <= now + CLOCK_TOLERANCE:
        return None
    return State(PENDING, int(now), int(now), 0, state.error, "")


def requeue(state: State, now: float, run_at: int | None = None) -> State | None:
    """A person wants a failed or cancelled job to run again, as if it were new.

    By default a failed job is due now, and a cancelled one when it was due before: a reminder for
    tomorrow isn't sent today.
    """
    if state.status not in (FAILED, CANCELLED):
        return None
    if run_at is None:
        run_at = int(now) if state.status == FAILED else state.run_at
    return State(PENDING, state.created_at, run_at, 0, "", "")


def run_now(state: State, now: float) -> State | None:
    """A person wants a pending job to run now: it becomes due, unless it already is."""
    if state.status != PENDING:
        return None
    run_at = min(state.run_at, int(now))
    return State(PENDING, state.created_at, run_at, state.attempts, state.error, "")


def cancel(state: State) -> State | None:
    """A person or program withdraws a job that nobody has begun."""
    if state.status != PENDING:
        return None
    return State(CANCELLED, state.created_at, state.run_at, state.attempts, "Cancelled by user", "")
