"""The registry: how handlers are declared, found, called and enqueued."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NONE, NOW, PROJECT, Clock, job, passes_on

import dbbasic_queue.queue
from dbbasic_queue import (
    Backoff,
    DuplicateJob,
    Handler,
    Handlers,
    InvalidHandlers,
    InvalidJob,
    Job,
    Queue,
    QueueError,
    Worker,
    open_queue,
    testing,
)

if TYPE_CHECKING:
    from pathlib import Path

REGISTRIES: list[Handlers] = []


@pytest.fixture
def jobs(queue: Queue) -> Handlers:
    return Handlers(queue=queue)


def test_a_function_is_registered_under_its_name_or_the_one_given(
    jobs: Handlers, queue: Queue
) -> None:
    @jobs.handler
    def plain(payload: int) -> int:
        return payload + 1

    @jobs.handler()
    def empty(payload: int) -> int:
        return payload + 2

    @jobs.handler("mail:send", max_attempts=5, backoff=Backoff(first=2))
    def send(payload: int) -> int:
        return payload + 3

    @jobs.handler(max_attempts=2)
    def own_policy(payload: int) -> int:
        return payload + 4

    assert list(jobs) == ["plain", "empty", "mail:send", "own_policy"]
    assert len(jobs) == 4 and "send" not in jobs
    assert [jobs[name].max_attempts for name in jobs] == [None, None, 5, 2]
    ids = [queue.enqueue(name, 10) for name in jobs]
    assert queue.process_jobs(jobs) == NONE | {"completed": 4}
    assert [job(queue, job_id)["result"] for job_id in ids] == [11, 12, 13, 14]


def test_a_registered_function_can_still_be_called_directly(jobs: Handlers) -> None:
    @jobs.handler("mail:send")
    def send(payload: Any, job: Job | None = None, *, loud: bool = False) -> Any:
        """Send it."""
        return payload, job, loud

    assert send({"to": "ada"}, loud=True) == ({"to": "ada"}, None, True)
    assert (send.__name__, send.__doc__, send.type) == ("send", "Send it.", "mail:send")
    assert send.__wrapped__("p") == ("p", None, False)


def test_a_registered_function_can_receive_the_job(jobs: Handlers, queue: Queue) -> None:
    @jobs.handler
    def look(payload: Any, job: Job) -> str:
        return job.id

    job_id = look.enqueue()
    queue.process_jobs(jobs)
    assert job(queue, job_id)["result"] == job_id


def test_a_policy_declared_in_the_registry_is_used(
    jobs: Handlers, queue: Queue, clock: Clock
) -> None:
    @jobs.handler(max_attempts=2, backoff=Backoff(first=5, factor=1))
    def fail(_: Any) -> None:
        raise ValueError("no")

    job_id = fail.enqueue()
    assert queue.process_jobs(jobs, max_attempts=1) == NONE | {"retried": 1}
    assert job(queue, job_id)["run_at"] == NOW + 5
    clock.now += 5
    assert queue.process_jobs(jobs, max_attempts=1) == NONE | {"failed": 1}


def test_registering_a_type_twice_is_refused_and_the_first_handler_stays(
    jobs: Handlers,
) -> None:
    first = jobs.handler("greet")(len)
    with pytest.raises(InvalidHandlers, match="registered twice"):
        jobs.handler("greet")(print)
    assert jobs["greet"] is first
    jobs.handler("Greet")(print)


def test_case_matters_unless_ignore_case_is_set(queue: Queue) -> None:
    exact, loose = Handlers(), Handlers(ignore_case=True)
    exact.handler("Greet")(str)
    loose.handler("Greet")(str)
    assert exact.get("greet") is None and "Greet" in exact
    assert loose.get("gREET") is loose["Greet"]
    with pytest.raises(InvalidHandlers, match="registered twice"):
        loose.handler("greet")(len)
    queue.enqueue("GREET", {})
    assert queue.process_jobs(exact, skip_unknown=True) == NONE
    assert queue.process_jobs(loose, skip_unknown=True) == NONE | {"completed": 1}


def test_a_limit_holds_for_any_spelling_of_the_type(queue: Queue, path: Path) -> None:
    loose = Handlers(ignore_case=True)
    overlapping: list[dict[str, int]] = []

    @loose.handler("Greet", concurrency=1)
    def greet(payload: object) -> None:
        with Queue(path, clock=queue.now) as other:
            overlapping.append(other.process_jobs(loose))

    queue.enqueue_many("gREET", [1, 2])
    assert queue.process_jobs(loose) == NONE | {"completed": 2}
    assert overlapping == [NONE, NONE]


def test_a_registered_function_is_enqueued_under_its_type(jobs: Handlers, queue: Queue) -> None:
    send = jobs.handler("mail:send")(print)
    job_id = send.enqueue({"to": "ada"}, NOW + 60, job_id="once")
    found = job(queue, job_id)
    assert (found["id"], found["type"], found["payload"]) == ("once", "mail:send", {"to": "ada"})
    assert found["run_at"] == NOW + 60
    with pytest.raises(DuplicateJob):
        send.enqueue(job_id="once")
    with pytest.raises(InvalidJob):
        send.enqueue({"bad": object()})


def test_without_a_queue_of_its_own_a_registry_enqueues_into_the_default_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Handlers().handler("send")(print)
    monkeypatch.setattr(dbbasic_queue.queue, "QUEUE_FILE", str(path))
    job_id = send.enqueue({"to": "ada"})
    with Queue(path) as queue:
        assert job(queue, job_id)["type"] == "send"


def test_a_plain_dict_can_mix_handlers_and_functions(jobs: Handlers, queue: Queue) -> None:
    registered = jobs.handler("other")(len)
    handlers: dict[str, Any] = {"a": Handler(len, max_attempts=1), "b": len, "c": registered}
    for name in handlers:
        queue.enqueue(name, [1, 2])
    assert queue.process_jobs(handlers) == NONE | {"completed": 3}


def test_a_function_can_be_registered_under_two_types(jobs: Handlers, queue: Queue) -> None:
    @jobs.handler("loud")
    @jobs.handler("quiet")
    def greet(payload: Any, job: Job) -> str:
        return job.type

    ids = [queue.enqueue(name, {}) for name in ("loud", "quiet")]
    queue.process_jobs(jobs)
    assert [job(queue, job_id)["result"] for job_id in ids] == ["loud", "quiet"]


@pytest.mark.parametrize("name", ["", "a b", "a\tb", "x" * 101, 5])
def test_a_name_that_cannot_be_a_type_is_refused(jobs: Handlers, name: Any) -> None:
    with pytest.raises(InvalidHandlers, match="job type"):
        jobs.handler(name)(print)
    assert len(jobs) == 0


@pytest.mark.parametrize("function", [lambda _: None, functools.partial(print)])
def test_a_function_whose_name_cannot_be_a_type_needs_one(jobs: Handlers, function: Any) -> None:
    with pytest.raises(InvalidHandlers, match="@handler"):
        jobs.handler(function)
    jobs.handler("named")(function)


def test_an_invalid_policy_is_refused_and_nothing_is_registered(jobs: Handlers) -> None:
    with pytest.raises(InvalidHandlers):
        jobs.handler("greet", max_attempts=0)(print)
    with pytest.raises(TypeError, match="max_attempt"):
        jobs.handler("greet", max_attempt=3)(print)  # type: ignore[call-overload]
    with pytest.raises(InvalidHandlers, match="can't be called"):
        jobs.handler("greet")("print")  # type: ignore[arg-type]
    assert len(jobs) == 0


def test_a_registry_can_only_be_used_in_passes_of_its_own_queue(
    jobs: Handlers, queue: Queue, tmp_path: Path, path: Path
) -> None:
    jobs.handler("greet")(len).enqueue("ada")
    (tmp_path / "link").symlink_to(path.parent)
    with Queue(tmp_path / "other.tsv") as other:
        other.enqueue("greet", "eve")
        for refused in (other.process_jobs, other.run_until_complete, partial(Worker, other)):
            with pytest.raises(InvalidHandlers, match=rf"enqueues into {path}, and this pass runs"):
                refused(jobs)
        assert other.counts()["pending"] == 1
    memory: Any = open_queue("memory:")
    with pytest.raises(InvalidHandlers, match="enqueues into memory:"):
        queue.process_jobs(Handlers(queue=memory))
    with pytest.raises(InvalidHandlers, match="the jobs of memory:"):
        open_queue("memory:").process_jobs(Handlers(queue=memory))
    memory.process_jobs(Handlers(queue=memory))
    with Queue(tmp_path / "link" / path.name, clock=queue.now) as same:
        assert same.process_jobs(jobs) == NONE | {"completed": 1}


@pytest.mark.parametrize("only", [False, True])
def test_a_handler_registered_during_a_pass_is_used_from_then_on(
    jobs: Handlers, queue: Queue, clock: Clock, only: bool
) -> None:
    first = queue.enqueue("late", "ada")
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        clock.now += 300
        if len(sleeps) == 1:
            jobs.handler("late")(len)
        if len(sleeps) > 5:
            raise TimeoutError

    with pytest.MonkeyPatch.context() as patch, suppress(TimeoutError):
        patch.setattr(
            "dbbasic_queue.passes.sequential.time",
            SimpleNamespace(sleep=sleep, monotonic=time.monotonic),
        )
        queue.process_jobs(jobs, skip_unknown=only, linger=60)
    found = job(queue, first)
    assert (found["status"], found["result"]) == ("completed", 3)
    assert found["attempts"] == (1 if only else 2)


# --- modules that are loaded twice


def test_a_reloaded_module_replaces_its_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: Handlers, queue: Queue
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code = "{0}from test_registry import REGISTRIES\n{0}@REGISTRIES[-1].handler\n{0}def greet(_):\n"
    file = tmp_path / "reloaded_tasks.py"
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    REGISTRIES.append(jobs)
    file.write_text(code.format("") + "    return 'before'\n")
    tasks = importlib.import_module("reloaded_tasks")
    file.write_text("# One more line.\n" + code.format("") + "    return 'after it'\n")
    importlib.reload(tasks)
    assert jobs["greet"] is tasks.greet and len(jobs) == 1
    job_id = queue.enqueue("greet", {})
    queue.process_jobs(jobs)
    assert job(queue, job_id)["result"] == "after it"

    file.write_text(2 * (code.format("") + "    return 'twice'\n"))
    with pytest.raises(InvalidHandlers, match="registered twice"):
        importlib.reload(tasks)


def test_a_notebook_cell_that_runs_again_replaces_its_handler(jobs: Handlers) -> None:
    cells = {"jobs": jobs, "__name__": "__main__"}
    for number, code in enumerate(("1", "1", "\n\n2")):
        cell = f"@jobs.handler\ndef greet(_):\n    return {code.strip()}\n"
        exec(compile("\n" * code.count("\n") + cell, f"<cell {number}>", "exec"), cells)
    assert jobs["greet"](None) == 2


def test_inner_functions_and_lambdas_do_not_replace_each_other(
    jobs: Handlers,
) -> None:
    def make(number: int) -> None:
        @jobs.handler
        def greet(_: Any) -> int:
            return number

    make(1)
    with pytest.raises(InvalidHandlers, match="registered twice"):
        make(2)
    jobs.handler("short")(lambda _: 1)
    with pytest.raises(InvalidHandlers, match="registered twice"):
        jobs.handler("short")(lambda _: 2)


# --- in other processes

POOLED = """
import multiprocessing, sys
from dbbasic_queue import Handler, Handlers, Queue

