"""SIGTERM and Ctrl-C while a pass runs, and passes within the jobs of other passes."""

from __future__ import annotations

import os
import signal
import threading
from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from contextvars import Token
    from types import FrameType
    from typing import Any

_enclosing: ContextVar[Interrupts | None] = ContextVar("dbbasic_queue_pass", default=None)
"""the Interrupts of the pass whose job is calling, maybe in a thread that got the job's context"""

_receiving: list[Interrupts] = []
"""the Interrupts that have installed signal handlers, the innermost last"""
_masks: dict[int, set[Any]] = {}
"""ident of each thread that is forking -> the signals that it blocked before"""


class StopRequested(SystemExit):
    """Raised after SIGTERM has ended a pass; its code is 143, as a shell would report it."""


class Interrupts:
    """How a pass is asked to end.

    The first SIGTERM lets the running job finish; Ctrl-C, or a second signal, interrupts it.
    While no handler runs, both only end the pass after its current step. Only the main thread
    receives signals; a pass in another thread isn't affected.

    If the program has a signal handler of its own, that is called. If it returns, the pass goes on
    as if there had been no signal. If it raises, the program wants to end: the running job is
    unclaimed, the pass ends, and then the exception is raised. Until then, it is raised only while
    a handler runs: anywhere else it could interrupt a change of the files.

    A pass within a job of another pass ends when that one is asked to end, and the outer pass
    learns which signals the inner one receives.

    In one of several forked passes (`supervisor` is the id of the process that forked them) a
    second SIGTERM has no effect, nor does a second Ctrl-C: it may be the first one, which was sent
    to both processes and is forwarded by the supervisor. The supervisor's death is like a first
    SIGTERM. Only the supervisor calls the program's signal handlers.
    """

    def __init__(self, supervisor: int = 0) -> None:
        self.received: list[int] = []
        """the signals, also those that a pass within one of our jobs has received"""
        self.stopped = False
        """whether `stop` was called"""
        self.in_handler = False
        """whether a handler is running, so that a signal may raise"""
        self.cancelling = False
        """whether the pass is cancelling its coroutines"""
        self.jobs: Collection[tuple[str, str]] = ()
        """path and id of each job that the pass is running"""
        self._raised: list[BaseException] = []
        """what the program's signal handlers have raised"""
        self._repeated: list[int] = []
        """the signals whose second arrival was ignored, in a forked pass"""
        self._supervisor = supervisor
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        """signal -> the signal handler that ours replaces"""
        self._outer: Interrupts | None = None
        """the Interrupts of the pass around this one, maybe in a parent process"""
        self._ended = False
        self._token: Token[Interrupts | None] | None = None

    def __enter__(self) -> Interrupts:
        self._outer = _enclosing.get()
        while self._outer is not None and self._outer._ended:  # a thread keeps its job's context
            self._outer = self._outer._outer
        if outer := self._outer_here():
            self.received, self._raised = outer.received, outer._raised
            self._repeated = outer._repeated
            self._supervisor = outer._supervisor
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):  # first Ctrl-C, which could raise here
                before = signal.getsignal(number)
                if callable(before) or before == signal.SIG_DFL or self._supervisor:
                    self._before[number] = before
                    signal.signal(number, self._receive)
            if self._before:
                _receiving.append(self)
        self._token = _enclosing.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._token is not None:
            self._token.var.reset(self._token)
        self.leave()

    def leave(self) -> None:
        """Restore the signal handlers that were there before.

        A pass that a supervisor forked ignores the signals from now on: it is ending anyway.
        """
        if self in _receiving:
            _receiving.remove(self)
        ends = self._supervisor and self._outer_here() is None
        for number, handler in reversed(self._before.items()):
            if signal.getsignal(number) == self._receive:  # a job may have installed its own
                signal.signal(number, signal.SIG_IGN if ends else handler)

    def drop(self) -> None:
        """In a process forked for a pass: call neither these signal handlers nor the program's.

        Until the new pass installs its own, the signals kill the process.
        """
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        program = _under_passes(number, self._receive)
        if os.getpid() != self._process:  # a child that a handler has forked isn't part of the pass
            signal.signal(number, program)
            os.kill(os.getpid(), number)
        elif self._supervisor and number in self.received and number not in self._repeated:
            self._repeated.append(number)  # sent to the process group, then by the supervisor
        elif self._supervisor or program in (signal.SIG_DFL, signal.default_int_handler):
            self.received.append(number)
            if self.in_handler and self.stop_at_once() and not _is_forking():
                raise KeyboardInterrupt
        else:
            try:
                program(number, frame)
            except BaseException as e:
                self._raised.append(e)
                self.received.append(number)
                if self.in_handler and not _is_forking():
                    raise

    def stop_requested(self) -> bool:
        """Return whether the pass is asked to end, or its supervisor has died."""
        if self.stopped or self.received:
            return True
        if self._outer is None and not self._supervisor:
            return False
        if self._supervisor and os.getppid() != self._supervisor:
            self.stop()
        outer = self._outer_here()
        return self.stopped or (outer is not None and outer.stop_requested())

    def _outer_here(self) -> Interrupts | None:
        """Return the Interrupts of the pass around this one, if that runs in this process."""
        outer = self._outer
        return outer if outer is not None and outer._process == self._process else None

    def stop_at_once(self) -> bool:
        """Return whether the pass must interrupt the running job, instead of letting it finish."""
        return signal.SIGINT in self.received or (len(self.received) > 1 and not self._supervisor)

    def caused(self, error: BaseException) -> bool:
        """Return whether a handler's exception comes from a signal, and not from the handler."""
        return self.cancelling or self.raised(error)

    def raised(self, error: BaseException) -> bool:
        """Return whether a signal handler has raised this exception."""
        if any(error is raised for raised in self._raised):
            return True
        return isinstance(error, KeyboardInterrupt) and bool(self.received)

    def raise_if_at_once(self) -> None:
        """Raise the exception that interrupts the running job, if it must be interrupted."""
        if self._raised:
            raise self._raised[0]
        if self.stop_at_once():
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Ask the pass to end after the running job; safe from any thread, any number of times."""
        self.stopped = True

    def stop_by_job(self) -> bool | None:
        """If one of this pass's jobs is calling, in any process, ask the pass to end.

        If a pass within that job runs the caller, it is asked, too. Only passes of the calling
        process can be asked: returns whether there were any. Returns None if no job of this pass is
        calling.
        """
        around = _enclosing.get() if _enclosing is not None else None
        here: list[Interrupts] = []
        while around is not None:
            if around._process == os.getpid():
                here.append(around)
            if around is self:
                for pass_ in here:
                    pass_.stop()
                return bool(here)
            around = around._outer
        return None

    def enclosing_jobs(self) -> Iterator[tuple[str, str]]:
        """Yield path and id of each job that a pass around this one is running."""
        outer = self._outer
        while outer is not None:
            yield from outer.jobs
            outer = outer._outer

    def forward_signals(self) -> None:
        """After the pass, if a signal was received: raise the exception that ends the program.

        That is what the program's signal handler has raised; otherwise KeyboardInterrupt for
        Ctrl-C, StopRequested for SIGTERM.
        """
        if not self.received:
            return
        if not self._raised:
            interrupt = signal.SIGINT in self.received
            self._raised.append(
                KeyboardInterrupt() if interrupt else StopRequested(128 + self.received[0])
            )
        error = self._raised[0]
        if self._outer_here() is None:
            self._raised = []
        # Otherwise the outer pass must recognize it (`caused`): its job isn't at fault.
        try:
            raise error
        finally:
            del error


def _under_passes(number: int, handler: Any) -> Any:
    """Return the program's own signal handler, which those of passes have replaced."""
    while isinstance(owner := getattr(handler, "__self__", None), Interrupts):
        handler = owner._before.get(number, signal.SIG_DFL)
    return handler


