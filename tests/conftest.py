"""Shared by the tests: a clock that the test moves, a queue in its own directory, helpers."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hypothesis
import pytest
from processes import Programs

from dbbasic_queue import Queue
from dbbasic_queue.store.textfile import TextFileStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbbasic_queue.store.disk.lock import QueueLock

pytest_plugins = ["ahead"]

# How long an example takes depends on the machine and its load.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

# A shell starts background programs with Ctrl-C ignored, and their children inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parent.parent
HEADER = "id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"
NOW = 1_800_000_000


class Clock:
    """A time in Unix seconds that changes only when a test changes it."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a queue. Neither the file nor its directory exists yet."""
    return tmp_path / "data" / "queue.tsv"


@pytest.fixture
def queue(path: Path, clock: Clock) -> Iterator[Queue]:
    with Queue(path, clock=clock) as queue:
        yield queue


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts processes in the test's directory. Their queue is at `path`."""
    with Programs(tmp_path) as programs:
        yield programs


@contextmanager
def held(lock: QueueLock) -> Iterator[None]:
    """Hold the lock during a `with` block of a test, as `QueueLock.run` does for a function."""
    with lock._mutex:
        lock._acquire(even_if_moved=False)
        assert lock._file is not None
        try:
            yield
        finally:
            fcntl.flock(lock._file.fd, fcntl.LOCK_UN)


def beside(path: Path, suffix: str) -> Path:
    """Return the path of another file of the queue, such as "lock" or "journal"."""
    return path.with_name(f"{path.name}.{suffix}")


def job(queue: Queue, job_id: str) -> dict[str, Any]:
    """Return a job, its values untyped: which of them are None is what tests ask."""
    found = queue.get_job(job_id)
    assert found is not None, f"there is no job {job_id}"
    return cast("dict[str, Any]", found)


def history(queue: Queue, job_id: str) -> list[dict[str, Any]]:
    """Return a job's history, its values untyped: which of them are None is what tests ask."""
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


def python(
    code: str, *arguments: object, flags: tuple[str, ...] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program in a new Python process that can import the package."""
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
