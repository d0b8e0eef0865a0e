"""System calls fail: the error is clear, and nothing is lost or half done.

Each file call of the workloads fails with each error number that it can raise: once, or from that
point on until the cause is gone. By default a sample of them; all with DBBASIC_QUEUE_LONG=1.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import QUEUE, Programs, fill, notes, small_disk
from sweeps import sweep
from test_kill_sweep import LONG
from workloads import WORKLOADS

from dbbasic_queue import Queue, StoreError
from dbbasic_queue.store.writing.queue_files import QueueFiles


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_failed_file_call_raises_and_changes_nothing_and_later_calls_work(workload: str) -> None:
    sweep("errors", workload, every=1 if LONG else 23)


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_second_failed_call_in_the_repair_or_retry_also_raises_and_changes_nothing(
    workload: str,
) -> None:
    sweep("pairs", workload, every=1 if LONG else 99)


# -- a real disk that fills up -------------------------------------------------------------------


def _pass(queue: Queue, handlers: dict[str, Any]) -> int:
    """Make a pass; return the number of the error that it raised, or 0."""
    try:
        queue.process_jobs(handlers)
    except StoreError as e:
        assert e.errno in (errno.ENOSPC, errno.EDQUOT), e
        assert e.filename
        return e.errno or 0
    return 0


def test_on_a_full_disk_no_job_is_started_and_all_run_once_there_is_space(
    tmp_path: Path,
) -> None:
    runs: Counter[int] = Counter()

    def count(payload: Any) -> Any:
        runs[payload["n"]] += 1

    with small_disk(tmp_path / "disk", "64k") as place:
        queue = Queue(place / "data" / "queue.tsv")
        queue.enqueue_many("count", [{"n": n} for n in range(50)])
        fill(place)
        refused = sum(_pass(queue, {"count": count}) != 0 for _ in range(5))
        assert refused == 5
        assert not runs
        (place / "filler").unlink(missing_ok=True)
        assert _pass(queue, {"count": count}) == 0
        assert queue.counts()["completed"] == 50
        assert set(runs.values()) == {1}
        queue.close()
    print(f"full tmpfs: {refused} passes refused")


def test_the_error_of_a_disk_that_fills_up_during_a_pass_admits_that_jobs_ran(
    tmp_path: Path,
) -> None:
    def handler(_: object) -> str:
        fill(place)
        return "x" * 5000  # uses the reserved space

    with small_disk(tmp_path / "disk", "64k") as place:
        queue = Queue(place / "data" / "queue.tsv")
        queue.enqueue_many("fill", [1, 2])
        with pytest.raises(StoreError, match="no further job was started; the disk is full"):
            queue.process_jobs({"fill": handler})
        assert queue.counts()["completed"] == 1
        queue.close()


def test_a_pause_on_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as place:
        queue = Queue(place / "data" / "queue.tsv")
        queue.enqueue("work", {})
        fill(place)
        before = set(os.listdir(place / "data"))
        with pytest.raises(StoreError, match="disk is full"):
            queue.pause("work")
        assert set(os.listdir(place / "data")) == before
        assert queue.store.paused() == frozenset()
        queue.close()


def test_a_cancellation_on_a_full_disk_says_that_nothing_was_changed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as place:
        queue = Queue(place / "data" / "queue.tsv")
        job_id = queue.enqueue("work", {})
        fill(place)
        with pytest.raises(StoreError, match="nothing was changed; the disk is full"):
            while True:  # until the journal needs another block
                queue.cancel_job(job_id)
                queue.requeue(job_id)
        queue.close()


@pytest.mark.parametrize("jobs", [1, 40])
def test_a_disk_that_fills_up_inside_a_handler_has_space_for_the_outcome(
    tmp_path: Path, jobs: int
) -> None:
    runs: Counter[int] = Counter()
    removed: list[bool] = []

    with small_disk(tmp_path / "disk", "64k") as place:

        def handler(payload: Any) -> Any:
            runs[payload["n"]] += 1
            if not removed:
                fill(place)
            return "done"

        queue = Queue(place / "data" / "queue.tsv")
        queue.enqueue_many("fill", [{"n": n} for n in range(jobs)])
        for _ in range(6):
            _pass(queue, {"fill": handler})
        assert set(runs.values()) <= {1}
        (place / "filler").unlink(missing_ok=True)
        removed.append(True)
        assert _pass(queue, {"fill": handler}) == 0
        assert queue.counts()["completed"] == jobs
        assert set(runs.values()) == {1}
        queue.close()


def test_a_job_whose_result_does_not_fit_on_the_disk_does_not_run_again(
    tmp_path: Path,
) -> None:
    runs: Counter[int] = Counter()

    with small_disk(tmp_path / "disk", "64k") as place:

        def handler(payload: Any) -> Any:
            runs[payload["n"]] += 1
            fill(place)
            return "x" * 30_000

        queue = Queue(place / "data" / "queue.tsv")
        queue.enqueue("fill", {"n": 1})
        for _ in range(4):
            _pass(queue, {"fill": handler})
            (place / "filler").unlink(missing_ok=True)
        assert runs == {1: 1}
        (job,) = queue.jobs()
        assert job["status"] == "completed"
        queue.close()


def test_on_a_disk_that_fills_up_each_job_is_refused_or_run_once(
    tmp_path: Path,
) -> None:
    """Enqueue until the disk is full, run, and repeat: each accepted job runs once."""
    runs: Counter[str] = Counter()
    kept: list[str] = []
    refused = 0

    def work(payload: Any) -> Any:
        runs[payload["k"]] += 1
        return {"echo": payload["k"]}

    with small_disk(tmp_path / "disk", "64k") as place:
        queue = Queue(place / "data" / "queue.tsv")
        for n in range(1000):
            key = f"{n}:" + "k" * (n % 700)
            try:
                queue.enqueue("work", {"k": key})
                kept.append(key)
            except StoreError as e:
                assert e.errno == errno.ENOSPC
                assert e.filename
                refused += 1
            if n % 10 == 9:
                _pass(queue, {"work": work})
        there = [job["payload"]["k"] for job in queue.jobs()]
        assert there == kept
        assert refused
        assert max(runs.values()) == 1
        assert set(runs) <= set(kept)
        done = [job["payload"]["k"] for job in queue.jobs("completed")]
        assert set(done) == set(runs)
        subprocess.run(["mount", "-o", "remount,size=1m", str(place)], check=True)
        assert _pass(queue, {"work": work}) == 0
        assert queue.counts()["completed"] == len(kept)
        assert set(runs.values()) == {1}
        assert os.stat(queue.path + ".journal").st_size == 0
        queue.close()
    print(f"tmpfs of 64 kB: {len(kept)} jobs taken, {refused} refused")


def test_an_outcome_that_fails_twice_undoes_no_acknowledged_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the disk is full for the sync and then, after space was freed, for the write."""
    monkeypatch.setattr(QueueFiles, "is_fold_cheap", lambda *_: False)  # as in a long queue
    queue = Queue(tmp_path / "data" / "queue.tsv")
    kept = queue.enqueue("work", {}, run_at=time.time() + 9999)
    queue.enqueue_many("work", [1, 2, 3])
    assert queue.cancel_job(kept)
    refused: list[str] = []
    real_sync, real_write = os.fdatasync, os.write

    def sync(fd: int) -> None:
        if refused == ["handler"]:
            refused.append("sync")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_sync(fd)

    def write(fd: int, content: bytes) -> int:
        if "sync" in refused and content.count(b"\t") == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(fd, content)

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StoreError):
        queue.process_jobs({"work": lambda _: refused.append("handler")})
    assert "sync" in refused
    monkeypatch.setattr(os, "fdatasync", real_sync)
    monkeypatch.setattr(os, "write", real_write)
    job = Queue(queue.path).get_job(kept)
    assert job is not None
    assert job["status"] == "cancelled"


