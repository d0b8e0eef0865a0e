"""The figures of `Queue.metrics`, from a queue's rows and its history."""

from __future__ import annotations

from dbbasic_queue.model.escaping import escape, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from dbbasic_queue.monitoring.summary import Summary
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.reading.ordered import Ordered

    Ascending = Sequence[float] | Ordered

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class OfType:
    """The attempts of one job type that ended in a window of time.

    `outcomes`  outcome -> how many attempts ended so
    `waiting`   how many seconds each attempt waited, see `measure`
    `running`   how many seconds each handler ran; both in ascending order
    """

    __slots__ = ("outcomes", "running", "waiting")

    def __init__(self, outcomes: dict[str, int], waiting: Ascending, running: Ascending) -> None:
        self.outcomes = outcomes
        self.waiting = waiting
        self.running = running

    def __add__(self, other: OfType) -> OfType:
        """Return the attempts of both."""
        outcomes = dict(self.outcomes)
        for outcome, count in other.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        waiting = sorted([*self.waiting, *other.waiting])
        return OfType(outcomes, waiting, sorted([*self.running, *other.running]))


def measure(
    summary: Summary, attempts: Iterable[Attempt], now: float, window: float
) -> dict[str, Any]:
    """Return the figures at the instant `now`, of attempts that ended at most `window` ago.

    `attempts` must include the oldest one in the history, even if it ended before the window; those
    of `history.read` do. If the history is shorter, the window is as long as the history, but at
    least a second. All durations are in seconds. A job waits from when it is due, a whole second,
    until its handler starts; it runs until the handler returns. `Queue.metrics` describes the dict.
    """
    types: dict[str, tuple[dict[str, int], list[float], list[float]]] = {}
    begins_at = now
    for attempt in attempts:
        ended_at = attempt.ended_at
        begins_at = min(begins_at, ended_at)
        if not now - window <= ended_at <= now:
            continue
        outcomes, waiting, running = types.setdefault(printable(attempt.type), ({}, [], []))
        outcomes[attempt.outcome] = outcomes.get(attempt.outcome, 0) + 1
        if attempt.seconds is not None:
            running.append(attempt.seconds)
            waiting.append(max(ended_at - attempt.seconds - attempt.due_at, 0.0))
    found = {
        name: OfType(outcomes, sorted(waiting), sorted(running))
        for name, (outcomes, waiting, running) in types.items()
    }
    return as_dict(summary, found, begins_at, now, window)


def as_dict(
    summary: Summary, ended: Mapping[str, OfType], begins_at: float, now: float, window: float
) -> dict[str, Any]:
    """Return the figures as `measure` does, of attempts by the printable names of their types.

    `begins_at` is how far back the history goes, if it doesn't go back to the window's start.
    """
    oldest = {escape(job_type): waited for job_type, waited in summary.waiting.items()}
    window = min(window, max(now - begins_at, 1.0))
    nothing = OfType({}, [], [])
    types = {}
    for name in sorted({*oldest, *ended}):
        found = ended.get(name, nothing)
        outcomes: dict[str, int] = {}
        for outcome, count in found.outcomes.items():
            outcomes[printable(outcome)] = outcomes.get(printable(outcome), 0) + count
        types[name] = {
            "attempts": dict(sorted(outcomes.items())),
            "rate": sum(outcomes.values()) / window,
            "waiting": _summary(found.waiting),
            "running": _summary(found.running),
            "oldest_pending": oldest.get(name, 0.0),
        }
    return {
        "jobs": summary.counts,
        "paused": summary.paused,
        "oldest_pending": max(oldest.values(), default=0.0),
        "window": window,
        "types": types,
    }


def _summary(seconds: Ascending) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        name: percentile(seconds, share) if len(seconds) else None
        for name, share in QUANTILES.items()
    }
    return found | {"sum": sum(seconds), "count": len(seconds)}


def percentile(ordered: Ascending, share: float) -> float:
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
