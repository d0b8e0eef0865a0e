"""A terminal for the tests: a program in a pty, and what a person would see.

`pyte` interprets what the program writes. It is a Linux console: what only an xterm can, such as
scrolling by a command, would be lost.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pyte
from helpers import DEADLINE, environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

_PLAIN = {"TERM": "linux", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class Screen:
    """A program that runs in a terminal of its own.

    `raw` is all that it has written, as bytes.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        *,
        columns: int = 80,
        lines: int = 24,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """`more` are environment variables."""
        self.raw = b""
        self._screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self._fd, fd = pty.openpty()
        _set_size(fd, lines, columns)
        env = {k: v for k, v in environment().items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env | _PLAIN | dict(more or {}),
            stdin=fd,
            stdout=fd,
            stderr=fd,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(fd)

    def read(self, seconds: float = 0.0) -> bool:
        """Read what has been written; wait so long for more. Returns False if it has ended."""
        while select.select([self._fd], [], [], seconds)[0]:
            try:
                found = os.read(self._fd, 1 << 16)
            except OSError:  # the program, and all that it has started, has ended
                return False
            if not found:
                return False
            self.raw += found
            self._stream.feed(found)
            seconds = 0.0
        return True

    def lines(self) -> list[str]:
        """Return the lines on the screen, without spaces at their ends."""
        return [line.rstrip() for line in self._screen.display]

    def text(self) -> str:
        """Return what is on the screen."""
        return "\n".join(self.lines()).rstrip()

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._fd, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal."""
        self.read()
        self._screen.resize(lines, columns)
        _set_size(self._fd, lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def wait_for(self, pattern: str, seconds: float = DEADLINE) -> str:
        """Wait until the screen matches a regular expression; return what is on it."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text()):
            assert time.monotonic() < end, f"{pattern!r} isn't on the screen:\n{self.text()}"
            if not self.read(0.05):
                assert re.search(pattern, self.text()), f"it ended:\n{self.text()}"
        return self.text()

    def interrupt(self) -> None:
        """Press Ctrl-C, again if the program goes on: Python may not have read its input yet."""
        for _ in range(5):
            self.press("\x03")
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                continue
            return

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait until the program ends, and read all that it has written; return its exit code."""
        end = time.monotonic() + seconds
        while self.read(0.05) and self.process.poll() is None:
            assert time.monotonic() < end, f"it hasn't ended:\n{self.text()}"
        code = self.process.wait(DEADLINE)
        self.read()
        return code

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        os.close(self._fd)


def command(*arguments: str) -> list[str]:
    """Return a `dbbasic-queue` command."""
    return [sys.executable, "-m", "dbbasic_queue", *arguments]


def shown(arguments: Sequence[str], cwd: Path, columns: int = 80, **more: str) -> str:
    """Return what a command prints on a terminal that is long enough for all of it."""
    with Screen(command(*arguments), cwd, columns=columns, lines=200, more=more) as screen:
        screen.wait()
        return screen.text()


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _set_size(fd: int, lines: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
