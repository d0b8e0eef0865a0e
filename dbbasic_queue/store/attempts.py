"""The attempts in the history, kept up to date by reading only what is new.

That is for a process that looks again and again. It keeps a few numbers for each attempt in the
history's files: those are at most about 300,000 attempts, which take 50 MB. If a file was rotated,
deleted or edited in place, all is read again, which takes about half a second. That is rare: the
history is rotated once per 16 MiB.
"""

from __future__ import annotations

import math
import os
from array import array
from bisect import bisect_left, bisect_right, insort
from itertools import chain, compress

from dbbasic_queue.model.states import LATEST
from dbbasic_queue.store import rotated
from dbbasic_queue.store.history import FAILED_OUTCOMES, HEADER, LONGEST_ERROR, Attempt, paths
from dbbasic_queue.store.reading.ordered import Ordered
from dbbasic_queue.store.reading.tail import Rewritten, Tail, edited_in_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dbbasic_queue.store.disk.openfile import OpenFile

    Ended = tuple[float, int, float, str]
    """`ended_at`, `due_at`, `seconds` (`UNKNOWN` if they are) and `outcome` of an attempt"""

UNKNOWN = -1.0

_COLUMNS = HEADER.count(b"\t") + 1
_TRIES = 10
_BLOCK = 64
_FEW_SHARE = 4
"""If more than one in that many values of a window have changed, it is sorted again."""


class Columns:
    """Attempts in the order in which they ended, one column per fact. See `Ended`."""

    def __init__(self, attempts: Iterable[Ended] = ()) -> None:
        self.ended = array("d")
        self.due = array("q")
        self.seconds = array("d")
        self.outcomes: list[str] = []
        self._windows: dict[float, Window] = {}
        self._timeline: Timeline | None = None
        self.add(list(attempts))

    def add(self, attempts: list[Ended]) -> None:
        """Add attempts, in any order. Quick if they ended after most of the others."""
        if not attempts:
            return
        attempts = sorted(attempts)
        at = bisect_left(self.ended, attempts[0][0])
        for window in self._windows.values():
            window.move(window.first, min(window.after, at))
        new: Iterable[Ended] = attempts
        if at < len(self.ended):
            new = sorted(chain(self.rows(attempts[0][0]), attempts))
        ended, due, seconds, outcomes = zip(*new, strict=True)
        self.ended[at:] = array("d", ended)
        self.due[at:] = array("q", due)
        self.seconds[at:] = array("d", seconds)
        self.outcomes[at:] = outcomes
        if self._timeline is not None:
            self._timeline.add(attempts, at)

    def rows(self, since: float = -math.inf) -> Iterator[Ended]:
        """Yield the attempts that ended at `since` or later."""
        at = bisect_left(self.ended, since)
        columns = (self.ended, self.due, self.seconds, self.outcomes)
        yield from zip(*(column[at:] for column in columns), strict=True)

    def waited(self, number: int) -> float:
        """Return how long a job was due before its attempt, in seconds; see `metrics.measure`."""
        return max(self.ended[number] - self.seconds[number] - self.due[number], 0.0)

    def window(self, now: float, seconds: float) -> Window:
        """Return the attempts that ended from `now - seconds` to `now`."""
        window = self._windows.get(seconds)
        if window is None:
            window = self._windows[seconds] = Window(self)
        window.move(bisect_left(self.ended, now - seconds), bisect_right(self.ended, now))
        return window

    def timeline(self) -> Timeline:
        """Return what `Figures` shows."""
        if self._timeline is None:
            self._timeline = Timeline(self)
        return self._timeline


