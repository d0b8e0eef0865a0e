"""What a person sees: colours, the width of the screen, aligned columns, questions.

Whether a command writes for a person depends on stdout alone: if that is a terminal, text is
aligned, cut to its width, and coloured. Otherwise it is for a program. Colour only adds to what the
words say; `NO_COLOR` (https://no-color.org) and `TERM=dumb` turn it off.
"""

from __future__ import annotations

import os
import sys
from itertools import chain, islice

from dbbasic_queue.model.escaping import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TextIO

COLOURS_OF_256 = {"red": 131, "magenta": 98}
"""Their contrast is 4.5:1 on white and on black: of 256 colours, only six have that. They are dull,
so bold makes them stand out."""
_STYLES = {"bold": "1", "dim": "2", "red": "1;31", "magenta": "1;35"}
"""With fewer colours, such as on a Linux console, red is too dark on black unless it is bold."""
_STYLES_OF_256 = _STYLES | {name: f"1;38;5;{n}" for name, n in COLOURS_OF_256.items()}
_MEASURED_ROWS = 1000
"""The widths of columns come from that many rows: the rest of a long list isn't kept waiting."""
_GAP = "  "
_LEAST_WIDTH = 12
"""how narrow a column may become before others are left out"""
_MUCH = 24
"""Columns that are wider are cut before others are left out: the beginning of an id is enough."""
_WIDE = 120
_FEW = 8
"""how narrow a column may become on a very small screen, where the last ones are left out"""

STATUS_STYLES = {
    "failed": "red",
    "processing": "bold",
    "cancelled": "dim",
    "running": "bold",
    "stalled": "red",
    "moved": "magenta",
    "retried": "magenta",
    "died": "red",
    "stopped": "magenta",
}
"""status, outcome or verdict -> style, if it has one"""


