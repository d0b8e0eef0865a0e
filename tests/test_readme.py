"""Every example in README.md is run, in its order, in one directory, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dbbasic_queue import Queue

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_example_in_the_readme_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("DBBASIC_QUEUE_FILE", None)
    ran = 0
    for language, mark, code in BLOCK.findall(README):
        if language == "python":
            script = tmp_path / (mark.removeprefix("file=") if mark else "example.py")
            script.parent.mkdir(exist_ok=True)
            script.write_text(code, encoding="utf-8")
            command = [sys.executable, str(script)]
        elif language == "sh" and not mark:
            command = ["bash", "-euo", "pipefail", "-c", code]
        else:
            continue
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, (code, done.stdout, done.stderr)
        assert done.stderr == "", code
        ran += 1
    assert ran >= 5
    rows = (tmp_path / "data/queue.tsv").read_text(encoding="utf-8").splitlines()
    assert any(row.startswith("sh-") for row in rows)


def test_the_job_that_the_readme_adds_from_a_shell_is_run(tmp_path: Path) -> None:
    (code,) = [c for lang, mark, c in BLOCK.findall(README) if lang == "sh" and "flock" in c]
    program = """
from dbbasic_queue import enqueue, process_jobs, jobs
import subprocess, sys
enqueue("later", {}, run_at=9999999999)
subprocess.run(["sh", "-euc", sys.argv[1]], check=True)
assert process_jobs({"send_email": lambda payload: payload["to"]})["completed"] == 1
(job,) = jobs(status="completed")
assert job["result"] == "bob@example.com" and job["id"].startswith("sh-"), job
"""
    subprocess.run([sys.executable, "-c", program, code], cwd=tmp_path, check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give directories away")
def test_in_both_directories_of_the_readme_root_and_the_web_server_share_the_queue() -> None:
    (code,) = [c for lang, mark, c in BLOCK.findall(README) if (lang, mark) == ("sh", "root")]
    program = """
import json, os, pwd, re, signal, sys
import contextvars, filelock
import dbbasic_queue.model.strict_json, dbbasic_queue.passes.sequential
# www-data may not enter the directory where they are
from dbbasic_queue import Queue
os.umask(0o077)
if sys.argv[1] == "www-data":
    user = pwd.getpwnam("www-data")
    os.setgroups([user.pw_gid]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
with Queue(sys.argv[2] + "/queue.tsv") as queue:
    queue.enqueue("who", sys.argv[1])
    assert queue.process_jobs({"who": str})["completed"] == 1
"""
    with tempfile.TemporaryDirectory() as app:  # tmp_path lies where only root may enter
        Path(app).chmod(0o755)
        subprocess.run(["sh", "-euc", code.replace("/srv/app", app)], check=True)
        share(sorted(Path(app).iterdir()), program)


def share(directories: list[Path], program: str) -> None:
    assert len(directories) == 2
    for number, directory in enumerate(directories):
        users = ["root", "www-data", "root"] if number % 2 else ["www-data", "root", "www-data"]
        for user in users:
            done = subprocess.run(
                [sys.executable, "-c", program, user, str(directory)],
                capture_output=True,
                encoding="utf-8",
                cwd=directory,
            )
            assert done.returncode == 0, (user, directory, done.stderr)


def test_the_crontab_line_of_the_readme_names_a_worker_that_exists() -> None:
    (line,) = [c for lang, _, c in BLOCK.findall(README) if lang == "crontab"]
    assert line.count("\n") == 1
    assert (ROOT / line.split()[-1]).is_file()


def test_the_purge_in_the_crontab_of_the_readme_works(tmp_path: Path) -> None:
    (line,) = [c for lang, _, c in BLOCK.findall(README) if lang == "cron"]
    *when, command = line.strip().split(" ", 5)
    assert when == ["0", "3", "1", "*", "*"] and "%" not in command  # which cron would cut at
    assert "cd /srv/app && .venv/bin/dbbasic-queue " in command
    program = f"{sys.executable} -m dbbasic_queue"
    command = command.replace("/srv/app", str(tmp_path))
    command = command.replace(".venv/bin/dbbasic-queue", program)
    file = tmp_path / "data/queue.tsv"
    with Queue(file, clock=lambda: time.time() - 31 * 86_400) as then:
        then.enqueue("old", {}, job_id="old")
    with Queue(file) as queue:
        queue.enqueue("new", {}, job_id="new")
        queue.process_jobs({"old": len, "new": len})
        done = subprocess.run(["sh", "-c", command], capture_output=True, encoding="utf-8")
        assert (done.returncode, done.stdout, done.stderr) == (0, "purged\t1\n", "")
        assert [job["id"] for job in queue.jobs()] == ["new"]
    archive = (tmp_path / "data/archive.tsv").read_text("utf-8")
    assert [line.split("\t")[0] for line in archive.splitlines()] == ["id", "old"]


def test_ci_runs_the_two_commands_of_the_readme_as_written() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "from_readme demo" in script
    assert "from_readme test" in script
    marks = [mark for language, mark, _ in BLOCK.findall(README) if language == "sh"]
    assert marks.count("demo") == marks.count("test") == 1