queue = Queue("queue.tsv", fsync=False)
jobs = Handlers(queue=queue)

@jobs.handler
def square(n):
    return n * n

@jobs.handler
def squares(numbers):
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        return pool.map(square, numbers)

def look(given):
    queue, jobs, handler = given
    queue.enqueue("square", 5)
    return [queue.path, sorted(jobs), handler(3), queue.process_jobs(jobs)["completed"]]

if __name__ == "__main__":
    job_id = squares.enqueue([1, 2, 3])
    queue.process_jobs(jobs)
    print(queue.get_job(job_id)["result"])
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.apply(look, [(queue, jobs, Handler(abs))]))
    print(queue.counts()["completed"])
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_registered_functions_queues_and_registries_can_be_passed_to_a_process_pool(
    tmp_path: Path, how: str
) -> None:
    (tmp_path / "pooled.py").write_text(POOLED)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "pooled.py", how],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    path = str(tmp_path / "queue.tsv")
    looked = [path, ["square", "squares"], 3, 1]
    assert done.stdout.splitlines() == ["[1, 4, 9]", str(looked), "2"]


def test_a_copy_of_a_queue_has_its_settings(tmp_path: Path) -> None:
    with testing.JobQueue(tmp_path / "queue.tsv", testing.Clock(NOW)) as given:
        given.max_payload = 5
        copy = pickle.loads(pickle.dumps(given))
    assert (type(copy), copy.path, copy.max_payload) == (testing.JobQueue, given.path, 5)
    assert (copy.store.fsync, copy.clock.now, copy.clock is copy.now.clock) == (
        False,
        NOW,
        True,
    )
    with copy:
        assert job(given, copy.enqueue("greet", 1))["created_at"] == NOW


