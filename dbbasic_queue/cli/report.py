"""Prints the rows of a command: aligned on a terminal, TSV in a pipe, JSON lines with --json."""

from __future__ import annotations

import json

from dbbasic_queue.cli.terminal import Column, Terminal, table, wrapped
from dbbasic_queue.model.escaping import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any


def print_rows(
    arguments: Namespace,
    rows: Iterable[Any],
    *,
    screen: list[Column],
    fields: Callable[[Any], Sequence[object]],
    as_json: Callable[[Any], object],
    empty: str,
) -> None:
    """Print rows in the form that fits the reader.

    `screen` are the columns for a terminal; `empty` is printed there if there are no rows. `fields`
    returns the fields of a line in a pipe, with None for a dash; they are made printable.
    `as_json` returns what --json prints.
    """
    terminal = Terminal()
    if arguments.json:
        for row in rows:
            print_json(as_json(row))
    elif terminal.is_screen:
        count = 0
        for line in table(terminal, screen, rows):
            print(line)
            count += 1
        if not count:
            print(*wrapped(terminal, empty), sep="\n")
    else:
        for row in rows:
            print_fields(*fields(row))


def print_fields(*fields: object) -> None:
    """Print one line of fields for a program. None is a dash."""
    print(*("-" if field is None else printable(str(field)) for field in fields), sep="\t")


def print_json(value: object) -> None:
    """Print a value as JSON on one line; all of it is ASCII, so it can't control a terminal."""
    print(json.dumps(value))
