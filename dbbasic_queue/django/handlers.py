"""The handlers of a backend's tasks, for passes over its queue.

`task_started` is sent in the process that runs the task, before it starts. `task_finished` is sent
by the pass, after the outcome is on the disk: a pass that is killed in between doesn't send it.
"""

from __future__ import annotations

from inspect import iscoroutinefunction

from asgiref.sync import sync_to_async

from dbbasic_queue.django import connections
from dbbasic_queue.django.framework import TaskContext, normalize_json, task_finished, task_started
from dbbasic_queue.django.results import decode_arguments, result_of
from dbbasic_queue.django.schedules import declare, program_name
from dbbasic_queue.django.task import policy_of, type_of
from dbbasic_queue.handlers import Fail
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.passes.tracebacks import class_path, format_traceback
from dbbasic_queue.registry import Handlers
from dbbasic_queue.store.worker import worker_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.django.backend import TextFileBackend
    from dbbasic_queue.handlers import Job
    from dbbasic_queue.model.jobdict import AttemptDict, JobDict, Status


_MOST_ENDING = 1000
_LATEST = 128
"""how many attempts may have ended since one that had a process of its own"""


class UnsupportedResult(Fail):
    """Raised for a task whose result isn't a JSON value: it fails, and doesn't run again."""


class TaskFailed(Exception):
    """What `task_finished` receivers see as the current exception; the text has the traceback."""


