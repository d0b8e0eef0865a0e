"""Which jobs a pass runs, when, and in which order; lingering passes; waiting."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DAY, EMPTY, NONE, NOW, at_once, job, join, raises

from dbbasic_queue import (
    Delay,
    Fail,
    Handler,
    Handlers,
    InvalidArgument,
    InvalidHandlers,
    InvalidJob,
    Job,
    JobNotFound,
)
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from dbbasic_queue.engines.protocol import Engine


class TestPasses:
    """What `process_jobs`, `run_until_complete` and `wait` promise until a job ends."""

    def test_jobs_that_are_due_at_once_run_in_the_order_of_their_enqueue(
        self, queue: Engine
    ) -> None:
        queue.enqueue_many("greet", range(5))
        queue.enqueue("greet", 5)
        ran: list[int] = []
        queue.process_jobs({"greet": ran.append})
        assert ran == list(range(6))

    @pytest.mark.needs("due order")
    def test_jobs_run_in_the_order_of_run_at_and_then_of_their_enqueue(self, queue: Engine) -> None:
        for payload, run_at in [("c", NOW), ("a", 5), ("d", NOW), ("b", 6), ("e", NOW)]:
            queue.enqueue("greet", payload, run_at)
        ran: list[str] = []
        queue.process_jobs({"greet": ran.append})
        assert ran == ["a", "b", "c", "d", "e"]

    def test_jobs_of_a_higher_priority_run_first(self, queue: Engine) -> None:
        for job_type, payload in [("low", "d"), ("plain", "c"), ("high", "a"), ("high", "b")]:
            queue.enqueue(job_type, payload)
        ran: list[str] = []
        priorities = {"high": 5, "plain": 0, "low": -5}
        queue.process_jobs({t: Handler(ran.append, priority=p) for t, p in priorities.items()})
        assert ran == ["a", "b", "c", "d"]

    def test_a_job_runs_when_it_is_due_and_not_before(self, queue: Engine, clock: Clock) -> None:
        job_id = queue.enqueue("greet", {}, NOW + 60)
        clock.move(59.99)
        assert queue.process_jobs({"greet": raises()}) == NONE
        clock.move(0.01)
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
        assert queue.process_jobs({"greet": raises()}) == NONE
        assert job(queue, job_id)["status"] == "completed"

    def test_a_new_type_of_a_higher_priority_is_run_before_the_rest(
        self, queue: Engine, clock: Clock
    ) -> None:
        ran: list[str] = []

        def low(number: int) -> None:
            ran.append("low")
            if number == 0:
                clock.move(1)
                queue.enqueue("high", None)

        queue.enqueue_many("low", range(100))
        high = Handler(lambda _: ran.append("high"), priority=1)
        queue.process_jobs({"low": low, "high": high})
        assert ran.count("high") == 1
        assert ran.index("high") < 50

    def test_a_job_enqueued_by_a_handler_waits_for_the_next_pass(self, queue: Engine) -> None:
        def handler(payload: int) -> None:
            queue.enqueue("greet", payload + 1)

        queue.enqueue("greet", 1)
        for ran in (1, 2, 3):
            assert queue.process_jobs({"greet": handler}) == NONE | {"completed": 1}
            assert queue.counts() == EMPTY | {"completed": ran, "pending": 1}

    def test_concurrent_passes_run_each_job_once(self, queue: Engine) -> None:
        queue.enqueue_many("greet", range(300))
        ran: list[int] = []
        counts: list[dict[str, int]] = []

        def handler(payload: int) -> None:
            time.sleep(0)
            ran.append(payload)

        at_once(*[lambda: counts.append(queue.process_jobs({"greet": handler}))] * 4)
        assert sorted(ran) == list(range(300))
        assert sum(done["completed"] for done in counts) == 300

    def test_concurrent_passes_add_each_time_of_a_schedule_once(
        self, queue: Engine, clock: Clock
    ) -> None:
        ran: list[object] = []
        jobs = Handlers()
        jobs.handler("tick", every=60, missed="all")(ran.append)
        queue.process_jobs(jobs)
        first = len(ran)
        for _ in range(5):
            clock.now += 60
            at_once(*[lambda: queue.process_jobs(jobs)] * 4)
        assert len(ran) == first + 5
        assert len({job["run_at"] for job in queue.jobs()}) == len(list(queue.jobs())) == len(ran)

    def test_another_pass_runs_the_other_jobs_during_a_long_one(self, queue: Engine) -> None:
        queue.enqueue_many("greet", range(50))
        started, may_end = threading.Event(), threading.Event()
        seen: list[int] = []

        def handler(number: int) -> None:
            if number == 30:
                started.set()
                assert may_end.wait(60)

        def run_the_others() -> None:
            assert started.wait(60)
            end = time.monotonic() + 30
            while queue.counts()["completed"] < 49 and time.monotonic() < end:
                queue.process_jobs({"greet": handler})
                time.sleep(0.01)
            seen.append(queue.counts()["completed"])
            may_end.set()

        at_once(lambda: queue.process_jobs({"greet": handler}), run_the_others)
        assert seen == [49]
        assert {found["attempts"] for found in queue.jobs("completed")} == {1}

    def test_a_pass_inside_a_handler_does_not_touch_the_running_job(self, queue: Engine) -> None:
        within: list[dict[str, int]] = []
        queue.enqueue("outer", {})

        def outer(_: Any) -> None:
            queue.enqueue("inner", {})
            within.append(queue.process_jobs({"outer": raises(), "inner": raises()}))

        assert queue.process_jobs({"outer": outer}) == NONE | {"completed": 1}
        assert within == [NONE | {"completed": 1}]

    def test_each_outcome_is_recorded_before_the_next_handler_starts(self, queue: Engine) -> None:
        ids = queue.enqueue_many("greet", range(20))
        seen: list[list[str]] = []

        def handler(number: int) -> int:
            seen.append([job(queue, job_id)["status"] for job_id in ids[: number + 1]])
            return number

        queue.process_jobs({"greet": handler})
        assert seen == [["completed"] * number + ["processing"] for number in range(20)]

    def test_skip_unknown_does_not_touch_jobs_of_other_types(self, queue: Engine) -> None:
        other = queue.enqueue("other", {})
        queue.enqueue("greet", {})
        before = job(queue, other)
        assert queue.process_jobs({"greet": raises()}, skip_unknown=True) == NONE | {"completed": 1}
        assert job(queue, other) == before

    def test_a_handler_can_receive_its_job(self, queue: Engine, clock: Clock) -> None:
        told: list[tuple[str, str, int, int]] = []

        def handler(_: Any, job: Job) -> None:
            told.append((job.id, job.type, job.attempt, job.created_at))
            raise ValueError("again")

        job_id = queue.enqueue("greet", {})
        for _ in range(2):
            queue.process_jobs({"greet": handler})
            clock.move(DAY)
        assert told == [(job_id, "greet", 1, NOW), (job_id, "greet", 2, NOW)]

    def test_all_passes_together_keep_the_concurrency_limit_of_a_type(self, queue: Engine) -> None:
        queue.enqueue_many("narrow", range(60))
        queue.enqueue_many("wide", range(60))
        seen: list[int] = []
        most = 2

        def narrow(_: Any) -> None:
            seen.append(sum(1 for _ in queue.jobs("processing", "narrow")))

        handlers: dict[str, Any] = {"narrow": Handler(narrow, concurrency=most), "wide": raises()}
        at_once(*[lambda: queue.process_jobs(handlers)] * 4)
        assert queue.process_jobs(handlers)["failed"] == 0
        assert queue.counts()["completed"] == 120
        assert (len(seen), max(seen) <= most) == (60, True)

    def test_coroutines_run_concurrently_with_workers(self, queue: Engine) -> None:
        queue.enqueue_many("greet", range(20))
        running: list[int] = []
        together: list[int] = []

        async def handler(number: int) -> int:
            running.append(number)
            await asyncio.sleep(0.01)
            together.append(len(running))
            running.remove(number)
            return number

        done = queue.process_jobs({"greet": handler}, workers=10)
        assert done == NONE | {"completed": 20}
        assert [found["result"] for found in queue.jobs()] == list(range(20))
        assert max(together) <= 10

    # --- pausing

    def test_jobs_of_a_paused_type_wait_and_are_counted_until_it_is_resumed(
        self, queue: Engine, clock: Clock
    ) -> None:
        queue.enqueue_many("a", range(3))
        queue.enqueue("b", {}, NOW + 60)
        queue.enqueue("c", {})
        queue.cancel_job(queue.enqueue("a", {}))
        before = list(queue.jobs(job_type="a"))
        assert (queue.pause("a"), queue.pause("a"), queue.pause("b")) == (True, False, True)
        assert queue.counts() == EMPTY | {"pending": 5, "cancelled": 1}
        assert queue.paused() == {"a", "b"}
        clock.move(60)
        handlers = dict.fromkeys("abc", raises())
        assert queue.process_jobs(handlers) == NONE | {"completed": 1}
        assert list(queue.jobs(job_type="a")) == before
        assert (queue.resume("a"), queue.resume("a"), queue.resume("c")) == (True, False, False)
        assert queue.paused() == {"b"}
        assert queue.process_jobs(handlers) == NONE | {"completed": 3}
        assert queue.resume("b") is True
        assert queue.process_jobs(handlers) == NONE | {"completed": 1}

    def test_all_types_can_be_paused_and_resumed_together(self, queue: Engine) -> None:
        queue.enqueue("a", {})
        assert (queue.pause(), queue.pause(), queue.pause("a")) == (True, False, True)
        queue.enqueue("b", {})
        assert queue.paused() == {"*", "a"}
        assert queue.process_jobs({}) == NONE
        assert (queue.resume("a"), queue.process_jobs({})) == (True, NONE)
        assert (queue.resume(), queue.resume()) == (True, False)
        assert queue.process_jobs({}) == NONE | {"retried": 2}

    def test_pausing_a_type_lets_its_running_job_finish_and_starts_no_other(
        self, queue: Engine
    ) -> None:
        queue.enqueue_many("greet", range(3))

        def handler(number: int) -> None:
            assert queue.pause("greet") is True

        assert queue.process_jobs({"greet": handler}) == NONE | {"completed": 1}
        assert queue.counts() == EMPTY | {"completed": 1, "pending": 2}

    @pytest.mark.parametrize("job_type", ["", "a b", "*", 7])
    def test_an_invalid_type_cannot_be_paused(self, queue: Engine, job_type: Any) -> None:
        for call in (queue.pause, queue.resume):
            with pytest.raises(InvalidJob, match="must be"):
                call(job_type)

    @pytest.mark.parametrize(
        ("handlers", "max_attempts"),
        [
            ([], 3),
            ({"greet": "no"}, 3),
            ({}, 0),
            ({}, True),
            ({}, "3"),
        ],
    )
    def test_invalid_handlers_and_limits_are_an_error_before_anything_runs(
        self, queue: Engine, handlers: Any, max_attempts: Any
    ) -> None:
        job_id = queue.enqueue("greet", {})
        before = job(queue, job_id)
        with pytest.raises(InvalidHandlers):
            queue.process_jobs(handlers, max_attempts)
        with pytest.raises(InvalidHandlers):
            queue.run_until_complete(handlers, max_attempts)
        assert job(queue, job_id) == before

    @pytest.mark.parametrize(
        "linger", [-1, math.nan, "1", True, None, timedelta(seconds=-1)], ids=repr
    )
    def test_an_invalid_linger_is_an_error_before_anything_runs(
        self, queue: Engine, linger: Any
    ) -> None:
        job_id = queue.enqueue("greet", {})
        before = job(queue, job_id)
        with pytest.raises(InvalidArgument, match="invalid linger"):
            queue.process_jobs({"greet": raises()}, linger=linger)
        assert job(queue, job_id) == before

    # --- paused

    def test_paused_returns_the_paused_types_and_a_star_for_all(self, queue: Engine) -> None:
        assert queue.paused() == frozenset()
        queue.pause("b")
        queue.pause("a")
        queue.pause()
        found = queue.paused()
        assert found == {"a", "b", "*"}
        assert type(found) is frozenset
        queue.resume("b")
        assert queue.paused() == {"a", "*"}
        queue.resume()
        assert queue.paused() == frozenset()

    # --- lingering, waiting

    @pytest.mark.parametrize("linger", [0.3, timedelta(seconds=0.3)])
    def test_a_lingering_pass_runs_jobs_that_become_due(
        self, queue: Engine, clock: Clock, linger: Any
    ) -> None:
        queue.enqueue("greet", "now")
        queue.enqueue("greet", "later", NOW + 60)
        ran: list[str] = []

        def handler(payload: str) -> None:
            ran.append(payload)
            clock.move(60)

        assert queue.process_jobs({"greet": handler}, linger=linger) == NONE | {"completed": 2}
        assert ran == ["now", "later"]

    def test_run_until_complete_waits_for_retries_and_delays(
        self, queue: Engine, clock: Clock
    ) -> None:
        errors: list[Exception] = [ValueError("no"), Delay(5), ValueError("no")]

        def handler(_: Any) -> None:
            clock.move(DAY)
            if errors:
                raise errors.pop(0)

        def let_time_pass() -> None:
            while not done.wait(0.01):
                clock.move(60)

        done = threading.Event()
        queue.enqueue("greet", {}, NOW + 60)
        passing = threading.Thread(target=let_time_pass)
        passing.start()
        try:
            counts = queue.run_until_complete({"greet": handler})
        finally:
            done.set()
            join(passing, "the thread that moves the clock")
        assert counts == NONE | {"completed": 1, "retried": 2, "delayed": 1}
        assert queue.run_until_complete({}) == NONE

    def test_wait_returns_the_finished_job_or_none_after_the_timeout(self, queue: Engine) -> None:
        ends = {"completed": raises(), "failed": raises(Fail())}
        for status in ("completed", "failed", "cancelled", "pending"):
            queue.enqueue(status, {}, job_id=status)
        queue.cancel_job("cancelled")
        queue.process_jobs(ends, skip_unknown=True)
        for status in ("completed", "failed", "cancelled"):
            found = queue.wait(status, 1000)
            assert found is not None and found["status"] == status
            assert found == queue.get_job(status)
        for timeout in (0.02, timedelta(seconds=0.02), 0):
            assert queue.wait("pending", timeout) is None
        with pytest.raises(JobNotFound, match="'unknown'"):
            queue.wait("unknown", 1000)

    @pytest.mark.parametrize("timeout", [math.nan, "1", True, None])
    def test_an_invalid_timeout_is_an_error(self, queue: Engine, timeout: Any) -> None:
        job_id = queue.enqueue("greet", {})
        with pytest.raises(InvalidArgument, match="invalid timeout"):
            queue.wait(job_id, timeout)

    def test_wait_raises_when_the_job_is_removed_while_it_waits(self, queue: Engine) -> None:
        job_id = queue.enqueue("greet", {})
        removing = threading.Timer(0.05, queue.remove_type, ["greet"])
        removing.start()
        try:
            with pytest.raises(JobNotFound):
                queue.wait(job_id, 60)
        finally:
            join(removing, "the removal")

    def test_wait_sees_a_job_finish(self, queue: Engine) -> None:
        job_id = queue.enqueue("greet", {})
        found: list[Any] = []
        at_once(
            lambda: found.append(queue.wait(job_id, 60)),
            lambda: queue.process_jobs({"greet": raises()}),
        )
        assert found == [queue.get_job(job_id)]
