"""A purge or requeue reads the queue without the lock, and respects what others change then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import job, store_of

from dbbasic_queue import Queue
from dbbasic_queue.store.writing import archive
from dbbasic_queue.store.writing.choice import Choice
from dbbasic_queue.store.writing.queue_files import QueueFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers import Clock

    Action = Callable[[], object]
    Scheduling = Callable[[Action], None]


@pytest.fixture
def other(queue: Queue, clock: Clock) -> Iterator[Queue]:
    """The queue, as another process has it."""
    with Queue(queue.path, clock=clock) as other:
        yield other


@pytest.fixture
def after_reading(monkeypatch: pytest.MonkeyPatch) -> Scheduling:
    """Run an action each time after the queue was read and before the lock is acquired."""

    def set_up(action: Action) -> None:
        real = Choice.read

        def read(self: Choice) -> None:
            real(self)
            action()

        monkeypatch.setattr(Choice, "read", read)

    return set_up


@pytest.fixture
def once_archived(monkeypatch: pytest.MonkeyPatch) -> Scheduling:
    """Run an action once, after rows were archived and before the lock is acquired."""

    def set_up(action: Action) -> None:
        real = archive.append_rows

        def append_rows(path: str, lines: list[bytes]) -> None:
            real(path, lines)
            monkeypatch.setattr(archive, "append_rows", real)
            action()

        monkeypatch.setattr(archive, "append_rows", append_rows)

    return set_up


@pytest.fixture
def finished(queue: Queue, clock: Clock) -> None:
    """Three jobs that have failed, an hour ago."""
    for job_id in ("a", "b", "c"):
        queue.enqueue("fail", {}, job_id=job_id)
    queue.process_jobs({"fail": lambda _: 1 / 0}, max_attempts=1)
    clock.now += 3600


def archived(path: Path) -> list[str]:
    return [line.split("\t")[0] for line in path.read_text().splitlines()[1:]]


@pytest.mark.usefixtures("finished")
def test_a_job_requeued_after_it_was_archived_stays_in_the_queue(
    queue: Queue, other: Queue, tmp_path: Path, once_archived: Scheduling
) -> None:
    once_archived(lambda: other.requeue("b"))
    assert queue.purge(60, archive=tmp_path / "archive.tsv") == 2
    assert [(found["id"], found["status"]) for found in queue.jobs()] == [("b", "pending")]
    assert archived(tmp_path / "archive.tsv") == ["a", "b", "c"]


@pytest.mark.usefixtures("finished")
def test_a_job_that_runs_again_after_it_was_archived_stays_with_its_new_outcome(
    queue: Queue, other: Queue, tmp_path: Path, once_archived: Scheduling
) -> None:
    def run_again() -> None:
        other.requeue("b")
        other.process_jobs({"fail": lambda _: "well"})

    once_archived(run_again)
    assert queue.purge(60, archive=tmp_path / "archive.tsv") == 2
    assert job(queue, "b")["result"] == "well"
    assert archived(tmp_path / "archive.tsv") == ["a", "b", "c"]


@pytest.mark.usefixtures("finished")
def test_a_fold_after_rows_were_archived_archives_no_row_twice(
    queue: Queue, other: Queue, tmp_path: Path, once_archived: Scheduling
) -> None:
    def fold() -> None:
        other.enqueue("fail", {}, job_id="d")
        assert other.cancel_job("d")

    once_archived(fold)
    assert queue.purge(60, archive=tmp_path / "archive.tsv") == 3
    assert [found["id"] for found in queue.jobs()] == ["d"]
    assert archived(tmp_path / "archive.tsv") == ["a", "b", "c"]


def test_jobs_added_and_changed_while_a_removal_reads_the_queue_are_removed_too(
    queue: Queue, other: Queue, after_reading: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = store_of(other).files  # as in a long queue:
    monkeypatch.setattr(files, "is_fold_cheap", lambda *_: False)
    queue.enqueue_many("greet", range(3))
    queue.enqueue("other", {})

    def enqueue_and_cancel() -> None:
        other.enqueue("other", {})
        assert other.cancel_job(other.enqueue("greet", {}))

    after_reading(enqueue_and_cancel)
    assert queue.remove_type("greet") == 4
    assert [found["type"] for found in queue.jobs()] == ["other"] * 2


@pytest.mark.usefixtures("finished")
def test_a_job_that_fails_while_a_requeue_reads_the_queue_is_requeued_too(
    queue: Queue, other: Queue, after_reading: Scheduling
) -> None:
    other.enqueue("fail", {}, job_id="d")
    after_reading(lambda: other.process_jobs({"fail": lambda _: 1 / 0}, max_attempts=1))
    assert queue.requeue_failed() == 4
    assert queue.counts()["pending"] == 4


@pytest.mark.usefixtures("finished")
def test_a_job_that_is_requeued_while_a_requeue_of_all_reads_the_queue_is_not_counted(
    queue: Queue, other: Queue, after_reading: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_of(other).files, "is_fold_cheap", lambda *_: False)
    after_reading(lambda: other.requeue("b"))
    assert queue.requeue_failed() == 2
    assert queue.counts()["pending"] == 3


@pytest.mark.usefixtures("finished")
def test_a_removal_ends_even_if_others_fold_after_each_of_its_reads(
    queue: Queue, other: Queue, after_reading: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueueFiles, "is_fold_cheap", lambda *_: True)  # also on a busy machine
    folds = 0

    def fold() -> None:
        nonlocal folds
        folds += 1
        if folds <= 3:  # the fourth reading is under the lock
            assert other.cancel_job(other.enqueue("greet", {}))

    after_reading(fold)
    assert queue.clear_failed() == 3
    assert folds == 4
    assert queue.counts()["cancelled"] == 3


def test_a_long_queue_is_read_without_the_lock(
    queue: Queue, other: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call with the caller's own id reads the whole file."""
    monkeypatch.setattr("dbbasic_queue.store.writing.queue_files._MUCH_BYTES", 1000)
    other.enqueue_many("greet", range(100))
    real = store_of(queue).view.refresh
    added: list[str] = []

    def refresh() -> None:
        real()
        if not added:
            added.append(other.enqueue("greet", {}))  # QueueBusy if the lock is held

    monkeypatch.setattr("dbbasic_queue.store.disk.lock.PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(store_of(queue).view, "refresh", refresh)
    queue.enqueue("greet", {}, job_id="own")
    assert [found["id"] for found in queue.jobs()][100:] == [*added, "own"]
