"""A job of the queue as a TaskResult of Django."""

from __future__ import annotations

from datetime import UTC, datetime

from django.conf import settings

from dbbasic_queue.django.framework import TaskError, TaskResult, TaskResultStatus
from dbbasic_queue.handlers import Fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from dbbasic_queue.model.jobdict import AttemptDict, JobDict

_STATUSES = {
    "pending": TaskResultStatus.READY,
    "processing": TaskResultStatus.RUNNING,
    "completed": TaskResultStatus.SUCCESSFUL,
    "failed": TaskResultStatus.FAILED,
    "cancelled": TaskResultStatus.FAILED,
}
_NOT_COUNTED = ("delayed", "interrupted")
_UNKNOWN = "unknown"
"""the worker of an attempt that is no longer, or not yet, in the history"""


class AttemptFailed(Exception):
    """The error of an attempt whose exception isn't known.

    It was killed, took too long, or its row in the history is gone.
    """


def encode_arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the payload of a job; what is empty is left out.

    >>> encode_arguments([7], {})
    {'args': [7]}
    """
    payload = {"args": list(args), "kwargs": kwargs}
    return {name: value for name, value in payload.items() if value}


def decode_arguments(payload: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return a task's arguments. Raises Fail for a payload that isn't made of them."""
    if isinstance(payload, dict) and payload.keys() <= {"args", "kwargs"}:
        args, kwargs = payload.get("args", []), payload.get("kwargs", {})
        if isinstance(args, list) and isinstance(kwargs, dict):
            return args, kwargs
    raise Fail(
        "invalid payload: must be the arguments of a task, such as "
        '{"args": [7], "kwargs": {"urgent": true}}'
    )


def to_datetime(instant: float | None) -> datetime | None:
    """Return Unix seconds as Django's `timezone.now` does: aware if USE_TZ is set."""
    if instant is None:
        return None
    if settings.USE_TZ:
        return datetime.fromtimestamp(instant, UTC)
    return datetime.fromtimestamp(instant)


def new_result(task: Any, alias: str, job_id: str, args: Any, kwargs: Any) -> Any:
    """Return the result of a job that isn't enqueued yet.

    Raises TypeError or ValueError for arguments that aren't JSON values.
    """
    return TaskResult(
        task=task,
        id=job_id,
        status=TaskResultStatus.READY,
        enqueued_at=None,
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=[],
        worker_ids=[],
    )


def result_of(
    task: Any,
    alias: str,
    job: JobDict,
    attempts: Sequence[AttemptDict],
    running: tuple[str, float] | None = None,
) -> Any:
    """Return the result of a job. `attempts` are those of its history.

    `running` is the worker of the current attempt, and when it was started, in Unix seconds.
    """
    args, kwargs = decode_arguments(job["payload"])
    counted = [a for a in attempts if a["outcome"] not in _NOT_COUNTED]
    counted = [a for a in counted if a["attempt"] <= job["attempts"]]
    started = [a["ended_at"] - (a["seconds"] or 0) for a in counted]
    workers = {a["attempt"]: a["worker"] or _UNKNOWN for a in counted}
    if running is not None:
        workers[job["attempts"]] = running[0]
        started.append(running[1])
    result = new_result(task, alias, job["id"], args, kwargs)
    status = _STATUSES[job["status"]]
    is_finished = job["status"] in ("completed", "failed", "cancelled")
    changes = {
        "status": status,
        "enqueued_at": to_datetime(job["created_at"]),
        "started_at": to_datetime(started[0]) if started else None,
        "last_attempted_at": to_datetime(started[-1]) if started else None,
        "finished_at": to_datetime(counted[-1]["ended_at"]) if counted and is_finished else None,
        "errors": [_error(a) for a in counted if a["outcome"] != "completed" and a["error"]],
        "worker_ids": [workers.get(n, _UNKNOWN) for n in range(1, job["attempts"] + 1)],
        "_return_value": job["result"] if job["status"] == "completed" else None,
    }
    if is_finished and not changes["errors"] and status == TaskResultStatus.FAILED and job["error"]:
        changes["errors"] = [_unknown_error(job["error"])]
    for name, value in changes.items():
        object.__setattr__(result, name, value)
    return result


def _error(attempt: AttemptDict) -> Any:
    path, trace = attempt["exception"], attempt["traceback"]
    if not path or not trace:
        return _unknown_error(attempt["error"] or attempt["outcome"])
    if "." not in path:
        path = f"builtins.{path}"
    return TaskError(exception_class_path=path, traceback=f"{trace}\n")


def _unknown_error(text: str) -> Any:
    path = f"{AttemptFailed.__module__}.{AttemptFailed.__qualname__}"
    return TaskError(exception_class_path=path, traceback=f"{path}: {text}\n")
