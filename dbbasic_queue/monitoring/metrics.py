"""Figures about a queue: from its rows and its history to a dict, and to a Prometheus textfile."""

from __future__ import annotations

import errno
import os

from dbbasic_queue.errors import InvalidArgument, NotAQueue
from dbbasic_queue.model.escaping import escape, printable
from dbbasic_queue.store.disk.files import open_file, replace_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from dbbasic_queue.monitoring.summary import Summary
    from dbbasic_queue.store.history import Attempt

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_BEGINNING = b"# HELP dbbasic_queue_"


class _Type:
    """What is gathered about one type of job."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.waiting: list[float] = []
        self.running: list[float] = []
        self.oldest_pending = 0.0


def measure(
    summary: Summary, attempts: Iterable[Attempt], now: float, window: float
) -> dict[str, Any]:
    """Return the figures at the instant `now`, of attempts that ended at most `window` ago.

    If the history is shorter, the window is as long as the history, but at least a second. All
    durations are in seconds. A job waits from when it is due, a whole second, until its handler
    starts; it runs until the handler returns.
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
        name: percentile(seconds, share) if seconds else None for name, share in _QUANTILES.items()
    }
    return found | {"sum": sum(seconds), "count": len(seconds)}


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which that share lies, between two neighbours in proportion.

    As `statistics.quantiles` does with method="inclusive".

    >>> percentile([1, 2, 3, 4, 5], 0.5), percentile([0, 10], 0.95)
    (3.0, 9.5)
    """
    at = (len(ordered) - 1) * share
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


# -- the textfile ------------------------------------------------------------------------------


def to_text(figures: dict[str, Any]) -> str:
    """Return what `measure` returned in Prometheus' text format.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    types = figures["types"].items()
    text = _Text()
    text.family("jobs", "gauge", "Jobs in the queue, by status.")
    for status, count in figures["jobs"].items():
        text.sample("jobs", count, status=status)
    text.family("paused_jobs", "gauge", "Pending jobs whose type is paused.")
    text.sample("paused_jobs", figures["paused"])
    text.family(
        "oldest_pending_seconds", "gauge", "How long the oldest job that is due has waited."
    )
    text.sample("oldest_pending_seconds", figures["oldest_pending"])
    text.family("type_oldest_pending_seconds", "gauge", "The same for each type of job.")
    for name, of_type in types:
        text.sample("type_oldest_pending_seconds", of_type["oldest_pending"], type=name)
    text.family("window_seconds", "gauge", "How much of the history the figures below are about.")
    text.sample("window_seconds", figures["window"])
    text.family("attempts", "gauge", "Attempts that ended within the window, by outcome.")
    for name, of_type in types:
        for outcome, count in of_type["attempts"].items():
            text.sample("attempts", count, type=name, outcome=outcome)
    text.family("attempts_per_second", "gauge", "Attempts that ended within the window, a second.")
    for name, of_type in types:
        text.sample("attempts_per_second", of_type["rate"], type=name)
    for key, what in (
        ("waiting", "From when a job was due until its attempt began, within the window."),
        ("running", "How long handlers ran, within the window."),
    ):
        text.family(f"{key}_seconds", "summary", what)
        for name, of_type in types:
            text.summary(f"{key}_seconds", of_type[key], name)
    return "".join(text.lines)


class _Text:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, what: str) -> None:
        self.lines.append(
            f"# HELP dbbasic_queue_{name} {what}\n# TYPE dbbasic_queue_{name} {kind}\n"
        )

    def sample(self, name: str, value: float, **labels: str) -> None:
        pairs = ",".join(f'{label}="{_escape_label(text)}"' for label, text in labels.items())
        self.lines.append(f"dbbasic_queue_{name}{f'{{{pairs}}}' if pairs else ''} {value}\n")

    def summary(self, name: str, figures: dict[str, float | None], job_type: str) -> None:
        for key, share in _QUANTILES.items():
            if (value := figures[key]) is not None:
                self.sample(name, value, type=job_type, quantile=str(share))
        self.sample(f"{name}_sum", figures["sum"] or 0.0, type=job_type)
        self.sample(f"{name}_count", figures["count"] or 0, type=job_type)


def _escape_label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def check_path(path: str) -> None:
    """Raise an error unless metrics may be written to a path: a new `.prom` file, or our own."""
    if not path.endswith(".prom"):
        raise InvalidArgument(
            f"invalid file for metrics {path!r}: its name must end in .prom, as node_exporter "
            "expects (so that a typo can't replace another file)"
        )
    file = open_file(path, os.O_RDONLY)
    start = b"" if file is None else os.pread(file.fd, len(_BEGINNING), 0)
    if start.strip(b"\0") and start != _BEGINNING:  # NULs: what a power cut leaves
        raise NotAQueue(
            errno.EINVAL,
            "not a file of metrics that dbbasic_queue has written (it was left untouched; give "
            "another name)",
            path,
        )


def write(path: str, text: str) -> None:
    """Replace the file, readable by all; readers see the old content or the new.

    Raises StoreError if the system refuses; then the old file is unchanged.
    """
    ending = f".{os.urandom(8).hex()}"  # node_exporter only reads names that end in .prom
    consequence = "the metrics were not written"
    replace_file(path, text.encode(), consequence, ending=ending, fsync=False, mode=0o644)