def test_a_purge_on_a_full_disk_only_needs_space_for_the_rows_that_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueueFiles, "is_fold_cheap", lambda *_: False)  # so the journal has records
    with small_disk(tmp_path / "disk", "64k") as place:
        queue = Queue(place / "data" / "queue.tsv", clock=lambda: 1000)
        queue.enqueue_many("work", range(200))
        queue.process_jobs({"work": lambda _: None})
        queue.enqueue_many("work", range(3))
        kept = queue.enqueue("work", {}, job_id="kept")
        for row in [*queue.jobs("pending")][:3]:
            assert queue.cancel_job(row["id"])
        fill(place)
        before = {name.name: name.read_bytes() for name in (place / "data").iterdir()}
        with Queue(queue.path, clock=lambda: 2000) as other:
            with pytest.raises(StoreError, match="nothing was removed; the rows that stay take"):
                other.purge(1)
            assert {name.name: name.read_bytes() for name in (place / "data").iterdir()} == before
            filler = place / "filler"
            os.truncate(filler, filler.stat().st_size - 4096)
            assert other.purge(1) == 203
        assert [row["id"] for row in queue.jobs()] == [kept]
        assert os.stat(queue.path + ".journal").st_size == 0
        queue.close()


LEAKS = """
import fcntl, resource, subprocess

ANOTHER = '''
import sys
from dbbasic_queue import Queue

with Queue("data/queue.tsv") as queue:
    print("ready", flush=True)
    for line in sys.stdin:  # this folds
        print(queue.cancel_job(line.strip()), flush=True)
'''
queue.enqueue("leak", {}, job_id="leak")
queue.enqueue("other", {}, job_id="next")
queue.enqueue("other", {}, run_at=time.time() + 999, job_id="later")
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
another = subprocess.Popen([sys.executable, "-c", ANOTHER], **pipes)
assert another.stdout.readline() == "ready\\n"
leaked = []

def leak(payload):
    note("runs", "leak")
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    try:
        while True:
            leaked.append(os.dup(0))
    except OSError:
        pass
    another.stdin.write("later\\n")
    another.stdin.flush()
    assert another.stdout.readline() == "True\\n"
    return "done"

runs = os.open("runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # later none may be left
handlers = {"leak": leak, "other": lambda payload: os.write(runs, b"next\\n") and None}
try:
    queue.process_jobs(handlers)
except OSError as e:
    note("error", str(e))
for fd in leaked:
    os.close(fd)
another.stdin.close()
another.wait()
queue.process_jobs(handlers)
"""


def test_a_job_that_uses_all_descriptors_is_recorded_even_if_another_process_has_folded(
    tmp_path: Path,
) -> None:
    with Programs(tmp_path) as programs:
        programs.run(LEAKS)
    assert notes(tmp_path / "runs") == ["leak", "next"]
    (error,) = notes(tmp_path / "error")
    assert "too many open files" in error.lower()
    jobs = {job["id"]: job for job in Queue(tmp_path / QUEUE).jobs()}
    assert (jobs["leak"]["status"], jobs["leak"]["result"]) == ("completed", "done")
    assert [jobs[name]["attempts"] for name in ("leak", "next")] == [1, 1]
