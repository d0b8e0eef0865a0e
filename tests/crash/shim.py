"""Every file call that a process makes on the queue's files: counted, killed at, or refused.

`Shim.install` replaces the functions of `os`, and `fcntl.flock`, in this very process: install it
in a forked child only. A call is the queue's if its path lies below the root, or its descriptor
was opened there. A `Plan` names one call by its number and what becomes of it:

    before   the process is killed with SIGKILL instead of the call
    half     ... when half of a write is done
    torn     ... when all of a write but its last byte, a newline, is done
    after    ... when the call is done
    error    the call raises; with `lasting`, so does every later one that this error can meet
    short    a write does half of its work; with `lasting`, later calls raise (a disk that fills)
             or, without an error number, write half of what they are given, again and again
             (with `then_error`, so does the `after`th call behind it that changes a file)
    broken   a write does half of its work, and its rest is refused
    meanwhile  `Shim.meanwhile` is called first: what another process does in that very moment
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

NAMES = (
    "open",
    "close",
    "read",
    "pread",
    "write",
    "ftruncate",
    "rename",
    "unlink",
    "fsync",
    "fdatasync",
    "fchmod",
    "fchown",
    "utime",
    "mkdir",
    "stat",
    "lstat",
    "fstat",
    "lseek",
)
REAL: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in NAMES}
REAL["lock"] = REAL["unlock"] = fcntl.flock

TAKES_ROOM = frozenset(("create", "write", "rename", "mkdir", "fsync", "fdatasync"))
CHECKS_ACCESS = frozenset(
    ("open", "create", "rename", "unlink", "mkdir", "stat", "lstat", "utime", "fchmod", "fchown")
)
# A close that fails has closed; and fstat and an unlock of a good descriptor cannot fail.
NEVER_FAILS = frozenset(("close", "fstat", "unlock"))
PRESENT_IN = {
    errno.ENOSPC: TAKES_ROOM,
    errno.EDQUOT: TAKES_ROOM,
    errno.EACCES: CHECKS_ACCESS,
    errno.EIO: (frozenset(REAL) | {"create"}) - NEVER_FAILS,
    errno.EINTR: (frozenset(REAL) | {"create"}) - NEVER_FAILS,
}
"""The calls in which each error number is met."""
REFUSALS = ("error", "short", "broken")


_LEAVES_SOMETHING = frozenset(
    ("create", "rename", "mkdir", "ftruncate", "unlink", "fchmod", "fchown", "lock", "unlock")
) | {"fsync", "fdatasync"}


def changes(name: str) -> bool:
    """Tell whether a call leaves something behind."""
    return name == "write" or name in _LEAVES_SOMETHING


@dataclass(frozen=True)
class Call:
    """One call of the trace, and the functions of the package that led to it, innermost first.

    An `open` that may create the file is named `create`.
    """

    name: str
    file: str
    site: str
    locked: bool = False
    """whether the queue's lock is held"""

    def __str__(self) -> str:
        return f"{self.name} {self.file} in {self.site}"

    def phases(self) -> tuple[str, ...]:
        """Return the moments at which a kill in this call leaves different things behind."""
        if self.name == "write":
            return ("before", "half", "torn", "after")
        if self.name in _LEAVES_SOMETHING:
            return ("before", "after")
        return ("before",)  # nothing is left behind by a call that only looks


@dataclass(frozen=True)
class Plan:
    """What becomes of call `number`."""

    number: int
    phase: str
    error: int = 0
    lasting: bool = False
    after: int = 0
    then_error: int = 0

    def __str__(self) -> str:
        if self.phase not in REFUSALS:
            return f"killed {self.phase} call {self.number}"
        name = errno.errorcode.get(self.error, "")
        lasting = " for good" if self.lasting else " once"
        text = f"{self.phase} {name}{lasting} at call {self.number}"
        if self.then_error:
            text += f", {errno.errorcode[self.then_error]} {self.after} changing calls later"
        return text


