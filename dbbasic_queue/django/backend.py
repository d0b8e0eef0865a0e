"""The backend for TASKS: enqueues tasks as jobs, and reads their results."""

from __future__ import annotations

import os

from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.utils import timezone

from dbbasic_queue.django import backend_checks, discovery
from dbbasic_queue.django.framework import (
    BaseTaskBackend,
    InvalidTask,
    TaskResultDoesNotExist,
    task_enqueued,
)
from dbbasic_queue.django.options import Options
from dbbasic_queue.django.results import encode_arguments, new_result, result_of, to_datetime
from dbbasic_queue.django.task import POLICY, QueueTask, check_policy, split_type, type_of
from dbbasic_queue.errors import DuplicateJob, InvalidHandlers, InvalidJob
from dbbasic_queue.model.checks import check_id, check_instant, check_type, is_id
from dbbasic_queue.model.jsontext import encode_json
from dbbasic_queue.model.rows import new_row
from dbbasic_queue.opening import open_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.jobqueue import Queue

_queues: dict[str, Queue] = {}
"""location -> queue: each thread has a backend of its own, and all share these"""
_declared: dict[str, dict[str, str]] = {}
"""alias -> path of each task that this process has declared -> its module"""


class TextFileBackend(BaseTaskBackend):
    """Keeps tasks as jobs in a queue: a text file, or an engine's URL; see docs/django.md."""

    task_class = QueueTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = False  # priorities belong to job types: OPTIONS["POLICIES"]

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._settings: Options | None = None
        self.declared: dict[str, str] = _declared.setdefault(alias, {})
        """path of each task of this process -> its module"""

    @property
    def parsed_options(self) -> Options:
        """The options, whether they are valid or not."""
        if self._settings is None:
            self._settings = Options(self.alias, self.options)
        return self._settings

    @property
    def settings(self) -> Options:
        """The options. Raises ImproperlyConfigured if they are invalid."""
        self.parsed_options.check()
        return self.parsed_options

    @property
    def queue(self) -> Queue:
        """The queue that has the jobs. Nothing is opened or created yet."""
        location = self.settings.location
        if location not in _queues:
            _queues.setdefault(location, open_queue(location))
        return _queues[location]

    def check(self, **kwargs: Any) -> list[Any]:
        """Return the errors and warnings for Django's system checks."""
        return backend_checks.messages(self)

    def validate_task(self, task: Any) -> None:
        """Raise InvalidTask for a task that can't be a job."""
        super().validate_task(task)
        try:
            check_type(type_of(task))
            check_policy({name: getattr(task, name, None) for name in POLICY})
        except (InvalidJob, InvalidHandlers) as e:
            raise InvalidTask(str(e)) from None
        self.declared[task.module_path] = task.func.__module__

    # -- enqueueing ---------------------------------------------------------------------------

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Add a job, and return its result. See `settings` for when it is on the disk."""
        return self._enqueue(task, os.urandom(8).hex(), args, kwargs)

    def enqueue_once(self, task: Any, job_id: str, args: Any, kwargs: Any) -> Any:
        """Add a job with this id unless a job has it; return the result of the one that has it."""
        return self._enqueue(task, check_id(job_id), args, kwargs, once=True)

    async def aenqueue_once(self, task: Any, job_id: str, args: Any, kwargs: Any) -> Any:
        """Like `enqueue_once`, for coroutines."""
        return await sync_to_async(self.enqueue_once)(task, job_id, args, kwargs)

    def _enqueue(
        self, task: Any, job_id: str, args: Any, kwargs: Any, *, once: bool = False
    ) -> Any:
        self.validate_task(task)
        options, queue = self.settings, self.queue
        module = task.func.__module__
        if not discovery.is_found(module, options.modules):
            raise InvalidTask(
                f"no pass would find the task {task.module_path}: passes import the modules "
                f"named tasks of installed apps, and those in OPTIONS['MODULES'] (move it to such "
                f"a module, or add {module!r} to MODULES)"
            )
        result = new_result(task, self.alias, job_id, args, kwargs)
        try:
            payload = encode_json(encode_arguments(result.args, result.kwargs), queue.max_payload)
        except ValueError as e:
            raise InvalidJob(f"invalid arguments: {e}") from e
        run_at = None if task.run_after is None else check_instant(_aware(task.run_after))

        def add() -> None:
            now = int(queue.now())
            row = new_row(job_id, type_of(task), payload, now, run_at or now)
            self._add(row, job_id, result, now, once=once)

        if options.on_commit is None:
            add()
        else:
            transaction.on_commit(add, using=options.on_commit)
        return result

    def _add(self, row: str, job_id: str, result: Any, now: int, *, once: bool) -> None:
        """Add a job's row, and complete its result."""
        store, alias = self.queue.store, self.settings.connection
        if alias is not None:
            connections[alias].ensure_connection()
            store = store.within(connections[alias])
        try:
            store.add(row, job_id if once else None)
        except DuplicateJob:
            job = self.queue.get_job(job_id)
            if job is not None:
                if self.task_of(job["type"]) is None:
                    raise
                found = self.get_result(job_id)
                for name in found.__dataclass_fields__:
                    object.__setattr__(result, name, getattr(found, name))
            return  # without a job, it is one that this transaction has added
        object.__setattr__(result, "enqueued_at", to_datetime(now))
        task_enqueued.send(sender=type(self), task_result=result)

    # -- results ------------------------------------------------------------------------------

    def get_result(self, result_id: str) -> Any:
        """Return the result of a job. Raises TaskResultDoesNotExist if no task's job has the id."""
        queue = self.queue
        job = queue.get_job(result_id) if is_id(result_id) else None
        task = None if job is None else self.task_of(job["type"])
        if job is None or task is None:
            raise TaskResultDoesNotExist(result_id)
        task = self.bound(task, job["type"])
        if not job["attempts"] and job["run_at"] > job["created_at"]:
            task = task.using(run_after=to_datetime(job["run_at"]))
        attempts = queue.history(result_id) if job["attempts"] else []
        running = None
        if job["status"] == "processing":
            running = self._running(job["id"], job["attempts"])
        return result_of(task, self.alias, job, attempts, running)

    def _running(self, job_id: str, attempt: int) -> tuple[str, float] | None:
        """Return an attempt's worker, and when it was started; None if it is just ending."""
        live, _ = self.queue.store.running()
        for found in live:
            if (job_id, attempt) in found.claims:
                return f"{os.uname().nodename}.{found.pid}", found.listed_at
        return None

    # -- tasks --------------------------------------------------------------------------------

    def tasks(self) -> dict[str, Any]:
        """Return path -> task, for all tasks that passes find. Imports their modules."""
        return discovery.tasks_of(self.settings.modules)

    def task_of(self, job_type: str) -> Any:
        """Return the task of a job type as it was declared, or None. Imports nothing else."""
        queue_name, path = split_type(job_type)
        if self.queues and queue_name not in self.queues:
            return None
        return self.tasks().get(path)

    def bound(self, task: Any, job_type: str) -> Any:
        """Return a declared task as a job of this type has it: with its queue and this backend."""
        queue_name, _ = split_type(job_type)
        if (task.queue_name, task.backend) == (queue_name, self.alias):
            return task
        return task.using(queue_name=queue_name, backend=self.alias)


def _aware(instant: Any) -> Any:
    """Return a datetime with a time zone: without USE_TZ, it has none."""
    return instant if timezone.is_aware(instant) else timezone.make_aware(instant)
