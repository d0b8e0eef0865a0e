"""The store in text files: the operations that a queue and a pass ask for.

Invariants: see `writing.queue_files` for changes, `reading.view` for readers.
"""

from __future__ import annotations

import errno
import math
import os

from dbbasic_queue.errors import DuplicateJob, StoreError, no_transaction
from dbbasic_queue.lazy import load
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import has_json
from dbbasic_queue.model.states import PROCESSING, STATUSES, cancel, request_stop, requeue, run_now
from dbbasic_queue.store import clocks, moved, paused
from dbbasic_queue.store.disk.lock import even_if_moved, locked, reading
from dbbasic_queue.store.reading.bulk import NEVER
from dbbasic_queue.store.reading.lookup import search
from dbbasic_queue.store.writing.fold_costs import CHEAP_OUTSIDE_SECONDS, SHARE_OF_TIME
from dbbasic_queue.store.writing.queue_files import QueueFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from types import ModuleType
    from typing import TypeVar

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.claiming.claims import Claims
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.disk.openfile import OpenFile
    from dbbasic_queue.store.followed import Followed
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.output import Output
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.progress import Progress
    from dbbasic_queue.store.protocol import Overview, Terms
    from dbbasic_queue.store.reading.newest import Ends
    from dbbasic_queue.store.reading.snapshot import Snapshot
    from dbbasic_queue.store.reading.stream import Stream
    from dbbasic_queue.store.reading.unreadable import Unreadable
    from dbbasic_queue.store.schedule_file import Change
    from dbbasic_queue.store.writing.once import AddOnce

    T = TypeVar("T")

_LOOKUPS_WITHOUT_INDEX = 2
_TRIES = 100


