"""`dbbasic-queue wait`: it prints the status, and exits by outcome."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from helpers import Child, Programs, run_command, wait_for_notes

from dbbasic_queue import Fail, Queue

if TYPE_CHECKING:
    from pathlib import Path


def fail(_: object) -> None:
    raise Fail("no")


@pytest.mark.parametrize(("job_type", "code"), [("good", 0), ("bad", 3), ("never", 4)])
def test_a_finished_job_is_reported_at_once(
    now_queue: Queue, tmp_path: Path, job_type: str, code: int
) -> None:
    now_queue.enqueue(job_type, {}, job_id="the-job")
    if job_type == "never":
        now_queue.cancel_job("the-job")
    now_queue.process_jobs({"good": str, "bad": fail})
    done = run_command("wait", "the", cwd=tmp_path)
    word = {0: "completed", 3: "failed", 4: "cancelled"}[code]
    assert (done.returncode, done.stdout, done.stderr) == (code, f"{word}\n", "")


def test_it_gives_up_after_the_timeout(now_queue: Queue, tmp_path: Path) -> None:
    now_queue.enqueue("work", {}, job_id="a")
    done = run_command("wait", "a", "--timeout", "0.3s", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (5, "")
    reason = "the next pass runs it (none has ended yet)"
    assert done.stderr == f"dbbasic-queue: a is still pending: {reason}\n"


def test_an_unknown_job_and_one_that_is_removed_are_not_waited_for(
    now_queue: Queue, tmp_path: Path
) -> None:
    now_queue.enqueue("work", {}, job_id="a")
    done = run_command("wait", "b", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "dbbasic-queue: there is no job b\n")
    child = Child([sys.executable, "-m", "dbbasic_queue", "wait", "a"], tmp_path, "wait")
    try:
        now_queue.remove_type("work")
        assert child.wait() == 1
    finally:
        child.clean_up()


def test_it_waits_for_a_running_job(now_queue: Queue, programs: Programs, tmp_path: Path) -> None:
    now_queue.enqueue("work", {}, job_id="a")
    programs.start(
        """
        def work(_):
            note("running", "x")
            wait_for(lambda: Path("go").exists(), "go")
        queue.process_jobs({"work": work})
        """
    )
    wait_for_notes(tmp_path / "running", 1)
    child = Child([sys.executable, "-m", "dbbasic_queue", "wait", "a"], tmp_path, "wait")
    try:
        assert child.is_running()
        (tmp_path / "go").touch()
        assert child.succeed() == "completed"
    finally:
        child.clean_up()
