"""What RQ's own classes and tools see of a queue in Redis or Valkey, and what they can't break."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import rq
from helpers import EMPTY, NONE, NOW, environment, history, job, raises
from rq.job import Job, JobStatus
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from valkey_server import ValkeyServer

from dbbasic_queue import Fail, Handler, NotAQueue, Queue, open_queue
from dbbasic_queue.engines import rq_jobs
from dbbasic_queue.engines.redis_client import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers import Clock
    from redis import Redis

NAMES = itertools.count()


@pytest.fixture
def name() -> str:
    """The name of a queue that no other test has."""
    return f"test_rq-{next(NAMES)}"


@pytest.fixture
def url(name: str, valkey: ValkeyServer) -> str:
    return valkey.url(name)


@pytest.fixture
def queue(url: str, clock: Clock) -> Iterator[Queue]:
    with open_queue(url, clock=clock) as queue:
        yield queue


@pytest.fixture
def redis(valkey: ValkeyServer) -> Iterator[Redis]:
    with valkey.client() as client:
        yield client


class Seen:
    """A queue as RQ's classes see it."""

    def __init__(self, name: str, redis: Redis) -> None:
        self.name = name
        self.redis = redis

    def job(self, job_id: str) -> Job:
        return Job.fetch(rq_jobs.rq_id(self.name, job_id), self.redis, JSONSerializer)

    def queue(self, job_type: str = "greet") -> rq.Queue:
        return rq.Queue(f"{self.name}.{job_type}", self.redis, serializer=JSONSerializer)

    def places(self, job_id: str) -> set[str]:
        """Return where RQ has the job: in its queue, and in which registries."""
        queue, rq_id = self.queue(), rq_jobs.rq_id(self.name, job_id)
        places = {
            "queue": queue.get_job_ids(),
            "scheduled": queue.scheduled_job_registry.get_job_ids(),
            "started": queue.started_job_registry.get_job_ids(),
            "finished": queue.finished_job_registry.get_job_ids(),
            "failed": queue.failed_job_registry.get_job_ids(),
            "canceled": queue.canceled_job_registry.get_job_ids(),
        }
        return {place for place, ids in places.items() if rq_id in ids}

    def status(self, job_id: str) -> tuple[str, set[str]]:
        return str(self.job(job_id).get_status().value), self.places(job_id)


@pytest.fixture
def seen(name: str, redis: Redis) -> Seen:
    return Seen(name, redis)


# -- what RQ sees --


