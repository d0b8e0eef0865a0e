"""`check` is a Nagios plug-in: one line, and an exit code that says how bad it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from helpers import add_lines, line, run_command

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from pathlib import Path

OK, WARNING, CRITICAL, UNKNOWN = range(4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "queue.tsv"
    add_lines(path)
    return path


def check(place: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `check`; return its exit code, what it says, and what it has measured."""
    ran = run_command("check", *arguments, cwd=place)
    assert ran.stderr == ""
    assert ran.stdout.count("\n") == 1
    text, _, measured = ran.stdout.strip().partition(" | ")
    return ran.returncode, text, measured


def a_pass(path: Path) -> None:
    with Queue(path) as queue:
        queue.process_jobs({"other": lambda _: None})


def test_nothing_is_wrong(path: Path, tmp_path: Path) -> None:
    a_pass(path)
    code, text, measured = check(
        tmp_path, "--max-wait", "10m", "--max-failed", "0", "--max-age-of-last-pass", "5m"
    )
    assert (code, text) == (OK, "OK: idle: nothing is due")
    counts = "pending=0 processing=0 completed=0 failed=0 cancelled=0"
    assert measured == f"{counts} due=0 oldest_due=0s"


def test_too_many_failed_jobs_are_a_warning(path: Path, tmp_path: Path) -> None:
    now = int(time.time())
    add_lines(path, *(line(f"j{n}", status="failed", run_at=now, error="Boom") for n in range(3)))
    assert check(tmp_path, "--max-failed", "3")[0] == OK
    code, text, measured = check(tmp_path, "--max-failed", "2")
    assert (code, text) == (WARNING, "WARNING: 3 jobs are failed")
    assert "failed=3" in measured


def test_a_job_that_waits_too_long_is_critical(path: Path, tmp_path: Path) -> None:
    a_pass(path)
    add_lines(path, line("slow", run_at=int(time.time()) - 90))
    assert check(tmp_path, "--max-wait", "10m")[0] == OK
    code, text, measured = check(tmp_path, "--max-wait", "1m")
    assert code == CRITICAL
    assert text.startswith("CRITICAL: slow has been due for 1 min 3")
    assert " due=1 oldest_due=9" in measured


def test_a_pass_that_is_missing_is_critical(path: Path, tmp_path: Path) -> None:
    arguments = ("--max-age-of-last-pass", "1h")
    assert check(tmp_path, *arguments)[:2] == (CRITICAL, "CRITICAL: no pass has ended yet")
    a_pass(path)
    assert check(tmp_path, *arguments)[0] == OK
    log = path.with_name("queue.tsv.passes")
    *_, last = log.read_text().splitlines(keepends=True)
    ended_at, _, rest = last.partition("\t")
    header = log.read_text().split("\n")[0] + "\n"
    log.write_text(f"{header}{float(ended_at) - 7200:.3f}\t{rest}")
    code, text, _ = check(tmp_path, *arguments)
    assert (code, text) == (CRITICAL, "CRITICAL: the last pass ended 2 h ago")


def test_a_stalled_queue_is_always_critical(path: Path, tmp_path: Path) -> None:
    add_lines(path, line("a", run_at=int(time.time()) - 9000))
    code, text, _ = check(tmp_path)
    assert code == CRITICAL
    assert text.startswith("CRITICAL: stalled: 1 job is due, the first one for 2 h 30 min")


def test_the_worst_comes_first(path: Path, tmp_path: Path) -> None:
    now = int(time.time())
    add_lines(path, line("a", status="failed", run_at=now), line("b", run_at=now - 9000))
    code, text, _ = check(tmp_path, "--max-failed", "0", "--max-wait", "1h")
    assert code == CRITICAL
    first, *_, last = text.split("; ")
    assert first.startswith("CRITICAL: ")
    assert last == "1 job is failed"


def test_a_queue_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    code, text, measured = check(tmp_path)
    assert code == UNKNOWN
    assert text.startswith("UNKNOWN: ")
    assert "there is no queue" in text
    assert measured == ""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/queue.tsv").write_text("something else\n" * 9)
    assert check(tmp_path)[0] == UNKNOWN


def test_a_pipe_character_in_a_text_does_not_end_it(tmp_path: Path) -> None:
    path = tmp_path / "a|b.tsv"
    path.write_text("something else\n" * 9)
    ran = run_command("check", "--file", str(path), cwd=tmp_path)
    assert ran.returncode == UNKNOWN
    assert "|" not in ran.stdout
