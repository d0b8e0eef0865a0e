"""The journal is folded into the file by an atomic rewrite.

The order is the proof: the new file is whole and on the disk before the rename; the rename is on
the disk before the journal is cut. A crash before the rename leaves the old file and the journal;
one between rename and cut leaves the new file and a journal whose replay changes nothing. Lines
that would stop grep are in `queue.tsv.rejected` before they leave the file.

Programs that append without the lock (dbbasic-queue 1.0.0, or `>>` in a shell) may write to the old
file during and after all that. Those rows are copied, too: before the rename, and again after it.
"""

from __future__ import annotations

import errno
import os

from dbbasic_queue.errors import StoreError
from dbbasic_queue.model.rows import HEADER, LONGEST_ROW, is_binary, with_state
from dbbasic_queue.store.disk.files import (
    OpenFile,
    create_fresh,
    end_last_line,
    open_or_create,
    replace_file,
    replace_like,
    store_error,
    sync_directory,
    write_all,
)
from dbbasic_queue.store.reading.offsets import within
from dbbasic_queue.store.reading.tail import Follower, Rewritten
from dbbasic_queue.store.reading.view import View

_PIECE = 1 << 16
_LARGE_PIECE = 1 << 20

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def fold(
    view: View,
    journal: OpenFile | None,
    added: Follower,
    *,
    fsync: bool,
    without: frozenset[int] = frozenset(),
    keep: bool = False,
) -> tuple[OpenFile, int]:
    """Rewrite the file with the journal's changes in it, then cut the journal. Under the lock.

    The rows whose numbers are in `without` are left out; to `keep` them they are written to
    `queue.tsv.rejected` first. `view` is up to date, and is so
    afterwards; where rows were left out, it is closed. `added` reads what is appended to the old
    file from then on; rows that it finds before the rename are copied and are new to `view`.
    Returns the new file, and how many lines were rejected. Raises OSError, and has changed nothing,
    where the new file cannot be written.
    """
    old = view.rows.file
    assert old is not None
    binary = _binary_lines(view)
    new = create_fresh(view.path + ".fold")
    try:
        replace_like(new.fd, old.fd)
        written, numbers, lengths = _write_rows(view, new, without.union(binary))
        rejected = sorted(without.union(binary)) if keep else binary
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
        new.close()  # the traceback would keep it open, and its room on a full disk taken
        if isinstance(e, Rewritten):
            view.close()
            e = OSError(errno.ESTALE, "the file was edited in place, without the lock")
        if isinstance(e, OSError) and not isinstance(e, StoreError):
            raise store_error(e, new.path, "the queue is as it was") from e
        raise
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
    if without:
        view.close()  # not read anew here: an error of that would deny what is done
    elif binary:
        view.close()  # the rows have other numbers now
        view.refresh()
    else:
        view.adopt(written, numbers, lengths)
    return new, len(binary)


def create(path: str, *, fsync: bool) -> None:
    """Put a queue without jobs into place: whole, or not at all. Under the lock."""
    replace_file(path, HEADER, "the queue was not created", ending=".fold", fsync=fsync)


def _binary_lines(view: View) -> list[int]:
    if not view.binary:
        return []
    return [
        number
        for number in view.unreadable
        if view.places.length(number) <= LONGEST_ROW and is_binary(view.line(number))
    ]


def _write_rows(
    view: View, new: OpenFile, without: frozenset[int]
) -> tuple[Follower, list[int], list[int]]:
    """Write the new file; return its end, and the rows that are changed in it: numbers, lengths.

    Pieces without a change are copied as they stand: nobody looks at their rows.
    """
    old = view.rows.file
    assert old is not None
    found = map(view.index.get, view.records)
    changed = sorted(number for number in found if number is not None)
    leaving = sorted(without)
    lengths: list[int] = []
    written = Follower(new)
    write_all(new.fd, HEADER)
    written.passed(HEADER)
    for rows, start, end in view.places.pieces(_PIECE):
        if end - start > LONGEST_ROW + 1:  # no row
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
    """Yield what lies there, and never hold all of it."""
    while start < end:
        content = os.pread(file.fd, min(end - start, _LARGE_PIECE), start)
        if not content:
            raise Rewritten
        yield content
        start += len(content)


def _reject(view: View, numbers: list[int], *, fsync: bool) -> None:
    """Append these lines to `queue.tsv.rejected`: all of them, or none."""
    old = view.rows.file
    assert old is not None
    path = view.path + ".rejected"
    file = open_or_create(path, os.O_RDWR | os.O_APPEND)
    size = end_last_line(file, os.fstat(file.fd).st_size)
    try:
        for number in numbers:
            start, end = view.places.start(number), view.places.start(number + 1)
            for content in _large_pieces(old, start, end):
                write_all(file.fd, content)
    except BaseException as e:
        try:
            os.ftruncate(file.fd, size)
        except OSError:
            pass  # then they may be there twice
        if isinstance(e, OSError):
            raise store_error(e, path, "the queue is as it was") from e
        raise
    if fsync:
        os.fsync(file.fd)
        sync_directory(os.path.dirname(path))