def test_rq_sees_each_change_of_a_job(queue: Queue, seen: Seen, clock: Clock) -> None:
    ids = ("done", "failed", "retried", "cancelled", "later")
    for job_id in ids:
        queue.enqueue("greet", job_id, NOW + 60 if job_id == "later" else None, job_id=job_id)
    assert seen.status("done") == ("queued", {"queue"})
    assert seen.status("later") == ("scheduled", {"scheduled"})
    assert queue.cancel_job("cancelled")
    assert seen.status("cancelled") == ("canceled", {"canceled"})
    running = []

    def handler(job_id: str) -> str:
        running.append(seen.status(job_id))
        if job_id == "failed":
            raise Fail("no such mailbox")
        if job_id == "retried":
            raise ValueError("try later")
        return "hello"

    queue.process_jobs({"greet": handler})
    assert running == [("started", {"started"})] * 3
    assert seen.status("done") == ("finished", {"finished"})
    assert seen.status("failed") == ("failed", {"failed"})
    assert seen.status("retried") == ("scheduled", {"scheduled"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RQ deprecates what its own tools still use
        assert seen.job("done").result == "hello"
        assert seen.job("failed").exc_info == "no such mailbox"
    assert seen.job("done").ended_at is not None
    assert queue.requeue("failed", NOW)
    assert queue.run_now("later") and queue.run_now("retried")
    assert seen.queue().count == 0
    clock.now += 1
    assert queue.process_jobs({}, skip_unknown=True) == NONE
    assert seen.queue().count == 3
    assert {seen.status(i)[1].pop() for i in ("failed", "later", "retried")} == {"queue"}
    queue.remove_type("greet")
    assert [seen.places(job_id) for job_id in ids] == [set()] * 5
    assert not any(Job.exists(rq_jobs.rq_id(seen.name, i), seen.redis) for i in ids)


def test_nothing_is_left_of_removed_jobs(queue: Queue, seen: Seen, clock: Clock) -> None:
    queue.enqueue_many("greet", range(20))
    queue.enqueue("greet", {}, NOW + 60)
    ends = iter([Fail("no"), ValueError("later")])
    queue.process_jobs({"greet": raises(*ends)})
    queue.remove_type("greet")
    keys = {key.decode() for key in seen.redis.scan_iter(f"*{seen.name}*")}
    prefix = f"dbbasic_queue:{seen.name}:"
    left = {key.removeprefix(prefix) for key in keys}
    assert {key for key in left if not key.startswith("call:")} == {
        *("meta", "types", "history"),
        "values",  # the server's settings that were warned about
    }
    assert queue.counts() == EMPTY


def test_a_stopped_job_is_shown_as_stopped(queue: Queue, seen: Seen) -> None:
    queue.enqueue("greet", {}, job_id="one")
    queue.process_jobs({"greet": lambda _: (queue.stop_job("one"), raises(ValueError())({}))})
    assert seen.status("one") == ("stopped", {"canceled"})


def test_a_job_is_described_and_kept_until_it_is_removed(queue: Queue, seen: Seen) -> None:
    queue.enqueue("greet", {"to": "ada"}, job_id="a.b_c-d")
    found = seen.job("a.b_c-d")
    assert found.description == "greet a.b_c-d"
    assert (found.timeout, found.result_ttl, found.failure_ttl) == (-1, -1, -1)
    assert (found.args, found.func_name) == (
        ["greet", "a.b_c-d"],
        "dbbasic_queue.engines.rq_jobs.run",
    )
    queue.process_jobs({"greet": raises()})
    assert seen.redis.ttl(found.key) == -1
    assert seen.status("a.b_c-d") == ("finished", {"finished"})


def test_the_hash_of_a_job_has_the_fields_that_rq_gives_it(queue: Queue, seen: Seen) -> None:
    queue.enqueue_many("greet", range(2))
    for found in queue.jobs():
        ours = seen.job(found["id"])
        theirs = Job.create(
            rq_jobs.run,
            args=("greet", found["id"]),
            id=ours.id,
            connection=seen.redis,
            serializer=JSONSerializer,
            origin=seen.queue().name,
            description=f"greet {found['id']}",
            timeout=-1,
            result_ttl=-1,
            failure_ttl=-1,
            status=JobStatus.QUEUED,
        )
        theirs.created_at, theirs.enqueued_at = ours.created_at, ours.enqueued_at
        assert ours.enqueued_at is not None
        theirs.save()
        theirs = seen.job(found["id"])
        assert {k: v for k, v in ours.to_dict().items() if k != "data"} == {
            k: v for k, v in theirs.to_dict().items() if k != "data"
        }
        assert ours.data == theirs.data
    assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 2}


def test_rq_sees_a_worker_while_it_lives(queue: Queue, seen: Seen) -> None:
    queue.enqueue("greet", {}, job_id="one")
    workers: list[Any] = []
    queue.process_jobs(
        {"greet": lambda _: workers.extend(rq.Worker.all(queue=seen.queue()))}, linger=0
    )
    (worker,) = workers
    assert worker.get_state() == "busy"
    assert worker.queue_names() == [f"{seen.name}.greet"]
    assert f"{worker.hostname}.{worker.pid}" == history(queue, "one")[0]["worker"]
    assert rq.Worker.all(queue=seen.queue()) == []


def test_rq_info_shows_the_jobs(queue: Queue, seen: Seen, url: str) -> None:
    queue.enqueue_many("greet", range(3))
    queue.process_jobs({"greet": raises(Fail("no"))})
    queue.enqueue_many("greet", range(4))
    done = subprocess.run(
        [sys.executable, "-m", "rq.cli", "info", "--raw", "-u", url.partition("?")[0]],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
        env=environment(),
    )
    expected = f"queue {seen.name}.greet 4, 0 executing, 2 finished, 1 failed"
    assert expected in done.stdout.splitlines()


# -- what RQ's own tools do --


def run_rq_worker(url: str, name: str, *options: str) -> str:
    address = url.partition("?")[0]
    done = subprocess.run(
        [sys.executable, "-m", "rq.cli", "worker", "-b", "-u", address, *options, f"{name}.greet"],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        env=environment(),
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("options", [(), ("--serializer", "rq.serializers.JSONSerializer")])
def test_rqs_own_worker_runs_no_job_and_loses_none(
    queue: Queue, seen: Seen, url: str, clock: Clock, options: tuple[str, ...]
) -> None:
    ids = queue.enqueue_many("greet", range(3))
    later = queue.enqueue("greet", 3, NOW + 60)
    output = run_rq_worker(url, seen.name, *options)
    if options:
        assert "run the job with process_jobs" in output
    assert seen.queue().count == 0
    before = list(queue.jobs())
    assert [found["status"] for found in before] == ["pending"] * 4
    ran: list[int] = []
    assert queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 3}
    assert ran == [0, 1, 2]
    assert [seen.status(i) for i in ids] == [("finished", {"finished"})] * 3
    clock.now += 60
    assert queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 1}
    assert job(queue, later)["attempts"] == 1


