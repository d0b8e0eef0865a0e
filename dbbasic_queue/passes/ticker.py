"""A thread that looks after a job which takes long."""

from __future__ import annotations

import os
import threading

from dbbasic_queue.errors import not_started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_WATCH = 0.1


class Watcher:
    """Calls `look` ten times a second, from a thread of its own, while it is started."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look
        self._process = os.getpid()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.is_started = False

    def start_once(self) -> None:
        """Begin to watch, where it has not begun. Raises StoreError if there can be no thread."""
        if self._thread is None:
            self._stopped.clear()
            thread = threading.Thread(target=self._watch, name="queue-watcher", daemon=True)
            try:
                thread.start()
            except RuntimeError as e:
                raise not_started("the thread that watches a pass", e) from e
            self._thread = thread
            self.is_started = True

    def stop(self) -> None:
        """End the watch; nothing is done in its name afterwards, until it is started again."""
        self._stopped.set()
        if self._thread is not None and os.getpid() == self._process:
            self._thread.join()
            self._thread = None
            self.is_started = False

    def _watch(self) -> None:
        while not self._stopped.wait(_WATCH):
            try:
                self.look()
            except OSError:
                return  # the pass meets the same error itself, where it can be raised
