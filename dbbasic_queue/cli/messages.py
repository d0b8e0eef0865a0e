"""What the commands say about themselves: their name, their exit codes, their errors."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

from dbbasic_queue.model.escaping import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "dbbasic-queue"
_DONE_WIDTH = len("cancelled")
"""A command may do different things to several jobs: `stopped`, `cancelled`, `requested`."""
VERBS: set[str] = set()
"""the names of the commands, once the parser is made"""
_called_as = PROGRAM

DONE, NOT_DONE, WRONG_USAGE, JOB_FAILED, JOB_CANCELLED, TIMED_OUT = range(6)
"""the exit codes"""
INTERRUPTED = 130
"""the exit code after Ctrl-C, as that of a shell"""


@contextmanager
def called_as(name: str) -> Iterator[None]:
    """Name another program in every text, such as `flask queue`, which has the same commands.

    It must be what a person types in a shell. Not for two threads at once.
    """
    global _called_as
    before, _called_as = _called_as, name
    try:
        yield
    finally:
        _called_as = before


def program() -> str:
    """Return what a person types before a command, such as `dbbasic-queue` or `flask queue`."""
    return _called_as


def as_called(text: str) -> str:
    """Return text with each of our commands in it as a person types it here.

    >>> VERBS.add("resume")
    >>> with called_as("flask queue"):
    ...     as_called("/srv/dbbasic-queue resume/q.tsv is paused: run dbbasic-queue resume")
    '/srv/dbbasic-queue resume/q.tsv is paused: run flask queue resume'
    """
    if _called_as == PROGRAM:
        return text
    import re

    verbs = "|".join(sorted(VERBS))
    pattern = rf"(?<![\w./-]){PROGRAM} (?=({verbs})(?![\w-]))"
    return re.sub(pattern, lambda _: f"{_called_as} ", text)


def with_file(command: str, file: str | None) -> str:
    """Return a command as it can be pasted: of the program that was called, with this --file.

    >>> with_file("dbbasic-queue resume mail", "my jobs.tsv")
    "dbbasic-queue --file 'my jobs.tsv' resume mail"
    """
    if not command.startswith(f"{PROGRAM} "):
        return as_called(command)
    rest = command.removeprefix(PROGRAM)
    if file is None:
        return program() + rest
    from shlex import quote

    return f"{program()} --file {quote(printable(file))}{rest}"


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
    print(for_stderr(f"{program()}: {printable(as_called(why))}"), file=sys.stderr)
    return NOT_DONE


def print_done(done: str, *fields: object) -> None:
    """Print what was done, and to what: fields separated by tabs or, on a terminal, by spaces."""
    texts = [printable(str(field)) for field in fields]
    if sys.stdout.isatty():
        print(f"{done:{_DONE_WIDTH}}", *texts, sep="  ")
    else:
        print(done, *texts, sep="\t")


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
