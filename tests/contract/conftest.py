"""The engines that the contract is tested on, one fixture each."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NOW

from dbbasic_queue import open_queue
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from postgres_server import PostgresServer
    from valkey_server import ValkeyServer

    from dbbasic_queue.engines.protocol import Engine


class Opener:
    """Opens queues of one engine. Each directory has its own jobs; `{}` in `url` stands for it."""

    def __init__(
        self,
        clock: Clock,
        url: str,
        open_url: Callable[..., Engine] = open_queue,
        **options: Any,
    ) -> None:
        self._url = url
        self._open = functools.partial(open_url, clock=clock, **options)

    def __call__(self, directory: Path) -> Engine:
        return self._open(self.url(directory))

    def url(self, directory: Path) -> str:
        """Return the URL with which another process opens the same jobs."""
        return self._url.format(directory)

    def let_dead_workers_expire(self, directory: Path) -> None:
        """Let the time pass after which the jobs of a killed worker are recovered."""


def queue_name(directory: Path) -> str:
    """Return the name of a directory's queue on a server."""
    return "q_" + hashlib.sha1(str(directory).encode(), usedforsecurity=False).hexdigest()[:30]


class PostgresOpener(Opener):
    """Opens queues in PostgreSQL. Each directory has a schema of its own."""

    def __init__(self, clock: Clock, server: PostgresServer) -> None:
        super().__init__(clock, "")
        self._server = server

    def url(self, directory: Path) -> str:
        return self._server.url(queue_name(directory))

    def let_dead_workers_expire(self, directory: Path) -> None:
        table = f"{queue_name(directory)}.procrastinate_workers"
        self._server.execute(
            f"UPDATE {table} SET last_heartbeat = last_heartbeat - interval '31 s'"
        )


class RedisOpener(Opener):
    """Opens queues in Valkey. Each directory has keys of its own."""

    def __init__(self, clock: Clock, server: ValkeyServer) -> None:
        super().__init__(clock, "")
        self._server = server

    def url(self, directory: Path) -> str:
        return self._server.url(queue_name(directory))

    def let_dead_workers_expire(self, directory: Path) -> None:
        key = f"dbbasic_queue:{queue_name(directory)}:alive"
        with self._server.client() as client:
            client.zadd(key, dict.fromkeys(client.zrange(key, 0, -1), 0))


ENGINES: dict[str, set[str]] = {
    "text_file": {"sharing", "durability", "archiving", "due order"},
    "memory": {"sharing", "archiving", "due order"},
    "postgresql": {"sharing", "durability", "archiving", "due order"},
    "redis": {"sharing", "durability", "archiving"},
}
"""The fixture of each engine, and its optional abilities.

- sharing: all queues that a process opens at one place have the same jobs.
- durability: jobs survive the process that enqueued or ran them.
- archiving: `purge` can write an archive.
- due order: of two due jobs, the one that was due first runs first.

`@pytest.mark.needs("sharing")` limits tests to the engines with that ability.
"""


@pytest.fixture
def text_file(clock: Clock) -> Opener:
    return Opener(clock, "file://{}/data/queue.tsv", fsync=False)


@pytest.fixture
def memory(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    monkeypatch.chdir(tmp_path)
    yield Opener(clock, "memory:{}")
    written = {path.name.partition(".")[0] for path in tmp_path.iterdir()}
    assert written <= {"archive"}, "a queue in memory wrote a file"


@pytest.fixture
def postgresql(clock: Clock, postgres: PostgresServer) -> PostgresOpener:
    return PostgresOpener(clock, postgres)


@pytest.fixture
def redis(clock: Clock, valkey: ValkeyServer) -> RedisOpener:
    return RedisOpener(clock, valkey)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "open_at" in metafunc.fixturenames:
        needs = {mark.args[0] for mark in metafunc.definition.iter_markers("needs")}
        engines = [name for name, abilities in ENGINES.items() if needs <= abilities]
        metafunc.parametrize("open_at", engines, indirect=True)


@pytest.fixture
def open_at(request: pytest.FixtureRequest) -> Opener:
    opener: Opener = request.getfixturevalue(request.param)
    return opener


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def queue(open_at: Opener, tmp_path: Path) -> Iterator[Engine]:
    with open_at(tmp_path) as queue:
        yield queue
