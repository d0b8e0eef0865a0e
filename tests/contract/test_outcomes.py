"""The outcome of a job, for everything that its handler can do."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import pytest

from contract.conftest import (
    DAY,
    NONE,
    NOW,
    job,
    raises,
)
from dbbasic_queue import Backoff, Delay, Fail, Handler
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from dbbasic_queue.engines.protocol import Engine


class TestOutcomes:
    """What `process_jobs` records for each thing that a handler can return or raise."""

    @pytest.mark.parametrize("result", [None, 0, False, "", [], {}, 0.0, "é\t\n", {"a": [1]}])
    def test_a_json_result_reads_back_unchanged(self, queue: Engine, result: Any) -> None:
        job_id = queue.enqueue("greet", {})
        assert queue.process_jobs({"greet": lambda _: result}) == NONE | {"completed": 1}
        found = job(queue, job_id)
        assert (found["status"], found["attempts"], found["error"]) == ("completed", 1, None)
        assert (found["result"], type(found["result"])) == (result, type(result))

    @pytest.mark.parametrize("result", [{1, 2}, math.nan, "x" * 1_048_575])
    def test_a_job_with_an_invalid_result_is_completed_with_the_reason(
        self, queue: Engine, result: Any
    ) -> None:
        job_id = queue.enqueue("greet", {})
        assert queue.process_jobs({"greet": lambda _: result}) == NONE | {"completed": 1}
        found = job(queue, job_id)
        assert (found["status"], found["result"]) == ("completed", None)
        assert found["error"].startswith("result not kept: ")

    def test_a_failing_job_is_retried_after_its_backoff_until_no_attempts_are_left(
        self, queue: Engine, clock: Clock
    ) -> None:
        job_id = queue.enqueue("greet", {})
        fails = {"greet": raises(*[ValueError("no such user")] * 3)}
        for attempt, wait in ((1, 120), (2, 240)):
            assert queue.process_jobs(fails) == NONE | {"retried": 1}
            found = job(queue, job_id)
            assert (found["status"], found["attempts"]) == ("pending", attempt)
            assert found["error"] == "ValueError: no such user"
            assert found["run_at"] == clock.now + wait
            clock.move(wait - 1)
            assert queue.process_jobs(fails) == NONE
            clock.move(1)
        assert queue.process_jobs(fails) == NONE | {"failed": 1}
        found = job(queue, job_id)
        assert (found["status"], found["attempts"]) == ("failed", 3)
        clock.move(DAY)
        assert queue.process_jobs(fails) == NONE

    def test_a_job_that_finally_succeeds_has_no_error(self, queue: Engine, clock: Clock) -> None:
        job_id = queue.enqueue("greet", {})
        handlers = {"greet": raises(ValueError("once"))}
        queue.process_jobs(handlers)
        clock.move(120)
        assert queue.process_jobs(handlers) == NONE | {"completed": 1}
        found = job(queue, job_id)
        assert (found["error"], found["result"], found["attempts"]) == (None, "done", 2)

    def test_an_unknown_type_fails_like_any_error(self, queue: Engine) -> None:
        job_id = queue.enqueue("greet", {})
        assert queue.process_jobs({}) == NONE | {"retried": 1}
        assert job(queue, job_id)["error"] == "No handler for greet"
        assert job(queue, queue.enqueue("greet", {}))["status"] == "pending"

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("a\tb\n\x1b"), "ValueError: a\tb\n\x1b"),
            (Exception("as it is"), "as it is"),
            (KeyError(), "KeyError"),
            (SystemExit(3), "SystemExit: 3"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
        ],
    )
    def test_any_exception_of_a_handler_is_its_jobs_error_and_other_jobs_still_run(
        self, queue: Engine, error: BaseException, text: str
    ) -> None:
        job_id = queue.enqueue("broken", {})
        queue.enqueue("greet", {})
        handlers = {"broken": raises(error), "greet": raises()}
        assert queue.process_jobs(handlers, 1) == NONE | {"failed": 1, "completed": 1}
        assert job(queue, job_id)["error"] == text

    def test_each_type_has_its_own_limit_and_backoff(self, queue: Engine) -> None:
        once = queue.enqueue("once", {})
        soon = queue.enqueue("soon", {})
        handlers = {
            "once": Handler(raises(ValueError()), max_attempts=1),
            "soon": Handler(raises(ValueError()), backoff=Backoff(first=6, factor=2)),
        }
        assert queue.process_jobs(handlers) == NONE | {"failed": 1, "retried": 1}
        assert job(queue, once)["status"] == "failed"
        assert job(queue, soon)["run_at"] == NOW + 6

    def test_a_delay_postpones_a_job_and_costs_no_attempt(
        self, queue: Engine, clock: Clock
    ) -> None:
        job_id = queue.enqueue("greet", {})
        handlers = {"greet": raises(Delay(90.5, "closed"), Delay(0))}
        assert queue.process_jobs(handlers, 1) == NONE | {"delayed": 1}
        found = job(queue, job_id)
        assert (found["status"], found["attempts"]) == ("pending", 0)
        assert (found["run_at"], found["error"]) == (NOW + 91, "delayed: closed")
        clock.move(91)
        assert queue.process_jobs(handlers, 1) == NONE | {"delayed": 1}
        assert queue.process_jobs(handlers, 1) == NONE | {"completed": 1}

    def test_fail_ends_a_job_even_if_attempts_are_left(self, queue: Engine) -> None:
        job_id = queue.enqueue("greet", {})
        assert queue.process_jobs({"greet": raises(Fail("no such user"))}, 5) == NONE | {
            "failed": 1
        }
        found = job(queue, job_id)
        assert (found["status"], found["error"]) == ("failed", "no such user")

    def test_a_job_that_exceeds_its_timeout_is_stopped_and_fails_like_any_other(
        self, queue: Engine
    ) -> None:
        slow, quick = queue.enqueue("slow", {}), queue.enqueue("quick", {"n": 1})
        handlers: dict[str, Any] = {
            "slow": Handler(lambda _: time.sleep(600), timeout=0.1),
            "quick": Handler(lambda payload: payload, timeout=600),
        }
        assert queue.process_jobs(handlers) == NONE | {"retried": 1, "completed": 1}
        assert job(queue, slow)["error"] == "timed out after 0.1 s"
        assert job(queue, quick)["result"] == {"n": 1}

    def test_a_retry_set_by_a_wrong_clock_is_moved_nearer(
        self, queue: Engine, clock: Clock
    ) -> None:
        retried, delayed = queue.enqueue("greet", {}), queue.enqueue("later", {})
        clock.now = NOW + 10 * 365 * DAY
        queue.process_jobs({"greet": raises(ValueError()), "later": raises(Delay(60))})
        clock.now = NOW
        wish = job(queue, delayed)["run_at"]
        queue.process_jobs({"greet": raises(), "later": raises()})
        assert job(queue, retried)["run_at"] == NOW + 120
        assert job(queue, delayed)["run_at"] == wish
