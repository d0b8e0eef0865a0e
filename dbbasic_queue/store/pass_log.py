r"""The log of passes: one row per pass that has ended, in `queue.tsv.passes`.

    ended_at seconds worker types completed failed retried delayed stopped recovered

`types` are the job types that have a handler, separated by spaces: `name`, or `name=2` if at most
two of its jobs may run at a time. A `*` among them means that the pass also tries jobs of other
types. Idle passes write a row, too: so anyone can see when cron was here last. A pass that raised
an error, or was killed, writes none.

Rows are appended unsynced; `rotated` describes the file. It is small: 64 KiB are about 600 passes.
"""

from __future__ import annotations

from dbbasic_queue.model.escaping import escape
from dbbasic_queue.model.states import LATEST
from dbbasic_queue.store import rotated
from dbbasic_queue.store.rotated import RotatedFile
from dbbasic_queue.store.worker import worker_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from dbbasic_queue.store.disk.lock import QueueLock

_COUNTS = ("completed", "failed", "retried", "delayed", "stopped", "recovered")
HEADER = ("\t".join(("ended_at", "seconds", "worker", "types", *_COUNTS)) + "\n").encode()
LARGEST_BYTES = 1 << 16
"""A larger file is rotated. With the one before it, up to twice as much is kept."""


class EndedPass:
    """One row. `ended_at` is in Unix seconds, and `types` are as in the file."""

    __slots__ = ("counts", "ended_at", "seconds", "types", "worker")

    def __init__(self, line: str) -> None:
        """Parse a line. Raises ValueError if it isn't a row."""
        ended_at, seconds, self.worker, self.types, *counts = line.rstrip("\n").split("\t")
        self.ended_at = float(ended_at)
        self.seconds = float(seconds)
        self.counts = dict(zip(_COUNTS, map(int, counts), strict=True))
        if not (0 <= self.ended_at <= LATEST and self.seconds >= 0):  # NaN, too
            raise ValueError("invalid row: a number is out of range")

    def as_dict(self) -> dict[str, Any]:
        """Return the columns with Python values."""
        return {
            "ended_at": self.ended_at,
            "seconds": self.seconds,
            "worker": self.worker,
            "types": self.types.split(),
            **self.counts,
        }


def encode_row(ended_at: float, seconds: float, types: str, counts: Mapping[str, int]) -> str:
    """Return the line, with its end, of a pass of this process."""
    numbers = "\t".join(str(counts[name]) for name in _COUNTS)
    return f"{ended_at:.3f}\t{seconds:.3f}\t{worker_name()}\t{types}\t{numbers}\n"


def parse_types(types: str) -> dict[str, int | None]:
    """Return type -> how many of its jobs may run at a time, None for any number.

    >>> parse_types("fetch=2 send_email *")
    {'fetch': 2, 'send_email': None, '*': None}
    """
    found: dict[str, int | None] = {}
    for text in types.split():
        name, _, limit = text.partition("=")
        found[name] = int(limit) if limit.isdecimal() else None
    return found


def format_types(limits: Iterable[tuple[str, int | None]]) -> str:
    """Return the column `types`. Names that it can't hold are left out."""
    names = []
    for name, limit in limits:
        text = escape(name)
        if text and " " not in text and "=" not in text:
            names.append(text if limit is None else f"{text}={limit}")
    return " ".join(names)


def append(queue: str, lock: QueueLock, line: str) -> None:
    """Append a row, unsynced; it is lost if that fails. Not to be called under the lock."""
    file = RotatedFile(_path(queue), HEADER, LARGEST_BYTES, lock)
    file.write(line.encode())


def read(queue: str) -> list[EndedPass]:
    """Return the passes that have ended, the last one last. Needs no lock.

    Raises NotAQueue if a file isn't a queue's, StoreError if it can't be read.
    """
    return parse(
        line.decode("utf-8", "replace")
        for file in rotated.files(_path(queue))
        for line in rotated.lines(file)
    )


def parse(lines: Iterable[str]) -> list[EndedPass]:
    """Return the passes on these lines, in the order of their ends; others are skipped."""
    found = []
    for line in lines:
        try:
            found.append(EndedPass(line))
        except ValueError:
            continue  # the header, or a torn row
    found.sort(key=lambda ended: ended.ended_at)
    return found


def _path(queue: str) -> str:
    return queue + ".passes"
