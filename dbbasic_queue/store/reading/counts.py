"""How many jobs of each status and type there are, which are due first, and which have errors.

That is for a process that looks at the queue again and again: a look costs what has changed since
the last one, whatever the queue's length. The first look reads all rows. Later ones read the rows
that were added, and those that the view knows to have changed. If rows may have got other numbers,
everything is read again.

The view has read each row before, and knows which lines aren't jobs. So only what is counted is
parsed here, and only the payload is checked.

What is counted is what `stream` counts: a test compares them after any sequence of changes.
"""

from __future__ import annotations

import math
import os
from array import array
from bisect import bisect_left
from collections import defaultdict
from itertools import compress
from operator import add, itemgetter, ne

from dbbasic_queue.model.rows import LONGEST_ROW_BYTES, has_json
from dbbasic_queue.model.states import (
    CANCELLED,
    DELAYED,
    FAILED,
    MOVE_MARKS,
    PENDING,
    PROCESSING,
    STATUSES,
    is_moved,
    is_moving,
)
from dbbasic_queue.model.strict_json import all_json
from dbbasic_queue.store.protocol import Overview, Waiting
from dbbasic_queue.store.reading.bulk import NEVER, halved, nine_per_line
from dbbasic_queue.store.reading.index import job_on
from dbbasic_queue.store.reading.ordered import Ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.reading.view import View

_READ_BYTES = 1 << 18
_READ_AHEAD_BYTES = 1 << 16
_ROWS_AT_ONCE = 20_000
_FEW_SHARE = 16
"""Rows are read one by one if they are fewer than one in that many."""

_NO_JOB, _LATER, _DUE = range(3)
_CODES = {status: code for code, status in enumerate(STATUSES, _DUE) if status != PENDING}
"""status -> what a row with it is, if it isn't pending: then it is `_LATER` or `_DUE`"""
_ENCODED = {status.encode(): code for status, code in _CODES.items()} | {PENDING.encode(): _LATER}
_PROCESSING = _CODES[PROCESSING]
"""larger codes are those of finished jobs"""
_FAILED = _CODES[FAILED]
_CANCELLED = _CODES[CANCELLED]
_DELAYED = DELAYED.encode()
_MOVE_MARKS = tuple(mark.encode() for mark in MOVE_MARKS)
_OPEN = frozenset((PENDING, FAILED))

_BLOCK_BITS = 10
_BLOCK_ROWS = 1 << _BLOCK_BITS

_NUMBER_BITS = 32
_NUMBERS = (1 << _NUMBER_BITS) - 1
"""An instant and a row's number are one int: a sort orders by both."""


class _OfType:
    """The pending jobs of one type: as instant and number in one int, see `_NUMBER_BITS`.

    `later`  those that aren't due yet, by `run_at`
    `due`    the others, by the instant when they became due; see `Waiting`
    `first`  the first of them, if it was read since it last changed
    """

    __slots__ = ("due", "first", "later")

    def __init__(self) -> None:
        self.later = Ordered()
        self.due = Ordered()
        self.first: Row | None = None


class _Plain:
    """What is counted of adjacent rows, one value per row in each column.

    `codes` is what each job is, if it is pending, `_LATER`. `due_at` is when it became due.
    """

    __slots__ = ("codes", "due_at", "errors", "ids", "payloads", "run_at", "types")

    def __init__(self, cells: list[bytes]) -> None:
        """Raises KeyError, OverflowError or ValueError if one isn't as this program writes it."""
        self.ids, self.types, self.payloads = cells[::9], cells[1::9], cells[2::9]
        self.codes = bytearray(map(_ENCODED.__getitem__, cells[3::9]))
        created_at, run_at = cells[4::9], cells[5::9]
        self.run_at = array("q", list(map(int, run_at)))
        self.due_at = self.run_at[:]
        for place in compress(range(len(run_at)), map(ne, created_at, run_at)):
            self.due_at[place] = max(self.run_at[place], int(created_at[place]))
        self.errors = cells[7::9]

    @classmethod
    def parse(cls, content: bytes) -> _Plain | None:
        """Return the columns of complete lines; None if they must be parsed one by one."""
        cells = nine_per_line(content)
        try:
            return None if cells is None else cls(cells)
        except (KeyError, OverflowError, ValueError):
            return None

    def set_state(self, place: int, state: bytes) -> None:
        """Replace the state of a row by the one that the journal has for it."""
        status, created_at, run_at, _, error, _ = state.split(b"\t")
        self.codes[place] = _ENCODED[status]
        self.run_at[place] = int(run_at)
        self.due_at[place] = max(int(run_at), int(created_at))
        self.errors[place] = error


