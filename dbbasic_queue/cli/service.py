"""`dbbasic-queue worker`: a long-running worker as a service.

- SIGTERM lets the running jobs finish, and ends the program. SIGHUP does so, too, and then starts
  the program again, so that it runs the current code.
- Under systemd (`Type=notify` or `notify-reload`), it reports when it is ready, when it reloads or
  stops, and, with `WatchdogSec=`, that the process is alive: sd_notify(3).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

from dbbasic_queue.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

    from dbbasic_queue.jobqueue import Queue


class Service:
    """Runs the jobs of a queue until a signal ends it. The arguments are those of `Worker`."""

    def __init__(
        self,
        queue: Queue,
        handlers: Any,
        max_attempts: int,
        *,
        skip_unknown: bool,
        workers: int,
    ) -> None:
        self._worker = Worker(
            queue, handlers, max_attempts, skip_unknown=skip_unknown, workers=workers
        )
        self._is_to_reload = False
        self._ended = threading.Event()

    def run(self) -> bool:
        """Run until SIGTERM or SIGHUP; return whether the program is to be started again.

        Ctrl-C raises KeyboardInterrupt. Call it in the main thread.
        """
        signal.signal(signal.SIGHUP, self._reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # see `start_again`
        self._start_watchdog()
        try:
            if self._worker.run_until_stopped(_report_ready):
                self._is_to_reload = False  # SIGTERM wins
        except KeyboardInterrupt:
            self._is_to_reload = False
            raise
        finally:
            self._ended.set()
            if not self._is_to_reload:
                notify("STOPPING=1")
        return self._is_to_reload

    def _reload(self, number: int, frame: FrameType | None) -> None:
        if not self._is_to_reload:
            self._is_to_reload = True
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._worker.stop(0)

    def _start_watchdog(self) -> None:
        """If systemd wants it: report twice as often as it asks for that the process is alive."""
        micros = os.environ.get("WATCHDOG_USEC", "")
        if not micros.isdecimal() or os.environ.get("WATCHDOG_PID", "") not in (
            "",
            str(os.getpid()),
        ):
            return
        if not (pause := int(micros) / 2_000_000):
            return

        def report() -> None:
            while not self._ended.wait(pause):
                notify("WATCHDOG=1")

        threading.Thread(target=report, name="systemd-watchdog", daemon=True).start()


def _report_ready() -> None:
    notify(f"READY=1\nMAINPID={os.getpid()}")


def start_again() -> NoReturn:
    """Replace this process by the same program, with the current code.

    A SIGHUP that arrives before the new program can receive it would kill it: it is blocked until
    then.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def notify(state: str) -> None:
    """Send a state to systemd, if it has started this program and wants to know."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address[0] == "@":  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.connect(address)
            connection.sendall(state.encode())
    except OSError:
        return  # the jobs matter more
