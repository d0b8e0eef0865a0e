"""Jobs are enqueued, looked up and cancelled."""

from __future__ import annotations

import math
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from contract.conftest import (
    DAY,
    NONE,
    NOW,
    at_once,
    job,
    raises,
)
from dbbasic_queue import Backoff, DuplicateJob, Fail, Handler, InvalidJob, JobNotFound
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbbasic_queue.engines.protocol import Engine


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


REFUSED: list[dict[str, Any]] = [
    {"job_type": ""},
    {"job_type": "a b"},
    {"job_type": "a\t"},
    {"job_type": "x" * 101},
    {"job_type": None},
    {"payload": math.nan},
    {"payload": [math.inf]},
    {"payload": b"bytes"},
    {"payload": {1, 2}},
    {"payload": {"n": [{1: 2}]}},
    {"payload": nested(101)},
    {"payload": "x" * 1_048_575},
    {"run_at": math.nan},
    {"run_at": -1},
    {"run_at": 10**400},
    {"run_at": True},
    {"run_at": "1800000000"},
    {"run_at": datetime(2027, 1, 15)},
]
REFUSED_IDS: list[Any] = ["", "a b", "a\n", "x" * 65, 7, "é", "--failed"]


class TestEnqueueing:
    """What `enqueue`, `enqueue_many`, `get_job` and `cancel_job` promise."""

    # --- enqueue, get_job

    def test_a_new_job_is_pending_and_reads_back_as_it_was_given(self, queue: Engine) -> None:
        job_id = queue.enqueue("greet", {"to": "é\t\n\u2028", "n": [1.5, None, True]}, NOW + 60)
        assert queue.get_job(job_id) == {
            "id": job_id,
            "type": "greet",
            "payload": {"to": "é\t\n\u2028", "n": [1.5, None, True]},
            "status": "pending",
            "created_at": NOW,
            "run_at": NOW + 60,
            "attempts": 0,
            "error": None,
            "result": None,
        }

    def test_no_payload_is_an_empty_object(self, queue: Engine) -> None:
        assert job(queue, queue.enqueue("greet", None))["payload"] == {}

    @pytest.mark.parametrize("payload", [0, False, "", [], {}, 0.0, "null", 10**30])
    def test_any_json_value_is_a_payload(self, queue: Engine, payload: Any) -> None:
        seen: list[Any] = []
        job_id = queue.enqueue("greet", payload)
        queue.process_jobs({"greet": seen.append})
        found = job(queue, job_id)["payload"]
        assert (found, type(found)) == (payload, type(payload))
        assert (seen, type(seen[0])) == ([payload], type(payload))

    def test_a_payload_is_stored_as_json_at_the_time_of_the_enqueue(self, queue: Engine) -> None:
        payload: dict[str, Any] = {"to": ["ada"], "n": (2, 3)}
        job_id = queue.enqueue("greet", payload)
        payload["to"] = "nobody"
        assert job(queue, job_id)["payload"] == {"to": ["ada"], "n": [2, 3]}

    def test_changing_a_returned_job_does_not_change_the_queue(self, queue: Engine) -> None:
        job_id = queue.enqueue("greet", {"to": ["ada"]})
        shown = job(queue, job_id)
        shown["payload"]["to"].append("bob")
        shown["status"] = "completed"
        for listed in queue.jobs():
            listed["payload"]["to"].append("eve")
        seen: list[Any] = []

        def handler(payload: Any) -> None:
            seen.append(payload["to"].copy())
            payload["to"].append("mallory")
            raise ValueError("again")

        queue.process_jobs({"greet": Handler(handler, backoff=Backoff(first=0))})
        queue.process_jobs({"greet": handler})
        assert seen == [["ada"], ["ada"]]
        assert job(queue, job_id)["payload"] == {"to": ["ada"]}

    @pytest.mark.parametrize(
        ("run_at", "seconds"),
        [
            (None, NOW),
            (0, NOW),
            (1, 1),
            (NOW + 0.001, NOW + 1),
            (datetime.fromtimestamp(NOW + 60, UTC), NOW + 60),
            (datetime.fromtimestamp(NOW, UTC) + timedelta(microseconds=1), NOW + 1),
        ],
    )
    def test_run_at_is_unix_seconds_rounded_up_or_an_aware_datetime(
        self, queue: Engine, run_at: Any, seconds: int
    ) -> None:
        one = queue.enqueue("greet", {}, run_at)
        (other,) = queue.enqueue_many("greet", [{}], run_at)
        assert job(queue, one)["run_at"] == job(queue, other)["run_at"] == seconds

    @pytest.mark.parametrize("arguments", REFUSED, ids=lambda a: repr(a)[:40])
    def test_invalid_arguments_are_refused_and_add_no_job(
        self, queue: Engine, arguments: dict[str, Any]
    ) -> None:
        full: dict[str, Any] = {"job_type": "greet", "payload": {}, **arguments}
        with pytest.raises(InvalidJob, match="invalid"):
            queue.enqueue(**full)
        payload = full.pop("payload")
        with pytest.raises(InvalidJob, match="invalid"):
            queue.enqueue_many(payloads=[{}, payload, {}], **full)
        assert list(queue.jobs()) == []

    @pytest.mark.parametrize("job_id", REFUSED_IDS)
    def test_an_invalid_id_is_an_error_and_no_job_has_it(self, queue: Engine, job_id: Any) -> None:
        with pytest.raises(InvalidJob, match="invalid job_id"):
            queue.enqueue("greet", {}, job_id=job_id)
        assert queue.get_job(job_id) is None
        assert (queue.cancel_job(job_id), queue.requeue(job_id)) == (False, False)
        for call in (partial(queue.wait, timeout=1000), queue.run_now):
            with pytest.raises(JobNotFound):
                call(job_id)

    def test_get_job_of_an_unknown_id_returns_none(self, queue: Engine) -> None:
        queue.enqueue("greet", {}, job_id="here")
        assert queue.get_job("there") is None

    def test_an_id_can_be_used_only_once_whatever_the_status_of_its_job(
        self, queue: Engine
    ) -> None:
        ends = {"completed": raises(), "failed": raises(Fail("no"))}
        for status in ("completed", "failed", "cancelled", "pending"):
            assert queue.enqueue(status, status, job_id=f"my-{status}") == f"my-{status}"
        queue.cancel_job("my-cancelled")
        queue.process_jobs(ends, skip_unknown=True)
        before = list(queue.jobs())
        for status in ("completed", "failed", "cancelled", "pending"):
            assert job(queue, f"my-{status}")["status"] == status
            with pytest.raises(DuplicateJob, match=f"my-{status}"):
                queue.enqueue("other", {}, job_id=f"my-{status}")
        assert list(queue.jobs()) == before

    def test_only_one_of_many_concurrent_enqueues_gets_a_job_id(self, queue: Engine) -> None:
        refused: list[int] = []

        def ask(number: int) -> None:
            try:
                queue.enqueue("greet", number, job_id="once")
            except DuplicateJob:
                refused.append(number)

        at_once(*(lambda n=n: ask(n) for n in range(8)))
        assert len(refused) == 7
        assert {job(queue, "once")["payload"], *refused} == set(range(8))

    # --- enqueue_many

    def test_enqueue_many_keeps_the_order_of_the_payloads(self, queue: Engine) -> None:
        ids = queue.enqueue_many("greet", (n for n in range(100)), NOW + 60)
        assert len(set(ids)) == 100
        assert [job(queue, job_id)["payload"] for job_id in ids] == list(range(100))
        assert [found["id"] for found in queue.jobs()] == ids
        assert queue.enqueue_many("greet", iter(())) == []

    def test_an_error_while_iterating_over_the_payloads_adds_no_job(self, queue: Engine) -> None:
        def payloads() -> Iterator[int]:
            yield 1
            raise LookupError("the database is gone")

        with pytest.raises(LookupError):
            queue.enqueue_many("greet", payloads())
        assert queue.counts()["pending"] == 0

    def test_enqueue_many_adds_all_jobs_at_once(self, queue: Engine) -> None:
        seen: set[int] = set()
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                seen.add(queue.counts()["pending"])

        def add() -> None:
            try:
                for _ in range(5):
                    queue.enqueue_many("greet", range(200))
            finally:
                done.set()

        at_once(look, add)
        assert seen <= set(range(0, 1001, 200))
        assert queue.counts()["pending"] == 1000

    def test_no_job_enqueued_from_many_threads_is_lost(self, queue: Engine) -> None:
        ids: list[str] = []
        at_once(*[lambda: ids.extend(queue.enqueue("greet", n) for n in range(25))] * 8)
        assert len(set(ids)) == 200
        assert {found["id"] for found in queue.jobs("pending")} == set(ids)

    # --- cancel_job

    def test_a_pending_job_can_be_cancelled_once_and_never_runs(self, queue: Engine) -> None:
        job_id = queue.enqueue("greet", {})
        assert (queue.cancel_job(job_id), queue.cancel_job(job_id)) == (True, False)
        assert queue.process_jobs({"greet": raises()}) == NONE
        found = job(queue, job_id)
        assert (found["status"], found["error"]) == ("cancelled", "Cancelled by user")
        assert found["attempts"] == 0

    def test_a_job_that_waits_for_its_retry_can_be_cancelled(
        self, queue: Engine, clock: Clock
    ) -> None:
        job_id = queue.enqueue("greet", {})
        assert queue.process_jobs({"greet": raises(ValueError())}) == NONE | {"retried": 1}
        assert queue.cancel_job(job_id) is True
        clock.move(DAY)
        assert queue.process_jobs({"greet": raises()}) == NONE

    def test_a_running_or_finished_job_cannot_be_cancelled(self, queue: Engine) -> None:
        def handler(_: Any) -> str:
            assert job(queue, "ran")["status"] == "processing"
            assert queue.cancel_job("ran") is False
            return "ran on"

        queue.enqueue("greet", {}, job_id="ran")
        queue.enqueue("broken", {}, job_id="broken")
        queue.process_jobs({"greet": handler, "broken": raises(Fail())})
        assert job(queue, "ran")["result"] == "ran on"
        for job_id in ("ran", "broken", "unknown"):
            before = queue.get_job(job_id)
            assert queue.cancel_job(job_id) is False
            assert queue.get_job(job_id) == before

    def test_a_job_is_either_cancelled_or_run_never_both(self, queue: Engine) -> None:
        ids = queue.enqueue_many("greet", range(200))
        ran: list[int] = []
        cancelled: list[int] = []

        def cancel() -> None:
            cancelled.extend(n for n in reversed(range(200)) if queue.cancel_job(ids[n]))

        at_once(cancel, lambda: queue.process_jobs({"greet": ran.append}))
        assert sorted(ran + cancelled) == list(range(200))
        counts = queue.counts()
        assert (counts["completed"], counts["cancelled"]) == (len(ran), len(cancelled))
