"""An attempt in a process of its own, which can be killed with all that it has started.

    pass ---- leash ----> guardian ----> the handler's process ----> whatever it starts
         <--- report ----          <----

The guardian enforces the time limit, whatever the handler does and however stopped the pass is. It
is in a session of its own, so what is meant for the pass does not hit it, and on Linux it is the
"subreaper" (prctl(2)): what the handler's processes leave behind becomes its child, in whatever
group or session it is, and is killed before the attempt is reported. The leash is a pipe that
nobody writes to: when the pass dies, however it dies, its end is closed, and the guardian kills
the rest. It also looks every second whether the pass still is its parent, for a process that was
forked without Python's hooks may hold the leash. When the guardian dies the kernel kills the
handler's process (PR_SET_PDEATHSIG), and the pass kills its session; if it is stopped, the pass
kills what it finds in /proc, some seconds after the time limit. Where there is no prctl, what has
left the handler's process group escapes; where there is no /proc, what has left its session.

The guardian also holds the lock of the pass's slot: no other pass recovers the job, and runs it
again, before the guardian of a dead pass has killed what runs.

A report is a line that says how the handler's process ended, and the outcome that it has handed
over: its length in 8 bytes, then that many. Only one that is complete counts.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from contextlib import suppress

from dbbasic_queue.passes import forked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_GRACE = 0.3
_LONGEST_REAPING = 5.0
_LATEST_REPORT = _GRACE + _LONGEST_REAPING + 2.0
_TICK = 0.1
_GUARDIANS_TICK = 1.0
_LENGTH_BYTES = 8
_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Died(Exception):
    """Raised if the process has ended, or was killed when its time was up, without an outcome.

    `was_told_to_end`: by a signal that may have been meant for all processes of a service.
    """

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.was_told_to_end = number in _TO_END


class NotStarted(Exception):
    """Raised if the system refuses a process or a pipe: the work was not called."""


def run(work: Callable[[], bytes], timeout: float, tick: Callable[[], None], slot: int) -> bytes:
    """Return what `work` returns in a process of its own; by then nothing of it is running.

    `slot` is the descriptor of a file whose lock the guardian is to hold as well, -1 for none.
    `tick` is called in this process some ten times a second meanwhile. Raises Died where
    `work` did not come to its end in time, NotStarted where it was not called, and lets pass what
    `tick` or a signal raises; then, too, nothing is left running.
    """
    prctl = _prctl()
    this_pass = os.getpid()
    leash = our_leash = our_report = report = held = -1
    guardian = None
    try:
        try:
            leash, our_leash = forked.pipe()
            our_report, report = forked.pipe()
            os.set_blocking(our_report, False)
            held = forked.duplicate(slot) if slot >= 0 else -1
            pid = forked.start(
                lambda: _guard(work, timeout, leash, report, this_pass, prctl),
                keep=(leash, report, held),
            )
        except (OSError, RuntimeError) as e:
            raise NotStarted from e
        guardian = _Guardian(pid, our_report)
        forked.close(leash, report, held)
        guardian.wait(time.monotonic() + timeout + _LATEST_REPORT, tick)
    finally:
        forked.close(our_leash)  # by now it has reported, or it kills the handler's process
        if guardian is not None:
            guardian.end()
        forked.close(leash, report, held, our_report)
    return _outcome(bytes(guardian.report), timeout, is_late=guardian.is_late)


def _outcome(report: bytes, timeout: float, *, is_late: bool) -> bytes:
    """Return the outcome that a guardian has reported, or raise what it means."""
    end, is_whole, content = report.partition(b"\n")
    how, _, number = end.decode().partition(" ")
    if is_whole and how == "refused":
        raise NotStarted from OSError(int(number), os.strerror(int(number)))
    if (is_whole and how == "late") or is_late:
        raise Died(f"timed out after {timeout:g} s")
    if not is_whole:
        raise Died("the handler's process was lost: its guardian was killed")
    if _is_complete(content):
        return content[_LENGTH_BYTES:]
    if how == "killed":
        name = forked.signal_name(int(number))
        raise Died(f"the handler's process was killed by {name}", int(number))
    without = "" if int(number) else ", without a result"
    raise Died(f"the handler's process ended with exit code {number}{without}")


def _is_complete(outcome: bytes | bytearray) -> bool:
    length = int.from_bytes(outcome[:_LENGTH_BYTES], "big")
    return len(outcome) == _LENGTH_BYTES + length if len(outcome) >= _LENGTH_BYTES else False


def _read_all(fd: int, content: bytearray) -> bool:
    """Read what there is now; return whether the pipe has been closed at its other end."""
    with suppress(BlockingIOError):
        while part := os.read(fd, 1 << 20):
            content += part
        return True
    return False


class _Guardian:
    """The guardian as its pass sees it."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.report = bytearray()
        self.is_late = False
        self._fd = fd
        self._status: int | None = None
        self._is_closed = False

    def wait(self, end: float, tick: Callable[[], None]) -> None:
        """Wait until it has reported and ended, or the time is up."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            if poll.poll(_TICK * 1000):
                if _read_all(self._fd, self.report):
                    self._is_closed = True
                    return
            elif self._has_ended():
                _read_all(self._fd, self.report)
                return
            elif time.monotonic() > end:
                self.is_late = True
                return
            else:
                tick()

    def end(self) -> None:
        """See that it, and what it has watched, has ended; its leash is closed."""
        until = time.monotonic() + (0 if self.is_late else _LATEST_REPORT)
        while not self._has_ended() and time.monotonic() < until:
            time.sleep(0.0005)
        if self._status == 0:
            return  # it has killed the rest itself
        _kill_session(self.pid)
        if self._status is None:  # it is stopped
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def _has_ended(self) -> bool:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, 0 if self._is_closed else os.WNOHANG)
            except ChildProcessError:  # this program ignores SIGCHLD, and it has ended
                pid, status = self.pid, 0 if self.report else -1
            self._status = status if pid else None
        return self._status is not None


def _kill_session(guardian: int) -> None:
    """Kill what a guardian that is dead or stopped has left: all below it, and in its session."""
    end = time.monotonic() + _LONGEST_REAPING
    while (left := _descendants(guardian)) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _descendants(guardian: int) -> list[int]:
    """Return the living processes below one, or in its session; none without /proc."""
    parents: dict[int, int] = {}
    found = set()
    with suppress(OSError):
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
                if state not in b"ZX":
                    parents[int(name)] = int(parent)
                    if int(session) == guardian:
                        found.add(int(name))
    below = {guardian}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted((found | below) - {guardian})


# -- the guardian ------------------------------------------------------------------------------


def _guard(
    work: Callable[[], bytes],
    timeout: float,
    leash: int,
    report: int,
    this_pass: int,
    prctl: Any,
) -> NoReturn:
    """Run the handler's process, report how it ended, end."""
    os.setsid()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    for number in _TO_END:
        signal.signal(number, signal.SIG_IGN)
    try:
        wake, wake_end = forked.pipe()
        os.set_blocking(wake_end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        outcome, outcome_end = forked.pipe()
        os.set_blocking(outcome, False)
        child = forked.start(
            lambda: _be_the_handlers_process(work, outcome_end, guardian, prctl), (outcome_end,)
        )
    except (OSError, RuntimeError) as e:
        reason = getattr(e, "errno", None) or errno.EAGAIN
        _write_all(report, f"refused {reason}\n".encode())
        os._exit(0)
    forked.close(outcome_end)
    with suppress(OSError):  # the child does the same: whoever is first
        os.setpgid(child, child)
    how, content = _watch(child, timeout, leash, wake, outcome, this_pass)
    _kill_rest(child)
    if how:
        _read_all(outcome, content)
        _write_all(report, how.encode() + b"\n" + content)
    os._exit(0)


def _watch(
    child: int, timeout: float, leash: int, wake: int, outcome: int, this_pass: int
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
        left = max(end - time.monotonic(), 0)
        ready = {fd for fd, _ in poll.poll(min(left, _GUARDIANS_TICK) * 1000)}
        if leash in ready or os.getppid() != this_pass:
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
            late = _how(0) if _is_complete(content) else "late 0"
            end = time.monotonic() + _GRACE
            _signal_group(child, signal.SIGTERM)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed {os.WTERMSIG(status)}"
    return f"exit {os.WEXITSTATUS(status)}"


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _kill_rest(group: int) -> None:
    """Kill the handler's process, its group, and all that has become our child since."""
    _signal_group(group, signal.SIGKILL)
    end = time.monotonic() + _LONGEST_REAPING
    while time.monotonic() < end:
        if (children := _children()) is None:
            end = min(end, time.monotonic() + _GRACE)  # what has left the group cannot be found
        for child in children or ():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            while time.monotonic() < end and os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _children() -> list[int] | None:
    """Return our children's process ids; None where the kernel does not tell."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return None


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
    for number in (*_TO_END, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    content = work()
    forked.flush_output()
    _write_all(outcome, len(content).to_bytes(_LENGTH_BYTES, "big") + content)
    forked.end()


def _prctl() -> Callable[[int, int], object]:
    """Return prctl(2), loaded before the fork; nothing is done where there is none."""
    if sys.platform != "linux":
        return lambda option, argument: None
    import ctypes

    libc = ctypes.CDLL(None)

    def prctl(option: int, argument: int) -> object:
        return libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0)

    return prctl
