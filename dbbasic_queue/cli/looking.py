"""Commands that look at jobs: status, list, failed, running, due, show, output, history, ...

They change nothing.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager

from dbbasic_queue.cli.arguments import (
    AN_ID,
    Commands,
    add_caution,
    add_filters,
    add_order,
    natural,
    seconds,
)
from dbbasic_queue.cli.messages import complain, with_file
from dbbasic_queue.cli.queues import existing_queue, named_queue
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import escape, printable, unescape
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import HEADER, Row, has_json
from dbbasic_queue.model.states import FAILED, PENDING, STATUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator
    from typing import Any

    from dbbasic_queue.jobqueue import Queue

_DASHES = "Prints lines of fields separated by tabs in a pipe; an empty field is a dash."


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    commands.add(
        "status",
        run_status,
        "show whether the queue works, and which jobs are due, running or failed",
        more="The first line is the verdict: running, idle, or stalled if jobs are due and nothing "
        "works on them. In a pipe: lines of fields separated by tabs; an empty field is a dash.",
        json=True,
    )
    listing = commands.add(
        "list",
        run_list,
        "list jobs, up to date",
        more="In a pipe: the nine columns of the file, "
        + HEADER.decode().replace("\t", " ").strip()
        + ".",
        json=True,
    )
    add_filters(listing)
    add_order(listing)
    for name, run, text, statuses in (
        ("failed", run_failed, "list failed jobs, the latest first", (FAILED,)),
        ("due", run_due, "list the jobs that could run now, in the order of execution", (PENDING,)),
    ):
        parser = commands.add(
            name, run, text, more="In a pipe: the nine columns of the file.", json=True
        )
        add_filters(parser, statuses)
        add_order(parser)
    commands.add(
        "running",
        run_running,
        "list the running jobs, with their progress",
        more="In a pipe: id, type, attempt, process id of the pass, start time, seconds, done, "
        "total, note. " + _DASHES,
        json=True,
    )
    show = commands.add(
        "show",
        run_show,
        "show all about one job, and why it isn't running",
        more="In a pipe: one line for each column, then lines `why`, `progress`, `attempt` "
        "(number, outcome, end time, seconds, error) and `traceback`.",
        json=True,
    )
    show.add_argument("id", metavar="ID", help=AN_ID)
    output = commands.add(
        "output",
        run_output,
        "print what a job has printed, if it ran in a process of its own",
        more="These are the last 64 KiB of one attempt, with control characters escaped.",
    )
    output.add_argument("id", metavar="ID", help=AN_ID)
    output.add_argument(
        "--attempt",
        type=natural,
        metavar="N",
        help="which attempt (default: the latest that has printed anything)",
    )
    output.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="wait for the end of each attempt, and print it, until the job is finished",
    )
    history = commands.add(
        "history",
        run_history,
        "list finished attempts, the oldest first",
        more="In a pipe: the columns of queue.tsv.history without the traceback.",
        json=True,
    )
    history.add_argument("id", metavar="ID", nargs="?", help=f"only those of {AN_ID}")
    history.add_argument("--type", help="only those of jobs of this type")
    history.add_argument("--outcome", help="only those with this outcome, such as retried")
    history.add_argument(
        "--since", type=seconds, metavar="DURATION", help="how far to look back, such as 2h"
    )
    history.add_argument("--limit", type=natural, metavar="N", help="only the last N")
    stats = commands.add(
        "stats",
        run_stats,
        "show how many attempts ended, and how long jobs waited and ran, by type",
        more="In a pipe: type, attempts, attempts that failed, attempts per second, the 50th, 95th "
        "and 99th percentile of waiting, and those of running, in seconds. " + _DASHES,
        json=True,
    )
    stats.add_argument(
        "--window", type=seconds, metavar="DURATION", default="1h", help="how far to look back"
    )
    schedules = commands.add(
        "schedules",
        run_schedules,
        "list the schedules and when they are due",
        more="In a pipe: name, program, type, expression, time zone, last and next instant. "
        + _DASHES,
        json=True,
    )
    schedules.add_argument(
        "--remove",
        metavar="NAME",
        help="forget a schedule; if its program still declares it, the next pass starts it again",
    )
    add_caution(schedules, "whether there is such a schedule")
    unreadable = commands.add(
        "unreadable",
        run_unreadable,
        "list the lines of the file that aren't jobs, with number, reason and beginning",
        json=True,
    )
    unreadable.add_argument(
        "--remove", action="store_true", help="move them to queue.tsv.rejected, and print how many"
    )
    add_caution(unreadable, "how many lines")


# -- the queue ---------------------------------------------------------------------------------


def run_status(arguments: Namespace) -> int:
    from dbbasic_queue.cli.report import print_json
    from dbbasic_queue.cli.status_screen import as_json, screen
    from dbbasic_queue.cli.terminal import Terminal
    from dbbasic_queue.monitoring import status

    terminal = Terminal()
    with existing_queue(arguments, even_if_moved=True) as queue, _no_garbage():
        is_for_program = not (arguments.json or terminal.is_screen)
        found = status.Status(queue.store, time.time(), with_errors=is_for_program)
        found.verdict.command = with_file(found.verdict.command, arguments.file)
        if arguments.json:
            print_json(as_json(found))
            return 0
        for line in status.lines_of(found) if is_for_program else screen(found, terminal):
            print(line)
    return 0


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Don't search the values of a million payloads for cycles: JSON has none."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run_stats(arguments: Namespace) -> int:
    from dbbasic_queue.cli.report import print_rows
    from dbbasic_queue.cli.terminal import Column
    from dbbasic_queue.monitoring.durations import duration
    from dbbasic_queue.monitoring.metrics import QUANTILES

    with existing_queue(arguments) as queue:
        measured = queue.metrics(arguments.window)

    def failed(found: dict[str, Any]) -> int:
        attempts = found["attempts"]
        return sum(attempts.get(name, 0) for name in ("failed", "retried", "died"))

    def span(of: str, name: str) -> Column:
        def text(row: tuple[str, dict[str, Any]]) -> str:
            value = row[1][of][name]
            if value is None:
                return "-"
            return f"{value * 1000:.0f} ms" if value < 1 else duration(value)

        title = f"{'WAIT' if of == 'waiting' else 'RUN'} {name.upper()}"
        return Column(title, text, right=True, optional=name == "p95")

    print_rows(
        arguments,
        measured["types"].items(),
        screen=[
            Column("TYPE", lambda row: row[0], flexible=True),
            Column("ATTEMPTS", lambda row: f"{sum(row[1]['attempts'].values()):,}", right=True),
            Column(
                "FAILED",
                lambda row: f"{failed(row[1]):,}",
                right=True,
                style=lambda row: "red" if failed(row[1]) else None,
            ),
            Column("PER MIN", lambda row: f"{row[1]['rate'] * 60:.1f}", right=True),
            *(span("waiting", name) for name in QUANTILES),
            *(span("running", name) for name in QUANTILES),
        ],
        fields=lambda row: [
            row[0],
            sum(row[1]["attempts"].values()),
            failed(row[1]),
            f"{row[1]['rate']:.6f}",
            *(_rounded(row[1][of][name]) for of in ("waiting", "running") for name in QUANTILES),
        ],
        as_json=lambda row: {"type": row[0], "window": measured["window"], **row[1]},
        empty=f"No attempt has ended in the last {duration(arguments.window)}, and no job waits.",
    )
    return 0


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"


# -- lists -------------------------------------------------------------------------------------


def columns(row: Row) -> list[str]:
    """Return a job's nine columns as the file holds them."""
    state = encode_state(row.state).decode().split("\t")
    return [printable(text) for text in (row.id, row.type, row.payload, *state)]