class Window:
    """Adjacent attempts of `Columns`: the `first` one, and the one `after` the last.

    `outcomes`  outcome -> how many attempts ended so
    `waiting`   how long each job was due before its attempt, in seconds
    `running`   how long each attempt ran, in seconds
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._fill(0, 0)

    def _fill(self, first: int, after: int) -> None:
        self.first, self.after = first, after
        self.outcomes: dict[str, int] = {}
        for outcome in self._columns.outcomes[first:after]:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        seconds = self._columns.seconds
        known = [n for n in range(first, after) if seconds[n] != UNKNOWN]
        self.running = Ordered(seconds[n] for n in known)
        self.waiting = Ordered(map(self._columns.waited, known))

    def move(self, first: int, after: int) -> None:
        """Change which attempts are in the window. None of the present ones may have moved."""
        after = max(first, after)
        changed = abs(first - self.first) + abs(after - self.after)
        if (
            first >= self.after
            or after <= self.first
            or changed * _FEW_SHARE > self.after - self.first
        ):
            self._fill(first, after)
            return
        self._change(-1, range(self.first, first))
        self._change(1, range(first, self.first))
        self._change(-1, range(after, self.after))
        self._change(1, range(self.after, after))
        self.first, self.after = first, after

    def _change(self, by: int, numbers: range) -> None:
        """Add attempts, or remove them."""
        columns = self._columns
        for number in numbers:
            outcome = columns.outcomes[number]
            self.outcomes[outcome] = count = self.outcomes.get(outcome, 0) + by
            if not count:
                del self.outcomes[outcome]
            if columns.seconds[number] != UNKNOWN:
                change = Ordered.add if by > 0 else Ordered.remove
                change(self.running, columns.seconds[number])
                change(self.waiting, columns.waited(number))


class Timeline:
    """How many attempts ended and failed, and how many jobs waited, up to an instant."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._failed = array("d")
        """when each attempt ended that failed, in order"""
        self._due = array("d")
        """when the job of each attempt became due, in order"""
        self._started = array("d")
        """when each job ceased to wait, in order"""
        self._waits = array("d")
        """for how long the job of each attempt waited, 0 if that is unknown"""
        self._longest: list[float] = []
        """the longest wait in each block of 64 attempts"""
        self.add(list(columns.rows()), 0)

    def add(self, attempts: list[Ended], at: int) -> None:
        """Add attempts that the columns have already. All before the number `at` are as before."""
        _merge(
            self._failed, [ended for ended, _, _, outcome in attempts if outcome in FAILED_OUTCOMES]
        )
        known = [attempt for attempt in attempts if attempt[2] != UNKNOWN]
        _merge(self._due, [due for _, due, _, _ in known])
        _merge(self._started, [max(ended - seconds, due) for ended, due, seconds, _ in known])
        columns = self._columns
        new = (column[at:] for column in (columns.ended, columns.due, columns.seconds))
        self._waits[at:] = array(
            "d",
            [
                0.0 if seconds == UNKNOWN or (waited := ended - seconds - due) < 0 else waited
                for ended, due, seconds in zip(*new, strict=True)
            ],
        )
        block = at // _BLOCK
        self._longest[block:] = [
            max(self._waits[start : start + _BLOCK])
            for start in range(block * _BLOCK, len(self._waits), _BLOCK)
        ]

    def ended_before(self, at: float) -> int:
        """Return how many attempts ended before an instant."""
        return bisect_left(self._columns.ended, at)

    def failed_before(self, at: float) -> int:
        """Return how many attempts failed before an instant."""
        return bisect_left(self._failed, at)

    def waiting_at(self, at: float) -> int:
        """Return how many of the jobs were due before an instant, and hadn't started by then."""
        return bisect_left(self._due, at) - bisect_left(self._started, at)

    def longest_wait(self, first: int, after: int) -> float:
        """Return the longest wait of the attempts from the number `first` on, before `after`."""
        waits, block, after_block = self._waits, -(-first // _BLOCK), after // _BLOCK
        if block >= after_block:
            return max(waits[first:after], default=0.0)
        return max(
            *self._longest[block:after_block],
            max(waits[first : block * _BLOCK], default=0.0),
            max(waits[after_block * _BLOCK : after], default=0.0),
        )


def _merge(ordered: array[float], values: list[float]) -> None:
    """Add values to an array in ascending order."""
    if values:
        values.sort()
        at = bisect_left(ordered, values[0])
        if at < len(ordered):
            values = sorted(chain(ordered[at:], values))
        ordered[at:] = array("d", values)


class Attempts:
    """The attempts in the history of the queue at `queue`. Not thread-safe.

    `rebuilt`   grows when everything was read again
    `all`       all attempts
    `types`     type, escaped as in the file -> its attempts
    `ended_at`  job id -> when its last attempt that failed with an error ended
    `errors`    type and beginning of the error -> when the attempts that failed so ended, in order
    """

    def __init__(self, queue: str) -> None:
        self._paths = paths(queue)
        self.rebuilt = 0
        self._forget([])

    def _forget(self, files: Sequence[OpenFile]) -> None:
        self.rebuilt += 1
        self._tails = [Tail(file) for file in files]
        self._stats: list[tuple[int, int]] = []
        """size and mtime of each file before it was last read"""
        self._firsts: list[float | None] = [None for _ in files]
        """when the first attempt in each file ended"""
        self.all = Columns()
        self.types: dict[str, Columns] = {}
        self.ended_at: dict[str, float] = {}
        self.errors: dict[tuple[str, str], list[float]] = {}
        self._failed: list[str] = []
        self._is_whole = False

    def all_paths(self) -> list[str]:
        """Return the paths at which there may be files."""
        return [path + end for path in self._paths for end in ("", ".1")]

    def refresh(self) -> None:
        """Read what is new. Raises the same errors as `history.read`."""
        for _ in range(_TRIES):
            files = rotated.files(*self._paths)
            if not self._is_whole or not self._are_known(files):
                self._forget(files)
            self._is_whole = False
            try:
                self._read()
            except Rewritten:
                continue
            self._is_whole = True
            return
        raise edited_in_place(self._paths[0], "nothing was changed; try again")

    def _are_known(self, files: Sequence[OpenFile]) -> bool:
        known = [tail.file for tail in self._tails]
        if [file and file.identity for file in known] != [file.identity for file in files]:
            return False
        return all(file is None or file.is_ours() for file in known)

    def _read(self) -> None:
        """Read what is new. Raises Rewritten if all must be read again."""
        stats = []
        for tail in self._tails:
            assert tail.file is not None
            found = os.fstat(tail.file.fd)
            stats.append((found.st_size, found.st_mtime_ns))
        for before, after in zip(self._stats, stats, strict=False):
            if before[0] == after[0] and before[1] != after[1]:
                raise Rewritten  # edited in place: an append would have made it longer
        is_first, self._stats = not self._stats, stats
        new = _New()
        for number, tail in enumerate(self._tails):
            for content in tail.new():
                if not is_first and number < len(self._tails) - 1:
                    raise Rewritten  # a row that came late to a rotated file: keep the order
                new.add(content.removeprefix(HEADER))
            if self._firsts[number] is None:
                self._firsts[number] = new.first
            new.first = None
        self._take(new)

    def _take(self, new: _New) -> None:
        self.all.add([attempt for found in new.by_type.values() for attempt in found])
        for job_type, found in new.by_type.items():
            if job_type not in self.types:
                self.types[job_type] = Columns()
            self.types[job_type].add(found)
        for job_id, job_type, error, ended_at in new.errors:
            self.ended_at[job_id] = ended_at
            self._failed.append(job_id)
            insort(self.errors.setdefault((job_type, error), []), ended_at)

    def take_failed(self) -> Iterable[str]:
        """Return the ids of the jobs whose `ended_at` has changed since the last call."""
        failed, self._failed = self._failed, []
        return failed

    def begins_at(self, since: float) -> float | None:
        """Return when the oldest of these ended: the first one in each file, those from `since` on.

        That is how far back the history goes, if it doesn't go back to `since`.
        """
        found = [at for at in self._firsts if at is not None]
        number = bisect_left(self.all.ended, since)
        found += self.all.ended[number : number + 1]
        return min(found, default=None)


class _New:
    """Attempts that were just read.

    `first`    when the first one ended, since this was last set to None
    `by_type`  type -> the attempts
    `errors`   id, type, beginning of the error, and end of each attempt that failed with an error
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.by_type: dict[str, list[Ended]] = {}
        self.errors: list[tuple[str, str, str, float]] = []

    def add(self, content: bytes) -> None:
        """Add the attempts on complete lines."""
        if content and not self._add_cells(content):
            for line in content.split(b"\n")[:-1]:
                self._add_line(line + b"\n")

    def _add_line(self, line: bytes) -> None:
        try:
            if len(line) > rotated.LONGEST_ROW_BYTES:
                return
            attempt = Attempt(line.decode())
        except ValueError:
            return  # a header, or a torn row
        seconds = UNKNOWN if attempt.seconds is None else attempt.seconds
        ended_at, outcome = attempt.ended_at, attempt.outcome
        if self.first is None:
            self.first = ended_at
        found = self.by_type.setdefault(attempt.type, [])
        found.append((ended_at, attempt.due_at, seconds, outcome))
        if attempt.error and outcome in FAILED_OUTCOMES:
            error = attempt.error[:LONGEST_ERROR]
            self.errors.append((attempt.id, attempt.type, error, ended_at))

    def _add_cells(self, content: bytes) -> bool:
        """Add attempts whose lines are plain; return False, and add nothing, if one isn't."""
        count = content.count(b"\n")
        cells = content.replace(b"\n", b"\n\t").split(b"\t")
        cells.pop()
        ends = cells[_COLUMNS - 1 :: _COLUMNS]
        if (
            len(cells) != count * _COLUMNS
            or b"".join(ends).count(b"\n") != count
            or b"\0" in content
            or len(content) > rotated.LONGEST_ROW_BYTES
        ):
            return False
        try:
            content.decode()
            ended = list(map(float, cells[5::_COLUMNS]))
            due = list(map(int, cells[4::_COLUMNS]))
            others = list(map(int, {*cells[2::_COLUMNS], *ends} - {b"\n"}))
            known = list(map(float, filter(None, cells[6::_COLUMNS])))
        except ValueError:
            return False
        for numbers in (ended, due, others, known):
            if numbers and not (
                min(numbers) >= 0 and max(numbers) <= LATEST and not math.isnan(sum(numbers))
            ):
                return False
        seconds = known
        if len(known) < count:
            rest = iter(known)
            seconds = [next(rest) if text else UNKNOWN for text in cells[6::_COLUMNS]]
        if self.first is None:
            self.first = ended[0]
        names = {text: text.decode() for text in {*cells[1::_COLUMNS], *cells[3::_COLUMNS]}}
        outcomes = [names[text] for text in cells[3::_COLUMNS]]
        rows = zip(ended, due, seconds, outcomes, strict=True)
        for job_type, row in zip(cells[1::_COLUMNS], rows, strict=True):
            self.by_type.setdefault(names[job_type], []).append(row)
        errors = cells[7::_COLUMNS]
        for place in compress(range(count), errors):
            if outcomes[place] in FAILED_OUTCOMES:
                at = place * _COLUMNS
                error = errors[place].decode()[:LONGEST_ERROR]
                self.errors.append((cells[at].decode(), names[cells[at + 1]], error, ended[place]))
        return True
