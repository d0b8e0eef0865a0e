"""A queue in Redis or Valkey while workers die, connections break, and the server fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import redis
from contract.conftest import RedisOpener
from helpers import (
    EMPTY,
    NONE,
    NOW,
    at_once,
    environment,
    exit_code,
    job,
    join,
    notes,
    raises,
    server_port,
)
from valkey_server import ValkeyServer

from dbbasic_queue import DuplicateJob, Queue, StoreError, open_queue
from dbbasic_queue.engines import backend, redis_client, rq
from dbbasic_queue.engines.backend import ConnectionLost
from dbbasic_queue.model import states
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def opener(clock: Clock, valkey: ValkeyServer) -> RedisOpener:
    return RedisOpener(clock, valkey)


@pytest.fixture
def url(opener: RedisOpener, tmp_path: Path) -> str:
    return opener.url(tmp_path)


@pytest.fixture
def queue(url: str, clock: Clock) -> Iterator[Queue]:
    with open_queue(url, clock=clock) as queue:
        yield queue


@contextmanager
def server(**settings: Any) -> Iterator[ValkeyServer]:
    """Start a server for one test."""
    started = ValkeyServer(**settings)
    try:
        yield started
    finally:
        started.remove()


def start(code: str, url: str, directory: Path) -> subprocess.Popen[bytes]:
    """Start a process that runs `code`, which uses `queue` and `note`."""
    program = (
        "import os, signal, sys, time\n"
        "from dbbasic_queue import Handler, open_queue\n"
        "from helpers import note\n"
        "queue = open_queue(sys.argv[1])\n"
        f"{code}"
    )
    command = [sys.executable, "-c", program, url]
    return subprocess.Popen(command, cwd=directory, env=environment())


def finish(*processes: subprocess.Popen[bytes]) -> None:
    assert [process.wait(60) for process in processes] == [0] * len(processes)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(60)


# -- workers --


def test_a_job_that_kills_its_workers_fails_when_its_attempts_are_used_up(
    queue: Queue, opener: RedisOpener, url: str, tmp_path: Path, clock: Clock
) -> None:
    clock.now = time.time() + 5
    queue.enqueue("deadly", {}, job_id="one")
    for attempt in (1, 2):
        kill_self = "lambda _: os.kill(os.getpid(), signal.SIGKILL)"
        code = f"queue.now = lambda: {clock.now}\nqueue.process_jobs({{'deadly': {kill_self}}}, 2)"
        assert start(code, url, tmp_path).wait(60) == -9
        assert job(queue, "one")["status"] == "processing"
        assert queue.process_jobs({"deadly": raises()}, 2) == NONE, (
            "its worker still counts as alive"
        )
        opener.let_dead_workers_expire(tmp_path)
        expected = {"recovered": 1} | ({"failed": 1} if attempt == 2 else {})
        assert queue.process_jobs({"deadly": raises()}, 2) == NONE | expected
        clock.now += 1000
    found = job(queue, "one")
    assert (found["status"], found["attempts"]) == ("failed", 2)
    assert queue.process_jobs({"deadly": raises()}, 2) == NONE


def test_the_jobs_of_a_dead_worker_that_were_not_started_are_not_counted(
    queue: Queue, opener: RedisOpener, tmp_path: Path
) -> None:
    ids = queue.enqueue_many("greet", range(5))
    store: Any = queue.store
    jobs = store.backend
    worker = jobs.open_worker("host.1", 2)
    mark = jobs.look(NOW)
    claimed = jobs.claim(worker, ["greet"], 5, NOW, mark=mark, limits={}, skip=())
    assert [row.id for row in claimed] == ids
    opener.let_dead_workers_expire(tmp_path)
    assert [(row.id, started) for row, started in jobs.dead_claims()] == [
        (ids[n], n < 2) for n in range(5)
    ]
    assert jobs.beat(worker) is False
    ran: list[int] = []
    assert queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 3, "recovered": 5}
    assert ran == [2, 3, 4]


def test_a_worker_that_counts_as_dead_records_nothing_after_a_recovery(
    queue: Queue, opener: RedisOpener, url: str, tmp_path: Path, clock: Clock
) -> None:
    def handler(_: Any) -> str:
        opener.let_dead_workers_expire(tmp_path)
        with open_queue(url, clock=clock) as other:
            assert other.process_jobs({"greet": raises()}) == NONE | {"recovered": 1}
        return "too late"

    queue.enqueue("greet", {}, job_id="one")
    assert queue.process_jobs({"greet": handler})["completed"] == 0
    found = job(queue, "one")
    assert (found["status"], found["attempts"], found["result"]) == ("pending", 1, None)


def test_a_limit_of_concurrency_is_exact_for_four_processes(
    queue: Queue, url: str, tmp_path: Path
) -> None:
    queue.now = time.time
    queue.enqueue_many("greet", range(60))
    code = (
        "def handler(_):\n"
        "    note('seen', str(len(list(queue.jobs('processing', 'greet')))))\n"
        "    time.sleep(0.005)\n"
        "while queue.counts()['pending']:\n"
        "    queue.process_jobs({'greet': Handler(handler, concurrency=2)})\n"
    )
    finish(*(start(code, url, tmp_path) for _ in range(4)))
    seen = [int(line) for line in notes(tmp_path / "seen")]
    assert (len(seen), max(seen)) == (60, 2)


def test_a_forked_process_has_connections_of_its_own(queue: Queue) -> None:
    queue.enqueue("greet", {}, job_id="parent")
    readers: list[Any] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            readers.append(queue.get_job("parent"))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(5):
            child = os.fork()
            if not child:
                try:
                    assert job(queue, "parent")["status"] == "pending"
                    queue.enqueue("greet", number, job_id=f"child-{number}")
                    os._exit(0)
                finally:
                    os._exit(1)
            queue.enqueue("greet", number, job_id=f"parent-{number}")
            assert exit_code(child) == 0
    finally:
        stop.set()
        join(thread, "the end of the thread")
    assert queue.counts() == EMPTY | {"pending": 11}
    assert all(found["id"] == "parent" for found in readers)


def test_thousands_of_jobs_become_due_at_once_in_their_order(queue: Queue) -> None:
    ids = queue.enqueue_many("greet", [None] * 2500, NOW + 60)
    ids += queue.enqueue_many("greet", [None] * 2500, NOW + 60)
    store: Any = queue.store
    jobs = store.backend
    worker, mark = jobs.open_worker("host.1", 1), jobs.look(NOW + 60)
    claimed: list[str] = []
    while rows := jobs.claim(worker, ["greet"], 256, NOW + 60, mark=mark, limits={}, skip=()):
        claimed += [row.id for row in rows]
    assert claimed == ids


def test_unclaimed_jobs_go_back_to_their_places(queue: Queue) -> None:
    store: Any = queue.store
    jobs = store.backend
    queue.enqueue_many("greet", range(6))
    one, other = (jobs.open_worker(f"host.{n}", 1) for n in range(2))
    mark = jobs.look(NOW)
    first, second = (
        jobs.claim(worker, ["greet"], 2, NOW, mark=mark, limits={}, skip=())
        for worker in (one, other)
    )
    for rows in (first, second):  # those of the second are later in the queue
        assert (
            jobs.change([backend.Change(row, states.unclaim(row.state)) for row in rows])
            == [True] * 2
        )
    ran: list[int] = []
    queue.process_jobs({"greet": ran.append})
    assert ran == list(range(6))


# -- connections --


@contextmanager
def cut_connections(of: ValkeyServer) -> Iterator[None]:
    """Close all connections of the server, again and again."""
    stop = threading.Event()

    def cut() -> None:
        with of.client() as client:
            while not stop.wait(0.02):
                client.client_kill_filter(_type="normal", skipme=True)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        join(thread, "the end of the thread")


def test_every_job_runs_once_while_connections_are_cut() -> None:
    ran: Counter[str] = Counter()
    with server() as own, open_queue(own.url()) as queue:
        queue.enqueue_many("greet", range(300))
        with cut_connections(own):
            acknowledged = []
            for number in range(300):
                try:
                    acknowledged.append(queue.enqueue("greet", number, job_id=f"mine-{number}"))
                except ConnectionLost:
                    continue

            def handler(number: Any) -> None:
                ran[str(number)] += 1

            def make_passes() -> None:
                left = True
                while left:
                    with suppress(ConnectionLost):  # before it has claimed anything
                        queue.process_jobs({"greet": handler})
                        left = queue.counts()["pending"] > 0

            at_once(*[make_passes] * 3)
        queue.process_jobs({"greet": handler})
        found = {found["id"]: found for found in queue.jobs()}
        assert set(acknowledged) <= set(found)
        assert {job["status"] for job in found.values()} == {"completed"}
        assert {job["attempts"] for job in found.values()} == {1}
        assert sum(ran.values()) == len(found)


class Cutting(redis_client.Client):
    """Breaks the connection after a script was sent, before its reply is read, `cuts` times."""

    cuts = 0

    def _execute(self, *arguments: Any) -> Any:
        reply = super()._execute(*arguments)
        if self.cuts:
            self.cuts -= 1
            raise redis.ConnectionError("cut")
        return reply


@pytest.fixture
def cutting(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(rq, "Client", Cutting)
    with open_queue(url, clock=clock) as queue:
        yield queue


def test_a_change_whose_reply_is_lost_is_made_once(cutting: Any) -> None:
    client = cutting.store.backend._client

    def cut(call: Any) -> Any:
        cutting.get_job("")  # so that the scripts are loaded
        client.cuts = 1
        result = call()
        assert client.cuts == 0
        return result

    cutting.enqueue("greet", {}, job_id="warm")
    assert cut(lambda: cutting.enqueue("greet", 1, job_id="one")) == "one"
    with pytest.raises(DuplicateJob):
        cut(lambda: cutting.enqueue("greet", 1, job_id="one"))
    unique = cut(lambda: cutting.enqueue("greet", 2, unique="pending"))
    assert cutting.enqueue("greet", 2, unique="pending") == unique
    assert len(cut(lambda: cutting.enqueue_many("greet", range(3)))) == 3
    assert cutting.counts() == EMPTY | {"pending": 6}
    assert cut(lambda: cutting.cancel_job("one")) is True
    assert cut(lambda: cutting.pause("greet")) is True
    assert cut(lambda: cutting.resume("greet")) is True


def test_an_outcome_whose_reply_is_lost_twice_counts_as_recorded(cutting: Any) -> None:
    client = cutting.store.backend._client

    def handler(_: Any) -> str:
        client.cuts = 2
        return "done"

    cutting.enqueue("greet", {}, job_id="one")
    assert cutting.process_jobs({"greet": handler}) == NONE | {"completed": 1}
    assert (client.cuts, job(cutting, "one")["result"]) == (0, "done")


def test_a_late_repetition_of_an_older_call_changes_nothing(queue: Queue) -> None:
    store: Any = queue.store
    client = store.backend._client
    assert client.change("replace", 0, "a", b"", b"1", 0, 0) == b"1"
    caller = client._caller
    old = caller.name, caller.number
    assert client.change("replace", 0, "a", b"1", b"", 0, 0) == b"1"
    with pytest.raises(StoreError, match="SUPERSEDED"):
        client.run("replace", *old, 0, "a", b"", b"1", 0, 0)
    assert store.backend.read("a") == b""


# -- the server --


def test_nothing_acknowledged_is_lost_if_the_server_is_killed_during_passes() -> None:
    with server(appendfsync="always") as own, open_queue(own.url()) as queue:
        queue.enqueue_many("greet", range(400))
        ran: Counter[int] = Counter()
        recorded: set[str] = set()
        added: list[str] = []
        may_go_on = threading.Event()

        def handler(number: int) -> None:
            ran[number] += 1
            if sum(ran.values()) == 100:
                may_go_on.set()

        def restart() -> None:
            assert may_go_on.wait(60)
            own.kill()
            with own_data(own):
                time.sleep(0.2)
            own.start()

        def add() -> None:
            for number in range(1000, 1200):
                try:
                    added.append(queue.enqueue("later", number, job_id=f"own-{number}"))
                except ConnectionLost:
                    time.sleep(0.01)

        at_once(
            *[lambda: queue.process_jobs({"greet": handler}, skip_unknown=True)] * 2, restart, add
        )
        queue.process_jobs({"greet": handler}, skip_unknown=True)
        found = {found["id"]: found for found in queue.jobs()}
        recorded = {i for i, found in found.items() if found["status"] == "completed"}
        assert len(recorded) == 400
        assert set(added) <= set(found)
        assert set(ran.values()) == {1}, "a job ran twice, although its outcome was recorded"


@contextmanager
def own_data(own: ValkeyServer) -> Iterator[None]:
    """Check that the killed server has left its append-only file."""
    assert any(own.directory.rglob("*.aof"))
    yield


def test_a_full_server_refuses_new_jobs_and_lets_running_ones_end() -> None:
    with server() as own, open_queue(own.url()) as queue:
        queue.enqueue_many("greet", range(50))
        used = int(own.client().info("memory")["used_memory"])
        own.command("CONFIG", "SET", "maxmemory", used + 400_000)
        added = 0
        with pytest.raises(StoreError, match="out of memory: raise its maxmemory"):
            for _ in range(100):
                queue.enqueue_many("big", ["x" * 20_000] * 10)
                added += 10
        assert queue.counts() == EMPTY | {"pending": 50 + added}
        own.command("CONFIG", "SET", "maxmemory", used)
        with pytest.raises(StoreError, match="out of memory"):
            queue.enqueue("greet", {}, job_id="one")
        with pytest.raises(StoreError, match="out of memory"):
            queue.enqueue("greet", {}, unique="pending")
        assert queue.get_job("one") is None
        assert queue.process_jobs({"greet": raises()}, skip_unknown=True)["completed"] == 50
        assert queue.remove_type("big") == added
        own.command("CONFIG", "SET", "maxmemory", 0)
        assert queue.enqueue("greet", {}, job_id="one") == "one"


def test_many_jobs_are_added_completely_or_not_at_all() -> None:
    with server() as own, open_queue(own.url()) as queue:
        queue.enqueue("greet", {})
        used = int(own.client().info("memory")["used_memory"])
        own.command("CONFIG", "SET", "maxmemory", used + 3_000_000)
        done = 0
        with pytest.raises(StoreError, match="out of memory"):
            for _ in range(20):
                queue.enqueue_many("greet", ["x" * 200] * 1700)
                done += 1700
        assert done
        assert queue.counts() == EMPTY | {"pending": done + 1}


def test_errors_say_what_to_do_and_never_show_a_password() -> None:
    with server(requirepass="s3cret") as own:
        with open_queue(own.url()) as queue:
            queue.enqueue("greet", {})
            assert "s3cret" not in repr(queue) + queue.store.path
        address = own.url().rpartition("@")[2]
        cases = {
            f"redis://{address}": "the server wants a password",
            f"redis://:wr0ng@{address}": "check the user and the password",
            f"redis://nobody:wr0ng@{address}": "check the user and the password",
            own.url().replace("/0", "/99"): "no database of this number",
        }
        for url, advice in cases.items():
            with open_queue(url) as queue, pytest.raises(StoreError, match=advice) as raised:
                queue.enqueue("greet", {})
            assert "s3cret" not in str(raised.value) and "wr0ng" not in str(raised.value)
        own.command("CONFIG", "SET", "min-replicas-to-write", "1")
        with open_queue(own.url()) as queue, pytest.raises(StoreError, match="refuses"):
            queue.enqueue("greet", {})
        own.command("CONFIG", "SET", "min-replicas-to-write", "0")
        own.command("REPLICAOF", "127.0.0.1", "1")
        with (
            open_queue(own.url()) as queue,
            pytest.raises(StoreError, match="this server is a replica"),
        ):
            queue.enqueue("greet", {})
        own.kill()
        with (
            open_queue(own.url()) as queue,
            pytest.raises(ConnectionLost, match="nothing was done"),
        ):
            queue.enqueue("greet", {})


def test_a_password_in_a_message_of_the_server_is_not_shown() -> None:
    with open_queue("redis://u:s3cr%40t@127.0.0.1:1/0") as queue:
        store: Any = queue.store
        for text in ("s3cr@t", "AUTH u s3cr%40t"):
            error = store.backend._client._refused(redis.ResponseError(text))
            assert "s3cr" not in str(error)


def test_a_cluster_is_refused() -> None:
    with (
        server(cluster_enabled="yes", cluster_port=server_port()) as own,
        open_queue(own.url()) as queue,
        pytest.raises(StoreError, match="Redis Cluster isn't supported"),
    ):
        queue.enqueue("greet", {})


def test_a_key_of_another_program_is_left_alone(
    queue: Queue, url: str, valkey: ValkeyServer
) -> None:
    name = url.rpartition("=")[2]
    key = f"dbbasic_queue:{name}:jobs"
    with valkey.client() as client:
        client.set(key, "theirs")
        with pytest.raises(StoreError, match="another program uses the same keys"):
            queue.enqueue("greet", {})
        assert client.get(key) == b"theirs"