def test_a_copy_of_a_store_opens_the_same_file(tmp_path: Path) -> None:
    with Queue(tmp_path / "queue.tsv", fsync=False) as queue:
        job_id = queue.enqueue("greet", "ada")
        copy = pickle.loads(pickle.dumps(queue.store))
        found = copy.find(job_id)
        assert copy is not queue.store
        assert (type(copy), copy.path, copy.fsync) == (type(queue.store), queue.path, False)
        assert found is not None and found.payload == '"ada"'
        assert copy.cancel(job_id)
        copy.close()
        assert job(queue, job_id)["status"] == "cancelled"


@pytest.mark.parametrize("url", ["memory:", "memory:test_registry"])
def test_a_store_in_memory_cannot_be_pickled(url: str) -> None:
    queue = open_queue(url)
    for given in (queue, queue.store, Handlers(queue=queue)):
        with pytest.raises(QueueError, match="its jobs are in the memory of this process"):
            pickle.dumps(given)


def test_a_queue_that_cannot_be_pickled_says_why(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match=r"cannot pickle the queue .* is a lambda or an inner"):
        pickle.dumps(Queue(tmp_path / "queue.tsv", clock=lambda: NOW))


# --- functions that no pass could call


class Mailer:
    def send(self, payload: Any) -> None: ...
    @staticmethod
    def static(payload: Any, *, job: Job) -> None: ...