def run_list(arguments: Namespace) -> int:
    from dbbasic_queue.cli.selecting import filter_of, ordered

    with existing_queue(arguments) as queue:
        rows = filter_of(arguments).rows(queue.store)
        with_status = len(arguments.status or STATUSES) > 1
        found = ordered(arguments, rows)
        _print_jobs(arguments, queue, found, "There is no such job.", with_status=with_status)
    return 0


def run_failed(arguments: Namespace) -> int:
    from dbbasic_queue.cli.selecting import filter_of, ordered
    from dbbasic_queue.monitoring.summary import due_at

    if arguments.sort is None:
        arguments.reverse = not arguments.reverse
    with existing_queue(arguments) as queue:
        rows = filter_of(arguments, (FAILED,)).rows(queue.store)
        _print_jobs(arguments, queue, ordered(arguments, rows, due_at), "No job has failed.")
    return 0


def run_due(arguments: Namespace) -> int:
    from dbbasic_queue.cli.selecting import filter_of, ordered
    from dbbasic_queue.model.checks import ALL

    with existing_queue(arguments) as queue:
        paused, now = queue.paused(), time.time()
        due = (
            row
            for row in filter_of(arguments, (PENDING,)).rows(queue.store)
            if row.state.run_at <= now and paused.isdisjoint((row.type, ALL))
        )
        first = ordered(arguments, due, lambda row: row.state.run_at)
        _print_jobs(arguments, queue, first, "No job is due.")
    return 0


