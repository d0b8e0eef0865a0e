"""`dbbasic-queue watch`: a screen that is kept up to date or, in a pipe, one line per change.

Two things are read at different times. What is running, and what ended last, is read at each
refresh: that takes a few milliseconds, however long the queue is. The verdict and the counts need
all rows: another thread reads them, twice completely and later only what has changed, as often as
takes a fiftieth of the time. In a queue of 100,000 jobs, that is every second or so. Keys never
wait for it.

`curses` sends only what has changed to the terminal.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from heapq import nlargest

from dbbasic_queue.cli.messages import reason
from dbbasic_queue.cli.report import print_fields
from dbbasic_queue.errors import QueueError
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.states import FAILED
from dbbasic_queue.monitoring.durations import instant
from dbbasic_queue.monitoring.live import Live
from dbbasic_queue.monitoring.status import Status
from dbbasic_queue.store.history import FAILED_OUTCOMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.progress import Progress

_SHARE_OF_TIME = 1 / 50
_FIRST_SHARE_OF_TIME = 1 / 10
_PAUSE_AFTER_ERROR = 5.0
_LATEST = 1000
_MOST_FAILED = 200
_RATE_SECONDS = 60.0


class Feed:
    """What a queue is doing, kept up to date by `refresh`.

    `status`   all that can be said about it, as of a little earlier
    `running`  the running jobs
    `live`     the passes that are alive
    `progress` job id -> how far it is
    `latest`   the attempts that ended last, the latest last
    `ended`    those among them that are new since the last refresh
    `started`  the running jobs that are new since then
    `failed`   the failed jobs, the latest first, as of the same instant as `status`; None until
               they were read, which `wants_failed` asks for
    `verdict`  the verdict on what is running, and on the counts as of that instant
    `error`    why the status could not be read; "" if it could
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.now = queue.now()
        self.running: list[Row] = []
        self.live: list[LivePass] = []
        self.progress: dict[str, Progress] = {}
        self.latest: list[Attempt] = []
        self.ended: list[Attempt] = []
        self.started: list[Row] = []
        self.failed: list[Row] | None = None
        self.wants_failed = False
        self.error = ""
        self._saturated_at = float("-inf")
        self._live_before: set[tuple[int, int]] = set()
        self._ended_passes: list[EndedPass] = []
        self._recent: deque[tuple[float, bool]] = deque()
        """when each attempt of the last minute ended, and whether it failed"""
        self._is_first = True
        self._reader: threading.Thread | None = None
        self._live = Live(queue.store)
        started = time.thread_time()
        self.status = Status(queue.store, self.now)
        # A person who has seen enough after a moment needn't wait for an index.
        took = time.thread_time() - started
        self._next_status_at = time.monotonic() + took / _FIRST_SHARE_OF_TIME
        self.refresh()

    def read_status(self) -> None:
        """Read the verdict and the counts."""
        started = time.thread_time()  # on a busy machine, waiting isn't work
        status = self._live.status(self.queue.now())
        if self.wants_failed:
            rows = self.queue.store.rows(statuses=(FAILED,))
            failed = (row for row in rows if row.state.status == FAILED)
            self.failed = nlargest(_MOST_FAILED, failed, key=lambda row: row.state.run_at)
        self.status = status
        took = time.thread_time() - started
        self._next_status_at = time.monotonic() + took / _SHARE_OF_TIME

    def read_status_soon(self) -> None:
        """Read the verdict and the counts in another thread, unless one is reading them."""
        if self._reader is None or not self._reader.is_alive():
            self._reader = threading.Thread(target=self._try_to_read_status, daemon=True)
            self._reader.start()

    def _try_to_read_status(self) -> None:
        try:
            self.read_status()
            self.error = ""
        except (QueueError, OSError) as e:
            self.error = reason(e)
            self._next_status_at = time.monotonic() + _PAUSE_AFTER_ERROR

    def refresh(self) -> None:
        """Read what is running, and what ended last; and the rest if it is time for that."""
        store = self.queue.store
        if time.monotonic() >= self._next_status_at:
            self.read_status_soon()
        self.now = self.queue.now()
        before = {(row.id, row.state.attempts) for row in self.running}
        seen = {(a.id, a.attempt, a.ended_at) for a in self.latest}
        self.live, self.running = store.running()
        self.progress = store.progress(self.running)
        self.latest = store.latest(_LATEST)
        self.ended = [a for a in self.latest if (a.id, a.attempt, a.ended_at) not in seen]
        self.started = [r for r in self.running if (r.id, r.state.attempts) not in before]
        self._note_ended()
        status = self.status
        live = {(found.pid, found.started_at) for found in self.live}
        if live != self._live_before:  # a pass may have ended
            self._ended_passes, self._live_before = store.passes(), live
        ended = max(self._ended_passes, status.ended, key=_last_end)
        self.verdict = status.judge(self.now, self.live, self.running, ended)
        if self._is_first:
            self.ended, self._is_first = [], False

    def _note_ended(self) -> None:
        self._recent.extend((a.ended_at, a.outcome in FAILED_OUTCOMES) for a in self.ended)
        if len(self.ended) == _LATEST and not self._is_first:
            self._saturated_at = self.now
        while self._recent and self._recent[0][0] < self.now - _RATE_SECONDS:
            self._recent.popleft()

    def last_minute(self) -> str:
        """Return how many attempts ended in the last minute, and how many of them failed."""
        failed = sum(has_failed for _, has_failed in self._recent)
        is_more = self.now - self._saturated_at < _RATE_SECONDS or len(self._recent) == _LATEST
        more = " or more" if is_more else ""
        return f"{len(self._recent):,}{more} ended, {failed:,} failed"


def _last_end(ended: Sequence[EndedPass]) -> float:
    return ended[-1].ended_at if ended else 0.0


def print_changes(queue: Queue, interval: float, count: int | None) -> None:
    """Print one line per change: an instant, what, and the job or the verdict.

    The text of a verdict has numbers in it, so it isn't a change if only they differ.
    """
    import sys

    feed, word = Feed(queue), ""
    while True:
        if feed.verdict.word != word:
            word = feed.verdict.word
            print_fields(instant(feed.now), "verdict", word, feed.verdict.text)
        for row in feed.started:
            print_fields(instant(feed.now), "started", row.id, row.type, row.state.attempts)
        for attempt in feed.ended:
            seconds = None if attempt.seconds is None else f"{attempt.seconds:.3f}"
            print_fields(
                instant(attempt.ended_at),
                attempt.outcome,
                attempt.id,
                unescape(attempt.type),
                attempt.attempt,
                seconds,
                printable(attempt.error) or None,
            )
        sys.stdout.flush()
        if count is not None:
            count -= 1
            if count <= 0:
                return
        time.sleep(interval)
        feed.refresh()
