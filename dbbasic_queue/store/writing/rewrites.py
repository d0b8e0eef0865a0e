"""Changes of many jobs by one rewrite of the queue file: requeue, remove, remove unreadable lines.

Jobs are chosen without the lock, because reading a long queue takes seconds, and changed under it.

- The journal is folded, and its cut is on the disk, before the rewrite. Otherwise, after a crash
  between the rewrite and the cut, old records would be replayed over the changed jobs, and records
  of removed jobs would apply to new jobs with the same ids.
- Several jobs are changed by a rewrite, not by records: an append can be torn between two records.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import StoreError, store_error
from dbbasic_queue.model.records import decode_record, encode_record, encode_state
from dbbasic_queue.model.states import FAILED, PROCESSING, requeue
from dbbasic_queue.store import schedule_file
from dbbasic_queue.store.disk.files import NO_SPACE
from dbbasic_queue.store.writing.choice import Choice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.disk.openfile import OpenFile
    from dbbasic_queue.store.reading.snapshot import Snapshot
    from dbbasic_queue.store.writing.queue_files import QueueFiles

_UNLOCKED_CHOICES = 3
"""How often jobs are chosen without the lock, if other processes keep replacing the file."""


class _Rewrite:
    """One rewrite: `pick` jobs, `prepare` what was picked, `apply` it.

    `picked` maps the number of each picked job's row to the bytes that `pick` returned.
    """

    rechecks = True
    """whether jobs that are added or changed after the choice, and are wanted then, are picked"""

    def __init__(self, files: QueueFiles) -> None:
        self.files = files
        self.view = files.view

    def pick(self, row: Row, line: bytes) -> bytes | None:
        """Return what `apply` needs for this job; None if the job isn't wanted."""
        raise NotImplementedError

    def prepare(self, picked: dict[int, bytes]) -> None:
        """Do what must be done before `apply`. Called without the lock, if possible."""

    def apply(self, picked: dict[int, bytes]) -> None:
        """Replace the queue file. Called under the lock, with an empty journal."""
        raise NotImplementedError

    def apply_and_fold(self, picked: dict[int, bytes]) -> bool:
        """Fold and apply by one rewrite, because the disk is too full for a fold of all rows.

        Called under the lock. Returns False, and does nothing, if this kind of rewrite can't.
        """
        return False

    def run(self) -> int:
        """Choose jobs and change them; return how many. The change is on the disk on return.

        If others replace the file before the lock is acquired, jobs are chosen again: the fourth
        time under the lock. Raises StoreError if the system refuses; the error says whether the
        change was made.
        """
        lock = self.files.lock
        for _ in range(_UNLOCKED_CHOICES):
            choice = lock.read(self._choose)
            choice.read()
            self.prepare(choice.picked)
            count = lock.run(self._apply_if_same, choice)
            if count is not None:
                return count
        return lock.run(self._run_locked)

    def _choose(self) -> Choice:
        self.view.refresh()
        self.files.require_here()
        return Choice(self.view, self.pick)

    def _apply_if_same(self, choice: Choice) -> int | None:
        """Apply the choice; return how many jobs were changed.

        Returns None if jobs must be chosen again, because others have replaced the file or the fold
        has given the rows other numbers.
        """
        view = self.view
        self.files.read_new()
        self.files.require_here()
        if not choice.update(view, add=self.rechecks):
            return None
        numbering = view.numbering
        try:
            self.files.fold_and_sync_cut()
        except StoreError as e:
            # If the view is closed (not loaded), the file was replaced, and what failed came after.
            if e.errno in NO_SPACE and view.loaded and self.apply_and_fold(choice.picked):
                return len(choice.picked)
            raise
        if numbering != view.numbering:
            return None
        if choice.picked:
            self.apply(choice.picked)
        return len(choice.picked)

    def _run_locked(self) -> int:
        self.files.read_new()
        self.files.fold_and_sync_cut()
        choice = self._choose()
        choice.read()
        self.prepare(choice.picked)
        if choice.picked:
            self.apply(choice.picked)
        return len(choice.picked)


# -- requeue ---------------------------------------------------------------------------------------


def requeue_failed(files: QueueFiles, now: float, wanted: Callable[[Row], bool]) -> int:
    """Requeue the failed jobs that `wanted` returns True for; return how many.

    On the disk on return. `now` is in Unix seconds: the jobs are due then.
    """
    return _Requeue(files, now, wanted).run()


class _Requeue(_Rewrite):
    def __init__(self, files: QueueFiles, now: float, wanted: Callable[[Row], bool]) -> None:
        super().__init__(files)
        self.now = now
        self.wanted = wanted

    def pick(self, row: Row, line: bytes) -> bytes | None:
        """Return the record of a failed job's new state; None for any other job."""
        if row.state.status != FAILED or not self.wanted(row):
            return None
        state = requeue(row.state, self.now)
        return encode_record(row.id.encode(), encode_state(state)) if state else None

    def apply(self, picked: dict[int, bytes]) -> None:
        self.view.whole = False  # it differs from the files until they are replaced
        for number in sorted(picked):
            key, state = decode_record(picked[number][:-1]) or (b"", b"")
            self.view.apply(key, state)
        self.files.replace(None)