def _print_jobs(
    arguments: Namespace,
    queue: Queue,
    rows: Iterable[Row],
    empty: str,
    *,
    with_status: bool = False,
) -> None:
    from dbbasic_queue.cli.report import print_rows
    from dbbasic_queue.cli.terminal import STATUS_STYLES, Column
    from dbbasic_queue.model.jobdict import as_dict
    from dbbasic_queue.monitoring.durations import relative

    now = queue.now()
    if arguments.json:  # other rows aren't jobs
        rows = (row for row in rows if has_json(row))
    status = Column(
        "STATUS",
        lambda row: row.state.status,
        style=lambda row: STATUS_STYLES.get(row.state.status),
    )
    print_rows(
        arguments,
        rows,
        screen=[
            Column("ID", lambda row: row.id),
            Column("TYPE", lambda row: row.type),
            *([status] if with_status else []),
            Column("DUE", lambda row: relative(row.state.run_at, now, units=1)),
            Column("TRIES", lambda row: str(row.state.attempts), right=True, optional=True),
            Column("ERROR OR PAYLOAD", _error_or_payload, flexible=True, style=_error_style),
        ],
        fields=lambda row: columns(row),
        as_json=lambda row: as_dict(row),
        empty=empty,
    )


def _error_style(row: Row) -> str | None:
    return "red" if row.state.error and row.state.status == FAILED else None


def _error_or_payload(row: Row) -> str:
    return row.state.error or row.payload


def run_running(arguments: Namespace) -> int:
    from dbbasic_queue.cli.report import print_rows
    from dbbasic_queue.cli.terminal import Column, Terminal
    from dbbasic_queue.monitoring import progress_bar
    from dbbasic_queue.monitoring.durations import duration, instant
    from dbbasic_queue.monitoring.verdict import holder_of, running_since

    with existing_queue(arguments, even_if_moved=True) as queue:
        live, rows = queue.store.running()
        reported = queue.store.progress(rows)
        now = queue.now()
    bar_width = Terminal().bar_width
    jobs = []
    for row in rows:
        holder = holder_of(row, live)
        since = running_since(holder)
        jobs.append((row, holder, since, reported.get(row.id)))

    def progress_text(job: Any) -> str:
        found = job[3]
        if found is None:
            return "its pass died: the next one recovers it" if job[1] is None else ""
        return progress_bar.line(found, now, width=bar_width)

    print_rows(
        arguments,
        jobs,
        screen=[
            Column("ID", lambda job: job[0].id),
            Column("TYPE", lambda job: job[0].type),
            Column("TRY", lambda job: str(job[0].state.attempts), right=True, optional=True),
            Column("PROCESS", lambda job: str(job[1].pid) if job[1] else "dead", right=True),
            Column("FOR", lambda job: "-" if job[2] is None else duration(now - job[2])),
            Column("PROGRESS", progress_text, flexible=True),
        ],
        fields=lambda job: [
            job[0].id,
            escape(job[0].type),
            job[0].state.attempts,
            job[1] and job[1].pid,
            job[2] and instant(job[2]),
            job[2] and max(int(now - job[2]), 0),
            *((job[3].done, job[3].total, job[3].note or None) if job[3] else (None, None, None)),
        ],
        as_json=lambda job: {
            "id": job[0].id,
            "type": job[0].type,
            "attempt": job[0].state.attempts,
            "process": job[1] and job[1].pid,
            "started_at": job[2],
            "progress": job[3] and job[3].as_dict(now),
        },
        empty="No job is running.",
    )
    return 0


