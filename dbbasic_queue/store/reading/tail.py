"""A file to which lines are appended, read on from where the last reading ended."""

from __future__ import annotations

import errno
import os

from dbbasic_queue.errors import NotAQueue, QueueDamaged, store_error
from dbbasic_queue.model.rows import HEADER, LONGEST_ROW, is_header, parse_row
from dbbasic_queue.store.disk.openfile import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LITTLE = 1 << 16
_MUCH = 1 << 18
_ANCHOR = 64
_LONGEST_ANCHOR = 1 << 10


class Rewritten(Exception):
    """Raised inside the store if a file is no longer the one that was read."""


class Tail:
    """Reads the complete lines that are appended to a file.

    The last bytes read are compared at each reading: a file that was cut, or edited in place,
    is noticed, whatever its size is by then.

    A line that is too long for a row is passed over in pieces, and never held in memory. A last
    line without an end is looked through once, however long it is and however often it is met.
    """

    __slots__ = ("_head", "_head_at", "_looked_at", "_looked_to", "anchor", "end", "file", "torn")

    def __init__(self, file: OpenFile | None, end: int = 0, last: int = 0) -> None:
        """`end` is where the reading begins, after a complete line that is `last` bytes long."""
        self.file = file
        self.end = end
        self.anchor = self._head = self._looked_at = b""
        self._head_at = self._looked_to = 0
        self.torn = False
        """whether the file had a last line without an end when it was read last"""
        if file is not None and end:
            self._start_after(end, last)

    def copy(self) -> Tail:
        """Return a follower of the same file that goes on from the same place."""
        other = Tail(self.file)
        other.go_on_from(self)
        return other

    def go_on_from(self, other: Tail) -> None:
        """Go on from where another follower of the same file is."""
        self.end, self.anchor = other.end, other.anchor
        self._head, self._head_at = other._head, other._head_at

    def new(self, too_long: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
        """Yield the complete lines that are new, about 256 KiB of them at a time.

        `too_long` is called with the length of a line that cannot be a row, when it is its turn.
        """
        if self.file is None:
            return
        if self._head and not self._begins_as_read():
            raise Rewritten
        size = _LITTLE
        while True:
            start = self.end - len(self.anchor)
            try:  # as `_pread`, without the cost of its call at each look-up
                content = os.pread(self.file.fd, size, start)
            except OSError as e:
                raise store_error(e, self.file.path, "nothing was changed") from e
            if not content.startswith(self.anchor):
                raise Rewritten
            cut = content.rfind(b"\n") + 1
            if cut > len(self.anchor):
                new = content[len(self.anchor) : cut]
                self._remember(content[:cut], start + cut)
                self.torn = cut < len(content)
                yield new
                if len(content) < size:
                    return
                size = _MUCH
            elif len(content) < size:
                self.torn = cut < len(content)
                return
            elif size < _MUCH:
                size = _MUCH
            else:
                length = self._length_of_line()
                if length < 0:
                    self.torn = True
                    return
                size = len(self.anchor) + length + 1
                if length > LONGEST_ROW:
                    self._start_after(self.end + length + 1, length)
                    size = _MUCH
                    too_long(length)

    def _pread(self, size: int, at: int) -> bytes:
        assert self.file is not None
        try:
            return os.pread(self.file.fd, size, at)
        except OSError as e:
            raise store_error(e, self.file.path, "nothing was changed") from e

    def _length_of_line(self) -> int:
        """Return how long the line is that comes next, or -1 if it has no end yet.

        Only what was added since the last time is read, if that is what follows what was looked at.
        """
        at, seen = self._looked_to, self._looked_at
        if at <= self.end or self._pread(len(seen), at - len(seen)) != seen:
            at = self.end
        while chunk := self._pread(_MUCH, at):
            found = chunk.find(b"\n")
            if found >= 0:
                return at + found - self.end
            at += len(chunk)
            self._looked_to, self._looked_at = at, chunk[-_ANCHOR:]
        return -1

    def _start_after(self, end: int, last: int) -> None:
        """Go on at `end`, after a line of `last` bytes."""
        start = max(end - _LONGEST_ANCHOR, 0)
        self._remember(self._pread(end - start, start), end)
        if last >= _LONGEST_ANCHOR:
            self._head_at = end - last - 1
            self._head = self._pread(_ANCHOR, self._head_at)

    def _remember(self, content: bytes, end: int) -> None:
        """Keep the last line of `content`, which ends at `end`, to be compared; at least 64 bytes.

        A row that was taken back, and the one that its caller enqueued instead, may end alike. Of a
        very long line the beginning, where the id stands, and the end are kept.
        """
        size = len(content)
        start = content.rfind(b"\n", 0, size - 1) + 1
        self.end = end
        self.anchor = content[max(min(start, size - _ANCHOR), size - _LONGEST_ANCHOR, 0) :]
        self._head = b""
        if size - start > _LONGEST_ANCHOR:
            self._head, self._head_at = content[start : start + _ANCHOR], end - size + start

    def _begins_as_read(self) -> bool:
        return self._pread(len(self._head), self._head_at) == self._head

    def is_current(self) -> bool:
        """Tell, by one read, that nothing was added or cut; False where it cannot tell."""
        anchor = self.anchor
        if self.file is None or not anchor:
            return False
        try:
            return os.pread(self.file.fd, len(anchor) + 1, self.end - len(anchor)) == anchor
        except OSError as e:
            if e.errno != errno.EBADF:  # the program has closed it
                raise
            return False

    def is_as_read(self) -> bool:
        """Tell whether what was read last still stands where it stood."""
        anchor, file = self.anchor, self.file
        return file is None or (
            os.pread(file.fd, len(anchor), self.end - len(anchor)) == anchor
            and self._begins_as_read()
        )

    def passed(self, content: bytes) -> None:
        """Note that this very process has appended `content` at the end that was read."""
        end = self.end + len(content)
        if len(content) < _ANCHOR:
            content = self.anchor + content
        self._remember(content, end)

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


def has_header(file: OpenFile) -> bool:
    """Return whether the header is whole: not if the file is empty, or the header cut short.

    Raises NotAQueue for a file that begins otherwise.
    """
    start = os.pread(file.fd, len(HEADER) + 4, 0)
    if len(start) < len(HEADER) and HEADER.startswith(start):
        return False
    require_header(start.split(b"\n")[0], file.path)
    return True


def require_partial_header(file: OpenFile) -> None:
    """Refuse a file without a single line, unless it is empty or a header cut short."""
    start = os.pread(file.fd, len(HEADER), 0)
    if not HEADER.startswith(start):
        require_header(start, file.path)
