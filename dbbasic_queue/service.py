"""A worker that stays: a thread of a program, or the whole of one under systemd or in a container.

It is one pass that lingers without end. What the system refuses meanwhile, a full disk for
example, is logged, and the worker begins again some seconds later.
"""

from __future__ import annotations

import threading

from dbbasic_queue import reports
from dbbasic_queue.errors import QueueBusy, StoreError
from dbbasic_queue.queue import MAX_ATTEMPTS, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from dbbasic_queue.crew import Crew
    from dbbasic_queue.worker import Pass

_PAUSE = 5.0


class Worker:
    """Runs the jobs of a queue as they become due, until it is stopped.

    The arguments are those of `process_jobs`. As a context manager it is started and stopped.
    """

    def __init__(
        self,
        queue: Queue,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = MAX_ATTEMPTS,
        *,
        only: bool = False,
        workers: int = 1,
    ) -> None:
        self._queue = queue
        self._settings = handlers, max_attempts, workers
        self._only = only
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._running = self._make()  # raises now what could not work later

    def _make(self) -> Pass | Crew:
        return self._queue._worker(*self._settings, only=self._only, linger=float("inf"))

    def start(self) -> None:
        """Begin, in a thread of its own; nothing where it has begun.

        A process that has threads should not fork: with `workers`, and for handlers with a
        `timeout`, a program of its own is safer (`run_forever`, or cron).
        """
        if self._thread is None:
            self._stopped.clear()
            self._thread = threading.Thread(target=self._run, name="queue-worker", daemon=True)
            self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Let the jobs in hand finish, and end; what was claimed beside them is given back.

        Waits at most `timeout` seconds, or as long as it takes. Returns whether it has ended.
        """
        self._stopped.set()
        self._running.interrupts.stop()
        thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        if thread.is_alive():
            return False
        self._thread = None
        return True

    def run_forever(self) -> None:
        """Work in this thread until SIGTERM, or `stop` from another one; the job in hand finishes.

        Ctrl-C raises KeyboardInterrupt.
        """
        self._stopped.clear()
        try:
            self._run()
        except SystemExit:
            return  # it was asked to end, and has ended well

    def _run(self) -> None:
        while True:
            self._running = self._make()
            if self._stopped.is_set():
                return
            try:
                self._running.run()
            except (StoreError, QueueBusy) as e:
                if log := reports.logger():
                    log.error("the worker begins again in %.0f seconds: %s", _PAUSE, e)
                self._stopped.wait(_PAUSE)

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
