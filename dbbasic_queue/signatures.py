"""What a function takes: whether a pass can call it, and whether it takes the job.

The standard library's `inspect` would tell more. It isn't used because an idle pass registers its
handlers, too, and `inspect` takes longer to import than such a pass takes to run.
"""

from __future__ import annotations

import sys
from types import FunctionType, MethodType

from dbbasic_queue.errors import InvalidHandlers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# inspect.CO_VARARGS and so on
_VARARGS, _VARKEYWORDS, _GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 4, 8, 32, 128, 512


class Signature:
    """How a pass calls a function.

    `takes_job` is whether it takes the job, next to the payload or among the unpacked arguments;
    `job_by_name` whether it takes it as the keyword argument `job`. `is_coroutine` is whether it is
    a coroutine function.
    """

    __slots__ = ("is_coroutine", "job_by_name", "takes_job")

    def __init__(
        self, *, takes_job: bool = False, job_by_name: bool = False, is_coroutine: bool = False
    ) -> None:
        self.takes_job = takes_job
        self.job_by_name = job_by_name
        self.is_coroutine = is_coroutine


class HasSignature:
    """A callable whose signature is known: it was read from the function inside."""

    _signature: Signature


class _Unwrapped:
    """A function without what is around it (partial, method, callable object).

    `given` is how many of its first arguments are given already, and `named` has the names of the
    keyword arguments that are. `function` is None for a built-in or a class, whose arguments aren't
    known, and for a callable whose `signature` is known (see HasSignature).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.given = 0
        self.named: set[str] = set()
        self.function: FunctionType | None = None
        self.signature: Signature | None = None
        functools = sys.modules.get("functools")  # imported if the program has made a partial
        partial: Any = getattr(functools, "partial", ())
        while not isinstance(function, FunctionType):
            if isinstance(function, HasSignature):
                self.signature = function._signature
                return
            if isinstance(function, partial):
                self.given += len(function.args)
                self.named.update(function.keywords)
                function = function.func
            elif isinstance(function, MethodType):
                self.given += 1
                function = function.__func__
            elif isinstance(function, staticmethod):
                function = function.__func__
            elif isinstance(type(function).__call__, FunctionType):
                self.given += 1
                function = type(function).__call__
            else:
                return
        self.function = function


def read_signature(function: Callable[..., Any], *, unpack: bool) -> Signature:
    """Return how a pass calls a function, as far as that can be known without calling it.

    A function takes the job as its second argument, if that has no default or is named `job`, or
    as a keyword-only argument `job`. With `unpack` it takes it as the argument `job`. Behind a
    decorator that passes all arguments on (functools.wraps), only the name `job` counts: the
    decorator may fill in other arguments. A built-in or a class takes only the payload.

    Raises InvalidHandlers for a function that no pass could call.

    >>> read_signature(lambda payload, job: None, unpack=False).takes_job
    True
    """
    unwrapped = _Unwrapped(function)
    if unwrapped.signature is not None:
        return unwrapped.signature
    if unwrapped.function is None:
        return Signature()
    outer = inner = unwrapped.function
    given, named = unwrapped.given, unwrapped.named
    passes_names = True
    while inner.__code__.co_flags & _VARARGS and isinstance(
        wrapped := getattr(inner, "__wrapped__", None), FunctionType
    ):
        passes_names = passes_names and bool(inner.__code__.co_flags & _VARKEYWORDS)
        inner = wrapped
    if inner is outer:
        _check_callable(inner, given, named, unpack)
    positional, by_name = _arguments(inner)
    positional = positional[given:]
    takes_job = job_by_name = False
    if unpack:
        takes_job = "job" in (*positional, *by_name) and "job" not in named
    elif len(positional) > 1 and positional[1] not in named:
        required = inner.__code__.co_argcount - len(inner.__defaults__ or ())
        takes_job = positional[1] == "job" or (given + 1 < required and inner is outer)
    if not unpack and not takes_job and passes_names:
        takes_job = job_by_name = "job" in by_name and "job" not in named
    return Signature(
        takes_job=takes_job,
        job_by_name=job_by_name,
        is_coroutine=bool(outer.__code__.co_flags & _COROUTINE),
    )


def _arguments(function: FunctionType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the positional arguments, and of the keyword-only ones."""
    code = function.__code__
    count, all_count = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    return code.co_varnames[:count], code.co_varnames[count:all_count]


