"""The figures of `metrics` as a file for Prometheus' node_exporter (its textfile collector)."""

from __future__ import annotations

import errno
import os

from dbbasic_queue.errors import InvalidArgument, NotAQueue
from dbbasic_queue.monitoring.metrics import QUANTILES
from dbbasic_queue.store.disk.files import open_file, replace_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BEGINNING = b"# HELP dbbasic_queue_"
"""how each file that this package writes begins"""


def to_text(figures: dict[str, Any]) -> str:
    """Return the figures, as `metrics.measure` returned them, in Prometheus' text format.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    types = figures["types"].items()
    text = _Text()
    text.family("jobs", "gauge", "Jobs in the queue, by status.")
    for status, count in figures["jobs"].items():
        text.sample("jobs", count, status=status)
    text.family("paused_jobs", "gauge", "Pending jobs whose type is paused.")
    text.sample("paused_jobs", figures["paused"])
    text.family("oldest_pending_seconds", "gauge", "How long the first due job has been waiting.")
    text.sample("oldest_pending_seconds", figures["oldest_pending"])
    text.family(
        "type_oldest_pending_seconds",
        "gauge",
        "How long the first due job of each type has been waiting.",
    )
    for name, of_type in types:
        text.sample("type_oldest_pending_seconds", of_type["oldest_pending"], type=name)
    text.family(
        "window_seconds", "gauge", "How many seconds of the history the metrics below cover."
    )
    text.sample("window_seconds", figures["window"])
    text.family("attempts", "gauge", "Attempts that ended within the window, by outcome.")
    for name, of_type in types:
        for outcome, count in of_type["attempts"].items():
            text.sample("attempts", count, type=name, outcome=outcome)
    text.family("attempts_per_second", "gauge", "Attempts per second that ended within the window.")
    for name, of_type in types:
        text.sample("attempts_per_second", of_type["rate"], type=name)
    for key, what in (
        ("waiting", "Seconds from when a job was due until its attempt started."),
        ("running", "Seconds that handlers ran."),
    ):
        text.family(f"{key}_seconds", "summary", what)
        for name, of_type in types:
            text.summary(f"{key}_seconds", of_type[key], name)
    return "".join(text.lines)


class _Text:
    """The lines of a file, while they are collected."""

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
        for key, share in QUANTILES.items():
            if (value := figures[key]) is not None:
                self.sample(name, value, type=job_type, quantile=str(share))
        self.sample(f"{name}_sum", figures["sum"] or 0.0, type=job_type)
        self.sample(f"{name}_count", figures["count"] or 0, type=job_type)


def _escape_label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def check_path(path: str) -> None:
    """Check that the file may be written: it is new, or empty, or this package has written it.

    Raises InvalidArgument unless its name ends in `.prom`, NotAQueue for another program's file,
    StoreError if it can't be read.
    """
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
            "not a metrics file written by dbbasic_queue (it was left untouched; choose another "
            "name)",
            path,
        )


def write(path: str, text: str) -> None:
    """Replace the file atomically, readable by all users. It isn't synced.

    Raises StoreError if the system refuses; then the old file is unchanged.
    """
    ending = f".{os.urandom(8).hex()}"  # node_exporter only reads names that end in .prom
    consequence = "the metrics were not written"
    replace_file(path, text.encode(), consequence, ending=ending, fsync=False, mode=0o644)
