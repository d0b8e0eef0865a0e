"""The first reading of a long queue: a thread makes it, and a viewer waits one second for it.

It takes about 4 seconds for a million jobs. Without a limit, a viewer would look at an empty tab
for that time, and a proxy might give up. There were two designs:

1. Each look reads on for a second, in steps. It needs no thread, but the index is read in one go,
   and a queue that takes ten seconds would need ten looks.
2. A thread reads everything, once, and every viewer waits for it, but only for a second. That is
   this one, because nothing else changes: later looks read what is new themselves, as before.

If the thread fails, those who wait get its error, and the next look starts another one. It is a
daemon: a process that ends doesn't wait for it.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_SECONDS = 1.0
"""how long a viewer waits"""


class StillReading(Exception):
    """A long queue is being read for the first time, and that isn't done yet."""


class FirstReading:
    """Calls `read` in a thread, until it has succeeded once."""

    def __init__(self, read: Callable[[], object]) -> None:
        self.is_done = False
        self._read = read
        self._lock = threading.Lock()
        self._running: Future[None] | None = None

    def is_running(self) -> bool:
        """Return whether the thread is reading now."""
        return self._running is not None

    def wait(self) -> None:
        """Return when everything was read. Starts the thread if there is none.

        Raises StillReading after a second, and what `read` has raised.
        """
        with self._lock:
            if self.is_done:
                return
            running = self._running
            if running is None:
                running = self._running = Future()
                thread = threading.Thread(target=self._run, args=(running,), daemon=True)
                thread.start()
        wait([running], PATIENCE_SECONDS)
        if not running.done():
            raise StillReading
        running.result()

    def _run(self, running: Future[None]) -> None:
        error: BaseException | None = None
        try:
            self._read()
        except BaseException as e:  # noqa: BLE001 - those who wait get it
            error = e
        with self._lock:
            self.is_done = error is None
            self._running = None
        if error is None:
            running.set_result(None)
        else:
            running.set_exception(error)