# -- a signal that is sent to a process while it is being forked
#
# A new process forgets the signals for which Python hasn't called the signal handler yet. So
# `Pool.terminate` of `multiprocessing` would never return if a process had just been started. The
# signals are therefore blocked until the new process has the program's own signal handlers.
#
# In the parent, an exception in a fork hook would be lost: a signal that arrives during a fork ends
# the pass after the running job, like a first SIGTERM.


def _is_forking() -> bool:
    return threading.get_ident() in _masks


def _before_fork() -> None:
    if _receiving:
        ours = [number for number in (signal.SIGINT, signal.SIGTERM) if _is_received(number)]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        _masks[threading.get_ident()] = mask


def _after_fork_in_parent() -> None:
    if _is_forking():
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, _masks[threading.get_ident()])
        finally:
            del _masks[threading.get_ident()]


def _after_fork_in_child() -> None:
    if _is_forking():
        for number in filter(_is_received, (signal.SIGINT, signal.SIGTERM)):
            signal.signal(number, _under_passes(number, signal.getsignal(number)))
    _receiving.clear()
    _after_fork_in_parent()
    _masks.clear()


def _is_received(number: int) -> bool:
    """Return whether a signal's handler is that of a pass."""
    return isinstance(getattr(signal.getsignal(number), "__self__", None), Interrupts)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
