"""Checks of the jobs: whether passes run them, what is stuck, lines that aren't jobs."""

from __future__ import annotations

import os
import time

from dbbasic_queue.cli.doctor.findings import Finding
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import FAILED, PENDING
from dbbasic_queue.monitoring.durations import ago, duration, number_of, relative
from dbbasic_queue.monitoring.known_types import KnownTypes
from dbbasic_queue.monitoring.pauses import patience
from dbbasic_queue.monitoring.summary import due_at
from dbbasic_queue.monitoring.verdict import command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.monitoring.status import Status
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.pass_log import EndedPass

_LONG_SECONDS = 6 * 3600.0
_AHEAD_SECONDS = 60.0
_WRITE_SECONDS = 60.0
"""A line without an end may be removed after this long."""
_MANY_FINISHED = 100_000
_NO_HANDLER = "No handler"


def check_jobs(queue: Queue, status: Status) -> Iterator[Finding]:
    """Check the jobs of a queue."""
    yield from _check_verdict(status)
    yield from _check_running(status)
    yield from _check_paused(status)
    yield from _check_types(queue, status)
    yield from _check_lines(queue, status)
    yield from _check_history(queue)
    yield from _check_times(queue, status)
    for warning in queue.store.warnings():
        yield Finding("warning", "server", warning, "docs/engines.md, Settings of the server")


def passes_run(live: Sequence[LivePass], ended: Sequence[EndedPass], now: float) -> bool:
    """Return whether a pass is alive, or has ended as recently as its usual pauses allow."""
    return bool(live) or (bool(ended) and now - ended[-1].ended_at <= patience(ended))


def _check_verdict(status: Status) -> Iterator[Finding]:
    verdict = status.verdict
    if verdict.word == "moved":
        remedy = verdict.command or "use that path or URL in programs and crontab lines"
        yield Finding("wrong" if verdict.command else "warning", "moved", verdict.text, remedy)
    elif verdict.word == "stalled":
        yield Finding(
            "wrong",
            "stalled",
            verdict.text,
            "see the findings about cron; if they are ok, run the line by hand",
        )
    else:
        yield Finding("ok", "verdict", str(verdict))
    if status.move is not None and not status.moved_to:
        remedy = command("move", "--to", status.move.address)
        yield Finding("wrong", "move-unfinished", status.move.text(), remedy)
    if not status.ended and not status.live:
        yield Finding(
            "note",
            "no-pass",
            "no pass has run yet",
            "dbbasic-queue crontab --install, or start a worker",
        )


def _check_running(status: Status) -> Iterator[Finding]:
    lost = [row for row, holder, _ in status.running_jobs() if holder is None]
    if lost:
        store, now = status.store, status.now

        def repair() -> str:
            from dbbasic_queue.moving import recover

            recover(store, now)
            return f"{number_of(len(lost), 'job is', 'jobs are')} pending again"

        yield Finding(
            "warning",
            "lost",
            f"{number_of(len(lost), 'job has', 'jobs have')} lost the pass that ran "
            f"{'it' if len(lost) == 1 else 'them'}, such as {lost[0].id}",
            "the next pass recovers them",
            repair,
        )
    for row, holder, since in status.running_jobs():
        if holder is not None and since is not None and status.now - since > _LONG_SECONDS:
            yield Finding(
                "warning",
                "long-running",
                f"{row.id} ({printable(row.type)}) has been running for "
                f"{duration(status.now - since)}",
                f"dbbasic-queue stop {row.id}   (and give its handler a timeout)",
            )


def _check_paused(status: Status) -> Iterator[Finding]:
    if status.summary.paused_types and status.summary.paused:
        types = " ".join(map(printable, sorted(status.summary.paused_types)))
        what = "everything is paused" if ALL in status.summary.paused_types else f"paused: {types}"
        held = number_of(status.summary.paused, "job waits", "jobs wait")
        yield Finding("warning", "paused", f"{what}; {held} for that", "dbbasic-queue resume")