def nothing() -> None: ...
def three(payload: Any, about: Any, more: Any) -> None: ...
def only_named(*, payload: Any) -> None: ...
def other_named(payload: Any, *, database: Any) -> None: ...
def yields(payload: Any) -> Any:
    yield payload


async def yields_too(payload: Any) -> Any:
    yield payload


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (nothing, "nothing: it takes no payload"),
        (lambda: None, "takes no payload"),
        (three, "three: it requires 3 arguments"),
        (only_named, "takes no payload"),
        (other_named, "requires the argument 'database'"),
        (Mailer.send, "Mailer.send: it is a method without its object"),
        (partial(nothing), "takes no payload"),
        (
            partial(three, about=1, payload=2),
            "already has a value for its first argument, 'payload'",
        ),
        (partial(Mailer().send, 1), "takes no payload"),
        (yields, "yields: it is a generator function"),
        (yields_too, "is a generator function"),
    ],
)
def test_a_function_that_no_pass_could_call_is_refused(
    jobs: Handlers, queue: Queue, function: Any, why: str
) -> None:
    with pytest.raises(InvalidHandlers, match=f"invalid handler .*{why}"):
        jobs.handler("greet")(function)
    assert len(jobs) == 0
    queue.enqueue("greet", {})
    with pytest.raises(InvalidHandlers, match=why):
        queue.process_jobs({"greet": function})
    assert queue.counts()["pending"] == 1


def test_a_function_whose_arguments_cannot_be_unpacked_is_refused(jobs: Handlers) -> None:
    def by_position(a: int, /, b: int = 0) -> None: ...

    with pytest.raises(InvalidHandlers, match="takes 'a' by position only"):
        jobs.handler(unpack=True)(by_position)
    with pytest.raises(InvalidHandlers, match="method without its object"):
        jobs.handler("send", unpack=True)(Mailer.send)
    jobs.handler("three", unpack=True)(three)
    jobs.handler("none", unpack=True)(nothing)


