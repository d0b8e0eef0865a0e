"""Several passes at once: plain functions in forked processes, coroutines in one more.

Each is a pass like another, with a slot of its own, so they share the work as passes that cron
has started do. Their supervisor, this process, runs no job: it hands on what it is asked to do,
and adds up what they report. When it dies, they end after the job in hand.

A pass has ended when its process has, whatever else holds its pipe open. For a worker that stays,
the supervisor starts another pass in the place of one that was killed or has failed.
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
from dbbasic_queue.passes import forked, log_lines
from dbbasic_queue.passes.base import COUNTS, Pass
from dbbasic_queue.passes.signals import Interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Make = Callable[[str, int], Pass]

_TICK_MS = 100
_CLOSING = 0.05  # from the end of its pipe to the end of a process
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Crew:
    """Some forked passes and their supervisor.

    One that `stays` replaces the passes that end before they are asked to.
    """

    def __init__(self, make: Make, shares: list[str], *, stays: bool = False) -> None:
        self.interrupts = Interrupts()
        self._make = make
        self._places = [_Place(share) for share in shares]
        self._stays = stays
        self._counts = dict.fromkeys(COUNTS, 0)
        self._errors: list[Exception] = []

    def run(self) -> dict[str, int]:
        """Fork the passes, wait for their ends; return how many jobs ended how.

        Raises what the first of them that failed has raised, after all have ended.
        """
        with self.interrupts:
            try:
                self._supervise()
            except BaseException:
                self.interrupts.stop()
                self._supervise()
                raise
        for error in self._errors:
            raise error
        self.interrupts.pass_on()
        return self._counts

    def _supervise(self) -> None:
        """Start the passes, hand on what this process is asked, until all have ended."""
        while True:
            asked = 2 if self.interrupts.at_once() else int(self.interrupts.asked())
            now = time.monotonic()
            for place in self._places:
                if place.pid:
                    place.tell(asked)
                elif place.start_at <= now and not asked:
                    self._start(place)
            running = [place for place in self._places if place.pid]
            if not running and (asked or all(p.start_at == math.inf for p in self._places)):
                return
            self._wait(running)

    def _start(self, place: _Place) -> None:
        supervisor = os.getpid()

        def be_a_pass() -> None:
            self.interrupts.drop()
            _be_a_pass(self._make(place.share, supervisor), place.writing)

        try:
            place.start(be_a_pass)
        except (OSError, RuntimeError) as e:
            place.pause = _LONGEST_PAUSE
            self._ended(place, errors.not_started("one of several passes", e))

    def _wait(self, running: list[_Place]) -> None:
        """Wait for news of the passes, a tick at the longest; see which have ended."""
        poll = select.poll()
        for place in running:
            if not place.is_closed:
                poll.register(place.reading, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(_TICK_MS)}
        for place in running:
            if place.reading in ready:
                place.read()
            may_have_ended = place.is_closed or place.reading not in ready
            if may_have_ended and (status := place.take_end()) is not None:
                self._note(place, status)

    def _note(self, place: _Place, status: int) -> None:
        """Add up what a pass that has ended has reported."""
        report = json.loads(place.content) if place.content.endswith(b"\n") else {}
        for name, number in report.get("counts", {}).items():
            self._counts[name] += number
        if report.get("stopped"):
            self.interrupts.stop()  # one of its jobs has asked the worker to stop
        if report:
            self._ended(place, _error(report))
        elif self.interrupts.asked():
            self._ended(place, None)  # it was told to end before it could see to that itself
        else:
            code = os.waitstatus_to_exitcode(status)
            how = "was killed" if code < 0 else f"ended with exit code {code}"
            by = f"{forked.signal_name(-code)}: out of memory? " if code < 0 else ""
            error = f"a pass (process {place.pid}) {how} before it could report ({by}its job is "
            self._ended(place, QueueError(error + "recovered by the next pass)"))

    def _ended(self, place: _Place, error: Exception | None) -> None:
        """Have a pass replaced that should have stayed; otherwise keep what it has raised."""
        place.pid = 0
        place.start_at = math.inf
        if self._stays and not self.interrupts.asked():
            place.start_at = time.monotonic() + place.pause
            log_lines.replaced(error, place.pause)
        elif error is not None:
            self._errors.append(error)


class _Place:
    """The place of one pass, and the process that has it: `pid` is 0 while there is none."""

    def __init__(self, share: str) -> None:
        self.share = share
        self.pid = 0
        self.start_at = 0.0
        self.pause = 0.0
        self.is_closed = False
        self.reading = self.writing = -1
        self.content = bytearray()
        self._told = 0
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
        self.content.clear()
        self.is_closed = False
        self.start_at = math.inf
        self._told = 0
        self._started_at = time.monotonic()

    def tell(self, asked: int) -> None:
        """Ask the pass to end (1), or to end at once (2), unless it has been asked."""
        if asked > self._told:
            self._told = asked
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT if asked == 2 else signal.SIGTERM)

    def read(self) -> None:
        """Read what the pass has reported so far."""
        with suppress(BlockingIOError):
            while part := os.read(self.reading, 1 << 16):
                self.content += part
            self.is_closed = True

    def take_end(self) -> int | None:
        """Return how the process has ended, None if it has not; then its place is free."""
        end = time.monotonic() + (_CLOSING if self.is_closed else 0)
        while True:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # this program ignores SIGCHLD, and it has ended
                pid, status = self.pid, 0
            if pid:
                break
            if time.monotonic() >= end:
                return None
            time.sleep(0.0005)
        if not self.is_closed:  # what it has started may hold it open
            self.read()
        forked.close(self.reading)
        lived = time.monotonic() - self._started_at
        more = min(max(2 * self.pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        self.pause = 0.0 if lived >= _LONGEST_PAUSE else more
        return status


def _be_a_pass(running: Pass, report: int) -> None:
    """Run a pass in a forked process, tell how it went, end."""
    told: dict[str, object] = {}
    try:
        running.run()
    except (KeyboardInterrupt, SystemExit):
        pass  # its supervisor has been told the same
    except BaseException as e:  # noqa: BLE001 - it is raised where the passes were called for
        told["error"] = {
            "name": type(e).__name__,
            "errno": getattr(e, "errno", None),
            "text": getattr(e, "strerror", None) or str(e),
            "path": getattr(e, "filename", None),
        }
    told["counts"] = running.counts
    told["stopped"] = running.interrupts.stopped
    os.write(report, json.dumps(told).encode() + b"\n")
    forked.end()


def _error(report: dict[str, dict[str, Any]]) -> Exception | None:
    """Return what a pass has raised, as the call in this process is to raise it."""
    error = report.get("error")
    if error is None:
        return None
    kind = getattr(errors, str(error["name"]), None)
    if kind is None:
        return QueueError(f"a pass has failed: {error['name']}: {error['text']}")
    if issubclass(kind, OSError):
        found: Exception = kind(error["errno"], error["text"], error["path"])
    else:
        found = kind(error["text"])
    return found
