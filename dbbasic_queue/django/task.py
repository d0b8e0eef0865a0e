"""The class of the tasks that `@task` makes with this backend, and the job types they stand for.

A task's job type is the path of its function, such as `shop.tasks.send`. If its queue isn't
"default", the queue's name comes first: `mail:shop.tasks.send`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dbbasic_queue.django.framework import DEFAULT_TASK_QUEUE_NAME, Task
from dbbasic_queue.handlers import Backoff, Handler

POLICY = ("max_attempts", "backoff", "timeout", "concurrency")
"""the arguments of `@task` that are the task's policy"""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueTask(Task):
    """A task with a policy. Its arguments are those of `Handler`."""

    max_attempts: int | None = None
    backoff: Backoff | None = None
    timeout: float | timedelta | None = None
    concurrency: int | None = None

    def enqueue_once(self, job_id: str, /, *args: Any, **kwargs: Any) -> Any:
        """Enqueue the task with an id of your own, unless a job has this id already.

        Returns the result of the job that has it. Call it as often as you like, from any process:
        there is one such job. `job_id` is 1 to 64 characters from A-Z a-z 0-9 . _ -.
        """
        return self.get_backend().enqueue_once(self, job_id, args, kwargs)

    async def aenqueue_once(self, job_id: str, /, *args: Any, **kwargs: Any) -> Any:
        """Like `enqueue_once`, for coroutines."""
        return await self.get_backend().aenqueue_once(self, job_id, args, kwargs)


def type_of(task: Any) -> str:
    """Return the job type of a task."""
    path: str = task.module_path
    return path if task.queue_name == DEFAULT_TASK_QUEUE_NAME else f"{task.queue_name}:{path}"


def split_type(job_type: str) -> tuple[str, str]:
    """Return the name of the queue, and the path of the task's function.

    >>> split_type("mail:shop.tasks.send"), split_type("shop.tasks.send")
    (('mail', 'shop.tasks.send'), ('default', 'shop.tasks.send'))
    """
    queue_name, colon, path = job_type.rpartition(":")
    return queue_name if colon else DEFAULT_TASK_QUEUE_NAME, path


def policy_of(task: Any, policies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments of `Handler` for a task.

    What `@task` says comes first, then what OPTIONS["POLICIES"] says for the task, then for "*".
    """
    given = {name: getattr(task, name, None) for name in POLICY}
    given = {name: value for name, value in given.items() if value is not None}
    return {**policies.get("*", {}), **policies.get(task.module_path, {}), **given}


def check_policy(policy: dict[str, Any]) -> None:
    """Raise InvalidHandlers for an invalid value, TypeError for an unknown name."""
    Handler(lambda payload: None, **policy)
