"""The figures of `Queue.metrics`, from a queue's rows and its history."""

from __future__ import annotations

from dbbasic_queue.model.escaping import escape, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from dbbasic_queue.monitoring.summary import Summary
    from dbbasic_queue.store.history import Attempt

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class _Type:
    """The figures of one job type, while they are collected. Durations are in seconds."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        """outcome -> how many attempts ended so"""
        self.waiting: list[float] = []
        """how long each attempt waited, see `measure`"""
        self.running: list[float] = []
        """how long each handler ran"""
        self.oldest_pending = 0.0
        """for how long the first due job has been due"""


def measure(
    summary: Summary, attempts: Iterable[Attempt], now: float, window: float
) -> dict[str, Any]:
    """Return the figures at the instant `now`, of attempts that ended at most `window` ago.

    `attempts` must include the oldest one in the history, even if it ended before the window; those
    of `history.read` do. If the history is shorter, the window is as long as the history, but at
    least a second. All durations are in seconds. A job waits from when it is due, a whole second,
    until its handler starts; it runs until the handler returns. `Queue.metrics` describes the dict.
    """
    types: dict[str, _Type] = {}
    for job_type, waited in summary.waiting.items():
        types.setdefault(escape(job_type), _Type()).oldest_pending = waited
    begins_at = now - 1
    for attempt in attempts:
        ended_at = attempt.ended_at
        begins_at = min(begins_at, ended_at)
        if not now - window <= ended_at <= now:
            continue
        of_type = types.setdefault(printable(attempt.type), _Type())
        outcome = printable(attempt.outcome)
        of_type.outcomes[outcome] = of_type.outcomes.get(outcome, 0) + 1
        if attempt.seconds is not None:
            of_type.running.append(attempt.seconds)
            of_type.waiting.append(max(ended_at - attempt.seconds - attempt.due_at, 0.0))
    window = min(window, now - begins_at)
    return {
        "jobs": summary.counts,
        "paused": summary.paused,
        "oldest_pending": max((found.oldest_pending for found in types.values()), default=0.0),
        "window": window,
        "types": {
            name: {
                "attempts": dict(sorted(found.outcomes.items())),
                "rate": sum(found.outcomes.values()) / window,
                "waiting": _summary(found.waiting),
                "running": _summary(found.running),
                "oldest_pending": found.oldest_pending,
            }
            for name, found in sorted(types.items())
        },
    }


def _summary(seconds: list[float]) -> dict[str, float | None]:
    seconds.sort()
    found: dict[str, float | None] = {
        name: percentile(seconds, share) if seconds else None for name, share in QUANTILES.items()
    }
    return found | {"sum": sum(seconds), "count": len(seconds)}


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which this share of the values lies, interpolated between neighbours.

    `ordered` is sorted and not empty; `share` is between 0 and 1. The rule is that of
    `statistics.quantiles(method="inclusive")`.

    >>> percentile([1, 2, 3, 4, 5], 0.5), percentile([0, 10], 0.95)
    (3.0, 9.5)
    """
    at = (len(ordered) - 1) * share
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)
