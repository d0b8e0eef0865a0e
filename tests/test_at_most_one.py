"""`exist_ok` and `unique` in the module's functions, coroutines, the registry and the fixture."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from helpers import rows

from dbbasic_queue import DuplicateJob, Handlers, InvalidArgument, InvalidJob, Queue
from dbbasic_queue import queue as module

if TYPE_CHECKING:
    from pathlib import Path

    from dbbasic_queue.testing import JobQueue


@pytest.fixture
def default(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the default queue."""
    monkeypatch.setenv("DBBASIC_QUEUE_FILE", str(path))
    return path


def test_the_module_functions_add_a_job_at_most_once(default: Path) -> None:
    first = module.enqueue("sync", {"a": 1}, unique="pending")
    assert module.enqueue("sync", {"a": 1}, unique="pending") == first
    for _ in range(2):
        assert module.enqueue("sync", 2, job_id="mine", exist_ok=True) == "mine"
    with pytest.raises(DuplicateJob):
        module.enqueue("sync", 2, job_id="mine")
    assert len(rows(default)) == 2


def test_coroutines_add_a_job_at_most_once(default: Path) -> None:
    async def add() -> set[str]:
        unique = [module.aenqueue("sync", {}, unique="pending") for _ in range(9)]
        own = [module.aenqueue("sync", 1, job_id="mine", exist_ok=True) for _ in range(9)]
        return set(await asyncio.gather(*unique, *own))

    assert len(asyncio.run(add())) == len(rows(default)) == 2


def test_a_registered_function_adds_a_job_at_most_once(queue: Queue) -> None:
    jobs = Handlers(queue=queue)

    @jobs.handler(unpack=True)
    def add(a: int, b: int = 0) -> int:
        return a + b

    first = add.enqueue({"a": 1, "b": 2}, unique="pending")
    assert add.enqueue({"b": 2, "a": 1}, unique="pending") == first
    assert add.enqueue({"a": 1}, job_id="mine", exist_ok=True) == "mine"
    assert add.enqueue({"a": 2}, job_id="mine", exist_ok=True) == "mine"
    with pytest.raises(InvalidJob):
        add.enqueue({"c": 1}, unique="pending")
    with pytest.raises(InvalidArgument):
        add.enqueue({"a": 1}, exist_ok=True)
    assert [job["payload"] for job in queue.jobs()] == [{"a": 1, "b": 2}, {"a": 1}]


def test_the_fixture_has_the_calls(job_queue: JobQueue) -> None:
    first = module.enqueue("sync", {"a": 1}, unique="pending")
    assert Queue("data/other.tsv").enqueue("sync", {"a": 1}, unique="pending") == first
    assert job_queue.edit_job(first, {"a": 2})
    assert job_queue.assert_enqueued("sync", a=2)["id"] == first


def test_exist_ok_is_true_or_false(default: Path) -> None:
    with pytest.raises(InvalidArgument, match="invalid exist_ok 'no': must be True or False"):
        module.enqueue("sync", 1, job_id="mine", exist_ok="no")  # type: ignore[arg-type]
    assert not default.exists()
