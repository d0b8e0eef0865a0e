"""Counts the file calls that a process makes on the queue's files; kills it at one, or fails one.

`Shim.install` replaces functions of `os`, and `fcntl.flock`, in this process: only install it in a
forked child. A call is the queue's if its path is below the root, or its descriptor was opened
there. A `Plan` names a call by its number and says what happens to it:

    before   the process is killed with SIGKILL instead of the call
    half     ... after half of a write
    torn     ... after a write without its last byte, a newline
    after    ... after the call
    error    the call raises; with `lasting`, so does each later call that can raise this error
             (with `then_error`, so does the `after`th later changing call that can raise that one)
    short    a write writes only half; with `lasting`, later calls raise (a disk that fills up)
             or, without an error number, later writes also write only half
    broken   a write writes half, and then raises
    act      `Shim.act` is called first: what another process does at this moment
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

# The names of calls, as in the trace: `create` is an `open` that may create the file.
TAKES_SPACE = frozenset(("create", "write", "rename", "mkdir", "fsync", "fdatasync"))
CHECKS_ACCESS = frozenset(
    ("open", "create", "rename", "unlink", "mkdir", "stat", "lstat", "utime", "fchmod", "fchown")
)
# A close that fails still closes. fstat and unlock can't fail on a valid descriptor.
NEVER_FAILS = frozenset(("close", "fstat", "unlock"))
CALLS_WITH = {
    errno.ENOSPC: TAKES_SPACE,
    errno.EDQUOT: TAKES_SPACE,
    errno.EACCES: CHECKS_ACCESS,
    errno.EIO: (frozenset(REAL) | {"create"}) - NEVER_FAILS,
    errno.EINTR: (frozenset(REAL) | {"create"}) - NEVER_FAILS,
}
"""error number -> the calls that can raise it"""
REFUSALS = ("error", "short", "broken")
"""the phases in which a call fails or writes less"""


_CHANGES_FILES = frozenset(
    ("create", "rename", "mkdir", "ftruncate", "unlink", "fchmod", "fchown", "lock", "unlock")
) | {"fsync", "fdatasync"}


def changes(name: str) -> bool:
    """Return whether a call with this name changes files or locks."""
    return name == "write" or name in _CHANGES_FILES


@dataclass(frozen=True)
class Call:
    """One call of the trace. An `open` that may create the file is named `create`.

    `site` names the functions of the package that led to the call, innermost first.
    """

    name: str
    file: str
    site: str
    locked: bool = False
    """whether the queue's lock is held"""

    def __str__(self) -> str:
        return f"{self.name} {self.file} in {self.site}"

    def phases(self) -> tuple[str, ...]:
        """Return the moments at which a kill leaves different states behind."""
        if self.name == "write":
            return ("before", "half", "torn", "after")
        if self.name in _CHANGES_FILES:
            return ("before", "after")
        return ("before",)  # a call that only reads changes nothing


EARLIER = Call("", "", "")
"""stands in the trace for a call before the planned one"""
NEVER = 1 << 30
"""the number of a call that no process makes, for a plan that only counts them"""


@dataclass(frozen=True)
class Plan:
    """What happens to call `number`, counted from 0; the module describes the phases."""

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
        lasting = " from then on" if self.lasting else " once"
        text = f"{self.phase} {name}{lasting} at call {self.number}"
        if self.then_error:
            text += f", {errno.errorcode[self.then_error]} {self.after} changing calls later"
        return text


class Shim:
    """Stands between this process and its file calls below `root`."""

    def __init__(self, root: str, plan: Plan | None = None) -> None:
        self.root = root
        self.plan = plan
        self.trace: list[Call] = []
        """the calls so far"""
        self.on = False
        """whether calls are counted and attacked; not those of processes that it forks"""
        self._process = 0
        self.first_error = ""
        """the first call that failed"""
        self._later_changes = 0
        self._counting = threading.Lock()
        self.act: Callable[[], None] = lambda: None
        self.locked = False
        """whether this process holds the queue's lock"""
        self.on_error: Callable[[str], None] = lambda _: None
        """called with the first failing call, and with the one that `then_error` fails"""
        self._descriptors: dict[int, str] = {}
        """descriptor -> path of each open file below `root`"""

    def install(self) -> None:
        """Replace functions of `os`, and `fcntl.flock`, in this process. There is no way back."""
        self._process = os.getpid()
        for name in NAMES:
            setattr(os, name, self._wrapper(name))
        lock, unlock = self._wrapper("lock"), self._wrapper("unlock")

        def flock(fd: int, operation: int) -> None:
            (unlock if operation == fcntl.LOCK_UN else lock)(fd, operation)

        setattr(fcntl, "flock", flock)  # noqa: B010 - its signature differs
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
            if self.on and os.getpid() == self._process:
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
        plan = self.plan
        with self._counting:  # two threads must not both make the planned call
            number = len(self.trace)
            self.trace.append(EARLIER)
        if plan is None or number >= plan.number or plan.number >= NEVER:
            self.trace[number] = Call(name, os.path.basename(file), _site(), self.locked)
        if name in ("lock", "unlock") and file.endswith(".lock"):
            self.locked = name == "lock"
        if plan is None or number < plan.number:
            return function(*args, **options)
        if plan.phase in REFUSALS:
            return self._refuse(plan, number, name, function, args, options)
        if number > plan.number:
            return function(*args, **options)
        if plan.phase == "act":
            self.on = False
            self.act()
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
        if not first and plan.then_error and changes(name) and name in CALLS_WITH[plan.then_error]:
            self._later_changes += 1
            if self._later_changes == plan.after:
                self.on_error(str(self.trace[number]))
                return _raise(plan.then_error, args[0])
        if not first and not plan.lasting:
            return function(*args, **options)
        if name == "write" and plan.phase == "short" and (first or not plan.error):
            self._report(number)
            return function(args[0], args[1][: (len(args[1]) + 1) // 2])
        if not plan.error or (not first and name not in CALLS_WITH[plan.error]):
            return function(*args, **options)
        if plan.phase == "broken" and name != "write":  # another thread made this call
            return function(*args, **options)
        self._report(number)
        if plan.phase == "broken":
            function(args[0], args[1][: (len(args[1]) + 1) // 2])
        return _raise(plan.error, args[0])

    def _report(self, number: int) -> None:
        if not self.first_error:
            self.first_error = str(self.trace[number])
            self.on_error(self.first_error)


def _raise(error: int, where: Any) -> NoReturn:
    if isinstance(where, str):
        raise OSError(error, os.strerror(error), where)
    raise OSError(error, os.strerror(error))


_COMPARING = ("is_ours", "is_untouched", "set_mark")
_WRAPPERS = {("dbbasic_queue.store.disk.lock", name) for name in ("run", "read", "call")}


def _only_compares(name: str) -> bool:
    """Return whether the call only checks that a descriptor is still the one that was opened.

    Such calls are neither counted nor attacked.
    """
    return name in ("fstat", "lseek") and sys._getframe(2).f_code.co_name in _COMPARING


def _site() -> str:
    """Return the innermost functions of the package on the stack, up to five, joined by "<"."""
    names: list[str] = []
    frame = sys._getframe(3)
    while frame is not None and len(names) < 5:
        name = frame.f_code.co_name
        module = frame.f_globals.get("__name__", "")
        if "dbbasic_queue" in module and (module, name) not in _WRAPPERS:
            names.append(name)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "<".join(names)


def die() -> None:
    """End this process like `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)
