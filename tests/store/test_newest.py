"""The jobs from the newest to the oldest: the same ones as from the oldest to the newest."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers import NOW, add_lines, line, store_of

from dbbasic_queue import Queue
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.store.reading import newest


def check(queue: Queue) -> None:
    """Check the jobs of all statuses, of each, and of some."""
    rows = list(queue.store.rows())
    for statuses in (STATUSES, *((status,) for status in STATUSES), ("failed", "cancelled"), ()):
        found = queue.store.newest(statuses)
        assert found is not None
        expected = [row.id for row in reversed(rows) if row.state.status in statuses]
        assert [row.id for row in found] == expected


@pytest.mark.parametrize("piece", [40, 300, 1 << 16])
def test_the_newest_jobs_are_those_of_the_file_in_reverse_order(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(newest, "_PIECE_BYTES", piece)
    check(queue)
    chance = random.Random(1)
    for turn in range(40):
        name = f"job-{turn}"
        add_lines(
            path,
            line(
                name,
                status=chance.choice(STATUSES),
                payload=f'"{chance.choice(["a", "failed", "x" * 500])}"',
                error=chance.choice(["", "pending"]),
            ),
            *chance.choices(
                ["rubbish\n", "\n", line("bad", payload="{"), line(name), line("last", id="job-0")],
                k=chance.choice([0, 0, 1, 2]),
            ),
        )
        if turn % 4 == 0:
            queue.enqueue("greet", {"turn": turn})
            queue.cancel_job(f"job-{chance.randrange(turn + 1)}")
            queue.requeue(f"job-{chance.randrange(turn + 1)}", run_at=NOW + turn)
        check(queue)


def test_a_status_in_the_journal_counts_and_the_one_in_the_line_does_not(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newest, "_PIECE_BYTES", 200)
    add_lines(path, *(line(f"job-{n}", status="completed") for n in range(30)))
    store = store_of(queue)
    ends = store.lock.read(store._ends)
    assert ends is not None
    ends.records = {b"job-3": b"failed\t5\t5\t1\tno\t", b"job-21": b"pending\t5\t5\t1\t\t"}
    ends.records[b"unknown"] = ends.records[b"job-3"]
    assert [row.id for row in ends.jobs(("failed", "pending"))] == ["job-21", "job-3"]
    completed = [row.id for row in ends.jobs(("completed",))]
    assert len(completed) == 28 and not {"job-3", "job-21"} & set(completed)


def test_the_newest_jobs_of_a_queue_that_another_process_changes(queue: Queue, path: Path) -> None:
    queue.enqueue_many("greet", range(5))
    found = queue.store.newest()
    assert found is not None
    first = next(found)
    with Queue(path) as other:
        other.enqueue("greet", {})
        other.purge(0)
        other.store.remove(lambda row: row.id == first.id)
    assert len([first, *found]) == 5  # as they were when the reading began
    check(queue)


def test_the_newest_jobs_in_memory(clock: object) -> None:
    with Queue("memory:") as queue:
        for number in range(5):
            queue.enqueue("greet", number)
        queue.cancel_job(next(iter(queue.jobs()))["id"])
        check(queue)
