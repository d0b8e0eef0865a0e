"""What the commands say about themselves: their name, their exit codes, their errors."""

from __future__ import annotations

import os
import sys

from dbbasic_queue.model.escaping import printable

PROGRAM = "dbbasic-queue"

DONE, NOT_DONE, WRONG_USAGE, JOB_FAILED, JOB_CANCELLED, TIMED_OUT = range(6)
"""the exit codes"""
INTERRUPTED = 130
"""the exit code after Ctrl-C, as that of a shell"""


def with_file(command: str, file: str | None) -> str:
    """Return a command of this program with the --file of this one, so that it can be pasted.

    >>> with_file("dbbasic-queue resume mail", "my jobs.tsv")
    "dbbasic-queue --file 'my jobs.tsv' resume mail"
    """
    if file is None or not command.startswith(f"{PROGRAM} "):
        return command
    from shlex import quote

    return f"{PROGRAM} --file {quote(printable(file))}{command.removeprefix(PROGRAM)}"


def reason(error: Exception) -> str:
    """Return what an error says, without the number of one of the system: first the file.

    >>> reason(FileNotFoundError(2, "No such file or directory", "jobs.tsv"))
    'jobs.tsv: No such file or directory'
    """
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    return f"{os.fsdecode(error.filename) or 'an empty name'}: {error.strerror}"


def complain(why: str) -> int:
    """Print on stderr why something was not done; return the exit code 1."""
    print(for_stderr(f"{PROGRAM}: {printable(why)}"), file=sys.stderr)
    return NOT_DONE


def tell(text: str) -> None:
    """Print a line for people on stderr, if that is a terminal; a log doesn't need it."""
    if sys.stderr.isatty():
        print(for_stderr(text), file=sys.stderr, flush=True)


def for_stderr(text: str) -> str:
    """Return a line for stderr: if that is a terminal, it is broken between words to fit."""
    if not sys.stderr.isatty():
        return text
    from dbbasic_queue.cli.terminal import Terminal, wrapped

    return "\n".join(wrapped(Terminal(sys.stderr), text))
