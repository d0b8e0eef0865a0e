"""A long-running worker: a thread in your program, or a program of its own.

It makes one pass that lingers forever. If an error ends the pass, the error is logged, and
another pass starts a few seconds later.
"""

from __future__ import annotations

import math
import os
import threading
import time

from dbbasic_queue import errors
from dbbasic_queue.errors import QueueError
from dbbasic_queue.jobqueue import MAX_ATTEMPTS, Queue
from dbbasic_queue.model.checks import check_seconds
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.attempt import describe
from dbbasic_queue.passes.plan import plan
from dbbasic_queue.passes.signals import Interrupts, StopRequested

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta
    from typing import Any

    from dbbasic_queue.passes.base import Pass
    from dbbasic_queue.passes.supervisor import Supervisor

_RESTART_SECONDS = 5.0
_POLL_SECONDS = 0.1


class Worker:
    """Runs the jobs of a queue as they become due, until it is stopped.

    The arguments are those of `process_jobs`, without `linger` and `ping`. `with` and `async with`
    start it and stop it.

    A worker is idle, running or stopping:

    - `start` and `run_forever` make an idle worker run.
    - `stop` makes it stop: the running jobs finish, then it is idle. So does SIGTERM in
      `run_forever`.
    - `start` makes a worker that is stopping keep running.
    - `stop` on an idle worker makes the next `run_forever` return at once. So a signal handler may
      call `stop` at any time, even before `run_forever` has started.

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
        self._plan()  # raises errors in the arguments now
        self._be_idle()

    def _be_idle(self) -> None:
        self._process = os.getpid()
        self._change = threading.Condition()
        """held to read or change the state, and notified of each change"""
        self._thread: threading.Thread | None = None
        """the thread that runs the passes"""
        self._stop_requested = False
        self._interrupts: Interrupts | None = None
        """how to ask the running pass to end"""

    def _plan(
        self, interrupts: Interrupts | None = None, *, here: bool = False
    ) -> Pass | Supervisor:
        queue = self._queue
        return plan(
            queue.store,
            *self._settings,
            queue.now,
            queue.max_payload,
            here=here,
            interrupts=interrupts,
            skip_unknown=self._skip_unknown,
            linger=math.inf,
        )

    def _state(self) -> threading.Condition:
        """Return the condition that guards the state. In a forked child, become idle first."""
        if self._process != os.getpid():  # the thread, and any lock that it holds, are the parent's
            self._be_idle()
        return self._change

    def __repr__(self) -> str:
        with self._state():
            running = "stopping" if self._stop_requested else "running"
            return f"<Worker of {self._queue.path}: {running if self._thread else 'idle'}>"

    def is_alive(self) -> bool:
        """Return whether it is running or stopping, in this process."""
        with self._state():
            return self._thread is not None

    def start(self) -> None:
        """Run in a background thread. A worker that is already running or stopping keeps running.

        A process that has threads should not fork, but `workers` and handlers with a `timeout` need
        forks: for these, a separate program is safer (`run_forever`, or cron). Raises StoreError if
        the system refuses a thread.
        """
        with self._state():
            if self._stop_requested:
                self._stop_requested = False
                # So that `_run_a_pass` doesn't take the end of the running pass for a stop.
                self._interrupts = None
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="queue-worker", daemon=True)
                try:
                    thread.start()
                except RuntimeError as e:
                    raise errors.not_started("the worker's thread", e) from e
                self._thread = thread
            self._change.notify_all()

    def stop(self, timeout: float | timedelta | None = None) -> bool:
        """Stop: the running jobs finish, and claimed jobs that haven't started are pending again.

        However often it is called, it never interrupts a job. Waits until the worker is idle, at
        most for `timeout` (seconds, or a `timedelta`; None for no limit). Returns True if the
        worker is idle, False if the time is up or `start` was called in the meantime. A job of the
        worker, or a signal handler in its thread, doesn't wait: it gets False at once.

        Raises QueueError in a job that has a `timeout`: its process can't reach the worker.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout", above=-math.inf)
        interrupts = self._interrupts
        # None if no job of the worker is calling; False if its process can't reach the pass.
        by_job = interrupts.stop_by_job() if interrupts is not None else None
        if by_job is False:
            raise QueueError(
                "the worker can't be stopped by a job with a timeout, which runs in a process of "
                f"its own: remove the handler's timeout, or send SIGTERM to process {self._process}"
            )
        if by_job and self._process != os.getpid():
            return False  # this forked pass ends, and its supervisor then stops the others
        with self._state():
            self._stop_requested = True
            if self._interrupts is not None:
                self._interrupts.stop()
            self._change.notify_all()
            thread = self._thread
            if thread is None:
                return True
            if by_job or thread is threading.current_thread():
                return False
            self._change.wait_for(
                lambda: self._thread is not thread or not self._stop_requested, seconds
            )
            return self._thread is not thread

    def run_forever(self) -> None:
        """Run in this thread until SIGTERM or `stop`. The running jobs finish first.

        Ctrl-C raises KeyboardInterrupt, after the running jobs were made pending again. Exceptions
        from the program's own signal handlers are raised, too. Raises QueueError if the worker is
        already running, InvalidHandlers for coroutine functions if an event loop is already running
        in this thread.
        """
        self.run_until_stopped()

    def run_until_stopped(self, on_start: Callable[[], None] = lambda: None) -> bool:
        """Do what `run_forever` does, and return whether SIGTERM has ended it.

        `on_start` is called as soon as SIGTERM would let jobs finish.
        """
        self._plan(here=True)  # raises InvalidHandlers for this thread now
        with self._state():
            if self._thread is not None:
                raise QueueError(
                    "this worker is already running: create another Worker, or stop() this one"
                )
            self._thread = threading.current_thread()
        try:
            with Interrupts() as interrupts:  # also between the passes
                on_start()
                self._run()
            interrupts.forward_signals()
        except StopRequested:
            return True
        return False

    def _run(self) -> None:
        with self._change:  # `start` holds it until it has recorded this thread
            thread = threading.current_thread()
        try:
            while self._goes_on():
                self._run_a_pass()
        finally:
            with self._change:
                if self._thread is thread:
                    self._end()

    def _goes_on(self) -> bool:
        """End if a stop was requested; return whether this thread should make another pass."""
        with self._change:
            if self._stop_requested:
                self._end()
            return self._thread is not None

    def _end(self) -> None:
        self._thread = self._interrupts = None
        self._stop_requested = False
        self._change.notify_all()

    def _run_a_pass(self) -> None:
        interrupts = Interrupts()
        try:
            running = self._plan(interrupts)
            with self._change:
                self._interrupts = interrupts
                if self._stop_requested:
                    return
            running.run()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # noqa: BLE001 - a worker ends only if it is asked to
            log_lines.worker_failed(describe(e), e, _RESTART_SECONDS)
            interrupts.forward_signals()  # those that it received before the error
            self._wait_to_restart()
        else:
            with self._change:  # a job in a forked process may have called `stop`
                if interrupts.stopped and self._interrupts is interrupts:
                    self._stop_requested = True

    def _wait_to_restart(self) -> None:
        with Interrupts() as interrupts:
            end = time.monotonic() + _RESTART_SECONDS
            with self._change:
                while (
                    not self._stop_requested
                    and not interrupts.stop_requested()
                    and time.monotonic() < end
                ):
                    self._change.wait(_POLL_SECONDS)
        interrupts.forward_signals()

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Worker:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)  # the event loop keeps running while the jobs finish
