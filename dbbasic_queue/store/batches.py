"""Divides what is changed or moved into batches."""

from __future__ import annotations

from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeVar

    T = TypeVar("T")


def batches(things: Iterable[T], most: int) -> Iterator[list[T]]:
    """Yield the things in lists of `most`, the last one perhaps shorter; none is empty.

    >>> list(batches("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(things)
    while batch := list(islice(iterator, most)):
        yield batch
