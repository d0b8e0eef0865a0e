"""A queue at a glance: lines of fields separated by tabs; the first field names the line.

    queue       the file
    verdict     running, idle, stalled or moved; that as a sentence; the command to run next
    moved       only for a queue that was moved: the address that it was moved to, and how many jobs
                are pending in the old place: `dbbasic-queue move` moves them
    moving      only if a move from this queue isn't finished: the address of the other queue, how
                many jobs are on their way, and how many have arrived there and are still kept here
                (both are cancelled jobs); the same `dbbasic-queue move` again finishes it
    pending     how many jobs are pending; one such line for each of the five statuses
    due         how many pending jobs could run now, for how many seconds the first of them has been
                due, and its id
    paused      how many pending jobs are of a paused type; the paused types, `*` for all
    finished    how many finished jobs the file has, for how many seconds the first of them has been
                due
    last        when the last pass ended, for how many seconds it ran, its host and process id; the
                longest pause between the last ten passes, in seconds
    pass        a live pass: process id, start time
    running     a job that a live pass has claimed: id, type, attempt, process id, start time, for
                how many seconds
    progress    how far the job in the line before it is, if it has reported that: id, done, total,
                estimated seconds that are left, all that as a bar, note
    lost        a job of a dead pass, which the next pass recovers: id, type, attempt
    error       one of the last five errors, the latest first: id, type, status, attempts, when the
                attempt ended, the error's text
    failures    errors of the last day: how many attempts, type, error, when the last one ended
    schedule    a schedule: name, type, when its next job is due
    unreadable  how many lines aren't jobs, and the line numbers of the first ten
    warning     what in the settings of the queue's server could lose jobs

An empty field is `-`. The time at which an attempt ended is from the history; errors without such a
time come last, the latest `run_at` first. A job's start time is when its pass last claimed jobs: a
batch of quick jobs has one start time. A pass that runs coroutines claims jobs while others run, so
the start times of its jobs are unknown.
"""

from __future__ import annotations

import os
from heapq import nlargest

from dbbasic_queue.model.escaping import escape, printable
from dbbasic_queue.model.states import CANCELLED, DELAYED, FAILED, FINISHED, PENDING
from dbbasic_queue.monitoring import progress_bar
from dbbasic_queue.monitoring.durations import instant
from dbbasic_queue.monitoring.moves import Moves
from dbbasic_queue.monitoring.pauses import longest_pause
from dbbasic_queue.monitoring.summary import Summary, waited_seconds
from dbbasic_queue.monitoring.verdict import (
    holder_of,
    judge,
    moved_verdict,
    running_since,
    with_move,
)
from dbbasic_queue.store.history import FAILED_OUTCOMES, LONGEST_ERROR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, TypeVar

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.monitoring.moves import Move
    from dbbasic_queue.monitoring.verdict import Verdict
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.progress import Progress
    from dbbasic_queue.store.protocol import Store

    T = TypeVar("T")

SHOWN_ERRORS = 5
_SHOWN_FAILURES = 5
_SHOWN_LINES = 10
_KEPT_ERRORS = 1000
"""how many rows are collected before all but the last errors are dropped"""
DAY_SECONDS = 86400.0
_LEAST_FREE_BYTES = 1 << 14
"""With less, a pass may be unable to record that it has claimed a job."""


class Failures:
    """The failed attempts of the last day with the same type and error."""

    __slots__ = ("count", "error", "last_at", "type")

    def __init__(self, job_type: str, error: str, count: int, last_at: float) -> None:
        self.type = job_type
        self.error = error
        self.count = count
        self.last_at = last_at


