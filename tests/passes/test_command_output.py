"""What commands print, and the progress that they write to file descriptor 3."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from helpers import Programs, history, job, sibling, wait_for, wait_for_notes

from dbbasic_queue import Command, InvalidArgument, Queue
from dbbasic_queue.passes.program import _ProgressLines


def sh(script: str, **policy: Any) -> Command:
    return Command(["sh", "-c", textwrap.dedent(script)], **policy)


def run(queue: Queue, command: Command, payload: Any = None) -> str:
    job_id = queue.enqueue("run", payload)
    queue.process_jobs({"run": command})
    return job_id


# --- output


@pytest.mark.parametrize(
    ("script", "status", "printed"),
    [
        ("echo out; echo error >&2", "completed", {"out\n", "error\n"}),
        ("echo out; exit 3", "pending", {"out\n"}),
        ("echo why >&2; exit 65", "failed", {"why\n"}),
        ("echo out; kill -9 $$", "pending", {"out\n"}),
        ("printf '\\033[31m\\377'", "completed", {"\x1b[31m\udcff"}),
        (":", "completed", None),
    ],
)
def test_what_a_command_prints_is_kept_whatever_the_outcome(
    queue: Queue, script: str, status: str, printed: set[str] | None
) -> None:
    job_id = run(queue, sh(script))
    assert job(queue, job_id)["status"] == status
    found = queue.output(job_id)
    assert (found and set(found.splitlines(keepends=True))) == printed


def test_the_output_of_a_command_whose_time_is_up_is_kept(queue: Queue) -> None:
    job_id = run(queue, sh("echo out; exec sleep 60", timeout=2))
    assert queue.output(job_id) == "out\n"
    (attempt,) = history(queue, job_id)
    assert (attempt["error"], attempt["exception"]) == ("timed out after 2 s", None)


def test_a_commands_error_is_not_an_exception(queue: Queue) -> None:
    (attempt,) = history(queue, run(queue, sh("exit 3")))
    assert (attempt["error"], attempt["exception"]) == ("exit code 3", None)


def test_a_command_that_prints_100_megabytes_is_completed_and_only_the_end_is_kept(
    queue: Queue,
) -> None:
    job_id = run(queue, sh("head -c 100000000 /dev/zero | tr '\\0' x >&2; echo end >&2"))
    assert job(queue, job_id)["status"] == "completed"
    found = queue.output(job_id)
    assert found is not None
    assert (len(found), found[-5:]) == (65_536, "xend\n")


# --- progress


def test_a_command_reports_its_progress_to_descriptor_3(programs: Programs, tmp_path: Path) -> None:
    programs.start("""
        from dbbasic_queue import Command
        script = "echo 40 100 frame 40 >&3; echo x >> began; sleep 60"
        queue.enqueue("run", {}, job_id="a")
        queue.process_jobs({"run": Command(["sh", "-c", script])})
        """)
    wait_for_notes(tmp_path / "began", 1)
    with Queue(tmp_path / "data/queue.tsv") as queue:
        wait_for(lambda: queue.progress("a"), "the progress")
        found = queue.progress("a")
        assert found is not None
        assert (found["done"], found["total"], found["note"]) == (40, 100, "frame 40")


def test_a_program_that_writes_without_end_to_descriptor_3_is_not_held_up(
    queue: Queue, path: Path
) -> None:
    job_id = run(queue, sh("yes 1 100 >&3 & sleep 0.3; echo 100 100 >&3; echo done"))
    assert job(queue, job_id)["result"] == "done"
    rows = sibling(path, "progress").read_text().splitlines()
    assert 2 <= len(rows) <= 4  # the clock of the queue stands still


def test_a_program_that_closes_descriptor_3_is_waited_for(queue: Queue) -> None:
    job_id = run(queue, sh("exec 3>&-; sleep 0.3; echo done"))
    assert job(queue, job_id)["result"] == "done"


class Reports:
    """What was reported; a report of over 1,000 isn't valid."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float | None, str]] = []

    def __call__(self, done: float, total: float | None, note: str) -> None:
        if done > 1000:
            raise InvalidArgument("too large")
        self.found.append((done, total, note))


@pytest.mark.parametrize(
    ("line", "report"),
    [
        (b"40 100 frame 40", (40, 100, "frame 40")),
        (b"40 100", (40, 100, "")),
        (b"40", (40, None, "")),
        (b"  40\t100  frame   40 \r", (40, 100, "frame   40")),
        (b"0.5 1.5 x", (0.5, 1.5, "x")),
        (b"40 frames", (40, None, "frames")),
        (b"40 100% done", (40, None, "100% done")),
        (b"007 010", (7, 10, "")),
        (b"1 2 \xff\xe2\x82\xac", (1, 2, "\ufffd€")),
        (b"", None),
        (b"frame 40", None),
        (b"-1 100", None),
        (b"40%", None),
        (b"4_0", None),
        (b"nan", None),
        (b"1e3", None),
        (b"2000", None),
        (b"9" * 400, None),
        (b"9" * 4090 + b" 1", None),
        (b"1 " + b"x" * 5000, None),
    ],
)
def test_a_line_is_a_report_if_it_begins_with_a_number(
    line: bytes, report: tuple[float, float | None, str] | None
) -> None:
    whole, in_parts = Reports(), Reports()
    _ProgressLines(whole).add(line + b"\n")
    lines = _ProgressLines(in_parts)
    for i in range(len(line)):
        lines.add(line[i : i + 1])
    assert in_parts.found == [], "it has no end yet"
    lines.add(b"\n")
    assert whole.found == in_parts.found == ([] if report is None else [report])


def test_the_last_valid_line_of_several_counts() -> None:
    reports = Reports()
    lines = _ProgressLines(reports)
    lines.add(b"1 9\n2 9\nnot a number\n\n3 ")
    lines.add(b"9 last\n4")
    assert reports.found == [(2, 9, ""), (3, 9, "last")]
