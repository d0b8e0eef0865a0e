"""`dbbasic-queue status`, for a person and as JSON."""

from __future__ import annotations

from dbbasic_queue.cli.messages import program
from dbbasic_queue.cli.terminal import STATUS_STYLES, Column, Terminal, table, wrapped
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import FINISHED
from dbbasic_queue.monitoring import progress_bar
from dbbasic_queue.monitoring.durations import duration, number_of, relative
from dbbasic_queue.monitoring.pauses import longest_pause
from dbbasic_queue.monitoring.summary import waited_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from dbbasic_queue.monitoring.status import Failures, Status

_SHOWN = 5
_INDENT = " " * 10


def screen(status: Status, terminal: Terminal) -> Iterator[str]:
    """Yield the lines of the screen."""
    yield from verdict_lines(status, terminal)
    yield ""
    yield from _facts(status, terminal)
    yield from _running(status, terminal)
    yield from _failures(status, terminal)
    yield from _schedules(status, terminal)
    for warning in status.store.warnings():
        yield from wrapped(terminal, f"warning: {printable(warning)}")
    yield ""
    for line in wrapped(terminal, _hint(status)):
        yield terminal.style(line, "dim")


def verdict_lines(status: Status, terminal: Terminal) -> Iterator[str]:
    """Yield the verdict, and the command to run next if there is one."""
    verdict = status.verdict
    first, *rest = wrapped(terminal, f"{verdict.word}: {printable(verdict.text)}")
    word, _, text = first.partition(":")
    yield f"{terminal.style(word, STATUS_STYLES.get(verdict.word, 'bold'))}:{text}"
    yield from rest
    if verdict.command:
        yield f"  {terminal.style(printable(verdict.command), 'bold')}"


def _facts(status: Status, terminal: Terminal) -> Iterator[str]:
    summary, now = status.summary, status.now
    yield from _counts(summary.counts, terminal)
    if (move := status.move) is not None:
        text = (
            f"moving    {move.on_the_way + move.arrived:,} of the cancelled jobs: "
            f"{move.on_the_way:,} on the way, {move.arrived:,} in the other queue"
        )
        yield from wrapped(terminal, text, _INDENT)
    if summary.first_due is not None:
        first = summary.first_due
        waited = duration(waited_seconds(first, now))
        text = f"due       {summary.due:,}; the oldest, {first.id}, for {waited}"
        yield from wrapped(terminal, text, _INDENT)
    if summary.paused_types:
        types = " ".join(map(printable, sorted(summary.paused_types)))
        held = number_of(summary.paused, "job waits", "jobs wait")
        types = types.replace("*", "everything")
        yield terminal.fit(f"paused    {types} ({held})", terminal.width)
    for line in _last_pass(status):
        yield from wrapped(terminal, line, _INDENT)
    finished = sum(summary.counts[name] for name in FINISHED)
    if finished:
        oldest = f", the oldest from {duration(summary.oldest)} ago" if summary.oldest else ""
        text = f"kept      {number_of(finished, 'finished job', 'finished jobs')}{oldest}"
        yield from wrapped(terminal, text, _INDENT)
    if summary.unreadable:
        lines = number_of(len(summary.unreadable), "line isn't a job", "lines aren't jobs")
        yield from wrapped(terminal, f"invalid   {lines}: {program()} unreadable", _INDENT)
    yield terminal.fit(f"queue     {printable(status.store.path)}", terminal.width)


def _counts(counts: dict[Any, int], terminal: Terminal) -> Iterator[str]:
    """Yield how many jobs have each status, in as many lines as that takes."""
    line, width = "jobs     ", len("jobs     ")
    for name, count in counts.items():
        text = f"{name} {count:,}"
        if width + 2 + len(text) > terminal.width and width > len(_INDENT):
            yield line
            line, width = _INDENT[:-1], len(_INDENT) - 1
        gap = " " if width < len(_INDENT) else "  "
        line += gap + terminal.style(text, STATUS_STYLES.get(name) if count else "dim")
        width += len(gap) + len(text)
    yield line


def _last_pass(status: Status) -> Iterator[str]:
    if status.live:
        since = relative(status.live[0].started_at, status.now)
        names = ", ".join(str(live.pid) for live in status.live[:_SHOWN])
        if len(status.live) == 1:
            yield f"pass      process {names}, started {since}"
        else:
            more = f" and {len(status.live) - _SHOWN} more" if len(status.live) > _SHOWN else ""
            yield f"passes    processes {names}{more}; the oldest started {since}"
    if not status.ended:
        if not status.live:
            yield "pass      none has ended yet"
        return
    last = status.ended[-1]
    did = [f"{count} {name}" for name, count in last.counts.items() if count]
    text = f"{', '.join(did) or 'nothing to do'}"
    pause = longest_pause(status.ended)
    every = "" if pause is None else f"; at most {duration(pause)} between passes"
    yield f"last pass {relative(last.ended_at, status.now)}: {text}{every}"


