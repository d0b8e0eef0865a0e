"""Fixtures: a clock that doesn't move by itself, a queue in its own directory, child processes."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from helpers import Clock, Programs

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgres_server import PostgresServer
    from valkey_server import ValkeyServer

# No deadline: how long an example takes depends on the machine and its load.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

# A shell starts background jobs with these signals ignored, and their children inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.get_closest_marker("slow"))


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
def now_queue(path: Path) -> Iterator[Queue]:
    """A queue that uses the machine's clock, for tests that wait for their jobs."""
    with Queue(path) as queue:
        yield queue


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts processes in the test's directory. Their queue is at `path`."""
    with Programs(tmp_path) as programs:
        yield programs


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory, in memory if possible, for simulated disks: many files, and no need to last."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="power-", dir=where))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, started with the first test that needs it."""
    from postgres_server import PostgresServer

    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey server, started with the first test that needs it."""
    from valkey_server import ValkeyServer

    server = ValkeyServer()
    yield server
    server.remove()
