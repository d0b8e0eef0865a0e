"""Files that aren't ours, or that are mounted, moved or removed while the queue is used."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import HEADER, NONE, NOW, PROJECT, job, row, sibling

from dbbasic_queue import NotAQueue, Queue, StoreError, Worker

# -- other people's files


@pytest.mark.parametrize("content", ["root:x:0:0:root:/root:/bin/sh\n", "notes", "\0\0"])
def test_a_file_that_is_not_a_queue_is_refused_before_anything_is_created_next_to_it(
    tmp_path: Path, content: str
) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text(content)
    queue = Queue(passwd)
    handlers = {"greet": str}
    for call in (
        lambda: queue.enqueue("greet", {}),
        lambda: queue.enqueue("greet", {}, job_id="own"),
        lambda: queue.cancel_job("x"),
        lambda: queue.requeue("x"),
        lambda: queue.requeue_failed(),
        lambda: queue.remove_type("greet"),
        lambda: queue.purge(0, archive=tmp_path / "archive.tsv"),
        lambda: queue.pause("greet"),
        lambda: queue.process_jobs(handlers),
        lambda: queue.process_jobs(handlers, linger=9),
    ):
        with pytest.raises(NotAQueue):
            call()
        assert [file.name for file in tmp_path.iterdir()] == ["passwd"]
    assert passwd.read_text() == content


@pytest.mark.parametrize(
    "content", ["", HEADER[:20], HEADER, "\ufeff" + HEADER.replace("\n", "\r\n")]
)
def test_an_empty_file_and_any_header_of_a_queue_are_accepted(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content.encode())
    with Queue(path) as queue:
        queue.enqueue("greet", {}, job_id="x")
        assert queue.process_jobs({"greet": str})["completed"] == 1


# -- a queue that isn't there


def test_nothing_but_enqueue_and_pause_creates_a_queue_or_its_directory(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    handlers = {"greet": str}
    assert queue.process_jobs(handlers) == NONE
    assert queue.process_jobs(handlers, workers=2) == NONE
    assert queue.process_jobs(handlers, linger=0.01) == NONE
    assert queue.run_until_complete(handlers) == NONE
    assert queue.get_job("x") is None
    assert not queue.cancel_job("x")
    assert not queue.requeue("x")
    assert queue.requeue_failed() == queue.clear_failed() == queue.remove_type("greet") == 0
    assert queue.purge(0, archive=tmp_path / "archive.tsv") == 0
    assert not queue.resume()
    assert sum(queue.counts().values()) == 0
    assert list(tmp_path.iterdir()) == []
    queue.enqueue("greet", {})
    assert path.exists()


def test_a_pass_without_a_queue_logs_one_warning_with_the_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Queue("data/queue.tsv").process_jobs({"greet": str})
    Queue("data/queue.tsv").process_jobs({"greet": str}, linger=0.01)
    assert [(r.levelname, r.getMessage().split(":")[0]) for r in caplog.records] == [
        ("WARNING", str(tmp_path / "data/queue.tsv"))
    ] * 2


def test_a_pass_that_lingers_and_a_worker_wait_for_a_queue_to_appear(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    ran = threading.Event()
    with Worker(Queue(path), {"greet": lambda _: ran.set()}):
        assert list(tmp_path.iterdir()) == []
        queue.enqueue("greet", {}, 1)
        assert ran.wait(20)


def test_a_pass_does_not_recreate_a_queue_that_was_removed_under_it(
    queue: Queue, path: Path
) -> None:
    queue.enqueue("greet", {})
    assert queue.process_jobs({"greet": lambda _: path.unlink()}) == NONE
    assert not path.exists()


# -- backups by hard links


def test_a_backup_by_hard_links_does_not_block_the_queue(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    queue.enqueue("greet", 1, job_id="a")
    queue.process_jobs({"greet": str})
    queue.pause("other")
    copies = tmp_path / "backup"
    copies.mkdir()
    for file in path.parent.iterdir():
        (copies / file.name).hardlink_to(file)
    assert len(list(copies.iterdir())) > 3
    with Queue(path) as other:
        assert other.cancel_job(other.enqueue("greet", 2))
        other.enqueue("greet", 3, job_id="c", run_at=1)
        assert other.process_jobs({"greet": str}) == NONE | {"completed": 1}
        assert other.resume()
        assert other.counts()["completed"] == 2
    assert path.stat().st_nlink == 1  # a fold has replaced the name
    with Queue(copies / path.name) as backup:
        assert job(backup, "a")["status"] == "completed"


@pytest.mark.parametrize(
    ("directory_mode", "mode", "uid", "gid", "accepted"),
    [
        (0o755, 0o600, 12345, 12345, True),
        (0o755, 0o600, 0, 12345, False),
        (0o2770, 0o660, 54321, 12345, True),
        (0o2770, 0o640, 12345, 12345, False),
        (0o2770, 0o660, 12345, 0, False),
    ],
)
def test_a_hard_link_is_accepted_if_all_who_can_write_the_directory_can_write_the_file(
    path: Path, directory_mode: int, mode: int, uid: int, gid: int, accepted: bool
) -> None:
    if os.geteuid():
        pytest.skip("needs root, to give files to other users")
    with Queue(path) as queue:
        queue.enqueue("greet", {})
    os.chown(path.parent, 12345, 12345)
    path.parent.chmod(directory_mode)
    for file in list(path.parent.iterdir()):
        os.chown(file, uid, gid)
        file.chmod(mode)
        sibling(path, f"other.{file.name}").hardlink_to(file)
    if accepted:
        assert Queue(path).process_jobs({"greet": str}) == NONE | {"completed": 1}
    else:
        with pytest.raises(NotAQueue, match="a hard link to another user's file"):
            Queue(path).process_jobs({"greet": str})


# -- access lists


def access_list(file: Path) -> str:
    command = ["getfacl", "--omit-header", "--numeric", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def set_access_list(file: Path, *arguments: str) -> None:
    if not shutil.which("setfacl"):
        pytest.skip("needs setfacl (Debian: apt-get install acl)")
    done = subprocess.run(["setfacl", *arguments, file], capture_output=True, text=True)
    if "not supported" in done.stderr:
        pytest.skip("this file system has no access lists")
    assert done.returncode == 0, done.stderr


def test_a_fold_keeps_the_access_list_and_the_extended_attributes(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    set_access_list(path, "-m", "u:12345:rw,g:54321:r")
    os.setxattr(path, "user.origin", b"web")
    before = path.stat(), access_list(path)
    assert queue.process_jobs({"greet": str})["completed"] == 1
    after = path.stat()
    assert row(path, job_id)["status"] == "completed"  # in the file, and not only its journal
    assert (after.st_mode, after.st_uid, after.st_gid) == before[0][:1] + before[0][4:6]
    assert access_list(path) == before[1]
    assert os.getxattr(path, "user.origin") == b"web"


def test_a_fold_adds_no_access_list_that_the_old_file_did_not_have(
    queue: Queue, path: Path
) -> None:
    queue.enqueue("greet", {})
    set_access_list(path.parent, "-d", "-m", "u:12345:rw")
    before = access_list(path)
    assert queue.process_jobs({"greet": str})["completed"] == 1
    assert access_list(path) == before


def test_if_the_access_list_cannot_be_kept_the_file_is_not_replaced_and_nothing_is_lost(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue.enqueue("greet", {})
    set_access_list(path, "-m", "u:12345:rw")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "setxattr", refuse)
        assert queue.process_jobs({"greet": str})["completed"] == 1
    assert row(path, job_id)["status"] == "pending"  # as it was: the outcome is in the journal
    assert job(queue, job_id)["status"] == "completed"
    assert queue.process_jobs({"greet": str}) == NONE
    assert row(path, job_id)["status"] == "completed"


# -- files that are moved or removed under a pass


def test_a_directory_that_is_moved_under_a_pass_keeps_the_running_jobs_outcome_and_ends_the_pass(
    queue: Queue, path: Path
) -> None:
    elsewhere = path.parent.with_name("elsewhere")
    ids = queue.enqueue_many("greet", range(3))
    ran = []

    def greet(number: int) -> int:
        ran.append(number)
        path.parent.rename(elsewhere)
        return number

    with pytest.raises(StoreError, match="directory was moved or removed"):
        queue.process_jobs({"greet": greet})
    assert ran == [0]
    assert not path.parent.exists()
    with Queue(elsewhere / path.name, clock=lambda: NOW) as moved:
        assert job(moved, ids[0])["status"] == "completed"
        assert moved.process_jobs({"greet": ran.append}) == NONE | {"completed": 2}
    assert ran == [0, 1, 2]


def test_a_pass_whose_directory_is_replaced_runs_no_job_of_the_other_queue(
    queue: Queue, path: Path
) -> None:
    elsewhere = path.parent.with_name("elsewhere")
    first = queue.enqueue("greet", 1)
    ran = []

    def greet(number: int) -> int:
        ran.append(number)
        path.parent.rename(elsewhere)
        with Queue(path, clock=lambda: NOW - 9) as other:
            other.enqueue("greet", 2, job_id="other")
        return number

    with pytest.raises(StoreError, match="slot file"):
        queue.process_jobs({"greet": greet}, linger=9)
    assert ran == [1]
    with Queue(elsewhere / path.name) as moved:
        assert job(moved, first)["status"] == "completed"
    assert job(queue, "other")["status"] == "pending"
    assert queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 1}


def test_a_pass_whose_slot_file_is_removed_starts_no_more_jobs_so_none_runs_twice(
    queue: Queue, path: Path
) -> None:
    ids = queue.enqueue_many("greet", range(3))
    ran = []

    def greet(number: int) -> int:
        ran.append(number)
        sibling(path, "pass.1").unlink()
        return number

    with pytest.raises(StoreError, match="slot file"):
        queue.process_jobs({"greet": greet})
    assert job(queue, ids[0])["result"] == 0
    assert queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 2}
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("first", ["enqueue", "get_job"])
def test_a_removed_directory_is_not_created_again(queue: Queue, path: Path, first: str) -> None:
    with Queue(path) as other:
        other.enqueue("greet", {}, job_id="x")
    if first == "enqueue":
        queue.enqueue("greet", {})
    else:
        assert len(list(queue.jobs())) == 1
    shutil.rmtree(path.parent)
    with pytest.raises(StoreError, match="moved or removed: nothing was added"):
        queue.enqueue("greet", {})
    assert not path.parent.exists()
    with Queue(path) as other:
        other.enqueue("greet", {}, job_id="y")
    queue.enqueue("greet", {}, job_id="z")
    assert [found["id"] for found in queue.jobs()] == ["y", "z"]


def test_a_worker_goes_on_when_its_directory_is_back(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbbasic_queue.worker._RESTART_SECONDS", 0.01)
    elsewhere = tmp_path / "elsewhere"
    ran: list[int] = []
    moved, back = threading.Event(), threading.Event()

    def greet(number: int) -> None:
        ran.append(number)
        if number == 0:
            path.parent.rename(elsewhere)
            moved.set()
        else:
            back.set()

    with Queue(path) as queue:
        queue.enqueue_many("greet", range(2))
        with Worker(queue, {"greet": greet}):
            assert moved.wait(20)
            elsewhere.rename(path.parent)
            assert back.wait(20)
        assert ran == [0, 1]


# -- mounts

MOUNTED = """
import os, subprocess
from dbbasic_queue import NotAQueue, Queue
with Queue("queue.tsv") as queue:
    queue.enqueue("charge", 42)
