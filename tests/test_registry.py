"""The registry: how handlers are declared, found, called and enqueued."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from conftest import NOW, Clock, job

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
)

if TYPE_CHECKING:
    from pathlib import Path

NONE = {"completed": 0, "failed": 0, "retried": 0, "delayed": 0, "recovered": 0}


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

    @jobs.handler("mail:send", max_attempts=5, backoff=Backoff(base=1))
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


def test_a_registered_function_is_called_as_itself(jobs: Handlers) -> None:
    @jobs.handler("mail:send")
    def send(payload: Any, job: Job | None = None, *, loud: bool = False) -> Any:
        """Send it."""
        return payload, job, loud

    assert send({"to": "ada"}, loud=True) == ({"to": "ada"}, None, True)
    assert (send.__name__, send.__doc__, send.type) == ("send", "Send it.", "mail:send")
    assert send.__wrapped__("p") == ("p", None, False)


def test_a_registered_function_may_take_the_job(jobs: Handlers, queue: Queue) -> None:
    @jobs.handler
    def look(payload: Any, job: Job) -> str:
        return job.id

    job_id = look.enqueue()
    queue.process_jobs(jobs)
    assert job(queue, job_id)["result"] == job_id


def test_a_policy_in_the_registry_counts(jobs: Handlers, queue: Queue, clock: Clock) -> None:
    @jobs.handler(max_attempts=2, backoff=Backoff(base=5, factor=1))
    def fail(_: Any) -> None:
        raise ValueError("no")

    job_id = fail.enqueue()
    assert queue.process_jobs(jobs, max_attempts=1) == NONE | {"retried": 1}
    assert job(queue, job_id)["run_at"] == NOW + 5
    clock.now += 5
    assert queue.process_jobs(jobs, max_attempts=1) == NONE | {"failed": 1}


def test_a_type_that_is_registered_twice_is_refused_and_the_first_one_stays(
    jobs: Handlers,
) -> None:
    first = jobs.handler("greet")(len)
    with pytest.raises(InvalidHandlers, match="registered twice"):
        jobs.handler("greet")(print)
    assert jobs["greet"] is first
    jobs.handler("Greet")(print)


def test_case_matters_unless_it_is_not_to(queue: Queue) -> None:
    exact, loose = Handlers(), Handlers(ignore_case=True)
    exact.handler("Greet")(str)
    loose.handler("Greet")(str)
    assert exact.get("greet") is None and "Greet" in exact
    assert loose.get("gREET") is loose["Greet"]
    with pytest.raises(InvalidHandlers, match="registered twice"):
        loose.handler("greet")(len)
    queue.enqueue("GREET", {})
    assert queue.process_jobs(exact, only=True) == NONE
    assert queue.process_jobs(loose, only=True) == NONE | {"completed": 1}


def test_a_limit_holds_however_the_type_is_spelt(queue: Queue, path: Path) -> None:
    loose = Handlers(ignore_case=True)
    beside: list[dict[str, int]] = []

    @loose.handler("Greet", concurrency=1)
    def greet(payload: object) -> None:
        with Queue(path, clock=queue._clock) as other:
            beside.append(other.process_jobs(loose))

    queue.enqueue_many("gREET", [1, 2])
    assert queue.process_jobs(loose) == NONE | {"completed": 2}
    assert beside == [NONE, NONE]


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


def test_a_plain_dict_may_hold_handlers_beside_functions(jobs: Handlers, queue: Queue) -> None:
    registered = jobs.handler("other")(len)
    handlers: dict[str, Any] = {"a": Handler(len, max_attempts=1), "b": len, "c": registered}
    for name in handlers:
        queue.enqueue(name, [1, 2])
    assert queue.process_jobs(handlers) == NONE | {"completed": 3}


def test_a_function_may_be_registered_under_two_types(jobs: Handlers, queue: Queue) -> None:
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
def test_what_has_no_name_that_can_be_a_type_needs_one(jobs: Handlers, function: Any) -> None:
    with pytest.raises(InvalidHandlers, match="@handler"):
        jobs.handler(function)
    jobs.handler("named")(function)


def test_a_policy_that_cannot_work_is_refused_and_nothing_is_registered(jobs: Handlers) -> None:
    with pytest.raises(InvalidHandlers):
        jobs.handler("greet", max_attempts=0)(print)
    with pytest.raises(TypeError, match="max_attempt"):
        jobs.handler("greet", max_attempt=3)(print)  # type: ignore[call-overload]
    with pytest.raises(InvalidHandlers, match="cannot be called"):
        jobs.handler("greet")("print")  # type: ignore[arg-type]
    assert len(jobs) == 0


# --- arguments by name


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
        ([1], "it is a list, and add unpacks a dict"),
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


def test_a_payload_from_elsewhere_that_cannot_be_unpacked_is_the_jobs_error(
    jobs: Handlers, queue: Queue
) -> None:
    @jobs.handler(unpack=True)
    def add(a: int, b: int = 0) -> int:
        return a + b

    ids = [queue.enqueue("add", [1, 2]), queue.enqueue("add", {"c": 1})]
    queue.process_jobs(jobs)
    errors = [job(queue, i)["error"] for i in ids]
    assert errors[0] == "TypeError: the payload is a list, no object to unpack"
    assert "unexpected keyword argument 'c'" in errors[1]
