"""What the queue file and its journal say, kept up to date by reading only what is new.

- A reader acquires no lock. It reads the journal before the file, so a change that is folded in
  between is seen in the file. After that it checks that the file is still the one at the path. If
  it is, the journal wasn't cut in the meantime, because a fold renames before it cuts.
- The file that was read is held open, so no other file can get its inode number. If another
  process has moved a new file to the path, the two are compared, and only the differences are
  parsed. If the new file doesn't have the same jobs in the same order, everything is read again.
"""

from __future__ import annotations

import os
import time

from dbbasic_queue.errors import StoreError
from dbbasic_queue.lazy import load
from dbbasic_queue.model.records import decode_record
from dbbasic_queue.model.rows import HEADER, LONGEST_ROW_BYTES, Row, has_json
from dbbasic_queue.store import moved
from dbbasic_queue.store.disk.files import open_file, unstable_inodes
from dbbasic_queue.store.reading.bulk import scan
from dbbasic_queue.store.reading.header import require_header, require_partial_header
from dbbasic_queue.store.reading.index import Index, current_line, job_on
from dbbasic_queue.store.reading.offsets import Offsets
from dbbasic_queue.store.reading.replaced import compare
from dbbasic_queue.store.reading.tail import Rewritten, Tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.store.reading.snapshot import Snapshot

_TRIES = 100
_REREAD_SECONDS = 600.0
"""If everything was read longer ago than this, a replaced file is read completely: nothing else
notices an edit in place that kept the file's length."""


