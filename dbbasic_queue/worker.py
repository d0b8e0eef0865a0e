"""A long-running worker: a thread in your program, or a program of its own.

It makes one pass that lingers without end. If an error ends the pass, the error is logged, and
another pass starts some seconds later.
"""

from __future__ import annotations

import math
import os
import threading
import time

from dbbasic_queue import errors
from dbbasic_queue.errors import QueueError
from dbbasic_queue.jobqueue import MAX_ATTEMPTS, Queue
from dbbasic_queue.model.rows import check_seconds
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.plan import plan
from dbbasic_queue.passes.signals import Asked, Interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta
    from typing import Any

    from dbbasic_queue.passes.base import Pass
    from dbbasic_queue.passes.supervisor import Crew

_PAUSE = 5.0
_TICK = 0.1


class Worker:
    """Runs the jobs of a queue as they become due, until it is stopped.

    The arguments are those of `process_jobs`. `with` and `async with` start it and stop it.

    A worker is idle, running or stopping:

    - `start` and `run_forever` make an idle worker run.
    - `stop` makes it stop: the running jobs finish, then it is idle. So does SIGTERM in
      `run_forever`.
    - `start` makes a worker that is stopping run on.
    - `stop` of an idle worker holds for the next `run_forever`, which then returns at once. So a
      signal handler may call it at any time.

    The state belongs to one process: in a forked child the worker is idle. Every call is safe from
    any thread, and from a job.

    An error that ends a pass (a full disk, a damaged file) doesn't end the worker: it is logged, on
    stderr if `logging` has no handler, and the worker starts again 5 seconds later.
    """

    def __init__(
        self,
        queue: Queue,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = MAX_ATTEMPTS,
        *,
        skip_unknown: bool = False,
        workers: int = 1,
    ) -> None:
        self._queue = queue
        self._settings = handlers, max_attempts, workers
        self._skip_unknown = skip_unknown
        self._make()  # raises now what could not work later
        self._be_idle()

    def _be_idle(self) -> None:
        self._process = os.getpid()
        self._change = threading.Condition()
        """held to look at the state or to change it, and notified of each change"""
        self._thread: threading.Thread | None = None  # that runs the passes
        self._asked = False
        self._running: Pass | Crew | None = None

    def _make(self, *, here: bool = False) -> Pass | Crew:
        queue = self._queue
        return plan(
            queue.store,
            *self._settings,
            queue.now,
            queue.max_payload,
            here=here,
            skip_unknown=self._skip_unknown,
            linger=math.inf,
        )

    def _state(self) -> threading.Condition:
        if self._process != os.getpid():  # the thread, and any lock that it holds, are the parent's
            self._be_idle()
        return self._change

    def __repr__(self) -> str:
        with self._state():
            running = "stopping" if self._asked else "running"
            return f"<Worker of {self._queue.path}: {running if self._thread else 'idle'}>"

    def is_alive(self) -> bool:
        """Return whether it is running or stopping, in this process."""
        with self._state():
            return self._thread is not None

    def start(self) -> None:
        """Run, in a thread of its own; a running worker just goes on, one that is stopping too.

        A process that has threads should not fork: with `workers`, and for handlers with a
        `timeout`, a program of its own is safer (`run_forever`, or cron). Raises StoreError if the
        system refuses a thread.
        """
        with self._state():
            if self._asked:
                self._asked = False
                self._running = None  # its end is no longer the worker's
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="queue-worker", daemon=True)
                try:
                    thread.start()
                except RuntimeError as e:
                    raise errors.not_started("the worker's thread", e) from e
                self._thread = thread
            self._change.notify_all()

    def stop(self, timeout: float | timedelta | None = None) -> bool:
        """Let the running jobs finish, and be idle; claimed jobs that haven't started are returned.

        However often it is called, it never interrupts a job. Waits at most `timeout` (seconds, or
        a `timedelta`), by default as long as it takes. Returns whether the worker is idle: False
        if the time is up, if `start` is called in the meantime, and at once if the caller is one of
        the worker's jobs.

        Raises QueueError in a job that has a `timeout`: its process can't reach the worker.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout", above=-math.inf)
        running = self._running
        by_job = running.interrupts.stop_by_job() if running is not None else None
        if by_job is False:
            raise QueueError(
                "the worker can't be stopped by a job with a timeout, which runs in a process of "
                f"its own: give its handler none, or send SIGTERM to process {self._process}"
            )
        if by_job and self._process != os.getpid():
            return False  # its pass ends, and with it the others
        with self._state():
            self._asked = True
            if self._running is not None:
                self._running.interrupts.stop()
            self._change.notify_all()
            thread = self._thread
            if thread is None:
                return True
            if by_job or thread is threading.current_thread():
                return False
            self._change.wait_for(lambda: self._thread is not thread or not self._asked, seconds)
            return self._thread is not thread

    def run_forever(self) -> None:
        """Run in this thread until SIGTERM, or `stop`; the running jobs finish.

        Ctrl-C raises KeyboardInterrupt, after the running jobs were given back. What the program's
        own signal handler raises is raised, too. Raises QueueError if the worker runs already,
        InvalidHandlers for coroutine functions if an event loop runs in this thread.
        """
        self._make(here=True)
        with self._state():
            if self._thread is not None:
                raise QueueError(
                    "this worker runs already: make another Worker, or stop() it first"
                )
            self._thread = threading.current_thread()
        try:
            self._run()
        except Asked:
            return  # it was asked to end, and has ended well

    def _run(self) -> None:
        with self._change:  # held by `start` until it has noted this thread
            thread = threading.current_thread()
        try:
            while self._is_to_go_on():
                self._make_a_pass()
        finally:
            with self._change:
                if self._thread is thread:
                    self._end()

    def _is_to_go_on(self) -> bool:
        with self._change:
            if self._asked:
                self._end()
            return self._thread is not None

    def _end(self) -> None:
        self._thread = self._running = None
        self._asked = False
        self._change.notify_all()

    def _make_a_pass(self) -> None:
        running = None
        try:
            running = self._make()
            with self._change:
                self._running = running
                if self._asked:
                    return
            running.run()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # noqa: BLE001 - a worker ends only if it is asked to
            from dbbasic_queue.passes.attempt import describe

            log_lines.worker_failed(describe(e), e, _PAUSE)
            if running is not None:
                running.interrupts.pass_on()  # the signals that it had received
            self._rest()
        else:
            with self._change:  # one of its jobs may have asked, in a process of its own
                if running.interrupts.stopped and self._running is running:
                    self._asked = True

    def _rest(self) -> None:
        with Interrupts() as asked:
            end = time.monotonic() + _PAUSE
            with self._change:
                while not (self._asked or asked.asked()) and time.monotonic() < end:
                    self._change.wait(_TICK)
        asked.pass_on()

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Worker:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)  # the event loop goes on until the jobs have ended
