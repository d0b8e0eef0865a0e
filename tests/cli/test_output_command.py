"""`dbbasic-queue output`: what a job has printed, or why that isn't there."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Child, Programs, run_command, sibling, wait_for, wait_for_notes

from dbbasic_queue import Handler, Queue

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


def prints(content: bytes) -> Handler:
    def work(_: Any) -> None:
        os.write(1, content)

    return Handler(work, timeout=60)


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "data/queue.tsv")


def run(queue: Queue, job_id: str, content: bytes) -> None:
    queue.enqueue("work", {}, job_id=job_id)
    queue.process_jobs({"work": prints(content)})


def output(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("output", *arguments, cwd=tmp_path)


def why_not(tmp_path: Path, *arguments: str) -> str:
    """Return the reason that the command gives, and check that it prints nothing else."""
    done = output(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.removeprefix("dbbasic-queue: ").removesuffix("\n")


def test_the_command_prints_the_output_of_the_latest_or_of_one_attempt(
    queue: Queue, tmp_path: Path
) -> None:
    def work(_: Any, job: Any) -> None:
        os.write(1, f"attempt {job.attempt}\n\tindented".encode())
        if job.attempt == 1:
            raise ValueError("again")

    queue.enqueue("work", {}, job_id="a")
    handler = Handler(work, timeout=60)
    queue.process_jobs({"work": handler})
    queue.run_now("a")
    queue.process_jobs({"work": handler})
    for arguments, number in ((["a"], 2), (["a", "--attempt", "1"], 1)):
        done = output(tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"attempt {number}\n\tindented\n"


def test_no_control_character_and_no_invalid_byte_reaches_the_terminal(
    queue: Queue, tmp_path: Path
) -> None:
    run(queue, "a", b"\x1b[31mred\r\nbell\x07 \xff\xe2\x80\xa8 C:\\new \xe2\x82\xac\n")
    done = output(tmp_path, "a")
    assert done.stdout == "\\x1b[31mred\nbell\\x07 \\udcff\\u2028 C:\\new €\n"


def test_the_command_says_how_much_was_left_out(queue: Queue, tmp_path: Path) -> None:
    run(queue, "a", b"x" * 100_000)
    done = output(tmp_path, "a")
    assert done.returncode == 0
    assert done.stdout == "x" * 65_536 + "\n"
    assert done.stderr == "dbbasic-queue: 34464 bytes came before this, and are not kept\n"


def test_the_command_says_why_there_is_no_output(queue: Queue, tmp_path: Path) -> None:
    kept = "(only what a handler with a timeout, or a Command, prints is kept)"
    queue.enqueue("plain", {}, job_id="plain")
    queue.process_jobs({"plain": str})
    run(queue, "silent", b"")
    for job_id in ("plain", "silent"):
        reason = (
            f"there is no output of job {job_id}: it has printed nothing, or ran inside its pass"
        )
        assert why_not(tmp_path, job_id) == f"{reason} {kept}"
    queue.enqueue("work", {}, job_id="waits")
    reason = "it has not run, or the history doesn't go back so far"
    assert why_not(tmp_path, "waits") == f"there is no output of job waits: {reason}"
    run(queue, "a", b"x")
    assert (
        why_not(tmp_path, "a", "--attempt", "2")
        == f"there is no output of attempt 2 of job a: {reason}"
    )
    sibling(tmp_path / "data/queue.tsv", "output").unlink()
    assert why_not(tmp_path, "a") == "the output of job a was rotated away, or deleted"
    assert why_not(tmp_path, "unknown") == "there is no job unknown"
    assert why_not(tmp_path, "no\nid") == "there is no job no\\nid"


def test_the_command_says_that_a_job_is_still_running(programs: Programs, tmp_path: Path) -> None:
    programs.start("""
        def work(_):
            note("began", "x")
            time.sleep(60)
        queue.enqueue("work", {}, job_id="a")
        queue.process_jobs({"work": work})
        """)
    wait_for_notes(tmp_path / "began", 1)
    reason = "job a is running: its output is kept when the attempt has ended"
    assert why_not(tmp_path, "a") == reason


def test_output_can_be_printed_after_the_job_was_purged(queue: Queue, tmp_path: Path) -> None:
    run(queue, "a", b"still here\n")
    queue.remove_type("work")
    assert queue.get_job("a") is None
    assert output(tmp_path, "a").stdout == "still here\n"


def follow(tmp_path: Path, job_id: str) -> Child:
    command = [sys.executable, "-m", "dbbasic_queue", "output", "--follow", job_id]
    return Child(command, tmp_path, "follow")


def wait_for_text(child: Child, text: str) -> None:
    wait_for(lambda: text in child.output.read_text("utf-8"), "the output")


def test_the_output_is_followed_until_the_job_is_finished(queue: Queue, tmp_path: Path) -> None:
    def work(_: Any, job: Any) -> None:
        os.write(1, f"attempt {job.attempt}\x1b[31m".encode())
        if job.attempt < 3:
            raise ValueError("again")

    queue.enqueue("work", {}, job_id="job-a")
    child = follow(tmp_path, "job-")
    try:
        for attempt in range(1, 4):
            queue.run_now("job-a")
            queue.process_jobs({"work": Handler(work, timeout=60)})
            wait_for_text(child, f"attempt {attempt}")
        assert child.wait() == 0
    finally:
        child.clean_up()
    assert child.output.read_text() == "".join(f"attempt {n}\\x1b[31m\n" for n in range(1, 4))
    assert child.errors.read_text() == ""


def test_what_is_printed_after_a_requeue_and_a_rotation_is_followed(
    queue: Queue, tmp_path: Path
) -> None:
    run(queue, "other", b"x" * 1000)
    queue.enqueue("work", {}, job_id="a")
    queue.process_jobs({"work": Handler(stumble, timeout=60)})
    child = follow(tmp_path, "a")
    try:
        wait_for_text(child, "first")
        queue.run_now("a")
        queue.stop_job("a")
        assert child.wait() == 0
        queue.requeue("a")
        sibling(tmp_path / "data/queue.tsv", "output").unlink()
        again = follow(tmp_path, "a")
        try:
            queue.process_jobs({"work": prints(b"second")})
            assert again.wait() == 0
        finally:
            again.clean_up()
    finally:
        child.clean_up()
    assert again.output.read_text() == "second\n"


def stumble(_: Any) -> None:
    os.write(1, b"first")
    raise ValueError("again")


def test_following_ends_if_the_job_is_removed_or_unknown(queue: Queue, tmp_path: Path) -> None:
    queue.enqueue("work", {}, job_id="a")
    assert why_not(tmp_path, "-f", "unknown") == "there is no job unknown"
    child = follow(tmp_path, "a")
    try:
        assert child.is_running()
        queue.remove_type("work")
        assert child.wait() == 1
    finally:
        child.clean_up()
    assert child.errors.read_text() == "dbbasic-queue: there is no job a\n"
    assert output(tmp_path, "-f", "a", "--attempt", "1").returncode == 2
