"""The handlers that a command names: a handlers.toml, or MODULE:NAME."""

from __future__ import annotations

import os
import sys

from dbbasic_queue.errors import InvalidHandlers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dbbasic_queue.jobqueue import Queue


def load_handlers(arguments: Namespace, queue: Queue) -> tuple[Any, bool]:
    """Return the handlers, and whether jobs of other types are left alone.

    Raises InvalidHandlers if they can't be loaded.
    """
    text = arguments.handlers
    if text.endswith(".toml") or (os.path.isfile(text) and not text.endswith(".py")):
        from dbbasic_queue.registry import Handlers

        # Other types may belong to another file, or to a worker in Python.
        return Handlers.from_toml(text, queue=queue), True
    if text.endswith(".py"):
        raise InvalidHandlers(
            f"invalid HANDLERS {text!r}: a Python program is started by python3 {text}; here, name "
            "the dict or registry in it, as MODULE:NAME, such as worker:jobs"
        )
    module_name, colon, name = text.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise InvalidHandlers(
            f"invalid HANDLERS {text!r}: must be a .toml file, or MODULE:NAME such as worker:jobs"
        )
    return _from_module(module_name, name), arguments.skip_unknown


def _from_module(module_name: str, name: str) -> Any:
    from importlib import import_module

    if (directory := os.getcwd()) not in sys.path:
        sys.path.insert(0, directory)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module_name}.".startswith(f"{e.name}."):
            raise  # a module that this one needs: the traceback shows where
        raise InvalidHandlers(
            f"there is no module {module_name} in {directory} or in Python's path"
        ) from None
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise InvalidHandlers(f"the module {module_name} has no {name}") from None
    return found
