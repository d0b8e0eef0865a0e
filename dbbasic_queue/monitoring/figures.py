"""How many attempts ended, how many jobs waited, and for how long: numbers and charts over time.

All of it comes from the history: an attempt was due at `due_at`, started `seconds` before
`ended_at`, and waited in between. The jobs that are due now, and haven't run yet, are added from
the queue. So the backlog is right as far back as the history goes.
"""

from __future__ import annotations

import time

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.monitoring.durations import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbbasic_queue.store.protocol import Store

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

    def __init__(
        self, store: Store, now: float, window: float, count: int, job_type: str | None = None
    ) -> None:
        self.now = now
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
        for attempt in store.history(since=self.begins_at):
            if attempt.ended_at >= self.begins_at and job_type in (None, unescape(attempt.type)):
                self._add(attempt.due_at, attempt.ended_at, attempt.seconds, attempt.outcome)
        paused = store.paused()
        for row in store.rows(statuses=(PENDING,), job_type=job_type):
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
