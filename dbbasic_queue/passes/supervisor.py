"""Several passes at once: plain functions in forked processes, coroutines in one more process.

- Each pass is like any other, with a slot of its own: they share the jobs like passes that cron
  starts.
- Their supervisor, this process, runs no jobs: it forwards requests to end, and adds up the counts
  that the passes report. If it dies, they end after the running job.
- A pass may report failed jobs for the digests of `notify` at any time. The supervisor sends them.
- A pass has ended when its process has, even if another process holds its pipe open. In a
  long-running worker, the supervisor replaces a pass that ends before it was asked to.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import time
from contextlib import suppress

from dbbasic_queue import errors
from dbbasic_queue.errors import QueueError
from dbbasic_queue.lazy import load
from dbbasic_queue.passes import forked, log_lines
from dbbasic_queue.passes.base import COUNTS, Pass
from dbbasic_queue.passes.signals import Interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from dbbasic_queue.passes.policies import Kind

    Make = Callable[[Kind, Interrupts], Pass]

_POLL_MILLISECONDS = 100
_EXIT_SECONDS = 0.05
"""how long to wait for the end of a process that has closed its pipe"""
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.1, 5.0
"""between the end of a pass and its replacement"""


class Supervisor:
    """Runs one forked pass per entry of `kinds`: the kind of handlers whose jobs that pass runs.

    `make` is called in the forked process, and returns the pass. With `stays`, a pass that ends
    before it was asked to is replaced.
    """

    def __init__(
        self,
        make: Make,
        kinds: list[Kind],
        interrupts: Interrupts | None = None,
        *,
        stays: bool = False,
    ) -> None:
        self.interrupts = interrupts or Interrupts()
        self._make = make
        self._passes = [_ForkedPass(kind) for kind in kinds]
        self._stays = stays
        self._counts = dict.fromkeys(COUNTS, 0)
        self._errors: list[Exception] = []
        self._queues_with_failures: set[str] = set()
        """the queues whose failed jobs a pass has reported for digests"""

    def run(self) -> dict[str, int]:
        """Fork the passes and wait until they have ended; return how many jobs had each outcome.

        Raises the error of the first pass that failed, after all have ended. With `stays`, such
        errors are logged, not raised.
        """
        try:
            with self.interrupts:
                try:
                    self._supervise()
                except BaseException:
                    self.interrupts.stop()
                    self._supervise()
                    raise
        finally:
            if self._queues_with_failures:
                load(_digests).flush(self._queues_with_failures)
        for error in self._errors:
            raise error
        self.interrupts.forward_signals()
        return self._counts

    def _supervise(self) -> None:
        """Start the passes, and forward requests to end, until all have ended."""
        while True:
            request = 2 if self.interrupts.stop_at_once() else int(self.interrupts.stop_requested())
            now = time.monotonic()
            for forked_pass in self._passes:
                if forked_pass.pid:
                    forked_pass.ask_to_end(request)
                elif forked_pass.start_at <= now and not request:
                    self._start(forked_pass)
            running = [p for p in self._passes if p.pid]
            if not running and (request or all(p.start_at == math.inf for p in self._passes)):
                return
            self._wait(running)

    def _start(self, forked_pass: _ForkedPass) -> None:
        supervisor = os.getpid()

        def be_a_pass() -> None:
            self.interrupts.drop()
            running = self._make(forked_pass.kind, Interrupts(supervisor))
            _be_a_pass(running, forked_pass.writing)

        try:
            forked_pass.start(be_a_pass)
        except (OSError, RuntimeError) as e:
            forked_pass.delay = _LONGEST_DELAY_SECONDS
            self._ended(forked_pass, errors.not_started("one of several passes", e))

    def _wait(self, running: list[_ForkedPass]) -> None:
        """Wait until a pass reports something, for at most 100 ms; find out which have ended."""
        poll = select.poll()
        for forked_pass in running:
            if not forked_pass.is_closed:
                poll.register(forked_pass.reading, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(_POLL_MILLISECONDS)}
        for forked_pass in running:
            is_ready = forked_pass.reading in ready
            if is_ready:
                forked_pass.read()
                self._receive_failures(forked_pass)
            may_have_ended = forked_pass.is_closed or not is_ready
            if may_have_ended and (status := forked_pass.take_exit_status()) is not None:
                self._add_report(forked_pass, status)

    def _receive_failures(self, forked_pass: _ForkedPass) -> None:
        """Collect the failed jobs that a pass has reported so far."""
        for line in forked_pass.take_lines(b'{"digest"'):
            self._queues_with_failures.add(load(_digests).receive(json.loads(line)))

    def _add_report(self, forked_pass: _ForkedPass, status: int) -> None:
        """Add up the counts of a pass that has ended, and handle its error.

        `status` is that of `os.waitpid`. Without a complete report, its counts are lost.
        """
        self._receive_failures(forked_pass)
        content = forked_pass.report
        report = json.loads(content) if content.endswith(b"\n") else {}
        for name, number in report.get("counts", {}).items():
            self._counts[name] += number
        if report.get("stopped"):
            self.interrupts.stop()  # one of its jobs has called the worker's `stop`
        if report:
            self._ended(forked_pass, _error(report))
        elif self.interrupts.stop_requested():
            self._ended(forked_pass, None)  # the request killed it before it handled signals
        else:
            code = os.waitstatus_to_exitcode(status)
            how = "was killed" if code < 0 else f"ended with exit code {code}"
            by = f"{forked.signal_name(-code)}: out of memory? " if code < 0 else ""
            error = f"a pass (process {forked_pass.pid}) {how} before it could report ({by}its "
            self._ended(forked_pass, QueueError(error + "job is recovered by the next pass)"))

    def _ended(self, forked_pass: _ForkedPass, error: Exception | None) -> None:
        """Plan to replace a pass that ended too early; otherwise keep its error."""
        forked_pass.pid = 0
        forked_pass.start_at = math.inf
        if self._stays and not self.interrupts.stop_requested():
            forked_pass.start_at = time.monotonic() + forked_pass.delay
            log_lines.replaced(error, forked_pass.delay)
        elif error is not None:
            self._errors.append(error)


class _ForkedPass:
    """One pass in a process of its own, and its successors; `pid` is 0 while none is running."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.pid = 0
        self.start_at = 0.0
        """when to start the next process, on the monotonic clock; infinite for never"""
        self.delay = 0.0
        """how many seconds to wait before the next process is started"""
        self.is_closed = False
        """whether the process, and all that inherited its end of the pipe, have closed it"""
        self.reading = self.writing = -1
        """the ends of the pipe for the report"""
        self.report = bytearray()
        """the report as far as it was read, see `_be_a_pass`"""
        self._request = 0
        self._started_at = 0.0

    def start(self, be_a_pass: Callable[[], None]) -> None:
        """Fork the process. Raises OSError or RuntimeError if the system refuses."""
        try:
            self.reading, self.writing = forked.pipe()
            os.set_blocking(self.reading, False)
            self.pid = forked.start(be_a_pass, keep=(self.writing,))
        except BaseException:
            forked.close(self.reading)
            raise
        finally:
            forked.close(self.writing)
        self.report.clear()
        self.is_closed = False
        self.start_at = math.inf
        self._request = 0
        self._started_at = time.monotonic()

    def ask_to_end(self, request: int) -> None:
        """Ask the pass to end after its job (1) or at once (2), unless it was asked before."""
        if request > self._request:
            self._request = request
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT if request == 2 else signal.SIGTERM)

    def read(self) -> None:
        """Read what the pass has reported so far."""
        with suppress(BlockingIOError):
            while part := os.read(self.reading, 1 << 16):
                self.report += part
            self.is_closed = True

    def take_lines(self, beginning: bytes) -> list[bytes]:
        """Remove the first lines of the report, as long as they begin like this; return them."""
        lines = []
        while self.report.startswith(beginning) and (end := self.report.find(b"\n") + 1):
            lines.append(bytes(self.report[:end]))
            del self.report[:end]
        return lines

    def take_exit_status(self) -> int | None:
        """Return the status of `os.waitpid` if the process has ended; None if it is running.

        If it has ended, the rest of the report is read, and the pipe is closed.
        """
        end = time.monotonic() + (_EXIT_SECONDS if self.is_closed else 0)
        while True:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # this program ignores SIGCHLD, and the process has ended
                pid, status = self.pid, 0
            if pid:
                break
            if time.monotonic() >= end:
                return None
            time.sleep(0.0005)
        if not self.is_closed:  # a process that it has started may hold the pipe open
            self.read()
        forked.close(self.reading)
        self._set_delay(time.monotonic() - self._started_at)
        return status

    def _set_delay(self, lived: float) -> None:
        """Double the delay if the process lived under 5 seconds; otherwise set it to 0."""
        longer = min(max(2 * self.delay, _FIRST_DELAY_SECONDS), _LONGEST_DELAY_SECONDS)
        self.delay = 0.0 if lived >= _LONGEST_DELAY_SECONDS else longer


