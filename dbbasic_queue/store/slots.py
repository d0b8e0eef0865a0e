r"""Who is alive: a pass holds the lock of its slot file as long as it lives, and lists its claims.

The kernel is the heartbeat: however a process ends, its `flock` is gone. A job that is
`processing` and stands in the list of no locked slot has lost its pass. A list is written whole,
under the queue's lock, before the claims are recorded; what a crash leaves of it means nothing.

    pass <process id> <Unix seconds>     who holds the slot, for a person who looks
    <job id> <attempt>                   one line a claim
    (empty lines)                        room on the disk that is given up when the disk is full

A slot file is reused, never deleted.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from dbbasic_queue.errors import QueueBusy
from dbbasic_queue.store.files import OpenFile, open_file, open_or_create, store_error, write_all

SLOTS = 64
_ROOM = 8192
_ROOM_A_CLAIM = 160


def _path(queue: str, number: int) -> str:
    return f"{queue}.pass.{number}"


class Slot:
    """The slot of a pass that is alive: this one."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self._head = f"pass\t{os.getpid()}\t{int(time.time())}\n"
        self._listed = 0
        self._size = 0
        self.claims = 0

    def write(self, claims: list[tuple[str, int]]) -> None:
        """List the claims of a batch, and take the room on the disk that their outcomes need.

        Raises StoreError where there is no such room: before a handler has run.
        """
        content = (self._head + "".join(f"{i}\t{n}\n" for i, n in claims)).encode()
        size = max(self._size, len(content) + _ROOM + _ROOM_A_CLAIM * len(claims))
        try:
            # Written over, not cut first: on a full disk the blocks would be gone, and with them
            # the list that says whose the job in hand is.
            os.lseek(self.file.fd, 0, os.SEEK_SET)
            write_all(self.file.fd, content.ljust(size, b"\n"))
        except OSError as e:
            raise store_error(e, self.file.path, "no job was begun") from e
        self._size = size
        self._listed = len(content)
        self.claims = len(claims)

    def give_up_room(self) -> None:
        """Free the room on the disk: an outcome has found it full."""
        os.ftruncate(self.file.fd, self._listed)
        self._size = self._listed

    def release(self) -> None:
        """End the pass: empty the list, and close the file, which frees its lock."""
        with suppress(OSError):  # a list in a slot that is not locked means nothing
            os.ftruncate(self.file.fd, 0)
        self.file.close()


def take(queue: str) -> Slot:
    """Lock a free slot, and empty it. Under the queue's lock.

    Raises QueueBusy if all are held: a job that hangs must not make cron pile up processes.
    """
    from filelock import lock_descriptor

    for number in range(1, SLOTS + 1):
        file = open_or_create(_path(queue, number), os.O_RDWR)
        if lock_descriptor(file.fd, blocking=False):
            slot = Slot(file)
            try:
                os.ftruncate(file.fd, 0)
                slot.write([])
            except BaseException:
                slot.release()
                raise
            return slot
    raise QueueBusy(
        errno.EAGAIN,
        f"all {SLOTS} passes that may overlap are running: nothing was done "
        f"(head -1 {queue}.pass.* shows their processes; jobs that hang?)",
        queue,
    )


def live_claims(queue: str, own: Slot) -> set[tuple[str, int]]:
    """Return the (job id, attempt) of every claim of the other passes that are alive.

    Under the queue's lock, so that every list is whole.
    """
    from filelock import lock_descriptor

    claims: set[tuple[str, int]] = set()
    for number in range(1, SLOTS + 1):
        path = _path(queue, number)
        file = open_file(path, os.O_RDWR)
        if file is None or file.identity == own.file.identity:
            continue
        if lock_descriptor(file.fd, blocking=False):
            continue  # nobody lives there; closing the file frees it again
        try:
            content = os.pread(file.fd, os.fstat(file.fd).st_size, 0)
        except OSError as e:
            raise store_error(e, path, "nothing was recovered") from e
        for line in content.decode("utf-8", "replace").split("\n")[1:]:
            job_id, _, attempt = line.partition("\t")
            if attempt.isdigit():
                claims.add((job_id, int(attempt)))
    return claims