def test_a_job_that_rq_requeues_is_requeued(queue: Queue, seen: Seen) -> None:
    queue.enqueue("greet", {}, job_id="one")
    queue.process_jobs({"greet": raises(Fail("no"))})
    seen.queue().failed_job_registry.requeue(rq_jobs.rq_id(seen.name, "one"))
    assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
    assert (job(queue, "one")["attempts"], seen.status("one")) == (1, ("finished", {"finished"}))


def test_a_job_that_rq_cancels_or_deletes_never_runs(
    queue: Queue, seen: Seen, clock: Clock
) -> None:
    for job_id in ("kept", "cancelled", "deleted"):
        for run_at in (None, NOW + 60):
            queue.enqueue("greet", job_id, run_at, job_id=f"{job_id}{run_at or ''}")
    for end in ("", f"{NOW + 60}"):
        seen.job(f"cancelled{end}").cancel()
        seen.job(f"deleted{end}").delete()
    clock.now += 60
    ran: list[str] = []
    assert queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 2}
    assert ran == ["kept", "kept"]
    assert queue.counts() == EMPTY | {"completed": 2, "cancelled": 2}
    assert job(queue, "cancelled")["error"] == "Cancelled by user"
    assert queue.run_until_complete({}) == NONE, "the deleted jobs count as pending"


def test_an_id_whose_job_rq_has_deleted_can_be_used_again(queue: Queue, seen: Seen) -> None:
    queue.enqueue("greet", 1, job_id="one")
    assert queue.enqueue("greet", 1, unique="pending") == "one"
    seen.job("one").delete()
    assert queue.get_job("one") is None
    assert queue.enqueue("greet", 1, unique="pending") != "one"
    queue.enqueue("greet", 2, job_id="one")
    ran: list[int] = []
    assert queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 2}
    assert ran == [1, 2]


def test_a_job_that_rqs_scheduler_moves_runs_when_it_is_due(
    queue: Queue, seen: Seen, clock: Clock
) -> None:
    clock.now = int(time.time()) - 100
    queue.enqueue("greet", {}, clock.now + 50, job_id="one")
    scheduler: Any = RQScheduler([seen.queue()], seen.redis, serializer=JSONSerializer)
    scheduler.acquire_locks()
    scheduler.enqueue_scheduled_jobs()
    scheduler.release_locks()
    assert seen.places("one") == {"queue"}
    assert queue.process_jobs({"greet": raises()}) == NONE, "it ran before it was due"
    clock.now += 50
    assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
    assert seen.status("one") == ("finished", {"finished"})