def _check_types(queue: Queue, status: Status) -> Iterator[Finding]:
    """Find due jobs whose type no program runs."""
    known = KnownTypes(status.live, status.ended, status.now)
    if not known.is_known:
        return
    names = frozenset(known.names())
    due: dict[str, int] = {}
    failed: dict[str, int] = {}
    for row in queue.store.rows(statuses=(PENDING, FAILED)):
        state = row.state
        if row.type in names:
            continue
        if state.error.startswith(_NO_HANDLER):
            found = due if state.status == PENDING else failed
            found[row.type] = found.get(row.type, 0) + 1
        elif state.status == PENDING and known.was_left_alone(due_at(row)):
            due[row.type] = due.get(row.type, 0) + 1
    for name in due | failed:
        count = due.get(name, 0) + failed.get(name, 0)
        seconds = known.last_seconds(name)
        ended = "" if seconds is None else f"; the last one that had one ended {ago(seconds)}"
        again = "; dbbasic-queue requeue --type " + printable(name) if name in failed else ""
        yield Finding(
            "wrong" if name in due and seconds is None else "warning",
            "no-handler",
            f"{number_of(count, 'job has', 'jobs have')} the type {printable(name)}, for which no "
            f"pass has a handler{ended}",
            f"add a handler to the worker{again}",
        )


def _was_just_written(queue: Queue) -> bool:
    return os.path.isabs(queue.path) and time.time() - os.stat(queue.path).st_mtime < _WRITE_SECONDS


def _check_lines(queue: Queue, status: Status) -> Iterator[Finding]:
    unreadable = [found.line for found in queue.store.unreadable()]
    if len(unreadable) > len(status.summary.unreadable) and _was_just_written(queue):
        unreadable.pop()
        yield Finding(
            "note",
            "torn",
            "the last line has no end: another program is writing it, or was killed",
            "the next pass ends it; then: dbbasic-queue unreadable",
        )
    if unreadable:

        def repair() -> str:
            count = queue.remove_unreadable()
            return f"{number_of(count, 'line was', 'lines were')} moved to {queue.path}.rejected"

        numbers = ", ".join(map(str, unreadable[:5])) + (", ..." if len(unreadable) > 5 else "")
        what = number_of(
            len(unreadable), "line of the file isn't a job", "lines of the file aren't jobs"
        )
        yield Finding(
            "warning",
            "unreadable",
            f"{what}: {numbers}",
            "dbbasic-queue unreadable --remove",
            repair,
        )
    _, bad_records, _ = queue.store.take_skipped()
    if bad_records:
        yield Finding(
            "warning",
            "damaged-journal",
            f"{number_of(bad_records, 'line', 'lines')} of the journal can't be read, as after a "
            "power cut; the jobs have their states from before",
            "dbbasic-queue list --status processing shows jobs that may be concerned",
        )
    finished = sum(status.summary.counts[name] for name in ("completed", "failed", "cancelled"))
    if finished > _MANY_FINISHED:
        yield Finding(
            "warning",
            "many-finished",
            f"the queue keeps {finished:,} finished jobs",
            "dbbasic-queue purge --older-than 30d, or keep= in the worker",
        )


def _check_history(queue: Queue) -> Iterator[Finding]:
    for _ in queue.store.history():
        pass
    if skipped := queue.store.skipped_history:
        yield Finding(
            "note",
            "damaged-history",
            f"{number_of(len(skipped), 'line', 'lines')} of the history can't be read",
            "nothing needs them",
        )


def _check_times(queue: Queue, status: Status) -> Iterator[Finding]:
    ahead = [
        row
        for row in queue.store.rows(statuses=(PENDING,))
        if row.state.created_at > status.now + _AHEAD_SECONDS
    ]
    if ahead:
        first = ahead[0]
        when = relative(first.state.created_at, status.now)
        yield Finding(
            "wrong",
            "future-jobs",
            f"{number_of(len(ahead), 'job was', 'jobs were')} enqueued in the future, such as "
            f"{first.id} {when}: the clock was ahead, or is behind now",
            "timedatectl; then dbbasic-queue run-now ID",
        )
