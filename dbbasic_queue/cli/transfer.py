"""Commands that copy or move jobs to another place: export, import, move."""

from __future__ import annotations

import sys

from dbbasic_queue.cli.adding import read
from dbbasic_queue.cli.arguments import Commands, add_caution, add_filters
from dbbasic_queue.cli.messages import complain, print_done
from dbbasic_queue.cli.queues import existing_queue, named_queue
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import PROCESSING, STATUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from dbbasic_queue.moving import Outcome, Preview

_BATCH = 1000
_SHOWN = 5


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    export = commands.add(
        "export",
        run_export,
        "write jobs to stdout or a file, as TSV, JSON lines or CSV",
        more="TSV and JSON lines can be imported again, and lose nothing. In CSV, cells that a "
        "spreadsheet would execute begin with an apostrophe.",
    )
    export.add_argument(
        "path", metavar="FILE", nargs="?", help="its ending chooses the format: .tsv .jsonl .csv"
    )
    export.add_argument(
        "--format", choices=("tsv", "jsonl", "csv"), help="(default: that of FILE, or tsv)"
    )
    add_filters(export)
    import_ = commands.add(
        "import",
        run_import,
        "add the jobs of an export, with their ids, statuses and results",
        more="Jobs whose id is already in the queue are left out, and named. A job that was "
        "running becomes pending. All lines are checked before the first job is added.",
    )
    import_.add_argument("path", metavar="FILE", help="a .tsv, .jsonl or .csv file, or - for stdin")
    import_.add_argument(
        "--format", choices=("tsv", "jsonl", "csv"), help="(default: that of FILE)"
    )
    import_.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="check the file, and print how many jobs would be added; add nothing",
    )
    move = commands.add(
        "move",
        run_move,
        "move all jobs and schedules to another queue, such as one on a server",
        more="Passes and other programs may keep running. Prints how many jobs were moved. If it "
        "was interrupted, or couldn't move everything, run it again.",
    )
    move.add_argument("--to", metavar="URL", required=True, help="the other queue's path or URL")
    move.add_argument("--finished", action="store_true", help="move finished jobs, too")
    move.add_argument("--history", action="store_true", help="copy the history of attempts, too")
    add_caution(move, "how many jobs of which status would be moved")


# -- export and import -------------------------------------------------------------------------


def run_export(arguments: Namespace) -> int:
    from dbbasic_queue.cli import exchange
    from dbbasic_queue.cli.selecting import filter_of
    from dbbasic_queue.cli.terminal import Counter, Terminal
    from dbbasic_queue.monitoring.durations import number_of

    chosen = exchange.format_of(arguments)
    with existing_queue(arguments, even_if_moved=True) as queue:
        rows = filter_of(arguments).rows(queue.store)
        if arguments.path in (None, "-"):
            exchange.export(rows, sys.stdout, chosen)
            return 0
        counter = Counter("exported")
        try:
            count = exchange.export_file(rows, arguments.path, chosen, counter.show)
        finally:
            counter.end()
        if Terminal().is_screen:
            where = printable(arguments.path)
            print(f"{number_of(count, 'job was', 'jobs were')} exported to {where}")
        else:
            print(f"exported\t{count}")
    return 0


def run_import(arguments: Namespace) -> int:
    from dbbasic_queue.cli import exchange
    from dbbasic_queue.cli.terminal import Counter
    from dbbasic_queue.store.batches import batches

    rows = exchange.parse(read(arguments.path), exchange.format_of(arguments), arguments.path)
    counter, there, done = Counter("imported", len(rows)), [], 0
    with named_queue(arguments) as queue:
        if arguments.dry_run:
            known = {row.id for row in queue.store.rows()} if queue.store.exists() else set()
            there = [row.id for row in rows if row.id in known]
            _print_imported("would be imported", len(rows) - len(there), there)
            return 0
        try:
            for batch in batches(iter(rows), _BATCH):
                there += queue.store.add_missing(batch)
                done += len(batch)
                counter.show(done)
        except BaseException:
            counter.end()
            if done:  # the error, or Ctrl-C, has ended the rest
                complain(
                    f"{done:,} of {len(rows):,} jobs were done (import the file again for the rest)"
                )
            raise
        counter.end()
    _print_imported("imported", len(rows) - len(there), there)
    return 0


def _print_imported(done: str, count: int, there: list[str]) -> None:
    """Print how many jobs were added, and which were left out: on a terminal the first ones."""
    from dbbasic_queue.cli.terminal import Terminal
    from dbbasic_queue.monitoring.durations import number_of

    is_screen = Terminal().is_screen
    if is_screen:
        was = "" if done.startswith("would") else "was " if count == 1 else "were "
        print(f"{number_of(count, 'job', 'jobs')} {was}{done}")
        if there:
            left = number_of(len(there), "job is", "jobs are")
            print(f"{left} in the queue already, and left alone:")
    else:
        print(f"{done}\t{count}")
    for job_id in there[:_SHOWN] if is_screen else there:
        print(f"  {printable(job_id)}" if is_screen else f"exists\t{job_id}")
    if is_screen and len(there) > _SHOWN:
        print(f"  and {len(there) - _SHOWN:,} more")


# -- move --------------------------------------------------------------------------------------


