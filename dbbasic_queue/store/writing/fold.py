"""Merges the journal into the queue file by an atomic rewrite.

- The new file is complete and on the disk before the rename.
- The rename is on the disk before the journal is cut (truncated to 0 bytes).
- So a crash before the rename leaves the old file and the journal. A crash between the rename and
  the cut leaves the new file and a journal whose replay changes nothing.
- Lines that make grep treat the file as binary (they have a NUL, or aren't UTF-8) are left out of
  the new file. Before the rename they are appended to `queue.tsv.rejected`, and synced.
- Programs that append without the lock (dbbasic-queue 1.0.0, or `>>` in a shell) may write to the
  old file in the meantime. Those rows are copied before the rename; `rescue` copies later ones.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import StoreError, store_error
from dbbasic_queue.model.records import with_payload, with_state
from dbbasic_queue.model.rows import HEADER, LONGEST_ROW_BYTES, is_binary
from dbbasic_queue.store.disk.access import copy_access
from dbbasic_queue.store.disk.files import create_fresh, end_last_line, open_or_create
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.disk.sync import sync_directory, write_all
from dbbasic_queue.store.reading.offsets import within
from dbbasic_queue.store.reading.tail import Rewritten, Tail, edited_in_place
from dbbasic_queue.store.reading.view import View

_PIECE_BYTES = 1 << 16
_LARGE_PIECE_BYTES = 1 << 20

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def fold(
    view: View,
    journal: OpenFile | None,
    added: Tail,
    *,
    fsync: bool,
    without: frozenset[int] = frozenset(),
    keep: bool = False,
    payloads: Mapping[int, bytes] | None = None,
) -> tuple[OpenFile, int]:
    """Rewrite the queue file with the journal's changes in it, then cut the journal.

    Call it under the lock, with a `view` that is up to date. The rows whose numbers are in
    `without` are left out of the new file. With `keep`, they are appended to `queue.tsv.rejected`
    first. `payloads` maps the numbers of rows to their new payloads. `added` must be at the end of
    what `view` has read: it finds the rows that other programs append to the old file during the
    fold, and they are copied, too.

    Returns the new file, and how many lines were rejected because they make grep treat the file as
    binary. Afterwards `view` goes on with the new file, but may not have read the rows that `added`
    found. If rows were left out by `without`, it is closed, and reads everything when used next.

    Raises StoreError if the system refuses; the error says what happened to the change.
    """
    binary = _binary_lines(view)
    omitted = without.union(binary)
    rejected = sorted(omitted) if keep else binary
    new, written = _replace(view, added, omitted, rejected, payloads or {}, fsync=fsync)
    _cut(view, journal, changes_rows=journal is None or bool(payloads), fsync=fsync)
    if without:
        view.close()  # not read again here: an error in that would hide that the change was made
    elif binary:
        view.close()  # the rows have other numbers now
        view.refresh()
    else:
        view.adopt(*written)
    return new, len(binary)


def _replace(
    view: View,
    added: Tail,
    omitted: frozenset[int],
    rejected: list[int],
    payloads: Mapping[int, bytes],
    *,
    fsync: bool,
) -> tuple[OpenFile, tuple[Tail, list[int], list[int]]]:
    """Write a new file and rename it to the path; return it, and what `_write_rows` returned."""
    old = view.rows.file
    assert old is not None
    new = create_fresh(view.path + ".fold")
    try:
        copy_access(new.fd, old.fd)
        written = _write_rows(view, new, omitted, payloads)
        if rejected:
            _reject(view, rejected, fsync=fsync)
        for lines in added.new(_start_again):
            write_all(new.fd, lines)
        if fsync:
            os.fsync(new.fd)  # not fdatasync, which may leave out the new file's mode and owner
        os.rename(new.path, view.path)
        new.path = view.path
    except BaseException as e:
        try:
            os.unlink(view.path + ".fold")
        except FileNotFoundError:
            pass
        new.close()  # otherwise the traceback keeps it open, and its disk space isn't freed
        if isinstance(e, Rewritten):
            view.close()
            raise edited_in_place(view.path, "the queue is as it was") from e
        if isinstance(e, OSError) and not isinstance(e, StoreError):
            raise store_error(e, new.path, "the queue is as it was") from e
        raise
    return new, written


def _cut(view: View, journal: OpenFile | None, *, changes_rows: bool, fsync: bool) -> None:
    """Sync the rename, then cut the journal. The view is closed if that fails.

    `changes_rows` is whether the new file says more than the old one and the journal.
    """
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
            raise store_error(e, view.path, made if changes_rows else "nothing was lost") from e
        raise


def _binary_lines(view: View) -> list[int]:
    """Return the numbers of the lines that make grep treat the file as binary."""
    if not view.binary:
        return []
    return [
        number
        for number in view.unreadable
        if view.offsets.length(number) <= LONGEST_ROW_BYTES and is_binary(view.line(number))
    ]


def _write_rows(
    view: View, new: OpenFile, omitted: frozenset[int], payloads: Mapping[int, bytes]
) -> tuple[Tail, list[int], list[int]]:
    """Write the header and all rows, in their current states, except those in `omitted`.

    `payloads` maps the numbers of rows to their new payloads. Pieces without a changed row are
    copied as they are. Returns a Tail at the end of what was written, then the numbers of the
    changed rows, then the new lengths of these rows. Raises Rewritten if the old file isn't as
    `view` has read it.
    """
    old = view.rows.file
    assert old is not None
    found = map(view.index.get, view.records)
    changed = sorted({number for number in found if number is not None}.union(payloads))
    omitted_numbers = sorted(omitted)
    lengths: list[int] = []
    written = Tail(new)
    write_all(new.fd, HEADER)
    written.passed(HEADER)
    for rows, start, end in view.offsets.pieces(_PIECE_BYTES):
        if end - start > LONGEST_ROW_BYTES + 1:  # one line that is too long for a row
            if rows.start not in omitted:
                for content in _large_pieces(old, start, end):
                    write_all(new.fd, content)
                    written.passed(content)
            continue
        content = os.pread(old.fd, end - start, start)
        changed_here, omitted_here = within(rows, changed), within(rows, omitted_numbers)
        if changed_here or omitted_here:
            lines = content.split(b"\n")
            if len(lines) != len(rows) + 1:
                raise Rewritten
            for number in changed_here:
                line = lines[number - rows.start]
                state = view.records.get(line[: line.find(b"\t")])
                if state is not None:
                    line = with_state(line, state)
                elif number not in payloads:
                    raise Rewritten
                if number in payloads:
                    line = with_payload(line, payloads[number])
                lines[number - rows.start] = line
                lengths.append(len(line))
            for number in reversed(omitted_here):
                del lines[number - rows.start]
            content = b"\n".join(lines)
        elif len(content) != end - start:
            raise Rewritten
        write_all(new.fd, content)
        written.passed(content)
    return written, changed, lengths


def _start_again(_: int) -> None:
    """Give up this fold: a line that is too long for a row was appended. The next one copies it."""
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
    """Append the lines with these numbers to `queue.tsv.rejected`: all of them, or none."""
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
