"""The command line: arguments in, calls out, lines that grep and awk can take.

Exit codes: 0 done, 1 not done (one line on stderr says why), 2 wrong usage. What only one command
needs is imported by that command: a shell prompt or a cron line should not wait for the others.
"""

from __future__ import annotations

import errno
import os
import sys
import time

from dbbasic_queue import __version__
from dbbasic_queue.errors import NotAQueue, QueueError
from dbbasic_queue.job import FINISHED, STATUSES
from dbbasic_queue.queue import QUEUE_FILE, Queue
from dbbasic_queue.rows import HEADER, Row, decode_json, encode_state, escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence
    from typing import Any

PROGRAM = "dbbasic-queue"
_DAY = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (by default the process's arguments) names; return its exit code.

    Raises SystemExit with code 2 after wrong usage, and with 0 after --help and --version.
    """
    arguments = argument_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a queue is UTF-8, whatever cron's locale is
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Without this the interpreter would flush
        # once more at its exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (QueueError, OSError) as error:
        return complain(str(error))
    return code


def complain(why: str) -> int:
    """Say on stderr why something was not done; return the exit code for that."""
    print(f"{PROGRAM}: {why}", file=sys.stderr)
    return 1


def argument_parser() -> ArgumentParser:
    """Return the parser; each command sets `run`, which takes the arguments and returns a code."""
    import argparse

    parser = argparse.ArgumentParser(prog=PROGRAM, description="A job queue that is a text file.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument(
        "--file",
        metavar="PATH",
        default=QUEUE_FILE,
        help="the queue's file (default: $DBBASIC_QUEUE_FILE, else data/queue.tsv)",
    )

    def command(
        name: str, run: Callable[[Namespace], int], text: str, *, more: str = ""
    ) -> ArgumentParser:
        made: ArgumentParser = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.{more}",
            parents=[] if run is run_demo else [file],
        )
        made.set_defaults(run=run, wrong_usage=made.error)
        return made

    command(
        "status",
        run_status,
        "show counts, what is due, what runs and since when, the last errors",
        more=" One line each, words separated by tabs, empty ones a dash.",
    )

    listing = command(
        "list",
        run_list,
        "print jobs as they stand now, in the file's nine columns",
        more=" " + HEADER.decode().replace("\t", " ").strip(),
    )
    listing.add_argument("--status", choices=STATUSES, help="only jobs with this status")
    listing.add_argument("--type", help="only jobs of this type")

    show = command("show", run_show, "print one job, a line a column")
    show.add_argument("id", metavar="ID")

    enqueue = command("enqueue", run_enqueue, "add a job, and print its id")
    enqueue.add_argument("type", metavar="TYPE")
    enqueue.add_argument("payload", metavar="PAYLOAD", nargs="?", help="JSON (default: {})")
    enqueue.add_argument(
        "--run-at", type=float, metavar="SECONDS", help="when it is due, in Unix seconds"
    )
    enqueue.add_argument("--id", help="an id of your own: there is at most one such job")

    cancel = command("cancel", run_cancel, "cancel jobs that are pending")
    cancel.add_argument("ids", metavar="ID", nargs="+")

    requeue = command(
        "requeue", run_requeue, "run failed or cancelled jobs again: attempts 0, due now"
    )
    requeue.add_argument("ids", metavar="ID", nargs="*")
    requeue.add_argument("--failed", action="store_true", help="all that have failed")
    requeue.add_argument("--type", help="with --failed: only those of this type")

    purge = command("purge", run_purge, "take finished jobs out of the file")
    purge.add_argument(
        "--older-than",
        type=float,
        metavar="DAYS",
        required=True,
        help="those that were due more than so many days ago",
    )
    purge.add_argument("--status", choices=FINISHED, help="only jobs with this status")
    purge.add_argument("--archive", metavar="FILE", help="append them to this .gz file first")

    pause = command("pause", run_pause, "have passes begin no job of a type, or none at all")
    pause.add_argument("type", metavar="TYPE", nargs="?")

    resume = command("resume", run_resume, "take back the pause of a type, or every pause")
    resume.add_argument("type", metavar="TYPE", nargs="?")

    demo = command(
        "demo",
        run_demo,
        "put real jobs through a queue in a fresh directory, and show the file",
        more=" The directory is left for a look.",
    )
    demo.add_argument("--dir", help="an empty or new directory (default: a temporary one)")
    return parser


def existing_queue(arguments: Namespace) -> Queue:
    """Return the queue that --file names; a slip of the pen must not look like an empty queue.

    Raises NotAQueue where there is no such file.
    """
    if not os.path.lexists(arguments.file):
        raise NotAQueue(
            errno.ENOENT,
            "there is no queue (name its file with --file or $DBBASIC_QUEUE_FILE)",
            arguments.file,
        )
    return Queue(arguments.file)


def run_status(arguments: Namespace) -> int:
    from dbbasic_queue import status

    with existing_queue(arguments) as queue:
        for line in status.lines(queue._store, time.time()):
            print(line)
    return 0


def columns(row: Row) -> list[str]:
    """Return a job's nine columns as the file holds them, and nothing that drives a terminal."""
    state = encode_state(row.state).decode().split("\t")
    return [
        text if text.isprintable() else "".join(c if c == "\\" else escape(c) for c in text)
        for text in (row.id, row.type, row.payload, *state)
    ]


def run_list(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        for row in queue._store.rows():
            if arguments.status in (None, row.state.status) and arguments.type in (None, row.type):
                print("\t".join(columns(row)))
    return 0


def run_show(arguments: Namespace) -> int:
    from dbbasic_queue import status

    with existing_queue(arguments) as queue:
        row = queue._store.find(arguments.id)
        if row is None:
            return complain(f"there is no job {arguments.id}")
        for name, text in zip(HEADER.decode().split(), columns(row), strict=True):
            when = f"\t{status.instant(int(text))}" if name.endswith("_at") else ""
            print(f"{name}\t{text}{when}")
    return 0


def run_enqueue(arguments: Namespace) -> int:
    payload: Any = None
    if arguments.payload is not None:
        try:
            payload = decode_json(arguments.payload)
        except ValueError as error:
            arguments.wrong_usage(
                f"PAYLOAD is no JSON: {error} (a text needs its own quotes: '\"text\"')"
            )
    with Queue(arguments.file) as queue:
        print(queue.enqueue(arguments.type, payload, arguments.run_at, job_id=arguments.id))
    return 0


def run_cancel(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        return change_each(arguments.ids, queue, queue.cancel_job, "cancelled", "a pending job")


def run_requeue(arguments: Namespace) -> int:
    if bool(arguments.ids) == arguments.failed or (arguments.type and not arguments.failed):
        arguments.wrong_usage("give IDs, or --failed, which may have a --type")
    with existing_queue(arguments) as queue:
        if arguments.ids:
            of = "a failed or cancelled job"
            return change_each(arguments.ids, queue, queue.requeue, "requeued", of)
        print(f"requeued\t{queue.requeue_failed(arguments.type)}")
    return 0


def change_each(
    ids: list[str], queue: Queue, change: Callable[[str], bool], done: str, which: str
) -> int:
    """Make a change to each job, print what was done, complain of what was not."""
    code = 0
    for job_id in ids:
        if change(job_id):
            print(f"{done}\t{job_id}")
            continue
        job = queue.get_job(job_id)
        why = f"it is {job['status']}" if job else "there is no such job"
        code = complain(f"{job_id} was not {done}: {why} (only {which} can be)")
    return code


def run_purge(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        older_than = arguments.older_than * _DAY
        count = queue.purge(older_than, arguments.status, archive=arguments.archive)
        print(f"purged\t{count}")
    return 0


def run_pause(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        queue.pause(arguments.type)
        print(f"paused\t{arguments.type or '*'}")
    return 0


def run_resume(arguments: Namespace) -> int:
    from dbbasic_queue.store.paused import ALL

    with existing_queue(arguments) as queue:
        queue.resume(arguments.type)
        if ALL in queue._store.paused():
            return complain(
                f"{arguments.type} stays paused: all types are (resume without a TYPE takes back "
                "every pause)"
            )
        print(f"resumed\t{arguments.type or ALL}")
    return 0


def run_demo(arguments: Namespace) -> int:
    from dbbasic_queue import demo

    return demo.run(arguments.dir)
