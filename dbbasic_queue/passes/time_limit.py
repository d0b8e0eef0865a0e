"""Runs an attempt with a time limit in a process of its own: the part that the pass does.

The module `guardian` describes the processes, and does the rest.

- When `run` returns or raises, the guardian has killed everything that the attempt has started.
- If the guardian was killed, the pass kills every process in the guardian's session. Processes that
  have left the session escape.
- If the guardian is stopped (SIGSTOP), the pass notices that a few seconds after the time limit.
  Then it kills the guardian, its session and all processes below it.
- The pass finds these processes in /proc. Without it, only the handler's own process is killed, by
  the kernel, and only on Linux.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress

from dbbasic_queue.passes import forked, guardian
from dbbasic_queue.passes.tail import Printed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_REPORT_SECONDS = guardian.GRACE_SECONDS + guardian.REAP_SECONDS + 2.0
"""how long after the time limit, or after its leash was closed, the guardian may take to end"""
_TICK_MILLISECONDS = 100


class Died(Exception):
    """Raised if the process has ended without an outcome, or was killed when its time was up.

    `by_end_signal` is True if it was killed by SIGTERM, SIGINT or SIGHUP: such a signal may have
    been sent to every process of the service. `printed` is what it has printed, None if that is
    nothing or is lost.
    """

    def __init__(self, text: str, printed: Printed | None, number: int = 0) -> None:
        super().__init__(text)
        self.by_end_signal = number in guardian.END_SIGNALS
        self.printed = printed


class NotStarted(Exception):
    """Raised if the system refuses a process or a pipe: `work` was not called."""


def run(
    work: Callable[[], bytes],
    timeout: float,
    tick: Callable[[], None],
    is_to_stop: Callable[[], bool],
    slot: int,
) -> tuple[bytes, Printed | None]:
    """Run `work` in a process of its own; return its result, and what the process has printed.

    `slot` is the descriptor of a file whose lock the guardian must hold as well, or -1. Until the
    process has ended, `tick` and `is_to_stop` are called in this process about ten times a second;
    if `is_to_stop` returns True, the process is killed. Raises Died if `work` didn't return a
    result in time, NotStarted if it was not called, and any exception of these functions or of a
    signal handler. Whether this returns or raises, nothing that `work` has started is still
    running.
    """
    prctl = guardian.load_prctl()
    this_pass = os.getpid()
    # The two pipes: the guardian's ends, and ours. `held` is the guardian's copy of `slot`.
    leash = our_leash = our_report = report = held = -1
    running = None
    try:
        try:
            leash, our_leash = forked.pipe()
            our_report, report = forked.pipe()
            os.set_blocking(our_report, False)
            held = forked.duplicate(slot) if slot >= 0 else -1
            pid = forked.start(
                lambda: guardian.guard(work, timeout, leash, report, this_pass, prctl),
                keep=(leash, report, held),
            )
        except (OSError, RuntimeError) as e:
            raise NotStarted from e
        running = _RunningGuardian(pid, our_report, our_leash)
        forked.close(leash, report, held)
        running.wait(time.monotonic() + timeout + _REPORT_SECONDS, tick, is_to_stop)
    finally:
        forked.close(our_leash)  # if the guardian hasn't reported, this makes it kill the rest
        if running is not None:
            running.end()
        forked.close(leash, report, held, our_report)
    return _outcome(bytes(running.report), timeout, is_late=running.is_late)


def _outcome(report: bytes, timeout: float, *, is_late: bool) -> tuple[bytes, Printed | None]:
    """Return the outcome that a guardian has reported, or raise Died or NotStarted.

    If the guardian was killed, the report may be cut short, or missing.
    """
    line, is_whole, content = report.partition(b"\n")
    if not is_whole:
        if is_late:
            raise Died(_timed_out(timeout), None)
        raise Died("the handler's process was lost: its guardian was killed", None)
    words = line.decode().split(" ")
    how, (number, length, *lengths) = words[0], map(int, words[1:])
    outcome, printed = content[:length], _printed(content[length:], *lengths)
    if how == "refused":
        raise NotStarted from OSError(number, os.strerror(number))
    if how == "late" or is_late:
        raise Died(_timed_out(timeout), printed)
    if how == "stopped":
        raise Died("stopped by user", printed)
    if guardian.is_complete(outcome):
        return outcome[guardian.LENGTH_BYTES :], printed
    if how == "killed":
        name = forked.signal_name(number)
        raise Died(f"the handler's process was killed by {name}", printed, number)
    without = "" if number else ", without a result"
    raise Died(f"the handler's process ended with exit code {number}{without}", printed)


def _timed_out(timeout: float) -> str:
    return f"timed out after {timeout:g} s"


def _printed(kept: bytes, length: int, left_out: int) -> Printed | None:
    """Return what was printed; None if that is nothing, or if the report was cut short."""
    return Printed(kept, left_out) if kept and len(kept) == length else None


class _RunningGuardian:
    """The guardian as its pass sees it."""

    def __init__(self, pid: int, fd: int, leash: int) -> None:
        self.pid = pid
        self.report = bytearray()
        self.is_late = False
        """whether it hasn't reported in time: it is stopped (SIGSTOP)"""
        self._fd = fd
        self._leash = leash
        self._is_stopping = False
        """whether the guardian was asked to stop the attempt"""
        self._status: int | None = None
        """its exit status, None while it is alive; not 0 if it may have left processes behind"""
        self._is_closed = False
        """whether its end of the report pipe is closed: it has ended, or is about to"""

    def wait(self, end: float, tick: Callable[[], None], is_to_stop: Callable[[], bool]) -> None:
        """Call `tick` until the guardian has reported, or has ended, or `end` has passed.

        `end` is on the monotonic clock. Once `is_to_stop` returns True, the guardian is asked to
        stop the attempt.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            if poll.poll(_TICK_MILLISECONDS):
                if guardian.read_all(self._fd, self.report):
                    self._is_closed = True
                    return
            elif self._has_ended():
                guardian.read_all(self._fd, self.report)
                return
            elif time.monotonic() > end:
                self.is_late = True
                return
            else:
                tick()
                if not self._is_stopping and is_to_stop():
                    self._is_stopping = True
                    end = min(end, time.monotonic() + _REPORT_SECONDS)
                    with suppress(BrokenPipeError):  # it has just ended
                        os.write(self._leash, guardian.STOP)

    def end(self) -> None:
        """Wait until the guardian has ended; if necessary, kill it and what it has left behind.

        Call it after closing the leash.
        """
        until = time.monotonic() + (0 if self.is_late else _REPORT_SECONDS)
        while not self._has_ended() and time.monotonic() < until:
            time.sleep(0.0005)
        if self._status == 0:
            return  # it has killed the rest itself
        _kill_session(self.pid)
        if self._status is None:  # it is stopped (SIGSTOP)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def _has_ended(self) -> bool:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, 0 if self._is_closed else os.WNOHANG)
            except ChildProcessError:  # the program ignores SIGCHLD, so the status is lost
                pid, status = self.pid, (0 if self.report else -1)
            self._status = status if pid else None
        return self._status is not None


def _kill_session(leader: int) -> None:
    """Kill what a dead or stopped guardian has left: all processes below it and in its session."""
    end = time.monotonic() + guardian.REAP_SECONDS
    while (left := _descendants(leader)) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _descendants(leader: int) -> list[int]:
    """Return the live processes that descend from a session's leader, or are in the session.

    The leader itself is left out. Returns [] if there is no /proc.
    """
    parents: dict[int, int] = {}
    found = set()
    with suppress(OSError):
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
                if state not in b"ZX":
                    parents[int(name)] = int(parent)
                    if int(session) == leader:
                        found.add(int(name))
    below = {leader}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted((found | below) - {leader})
