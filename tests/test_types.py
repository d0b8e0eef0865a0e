"""Type checkers accept a user's program, and find the mistakes in another one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PROJECT

GOOD = """
from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

from dbbasic_queue import (
    Backoff,
    Delay,
    Handlers,
    Job,
    JobDict,
    Status,
    default_queue,
    enqueue,
    get_job,
    process_jobs,
)
from dbbasic_queue.notify import Mail

jobs = Handlers()
jobs.on_failure(Mail(to="ops@example.org"))
jobs.on_success(print)


@jobs.on_retry
def warn(job: Job, error: str, run_at: int) -> None:
    print(f"{job.type} {job.payload} {error.upper()} {run_at + 1}")


@jobs.around
@contextmanager
def trace(job: Job) -> Generator[None, None, None]:
    job.log.info("start")
    yield


@jobs.handler("send_email", max_attempts=5, backoff=Backoff(first=timedelta(minutes=1)))
def send_email(payload: dict[str, str], job: Job) -> str:
    if "@" not in payload["to"]:
        raise Delay(timedelta(hours=1), "no address yet")
    return f"{job.id} sent to {payload['to']}"


@jobs.handler(unpack=True)
def resize(name: str, width: int = 100) -> int:
    return width * len(name)


def report(status: Status) -> list[str]:
    rows: list[JobDict] = list(default_queue().jobs(status=status))
    return [f"{row['id']} {row['status']} {row['attempts']}" for row in rows]


if __name__ == "__main__":
    first = send_email.enqueue({"to": "ada@example.org"}, job_id="mail-1")
    resize.enqueue({"name": "cat.png"})
    enqueue("send_email", {"to": "grace@example.org"}, run_at=1_900_000_000)
    print(process_jobs(jobs, linger=timedelta(seconds=0.2), ping=None))
    row = get_job(first)
    print(row["status"] if row else "gone", report("failed"))
"""

BAD = """
from good import jobs, report, send_email, warn

from dbbasic_queue import default_queue, get_job

row = get_job("x")
if row:
    print(row["stauts"])
default_queue().jobs(status="pendign")
send_email.enqueue(5)
send_email.enqueue({"to": "x"}, run_at="tomorrow")
send_email.enqueue({"to": "x"}, jobid="y")
report("done")
jobs.on_failure(warn)
"""
# The lines of BAD with mistakes. Its first line is empty.
MISTAKES = {
    7: "stauts",
    8: "pendign",
    9: "payload",
    10: "run_at",
    11: "jobid",
    12: "done",
    13: "warn",
}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "good.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "bad.py").write_text(BAD, encoding="utf-8")
    return tmp_path


def check(command: list[str], directory: Path) -> str:
    environment = {**os.environ, "MYPYPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.stderr == "" or done.stdout, done.stderr
    return done.stdout


def test_mypy_strict_accepts_a_users_program_and_finds_its_mistakes(program: Path) -> None:
    output = check(["mypy", "--strict", "--no-color-output", "good.py", "bad.py"], program)
    found = {int(n) for n in re.findall(r"^bad\.py:(\d+): error", output, re.MULTILINE)}
    assert found == {line + 1 for line in MISTAKES}, output
    assert "good.py" not in output


def test_pyright_strict_accepts_a_users_program_and_finds_its_mistakes(program: Path) -> None:
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(PROJECT)]}
    (program / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    output = check(["pyright", "--pythonpath", sys.executable, "good.py", "bad.py"], program)
    found = {int(n) for n in re.findall(r"bad\.py:(\d+):\d+ - error", output)}
    assert found == {line + 1 for line in MISTAKES}, output
    assert "good.py" not in output


def test_the_program_runs(program: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "good.py"],
        cwd=program,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.stderr == ""
    assert "'completed': 2" in done.stdout and "completed []" in done.stdout