def run_move(arguments: Namespace) -> int:
    from dbbasic_queue.cli.terminal import Line, ask, can_ask
    from dbbasic_queue.moving import Preview, move
    from dbbasic_queue.opening import POSTGRES_SCHEMES, REDIS_SCHEMES, open_queue
    from dbbasic_queue.store.location import scheme_of

    if (scheme := scheme_of(arguments.to)) not in (
        *("file", "memory"),
        *(POSTGRES_SCHEMES + REDIS_SCHEMES),
    ):
        arguments.wrong_usage(
            f"invalid --to: unknown URL scheme {scheme!r}: must be a path, or a postgresql: or "
            f"redis: URL (for a path with a colon, write ./{scheme}:...)"
        )
    line = Line()
    moved = 0

    def progress(count: int, left: int) -> None:
        nonlocal moved
        moved = count
        line.show(f"moved {moved:,}, left {left:,}")

    def waiting(running: list[str]) -> None:
        line.show(f"moved {moved:,}; waits until {_which(running, 'has ended', 'have ended')}")

    with (
        existing_queue(arguments, even_if_moved=True) as source,
        open_queue(arguments.to, even_if_moved=True) as target,
    ):
        if not target.store.is_shared:
            arguments.wrong_usage("invalid --to: a queue in memory would end with this command")
        if arguments.dry_run or (can_ask() and not arguments.yes):
            preview = Preview(source.store, target.store, finished=arguments.finished)
            if arguments.dry_run:
                return _print_preview(preview)
            if not ask(_move_question(preview, target.path)):
                return complain("nothing was moved")
        try:
            done = move(
                source.store,
                target.store,
                finished=arguments.finished,
                history=arguments.history,
                progress=progress,
                waiting=waiting,
            )
        except KeyboardInterrupt:
            line.end()
            complain("the move isn't complete: run the same command again")
            raise
        finally:
            line.end()
        _print_moved(done, target.path)
        return why_incomplete(done, source.path, target.path)


def _which(ids: list[str], is_: str, are: str) -> str:
    """Return how many jobs there are, and which, with a verb for one or for several.

    >>> _which(["a", "b"], "is", "are"), _which(["a"], "is", "are")
    ('2 jobs (a, b) are', '1 job (a) is')
    """
    from dbbasic_queue.monitoring.durations import number_of

    more = ", ..." if len(ids) > _SHOWN else ""
    names = f"({', '.join(ids[:_SHOWN])}{more})"
    return number_of(len(ids), f"job {names} {is_}", f"jobs {names} {are}")


def _move_question(preview: Preview, target: str) -> str:
    """Return what is asked before a move, with all that will be different after it."""
    from dbbasic_queue.monitoring.durations import number_of

    jobs = number_of(sum(preview.counts.values()), "job", "jobs")
    if running := preview.counts.get(PROCESSING, 0):
        jobs += f" ({running:,} when {'it has' if running == 1 else 'they have'} ended)"
    left = ""
    if preview.left:
        stays = number_of(preview.left, "finished job stays", "finished jobs stay")
        left = f"; {stays} here (--finished moves them, too)"
    return (
        f"{jobs} will be moved to {printable(target)}{left}. Then this queue is closed: programs "
        "and crontab lines must use the other one. Go on?"
    )


def _print_moved(done: Outcome, target: str) -> None:
    from dbbasic_queue.cli.terminal import Terminal, wrapped
    from dbbasic_queue.monitoring.durations import number_of

    if (terminal := Terminal()).is_screen:
        parts = [
            number_of(count, *names)
            for count, *names in (
                (done.moved, "job", "jobs"),
                (done.finished, "finished job", "finished jobs"),
                (done.schedules, "schedule", "schedules"),
                (done.history, "attempt of the history", "attempts of the history"),
            )
            if count
        ]
        were = "was" if done.moved + done.finished + done.schedules + done.history == 1 else "were"
        *others, last = parts or ["no job"]
        what = f"{', '.join(others)} and {last}" if others else last
        text = f"{what} {were if parts else 'was'} moved"
        if done.is_complete():
            text += f"; programs and crontab lines must use {printable(target)} now"
        print(*wrapped(terminal, text), sep="\n")
    else:
        print(f"moved\t{done.moved}")
        for name, count in (
            ("schedules", done.schedules),
            ("finished", done.finished),
            ("history", done.history),
        ):
            if count:
                print(f"{name}\t{count}")
    for name, ids in (("conflict", done.conflicts), ("missing", done.missing)):
        for job_id in ids:
            print_done(name, job_id)


def _print_preview(preview: Preview) -> int:

    for status in STATUSES:
        if count := preview.counts.get(status):
            print_done("would be moved", status, count)
    if preview.schedules:
        print_done("would be moved", "schedules", preview.schedules)
    if not preview.counts and not preview.schedules:
        print_done("would be moved", "-", 0)
    for job_id in preview.conflicts:
        print_done("conflict", job_id)
    return 1 if preview.conflicts else 0


def why_incomplete(done: Outcome, source: str, target: str) -> int:
    """Print on stderr what a move has left undone; return the exit code, 0 if nothing."""
    from dbbasic_queue.monitoring.durations import number_of

    if done.running:
        running = _which(done.running, "is", "are")
        ended = "it has" if len(done.running) == 1 else "they have"
        complain(f"{running} still running in {source}: move again when {ended} ended")
    if done.left:
        complain(f"jobs are still added to {source}: find out by which program, and move again")
    if count := len(done.conflicts):
        stay = number_of(count, "job stays", "jobs stay")
        why = "another job in {} has its id" if count == 1 else "other jobs in {} have their ids"
        complain(
            f"{stay} in {source}: {why.format(target)} (purge those there, or cancel these here, "
            "and move again)"
        )
    if done.missing:
        missing = number_of(len(done.missing), "moved job is", "moved jobs are")
        complain(
            f"{missing} not in {target} now: purged there, or lost by the server? (still in "
            f"{source}, cancelled)"
        )
    return 0 if done.is_complete() else 1
