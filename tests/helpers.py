"""Shared by the tests: a clock, views of a queue and its file, child processes, hostile inputs.

A child process is a program of a few lines that runs in the test's own directory. It reports to the
test by writing to files there, because files survive SIGKILL and can be read at any time. A test
waits for such a file or for the child's exit, never for an amount of time.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import io
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dbbasic_queue
from dbbasic_queue import Queue
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.passes.base import COUNTS
from dbbasic_queue.passes.policies import Policies
from dbbasic_queue.store.history import HEADER as HISTORY_HEADER
from dbbasic_queue.store.textfile import TextFileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from dbbasic_queue.engines.protocol import Engine
    from dbbasic_queue.store.disk.lock import QueueLock

PROJECT = Path(__file__).resolve().parent.parent
HEADER = "id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"
NOW = 1_800_000_000
DAY = 86_400
NONE = dict.fromkeys(COUNTS, 0)
"""What a pass returns if it has run no job."""
EMPTY = dict.fromkeys(STATUSES, 0)
"""What `counts` returns for a queue without jobs."""
TERMS = Policies({}, 3)
"""Three attempts per job, with the default backoff, for every type."""


class Clock:
    """A clock, in Unix seconds, that changes only when a test changes it."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# -- a queue and its file --


@contextmanager
def held(lock: QueueLock) -> Iterator[None]:
    """Hold the lock during a `with` block, as `QueueLock.run` does while it calls a function."""
    with lock._mutex:
        lock._acquire(even_if_moved=False)
        assert lock._file is not None
        try:
            yield
        finally:
            fcntl.flock(lock._file.fd, fcntl.LOCK_UN)


def sibling(path: Path, suffix: str) -> Path:
    """Return the path of another file of the queue, such as "lock" or "journal"."""
    return path.with_name(f"{path.name}.{suffix}")


def job(queue: Engine, job_id: str) -> dict[str, Any]:
    """Return a job with untyped values, so that tests needn't check each one for None."""
    found = queue.get_job(job_id)
    assert found is not None, f"there is no job {job_id}"
    return cast("dict[str, Any]", found)


def counts(queue: Queue) -> dict[str, int]:
    """Count the jobs by status without an index, and with one, which the queue has from now on."""
    found = cast("dict[str, int]", queue.counts())
    queue.store.is_complete()  # builds the index
    statuses = [row.state.status for row in queue.store.rows()]
    assert found == {status: statuses.count(status) for status in found}
    return found


def history(queue: Queue, job_id: str) -> list[dict[str, Any]]:
    """Return a job's history with untyped values, so that tests needn't check each one for None."""
    return cast("list[dict[str, Any]]", queue.history(job_id))


def store_of(queue: Queue) -> TextFileStore:
    """Return the store of a queue that is a text file."""
    assert isinstance(queue.store, TextFileStore)
    return queue.store


def rows(path: Path) -> list[list[str]]:
    """Return the columns of every line after the header, as `awk -F'\\t'` would see them."""
    header, *lines = path.read_bytes().decode().split("\n")
    assert header + "\n" == HEADER
    assert lines.pop() == "", "the last line is not complete"
    return [line.split("\t") for line in lines]


def row(path: Path, job_id: str) -> dict[str, str]:
    """Return a job's columns as they are in the file, without the journal."""
    (columns,) = [columns for columns in rows(path) if columns[0] == job_id]
    return dict(zip(HEADER.split(), columns, strict=True))


def line(job_id: str, **columns: object) -> str:
    """Return a row as another program might write it: pending and due, unless `columns` differ."""
    values: dict[str, object] = dict.fromkeys(HEADER.split(), "")
    values |= {"id": job_id, "type": "greet", "payload": "{}", "status": "pending"}
    values |= {"created_at": NOW, "run_at": NOW, "attempts": 0, **columns}
    if "created_at" not in columns and isinstance(columns.get("run_at"), int):
        values["created_at"] = min(NOW, int(str(columns["run_at"])))  # enqueued before it was due
    return "\t".join(str(value) for value in values.values()) + "\n"