class Status:
    """What can be said about a queue at the instant `now`, in Unix seconds. Changes nothing.

    Acquires the lock for a moment, to find out which passes are alive.

    `summary`    counts, due and paused jobs
    `live`       the passes that are alive
    `running`    the jobs that are processing
    `ended`      the last passes that have ended
    `progress`   job id -> how far it is
    `errors`     the last jobs with an error, the latest first, and when their attempt ended; only
                 `with_errors`
    `failures`   the errors of the last day, the most frequent first
    `schedules`  the recorded schedules
    `move`       the move to another queue that isn't finished, or None
    `full_disk`  that the queue's disk is full, as a sentence; "" if it isn't
    `verdict`    all that in one line
    """

    def __init__(
        self,
        store: Store,
        now: float,
        *,
        with_errors: bool = False,
        source: Source | None = None,
    ) -> None:
        """Without `source`, read all of the store's jobs, and the history."""
        self.store = store
        self.now = now
        source = source or Source(store)
        no_failures: list[Failures] = []
        self.failures = _if_readable(lambda: source.failures(now), no_failures)
        self.summary, self.errors = source.summary(now, with_errors=with_errors)
        self.moved_to = store.moved_to()
        self.live, self.running = store.running()
        self.live.sort(key=lambda live: live.started_at)
        no_progress: dict[str, Progress] = {}
        self.progress = _if_readable(lambda: store.progress(self.running), no_progress)
        no_passes: list[EndedPass] = []
        self.ended = _if_readable(source.passes, no_passes)
        no_schedules: list[Any] = []
        self.schedules = _if_readable(source.schedules, no_schedules)
        no_move: Move | None = None
        self.move = _if_readable(lambda: source.move(now, self.summary.counts[CANCELLED]), no_move)
        self.full_disk = full_disk(store.path)
        self.verdict = self.judge(now, self.live, self.running, self.ended)

    def judge(
        self,
        now: float,
        live: Sequence[LivePass],
        running: Sequence[Row],
        ended: Sequence[EndedPass],
    ) -> Verdict:
        """Return the verdict with these passes and running jobs, which may be newer."""
        if self.moved_to:
            schedules = len(self.schedules)
            return moved_verdict(self.summary, self.moved_to, len(running), schedules, self.move)
        verdict = judge(self.summary, live, running, ended, now, self.full_disk)
        return verdict if self.move is None else with_move(verdict, self.move)

    def running_jobs(self) -> Iterator[tuple[Row, Any, float | None]]:
        """Yield each job that is processing, its live pass, and when it started.

        The pass is None if it is dead, the instant if it is unknown.
        """
        for row in self.running:
            holder = holder_of(row, self.live)
            yield row, holder, running_since(holder)


class Source:
    """Where the parts of a status come from: read once from a store."""

    def __init__(self, store: Store, moves: Moves | None = None) -> None:
        self._store = store
        self._moves = moves or Moves(store)
        self._ended_at: dict[str, float] = {}
        """job id -> when its last attempt that failed has ended, as far as the history was read"""

    def failures(self, now: float) -> list[Failures]:
        """Return the failures of the day before `now`, the most frequent first."""
        ended_at: dict[tuple[str, str], list[float]] = {}
        try:
            for attempt in self._store.history(only_errors=True):
                if attempt.outcome in FAILED_OUTCOMES:
                    self._ended_at[attempt.id] = attempt.ended_at
                    if attempt.ended_at > now - DAY_SECONDS:
                        key = (attempt.type, attempt.error[:LONGEST_ERROR])
                        ended_at.setdefault(key, []).append(attempt.ended_at)
        except OSError:
            pass  # what was read is better than nothing
        return in_order(Failures(*key, len(found), max(found)) for key, found in ended_at.items())

    def summary(
        self, now: float, *, with_errors: bool
    ) -> tuple[Summary, list[tuple[Row, float | None]]]:
        """Return the counts and, if they are wanted, the last jobs with errors.

        With each of these, when its attempt ended, as far as `failures` has found that.
        """
        errors = _LastErrors(self._ended_at)
        each = errors.add if with_errors else None
        summary = Summary(self._store, now, each, with_oldest=True)
        return summary, [(row, self._ended_at.get(row.id)) for row in errors.latest()]

    def passes(self) -> list[EndedPass]:
        """Return the passes that have ended, the last one last."""
        return self._store.passes()

    def move(self, now: float, cancelled: int) -> Move | None:
        """Return the move that isn't finished; `cancelled` is how many jobs are cancelled."""
        return self._moves.unfinished(cancelled)

    def schedules(self) -> list[Any]:
        """Return the recorded schedules."""
        if not self._store.has_schedules():
            return []
        from dbbasic_queue.store import schedule_file

        return schedule_file.as_dicts(self._store.read_schedules(), self._store.path)


def full_disk(path: str) -> str:
    """Return that the disk of a queue's file is full, as a sentence; "" if it isn't, or unknown."""
    if not os.path.isabs(path):
        return ""
    directory = os.path.dirname(path)
    try:
        space = os.statvfs(directory)
    except OSError:
        return ""
    if space.f_bavail * space.f_frsize < _LEAST_FREE_BYTES:
        return f"the disk of {directory} is full"
    if space.f_files and not space.f_favail:
        return f"the disk of {directory} has no inodes left, so no file can be created"
    return ""


def in_order(failures: Iterable[Failures]) -> list[Failures]:
    """Return the most frequent failures first; of two, the one that happened last."""
    return sorted(failures, key=lambda f: (-f.count, -f.last_at, f.type, f.error))


