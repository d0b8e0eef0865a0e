"""The queue that a command works on."""

from __future__ import annotations

import errno

from dbbasic_queue.errors import NotAQueue
from dbbasic_queue.jobqueue import Queue
from dbbasic_queue.queue import default_queue, open_default
from dbbasic_queue.store.location import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def existing_queue(arguments: Namespace, *, even_if_moved: bool = False) -> Queue:
    """Return the queue that --file names, or the default queue.

    Raises NotAQueue if it doesn't exist, so that a typo doesn't look like an empty queue. Calls of
    a queue that was moved raise QueueMoved, except with `even_if_moved`.
    """
    queue = named_queue(arguments, even_if_moved=even_if_moved)
    if not queue.store.exists():
        raise NotAQueue(
            errno.ENOENT,
            "there is no queue (go to the app's directory, or name the queue's file with --file "
            "or $DBBASIC_QUEUE_FILE, or its URL with $DBBASIC_QUEUE_URL; the first enqueue creates "
            "it)",
            queue.path,
        )
    return queue


def named_queue(arguments: Namespace, *, even_if_moved: bool = False) -> Queue:
    """Return the queue that --file names, or the default queue.

    Raises NotAQueue for a queue in memory, which would end with the command.
    """
    if arguments.file is None:
        queue = open_default(even_if_moved=True) if even_if_moved else default_queue()
        if not queue.store.is_shared:
            raise NotAQueue(
                f"invalid DBBASIC_QUEUE_URL {queue.path!r}: a command can't use a queue in the "
                "memory of another process (name a file with --file)"
            )
        return queue
    return Queue(path_of(arguments.file, "--file"), even_if_moved=even_if_moved)
