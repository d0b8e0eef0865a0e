"""`dbbasic-queue plot`: how many attempts ended, how many jobs waited, and for how long.

All of it comes from the history: an attempt was due at `due_at`, started `seconds` before
`ended_at`, and waited in between. The jobs that are due now, and haven't run yet, are added from
the queue. So the backlog is right as far back as the history goes.

In the terminal, each figure is one row of bars, made of the eighths of a block; the scale is the
largest value, which is printed with it. In a locale without UTF-8, they are made of digits.
"""

from __future__ import annotations

import math
import os
import time

from dbbasic_queue.cli.queues import existing_queue
from dbbasic_queue.cli.report import print_fields
from dbbasic_queue.cli.terminal import Terminal
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.monitoring.durations import duration, instant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from dbbasic_queue.jobqueue import Queue

_BLOCKS = " ▁▂▃▄▅▆▇█"
_DIGITS = " 12345678"
_LABEL_WIDTH = 14
_MOST_BARS = 120
_PIPED = 60
"""how many intervals a pipe gets"""
_FAILED = ("failed", "retried", "died")
_SVG_WIDTH, _SVG_HEIGHT, _SVG_GAP = 720, 120, 64
_TICKS = 4


class Series:
    """One figure over time: a number for each interval.

    `name` is short, `title` says what it is; `unit` is "" for a count, "s" for seconds.
    """

    def __init__(self, name: str, title: str, colour: str, count: int, unit: str = "") -> None:
        self.name = name
        self.title = title
        self.colour = colour
        self.unit = unit
        self.values = [0.0] * count

    def largest(self) -> float:
        """Return the largest value."""
        return max(self.values)

    def text(self, value: float) -> str:
        """Return a value for people."""
        if self.unit == "s":
            return f"{value:.1f} s" if value < 10 else duration(value)
        return f"{value:,.0f}"


class Figures:
    """The figures of a queue over the `window` seconds that end at `now`, in `count` intervals."""

    def __init__(self, queue: Queue, window: float, count: int, job_type: str | None) -> None:
        self.now = queue.now()
        self.window = window
        every = duration(window / count) if window >= count else f"{window / count:.2g} s"
        self.ended = Series("ended", f"attempts that ended, per {every}", "#2a7ae2", count)
        self.failed = Series("failed", f"attempts that failed, per {every}", "#c0392b", count)
        self.backlog = Series("waiting", "due jobs that waited", "#7f8c8d", count)
        self.waited = Series("longest wait", "longest wait of a job", "#d68910", count, "s")
        self.begins_at = self.now - window
        self._step = window / count
        self._count = count
        self._waits: list[tuple[float, int]] = []
        """when a job began or ceased to wait, and 1 or -1"""
        for attempt in queue.store.history(since=self.begins_at):
            if attempt.ended_at >= self.begins_at and job_type in (None, unescape(attempt.type)):
                self._add(attempt.due_at, attempt.ended_at, attempt.seconds, attempt.outcome)
        paused = queue.paused()
        for row in queue.store.rows(statuses=(PENDING,), job_type=job_type):
            state = row.state
            if state.status != PENDING or job_type not in (None, row.type):
                continue
            if state.run_at <= self.now and paused.isdisjoint((row.type, ALL)):
                self._waits.append((max(state.run_at, state.created_at), 1))
        self._sum_up_waits()

    def series(self) -> list[Series]:
        """Return the figures."""
        return [self.ended, self.failed, self.backlog, self.waited]

    def _place(self, at: float) -> int:
        return min(max(int((at - self.begins_at) / self._step), 0), self._count - 1)

    def _add(self, due_at: float, ended_at: float, seconds: float | None, outcome: str) -> None:
        place = self._place(ended_at)
        self.ended.values[place] += 1
        if outcome in _FAILED:
            self.failed.values[place] += 1
        if seconds is not None:
            started_at = ended_at - seconds
            waited = max(started_at - due_at, 0.0)
            self.waited.values[place] = max(self.waited.values[place], waited)
            self._waits.append((due_at, 1))
            self._waits.append((max(started_at, due_at), -1))

    def _sum_up_waits(self) -> None:
        """Set, for each interval, how many jobs waited at its end."""
        self._waits.sort()
        waiting, at = 0, 0
        for place in range(self._count):
            end = self.begins_at + (place + 1) * self._step
            while at < len(self._waits) and self._waits[at][0] < end:
                waiting += self._waits[at][1]
                at += 1
            self.backlog.values[place] = max(waiting, 0)


