"""The guardian of an attempt with a time limit: it kills the attempt with all its processes.

    pass ---- leash ----> guardian ----> the handler's process ----> whatever it starts
         <--- report ----          <----

- The guardian enforces the time limit, whatever the handler does, even while the pass is stopped.
- It has a session of its own, so signals for the pass's process group don't reach it.
- On Linux it is the "subreaper" (prctl(2)): processes that lose their parent become its children,
  in any group or session. It kills them before it reports. Without prctl, or if /proc
  doesn't list them, processes that have left the handler's process group escape.
- The leash is a pipe. When the pass dies, for any reason, its end is closed, and the guardian kills
  all processes of the attempt. It also checks every second that the pass is still its parent: a
  process that was forked without Python's hooks may hold the leash open. The pass writes one byte
  to it to have the attempt stopped.
- When the guardian dies, the kernel kills the handler's process (PR_SET_PDEATHSIG), and the pass
  kills the guardian's session.
- The guardian holds the lock of the pass's slot, too. So no other pass recovers the job, and runs
  it again, before the guardian of a dead pass has killed what is running.
- What the attempt prints, to stdout and stderr, comes through another pipe. The guardian reads it
  all, and keeps the end, whatever happens to the attempt. It doesn't wait for the end of the pipe.

A report is a line, then A bytes of the outcome, then B bytes of what was printed. The outcome that
the handler's process writes is its length in 8 bytes, big-endian, then that many bytes. An
incomplete one doesn't count. C is how many bytes were printed before those B bytes. The line:

    exit CODE A B C       the process has ended; 0 also if its time was up after a complete outcome
    killed SIGNAL A B C   the process was killed by this signal
    late 0 A B C          its time was up before the outcome was complete
    stopped 0 A B C       the pass asked for its end before the outcome was complete
    refused ERRNO 0 0 0   the system refused the process or its pipes: there is no outcome
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
from dbbasic_queue.passes.tail import Tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

STOP = b"s"
"""what the pass writes to the leash to have the attempt stopped"""
GRACE_SECONDS = 0.3
"""from SIGTERM to SIGKILL"""
REAP_SECONDS = 5.0
"""how long to go on killing processes that are still there"""
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""those that may be sent to all processes of a service"""
LENGTH_BYTES = 8
_POLL_SECONDS = 1.0
"""how often to check that the pass is still the parent"""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def is_complete(outcome: bytes | bytearray) -> bool:
    """Return whether this is a whole outcome: its length, and that many bytes."""
    length = int.from_bytes(outcome[:LENGTH_BYTES], "big")
    return len(outcome) == LENGTH_BYTES + length if len(outcome) >= LENGTH_BYTES else False


def read_all(fd: int, content: bytearray) -> bool:
    """Read all that is in the pipe, without waiting; return whether its other end is closed."""
    with suppress(BlockingIOError):
        while part := os.read(fd, 1 << 20):
            content += part
        return True
    return False


