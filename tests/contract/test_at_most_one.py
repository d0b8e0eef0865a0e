"""`exist_ok` and `unique`: a job is added unless it is there already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from helpers import DAY, EMPTY, NONE, NOW, at_once, job, raises

from dbbasic_queue import DuplicateJob, Fail, InvalidArgument, InvalidJob
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from dbbasic_queue.engines.protocol import Engine


class TestAtMostOne:
    """What `enqueue` promises with `exist_ok` and with `unique`."""

    # --- exist_ok

    def test_an_id_that_exists_is_returned_whatever_its_job_is(self, queue: Engine) -> None:
        ends = {"completed": raises(), "failed": raises(Fail("no"))}
        for status in ("completed", "failed", "cancelled", "pending"):
            assert queue.enqueue(status, 1, job_id=f"my-{status}", exist_ok=True) == f"my-{status}"
        queue.cancel_job("my-cancelled")
        queue.process_jobs(ends, skip_unknown=True)
        before = list(queue.jobs())
        for status in ("completed", "failed", "cancelled", "pending"):
            again = queue.enqueue("other", {}, NOW + 60, job_id=f"my-{status}", exist_ok=True)
            assert again == f"my-{status}"
            assert job(queue, again)["status"] == status
        assert list(queue.jobs()) == before

    def test_the_id_of_a_running_job_is_returned(self, queue: Engine) -> None:
        def handler(_: Any) -> str:
            return queue.enqueue("greet", 2, job_id="sync", exist_ok=True)

        queue.enqueue("greet", 1, job_id="sync")
        queue.process_jobs({"greet": handler})
        assert [found["result"] for found in queue.jobs()] == ["sync"]

    def test_a_job_with_an_id_is_added_once_by_concurrent_callers_that_accept_one(
        self, queue: Engine
    ) -> None:
        ids: list[str] = []
        add = lambda: ids.append(queue.enqueue("greet", {}, job_id="sync", exist_ok=True))  # noqa: E731
        at_once(*[add] * 8)
        assert ids == ["sync"] * 8
        assert queue.counts() == EMPTY | {"pending": 1}
        with pytest.raises(DuplicateJob):
            queue.enqueue("greet", {}, job_id="sync")

    def test_the_id_of_a_removed_job_is_used_again(self, queue: Engine) -> None:
        queue.enqueue("greet", 1, job_id="sync", exist_ok=True)
        queue.remove_type("greet")
        assert queue.enqueue("greet", 2, job_id="sync", exist_ok=True) == "sync"
        assert job(queue, "sync")["payload"] == 2

    # --- unique

    def test_a_pending_job_of_the_same_type_and_payload_is_found_and_left_alone(
        self, queue: Engine
    ) -> None:
        first = queue.enqueue("sync", {"id": 42, "to": "é"}, NOW + 60, unique="pending")
        before = list(queue.jobs())
        assert queue.enqueue("sync", {"id": 42, "to": "é"}, unique="pending") == first
        assert queue.enqueue("sync", {"to": "é", "id": 42}, NOW + 9, unique="pending") == first
        assert list(queue.jobs()) == before

    def test_a_job_that_was_enqueued_without_unique_is_found(self, queue: Engine) -> None:
        ids = [*queue.enqueue_many("sync", [1, 2]), queue.enqueue("sync", 3, job_id="mine")]
        assert [queue.enqueue("sync", n, unique="pending") for n in (1, 2, 3)] == ids
        assert queue.enqueue("sync", None, unique="pending") not in ids
        assert queue.enqueue("sync", {}, unique="pending") == list(queue.jobs())[-1]["id"]

    @pytest.mark.parametrize(
        ("one", "other"),
        [(1, 2), (1, "1"), (1, 1.0), (1, True), ([1, 2], [2, 1]), ({"a": 1}, {"a": 1, "b": 1})],
    )
    def test_another_payload_or_type_is_another_job(
        self, queue: Engine, one: Any, other: Any
    ) -> None:
        first = queue.enqueue("sync", one, unique="pending")
        second = queue.enqueue("sync", other, unique="pending")
        third = queue.enqueue("sync.all", one, unique="pending")
        assert len({first, second, third}) == 3
        assert [found["payload"] for found in queue.jobs()] == [one, other, one]

    def test_a_running_job_does_not_count(self, queue: Engine) -> None:
        def handler(payload: Any) -> list[str]:
            return [queue.enqueue("sync", payload, unique="pending") for _ in range(2)]

        first = queue.enqueue("sync", 1, unique="pending")
        assert queue.enqueue("sync", 1, unique="pending") == first
        assert queue.process_jobs({"sync": handler}) == NONE | {"completed": 1}
        second = next(found["id"] for found in queue.jobs("pending"))
        assert job(queue, first)["result"] == [second, second]

    def test_finished_jobs_do_not_count(self, queue: Engine) -> None:
        ids = []
        for end in (raises(), raises(Fail("no"))):
            ids.append(queue.enqueue("sync", 1, unique="pending"))
            assert queue.enqueue("sync", 1, unique="pending") == ids[-1]
            queue.process_jobs({"sync": end})
        ids.append(queue.enqueue("sync", 1, unique="pending"))
        queue.cancel_job(ids[-1])
        ids.append(queue.enqueue("sync", 1, unique="pending"))
        assert len(set(ids)) == 4
        assert queue.counts() == EMPTY | dict.fromkeys(
            ("completed", "failed", "cancelled", "pending"), 1
        )

    def test_a_job_that_is_pending_again_counts(self, queue: Engine, clock: Clock) -> None:
        failed, cancelled, retried = (
            queue.enqueue("sync", payload, unique="pending") for payload in "fcr"
        )
        for payload, job_id in zip("fcr", (failed, cancelled, retried), strict=True):
            assert queue.enqueue("sync", payload, unique="pending") == job_id
        queue.cancel_job(cancelled)
        queue.cancel_job(queue.enqueue("sync", "c", unique="pending"))
        ends = {"f": Fail("no"), "r": ValueError("not now")}

        def handler(payload: str) -> None:
            raise ends[payload]

        assert queue.process_jobs({"sync": handler}) == NONE | {"failed": 1, "retried": 1}
        assert queue.enqueue("sync", "r", unique="pending") == retried
        assert queue.requeue(cancelled)
        assert queue.enqueue("sync", "c", unique="pending") == cancelled
        assert queue.requeue_failed() == 1
        assert queue.enqueue("sync", "f", unique="pending") == failed
        assert queue.counts() == EMPTY | {"pending": 3, "cancelled": 1}
        clock.move(DAY)
        queue.process_jobs({"sync": raises()})
        assert queue.enqueue("sync", "r", unique="pending") != retried

    def test_removed_jobs_do_not_count_and_the_others_are_still_found(self, queue: Engine) -> None:
        for n in range(6):
            queue.enqueue("odd" if n % 2 else "even", n // 2, unique="pending", run_at=NOW + n)
        queue.remove_type("odd")
        kept = [found["id"] for found in queue.jobs()]
        assert [queue.enqueue("even", n, unique="pending") for n in range(3)] == kept
        again = [queue.enqueue("odd", n, unique="pending") for n in range(3)]
        assert [found["id"] for found in queue.jobs()] == kept + again

    def test_only_one_of_many_concurrent_callers_adds_a_unique_job(self, queue: Engine) -> None:
        ids: list[str] = []

        def add() -> None:
            ids.extend(queue.enqueue("sync", n % 5, unique="pending") for n in range(20))

        at_once(*[add] * 8)
        assert queue.counts() == EMPTY | {"pending": 5}
        assert set(ids) == {found["id"] for found in queue.jobs()}

    # --- arguments

    @pytest.mark.parametrize(
        "arguments",
        [
            {"exist_ok": True},
            {"unique": "running"},
            {"unique": True},
            {"unique": ""},
            {"unique": "pending", "job_id": "mine"},
            {"unique": "pending", "job_id": "mine", "exist_ok": True},
            {"unique": "pending", "exist_ok": True},
        ],
    )
    def test_arguments_that_do_not_fit_together_are_an_error(
        self, queue: Engine, arguments: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidArgument, match=r"invalid (exist_ok|unique) "):
            queue.enqueue("sync", {}, **arguments)
        assert list(queue.jobs()) == []

    def test_invalid_jobs_are_refused_as_without_these_arguments(self, queue: Engine) -> None:
        queue.enqueue("sync", {}, job_id="mine")
        once: list[dict[str, Any]] = [{"unique": "pending"}, {"job_id": "mine", "exist_ok": True}]
        for more in once:
            with pytest.raises(InvalidJob, match="invalid payload"):
                queue.enqueue("sync", {1, 2}, **more)
            with pytest.raises(InvalidJob, match="invalid job type"):
                queue.enqueue("a b", {}, **more)
        with pytest.raises(InvalidJob, match="invalid job_id"):
            queue.enqueue("sync", {}, job_id="a b", exist_ok=True)
        assert len(list(queue.jobs())) == 1
