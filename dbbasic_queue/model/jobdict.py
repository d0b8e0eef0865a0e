"""Jobs and attempts as callers see them: dicts with Python values."""

from __future__ import annotations

from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.jsontext import decode_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias, TypedDict

    from dbbasic_queue.model.rows import Row

    Status: TypeAlias = Literal["pending", "processing", "completed", "failed", "cancelled"]
    """A job's status."""
    FinishedStatus: TypeAlias = Literal["completed", "failed", "cancelled"]

    class JobDict(TypedDict):
        """A job: the nine columns of its row, as Python values; see `Queue.get_job`."""

        id: str
        type: str
        payload: Any
        status: Status
        created_at: int
        run_at: int
        attempts: int
        error: str | None
        result: Any

    class AttemptDict(TypedDict):
        """A finished attempt: its row in the history, as Python values; see `Queue.history`."""

        id: str
        type: str
        attempt: int
        outcome: Literal[
            "completed",
            "failed",
            "retried",
            "stopped",
            "delayed",
            "interrupted",
            "died",
            "late",
        ]
        due_at: int
        ended_at: float
        seconds: float | None
        error: str | None
        traceback: str | None
        worker: str | None
        exception: str | None
        output_offset: int | None

    class ProgressDict(TypedDict):
        """How far a running job is; see `Queue.progress`."""

        done: float
        total: float | None
        note: str
        at: float
        started_at: float
        seconds_left: float | None

    class ScheduleDict(TypedDict):
        """A schedule that passes have recorded; see `Queue.schedules`."""

        name: str
        program: str
        type: str
        expression: str
        timezone: str
        last: int | None
        next: int

    class UnreadableDict(TypedDict):
        """A line of the queue's file that isn't a job; see `Queue.unreadable`."""

        line: int
        reason: str
        text: str

else:
    Status, JobDict = str, dict  # only type checkers need more, and `typing` is slow to import


def as_dict(row: Row) -> JobDict | None:
    """Return a job with Python values, or None if its payload isn't JSON: then it isn't a job."""
    state = row.state
    try:
        payload = decode_json(row.payload) if row.payload else {}
    except ValueError:
        return None
    try:
        result = decode_json(state.result) if state.result else None
    except ValueError:  # written by another program
        result = None
    status: Any = state.status
    return {
        "id": row.id,
        "type": row.type,
        "payload": payload,
        "status": status,
        "created_at": state.created_at,
        "run_at": state.run_at,
        "attempts": state.attempts,
        "error": unescape(state.error) if state.error else None,
        "result": result,
    }
