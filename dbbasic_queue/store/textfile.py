"""The door to the queue's files: add jobs, change them, read them, fold.

A writer holds the lock, reads what is new, checks that its change is still legal, appends, and has
it on the disk before anybody is told. New rows go to the file, changes to the journal.
"""

from __future__ import annotations

import errno
import math
import os
import time
import weakref

from dbbasic_queue import forks
from dbbasic_queue.errors import DuplicateJob, StoreError, store_error
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.records import decode_record, encode_record, encode_state
from dbbasic_queue.model.rows import HEADER
from dbbasic_queue.model.states import (
    CLOCK_TOLERANCE,
    FAILED,
    PROCESSING,
    cancel,
    clamp,
    later,
    pull_in,
    requeue,
    run_now,
)
from dbbasic_queue.store import paused
from dbbasic_queue.store.disk.files import (
    NO_ROOM,
    OpenFile,
    append,
    end_last_line,
    open_file,
    open_or_create,
    refuse_mount_point,
    unstable_inodes,
)
from dbbasic_queue.store.disk.lock import QueueLock, even_if_moved, locked, reading
from dbbasic_queue.store.disk.sync import sync, sync_directory
from dbbasic_queue.store.reading.lookup import search
from dbbasic_queue.store.reading.tail import Rewritten, Tail, has_header
from dbbasic_queue.store.reading.view import NEVER, View
from dbbasic_queue.store.writing import fold
from dbbasic_queue.store.writing.fold_costs import (
    CHEAP_OUTSIDE_SECONDS,
    SECONDS_PER_BYTE,
    SECONDS_PER_CHANGE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.claiming.claims import Claims
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.protocol import Terms
    from dbbasic_queue.store.reading.snapshot import Snapshot
    from dbbasic_queue.store.reading.unreadable import Unreadable
    from dbbasic_queue.store.writing.choice import Choice, Pick

_READ_AHEAD = 1 << 16
_SHOWN_BYTES = 800
_LOOKUPS_WITHOUT_INDEX = 2
_TRIES = 100
_LONG = 1 << 20
"""Bytes that take longer to read than others should wait for the lock."""
_READINGS = 3
"""How often a file is read without the lock that others replace before it is acquired."""


class TextFileStore:
    """One queue's files, for one process and all its threads."""

    is_shared = True
    """whether other processes have the same jobs"""

    def __init__(self, path: str, *, fsync: bool) -> None:
        self.path = path
        self.fsync = fsync
        self.view = view = View(path)
        self.lock = QueueLock(
            path + ".lock", lambda known: _check(path, known or view.rows.file is not None)
        )
        self._rows: OpenFile | None = None
        self._ended_at = -1
        self._journal: OpenFile | None = None
        self._replaced: Tail | None = None
        self._last_fold = (0.001, 0)
        self._lookups = 0
        self._unpaused_at: object = None
        """what had been read when a pending job was found whose type is not paused"""
        self.rejected = 0
        self.skipped_history: list[str] = []
        """the start of each line of the history that the last reading skipped"""
        _stores.add(self)

    def __reduce__(self) -> tuple[object, ...]:
        return _open_again, (self.path, self.fsync)

    def open_claims(self, terms: Terms, now: float, parallel: int) -> Claims:
        """Take a slot for a pass; return what claims jobs for it. Raises QueueBusy without one."""
        from dbbasic_queue.store.claiming.claims import Claims

        return Claims(self, terms, now, parallel)

    def exists(self) -> bool:
        """Return whether there is something at the queue's path. Only `add` creates the file."""
        try:
            os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as e:
            raise store_error(e, self.path, "nothing was done") from e
        return True

    def close(self) -> None:
        """Close every descriptor; the next use opens the files again."""
        self.rescue()
        self.lock.read(self._close_files)

    def _close_files(self) -> None:
        self.view.close()
        self._rows = self._journal = self._replaced = None
        self.lock.close()

    def after_fork(self) -> None:
        """In a forked child: forget the parent's files; `files` closes those that are locked."""
        self.lock.after_fork()
        self._close_files()

    # -- new jobs --

    def add(self, rows: str, own_id: str | None = None) -> None:
        """Append the lines of new jobs; they are in the queue, and on the disk, on return.

        Raises DuplicateJob if a job has the id `own_id`, StoreError if the system refuses: then
        none is in the queue.
        """
        content = rows.encode()
        file, size = self.lock.run(self._add, content, own_id)
        if self.fsync:
            # After the unlock, so that enqueues of several processes share the disk's time. A
            # fold that copies the rows meanwhile syncs them itself.
            try:
                sync(file.fd)
            except OSError as e:
                self._rows = None
                consequence = "the jobs were added and may run, but may not survive a power cut"
                try:
                    if self.lock.run(self._take_back, file, size, content):
                        consequence = "nothing was added"
                except OSError:
                    pass
                raise store_error(e, self.path, consequence) from e

    @even_if_moved
    def _add(self, content: bytes, own_id: str | None) -> tuple[OpenFile, int]:
        file, size = self._rows_for_append()
        if own_id is not None:
            self._check_free(own_id)
            file, size = self._rows_for_append()
        append(file, size, content)
        self._ended_at = size + len(content)
        return file, size

    def _take_back(self, file: OpenFile, size: int, content: bytes) -> bool:
        """Cut unsynced rows off, where they still are the last ones and nobody has started them.

        The descriptor is not synced again: after an error the kernel may take the lost pages for
        clean (https://lwn.net/Articles/752063/).
        """
        if not file.is_ours() or not file.is_at_path():
            return False
        if os.fstat(file.fd).st_size != size + len(content):
            return False
        self.view.refresh()
        first = len(self.view.when) - content.count(b"\n")
        if any(self.view.index.get(job_id, -1) >= first for job_id in self.view.records):
            return False
        self.view.whole = False  # it knows the rows
        os.ftruncate(file.fd, size)
        return True

    def _rows_for_append(self) -> tuple[OpenFile, int]:
        """Return the file that is at the path now, its last line ended, and its size."""
        tries = 0
        while True:
            file = self._rows
            try:
                status = os.lstat(self.path)
            except FileNotFoundError:
                self._open_rows(create=True)
                continue
            if (
                file is None
                or file.identity != (status.st_dev, status.st_ino)
                or not file.is_ours()
            ):
                if (tries := tries + 1) > _TRIES:
                    raise unstable_inodes(self.path)
                self._open_rows(create=False)
                continue
            size = status.st_size
            if not size:
                self._begin(file)
                continue
            if size != self._ended_at:
                self._ended_at = size = end_last_line(file, size)
            return file, size

    def _open_rows(self, *, create: bool) -> None:
        """Open the file at the path, or create it, under the lock that is there."""
        if not self.lock.path_checked:
            self.lock.reacquire()
        elif create:
            fold.create(self.path, fsync=self.fsync)
        elif file := open_file(self.path, os.O_RDWR | os.O_APPEND):
            self._begin(file)
            self._rows = file

    def _begin(self, file: OpenFile) -> None:
        """See that the file begins with the header, an empty one is given it; and that its name
        is on the disk: whoever put it into place may have been killed before that was so."""
        if not has_header(file):
            os.ftruncate(file.fd, 0)
            append(file, 0, HEADER)
        if self.fsync:
            sync_directory(os.path.dirname(self.path))
        self._ended_at = -1

    def _check_free(self, job_id: str) -> None:
        key = job_id.encode()
        self._read_long_ones_unlocked()
        self.view.refresh()
        if key in self.view.index:
            if self.view.find(key) is None:
                raise DuplicateJob(
                    f"invalid job_id {job_id!r}: a row that cannot be read has it "
                    "(`dbbasic-queue unreadable` shows that row, and --remove moves it away)"
                )
            raise DuplicateJob(
                f"job_id {job_id!r} is refused: that job is in the queue already "
                "(get_job shows it; choose another id, or purge the old job first)"
            )
        if key in self.view.records:
            # Its row was taken out by hand: what the journal says is not about the new job.
            # The cut, too, is on the disk before the new row is.
            self.fold()
            if self.fsync:
                sync(self._journal_for_append().fd)
            self.view.records.pop(key, None)

    # -- changes: all under the lock --

    def cancel(self, job_id: str) -> bool:
        """Cancel a job if it is pending; on the disk, and mostly in the file, on return."""
        return self._change_one(job_id, cancel)

    def run_now(self, job_id: str, now: float) -> bool:
        """Make a job due if it is pending; on the disk, and mostly in the file, on return."""
        return self._change_one(job_id, lambda state: run_now(state, now))

    def _change_one(self, job_id: str, new_state: Callable[[State], State | None]) -> bool:
        key = job_id.encode()
        return self.lock.read(self._has, key) and self.lock.run(
            self._change_one_locked, key, new_state
        )

    def _has(self, key: bytes) -> bool:
        self.view.refresh()
        return key in self.view.index

    def _change_one_locked(self, key: bytes, new_state: Callable[[State], State | None]) -> bool:
        self.read_new()
        row = self.view.find(key)
        state = new_state(row.state) if row else None
        if state is None:
            return False
        self.change([(key, encode_state(state))])
        self.fold_if_cheap(CHEAP_OUTSIDE_SECONDS)
        return True

    def requeue(
        self,
        now: float,
        *,
        job_id: str | None = None,
        run_at: int | None = None,
        job_type: str | None = None,
    ) -> int:
        """Requeue one job, or all failed ones, or those of a type; on the disk on return.

        One job is requeued by a record, as any change; several by a rewrite, for an append may be
        torn between two records. The journal is folded before that: a record must not be replayed
        over what the rewrite says of its job.
        """
        if not self.exists():
            return 0
        if job_id is not None:
            return int(self._change_one(job_id, lambda state: requeue(state, now, run_at)))

        def new_state(row: Row, line: bytes) -> bytes | None:
            if row.state.status != FAILED or job_type not in (None, row.type):
                return None
            state = requeue(row.state, now)
            return encode_record(row.id.encode(), encode_state(state)) if state else None

        return self._rewrite(new_state, self._apply_all)

    def _apply_all(self, records: dict[int, bytes]) -> None:
        self.view.whole = False  # it says what the files do not, until they are replaced
        for number in sorted(records):
            key, state = decode_record(records[number][:-1]) or (b"", b"")
            self.view.apply(key, state)
        self._replace(None)

    def remove(self, unwanted: Callable[[Row], bool], archive: str | None = None) -> int:
        """Take the jobs that are not wanted out of the file, by one rewrite; return how many.

        Never a job that is being run. Into an archive they are written before the lock is taken:
        one that changes in the meantime stays, and so does one that becomes unwanted. The journal
        is folded, and its cut on the disk, first: no record is left that could meet a new job with
        the same id.
        """
        if not self.exists():
            return 0
        archived: set[int] = set()

        def line_of(row: Row, line: bytes) -> bytes | None:
            if row.state.status == PROCESSING or not unwanted(row):
                return None
            return line if archive else b""

        def put_away(lines: dict[int, bytes]) -> None:
            new = [line for _, line in sorted(lines.items()) if hash(line) not in archived]
            if archive and new:
                from dbbasic_queue.store.writing.archive import append_rows

                append_rows(archive, new)
                archived.update(map(hash, new))

        return self._rewrite(line_of, self._leave, put_away if archive else None)

    def _leave(self, lines: dict[int, bytes]) -> None:
        self._leave_out(lines, None)

    def _leave_at_once(self, lines: dict[int, bytes]) -> None:
        """Fold and leave rows out by one rewrite: the disk has no room for all rows once more.

        A kill between its rename and its cut leaves records of jobs that are gone. `_check_free`
        folds before one of their ids is used again.
        """
        self._leave_out(lines, self._journal_for_append() if self.view.journal.file else None)

    def _leave_out(self, lines: dict[int, bytes], journal: OpenFile | None) -> None:
        old, end, places = self.view.rows.file, self.view.rows.end, self.view.places
        try:
            self._replace(journal, frozenset(lines))
        except StoreError as e:
            if e.errno not in NO_ROOM or old is None or not old.is_at_path():
                raise
            needed = end - sum(places.lengths(number, 0)[0] + 1 for number in lines)
            disk = os.statvfs(os.path.dirname(self.path))
            missing = max(needed - disk.f_bavail * disk.f_frsize, 1)
            consequence = (
                f"nothing was removed; the rows that stay take {needed} bytes, about {missing} "
                "more than are free"
            )
            cause = e.__cause__ if isinstance(e.__cause__, OSError) else e
            raise store_error(cause, self.path, consequence) from e

    def _rewrite(
        self,
        pick: Pick,
        rewrite: Callable[[dict[int, bytes]], None],
        before: Callable[[dict[int, bytes]], None] | None = None,
    ) -> int:
        """Choose jobs, and `rewrite` the file without a journal; return how many were chosen.

        They are chosen, and something is done with them `before`, without the lock. If others
        replace the file each time until the lock is acquired, all is done under it.
        """
        for _ in range(_READINGS):
            choice = self.lock.read(self._choice, pick)
            choice.read()
            if before is not None:
                before(choice.picked)
            done = self.lock.run(self._rewrite_if_same, choice, rewrite, before is None)
            if done is not None:
                return done
        return self.lock.run(self._rewrite_locked, pick, rewrite, before)

    def _choice(self, pick: Pick) -> Choice:
        from dbbasic_queue.store.writing.choice import Choice

        self.view.refresh()
        return Choice(self.view, pick)

    def _rewrite_if_same(
        self, choice: Choice, rewrite: Callable[[dict[int, bytes]], None], add: bool
    ) -> int | None:
        self.read_new()
        if not choice.update(self.view, add=add):
            return None
        numbering = self.view.numbering
        try:
            self._fold_and_sync_cut()
        except StoreError as e:
            if e.errno not in NO_ROOM or rewrite != self._leave or not self.view.loaded:
                raise  # if the view is closed, the fold was made, and only its sync was refused
            self._leave_at_once(choice.picked)
            return len(choice.picked)
        if numbering != self.view.numbering:
            return None
        if choice.picked:
            rewrite(choice.picked)
        return len(choice.picked)

    def _rewrite_locked(
        self,
        pick: Pick,
        rewrite: Callable[[dict[int, bytes]], None],
        before: Callable[[dict[int, bytes]], None] | None,
    ) -> int:
        self.read_new()
        self._fold_and_sync_cut()
        choice = self._choice(pick)
        choice.read()
        if before is not None:
            before(choice.picked)
        if choice.picked:
            rewrite(choice.picked)
        return len(choice.picked)

    # -- lines that are not jobs --

    def unreadable(self) -> Iterator[Unreadable]:
        """Yield each line that isn't a job, in the file's order."""
        from dbbasic_queue.store.reading.unreadable import Unreadable, reason

        found: list[Unreadable] = []
        view = self.lock.read(self._snapshot)

        def note(number: int, line: bytes, length: int) -> None:
            holder = view.index.get(line[: max(line.find(b"\t"), 0)], -2)
            found.append(Unreadable(number + 2, reason(line, length, holder + 2), line))

        for _ in view.rows_as_they_stand(note):
            yield from found
            found.clear()
        yield from found
        torn = self.lock.read(self._torn_row)
        if torn and self.exists() and (torn := self.lock.run(self._torn_row)):
            yield Unreadable(torn[0] + 2, "it has no line end yet: the next pass ends it", torn[1])

    def _torn_row(self) -> tuple[int, bytes] | None:
        """Return the number and the beginning of a last line without an end."""
        view = self.view
        view.refresh()
        if not view.has_torn_row() or view.rows.file is None:
            return None
        return len(view.when), os.pread(view.rows.file.fd, _SHOWN_BYTES, view.rows.end)

    def remove_unreadable(self) -> int:
        """Move the lines that aren't jobs to `queue.tsv.rejected` by one rewrite; return how many.

        They are looked for without the lock, and each is looked at again under it. Never a row that
        a pass of another program may have in hand. A kill may leave them in both files.
        """
        if not self.exists():
            return 0
        view = self.lock.read(self._snapshot)
        return self.lock.run(self._remove_unreadable, view.numbering, self._find_unreadable(view))

    @staticmethod
    def _find_unreadable(view: Snapshot) -> set[int]:
        numbers: set[int] = set()
        for _ in view.rows_as_they_stand(lambda number, *_: numbers.add(number)):
            pass
        return numbers

    def _remove_unreadable(self, numbering: int, numbers: set[int]) -> int:
        self.read_new()
        rejected = self.rejected
        self._fold_and_sync_cut()
        view = self.view
        if view.numbering != numbering:
            numbers = self._find_unreadable(self._snapshot())
        found = frozenset(
            number
            for number in numbers.union(view.unreadable)
            if number < len(view.when)
            and number not in view.processing
            and view.is_unreadable(number)
        )
        if found:
            self._replace(None, found, keep=True)
        return self.rejected - rejected + len(found)

    # -- pausing --

    def paused(self) -> frozenset[str]:
        """Return the paused types; `ALL` among them stands for all."""
        return paused.read(self.path)

    @locked
    def pause(self, job_type: str) -> bool:
        """Pause a type, or `ALL`; on the disk on return. False if it was paused so."""
        types = paused.read(self.path)
        if job_type in types:
            return False
        paused.write(self.path, types | {job_type}, fsync=self.fsync)
        return True

    def resume(self, job_type: str | None) -> bool:
        """Take back the pause of a type, or of everything; on the disk on return."""
        return bool(paused.read(self.path)) and self._resume(job_type)

    @locked
    def _resume(self, job_type: str | None) -> bool:
        types = paused.read(self.path)
        gone = types if job_type is None else types & {job_type}
        if gone:
            paused.write(self.path, types - gone, fsync=self.fsync)
        return bool(gone)

    def _fold_and_sync_cut(self) -> None:
        """Fold so that no record is left, after a power cut neither."""
        self.fold()
        if self.fsync and self.view.journal.file:
            try:
                sync(self._journal_for_append().fd)
            except OSError:
                self._journal = None  # never synced again: the kernel may take it for clean
                raise

    def catch_up(self) -> None:
        """Read what others have changed; costs one read where that is nothing."""
        view = self.view
        if (view.whole and view.journal.is_current()) or view.follow_journal():
            return
        self.lock.check_path()
        if self.lock.moved:
            self.view.follow_moved()
        else:
            self.read_new()

    def read_new(self) -> None:
        """Read what others have written, new rows and files put into place by hand, too.

        If that is much, the lock is released in the meantime.
        """
        self._read_long_ones_unlocked()
        self._rescue()
        self.view.refresh()
        if self.view.has_torn_row():
            self._rows_for_append()  # ends it: from now on it is a row, or a line that is no job
            self.view.refresh()
        journal = self.view.journal
        if journal.size() > journal.end:  # a torn last line: end it, and pass it over
            append(self._journal_for_append(), journal.size(), b"\n")
            self.view.refresh()

    def _read_long_ones_unlocked(self) -> None:
        """If there is much to read, as in a file that was replaced, let others go on meanwhile."""
        for _ in range(_READINGS):
            if self.view.unread() < _LONG:
                return
            self.lock.release_early()
            self.view.refresh()
            self.lock.reacquire()

    def change(self, changes: list[tuple[bytes, bytes]], *, last: bool = False) -> None:
        """Append the new states of jobs to the journal; on the disk on return.

        The caller has caught up, and knows the changes to be legal. Where they are the `last`
        thing that it does under the lock, others go on while the disk is waited for. Raises
        StoreError if the system refuses; then none has been made.
        """
        if len(changes) == 1:
            content = encode_record(*changes[0])
        else:
            content = b"".join([encode_record(job_id, state) for job_id, state in changes])
        file = self._journal_for_append()
        start = self.view.journal.end
        append(file, start, content)
        self.view.wrote(content, changes)
        if self.fsync:
            if last:
                self.lock.release_early()
            try:
                sync(file.fd)
            except OSError as e:
                consequence = "the change was made, but may not survive a power cut"
                rows = self.view.rows.file
                self._journal = None
                self.view.close()
                try:
                    if last:
                        self.lock.reacquire()
                    if (rows is None or rows.is_at_path()) and self._cut_off(file, start, content):
                        consequence = "nothing was changed"
                except OSError:
                    pass  # it stays
                raise store_error(e, file.path, consequence) from e

    @staticmethod
    def _cut_off(file: OpenFile, start: int, content: bytes) -> bool:
        """Take unsynced records back, where nobody has written behind them, or cut them."""
        if not file.is_ours() or os.pread(file.fd, len(content) + 1, start) != content:
            return False
        os.ftruncate(file.fd, start)
        return True

    def _journal_for_append(self) -> OpenFile:
        """Return the journal's file. The caller has just read that to its end, or found none.

        From now on it is also read through this descriptor, so one that was just read from doesn't
        have to be checked again before it is written.
        """
        file, seen = self._journal, self.view.journal.file
        if file is None or file is not seen:
            if file is None or not seen or file.identity != seen.identity or not file.is_ours():
                path = self.path + ".journal"
                file = self._journal = open_or_create(path, os.O_RDWR | os.O_APPEND)
                if self.fsync:
                    sync_directory(os.path.dirname(path))
            self.view.journal.file = file
        return file

    # -- folding: under the lock --

    def fold(self) -> None:
        """Fold the journal into the file, whatever it costs; nothing where there is nothing."""
        if not self.exists():
            return  # removed by hand: only a new job creates it again
        self._rescue()
        self._rows_for_append()  # ends a torn last line, which then is a line like another
        self.view.refresh()
        if not self.view.journal.size() and not self.view.binary:
            return
        started = time.perf_counter()
        changes = len(self.view.records)
        journal = self._journal_for_append() if self.view.journal.file else None
        self.rejected += self._replace(journal)
        seconds = time.perf_counter() - started - changes * SECONDS_PER_CHANGE
        self._last_fold = (max(seconds, 0.0), self.view.rows.end)

    def _replace(
        self,
        journal: OpenFile | None,
        without: frozenset[int] = frozenset(),
        *,
        keep: bool = False,
    ) -> int:
        """Put a new file into place; return how many lines were rejected."""
        self.lock.closing += (self.view.rows.file, self._rows)
        added = self.view.rows.copy()
        try:
            self._rows, rejected = fold.fold(
                self.view, journal, added, fsync=self.fsync, without=without, keep=keep
            )
            self._ended_at = self.view.rows.end
            self.lock.touch()
        finally:
            self._rescue_from(added)
        return rejected

    # -- rows that other programs append, without the lock, to a file that we replaced --

    def rescue(self) -> None:
        """Look for such rows once more, and close the old file."""
        if self._replaced is not None and self.lock.read(self._has_late_rows):
            self.lock.run(self._rescue)

    def _rescue_from(self, added: Tail) -> None:
        """Look for them for the first time; an error of that must not hide the fold's own."""
        try:
            if added.file is None or added.file.is_at_path():
                return
        except OSError:
            return
        self._replaced = added
        self._rescue(keep_open=True)

    def _has_late_rows(self) -> bool:
        added = self._replaced
        if added is None or added.size() <= added.end:
            self._replaced = None
            return False
        return True

    def _rescue(self, *, keep_open: bool = False) -> None:
        """Append to the queue's file what was added to the replaced one. Under the lock.

        It isn't synced: the programs that wrote it didn't do that either. If there is no room, it
        is tried again with the next call.
        """
        added = self._replaced
        if added is None:
            return
        try:
            if added.size() > added.end:
                found = added.copy()
                for lines in found.new():
                    file, size = self._rows_for_append()
                    append(file, size, lines)
                    self._ended_at = size + len(lines)
                    added.go_on_from(found)
        except Rewritten:
            pass  # nobody can tell which of its rows are new
        except OSError:
            return
        if not keep_open:
            self.lock.closing.append(added.file)
            self._replaced = None

    def is_fold_cheap(self, seconds: float, share: float = 0.0) -> bool:
        """Tell whether a fold takes under `seconds`, or under `share` of the time since the last.

        What counts is the copying, for changed rows have to be written once, now or later; and for
        the share, that other passes then read all again.
        """
        seconds_then, bytes_then = self._last_fold
        cost = seconds_then + max(self.view.rows.end - bytes_then, 0) * SECONDS_PER_BYTE
        time_since = abs(time.time() - self.lock.touched_at())
        return cost < seconds or cost + self.view.reread_seconds < share * time_since

    def fold_if_cheap(self, seconds: float) -> None:
        """Fold if it takes under `seconds`; what cannot be folded now is folded later."""
        if self.is_fold_cheap(seconds):
            self.try_fold()

    def try_fold(self) -> OSError | None:
        """Fold; return the error where that cannot be done now, and nothing is lost by waiting."""
        try:
            self._read_long_ones_unlocked()
            self.fold()
        except OSError as e:
            return e
        return None

    # -- reading: under the mutex, without the lock --

    @reading
    def find(self, job_id: str) -> Row | None:
        """Return the row with this id as it stands, or None.

        The caller decodes the payload: if that isn't JSON, the row isn't a job.
        """
        key = job_id.encode()
        for _ in range(_TRIES):
            if not self.view.loaded:
                break
            if self.view.follow():
                return self.view.row_of(key)
            self._lookups = 0
        if self._lookups < _LOOKUPS_WITHOUT_INDEX:
            self._lookups += 1
            return search(self.path, key)
        self.view.refresh()
        return self.view.row_of(key)

    def rows(self, unreadable: list[int] | None = None) -> Iterator[Row]:
        """Yield every job as it stood at the first step, in the file's order.

        The line numbers of what isn't a job are added to `unreadable`.
        """
        view = self.lock.read(self._snapshot)
        note: list[int] = [] if unreadable is None else unreadable
        for _, _, row in view.rows_as_they_stand(lambda number, *_: note.append(number + 2)):
            yield row

    def running(self) -> tuple[list[LivePass], list[Row]]:
        """Return the passes that are alive and the running jobs, both as of one instant."""
        return self.lock.run(self._running)

    def _running(self) -> tuple[list[LivePass], list[Row]]:
        from dbbasic_queue.store.claiming.slots import live_passes

        view = self.view
        view.refresh()
        rows = [row for n in sorted(view.processing) if (row := view.row(n))]
        return live_passes(self.path), rows

    def take_skipped(self) -> tuple[int, int, list[int]]:
        """Return what was skipped since the last call, to be reported.

        How many lines were moved to `queue.tsv.rejected`, how many records of the journal were
        damaged, and the numbers of all lines that aren't jobs.
        """
        rejected, self.rejected = self.rejected, 0
        records, self.view.bad_records = self.view.bad_records, 0
        return rejected, records, [number + 2 for number in sorted(set(self.view.unreadable))]

    def _snapshot(self) -> Snapshot:
        self.view.refresh()
        return self.view.snapshot()

    def history(
        self, job_id: str = "", since: float = -math.inf, *, only_errors: bool = False
    ) -> Iterator[Attempt]:
        """Yield the attempts that have ended, or those of one job; see `attempts.read`."""
        from dbbasic_queue.store.history import read

        skipped: list[str] = []
        yield from read(self.path, job_id, since, skipped, only_errors=only_errors)
        self.skipped_history = skipped

    @reading
    def is_complete(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
        """Tell whether no job is pending, unless its type is paused, or being run.

        Jobs whose path and id are in `apart_from` may be running.
        """
        view = self.view
        view.refresh()
        running = {view.index.get(key.encode()) for path, key in apart_from if path == self.path}
        if any(number not in running for number in view.processing):
            return False
        if view.next_after(-1) == NEVER:
            return True
        types = paused.read(self.path)
        seen = view.generation, view.rows.end, view.journal.end, types
        if not types or seen == self._unpaused_at:
            return False
        rows = (view.row(number) for number, at in enumerate(view.when) if at != NEVER)
        if ALL in types or all(row is None or row.type in types for row in rows):
            return True
        self._unpaused_at = seen
        return False

    @reading
    def has_work(self, now: float, longest_wait: Callable[[str, int], float]) -> bool:
        """Tell, without the lock, whether a pass would have anything to do."""
        view = self.view
        view.refresh()
        return bool(
            view.processing
            or view.binary
            or view.journal.size()
            or self.unexplained(now, longest_wait)
            or self.enqueued_ahead(now)
            or view.soonest <= now
            or view.has_torn_row()
        )

    @reading
    def count_due(self, now: float) -> int:
        """Return how many pending jobs are due, whatever their types."""
        view = self.view
        view.refresh()
        return len(view.due(now, len(view.when)))

    def unexplained(
        self, now: float, longest_wait: Callable[[str, int], float]
    ) -> list[tuple[bytes, bytes]]:
        """Return the changes for retries that wait longer than their backoff explains."""
        view = self.view
        changes = []
        for number in view.retrying:
            if view.when[number] > now and (row := view.row(number)):
                latest = later(now, longest_wait(row.type, row.state.attempts))
                state = clamp(row.state, latest)
                if state is not None:
                    changes.append((row.id.encode(), encode_state(state)))
        return changes

    def enqueued_ahead(self, now: float) -> list[tuple[bytes, bytes]]:
        """Return the changes for jobs that were meant for now, and enqueued by a clock ahead."""
        view = self.view
        if view.latest_created <= now + CLOCK_TOLERANCE:
            return []
        changes = []
        for number, run_at in enumerate(view.when):
            if now < run_at < NEVER and (row := view.row(number, ahead=_READ_AHEAD)):
                state = pull_in(row.state, now)
                if state is not None:
                    changes.append((row.id.encode(), encode_state(state)))
        if not changes:
            view.latest_created = int(now) + CLOCK_TOLERANCE  # of those that could be pulled in
        return changes


def _check(path: str, known: bool) -> None:
    """Raise NotAQueue for another program's file, before any is created next to it.

    And for a queue's file that is mounted by itself: its lock and journal would be other ones.
    Raise StoreError if the directory was `known`, and is gone: it isn't created again silently.
    """
    directory = os.path.dirname(path)
    if known:
        try:
            os.stat(directory)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise StoreError(
                errno.ENOENT,
                "the queue's directory was moved or removed: nothing was added, and no job is "
                "started (move it back, or restart the program for a new queue)",
                directory,
            ) from e
    file = open_file(path, os.O_RDONLY) if os.path.lexists(path) else None
    if file is not None:
        has_header(file)
        refuse_mount_point(file)


def _open_again(path: str, fsync: bool) -> TextFileStore:
    """Return what a store is in another process that unpickles it."""
    return TextFileStore(path, fsync=fsync)


_stores: weakref.WeakSet[TextFileStore] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store.after_fork()


forks.in_child(_after_fork)
