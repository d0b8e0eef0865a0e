"""What is known about the rows: which jobs there are, and when they are due. Nothing here does I/O.

Each line after the header has a number, from 0, whether or not it is a job. Rows are only appended,
and a fold keeps their order, so a row keeps its number. If a rewrite leaves rows out, the numbers
change, and everything is read again.
"""

from __future__ import annotations

import math
from array import array
from itertools import compress

from dbbasic_queue.model import states
from dbbasic_queue.model.records import decode_state, with_state
from dbbasic_queue.model.rows import Row, is_binary, parse_row
from dbbasic_queue.store.reading.bulk import NEVER, PENDING, PROCESSING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.reading.bulk import Columns

_BLOCK_BITS = 10
_BLOCK_ROWS = 1 << _BLOCK_BITS
_MOST_LISTED = 1 << 16
"""of how many jobs the index remembers that they became pending, or have changed"""


class Index:
    """The jobs by id, and the pending ones by the time that they are due.

    `index`           id -> number of its row; the first one if several rows have the id
    `records`         id -> the job's last state in the journal, encoded; after a fold of this
                      process, only of running jobs. There may be no row with the id
    `when`            number -> `run_at` of a pending job, NEVER for every other line
    `soonest`         no pending job is due before this instant
    `floors`          block of 1,024 rows -> no pending job in it is due before this instant
    `processing`      numbers of the jobs with this status
    `retrying`        numbers of the pending jobs that have been attempted before
    `pending_count`   how many times a single job has become pending since `clear`, by a retry, a
                      requeue or a changed `run_at`, or got a new payload; see `pending_since`
    `latest_created`  the latest `created_at`; `clocks` lowers it after checking the jobs above it
    `unreadable`      numbers of the lines that are known not to be jobs, in any order, perhaps
                      twice. A payload that isn't JSON is noticed only when its job is due
    `changed`         numbers of the rows that may have changed since `counts` has set this to an
                      empty list, in any order, perhaps twice; None if they aren't known
    `binary`          whether one of those makes grep treat the file as binary; lines that are too
                      long for a row aren't checked
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all rows and records."""
        self.index: dict[bytes, int] = {}
        self.records: dict[bytes, bytes] = {}
        self.when = array("q")
        self.soonest = NEVER
        self.floors: list[int] = []
        self.processing: set[int] = set()
        self.retrying: set[int] = set()
        self.pending_count = 0
        self._became_pending: list[int] = []
        """the numbers of the last of those jobs"""
        self.latest_created = 0
        self.unreadable: list[int] = []
        self.changed: list[int] | None = None
        self.binary = False

    # -- adding rows, in the order of their numbers --

    def add_jobs(self, columns: Columns) -> None:
        """Add plain rows (see `bulk`). A row with an id that is known already isn't a job."""
        ids, statuses, times, attempts, latest_created = columns
        first = len(self.when)
        numbers = list(range(first, first + len(ids)))
        owners = list(map(self.index.setdefault, ids, numbers))
        if statuses.count(PENDING) != len(ids):
            self.processing.update(compress(numbers, map(PROCESSING.__eq__, statuses)))
        if attempts.count(b"0") != len(ids):
            self.retrying.update(
                number
                for number, at, attempt in zip(numbers, times, attempts, strict=True)
                if at != NEVER and attempt != b"0"
            )
        self._extend(times)
        self.latest_created = max(self.latest_created, latest_created)
        if owners != numbers:
            for number, owner in zip(numbers, owners, strict=True):
                if number != owner:
                    self._mark_unreadable(number)
        if self.records:
            for job_id in filter(self.records.__contains__, ids):
                self.apply(job_id, self.records[job_id])

    def add_line(self, line: bytes) -> None:
        """Add any line, given without its line end."""
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
            self._mark_unreadable(number)
            self.binary = self.binary or is_binary(line)

    def add_long_line(self) -> None:
        """Add a line that is too long for a row."""
        self._extend([NEVER])
        self._mark_unreadable(len(self.when) - 1)

    def _mark_unreadable(self, number: int) -> None:
        self.when[number] = NEVER
        self.processing.discard(number)
        self.retrying.discard(number)
        self.unreadable.append(number)

    # -- states --

    def apply(self, job_id: bytes, state: bytes) -> None:
        """Give a job the state (encoded) that the journal has for it.

        If the id has no row yet, the record is kept for one that is added later.
        """
        self.records[job_id] = state
        number = self.index.get(job_id)
        if number is None:
            return
        if self.changed is not None:
            self._note_change(number)
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

    def replace(self, number: int, state: State) -> None:
        """Give a job the state that its row has in a new file."""
        if self.changed is not None:
            self._note_change(number)
        self.when[number] = NEVER
        self.processing.discard(number)
        self.retrying.discard(number)
        self._set(number, state.status, state.run_at, state.attempts > 0)
        self.latest_created = max(self.latest_created, state.created_at)

    def _set(self, number: int, status: str, run_at: int, was_attempted: bool) -> None:
        """Set the state of a row that has none yet: it is NEVER due, and in no set."""
        if status == states.PROCESSING:
            self.processing.add(number)
        elif status == states.PENDING:
            self.when[number] = run_at
            if run_at < self.soonest:
                self.soonest = run_at
            block = number >> _BLOCK_BITS
            if run_at < self.floors[block]:
                self.floors[block] = run_at
            if was_attempted:
                self.retrying.add(number)
            self.note_pending(number)

    def note_pending(self, number: int) -> None:
        """Remember a job that became pending, or whose payload was replaced."""
        if self.changed is not None:
            self._note_change(number)
        self.pending_count += 1
        self._became_pending.append(number)
        if len(self._became_pending) > _MOST_LISTED:
            self._became_pending.clear()

    def _note_change(self, number: int) -> None:
        if self.changed is not None:
            self.changed.append(number)
            if len(self.changed) > _MOST_LISTED:
                self.changed = None

    def pending_since(self, count: int) -> list[int] | None:
        """Return the numbers of the jobs that have become pending since `pending_count` was this.

        Returns None if they aren't known any more.
        """
        new = self.pending_count - count
        if new > len(self._became_pending):
            return None
        return self._became_pending[len(self._became_pending) - new :]

    # -- due times --

    def _extend(self, times: list[int]) -> None:
        """Add rows that are due at these times."""
        first = len(self.when)
        self.when.extend(times)
        earliest = min(times)
        self.soonest = min(self.soonest, earliest)
        for block in range(first >> _BLOCK_BITS, ((len(self.when) - 1) >> _BLOCK_BITS) + 1):
            if block == len(self.floors):
                self.floors.append(earliest)
            elif earliest < self.floors[block]:
                self.floors[block] = earliest

    def due(self, now: float, before: int) -> array[int]:
        """Return the numbers, below `before`, of the jobs that are due at `now`.

        The job that is to run next comes last: earliest `run_at`, then lowest number. Reads only
        the blocks of rows that may have a due job.
        """
        bits = before.bit_length()
        instant = math.floor(now)
        when = self.when
        codes: list[int] = []  # `run_at` and number in one int: a single sort orders by both
        for block, floor in enumerate(self.floors):
            start = block << _BLOCK_BITS
            if floor > instant or start >= before:
                continue
            times = when[start : start + _BLOCK_ROWS]
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
        """Return the earliest `run_at` after `instant` that a pending job has, or NEVER."""
        found = NEVER
        for block, floor in enumerate(self.floors):
            if floor < found:
                times = self.when[block << _BLOCK_BITS : (block + 1) << _BLOCK_BITS]
                self.floors[block] = min(times)
                found = min((at for at in times if instant < at < found), default=found)
        return found

    # -- which records a fold leaves --

    def keep_only_processing(self) -> None:
        """Drop the records of all jobs except those that are processing.

        The outcome of a job is accepted only if its record is still the one that its claim wrote.
        """
        kept: dict[bytes, bytes] = {}
        for job_id, state in reversed(self.records.items()):  # claims are mostly among the last
            if len(kept) == len(self.processing):
                break
            if state.startswith(PROCESSING):
                kept[job_id] = state
        self.records = dict(reversed(kept.items()))


