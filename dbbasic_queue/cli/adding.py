"""Commands that add jobs, or copy them: enqueue, export, import, move."""

from __future__ import annotations

import sys

from dbbasic_queue.cli.arguments import (
    Commands,
    add_caution,
    add_filters,
    coming_instant,
    seconds,
)
from dbbasic_queue.cli.messages import complain
from dbbasic_queue.cli.queues import existing_queue, named_queue
from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import STATUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.moving import Outcome, Preview

_BATCH = 1000


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    enqueue = commands.add(
        "enqueue",
        run_enqueue,
        "add a job, and print its id",
        more="PAYLOAD is JSON; @FILE reads it from a file, and - from stdin. With --lines, each "
        "line there is the payload of one job.",
    )
    enqueue.add_argument("type", metavar="TYPE", help="the job type")
    enqueue.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", help="JSON, @FILE, or - (default: {})"
    )
    when = enqueue.add_mutually_exclusive_group()
    when.add_argument(
        "--at",
        type=coming_instant,
        metavar="INSTANT",
        help="when it is due: @UNIX, or an ISO date such as 2027-01-15T08:00",
    )
    when.add_argument(
        "--in", dest="wait", type=seconds, metavar="DURATION", help="how long from now it is due"
    )
    enqueue.add_argument("--id", help="an id of your own: only one job can have it")
    enqueue.add_argument(
        "--exist-ok", action="store_true", help="with --id: add nothing if a job has this id"
    )
    enqueue.add_argument(
        "--unique",
        action="store_true",
        help="if a pending job has this type and payload, add nothing, and print its id",
    )
    enqueue.add_argument(
        "--lines", action="store_true", help="one job for each line of JSON in @FILE or -"
    )
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
    import_.add_argument("-n", "--dry-run", action="store_true", help="check the file; add nothing")
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


# -- enqueue -----------------------------------------------------------------------------------


def run_enqueue(arguments: Namespace) -> int:
    if arguments.exist_ok and arguments.id is None:
        arguments.wrong_usage("--exist-ok needs --id")
    if arguments.unique and arguments.id is not None:
        arguments.wrong_usage("give --id or --unique, not both")
    from_file = arguments.payload == "-" or (arguments.payload or "")[:1] == "@"
    if arguments.lines and (not from_file or arguments.id is not None or arguments.unique):
        arguments.wrong_usage("--lines needs @FILE or -, and no --id or --unique")
    with named_queue(arguments) as queue:
        run_at = arguments.at
        if arguments.wait is not None:
            run_at = queue.now() + arguments.wait
        if arguments.lines:
            return _enqueue_lines(arguments, queue, run_at)
        job_id = queue.enqueue(
            arguments.type,
            _payload(arguments) if arguments.payload is not None else None,
            run_at,
            job_id=arguments.id,
            exist_ok=arguments.exist_ok,
            unique="pending" if arguments.unique else None,
        )
        print(job_id)
    return 0


def _payload(arguments: Namespace) -> Any:
    from dbbasic_queue.cli.editing import json_value

    if arguments.payload == "-" or arguments.payload[:1] == "@":
        arguments.payload = _read(arguments.payload.removeprefix("@"))
    return json_value(arguments)


def _read(path: str) -> str:
    """Return the text of a file, or of stdin for "-"."""
    try:
        if path == "-":
            return sys.stdin.buffer.read().decode()
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as e:
        raise InvalidArgument(f"invalid text in {path}: must be UTF-8: {e}") from None