class Shim:
    """The calls of this process below `root`, in their order."""

    def __init__(self, root: str, plan: Plan | None = None) -> None:
        self.root = root
        self.plan = plan
        self.trace: list[Call] = []
        self.on = False
        self.met = ""
        self._behind = 0
        self._counting = threading.Lock()
        self.meanwhile: Callable[[], None] = lambda: None
        self.locked = False
        self.told: Callable[[str], None] = lambda _: None
        self._descriptors: dict[int, str] = {}

    def install(self) -> None:
        """Replace the functions of `os`, and `fcntl.flock`, in this process, for good."""
        for name in NAMES:
            setattr(os, name, self._wrapper(name))
        lock, unlock = self._wrapper("lock"), self._wrapper("unlock")

        def flock(fd: int, operation: int) -> None:
            (unlock if operation == fcntl.LOCK_UN else lock)(fd, operation)

        setattr(fcntl, "flock", flock)  # noqa: B010 - of a signature of its own
        os.register_at_fork(after_in_child=self._after_fork)
        self.on = True

    def _after_fork(self) -> None:
        self._counting = threading.Lock()

    def _wrapper(self, name: str) -> Callable[..., Any]:
        function = REAL[name]

        def call(*args: Any, **options: Any) -> Any:
            file = self._file(args[0])
            if file is None or _only_compares(name):
                return function(*args, **options)
            if self.on:
                result = self._do(name, file, function, args, options)
            else:
                result = function(*args, **options)
            if name == "open":
                self._descriptors[result] = file
            elif name == "close":
                self._descriptors.pop(args[0], None)
            return result

        return call

    def _file(self, where: Any) -> str | None:
        if isinstance(where, int):
            return self._descriptors.get(where)
        if isinstance(where, str) and where.startswith(self.root):
            return where
        return None

    def _do(
        self,
        name: str,
        file: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        if name == "open" and args[1] & os.O_CREAT:
            name = "create"
        call = Call(name, os.path.basename(file), _site(), self.locked)
        with self._counting:  # two threads must not both be the call that the plan is for
            number = len(self.trace)
            self.trace.append(call)
        if name in ("lock", "unlock") and file.endswith(".lock"):
            self.locked = name == "lock"
        plan = self.plan
        if plan is None or number < plan.number:
            return function(*args, **options)
        if plan.phase in REFUSALS:
            return self._refuse(plan, number, name, function, args, options)
        if number > plan.number:
            return function(*args, **options)
        if plan.phase == "meanwhile":
            self.on = False
            self.meanwhile()
            self.on = True
            return function(*args, **options)
        if name == "write" and plan.phase == "half":
            REAL["write"](args[0], args[1][: len(args[1]) // 2])
        elif name == "write" and plan.phase == "torn":
            REAL["write"](args[0], args[1][:-1])
        elif plan.phase == "after":
            with suppress(OSError):
                function(*args, **options)
        die()
        raise AssertionError("unreachable")

    def _refuse(
        self,
        plan: Plan,
        number: int,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        first = number == plan.number
        if not first and plan.then_error and changes(name) and name in PRESENT_IN[plan.then_error]:
            self._behind += 1
            if self._behind == plan.after:
                self.told(str(self.trace[number]))
                return _raise(plan.then_error, args[0])
        if not first and not plan.lasting:
            return function(*args, **options)
        if name == "write" and plan.phase == "short" and (first or not plan.error):
            self._meet(number)
            return function(args[0], args[1][: (len(args[1]) + 1) // 2])
        if not plan.error or (not first and name not in PRESENT_IN[plan.error]):
            return function(*args, **options)
        if plan.phase == "broken" and name != "write":  # a thread has come in between this time
            return function(*args, **options)
        self._meet(number)
        if plan.phase == "broken":
            function(args[0], args[1][: (len(args[1]) + 1) // 2])
        return _raise(plan.error, args[0])

    def _meet(self, number: int) -> None:
        if not self.met:
            self.met = str(self.trace[number])
            self.told(self.met)


def _raise(error: int, where: Any) -> NoReturn:
    if isinstance(where, str):
        raise OSError(error, os.strerror(error), where)
    raise OSError(error, os.strerror(error))


_COMPARING = ("is_ours", "is_untouched", "set_mark")
_AROUND = {("dbbasic_queue.store.disk.lock", name) for name in ("run", "read", "call")}


def _only_compares(name: str) -> bool:
    """Tell whether the call is one of the many that compare a descriptor with what was opened."""
    return name in ("fstat", "lseek") and sys._getframe(2).f_code.co_name in _COMPARING


def _site() -> str:
    names: list[str] = []
    frame = sys._getframe(3)
    while frame is not None and len(names) < 5:
        name = frame.f_code.co_name
        module = frame.f_globals.get("__name__", "")
        if "dbbasic_queue" in module and (module, name) not in _AROUND:
            names.append(name)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "<".join(names)


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
