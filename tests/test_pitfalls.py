"""Bugs that other queues have had: each test shows that one of them doesn't happen here."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import resource
import signal
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    NONE,
    NOW,
    TERMS,
    Clock,
    add_lines,
    held,
    is_free,
    job,
    join,
    line,
    python,
    row,
    rows,
    sibling,
    store_of,
)

from dbbasic_queue import InvalidJob, Queue, StoreError
from dbbasic_queue.model.records import encode_record, encode_state
from dbbasic_queue.model.states import State
from dbbasic_queue.store.claiming.claims import Claims

if TYPE_CHECKING:
    from pathlib import Path

TEN_YEARS = 10 * 365 * 86400


def raise_(error: BaseException) -> None:
    raise error


# --- locks


def test_a_deleted_lock_file_does_not_let_two_processes_in(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", {})
    sibling(path, "lock").unlink()  # the queue still has the deleted file open
    with held(store_of(queue).lock):
        assert not is_free(sibling(path, "lock"))


def enqueue_waits_for(queue: Queue, lock_file: Path) -> bool:
    """Return whether an enqueue waits while another open file holds the lock."""
    with lock_file.open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=queue.enqueue, args=("greet", {}))
        thread.start()
        thread.join(0.2)
        waits = thread.is_alive()
    join(thread, "the enqueue")
    return waits


def test_an_enqueue_waits_for_the_lock_file_that_replaced_a_deleted_one(
    queue: Queue, path: Path
) -> None:
    queue.enqueue("greet", {})
    sibling(path, "lock").unlink()
    sibling(path, "lock").touch()
    assert enqueue_waits_for(queue, sibling(path, "lock"))


def test_an_enqueue_waits_for_the_lock_of_the_directory_that_replaced_a_moved_one(
    queue: Queue, path: Path
) -> None:
    queue.enqueue("greet", {})
    path.parent.rename(path.parent.with_name("elsewhere"))
    with Queue(path) as other:
        other.enqueue("greet", {})
    assert enqueue_waits_for(queue, sibling(path, "lock"))
    assert len(rows(path)) == 2


def test_an_enqueue_notices_that_its_lock_file_was_renamed(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", {})
    time.sleep(0.02)  # the kernel's clock for file times may tick that slowly
    sibling(path, "backup").hardlink_to(sibling(path, "lock"))  # as a backup by `cp -al` does
    sibling(path, "lock").unlink()
    sibling(path, "lock").touch()
    assert enqueue_waits_for(queue, sibling(path, "lock"))


def test_a_reused_descriptor_number_is_not_mistaken_for_the_own_lock(
    queue: Queue, path: Path
) -> None:
    queue.enqueue("greet", {})
    lock = store_of(queue).lock._file
    assert lock is not None
    os.close(lock.fd)  # as a careless library does
    with Queue(path) as other:
        other.enqueue("greet", {})
        again = store_of(other).lock._file
        assert again is not None
        assert again.fd == lock.fd
        assert again.is_untouched()
        lock.remember_names()  # opening it as its owner sets the mode, which is noticed, too
        assert not lock.is_untouched()
        queue.enqueue("greet", {})
        assert store_of(queue).lock._file is not lock


def test_the_lock_is_not_on_the_inode_that_a_fold_replaces(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    before = sibling(path, "lock").stat().st_ino, path.stat().st_ino
    queue.cancel_job(job_id)
    assert sibling(path, "lock").stat().st_ino == before[0]
    assert path.stat().st_ino != before[1]


def test_a_forked_child_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    code = """
import fcntl, os
from dbbasic_queue import Queue
queue = Queue("queue.tsv")
queue.enqueue("greet", {})
def fork():
    pid = os.fork()
    if not pid:
        queue.close()
        os._exit(0)
    os.waitpid(pid, 0)
    try:
        fcntl.flock(open("queue.tsv.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("still locked")
queue.store.lock.run(fork)
"""
    (tmp_path / "data").mkdir()
    done = python(code, cwd=tmp_path / "data")
    assert (done.stdout, done.stderr) == ("still locked\n", "")


def test_a_child_that_outlives_its_pass_does_not_hold_its_locks(tmp_path: Path) -> None:
    code = """
import fcntl, os, warnings
from dbbasic_queue import Queue
warnings.simplefilter("ignore")
r, w = os.pipe()
def handler(_):
    if not os.fork():
        os.close(w)
        os.read(r, 1)  # lives until the parent has ended
        os._exit(0)
queue = Queue("queue.tsv")
queue.enqueue("greet", {})
queue.process_jobs({"greet": handler})
for name in ("queue.tsv.pass.1", "queue.tsv.lock"):
    fcntl.flock(open(name, "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
print("free")
"""
    (tmp_path / "data").mkdir()
    done = python(code, cwd=tmp_path / "data")
    assert (done.stdout, done.stderr) == ("free\n", "")


def test_a_handler_that_returns_in_a_forked_child_creates_no_second_worker(
    tmp_path: Path,
) -> None:
    code = """
import os, sys, warnings
from dbbasic_queue import Queue
warnings.simplefilter("ignore")
def handler(n):
    with open("ran", "a") as file:
        file.write(f"{n}\\n")
    if n == 1:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
queue = Queue("queue.tsv")
queue.enqueue_many("greet", range(4))
print(queue.process_jobs({"greet": handler})["completed"])
"""
    (tmp_path / "data").mkdir()
    done = python(code, cwd=tmp_path / "data")
    assert (done.returncode, done.stdout) == (0, "4\n")
    assert "returned in a child that it had forked; that child ends now" in done.stderr
    assert (tmp_path / "data" / "ran").read_text() == "0\n1\n2\n3\n"
    assert {columns[6] for columns in rows(tmp_path / "data" / "queue.tsv")} == {"1"}


# --- writes


def test_a_line_appended_by_others_during_a_rewrite_is_not_lost(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", range(60))

    def append_as_a_shell_does() -> None:
        for n in range(60):
            with sibling(path, "lock").open("r+") as lock, path.open("ab") as early:
                early.close()
                fcntl.flock(lock, fcntl.LOCK_EX)
                with path.open("ab") as file:
                    file.write(line(f"foreign-{n}").encode())

    other = threading.Thread(target=append_as_a_shell_does)
    other.start()
    for job_id in ids:
        assert queue.cancel_job(job_id)  # each cancel rewrites the file
    join(other, "the other writer")
    assert len(rows(path)) == 120
    assert queue.counts() == {
        "pending": 60,
        "processing": 0,
        "completed": 0,
        "failed": 0,
        "cancelled": 60,
    }


def test_a_torn_last_line_is_not_glued_to_the_next_job(queue: Queue, path: Path) -> None:
    add_lines(path, line("torn")[:30])
    job_id = queue.enqueue("greet", {})
    assert queue.process_jobs({"greet": lambda _: None}) == NONE | {"completed": 1}
    assert job(queue, job_id)["status"] == "completed"
    assert line("torn")[:30] in path.read_text().split("\n")


def test_a_large_row_torn_by_a_kill_is_not_a_job_and_harms_no_other(
    queue: Queue, path: Path
) -> None:
    large = line("large", payload='"' + "x" * 1_000_000 + '"')
    whole = line("whole")
    add_lines(path, whole + large[: len(large) // 2])
    job_id = queue.enqueue("greet", {})
    assert [found["id"] for found in queue.jobs()] == ["whole", job_id]
    assert queue.process_jobs({"greet": lambda _: None}) == NONE | {"completed": 2}


def test_zeros_left_by_a_power_cut_hide_no_job_and_no_change(queue: Queue, path: Path) -> None:
    add_lines(path, line("a"), line("b"), b"\0" * 4096)
    record = encode_record(b"a", encode_state(State("cancelled", NOW, NOW, 0, "", "")))
    sibling(path, "journal").write_bytes(record + b"\0" * 4096)
    job_id = queue.enqueue("greet", {})
    assert queue.cancel_job("b")
    assert queue.process_jobs({"greet": lambda _: None}) == NONE | {"completed": 1}
    statuses = {columns[0]: columns[3] for columns in rows(path)}
    assert statuses == {"a": "cancelled", "b": "cancelled", job_id: "completed"}
    assert b"\0" not in path.read_bytes()
    assert sibling(path, "rejected").read_bytes() == b"\0" * 4096 + b"\n"


def test_a_fold_syncs_before_its_rename_and_truncates_the_journal_last(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = queue.enqueue_many("greet", range(2))
    queue.cancel_job(ids[0])  # so that all files are there
    calls: list[str] = []

    def name(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def watch(function: str) -> None:
        real = getattr(os, function)

        def watched(first: Any, *rest: Any) -> Any:
            what = name(first) if isinstance(first, int) else os.path.basename(first)
            calls.append(f"{function} {what}")
            return real(first, *rest)

        monkeypatch.setattr(os, function, watched)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc/self/fd here")
    for function in ("fsync", "fdatasync", "rename", "ftruncate", "write"):
        watch(function)
    assert queue.cancel_job(ids[1])
    monkeypatch.undo()
    order = [call for n, call in enumerate(calls) if call not in calls[:n]]
    assert order == [
        "write queue.tsv.journal",
        "fdatasync queue.tsv.journal",
        "write queue.tsv.fold",
        "fsync queue.tsv.fold",
        "rename queue.tsv.fold",
        "fsync data",
        "ftruncate queue.tsv.journal",
    ]


def test_the_first_enqueue_syncs_the_directories_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def watched(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", watched)
    with Queue(path) as queue:
        queue.enqueue("greet", {})
    assert {path.parent.stat().st_ino, path.parent.parent.stat().st_ino} <= set(synced)


def test_a_new_file_with_a_reused_inode_number_is_read(queue: Queue, path: Path) -> None:
    for n in range(10):
        path.unlink(missing_ok=True)
        add_lines(path, line("a", payload=str(n)))
        assert job(queue, "a")["payload"] == n


# --- results


@pytest.mark.parametrize("result", [0, False, [], ""])
def test_a_falsy_result_is_not_stored_as_none(queue: Queue, result: object) -> None:
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": lambda _: result})
    found = job(queue, job_id)["result"]
    assert (found, type(found)) == (result, type(result))


def test_a_finished_job_whose_result_is_not_json_is_not_run_again(
    queue: Queue, clock: Clock
) -> None:
    ran: list[int] = []

    def handler(_: Any) -> object:
        ran.append(1)
        return object()

    job_id = queue.enqueue("greet", {})
    for _ in range(3):
        queue.process_jobs({"greet": handler})
        clock.now += TEN_YEARS
    assert (ran, job(queue, job_id)["status"]) == ([1], "completed")


# --- texts


def test_a_tab_or_newline_in_an_error_adds_no_column_and_no_job(
    queue: Queue, path: Path, clock: Clock
) -> None:
    ran: list[str] = []
    evil = ValueError("x\ty\n" + line("evil", type="evil", run_at=0))
    queue.enqueue("greet", {})
    for _ in range(3):
        queue.process_jobs({"greet": lambda _: raise_(evil), "evil": ran.append})
        clock.now += 86400
    assert (len(rows(path)), len(rows(path)[0]), ran) == (1, 9, [])
    assert queue.get_job("evil") is None


def test_a_lone_surrogate_in_an_error_does_not_kill_the_pass(queue: Queue, path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")  # an undecodable file name
    ids = queue.enqueue_many("open", [1, 2])
    handlers = {"open": lambda _: raise_(ValueError(f"cannot open {name}"))}
    assert queue.process_jobs(handlers) == NONE | {"retried": 2}
    assert name in job(queue, ids[1])["error"]
    assert r"caf\udce9" in row(path, ids[0])["error"]


# --- rows that cannot be read


def test_an_unreadable_row_does_not_stop_later_passes(queue: Queue, path: Path) -> None:
    add_lines(path, "???\n", line("a", run_at="soon"), line("b", payload="{"), b"\xff\n")
    for n in range(3):
        queue.enqueue("greet", n)
        assert queue.process_jobs({"greet": lambda _: None}) == NONE | {"completed": 1}


@pytest.mark.parametrize("run_at", ["tomorrow", "1800000000", math.nan, math.inf, True])
def test_a_run_at_that_would_raise_in_a_pass_is_refused_at_enqueue(
    queue: Queue, path: Path, run_at: Any
) -> None:
    with pytest.raises(InvalidJob):
        queue.enqueue("greet", {}, run_at)
    assert not path.exists()


def test_a_fractional_run_at_is_accepted_and_not_early(
    queue: Queue, path: Path, clock: Clock
) -> None:
    job_id = queue.enqueue("greet", {}, NOW + 0.5)
    assert row(path, job_id)["run_at"] == str(NOW + 1)
    assert queue.process_jobs({"greet": lambda _: None}) == NONE


# --- attempts


def test_an_outcome_of_an_old_attempt_does_not_overwrite_the_current_one(
    queue: Queue, path: Path, clock: Clock
) -> None:
    job_id = queue.enqueue("greet", {})
    old = Claims(store_of(queue).files, TERMS, clock())
    (claim,) = old.claim(1, old.looked_at)
    sibling(path, "pass.1").unlink()  # it is assumed to be dead, and wakes up later
    with Queue(path, clock=clock) as other:
        assert other.process_jobs({"greet": lambda _: 1 / 0}) == NONE | {"recovered": 1}
        clock.now += 120
        assert other.process_jobs({"greet": lambda _: 1 / 0}) == NONE | {"retried": 1}
    before = job(queue, job_id)
    late = State("completed", NOW, NOW, 1, "", '"late"')
    assert old.record(claim, late) is None
    old.unclaim([claim])
    old.abandon()
    assert job(queue, job_id) == before
    assert (before["status"], before["attempts"]) == ("pending", 2)


@pytest.mark.parametrize("ending", ["sys.exit", "Ctrl-C", "SIGTERM"])
def test_no_way_to_end_a_pass_leaves_a_job_in_processing(
    queue: Queue, path: Path, ending: str
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def handler(n: int) -> None:
        if n == 3 and ending == "sys.exit":
            raise SystemExit(1)
        if n == 3:
            os.kill(os.getpid(), signal.SIGINT if ending == "Ctrl-C" else signal.SIGTERM)

    queue.enqueue_many("greet", range(20))
    try:
        queue.process_jobs({"greet": handler})
    except (KeyboardInterrupt, SystemExit):
        assert ending != "sys.exit"
    finally:
        signal.signal(signal.SIGINT, before)
    statuses = [columns[3] for columns in rows(path)]
    assert "processing" not in statuses
    assert {"sys.exit": 19, "Ctrl-C": 3, "SIGTERM": 4}[ending] == statuses.count("completed")
    assert sibling(path, "journal").read_bytes() == b""


# --- permissions


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_the_umask_of_roots_cron_does_not_lock_the_web_server_out(path: Path, mask: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o2770)  # test_textfile.py does this with two real users
    before = os.umask(mask)
    try:
        with Queue(path) as queue:
            queue.cancel_job(queue.enqueue("greet", {}))
            queue.enqueue("greet", {})
            queue.process_jobs({})
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    suffixes = ("history", "journal", "lock", "pass.1", "passes")
    files = ["queue.tsv", *(f"queue.tsv.{suffix}" for suffix in suffixes)]
    assert modes == dict.fromkeys(files, 0o660)


# --- full disks, simulated by a limit on the size of files


class FullDisk:
    """Between `begin` and `end`, no file of this process can grow beyond `size` bytes."""

    def __init__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def begin(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.before[1]))

    def end(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.signal)


def test_on_a_full_disk_no_row_is_silently_missing(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", range(3))
    before = path.read_bytes()
    disk = FullDisk()
    try:
        disk.begin(len(before) + 500)
        with pytest.raises(StoreError, match="nothing was added") as refusal:
            queue.enqueue_many("greet", range(100))
        assert refusal.value.errno == errno.EFBIG
        disk.begin(len(before) - 10)
        with pytest.raises(StoreError):
            queue.process_jobs({"greet": pytest.fail})
    finally:
        disk.end()
    assert path.read_bytes() == before
    assert queue.process_jobs({"greet": lambda _: None}) == NONE | {"completed": 3}
    assert [columns[0] for columns in rows(path)] == ids
    assert {columns[6] for columns in rows(path)} == {"1"}


def test_a_job_whose_outcome_cannot_be_written_is_not_run_every_minute(
    queue: Queue, path: Path, clock: Clock
) -> None:
    ran: list[int] = []
    disk = FullDisk()

    def handler(_: Any) -> str:
        ran.append(1)
        if len(ran) == 1:
            disk.begin(sibling(path, "journal").stat().st_size)
        return "done"

    job_id = queue.enqueue("greet", {})
    try:
        for _ in range(10):
            with pytest.raises(StoreError):
                queue.process_jobs({"greet": handler}, max_attempts=2)
            clock.now += 60
    finally:
        disk.end()
    assert ran == [1]
    assert queue.process_jobs({"greet": handler}, max_attempts=3) == NONE | {"recovered": 1}
    clock.now += 120
    assert queue.process_jobs({"greet": handler}, max_attempts=3) == NONE | {"completed": 1}
    assert (job(queue, job_id)["result"], len(ran)) == ("done", 2)


# --- clocks and ids


def test_a_clock_set_years_ahead_and_back_makes_no_retry_wait_for_years(
    queue: Queue, clock: Clock
) -> None:
    clock.now = NOW + TEN_YEARS
    job_id = queue.enqueue("greet", {}, NOW)
    planned = queue.enqueue("greet", {}, NOW + 2 * TEN_YEARS)
    queue.process_jobs({"greet": lambda _: 1 / 0})
    assert job(queue, job_id)["run_at"] == NOW + TEN_YEARS + 120
    clock.now = NOW
    assert queue.process_jobs({}) == NONE
    assert job(queue, job_id)["run_at"] == NOW + 120
    clock.now = NOW + 120
    assert queue.process_jobs({"greet": lambda _: None}) == NONE | {"completed": 1}
    assert job(queue, planned)["run_at"] == NOW + 2 * TEN_YEARS


def test_a_record_of_a_purged_job_does_not_apply_to_a_new_job_with_its_id(
    queue: Queue, path: Path
) -> None:
    add_lines(path, line("other"))
    state = encode_state(State("completed", NOW, NOW, 1, "", '"old"'))
    sibling(path, "journal").write_bytes(encode_record(b"report", state))
    queue.enqueue("greet", {}, job_id="report")
    with Queue(path) as other:
        assert (job(other, "report")["status"], job(other, "report")["result"]) == ("pending", None)
    queue.process_jobs({"greet": lambda _: "new"})
    assert job(queue, "report")["result"] == "new"