def test_a_running_job_that_rq_deletes_leaves_nothing(queue: Queue, seen: Seen) -> None:
    queue.enqueue("greet", {}, job_id="one")
    queue.process_jobs({"greet": lambda _: seen.job("one").delete()})
    queue.enqueue("greet", {}, job_id="two")
    limited = {"greet": Handler(raises(), concurrency=1)}
    assert queue.process_jobs(limited) == NONE | {"completed": 1}
    assert seen.queue().started_job_registry.count == 0
    assert queue.run_until_complete({}) == NONE


def test_looking_at_the_registries_moves_no_job(queue: Queue, seen: Seen) -> None:
    queue.enqueue_many("greet", range(4))
    found: list[int] = []

    def handler(number: int) -> None:
        rq.registry.clean_registries(seen.queue())
        found.append(seen.queue().started_job_registry.count)
        if number == 3:
            raise Fail("no")

    queue.process_jobs({"greet": handler})
    rq.registry.clean_registries(seen.queue())
    assert found[0] == 1
    assert (seen.queue().finished_job_registry.count, seen.queue().failed_job_registry.count) == (
        3,
        1,
    )


# -- ids and URLs --


def test_no_two_ids_have_the_same_id_in_rq() -> None:
    names = [
        "".join(letters) for n in range(1, 6) for letters in itertools.product("a._-", repeat=n)
    ]
    queues = [name for name in names if "." not in name and len(name) < 4]
    found = {rq_jobs.rq_id(queue, name): name for queue in queues for name in names}
    assert len(found) == len(queues) * len(names)
    assert all(rq_jobs.own_id(rq_id) == name for rq_id, name in found.items())
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", rq_id) for rq_id in found)


def test_jobs_of_two_queues_can_have_the_same_id(queue: Queue, clock: Clock, url: str) -> None:
    with open_queue(f"{url}_", clock=clock) as other:
        queue.enqueue("greet", 1, job_id="a.b")
        other.enqueue("greet", 2, job_id="a.b")
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
        assert job(other, "a.b")["status"] == "pending"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://h/3?queue=dbbasic_queue", "redis://h:6379/3"),
        ("redis://u:p%40q@h:7?queue=a-B_1", "redis://u@h:7/0?queue=a-B_1"),
        ("valkeys://:p@h/1?password=q&ssl_cert_reqs=none", "rediss://h:6379/1?ssl_cert_reqs=none"),
        ("redis://[::1]:7/0", "redis://[::1]:7/0"),
        ("unix:///run/a.sock?db=2&password=p", "unix:///run/a.sock?db=2"),
        ("unix://u:p@/run/a.sock", "unix://u@/run/a.sock"),
    ],
)
def test_a_queues_name_is_its_url_without_the_password(url: str, name: str) -> None:
    assert parse_url(url).name == name
    assert open_queue(url).path == name


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@h/0?queue=",
        "redis://:secret@h/0?queue=a.b",
        f"redis://:secret@h/0?queue={'a' * 65}",
        "redis://:secret@h:port/0",
        "redis://:secret@h/zero",
        "redis://:secret@h/0?decode_responses=yes",
        "redis://:secret@h/0?retry_on_timeout=yes",
        "redis://:secret@h/0?socket_timeout=secret",
        "redis://:secret@h/0?nonsense=secret",
        "redis://:secret@h/0?queue",
    ],
)
def test_an_invalid_url_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(NotAQueue) as raised:
        open_queue(url)
    assert "secret" not in str(raised.value)


# -- one test that other settings are noticed --


def test_settings_that_could_lose_jobs_are_named(tmp_path: Path) -> None:
    server = ValkeyServer(appendfsync="always")
    try:
        backend: Any = open_queue(server.url()).store
        assert backend.backend.warnings() == []
        server.command("CONFIG", "SET", "appendfsync", "everysec")
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        one, two = backend.backend.warnings()
        assert "appendfsync is everysec" in one and "maxmemory-policy is allkeys-lru" in two
        server.command("CONFIG", "SET", "appendonly", "no")
        assert "appendonly isn't yes" in backend.backend.warnings()[0]
        server.command("ACL", "SETUSER", "default", "-config")
        (unknown,) = backend.backend.warnings()
        assert "it is unknown whether" in unknown
    finally:
        server.remove()
