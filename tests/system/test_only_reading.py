"""A user with read permission only: what the commands say, and that they leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from helpers import Programs, is_free, sibling, wait_for
from ordinary_user import User, ordinary_user, what_is_missing

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with ordinary_user() as found:
        yield found


@pytest.fixture
def data(user: User) -> Iterator[Path]:
    """A directory of root's that the user can only read, as on docs/deployment.md."""
    place = user.app.parent / "data"
    place.mkdir()
    shutil.chown(place, group="games")
    place.chmod(0o2770)
    if not shutil.which("setfacl"):
        pytest.skip("needs setfacl (Debian: apt-get install acl)")
    rules = f"u:{user.name}:rx,d:u:{user.name}:r"
    done = subprocess.run(["setfacl", "-m", rules, place], capture_output=True, text=True)
    if "not supported" in done.stderr:
        pytest.skip("this file system has no access lists")
    yield place
    shutil.rmtree(place)


def content(place: Path) -> dict[str, tuple[int, int, int, bytes]]:
    return {
        file.name: (status.st_ino, status.st_mode, status.st_mtime_ns, file.read_bytes())
        for file in place.iterdir()
        for status in [file.stat()]
    }


def commands(user: User, path: Path, *names: str) -> Iterator[str]:
    for name in names:
        yield user.queue_command("--file", str(path), *name.split())


def test_a_user_with_read_permission_only_gets_every_answer_and_changes_nothing(
    user: User, data: Path, tmp_path: Path
) -> None:
    path = data / "queue.tsv"
    with Programs(tmp_path) as programs, Queue(path) as queue:
        queue.enqueue("slow", {}, job_id="running")
        queue.enqueue("slow", {}, job_id="waiting")
        programs.start(f"Queue({str(path)!r}).process_jobs({{'slow': lambda _: time.sleep(600)}})")
        # The pass folds once its job takes long, and changes no file after that. It holds the lock
        # until the fold has changed its last file: the time of the lock file itself.
        wait_for(
            lambda: "\tprocessing\t" in path.read_text("utf-8") and is_free(sibling(path, "lock")),
            "the fold",
        )
        before = content(data)
        names = ("status --json", "show running", "check", "running", "watch --count 1")
        status, shown, checked, found_running, watched, found = commands(
            user, path, *names, "doctor --json"
        )
        assert json.loads(status)["verdict"] == "running"
        assert "why\trunning\tit has been running for" in shown
        assert checked.startswith("OK: running: ")
        assert found_running.startswith("running\tslow\t1\t")
        assert "\tverdict\trunning\t" in watched
        findings = {f["name"]: f["level"] for f in map(json.loads, found.splitlines())}
        assert findings["read-only"] == "warning"
        assert findings["lock"] == "ok"
        assert "wrong" not in findings.values()
        refused = user.run(
            str(user.python), "-m", "dbbasic_queue", "--file", str(path), "enqueue", "fax"
        )
        assert refused.returncode == 1
        assert "Permission denied (nothing was done; " in refused.stderr
        assert content(data) == before


def test_a_copy_without_a_lock_in_a_directory_that_is_closed_can_be_read(
    user: User, tmp_path: Path
) -> None:
    path = tmp_path / "data/queue.tsv"
    with Queue(path) as queue:
        queue.enqueue("fax", {}, job_id="waiting")
    backup = user.app.parent / "backup"
    backup.mkdir()
    try:
        shutil.copy(path, backup)
        (backup / "queue.tsv").chmod(0o644)
        shown, status = commands(user, backup / "queue.tsv", "show waiting", "status --json")
        assert "why\tnext\t" in shown
        assert json.loads(status)["due"] == 1
        assert os.listdir(backup) == ["queue.tsv"]
    finally:
        shutil.rmtree(backup)