def test_a_function_can_receive_the_job_as_a_keyword_only_argument(
    jobs: Handlers, queue: Queue
) -> None:
    @jobs.handler
    def keyword(payload: Any, *, job: Job) -> str:
        return job.id

    @jobs.handler
    async def optional(payload: Any, *, job: Job | None = None) -> Any:
        return job and job.id

    @jobs.handler
    @passes_on
    def behind(payload: Any, *, job: Job) -> str:
        return job.id

    jobs.handler("static")(Mailer.__dict__["static"])
    jobs.handler("again")(keyword)
    jobs.handler("bound")(partial(other_named, database="db"))
    ids = [queue.enqueue(name, {}) for name in jobs]
    assert queue.process_jobs(jobs) == NONE | {"completed": len(jobs)}
    results = [job(queue, job_id)["result"] for job_id in ids]
    assert results == [*ids[:3], None, ids[4], None]


# --- arguments by name


def test_a_payload_member_named_job_is_not_silently_dropped(jobs: Handlers, queue: Queue) -> None:
    @jobs.handler(unpack=True)
    def add(a: int, job: Job) -> int:
        return a

    @jobs.handler(unpack=True)
    def everything(**members: Any) -> Any:
        return members

    with pytest.raises(InvalidJob, match="the payload has a member named job"):
        add.enqueue({"a": 1, "job": 2})
    ids = [queue.enqueue("add", {"a": 1, "job": 2}), everything.enqueue({"job": 2})]
    assert queue.process_jobs(jobs) == NONE | {"retried": 1, "completed": 1}
    assert job(queue, ids[0])["error"].startswith("TypeError: the payload has a member named job")
    assert job(queue, ids[1])["result"] == {"job": 2}


def test_an_unpacked_payload_becomes_the_functions_arguments(jobs: Handlers, queue: Queue) -> None:
    @jobs.handler(unpack=True)
    def add(a: int, b: int = 10, *, job: Job) -> list[Any]:
        return [a + b, job.attempt]

    @jobs.handler(unpack=True)
    async def everything(**members: Any) -> Any:
        return members

    @jobs.handler(unpack=True)
    def nothing() -> str:
        return "ran"

    ids = [add.enqueue({"a": 1}), add.enqueue({"a": 1, "b": 2}), everything.enqueue({"x": [1]})]
    ids.append(nothing.enqueue())
    assert queue.process_jobs(jobs)["completed"] == 4
    assert [job(queue, i)["result"] for i in ids] == [[11, 1], [3, 1], {"x": [1]}, "ran"]


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ({}, "missing a required argument: 'a'"),
        ({"a": 1, "c": 2}, "unexpected keyword argument 'c'"),
        ({"a": 1, "job": 2}, "job"),
        ([1], "invalid payload of type list: must be a dict of the"),
        (None, "missing a required argument: 'a'"),
    ],
)
def test_a_payload_that_does_not_fit_the_signature_is_refused_at_enqueue(
    jobs: Handlers, queue: Queue, payload: Any, why: str
) -> None:
    @jobs.handler(unpack=True)
    def add(a: int, b: int = 0) -> int:
        return a + b

    with pytest.raises(InvalidJob, match=why):
        add.enqueue(payload)
    assert list(queue.jobs()) == []


def test_a_payload_that_cannot_be_unpacked_fails_its_job(jobs: Handlers, queue: Queue) -> None:
    @jobs.handler(unpack=True)
    def add(a: int, b: int = 0) -> int:
        return a + b

    ids = [queue.enqueue("add", [1, 2]), queue.enqueue("add", {"c": 1})]
    queue.process_jobs(jobs)
    errors = [job(queue, i)["error"] for i in ids]
    assert errors[0] == (
        "TypeError: invalid payload of type list: must be a JSON object, because the handler "
        "unpacks it"
    )
    assert "unexpected keyword argument 'c'" in errors[1]


def test_a_subclass_of_the_registry_is_named_after_the_file_that_makes_it() -> None:
    class Ours(Handlers):
        def __init__(self) -> None:
            super().__init__()

    assert Ours().name == Handlers().name == __file__
