"""The command line: arguments in, the command's exit code out.

Each group of commands is a module that adds its parsers, in `add_commands`, and has a function for
each command. What only one command needs is imported by that function, so that the others start
faster. `messages` has the exit codes.
"""

from __future__ import annotations

import argparse
import os
import sys

from dbbasic_queue import __version__
from dbbasic_queue.cli import (
    adding,
    changing,
    checking,
    looking,
    records,
    removing,
    running,
    setup,
    transfer,
)
from dbbasic_queue.cli.arguments import Commands, Parser, program_parser
from dbbasic_queue.cli.messages import INTERRUPTED, NOT_DONE, complain, reason
from dbbasic_queue.errors import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbbasic_queue.cli.crontab import FindWorker

_GROUPS = (looking, records, adding, transfer, changing, removing, running, checking, setup)


def main(argv: Sequence[str] | None = None, *, find_worker: FindWorker | None = None) -> int:
    """Run the command that `argv` (by default the process's arguments) names; return its exit code.

    `find_worker` is for a command line inside another program's: what cron has to start there.

    Raises SystemExit with code 2 after wrong usage, and with 0 after --help and --version.
    """
    _open_closed_streams()
    arguments = argument_parser().parse_args(argv, argparse.Namespace(find_worker=find_worker))
    if arguments.json and not arguments.has_json:
        arguments.wrong_usage(f"{arguments.command} prints no JSON: leave out --json")
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
        return NOT_DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (QueueError, OSError) as error:
        return complain(reason(error))
    return code


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that is closed (`<&-`, `>&-`).

    Python has None for such a stream, and a file opened later would get its number: then what is
    printed would be written to that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def argument_parser() -> Parser:
    """Return the parser. Parsing sets `run` to the function that runs the command.

    `run` takes the parsed arguments, and returns the exit code. Without a command, it is `status`.
    """
    parser = program_parser(__version__)
    parser.set_defaults(run=looking.run_status, wrong_usage=parser.error, has_json=True)
    commands = Commands(parser)
    for group in _GROUPS:
        group.add_commands(commands)
    return parser
