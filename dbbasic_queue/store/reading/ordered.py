"""Values in ascending order, any of which can be added, removed or counted quickly."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import accumulate, chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

_PIECE = 512
_LONGEST_PIECE = 2 * _PIECE
_FEW = 8
"""If a larger share of the values than 1 / _FEW is added at once, all are sorted again."""


class Ordered:
    """Values that can be compared, such as ints or tuples; one may occur twice.

    They are kept in pieces of at most 1,024, so that a change moves few of them.

    >>> values = Ordered([5, 1, 3])
    >>> values.add(2)
    >>> values.remove(3)
    >>> list(values), values.first(), values[1], values.below(5)
    ([1, 2, 5], 1, 2, 2)
    """

    __slots__ = ("_count", "_ends", "_lasts", "_pieces")

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._fill(sorted(values))

    def _fill(self, values: list[Any]) -> None:
        self._count = len(values)
        self._pieces = [values[at : at + _PIECE] for at in range(0, len(values), _PIECE)]
        self._lasts = [piece[-1] for piece in self._pieces]
        self._ends: list[int] = []
        """how many values there are up to the end of each piece; empty if that isn't known"""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._pieces)

    def first(self) -> Any:
        """Return the lowest value, or None."""
        return self._pieces[0][0] if self._pieces else None

    def add(self, value: Any) -> None:
        """Add a value."""
        if not self._pieces:
            self._fill([value])
            return
        place = min(bisect_left(self._lasts, value), len(self._pieces) - 1)
        piece = self._pieces[place]
        insort(piece, value)
        self._count += 1
        self._ends.clear()
        if len(piece) > _LONGEST_PIECE:
            self._pieces[place : place + 1] = piece[:_PIECE], piece[_PIECE:]
            self._lasts[place : place + 1] = piece[_PIECE - 1], piece[-1]
        else:
            self._lasts[place] = piece[-1]

    def add_all(self, values: list[Any]) -> None:
        """Add many values."""
        if len(values) * _FEW > self._count:
            self._fill(sorted(chain(self, values)))
            return
        for value in values:
            self.add(value)

    def remove(self, value: Any) -> None:
        """Remove a value once. Raises ValueError if it isn't there."""
        place = bisect_left(self._lasts, value)
        piece = self._pieces[place] if place < len(self._pieces) else []
        at = bisect_left(piece, value)
        if at == len(piece) or piece[at] != value:
            raise ValueError("not among the values")
        del piece[at]
        self._count -= 1
        self._ends.clear()
        if piece:
            self._lasts[place] = piece[-1]
        else:
            del self._pieces[place], self._lasts[place]

    def take_below(self, value: Any) -> list[Any]:
        """Remove all lower values, and return them."""
        taken: list[Any] = []
        count = bisect_left(self._lasts, value)
        for piece in self._pieces[:count]:
            taken += piece
        del self._pieces[:count], self._lasts[:count]
        if self._pieces:
            at = bisect_left(self._pieces[0], value)
            taken += self._pieces[0][:at]
            del self._pieces[0][:at]
        self._count -= len(taken)
        self._ends.clear()
        return taken

    def below(self, value: Any) -> int:
        """Return how many values are lower."""
        return self.below_each([value])[0]

    def below_each(self, values: Sequence[Any]) -> list[int]:
        """Return, for each of these, how many values are lower."""
        lasts, pieces = self._lasts, [*self._pieces, []]
        befores = [0, *self._find_ends()]
        found = []
        for value in values:
            place = bisect_left(lasts, value)
            found.append(befores[place] + bisect_left(pieces[place], value))
        return found

    def __getitem__(self, place: int) -> Any:
        """Return the value that has this many values before it."""
        ends = self._find_ends()
        number = bisect_left(ends, place + 1)
        return self._pieces[number][place - (ends[number - 1] if number else 0)]

    def _find_ends(self) -> list[int]:
        if not self._ends:
            self._ends.extend(accumulate(map(len, self._pieces)))
        return self._ends
