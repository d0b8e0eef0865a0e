"""`memory:`: a queue whose jobs are in a dict of this process, for tests and demos.

What was weighed:

- Every call written anew, for a dict: argument checks, passes, policies and lingering a second
  time, and each of them free to drift from the text file's.
- A text file in a temporary directory: nothing to write, and everything the same; but a disk is
  needed, and two homes that are one prove nothing of the protocol. Take `Queue` for that.
- This: `Queue` and `Pass` as they are, over another store. What they ask of `Store` and `Claims` is
  all that had to be written (`memory_store`), and job.py's changes are the only ones; so a policy
  that handlers learn is known here too.

There is nothing to recover: a pass dies with its jobs. The jobs cannot be seen by another process,
and a forked child is refused them: what it did to its copy would be lost without a word. So of
`workers=n` only coroutines make use; plain functions run one at a time.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, cast

from dbbasic_queue.engines.memory_store import Memory
from dbbasic_queue.errors import QueueError
from dbbasic_queue.handlers import Handler
from dbbasic_queue.queue import Queue
from dbbasic_queue.rows import CheckedClock
from dbbasic_queue.text import MAX_PAYLOAD
from dbbasic_queue.worker import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.crew import Crew
    from dbbasic_queue.store.store import Store
    from dbbasic_queue.worker import Pass

SCHEME = "memory:"

_named: dict[str, Memory] = {}
_naming = threading.Lock()


class MemoryQueue(Queue):
    """The jobs of `memory:`, which nobody else sees, or of `memory:NAME`.

    All queues of this process with the same name share their jobs, until the process ends.
    `max_payload` and `clock` are those of `Queue`.
    """

    def __init__(
        self,
        url: str = SCHEME,
        *,
        max_payload: int = MAX_PAYLOAD,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = url
        self.max_payload = max_payload
        self._clock = clock if clock is time.time else CheckedClock(clock)
        self._store = cast("Store", _memory(url))

    def __getstate__(self) -> dict[str, Any]:
        raise QueueError(
            f"cannot pickle the queue {self.path}: its jobs are in the memory of this process "
            "(a queue for several processes is a text file)"
        )

    def _worker(
        self, handlers: Any, max_attempts: int, workers: int = 1, **how: Any
    ) -> Pass | Crew:
        check(handlers, max_attempts, workers)
        functions = [Handler.of(handler) for handler in handlers.values() if handler is not None]
        if not functions or not all(handler.shares_loop for handler in functions):
            workers = 1  # more would be forked
        return super()._worker(handlers, max_attempts, workers, **how)


def _memory(url: str) -> Memory:
    name = url.partition(":")[2]
    if not name:
        return Memory(url)
    with _naming:
        return _named.setdefault(name, Memory(url))
