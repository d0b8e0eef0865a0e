"""`edit_job` in the text file: one atomic rewrite, which passes and other processes notice."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NOW, TERMS, add_lines, job, line, raises, row, rows, sibling, store_of

from dbbasic_queue import Fail, NotAQueue, Queue, StoreError
from dbbasic_queue.store.writing.queue_files import QueueFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers import Clock


@pytest.fixture
def other(queue: Queue, clock: Clock) -> Iterator[Queue]:
    """The queue, as another process has it."""
    with Queue(queue.path, clock=clock) as other:
        yield other


@pytest.mark.parametrize("is_known", [True, False])
def test_a_pass_that_has_chosen_a_job_claims_it_with_its_new_payload(
    queue: Queue, other: Queue, is_known: bool
) -> None:
    """`is_known` is whether the pass's own process makes the edit."""
    queue.enqueue_many("greet", ["a", "b", "c"])
    claims = store_of(queue).open_claims(TERMS, NOW, 1)
    assert claims.find_due(NOW)
    chosen = claims._due.candidates(3, {}, NOW)
    assert [claim.payload for claim in chosen] == ["a", "b", "c"]
    assert (queue if is_known else other).edit_job(chosen[1].row.id, "edited")
    assert [claim.payload for claim in claims._claim(chosen)] == ["a", "c"]
    assert [claim.payload for claim in claims.claim(3, NOW)] == ["edited"]
    claims.abandon()


def test_an_edit_keeps_the_changes_that_were_only_in_the_journal(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueueFiles, "is_fold_cheap", lambda *_: False)  # as in a long queue
    ids = queue.enqueue_many("greet", ["a", "b", "c", "d"], NOW + 60)
    queue.run_now(ids[1])
    queue.cancel_job(ids[2])
    add_lines(path, "not a job\n", line("shell", payload='"e"'))
    before = {found["id"]: found for found in queue.jobs()}
    assert sibling(path, "journal").stat().st_size
    assert queue.edit_job(ids[1], "B") and queue.edit_job("shell", {"long": "x" * 5000})
    assert sibling(path, "journal").stat().st_size == 0
    before[ids[1]]["payload"], before["shell"]["payload"] = "B", {"long": "x" * 5000}
    for reader in (queue, Queue(path)):
        assert {found["id"]: found for found in reader.jobs()} == before
    assert (row(path, ids[1])["payload"], row(path, ids[2])["status"]) == ('"B"', "cancelled")
    assert path.read_text().splitlines()[5] == "not a job"


def test_other_processes_see_the_new_payload(queue: Queue, other: Queue) -> None:
    ids = queue.enqueue_many("greet", [f"job {n}" for n in range(50)])
    for _ in range(3):  # the third look-up builds an index
        job(other, ids[7])
    store_of(other).view.line(7, ahead=1 << 16)
    for payload in ("JOB 7", "another length", "x", "JOB 7"):
        assert queue.edit_job(ids[7], payload)
        assert job(other, ids[7])["payload"] == payload
        assert [job(other, i)["payload"] for i in ids[6:9:2]] == ["job 6", "job 8"]
    seen: list[Any] = []
    other.process_jobs({"greet": seen.append})
    assert seen == [f"job {n}" if n != 7 else "JOB 7" for n in range(50)]


def test_a_purge_that_has_chosen_its_jobs_leaves_an_edit_alone(queue: Queue, other: Queue) -> None:
    done, waiting = queue.enqueue_many("greet", ["done", "waiting"])
    queue.process_jobs({"greet": lambda payload: 0})
    queue.requeue(waiting)
    waiting = queue.enqueue("greet", "waiting", NOW + 60)
    edits: list[bool] = []

    def is_unwanted(found: Any) -> bool:
        if not edits:
            edits.append(other.edit_job(waiting, "edited"))
        return bool(found.id == done)

    assert store_of(queue).remove(is_unwanted) == 1
    assert edits == [True]
    assert job(queue, waiting)["payload"] == "edited"


def test_a_row_whose_payload_is_not_json_cannot_be_edited(queue: Queue, path: Path) -> None:
    add_lines(path, line("bad", payload="{"))
    with pytest.raises(LookupError):
        queue.edit_job("bad", {})


def test_an_edit_that_the_system_refuses_changes_nothing(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue.enqueue("greet", "old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        with pytest.raises(StoreError, match="the queue is as it was"):
            queue.edit_job(job_id, "new")
    assert job(queue, job_id)["payload"] == "old"
    assert sorted(os.listdir(path.parent)) == ["queue.tsv", "queue.tsv.lock"]
    assert queue.edit_job(job_id, "new")


def test_an_edit_whose_rename_cannot_be_synced_says_that_it_was_made(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue.enqueue("greet", "old")
    queue.run_now(job_id)
    real = os.fsync

    def refuse_directories(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse_directories)
        with pytest.raises(StoreError, match="the change was made, but may not survive"):
            queue.edit_job(job_id, "new")
    assert job(queue, job_id)["payload"] == "new"


def test_requeue_failed_by_error_requeues_a_job_whose_failure_is_only_in_the_journal(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueueFiles, "is_fold_cheap", lambda *_: False)
    monkeypatch.setattr(QueueFiles, "try_fold", lambda _: None)
    for error in ("SMTP 450", "other"):
        queue.enqueue(error.split()[0], {})
    queue.process_jobs({"SMTP": raises(Fail("SMTP 450")), "other": raises(Fail("no"))})
    assert {columns[3] for columns in rows(path)} == {"pending"}
    assert queue.requeue_failed(error="SMTP") == 1
    assert queue.counts()["failed"] == 1


def test_a_dry_run_checks_the_archive_and_creates_nothing(
    queue: Queue, path: Path, clock: Clock
) -> None:
    queue.cancel_job(queue.enqueue("greet", {}))
    clock.now += 1
    before = sorted(os.listdir(path.parent))
    archive = path.with_name("archive.tsv")
    assert queue.purge(0, archive=archive, dry_run=True) == 1
    assert sorted(os.listdir(path.parent)) == before
    archive.write_text("something else\n")
    with pytest.raises(NotAQueue):
        queue.purge(0, archive=archive, dry_run=True)
    assert len(rows(path)) == 1
