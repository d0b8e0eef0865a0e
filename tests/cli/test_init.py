"""`dbbasic-queue init`: what it writes works as it is, and what it prints can be pasted."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment, job, run_command
from test_crontab import run_as_cron

from dbbasic_queue import Queue


def try_it(app: Path, output: str) -> subprocess.CompletedProcess[str]:
    """Run the command that `init` has printed, as a person would paste it."""
    command = output.partition("Try it:\n  ")[2].partition("\n")[0]
    programs = app / "bin"
    programs.mkdir()
    for name, arguments in (("dbbasic-queue", "-m dbbasic_queue"), ("python3", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    return subprocess.run(
        ["sh", "-c", command.replace("linger=55", "")],
        cwd=app,
        env={**environment(), "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


def result(path: Path) -> object:
    with Queue(path) as queue:
        [found] = queue.jobs()
        return job(queue, found["id"])["result"]


@pytest.mark.parametrize("file", [None, "mail box/queue.tsv"])
def test_the_toml_file_runs_the_job_that_init_shows(tmp_path: Path, file: str | None) -> None:
    options = ["--file", file] if file else []
    done = run_command("init", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    tried = try_it(tmp_path, done.stdout)
    assert tried.returncode == 0
    assert tried.stderr.endswith(" completed, attempt 1\n")
    assert result(tmp_path / (file or "data/queue.tsv")) == "Hello, Ada!"


def test_next_to_another_worker_the_command_for_cron_names_the_new_one(tmp_path: Path) -> None:
    first, second = (run_command("init", *o, cwd=tmp_path).stdout for o in ([], ["--python"]))
    assert "\n  dbbasic-queue crontab --install\n" in first
    assert "\n  dbbasic-queue crontab worker.py --install\n" in second
    printed = run_command("crontab", "worker.py", cwd=tmp_path).stdout
    assert second.splitlines()[-1].strip() == printed.strip()


def test_the_program_runs_the_job_that_init_shows(tmp_path: Path) -> None:
    done = run_command("init", "--python", cwd=tmp_path)
    program = tmp_path / "worker.py"
    assert "linger=55" in program.read_text()
    tried = try_it(tmp_path, done.stdout)
    assert tried.returncode == 0
    assert tried.stderr.endswith(" completed, attempt 1\n")
    assert result(tmp_path / "data/queue.tsv") == "Hello, Ada!"


@pytest.mark.parametrize("option", [[], ["--python"]])
def test_the_line_that_init_prints_is_that_of_crontab_and_works(
    tmp_path: Path, option: list[str]
) -> None:
    done = run_command("init", *option, cwd=tmp_path)
    line = done.stdout.splitlines()[-1].strip()
    assert run_command("crontab", cwd=tmp_path).stdout == f"{line}\n"
    run_command("enqueue", "hello", '{"name": "Ada"}', cwd=tmp_path)
    if option:
        program = tmp_path / "worker.py"
        program.write_text(program.read_text().replace("linger=55", "linger=0"))
    mail = run_as_cron(line)
    assert (mail.stdout, mail.stderr) == (b"", b"")
    assert result(tmp_path / "data/queue.tsv") == "Hello, Ada!"


def test_the_program_prints_one_line_if_the_queue_cannot_be_used(tmp_path: Path) -> None:
    """Cron would mail a traceback of 40 lines."""
    run_command("init", "--python", cwd=tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/queue.tsv").write_text("a file of another program\n")
    program = [sys.executable, "worker.py"]
    done = subprocess.run(
        program, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("worker: ") and "data/queue.tsv" in done.stderr


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_any_umask_writes_a_file_that_run_accepts(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        assert run_command("init", cwd=tmp_path).returncode == 0
    finally:
        os.umask(before)
    mode = stat.S_IMODE((tmp_path / "handlers.toml").stat().st_mode)
    assert mode == 0o644 & ~mask
    assert run_command("run", "handlers.toml", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(("name", "option"), [("handlers.toml", []), ("worker.py", ["--python"])])
def test_a_file_that_is_there_is_not_changed(tmp_path: Path, name: str, option: list[str]) -> None:
    (tmp_path / name).write_text("mine")
    done = run_command("init", *option, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"dbbasic-queue: there is a {name} already: nothing was changed\n"
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]