class Counts:
    """The jobs of a view, counted. Call its methods while `QueueLock.read` keeps threads out.

    `rebuilt`  grows when everything was read again
    `errors`   number -> id and `run_at` of each pending or failed job whose last attempt failed
    `moving`   number -> error of each job that is being moved, or was moved, to another queue
    """

    def __init__(self, view: View) -> None:
        self.rebuilt = 0
        self._view = view
        self._forget()

    def _forget(self) -> None:
        self._numbering = -1
        """that of the view when all rows were read"""
        self._now = -math.inf
        self._codes = bytearray()
        """number -> `_NO_JOB`, or what the job is"""
        self._types = array("q")
        """number -> number of the type, of a pending job"""
        self._run_at = array("q")
        self._due_at = array("q")
        self._numbers_of_types: dict[bytes, int] = {}
        self._names: list[str] = []
        self._of_type: list[_OfType] = []
        self._counts = [0] * (_DUE + len(STATUSES))
        """what a job is -> how many there are"""
        self._oldest: list[int] = []
        """block of rows -> the earliest instant at which one of its finished jobs was due"""
        self._changed_blocks: set[int] = set()
        """the blocks for which that has to be found again"""
        self._new_later: defaultdict[int, list[int]] = defaultdict(list)
        """instants and numbers of rows that were read, but aren't in order yet, by type"""
        self._not_json: set[int] = set()
        self._unreadable: tuple[int, list[int]] | None = None
        """how many numbers the view's list had, and those of all unreadable lines"""
        self.errors: dict[int, tuple[str, int]] = {}
        self._changed_errors: list[int] = []
        self.moving: dict[int, str] = {}

    # -- keeping up to date --

    def update(self, now: float) -> bool:
        """Count what is new. Returns False if there is more, so that other threads get a chance.

        Call it after `refresh` of the view. Until it has returned True, call nothing else here. If
        an exception ends this, the next call reads everything again.
        """
        view = self._view
        if view.changed is None or self._numbering != view.numbering:
            self._forget()
            self.rebuilt += 1
            view.changed = []
            self._numbering = view.numbering
        numbering, self._numbering = self._numbering, -1
        if self._read_new():
            self._add_new()
            changed, view.changed = view.changed, []
            self._read_again(sorted(set(changed)))
            self._set_now(now)
        self._numbering = numbering
        return len(self._codes) == len(view.when)

    def _read_again(self, numbers: list[int]) -> None:
        ahead = _READ_AHEAD_BYTES if len(numbers) * _FEW_SHARE > len(self._codes) else 0
        view = self._view
        for number in numbers:
            self._remove(number)
            if view.offsets.length(number) <= LONGEST_ROW_BYTES:
                self._add_line(number, view.line(number, ahead))

    def _remove(self, number: int) -> None:
        """Forget what a row was."""
        code = self._codes[number]
        self._counts[code] -= 1
        self._codes[number] = _NO_JOB
        if code in (_LATER, _DUE):
            of_type = self._of_type[self._types[number]]
            if code == _LATER:
                of_type.later.remove(self._run_at[number] << _NUMBER_BITS | number)
            else:
                of_type.due.remove(self._due_at[number] << _NUMBER_BITS | number)
                of_type.first = None
        elif code > _PROCESSING:
            self._changed_blocks.add(number >> _BLOCK_BITS)
        if number in self._not_json:
            self._not_json.discard(number)
            self._unreadable = None
        if self.errors.pop(number, None) is not None:
            self._changed_errors.append(number)
        self.moving.pop(number, None)

    def _add_line(self, number: int, line: bytes) -> None:
        """Count a row that was `_NO_JOB` so far."""
        self._counts[_NO_JOB] -= 1
        row = job_on(number, line, self._view.index, self._view.records)
        if row is None or not has_json(row):
            self._counts[_NO_JOB] += 1
            if row is not None:
                self._not_json.add(number)
                self._unreadable = None
            return
        state = row.state
        code = _CODES.get(state.status, _LATER)
        due_at = max(state.run_at, state.created_at)
        self._run_at[number], self._due_at[number] = state.run_at, due_at
        if code == _LATER:
            self._types[number] = place = self._type(row.type.encode())
            of_type = self._of_type[place]
            if state.run_at <= self._now:
                code = _DUE
                of_type.due.add(due_at << _NUMBER_BITS | number)
                of_type.first = None
            else:
                of_type.later.add(state.run_at << _NUMBER_BITS | number)
        elif code > _PROCESSING:
            self._changed_blocks.add(number >> _BLOCK_BITS)
        self._codes[number] = code
        self._counts[code] += 1
        if state.error and state.status in _OPEN and not state.error.startswith(DELAYED):
            self.errors[number] = (row.id, state.run_at)
            self._changed_errors.append(number)
        if is_moving(state) or is_moved(state):
            self.moving[number] = state.error

    def _type(self, name: bytes) -> int:
        found = self._numbers_of_types.get(name)
        if found is None:
            found = self._numbers_of_types[name] = len(self._names)
            self._names.append(name.decode())
            self._of_type.append(_OfType())
        return found

    # -- rows that are new --

    def _read_new(self) -> bool:
        """Read rows that the view has read since the last call; return whether these were all."""
        view, first = self._view, len(self._codes)
        count = min(len(view.when) - first, _ROWS_AT_ONCE)
        self._codes.extend(bytes(count))
        self._counts[_NO_JOB] += count
        for column in (self._types, self._run_at, self._due_at):
            column.frombytes(bytes(8 * count))
        number, after = first, first + count
        self._oldest += [NEVER] * ((after + _BLOCK_ROWS - 1 >> _BLOCK_BITS) - len(self._oldest))
        self._changed_blocks.update(range(first >> _BLOCK_BITS, len(self._oldest)))
        while number < after:
            lengths = view.offsets.lengths(number, _READ_BYTES)[: after - number]
            if lengths[0] <= LONGEST_ROW_BYTES:
                self._read_rows(number, lengths)
            number += len(lengths)
        return after == len(view.when)

    def _add_new(self) -> None:
        """Put in order what `_read_new` has found."""
        for place, codes in self._new_later.items():
            self._of_type[place].later.add_all(codes)
        self._new_later.clear()

    def _read_rows(self, first: int, lengths: list[int]) -> None:
        view = self._view
        assert view.rows.file is not None
        size = sum(lengths) + len(lengths)
        content = os.pread(view.rows.file.fd, size, view.offsets.start(first))
        number = first
        for piece, rows in halved(content, _Plain.parse):
            if rows is None or not self._add_plain(number, rows):
                for at, line in enumerate(piece.split(b"\n")[:-1], number):
                    self._add_line(at, line)
            number += piece.count(b"\n")

    def _add_plain(self, first: int, rows: _Plain) -> bool:
        """Count plain rows; return False, and count nothing, if one of them may not be a job."""
        count = len(rows.ids)
        numbers = range(first, first + count)
        if self._may_be_unreadable(numbers) or not all_json(rows.payloads):
            return False
        if records := self._view.records:
            for place in compress(range(count), map(records.__contains__, rows.ids)):
                rows.set_state(place, records[rows.ids[place]])
        codes, run_at = rows.codes, rows.run_at
        self._codes[first : first + count] = codes
        self._run_at[first : first + count] = run_at
        self._due_at[first : first + count] = rows.due_at
        self._counts[_NO_JOB] -= count
        for code in set(codes):
            self._counts[code] += codes.count(code)
        if _LATER in codes:
            is_pending = list(map(_LATER.__eq__, codes))
            columns = (compress(column, is_pending) for column in (rows.types, run_at, numbers))
            types, places = self._types, self._numbers_of_types
            for name, at, number in zip(*columns, strict=True):
                types[number] = place = places[name] if name in places else self._type(name)
                self._new_later[place].append(at << _NUMBER_BITS | number)
        errors = rows.errors
        for place in compress(range(count), errors):
            if codes[place] in (_LATER, _FAILED) and not errors[place].startswith(_DELAYED):
                self.errors[first + place] = (rows.ids[place].decode(), run_at[place])
                self._changed_errors.append(first + place)
            elif codes[place] == _CANCELLED and errors[place].startswith(_MOVE_MARKS):
                self.moving[first + place] = errors[place].decode()
        return True

    # -- the time --

    def _set_now(self, now: float) -> None:
        """Count jobs as due that have become due; or not any more, if the clock was set back."""
        if now < self._now:
            for of_type in self._of_type:
                self._undo_due(of_type, now)
        self._now = now
        for place in range(len(self._of_type)):
            self._make_due(place)

    def _make_due(self, place: int) -> None:
        of_type = self._of_type[place]
        end = math.floor(self._now) + 1 << _NUMBER_BITS
        first = of_type.later.first()
        if first is None or first >= end:
            return
        due = of_type.later.take_below(end)
        numbers = [code & _NUMBERS for code in due]
        for number in numbers:
            self._codes[number] = _DUE
        self._counts[_LATER] -= len(due)
        self._counts[_DUE] += len(due)
        of_type.due.add_all([self._due_at[n] << _NUMBER_BITS | n for n in numbers])
        of_type.first = None

    def _undo_due(self, of_type: _OfType, now: float) -> None:
        codes = list(of_type.due)
        later = [n for n in map(_NUMBERS.__and__, codes) if self._run_at[n] > now]
        if not later:
            return
        for number in later:
            self._codes[number] = _LATER
        self._counts[_DUE] -= len(later)
        self._counts[_LATER] += len(later)
        of_type.later.add_all([self._run_at[n] << _NUMBER_BITS | n for n in later])
        of_type.due = Ordered(code for code in codes if self._run_at[code & _NUMBERS] <= now)
        of_type.first = None

    # -- what was counted --

    def overview(self) -> Overview:
        """Return the numbers as of the last `update`, as `protocol.Store.overview` does."""
        counts = {status: self._counts[code] for status, code in _CODES.items()}
        counts[PENDING] = self._counts[_LATER] + self._counts[_DUE]
        at = self._find_oldest()
        return Overview(counts, self._waiting(), lambda: at, self._numbers_of_unreadable())

    def _find_oldest(self) -> int | None:
        """Return the earliest instant at which a finished job was due, or None."""
        for block in self._changed_blocks:
            part = slice(block << _BLOCK_BITS, (block + 1) << _BLOCK_BITS)
            is_finished = map(_PROCESSING.__lt__, self._codes[part])
            self._oldest[block] = min(compress(self._due_at[part], is_finished), default=NEVER)
        self._changed_blocks.clear()
        oldest = min(self._oldest, default=NEVER)
        return None if oldest == NEVER else oldest

    def _waiting(self) -> list[Waiting]:
        found = []
        for name, of_type in zip(self._names, self._of_type, strict=True):
            later, due = len(of_type.later), len(of_type.due)
            if later or due:
                next_at = of_type.later.first() >> _NUMBER_BITS if later else None
                first = of_type.due.first()
                if due and of_type.first is None:
                    of_type.first = self._view.row(first & _NUMBERS)
                row = of_type.first if due else None
                found.append((first or 0, Waiting(name, later + due, due, row, next_at)))
        found.sort(key=itemgetter(0))
        return [waiting for _, waiting in found]

    def _may_be_unreadable(self, numbers: range) -> bool:
        """Return whether the view knows one of the lines not to be a job, such as a repeated id."""
        unreadable = self._numbers_of_unreadable()
        at = bisect_left(unreadable, numbers.start + 2)
        return at < len(unreadable) and unreadable[at] < numbers.stop + 2

    def _numbers_of_unreadable(self) -> Sequence[int]:
        count = len(self._view.unreadable)
        if self._unreadable is None or self._unreadable[0] != count:
            numbers = {*self._view.unreadable, *self._not_json}
            self._unreadable = count, [number + 2 for number in sorted(numbers)]
        return self._unreadable[1]

    def due_before(
        self, ends: Sequence[float], job_type: str | None, paused: Collection[str]
    ) -> list[int]:
        """Return, for each of the instants, how many of the due jobs were due before it.

        Jobs of the `paused` types are left out, and those of other types than `job_type`.
        """
        codes = [math.ceil(end) << _NUMBER_BITS for end in ends]
        found = [0] * len(codes)
        for name, of_type in zip(self._names, self._of_type, strict=True):
            if len(of_type.due) and name not in paused and job_type in (None, name):
                found = list(map(add, found, of_type.due.below_each(codes)))
        return found

    def take_changed_errors(self) -> Iterable[int]:
        """Return the numbers of rows that have come into `errors`, or left it, since last time."""
        changed, self._changed_errors = self._changed_errors, []
        return changed
