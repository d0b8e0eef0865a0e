r"""Who is alive: a pass holds the lock of its slot file as long as it lives, and lists its claims.

The kernel is the heartbeat: however a process ends, its `flock` is gone. A job that is
`processing` and stands in the list of no locked slot has lost its pass. A list is written whole,
under the queue's lock, before the claims are recorded, in the order in which they will be started.
It is not synced: after a power cut no lock is held, and what is left of it decides no more than
whose attempt counts.

    pass <process id> <Unix seconds> <n> who holds the slot, for a person who looks; and how many
                                         of the claims may have been started at once
    <job id> <attempt>                   one line a claim
    (empty lines)                        room on the disk that is given up when the disk is full

Besides the room, a pass keeps some descriptors open that it gives up when an outcome needs one and
the process has no other left. A slot file is reused, never deleted.
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
_ROOM = 8192
_ROOM_A_CLAIM = 160
_SPARE_DESCRIPTORS = 3
"""To record an outcome, a pass may have to open the queue file and the journal, and to sync the
directory."""


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _path(queue: str, number: int) -> str:
    return f"{queue}.pass.{number}"


class Slot:
    """The slot of a pass that is alive: this one."""

    def __init__(self, file: OpenFile, parallel: int) -> None:
        self.file = file
        self._head = f"pass\t{os.getpid()}\t{int(time.time())}\t{parallel}\n"
        self._listed = 0
        self._size = os.fstat(file.fd).st_size  # all of it is written over
        self.claims = 0
        self._spare: list[OpenFile] = []

    def write(self, claims: list[tuple[str, int]]) -> None:
        """List the claims of a batch, and keep the room and descriptors that their outcomes need.

        Raises StoreError if there are none: before a handler has run.
        """
        content = (self._head + "".join(f"{i}\t{n}\n" for i, n in claims)).encode()
        size = max(self._size, len(content) + _ROOM + _ROOM_A_CLAIM * len(claims))
        self.require()
        if claims:
            self._keep_spare()
        try:
            # Written over, not cut first: on a full disk the blocks would be gone, and with them
            # the list that says whose the job in hand is.
            os.lseek(self.file.fd, 0, os.SEEK_SET)
            write_all(self.file.fd, content.ljust(size, b"\n"))
        except OSError as e:
            raise store_error(e, self.file.path, "no further job was started") from e
        self._size = size
        self._listed = len(content)
        self.claims = len(claims)

    def check_at_path(self) -> None:
        """Raise StoreError if the file was moved or removed: others then take this pass for dead.

        Under the queue's lock, and before each claim: they would run the same jobs.
        """
        if not self.file.is_at_path():
            raise StoreError(
                errno.ENOENT,
                "the slot file of this pass was moved or removed, so others take it for dead: it "
                "starts no more jobs (leave the queue's files in place, and start a new pass)",
                self.file.path,
            )

    def require(self) -> None:
        """Raise StoreError if the program has closed the slot's file: the lock is gone with it.

        Other passes take the jobs in its list for lost, and run them: this pass must not.
        """
        self.file.require("no further job is started")

    def _keep_spare(self) -> None:
        self._spare = [file for file in self._spare if file.is_ours()]
        while len(self._spare) < _SPARE_DESCRIPTORS:
            file = open_file(self.file.path, os.O_RDONLY)
            if file is None:
                self.check_at_path()
            else:
                self._spare.append(file)

    def give_up_spare(self) -> bool:
        """Close the descriptors that were kept; return whether there were any."""
        found = bool(self._spare)
        self._spare = []
        return found

    def has_room(self) -> bool:
        """Tell whether the room on the disk is there: it has not been given up."""
        return self._size > self._listed

    def give_up_room(self) -> None:
        """Free the room on the disk: an outcome has found it full."""
        self.require()
        os.ftruncate(self.file.fd, self._listed)
        self._size = self._listed

    def release(self, *, clear: bool) -> None:
        """End the pass: close the file, which frees its lock.

        The list is emptied, or left for the pass that recovers what is still open in it.
        """
        try:
            if clear and self.file.is_ours():
                os.ftruncate(self.file.fd, 0)
        except OSError:
            pass  # a claim that is not open any more means nothing
        finally:
            self._spare = []
            unlock(self.file)
            self.file.close()


def take(queue: str, parallel: int = 1) -> Slot:
    """Lock a free slot; its list still is what a dead pass may have left. Under the queue's lock.

    Raises QueueBusy if all are held: a job that hangs must not make cron pile up processes.
    """
    for number in range(1, SLOTS + 1):
        file = open_or_create(_path(queue, number), os.O_RDWR, to_lock=True)
        if try_lock(file.fd):
            return Slot(file, parallel)
    raise QueueBusy(
        errno.EAGAIN,
        f"all {SLOTS} passes that may overlap are running: nothing was done "
        f"(head -1 {queue}.pass.* shows their processes; jobs that hang?)",
        queue,
    )


class Survey:
    """What the slots' lists say. Under the queue's lock, so that every list is whole.

    `alive` are the claims of the other live passes. `started` and `not_started` are those of the
    dead ones: of their first `parallel` claims, any may have been started.
    """

    def __init__(self, queue: str, own: Slot, is_open: Callable[[str, int], bool]) -> None:
        self.alive: set[tuple[str, int]] = set()
        self.started: set[tuple[str, int]] = set()
        self.not_started: set[tuple[str, int]] = set()
        self._left: list[OpenFile] = []
        self._note_dead(*_read(own.file), is_open)
        try:
            for number in range(1, SLOTS + 1):
                file = open_file(_path(queue, number), os.O_RDWR, to_lock=True)
                if file is not None and file.identity != own.file.identity:
                    self._look_at(file, is_open)
        except BaseException:
            self.release()
            raise

    def _look_at(self, file: OpenFile, is_open: Callable[[str, int], bool]) -> None:
        if not try_lock(file.fd):
            self.alive.update(_read(file)[0])
            return
        self._left.append(file)  # locked until it is cleared
        claims, parallel = _read(file)
        if claims:
            self._note_dead(claims, parallel, is_open)
        else:
            self._left.pop()
            unlock(file)

    def _note_dead(
        self, claims: list[tuple[str, int]], parallel: int, is_open: Callable[[str, int], bool]
    ) -> None:
        still = [claim for claim in claims if is_open(*claim)]
        self.started.update(still[:parallel])
        self.not_started.update(still[parallel:])

    def clear(self) -> None:
        """Empty the lists of dead passes: their jobs have been recovered, and are on the disk."""
        for file in self._left:
            os.ftruncate(file.fd, 0)

    def release(self) -> None:
        """Free the slots of dead passes, whether their jobs have been recovered or not."""
        while self._left:
            unlock(self._left.pop())


def _read(file: OpenFile) -> tuple[list[tuple[str, int]], int]:
    """Return the claims that a slot lists, and how many of them may have been started at once."""
    content = os.pread(file.fd, os.fstat(file.fd).st_size, 0).rstrip(b"\n")  # without the room
    head, *lines = content.decode("utf-8", "replace").split("\n")
    claims = []
    for line in lines:
        job_id, _, attempt = line.partition("\t")
        if attempt.isdecimal():
            claims.append((job_id, int(attempt)))
    columns = head.split("\t")
    return claims, int(columns[3]) if len(columns) > 3 and columns[3].isdecimal() else 1


class LivePass:
    """A pass that is alive, as its slot tells.

    `pid` is its process, `started_at` when it took the slot, `listed_at` when it last claimed, in
    Unix seconds; `parallel` as in the slot. `claims` are (id, attempt) of what it has in hand,
    and perhaps of what it has just done.
    """

    def __init__(self, file: OpenFile) -> None:
        claims, self.parallel = _read(file)
        self.claims = frozenset(claims)
        self.listed_at = os.fstat(file.fd).st_mtime
        head = os.pread(file.fd, 200, 0).decode("utf-8", "replace").split("\n")[0].split("\t")
        numbers = [int(text) for text in head[1:3] if text.isdecimal()]
        self.pid, self.started_at = numbers if len(numbers) == 2 else (0, 0)


def live_passes(queue: str) -> list[LivePass]:
    """Return the passes that are alive. Under the queue's lock, so that every list is whole."""
    found = []
    for number in range(1, SLOTS + 1):
        file = open_file(_path(queue, number), os.O_RDONLY, to_lock=True)
        if file is None:
            continue
        if try_lock(file.fd):
            unlock(file)
        else:
            found.append(LivePass(file))
    return found