def run(arguments: Namespace) -> int:
    """Print the plot, or write it; return the exit code."""
    terminal = Terminal()
    bars = max(min(terminal.width - _LABEL_WIDTH - 16, _MOST_BARS), 10)
    if arguments.window <= 0:
        arguments.wrong_usage("invalid --window: must be more than 0s")
    with existing_queue(arguments) as queue:
        if arguments.out is None:
            if terminal.is_screen:
                figures = Figures(queue, arguments.window, bars, arguments.type)
                for line in lines(figures, terminal):
                    print(line)
            else:
                print_intervals(Figures(queue, arguments.window, _PIPED, arguments.type))
            return 0
        if not arguments.out.endswith(".svg"):
            arguments.wrong_usage(f"invalid --out {arguments.out!r}: must end in .svg")
        figures = Figures(queue, arguments.window, _MOST_BARS, arguments.type)
        of_type = "" if arguments.type is None else f", only {arguments.type}"
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(figures.now))
        title = f"{queue.path}{of_type}, {duration(arguments.window)} until {until}"
    write(arguments.out, svg(figures, title))
    print(f"written\t{printable(arguments.out)}")
    return 0


def lines(figures: Figures, terminal: Terminal) -> Iterator[str]:
    """Yield the lines for a terminal."""
    marks = _BLOCKS if terminal.dots == "…" else _DIGITS
    styles = {"failed": "red", "ended": "blue"}
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


def svg(figures: Figures, title: str) -> str:
    """Return the plot as an SVG image: one chart below the other."""
    from xml.sax.saxutils import escape

    charts = figures.series()
    height = (_SVG_HEIGHT + _SVG_GAP) * len(charts) + _SVG_GAP
    width = _SVG_WIDTH + 2 * _SVG_GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_SVG_GAP}" y="24" font-size="14">{escape(printable(title))}</text>',
    ]
    for number, series in enumerate(charts):
        top = _SVG_GAP + number * (_SVG_HEIGHT + _SVG_GAP)
        parts += _svg_chart(figures, series, top)
    return "\n".join([*parts, "</svg>", ""])


def _svg_chart(figures: Figures, series: Series, top: int) -> Iterator[str]:
    """Yield the elements of one chart: its title, a line at its largest value, bars, instants."""
    from xml.sax.saxutils import escape

    largest = series.largest()
    left, right, bottom = _SVG_GAP, _SVG_GAP + _SVG_WIDTH, top + _SVG_HEIGHT
    yield f'<text x="{left}" y="{top - 10}" font-weight="bold">{escape(series.title)}</text>'
    for y in (top, bottom):
        yield f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="#bbb"/>'
    yield f'<text x="{left - 6}" y="{bottom + 4}" fill="#555" text-anchor="end">0</text>'
    yield (
        f'<text x="{right}" y="{top - 10}" fill="#555" text-anchor="end">'
        f"at most {escape(series.text(largest))}</text>"
    )
    bar = _SVG_WIDTH / len(series.values)
    for place, value in enumerate(series.values):
        if value > 0:
            size = max(value / largest * _SVG_HEIGHT, 1)
            yield (
                f'<rect x="{left + place * bar:.2f}" y="{bottom - size:.2f}" '
                f'width="{bar * 0.9:.2f}" height="{size:.2f}" fill="{series.colour}"/>'
            )
    form = "%H:%M:%S" if figures.window < 600 else "%H:%M"
    form = form if figures.window <= 86400 else "%Y-%m-%d %H:%M"
    for tick in range(_TICKS + 1):
        at = figures.begins_at + figures.window * tick / _TICKS
        x = left + _SVG_WIDTH * tick / _TICKS
        label = time.strftime(form, time.localtime(at))
        yield (
            f'<line x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 4}" stroke="#888"/>'
            f'<text x="{x}" y="{bottom + 18}" fill="#555" text-anchor="middle">{label}</text>'
        )


def write(path: str, content: str) -> None:
    """Write a file; the old one is replaced atomically. Raises OSError."""
    temporary = f"{path}.{os.urandom(8).hex()}"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