class TextFileStore:
    """One queue's files, for one process and all its threads."""

    is_shared = True
    """whether other processes have the same jobs"""

    def __init__(self, path: str, *, fsync: bool, even_if_moved: bool = False) -> None:
        """With `even_if_moved`, no call raises QueueMoved."""
        self.path = path
        self.fsync = fsync
        self.files = QueueFiles(path, fsync=fsync, even_if_moved=even_if_moved)
        self.view = self.files.view
        self.lock = self.files.lock
        self._lookups = 0
        """how many look-ups were made without an index: after a few, one is built"""
        self._readings = 0
        """how many times all rows were read without an index"""
        self._add_once: AddOnce | None = None
        self._unpaused_at: object = None
        """what had been read when `is_complete` last found a pending job whose type isn't paused:
        until something changes, it needn't search again"""
        self.skipped_history: list[str] = []
        """the start of each invalid line that the last call of `history` skipped"""

    def __reduce__(self) -> tuple[object, ...]:
        return _open_again, (self.path, self.fsync, self.files.even_if_moved)

    @property
    def address(self) -> str:
        """What another process needs to open the queue: its path."""
        return self.path

    def exists(self) -> bool:
        """Return whether there is something at the queue's path. Only `add` creates the file."""
        return self.files.exists()

    def close(self) -> None:
        """Close every file; the next call opens them again."""
        self.files.rescue()
        self.lock.read(self.files.close)

    def open_claims(self, terms: Terms, now: float, parallel: int) -> Claims:
        """Acquire a slot for a pass, recover the jobs of dead passes, and return the pass's claims.

        The pass runs up to `parallel` jobs at once. Raises QueueBusy if all slots are held.
        """
        return load(_claims)(self.files, terms, now, parallel)

    # -- new jobs --

    def warnings(self) -> list[str]:
        """Return nothing: there is no server."""
        return []

    def within(self, connection: object) -> TextFileStore:
        """Raise InvalidArgument: no database connection has a part in the file."""
        raise no_transaction(self.path)

    def add(self, rows: str, own_id: str | None = None) -> None:
        """Append the lines of new jobs to the queue file; they are on the disk on return.

        Raises DuplicateJob if a job has the id `own_id`, StoreError if the system refuses. Then
        nothing was added, unless the error says otherwise.
        """
        content = rows.encode()
        if own_id is None:
            file, size = self.lock.run(self.files.rows.append, content)
        else:
            file, size = self.lock.run(self._append_if_free, content, own_id)
        if self.fsync:
            self.files.rows.sync_added(file, size, content)

    @even_if_moved
    def _append_if_free(self, content: bytes, own_id: str) -> tuple[OpenFile, int]:
        rows = self.files.rows
        rows.to_append()
        self._check_free(own_id)
        return rows.append(content)

    def add_once(self, row: str, own_id: str) -> None:
        """Add a job unless one has the id `own_id` already; on the disk on return either way.

        Raises DuplicateJob if only an unreadable row has the id; otherwise like `add`.
        """
        self._once().add_with_id(row, own_id)

    def add_unless_pending(self, row: str, job_type: str, payload: str) -> str | None:
        """Add a job unless a job of this type with the same payload is pending.

        Returns the id of that job, or None if the new one was added. Either is on the disk on
        return. Raises StoreError like `add`.
        """
        return self._once().add_unless_pending(row, job_type, payload)

    def _once(self) -> AddOnce:
        if self._add_once is None:
            self.lock.read(self._make_add_once, load(_add_once))
        assert self._add_once is not None
        return self._add_once

    def _make_add_once(self, kind: type[AddOnce]) -> None:
        """Make the only one of this store: two would take each other's entries from the view."""
        if self._add_once is None:
            self._add_once = kind(self.files, self._append_if_free)

    def _check_free(self, job_id: str) -> None:
        """Raise DuplicateJob if a row has the id. If only a record has it, fold to remove that.

        Call it under the lock, which may be released and acquired again.
        """
        key = job_id.encode()
        files, view = self.files, self.view
        files.read_much_unlocked()
        view.refresh()
        if key in view.index:
            if view.find(key) is None:
                raise DuplicateJob(
                    f"job_id {job_id!r} is already in the queue, in an unreadable row "
                    "(`dbbasic-queue unreadable` shows that row, and --remove moves it away)"
                )
            raise DuplicateJob(
                f"job_id {job_id!r} is already in the queue "
                "(`dbbasic-queue show` shows it; choose another id, or purge the old job first)"
            )
        if key in view.records:
            # The old job's row was removed by hand: its record must not apply to the new job. So
            # the journal's cut must be on the disk before the new row is.
            files.fold_and_sync_cut()
            view.records.pop(key, None)

    # -- changes --

    def cancel(self, job_id: str) -> bool:
        """Cancel a job if it is pending; return whether it was.

        On the disk on return, and in the queue file if a fold is cheap.
        """
        return self._change_one(job_id, cancel) is not None

    def stop(self, job_id: str) -> str | None:
        """Cancel a job if it is pending; mark it for its pass to stop if it is processing.

        Returns its status after that, or None if it is finished or unknown. On the disk on return,
        and in the queue file if a fold is cheap.
        """
        state = self._change_one(job_id, lambda state: cancel(state) or request_stop(state))
        return None if state is None else state.status

    def run_now(self, job_id: str, now: float) -> bool:
        """Make a job due if it is pending; return whether it was.

        On the disk on return, and in the queue file if a fold is cheap.
        """
        return self._change_one(job_id, lambda state: run_now(state, now)) is not None

    def requeue(
        self,
        now: float,
        *,
        job_id: str | None = None,
        run_at: int | None = None,
        wanted: Callable[[Row], bool] = lambda _: True,
    ) -> int:
        """Requeue one job, or the failed ones that `wanted` returns True for; return how many.

        On the disk on return.
        """
        if not self.exists():
            return 0
        if job_id is not None:
            changed = self._change_one(job_id, lambda state: requeue(state, now, run_at))
            return int(changed is not None)
        count: int = load(_rewrites).requeue_failed(self.files, now, wanted)
        return count

    def edit(self, job_id: str, payload: str, before: str | None = None) -> bool:
        """Replace the payload of a pending job; return False if it isn't pending.

        With `before`, also if that isn't its payload any more. On the disk, and in the queue file,
        on return.
        """
        key = job_id.encode()
        return self.lock.read(self._has, key) and self.lock.run(
            load(_edit), self.files, key, payload.encode(), before
        )

    def _change_one(self, job_id: str, new_state: Callable[[State], State | None]) -> State | None:
        key = job_id.encode()
        if not self.lock.read(self._has, key):
            return None
        return self.lock.run(self._change_one_locked, key, new_state)

    def _has(self, key: bytes) -> bool:
        self._refresh()
        return key in self.view.index

    def _refresh(self) -> None:
        """Read what is new. Raises QueueMoved if the queue was moved."""
        self.view.refresh()
        self.files.require_here()

    def _require_here(self) -> None:
        """Raise QueueMoved if the queue was moved, for calls that don't read the queue file."""
        if not self.files.even_if_moved:
            moved.require_not(self.path)

    def _change_one_locked(
        self, key: bytes, new_state: Callable[[State], State | None]
    ) -> State | None:
        self.files.read_new()
        self.files.require_here()
        row = self.view.find(key)
        state = new_state(row.state) if row else None
        if state is not None:
            self.files.change([(key, encode_state(state))])
            self.files.fold_if_cheap(CHEAP_OUTSIDE_SECONDS)
        return state

    def remove(
        self, unwanted: Callable[[Row], bool], archive: str | None = None, **_: object
    ) -> int:
        """Remove the jobs that `unwanted` returns True for, except running ones; return how many.

        On the disk on return. If `archive` is a path, their rows are on the disk in that file
        first.
        """
        if not self.exists():
            return 0
        count: int = load(_rewrites).remove(self.files, unwanted, archive)
        return count

    def take_turn_to_purge(self, types: Collection[str], now: float, pause: float) -> bool:
        """Return whether a pass should remove old jobs of these types now; see `store.purged`."""
        purged = load(_purged)
        if not purged.is_turn(purged.read(self.path), types, now, pause):
            return False
        is_turn: bool = self.lock.run(purged.take_turn, self.path, types, now, pause)
        return is_turn

    # -- lines that aren't jobs --

    def unreadable(self) -> Iterator[Unreadable]:
        """Yield each line that isn't a job, in the file's order."""
        lines = load(_unreadable)
        found: list[Unreadable] = []
        view = self.lock.read(self._snapshot)

        def add(number: int, line: bytes, length: int) -> None:
            holder = view.index.get(line[: max(line.find(b"\t"), 0)], -2)
            reason = lines.reason(line, length, holder + 2)
            found.append(lines.Unreadable(number + 2, reason, line))

        for _ in view.jobs(add):
            yield from found
            found.clear()
        yield from found
        torn = self.lock.read(self._torn_row)
        if torn and self.exists() and (torn := self._look(self._torn_row)):
            reason = "it has no line end yet: the next pass ends it"
            yield lines.Unreadable(torn[0] + 2, reason, torn[1])

    def _torn_row(self) -> tuple[int, bytes] | None:
        """Return the row number and the beginning of a torn last line, or None."""
        view = self.view
        view.refresh()
        if not view.has_torn_row() or view.rows.file is None:
            return None
        return len(view.when), os.pread(
            view.rows.file.fd, load(_unreadable).SHOWN_BYTES, view.rows.end
        )

    def remove_unreadable(self) -> int:
        """Move the lines that aren't jobs to `queue.tsv.rejected`; return how many.

        On the disk on return.
        """
        if not self.exists():
            return 0
        count: int = load(_rewrites).remove_unreadable(self.files)
        return count

    def take_skipped(self) -> tuple[int, int, list[int]]:
        """Return what a pass has to report about invalid lines.

        That is how many lines were moved to `queue.tsv.rejected` since the last call, how many
        damaged records of the journal were skipped since then, and the numbers of all lines that
        aren't jobs, as far as the file was read.
        """
        view = self.view
        rejected, self.files.rejected = self.files.rejected, 0
        records, view.bad_records = view.bad_records, 0
        return rejected, records, [number + 2 for number in sorted(set(view.unreadable))]

    # -- pausing --

    def paused(self) -> frozenset[str]:
        """Return the paused types; `ALL` among them means all types."""
        self._require_here()
        return paused.read(self.path)

    @locked
    def pause(self, job_type: str) -> bool:
        """Pause a type, or `ALL`; on the disk on return. False if it was paused already."""
        self._require_here()
        types = paused.read(self.path)
        if job_type in types:
            return False
        paused.write(self.path, types | {job_type}, fsync=self.fsync)
        return True

    def resume(self, job_type: str | None) -> bool:
        """End the pause of a type or, for None, every pause. False if there was none.

        On the disk on return. While `ALL` is paused, resuming one type has no effect.
        """
        return bool(self.paused()) and self._resume(job_type)

    @locked
    def _resume(self, job_type: str | None) -> bool:
        self._require_here()
        types = paused.read(self.path)
        gone = types if job_type is None else types & {job_type}
        if gone:
            paused.write(self.path, types - gone, fsync=self.fsync)
        return bool(gone)

    # -- schedules --

    def has_schedules(self) -> bool:
        """Return whether any schedule was ever recorded. Needs no lock."""
        return os.path.lexists(self.path + ".schedule")

    def read_schedules(self) -> bytes:
        """Return the content of `queue.tsv.schedule`; b"" without that file."""
        self._require_here()
        content: bytes = load(_schedule_file).read(self.path)
        return content

    def update_schedules(self, seen: bytes, changes: list[Change]) -> bool:
        """Add the jobs of due instants, and record them; on the disk on return.

        Returns False, and does nothing, if the file's content isn't `seen` any more.
        """
        done: bool = self.lock.run(load(_schedule_file).update, self.files, seen, changes)
        return done

    # -- moving the jobs to another queue, and from there --

    def exchange(self, changes: Sequence[tuple[Row, State]]) -> list[Row | None]:
        """Give each job a new state if it still has that of the row; return it as it was, or None.

        On the disk on return.
        """
        found: list[Row | None] = self.lock.run(load(_moves).exchange, self.files, changes)
        if self.files.is_fold_cheap(0.0, SHARE_OF_TIME):
            self.lock.run(self.files.try_fold)
        return found

    def add_missing(self, rows: Sequence[Row]) -> list[str]:
        """Add the jobs whose ids no job has; return the other ids. On the disk on return."""
        there: list[str] = self.lock.run(load(_moves).add_missing, self.files, rows)
        return there

    def moved_to(self) -> str:
        """Return the address that the queue was moved to, "" if it wasn't moved."""
        return moved.read(self.path)

    def set_moved(self, address: str) -> None:
        """Record that the queue was moved to this address, or that it wasn't if it is "".

        On the disk on return. From then on, the calls of other processes raise QueueMoved.
        """
        self.lock.run(load(_moves).set_moved, self.files, address)

    def add_history(self, attempts: Sequence[Attempt]) -> None:
        """Add finished attempts of another queue, unsynced."""
        load(_history).add(self.path, self.lock, attempts)

    # -- reading: without the lock, this process's other threads are kept out --

    @reading
    def find(self, job_id: str) -> Row | None:
        """Return the row with this id in its present state, or None.

        The caller decodes the payload: if that isn't JSON, the row isn't a job.
        """
        key = job_id.encode()
        for _ in range(_TRIES):
            if not self.view.loaded:
                break
            if self.view.follow():
                self.files.require_here()
                return self.view.row_of(key)
            self._lookups = 0
        if self._lookups < _LOOKUPS_WITHOUT_INDEX:
            self._lookups += 1
            found = search(self.path, key)
            self._require_here()
            return found
        self._refresh()
        return self.view.row_of(key)

    def rows(
        self,
        unreadable: list[int] | None = None,
        *,
        statuses: Collection[str] = STATUSES,
        beginning: str = "",
        **_more: object,
    ) -> Iterator[Row]:
        """Yield every job as it is when the iteration starts, in the file's order.

        The numbers of lines that aren't jobs are added to `unreadable`, the header being 1. Jobs
        with other statuses or ids may be left out.
        """
        if self._needs_no_index() or (unreadable is None and len(statuses) < len(STATUSES)):
            note = None if unreadable is None else lambda number: unreadable.append(number + 2)
            stream = self._stream()
            if beginning and unreadable is None:
                yield from stream.beginning_with(beginning)
            else:
                yield from stream.rows(statuses, note)
            return
        view = self.lock.read(self._snapshot)
        numbers: list[int] = [] if unreadable is None else unreadable
        for _, _, row in view.jobs(lambda number, *_: numbers.append(number + 2)):
            yield row

    def newest(self, statuses: Collection[str] = STATUSES) -> Iterator[Row]:
        """Return the jobs, the last one in the file first. Keeps an index."""
        if tuple(statuses) == (PROCESSING,):
            return filter(has_json, reversed(self.lock.read(self._processing)))
        ends: Ends | None = self.lock.read(self._ends)
        return iter(()) if ends is None else ends.jobs(statuses)

    def _ends(self) -> Ends | None:
        self._refresh()
        view = self.view
        if view.rows.file is None or not view.when:
            return None
        found: Ends = load(_newest)(
            view.rows.file,
            view.offsets.extent(0)[0],
            view.rows.end,
            len(view.when),
            view.index,
            dict(view.records),
        )
        return found

    def overview(self, now: float, each: Callable[[Row], object] | None = None) -> Overview:
        """Count the jobs; see `protocol.Store.overview`. Needs no lock, and no index."""
        return self._stream().overview(now, each)

    def followed(self) -> Followed:
        """Return what counts the jobs and reads the history again and again; see `Live`.

        It keeps an index.
        """
        found: Followed = load(_followed)(self.path, self.lock, self.view, self._refresh)
        return found

    def _stream(self) -> Stream:
        """Return the jobs, to be read without an index."""
        self._require_here()
        stream: Stream = load(_stream)(self.path)
        self.view.was_seen |= stream.exists
        return stream

    def _needs_no_index(self) -> bool:
        """Return whether to read without an index: there is none, and it isn't worth building."""
        if self.view.loaded or self._readings == _LOOKUPS_WITHOUT_INDEX:
            return False
        self._readings += 1
        return True

    def _snapshot(self) -> Snapshot:
        self._refresh()
        return self.view.snapshot()

    def running(self) -> tuple[list[LivePass], list[Row]]:
        """Return the live passes and the `processing` jobs, as of one instant. Acquires the lock.

        The job of a dead pass is `processing`, too, until it is recovered.
        """
        return self._look(self._running)

    def _look(self, function: Callable[[], T]) -> T:
        """Call a function that only reads while this thread holds the lock.

        If there is no lock file, and this user can't create one, as on a disk that is mounted
        read-only, no other process has the lock either.
        """
        try:
            return self.lock.run(function)
        except StoreError as e:
            if e.errno not in (errno.EACCES, errno.EROFS) or os.path.lexists(self.lock.path):
                raise
        return self.lock.read(function)

    def _running(self) -> tuple[list[LivePass], list[Row]]:
        if self._needs_no_index():
            return load(_slots).live_passes(self.path), self._stream().running()
        rows = self._processing()
        return load(_slots).live_passes(self.path), rows

    def _processing(self) -> list[Row]:
        self._refresh()
        view = self.view
        return [row for n in sorted(view.processing) if (row := view.row(n))]

    def note_pass(self, line: str) -> None:
        """Add a pass that has ended to `queue.tsv.passes`, unsynced."""
        load(_pass_log).append(self.path, self.lock, line)

    def passes(self) -> list[EndedPass]:
        """Return the passes that have ended, the last one last. Needs no lock."""
        found: list[EndedPass] = load(_pass_log).read(self.path)
        return found

    def history(
        self, job_id: str = "", since: float = -math.inf, *, only_errors: bool = False
    ) -> Iterator[Attempt]:
        """Yield the finished attempts, or those of one job; see `history.read`.

        `skipped_history` is set when the last one was yielded.
        """
        self._require_here()
        skipped: list[str] = []
        yield from load(_history).read(self.path, job_id, since, skipped, only_errors=only_errors)
        self.skipped_history = skipped

    def latest(self, count: int) -> list[Attempt]:
        """Return the attempts that ended last, at most `count`, the oldest first."""
        found: list[Attempt] = load(_history).read_latest(self.path, count)
        return found

    def output(self, job_id: str, attempt: int | None = None) -> Output | None:
        """Return what a job's latest attempt, or this one, has printed; see `output.read`."""
        self._require_here()
        found: Output | None = load(_output).read(self.path, job_id, attempt)
        return found

    def progress(self, rows: Iterable[Row]) -> dict[str, Progress]:
        """Return job id -> how far it is, for those of the jobs that run and have reported."""
        self._require_here()
        found: dict[str, Progress] = load(_progress).read(self.path, rows)
        return found

    @reading
    def is_complete(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
        """Return whether no job is running, and none is pending whose type isn't paused.

        The jobs in `apart_from`, pairs of path and id, may be running.
        """
        view = self.view
        self._refresh()
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
        """Return whether a pass might have something to do. `longest_wait` is as in `Terms`."""
        view = self.view
        self._refresh()
        return bool(
            view.processing
            or view.binary
            or view.journal.size()
            or clocks.retries_ahead(view, now, longest_wait)
            or clocks.enqueued_ahead(view, now)
            or view.soonest <= now
            or view.has_torn_row()
        )

    @reading
    def count_due(self, now: float) -> int:
        """Return how many pending jobs of all types are due."""
        view = self.view
        self._refresh()
        return len(view.due(now, len(view.when)))


def _open_again(path: str, fsync: bool, even_if_moved: bool) -> TextFileStore:
    """Recreate a store that was pickled, mostly in another process."""
    return TextFileStore(path, fsync=fsync, even_if_moved=even_if_moved)


# -- imported on first use --


def _claims() -> type[Claims]:
    from dbbasic_queue.store.claiming.claims import Claims

    return Claims


def _add_once() -> type[AddOnce]:
    from dbbasic_queue.store.writing.once import AddOnce

    return AddOnce


def _schedule_file() -> ModuleType:
    from dbbasic_queue.store import schedule_file

    return schedule_file


def _rewrites() -> ModuleType:
    from dbbasic_queue.store.writing import rewrites

    return rewrites


def _edit() -> Callable[[QueueFiles, bytes, bytes, str | None], bool]:
    from dbbasic_queue.store.writing.edit import edit

    return edit


def _moves() -> ModuleType:
    from dbbasic_queue.store.writing import moves

    return moves


def _purged() -> ModuleType:
    from dbbasic_queue.store import purged

    return purged


def _unreadable() -> ModuleType:
    from dbbasic_queue.store.reading import unreadable

    return unreadable


def _stream() -> type[Stream]:
    from dbbasic_queue.store.reading.stream import Stream

    return Stream


def _followed() -> type[Followed]:
    from dbbasic_queue.store.followed import Followed

    return Followed


def _newest() -> type[Ends]:
    from dbbasic_queue.store.reading.newest import Ends

    return Ends


def _slots() -> ModuleType:
    from dbbasic_queue.store.claiming import slots

    return slots


def _history() -> ModuleType:
    from dbbasic_queue.store import history

    return history


def _output() -> ModuleType:
    from dbbasic_queue.store import output

    return output


def _pass_log() -> ModuleType:
    from dbbasic_queue.store import pass_log

    return pass_log


def _progress() -> ModuleType:
    from dbbasic_queue.store import progress

    return progress
