"""Reads the lines that were appended to a file since the last reading."""

from __future__ import annotations

import errno
import os

from dbbasic_queue.errors import StoreError, store_error
from dbbasic_queue.model.rows import LONGEST_ROW_BYTES
from dbbasic_queue.store.disk.openfile import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FIRST_READ_BYTES = 1 << 16
_READ_BYTES = 1 << 18
_ANCHOR_BYTES = 64
_MAX_ANCHOR_BYTES = 1 << 10


class Rewritten(Exception):
    """Raised inside the store if a file no longer has what was read from it."""


def edited_in_place(path: str, consequence: str) -> StoreError:
    """Return the error to raise if the store can't go on after `Rewritten`."""
    reason = "the file was edited in place, without the lock"
    return store_error(OSError(errno.ESTALE, reason), path, consequence)


class Tail:
    """How far a file was read.

    The last bytes that were read are compared at each reading. So it is noticed if the file was
    cut, even if it has grown again, or if an edit in place has changed or moved these bytes.

    A line that is too long for a row is skipped in pieces, and never held in memory. If a long last
    line has no end yet, the next reading searches only what was added to it.

    `file`    the file; None if there is none, which reads like an empty one
    `end`     where the last line that was read ends, after its line end
    `anchor`  the bytes before `end`: the last line, but at least 64 bytes and at most 1,024
    `torn`    whether the file had a last line without an end at the last reading

    Private: `_head` is the beginning of a last line that is longer than the anchor, and lies at
    `_head_at`; otherwise b"". No line end was found from `end` to `_looked_to`, and the bytes
    before `_looked_to` are `_looked_at`.
    """

    __slots__ = ("_head", "_head_at", "_looked_at", "_looked_to", "anchor", "end", "file", "torn")

    def __init__(self, file: OpenFile | None, end: int = 0, last: int = 0) -> None:
        """Start at `end`, after a complete line of `last` bytes and its line end."""
        self.file = file
        self.end = end
        self.anchor = self._head = self._looked_at = b""
        self._head_at = self._looked_to = 0
        self.torn = False
        if file is not None and end:
            self._start_after(end, last)

    def copy(self) -> Tail:
        """Return another reader of the same file that goes on from the same place."""
        other = Tail(self.file)
        other.go_on_from(self)
        return other

    def go_on_from(self, other: Tail) -> None:
        """Go on from where another reader of the same file is."""
        self.end, self.anchor = other.end, other.anchor
        self._head, self._head_at = other._head, other._head_at

    def new(self, too_long: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
        """Yield the complete lines that are new, about 256 KiB of them at a time.

        A line that is too long for a row isn't yielded: when it is reached, `too_long` is called
        with its length in bytes, without its end. By then `end` already lies after that line, as it
        lies after all lines that are yielded. Raises Rewritten if the bytes that were read last are
        no longer there, StoreError if the system refuses the read.
        """
        if self.file is None:
            return
        if self._head and not self._begins_as_read():
            raise Rewritten
        size = _FIRST_READ_BYTES
        while True:
            start = self.end - len(self.anchor)
            try:  # like `_pread`, without the cost of a call per look-up
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
                size = _READ_BYTES
            elif len(content) < size:
                self.torn = cut < len(content)
                return
            elif size < _READ_BYTES:
                size = _READ_BYTES
            else:
                length = self._length_of_line()
                if length < 0:
                    self.torn = True
                    return
                size = len(self.anchor) + length + 1
                if length > LONGEST_ROW_BYTES:
                    self._start_after(self.end + length + 1, length)
                    size = _READ_BYTES
                    too_long(length)

    def _pread(self, size: int, at: int) -> bytes:
        assert self.file is not None
        try:
            return os.pread(self.file.fd, size, at)
        except OSError as e:
            raise store_error(e, self.file.path, "nothing was changed") from e

    def _length_of_line(self) -> int:
        """Return the length of the next line, or -1 if it has no end yet.

        Reads only what was added since the last call, if the bytes before that are still there.
        """
        at, seen = self._looked_to, self._looked_at
        if at <= self.end or self._pread(len(seen), at - len(seen)) != seen:
            at = self.end
        while chunk := self._pread(_READ_BYTES, at):
            found = chunk.find(b"\n")
            if found >= 0:
                return at + found - self.end
            at += len(chunk)
            self._looked_to, self._looked_at = at, chunk[-_ANCHOR_BYTES:]
        return -1

    def _start_after(self, end: int, last: int) -> None:
        """Go on at `end`, after a line of `last` bytes and its line end."""
        start = max(end - _MAX_ANCHOR_BYTES, 0)
        self._remember(self._pread(end - start, start), end)
        if last >= _MAX_ANCHOR_BYTES:
            self._head_at = end - last - 1
            self._head = self._pread(_ANCHOR_BYTES, self._head_at)

    def _remember(self, content: bytes, end: int) -> None:
        """Make the last line of `content`, which ends at `end`, the anchor.

        A few bytes wouldn't do: a row that was cut off again because its sync had failed, and the
        one that its caller enqueued instead, may end with the same bytes. For a very long line the
        beginning, with the id, and the end are kept.
        """
        size = len(content)
        start = content.rfind(b"\n", 0, size - 1) + 1
        self.end = end
        self.anchor = content[max(min(start, size - _ANCHOR_BYTES), size - _MAX_ANCHOR_BYTES, 0) :]
        self._head = b""
        if size - start > _MAX_ANCHOR_BYTES:
            self._head, self._head_at = content[start : start + _ANCHOR_BYTES], end - size + start

    def _begins_as_read(self) -> bool:
        """Return whether the last line, if it is a long one, still begins as it did."""
        return self._pread(len(self._head), self._head_at) == self._head

    def is_current(self) -> bool:
        """Return True if one read shows that nothing was added or cut, otherwise False."""
        anchor = self.anchor
        if self.file is None or not anchor:
            return False
        try:
            return os.pread(self.file.fd, len(anchor) + 1, self.end - len(anchor)) == anchor
        except OSError as e:
            if e.errno != errno.EBADF:  # the program has closed the descriptor
                raise
            return False

    def is_as_read(self) -> bool:
        """Return whether the bytes that were read last are still where they were."""
        anchor, file = self.anchor, self.file
        return file is None or (
            os.pread(file.fd, len(anchor), self.end - len(anchor)) == anchor
            and self._begins_as_read()
        )

    def passed(self, content: bytes) -> None:
        """Go on after `content`, which this process has just written at `end`."""
        end = self.end + len(content)
        if len(content) < _ANCHOR_BYTES:
            content = self.anchor + content
        self._remember(content, end)

    def size(self) -> int:
        """Return the file's size in bytes, including a last line without an end."""
        return 0 if self.file is None else os.fstat(self.file.fd).st_size