def run_history(arguments: Namespace) -> int:
    from collections import deque

    from dbbasic_queue.cli.report import print_rows
    from dbbasic_queue.cli.terminal import STATUS_STYLES, Column
    from dbbasic_queue.monitoring.durations import instant, relative, took
    from dbbasic_queue.monitoring.selecting import find_id

    with existing_queue(arguments) as queue:
        now = queue.now()
        job_id = "" if arguments.id is None else find_id(queue.store, arguments.id)
        if arguments.id is not None and not is_id(job_id):
            return complain(f"there is no job {job_id}")
        since = now - arguments.since if arguments.since is not None else float("-inf")
        attempts: Iterable[Any] = (
            attempt
            for attempt in queue.store.history(job_id, since)
            if attempt.ended_at >= since
            and arguments.type in (None, unescape(attempt.type))
            and arguments.outcome in (None, attempt.outcome)
        )
        if arguments.limit is not None:
            attempts = deque(attempts, arguments.limit)
        print_rows(
            arguments,
            attempts,
            screen=[
                Column("ENDED", lambda a: relative(a.ended_at, now, units=1)),
                Column("ID", lambda a: a.id),
                Column("TYPE", lambda a: a.type),
                Column("TRY", lambda a: str(a.attempt), right=True, optional=True),
                Column(
                    "OUTCOME", lambda a: a.outcome, style=lambda a: STATUS_STYLES.get(a.outcome)
                ),
                Column("TOOK", lambda a: took(a.seconds), right=True, optional=True),
                Column("ERROR", lambda a: a.error, flexible=True),
            ],
            fields=lambda a: [
                a.id,
                a.type,
                a.attempt,
                a.outcome,
                instant(a.due_at),
                instant(a.ended_at),
                a.seconds if a.seconds is None else f"{a.seconds:.3f}",
                a.error or None,
                a.worker or None,
                a.exception or None,
            ],
            as_json=lambda a: a.as_dict(),
            empty="The history has no such attempt.",
        )
    return 0


def run_schedules(arguments: Namespace) -> int:
    from dbbasic_queue.cli.report import print_rows
    from dbbasic_queue.cli.terminal import Column
    from dbbasic_queue.monitoring.durations import instant, relative

    _check_caution(arguments)
    queue = named_queue(arguments)
    with queue if queue.store.has_schedules() else existing_queue(arguments) as queue:
        if arguments.remove is not None:
            return _remove_schedule(arguments, queue)
        now = queue.now()
        print_rows(
            arguments,
            queue.schedules(),
            screen=[
                Column("NAME", lambda s: s["name"]),
                Column("TYPE", lambda s: s["type"]),
                Column("WHEN", lambda s: f"{s['expression']} {s['timezone']}".strip()),
                Column(
                    "LAST",
                    lambda s: "-" if s["last"] is None else relative(s["last"], now, units=1),
                ),
                Column("NEXT", lambda s: relative(s["next"], now)),
                Column("PROGRAM", lambda s: s["program"], optional=True),
            ],
            fields=lambda s: [
                *map(escape, (s["name"], s["program"], s["type"], s["expression"])),
                escape(s["timezone"]) or None,
                None if s["last"] is None else instant(s["last"]),
                instant(s["next"]),
            ],
            as_json=lambda s: s,
            empty="No schedule was recorded: the first pass of a program with schedules does that.",
        )
    return 0


