"""SIGTERM and Ctrl-C while a pass runs.

`signal` takes longer to load than an idle pass, which needs none of it: it is imported where the
signals are received.
"""

from __future__ import annotations

import os
import threading

from dbbasic_queue.loading import loading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any


class Interrupts:
    """Tells a pass that the program is asked to end.

    The first SIGTERM lets the job in hand finish; Ctrl-C, or a second signal, interrupts it.
    Outside of a handler both only end the pass after what it is doing. Handlers that the program
    has installed itself are left alone, and so is every thread but the main one.

    In one of several forked passes (`supervisor` is the process that forked them) a second
    SIGTERM says nothing new, for it may have been sent to both; and the supervisor's death is
    like the first.
    """

    def __init__(self, supervisor: int = 0) -> None:
        self.received: list[int] = []
        self.in_handler = False
        self.cancelling = False
        self._supervisor = supervisor
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        with loading:
            import signal

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Give the signals back to whoever had them before."""
        import signal

        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        import signal

        if os.getpid() != self._process:  # a child that a handler has forked: as if we were not
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)
            return
        self.stop(number)
        if self.in_handler and self.at_once():
            raise KeyboardInterrupt

    def asked(self) -> bool:
        """Tell whether the pass is to end."""
        if self._supervisor and not self.received and os.getppid() != self._supervisor:
            self.stop()
        return bool(self.received)

    def at_once(self) -> bool:
        """Tell whether the job in hand is to be interrupted, too."""
        import signal

        return signal.SIGINT in self.received or (len(self.received) > 1 and not self._supervisor)

    def caused(self, error: BaseException) -> bool:
        """Tell whether what a handler raised is our doing, not its own."""
        return self.cancelling or (isinstance(error, KeyboardInterrupt) and bool(self.received))

    def stop(self, number: int = 0) -> None:
        """Ask the pass to end after the job in hand; safe from any thread."""
        self.received.append(number)

    def pass_on(self) -> None:
        """After the pass: end the program as the signal asked."""
        import signal

        if signal.SIGINT in self.received:
            raise KeyboardInterrupt
        for number in self.received:
            if number:
                raise SystemExit(128 + number)