def _running(status: Status, terminal: Terminal) -> Iterator[str]:
    jobs = list(status.running_jobs())
    if not jobs:
        return

    def progress(job: Any) -> str:
        found = status.progress.get(job[0].id)
        if found is None:
            return "" if job[1] else "its pass died"
        return progress_bar.line(found, status.now, width=terminal.bar_width)

    yield ""
    yield terminal.style("running", "bold")
    columns = [
        Column("ID", lambda job: job[0].id),
        Column("TYPE", lambda job: job[0].type),
        Column("PROCESS", lambda job: str(job[1].pid) if job[1] else "dead", right=True),
        Column("FOR", lambda job: "-" if job[2] is None else duration(status.now - job[2])),
        Column("PROGRESS", progress, flexible=True),
    ]
    yield from table(terminal, columns, jobs[:_SHOWN], indent="  ")
    if len(jobs) > _SHOWN:
        yield f"  and {len(jobs) - _SHOWN} more: {program()} running"


def _failures(status: Status, terminal: Terminal) -> Iterator[str]:
    if not status.failures:
        return
    from dbbasic_queue.store.history import LONGEST_ERROR

    def error(found: Failures) -> str:
        is_cut = len(found.error) >= LONGEST_ERROR
        return f"{found.error}{terminal.dots}" if is_cut else found.error or "-"

    yield ""
    yield terminal.style("errors of the last day", "bold")
    columns = [
        Column("TIMES", lambda found: f"{found.count:,}", right=True),
        Column("TYPE", lambda found: found.type),
        Column("LAST", lambda found: relative(found.last_at, status.now, units=1)),
        Column("ERROR", error, flexible=True, style=lambda _: "red"),
    ]
    yield from table(terminal, columns, status.failures[:_SHOWN], indent="  ")
    if len(status.failures) > _SHOWN:
        yield f"  and {len(status.failures) - _SHOWN} other errors: {program()} history"


def _schedules(status: Status, terminal: Terminal) -> Iterator[str]:
    if not status.schedules:
        return
    yield ""
    yield terminal.style("schedules", "bold")
    columns = [
        Column("NAME", lambda schedule: schedule["name"]),
        Column("TYPE", lambda schedule: schedule["type"]),
        Column("NEXT", lambda schedule: relative(schedule["next"], status.now)),
    ]
    coming = sorted(status.schedules, key=lambda schedule: schedule["next"])
    yield from table(terminal, columns, coming[:_SHOWN], indent="  ")
    if len(coming) > _SHOWN:
        yield f"  and {len(coming) - _SHOWN} more: {program()} schedules"


def _hint(status: Status) -> str:
    failed = "failed, " if status.summary.counts["failed"] else ""
    return f"{program()} {failed}list, show ID, watch, doctor, --help"


def as_json(status: Status) -> dict[str, Any]:
    """Return all that as a JSON value. Instants are in Unix seconds."""
    summary = status.summary
    first = summary.first_due
    return {
        "queue": status.store.path,
        "now": status.now,
        "verdict": status.verdict.word,
        "text": status.verdict.text,
        "command": status.verdict.command or None,
        "moved_to": status.moved_to or None,
        "moving": status.move and status.move.as_dict(),
        "jobs": summary.counts,
        "due": summary.due,
        "oldest_due": first and {"id": first.id, "seconds": waited_seconds(first, status.now)},
        "paused": {"types": sorted(summary.paused_types), "jobs": summary.paused},
        "passes": [{"process": live.pid, "started_at": live.started_at} for live in status.live],
        "last_pass": status.ended[-1].as_dict() if status.ended else None,
        "running": [
            {
                "id": row.id,
                "type": row.type,
                "attempt": row.state.attempts,
                "process": holder and holder.pid,
                "started_at": since,
                "progress": status.progress[row.id].as_dict(status.now)
                if row.id in status.progress
                else None,
            }
            for row, holder, since in status.running_jobs()
        ],
        "failures": [
            {"type": f.type, "error": f.error, "count": f.count, "last_at": f.last_at}
            for f in status.failures
        ],
        "schedules": status.schedules,
        "unreadable": summary.unreadable,
        "warnings": status.store.warnings(),
    }
