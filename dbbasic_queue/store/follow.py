"""A file to which lines are appended, read on from where the last reading ended."""

from __future__ import annotations

import errno
import os

from dbbasic_queue.errors import NotAQueue, QueueDamaged
from dbbasic_queue.rows import HEADER, is_header, parse_row
from dbbasic_queue.store.files import OpenFile, store_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LITTLE = 1 << 16
_MUCH = 1 << 18
_ANCHOR = 64
_LONGEST_ANCHOR = 1 << 10


class Rewritten(Exception):
    """Raised inside the store if a file is no longer the one that was read."""


class Follower:
    """Reads the complete lines that are appended to a file.

    The last bytes read are compared at each reading: a file that was cut, or edited in place,
    is noticed, whatever its size is by then.
    """

    __slots__ = ("anchor", "end", "file")

    def __init__(self, file: OpenFile | None, end: int = 0) -> None:
        """`end` is where the reading begins, behind a complete line."""
        self.file = file
        self.end = end
        start = max(end - _LONGEST_ANCHOR, 0)
        self.anchor = _end_of(os.pread(file.fd, end - start, start)) if file and end else b""

    def copy(self) -> Follower:
        """Return a follower of the same file that goes on from the same place."""
        other = Follower(self.file)
        other.end, other.anchor = self.end, self.anchor
        return other

    def new(self) -> Iterator[bytes]:
        """Yield the complete lines that are new, about 256 KiB of them at a time."""
        if self.file is None:
            return
        size = _LITTLE
        while True:
            start = self.end - len(self.anchor)
            try:
                content = os.pread(self.file.fd, size, start)
            except OSError as e:
                raise store_error(e, self.file.path, "nothing was changed") from e
            if not content.startswith(self.anchor):
                raise Rewritten
            cut = content.rfind(b"\n") + 1
            found = cut > len(self.anchor)
            if found:
                new = content[len(self.anchor) : cut]
                self.end = start + cut
                self.anchor = _end_of(content[:cut])
                yield new
            if len(content) < size:
                return
            size = _MUCH if found else size * 4

    def is_current(self) -> bool:
        """Tell, by one read, that nothing was added or cut; False where it cannot tell."""
        anchor = self.anchor
        if self.file is None or not anchor:
            return False
        return os.pread(self.file.fd, len(anchor) + 1, self.end - len(anchor)) == anchor

    def is_as_read(self) -> bool:
        """Tell whether what was read last still stands where it stood."""
        anchor, file = self.anchor, self.file
        return file is None or os.pread(file.fd, len(anchor), self.end - len(anchor)) == anchor

    def passed(self, content: bytes) -> None:
        """Note that this very process has appended `content` at the end that was read."""
        self.end += len(content)
        if len(content) < _ANCHOR:
            content = self.anchor + content
        self.anchor = _end_of(content)

    def size(self) -> int:
        """Return the file's size in bytes, with a last line that is not complete."""
        return 0 if self.file is None else os.fstat(self.file.fd).st_size


def _end_of(content: bytes) -> bytes:
    """Return the last line, with its id unless it is very long, and some bytes at least.

    A row that was taken back, and the one that its caller enqueued instead, may end alike.
    """
    size = len(content)
    start = content.rfind(b"\n", 0, size - 1) + 1
    return content[max(min(start, size - _ANCHOR), size - _LONGEST_ANCHOR, 0) :]


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


def require_header_begun(file: OpenFile) -> None:
    """Refuse a file without a single line, unless it is empty or a header cut short."""
    start = os.pread(file.fd, len(HEADER), 0)
    if not HEADER.startswith(start):
        require_header(start, file.path)
