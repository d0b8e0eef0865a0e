"""What the file and its journal say, kept up to date by reading only what is new.

A row is known by its number: rows are appended, and a fold keeps their order, so numbers outlive
a fold of our own. Anybody else's fold renames a new file into place, and all is read anew: the
cached file is held open meanwhile, so its inode number cannot be reused for the new one.

A reader takes no lock. It reads the journal first and the file second, so a change that is folded
in between is seen in the file; and it looks whether the file is still the same afterwards, since
only then was the journal not cut meanwhile (a fold renames before it cuts).
"""

from __future__ import annotations

import errno
import os
import re
from array import array
from itertools import accumulate

from dbbasic_queue.errors import NotAQueue, QueueDamaged
from dbbasic_queue.rows import (
    HEADER,
    Row,
    decode_record,
    decode_state,
    is_binary,
    is_header,
    parse_row,
)
from dbbasic_queue.store.files import OpenFile, open_file, store_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NEVER = 1 << 62
_CHUNK = 1 << 20
_BLOCK = 1 << 16
_ANCHOR = 64
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_STATUSES = frozenset((b"pending", b"processing", b"completed", b"failed", b"cancelled"))


class Rewritten(Exception):
    """Raised inside this module if the followed file is no longer the one that was read."""


class Follower:
    """Reads the complete lines that are appended to a file.

    The last bytes read are compared at each reading: a file that was cut, or edited in place,
    is noticed, whatever its size is by then.
    """

    __slots__ = ("anchor", "end", "file")

    def __init__(self, file: OpenFile | None) -> None:
        self.file = file
        self.end = 0
        self.anchor = b""

    def read(self) -> bytes:
        """Return the next complete lines, about 1 MiB of them; b"" where there is nothing new."""
        if self.file is None:
            return b""
        size = _CHUNK
        start = self.end - len(self.anchor)
        while True:
            try:
                content = os.pread(self.file.fd, size, start)
            except OSError as e:
                raise store_error(e, self.file.path, "nothing was changed") from e
            if not content.startswith(self.anchor):
                raise Rewritten
            cut = content.rfind(b"\n") + 1
            if cut > len(self.anchor):
                self.end = start + cut
                new = content[len(self.anchor) : cut]
                self.anchor = content[max(cut - _ANCHOR, 0) : cut]
                return new
            if len(content) < size:
                return b""
            size *= 4

    def is_current(self) -> bool:
        """Tell, by one read, that nothing was added or cut; False where it cannot tell."""
        anchor = self.anchor
        if self.file is None or not anchor:
            return False
        return os.pread(self.file.fd, _BLOCK, self.end - len(anchor)) == anchor

    def passed(self, content: bytes) -> None:
        """Note that this very process has appended `content` at the end that was read."""
        self.end += len(content)
        self.anchor = (self.anchor + content[-_ANCHOR:])[-_ANCHOR:]

    def size(self) -> int:
        """Return the file's size in bytes, with a last line that is not complete."""
        return 0 if self.file is None else os.fstat(self.file.fd).st_size


def require_header(line: bytes, path: str) -> None:
    """Raise NotAQueue unless a file's first line is the header."""
    if not is_header(line):
        if b"\0" in line or parse_row(line) is not None:
            raise QueueDamaged(
                errno.EINVAL,
                "the header is lost: the first line is a job, or has NULs (the file was left "
                "untouched; put the header's nine names back as its first line)",
                path,
            )
        raise NotAQueue(
            errno.EINVAL,
            "the first line is not the header of a queue (it was left untouched; "
            "is this the file that you mean?)",
            path,
        )


def read_whole(file: OpenFile) -> bytes:
    """Return a file's content; the kernel hands out 2 GiB at a time."""
    size = os.fstat(file.fd).st_size
    content = os.pread(file.fd, size, 0)
    while len(content) < size and (more := os.pread(file.fd, size, len(content))):
        content += more
    return content


