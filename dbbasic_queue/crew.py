"""Several passes at once: plain functions in forked processes, coroutines in one more.

Each is a pass like another, with a slot of its own, so they share the work as passes that cron
has started do. Their supervisor, this process, runs no job: it hands on what it is asked to do,
and adds up what they report. When it dies, they end after the job in hand.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress

from dbbasic_queue import errors
from dbbasic_queue.child import flush_output
from dbbasic_queue.handlers import Handler
from dbbasic_queue.interrupts import Interrupts
from dbbasic_queue.worker import ALL, COROUTINES, COUNTS, PLAIN, Pass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from dbbasic_queue.store.store import Store
    from dbbasic_queue.worker import AnyHandlers

    Make = Callable[[str, int], Pass]

_TICK_MS = 100


def several(
    workers: int, store: Store, handlers: AnyHandlers, *settings: Any, linger: float = 0, **how: Any
) -> Pass | Crew:
    """Return what runs `workers` jobs at a time; its `run` is as that of one `Pass`.

    Only as many processes are forked as there are jobs due, unless they are to linger.
    """

    def make(share: str, supervisor: int = 0) -> Pass:
        given = {**how, "linger": linger, "share": share, "supervisor": supervisor}
        if share == COROUTINES or not plain:
            from dbbasic_queue.together import Together

            return Together(store, handlers, *settings, parallel=workers, **given)
        return Pass(store, handlers, *settings, **given)

    functions = [Handler.of(h) for h in handlers.values() if h is not None]
    coroutines = any(handler.shares_loop for handler in functions)
    plain = not functions or any(not handler.shares_loop for handler in functions)
    alone = make(ALL)
    if not plain:
        return alone
    due = workers if linger else alone.count_due()
    shares = [PLAIN if coroutines else ALL] * min(workers, due) + [COROUTINES] * coroutines
    return Crew(make, shares) if len(shares) > 1 else alone


class Crew:
    """Some forked passes and their supervisor."""

    def __init__(self, make: Make, shares: list[str]) -> None:
        self.interrupts = Interrupts()
        self._make = make
        self._shares = shares
        self._children: dict[int, tuple[int, bytearray]] = {}

    def run(self) -> dict[str, int]:
        """Fork the passes, wait for their ends; return how many jobs ended how.

        Raises what the first of them that failed has raised, after all have ended.
        """
        with self.interrupts:
            try:
                for share in self._shares:
                    self._fork(share)
            except BaseException:
                self._tell(signal.SIGTERM)
                raise
            finally:
                reports = self._wait()
        counts = dict.fromkeys(COUNTS, 0)
        for report in reports:
            for name, number in report.get("counts", {}).items():
                counts[name] += number
        for report in reports:
            if report or not self.interrupts.asked():
                _raise_again(report)
        self.interrupts.pass_on()
        return counts

    def _fork(self, share: str) -> None:
        flush_output()
        supervisor = os.getpid()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reading)
                self.interrupts.leave()
                _be_a_pass(self._make(share, supervisor), writing)
            finally:
                os._exit(1)
        os.close(writing)
        self._children[reading] = pid, bytearray()

    def _wait(self) -> list[dict[str, dict[str, Any]]]:
        """Wait until every pass has ended; pass on what this process is asked meanwhile."""
        poll = select.poll()
        for fd in self._children:
            poll.register(fd, select.POLLIN)
        told = 0
        open_pipes = len(self._children)
        while open_pipes:
            for fd, _ in poll.poll(_TICK_MS):
                part = os.read(fd, 1 << 16)
                self._children[fd][1].extend(part)
                if not part:
                    poll.unregister(fd)
                    open_pipes -= 1
            asked = 2 if self.interrupts.at_once() else int(self.interrupts.asked())
            if asked > told:
                told = asked
                self._tell(signal.SIGINT if asked == 2 else signal.SIGTERM)
        found = []
        for fd, (pid, content) in self._children.items():
            os.close(fd)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            found.append(json.loads(content or b"{}"))
        return found

    def _tell(self, number: int) -> None:
        for pid, _ in self._children.values():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _be_a_pass(running: Pass, report: int) -> NoReturn:
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
    flush_output()
    os.write(report, json.dumps(told).encode())
    os._exit(0)


def _raise_again(report: dict[str, dict[str, Any]]) -> None:
    if not report:
        raise errors.QueueError(
            "a pass was killed before it could report (what it had in hand is recovered by the "
            "next one; out of memory?)"
        )
    error = report.get("error")
    if error is None:
        return
    kind = getattr(errors, str(error["name"]), None)
    if kind is None:
        raise errors.QueueError(f"a pass has failed: {error['name']}: {error['text']}")
    if issubclass(kind, OSError):
        raise kind(error["errno"], error["text"], error["path"])
    raise kind(error["text"])
