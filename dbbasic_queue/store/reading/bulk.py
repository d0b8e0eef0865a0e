"""Parses many rows at once, by built-in functions that loop in C.

A piece of the file is split at all tabs and line ends in one call, and each check is made for a
whole column. If a line isn't a plain row, the piece is halved, until only a few lines are left,
which the caller parses one by one.

A plain row has nine columns, and its id, status and numbers need none of the exceptions that
`parse_row` allows.
"""

from __future__ import annotations

from dbbasic_queue.model.checks import IN_AN_ID
from dbbasic_queue.model.rows import is_binary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import TypeVar

    T = TypeVar("T")

    Columns = tuple[list[bytes], list[bytes], list[int], list[bytes], int]
    """The ids, statuses, `run_at` and `attempts` of plain rows, one of each per row, and the latest
    `created_at`. An id may occur twice. `run_at` is NEVER if the job isn't pending."""

NEVER = 1 << 62
"""An instant after all others: stands for the `run_at` of a line that isn't a pending job."""

PENDING = b"pending"
PROCESSING = b"processing"
_STATUSES = frozenset((PENDING, PROCESSING, b"completed", b"failed", b"cancelled"))
_IN_AN_ID = IN_AN_ID.encode()
_HALVED_BYTES = 1 << 10
"""Shorter pieces aren't halved."""
_LONG_BYTES = 1 << 20
"""Before a longer piece is split, its tabs are counted: it may be one huge line of them."""


def scan(content: bytes) -> Iterator[tuple[bytes, Columns | None]]:
    r"""Split complete lines into pieces; yield each piece with its columns, or with None.

    None means that the caller must parse its lines one by one: not all of them are plain rows, or
    the piece is too short to be worth the checks.

    >>> rows = b"a\tgreet\t{}\tpending\t5\t7\t0\t\t\n" * 40
    >>> [(len(piece), columns[2][:3], columns[4]) for piece, columns in scan(rows)]
    [(1080, [7, 7, 7], 5)]
    """
    yield from halved(content, _plain_columns)


def scan_cells(content: bytes) -> Iterator[tuple[bytes, list[bytes] | None]]:
    """Split complete lines into pieces like `scan`; yield each piece with its cells, or None."""
    yield from halved(content, split)


def halved(content: bytes, parse: Callable[[bytes], T | None]) -> Iterator[tuple[bytes, T | None]]:
    """Split complete lines into pieces; yield each with what `parse` returns for it, or None."""
    if len(content) > _HALVED_BYTES:
        parsed = parse(content)
        if parsed is not None:
            yield content, parsed
            return
        middle = content.find(b"\n", len(content) // 2) + 1
        if middle == len(content):
            middle = content.rfind(b"\n", 0, len(content) // 2) + 1
        if middle:
            yield from halved(content[:middle], parse)
            yield from halved(content[middle:], parse)
            return
    yield content, None


def _plain_columns(content: bytes) -> Columns | None:
    """Return the columns that the index needs if every line is a plain row, otherwise None."""
    columns = split(content)
    if columns is None:
        return None
    statuses, run_at = columns[3::9], columns[5::9]
    if statuses.count(PENDING) == len(statuses):
        times = list(map({text: int(text) for text in _distinct(run_at)}.__getitem__, run_at))
    else:
        times = [
            int(text) if status == PENDING else NEVER
            for text, status in zip(run_at, statuses, strict=True)
        ]
    return columns[::9], statuses, times, columns[6::9], _latest(_distinct(columns[4::9]))


def split(content: bytes) -> list[bytes] | None:
    r"""Return the cells of complete lines, row by row, if every line is a plain row.

    The last cell of a row has the line end. Returns None otherwise.

    >>> split(b"a\tgreet\t{}\tpending\t5\t7\t0\t\t\n")
    [b'a', b'greet', b'{}', b'pending', b'5', b'7', b'0', b'', b'\n']
    """
    columns = nine_per_line(content)
    if columns is None:
        return None
    ids = columns[::9]
    if (
        _STATUSES.issuperset(columns[3::9])
        and _are_numbers(_distinct(columns[4::9]), 12)
        and _are_numbers(_distinct(columns[5::9]), 12)
        and _are_numbers(_distinct(columns[6::9]), 9)
        and all(columns[1::9])
        and all(ids)
        and max(map(len, ids)) <= 64
        and not b"".join(ids).translate(None, _IN_AN_ID)
        and not is_binary(content)
    ):
        return columns
    return None


def nine_per_line(content: bytes) -> list[bytes] | None:
    r"""Return the cells of complete lines, row by row, if every line has nine, otherwise None.

    The ninth has the line end.

    >>> nine_per_line(b"1\t2\t3\t4\t5\t6\t7\t8\t9\n")
    [b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'8', b'9\n']
    """
    count = content.count(b"\n")
    if len(content) > _LONG_BYTES and content.count(b"\t") != 8 * count:
        return None
    cells = content.replace(b"\n", b"\n\t").split(b"\t")
    cells.pop()
    if len(cells) != 9 * count or b"".join(cells[8::9]).count(b"\n") != count:
        return None
    return cells


def _distinct(texts: list[bytes]) -> Collection[bytes]:
    """Return texts, each of them once if many seem to be the same, as of jobs added together."""
    return set(texts) if texts[0] == texts[len(texts) // 2] else texts


def _are_numbers(texts: Collection[bytes], digits: int) -> bool:
    lengths = set(map(len, texts))
    return 0 not in lengths and max(lengths) <= digits and b"".join(texts).isdigit()


def _latest(texts: Collection[bytes]) -> int:
    """Return the largest of some numbers.

    >>> _latest([b"12", b"11"]), _latest([b"9", b"11"])
    (12, 11)
    """
    return int(max(texts)) if have_one_length(texts) else max(map(int, texts))


def have_one_length(texts: Collection[bytes]) -> bool:
    """Return whether numbers have equally many digits, so that their order is that of their texts.

    >>> have_one_length([b"12", b"11"]), have_one_length([b"9", b"11"])
    (True, False)
    """
    return len(set(map(len, texts))) == 1