class TaskHandlers(Handlers):
    """A registry with all tasks that the backend's passes find.

    A type with the name of another queue has the handler of the same task. Raises InvalidHandlers
    for a schedule whose task is missing, or doesn't accept its arguments.
    """

    def __init__(self, backend: TextFileBackend) -> None:
        super().__init__(
            queue=backend.queue, keep=backend.settings.keep, name=program_name(backend.alias)
        )
        self._backend = backend
        self._ending: dict[str, tuple[float, BaseException | None]] = {}
        """id of a job in this process -> when its attempt was started, and what it has raised"""
        for task in backend.tasks().values():
            self._add(type_of(task), task)
        declare(self, backend)
        self._forks = any(handler.timeout is not None for handler in self.values())
        """whether this process forks, so that it must not keep connections"""
        connections.after_job(every=True)  # before a pass forks
        self.on_success(self._send_success)
        self.on_failure(self._send_failure)
        self.on_retry(self._forget)

    def _add(self, job_type: str, task: Any) -> None:
        run = self._coroutine(task) if iscoroutinefunction(task.func) else self._function(task)
        policy = policy_of(task, self._backend.settings.policies)
        register: Any = self.handler(job_type, **policy)
        register(run)

    if not TYPE_CHECKING:

        def get(self, job_type, default=None):
            """Return the handler of a type; that of another queue's name is made now."""
            if job_type not in self._handlers:
                task = self._backend.task_of(job_type)
                if task is None:
                    return default
                self._add(job_type, task)
            return self._handlers[job_type]

    # -- one attempt --------------------------------------------------------------------------

    def _function(self, task: Any) -> Callable[[Any, Job], Any]:
        def run(payload: Any, job: Job) -> Any:
            connections.forget_inherited()
            try:
                args, kwargs = self._start(task, payload, job)
                return _normalized(task.func(*args, **kwargs))
            except BaseException as e:
                self._note(job, e)
                raise
            finally:
                self._end()

        return run

    def _coroutine(self, task: Any) -> Callable[[Any, Job], Any]:
        async def run(payload: Any, job: Job) -> Any:
            connections.forget_inherited()
            try:
                args, kwargs = await sync_to_async(self._start)(task, payload, job)
                return _normalized(await task.func(*args, **kwargs))
            except BaseException as e:
                self._note(job, e)
                raise
            finally:
                await sync_to_async(self._end)()

        return run

    def _note(self, job: Job, error: BaseException | None) -> None:
        """Keep what `task_finished` receivers will see: the history has it up to a second later."""
        if len(self._ending) >= _MOST_ENDING:  # there is no hook for jobs that were stopped
            self._ending.clear()
        self._ending[job.id] = job.started_at, error

    def _start(self, task: Any, payload: Any, job: Job) -> tuple[list[Any], dict[str, Any]]:
        """Send `task_started`, and return the arguments of the task's function."""
        connections.before_job()
        self._note(job, None)
        args, kwargs = decode_arguments(payload)
        task = self._backend.bound(task, job.type)
        found = _as_dict(job, payload, "processing")
        earlier = self._backend.queue.history(job.id) if job.attempt > 1 else []
        earlier = [a for a in earlier if a["attempt"] < job.attempt]
        running = worker_name(), job.started_at
        result = result_of(task, self._backend.alias, found, earlier, running)
        task_started.send(sender=type(self._backend), task_result=result)
        return [TaskContext(task_result=result), *args] if task.takes_context else args, kwargs

    def _end(self) -> None:
        connections.after_job(every=self._forks)

    # -- after the outcome is recorded --------------------------------------------------------

    def _send_success(self, job: Job, result: Any) -> None:
        self._send_finished({**_as_dict(job, job.payload, "completed"), "result": result})

    def _send_failure(self, job: Job, error: str) -> None:
        self._send_finished({**_as_dict(job, job.payload, "failed"), "error": error})

    def _send_finished(self, job: JobDict) -> None:
        task = self._backend.task_of(job["type"])
        if task is None:
            return
        connections.before_job()
        try:
            task = self._backend.bound(task, job["type"])
            result = result_of(task, self._backend.alias, job, self._attempts(job))
            if job["status"] == "completed":
                task_finished.send(sender=type(self._backend), task_result=result)
                return
            try:
                traces = [error.traceback for error in result.errors[-1:]]
                raise TaskFailed("\n".join([job["error"] or "", *traces]))
            except TaskFailed:  # for receivers that log it
                task_finished.send(sender=type(self._backend), task_result=result)
        finally:
            connections.after_job(every=self._forks)

    def _forget(self, job: Job, error: str, run_at: int) -> None:
        self._ending.pop(job.id, None)

    def _attempts(self, job: JobDict) -> list[AttemptDict]:
        """Return the attempts of a job that has just ended.

        The last one may not be in the history yet, unless it had a process of its own.
        """
        number = job["attempts"]
        queue = self._backend.queue
        earlier = queue.history(job["id"]) if number > 1 else []
        earlier = [a for a in earlier if a["attempt"] < number]
        if job["id"] in self._ending:
            return [*earlier, self._last(job, *self._ending.pop(job["id"]))]
        latest = [a.as_dict() for a in queue.store.latest(_LATEST)]
        found = [a for a in latest if (a["id"], a["attempt"]) == (job["id"], number)]
        return [*earlier, *found[-1:]]

    def _last(self, job: JobDict, started_at: float, error: BaseException | None) -> AttemptDict:
        now = self._backend.queue.now()
        return {
            "id": job["id"],
            "type": job["type"],
            "attempt": job["attempts"],
            "outcome": "completed" if job["status"] == "completed" else "failed",
            "due_at": job["run_at"],
            "ended_at": now,
            "seconds": max(now - started_at, 0),
            "error": job["error"],
            "traceback": None if error is None else unescape(format_traceback(error)),
            "worker": worker_name(),
            "exception": None if error is None else unescape(class_path(error)),
            "output_offset": None,
        }


def _as_dict(job: Job, payload: Any, status: Status) -> JobDict:
    return {
        "id": job.id,
        "type": job.type,
        "payload": payload,
        "status": status,
        "created_at": job.created_at,
        "run_at": job.created_at,
        "attempts": job.attempt,
        "error": None,
        "result": None,
    }


def _normalized(result: Any) -> Any:
    """Return a result as JSON values. Raises UnsupportedResult if it isn't made of them."""
    try:
        return normalize_json(result)
    except (TypeError, ValueError) as e:
        raise UnsupportedResult(f"the task's result can't be kept: {e}") from e
