"""All jobs as they are now, read once from the files, without an index.

That is for a process that looks at the queue once or twice. Rows are split and checked many at a
time, and only those that are wanted become a `Row`.

The journal is read first and the file second, as by `lookup`, so no lock is needed.
"""

from __future__ import annotations

import os
from itertools import compress

from dbbasic_queue.model.records import decode_record, decode_state
from dbbasic_queue.model.rows import Row, has_json, parse_row
from dbbasic_queue.model.states import FAILED, FINISHED, PENDING, PROCESSING, STATUSES, State
from dbbasic_queue.model.strict_json import all_json
from dbbasic_queue.store.disk.files import open_file, unstable_inodes
from dbbasic_queue.store.protocol import Overview, Waiting
from dbbasic_queue.store.reading.bulk import have_one_length, scan_cells
from dbbasic_queue.store.reading.header import require_header, require_partial_header
from dbbasic_queue.store.reading.tail import Rewritten, Tail, edited_in_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from dbbasic_queue.store.disk.openfile import OpenFile

_TRIES = 100
_STATUSES = {status: status.encode() for status in STATUSES}
_FINISHED = {_STATUSES[status] for status in FINISHED}
_WITH_ERRORS = {_STATUSES[PENDING], _STATUSES[FAILED]}


class Stream:
    """The jobs of the queue at `path` as they are when this is created.

    Raises NotAQueue if another program's file is there, StoreError if the system refuses a read, or
    if the file is edited in place during the reading.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: OpenFile | None = None
        self._end = 0
        self._records: dict[bytes, bytes] = {}
        self._seen: set[bytes] = set()
        for _ in range(_TRIES):
            self._file = open_file(path, os.O_RDONLY)
            if self._file is None:
                return
            try:
                self._records = dict(_records(path + ".journal"))
            except Rewritten:
                continue
            self._end = os.fstat(self._file.fd).st_size
            if self._file.is_at_path():  # so the journal was not cut in the meantime
                return
        raise unstable_inodes(path)

    @property
    def exists(self) -> bool:
        """Whether there is a file at the path."""
        return self._file is not None

    def rows(
        self,
        statuses: Collection[str] = STATUSES,
        unreadable: Callable[[int], object] | None = None,
    ) -> Iterator[Row]:
        """Yield each job that has one of the statuses.

        `unreadable` is called with the number of each line that isn't a job, the first one after
        the header being 0. With it, every job is yielded.
        """
        wanted = {_STATUSES[status] for status in statuses}
        is_open = unreadable is not None or len(wanted) == len(STATUSES)
        for number, content, cells in self._pieces(unreadable or _ignore):
            if cells is None or is_open:
                lines = content.split(b"\n")[:-1]
                for row in self._jobs(number, lines, unreadable or _ignore, cells):
                    if is_open or row.state.status in statuses:
                        yield row
                continue
            self._update(cells)
            for place in compress(range(len(cells)), map(wanted.__contains__, cells[3::9])):
                row = _row(cells, place)
                if has_json(row):
                    yield row

    def beginning_with(self, text: str) -> Iterator[Row]:
        """Yield each job whose id begins with this text."""
        start = b"\n" + text.encode()
        seen: set[str] = set()
        for content in self._contents():
            content = b"\n" + content
            at = content.find(start)
            while at >= 0:
                row = parse_row(content[at + 1 : content.index(b"\n", at + 1)])
                if row is not None and row.id not in seen:
                    seen.add(row.id)
                    if has_json(row):
                        yield self._as_in_journal(row)
                at = content.find(start, at + 1)

    def overview(self, now: float, each: Callable[[Row], object] | None = None) -> Overview:
        """Count the jobs; see `protocol.Store.overview`."""
        tally = _Tally(now)
        unreadable: list[int] = []
        for number, content, cells in self._pieces(unreadable.append):
            if cells is None or not all_json(cells[2::9]):
                lines = content.split(b"\n")[:-1]
                for row in self._jobs(number, lines, unreadable.append, cells):
                    tally.add_row(row)
                    status = row.state.status.encode()
                    if each is not None and row.state.error and status in _WITH_ERRORS:
                        each(row)
                continue
            self._update(cells)
            tally.add(cells)
            if each is not None and any(errors := cells[7::9]):
                for place in compress(range(len(errors)), errors):
                    if cells[9 * place + 3] in _WITH_ERRORS:
                        each(_row(cells, place))
        return tally.overview([number + 2 for number in unreadable])

    def running(self) -> list[Row]:
        """Return the jobs that are processing.

        Call it under the queue's lock, so that they are as of one instant with the live passes.
        """
        status = PROCESSING.encode()
        wanted = {key for key, state in self._records.items() if state.startswith(status + b"\t")}
        mark = b"\t%b\t" % status
        for content in self._contents():
            if mark in content:
                lines = (line for line in content.split(b"\n") if mark in line)
                wanted.update(line[: line.find(b"\t")] for line in lines)
        if not wanted:
            return []
        found: dict[bytes, Row] = {}
        for content in self._contents():
            for line in content.split(b"\n"):
                key = line[: line.find(b"\t")]
                if key in wanted and key not in found and (row := parse_row(line)) is not None:
                    found[key] = self._as_in_journal(row)
        return [row for row in found.values() if row.state.status == PROCESSING]

    def _contents(self) -> Iterator[bytes]:
        """Yield complete lines, with the header."""
        reader = Tail(self._file)
        try:
            for content in reader.new():
                if reader.end == len(content):
                    require_header(content[: content.index(b"\n")], self._path)
                yield content
        except Rewritten as e:
            raise edited_in_place(self._path, "nothing was changed; try again") from e

    def _pieces(
        self, unreadable: Callable[[int], object]
    ) -> Iterator[tuple[int, bytes, list[bytes] | None]]:
        """Yield many lines at a time: the number of the first one, the lines, and their cells.

        The cells are None if a line isn't a plain row, or if an id may have occurred before.
        """
        if self._file is None:
            return
        number = 0
        reader = Tail(self._file)

        def skip(length: int) -> None:
            nonlocal number
            if reader.end == length + 1:  # the first line, and too long for a header
                require_header(b"", self._path)
            unreadable(number)
            number += 1

        try:
            for content in reader.new(skip):
                start = reader.end - len(content)
                if start >= self._end:
                    return
                if reader.end > self._end:
                    content = content[: content.rfind(b"\n", 0, self._end - start) + 1]
                if not start:
                    header, _, content = content.partition(b"\n")
                    require_header(header, self._path)
                for piece, cells in scan_cells(content):
                    yield number, piece, cells if cells and self._are_new(cells[::9]) else None
                    number += len(cells) // 9 if cells else piece.count(b"\n")
        except Rewritten as e:
            raise edited_in_place(self._path, "nothing was changed; try again") from e
        if not reader.end:
            require_partial_header(self._file)

    def _are_new(self, ids: list[bytes]) -> bool:
        """Note ids, and return True, if they differ and none of them has occurred before."""
        new = set(ids)
        if len(new) != len(ids) or not self._seen.isdisjoint(new):
            return False
        self._seen |= new
        return True

    def _jobs(
        self,
        number: int,
        lines: Iterable[bytes],
        unreadable: Callable[[int], object],
        cells: list[bytes] | None,
    ) -> Iterator[Row]:
        """Yield the jobs on lines, which are parsed one by one. With `cells`, the ids are new."""
        are_json = cells is not None and all_json(cells[2::9])
        for at, line in enumerate(lines, number):
            row = parse_row(line)
            if row is not None and cells is None:
                key = row.id.encode()
                if key in self._seen:
                    row = None
                self._seen.add(key)
            if row is not None and (are_json or has_json(row)):
                yield self._as_in_journal(row)
            elif line:
                unreadable(at)

    def _as_in_journal(self, row: Row) -> Row:
        if self._records and (state := self._records.get(row.id.encode())) is not None:
            row.state = decode_state(state)
        return row

    def _update(self, cells: list[bytes]) -> None:
        """Give the rows the states that the journal has for them."""
        records = self._records
        for place in compress(range(len(cells)), map(records.__contains__, cells[::9])):
            at = 9 * place
            cells[at + 3 : at + 9] = records[cells[at]].split(b"\t")


class _Tally:
    """Counts jobs."""

    def __init__(self, now: float) -> None:
        self._now = now
        self._counts = dict.fromkeys(STATUSES, 0)
        self._types: dict[bytes, _OfType] = {}
        self._oldest: int | None = None
        self._firsts = 0
        """how many times a job was the `first` of its type so far"""

    def add(self, cells: list[bytes]) -> None:
        """Add the jobs of plain rows with JSON payloads."""
        statuses = cells[3::9]
        for name, text in _STATUSES.items():
            self._counts[name] += statuses.count(text)
        self._add_finished_cells(statuses, cells)
        pending = list(map(_STATUSES[PENDING].__eq__, statuses))
        types, created, times = (compress(cells[number::9], pending) for number in (1, 4, 5))
        places = compress(range(len(statuses)), pending)
        for place, job_type, created_at, run_at in zip(
            places, types, map(int, created), map(int, times), strict=True
        ):
            of_type = self._types.get(job_type) or self._of_type(job_type)
            if of_type.add(created_at, run_at, self._now):
                self._set_first(of_type, _row(cells, place))

    def _add_finished_cells(self, statuses: list[bytes], cells: list[bytes]) -> None:
        created, times = cells[4::9], cells[5::9]
        places: Iterable[int] = range(len(created))
        if self._oldest is not None:
            # No job is due before it was created, so few jobs can be due before `_oldest`.
            oldest = str(self._oldest).encode()
            if have_one_length([oldest, *created]):
                places = [place for place, at in enumerate(created) if at < oldest]
        for place in places:
            if statuses[place] in _FINISHED:
                self._add_finished(max(int(created[place]), int(times[place])))

    def add_row(self, row: Row) -> None:
        """Add a job."""
        state = row.state
        self._counts[state.status] += 1
        if state.status in FINISHED:
            self._add_finished(max(state.run_at, state.created_at))
        elif state.status == PENDING:
            of_type = self._of_type(row.type.encode())
            if of_type.add(state.created_at, state.run_at, self._now):
                self._set_first(of_type, row)

    def _set_first(self, of_type: _OfType, row: Row) -> None:
        self._firsts += 1
        of_type.first, of_type.number = row, self._firsts

    def _add_finished(self, due_at: int) -> None:
        self._oldest = due_at if self._oldest is None else min(self._oldest, due_at)

    def _of_type(self, job_type: bytes) -> _OfType:
        found = self._types.get(job_type)
        if found is None:
            found = self._types[job_type] = _OfType()
        return found

    def overview(self, unreadable: list[int]) -> Overview:
        """Return what was counted: the types in the order in which their first jobs became due."""
        order = sorted(self._types.items(), key=lambda item: item[1].place())
        types = [
            Waiting(name.decode(), found.count, found.due, found.first, found.next_at)
            for name, found in order
        ]
        return Overview(self._counts, types, lambda: self._oldest, unreadable)


class _OfType:
    """The pending jobs of one type; see `Waiting`."""

    __slots__ = ("_first_at", "count", "due", "first", "next_at", "number")

    def __init__(self) -> None:
        self.count = self.due = 0
        self.number = 0
        """in the order of the file's rows: that of `first`"""
        self.first: Row | None = None
        self.next_at: int | None = None
        self._first_at: int | None = None

    def place(self) -> tuple[int, int]:
        """Return what orders the types: when `first` became due, then its place in the file."""
        return self._first_at or 0, self.number

    def add(self, created_at: int, run_at: int, now: float) -> bool:
        """Add a job; return whether it is the new `first`."""
        self.count += 1
        if run_at > now:
            if self.next_at is None or run_at < self.next_at:
                self.next_at = run_at
            return False
        self.due += 1
        due_at = max(created_at, run_at)
        if self._first_at is not None and self._first_at <= due_at:
            return False
        self._first_at = due_at
        return True


def _row(cells: list[bytes], place: int) -> Row:
    """Return the job that the cells of a plain row make."""
    at = 9 * place
    error = cells[at + 7].decode()
    if not error.isprintable():
        row = parse_row(b"\t".join(cells[at : at + 9]).removesuffix(b"\n"))
        assert row is not None
        return row
    state = State(
        cells[at + 3].decode(),
        int(cells[at + 4]),
        int(cells[at + 5]),
        int(cells[at + 6]),
        error,
        cells[at + 8].removesuffix(b"\n").removesuffix(b"\r").decode(),
    )
    return Row(cells[at].decode(), cells[at + 1].decode(), cells[at + 2].decode(), state)


def _records(path: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the id and the encoded state of each record of a journal."""
    for content in Tail(open_file(path, os.O_RDONLY)).new():
        for line in content.split(b"\n"):
            if record := decode_record(line):
                yield record


def _ignore(_: int) -> None:
    pass
