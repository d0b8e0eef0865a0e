"""What the file and its journal say, kept up to date by reading only what is new.

A row is known by its number: rows are appended, and a fold keeps their order, so numbers outlive
a fold. Anybody else's fold renames a new file into place. The cached one is held open, so that its
inode number cannot be reused, and the new one can be compared with it: what is the same is not
read again. Where it has not the same jobs in the same order, all is read anew.

A reader takes no lock. It reads the journal first and the file second, so a change that is folded
in between is seen in the file; and it looks whether the file is still the same afterwards, since
only then was the journal not cut meanwhile (a fold renames before it cuts).
"""

from __future__ import annotations

import math
import os
import time
from array import array
from itertools import compress

from dbbasic_queue.errors import StoreError
from dbbasic_queue.model import states
from dbbasic_queue.model.rows import (
    HEADER,
    LONGEST_ROW,
    Row,
    decode_record,
    decode_state,
    has_json,
    is_binary,
    parse_row,
    with_state,
)
from dbbasic_queue.store.disk.files import open_file, unstable_inodes
from dbbasic_queue.store.reading.bulk import PENDING, PROCESSING, scan
from dbbasic_queue.store.reading.offsets import Places
from dbbasic_queue.store.reading.replaced import changed_rows
from dbbasic_queue.store.reading.tail import (
    Follower,
    Rewritten,
    require_header,
    require_header_begun,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEVER = 1 << 62
_SHOWN_BYTES = 800
_BLOCK_BITS = 10
_BLOCK = 1 << _BLOCK_BITS
_TRIES = 100
_TRUST = 600.0
"""Seconds after which a file that was replaced is read as a whole, for who edits one in place by
hand, and keeps its length, is noticed by that alone."""


class View:
    """The queue as its files say it; not thread-safe: the store's mutex is held around it.

    `index`       id -> number of the row (of the first one, where an id is there twice)
    `places`      where each row lies
    `when`        number -> `run_at` of a pending job, NEVER for all others
    `floors`      block of rows -> no pending job of the block is due before this instant
    `soonest`     no pending job is due before this instant
    `processing`  numbers of the jobs in that status
    `retrying`    numbers of the pending jobs with an attempt behind them
    `latest_created` no job was enqueued after this instant
    `unreadable`  numbers of the lines that are no job
    `binary`      whether one of those would stop grep
    `generation`  grows when rows that were read before have to be read again
    `numbering`   grows when the numbers of rows may have changed
    `records`     id -> the state that the journal gives it, as bytes
    `bad_records` how many damaged records were skipped since a pass last reported them
    `seconds_anew` how long it took to go on when somebody else had folded; 0 until then
    `whole`       False while this is being changed. If an exception, such as that of a signal
                  handler, ends the change, all is forgotten before the next reading
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.generation = 0
        self.numbering = 0
        self.seconds_anew = 0.0
        self.bad_records = 0
        self._forget()

    def _forget(self) -> None:
        self.whole = False
        self.rows = Follower(None)
        self.journal = Follower(None)
        self.loaded = False
        self.index: dict[bytes, int] = {}
        self.places = Places()
        self.when = array("q")
        self.floors: list[int] = []
        self.soonest = NEVER
        self.latest_created = 0
        self.processing: set[int] = set()
        self.retrying: set[int] = set()
        self.unreadable: list[int] = []
        self.binary = False
        self.records: dict[bytes, bytes] = {}
        self._ahead: list[bytes] = []
        self._ahead_from = 0
        self._anew_at = time.monotonic()
        self.generation += 1
        self.numbering += 1
        self.whole = True

    def close(self) -> None:
        """Forget what was read; the files are closed when nobody else uses them either."""
        self._forget()

    # -- reading --

    def refresh(self) -> None:
        """Read what is new; afterwards nothing that was acknowledged before the call is missed."""
        began = time.perf_counter()
        if not self.follow():
            for _ in range(_TRIES):
                if self.follow():
                    break
            else:
                raise unstable_inodes(self.path)
            self.seconds_anew = time.perf_counter() - began

    def follow(self) -> bool:
        """Read what is new; False where another file is there now.

        Then what is known was fitted to that as far as it could be: the next call goes on from
        there.
        """
        file = self.rows.file
        if not self.whole or not (self.rows.anchor or file is None or file.is_ours()):
            self._forget()
        self.whole = False
        try:
            self._open()
            records = self._new_records()
            for content in self.rows.new(self._add_long_line):
                self._scan(content)
            if self.rows.file is not None and not self.rows.end:
                require_header_begun(self.rows.file)
            if self.rows.file is None or self.rows.file.is_at_path():
                for job_id, state in records:
                    self.apply(job_id, state)
                self.loaded = self.whole = True
                return True
        except (Rewritten, StoreError) as e:
            if file is not None and not file.is_ours():  # it is not what was read
                self._forget()
                return False
            if not isinstance(e, Rewritten):
                raise
        self._take_over()
        return False

    def follow_journal(self) -> bool:
        """Read what is new in the journal alone; False where it cannot be told that this is all.

        It can where the journal still has what was read of it: a fold cuts it.
        """
        if not self.whole or not self.loaded or not self.journal.end:
            return False
        self.whole = False
        try:
            for job_id, state in self._new_records():
                self.apply(job_id, state)
        except Rewritten:
            self.whole = True
            return False
        except StoreError:  # has the program closed the descriptor? all is read again
            return False
        self.whole = True
        return self.journal.is_current()

    def follow_moved(self) -> None:
        """Read what is new in the files that are open, whose directory was moved elsewhere.

        If the rows were replaced there, everything is forgotten.
        """
        if not self.whole:
            self._forget()
        self.whole = False
        try:
            if self.rows.file is None or not os.fstat(self.rows.file.fd).st_nlink:
                raise Rewritten
            records = self._new_records()
            for content in self.rows.new():
                self._scan(content)
            for job_id, state in records:
                self.apply(job_id, state)
            self.whole = True
        except BaseException as e:
            self._forget()
            if not isinstance(e, Rewritten):
                raise

    def _take_over(self) -> None:
        """Fit what is known of the old file to the one that is there now; or forget it."""
        known, self.loaded = self.loaded, False
        try:
            new = open_file(self.path, os.O_RDONLY)
            if not known or new is None or time.monotonic() - self._anew_at > _TRUST:
                raise Rewritten
            touched = sorted(n for n in map(self.index.get, self.records) if n is not None)
            end, changed = changed_rows(self.rows, new, self.places, touched)
            for number, was, line in changed:
                job_id = line[: line.find(b"\t")]
                if self.index.get(job_id) != number:
                    raise Rewritten
                state = self.records.get(job_id)
                if state is not None and line == with_state(was, state):
                    continue  # as its record said
                row = parse_row(line)
                if row is None:
                    raise Rewritten
                self.when[number] = NEVER
                self.processing.discard(number)
                self.retrying.discard(number)
                self._set(number, row.state.status, row.state.run_at, row.state.attempts > 0)
                self.latest_created = max(self.latest_created, row.state.created_at)
            numbers, lengths = [n for n, *_ in changed], [len(line) for *_, line in changed]
            self.places.moved(len(HEADER), numbers, lengths)
            self.rows = Follower(new, end, self.places.length(-1) if self.when else 0)
            self.journal = Follower(None)
            self.records = {}
            self._ahead = []
            self.generation += 1
            self.loaded = self.whole = True
        except (Rewritten, ValueError):  # the latter where the old file was written over
            self._forget()

    def _open(self) -> None:
        if self.rows.file is None:
            self.rows = Follower(open_file(self.path, os.O_RDONLY))
        journal = self.journal.file
        if journal is None or not journal.is_ours() or not journal.is_at_path():
            if self.journal.end:
                raise Rewritten
            journal = open_file(self.path + ".journal", os.O_RDONLY)
            if journal is not None or self.journal.file is not None:
                self.journal = Follower(journal)

    def _new_records(self) -> list[tuple[bytes, bytes]]:
        records: list[tuple[bytes, bytes]] = []
        if self.journal.file is None:
            return records
        for content in self.journal.new():
            for line in content.split(b"\n"):
                record = decode_record(line)
                if record is not None:
                    records.append(record)
                elif line:
                    self.bad_records += 1
        return records

    def _scan(self, content: bytes) -> None:
        if self.rows.end == len(content):
            header, _, content = content.partition(b"\n")
            require_header(header, self.path)
            self.places = Places(len(header) + 1)
        for piece, columns in scan(content):
            lines = piece.split(b"\n")
            lines.pop()
            self.places.extend(map(len, lines))
            if columns is not None:
                self._add_jobs(*columns)
            else:
                for line in lines:
                    self._add_line(line)

    def _add_jobs(
        self,
        ids: list[bytes],
        statuses: list[bytes],
        times: list[int],
        attempts: list[bytes],
        latest_created: int,
    ) -> None:
        first = len(self.when)
        numbers = list(range(first, first + len(ids)))
        holders = list(map(self.index.setdefault, ids, numbers))
        if statuses.count(PENDING) != len(ids):
            times = [
                at if status == PENDING else NEVER
                for at, status in zip(times, statuses, strict=True)
            ]
            self.processing.update(
                number
                for number, status in zip(numbers, statuses, strict=True)
                if status == PROCESSING
            )
        if attempts.count(b"0") != len(ids):
            self.retrying.update(
                number
                for number, at, attempt in zip(numbers, times, attempts, strict=True)
                if at != NEVER and attempt != b"0"
            )
        self.when.extend(times)
        earliest = min(times)
        self._lower(first, earliest)
        self.soonest = min(self.soonest, earliest)
        self.latest_created = max(self.latest_created, latest_created)
        if holders != numbers:
            for number, holder in zip(numbers, holders, strict=True):
                if number != holder:
                    self._is_no_job(number)
        if self.records:
            for job_id in filter(self.records.__contains__, ids):
                self.apply(job_id, self.records[job_id])

    def _add_line(self, line: bytes) -> None:
        number = len(self.when)
        self.when.append(NEVER)
        if number >> _BLOCK_BITS == len(self.floors):
            self.floors.append(NEVER)
        row = parse_row(line)
        job_id = row.id.encode() if row else b""
        if row and self.index.setdefault(job_id, number) == number:
            state = row.state
            self._set(number, state.status, state.run_at, state.attempts > 0)
            if state.created_at > self.latest_created:
                self.latest_created = state.created_at
            if job_id in self.records:
                self.apply(job_id, self.records[job_id])
        elif line:
            self._is_no_job(number)
            self.binary = self.binary or is_binary(line)

    def _add_long_line(self, length: int) -> None:
        if self.rows.end == length + 1:
            require_header(b"", self.path)
        self.places.extend([length])
        self.when.append(NEVER)
        self._lower(len(self.when) - 1, NEVER)
        self.unreadable.append(len(self.when) - 1)

    def has_torn_row(self) -> bool:
        """Tell whether the file had a last line without an end, and it is not the header."""
        return self.rows.torn and self.rows.end > 0

    def _is_no_job(self, number: int) -> None:
        self.when[number] = NEVER
        self.processing.discard(number)
        self.retrying.discard(number)
        self.unreadable.append(number)

    def apply(self, job_id: bytes, state: bytes) -> None:
        """Take note of a job's new state, as the journal holds it."""
        self.records[job_id] = state
        number = self.index.get(job_id)
        if number is None:
            return
        self.when[number] = NEVER
        if self.retrying:
            self.retrying.discard(number)
        if state.startswith(PROCESSING):
            self.processing.add(number)
            return
        self.processing.discard(number)
        if state.startswith(PENDING):
            _, _, run_at, attempts, _ = state.split(b"\t", 4)
            self._set(number, states.PENDING, int(run_at), attempts != b"0")

    def _lower(self, first: int, instant: int) -> None:
        """Note that the rows from `first` on may have jobs that are due at the instant."""
        for block in range(first >> _BLOCK_BITS, ((len(self.when) - 1) >> _BLOCK_BITS) + 1):
            if block == len(self.floors):
                self.floors.append(instant)
            elif instant < self.floors[block]:
                self.floors[block] = instant

    def _set(self, number: int, status: str, run_at: int, begun: bool) -> None:
        """Take note of a job's state where none is noted."""
        if status == states.PROCESSING:
            self.processing.add(number)
        elif status == states.PENDING:
            self.when[number] = run_at
            if run_at < self.soonest:
                self.soonest = run_at
            block = number >> _BLOCK_BITS
            if run_at < self.floors[block]:
                self.floors[block] = run_at
            if begun:
                self.retrying.add(number)

    def unread(self) -> int:
        """Return about how many bytes `refresh` would have to read."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return 0
        file = self.rows.file
        is_known = self.loaded and file and file.identity == (status.st_dev, status.st_ino)
        new = status.st_size - self.rows.end if is_known else status.st_size
        return new + self.journal.size() - self.journal.end

    # -- asking --

    def line(self, number: int, ahead: int = 0) -> bytes:
        """Return a row's line as the file holds it, without its end.

        About `ahead` bytes of rows are read with it, for those that are asked for next.
        """
        at = number - self._ahead_from
        if 0 <= at < len(self._ahead):
            return self._ahead[at]
        file = self.rows.file
        assert file is not None
        start, length = self.places.extent(number)
        if not ahead:
            return os.pread(file.fd, length, start)
        lengths = self.places.lengths(number, ahead)
        content = os.pread(file.fd, sum(lengths) + len(lengths) - 1, start)
        if len(lengths) == 1:
            return content
        lines = content.split(b"\n")
        if list(map(len, lines)) != lengths:  # edited in place
            return content[: lengths[0]]
        self._ahead, self._ahead_from = lines, number
        return lines[0]

    def row(self, number: int, ahead: int = 0) -> Row | None:
        """Return a row with what the journal says of it; None for a line that is no job."""
        return self.joined(number, self.line(number, ahead))

    def joined(self, number: int, line: bytes) -> Row | None:
        """Return the job on line `number` with what the journal says of it, or None."""
        row = parse_row(line)
        if row is None:
            return None
        job_id = row.id.encode()
        if self.index.get(job_id) != number:
            return None
        state = self.records.get(job_id)
        if state is not None:
            row.state = decode_state(state)
        return row

    def is_unreadable(self, number: int) -> bool:
        """Tell whether a line isn't a job, and isn't empty."""
        length = self.places.length(number)
        if not 0 < length <= LONGEST_ROW:
            return length > 0
        row = self.row(number)
        return row is None or not has_json(row)

    def find(self, job_id: bytes) -> Row | None:
        """Return the job with this id, or None."""
        row = self.row_of(job_id)
        return row if row and has_json(row) else None

    def row_of(self, job_id: bytes) -> Row | None:
        """Return the row with this id, or None; if its payload isn't JSON, it isn't a job."""
        number = self.index.get(job_id)
        return None if number is None else self.row(number)

    def as_it_stands(self, line: bytes) -> bytes:
        """Return a job's line with what the journal says of it."""
        state = self.records.get(line[: line.find(b"\t")]) if self.records else None
        return line if state is None else with_state(line, state)

    def rows_as_they_stand(
        self, unreadable: Callable[[int, bytes, int], object] = lambda *_: None
    ) -> Iterator[tuple[int, bytes, Row]]:
        """Yield number, line and row of every job of the file that is open now.

        Both say what the journal says. `unreadable` is called for each line that isn't a job, with
        its number, its beginning and its length.
        """
        number = 0
        end = self.rows.end
        reader = Follower(self.rows.file)

        def count(length: int) -> None:
            nonlocal number
            assert reader.file is not None
            beginning = os.pread(reader.file.fd, _SHOWN_BYTES, reader.end - length - 1)
            unreadable(number, beginning, length)
            number += 1

        for content in reader.new(count):
            if reader.end - len(content) >= end:
                return
            lines = content[: len(content) - max(reader.end - end, 0)].split(b"\n")
            lines.pop()
            if reader.end == len(content):
                lines.pop(0)
            for line in lines:
                row = self.joined(number, line)
                if row is not None and has_json(row):
                    yield number, self.as_it_stands(line), row
                elif line:
                    unreadable(number, line, len(line))
                number += 1
            if reader.end >= end:
                return

    def snapshot(self) -> View:
        """Return a view for `rows_as_they_stand` that later changes do not touch."""
        view = View(self.path)
        view.rows = Follower(self.rows.file)
        view.rows.end = self.rows.end
        view.index = self.index  # grows, or is replaced whole: what it says of a row stays
        view.records = dict(self.records)
        view.generation = self.generation
        view.numbering = self.numbering
        return view

    def due(self, now: float, before: int) -> array[int]:
        """Return the numbers, below `before`, of the jobs that are due, latest `run_at` first.

        Blocks of rows without a due job are passed over.
        """
        bits = before.bit_length()
        instant = math.floor(now)
        when = self.when
        codes: list[int] = []
        for block, floor in enumerate(self.floors):
            start = block << _BLOCK_BITS
            if floor > instant or start >= before:
                continue
            times = when[start : start + _BLOCK]
            count = len(codes)
            numbers = range(start, min(start + len(times), before))
            found = compress(numbers, map(instant.__ge__, times))
            codes += [when[number] << bits | number for number in found]
            if count == len(codes):
                self.floors[block] = min(times)
        if not codes:
            self.soonest = min(self.floors, default=NEVER)
        codes.sort(reverse=True)
        return array("q", map(((1 << bits) - 1).__and__, codes))

    def next_after(self, instant: float) -> int:
        """Return the earliest `run_at` after an instant, or NEVER."""
        found = NEVER
        for block, floor in enumerate(self.floors):
            if floor < found:
                times = self.when[block << _BLOCK_BITS : (block + 1) << _BLOCK_BITS]
                self.floors[block] = min(times)
                found = min((at for at in times if instant < at < found), default=found)
        return found

    # -- following our own changes --

    def wrote(self, content: bytes, changes: list[tuple[bytes, bytes]]) -> None:
        """Take note of records that this process has appended to the journal."""
        self.whole = False
        self.journal.passed(content)
        for job_id, state in changes:
            self.apply(job_id, state)
        self.whole = True

    def adopt(self, rows: Follower, numbers: list[int], lengths: list[int]) -> None:
        """Go on with the file that a fold of ours has put into place; the journal is empty now.

        The rows of these numbers have these lengths in it. The states of jobs in hand are kept:
        their outcomes are compared with them.
        """
        self.whole = False
        in_hand: dict[bytes, bytes] = {}
        for job_id, state in reversed(self.records.items()):  # they are among the last
            if len(in_hand) == len(self.processing):
                break
            if state.startswith(PROCESSING):
                in_hand[job_id] = state
        self.records = dict(reversed(in_hand.items()))
        self.rows = rows
        self.places.moved(len(HEADER), numbers, lengths)
        self.journal = Follower(self.journal.file)
        self._ahead = []
        self.generation += 1
        self.whole = True
