"""What both kinds of servers have in common when something fails, and URLs that are wrong."""

from __future__ import annotations

import itertools
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from helpers import EMPTY, Clock, job

from dbbasic_queue import Command, Handlers, NotAQueue, Queue, StoreError, Worker, open_queue
from dbbasic_queue.engines.backend import BEAT_SECONDS, ConnectionLost
from dbbasic_queue.passes.ticker import Ticker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from postgres_server import PostgresServer
    from valkey_server import ValkeyServer

    from dbbasic_queue.engines.store import EngineStore

NAMES = itertools.count()


@pytest.fixture(params=["postgres", "valkey"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def queue(server: PostgresServer | ValkeyServer, clock: Clock) -> Iterator[Queue]:
    with open_queue(server.url(f"failures_{next(NAMES)}"), clock=clock) as queue:
        yield queue


@pytest.fixture
def store(queue: Queue) -> EngineStore:
    store: Any = queue.store
    return store  # type: ignore[no-any-return]


def failing(error: Exception, calls: Callable[..., Any], which: Callable[..., bool]) -> Any:
    """Return a function like `calls` that raises the error if `which` returns True."""

    def call(*arguments: Any, **options: Any) -> Any:
        if which(*arguments, **options):
            raise error
        return calls(*arguments, **options)

    return call


def always(*_: object, **__: object) -> bool:
    return True


def in_turn(*answers: bool) -> Callable[..., bool]:
    """Return a function that returns these answers, and then False."""
    left = list(answers)
    return lambda *_, **__: bool(left) and left.pop(0)


def wait_until(condition: Callable[[], bool]) -> bool:
    """Return True as soon as the condition is true, False after 20 seconds."""
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


LOST, REFUSED = ConnectionLost("lost"), StoreError("refused")


# --- URLs


@pytest.mark.parametrize(
    "url",
    [
        " redis://:hunter2@localhost/0",
        "'redis://:hunter2@localhost/0'",
        '"postgresql://u:hunter2@localhost/d"',
        "redis://:hunter2@localhost/0\n",
        "postgresql://u:hunter2@localhost/d\n",
        "postgresql://u:hunter2@hunter2/hunter2@localhost/d",
        "postgresql://u:1/hunter2@localhost/d",
        "redis://:1/hunter2@localhost/0",
        "redis://:1?hunter2@localhost/0",
        "postgresql://u:%hunter2@localhost/d",
        "postgresql+psycopg://u:hunter2@localhost/d",
        "mysql://u:hunter2@localhost/d",
    ],
)
def test_a_url_that_is_wrong_is_neither_shown_nor_taken_for_a_path(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAQueue) as caught:
        open_queue(url).enqueue("greet", {})
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_be_reached_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def count(name: str, connect: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            tries.append(name)
            return connect(*arguments, **options)

        return counted

    monkeypatch.setattr(psycopg, "connect", count("postgres", psycopg.connect))
    connection: Any = redis.Connection
    monkeypatch.setattr(connection, "_connect", count("redis", connection._connect))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        for url in (f"postgresql://u:p@{place}/d", f"redis://{place}"):
            with pytest.raises(StoreError, match=r"nothing was done; is the URL right") as caught:
                open_queue(url).enqueue("greet", {})
            assert caught.value.is_temporary
    assert tries == ["postgres", "redis"]


def test_several_passes_raise_the_error_of_a_server_that_cannot_be_reached() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        queue = open_queue(f"redis://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(StoreError, match="can't be reached"):
            queue.process_jobs({"greet": lambda _: None}, workers=2, linger=1)


# --- passes


def test_news_come_again_after_the_connection_broke(
    queue: Queue, store: EngineStore, server: Any, valkey: ValkeyServer
) -> None:
    queue.enqueue("greet", {})
    news = store.backend.listen()
    try:
        if server is valkey:
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
        else:
            server.cut_connections()
        assert wait_until(news.have_come)  # it doesn't know
        assert wait_until(lambda: not any(news.have_come() for _ in range(5)))
        queue.enqueue("greet", {})
        assert wait_until(news.have_come)
    finally:
        news.close()


def test_a_worker_that_waits_for_its_server_can_be_stopped(
    queue: Queue, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue("greet", {})
    worker = Worker(queue, {"greet": lambda _: None})
    worker.start()
    assert wait_until(lambda: queue.counts()["completed"] == 1)
    looks: list[float] = []

    def look(now: float) -> int:
        looks.append(now)
        raise LOST

    monkeypatch.setattr(store.backend, "look", look)
    assert wait_until(lambda: bool(looks))
    assert worker.stop(5)


def test_a_pass_outlasts_a_lost_connection_while_it_looks_for_schedules(
    queue: Queue, store: EngineStore, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    handlers = Handlers(name="test")
    ran: list[object] = []

    @handlers.handler(every=60)
    def scheduled(_: object) -> None:
        ran.append(None)

    @handlers.handler
    def greet(_: object) -> None:
        clock.now += 60

    queue.enqueue("greet", {})
    which = in_turn(False, True)
    read = failing(LOST, store.read_schedules, which)
    monkeypatch.setattr(store, "read_schedules", read)
    complete = failing(LOST, store.is_complete, in_turn(True))
    monkeypatch.setattr(store, "is_complete", complete)
    done = queue.run_until_complete(handlers)
    assert done["completed"] == 1 + len(ran)


def test_a_job_whose_outcome_is_refused_counts_its_attempt(
    queue: Queue, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = queue.enqueue_many("greet", [1, 2, 3])
    with monkeypatch.context() as patch:
        change = failing(
            REFUSED,
            store.backend.change,
            lambda changes, **_: any(c.state and c.state.status == "completed" for c in changes),
        )
        patch.setattr(store.backend, "change", change)
        with pytest.raises(StoreError, match="refused"):
            queue.process_jobs({"greet": lambda _: None})
    assert store.backend.workers() == []
    done = queue.process_jobs({"greet": lambda _: None})
    assert (done["recovered"], done["completed"]) == (1, 2)
    assert [job(queue, job_id)["attempts"] for job_id in ids] == [1, 1, 1]
    assert job(queue, ids[0])["status"] == "pending"
    assert "died" in [a["outcome"] for a in queue.history(ids[0])]


def test_a_pass_that_fails_at_its_start_leaves_no_worker(
    queue: Queue, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue("greet", {})
    monkeypatch.setattr(store.backend, "look", failing(REFUSED, store.backend.look, always))
    with pytest.raises(StoreError, match="refused"):
        queue.process_jobs({"greet": lambda _: None})
    assert store.backend.workers() == []
    assert queue.counts() == EMPTY | {"pending": 1}


def test_a_worker_lives_on_if_the_server_refuses_a_beat(
    queue: Queue, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[bool] = []

    def handler(_: object) -> None:
        moment = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: moment + BEAT_SECONDS)
        end = time.perf_counter() + 20
        while len(beats) < 2 and time.perf_counter() < end:
            time.sleep(0.01)

    queue.enqueue("greet", {})

    def beat(worker: str) -> bool:
        beats.append(len(beats) > 0)
        if not beats[-1]:
            raise REFUSED
        return original(worker)

    original = store.backend.beat
    monkeypatch.setattr(store.backend, "beat", beat)
    assert queue.process_jobs({"greet": handler})["completed"] == 1
    assert beats[:2] == [False, True]


def test_a_command_gets_the_url_of_the_queue_that_runs_it(
    queue: Queue,
    server: PostgresServer | ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DBBASIC_QUEUE_FILE", str(tmp_path / "other.tsv"))
    handlers = Handlers()
    script = 'test -z "$DBBASIC_QUEUE_FILE" && "$0" -m dbbasic_queue enqueue more 1'
    handlers.add("add", Command(["sh", "-c", script, sys.executable], timeout=60))
    job_id = queue.enqueue("add", {})
    assert queue.process_jobs(handlers)["completed"] == 1, queue.output(job_id)
    assert [job["type"] for job in queue.jobs("pending")] == ["more"]
    assert not (tmp_path / "other.tsv").exists()


def test_a_ticker_goes_on_after_a_temporary_error() -> None:
    ticks: list[Exception] = []

    def function() -> None:
        ticks.append(REFUSED if len(ticks) > 1 else LOST)
        raise ticks[-1]

    ticker = Ticker(function)
    for _ in range(5):
        ticker.tick()
    assert ticks == [LOST, LOST, REFUSED]
