"""Real child processes for tests that race and kill: start, wait, signal, clean up.

A child is a program of a few lines that runs in the test's own directory. It reports to the test by
writing to files there, because files survive SIGKILL and nobody has to read them in time. A test
waits for such a file or for the child's end, never for an amount of time.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import dbbasic_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

DEADLINE = 30.0
QUEUE = "data/queue.tsv"

PRELUDE = f"""\
import json, os, signal, sys, time
from pathlib import Path
from dbbasic_queue import Queue
from processes import note, notes, wait_for, wait_for_notes

# A shell starts background jobs with SIGINT ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
queue = Queue({QUEUE!r})
"""


def wait_for(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Wait until the condition is true. Raises AssertionError with `what` after the deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds:.0f} seconds still waiting for {what}"
        time.sleep(0.002)


def note(file: str | Path, text: str) -> None:
    """Append one line to a file with a single write, so concurrent writers lose no line."""
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def notes(file: str | Path) -> list[str]:
    """Return the complete lines of a file that `note` writes; [] if there is no file."""
    try:
        return Path(file).read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []


def wait_for_notes(file: str | Path, count: int) -> None:
    """Wait until the file has that many lines."""
    wait_for(lambda: len(notes(file)) >= count, f"{count} lines in {Path(file).name}")


class Child:
    """A program started in the test's directory; it may have ended."""

    def __init__(
        self,
        command: list[str],
        directory: Path,
        name: str,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.output = directory / f"{name}.out"
        self.errors = directory / f"{name}.err"
        # Files, not pipes: a pipe stays open as long as a grandchild holds it.
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment() if env is None else env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                pass_fds=pass_fds,
                start_new_session=True,  # a process group of its own, with its children
            )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it as the kernel does when memory is short. Does nothing if it has ended."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def clean_up(self) -> None:
        """Kill it with its children; called however the test has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)

    def stop(self, lock: Path) -> None:
        """SIGSTOP it at a moment when it doesn't hold the queue's lock."""
        while True:
            self.signal(signal.SIGSTOP)
            os.waitpid(self.process.pid, os.WUNTRACED)
            if is_free(lock):
                return
            self.signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait for its end; return its exit code, or a signal's number as a negative int."""
        return self.process.wait(DEADLINE)

    def succeed(self) -> str:
        """Wait for its end, check that the exit code is 0, and return its output."""
        code = self.wait()
        text = self.errors.read_text(encoding="utf-8")
        assert code == 0, f"exit code {code}: {text}"
        return self.output.read_text(encoding="utf-8").strip()


class Programs:
    """Starts programs in one directory, and kills them at the end of the `with` block."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[Child] = []

    def start(self, source: str, *arguments: str) -> Child:
        """Start a program: PRELUDE, then `source`, with these arguments."""
        name = f"program-{len(self.children)}"
        file = self.directory / f"{name}.py"
        file.write_text(PRELUDE + textwrap.dedent(source), encoding="utf-8")
        child = Child([sys.executable, str(file), *arguments], self.directory, name)
        self.children.append(child)
        return child

    def run(self, source: str, *arguments: str) -> str:
        """Run a program, check that it succeeds, and return its output."""
        return self.start(source, *arguments).succeed()

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        for child in self.children:
            child.clean_up()


def environment() -> dict[str, str]:
    """Return environment variables with which a child finds this module and the package."""
    found = [Path(dbbasic_queue.__file__).parents[1], Path(__file__).parent]
    path = [*map(str, found), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {name: text for name, text in os.environ.items() if name != "DBBASIC_QUEUE_FILE"}
    return ours | {"PYTHONPATH": os.pathsep.join(path)}


def is_free(lock: str | Path) -> bool:
    """Return whether the `flock` of an existing file is free."""
    fd = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def open_pipes() -> set[str]:
    """Return the ends of pipes that this process has open: descriptor and pipe, in a string."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor that `listdir` used
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {end for end in found if " pipe:" in end}


def fork_without_hooks() -> int:
    """Fork as a C library does: without Python's fork hooks."""
    return int(ctypes.PyDLL(None).fork())