# -- lines and the journal, joined --


def job_on(
    number: int, line: bytes, index: Mapping[bytes, int], records: Mapping[bytes, bytes]
) -> Row | None:
    r"""Return the job on a line, in its current state; None if the line isn't a job's.

    `index` and `records` are those of an `Index`. The payload isn't checked.

    >>> line = b"a\tgreet\t{}\tpending\t5\t7\t0\t\t"
    >>> job_on(3, line, {b"a": 3}, {b"a": b"cancelled\t5\t7\t0\t\t"}).state.status
    'cancelled'
    >>> job_on(4, line, {b"a": 3}, {}) is None  # line 3 has this id
    True
    """
    row = parse_row(line)
    if row is None:
        return None
    job_id = row.id.encode()
    if index.get(job_id) != number:
        return None
    state = records.get(job_id)
    if state is not None:
        row.state = decode_state(state)
    return row


def current_line(line: bytes, records: Mapping[bytes, bytes]) -> bytes:
    r"""Return a job's line in its current state: the journal's, if it has one.

    >>> line = b"a\tgreet\t{}\tpending\t5\t7\t0\t\t"
    >>> current_line(line, {b"a": b"cancelled\t5\t7\t0\t\t"})
    b'a\tgreet\t{}\tcancelled\t5\t7\t0\t\t'
    """
    state = records.get(line[: line.find(b"\t")]) if records else None
    return line if state is None else with_state(line, state)
