"""How many attempts ended, how many jobs waited, and for how long: numbers and charts over time.

All of it comes from the history: an attempt was due at `due_at`, started `seconds` before
`ended_at`, and waited in between. The jobs that are due now, and haven't run yet, are added from
the queue. So the backlog is right as far back as the history goes.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.monitoring.durations import duration
from dbbasic_queue.store.attempts import UNKNOWN, Columns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dbbasic_queue.store.protocol import Store

_SVG_WIDTH, _SVG_HEIGHT, _SVG_GAP = 720, 120, 64
_TICKS = 4
_BAR_SHARE = 0.85
"""how much of its interval a bar fills"""
_LOWEST_BAR = 2.0


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

    def bars(
        self, width: float, height: float, largest: float
    ) -> Iterator[tuple[float, float, float, float]]:
        """Yield x, y, width and height of a bar for each value above 0, in an area of this size.

        `largest` is the value whose bar is as high as the area. x and y are those of the bar's
        upper left corner.
        """
        step = width / len(self.values)
        for place, value in enumerate(self.values):
            if value > 0:
                size = max(value / largest * height, _LOWEST_BAR)
                yield place * step, height - size, step * _BAR_SHARE, size

    def text(self, value: float) -> str:
        """Return a value for people."""
        if self.unit == "s":
            return f"{value:.1f} s" if 0 < value < 10 else duration(value)
        return f"{value:,.0f}"


class Figures:
    """The figures of a queue over the `window` seconds that end at `now`, in `count` intervals."""

    def __init__(
        self,
        store: Store,
        now: float,
        window: float,
        count: int,
        job_type: str | None = None,
        source: Source | None = None,
    ) -> None:
        """Without `source`, read the history and the pending jobs."""
        self.now = now
        self.window = window
        every = duration(window / count) if window >= count else f"{window / count:.2g} s"
        self.ended = Series("ended", f"attempts that ended, per {every}", "#2a7ae2", count)
        self.failed = Series("failed", f"attempts that failed, per {every}", "#c0392b", count)
        self.backlog = Series("waiting", "due jobs that waited", "#7f8c8d", count)
        self.waited = Series("longest wait", "longest wait of a job", "#d68910", count, "s")
        self.begins_at = self.now - window
        step = window / count
        ends = [self.begins_at + (place + 1) * step for place in range(count)]
        source = source or Source(store)
        attempts = source.attempts(self.begins_at, job_type).timeline()
        waiting = source.due_before(now, ends, job_type)
        first = attempts.ended_before(self.begins_at)
        failed = attempts.failed_before(self.begins_at)
        for place, end in enumerate(ends):
            is_last = place == count - 1  # whatever ended after `now`, by another clock, is in it
            after = attempts.ended_before(math.inf if is_last else end)
            failed_after = attempts.failed_before(math.inf if is_last else end)
            self.ended.values[place] = after - first
            self.failed.values[place] = failed_after - failed
            self.waited.values[place] = attempts.longest_wait(first, after)
            self.backlog.values[place] = max(attempts.waiting_at(end) + waiting[place], 0)
            first, failed = after, failed_after

    def series(self) -> list[Series]:
        """Return the figures."""
        return [self.ended, self.failed, self.backlog, self.waited]


class Source:
    """Where the figures come from: read once from the history and the queue."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def attempts(self, since: float, job_type: str | None) -> Columns:
        """Return the attempts of a type, or of all, that ended at `since` or later.

        Others may be among them, if their jobs waited no longer than until `since`.
        """
        return Columns(
            (
                attempt.ended_at,
                attempt.due_at,
                UNKNOWN if attempt.seconds is None else attempt.seconds,
                attempt.outcome,
            )
            for attempt in self._store.history(since=since)
            if attempt.ended_at >= since and job_type in (None, unescape(attempt.type))
        )

    def due_before(self, now: float, ends: Sequence[float], job_type: str | None) -> list[int]:
        """Return, for each instant, how many of the jobs that are due now were due before it.

        Jobs of paused types aren't counted.
        """
        paused = self._store.paused()
        found = []
        for row in self._store.rows(statuses=(PENDING,), job_type=job_type):
            state = row.state
            if state.status != PENDING or job_type not in (None, row.type):
                continue
            if state.run_at <= now and paused.isdisjoint((row.type, ALL)):
                found.append(max(state.run_at, state.created_at))
        found.sort()
        return [bisect_left(found, end) for end in ends]


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
    for bar_x, bar_y, width, height in series.bars(_SVG_WIDTH, _SVG_HEIGHT, largest):
        yield (
            f'<rect x="{left + bar_x:.2f}" y="{top + bar_y:.2f}" width="{width:.2f}" '
            f'height="{height:.2f}" fill="{series.colour}"/>'
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
