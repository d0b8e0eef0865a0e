"""`dbbasic-queue run handlers.toml`: one pass, as cron starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from helpers import (
    PROJECT,
    Child,
    environment,
    fill,
    job,
    run_command,
    small_disk,
    wait_for,
)

from dbbasic_queue import Queue


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An app with three commands: one that works, one that doesn't, and one that waits."""
    (tmp_path / "handlers.toml").write_text(
        textwrap.dedent(
            """
            [add]
            command = ["sh", "-c", 'echo $(($1 + 1)) > sum', "sh", "{n}"]

            [bad]
            command = ["sh", "-c", "echo no such user >&2; exit 65"]

            [later]
            command = ["sh", "-c", "exit 75"]

            [wait]
            command = ["sh", "-c", "echo $$ > pid; exec sleep 1000"]
            """
        )
    )
    (tmp_path / "handlers.toml").chmod(0o644)
    return tmp_path


@pytest.fixture
def default(place: Path) -> Queue:
    """The queue that the command uses by default."""
    return Queue(place / "data/queue.tsv")


def test_run_makes_one_pass_and_is_quiet_if_no_job_fails(place: Path, default: Queue) -> None:
    added, later = default.enqueue("add", {"n": 4}), default.enqueue("later", {})
    done = run_command("run", "handlers.toml", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (place / "sum").read_text() == "5\n"
    assert job(default, added)["status"] == "completed"
    assert job(default, later)["error"] == "exit code 75"


def test_run_before_the_first_job_is_quiet_and_creates_nothing(place: Path) -> None:
    done = run_command("run", "handlers.toml", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (place / "data").exists()


def test_run_reports_a_job_that_has_failed_on_stderr_and_exits_with_0(
    place: Path, default: Queue
) -> None:
    bad = default.enqueue("bad", {})
    done = run_command("run", "handlers.toml", cwd=place)
    assert done.returncode == 0
    report = f"ERROR bad {bad} failed, attempt 1: exit code 65: no such user"
    assert report in done.stderr


def test_strict_exits_with_3_if_a_job_has_failed_for_good(place: Path, default: Queue) -> None:
    default.enqueue("add", {"n": 4})
    default.enqueue("later", {})
    assert run_command("run", "--strict", "handlers.toml", cwd=place).returncode == 0
    default.enqueue("bad", {})
    assert run_command("run", "--strict", "handlers.toml", cwd=place).returncode == 3
    assert run_command("run", "--strict", "handlers.toml", cwd=place).returncode == 0


def test_verbose_reports_every_attempt(place: Path, default: Queue) -> None:
    default.enqueue("add", {"n": 4})
    default.enqueue("later", {})
    done = run_command("run", "-v", "handlers.toml", cwd=place)
    assert done.stderr.count(" INFO ") == 2


def test_run_leaves_jobs_of_other_types_alone(place: Path, default: Queue) -> None:
    other = default.enqueue("other", {})
    done = run_command("run", "handlers.toml", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert (job(default, other)["status"], job(default, other)["attempts"]) == ("pending", 0)


def test_run_takes_another_queue_and_another_number_of_attempts(place: Path) -> None:
    with Queue(place / "mail/queue.tsv") as queue:
        ids = queue.enqueue_many("later", range(3))
        done = run_command(
            *("run", "--file", "mail/queue.tsv", "--workers", "2", "--max-attempts", "1"),
            "handlers.toml",
            cwd=place,
        )
        assert done.returncode == 0
        assert [job(queue, job_id)["status"] for job_id in ids] == ["failed"] * 3
    assert not (place / "data").exists()


def test_run_lingers_for_jobs_that_become_due(place: Path, default: Queue) -> None:
    worker = Child(
        [sys.executable, "-m", "dbbasic_queue", "run", "handlers.toml", "--linger", "1m"],
        place,
        "worker",
    )
    try:
        added = default.enqueue("add", {"n": 1}, run_at=time.time() + 1)
        wait_for(lambda: job(default, added)["status"] == "completed", "the job")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 143
    finally:
        worker.clean_up()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_run_without_a_traceback(
    place: Path, default: Queue, number: int, code: int
) -> None:
    waiting = default.enqueue("wait", {})
    worker = Child(
        ["sh", "-c", f"exec {sys.executable} -m dbbasic_queue run handlers.toml"],
        place,
        "worker",
        env=environment(),
    )
    try:
        wait_for(lambda: (place / "pid").exists() and (place / "pid").read_text(), "the command")
        worker.signal(number)
        if number == signal.SIGTERM:
            time.sleep(0.5)  # two at once would count as one
            worker.signal(number)  # the first one lets the job finish
        assert worker.wait() == code
        assert worker.errors.read_text() == ""
        assert (job(default, waiting)["status"], job(default, waiting)["attempts"]) == (
            "pending",
            0,
        )
        pid = int((place / "pid").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        worker.clean_up()


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["missing.toml"], 1, "dbbasic-queue: missing.toml: No such file or directory"),
        (["handlers.toml", "--workers", "0"], 2, "dbbasic-queue run: "),
        (["handlers.toml", "--max-attempts", "0"], 2, "dbbasic-queue run: "),
        (["handlers.toml", "--workers", "65"], 1, "dbbasic-queue: invalid workers 65: must be"),
        (["handlers.toml", "--workers", "x"], 2, "dbbasic-queue run: "),
        (["handlers.toml", "--linger", "55"], 2, "dbbasic-queue run: "),
        ([], 2, "dbbasic-queue run: "),
    ],
)
def test_what_cannot_be_run_is_one_line_on_stderr(
    place: Path, arguments: list[str], code: int, error: str
) -> None:
    done = run_command("run", *arguments, cwd=place)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1


def test_an_error_in_the_file_runs_no_job(place: Path, default: Queue) -> None:
    with (place / "handlers.toml").open("a") as file:
        file.write('[typo]\ncommand = ["cat"]\ntimeot = 5\n')
    added = default.enqueue("add", {"n": 4})
    done = run_command("run", "handlers.toml", cwd=place)
    assert done.returncode == 1
    assert done.stderr == (
        "dbbasic-queue: handlers.toml: [typo]: unknown key 'timeot' (did you mean timeout?)\n"
    )
    assert job(default, added)["attempts"] == 0


def test_a_full_disk_is_one_line_on_stderr(place: Path, tmp_path: Path) -> None:
    """Cron would mail a traceback."""
    with small_disk(tmp_path / "disk", "256k") as disk:
        with Queue(disk / "queue.tsv") as queue:
            queue.enqueue("add", {"n": 1})
        fill(disk)
        run = ("-m", "dbbasic_queue", "run", str(place / "handlers.toml"))
        for program in (run, (str(PROJECT / "workers/queue_worker.py"),)):
            done = subprocess.run(
                [sys.executable, *program],
                cwd=place,
                env={**environment(), "DBBASIC_QUEUE_FILE": str(disk / "queue.tsv")},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
            assert "the disk is full: free some space" in done.stderr


def test_run_can_ping_a_monitor(place: Path, default: Queue) -> None:
    default.enqueue("bad", {})
    requested = []

    class Monitor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Monitor) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/ping/shop"
        assert run_command("run", "--ping", url, "handlers.toml", cwd=place).returncode == 0
        server.shutdown()
    assert requested == ["/ping/shop"]
    done = run_command("run", "--ping", "ftp://127.0.0.1/", "handlers.toml", cwd=place)
    assert done.returncode == 1
    assert "ftp://127.0.0.1/" in done.stderr