class Terminal:
    """The screen that a stream writes to, if it is one.

    `is_screen`  whether a person reads it
    `width`      how many columns it has
    `colours`    whether styles are shown
    `dots`       the mark after text that was cut
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = sys.stdout if stream is None else stream
        self.is_screen = stream.isatty()
        self.width = _width(stream) if self.is_screen else 80
        dull = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
        self.colours = self.is_screen and not dull
        has_256 = "256color" in os.environ.get("TERM", "") or bool(os.environ.get("COLORTERM"))
        self._styles = _STYLES_OF_256 if has_256 else _STYLES
        self.dots = "…" if _is_utf8() else "~"

    @property
    def bar_width(self) -> int:
        """How many columns a progress bar in a table gets."""
        return 20 if self.width >= _WIDE else 8

    def style(self, text: str, name: str | None) -> str:
        """Return text in a style: bold, dim, red or magenta."""
        if not self.colours or not name:
            return text
        return f"\x1b[{self._styles[name]}m{text}\x1b[0m"

    def status(self, word: str) -> str:
        """Return a status, outcome or verdict in its style."""
        return self.style(word, STATUS_STYLES.get(word))

    def fit(self, text: str, width: int) -> str:
        """Return text cut to a width, with dots at its end if something was cut."""
        if text_width(text) <= width:
            return text
        return text[: _cut(text, width - 1)] + self.dots if width > 0 else ""


def _width(stream: TextIO) -> int:
    """Return the width of the screen: that of $COLUMNS, if it is set, as for argparse."""
    from shutil import get_terminal_size

    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return get_terminal_size((80, 24)).columns


def _is_utf8() -> bool:
    """Return whether the locale says that the terminal shows UTF-8."""
    name = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "C"
    return "utf8" in name.lower().replace("-", "")


def text_width(text: str) -> int:
    """Return how many columns text takes: wide characters two, combining ones none.

    >>> text_width("abc"), text_width("渡辺"), text_width("e\\u0301")
    (3, 4, 1)
    """
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(c) or c == "\u200d" else 2 if east_asian_width(c) in "WF" else 1
        for c in text
    )


def _cut(text: str, width: int) -> int:
    """Return how many characters of text fit into a width."""
    used = 0
    for number, character in enumerate(text):
        used += text_width(character)
        if used > width:
            return number
    return len(text)


class Column:
    """A column of a table on the screen.

    `text` returns a row's text. `style` returns the style of that text. `right` aligns it to the
    right. A `flexible` column takes the rest of the line, and is cut. Optional columns are left
    out, the last one first, if the others would get too little room. Others are cut if they must.
    """

    def __init__(
        self,
        title: str,
        text: Callable[[Any], str],
        *,
        style: Callable[[Any], str | None] = lambda row: None,
        right: bool = False,
        flexible: bool = False,
        optional: bool = False,
    ) -> None:
        self.title = title
        self.text = text
        self.style = style
        self.right = right
        self.flexible = flexible
        self.optional = optional


def table(
    terminal: Terminal, columns: list[Column], rows: Iterable[Any], *, indent: str = ""
) -> Iterator[str]:
    """Yield the lines of a table: a line of titles, and one for each row. Nothing without rows."""
    rows = iter(rows)
    first = list(islice(rows, _MEASURED_ROWS))
    if not first:
        return
    columns, widths = _layout(terminal.width - len(indent), columns, first)
    titles = [
        _aligned(terminal, column.title, width, column)
        for column, width in zip(columns, widths, strict=True)
    ]
    yield terminal.style((indent + _GAP.join(titles)).rstrip(), "dim")
    for row in chain(first, rows):
        cells = []
        for column, width in zip(columns, widths, strict=True):
            text = _aligned(terminal, printable(column.text(row)), width, column)
            is_last = column is columns[-1]
            cells.append(terminal.style(text.rstrip() if is_last else text, column.style(row)))
        yield indent + _GAP.join(cells).rstrip()


def _aligned(terminal: Terminal, text: str, width: int, column: Column) -> str:
    text = terminal.fit(text, width)
    padding = " " * (width - text_width(text))
    return padding + text if column.right else text + padding


def _layout(width: int, columns: list[Column], rows: list[Any]) -> tuple[list[Column], list[int]]:
    """Return the columns that fit, and the width of each."""
    wanted = {
        id(column): max(
            text_width(column.title), *(text_width(printable(column.text(row))) for row in rows)
        )
        for column in columns
    }
    columns = [c for c in columns if not c.optional or any(c.text(row) for row in rows)]
    widths = _shares(width, columns, wanted, _MUCH)
    while sum(widths) > _room(width, columns) and any(c.optional for c in columns):
        columns.remove([c for c in columns if c.optional][-1])
        widths = _shares(width, columns, wanted, _MUCH)
    if sum(widths) > _room(width, columns):
        widths = _shares(width, columns, wanted, _LEAST_WIDTH)
    while sum(widths) > _room(width, columns) and len(columns) > 1:
        columns = columns[:-1]
        widths = _shares(width, columns, wanted, _FEW)
    return columns, widths


def _room(width: int, columns: list[Column]) -> int:
    """Return how many characters the columns can have together."""
    return width - len(_GAP) * (len(columns) - 1)


def _shares(width: int, columns: list[Column], wanted: dict[int, int], least: int) -> list[int]:
    """Return the width of each column; flexible ones, and those wider than `least`, are cut.

    The sum is more than there is room for if that isn't enough.
    """
    room = _room(width, columns)
    quarter = max(room // 4, _FEW)
    widths = [wanted[id(column)] for column in columns]
    over = sum(widths) - room
    for is_flexible, lowest in (
        (True, 2 * quarter),  # one long id must not take the room of every error
        (False, max(least, _MUCH)),
        (True, quarter),
        (False, least),
    ):
        while over > 0:
            places = [
                place
                for place, column in enumerate(columns)
                if column.flexible == is_flexible
                and widths[place] > lowest
                and (is_flexible or not column.right)
            ]
            if not places:
                break
            widths[max(places, key=widths.__getitem__)] -= 1
            over -= 1
    return widths


def wrapped(terminal: Terminal, text: str, indent: str = "") -> Iterator[str]:
    """Yield text in lines that fit the screen, all but the first one with an indent."""
    room = max(terminal.width, 20)
    line = " " * (len(text) - len(text.lstrip(" ")))
    for word in text.lstrip(" ").split(" "):
        longer = f"{line} {word}" if line.strip() else line + word
        if text_width(longer) > room and line.strip():
            yield line
            longer = indent + word
        while text_width(longer) > room:
            cut = _cut(longer, room)
            yield longer[:cut]
            longer = indent + longer[cut:]
        line = longer
    yield line


def ask(question: str) -> bool:
    """Ask the person at the terminal; return whether the answer is yes."""
    *lines, last = wrapped(Terminal(), f"{question} [y/N]")
    for line in lines:
        print(line)
    try:
        answer = input(f"{last} ")
    except (EOFError, KeyboardInterrupt) as end:
        print()  # what is printed next, such as the shell's prompt, gets a line of its own
        if isinstance(end, KeyboardInterrupt):
            raise
        answer = ""
    return answer.strip().lower() in ("y", "yes")


def can_ask() -> bool:
    """Return whether a person could answer a question."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Line:
    """A line on stderr that changes, and is gone at the end; none if that isn't a terminal."""

    def __init__(self, *, is_wanted: bool = True) -> None:
        self.is_shown = is_wanted and sys.stderr.isatty()
        self._is_dumb = os.environ.get("TERM", "dumb") == "dumb"  # it can't erase a line
        self._longest = 0

    def show(self, text: str) -> None:
        """Replace what the line shows."""
        if not self.is_shown:
            return
        terminal = Terminal(sys.stderr)
        text = terminal.fit(text, terminal.width - 1)
        width = text_width(text)
        self._longest = max(self._longest, width)
        rest = " " * (self._longest - width) if self._is_dumb else "\x1b[K"
        print(f"\r{text}{rest}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Remove the line."""
        if self._longest:
            self.show("")
            print("\r", end="", file=sys.stderr, flush=True)
            self._longest = 0


class Counter:
    """A number on stderr that shows how far long work is; nothing if that isn't a terminal."""

    def __init__(self, what: str, total: int | None = None, *, is_wanted: bool = True) -> None:
        self._what = what
        self._total = total
        self._line = Line(is_wanted=is_wanted)

    def show(self, done: int, total: int | None = None) -> None:
        """Show how many were done so far."""
        total = self._total if total is None else total
        of = "" if total is None else f" of {total:,}"
        self._line.show(f"{self._what} {done:,}{of}")

    def end(self) -> None:
        """Remove the number."""
        self._line.end()
