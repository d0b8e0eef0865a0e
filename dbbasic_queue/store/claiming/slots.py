r"""Slot files: each live pass holds the lock of one, and lists its claims there.

The kernel is the heartbeat: however a process ends, its `flock` is released. A `processing` job
that no locked slot lists has lost its pass. A list is written completely, under the queue's lock,
before the claims are recorded, in the order in which they will be started. It isn't synced: after a
power cut no lock is held, and what is left of the list only decides which attempts count.

    pass <process id> <Unix seconds> <n> <types>
                                         the process that holds the slot; when it acquired it; how
                                         many of the claims may have been started at once; the job
                                         types that it runs, as in `queue.tsv.passes`
    <job id> <attempt>                   one line per claim
    (empty lines)                        reserved disk space, freed when the disk is full

A pass also keeps a few spare descriptors open. It closes them when an outcome needs one and the
process has no other left. A slot file is reused, never deleted.
"""

from __future__ import annotations

import errno
import os
import time

from dbbasic_queue.errors import QueueBusy, StoreError, store_error
from dbbasic_queue.store.disk.files import open_file, open_or_create
from dbbasic_queue.store.disk.lock import try_lock, unlock
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.disk.sync import write_all

SLOTS = 64
_RESERVED_BYTES = 8192
_RESERVED_BYTES_PER_CLAIM = 160
"""A slot reserves disk space for the records of outcomes: a fixed part, and one per claim."""
_SPARE_DESCRIPTORS = 3
"""To record an outcome, a pass may have to open the queue file and the journal, and to sync the
directory."""


class Slot:
    """The slot of this pass.

    `file`         the slot file, locked until `release`
    `claim_count`  how many claims the list has
    """

    def __init__(self, file: OpenFile, parallel: int, types: str) -> None:
        self.file = file
        self._head = f"pass\t{os.getpid()}\t{int(time.time())}\t{parallel}\t{types}\n"
        self._listed_bytes = 0  # without the reserved space
        self._size = os.fstat(file.fd).st_size  # all of it is written over
        self.claim_count = 0
        self._spare: list[OpenFile] = []

    def write(self, claims: list[tuple[str, int]]) -> None:
        """List claims, (job id, attempt), and reserve space and descriptors for their outcomes.

        Call it under the queue's lock, before the claims are recorded. Raises StoreError if there
        isn't enough space or no descriptor is free: the jobs must not be started then.
        """
        content = (self._head + "".join(f"{i}\t{n}\n" for i, n in claims)).encode()
        reserved = _RESERVED_BYTES + _RESERVED_BYTES_PER_CLAIM * len(claims)
        size = max(self._size, len(content) + reserved)
        self.require_lock()
        if claims:
            self._open_spare_descriptors()
        try:
            # Written over, not cut first: on a full disk, another file could get the freed blocks,
            # and the list of the running jobs would be lost.
            os.lseek(self.file.fd, 0, os.SEEK_SET)
            write_all(self.file.fd, content.ljust(size, b"\n"))
        except OSError as e:
            raise store_error(e, self.file.path, "no further job was started") from e
        self._size = size
        self._listed_bytes = len(content)
        self.claim_count = len(claims)

    def require_path(self) -> None:
        """Raise StoreError if the file was moved or removed: to other passes, this one is dead.

        Call it under the queue's lock, before each claim. Otherwise they would recover its jobs and
        run them, too.
        """
        if not self.file.is_at_path():
            raise StoreError(
                errno.ENOENT,
                "the slot file of this pass was moved or removed, so other passes consider it "
                "dead: it starts no more jobs (leave the queue's files in place, and start a new "
                "pass)",
                self.file.path,
            )

    def require_lock(self) -> None:
        """Raise StoreError if the program has closed the slot's file, which released the lock.

        Other passes then recover the jobs in its list and run them: this pass must not.
        """
        self.file.require("no further job is started")

    def _open_spare_descriptors(self) -> None:
        self._spare = [file for file in self._spare if file.is_ours()]
        while len(self._spare) < _SPARE_DESCRIPTORS:
            file = open_file(self.file.path, os.O_RDONLY)
            if file is None:
                self.require_path()
            else:
                self._spare.append(file)

    def close_spare_descriptors(self) -> bool:
        """Close the spare descriptors; return whether there were any."""
        found = bool(self._spare)
        self._spare = []
        return found

    def has_reserved_space(self) -> bool:
        """Return whether disk space is still reserved for outcomes."""
        return self._size > self._listed_bytes

    def free_reserved_space(self) -> None:
        """Free the reserved disk space, because the disk is too full for an outcome."""
        self.require_lock()
        os.ftruncate(self.file.fd, self._listed_bytes)
        self._size = self._listed_bytes

    def release(self, *, clear: bool) -> None:
        """End the pass: close the file, which releases its lock.

        With `clear`, the list is emptied. Otherwise it is left for the pass that recovers the jobs
        that are still open in it.
        """
        try:
            if clear and self.file.is_ours():
                os.ftruncate(self.file.fd, 0)
        except OSError:
            pass  # the list may stay: its jobs aren't processing those attempts any more
        finally:
            self._spare = []
            unlock(self.file)
            self.file.close()