charged = []
os.makedirs("mounted/data")
open("mounted/data/queue.tsv", "w").close()
subprocess.run(["mount", "--bind", "queue.tsv", "mounted/data/queue.tsv"], check=True)
queue = Queue("mounted/data/queue.tsv")
for call in (
    lambda: queue.enqueue("charge", 1),
    lambda: queue.process_jobs({"charge": charged.append}),
    lambda: queue.process_jobs({"charge": charged.append}, workers=2),
):
    try: call()
    except NotAQueue as e: assert "mounted by itself" in str(e) and "directory" in str(e), e
    else: raise SystemExit("not refused")
assert [job["payload"] for job in queue.jobs()] == [42] and charged == []
assert os.listdir("mounted/data") == ["queue.tsv"]
os.mkdir("whole")
subprocess.run(["mount", "--bind", ".", "whole"], check=True)
assert Queue("whole/queue.tsv").process_jobs({"charge": charged.append})["completed"] == 1
assert charged == [42]
"""


MOUNTED_WITHOUT_PROC = """
import errno, os, subprocess
from dbbasic_queue import Queue, StoreError
with Queue("queue.tsv") as queue:
    queue.enqueue("charge", 42)
os.makedirs("mounted/data")
open("mounted/data/queue.tsv", "w").close()
subprocess.run(["mount", "--bind", "queue.tsv", "mounted/data/queue.tsv"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
queue = Queue("mounted/data/queue.tsv")
try: queue.process_jobs({"charge": str})
except StoreError as e: assert e.errno == errno.EBUSY and "Mount its directory instead" in str(e), e
else: raise SystemExit("not raised")
assert [job["status"] for job in queue.jobs()] == ["completed"]
"""


def in_private_mounts(code: str, directory: Path) -> None:
    """Run a program with private mounts: other processes don't see what it mounts."""
    if not sys.platform.startswith("linux") or os.geteuid():
        pytest.skip("needs root on Linux, to mount")
    command = ["unshare", "--mount", sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"mounts of its own: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_queue_file_that_is_mounted_by_itself_is_refused_and_a_mounted_directory_works(
    tmp_path: Path,
) -> None:
    in_private_mounts(MOUNTED, tmp_path)


def test_without_proc_a_fold_over_a_mounted_file_is_a_clear_error(tmp_path: Path) -> None:
    in_private_mounts(MOUNTED_WITHOUT_PROC, tmp_path)


# -- docs/deployment.md and docs/operations.md


def block(page: str, pattern: str) -> str:
    """Return the page's only code block whose fence and code match a pattern."""
    text = (PROJECT / "docs" / page).read_text("utf-8")
    (found,) = [
        b for b in re.findall(r"^```(.*?)^```$", text, re.M | re.S) if re.search(pattern, b)
    ]
    return str(found.partition("\n")[2])


def test_the_compose_file_of_the_docs_mounts_the_directory_into_both_containers() -> None:
    compose = block("deployment.md", "^yaml file=compose.yaml")
    lines = [text.strip() for text in compose.splitlines()]
    (mount,) = {text for text in lines if text.startswith("volumes:")}
    assert lines.count(mount) == 2
    assert mount == 'volumes: ["./data:/srv/app/data"]'


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock (Debian: util-linux)")
def test_the_backup_of_the_docs_is_whole_and_can_be_restored(tmp_path: Path) -> None:
    with Queue(tmp_path / "data/queue.tsv") as queue:
        ids = queue.enqueue_many("greet", range(3))

        def back_up(number: int) -> None:
            if number == 1:  # the first job is completed in the journal, and this one is running
                command = block("operations.md", "^sh\n.*cp -a data backup$")
                subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True, timeout=60)

        assert queue.process_jobs({"greet": back_up})["completed"] == 3
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "backup").rename(tmp_path / "data")
    ran: list[int] = []
    with Queue(tmp_path / "data/queue.tsv") as restored:
        assert job(restored, ids[0])["status"] == "completed"
        far = Queue(restored.path, clock=lambda: 4_000_000_000)
        assert far.process_jobs({"greet": ran.append})["completed"] >= 1
    assert 0 not in ran and 2 in ran