def _check_callable(function: FunctionType, given: int, named: set[str], unpack: bool) -> None:
    """Raise InvalidHandlers if no pass could call the function."""
    if why := _obstacle(function, given, named, unpack):
        raise InvalidHandlers(f"invalid handler {function.__qualname__}: it {why}")


def _obstacle(function: FunctionType, given: int, named: set[str], unpack: bool) -> str:
    """Return why no pass could call the function, or ""."""
    code = function.__code__
    arguments, by_name = _arguments(function)
    first_default = code.co_argcount - len(function.__defaults__ or ())
    required = [name for name in arguments[given:first_default] if name not in named]
    if code.co_flags & (_GENERATOR | _ASYNC_GENERATOR):
        return "is a generator function (use return instead of yield)"
    if not given and arguments[:1] == ("self",):
        return "is a method without its object (register a bound method, such as mailer.send)"
    if unpack:
        unnamed = [name for name in required if name in arguments[: code.co_posonlyargcount]]
        if not unnamed:
            return ""
        return f"takes {unnamed[-1]!r} by position only, and unpack gives arguments by name"
    if not (arguments[given:] or code.co_flags & _VARARGS):
        return "takes no payload (give it an argument for the payload)"
    if arguments[given:] and arguments[given] in named:
        first = arguments[given]
        return f"already has a value for its first argument, {first!r}, which must take the payload"
    if len(required) > 2:
        return (
            f"requires {len(required)} arguments, but gets only the payload and, as a second one, "
            "the job (bind the others with functools.partial)"
        )
    missing = {*by_name} - {*(function.__kwdefaults__ or {})} - named - {"job"}
    if missing:
        return (
            f"requires the argument {min(missing)!r} by name, but gets only the job by name "
            "(give it a default, or use unpack=True)"
        )
    return ""


# -- hooks: what they are called with is fixed --


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Return whether a call returns a coroutine, as far as that can be known."""
    return bool(_flags(function) & _COROUTINE)


def unstarted_generator(function: Callable[..., Any]) -> str:
    """Return which decorator of contextlib is missing if this is a generator function, or ""."""
    if _flags(function) & _GENERATOR:
        return "contextmanager"
    return "asynccontextmanager" if _flags(function) & _ASYNC_GENERATOR else ""


def makes_async_context(function: Callable[..., Any]) -> bool:
    """Return whether a call returns an async context manager that isn't a plain one, too.

    Known are the functions that `contextlib.asynccontextmanager` returns, and classes.
    """
    if isinstance(function, type):
        return hasattr(function, "__aenter__") and not hasattr(function, "__enter__")
    inner = _without_contextlib(_Unwrapped(function).function)
    return inner is not None and bool(inner.__code__.co_flags & _ASYNC_GENERATOR)


def check_hook(function: Callable[..., Any], given: tuple[str, ...]) -> str:
    """Return why a function can't be called with these arguments by position, or "".

    A built-in or a class can take any.
    """
    unwrapped = _Unwrapped(function)
    inner = _without_contextlib(unwrapped.function)
    if inner is None:
        return ""
    code = inner.__code__
    names = code.co_varnames[unwrapped.given : code.co_argcount]
    first_default = len(names) - len(inner.__defaults__ or ())
    required = {*names[: max(first_default, 0)]} - unwrapped.named
    fits = required <= {*names[: len(given)]}
    fits = fits and (len(given) <= len(names) or bool(code.co_flags & _VARARGS))
    by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    missing = {*by_name} - {*(inner.__kwdefaults__ or {})} - unwrapped.named
    if fits and not missing and not unwrapped.named & {*names[: len(given)]}:
        return ""
    return f"can't be called with what it gets: {', '.join(given)}"


def _without_contextlib(function: FunctionType | None) -> FunctionType | None:
    """Return the generator function that a decorator of contextlib has wrapped, if it is one."""
    while function is not None and function.__globals__.get("__name__") == "contextlib":
        function = getattr(function, "__wrapped__", None)
    return function


def _flags(function: Callable[..., Any]) -> int:
    inner = _Unwrapped(function).function
    return 0 if inner is None else inner.__code__.co_flags
