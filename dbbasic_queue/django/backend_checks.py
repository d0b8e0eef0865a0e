"""What Django's system checks report about one backend."""

from __future__ import annotations

import os

from django.apps import apps
from django.conf import settings
from django.core.checks import Error, Warning

from dbbasic_queue.django import discovery
from dbbasic_queue.errors import InvalidHandlers, QueueError
from dbbasic_queue.opening import POSTGRES_SCHEMES, open_queue
from dbbasic_queue.store.location import scheme_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from dbbasic_queue.django.options import Options

APP = "dbbasic_queue.django"


def messages(backend: Any) -> list[Any]:
    """Return the errors and warnings."""
    options = backend.parsed_options
    where = f"TASKS[{options.alias!r}]"
    found = [Error(text, obj=where, id="dbbasic_queue.E001") for text in options.problems]
    found += [Error(text, obj=where, id="dbbasic_queue.E002") for text in _cannot_open(options)]
    found += [Error(text, obj=where, id="dbbasic_queue.E003") for text in _served(options)]
    found += [Error(text, obj=where, id="dbbasic_queue.E004") for text in _scheduled(backend)]
    found += [Warning(text, obj=where, id="dbbasic_queue.W001") for text in _not_writable(options)]
    if not apps.is_installed(APP):
        found.append(
            Warning(
                f"{APP!r} isn't in INSTALLED_APPS, so there is no command to run the tasks",
                hint=f"Add {APP!r} to INSTALLED_APPS.",
                obj=where,
                id="dbbasic_queue.W002",
            )
        )
    for path, module in sorted(backend.declared.items()):
        if not discovery.is_found(module, options.modules):
            found.append(
                Warning(
                    f"no pass would find the task {path}: enqueue will raise InvalidTask",
                    hint="Move it to the module tasks of an installed app, or add its module to "
                    "OPTIONS['MODULES'].",
                    obj=where,
                    id="dbbasic_queue.W003",
                )
            )
    return found


def _cannot_open(options: Options) -> Iterator[str]:
    if not options.location:
        return
    try:
        open_queue(options.location)  # makes no connection
    except QueueError as e:
        yield f"invalid PATH: {e}"
    if options.connection is not None and scheme_of(options.location) not in POSTGRES_SCHEMES:
        yield (
            "invalid CONNECTION: only a queue in PostgreSQL can be part of its transactions (give "
            "the database's URL as PATH, or leave out CONNECTION)"
        )


def _served(options: Options) -> Iterator[str]:
    """Yield that visitors could download the queue."""
    if options.file is None:
        return
    for name in ("MEDIA_ROOT", "STATIC_ROOT"):
        root = os.path.abspath(getattr(settings, name, None) or os.sep)
        if root != os.sep and options.file.startswith(root + os.sep):
            yield f"the queue {options.file} is in {name}, so visitors could download it"


def _scheduled(backend: Any) -> Iterator[str]:
    """Yield which schedules no pass could use. Imports the tasks if there is a schedule."""
    for name, schedule in backend.parsed_options.schedules.items():
        try:
            schedule.job_type(backend)
        except InvalidHandlers as e:
            yield f"SCHEDULES[{name!r}]: {e}"


def _not_writable(options: Options) -> Iterator[str]:
    if options.file is None:
        return
    path = options.file
    if os.path.isdir(path):
        yield f"invalid PATH {path}: it is a directory (add the name of a file)"
        return
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    directory = path if os.path.isdir(path) else os.path.dirname(path)
    for place in {path, directory}:
        if not os.access(place, os.W_OK):
            yield f"this user can't write to {place}, where the queue is"
