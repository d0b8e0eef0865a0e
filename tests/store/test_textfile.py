"""The queue's files: what readers see in each state of the files, and what writers leave."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    HEADER,
    NONE,
    NOW,
    Clock,
    add_lines,
    counts,
    job,
    join,
    line,
    python,
    row,
    rows,
    sibling,
    store_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dbbasic_queue import (
    DuplicateJob,
    InvalidArgument,
    InvalidHandlers,
    InvalidJob,
    JobNotFound,
    NotAQueue,
    Queue,
    QueueBusy,
    QueueDamaged,
    QueueError,
    StoreError,
)
from dbbasic_queue.model.escaping import MAX_ERROR
from dbbasic_queue.model.jsontext import LARGEST_PAYLOAD
from dbbasic_queue.model.records import encode_record, encode_state
from dbbasic_queue.model.rows import LONGEST_ROW_BYTES, has_json, parse_row
from dbbasic_queue.model.states import State
from dbbasic_queue.store.disk import lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HANDLERS: dict[str, Callable[[Any], Any]] = {"greet": lambda payload: payload}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as several users")


def record(job_id: str, status: str, **columns: Any) -> bytes:
    values: dict[str, Any] = {"created_at": NOW, "run_at": NOW, "attempts": 1}
    values |= {"error": "", "result": "", **columns}
    return encode_record(job_id.encode(), encode_state(State(status, **values)))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes fail in any file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


# --- the journal


def test_a_change_is_one_line_of_the_journal_until_it_is_folded(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", range(3))
    with largest_file(200):  # the journal fits, the file does not
        assert queue.cancel_job(ids[1])
    assert row(path, ids[1])["status"] == "pending"
    assert sibling(path, "journal").read_bytes().count(b"\n") == 1
    for reader in (queue, Queue(path)):
        assert job(reader, ids[1])["status"] == "cancelled"
        assert counts(reader)["cancelled"] == 1
    queue.process_jobs(HANDLERS)
    assert row(path, ids[1])["status"] == "cancelled"
    assert sibling(path, "journal").read_bytes() == b""


def test_a_jobs_last_record_counts(queue: Queue, path: Path) -> None:
    add_lines(path, line("a"), line("b"))
    sibling(path, "journal").write_bytes(
        record("a", "processing")
        + record("b", "cancelled", error="Cancelled by user")
        + record("nobody", "completed")
        + record("a", "completed", result="[1]")
    )
    assert (job(queue, "a")["status"], job(queue, "a")["result"]) == ("completed", [1])
    assert job(queue, "b")["error"] == "Cancelled by user"
    assert queue.get_job("nobody") is None
    assert queue.process_jobs(HANDLERS) == NONE
    assert row(path, "a")["result"] == "[1]"
    assert len(rows(path)) == 2


@pytest.mark.parametrize("size", [0, 1, 5, 30, -2, -1])
def test_a_torn_last_record_is_ignored_and_does_not_damage_the_next_one(
    queue: Queue, path: Path, size: int
) -> None:
    add_lines(path, line("a"), line("b"), line("c"))
    whole, torn = record("a", "completed"), record("b", "completed")
    sibling(path, "journal").write_bytes(whole + torn[:size])
    assert [found["status"] for found in queue.jobs()] == ["completed", "pending", "pending"]
    with largest_file(200):
        assert queue.cancel_job("c")
    with Queue(path) as other:
        statuses = [found["status"] for found in other.jobs()]
    # A record that only lacks its line end is complete as soon as a writer adds that.
    assert statuses == ["completed", "completed" if size == -1 else "pending", "cancelled"]


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 200 + b"\n",
        b"\0" * 200,
        b"garbage\n\n\t\t\n\xff\xfe\n",
        record("b", "completed").replace(b"completed", b"cancelled"),
        record("b", "completed").replace(b"b\t", b"a\t", 1),
        record("b", "completed")[3:],
        b"b\tcompleted\t1\t1\t1\t\t\t00000000\n",
    ],
)
def test_a_damaged_record_is_skipped(queue: Queue, path: Path, damage: bytes) -> None:
    add_lines(path, line("a"), line("b"), line("c"))
    sibling(path, "journal").write_bytes(record("a", "completed") + damage)
    with sibling(path, "journal").open("ab") as file:
        file.write(b"\n" + record("c", "failed", error="no"))
    assert [found["status"] for found in queue.jobs()] == ["completed", "pending", "failed"]
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 1}
    assert [columns[3] for columns in rows(path)] == ["completed", "completed", "failed"]


def test_replaying_a_journal_after_its_fold_changes_nothing(queue: Queue, path: Path) -> None:
    add_lines(path, line("a"), line("b"))
    old = record("a", "processing") + record("a", "completed", result="0") + record("b", "failed")
    sibling(path, "journal").write_bytes(old)
    queue.process_jobs(HANDLERS)
    folded, before = path.read_bytes(), list(queue.jobs())
    assert sibling(path, "journal").read_bytes() == b""
    sibling(path, "journal").write_bytes(old)  # killed between the rename and the truncation
    for reader in (queue, Queue(path)):
        assert list(reader.jobs()) == before
        assert reader.process_jobs(HANDLERS) == NONE
        assert path.read_bytes() == folded
        assert sibling(path, "journal").read_bytes() == b""
        sibling(path, "journal").write_bytes(old)


def test_a_missing_journal_is_created_again(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", range(3))
    queue.cancel_job(ids[0])
    sibling(path, "journal").unlink()
    assert queue.cancel_job(ids[1])
    with Queue(path) as other:
        assert [found["status"] for found in other.jobs()] == ["cancelled"] * 2 + ["pending"]


# --- the fold


def test_a_failed_fold_changes_nothing_and_leaves_no_file(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", range(100))
    before = path.read_bytes()
    with largest_file(2000):
        assert queue.cancel_job(ids[0])
        assert path.read_bytes() == before
        assert not sibling(path, "fold").exists()
        assert job(queue, ids[0])["status"] == "cancelled"
    assert queue.cancel_job(ids[1])
    assert [columns[3] for columns in rows(path)] == ["cancelled"] * 2 + ["pending"] * 98


def test_an_unfinished_fold_left_by_a_crash_is_ignored(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    sibling(path, "fold").write_text("half a fi")
    assert queue.cancel_job(job_id)
    assert row(path, job_id)["status"] == "cancelled"
    assert not sibling(path, "fold").exists()


def test_a_fold_keeps_the_order_of_rows_and_all_invalid_lines(queue: Queue, path: Path) -> None:
    lines = [
        line("a"),
        "no job\n",
        "\n",
        line("a", payload="2"),
        line("b", status="completed", result='"kept"'),
        line("c", run_at=NOW * 2, payload='{"é": "\\u2028"}'),
        "\t\t\t\t\t\t\t\t\n",
        line("d", status="unknown"),
    ]
    add_lines(path, *lines)
    queue.cancel_job("a")
    after = path.read_text().splitlines(keepends=True)
    assert after[0] == HEADER
    assert after[1] == line("a", status="cancelled", error="Cancelled by user")
    assert after[2:] == lines[1:]


def test_a_fold_keeps_the_files_mode(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    path.chmod(0o640)
    queue.cancel_job(job_id)
    assert row(path, job_id)["status"] == "cancelled"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@as_root
def test_a_fold_keeps_the_files_owner_and_group(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    os.chown(path, 12345, 54321)
    path.chmod(0o664)
    queue.cancel_job(job_id)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 54321, 0o664)


# --- changes by other processes and by hand


def test_a_queue_notices_what_another_process_adds_changes_and_folds(
    queue: Queue, path: Path
) -> None:
    mine = queue.enqueue("greet", "mine")
    with Queue(path, clock=Clock()) as other:
        assert job(other, mine)["payload"] == "mine"
        theirs = other.enqueue("greet", "theirs", NOW * 2)
        assert job(queue, theirs)["payload"] == "theirs"
        for n in range(5):
            assert other.cancel_job(other.enqueue("greet", n))
            assert counts(queue)["cancelled"] == 2 * n + 1
            assert queue.cancel_job(queue.enqueue("greet", n))
            assert counts(other)["cancelled"] == 2 * n + 2
        assert other.process_jobs(HANDLERS) == NONE | {"completed": 1}
        assert job(queue, mine)["result"] == "mine"
        assert queue.cancel_job(mine) is False
        assert queue.cancel_job(theirs) is True
        assert other.cancel_job(theirs) is False
    assert len(rows(path)) == 12


def test_a_row_appended_without_the_lock_is_a_job(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", "first")
    add_lines(path, line("foreign", payload='"foreign"'))
    assert job(queue, "foreign")["payload"] == "foreign"
    queue.enqueue("greet", "last")
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 3}
    assert job(queue, "foreign")["result"] == "foreign"


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock(1)")
def test_a_shell_can_add_a_job_under_the_lock(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", "first")
    text = line("from-a-shell", payload='{"to": "you"}').rstrip("\n").replace("\t", "\\t")
    command = f"flock queue.tsv.lock sh -c 'printf \"%b\" \"$0\" >> queue.tsv' '{text}\\n'"
    subprocess.run(["sh", "-c", command], cwd=path.parent, check=True, timeout=60)
    assert job(queue, "from-a-shell")["payload"] == {"to": "you"}
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}


def test_a_last_line_without_a_line_end_becomes_a_job_when_a_writer_ends_it(
    queue: Queue, path: Path
) -> None:
    add_lines(path, line("a"), line("torn")[:-1])
    assert [found["id"] for found in queue.jobs()] == ["a"]
    after = queue.enqueue("greet", {})
    assert [found["id"] for found in queue.jobs()] == ["a", "torn", after]
    assert path.read_text().endswith("\n")


@pytest.mark.parametrize("size", [1, 6, 15, 40])
def test_a_torn_line_is_never_joined_with_the_next_job(queue: Queue, path: Path, size: int) -> None:
    torn = line("torn", payload='"' + "x" * 50 + '"')[:size]
    add_lines(path, line("a"), torn)
    after = queue.enqueue("greet", {})
    assert [found["id"] for found in queue.jobs()] == ["a", after]
    queue.process_jobs(HANDLERS)
    assert f"\n{torn}\n" in path.read_text()
    assert counts(queue)["completed"] == 2


def test_a_file_edited_by_hand_is_read_again(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", range(50))
    assert counts(queue)["pending"] == 50
    text = path.read_text()
    path.write_text(text.replace("\tpending\t", "\tcancelled\t", 10))  # in place, as nano does
    assert counts(queue)["cancelled"] == 10
    assert queue.cancel_job(ids[0]) is False
    new = sibling(path, "new")  # next to it, then renamed, as sed -i and vim do
    new.write_text(text.replace(f"\n{ids[20]}\t", "\nmine\t"))
    new.rename(path)
    assert counts(queue)["pending"] == 50
    assert (job(queue, "mine")["payload"], queue.get_job(ids[20])) == (20, None)
    other = queue.enqueue("greet", {})
    assert (rows(path)[-1][0], len(rows(path))) == (other, 51)


def test_rows_deleted_by_hand_are_gone(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", range(5))
    counts(queue)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[4:]))
    assert [found["id"] for found in queue.jobs()] == ids[3:]
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}


def test_a_file_emptied_by_hand_is_an_empty_queue(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", {})
    assert counts(queue)["pending"] == 1
    path.write_bytes(b"")
    assert counts(queue)["pending"] == 0
    job_id = queue.enqueue("greet", {})
    assert [columns[0] for columns in rows(path)] == [job_id]


def test_a_file_deleted_by_hand_is_created_again(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", {})
    assert counts(queue)["pending"] == 1
    path.unlink()
    assert counts(queue)["pending"] == 0
    job_id = queue.enqueue("greet", {})
    assert [columns[0] for columns in rows(path)] == [job_id]


def test_a_directory_deleted_and_created_by_hand_is_used(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", {})
    queue.process_jobs(HANDLERS)
    shutil.rmtree(path.parent)
    assert list(queue.jobs()) == []
    path.parent.mkdir()
    job_id = queue.enqueue("greet", {})
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 1}
    assert row(path, job_id)["status"] == "completed"


def test_a_new_file_with_the_same_inode_number_is_read_again(queue: Queue, path: Path) -> None:
    for n in range(8):
        path.unlink(missing_ok=True)  # the next file often gets the same number
        sibling(path, "journal").unlink(missing_ok=True)
        add_lines(path, line(f"job-{n % 10}", payload=str(n), status=("pending", "failed")[n % 2]))
        assert [found["payload"] for found in queue.jobs()] == [n]
        assert queue.cancel_job(f"job-{n % 10}") is (n % 2 == 0)


def test_records_that_dbbasic_queue_cannot_have_written_are_skipped_and_reported(
    queue: Queue, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_lines(path, line("a"), line("b"))
    states = [
        "pending\t1\t1\t1\t\xff\t".encode("latin-1"),
        b"pending\t1\t1\t1\ta\0b\t",
        b"running\t1\t1\t1\t\t",
        b"pending\t1\t" + b"9" * 400 + b"\t1\t\t",
        b"pending\t1\t1\t" + b"9" * 5000 + b"\t\t",
        b"pending\t1\t-1\t1\t\t",
        b"pending",
        b"",
    ]
    forged = b"".join(encode_record(b"a", state) for state in states)
    sibling(path, "journal").write_bytes(forged + encode_record(b"\xff", states[0]))
    with Queue(path, clock=Clock()) as other:
        assert job(other, "a")["attempts"] == 0
        assert [found["id"] for found in other.jobs()] == ["a", "b"]
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message == (
        f"{path}.journal: skipped 9 damaged records (cut short by a crash, or written by another "
        "program)"
    )
    queue.process_jobs(HANDLERS)
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


# --- a last line without an end, and lines that are too long for a row

TOO_LONG = LONGEST_ROW_BYTES + 1


def add_hole(path: Path, size: int, end: str = "\n") -> None:
    """Append a line of NULs that takes no disk space."""
    with path.open("ab") as file:
        file.truncate(file.tell() + size)
    add_lines(path, end)


def test_a_row_that_an_editor_saved_without_a_line_end_is_run(queue: Queue, path: Path) -> None:
    add_lines(path, line("a")[:-1])
    assert counts(queue)["pending"] == 0
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 1}
    assert row(path, "a")["status"] == "completed"


def test_a_lingering_pass_runs_a_row_without_a_line_end(queue: Queue, path: Path) -> None:
    def handler(name: str) -> None:
        if name == "first":
            add_lines(path, line("b", payload='"second"')[:-1])
        else:
            os.kill(os.getpid(), signal.SIGINT)

    add_lines(path, line("a", payload='"first"'))
    with pytest.raises(KeyboardInterrupt):
        queue.process_jobs({"greet": handler}, linger=20)


def test_a_partial_row_without_a_line_end_is_kept_and_reported_but_never_run(
    queue: Queue, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = line("a", run_at=NOW - 500).partition(f"{NOW - 500}\t0")[0] + "18"
    add_lines(path, part)
    for _ in range(2):
        caplog.clear()
        assert queue.process_jobs(HANDLERS) == NONE
        assert path.read_text() == HEADER + part + "\n"
        assert "line 2" in caplog.text
    queue.enqueue("greet", 1)
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 1}


def test_a_line_that_is_too_long_for_a_row_hides_no_job_and_is_not_loaded_into_memory(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_lines(path, line("a"))
    add_hole(path, TOO_LONG)
    with Queue(path, fsync=False) as queue, Queue(path, fsync=False) as other:
        assert [found["id"] for found in other.jobs()] == ["a"]
        queue.enqueue("greet", {}, job_id="b")
        tracemalloc.start()
        for reader in (queue, other, Queue(path)):
            assert [found["id"] for found in reader.jobs()] == ["a", "b"]
            assert job(reader, "b")["status"] == "pending"
        assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}
        assert [found["status"] for found in other.jobs()] == ["completed"] * 2
        assert other.cancel_job(other.enqueue("greet", {}))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10_000_000
    assert f"{path}: ignoring 1 invalid lines" in caplog.text
    assert path.stat().st_size > TOO_LONG
    with path.open("rb") as file:
        assert [len(text) for text in file][2] == TOO_LONG + 1


def test_a_row_that_is_longer_than_one_read_is_a_job(path: Path) -> None:
    text = "x" * 3_000_000
    with Queue(path, fsync=False, max_payload=LARGEST_PAYLOAD) as queue:
        job_id = queue.enqueue("greet", text)
        later = queue.enqueue("greet", 1)
        assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}
    with Queue(path) as other:
        assert job(other, job_id)["result"] == text
        assert job(other, later)["result"] == 1


def test_the_largest_payload_and_result_fit_into_a_row(path: Path) -> None:
    an_error = MAX_ERROR * len("\\U0010ffff")
    assert 2 * LARGEST_PAYLOAD + an_error + 1000 < LONGEST_ROW_BYTES
    with pytest.raises(
        InvalidArgument, match=r"invalid max_payload 33554433: must be at most 33554432 "
    ):
        Queue(path, max_payload=LARGEST_PAYLOAD + 1)


def test_a_long_line_without_an_end_is_read_only_once(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    pread = os.pread

    def counting(fd: int, size: int, at: int) -> bytes:
        nonlocal read
        content = pread(fd, size, at)
        read += len(content)
        return content

    add_lines(path, line("a"))
    add_hole(path, 20_000_000, end="")
    monkeypatch.setattr(os, "pread", counting)
    view = store_of(queue).view
    view.refresh()
    assert counts(queue)["pending"] == 1
    for _ in range(3):
        read = 0
        view.refresh()
        assert read < 1_000_000
        add_hole(path, 100_000, end="")
    with path.open("r+b") as file:  # the line is removed, and rows are added
        file.truncate(len(HEADER) + len(line("a")))
    add_lines(path, *[line(f"{n}", payload=f'"{"x" * 500_000}"') for n in range(50)])
    assert counts(queue)["pending"] == 51


# --- odd and invalid lines


def test_the_first_of_two_rows_with_the_same_id_is_the_job_and_the_other_is_kept(
    queue: Queue, path: Path
) -> None:
    add_lines(path, line("a", payload="1"), line("a", payload="2"), line("b", payload="3"))
    ran: list[int] = []
    assert queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 2}
    assert ran == [1, 3]
    assert [columns[2:4] for columns in rows(path)] == [
        ["1", "completed"],
        ["2", "pending"],
        ["3", "completed"],
    ]
    assert [found["payload"] for found in queue.jobs()] == [1, 3]
    with pytest.raises(DuplicateJob):
        queue.enqueue("greet", {}, job_id="a")


def test_a_file_with_windows_line_ends_and_a_byte_order_mark_is_a_queue(
    queue: Queue, path: Path
) -> None:
    text = HEADER + line("a", payload="1") + line("b", status="failed", error="no")
    path.parent.mkdir()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [found["error"] for found in queue.jobs()] == [None, "no"]
    queue.enqueue("greet", 2, job_id="c")
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}
    content = path.read_bytes()
    assert content.startswith(HEADER.encode())
    assert [found["result"] for found in queue.jobs()] == [1, None, 2]


@pytest.mark.parametrize("content", ["", "i", "id\ttype", HEADER[:-1], HEADER])
def test_a_file_that_is_empty_or_has_a_torn_header_is_a_queue_without_jobs(
    queue: Queue, path: Path, content: str
) -> None:
    path.parent.mkdir()
    path.write_text(content)
    assert (list(queue.jobs()), queue.process_jobs(HANDLERS)) == ([], NONE)
    assert path.read_text() == content
    job_id = queue.enqueue("greet", {})
    assert [columns[0] for columns in rows(path)] == [job_id]
    assert job(queue, job_id)["status"] == "pending"


def test_lines_that_grep_cannot_read_are_moved_to_the_rejected_file(
    queue: Queue, path: Path
) -> None:
    binary = [b"\0\0\0\0\n", line("x", error="a\0b").encode(), b"caf\xe9\tb\n", b"\xed\xa0\x80\n"]
    add_lines(path, line("a"), *binary[:2], line("b"), *binary[2:], line("c"), "no job\n")
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 3}
    assert sibling(path, "rejected").read_bytes() == b"".join(binary)
    assert [columns[0] for columns in rows(path)] == ["a", "b", "c", "no job"]
    queue.enqueue("greet", {}, job_id="d")
    add_lines(path, b"\0 again\n", line("e"))
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}
    assert sibling(path, "rejected").read_bytes() == b"".join(binary) + b"\0 again\n"
    assert [columns[3] for columns in rows(path) if len(columns) > 1] == ["completed"] * 5


def test_running_jobs_are_kept_when_lines_are_moved_to_the_rejected_file(
    queue: Queue, path: Path
) -> None:
    def handler(n: int) -> int:
        if n == 12:
            add_lines(path, b"\0\0\n", line("late", run_at=NOW * 2))
            with Queue(path, clock=Clock()) as other:
                other.cancel_job("late")
            assert sibling(path, "rejected").exists()
        return n

    add_lines(path, b"\0 first\n")
    queue.enqueue_many("greet", range(30))
    assert queue.process_jobs({"greet": handler}) == NONE | {"completed": 30}
    assert [found["result"] for found in queue.jobs("completed")] == list(range(30))
    assert {found["attempts"] for found in queue.jobs("completed")} == {1}


def test_a_line_moved_to_the_rejected_file_before_a_crash_may_be_there_twice(
    queue: Queue, path: Path
) -> None:
    add_lines(path, b"\0\n", line("a"))
    sibling(path, "rejected").write_bytes(b"\0\nearl")
    queue.process_jobs(HANDLERS)
    assert sibling(path, "rejected").read_bytes() == b"\0\nearl\n\0\n"


def bad_lines() -> dict[str | bytes, str]:
    """Return lines that are not jobs, and why."""
    return {
        "no job\n": "it has fewer than nine columns separated by tabs",
        line("x y"): "its id is not 1 to 64 characters from A-Z a-z 0-9 . _ -",
        line("t", type=""): "its type is empty",
        line("s", status="done"): "its status is not one of pending, processing, completed, "
        "failed, cancelled",
        line("c", created_at="9" * 13): "its created_at is not a number of at most 12 digits",
        line("r", run_at="soon"): "its run_at is not a number of at most 12 digits",
        line("n", attempts="x"): "its attempts are not a number of at most 9 digits",
        line("p", payload="{'to': 'ada'}"): "its payload is not JSON: Expecting property name "
        "enclosed in double quotes: line 1 column 2 (char 1)",
        line("q", payload="[" * 200, status="failed"): "its payload is not JSON: it is nested more "
        "than 100 deep",
        line("first"): "line 2 has a job with the same id",
        line("\x1b[31m"): "its id is not 1 to 64 characters from A-Z a-z 0-9 . _ -",
    }


def test_invalid_lines_are_listed_with_their_number_and_the_reason(
    queue: Queue, path: Path
) -> None:
    assert (list(queue.unreadable()), queue.remove_unreadable()) == ([], 0)
    bad = bad_lines()
    binary = {b"\0\0\n": "it has NUL bytes", b"caf\xe9\n": "it is not UTF-8"}
    add_lines(path, line("first"), *bad, "\n", *binary)
    found = list(queue.unreadable())
    assert [entry["reason"] for entry in found] == [*bad.values(), *binary.values()]
    assert [entry["line"] for entry in found] == [*range(3, 14), 15, 16]
    assert [entry["text"][:10] for entry in found[-3:]] == [
        "\\x1b[31m\\t",
        "\\x00\\x00",
        "caf\\xe9",
    ]
    assert [entry["id"] for entry in queue.jobs()] == ["first"]


def test_a_last_line_without_a_line_end_is_listed_until_a_pass_ends_it(
    queue: Queue, path: Path
) -> None:
    add_lines(path, line("a"), "half a r")
    (found,) = queue.unreadable()
    reason = "it has no line end yet: the next pass ends it"
    assert found == {"line": 3, "reason": reason, "text": "half a r"}
    assert path.read_bytes().endswith(b"half a r")
    queue.process_jobs(HANDLERS)
    (found,) = queue.unreadable()
    assert found["reason"] == "it has fewer than nine columns separated by tabs"


def test_every_call_ignores_a_row_whose_payload_is_not_json(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", 1)
    for status in ("pending", "failed", "processing", "completed"):
        add_lines(path, line(status, payload="'", status=status, attempts=1, run_at=NOW - 9999))
    for looks in (queue, Queue(path, clock=Clock())):
        for _ in range(4):
            assert looks.get_job("pending") is None
        assert not looks.cancel_job("pending")
        assert not looks.requeue("failed")
        assert looks.requeue_failed() == 0
        assert looks.purge(0) == 0
        assert looks.counts() | {"pending": 1} == looks.counts()
        assert sum(looks.counts().values()) == len(list(looks.jobs())) == 1
        assert looks.metrics()["oldest_pending"] == 0
    with pytest.raises(DuplicateJob, match="already in the queue, in an unreadable row"):
        queue.enqueue("greet", 1, job_id="pending")


def test_remove_unreadable_moves_invalid_lines_away_and_keeps_the_jobs(
    queue: Queue, path: Path
) -> None:
    bad = list(bad_lines())
    add_lines(path, line("first"), *bad, b"\0\n", "\n", line("last"), "half")
    running = line("mine", payload="'", status="processing", attempts=1)
    queue.cancel_job("last")
    with Queue(path, clock=Clock()) as other:
        assert len(list(other.jobs())) == 2
        assert (
            queue.remove_unreadable() == len(bad) + 1
        )  # the fold after the cancel has already moved one
        rejected = [text if isinstance(text, bytes) else text.encode() for text in bad]
        kept = sibling(path, "rejected").read_bytes()
        assert sorted(kept.splitlines(True)) == sorted([*rejected, b"\0\n", b"half\n"])
        assert [(found["id"], found["status"]) for found in other.jobs()] == [
            ("first", "pending"),
            ("last", "cancelled"),
        ]
        assert list(other.unreadable()) == []
        add_lines(path, running)  # a pass of 1.0.0 may run it
        assert other.remove_unreadable() == queue.remove_unreadable() == 0
        assert queue.enqueue("greet", 1, job_id="p") == "p"
        assert other.process_jobs(HANDLERS)["completed"] == 2


def test_a_line_of_any_length_can_be_removed_without_loading_it_into_memory(path: Path) -> None:
    add_lines(path, line("a"))
    add_hole(path, TOO_LONG)
    add_lines(path, "no job\n")
    with Queue(path, fsync=False) as queue:
        tracemalloc.start()
        reasons = [found["reason"] for found in queue.unreadable()]
        assert reasons[0] == f"it has {TOO_LONG} bytes; a row may have at most {LONGEST_ROW_BYTES}"
        assert queue.remove_unreadable() == 2
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000
        assert [found["id"] for found in queue.jobs()] == ["a"]
    assert path.read_text() == HEADER + line("a")
    assert sibling(path, "rejected").stat().st_size == TOO_LONG + 1 + len("no job\n")
    sibling(path, "rejected").unlink()


def test_on_a_full_disk_invalid_lines_stay_where_they_are(queue: Queue, path: Path) -> None:
    add_lines(path, line("a"), *["no job\n"] * 100)
    queue.process_jobs(HANDLERS)
    content = path.read_bytes()
    with (
        largest_file(len(content) - 300),
        pytest.raises(StoreError, match="the queue is as it was"),
    ):
        queue.remove_unreadable()
    assert path.read_bytes() == content
    assert sibling(path, "rejected").read_bytes() in (b"", b"no job\n" * 100)
    assert queue.remove_unreadable() == 100


words = ["", "a", "b", "c d", "{}", "greet", "pending", "processing", "done", "\r", "\x0b", "\x85"]
numbers = ["0", "1", "1.5", "-1", "00", "٣", "9" * 9, "9" * 10, "9" * 12, "9" * 13]
cells = st.sampled_from([*words, *numbers, "\u2028", "\x1b", "\0"])
typical = [st.sampled_from("abcd"), st.just("greet"), st.just("{}"), cells, cells, cells, cells]
lines_of_a_file = st.lists(
    st.tuples(*typical, st.just(""), st.just("")).map("\t".join)
    | st.lists(cells, max_size=12).map("\t".join),
    max_size=8,
)


@settings(max_examples=60)
@given(lines_of_a_file, st.booleans())
def test_a_queue_has_the_jobs_that_can_be_parsed_from_its_lines(
    lines: list[str], is_old: bool
) -> None:
    jobs: dict[str, dict[str, Any]] = {}
    not_json = set()
    for text in lines:
        parsed = parse_row(text.encode())
        if parsed is not None and parsed.id not in jobs:
            jobs[parsed.id] = {"status": parsed.state.status, "type": parsed.type}
            if not has_json(parsed):
                not_json.add(parsed.id)
    with tempfile.TemporaryDirectory() as directory, Queue(f"{directory}/q", fsync=False) as queue:
        if is_old:  # rows are added to a file that was already read
            add_lines(Path(queue.path), "")
            counts(queue)
        add_lines(Path(queue.path), *(f"{text}\n" for text in lines))
        for job_id in "abcd":
            if job_id not in jobs:
                assert queue.get_job(job_id) is None
                queue.enqueue("greet", {}, job_id=job_id)
                jobs[job_id] = {"status": "pending", "type": "greet"}
        assert sum(counts(queue).values()) == len(jobs) - len(not_json)
        for job_id, expected in jobs.items():
            with pytest.raises(DuplicateJob):
                queue.enqueue("greet", {}, job_id=job_id)
            found = queue.get_job(job_id)
            assert (found is None) is (job_id in not_json)
            if found is not None:
                assert found["status"] == expected["status"]
                assert queue.cancel_job(job_id) is (expected["status"] == "pending")


# --- a row deleted by hand, and its record in the journal


def test_a_new_job_does_not_get_the_journals_record_of_an_old_job_with_its_id(
    queue: Queue, path: Path
) -> None:
    add_lines(path, line("other"))
    sibling(path, "journal").write_bytes(record("report", "completed", result='"old"'))
    with Queue(path) as reader:
        assert reader.get_job("report") is None
        queue.enqueue("greet", "new", job_id="report")
        for asked in (queue, reader, Queue(path)):
            assert (job(asked, "report")["status"], job(asked, "report")["result"]) == (
                "pending",
                None,
            )
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}
    assert job(queue, "report")["result"] == "new"


# --- errors of the system


@pytest.mark.parametrize("fsync", [True, False])
def test_jobs_that_do_not_fit_on_the_disk_are_all_refused(path: Path, fsync: bool) -> None:
    with Queue(path, fsync=fsync) as queue:
        queue.enqueue("greet", {})
        before = path.read_bytes()
        for count in (1, 100):  # a write that fails, and one that is cut short
            with largest_file(len(before) if count == 1 else 3000):
                with pytest.raises(StoreError, match="nothing was added") as refusal:
                    queue.enqueue_many("greet", range(count))
                assert refusal.value.errno == errno.EFBIG
                assert refusal.value.filename == str(path)
            assert path.read_bytes() == before
        queue.enqueue("greet", {})
        assert len(rows(path)) == 2


def test_a_change_that_cannot_be_synced_is_undone(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = queue.enqueue("greet", {})
    before = path.read_bytes()
    synced: list[int] = []

    def fail(fd: int) -> None:
        synced.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="nothing was added; the disk reports an error"):
            queue.enqueue("greet", {})
        assert path.read_bytes() == before
        with pytest.raises(StoreError, match="nothing was changed; the disk reports an error"):
            queue.cancel_job(first)
        assert len(synced) == 2, "a failed sync must not be retried"
    assert job(queue, first)["status"] == "pending"
    with Queue(path) as other:
        assert job(other, first)["status"] == "pending"
    queue.enqueue("greet", {})
    assert queue.cancel_job(first)
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 1}


def test_an_error_names_the_file_and_says_what_to_do(path: Path) -> None:
    path.parent.mkdir()
    path.parent.joinpath("file").touch()
    with pytest.raises(OSError, match="not a directory") as refusal:
        Queue(path.parent / "file" / "queue.tsv").enqueue("greet", {})
    assert refusal.value.filename == str(path.parent / "file")


# --- the lock


def test_a_writer_waits_for_the_lock_and_a_reader_does_not(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    with sibling(path, "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=queue.enqueue, args=("greet", "waited"))
        thread.start()
        with Queue(path) as reader:
            assert reader.counts()["pending"] == 1
            assert job(reader, job_id)["status"] == "pending"
            assert len(list(reader.jobs())) == 1
        thread.join(0.05)
        assert thread.is_alive()
        assert len(rows(path)) == 1
        fcntl.flock(held, fcntl.LOCK_UN)
        thread.join(10)
    assert [found["payload"] for found in queue.jobs()] == [{}, "waited"]


def test_waiting_too_long_for_the_lock_is_an_error_that_says_how_to_find_its_holder(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue("greet", {})
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.01)
    with sibling(path, "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(QueueBusy, match=r"nothing was done \(fuser -v .*queue.tsv.lock shows"):
            queue.enqueue("greet", {})
    queue.enqueue("greet", {})
    assert len(rows(path)) == 2


def test_a_deleted_lock_file_is_replaced_by_a_new_one(queue: Queue, path: Path) -> None:
    with Queue(path) as other:
        for n in range(4):
            queue.enqueue("greet", n)
            other.enqueue("greet", n)
            sibling(path, "lock").unlink()
    queue.enqueue("greet", "last")
    assert sibling(path, "lock").exists()
    assert len(rows(path)) == 9


def test_a_process_waiting_for_a_deleted_lock_file_acquires_the_new_one(
    queue: Queue, path: Path
) -> None:
    queue.enqueue("greet", {})
    with sibling(path, "lock").open("r+") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        thread = threading.Thread(target=queue.enqueue, args=("greet", "waited"))
        thread.start()
        sibling(path, "lock").unlink()
        with sibling(path, "lock").open("w+") as new:
            fcntl.flock(new, fcntl.LOCK_EX)
            fcntl.flock(old, fcntl.LOCK_UN)
            thread.join(0.05)
            assert thread.is_alive()
            assert len(rows(path)) == 1
        thread.join(10)
    assert len(rows(path)) == 2


class Waiting:
    """A clock and a sleep without real time; frees the lock after five of its seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: Callable[[], object]) -> None:
        self.now = 0.0
        self.polls = 0
        self._free = free
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.polls += 1
        self.now += seconds
        if self.now > 5:
            self._free()