# -- remove ----------------------------------------------------------------------------------------


def remove(files: QueueFiles, unwanted: Callable[[Row], bool], archive: str | None) -> int:
    """Remove the jobs that `unwanted` returns True for, except running ones; return how many.

    On the disk on return. If `archive` is a path, their rows are on the disk in that file before
    they leave the queue. They are archived before the lock is acquired. So a job that changes in
    the meantime stays in the queue, although the archive has its old row; and a job that only then
    becomes unwanted stays, too. Raises StoreError, and the errors of `append_rows`.
    """
    return _Removal(files, unwanted, archive).run()


class _Removal(_Rewrite):
    def __init__(
        self, files: QueueFiles, unwanted: Callable[[Row], bool], archive: str | None
    ) -> None:
        super().__init__(files)
        self.unwanted = unwanted
        self.archive = archive
        self.rechecks = archive is None
        self.archived: set[int] = set()
        """hashes of the rows that are archived already: jobs may have to be chosen again"""
        self.unrecorded = schedule_file.Unrecorded(b"", files.path)
        """jobs of schedules that must stay, as of the choice"""

    def pick(self, row: Row, line: bytes) -> bytes | None:
        """Return the line to archive, b"" without an archive; None if the job stays."""
        if row.state.status == PROCESSING or not self.unwanted(row):
            return None
        if row.id in self.unrecorded:
            return None
        return line if self.archive else b""

    def _choose(self) -> Choice:
        path = self.files.path
        self.unrecorded = schedule_file.Unrecorded(schedule_file.read(path), path)
        return super()._choose()

    def _apply_if_same(self, choice: Choice) -> int | None:
        self.files.read_new()  # may release the lock: so first this, then the comparison
        if schedule_file.read(self.files.path) != self.unrecorded.content:
            return None
        return super()._apply_if_same(choice)

    def _archive(self, picked: dict[int, bytes]) -> None:
        new = [line for _, line in sorted(picked.items()) if hash(line) not in self.archived]
        if self.archive and new:
            from dbbasic_queue.store.writing.archive import append_rows

            append_rows(self.archive, new)
            self.archived.update(map(hash, new))

    def prepare(self, picked: dict[int, bytes]) -> None:
        self._archive(picked)

    def apply(self, picked: dict[int, bytes]) -> None:
        self._leave_out(picked, None)

    def apply_and_fold(self, picked: dict[int, bytes]) -> bool:
        """Fold and remove by one rewrite, which needs disk space only for the rows that stay.

        A kill between its rename and its cut leaves records of jobs that are gone. An enqueue
        folds before it uses one of their ids again.
        """
        journal = self.files.journal.current() if self.view.journal.file else None
        self._leave_out(picked, journal)
        return True

    def _leave_out(self, picked: dict[int, bytes], journal: OpenFile | None) -> None:
        """Rewrite the file without the picked rows, then cut the journal, if one is given.

        If the disk is too full, the error says how many bytes are missing.
        """
        old, end, offsets = self.view.rows.file, self.view.rows.end, self.view.offsets
        path = self.files.path
        try:
            self.files.replace(journal, frozenset(picked))
        except StoreError as e:
            if e.errno not in NO_SPACE or old is None or not old.is_at_path():
                raise
            needed = end - sum(offsets.lengths(number, 0)[0] + 1 for number in picked)
            disk = os.statvfs(os.path.dirname(path))
            missing = max(needed - disk.f_bavail * disk.f_frsize, 1)
            consequence = (
                f"nothing was removed; the rows that stay take {needed} bytes, about {missing} "
                "more than are free"
            )
            cause = e.__cause__ if isinstance(e.__cause__, OSError) else e
            raise store_error(cause, path, consequence) from e


# -- lines that aren't jobs ------------------------------------------------------------------------


def remove_unreadable(files: QueueFiles) -> int:
    """Move the lines that aren't jobs to `queue.tsv.rejected` by one rewrite; return how many.

    On the disk on return. The lines are looked for without the lock, and each is checked again
    under it. A row whose status is `processing` stays, because a pass of dbbasic-queue 1.0.0 may be
    running it. A kill may leave the lines in both files.
    """
    view = files.lock.read(_up_to_date, files)
    return files.lock.run(_reject_unreadable, files, view.numbering, _find_unreadable(view))


def _up_to_date(files: QueueFiles) -> Snapshot:
    files.view.refresh()
    files.require_here()
    return files.view.snapshot()


def _find_unreadable(view: Snapshot) -> set[int]:
    numbers: set[int] = set()
    for _ in view.jobs(lambda number, *_: numbers.add(number)):
        pass
    return numbers


def _reject_unreadable(files: QueueFiles, numbering: int, numbers: set[int]) -> int:
    files.read_new()
    rejected = files.rejected
    files.fold_and_sync_cut()
    view = files.view
    if view.numbering != numbering:
        numbers = _find_unreadable(_up_to_date(files))
    found = frozenset(
        number
        for number in numbers.union(view.unreadable)
        if number < len(view.when) and number not in view.processing and view.is_unreadable(number)
    )
    if found:
        files.replace(None, found, keep=True)
    return files.rejected - rejected + len(found)
