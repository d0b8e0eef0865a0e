"""The command line, run as a user runs it: as a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dbbasic_queue
from dbbasic_queue.cli import main

PROJECT = Path(__file__).resolve().parent.parent
SCRIPT = Path(sys.executable).with_name("dbbasic-queue")


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def run_module(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "dbbasic_queue", *arguments, cwd=cwd, **environment)


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    done = run_module("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"dbbasic-queue {dbbasic_queue.__version__}\n"


@pytest.mark.skipif(not SCRIPT.exists(), reason="the package is not installed here")
def test_the_console_script_is_the_same_command(tmp_path: Path) -> None:
    done = run(str(SCRIPT), "--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"dbbasic-queue {dbbasic_queue.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["--fly"], ["demo", "--fly"], ["demo", "one"], ["demo", "--dir"]]
)
def test_wrong_usage_is_2_and_says_what_is_right(tmp_path: Path, arguments: list[str]) -> None:
    done = run_module(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: dbbasic-queue")
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_commands(tmp_path: Path) -> None:
    done = run_module("--help", cwd=tmp_path, COLUMNS="40")
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def test_an_error_is_one_line_and_1(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_module("demo", "--dir", "file/below", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dbbasic-queue: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dbbasic_queue", "demo", "--dir", "demo"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_main_returns_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--dir", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_what_one_command_needs_is_not_imported_for_the_others(tmp_path: Path) -> None:
    program = (
        "import sys, dbbasic_queue.cli as cli\n"
        "print(sorted({'argparse', 'dbbasic_queue.demo', 'subprocess'} & set(sys.modules)))\n"
        "cli.argument_parser()\n"
        "print(sorted({'dbbasic_queue.demo', 'subprocess', 'socketserver'} & set(sys.modules)))\n"
    )
    done = run(sys.executable, "-c", program, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


def test_the_command_works_from_a_copy_that_is_not_installed(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "dbbasic_queue", tmp_path / "checkout" / "dbbasic_queue")
    shutil.copytree(PROJECT / "workers", tmp_path / "checkout" / "workers")
    done = run_module("demo", "--dir", "demo", cwd=tmp_path / "checkout", PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "checkout" / "demo" / "report.tsv").exists()
