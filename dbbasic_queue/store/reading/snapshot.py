"""The jobs as they were at one instant, read from the file without the lock.

The file is held open, so a fold in the meantime changes nothing here: it writes another file. Rows
that were appended since then lie after the end of what the view had read, and are left out.
"""

from __future__ import annotations

import os

from dbbasic_queue.model.rows import Row, has_json
from dbbasic_queue.store.reading.index import current_line, job_on
from dbbasic_queue.store.reading.tail import Rewritten, Tail, edited_in_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHOWN_BYTES = 800
"""How many bytes are read of a line that is too long for a row."""


class Snapshot:
    """All jobs as a view knew them when `View.snapshot` was called.

    `index`, `records`, `generation` and `numbering` are those of the view at that time, except that
    `index` may have gained rows since.
    """

    __slots__ = ("_end", "_rows", "generation", "index", "numbering", "records")

    def __init__(
        self,
        rows: Tail,
        index: dict[bytes, int],
        records: dict[bytes, bytes],
        generation: int,
        numbering: int,
    ) -> None:
        """`rows` has been read to where the last row of the snapshot ends."""
        self._rows = rows.file
        self._end = rows.end
        self.index = index
        self.records = records
        self.generation = generation
        self.numbering = numbering

    def jobs(
        self, unreadable: Callable[[int, bytes, int], object] = lambda *_: None
    ) -> Iterator[tuple[int, bytes, Row]]:
        """Yield the number, the line and the row of every job, both with the state it had then.

        `unreadable` is called for each line that isn't a job, with its number, the line (only its
        beginning if it is too long for a row) and its length in bytes. Empty lines are skipped.
        Raises StoreError if the file was cut or edited in place during the reading, or if the
        system refuses a read.
        """
        number = 0
        reader = Tail(self._rows)

        def skip_long_line(length: int) -> None:
            nonlocal number
            assert reader.file is not None
            beginning = os.pread(reader.file.fd, SHOWN_BYTES, reader.end - length - 1)
            unreadable(number, beginning, length)
            number += 1

        for content in self._pieces(reader, skip_long_line):
            if reader.end - len(content) >= self._end:
                return
            lines = content[: len(content) - max(reader.end - self._end, 0)].split(b"\n")
            lines.pop()
            if reader.end == len(content):
                lines.pop(0)  # the header
            for line in lines:
                row = job_on(number, line, self.index, self.records)
                if row is not None and has_json(row):
                    yield number, current_line(line, self.records), row
                elif line:
                    unreadable(number, line, len(line))
                number += 1
            if reader.end >= self._end:
                return

    def _pieces(self, reader: Tail, skip_long_line: Callable[[int], None]) -> Iterator[bytes]:
        try:
            yield from reader.new(skip_long_line)
        except Rewritten as e:
            assert self._rows is not None
            raise edited_in_place(self._rows.path, "nothing was changed; try again") from e
