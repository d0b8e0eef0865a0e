"""Real cron runs a shell script, a PHP script and a Python function: two files of handlers.

For the shell script and the PHP script, no Python is written: `handlers.toml` declares them, the
crontab line is that of docs/commands.md, and the jobs are added by a shell and by PHP. A worker in
Python has a registry with a function and a command. Both work on the same queue.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import DEADLINE, EMPTY, PROJECT, environment, job, wait_for
from test_cron import A_MINUTE, cron, crontab, install, what_is_missing

from dbbasic_queue import Queue

HANDLERS = """
[shell]
command = ["./count.sh", "{file}"]
timeout = "1m"

[php]
command = ["php", "total.php"]
max_attempts = 5

[broken]
command = ["sh", "-c", "echo nothing helps >&2; exit 65"]
"""
COUNT = """#!/bin/sh
set -eu
[ "$LOGNAME $HOME" = "root /root" ]  # cron's environment
echo "$DBBASIC_QUEUE_JOB_ID" >> ran
.venv/bin/dbbasic-queue enqueue php '[1, 2.5]' --id "from-$DBBASIC_QUEUE_JOB_ID" > /dev/null
wc -l < "$1"
"""
TOTAL = """<?php
file_put_contents('ran', getenv('DBBASIC_QUEUE_JOB_ID') . "\\n", FILE_APPEND | LOCK_EX);
$numbers = json_decode(stream_get_contents(STDIN), true, flags: JSON_THROW_ON_ERROR);
echo json_encode(['total' => array_sum($numbers), 'attempt' => getenv('DBBASIC_QUEUE_ATTEMPT')]);
"""
ADD = """<?php
$command = ['.venv/bin/dbbasic-queue', 'enqueue', 'php', json_encode([20, 22]), '--id', 'php-1'];
$process = proc_open($command, [1 => ['pipe', 'w']], $pipes, __DIR__);
echo trim(stream_get_contents($pipes[1]));
exit(proc_close($process));
"""
WORKER = """
from dbbasic_queue import Command, Handlers, process_jobs

jobs = Handlers()
jobs.add("command", Command(["sh", "-c", "cat; echo command-1 >> ran"]))


@jobs.handler
def function(payload, job):
    with open("ran", "a") as file:
        file.write(job.id + "\\n")
    return payload + 1


if __name__ == "__main__":
    process_jobs(jobs, skip_unknown=True)
"""


def lacks() -> str:
    return what_is_missing() or ("" if shutil.which("php") else "needs php (php-cli)")


def write(place: Path, text: str, mode: int = 0o644) -> None:
    place.write_text(text, encoding="utf-8")
    place.chmod(mode)


@pytest.mark.slow
@pytest.mark.skipif(bool(lacks()), reason=lacks())
def test_cron_runs_a_shell_script_a_php_script_and_a_python_function(tmp_path: Path) -> None:
    page = (PROJECT / "docs/commands.md").read_text("utf-8")
    [line] = re.findall(r"^\* \* \* \* \* cd /srv/app .*$", page, re.MULTILINE)
    app = tmp_path
    install(app, "worker.py")
    write(app / "worker.py", WORKER)
    write(app / "handlers.toml", HANDLERS)
    write(app / "count.sh", COUNT, 0o755)
    write(app / "total.php", TOTAL)
    write(app / "add.php", ADD)
    write(app / "lines", "1\n2\n3\n")
    script = "import sys\nfrom dbbasic_queue.cli.main import main\nsys.exit(main())\n"
    write(app / ".venv/bin/dbbasic-queue", f"#!{app}/.venv/bin/python\n{script}", 0o755)

    def call(*command: str) -> str:
        done = subprocess.run(
            command, cwd=app, env=environment(), capture_output=True, timeout=DEADLINE, check=True
        )
        return done.stdout.decode().strip()

    enqueue = ".venv/bin/dbbasic-queue", "enqueue"
    call(*enqueue, "shell", '{"file": "lines"}', "--id", "shell-1")
    call(*enqueue, "broken", "--id", "broken-1")
    call(*enqueue, "function", "41", "--id", "function-1")
    call(*enqueue, "command", '["in", "Python"]', "--id", "command-1")
    assert call("php", "add.php") == "php-1"
    expected = {
        "shell-1": 3,
        "from-shell-1": {"total": 3.5, "attempt": "1"},
        "php-1": {"total": 42, "attempt": "1"},
        "function-1": 42,
        "command-1": ["in", "Python"],
    }
    with (
        Queue(app / "data/queue.tsv") as queue,
        cron(app),
        crontab(
            app,
            f"{line} 2>> {app}/errors",
            f"* * * * * cd {app} && .venv/bin/python worker.py 2>> {app}/errors",
        ),
    ):
        done = {**EMPTY, "completed": 5, "failed": 1}
        try:
            wait_for(lambda: queue.counts() == done, "cron's passes", 2 * A_MINUTE)
        except AssertionError as e:
            errors = (app / "errors").read_text()
            raise AssertionError(f"{e}\n{errors}\n{[*queue.jobs()]}") from None
        for job_id, result in expected.items():
            found = job(queue, job_id)
            assert (found["status"], found["attempts"], found["result"]) == ("completed", 1, result)
        assert job(queue, "broken-1")["error"] == "exit code 65: nothing helps"
    assert sorted((app / "ran").read_text().split()) == sorted(expected)
    errors = (app / "errors").read_text()
    assert "ERROR broken broken-1 failed, attempt 1: exit code 65: nothing helps" in errors
    assert errors.count("ERROR") == 1