def _be_a_pass(running: Pass, report: int) -> None:
    """Run a pass in a forked process, write its report, and end the process.

    The report ends with one line of JSON: `counts`, `stopped` (whether a job has called the
    worker's `stop`) and, if the pass failed, `error`. Before it, there may be lines with failed
    jobs, see `digests.Pipe`. `report` is the pipe's descriptor.
    """
    content: dict[str, object] = {}
    failures = None if running.policies.hooks is None else load(_digests).forward(report)
    try:
        running.run()
    except (KeyboardInterrupt, SystemExit):
        pass  # its supervisor has received the same signal
    except BaseException as e:  # noqa: BLE001 - the supervisor raises it
        content["error"] = {
            "name": next((n for n in _names(e) if hasattr(errors, n)), type(e).__name__),
            "errno": getattr(e, "errno", None),
            "text": getattr(e, "strerror", None) or str(e),
            "path": getattr(e, "filename", None),
            "address": getattr(e, "address", ""),
        }
    if failures is not None:
        load(_digests).flush([running.store.path])
        failures.end()
    content["counts"] = running.counts
    content["stopped"] = running.interrupts.stopped
    os.write(report, json.dumps(content).encode() + b"\n")
    forked.end()


def _digests() -> ModuleType:
    from dbbasic_queue.passes import digests

    return digests


def _names(e: BaseException) -> list[str]:
    """Return the names of an exception's class and its base classes."""
    return [kind.__name__ for kind in type(e).__mro__]


def _error(report: dict[str, dict[str, Any]]) -> Exception | None:
    """Return the exception of a pass, so that it can be raised in this process."""
    error = report.get("error")
    if error is None:
        return None
    kind = getattr(errors, str(error["name"]), None)
    if kind is None:
        return QueueError(f"a pass has failed: {error['name']}: {error['text']}")
    if kind is errors.QueueMoved:
        moved = errors.QueueMoved(error["text"])
        moved.address = error["address"]
        return moved
    if issubclass(kind, OSError):
        where = [] if error["path"] is None else [error["path"]]
        has_number = error["errno"] is not None
        text = error["text"]
        found: Exception = kind(error["errno"], text, *where) if has_number else kind(text)
    else:
        found = kind(error["text"])
    return found