class View:
    """The queue as its files say it; not thread-safe: the store's mutex is held around it.

    `index`       id -> number of the row (of the first one, where an id is there twice)
    `when`        number -> `run_at` of a pending job, NEVER for all others
    `soonest`     no pending job is due before this instant
    `processing`  numbers of the jobs in that status
    `retrying`    numbers of the pending jobs with an attempt behind them
    `unreadable`  numbers of the lines that are no job
    `binary`      whether one of those would stop grep
    `generation`  grows when rows that were read before have to be read again
    `numbering`   grows when the numbers of rows may have changed
    `records`     id -> the state that the journal gives it, as bytes
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.generation = 0
        self.numbering = 0
        self._forget()

    def _forget(self) -> None:
        self.rows = Follower(None)
        self.journal = Follower(None)
        self.loaded = False
        self.index: dict[bytes, int] = {}
        self.offsets = array("q")
        self.when = array("q")
        self.soonest = NEVER
        self.processing: set[int] = set()
        self.retrying: set[int] = set()
        self.unreadable: list[int] = []
        self.binary = False
        self.records: dict[bytes, bytes] = {}
        self._block = b""
        self._block_at = 0
        self.generation += 1
        self.numbering += 1

    def close(self) -> None:
        """Forget what was read; the files are closed when nobody else uses them either."""
        self._forget()

    # -- reading --

    def refresh(self) -> None:
        """Read what is new; afterwards nothing that was acknowledged before the call is missed."""
        while True:
            try:
                self._open()
                records = self._new_records()
                while content := self.rows.read():
                    self._scan(content)
                if not self.rows.end:
                    self._require_header_begun()
                if self.rows.file is None or self.rows.file.is_at_path():
                    for job_id, state in records:
                        self.apply(job_id, state)
                    self.loaded = True
                    return
            except Rewritten:
                pass
            except BaseException:
                self._forget()  # what was read half, or not applied, may not be taken for read
                raise
            self._forget()

    def _open(self) -> None:
        if self.rows.file is None or not self.rows.file.is_at_path():
            self._forget()
            self.rows = Follower(open_file(self.path, os.O_RDONLY))
        if self.journal.file is None or not self.journal.file.is_at_path():
            if self.journal.end:
                raise Rewritten
            self.journal = Follower(open_file(self.path + ".journal", os.O_RDONLY))

    def _new_records(self) -> list[tuple[bytes, bytes]]:
        records = []
        while content := self.journal.read():
            for line in content.split(b"\n"):
                record = decode_record(line)
                if record is not None:
                    records.append(record)
        return records

    def _scan(self, content: bytes) -> None:
        lines = content.split(b"\n")
        lines.pop()
        start = self.rows.end - len(content)
        if start == 0:
            start = self._skip_header(lines)
        number = len(self.offsets)
        self.offsets.extend(accumulate([len(line) + 1 for line in lines], initial=start))
        self.offsets.pop()
        plain = not is_binary(content)
        index, when = self.index, self.when
        for line in lines:
            columns = line.split(b"\t")
            if (
                plain
                and len(columns) == 9
                and (status := columns[3]) in _STATUSES
                and _ID.fullmatch(job_id := columns[0])
                and columns[4].isdigit()
                and columns[5].isdigit()
                and columns[6].isdigit()
                and len(columns[4]) <= 12
                and len(columns[5]) <= 12
                and len(columns[6]) <= 9
                and columns[1]
            ):
                run_at = int(columns[5])
                begun = columns[6] != b"0"
            elif row := parse_row(line):
                job_id = row.id.encode()
                status = row.state.status.encode()
                run_at = row.state.run_at
                begun = row.state.attempts > 0
            else:
                job_id = b""
            if not job_id or job_id in index:
                when.append(NEVER)
                if line:
                    self.unreadable.append(number)
                    self.binary = self.binary or is_binary(line)
            else:
                index[job_id] = number
                when.append(run_at if status == b"pending" else NEVER)
                if run_at < self.soonest and status == b"pending":
                    self.soonest = run_at
                if status == b"processing":
                    self.processing.add(number)
                elif begun and status == b"pending":
                    self.retrying.add(number)
                if job_id in self.records:
                    self.apply(job_id, self.records[job_id])
            number += 1

    def _require_header_begun(self) -> None:
        """Refuse a file without a single line, unless it is empty or a header cut short."""
        if self.rows.file is not None:
            start = os.pread(self.rows.file.fd, len(HEADER), 0)
            if not HEADER.startswith(start):
                require_header(start, self.path)

    def _skip_header(self, lines: list[bytes]) -> int:
        header = lines.pop(0)
        require_header(header, self.path)
        return len(header) + 1

    def apply(self, job_id: bytes, state: bytes) -> None:
        """Take note of a job's new state, as the journal holds it."""
        self.records[job_id] = state
        number = self.index.get(job_id)
        if number is None:
            return
        status, _, run_at, attempts, _ = state.split(b"\t", 4)
        self.processing.discard(number)
        self.retrying.discard(number)
        self.when[number] = NEVER
        if status == b"pending":
            self.when[number] = int(run_at)
            self.soonest = min(self.soonest, int(run_at))
            if attempts != b"0":
                self.retrying.add(number)
        elif status == b"processing":
            self.processing.add(number)

    # -- asking --

    def line(self, number: int, ahead: int = 0) -> bytes:
        """Return a row's line as the file holds it, without its end.

        `ahead` bytes are read with it, for the rows that are asked for next.
        """
        file = self.rows.file
        assert file is not None
        offset = self.offsets[number]
        after = self.offsets[number + 1] if number + 1 < len(self.offsets) else self.rows.end
        start = offset - self._block_at
        if start < 0 or after > self._block_at + len(self._block):
            self._block = os.pread(file.fd, max(ahead, after - offset), offset)
            self._block_at, start = offset, 0
        return self._block[start : start + after - 1 - offset]

    def row(self, number: int, ahead: int = 0) -> Row | None:
        """Return a row with what the journal says of it; None for a line that is no job."""
        return self.joined(number, self.line(number, ahead))

    def joined(self, number: int, line: bytes) -> Row | None:
        """Return the job on line `number` with what the journal says of it, or None."""
        row = parse_row(line)
        if row is None or self.index.get(row.id.encode()) != number:
            return None
        state = self.records.get(row.id.encode())
        if state is not None:
            row.state = decode_state(state)
        return row

    def find(self, job_id: bytes) -> Row | None:
        """Return the job with this id, or None."""
        number = self.index.get(job_id)
        return None if number is None else self.row(number)

    def search(self, job_id: bytes) -> Row | None:
        """Return the job with this id by a scan of the bytes: no index is made for one look."""
        while True:
            file = open_file(self.path, os.O_RDONLY)
            if file is None:
                return None
            try:
                state = self._search_journal(job_id)
            except Rewritten:
                continue
            content = read_whole(file)
            if file.is_at_path():
                break
        if not HEADER.startswith(content):
            require_header(content.partition(b"\n")[0], self.path)
        content = content[: content.rfind(b"\n") + 1]  # a torn last line is no row
        start = 0
        while (start := content.find(b"\n" + job_id + b"\t", start) + 1) > 0:
            row = parse_row(content[start : content.index(b"\n", start)])
            if row is not None:
                if state is not None:
                    row.state = decode_state(state)
                return row
        return None

    def _search_journal(self, job_id: bytes) -> bytes | None:
        state = None
        journal = Follower(open_file(self.path + ".journal", os.O_RDONLY))
        while lines := journal.read():
            if job_id in lines:
                for line in lines.split(b"\n"):
                    if line.startswith(job_id + b"\t") and (record := decode_record(line)):
                        state = record[1]
        return state

    def chunks(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield (number of the first row, lines) over all rows of the file that is open now."""
        if self.rows.file is None:
            return
        reader = Follower(self.rows.file)
        number = 0
        end = self.rows.end
        while reader.end < end and (content := reader.read()):
            lines = content[: len(content) - max(reader.end - end, 0)].split(b"\n")
            lines.pop()
            if number == 0 and reader.end == len(content):
                lines.pop(0)
            yield number, lines
            number += len(lines)

    def rows_as_they_stand(self) -> Iterator[Row]:
        """Yield every job of the file that is open now, with what the journal says of it."""
        for first, lines in self.chunks():
            for number, line in enumerate(lines, first):
                row = self.joined(number, line)
                if row is not None:
                    yield row

    def snapshot(self) -> View:
        """Return a view for `chunks` and `joined` that later changes do not touch."""
        view = View(self.path)
        view.rows = Follower(self.rows.file)
        view.rows.end = self.rows.end
        view.index = self.index  # grows, or is replaced whole: what it says of a row stays
        view.records = dict(self.records)
        return view

    def due(self, now: float, before: int) -> list[int]:
        """Return the numbers, below `before`, of the jobs that are due, latest `run_at` first."""
        codes = [
            run_at << 40 | number
            for number, run_at in enumerate(self.when[:before])
            if run_at <= now
        ]
        if not codes:
            self.soonest = min(self.when, default=NEVER)
        codes.sort(reverse=True)
        return [code & 0xFF_FFFF_FFFF for code in codes]

    # -- following our own fold --

    def adopt(self, rows: Follower, offsets: array[int]) -> None:
        """Go on with the file that a fold of ours has put into place; the journal is empty now.

        The states of jobs in hand are kept: their outcomes are compared with them.
        """
        numbers = self.processing
        self.records = {k: v for k, v in self.records.items() if self.index.get(k) in numbers}
        self.rows = rows
        self.offsets = offsets
        self.journal.end = 0
        self.journal.anchor = b""
        self._block = b""
        self.generation += 1
