"""The jobs of a file from its end: for a page of the newest ones, however long the file is.

The index says which number a line has, and the journal's states which jobs to look for besides
those whose lines have a wanted status. The file is held open, as by a `Snapshot`.
"""

from __future__ import annotations

import os
import re

from dbbasic_queue.model.rows import Row, has_json
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.store.reading.index import job_on

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from dbbasic_queue.store.disk.openfile import OpenFile

_PIECE_BYTES = 1 << 16


class Ends:
    """Where the jobs lie in an open file: lines from the offset `first` to `end`, `count` of them.

    `index` and `records` are those of an `Index`, as of when the file was read.
    """

    __slots__ = ("count", "end", "file", "first", "index", "records")

    def __init__(
        self,
        file: OpenFile,
        first: int,
        end: int,
        count: int,
        index: Mapping[bytes, int],
        records: Mapping[bytes, bytes],
    ) -> None:
        self.file = file
        self.first = first
        self.end = end
        self.count = count
        self.index = index
        self.records = records

    def jobs(self, statuses: Collection[str] = STATUSES) -> Iterator[Row]:
        """Yield the jobs with one of the statuses, the last one first."""
        wanted = None if len(statuses) == len(STATUSES) else _pattern(statuses)
        by_journal = set() if wanted is None else self._in_journal(statuses)
        number = self.count
        for content in self._pieces():
            count = content.count(b"\n")
            number -= count
            is_in_line = wanted is None or wanted.search(content)
            if not is_in_line and by_journal.isdisjoint(range(number, number + count)):
                continue
            lines = content.split(b"\n")
            for place in reversed(range(count)):
                line = lines[place]
                if wanted and number + place not in by_journal and not wanted.search(line):
                    continue
                row = job_on(number + place, line, self.index, self.records)
                if row is not None and row.state.status in statuses and has_json(row):
                    yield row

    def _in_journal(self, statuses: Collection[str]) -> set[int]:
        """Return the numbers of the jobs that have a wanted status by the journal."""
        beginnings = tuple(f"{status}\t".encode() for status in statuses)
        return {
            number
            for job_id, state in self.records.items()
            if state.startswith(beginnings)
            and (number := self.index.get(job_id, self.count)) < self.count
        }

    def _pieces(self) -> Iterator[bytes]:
        """Yield the file's whole lines, piece by piece, the last ones first."""
        end, size = self.end, _PIECE_BYTES
        rest = b""
        """the end of a line that begins further up"""
        while end > self.first:
            start = max(end - size, self.first)
            content = os.pread(self.file.fd, end - start, start) + rest
            cut = 0 if start == self.first else content.find(b"\n") + 1
            if cut == len(content):  # one long line: read more at a time, it is copied each time
                size *= 2
            rest = content[:cut]
            if cut < len(content):
                yield content[cut:]
            end = start


def _pattern(statuses: Collection[str]) -> re.Pattern[bytes]:
    return re.compile(b"\t(?:" + b"|".join(status.encode() for status in statuses) + b")\t")