def acquire(queue: str, parallel: int = 1, types: str = "") -> Slot:
    """Lock a free slot; it may still have the list of a dead pass. Call it under the queue's lock.

    `queue` is the path of the queue file. `parallel` is how many of its claims the pass may start
    at once, and `types` are the job types that it runs. Raises QueueBusy if all slots are held: if
    jobs hang, cron must not pile up processes.
    """
    for number in range(1, SLOTS + 1):
        file = open_or_create(_path(queue, number), os.O_RDWR, to_lock=True)
        if try_lock(file.fd):
            return Slot(file, parallel, types)
    raise QueueBusy(
        errno.EAGAIN,
        f"all {SLOTS} passes that may run at once are running: nothing was done "
        f"(head -1 {queue}.pass.* shows their processes; do jobs hang?)",
        queue,
    )


def open_slot(queue: str, number: int, flags: int) -> OpenFile | None:
    """Open the slot file of this number, or return None if there is none."""
    return open_file(_path(queue, number), flags, to_lock=True)


def _path(queue: str, number: int) -> str:
    return f"{queue}.pass.{number}"


def read_claims(file: OpenFile) -> tuple[list[tuple[str, int]], int]:
    """Return the claims that a slot lists, (job id, attempt), and how many may run at once."""
    columns, claims = _read(file)
    return claims, _parallel(columns)


def _parallel(columns: list[str]) -> int:
    return int(columns[3]) if len(columns) > 3 and columns[3].isdecimal() else 1


def _read(file: OpenFile) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the columns of a slot's first line, and the claims that it lists."""
    content = os.pread(file.fd, os.fstat(file.fd).st_size, 0).rstrip(b"\n")  # the reserved space
    head, *lines = content.decode("utf-8", "replace").split("\n")
    claims = []
    for line in lines:
        job_id, _, attempt = line.partition("\t")
        if attempt.isdecimal():
            claims.append((job_id, int(attempt)))
    return head.split("\t"), claims


class LivePass:
    """A live pass, as its slot shows it.

    `pid`        the id of its process; 0 if the first line is damaged
    `started_at` when it acquired the slot, in Unix seconds; 0 if the first line is damaged
    `listed_at`  when its list was last written, in Unix seconds: mostly, when it last claimed
    `parallel`   how many of its claims may have been started at once
    `claims`     (job id, attempt) of the jobs that it has claimed, and perhaps just finished
    `types`      the job types that it runs, as in `queue.tsv.passes`; "" if that is unknown
    """

    def __init__(self, file: OpenFile) -> None:
        columns, claims = _read(file)
        self.parallel = _parallel(columns)
        self.claims = frozenset(claims)
        self.listed_at = os.fstat(file.fd).st_mtime
        self.types = columns[4] if len(columns) > 4 else ""
        numbers = [int(text) for text in columns[1:3] if text.isdecimal()]
        self.pid, self.started_at = numbers if len(numbers) == 2 else (0, 0)


def live_passes(queue: str) -> list[LivePass]:
    """Return the live passes. Call it under the queue's lock.

    Otherwise a list could be incomplete, and a pass that is starting could find a free slot locked
    by this check.
    """
    found = []
    for number in range(1, SLOTS + 1):
        file = open_slot(queue, number, os.O_RDONLY)
        if file is None:
            continue
        if try_lock(file.fd):
            unlock(file)
        else:
            found.append(LivePass(file))
    return found