def _check_caution(arguments: Namespace) -> None:
    if (arguments.dry_run or arguments.yes) and not arguments.remove:
        arguments.wrong_usage("--dry-run and --yes need --remove")


def _remove_schedule(arguments: Namespace, queue: Queue) -> int:
    from dbbasic_queue.cli.terminal import ask, can_ask

    name = arguments.remove
    if all(schedule["name"] != name for schedule in queue.schedules()):
        return complain(f"there is no schedule {name}")
    if arguments.dry_run:
        print(f"would be removed\t{printable(name)}")
        return 0
    question = f"The schedule {printable(name)} will be removed. Go on?"
    if not arguments.yes and can_ask() and not ask(question):
        return complain("nothing was changed")
    if not queue.remove_schedule(name):
        return complain(f"there is no schedule {name}")
    print(f"removed\t{printable(name)}")
    return 0


def _remove_unreadable(arguments: Namespace, queue: Queue) -> int:
    from dbbasic_queue.cli.terminal import ask, can_ask
    from dbbasic_queue.monitoring.durations import number_of

    count = len(list(queue.unreadable()))
    if arguments.dry_run:
        print(f"would be rejected\t{count}")
        return 0
    if count and not arguments.yes and can_ask():
        lines = number_of(count, "line", "lines")
        if not ask(f"{lines} will be moved to {printable(queue.path)}.rejected. Go on?"):
            return complain("nothing was changed")
    print(f"rejected\t{queue.remove_unreadable()}")
    return 0


def run_unreadable(arguments: Namespace) -> int:
    from dbbasic_queue.cli.report import print_rows
    from dbbasic_queue.cli.terminal import Column

    _check_caution(arguments)
    with existing_queue(arguments) as queue:
        if arguments.remove:
            return _remove_unreadable(arguments, queue)
        print_rows(
            arguments,
            queue.unreadable(),
            screen=[
                Column("LINE", lambda found: str(found["line"]), right=True),
                Column("REASON", lambda found: found["reason"]),
                Column("TEXT", lambda found: found["text"], flexible=True),
            ],
            fields=lambda found: [found["line"], found["reason"], found["text"]],
            as_json=lambda found: found,
            empty="Every line is a job.",
        )
    return 0


# -- one job -----------------------------------------------------------------------------------


def run_show(arguments: Namespace) -> int:
    from dbbasic_queue.cli.job_screen import as_json, lines, screen
    from dbbasic_queue.cli.report import print_json
    from dbbasic_queue.cli.terminal import Terminal
    from dbbasic_queue.monitoring.selecting import find_id
    from dbbasic_queue.operating.details import JobDetails

    terminal = Terminal()
    with existing_queue(arguments, even_if_moved=True) as queue:
        job_id = find_id(queue.store, arguments.id)
        row = queue.store.find(job_id) if is_id(job_id) else None
        if row is None or not has_json(row):
            return complain(f"there is no job {job_id}")
        details = JobDetails(queue, row)
        details.why.command = with_file(details.why.command, arguments.file)
        if arguments.json:
            print_json(as_json(details))
        else:
            for line in screen(details, terminal) if terminal.is_screen else lines(details):
                print(line)
    return 0


def run_output(arguments: Namespace) -> int:
    from dbbasic_queue.cli.output import follow, safe, why_not
    from dbbasic_queue.monitoring.selecting import find_id

    if arguments.follow and arguments.attempt is not None:
        arguments.wrong_usage("give --follow or --attempt, not both")
    with existing_queue(arguments) as queue:
        job_id, attempt = find_id(queue.store, arguments.id), arguments.attempt
        if arguments.follow:
            return follow(queue, job_id)
        found = queue.store.output(job_id, attempt) if is_id(job_id) else None
        if found is None:
            return complain(why_not(queue, job_id, attempt))
        if found.left_out:
            complain(f"{found.left_out} bytes came before this, and are not kept")
        text = safe(unescape(found.text))
        print(text, end="" if text.endswith("\n") else "\n")
    return 0