def test_a_process_that_waits_long_for_the_lock_polls_rarely(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise 64 waiting processes would slow down the one that holds it."""
    queue.enqueue("greet", {})
    with sibling(path, "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = Waiting(monkeypatch, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        queue.enqueue("greet", {})
    assert waiting.polls < 1000
    assert len(rows(path)) == 2


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("name", [".lock", ".pass.1"])
def test_a_file_system_without_flock_is_an_error_that_says_what_to_do(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch, error: int, name: str
) -> None:
    queue.enqueue("greet", {})
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(name):
            raise OSError(error, os.strerror(error))
        real(fd, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(StoreError, match=r"nothing was done; does this file system.*flock"):
            queue.process_jobs(HANDLERS)
    assert queue.process_jobs(HANDLERS) == NONE | {"completed": 1}


def test_inode_numbers_that_always_change_are_an_error_not_an_endless_loop(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue.enqueue("greet", {})
    numbers = iter(range(1 << 40, 1 << 50))
    real = os.lstat

    def lstat(path: Any) -> Any:
        status = list(real(path))
        status[1] = next(numbers)
        return os.stat_result(status)

    calls: list[Callable[[Queue], object]] = [
        lambda queue: queue.enqueue("greet", {}),
        lambda queue: queue.get_job(job_id),
        Queue.counts,
    ]
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        for call in calls:
            with Queue(path) as fresh, pytest.raises(StoreError, match="stable inode numbers"):
                call(fresh)
    assert counts(queue)["pending"] == 1


def test_a_failed_recovery_leaves_no_slot_locked(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if the error's traceback keeps the files open."""
    queue.enqueue("greet", {}, job_id="a")
    sibling(path, "pass.1").write_text("pass\t1\t1\t1\na\t1\n")
    sibling(path, "pass.2").write_text("pass\t1\t1\t1\nb\t1\n")
    add_lines(path, line("b", status="processing", attempts=1))

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        with pytest.raises(StoreError) as refusal:
            queue.process_jobs(HANDLERS)
    for number in (1, 2):
        with sibling(path, f"pass.{number}").open("r+") as slot:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert refusal.tb is not None
    assert queue.process_jobs(HANDLERS)["recovered"] == 1


# --- a damaged header


@pytest.mark.parametrize(
    "start", [line("a").encode(), b"\0" * 62 + b"\n", b"id\ttype\0\0\0\n" + line("a").encode()]
)
def test_a_queue_without_a_header_is_reported_as_damaged_and_left_alone(
    queue: Queue, path: Path, start: bytes
) -> None:
    path.parent.mkdir()
    path.write_bytes(start + line("b").encode())
    calls: list[Callable[[], object]] = [
        lambda: queue.enqueue("greet", {}),
        lambda: queue.get_job("a"),
        lambda: queue.process_jobs(HANDLERS),
        queue.counts,
    ]
    for call in calls:
        with pytest.raises(QueueDamaged, match=r"header is lost.*restore the header"):
            call()
    assert path.read_bytes() == start + line("b").encode()


def test_each_error_is_also_a_fitting_builtin_error() -> None:
    for error, built_in in {
        InvalidArgument: ValueError,
        InvalidJob: ValueError,
        JobNotFound: LookupError,
        DuplicateJob: ValueError,
        InvalidHandlers: TypeError,
        QueueBusy: OSError,
        NotAQueue: OSError,
        QueueDamaged: OSError,
        StoreError: OSError,
    }.items():
        assert issubclass(error, built_in)
        assert issubclass(error, QueueError)


# --- permissions, links and strange files


def give_to_another_user(file: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to give a file to another user")
    os.chown(file, 12345, 12345)


def refuse_all(queue: Queue) -> None:
    """Make every call that could open the strange file, twice; at least one must refuse it."""
    refused = 0
    calls: list[Callable[[], object]] = [
        lambda: queue.enqueue("greet", {}),
        lambda: queue.cancel_job("a"),
        lambda: queue.process_jobs(HANDLERS),
        lambda: queue.get_job("a"),
        queue.counts,
    ]
    for call in calls * 2:
        try:
            call()
        except NotAQueue as e:
            assert "left untouched; move it away" in str(e)
            refused += 1
    assert refused


@pytest.mark.parametrize("suffix", ["", ".lock", ".journal", ".pass.1", ".rejected"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "fifo", "directory"])
def test_a_strange_file_at_the_path_of_a_queue_file_is_refused_and_left_alone(
    path: Path, tmp_path: Path, suffix: str, kind: str
) -> None:
    add_lines(path, line("a"), line("b"))
    if suffix == ".rejected":
        add_lines(path, b"\0\n")
    place = Path(f"{path}{suffix}")
    victim = tmp_path / "victim"
    victim.write_bytes(path.read_bytes() if not suffix else b"precious\n")
    victim.chmod(0o604)
    if kind == "hard link":
        give_to_another_user(victim)
    before = victim.read_bytes()
    place.unlink(missing_ok=True)
    make: dict[str, Callable[[], object]] = {
        "link": lambda: place.symlink_to(victim),
        "dangling link": lambda: place.symlink_to(tmp_path / "nowhere"),
        "hard link": lambda: place.hardlink_to(victim),
        "fifo": lambda: os.mkfifo(place),
        "directory": place.mkdir,
    }
    make[kind]()
    status = place.lstat()
    if suffix == ".rejected":  # only a fold needs it, and that can wait
        with Queue(path, clock=Clock()) as queue:
            assert queue.process_jobs(HANDLERS) == NONE | {"completed": 2}
            assert counts(queue)["completed"] == 2
        assert b"\0\n" in path.read_bytes()
    else:
        for queue in (Queue(path), Queue(path)):
            refuse_all(queue)
    after = place.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (
        status.st_ino,
        status.st_mode,
        status.st_size,
    )
    assert victim.read_bytes() == before
    assert stat.S_IMODE(victim.stat().st_mode) == 0o604
    assert not (tmp_path / "nowhere").exists()


def test_a_link_at_the_path_of_an_unfinished_fold_is_not_followed(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    for make in (Path.symlink_to, Path.hardlink_to):
        job_id = queue.enqueue("greet", {})
        make(sibling(path, "fold"), victim)
        assert queue.cancel_job(job_id)
        assert row(path, job_id)["status"] == "cancelled"
        assert victim.read_text() == "precious\n"
        assert (path.is_symlink(), path.stat().st_nlink) == (False, 1)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o703])
def test_a_world_writable_directory_is_refused(queue: Queue, path: Path, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    for _ in range(2):
        with pytest.raises(NotAQueue, match=r"this directory is world-writable.*chmod o-w"):
            queue.enqueue("greet", {})
    assert list(path.parent.iterdir()) == []
    add_lines(path, line("a"))
    with pytest.raises(NotAQueue, match="this directory is world-writable"):
        queue.process_jobs(HANDLERS)
    with pytest.raises(NotAQueue, match="this directory is world-writable"):
        queue.cancel_job("a")
    assert row(path, "a")["status"] == "pending"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def use_all_files(path: Path) -> None:
    with Queue(path, clock=Clock()) as queue:
        job_id = queue.enqueue("greet", {})
        queue.enqueue("greet", {})
        queue.cancel_job(job_id)
        add_lines(path, b"\0\n")
        assert queue.process_jobs(HANDLERS) == NONE | {"completed": 1}


ALL_FILES = ["queue.tsv"] + [
    f"queue.tsv.{s}" for s in ("history", "journal", "lock", "pass.1", "passes", "rejected")
]


@pytest.mark.parametrize("mask", [0o077, 0o000])
@pytest.mark.parametrize(
    ("directory", "file"), [(0o700, 0o600), (0o755, 0o600), (0o770, 0o660), (0o2775, 0o660)]
)
def test_the_mode_of_each_file_follows_the_directory_not_the_umask(
    path: Path, mask: int, directory: int, file: int
) -> None:
    path.parent.mkdir()
    path.parent.chmod(directory)
    with umask(mask):
        use_all_files(path)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ALL_FILES
    for entry in path.parent.iterdir():
        assert (entry.name, oct(entry.stat().st_mode & 0o7777)) == (entry.name, oct(file))
        assert entry.stat().st_gid == path.parent.stat().st_gid


@pytest.mark.parametrize("mask", [0o077, 0o000])
@pytest.mark.parametrize(
    ("parent", "made"), [(0o700, 0o755), (0o755, 0o755), (0o770, 0o2770), (0o1777, 0o755)]
)
def test_a_new_directory_gets_the_permissions_of_its_parent(
    tmp_path: Path, mask: int, parent: int, made: int
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(parent)
    with umask(mask):
        use_all_files(home / "a" / "data" / "queue.tsv")
    for directory in (home / "a", home / "a" / "data"):
        assert oct(directory.stat().st_mode & 0o7777) == oct(made)


@as_root
@pytest.mark.parametrize("directory", [0o755, 0o750, 0o770, 0o2770])
def test_files_that_root_creates_belong_to_the_directorys_owner(path: Path, directory: int) -> None:
    path.parent.mkdir()
    os.chown(path.parent, 12345, 54321)
    path.parent.chmod(directory)
    with umask(0o077):
        use_all_files(path)
    for entry in path.parent.iterdir():
        status = entry.stat()
        assert (entry.name, status.st_uid, status.st_gid) == (entry.name, 12345, 54321)


@as_root
def test_a_directory_that_root_creates_belongs_to_its_parents_owner(tmp_path: Path) -> None:
    home = tmp_path / "app"
    home.mkdir()
    os.chown(home, 12345, 54321)
    use_all_files(home / "var" / "data" / "queue.tsv")
    for directory in (home / "var", home / "var" / "data"):
        assert (directory.stat().st_uid, directory.stat().st_gid) == (12345, 54321)


AS_A_USER = """
import os, sys, tempfile
from dbbasic_queue import Queue
path, (uid, gid), mask, name = sys.argv[1], map(int, sys.argv[2:4]), sys.argv[4], sys.argv[5]
with tempfile.TemporaryDirectory() as directory:
    # The user may not be allowed to read Python's files: import everything now.
    with Queue(f"{directory}/queue.tsv") as queue:
        queue.enqueue("greet", {})
        queue.process_jobs({"greet": len})
os.setgroups([gid]); os.setegid(gid); os.seteuid(uid); os.umask(int(mask, 8))
try:
    queue = Queue(path)
    mine, other = queue.enqueue(name, {}), queue.enqueue(name, {}, 9999999999)
    assert queue.process_jobs({name: lambda _: name}, 1)["completed"] == 1, list(queue.jobs())
    assert queue.cancel_job(other)
    found = queue.get_job(mine)
    assert (found["status"], found["result"]) == ("completed", name), found
finally:
    os.seteuid(0)
"""


def a_user() -> tuple[int, int]:
    for name in ("www-data", "daemon", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    pytest.skip("needs a user www-data, daemon or nobody")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@as_root
@pytest.mark.parametrize("first", ["root", "the web server"])
@pytest.mark.parametrize("shared", ["by its owner", "by its group", "by its group, of root"])
def test_root_with_umask_077_and_the_web_server_share_a_queue(
    open_directory: Path, first: str, shared: str
) -> None:
    uid, gid = a_user()
    data = open_directory / "data"
    data.mkdir()
    os.chown(data, 0 if "of root" in shared else uid, gid)
    data.chmod(0o2770 if "group" in shared else 0o700)
    path = data / "queue.tsv"
    users = [(0, 0, "077", "root"), (uid, gid, "022", "web")]
    for user in (users if first == "root" else users[::-1]) * 2:
        done = python(AS_A_USER, path, *user)
        assert (done.returncode, done.stderr) == (0, "")
    assert len(rows(path)) == 8
    assert {columns[3] for columns in rows(path)} == {"completed", "cancelled"}
    for entry in data.iterdir():
        assert entry.stat().st_gid == gid
    if shared == "by its owner":
        assert {entry.owner() for entry in data.iterdir()} == {pwd.getpwuid(uid).pw_name}
    else:
        assert {entry.group() for entry in data.iterdir()} == {grp.getgrgid(gid).gr_name}


@as_root
def test_a_user_without_permission_gets_an_error_whose_advice_works(open_directory: Path) -> None:
    uid, gid = a_user()
    data = open_directory / "data"
    data.mkdir(0o755)
    path = data / "queue.tsv"
    with Queue(path) as queue:
        queue.enqueue("greet", {})
    before = path.read_bytes()
    done = python(AS_A_USER, path, uid, gid, "022", "web")
    assert "StoreError: [Errno 13] Permission denied" in done.stderr
    found = re.search(r"run as (?:root|user 0), or share the directory: (.*)\): '", done.stderr)
    assert found is not None, done.stderr
    assert path.read_bytes() == before
    subprocess.run(["sh", "-c", found[1].replace("GROUP", str(gid))], check=True)
    for _ in range(2):  # the second time, the file was rewritten
        done = python(AS_A_USER, path, uid, gid, "022", "web")
        assert (done.returncode, done.stderr) == (0, "")
    nobody = 65534
    done = python(AS_A_USER, path, nobody, nobody, "022", "web")
    name = grp.getgrgid(gid).gr_name
    assert re.search(rf"or add this user to the group ({name}|{gid})\)", done.stderr), done.stderr


# --- forks

FORKING = """
import fcntl, os, sys
from dbbasic_queue import Queue
queue = Queue("queue.tsv")
queue.enqueue("greet", "parent")
queue.get_job("x"); queue.cancel_job(queue.enqueue("greet", {}))
r, w = os.pipe(); r2, w2 = os.pipe()
SCENE
"""


def fork(tmp_path: Path, scene: str) -> str:
    (tmp_path / "data").mkdir()
    done = python(FORKING.replace("SCENE", scene), cwd=tmp_path / "data")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_parent_and_child_can_both_use_the_queue_after_a_fork(tmp_path: Path) -> None:
    fork(
        tmp_path,
        """
pids = []
for n in range(4):
    pid = os.fork()
    if not pid:
        for i in range(25):
            queue.cancel_job(queue.enqueue("greet", i))
            queue.enqueue("greet", i, job_id=f"{n}-{i}")
        assert queue.counts()["pending"] > 25
        os._exit(0)
    pids.append(pid)
for i in range(25):
    queue.cancel_job(queue.enqueue("greet", i))
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
assert queue.counts() == {"pending": 101, "processing": 0, "completed": 0, "failed": 0,
                          "cancelled": 126}, queue.counts()
""",
    )
    assert len(rows(tmp_path / "data" / "queue.tsv")) == 227


def test_a_child_forked_while_other_threads_use_the_queue_does_not_hang(tmp_path: Path) -> None:
    fork(
        tmp_path,
        """
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads forks
stopped = threading.Event()
def work():
    while not stopped.is_set():
        queue.cancel_job(queue.enqueue("greet", "thread"))
        queue.store.is_complete()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
try:
    for n in range(8):
        pid = os.fork()
        if not pid:
            job_id = queue.enqueue("greet", "child", job_id=f"child-{n}")
            os._exit(not queue.cancel_job(job_id))
        assert os.waitpid(pid, 0)[1] == 0
finally:
    stopped.set()
for thread in threads:
    thread.join()
assert queue.counts()["pending"] == 1
""",
    )


def test_a_child_never_releases_its_parents_lock(tmp_path: Path) -> None:
    fork(
        tmp_path,
        """
def hold():
    global pid, queue
    pid = os.fork()
    if not pid:
        queue.close()
        del queue
        os.write(w, b"x")
        os.read(r2, 1)
        os._exit(0)
    os.read(r, 1)
    with open("queue.tsv.lock", "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            raise SystemExit("the child has freed the lock")
queue.store.lock.run(hold)
# When the parent has released it, the child that lives on doesn't hold it either.
with open("queue.tsv.lock", "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.write(w2, b"x")
assert os.waitpid(pid, 0)[1] == 0
""",
    )


def test_a_child_that_outlives_its_pass_does_not_hold_a_slot(tmp_path: Path) -> None:
    fork(
        tmp_path,
        """
def handler(_):
    global pid
    pid = os.fork()
    if not pid:
        os.write(w, b"x")
        os.read(r2, 1)
        os._exit(0)
    os.read(r, 1)  # by now the child has closed the slot
    return "done"
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads forks
assert queue.process_jobs({"greet": handler})["completed"] == 1
with open("queue.tsv.pass.1", "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.write(w2, b"x")
assert os.waitpid(pid, 0)[1] == 0
""",
    )


# --- reads during writes


def test_a_reader_sees_every_acknowledged_job_while_others_write_and_fold(
    queue: Queue, path: Path
) -> None:
    acknowledged: list[str] = []
    errors: list[BaseException] = []
    stopped = threading.Event()

    def write() -> None:
        with Queue(path, clock=Clock(), fsync=False) as own:
            try:
                for n in range(150):
                    acknowledged.append(own.enqueue("greet", n))
                    if n % 3 == 0:
                        own.cancel_job(acknowledged[-1])
                    if n % 50 == 0:
                        own.process_jobs(HANDLERS)
            except BaseException as e:  # noqa: BLE001 - the test checks it
                errors.append(e)
            finally:
                stopped.set()

    queue.enqueue("greet", {})
    writer = threading.Thread(target=write)
    writer.start()
    end = time.monotonic() + 30
    with Queue(path) as reader:
        while not stopped.is_set() and time.monotonic() < end:
            known = list(acknowledged)
            found = {found["id"] for found in reader.jobs()}
            assert found.issuperset(known)
            assert path.read_bytes().startswith(HEADER.encode())
    join(writer, "the writer")
    assert errors == []
    assert len(rows(path)) == 151


@pytest.mark.parametrize("when", range(1, 12))
@pytest.mark.parametrize("has_looked", [False, True])
def test_a_lookup_works_with_a_fold_before_any_of_its_reads(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch, has_looked: bool, when: int
) -> None:
    ids = queue.enqueue_many("greet", range(100))
    with largest_file(2000):
        assert queue.cancel_job(ids[50])  # only in the journal
    reads: list[int] = []
    real = os.pread

    def read(fd: int, size: int, offset: int) -> bytes:
        reads.append(fd)
        if len(reads) == when:
            assert queue.cancel_job(ids[51])
            assert sibling(path, "journal").read_bytes() == b""
        return real(fd, size, offset)

    with Queue(path) as reader:
        if has_looked:
            assert counts(reader)["cancelled"] == 1
        monkeypatch.setattr(os, "pread", read)
        assert job(reader, ids[50])["status"] == "cancelled"
        assert reader.counts()["cancelled"] in (1, 2)  # the fold may be after this call's reads
        monkeypatch.undo()
        assert counts(reader)["cancelled"] == 1 + (len(reads) >= when)


def test_a_first_lookup_finds_the_same_as_later_ones(queue: Queue, path: Path) -> None:
    add_lines(path, "a\n", "a\tb\n", line("a", payload="1"), line("a", payload="2"))
    add_lines(path, line("b", run_at="soon"), line("b")[:-1] + "\r\n", line("torn")[:-1])
    sibling(path, "journal").write_bytes(
        record("a", "failed", error="no")
        + record("a", "completed", result="7")
        + record("a", "pending")[:-9]
        + b"\n"
        + record("b", "cancelled")[:-1]
    )
    for job_id in ("a", "b", "torn", "greet"):
        with Queue(path) as reader:
            first = reader.get_job(job_id)
            assert counts(reader) is not None
            assert reader.get_job(job_id) == first
    assert (job(queue, "a")["result"], job(queue, "a")["payload"]) == (7, 1)
    assert job(queue, "b")["status"] == "pending"
    assert queue.get_job("torn") is None


def test_jobs_that_only_partly_fit_on_the_disk_leave_no_rows(path: Path) -> None:
    program = """
import resource, sys
from dbbasic_queue import Queue, StoreError
queue = Queue(sys.argv[1])
queue.enqueue("greet", "first")
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    queue.enqueue_many("greet", range(100))  # about 60 bytes each: a part is written, then EFBIG
except StoreError as e:
    assert "nothing was added" in str(e), e
    print(e.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout == f"{errno.EFBIG}\n", done
    with Queue(path) as queue:
        assert [job["payload"] for job in queue.jobs()] == ["first"]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("length", [100, 990, 5000, 300_000])
def test_a_job_enqueued_right_after_one_that_was_undone_is_seen_by_all(
    queue: Queue, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Their rows differ only in the id, not in length or in their last bytes."""
    payload = {"template": "welcome_newsletter_of_this_month", "padding": "x" * length}
    queue.enqueue("greet", {})
    with Queue(path, clock=clock) as other:
        counts(other)

        def fail(_: int) -> None:
            counts(other)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(StoreError, match="nothing was added"):
                queue.enqueue("greet", payload)
        job_id = queue.enqueue("greet", payload)
        assert job(queue, job_id)["payload"] == payload
        for _ in range(4):
            assert job(other, job_id)["payload"] == payload
        assert other.process_jobs(HANDLERS) == NONE | {"completed": 2}


def test_a_file_that_outlives_its_modules_globals_at_exit_causes_no_message(path: Path) -> None:
    code = (
        "import sys\n"
        "from dbbasic_queue import Queue\n"
        "from dbbasic_queue.store.disk import openfile\n"
        "queue = Queue(sys.argv[1])\n"
        "queue.enqueue('greet', {})\n"
        "for name in ('_SEEK_CUR', '_SEEK_SET', 'os'):  # as the interpreter does at its end\n"
        "    setattr(openfile, name, None)\n"
        "del queue\n"
    )
    done = python(code, path)
    assert (done.returncode, done.stderr) == (0, "")
