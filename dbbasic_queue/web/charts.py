"""Charts as SVG inside the page. Classes give the colours, so that they suit light and dark."""

from __future__ import annotations

import time

from dbbasic_queue.monitoring.durations import duration
from dbbasic_queue.web.html import tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.monitoring.figures import Figures, Series
    from dbbasic_queue.web.html import Markup

_WIDTH, _HEIGHT, _FOOT = 600, 96, 18
_GAP_SHARE = 0.15


def throughput(figures: Figures) -> Markup:
    """Return how many attempts ended, and how many of them failed."""
    ended, failed = sum(figures.ended.values), sum(figures.failed.values)
    text = (
        f"{ended:,.0f} ended in the last {duration(figures.window)}, {failed:,.0f} of them failed"
    )
    return _chart(figures, [(figures.ended, "good"), (figures.failed, "bad")], "Attempts", text)


def waiting(figures: Figures) -> Markup:
    """Return the longest time that a job had waited."""
    longest = figures.waited.largest()
    window = duration(figures.window)
    text = f"the longest in the last {window} was {figures.waited.text(longest)}"
    return _chart(figures, [(figures.waited, "wait")], "Longest wait", text)


def _chart(figures: Figures, layers: list[tuple[Series, str]], title: str, text: str) -> Markup:
    largest = max(layers[0][0].largest(), 0)
    most = f"most: {layers[0][0].text(largest)}" if largest else "none"
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), " ", tag("span", most, class_="most")),
        tag(
            "svg",
            tag("title", f"{title}: {text}"),
            [_bars(series, largest, kind) for series, kind in layers],
            tag("line", x1=0, y1=_HEIGHT, x2=_WIDTH, y2=_HEIGHT, class_="axis"),
            _instants(figures),
            viewBox=f"0 0 {_WIDTH} {_HEIGHT + _FOOT}",
            role="img",
            aria_label=f"{title}: {text}",
            class_="chart",
        ),
    )


def _bars(series: Series, largest: float, kind: str) -> Markup:
    step = _WIDTH / len(series.values)
    bars = []
    for place, value in enumerate(series.values):
        if value > 0:
            size = max(value / largest * (_HEIGHT - 4), 2.0)
            bars.append(
                tag(
                    "rect",
                    x=f"{place * step:.1f}",
                    y=f"{_HEIGHT - size:.1f}",
                    width=f"{step * (1 - _GAP_SHARE):.1f}",
                    height=f"{size:.1f}",
                )
            )
    return tag("g", bars, class_=kind)


def _instants(figures: Figures) -> list[Markup]:
    """Return the clock's time at the start, the middle and the end."""
    places = ((0, "start"), (0.5, "middle"), (1, "end"))
    return [
        tag(
            "text",
            time.strftime("%H:%M", time.localtime(figures.begins_at + share * figures.window)),
            x=f"{_WIDTH * share:.0f}",
            y=_HEIGHT + _FOOT - 4,
            text_anchor=anchor,
        )
        for share, anchor in places
    ]
