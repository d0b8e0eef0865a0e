"""Merges the journal into the queue file by an atomic rewrite.

- The new file is complete and on the disk before the rename.
- The rename is on the disk before the journal is cut.
- So a crash before the rename leaves the old file and the journal. A crash between the rename and
  the cut leaves the new file and a journal whose replay changes nothing.
- Lines that would stop grep are in `queue.tsv.rejected` before they leave the file.
- Programs that append without the lock (dbbasic-queue 1.0.0, or `>>` in a shell) may write to the
  old file in the meantime. Those rows are copied before the rename; `rescue` copies later ones.
"""

from __future__ import annotations

import errno
import os

from dbbasic_queue.errors import StoreError, store_error
from dbbasic_queue.model.records import with_state
from dbbasic_queue.model.rows import HEADER, LONGEST_ROW_BYTES, is_binary
from dbbasic_queue.store.disk.access import replace_like
from dbbasic_queue.store.disk.files import create_fresh, end_last_line, open_or_create
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.disk.sync import sync_directory, write_all
from dbbasic_queue.store.reading.offsets import within
from dbbasic_queue.store.reading.tail import Rewritten, Tail
from dbbasic_queue.store.reading.view import View

_PIECE_BYTES = 1 << 16
_LARGE_PIECE_BYTES = 1 << 20

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def fold(
    view: View,
    journal: OpenFile | None,
    added: Tail,
    *,
    fsync: bool,
    without: frozenset[int] = frozenset(),
    keep: bool = False,
) -> tuple[OpenFile, int]:
    """Write the queue file with the journal's changes in it, then cut the journal. Under the lock.

    `view` is up to date, before and afterwards. The rows whose numbers are in `without` are left
    out: then the view is closed. With `keep`, they are appended to `queue.tsv.rejected` first.
    `added` reads what is appended to the old file from now on. The rows that it finds before the
    rename are copied; `view` hasn't read them yet.

    Returns the new file, and how many lines were rejected because they would stop grep. Raises
    StoreError if the system refuses; the error says whether the file was replaced.
    """
    binary = _binary_lines(view)
    leaving = without.union(binary)
    rejected = sorted(leaving) if keep else binary
    new, written = _replace(view, added, leaving, rejected, fsync=fsync)
    _cut(view, journal, fsync=fsync)
    if without:
        view.close()  # not read again here: an error of that would deny a change that was made
    elif binary:
        view.close()  # the rows have other numbers now
        view.refresh()
    else:
        view.adopt(*written)
    return new, len(binary)


def _replace(
    view: View, added: Tail, leaving: frozenset[int], rejected: list[int], *, fsync: bool
) -> tuple[OpenFile, tuple[Tail, list[int], list[int]]]:
    """Write a new file and rename it to the path; return it, and what `_write_rows` returned."""
    old = view.rows.file
    assert old is not None
    new = create_fresh(view.path + ".fold")
    try:
        replace_like(new.fd, old.fd)
        written = _write_rows(view, new, leaving)
        if rejected:
            _reject(view, rejected, fsync=fsync)
        for lines in added.new(_start_again):
            write_all(new.fd, lines)
        if fsync:
            os.fsync(new.fd)  # not fdatasync: the new inode's mode and owner count, too
        os.rename(new.path, view.path)
        new.path = view.path
    except BaseException as e:
        try:
            os.unlink(view.path + ".fold")
        except FileNotFoundError:
            pass
        new.close()  # the traceback would keep it open, and so its space on a full disk
        if isinstance(e, Rewritten):
            view.close()
            e = OSError(errno.ESTALE, "the file was edited in place, without the lock")
        if isinstance(e, OSError) and not isinstance(e, StoreError):
            raise store_error(e, new.path, "the queue is as it was") from e
        raise
    return new, written


def _cut(view: View, journal: OpenFile | None, *, fsync: bool) -> None:
    """Sync the rename, then cut the journal. The view is closed if that fails."""
    try:
        if fsync:
            sync_directory(os.path.dirname(view.path))
        if journal is not None:
            journal.require("nothing was lost")
            os.ftruncate(journal.fd, 0)
    except BaseException as e:
        view.close()
        if isinstance(e, OSError):
            made = "the change was made, but may not survive a power cut"
            raise store_error(e, view.path, made if journal is None else "nothing was lost") from e
        raise


def _binary_lines(view: View) -> list[int]:
    """Return the numbers of the lines for which grep would take the file for a binary one."""
    if not view.binary:
        return []
    return [
        number
        for number in view.unreadable
        if view.offsets.length(number) <= LONGEST_ROW_BYTES and is_binary(view.line(number))
    ]


def _write_rows(
    view: View, new: OpenFile, without: frozenset[int]
) -> tuple[Tail, list[int], list[int]]:
    """Write the rows; return the new file's end, and the changed rows: their numbers and lengths.

    Pieces without a changed row are copied as they are.
    """
    old = view.rows.file
    assert old is not None
    found = map(view.index.get, view.records)
    changed = sorted(number for number in found if number is not None)
    leaving = sorted(without)
    lengths: list[int] = []
    written = Tail(new)
    write_all(new.fd, HEADER)
    written.passed(HEADER)
    for rows, start, end in view.offsets.pieces(_PIECE_BYTES):
        if end - start > LONGEST_ROW_BYTES + 1:  # a line that isn't a row
            if rows.start not in without:
                for content in _large_pieces(old, start, end):
                    write_all(new.fd, content)
                    written.passed(content)
            continue
        content = os.pread(old.fd, end - start, start)
        changed_here, leaving_here = within(rows, changed), within(rows, leaving)
        if changed_here or leaving_here:
            lines = content.split(b"\n")
            if len(lines) != len(rows) + 1:
                raise Rewritten
            for number in changed_here:
                line = lines[number - rows.start]
                state = view.records.get(line[: line.find(b"\t")])
                if state is None:
                    raise Rewritten
                line = lines[number - rows.start] = with_state(line, state)
                lengths.append(len(line))
            for number in reversed(leaving_here):
                del lines[number - rows.start]
            content = b"\n".join(lines)
        elif len(content) != end - start:
            raise Rewritten
        write_all(new.fd, content)
        written.passed(content)
    return written, changed, lengths


def _start_again(_: int) -> None:
    raise Rewritten


def _large_pieces(file: OpenFile, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from `start` to `end`, a part at a time."""
    while start < end:
        content = os.pread(file.fd, min(end - start, _LARGE_PIECE_BYTES), start)
        if not content:
            raise Rewritten
        yield content
        start += len(content)


def _reject(view: View, numbers: list[int], *, fsync: bool) -> None:
    """Append the lines of these numbers to `queue.tsv.rejected`: all of them, or none."""
    old = view.rows.file
    assert old is not None
    path = view.path + ".rejected"
    file = open_or_create(path, os.O_RDWR | os.O_APPEND)
    size = end_last_line(file, os.fstat(file.fd).st_size)
    try:
        for number in numbers:
            start, end = view.offsets.start(number), view.offsets.start(number + 1)
            for content in _large_pieces(old, start, end):
                write_all(file.fd, content)
    except BaseException as e:
        try:
            os.ftruncate(file.fd, size)
        except OSError:
            pass  # the next fold appends them again
        if isinstance(e, OSError):
            raise store_error(e, path, "the queue is as it was") from e
        raise
    if fsync:
        os.fsync(file.fd)
        sync_directory(os.path.dirname(path))
