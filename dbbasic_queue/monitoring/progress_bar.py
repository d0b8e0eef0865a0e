"""How far a job is, as text: a bar, a percentage, and an estimate of the time that is left."""

from __future__ import annotations

import math

from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.monitoring.durations import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.store.progress import Progress


def bar(done: float, total: float | None, seconds_left: float | None, *, width: int = 20) -> str:
    """Return a bar of `width` characters, a percentage, and the estimate; all of it is ASCII.

    Without a `total`, there is only the number. More than the total counts as 100 %.

    >>> bar(40, 100, 200)
    '[########............] 40 %, 3 min 20 s left'
    >>> bar(2, 3, None, width=6), bar(40, None, None)
    ('[####..] 66 %', '40 done')
    """
    if total is None:
        return f"{_rounded(done)} done"
    share = min(done / total, 1)
    filled = int(share * width)
    left = "" if seconds_left is None else f", {duration(math.ceil(seconds_left))} left"
    return f"[{'#' * filled}{'.' * (width - filled)}] {int(share * 100)} %{left}"


def line(progress: Progress, now: float, *, width: int = 20) -> str:
    """Return the bar at the instant `now`, and the note; control characters aren't escaped."""
    text = bar(progress.done, progress.total, progress.seconds_left(now), width=width)
    return f"{text}  {unescape(progress.note)}".rstrip()


def fields(progress: Progress, now: float) -> tuple[str, str, str, str, str]:
    """Return done, total, the seconds left at the instant `now`, the bar and the note.

    An empty one is a dash.
    """
    left = progress.seconds_left(now)
    return (
        _rounded(progress.done),
        "-" if progress.total is None else _rounded(progress.total),
        "-" if left is None else str(math.ceil(left)),
        bar(progress.done, progress.total, left),
        progress.note or "-",
    )


def _rounded(number: float) -> str:
    """Return a number without trailing zeros, with at most six digits after the point.

    >>> _rounded(40), _rounded(2.50), _rounded(1 / 3)
    ('40', '2.5', '0.333333')
    """
    return str(number) if isinstance(number, int) else f"{number:.6f}".rstrip("0").rstrip(".")
