"""Coroutines that wait for jobs: one thread at a time looks for all that wait in an event loop.

- Each waiting coroutine is looked for soon, then more and more rarely, at most ten times a second.
  Those that are due together are looked for by one call in a thread of the loop's default pool, so
  the pool stays free for others however many wait. With a slow server, some wait for the next call.
- If a look takes long, the looks are made more rarely: they take at most a tenth of the time.
- There is no task that a program could cancel, or that could outlive the coroutines that wait.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from dbbasic_queue.model.states import FINISHED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from dbbasic_queue.model.jobdict import JobDict

    Look = Callable[[str], JobDict | None]

_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1
_LONGEST_SECONDS_WHEN_SLOW = 1.0
_REST = 10
"""the longest pause is that many times as long as the last look"""
_LONGEST_LOOK_SECONDS = 0.1
"""how long a look may take: then the coroutines get what was found, before the next look"""
_TOGETHER_SECONDS = 0.005
"""A coroutine that is due that soon is looked for now, with the others."""

_watchers: dict[tuple[asyncio.AbstractEventLoop, Hashable], Watcher] = {}
"""(loop, queue) -> watcher, while a coroutine of the loop waits for a job of the queue"""


async def wait(queue: Hashable, look: Look, job_id: str, seconds: float) -> JobDict | None:
    """Return what `look` returns, as soon as it is a finished job or None, or the time is up.

    `look` is called in a thread. It is called at least once, and the last time when the time is up.
    Raises what it raises.
    """
    key = asyncio.get_running_loop(), queue
    watcher = _watchers.get(key)
    if watcher is None:
        watcher = _watchers[key] = Watcher(key[0], look)
    try:
        return await watcher.wait(job_id, seconds)
    finally:
        if watcher.is_idle() and _watchers.get(key) is watcher:
            del _watchers[key]


class _Waiting:
    """One coroutine that waits for one job."""

    def __init__(
        self, job_id: str, now: float, seconds: float, future: asyncio.Future[JobDict | None]
    ) -> None:
        self.job_id = job_id
        self.future = future
        self.ends_at = now + seconds
        self.next_at = now
        """when to look for it the next time, in the time of the loop"""
        self.pause = _FIRST_PAUSE_SECONDS

    def found(self, job: JobDict | None, looked_at: float, now: float, longest: float) -> None:
        """Note what a look has found that began at `looked_at`."""
        if self.future.done():  # it was cancelled
            return
        if job is None or job["status"] in FINISHED or looked_at >= self.ends_at:
            self.future.set_result(job)
            return
        self.next_at = min(now + self.pause, max(self.ends_at, now))
        self.pause = min(self.pause * 1.5, longest)


class _Found:
    """What a look has found: the first jobs, in order, and the error that ended it, if any."""

    def __init__(self) -> None:
        self.jobs: list[JobDict | None] = []
        self.seconds = 0.0
        self.error: Exception | None = None


class Watcher:
    """Looks for the jobs that coroutines of one event loop wait for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Look) -> None:
        self._loop = loop
        self._look = look
        self._waiting: dict[_Waiting, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_looking = False

    def is_idle(self) -> bool:
        """Return whether no coroutine waits."""
        return not self._waiting

    async def wait(self, job_id: str, seconds: float) -> JobDict | None:
        """Wait; see the function `wait`."""
        waiting = _Waiting(job_id, self._loop.time(), seconds, self._loop.create_future())
        self._waiting[waiting] = None
        self._wake_at(waiting.next_at)
        try:
            return await waiting.future
        finally:
            del self._waiting[waiting]
            if self._timer is not None and not self._waiting:
                self._timer.cancel()
                self._timer = None

    def _wake_at(self, instant: float) -> None:
        """Look at that time, or before."""
        if self._is_looking:
            return
        if self._timer is not None:
            if self._timer.when() <= instant:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(instant, self._start)

    def _start(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = [w for w in self._waiting if w.next_at <= now + _TOGETHER_SECONDS]
        if not due:
            self._wake_again()
            return
        due.sort(key=lambda w: w.next_at)  # if there is no time for all, the others are next
        try:
            looking = self._loop.run_in_executor(None, self._look_for, [w.job_id for w in due])
        except RuntimeError as e:  # the loop's thread pool was shut down
            self._fail(self._waiting, e)
            return
        self._is_looking = True
        looking.add_done_callback(partial(self._end, due, now))

    def _look_for(self, ids: list[str]) -> _Found:
        """Look for the first of the jobs, as many as there is time for. Runs in a thread."""
        began = time.monotonic()
        found = _Found()
        try:
            for job_id in ids:
                found.jobs.append(self._look(job_id))
                found.seconds = time.monotonic() - began
                if found.seconds > _LONGEST_LOOK_SECONDS:
                    break
        except Exception as e:  # noqa: BLE001 - the coroutines raise it
            found.error = e
        return found

    def _end(self, due: list[_Waiting], looked_at: float, looking: asyncio.Future[_Found]) -> None:
        self._is_looking = False
        if looking.cancelled():
            self._fail(self._waiting, RuntimeError("the event loop's thread pool was shut down"))
            return
        found = looking.result()
        longest = min(
            max(found.seconds * _REST, _LONGEST_PAUSE_SECONDS), _LONGEST_SECONDS_WHEN_SLOW
        )
        now = self._loop.time()
        for waiting, job in zip(due, found.jobs, strict=False):
            waiting.found(job, looked_at, now, longest)
        if found.error is not None:
            self._fail(due[len(found.jobs) :], found.error)
        self._wake_again()

    @staticmethod
    def _fail(those: Iterable[_Waiting], error: BaseException) -> None:
        for waiting in those:
            if not waiting.future.done():
                waiting.future.set_exception(error)

    def _wake_again(self) -> None:
        """Look for those that still wait, when the first of them is due."""
        times = [w.next_at for w in self._waiting if not w.future.done()]
        if times:
            self._wake_at(min(times))