def guard(
    work: Callable[[], bytes],
    timeout: float,
    leash: int,
    report: int,
    this_pass: int,
    prctl: Any,
) -> NoReturn:
    """Be the guardian: run the handler's process, write the report, and end this process.

    `work` runs in the handler's process and returns the outcome. `leash` and `report` are this
    process's ends of the pipes, `this_pass` is the id of the pass's process. Exit code 0 means that
    all processes of the attempt are dead, as far as they could be found.
    """
    os.setsid()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    for number in END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        wake, wake_end = forked.pipe()
        os.set_blocking(wake_end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        outcome, outcome_end = forked.pipe()
        os.set_blocking(outcome, False)
        output, output_end = forked.pipe()
        child = forked.start(
            lambda: _be_the_handlers_process(work, outcome_end, output_end, guardian, prctl),
            (outcome_end, output_end),
        )
    except (OSError, RuntimeError) as e:
        reason = getattr(e, "errno", None) or errno.EAGAIN
        write_all(report, f"refused {reason} 0 0 0\n".encode())
        os._exit(0)
    forked.close(outcome_end, output_end)
    with suppress(OSError):  # the child does it, too: it must be done before either continues
        os.setpgid(child, child)
    printed = Tail(output)
    how, content = _watch(child, timeout, leash, wake, outcome, this_pass, printed)
    _kill_rest(child)
    if how:
        read_all(outcome, content)
        printed.read_rest()
        line = f"{how} {len(content)} {len(printed.kept)} {printed.left_out}\n"
        write_all(report, line.encode() + content + printed.kept)
    os._exit(0)


def _watch(
    child: int,
    timeout: float,
    leash: int,
    wake: int,
    outcome: int,
    this_pass: int,
    printed: Tail,
) -> tuple[str, bytearray]:
    """Wait until the handler's process has ended, its time is up, or the pass has died.

    When the time is up, or the pass asks for it, its process group gets SIGTERM, and GRACE_SECONDS
    to end. Returns how the report's line begins, or "" if the pass has died, and the outcome as far
    as it was read.
    """
    poll = select.poll()
    for fd in (leash, wake, outcome, printed.fd):
        poll.register(fd, select.POLLIN)
    content = bytearray()
    late = ""
    end = time.monotonic() + timeout
    while True:
        left = max(end - time.monotonic(), 0)
        ready = {fd for fd, _ in poll.poll(min(left, _POLL_SECONDS) * 1000)}
        asked = os.read(leash, 1) if leash in ready else None
        if asked == b"" or os.getppid() != this_pass:
            return "", content
        if outcome in ready:
            part = os.read(outcome, 1 << 20)
            content += part
            if not part:
                poll.unregister(outcome)
        if printed.fd in ready and not printed.read():
            poll.unregister(printed.fd)
        if wake in ready:
            os.read(wake, 512)
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return late or _how(status), content
        if asked or time.monotonic() >= end:  # checked in any case: the pipe may never be empty
            if late:
                return late, content
            # With a complete outcome the job is done: only its process hasn't ended yet.
            late = _how(0) if is_complete(content) else ("stopped 0" if asked else "late 0")
            end = time.monotonic() + GRACE_SECONDS
            _signal_group(child, signal.SIGTERM)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed {os.WTERMSIG(status)}"
    return f"exit {os.WEXITSTATUS(status)}"


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _kill_rest(group: int) -> None:
    """Kill the handler's process group, and all processes that have become our children.

    Returns when there are no more, at most REAP_SECONDS later.
    """
    _signal_group(group, signal.SIGKILL)
    end = time.monotonic() + REAP_SECONDS
    while time.monotonic() < end:
        if (children := _children()) is None:
            # Processes that have left the group can't be found, so don't wait for them long.
            end = min(end, time.monotonic() + GRACE_SECONDS)
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
    """Return the process ids of our children; None if the kernel doesn't list them."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return None


def write_all(fd: int, content: bytes | bytearray) -> None:
    """Write the whole content to a pipe. Raises OSError if that isn't possible."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _be_the_handlers_process(
    work: Callable[[], bytes], outcome: int, output: int, guardian: int, prctl: Any
) -> NoReturn:
    """Call `work`, write the outcome that it returns to the pipe, and end this process.

    `outcome` and `output` are this process's ends of the pipes; it prints to `output`.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guardian:
        os._exit(1)  # the guardian died before prctl, so the kernel doesn't kill this process
    with suppress(OSError):
        os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (*END_SIGNALS, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    forked.print_to(output)
    content = work()
    forked.flush_output()
    write_all(outcome, len(content).to_bytes(LENGTH_BYTES, "big") + content)
    forked.end()


def load_prctl() -> Callable[[int, int], object]:
    """Return prctl(2), or a function that does nothing if this isn't Linux.

    Call it before the fork, so that the guardian has nothing to import.
    """
    if sys.platform != "linux":
        return lambda option, argument: None
    import ctypes

    libc = ctypes.CDLL(None)

    def prctl(option: int, argument: int) -> object:
        return libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0)

    return prctl
