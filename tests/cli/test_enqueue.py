"""`dbbasic-queue enqueue`, in all its forms."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from helpers import environment, run_command

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from pathlib import Path


def enqueue(directory: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dbbasic_queue", "enqueue", *arguments],
        cwd=directory,
        env=environment(),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def payloads(path: Path) -> list[Any]:
    return [job["payload"] for job in Queue(path).jobs()]


def test_the_payload_comes_from_the_argument_a_file_or_stdin(tmp_path: Path, path: Path) -> None:
    (tmp_path / "p.json").write_text('{\n "to":\n "Ren\u00e9"\n}\n', "utf-8")
    for arguments, stdin in (
        (["mail"], ""),
        (["mail", "-5"], ""),
        (["mail", '"@x"'], ""),
        (["mail", "@p.json"], ""),
        (["mail", "-"], '["from stdin"]'),
    ):
        done = enqueue(tmp_path, *arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout) == 17
    assert payloads(path) == [{}, -5, "@x", {"to": "Ren\u00e9"}, ["from stdin"]]


@pytest.mark.parametrize(
    ("option", "text", "seconds"),
    [
        ("--in", "90s", 90),
        ("--in", "1.5h", 5400),
        ("--at", "+2h", 7200),
        ("--at", "2h", 7200),
        ("--at", "now", 0),
    ],
)
def test_a_job_can_be_due_in_a_while(
    tmp_path: Path, path: Path, option: str, text: str, seconds: int
) -> None:
    before = time.time()
    assert enqueue(tmp_path, "mail", option, text).returncode == 0
    (found,) = Queue(path).jobs()
    assert before + seconds <= found["run_at"] <= time.time() + seconds + 1


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("@4000000000", 4_000_000_000),
        ("@4000000000.5", 4_000_000_001),
        ("2096-10-02T07:06:40Z", 4_000_000_000),
        ("2096-10-02T09:06:40+02:00", 4_000_000_000),
        ("2096-10-02 07:06:40", 4_000_000_000),
    ],
)
def test_a_job_can_be_due_at_an_instant(tmp_path: Path, path: Path, text: str, at: int) -> None:
    done = run_command("enqueue", "mail", "--at", text, cwd=tmp_path, TZ="UTC")
    assert done.returncode == 0
    assert [job["run_at"] for job in Queue(path).jobs()] == [at]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--at", "@1", "--in", "5m"],
        ["--in", "5"],
        ["--in", "-5m"],
        ["--in", "soon"],
        ["--at", "soon"],
        ["--at", ""],
        ["--at", "@"],
        ["--at", "2027-02-30"],
        ["{"],
        ["NaN"],
        ["[" * 200 + "]" * 200],
        ["-"],  # stdin is empty
        ["{}", "--lines"],
        ["--lines"],
        ["-", "--lines", "--id", "a"],
        ["-", "--lines", "--unique"],
    ],
)
def test_wrong_usage_adds_nothing(tmp_path: Path, arguments: list[str]) -> None:
    done = enqueue(tmp_path, "mail", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dbbasic-queue enqueue: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a b"], "invalid job type 'a b'"),
        (["mail", "@missing.json"], "missing.json: No such file or directory"),
        (["mail", "@"], "an empty name: No such file or directory"),
        (["mail", "@."], ".: Is a directory"),
        (["mail", "--id", "a b"], "invalid job_id 'a b'"),
        (["mail", "@latin-1"], "invalid text in latin-1: must be UTF-8"),
        (["mail", "@large"], "invalid payload: it takes 1100002 bytes, and at most 1048576 are"),
        (["mail", "@lines", "--lines"], "invalid line 1502 of lines: must be JSON: "),
        (["mail", "@large", "--lines"], "invalid line 1 of large: must be JSON: it takes 1100002"),
        (["a b", "@empty", "--lines"], "invalid job type 'a b'"),
    ],
)
def test_what_cannot_be_added_is_one_clear_line(
    tmp_path: Path, path: Path, arguments: list[str], why: str
) -> None:
    (tmp_path / "latin-1").write_bytes(b'"\xe9"')
    (tmp_path / "large").write_text(json.dumps("x" * 1_100_000))
    (tmp_path / "lines").write_text("1\n" * 1500 + "\n{\n")
    (tmp_path / "empty").touch()
    done = enqueue(tmp_path, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert why in done.stderr
    assert not path.exists()


def test_many_jobs_are_added_from_lines_and_their_ids_printed_in_order(
    tmp_path: Path, path: Path
) -> None:
    lines = "".join(f'{{"n": {n}}}\n' for n in range(2500))
    done = enqueue(tmp_path, "mail", "-", "--lines", "--in", "1h", stdin=lines + "\n\n")
    assert (done.returncode, done.stderr) == (0, "")
    jobs = list(Queue(path).jobs())
    assert [job["id"] for job in jobs] == done.stdout.split()
    assert [job["payload"] for job in jobs] == [{"n": n} for n in range(2500)]
    assert {job["run_at"] - job["created_at"] for job in jobs} <= {3600, 3601}
    (tmp_path / "empty").touch()
    assert enqueue(tmp_path, "mail", "@empty", "--lines").stdout == ""


def test_a_unique_job_and_an_id_that_may_exist_are_added_once(tmp_path: Path, path: Path) -> None:
    first = enqueue(tmp_path, "sync", '{"a": 1}', "--unique").stdout
    assert enqueue(tmp_path, "sync", '{"a": 1}', "--unique").stdout == first
    assert enqueue(tmp_path, "sync", "--id", "x").stdout == "x\n"
    assert enqueue(tmp_path, "sync", "--id", "x", "--exist-ok").stdout == "x\n"
    again = enqueue(tmp_path, "sync", "--id", "x")
    assert (again.returncode, again.stdout) == (1, "")
    assert len(payloads(path)) == 2
