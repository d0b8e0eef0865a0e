"""`Handlers(keep=...)`: passes remove old finished jobs of their types, now and then."""

from __future__ import annotations

import logging
import math
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DAY, NONE, NOW, at_once, raises, sibling, wait_for

from dbbasic_queue import Fail, Handlers, InvalidHandlers, Queue, Worker, open_queue
from dbbasic_queue.monitoring import status
from dbbasic_queue.passes import keeping
from dbbasic_queue.store import purged
from dbbasic_queue.store.writing import rewrites

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Clock

HOUR = 3600


@pytest.fixture(params=["file", "memory"])
def queue(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Iterator[Queue]:
    with open_queue(path if request.param == "file" else "memory:", clock=clock) as queue:
        yield queue


@pytest.fixture
def file_queue(path: Path, clock: Clock) -> Iterator[Queue]:
    with Queue(path, clock=clock) as queue:
        yield queue


def registry(keep: Any = timedelta(days=30), **more: Any) -> Handlers:
    jobs = Handlers(keep=keep, **more)

    @jobs.handler
    def greet(payload: Any) -> None:
        if payload == "fail":
            raise Fail("no")

    return jobs


def run(queue: Queue, jobs: Any, *payloads: Any, job_type: str = "greet") -> None:
    """Enqueue jobs and make a pass."""
    queue.enqueue_many(job_type, payloads)
    queue.process_jobs(jobs, skip_unknown=True)


def payloads(queue: Queue) -> list[Any]:
    return [job["payload"] for job in queue.jobs()]


def test_a_pass_removes_finished_jobs_that_were_due_longer_ago_than_they_are_kept(
    queue: Queue, clock: Clock
) -> None:
    jobs = registry()
    queue.cancel_job(queue.enqueue("greet", "cancelled"))
    queue.enqueue("greet", "pending", NOW + 90 * DAY)
    run(queue, jobs, "done", "fail")
    clock.now += 30 * DAY
    run(queue, jobs, "young")
    assert payloads(queue) == ["cancelled", "pending", "done", "fail", "young"]
    clock.now += HOUR
    run(queue, jobs, "new")
    assert payloads(queue) == ["pending", "young", "new"]


def test_only_types_of_the_registry_are_removed(queue: Queue, clock: Clock) -> None:
    run(queue, {"other": raises(Fail("no"))}, 1, 2, job_type="other")
    run(queue, registry(ignore_case=True), "lower", "mixed")
    run(queue, registry(ignore_case=True), "GREET", job_type="Greet")
    clock.now += 31 * DAY
    run(queue, registry(ignore_case=True), "new")
    assert payloads(queue) == [1, 2, "new"]


def test_without_keep_nothing_is_removed_or_remembered(file_queue: Queue, clock: Clock) -> None:
    run(file_queue, registry(None), 1)
    clock.now += 1000 * DAY
    run(file_queue, {"greet": raises()}, 2)
    assert payloads(file_queue) == [1, 2]
    assert not sibling(Path(file_queue.path), "purged").exists()


def test_old_jobs_are_removed_at_most_once_an_hour_by_all_passes_together(
    file_queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals: list[float] = []
    real = rewrites.remove

    def remove(*arguments: Any) -> int:
        removals.append(clock.now)
        return real(*arguments)

    monkeypatch.setattr(rewrites, "remove", remove)
    with Queue(file_queue.path, clock=clock) as other:
        for _ in range(20):
            run(file_queue, registry(), 1)
            run(other, registry(), 2)
            clock.now += 600
    assert removals == [NOW, NOW + HOUR, NOW + 2 * HOUR, NOW + 3 * HOUR]


def test_each_programs_types_have_a_turn_of_their_own(file_queue: Queue, clock: Clock) -> None:
    mail = Handlers(keep=HOUR)
    mail.handler("mail")(lambda payload: payload)
    for _ in range(3):
        clock.now += HOUR + 1
        run(file_queue, registry(HOUR), "greet")
        run(file_queue, mail, "mail", job_type="mail")
    assert payloads(file_queue) == ["greet", "mail"]


def test_after_the_clock_was_set_back_old_jobs_are_removed_all_the_same(
    queue: Queue, clock: Clock
) -> None:
    run(queue, registry(HOUR), 1)
    clock.now += 1000 * DAY
    run(queue, registry(HOUR), 2)
    clock.now = NOW + 2 * HOUR
    queue.enqueue("greet", "old", NOW)
    clock.now += 2 * HOUR
    run(queue, registry(HOUR), 3)
    assert payloads(queue) == [2, 3]


def test_concurrent_passes_take_one_turn(file_queue: Queue) -> None:
    file_queue.enqueue("greet", 1)
    turns: list[bool] = []

    def take() -> None:
        with Queue(file_queue.path) as other:
            turns.append(other.store.take_turn_to_purge(["a", "b"], NOW, HOUR))

    at_once(*[take] * 8)
    assert sorted(turns) == [False] * 7 + [True]
    assert purged.read(file_queue.path) == {"a": NOW, "b": NOW}
    assert sibling(Path(file_queue.path), "purged").read_text() == f"a\t{NOW}\nb\t{NOW}\n"


@pytest.mark.parametrize("content", ["", "greet", "greet\tx\n", "\t\n\t\t\n", "\0\xff\tgreet\t5"])
def test_a_damaged_list_of_turns_is_replaced(file_queue: Queue, clock: Clock, content: str) -> None:
    run(file_queue, registry(HOUR), 1)
    clock.now += 2 * HOUR
    sibling(Path(file_queue.path), "purged").write_text(content, encoding="latin-1")
    run(file_queue, registry(HOUR), 2)
    assert payloads(file_queue) == [2]
    assert purged.read(file_queue.path)["greet"] == clock.now


def test_a_removal_that_the_system_refuses_is_logged_and_ends_no_pass(
    file_queue: Queue, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    run(file_queue, registry(HOUR), 1)
    os.remove(file_queue.path + ".purged")
    os.mkdir(file_queue.path + ".purged")
    clock.now += 2 * HOUR
    with caplog.at_level(logging.INFO, "dbbasic_queue"):
        run(file_queue, registry(HOUR), 2)
        assert payloads(file_queue) == [1, 2]
        (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
        assert record.getMessage().startswith("could not remove old finished jobs, will retry: ")
        os.rmdir(file_queue.path + ".purged")
        run(file_queue, registry(HOUR), 3)
    assert payloads(file_queue) == [2, 3]
    assert "removed 1 finished jobs that were due over 3600 s ago" in caplog.messages


def test_a_pass_without_work_removes_nothing_and_imports_nothing_for_it(
    file_queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(file_queue, registry(HOUR), 1)
    clock.now += 2 * HOUR
    monkeypatch.setattr(keeping, "remove_old", lambda *_: pytest.fail("it was called"))
    assert file_queue.process_jobs(registry(HOUR)) == NONE
    assert payloads(file_queue) == [1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_long_running_worker_removes_old_jobs_while_no_job_is_due(
    now_queue: Queue, workers: int
) -> None:
    """Its clock is the machine's, so the jobs are kept for no time at all."""
    jobs = registry(0)
    job_id = now_queue.enqueue("greet", 1)
    # Not by the worker: while one of its passes runs the job, the other may take the turn.
    assert now_queue.process_jobs({"greet": lambda _: None})["completed"] == 1
    with Worker(now_queue, jobs, workers=workers):
        wait_for(lambda: now_queue.get_job(job_id) is None, "the removal")
    assert payloads(now_queue) == []


def test_several_workers_remove_old_jobs(file_queue: Queue, clock: Clock) -> None:
    jobs = registry(HOUR)
    file_queue.enqueue_many("greet", range(20))
    file_queue.process_jobs(jobs, workers=2)
    clock.now += 2 * HOUR
    file_queue.enqueue_many("greet", range(20, 24))
    file_queue.process_jobs(jobs, workers=2)
    assert payloads(file_queue) == [20, 21, 22, 23]


@pytest.mark.parametrize("keep", [-1, math.nan, "30d", True, timedelta(days=-1)])
def test_an_invalid_keep_is_an_error(keep: Any) -> None:
    with pytest.raises(InvalidHandlers, match=r"invalid keep .*: must be seconds or a timedelta"):
        Handlers(keep=keep)


def test_jobs_may_be_kept_forever(queue: Queue, clock: Clock) -> None:
    run(queue, registry(math.inf), 1)
    clock.now += 10_000 * DAY
    run(queue, registry(math.inf), 2)
    assert payloads(queue) == [1, 2]


def test_status_says_how_many_finished_jobs_there_are_and_how_old_they_are(
    queue: Queue, clock: Clock
) -> None:
    def shown() -> list[str]:
        return [line for line in status.lines(queue.store, clock.now) if "finished" in line]

    assert shown() == ["finished\t0\t-"]
    queue.enqueue("greet", "pending", NOW - 5 * DAY)
    queue.cancel_job(queue.enqueue("greet", "cancelled"))
    clock.now += DAY
    run(queue, {"greet": raises(Fail("no"))}, "late")
    assert shown() == [f"finished\t3\t{DAY}"]
