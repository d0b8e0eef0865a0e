"""The log of passes, and the latest attempts: what `status`, `show` and `watch` read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from helpers import NONE, NOW, at_once

from dbbasic_queue import Fail, Handler, Queue
from dbbasic_queue.monitoring.status import Status
from dbbasic_queue.store.pass_log import encode_row

if TYPE_CHECKING:
    from pathlib import Path

    from contract.conftest import Opener
    from dbbasic_queue.engines.protocol import Engine
    from dbbasic_queue.store.protocol import Store
    from dbbasic_queue.testing import Clock


def fail(_: object) -> None:
    raise Fail("no")


def store_of(queue: Engine) -> Store:
    return cast("Queue", queue).store


class TestPassLog:
    def test_every_pass_leaves_a_row_also_an_idle_one(self, queue: Engine, clock: Clock) -> None:
        handlers: dict[str, Any] = {"good": Handler(str, concurrency=2), "bad": fail}
        queue.enqueue_many("good", range(3))
        queue.enqueue("bad", {})
        queue.process_jobs(handlers, skip_unknown=True)
        clock.now += 60
        queue.process_jobs(handlers)
        first, second = store_of(queue).passes()
        assert first.counts == NONE | {"completed": 3, "failed": 1}
        assert (second.counts, second.ended_at - first.ended_at) == (NONE, 60)
        assert (first.types, second.types) == ("good=2 bad", "good=2 bad *")
        assert 0 <= first.seconds < 60
        assert first.worker.rpartition(".")[2].isdecimal()

    def test_rows_of_concurrent_passes_are_all_kept_in_the_order_of_their_ends(
        self, queue: Engine
    ) -> None:
        queue.enqueue("work", {})
        rows = [encode_row(NOW + n, 1.5, f"type-{n}", NONE) for n in range(8)]
        at_once(*(lambda row=row: store_of(queue).note_pass(row) for row in rows))
        found = store_of(queue).passes()
        assert [ended.types for ended in found] == [f"type-{n}" for n in range(8)]
        assert {ended.seconds for ended in found} == {1.5}

    def test_many_passes_leave_at_least_the_last_hundred_rows(self, queue: Engine) -> None:
        queue.enqueue("work", {})
        for number in range(120):
            store_of(queue).note_pass(encode_row(NOW + number, 0.1, "work", NONE))
        found = store_of(queue).passes()
        assert len(found) >= 100
        assert [int(ended.ended_at - NOW) for ended in found] == [*range(120)][-len(found) :]

    def test_a_new_queue_has_no_passes_and_no_attempts(self, queue: Engine) -> None:
        queue.enqueue("work", {})
        assert (store_of(queue).passes(), store_of(queue).latest(5)) == ([], [])

    def test_the_latest_attempts_are_those_that_ended_last(
        self, queue: Engine, clock: Clock
    ) -> None:
        for number in range(6):
            queue.enqueue("bad" if number % 2 else "good", {}, job_id=f"job-{number}")
            queue.process_jobs({"good": str, "bad": fail})
            clock.now += 1000
        found = store_of(queue).latest(3)
        assert [(attempt.id, attempt.outcome) for attempt in found] == [
            ("job-3", "failed"),
            ("job-4", "completed"),
            ("job-5", "failed"),
        ]
        assert len(store_of(queue).latest(100)) == 6

    def test_the_verdict_knows_passes_of_other_processes(
        self, queue: Engine, open_at: Opener, tmp_path: Path, clock: Clock
    ) -> None:
        for _ in range(10):
            queue.enqueue("other", {}, run_at=NOW)
            queue.process_jobs({"work": str}, skip_unknown=True)
            clock.now += 60
        now = clock.now - 60
        with open_at(tmp_path) as another:
            verdicts = [Status(store_of(another), now + after).verdict.word for after in (119, 121)]
        assert verdicts == ["idle", "stalled"]