def add_lines(path: Path, *lines: str | bytes) -> None:
    """Append to the file without its lock, as an editor or a careless script does."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        if not file.tell():
            file.write(HEADER.encode())
        file.writelines(text if isinstance(text, bytes) else text.encode() for text in lines)


def add_attempts(path: Path, *attempts: dict[str, Any]) -> None:
    """Append rows to the history, as passes do."""
    path.parent.mkdir(exist_ok=True)
    history = sibling(path, "history")
    with history.open("ab") as file:
        if not file.tell():
            file.write(HISTORY_HEADER)
        for given in attempts:
            values: dict[str, Any] = {"id": "x", "type": "greet", "attempt": 1}
            values |= {"outcome": "completed", "due_at": NOW - 10, "ended_at": f"{NOW - 5}.000"}
            values |= {"seconds": "1.000000", "error": "", "traceback": "", **given}
            file.write("\t".join(map(str, values.values())).encode() + b"\n")


def raising(error: BaseException) -> Callable[[Any], None]:
    """Return a handler that raises the error."""

    def handler(_: Any) -> None:
        raise error

    return handler


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of that size, such as "64k"; skip the test if that isn't allowed."""
    import pytest  # not at the top: child processes don't need it

    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as e:
        pytest.skip(f"cannot mount a tmpfs: {e}")
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs (needs root): {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=60)


def fill(disk: Path) -> None:
    """Use up all free space with a file `filler`; remove that to free it again."""
    with (disk / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)


