r"""Which instants of each schedule were added as jobs: the file `queue.tsv.schedule`.

A header, then one row per schedule; times are Unix seconds:

    name program type expression timezone last next

- `next` is the memory: every instant before it was added as a job, or left out for good. `last` is
  the instant that was added last, empty if there is none.
- The job of an instant has the id `NAME.20261126T020000Z`. Under the queue's lock, the rows of new
  jobs are appended and synced, and then this file is replaced. A kill in between leaves jobs that
  the file doesn't know yet: the next pass finds their ids in the queue, and adds nothing.
- So the row of a job whose instant isn't recorded yet must stay: `Unrecorded` says which those are,
  and no rewrite removes them.
"""

from __future__ import annotations

import os
import time

from dbbasic_queue.errors import QueueDamaged, store_error
from dbbasic_queue.model.escaping import escape, unescape
from dbbasic_queue.model.states import FINISHED, LATEST
from dbbasic_queue.store.disk.files import open_file, replace_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dbbasic_queue.model.jobdict import ScheduleDict
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.writing.queue_files import QueueFiles

ENDING = ".schedule"
COLUMNS = ("name", "program", "type", "expression", "timezone", "last", "next")
HEADER = "\t".join(COLUMNS) + "\n"


class ScheduleRow:
    """One schedule as the file remembers it; the instants are Unix seconds.

    `expression` is a cron expression, or an interval such as `300s`, which has no time zone (""). A
    program's name may contain any character.
    """

    __slots__ = COLUMNS

    def __init__(
        self,
        name: str,
        program: str,
        job_type: str,
        expression: str,
        timezone: str,
        last: int | None,
        next_at: int,
    ) -> None:
        self.name = name
        self.program = program
        self.type = job_type
        self.expression = expression
        self.timezone = timezone
        self.last = last
        self.next = next_at

    def as_dict(self) -> ScheduleDict:
        """Return the columns as a dict."""
        return {
            "name": self.name,
            "program": self.program,
            "type": self.type,
            "expression": self.expression,
            "timezone": self.timezone,
            "last": self.last,
            "next": self.next,
        }

    def line(self) -> str:
        """Return the row's line, with its end."""
        last = "" if self.last is None else str(self.last)
        columns = (self.name, escape(self.program), self.type, self.expression, self.timezone)
        return "\t".join((*columns, last, str(self.next))) + "\n"


class Change:
    """What one schedule needs: jobs to add, and its new row; `row` is None to remove it.

    `jobs`     (instant, line of the new job) for each job, the earliest first
    `overlap`  whether a job is added while that of the instant before is pending or processing
    """

    __slots__ = ("jobs", "name", "overlap", "row")

    def __init__(
        self,
        name: str,
        row: ScheduleRow | None,
        jobs: Iterable[tuple[int, str]] = (),
        *,
        overlap: bool = True,
    ) -> None:
        self.name = name
        self.row = row
        self.jobs = tuple(jobs)
        self.overlap = overlap


def job_id(name: str, instant: int) -> str:
    """Return the id of an instant's job.

    >>> job_id("nightly", 1_795_658_400)
    'nightly.20261126T020000Z'
    """
    return name + "." + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(instant))


# -- the file's content ----------------------------------------------------------------------------


def as_dicts(content: bytes, path: str) -> list[ScheduleDict]:
    """Return the schedules in the file's order; raises what `parse` does."""
    return [row.as_dict() for row in parse(content, path).values()]


def parse(content: bytes, path: str) -> dict[str, ScheduleRow]:
    """Return name -> row, in the file's order; nothing for b"", which stands for a missing file.

    Raises QueueDamaged, with the number of the line, for a line that isn't a row: only an edit by
    hand, or a power cut with `fsync=False`, leaves one.
    """
    rows: dict[str, ScheduleRow] = {}
    if not content:
        return rows
    lines = content.decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines, 1):
        if number == 1 and line + "\n" == HEADER:
            continue
        if not line and number == len(lines) > 1:
            continue
        row = _parse_row(line) if number > 1 else None
        if row is None or row.name in rows:
            raise QueueDamaged(
                None,
                f"line {number} isn't {'the row of a schedule' if number > 1 else 'the header'}: "
                "nothing was done (correct that line, or delete the file: then every schedule "
                "starts again with its next instant)",
                path + ENDING,
            )
        rows[row.name] = row
    return rows


