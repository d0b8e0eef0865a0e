"""`dbbasic-queue bench`: plausible figures, and nothing left behind."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from helpers import Child, run_command, wait_for

NAMES = [
    "this disk: one append and sync",
    "enqueue, on the disk on return",
    "enqueue with fsync=False",
    "enqueue_many, per job",
    "run a job that does nothing",
    "jobs run per second",
    "a pass with nothing to do",
]


def test_the_figures_are_plausible_and_the_directory_is_removed(tmp_path: Path) -> None:
    done = run_command("bench", "--jobs", "500", "--dir", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [text.split("\t") for text in done.stdout.splitlines()]
    assert [name for name, _, _ in rows] == NAMES
    values = [float(value) for _, value, _ in rows]
    sync, enqueue, unsynced, many, run, rate, idle = values
    assert all(0 < micros < 1_000_000 for micros in (sync, enqueue, unsynced, many, run, idle))
    assert many < enqueue
    assert abs(run * rate / 1e6 - 1) < 0.1
    assert list(tmp_path.iterdir()) == []


def test_one_job_is_enough(tmp_path: Path) -> None:
    assert run_command("bench", "--jobs", "1", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_directory_is_removed_also_after_a_signal(
    tmp_path: Path, number: int, code: int
) -> None:
    command = [sys.executable, "-m", "dbbasic_queue", "bench", "--jobs", "1000000", "--dir", "disk"]
    (tmp_path / "disk").mkdir()
    child = Child(command, tmp_path, "bench")
    try:
        wait_for(lambda: list((tmp_path / "disk").glob("*/queue.tsv")), "the first job")
        child.signal(number)
        assert child.wait() == code
        assert child.errors.read_text() == ""
        assert list((tmp_path / "disk").iterdir()) == []
    finally:
        child.clean_up()


def test_a_directory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run_command("bench", "--dir", "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_an_error_names_the_directory_that_the_person_gave(tmp_path: Path) -> None:
    done = run_command("bench", "--dir", "/proc", cwd=tmp_path)
    assert (done.returncode, done.stderr.startswith("dbbasic-queue: /proc: ")) == (1, True)
