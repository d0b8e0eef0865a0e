"""Where each row lies in the file: little memory, and quick to update when rows get longer.

Here every line after the header is a row, even one that isn't a job. All offsets and lengths are
bytes, and a length doesn't include the line end.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from operator import add

from dbbasic_queue.model.rows import LONGEST_ROW_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BLOCK_ROWS = 16
_SHORT_ROW_BYTES = 32
"""Most rows are longer."""


class Offsets:
    r"""The length of each row, and where every 16th row begins.

    >>> offsets = Offsets(56)
    >>> offsets.extend([10, 20])
    >>> offsets.extent(1), offsets.start(2)
    ((67, 20), 88)
    """

    __slots__ = ("_lengths", "_starts")

    def __init__(self, start: int = 0) -> None:
        """`start` is where the first row begins."""
        self._lengths = array("q")
        self._starts = array("q", [start])

    def extend(self, lengths: Iterable[int]) -> None:
        """Add the rows that follow, by their lengths."""
        self._lengths.extend(lengths)
        end = len(self._starts) * _BLOCK_ROWS
        while end <= len(self._lengths):
            size = sum(self._lengths[end - _BLOCK_ROWS : end]) + _BLOCK_ROWS
            self._starts.append(self._starts[-1] + size)
            end += _BLOCK_ROWS

    def start(self, number: int) -> int:
        """Return where a row begins. `number` may be one above the last row's."""
        first = number // _BLOCK_ROWS * _BLOCK_ROWS
        before = self._lengths[first:number]
        return self._starts[number // _BLOCK_ROWS] + sum(before) + number - first

    def extent(self, number: int) -> tuple[int, int]:
        """Return where a row begins, and its length."""
        first = number // _BLOCK_ROWS * _BLOCK_ROWS
        before = self._lengths[first:number]
        start = self._starts[number // _BLOCK_ROWS] + sum(before) + number - first
        return start, self._lengths[number]

    def length(self, number: int) -> int:
        """Return the length of a row."""
        return self._lengths[number]

    def lengths(self, number: int, size: int) -> list[int]:
        """Return the lengths of this row and the next ones, about as many as fit into `size` bytes.

        Returns at least this row's length.
        """
        if not size:
            return [self._lengths[number]]
        lengths = self._lengths[number : number + max(size // _SHORT_ROW_BYTES, 1)].tolist()
        return lengths[: bisect_right(list(accumulate(lengths)), size) or 1]

    def pieces(self, size: int) -> Iterator[tuple[range, int, int]]:
        """Yield all rows in pieces of about `size` bytes: their numbers, start and end.

        A piece has 16 rows or a multiple of that, except the last one, so it may be longer than
        `size`. If 16 rows are longer together than one row may be, each is a piece of its own. So a
        line that is too long for a row always is.
        """
        first = 0
        while first < len(self._lengths):
            start = self.start(first)
            block = bisect_right(self._starts, start + size) - 1
            after = min(max(block, first // _BLOCK_ROWS + 1) * _BLOCK_ROWS, len(self._lengths))
            end = self.start(after)
            if end - start > LONGEST_ROW_BYTES + 1:
                for number in range(first, after):
                    yield range(number, number + 1), self.start(number), self.start(number + 1)
            else:
                yield range(first, after), start, end
            first = after

    def blocks(self, rows: range) -> Iterator[tuple[range, int]]:
        """Yield adjacent rows of a piece, at most 16 at a time, and their bytes with line ends."""
        first, start = rows.start, self.start(rows.start)
        block = first // _BLOCK_ROWS + 1
        for end in self._starts[block : (rows.stop - 1) // _BLOCK_ROWS + 1]:
            yield range(first, block * _BLOCK_ROWS), end - start
            first, start = block * _BLOCK_ROWS, end
            block += 1
        if first < rows.stop:
            yield range(first, rows.stop), self.start(rows.stop) - start

    def update(self, start: int, numbers: list[int], lengths: list[int]) -> None:
        """Give the rows with these `numbers` these `lengths`; row 0 now begins at `start`."""
        shifts = [0] * (len(self._starts) + 1)
        shifts[0] = start - self._starts[0]
        for number, length in zip(numbers, lengths, strict=True):
            shifts[number // _BLOCK_ROWS + 1] += length - self._lengths[number]
            self._lengths[number] = length
        self._starts = array("q", map(add, self._starts, accumulate(shifts)))


def within(rows: range, numbers: list[int]) -> list[int]:
    """Return those of the ascending numbers that are among the rows.

    >>> within(range(3, 6), [1, 3, 5, 8])
    [3, 5]
    """
    return numbers[bisect_left(numbers, rows.start) : bisect_left(numbers, rows.stop)]