def _parse_row(line: str) -> ScheduleRow | None:
    columns = line.split("\t")
    if len(columns) != len(COLUMNS):
        return None
    name, program, job_type, expression, timezone, last, next_at = columns
    if not name or not _is_instant(next_at) or not (_is_instant(last) or not last):
        return None
    last_at = int(last) if last else None
    return ScheduleRow(
        name, unescape(program), job_type, expression, timezone, last_at, int(next_at)
    )


def _is_instant(text: str) -> bool:
    return 0 < len(text) <= 12 and text.isdecimal() and int(text) <= LATEST


def encode(rows: Iterable[ScheduleRow]) -> bytes:
    """Return the file's content."""
    return (HEADER + "".join(row.line() for row in rows)).encode()


def apply(
    rows: dict[str, ScheduleRow], changes: Iterable[Change], find: Callable[[str], Row | None]
) -> tuple[dict[str, str], bool]:
    """Make the changes in `rows`; return the jobs to add, as id -> line, in their order.

    Also returns whether all these instants are new: otherwise a pass that was killed has added some
    of them. `find` returns the row of a job's id. Call it under the lock.
    """
    new: dict[str, str] = {}
    are_new = True
    for change in changes:
        row = change.row
        if row is None:
            rows.pop(change.name, None)
            continue
        for instant, line in change.jobs:
            own_id = job_id(row.name, instant)
            if find(own_id) is not None:
                are_new = False
            elif change.overlap or not _is_open(row, find):
                new[own_id] = line
            else:
                continue
            row.last = instant
        rows[row.name] = row
    return new, are_new


def _is_open(row: ScheduleRow, find: Callable[[str], Row | None]) -> bool:
    """Return whether the job that was added last is pending or processing."""
    if row.last is None:
        return False
    job = find(job_id(row.name, row.last))
    return job is not None and job.state.status not in FINISHED


class Unrecorded:
    """Which jobs' instants the file doesn't have on record yet, given its `content`."""

    def __init__(self, content: bytes, path: str) -> None:
        self.content = content
        self._next = {name: job_id("", r.next)[1:] for name, r in parse(content, path).items()}

    def __contains__(self, own_id: str) -> bool:
        name, _, stamp = own_id.rpartition(".")
        next_stamp = self._next.get(name)
        return next_stamp is not None and _is_stamp(stamp) and stamp >= next_stamp


def _is_stamp(text: str) -> bool:
    digits = text[:8] + text[9:15]
    return len(text) == 16 and text[8] + text[15] == "TZ" and digits.isdecimal()


# -- on the disk -----------------------------------------------------------------------------------


def read(queue: str) -> bytes:
    """Return the file's content, b"" if there is no such file. Needs no lock.

    `queue` is the path of the queue file. Raises StoreError if the system refuses, NotAQueue if it
    isn't a file.
    """
    path = queue + ENDING
    file = open_file(path, os.O_RDONLY)
    if file is None:
        return b""
    try:
        return os.pread(file.fd, os.fstat(file.fd).st_size, 0)
    except OSError as e:
        raise store_error(e, path, "nothing was done") from e


def update(files: QueueFiles, seen: bytes, changes: Iterable[Change]) -> bool:
    """Add the jobs of due instants, and record them; on the disk on return. Call it under the lock.

    `changes` were planned with the content `seen`. Returns False, and does nothing, if another
    process has replaced it. Raises StoreError if the system refuses; the error says whether jobs
    were added.
    """
    files.read_new()  # may release the lock: so first this, then the file
    files.require_here()
    if read(files.path) != seen:
        return False
    view = files.view
    rows = parse(seen, files.path)
    new, are_new = apply(rows, changes, lambda own_id: view.row_of(own_id.encode()))
    if any(own_id.encode() in view.records for own_id in new):
        # Rows that were removed by hand: their records must not apply to the new jobs.
        files.fold_and_sync_cut()
        for own_id in new:
            view.records.pop(own_id.encode(), None)
    if new:
        content = "".join(new.values()).encode()
        file, size = files.rows.append(content)
        files.rows.sync_locked(file, size, content)
    elif not are_new:  # perhaps the pass that has added them was killed before its sync
        file, size = files.rows.current()
        files.rows.sync_locked(file, size, b"")
    done = (
        "due jobs were added to the queue, and will not be added again; the schedules' next "
        "instants were not recorded"
        if new
        else "the schedules were not changed"
    )
    replace_file(files.path + ENDING, encode(rows.values()), done, ending=".new", fsync=files.fsync)
    return True
