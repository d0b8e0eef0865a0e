"""`dbbasic-queue plot`: how many attempts ended, how many jobs waited, and for how long.

In the terminal, each figure is one row of bars, made of the eighths of a block; the scale is the
largest value, which is printed with it. In a locale without UTF-8, they are made of digits.
"""

from __future__ import annotations

import math
import os
import time

from dbbasic_queue.cli.messages import print_done
from dbbasic_queue.cli.queues import existing_queue
from dbbasic_queue.cli.report import print_fields
from dbbasic_queue.cli.terminal import Terminal
from dbbasic_queue.monitoring.durations import duration, instant
from dbbasic_queue.monitoring.figures import Figures, svg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

_BLOCKS = " ▁▂▃▄▅▆▇█"
_DIGITS = " 12345678"
_LABEL_WIDTH = 14
_MOST_BARS = 120
_PIPED = 60
"""how many intervals a pipe gets"""


def run(arguments: Namespace) -> int:
    """Print the plot, or write it; return the exit code."""
    terminal = Terminal()
    bars = max(min(terminal.width - _LABEL_WIDTH - 16, _MOST_BARS), 10)
    if arguments.window <= 0:
        arguments.wrong_usage("invalid --window: must be more than 0s")
    with existing_queue(arguments) as queue:
        if arguments.out is None:
            if terminal.is_screen:
                figures = Figures(queue.store, queue.now(), arguments.window, bars, arguments.type)
                for line in lines(figures, terminal):
                    print(line)
            else:
                print_intervals(
                    Figures(queue.store, queue.now(), arguments.window, _PIPED, arguments.type)
                )
            return 0
        if not arguments.out.endswith(".svg"):
            arguments.wrong_usage(f"invalid --out {arguments.out!r}: must end in .svg")
        figures = Figures(queue.store, queue.now(), arguments.window, _MOST_BARS, arguments.type)
        of_type = "" if arguments.type is None else f", only {arguments.type}"
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(figures.now))
        title = f"{queue.path}{of_type}, {duration(arguments.window)} until {until}"
    write(arguments.out, svg(figures, title))
    print_done("written", arguments.out)
    return 0


def lines(figures: Figures, terminal: Terminal) -> Iterator[str]:
    """Yield the lines for a terminal."""
    marks = _BLOCKS if terminal.dots == "…" else _DIGITS
    styles = {"failed": "red"}
    for series in figures.series():
        largest = series.largest()
        bars = "".join(_bar(value, largest, marks) for value in series.values)
        shown = terminal.style(bars, styles.get(series.name))
        yield f"{series.name:<{_LABEL_WIDTH}}{shown}  max {series.text(largest)}"
    left, right = f"{duration(figures.window)} ago", "now"
    gap = " " * max(len(figures.ended.values) - len(left) - len(right), 1)
    yield terminal.style(f"{'':<{_LABEL_WIDTH}}{left}{gap}{right}", "dim")


def print_intervals(figures: Figures) -> None:
    """Print a line for each interval: its start, and the four figures."""
    step = figures.window / len(figures.ended.values)
    for place, values in enumerate(zip(*(s.values for s in figures.series()), strict=True)):
        *counts, waited = values
        begins_at = instant(figures.begins_at + place * step)
        print_fields(begins_at, *(int(count) for count in counts), f"{waited:.3f}")


def _bar(value: float, largest: float, marks: str) -> str:
    """Return the mark for a value: the lowest bar for anything above 0."""
    if value <= 0:
        return marks[0]
    return marks[min(max(math.ceil(value / largest * 8), 1), 8)]


def write(path: str, content: str) -> None:
    """Write a file; the old one is replaced atomically. Raises OSError, with the file's name."""
    temporary = f"{path}.{os.urandom(8).hex()}"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from None
        raise
