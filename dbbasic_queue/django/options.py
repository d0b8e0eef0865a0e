"""The OPTIONS of a backend in TASKS. Problems are collected, for Django's system checks."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from dbbasic_queue.django.task import check_policy
from dbbasic_queue.errors import InvalidHandlers, NotAQueue
from dbbasic_queue.model.checks import check_seconds
from dbbasic_queue.store.location import path_of, scheme_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Any

    from dbbasic_queue.django.schedules import TaskSchedule

_NAMES = (
    "PATH",
    "ENQUEUE_ON_COMMIT",
    "CONNECTION",
    "MODULES",
    "POLICIES",
    "SCHEDULES",
    "KEEP",
)
_DEFAULT_PATH = "data/queue.tsv"


class Options:
    """The checked options of one backend.

    `location`   the absolute path of the queue's file, or its URL
    `on_commit`  the alias of the database whose commit jobs wait for, or None
    `connection` the alias of the database that has the queue in it, or None
    `modules`    modules with tasks, besides the `tasks` modules of installed apps
    `policies`   path of a task, or "*" -> its policy
    `schedules`  name -> a schedule of a task
    `keep`       how long finished jobs are kept, in seconds or as a timedelta; None for forever
    `problems`   what is wrong, one sentence each
    """

    def __init__(self, alias: str, given: Any) -> None:
        self.alias = alias
        self.problems: list[str] = []
        if not isinstance(given, dict):
            self.problems.append(f"invalid OPTIONS {given!r}: must be a dict")
            given = {}
        for name in given:
            if name not in _NAMES:
                self.problems.append(f"unknown option {name!r}: must be one of {', '.join(_NAMES)}")
        self.location = self._location(given.get("PATH", _DEFAULT_PATH))
        self.connection: str | None = self._alias("CONNECTION", given.get("CONNECTION"))
        self.on_commit = self._on_commit(given.get("ENQUEUE_ON_COMMIT", False))
        self.modules: tuple[str, ...] = self._modules(given.get("MODULES", ()))
        self.policies: dict[str, dict[str, Any]] = self._policies(given.get("POLICIES", {}))
        self.schedules: dict[str, TaskSchedule] = self._schedules(given.get("SCHEDULES", {}))
        self.keep = self._keep(given.get("KEEP"))

    def check(self) -> None:
        """Raise ImproperlyConfigured if something is wrong."""
        if self.problems:
            raise ImproperlyConfigured(f"TASKS[{self.alias!r}]: {self.problems[0]}")

    @property
    def file(self) -> str | None:
        """The path of the queue's file; None if it is on a server or in memory."""
        return self.location if os.path.isabs(self.location) else None

    def _location(self, given: Any) -> str:
        if not isinstance(given, (str, os.PathLike)):
            self.problems.append(
                f"invalid PATH {given!r}: must be the path of the queue's file, or a URL"
            )
            return ""
        try:
            if scheme_of(given) != "file":
                return str(given)
            path = os.fspath(path_of(given, "PATH"))
        except (NotAQueue, TypeError) as e:
            self.problems.append(str(e))
            return ""
        if os.path.isabs(path):
            return os.path.normpath(path)
        base = getattr(settings, "BASE_DIR", None)
        if base is None:
            self.problems.append(
                f"invalid PATH {path!r}: it is relative, so the web server and cron could mean "
                "different files (give an absolute path, or set BASE_DIR)"
            )
            return ""
        return os.path.abspath(os.path.join(base, path))

    def _alias(self, name: str, given: Any) -> str | None:
        if given is None or (isinstance(given, str) and given in settings.DATABASES):
            return given
        self.problems.append(
            f"invalid {name} {given!r}: must be one of DATABASES: {', '.join(settings.DATABASES)}"
        )
        return None

    def _on_commit(self, given: Any) -> str | None:
        if given is False or given is None:
            return None
        if self.connection is not None:
            self.problems.append(
                "ENQUEUE_ON_COMMIT and CONNECTION exclude each other: with CONNECTION, a job is "
                "part of the transaction anyway (leave out ENQUEUE_ON_COMMIT)"
            )
            return None
        return "default" if given is True else self._alias("ENQUEUE_ON_COMMIT", given)

    def _modules(self, given: Any) -> tuple[str, ...]:
        if isinstance(given, (list, tuple, set)) and all(
            isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
            for name in given
        ):
            return tuple(given)
        self.problems.append(
            f'invalid MODULES {given!r}: must be a list of modules, such as ["shop.mails"]'
        )
        return ()

    def _policies(self, given: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(given, dict) or not all(isinstance(p, dict) for p in given.values()):
            self.problems.append(
                f'invalid POLICIES {given!r}: must map paths of tasks, or "*", to dicts such as '
                '{"max_attempts": 5}'
            )
            return {}
        valid = {}
        for path, policy in given.items():
            try:
                check_policy(policy)
            except (InvalidHandlers, TypeError) as e:
                self.problems.append(f"invalid POLICIES of {path!r}: {e}")
            else:
                valid[path] = policy
        return valid

    def _schedules(self, given: Any) -> dict[str, TaskSchedule]:
        if not isinstance(given, dict):
            self.problems.append(
                f'invalid SCHEDULES {given!r}: must map names to dicts such as {{"task": '
                '"shop.tasks.report", "every": "0 3 * * *"}'
            )
            return {}
        valid: dict[str, TaskSchedule] = {}
        for name, schedule in given.items():
            from dbbasic_queue.django.schedules import TaskSchedule  # most sites have none

            try:
                valid[name] = TaskSchedule(name, schedule)
            except InvalidHandlers as e:
                self.problems.append(f"SCHEDULES[{name!r}]: {e}")
        return valid

    def _keep(self, given: Any) -> float | timedelta | None:
        try:
            if given is not None:
                check_seconds(given, "KEEP", error=InvalidHandlers)
        except InvalidHandlers as e:
            self.problems.append(str(e))
            return None
        keep: float | timedelta | None = given
        return keep