def python(
    code: str, *arguments: object, flags: tuple[str, ...] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new Python process that can import the package."""
    folders = [str(PROJECT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    return subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, arguments)],
        env=environment | options.pop("env", {}),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        **options,
    )


_WITH_PROCESSES = frozenset(
    [
        "bench",
        "crontab",
        "demo",
        "doctor",
        "edit",
        "init",
        "move",
        "output",
        "run",
        "wait",
        "watch",
        "web",
        "worker",
    ]
)
"""the commands that start programs or wait for signals"""


def run_command(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a `dbbasic-queue` command in a directory, with more environment variables.

    If it starts no programs, it runs in this process: a process of its own would take most of the
    time to start, and there are thousands of commands.
    """
    if _WITH_PROCESSES.isdisjoint(arguments):
        return _run_here(arguments, cwd, {**environment(), **more})
    return subprocess.run(
        [sys.executable, "-m", "dbbasic_queue", *arguments],
        cwd=cwd,
        env={**environment(), **more},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def _run_here(
    arguments: tuple[str, ...], cwd: Path, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    from dbbasic_queue.cli.main import main

    out, err, code = _Stream(), _Stream(), 0
    before, place, stdin = dict(os.environ), os.getcwd(), sys.stdin
    try:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(variables)
        sys.stdin = _Stream()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main(list(arguments))
            except SystemExit as e:
                code = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        sys.stdin = stdin
        os.environ.clear()
        os.environ.update(before)
        os.chdir(place)
    return subprocess.CompletedProcess(arguments, code, out.text(), err.text())


class _Stream(io.TextIOWrapper):
    """A stream in memory, which can be reconfigured like that of a process."""

    def __init__(self) -> None:
        self._content = io.BytesIO()
        super().__init__(self._content, encoding="utf-8", write_through=True)

    def text(self) -> str:
        return self._content.getvalue().decode("utf-8")


# -- handlers and calls --


def raises(*errors: BaseException) -> Callable[[Any], str]:
    """Return a handler that raises one of these per call, and then returns "done"."""
    left = list(errors)

    def handler(_: Any) -> str:
        if left:
            raise left.pop(0)
        return "done"

    return handler


def passes_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function as many decorators do, with `*args` and `**kwargs`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def at_once(*calls: Callable[[], object]) -> None:
    """Make each call in its own thread, all at the same moment. Re-raise the first error."""
    barrier = threading.Barrier(len(calls))
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            barrier.wait(DEADLINE)
            call()
        except BaseException as e:  # noqa: BLE001 - it is raised below
            errors.append(e)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread, call in zip(threads, calls, strict=True):
        join(thread, f"the end of {call}", 4 * DEADLINE)
    if errors:
        raise errors[0]


# -- child processes --

DEADLINE = 30.0
"""How many seconds to wait for a child process before the test fails."""
QUEUE = "data/queue.tsv"

PRELUDE = f"""\
import json, os, signal, sys, time
from pathlib import Path
from dbbasic_queue import Queue
from helpers import note, notes, wait_for, wait_for_notes

# A shell starts background jobs with SIGINT ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
queue = Queue({QUEUE!r})
"""


def wait_for(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Wait until the condition is true. Raises AssertionError with `what` after the deadline."""
    end = time.monotonic() + seconds
    pause = 0.002
    while not condition():
        assert time.monotonic() < end, f"after {seconds:.0f} seconds still waiting for {what}"
        time.sleep(pause)
        pause = min(pause * 1.2, 0.05)  # a long wait leaves the processor to others


def join(thread: threading.Thread, what: str, seconds: float = DEADLINE) -> None:
    """Wait until a thread has ended. Raises AssertionError with `what` after the deadline."""
    thread.join(seconds)
    assert not thread.is_alive(), f"after {seconds:.0f} seconds still waiting for {what}"


def exit_code(pid: int, what: str = "the end of a forked process") -> int:
    """Wait until a child of this process has ended; return its exit code as `Child.wait` does.

    After the deadline it is killed, and AssertionError is raised with `what`.
    """
    codes: list[int] = []

    def has_ended() -> bool:
        ended, status = os.waitpid(pid, os.WNOHANG)
        codes.append(os.waitstatus_to_exitcode(status))
        return bool(ended)

    try:
        wait_for(has_ended, what)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return codes[-1]


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
    """A program that was started in the test's directory. It may have ended."""

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
                start_new_session=True,  # its own process group, which its children share
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
        """Kill it and its children. Called whether the test has passed or failed."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)

    def stop(self, lock: Path) -> None:
        """Send SIGSTOP at a moment when it doesn't hold the queue's lock."""
        end = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < end, "it, or another process, always holds the lock"
            self.signal(signal.SIGSTOP)
            os.waitpid(self.process.pid, os.WUNTRACED)
            if is_free(lock):
                return
            self.signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until it ends; return its exit code, or a signal's number as a negative int."""
        return self.process.wait(DEADLINE)

    def succeed(self) -> str:
        """Wait until it ends, check that the exit code is 0, and return its output."""
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
    """Return environment variables that let a child import this module and the package.

    A DBBASIC_QUEUE_FILE of this process is left out.
    """
    found = [Path(dbbasic_queue.__file__).parents[1], Path(__file__).parent]
    path = [*map(str, found), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {name: text for name, text in os.environ.items() if name != "DBBASIC_QUEUE_FILE"}
    return ours | {"PYTHONPATH": os.pathsep.join(path)}


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Wait until no other test of this machine, in any process or checkout, is in such a block."""
    path = os.path.join(tempfile.gettempdir(), f"dbbasic-queue-test-{name}.lock")
    with open(path, "a", encoding="utf-8") as file:
        wait_for(lambda: try_lock(file.fileno()), f"another test that holds {path}", 800)
        yield


def server_port() -> int:
    """Return a free TCP port of 127.0.0.1 for a server that is restarted on it.

    It is below those that the system gives to clients. Otherwise, while the server is down, a
    client could get the port, or even connect to itself.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def is_free(lock: str | Path) -> bool:
    """Return whether the `flock` of an existing file is free."""
    fd = os.open(lock, os.O_RDWR)
    try:
        return try_lock(fd)
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Acquire the `flock` of an open file, if it is free; return whether it was."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_pipes() -> set[str]:
    """Return the pipe ends that this process has open, each as "descriptor pipe"."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor that `listdir` used
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {end for end in found if " pipe:" in end}


def fork_without_hooks() -> int:
    """Fork like a C library, without Python's fork hooks."""
    return int(ctypes.PyDLL(None).fork())


# -- texts that break careless code: used by the row tests, and as seeds by the fuzzer --

NASTY = [
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\0",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\x9b",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\ufeff",
    "\U000e0001",
    "\ud800",
    "\udcff",
    "\\",
    "\\t",
    "\\x1b",
    "\\ud800",
    "\\U0010ffff",
    "\\U00110000",
    "=cmd()",
    '"',
]
NOT_JSON = ["NaN", "[Infinity]", "-Infinity", "{", "", "'a'", '"\t"', "1 2", "\ufeff1", "01"]
BOMBS = ["[" * 101, "[" * 10**6, '{"a":' * 10**5, "9" * 5000]
"""JSON that must not be decoded: nested too deeply, or with a number that is too long."""
