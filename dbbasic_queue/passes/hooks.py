"""The hooks of a registry, and the checks when they are declared and before a pass starts.

A pass calls them with `hook_calls` and `around`.
"""

from __future__ import annotations

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.signatures import (
    check_hook,
    is_coroutine_function,
    makes_async_context,
    unstarted_generator,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from dbbasic_queue.handlers import Handler

ARGUMENTS = {
    "on_failure": ("job", "error"),
    "on_success": ("job", "result"),
    "on_retry": ("job", "error", "run_at"),
    "around": ("job",),
}
"""kind of hook -> what it is called with"""


class Hooks:
    """The hooks of one registry: a list for each kind, in the order of registration."""

    def __init__(self) -> None:
        self.on_failure: list[Callable[..., object]] = []
        self.on_success: list[Callable[..., object]] = []
        self.on_retry: list[Callable[..., object]] = []
        self.around: list[Callable[..., Any]] = []

    def add(self, kind: str, function: Callable[..., Any]) -> None:
        """Add a hook. Raises InvalidHandlers for a function that no pass could call."""
        if not callable(function):
            raise InvalidHandlers(
                f"invalid {kind} hook {function!r}: it can't be called (give a function that takes "
                f"{', '.join(ARGUMENTS[kind])})"
            )
        if is_coroutine_function(function):
            instead = (
                "an async context manager, by contextlib.asynccontextmanager"
                if kind == "around"
                else "a plain function"
            )
            raise InvalidHandlers(
                f"invalid {kind} hook {name_of(function)}: it is a coroutine function (give "
                f"{instead})"
            )
        if decorator := unstarted_generator(function):
            instead = (
                f"decorate it with contextlib.{decorator}"
                if kind == "around"
                else "give a plain function"
            )
            raise InvalidHandlers(
                f"invalid {kind} hook {name_of(function)}: it is a generator function ({instead})"
            )
        if why := check_hook(function, ARGUMENTS[kind]):
            raise InvalidHandlers(f"invalid {kind} hook {name_of(function)}: it {why}")
        getattr(self, kind).append(function)

    def check(self, handlers: Mapping[str, Handler]) -> None:
        """Raise InvalidHandlers if there is an async `around` hook, and a plain handler."""
        for around in self.around:
            if makes_async_context(around):
                for job_type, handler in handlers.items():
                    if not handler.is_coroutine:
                        raise needs_coroutines(around, job_type)


def needs_coroutines(around: Callable[..., Any], job_type: str) -> InvalidHandlers:
    """Return the error for an async `around` hook next to a plain handler."""
    return InvalidHandlers(
        f"invalid around hook {name_of(around)}: it is an async context manager, and the handler "
        f"for {job_type!r} is a plain function (give a plain context manager, which works for "
        "coroutine functions too, or make the handler a coroutine function)"
    )


def name_of(hook: Callable[..., Any]) -> str:
    """Return a hook's name for messages."""
    return getattr(hook, "__qualname__", None) or repr(hook)