def _if_readable(read: Callable[[], T], otherwise: T) -> T:
    """Return what `read` returns. The rest of the status is useful without it."""
    try:
        return read()
    except OSError:
        return otherwise


def lines(store: Store, now: float) -> Iterator[str]:
    """Yield the lines, without line ends. `now` is in Unix seconds."""
    return lines_of(Status(store, now, with_errors=True))


def lines_of(status: Status) -> Iterator[str]:
    """Yield the lines of a status that was read `with_errors`."""
    store, summary, now = status.store, status.summary, status.now
    yield f"queue\t{printable(store.path)}"
    verdict = status.verdict
    yield f"verdict\t{verdict.word}\t{printable(verdict.text)}\t{printable(verdict.command) or '-'}"
    if status.moved_to:
        yield f"moved\t{printable(status.moved_to)}\t{summary.counts[PENDING]}"
    if (move := status.move) is not None:
        yield f"moving\t{printable(move.address)}\t{move.on_the_way}\t{move.arrived}"
    for name, count in summary.counts.items():
        yield f"{name}\t{count}"
    first = summary.first_due
    waited = "-\t-" if first is None else f"{int(waited_seconds(first, int(now)))}\t{first.id}"
    yield f"due\t{summary.due}\t{waited}"
    paused = " ".join(map(printable, sorted(summary.paused_types)))
    yield f"paused\t{summary.paused}\t{paused or '-'}"
    finished = sum(summary.counts[name] for name in FINISHED)
    yield f"finished\t{finished}\t{int(summary.oldest) if finished else '-'}"
    yield from _passes(status)
    yield from _running(status)
    for row, ended in status.errors:
        state = row.state
        when = "-" if ended is None else instant(ended)
        yield (
            f"error\t{row.id}\t{escape(row.type)}\t{state.status}\t{state.attempts}\t{when}"
            f"\t{printable(state.error)}"
        )
    for found in status.failures[:_SHOWN_FAILURES]:
        error = printable(found.error) or "-"
        yield (
            f"failures\t{found.count}\t{printable(found.type)}\t{error}\t{instant(found.last_at)}"
        )
    for schedule in status.schedules:
        name, job_type = escape(schedule["name"]), escape(schedule["type"])
        yield f"schedule\t{name}\t{job_type}\t{instant(schedule['next'])}"
    numbers = " ".join(map(str, summary.unreadable[:_SHOWN_LINES]))
    yield f"unreadable\t{len(summary.unreadable)}\t{numbers or '-'}"
    for warning in store.warnings():
        yield f"warning\t{printable(warning)}"


class _LastErrors:
    """The jobs whose last attempt failed most recently. `ended_at` is job id -> Unix seconds."""

    def __init__(self, ended_at: dict[str, float]) -> None:
        self._ended_at = ended_at
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        state = row.state
        if not state.error or state.status not in (FAILED, PENDING):
            return
        if not state.error.startswith(DELAYED):
            self._rows.append(row)
        if len(self._rows) > _KEPT_ERRORS:
            self._rows = self.latest()

    def latest(self) -> list[Row]:
        return nlargest(SHOWN_ERRORS, self._rows, key=self._when)

    def _when(self, row: Row) -> tuple[bool, float]:
        ended_at = self._ended_at.get(row.id)
        return ended_at is not None, ended_at or row.state.run_at


def _passes(status: Status) -> Iterator[str]:
    """Yield the lines `last` and `pass`."""
    if status.ended:
        last = status.ended[-1]
        pause = longest_pause(status.ended)
        shown = "-" if pause is None else int(pause)
        seconds, worker = f"{last.seconds:.3f}", printable(last.worker)
        yield f"last\t{instant(last.ended_at)}\t{seconds}\t{worker}\t{shown}"
    for live in status.live:
        yield f"pass\t{live.pid}\t{instant(live.started_at)}"


def _running(status: Status) -> Iterator[str]:
    """Yield the lines `running`, `progress` and `lost`."""
    for row, holder, since in status.running_jobs():
        job = f"{row.id}\t{escape(row.type)}\t{row.state.attempts}"
        if holder is None:
            yield f"lost\t{job}"
            continue
        started = "-\t-"
        if since is not None:
            started = f"{instant(since)}\t{max(int(status.now - since), 0)}"
        yield f"running\t{job}\t{holder.pid}\t{started}"
        if row.id in status.progress:
            found = map(printable, progress_bar.fields(status.progress[row.id], status.now))
            yield "\t".join(("progress", row.id, *found))
