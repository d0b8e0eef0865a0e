"""The command line: arguments in, the command's exit code out.

Exit codes: 0 done, 1 not done (one line on stderr says why), 2 wrong usage. Modules that only one
command needs are imported by that command, so that the others start faster.
"""

from __future__ import annotations

import os
import sys

from dbbasic_queue import __version__
from dbbasic_queue.cli import commands
from dbbasic_queue.cli.commands import PROGRAM
from dbbasic_queue.errors import QueueError
from dbbasic_queue.jobqueue import MAX_ATTEMPTS
from dbbasic_queue.model.checks import parse_seconds
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.rows import HEADER
from dbbasic_queue.model.states import FINISHED, STATUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence
    from typing import NoReturn


AFTER_DASHES = "a job's id (write -- before an id that starts with a dash)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (by default the process's arguments) names; return its exit code.

    Raises SystemExit with code 2 after wrong usage, and with 0 after --help and --version.
    """
    arguments = argument_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a queue's text is UTF-8, also in cron's locale
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe. Without this, the interpreter would flush
        # once more at exit, and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (QueueError, OSError) as error:
        return commands.complain(str(error))
    return code


def seconds(text: str) -> float:
    """Parse a duration with a unit; return its seconds. Raises ArgumentTypeError for other text."""
    from argparse import ArgumentTypeError

    try:
        return parse_seconds(text)
    except ValueError as e:
        raise ArgumentTypeError(str(e)) from None


def argument_parser() -> ArgumentParser:
    """Return the parser. Parsing sets `run` to the function that runs the command.

    `run` takes the parsed arguments, and returns the exit code.
    """
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            super().error(printable(message))

    parser = Parser(prog=PROGRAM, description="A job queue in a plain text file.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    file = Parser(add_help=False)
    file.add_argument(
        "--file",
        metavar="PATH",
        help="the queue's file (default: $DBBASIC_QUEUE_URL, $DBBASIC_QUEUE_FILE, or "
        "data/queue.tsv)",
    )

    def command(
        name: str, run: Callable[[Namespace], int], text: str, *, more: str = ""
    ) -> ArgumentParser:
        made: ArgumentParser = subparsers.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.{more}",
            parents=[] if run is commands.run_demo else [file],
        )
        made.set_defaults(run=run, wrong_usage=made.error)
        return made

    command(
        "status",
        commands.run_status,
        "show counts, due and running jobs, and the last errors",
        more=" Prints lines of fields separated by tabs; an empty field is a dash.",
    )

    listing = command(
        "list",
        commands.run_list,
        "print jobs, up to date, in the nine columns of the file",
        more=" " + HEADER.decode().replace("\t", " ").strip(),
    )
    listing.add_argument("--status", choices=STATUSES, help="only jobs with this status")
    listing.add_argument("--type", help="only jobs of this type")

    show = command(
        "show",
        commands.run_show,
        "print one job: one line per column, its progress, its attempts, and the last traceback",
        more=" The fields of an attempt: number, outcome, end time, seconds, error.",
    )
    show.add_argument("id", metavar="ID", help=AFTER_DASHES)

    output = command(
        "output",
        commands.run_output,
        "print what a job has printed, if it ran in a process of its own",
        more=" These are the last 64 KiB of one attempt, with control characters escaped.",
    )
    output.add_argument("id", metavar="ID", help=AFTER_DASHES)
    output.add_argument(
        "--attempt",
        type=int,
        metavar="N",
        help="which attempt (default: the latest that has printed anything)",
    )

    enqueue = command("enqueue", commands.run_enqueue, "add a job, and print its id")
    enqueue.add_argument("type", metavar="TYPE")
    enqueue.add_argument("payload", metavar="PAYLOAD", nargs="?", help="JSON (default: {})")
    enqueue.add_argument(
        "--run-at", type=float, metavar="SECONDS", help="when it is due, in Unix seconds"
    )
    enqueue.add_argument("--id", help="an id of your own: only one job can have it")
    enqueue.add_argument(
        "--exist-ok", action="store_true", help="with --id: add nothing if a job has this id"
    )
    enqueue.add_argument(
        "--unique",
        action="store_true",
        help="add nothing if such a job is pending, and print its id",
    )

    run = command(
        "run",
        commands.run_run,
        "run the due jobs of the types that a TOML file declares",
        more=" Prints errors on stderr: one line for each job that has failed for good.",
    )
    run.add_argument("path", metavar="FILE", help="a handlers.toml: one table per job type")
    run.add_argument("--workers", type=int, metavar="N", default=1, help="how many at a time")
    run.add_argument(
        "--linger",
        type=seconds,
        metavar="DURATION",
        default=0,
        help="stay, and run jobs as they become due, such as 55s",
    )
    run.add_argument(
        "--max-attempts",
        type=int,
        metavar="N",
        default=MAX_ATTEMPTS,
        help=f"for types without a number of their own (default: {MAX_ATTEMPTS})",
    )
    run.add_argument(
        "--ping",
        metavar="URL",
        help="request this URL after each run, unless it failed, so that a monitor can alert you",
    )
    run.add_argument("-v", "--verbose", action="store_true", help="report every attempt")

    cancel = command("cancel", commands.run_cancel, "cancel jobs that are pending")
    cancel.add_argument("ids", metavar="ID", nargs="+", help=AFTER_DASHES)

    stop = command(
        "stop",
        commands.run_stop,
        "cancel pending jobs, and stop running ones",
        more=(
            " A job in a process of its own is killed. Any other running job is asked to stop: "
            "then the command prints requested instead of stopped."
        ),
    )
    stop.add_argument("ids", metavar="ID", nargs="+", help=AFTER_DASHES)

    requeue = command(
        "requeue",
        commands.run_requeue,
        "make failed or cancelled jobs pending again, with no attempts used",
    )
    requeue.add_argument("ids", metavar="ID", nargs="*", help=AFTER_DASHES)
    requeue.add_argument("--failed", action="store_true", help="requeue all failed jobs")
    requeue.add_argument("--type", help="with --failed: only those of this type")
    requeue.add_argument(
        "--error", metavar="TEXT", help="with --failed: only those whose error contains this text"
    )

    edit = command("edit", commands.run_edit, "replace the payload of a pending job")
    edit.add_argument("id", metavar="ID", help=AFTER_DASHES)
    edit.add_argument("payload", metavar="PAYLOAD", help="JSON")

    purge = command("purge", commands.run_purge, "remove old finished jobs from the queue")
    purge.add_argument(
        "--older-than",
        type=seconds,
        metavar="DURATION",
        required=True,
        help="only jobs that were due longer ago than this, such as 30d or 12h",
    )
    purge.add_argument("--status", choices=FINISHED, help="only jobs with this status")
    purge.add_argument(
        "--archive", metavar="FILE", help="append the jobs to this TSV file before removing them"
    )
    purge.add_argument(
        "--dry-run", action="store_true", help="print how many would be removed; change nothing"
    )

    unreadable = command(
        "unreadable",
        commands.run_unreadable,
        "print the lines of the file that aren't jobs, with number, reason and beginning",
    )
    unreadable.add_argument(
        "--remove", action="store_true", help="move them to queue.tsv.rejected, and print how many"
    )

    pause = command("pause", commands.run_pause, "stop starting jobs of TYPE, or of all types")
    pause.add_argument("type", metavar="TYPE", nargs="?")

    resume = command("resume", commands.run_resume, "end the pause of TYPE, or every pause")
    resume.add_argument("type", metavar="TYPE", nargs="?")

    schedules = command(
        "schedules",
        commands.run_schedules,
        "print the schedules: name, program, type, expression, time zone, last and next instant",
        more=" Prints lines of fields separated by tabs; an empty field is a dash.",
    )
    schedules.add_argument(
        "--remove",
        metavar="NAME",
        help="forget a schedule; if its program still declares it, the next pass starts it again",
    )

    move = command(
        "move",
        commands.run_move,
        "move all jobs and schedules to another queue, such as one on a server",
        more=(
            " Passes and other programs may keep running. Prints how many jobs were moved. If it "
            "was interrupted, or couldn't move everything, run it again."
        ),
    )
    move.add_argument("--to", metavar="URL", required=True, help="the other queue's path or URL")
    move.add_argument("--finished", action="store_true", help="move finished jobs, too")
    move.add_argument("--history", action="store_true", help="copy the history of attempts, too")

    metrics = command(
        "metrics",
        commands.run_metrics,
        "print metrics for Prometheus, or write them to a file for node_exporter",
    )
    metrics.add_argument(
        "path", metavar="FILE.prom", nargs="?", help="a file whose name ends in .prom"
    )
    metrics.add_argument(
        "--window",
        type=seconds,
        metavar="DURATION",
        default="1h",
        help="how far to look back, such as 15m or 24h (default: 1h)",
    )

    demo = command(
        "demo",
        commands.run_demo,
        "run real jobs through a queue in a fresh directory, and show the file",
        more=" The directory is kept, so that you can look at it.",
    )
    demo.add_argument("--dir", help="an empty or new directory (default: a temporary one)")
    return parser