class View(Index):
    """An index that is read from the queue's files.

    Not thread-safe: it is used by functions that `QueueLock.run` or `QueueLock.read` calls.

    `rows`            the queue file, and how far it was read
    `journal`         the journal, and how far it was read
    `offsets`         where each row lies in the file
    `loaded`          whether the file was read to its end
    `whole`           False during a change. If an exception, such as a signal handler's, ends the
                      change, everything is forgotten before the next reading
    `generation`      grows when the file was replaced or everything was forgotten: rows that were
                      read before may be outdated
    `numbering`       grows when rows may have got other numbers
    `bad_records`     how many damaged records were skipped since a pass last reported them
    `reread_seconds`  how long `refresh` took when it last found a replaced file; 0 before that
    `was_seen`        whether this process has found the file without a view, by a stream
    `moved_to`        the address that the queue was moved to, as of when the file was opened; "" if
                      it wasn't moved
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.moved_to = ""
        self.was_seen = False
        self.generation = 0
        self.numbering = 0
        self.reread_seconds = 0.0
        self.bad_records = 0
        self._forget()

    def _forget(self) -> None:
        self.whole = False
        self.clear()
        self.rows = Tail(None)
        self.journal = Tail(None)
        self.loaded = False
        self.offsets = Offsets()
        self._ahead: list[bytes] = []
        """lines that `line` has read ahead; the first one has the number `_ahead_from`"""
        self._ahead_from = 0
        self._reread_at = time.monotonic()
        """when everything was last forgotten, to be read again; on the monotonic clock"""
        self.generation += 1
        self.numbering += 1
        self.whole = True

    def close(self) -> None:
        """Forget everything. The files are closed once nothing else uses them."""
        self._forget()

    # -- keeping up to date --

    def refresh(self) -> None:
        """Read what is new. Then every change that was acknowledged before the call is known.

        Raises NotAQueue if the file is another program's, StoreError if the system refuses a read
        or the file is replaced again and again.
        """
        started = time.perf_counter()
        if not self.follow():
            for _ in range(_TRIES):
                if self.follow():
                    break
            else:
                raise unstable_inodes(self.path)
            self.reread_seconds = time.perf_counter() - started

    def follow(self) -> bool:
        """Read what is new. Returns False if the file was replaced or edited: call it again.

        By then, the view has already switched to the new file, or has forgotten everything.
        """
        file = self.rows.file
        if not self.whole or not (self.rows.anchor or file is None or file.is_ours()):
            self._forget()
        self.whole = False
        try:
            self._open()
            records = self._new_records()
            for content in self.rows.new(self._add_long_line):
                self._add_lines(content)
            if self.rows.file is not None and not self.rows.end:
                require_partial_header(self.rows.file)
            if self.rows.file is None or self.rows.file.is_at_path():
                for job_id, state in records:
                    self.apply(job_id, state)
                self.loaded = self.whole = True
                return True
        except (Rewritten, StoreError) as e:
            if file is not None and not file.is_ours():  # another file has its descriptor now
                self._forget()
                return False
            if not isinstance(e, Rewritten):
                raise
        self._take_over()
        return False

    def follow_journal(self) -> bool:
        """Read only what is new in the journal. Returns False if that isn't enough: use `refresh`.

        Call it under the lock. True means that all changes of known jobs are known: the journal
        still has what was read before, so no fold has cut it. New rows aren't read.
        """
        if not self.whole or not self.loaded or not self.journal.end:
            return False
        self.whole = False
        try:
            for job_id, state in self._new_records():
                self.apply(job_id, state)
        except Rewritten:
            self.whole = True
            return False
        except StoreError:  # the program may have closed the descriptor: read everything again
            return False
        self.whole = True
        return self.journal.is_current()

    def follow_moved(self) -> None:
        """Read what is new in the files that are open, after their directory was moved.

        Forget everything if the file was replaced or deleted there, or if an error is raised.
        """
        if not self.whole:
            self._forget()
        self.whole = False
        try:
            if self.rows.file is None or not os.fstat(self.rows.file.fd).st_nlink:
                raise Rewritten
            records = self._new_records()
            for content in self.rows.new():
                self._add_lines(content)
            for job_id, state in records:
                self.apply(job_id, state)
            self.whole = True
        except BaseException as e:
            self._forget()
            if not isinstance(e, Rewritten):
                raise

    def _take_over(self) -> None:
        """Go on with the file that is at the path now, or forget everything.

        The next reading reads the journal from its beginning, because a fold has cut it.
        """
        was_loaded, self.loaded = self.loaded, False
        try:
            new = open_file(self.path, os.O_RDONLY)
            self.moved_to = moved.read(self.path)
            is_old = time.monotonic() - self._reread_at > _REREAD_SECONDS
            if not was_loaded or new is None or is_old:
                raise Rewritten
            changes = compare(self, self.offsets, self.rows, new)
        except Rewritten:
            self._forget()
            return
        for number, state in changes.states.items():
            self.replace(number, state)
        self.offsets.update(len(HEADER), list(changes.lengths), list(changes.lengths.values()))
        self.rows = Tail(new, changes.end, self.offsets.length(-1) if self.when else 0)
        self.journal = Tail(None)
        self.records = {}
        self._ahead = []
        self.generation += 1
        self.loaded = self.whole = True

    def _open(self) -> None:
        """Open the files that aren't open. Raises Rewritten if a journal that was read is gone."""
        if self.rows.file is None:
            self.rows = Tail(open_file(self.path, os.O_RDONLY))
            self.moved_to = moved.read(self.path)
        journal = self.journal.file
        if journal is None or not journal.is_ours() or not journal.is_at_path():
            if self.journal.end:
                raise Rewritten
            journal = open_file(self.path + ".journal", os.O_RDONLY)
            if journal is not None or self.journal.file is not None:
                self.journal = Tail(journal)

    def _new_records(self) -> list[tuple[bytes, bytes]]:
        """Return the journal's new records: pairs of id and encoded state."""
        records: list[tuple[bytes, bytes]] = []
        if self.journal.file is None:
            return records
        for content in self.journal.new():
            for line in content.split(b"\n"):
                record = decode_record(line)
                if record is not None:
                    records.append(record)
                elif line:
                    self.bad_records += 1
        return records

    def _add_lines(self, content: bytes) -> None:
        if self.rows.end == len(content):  # the beginning of the file
            header, _, content = content.partition(b"\n")
            require_header(header, self.path)
            self.offsets = Offsets(len(header) + 1)
        for piece, columns in scan(content):
            lines = piece.split(b"\n")
            lines.pop()
            self.offsets.extend(map(len, lines))
            if columns is not None:
                self.add_jobs(columns)
            else:
                for line in lines:
                    self.add_line(line)

    def _add_long_line(self, length: int) -> None:
        if self.rows.end == length + 1:  # the first line, and too long for a header
            require_header(b"", self.path)
        self.offsets.extend([length])
        self.add_long_line()

    def has_torn_row(self) -> bool:
        """Return whether, at the last reading, the last line had no end and wasn't the header."""
        return self.rows.torn and self.rows.end > 0

    def unread(self) -> int:
        """Return about how many bytes `refresh` would have to read."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return 0
        file = self.rows.file
        is_known = self.loaded and file and file.identity == (status.st_dev, status.st_ino)
        new = status.st_size - self.rows.end if is_known else status.st_size
        return new + self.journal.size() - self.journal.end

    # -- reading rows --

    def line(self, number: int, ahead: int = 0) -> bytes:
        """Return a row's line as it is in the file, without its end.

        With `ahead`, reads about that many bytes of rows, from this one on: later calls for these
        need no reading.
        """
        at = number - self._ahead_from
        if 0 <= at < len(self._ahead):
            return self._ahead[at]
        file = self.rows.file
        assert file is not None
        start, length = self.offsets.extent(number)
        if not ahead:
            return os.pread(file.fd, length, start)
        lengths = self.offsets.lengths(number, ahead)
        content = os.pread(file.fd, sum(lengths) + len(lengths) - 1, start)
        if len(lengths) == 1:
            return content
        lines = content.split(b"\n")
        if list(map(len, lines)) != lengths:  # the file was edited in place
            return content[: lengths[0]]
        self._ahead, self._ahead_from = lines, number
        return lines[0]

    def row(self, number: int, ahead: int = 0) -> Row | None:
        """Return a row in its current state; None if the line isn't a job's.

        The payload isn't checked. `ahead` is as in `line`.
        """
        return job_on(number, self.line(number, ahead), self.index, self.records)

    def row_of(self, job_id: bytes) -> Row | None:
        """Return the row with this id, or None. The payload isn't checked."""
        number = self.index.get(job_id)
        return None if number is None else self.row(number)

    def find(self, job_id: bytes) -> Row | None:
        """Return the job with this id; None if there is none, or its payload isn't JSON."""
        row = self.row_of(job_id)
        return row if row and has_json(row) else None

    def is_unreadable(self, number: int) -> bool:
        """Return whether a line isn't empty and isn't a job."""
        length = self.offsets.length(number)
        if not 0 < length <= LONGEST_ROW_BYTES:
            return length > 0
        row = self.row(number)
        return row is None or not has_json(row)

    def current_line(self, line: bytes) -> bytes:
        """Return a job's line in its current state: the journal's, if it has one."""
        return current_line(line, self.records)

    def snapshot(self) -> Snapshot:
        """Return the jobs as of the last reading; later changes to the view don't change it."""
        # `index` can be shared: it grows, or is replaced as a whole, but no entry changes.
        return load(_snapshot)(
            self.rows, self.index, dict(self.records), self.generation, self.numbering
        )

    # -- after a change of this process --

    def wrote(self, content: bytes, changes: list[tuple[bytes, bytes]]) -> None:
        """Apply the changes that this process has appended to the journal as `content`.

        They are pairs of id and encoded state.
        """
        self.whole = False
        self.journal.passed(content)
        for job_id, state in changes:
            self.apply(job_id, state)
        self.whole = True

    def adopt(self, rows: Tail, numbers: list[int], lengths: list[int]) -> None:
        """Switch to the file that a fold of this process has written; the journal is empty now.

        In it, the rows with these `numbers` have these `lengths`. The records of running jobs are
        kept, because an outcome is accepted only if the job's record is the one of its claim.
        """
        self.whole = False
        self.keep_only_processing()
        self.rows = rows
        self.offsets.update(len(HEADER), numbers, lengths)
        self.journal = Tail(self.journal.file)
        self._ahead = []
        self.generation += 1
        self.whole = True


def _snapshot() -> type[Snapshot]:
    from dbbasic_queue.store.reading.snapshot import Snapshot

    return Snapshot
