"""Commands that look at jobs: status, list, failed, running, due, show, output.

They change nothing.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager

from dbbasic_queue.cli.arguments import (
    AN_ID,
    Commands,
    add_filters,
    add_order,
    natural,
)
from dbbasic_queue.cli.messages import complain, with_file
from dbbasic_queue.cli.queues import existing_queue
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

DASHES = "Fields are separated by tabs there; an empty field is a dash."


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
        "list jobs, as they are now",
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
        "total, note. " + DASHES,
        json=True,
    )
    show = commands.add(
        "show",
        run_show,
        "show everything about one job, and why it isn't running",
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
            return "its pass died" if job[1] is None else ""
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
