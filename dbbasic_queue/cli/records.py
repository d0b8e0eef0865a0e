"""Commands that look at what the queue keeps besides jobs: history, stats, schedules, unreadable.

They change nothing, except with --remove.
"""

from __future__ import annotations

from dbbasic_queue.cli.arguments import AN_ID, Commands, add_caution, natural, seconds
from dbbasic_queue.cli.looking import DASHES
from dbbasic_queue.cli.messages import complain, print_done
from dbbasic_queue.cli.queues import existing_queue, named_queue
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import escape, printable, unescape
from dbbasic_queue.model.states import OUTCOMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable
    from typing import Any

    from dbbasic_queue.jobqueue import Queue


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    history = commands.add(
        "history",
        run_history,
        "list finished attempts, the oldest first",
        more="In a pipe: the columns of queue.tsv.history without the traceback.",
        json=True,
    )
    history.add_argument("id", metavar="ID", nargs="?", help=f"only those of {AN_ID}")
    history.add_argument("--type", help="only those of jobs of this type")
    history.add_argument("--outcome", choices=OUTCOMES, help="only those with this outcome")
    history.add_argument(
        "--since", type=seconds, metavar="DURATION", help="how far to look back, such as 2h"
    )
    history.add_argument("--limit", type=natural, metavar="N", help="only the last N")
    stats = commands.add(
        "stats",
        run_stats,
        "show how many attempts ended, and how long jobs waited and ran, by type",
        more="In a pipe: type, attempts, attempts that failed, attempts per second, the 50th, 95th "
        "and 99th percentile of waiting, and those of running, in seconds. " + DASHES,
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
        + DASHES,
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


def run_stats(arguments: Namespace) -> int:
    from dbbasic_queue.cli.report import print_rows
    from dbbasic_queue.cli.terminal import Column
    from dbbasic_queue.monitoring.durations import duration
    from dbbasic_queue.monitoring.metrics import QUANTILES
    from dbbasic_queue.store.history import FAILED_OUTCOMES

    with existing_queue(arguments) as queue:
        measured = queue.metrics(arguments.window)

    def failed(found: dict[str, Any]) -> int:
        attempts = found["attempts"]
        return sum(attempts.get(name, 0) for name in FAILED_OUTCOMES)

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


def run_schedules(arguments: Namespace) -> int:
    from dbbasic_queue.cli.report import print_rows
    from dbbasic_queue.cli.terminal import Column
    from dbbasic_queue.monitoring.durations import instant, relative, rule

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
                Column("WHEN", lambda s: f"{rule(s['expression'])} {s['timezone']}".strip()),
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


def _remove_schedule(arguments: Namespace, queue: Queue) -> int:
    from dbbasic_queue.cli.terminal import ask, can_ask

    name = arguments.remove
    if all(schedule["name"] != name for schedule in queue.schedules()):
        return complain(f"there is no schedule {name}")
    if arguments.dry_run:
        print_done("would be removed", name)
        return 0
    question = f"The schedule {printable(name)} will be removed. Go on?"
    if not arguments.yes and can_ask() and not ask(question):
        return complain("nothing was changed")
    if not queue.remove_schedule(name):
        return complain(f"there is no schedule {name}")
    print_done("removed", name)
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


def _remove_unreadable(arguments: Namespace, queue: Queue) -> int:
    from dbbasic_queue.cli.terminal import ask, can_ask
    from dbbasic_queue.monitoring.durations import number_of

    count = len(list(queue.unreadable()))
    if arguments.dry_run:
        print_done("would be rejected", count)
        return 0
    if count and not arguments.yes and can_ask():
        lines = number_of(count, "line", "lines")
        if not ask(f"{lines} will be moved to {printable(queue.path)}.rejected. Go on?"):
            return complain("nothing was changed")
    print_done("rejected", queue.remove_unreadable())
    return 0


def _check_caution(arguments: Namespace) -> None:
    if (arguments.dry_run or arguments.yes) and not arguments.remove:
        arguments.wrong_usage("--dry-run and --yes need --remove")
