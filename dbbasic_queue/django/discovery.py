"""Finds the tasks of a project: what a pass may run.

Tasks are in the `tasks` modules of installed apps, in the modules of a package `tasks`, and in
the modules that OPTIONS["MODULES"] names. Nothing else is imported, whatever the queue contains: a
job's type is only looked up among the tasks that were found.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from django.apps import apps
from django.utils.module_loading import module_has_submodule

from dbbasic_queue.django.framework import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_NAME = "tasks"
_found: dict[tuple[str, ...], dict[str, Any]] = {}
"""names of apps and modules -> path -> task"""


def tasks_of(modules: tuple[str, ...]) -> dict[str, Any]:
    """Return path -> task, for all tasks of installed apps and of these modules.

    Imports the modules on first use. Raises whatever they raise.
    """
    key = (*(app.name for app in apps.get_app_configs()), "", *modules)
    if key not in _found:
        _found[key] = _tasks_in(_import_all(modules))
    return _found[key]


def is_found(module: str, modules: tuple[str, ...]) -> bool:
    """Return whether passes import a module to look for tasks. Imports nothing."""
    if module in modules:
        return True
    packages = [f"{app.name}.{_NAME}" for app in apps.get_app_configs()]
    return any(
        module == package
        or (module.rpartition(".")[0] == package and _may_have_tasks(module.rpartition(".")[2]))
        for package in packages
    )


def _import_all(modules: tuple[str, ...]) -> list[ModuleType]:
    imported = []
    for app in apps.get_app_configs():
        if not module_has_submodule(app.module, _NAME):
            continue
        tasks = import_module(f"{app.name}.{_NAME}")
        imported.append(tasks)
        for found in iter_modules(getattr(tasks, "__path__", ())):
            if _may_have_tasks(found.name):
                imported.append(import_module(f"{tasks.__name__}.{found.name}"))
    return [*imported, *map(import_module, modules)]


def _may_have_tasks(name: str) -> bool:
    return not name.startswith(("_", "test"))


def _tasks_in(imported: list[ModuleType]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for module in imported:
        for name, value in vars(module).items():
            if not isinstance(value, Task) or value.func.__module__ != module.__name__:
                continue
            path = value.module_path
            if path not in tasks or name == value.func.__qualname__:
                tasks[path] = value
    return tasks