def _enqueue_lines(arguments: Namespace, queue: Queue, run_at: float | None) -> int:
    """Add one job for each line. All are checked before the first one is added."""
    from dbbasic_queue.cli.terminal import Counter, Terminal
    from dbbasic_queue.model.checks import check_type
    from dbbasic_queue.model.jsontext import decode_json, encode_json
    from dbbasic_queue.store.batches import batches

    check_type(arguments.type)
    path = arguments.payload.removeprefix("@")
    payloads = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = decode_json(line)
            encode_json(value, queue.max_payload)
        except ValueError as e:
            raise InvalidArgument(
                f"invalid line {number} of {path}: must be JSON: {e} (no job was added)"
            ) from None
        payloads.append(value)
    is_screen = Terminal().is_screen
    counter, added = Counter("added", len(payloads)), 0
    try:
        for batch in batches(iter(payloads), _BATCH):
            ids = queue.enqueue_many(arguments.type, batch, run_at)
            added += len(ids)
            counter.show(added)
            if not is_screen:
                print("\n".join(ids))
    finally:
        counter.end()
        if is_screen:
            print(f"{added:,} jobs were added")
    return 0


# -- export and import -------------------------------------------------------------------------


def run_export(arguments: Namespace) -> int:
    from dbbasic_queue.cli import exchange
    from dbbasic_queue.cli.selecting import filter_of
    from dbbasic_queue.cli.terminal import Counter

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
        print(f"exported\t{count}")
    return 0


def run_import(arguments: Namespace) -> int:
    from dbbasic_queue.cli import exchange
    from dbbasic_queue.cli.terminal import Counter
    from dbbasic_queue.store.batches import batches

    rows = exchange.parse(_read(arguments.path), exchange.format_of(arguments), arguments.path)
    if arguments.dry_run:
        print(f"would be imported\t{len(rows)}")
        return 0
    counter, there, done = Counter("imported", len(rows)), [], 0
    with named_queue(arguments) as queue:
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
    print(f"imported\t{len(rows) - len(there)}")
    for job_id in there:
        print(f"exists\t{job_id}")
    return 0


# -- move --------------------------------------------------------------------------------------


def run_move(arguments: Namespace) -> int:
    from dbbasic_queue.cli.terminal import ask, can_ask
    from dbbasic_queue.monitoring.durations import number_of
    from dbbasic_queue.moving import Preview, move
    from dbbasic_queue.opening import open_queue

    is_shown = sys.stderr.isatty()

    def show(moved: int, left: int) -> None:
        if is_shown:
            print(f"\rmoved {moved}, left {left}  ", end="", file=sys.stderr, flush=True)

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
            jobs = number_of(sum(preview.counts.values()), "job", "jobs")
            if not ask(f"{jobs} will be moved to {printable(target.path)}. Go on?"):
                return complain("nothing was moved")
        try:
            done = move(
                source.store,
                target.store,
                finished=arguments.finished,
                history=arguments.history,
                progress=show,
            )
        finally:
            if is_shown:
                print(file=sys.stderr)
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
                print(f"{name}\t{printable(job_id)}")
        return why_incomplete(done, source.path, target.path)


def _print_preview(preview: Preview) -> int:
    for status in STATUSES:
        if count := preview.counts.get(status):
            print(f"would be moved\t{status}\t{count}")
    if preview.schedules:
        print(f"would be moved\tschedules\t{preview.schedules}")
    if not preview.counts and not preview.schedules:
        print("would be moved\t-\t0")
    for job_id in preview.conflicts:
        print(f"conflict\t{printable(job_id)}")
    return 1 if preview.conflicts else 0


def why_incomplete(done: Outcome, source: str, target: str) -> int:
    """Print on stderr what a move has left undone; return the exit code, 0 if nothing."""
    if done.running:
        complain(f"{done.running} jobs are still running in {source}: move again when they end")
    if done.left:
        complain(f"jobs are still added to {source}: find out by which program, and move again")
    if done.conflicts:
        complain(
            f"{len(done.conflicts)} jobs stay in {source}: other jobs in {target} have their ids "
            "(purge those, or cancel these, and move again)"
        )
    if done.missing:
        complain(
            f"{len(done.missing)} jobs were moved, but are not in {target} now: were they purged "
            f"there, or has the server lost them? (they are still in {source}, cancelled)"
        )
    return 0 if done.is_complete() else 1
