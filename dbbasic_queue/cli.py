"""The command line: arguments in, calls out.

Exit codes: 0 done, 1 not done (one line on stderr says why), 2 wrong usage. What only one command
needs is imported by that command: a shell prompt or a cron line should not wait for the others.
"""

from __future__ import annotations

import os
import sys

from dbbasic_queue import __version__
from dbbasic_queue.errors import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

PROGRAM = "dbbasic-queue"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (by default the process's arguments) names; return its exit code.

    Raises SystemExit with code 2 after wrong usage, and with 0 after --help and --version.
    """
    arguments = argument_parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Without this the interpreter would flush
        # once more at its exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (QueueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return code


def argument_parser() -> ArgumentParser:
    """Return the parser; each command sets `run`, which takes the arguments and returns a code."""
    import argparse

    parser = argparse.ArgumentParser(prog=PROGRAM, description="A job queue that is a text file.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="put real jobs through a queue in a fresh directory, and show the file",
        description="Put real jobs through a queue in a fresh directory, and show the file. "
        "The directory is left for a look.",
    )
    demo.add_argument("--dir", help="an empty or new directory (default: a temporary one)")
    demo.set_defaults(run=run_demo)
    return parser


def run_demo(arguments: Namespace) -> int:
    from dbbasic_queue import demo

    return demo.run(arguments.dir)
