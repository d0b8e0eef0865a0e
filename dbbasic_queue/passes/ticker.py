"""Calls a function ten times a second from a background thread, while jobs run."""

from __future__ import annotations

import os
import threading

from dbbasic_queue.errors import not_started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_TICK_SECONDS = 0.1


class Ticker:
    """Calls a function from a thread of its own, from `start_once` to `stop`.

    If the function raises OSError, it isn't called again before `stop`, unless the error is
    temporary: the running job isn't to blame, and the pass gets the same error itself when it
    writes next.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._has_failed = False
        self.is_started = False
        self._process = os.getpid()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start_once(self) -> None:
        """Start the thread unless it is started. Raises StoreError if the system refuses it."""
        if self._thread is None:
            self._stopped.clear()
            thread = threading.Thread(target=self._run, name="queue-ticker", daemon=True)
            try:
                thread.start()
            except RuntimeError as e:
                raise not_started("the thread that watches a pass", e) from e
            self._thread = thread
            self.is_started = True

    def stop(self) -> None:
        """Stop the thread, if it is started. No call is made after this returns.

        It waits for a call that is running, so the function must not call it.
        """
        self._stopped.set()
        if self._thread is not None and os.getpid() == self._process:
            self._thread.join()
            self._thread = None
            self.is_started = False
        self._has_failed = False

    def tick(self) -> None:
        """Call the function, unless it has failed. For a caller that ticks without the thread."""
        if not self._has_failed:
            try:
                self._function()
            except OSError as e:
                self._has_failed = not getattr(e, "is_temporary", False)

    def _run(self) -> None:
        while not self._stopped.wait(_TICK_SECONDS):
            self.tick()
