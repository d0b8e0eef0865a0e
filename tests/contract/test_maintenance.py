"""Jobs are requeued, made due, removed, listed and counted."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DAY, EMPTY, NONE, NOW, job, raises

from dbbasic_queue import Fail, InvalidArgument, InvalidJob, Job, JobNotFound
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from dbbasic_queue.engines.protocol import Engine


class TestMaintenance:
    """What the maintenance calls promise."""

    @pytest.fixture
    def full(self, queue: Engine, clock: Clock) -> Engine:
        """A queue with jobs `STATUS-AGE-TYPE` of four statuses, two ages and two types, at NOW."""
        ends = {"completed": raises(), "failed": raises(*[Fail("no")] * 9)}
        for age, run_at in (("old", NOW - 10 * DAY), ("new", NOW - 10)):
            clock.now = run_at
            for job_type in ("a", "b"):
                for status in ("completed", "failed", "cancelled", "pending"):
                    queue.enqueue(job_type, status, run_at, job_id=f"{status}-{age}-{job_type}")
                queue.cancel_job(f"cancelled-{age}-{job_type}")
                queue.cancel_job(f"pending-{age}-{job_type}")

            def end(payload: str) -> str:
                return ends[payload](payload)

            queue.process_jobs({"a": end, "b": end})
        clock.now = NOW
        for age in ("old", "new"):
            for job_type in ("a", "b"):
                queue.requeue(f"pending-{age}-{job_type}")
        assert queue.counts() == EMPTY | dict.fromkeys(
            ("completed", "failed", "cancelled", "pending"), 4
        )
        return queue

    @staticmethod
    def ids(queue: Engine) -> set[str]:
        return {found["id"] for found in queue.jobs()}

    def test_a_failed_or_cancelled_job_can_be_requeued_and_runs_as_if_it_were_new(
        self, full: Engine
    ) -> None:
        for job_id, run_at in (("failed-old-a", NOW), ("cancelled-old-a", NOW - 10 * DAY)):
            before = job(full, job_id)
            assert full.requeue(job_id) is True
            assert job(full, job_id) == before | {
                "status": "pending",
                "attempts": 0,
                "error": None,
                "run_at": run_at,
            }
            assert full.requeue(job_id) is False
        assert full.process_jobs({"a": raises()}, 1, skip_unknown=True) == NONE | {"completed": 4}
        assert job(full, "failed-old-a")["result"] == "done"

    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    @pytest.mark.parametrize(
        ("run_at", "due"),
        [
            (NOW + 60, NOW + 60),
            (NOW + 59.5, NOW + 60),
            (1, 1),
            (0, NOW),
            (datetime.fromtimestamp(NOW + 60, UTC), NOW + 60),
        ],
    )
    def test_a_requeued_job_is_due_at_its_run_at(
        self, full: Engine, clock: Clock, status: str, run_at: Any, due: int
    ) -> None:
        assert full.requeue(f"{status}-old-a", run_at) is True
        assert full.requeue(f"{status}-old-b", run_at=run_at) is True
        assert job(full, f"{status}-old-a")["run_at"] == due
        assert job(full, f"{status}-old-b")["run_at"] == due
        is_due = due <= NOW
        full.process_jobs({"a": raises()}, skip_unknown=True)
        assert job(full, f"{status}-old-a")["status"] == ("completed" if is_due else "pending")
        clock.now = max(NOW, due)
        full.process_jobs({"a": raises(), "b": raises()})
        assert job(full, f"{status}-old-b")["result"] == "done"

    @pytest.mark.parametrize("run_at", [-1, math.nan, "1", True, datetime(2027, 1, 15)], ids=repr)
    def test_an_invalid_run_at_is_an_error_and_requeues_nothing(
        self, full: Engine, run_at: Any
    ) -> None:
        before = job(full, "failed-old-a")
        with pytest.raises(InvalidJob, match="invalid run_at"):
            full.requeue("failed-old-a", run_at)
        assert job(full, "failed-old-a") == before

    def test_a_pending_job_can_be_made_due_now(self, queue: Engine, clock: Clock) -> None:
        later = queue.enqueue("greet", {}, NOW + DAY)
        clock.move(5)
        due = queue.enqueue("greet", {}, NOW + 1)
        before = {job_id: job(queue, job_id) for job_id in (later, due)}
        assert queue.run_now(later) is True
        assert queue.run_now(due) is True
        assert job(queue, later) == before[later] | {"run_at": NOW + 5}
        assert job(queue, due) == before[due]  # it keeps its place
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 2}

    def test_a_retry_that_is_made_due_now_keeps_its_attempts_and_its_error(
        self, queue: Engine
    ) -> None:
        job_id = queue.enqueue("greet", {})
        queue.process_jobs({"greet": raises(ValueError("no"))})
        before = job(queue, job_id)
        assert queue.run_now(job_id) is True
        assert job(queue, job_id) == before | {"run_at": NOW}
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
        assert job(queue, job_id)["attempts"] == 2

    def test_run_now_returns_false_unless_pending_and_raises_for_an_unknown_job(
        self, full: Engine
    ) -> None:
        def handler(_: Any) -> bool:
            return full.run_now("mine")

        full.enqueue("mine", {}, NOW - 5, job_id="mine")
        full.process_jobs({"mine": handler}, skip_unknown=True)
        assert job(full, "mine")["result"] is False
        before = list(full.jobs())
        for job_id in ("completed-old-a", "failed-old-a", "cancelled-old-a"):
            assert full.run_now(job_id) is False
        with pytest.raises(JobNotFound, match="unknown job_id 'unknown'"):
            full.run_now("unknown")
        assert list(full.jobs()) == before

    def test_stopping_cancels_a_pending_job_and_leaves_a_finished_one_alone(
        self, queue: Engine
    ) -> None:
        waiting = queue.enqueue("greet", {})
        assert queue.stop_job(waiting) == "cancelled"
        assert job(queue, waiting)["status"] == "cancelled"
        done = queue.enqueue("greet", {})
        assert queue.process_jobs({"greet": lambda _: 7}) == NONE | {"completed": 1}
        assert (queue.stop_job(done), job(queue, done)["result"]) == (None, 7)
        with pytest.raises(JobNotFound):
            queue.stop_job("unknown")

    def test_a_stopped_job_that_does_not_complete_is_cancelled_and_never_runs_again(
        self, queue: Engine
    ) -> None:
        def handler(returns: bool, this: Job) -> str:
            assert queue.stop_job(this.id) == "requested"
            if returns:
                return "done"
            raise ValueError("no")

        raised, returned = queue.enqueue("long", False), queue.enqueue("long", True)
        counts = queue.process_jobs({"long": handler})
        assert counts == NONE | {"stopped": 1, "completed": 1}
        found = job(queue, raised)
        assert (found["status"], found["error"]) == ("cancelled", "Stopped by user")
        assert (job(queue, returned)["status"], job(queue, returned)["result"]) == (
            "completed",
            "done",
        )
        assert queue.process_jobs({"long": handler}) == NONE

    def test_a_paused_job_that_is_made_due_now_still_waits(self, queue: Engine) -> None:
        job_id = queue.enqueue("greet", {}, NOW + DAY)
        queue.pause("greet")
        assert queue.run_now(job_id) is True
        assert queue.process_jobs({"greet": raises()}) == NONE
        queue.resume("greet")
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}

    def test_no_other_job_can_be_requeued(self, full: Engine) -> None:
        for job_id in ("pending-old-a", "completed-old-a", "unknown"):
            before = full.get_job(job_id)
            assert full.requeue(job_id) is False
            assert full.get_job(job_id) == before

    def test_requeue_failed_requeues_all_failed_jobs_or_those_of_one_type(
        self, full: Engine
    ) -> None:
        assert full.requeue_failed("b") == 2
        assert full.requeue_failed("unknown") == 0
        assert job(full, "failed-old-b")["status"] == "pending"
        assert job(full, "failed-old-a")["status"] == "failed"
        assert (full.requeue_failed(), full.requeue_failed()) == (2, 0)

    def test_clear_failed_removes_all_failed_jobs_or_those_of_one_type(self, full: Engine) -> None:
        before = self.ids(full)
        assert full.clear_failed("b") == 2
        assert before - self.ids(full) == {"failed-old-b", "failed-new-b"}
        assert (full.clear_failed(), full.clear_failed()) == (2, 0)
        assert full.counts()["failed"] == 0

    def test_remove_type_removes_jobs_of_any_status(self, full: Engine) -> None:
        assert full.remove_type("b") == 8
        assert {job_id[-1] for job_id in self.ids(full)} == {"a"}
        assert full.remove_type("b") == full.remove_type("unknown") == 0

    @pytest.mark.parametrize("status", [None, "completed", "failed", "cancelled"])
    @pytest.mark.parametrize("older_than", [DAY, timedelta(days=1)])
    def test_purge_removes_old_finished_jobs(
        self, full: Engine, status: Any, older_than: Any
    ) -> None:
        before = self.ids(full)
        statuses = [status] if status else ["completed", "failed", "cancelled"]
        gone = {f"{status}-old-{job_type}" for status in statuses for job_type in "ab"}
        assert full.purge(older_than, status) == len(gone)
        assert before - self.ids(full) == gone
        assert (full.purge(older_than, status), full.purge(0, status)) == (0, len(gone))
        assert full.counts()["pending"] == 4

    @pytest.mark.parametrize(
        ("older_than", "status"),
        [(-1, None), (math.nan, None), ("1", None), (True, None), (0, "pending"), (0, "done")],
    )
    def test_invalid_arguments_of_a_purge_are_an_error_and_remove_nothing(
        self, full: Engine, older_than: Any, status: Any
    ) -> None:
        with pytest.raises(InvalidArgument, match=r"invalid (older_than|status)"):
            full.purge(older_than, status)
        assert len(self.ids(full)) == 16

    def test_a_purged_id_can_be_used_by_a_new_job_that_starts_fresh(self, full: Engine) -> None:
        full.purge(DAY)
        assert full.enqueue("new", 1, job_id="failed-old-a") == "failed-old-a"
        found = job(full, "failed-old-a")
        assert (found["status"], found["attempts"], found["error"]) == ("pending", 0, None)
        assert full.process_jobs({"new": raises()}, skip_unknown=True) == NONE | {"completed": 1}

    def test_maintenance_calls_do_not_touch_a_running_job(self, full: Engine) -> None:
        def handler(_: Any) -> str:
            before = job(full, "mine")
            assert before["status"] == "processing"
            assert full.requeue("mine") is False
            full.requeue_failed()
            full.clear_failed()
            assert full.remove_type("mine") == 0
            full.purge(0)
            assert job(full, "mine") == before
            return "ran on"

        full.enqueue("mine", {}, NOW - 5, job_id="mine")
        assert full.process_jobs({"mine": handler}, skip_unknown=True) == NONE | {"completed": 1}
        assert job(full, "mine")["result"] == "ran on"

    # --- listing and counting

    def test_jobs_are_listed_in_enqueue_order_and_filtered_by_status_and_type(
        self, queue: Engine
    ) -> None:
        ids = [queue.enqueue(job_type, {}) for job_type in ("a", "b", "a", "b")]
        queue.cancel_job(ids[1])
        queue.cancel_job(ids[2])

        def found(**which: Any) -> list[str]:
            return [job["id"] for job in queue.jobs(**which)]

        assert found() == ids
        assert found(status="pending") == [ids[0], ids[3]]
        assert found(job_type="a") == [ids[0], ids[2]]
        assert found(status="cancelled", job_type="b") == [ids[1]]
        assert found(status="failed") == found(job_type="c") == []
        assert list(queue.jobs()) == [queue.get_job(job_id) for job_id in ids]

    def test_an_invalid_status_is_an_error_before_iteration(self, queue: Engine) -> None:
        with pytest.raises(InvalidArgument, match="invalid status 'done': must be one of"):
            queue.jobs("done")  # type: ignore[arg-type]

    def test_changes_during_an_iteration_do_not_affect_it(self, queue: Engine) -> None:
        ids = queue.enqueue_many("greet", range(50))
        seen = []
        for found in queue.jobs():
            seen.append((found["id"], found["status"]))
            queue.enqueue("greet", {})
            queue.cancel_job(ids[-len(seen)])
        assert seen == [(job_id, "pending") for job_id in ids]

    def test_counts_name_every_status(self, queue: Engine) -> None:
        seen: list[Any] = []
        assert queue.counts() == EMPTY
        queue.enqueue_many("greet", range(3))
        queue.cancel_job(queue.enqueue("greet", {}))

        def handler(number: int) -> None:
            seen.append(queue.counts())
            if number == 1:
                raise Fail

        queue.process_jobs({"greet": handler})
        assert {sum(counts.values()) for counts in seen} == {4}
        assert {counts["processing"] > 0 for counts in seen} == {True}
        assert queue.counts() == EMPTY | {"completed": 2, "failed": 1, "cancelled": 1}

    def test_all_calls_work_on_an_empty_queue(self, queue: Engine) -> None:
        assert (list(queue.jobs()), queue.process_jobs({})) == ([], NONE)
        assert queue.run_until_complete({}) == NONE
        assert queue.purge(0) == queue.clear_failed() == queue.requeue_failed() == 0

    def test_a_closed_queue_can_be_used_again(self, queue: Engine) -> None:
        queue.close()
        job_id = queue.enqueue("greet", {})
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
        assert job(queue, job_id)["status"] == "completed"
        queue.close()
        queue.close()
