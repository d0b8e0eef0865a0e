"""An attempt in a process of its own, which can be killed with all that it has started.

    pass ---- leash ----> guardian ----> the handler's process ----> whatever it starts
         <--- report ----          <----

The guardian enforces the time limit, whatever the handler does and however stopped the pass is. It
is in a session of its own, so what is meant for the pass does not hit it, and on Linux it is the
"subreaper" (prctl(2)): what the handler's processes leave behind becomes its child, in whatever
group or session it is, and is killed before the attempt is reported. The leash is a pipe that
nobody writes to: when the pass dies, however it dies, its end is closed, and the guardian kills
the rest. When the guardian dies the kernel kills the handler's process (PR_SET_PDEATHSIG). Where
there is no prctl, what has left the handler's process group escapes.

A report is one line that says how the process ended, then what the process itself had to say.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

from dbbasic_queue.forked import flush_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_GRACE = 0.3
_LONGEST_REAPING = 5.0
_TICK = 0.1
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Died(Exception):
    """Raised if the process has ended, or was killed when its time was up, without an outcome."""


def run(work: Callable[[], bytes], timeout: float, tick: Callable[[], None]) -> bytes:
    """Return what `work` returns in a process of its own; by then nothing of it is running.

    `tick` is called in this process some ten times a second meanwhile. Raises Died where
    `work` did not come to its end in time, and lets pass what `tick` or a signal raises; then,
    too, nothing is left running.
    """
    prctl = _prctl()
    flush_output()  # else what is buffered would be written twice
    leash, our_leash = os.pipe()
    our_report, report = os.pipe()
    guardian = os.fork()
    if guardian == 0:
        try:
            os.close(our_leash)
            os.close(our_report)
            _guard(work, timeout, leash, report, prctl)
        finally:
            os._exit(1)
    try:
        os.close(leash)
        os.close(report)
        content = _read_all(our_report, tick)
    finally:
        os.close(our_leash)  # by now it has reported, or it kills the handler's process
        os.close(our_report)
        with suppress(ChildProcessError):  # this program ignores SIGCHLD
            os.waitpid(guardian, 0)
    end, _, outcome = content.partition(b"\n")
    how, _, number = end.decode().partition(" ")
    if how == "done":
        return outcome
    if how == "late":
        raise Died(f"timed out after {timeout:g} s")
    if how == "killed":
        with suppress(ValueError):
            number = signal.Signals(int(number)).name
        raise Died(f"the handler's process was killed by {number}")
    raise Died(
        f"the handler's process ended with exit code {number}"
        if how == "exit"
        else "the handler's process was lost: its guardian was killed"
    )


def _read_all(fd: int, tick: Callable[[], None]) -> bytes:
    content = bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(_TICK * 1000):
            tick()
        elif part := os.read(fd, 1 << 20):
            content += part
        else:
            return bytes(content)


# -- the guardian ------------------------------------------------------------------------------


def _guard(
    work: Callable[[], bytes], timeout: float, leash: int, report: int, prctl: Any
) -> NoReturn:
    """Run the handler's process, report how it ended, end."""
    os.setsid()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, wake_end = os.pipe()
    os.set_blocking(wake_end, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    outcome, outcome_end = os.pipe()
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            for fd in (leash, report, wake, wake_end, outcome):
                os.close(fd)
            _be_the_handlers_process(work, outcome_end, guardian, prctl)
        finally:
            os._exit(1)
    os.close(outcome_end)
    with suppress(OSError):  # the child does the same: whoever is first
        os.setpgid(child, child)
    how, content = _watch(child, timeout, leash, wake, outcome)
    _kill_rest(child)
    if how:
        while part := os.read(outcome, 1 << 20):
            content += part
        _write_all(report, how.encode() + b"\n" + content)
    os._exit(0)


def _watch(
    child: int, timeout: float, leash: int, wake: int, outcome: int
) -> tuple[str, bytearray]:
    """Wait for the end of the handler's process, or of its time.

    Returns how it ended, "" if the pass has died before, and what it has said so far.
    """
    poll = select.poll()
    for fd in (leash, wake, outcome):
        poll.register(fd, select.POLLIN)
    content = bytearray()
    late = ""
    end = time.monotonic() + timeout
    while True:
        ready = {fd for fd, _ in poll.poll(max(end - time.monotonic(), 0) * 1000)}
        if leash in ready:
            return "", content
        if outcome in ready:
            part = os.read(outcome, 1 << 20)
            content += part
            if not part:
                poll.unregister(outcome)
        if wake in ready:
            os.read(wake, 512)
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return late or _how(status), content
        if time.monotonic() >= end:  # whatever news there is: there may be some without a pause
            if late:
                return late, content
            late = "late 0"
            end = time.monotonic() + _GRACE
            _signal_group(child, signal.SIGTERM)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed {os.WTERMSIG(status)}"
    code = os.WEXITSTATUS(status)
    return f"exit {code}" if code else "done"


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _kill_rest(group: int) -> None:
    """Kill the handler's process, its group, and all that has become our child since."""
    end = time.monotonic() + _LONGEST_REAPING
    _signal_group(group, signal.SIGKILL)
    while time.monotonic() < end:
        for child in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            while time.monotonic() < end and os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _children() -> list[int]:
    """Return our children's process ids; none where the kernel does not tell."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def _write_all(fd: int, content: bytes | bytearray) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


# -- the handler's process ---------------------------------------------------------------------


def _be_the_handlers_process(
    work: Callable[[], bytes], outcome: int, guardian: int, prctl: Any
) -> NoReturn:
    """Do the work, hand over what it returns, end."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guardian:
        os._exit(1)  # it died before it could be asked
    with suppress(OSError):
        os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    content = work()
    flush_output()
    _write_all(outcome, content)
    os._exit(0)


def _prctl() -> Callable[[int, int], object]:
    """Return prctl(2), loaded before the fork; nothing is done where there is none."""
    if sys.platform != "linux":
        return lambda option, argument: None
    import ctypes

    libc = ctypes.CDLL(None)

    def prctl(option: int, argument: int) -> object:
        return libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0)

    return prctl
