"""OPTIONS["SCHEDULES"]: tasks that passes enqueue again and again.

- What the settings say is checked without importing a task. Whether there is such a task, and
  accepts the arguments, is known only later: system checks report it, and a pass refuses to run.
- The schedules of a site belong to the program `django:SITE:ALIAS`, where SITE is the package of
  its URLs. It is the same in each release's directory, and another one for another site whose
  passes share the queue.
"""

from __future__ import annotations

import inspect
import time

from django.conf import settings

from dbbasic_queue.django.results import encode_arguments
from dbbasic_queue.django.task import type_of
from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.schedules import LOCAL, Schedule, first_after

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.registry import Handlers

_KEYS = ("task", "every", "args", "kwargs", "timezone", "missed", "overlap")


class TaskSchedule:
    """One schedule of the settings. Raises InvalidHandlers if it is invalid.

    `path`   the path of its task
    `rule`   the arguments of `Handlers.every`, except the job type
    """

    def __init__(self, name: object, given: object) -> None:
        if not isinstance(given, dict):
            raise InvalidHandlers(
                f'{given!r} must be a dict, such as {{"task": "shop.tasks.report", '
                '"every": "0 3 * * *"}'
            )
        for key in given:
            if key not in _KEYS:
                raise InvalidHandlers(f"unknown key {key!r}: must be one of {', '.join(_KEYS)}")
        for key in ("task", "every"):
            if key not in given:
                raise InvalidHandlers(f"{key!r} is missing")
        self.args, self.kwargs = _arguments(given)
        self.path: str = given["task"]
        every, timezone = given["every"], given.get("timezone")
        if timezone is None and isinstance(every, str):
            timezone = getattr(settings, "TIME_ZONE", None) or LOCAL
        self.rule: dict[str, Any] = {
            "every": every,
            "payload": encode_arguments(self.args, self.kwargs),
            "name": name,
            "timezone": timezone,
            "missed": given.get("missed", "once"),
            "overlap": given.get("overlap", True),
        }
        self._schedule = Schedule(job_type=self.path, **self.rule)

    def job_type(self, backend: Any) -> str:
        """Return the type of its jobs. Raises InvalidHandlers if passes couldn't run them."""
        task = backend.tasks().get(self.path)
        if task is None:
            raise InvalidHandlers(f"passes find no task {self.path}")
        if backend.task_of(job_type := type_of(task)) is None:
            raise InvalidHandlers(f"the queue of {self.path}, {task.queue_name!r}, isn't in QUEUES")
        args = [None, *self.args] if task.takes_context else self.args
        try:
            inspect.signature(task.func).bind(*args, **self.kwargs)
        except TypeError as e:
            raise InvalidHandlers(f"wrong arguments for {self.path}: {e}") from None
        first_after(self._schedule, time.time())
        return job_type


def declare(handlers: Handlers, backend: Any) -> None:
    """Declare a backend's schedules in a registry. Raises InvalidHandlers, naming the schedule."""
    for name, schedule in backend.settings.schedules.items():
        try:
            handlers.every(job_type=schedule.job_type(backend), **schedule.rule)
        except InvalidHandlers as e:
            raise InvalidHandlers(f"SCHEDULES[{name!r}]: {e}") from None


def program_name(alias: str) -> str:
    """Return the name of the program that the schedules of a backend belong to."""
    urls = getattr(settings, "ROOT_URLCONF", None)
    site = urls.partition(".")[0] if isinstance(urls, str) else ""
    return f"django:{site}:{alias}"


def _arguments(given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = given.get("args", ()), given.get("kwargs", {})
    if not isinstance(args, (list, tuple)):
        raise InvalidHandlers(f"invalid args {args!r}: must be a list, such as [7]")
    if not isinstance(kwargs, dict):
        raise InvalidHandlers(f'invalid kwargs {kwargs!r}: must be a dict, such as {{"day": 1}}')
    return list(args), kwargs
