"""Charts as SVG inside the page. Classes give the colours, so that they suit light and dark.

A chart is as wide as its place, so its texts are outside the SVG: they would be stretched.
"""

from __future__ import annotations

import time

from dbbasic_queue.monitoring.durations import duration
from dbbasic_queue.monitoring.status import DAY_SECONDS
from dbbasic_queue.web.html import tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.monitoring.figures import Figures, Series
    from dbbasic_queue.web.html import Markup

_WIDTH, _HEIGHT = 600, 96


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
            [tag("g", _bars(series, largest), class_=kind) for series, kind in layers],
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            preserveAspectRatio="none",
            role="img",
            aria_label=f"{title}: {text}",
            class_="chart",
        ),
        tag("p", [tag("span", instant) for instant in _instants(figures)], class_="instants"),
    )


def _bars(series: Series, largest: float) -> list[Markup]:
    return [
        tag("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=f"{height:.1f}")
        for x, y, width, height in series.bars(_WIDTH, _HEIGHT, largest)
    ]


def _instants(figures: Figures) -> list[str]:
    """Return the clock's time at the start, the middle and the end."""
    form = "%H:%M" if figures.window < DAY_SECONDS else "%a %H:%M"
    return [
        time.strftime(form, time.localtime(figures.begins_at + share * figures.window))
        for share in (0, 0.5, 1)
    ]
