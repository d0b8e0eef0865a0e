"""`dbbasic-queue show`: why a job isn't running, with real passes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from helpers import NONE, Programs, add_lines, line, run_command, wait_for, wait_for_notes

from dbbasic_queue import Delay, Fail, Queue
from dbbasic_queue.moving import move
from dbbasic_queue.store.pass_log import encode_row

if TYPE_CHECKING:
    from pathlib import Path


def why(directory: Path, job_id: str) -> tuple[str, str, str]:
    """Return what `show` prints: the word for the reason, the sentence, and the next command."""
    done = run_command("show", job_id, cwd=directory)
    assert (done.returncode, done.stderr) == (0, "")
    (reason,) = [text for text in done.stdout.splitlines() if text.startswith("why\t")]
    _, word, text, command = reason.split("\t")
    found = json.loads(run_command("show", job_id, "--json", cwd=directory).stdout)["why"]
    assert (found["word"], found["command"] or "-") == (word, command)
    return word, text, command


@pytest.fixture
def queue(now_queue: Queue) -> Queue:
    return now_queue


def put_off(_: object) -> None:
    raise Delay(3600, "the\nmail server is down")


def stumble(_: object) -> None:
    raise ValueError("no")


def fail(_: object) -> None:
    raise Fail("no")


def pass_ended(queue: Queue, seconds_ago: float, types: str) -> None:
    queue.store.note_pass(encode_row(time.time() - seconds_ago, 0.1, types, NONE))


def test_its_type_is_paused(queue: Queue, tmp_path: Path) -> None:
    queue.enqueue("mail", {}, job_id="a")
    queue.pause("mail")
    reason = ("paused", "jobs of type mail are paused", "dbbasic-queue resume mail")
    assert why(tmp_path, "a") == reason


def test_everything_is_paused(queue: Queue, tmp_path: Path) -> None:
    queue.enqueue("mail", {}, job_id="a")
    queue.pause()
    assert why(tmp_path, "a") == ("paused", "everything is paused", "dbbasic-queue resume")


def test_it_was_enqueued_for_later(queue: Queue, tmp_path: Path) -> None:
    queue.enqueue("mail", {}, job_id="a", run_at=time.time() + 7300)
    word, text, command = why(tmp_path, "a")
    assert (word, command) == ("later", "dbbasic-queue run-now a")
    assert text.startswith("it is due in 2 h")


def test_it_waits_for_a_retry(queue: Queue, tmp_path: Path) -> None:
    queue.enqueue("mail", {}, job_id="a")
    queue.process_jobs({"mail": stumble})
    word, text, command = why(tmp_path, "a")
    assert (word, command) == ("retry", "dbbasic-queue run-now a")
    assert text.startswith("attempt 1 failed; it is tried again in ")


def test_its_handler_has_put_it_off(queue: Queue, tmp_path: Path) -> None:
    queue.enqueue("mail", {}, job_id="a")
    queue.process_jobs({"mail": put_off})
    word, text, command = why(tmp_path, "a")
    assert (word, command) == ("delayed", "dbbasic-queue run-now a")
    assert text.startswith("its handler has put it off: it is due in ")
    assert text.endswith(r"(the\nmail server is down)")


def test_its_types_limit_is_used_up_by_others(
    queue: Queue, programs: Programs, tmp_path: Path
) -> None:
    for job_id in ("first", "second", "third"):
        queue.enqueue("call", {}, job_id=job_id)
    programs.start(
        """
        from dbbasic_queue import Handler

        def call(_):
            note("running", "x")
            time.sleep(600)

        handlers = {"call": Handler(call, concurrency=2), "other": str}
        queue.process_jobs(handlers, workers=3, linger=600)
        """
    )
    wait_for_notes(tmp_path / "running", 2)
    word, text, command = why(tmp_path, "third")
    assert (word, command) == ("limit", "dbbasic-queue show first")
    assert text == "its type runs at most 2 jobs at a time, and first and second are running"
    assert why(tmp_path, "first")[0] == "running"


SLOW = """
    def slow(_):
        note("running", "x")
        time.sleep(600)

    queue.process_jobs({"slow": slow}, linger=600, skip_unknown=True)
    """


def test_it_waits_behind_a_running_job_and_that_is_running(
    queue: Queue, programs: Programs, tmp_path: Path
) -> None:
    queue.enqueue("slow", {}, job_id="first")
    queue.enqueue("slow", {}, job_id="next")
    worker = programs.start(SLOW)
    wait_for_notes(tmp_path / "running", 1)
    word, text, command = why(tmp_path, "next")
    assert (word, command) == ("busy", "dbbasic-queue show first")
    assert text.startswith("it waits until a pass is free: 1 job is running, first for ")
    word, text, command = why(tmp_path, "first")
    assert (word, command) == ("running", "-")
    assert text.startswith("it has been running for ")
    assert text.endswith(f" in process {worker.process.pid}")

    # A live worker for other types isn't what this job waits for.
    queue.enqueue("mail", {}, job_id="a")
    assert why(tmp_path, "a")[:2] == (
        "handler",
        "no pass has a handler for mail (they have handlers for slow)",
    )
    queue.stop_job("first")
    assert why(tmp_path, "first") == (
        "stopping",
        f"it is running in process {worker.process.pid}, and was asked to stop",
        f"kill -INT {worker.process.pid}",
    )


def test_no_handler_has_its_type(queue: Queue, tmp_path: Path) -> None:
    queue.enqueue("mail", {}, job_id="a")
    queue.process_jobs({"sync": str, "import": str}, skip_unknown=True)
    assert why(tmp_path, "a") == (
        "handler",
        "no pass has a handler for mail (they have handlers for import, sync)",
        "dbbasic-queue list --type mail",
    )
    pass_ended(queue, 4 * 3600, "mail report")
    _, text, _ = why(tmp_path, "a")
    assert text.startswith("no pass has had a handler for mail for 4 h (they have handlers for")
    queue.process_jobs({"mail": put_off})
    queue.run_now("a")
    assert why(tmp_path, "a")[0] == "next"


def test_a_pass_that_tries_jobs_of_any_type_runs_it(queue: Queue, tmp_path: Path) -> None:
    queue.process_jobs({"sync": str})  # there is no queue yet: it isn't logged
    queue.enqueue("sync", {})
    queue.process_jobs({"sync": str})
    queue.enqueue("mail", {}, job_id="a")
    word, text, command = why(tmp_path, "a")
    assert (word, command) == ("next", "-")
    assert text.startswith("the next pass runs it (the last one ended ")


def test_its_pass_was_killed(queue: Queue, programs: Programs, tmp_path: Path) -> None:
    queue.enqueue("slow", {}, job_id="a")
    worker = programs.start(SLOW)
    wait_for_notes(tmp_path / "running", 1)
    worker.kill()
    assert why(tmp_path, "a") == ("lost", "its pass died; the next pass recovers it", "-")
    for minute in range(15, 5, -1):
        pass_ended(queue, minute * 60, "slow")
    word, text, command = why(tmp_path, "a")
    assert (word, command) == ("lost", "dbbasic-queue doctor")
    assert text.startswith("its pass died, and no pass has ended for 6 min")
    pass_ended(queue, 5, "mail")
    _, text, _ = why(tmp_path, "a")
    assert text.startswith("its pass died, and no pass has had a handler for slow for 6 min (they")
    queue.process_jobs({"slow": str})
    word, text, command = why(tmp_path, "a")
    assert (word, command) == ("retry", "dbbasic-queue run-now a")
    assert text.startswith("its pass died in attempt 1; it is tried again in ")


def test_no_pass_has_ended_for_too_long(queue: Queue, path: Path, tmp_path: Path) -> None:
    now = int(time.time())
    add_lines(path, line("a", type="mail", run_at=now - 600, created_at=now - 600))
    word, text, command = why(tmp_path, "a")
    assert (word, command) == ("stalled", "dbbasic-queue doctor")
    assert text.startswith("it has been due for 10 min, and no pass has ended yet: does cron run")
    for minute in range(15, 5, -1):
        pass_ended(queue, minute * 60, "mail")
    word, text, command = why(tmp_path, "a")
    assert (word, command) == ("stalled", "dbbasic-queue doctor")
    assert text.startswith("it has been due for 10 min, and no pass has ended for 6 min")
    pass_ended(queue, 1, "mail")
    assert why(tmp_path, "a")[0] == "next"


def test_a_job_that_has_just_been_enqueued_waits_for_the_next_pass(
    queue: Queue, tmp_path: Path
) -> None:
    queue.enqueue("mail", {}, job_id="a")
    assert why(tmp_path, "a") == ("next", "the next pass runs it (none has ended yet)", "-")


def test_it_is_in_a_queue_that_was_moved(path: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.tsv"
    with Queue(path, even_if_moved=True) as old, Queue(new) as target:
        old.enqueue("mail", {})
        move(old.store, target.store)
    add_lines(path, line("late"))
    command = f"dbbasic-queue move --to {new}"
    assert why(tmp_path, "late") == (
        "moved",
        f"the queue was moved to {new}: move it there, too",
        command,
    )


def test_it_is_finished(queue: Queue, tmp_path: Path) -> None:
    for job_type in ("good", "bad", "never"):
        queue.enqueue(job_type, {}, job_id=job_type)
    queue.cancel_job("never")
    queue.process_jobs({"good": str, "bad": fail})
    again = "it runs again if you requeue it"
    assert why(tmp_path, "good") == ("finished", "it is completed", "-")
    assert why(tmp_path, "bad") == (
        "finished",
        f"it is failed: {again}",
        "dbbasic-queue requeue bad",
    )
    assert why(tmp_path, "never")[:2] == ("finished", f"it is cancelled: {again}")


def test_a_job_that_runs_with_others_in_one_event_loop_has_no_duration(
    queue: Queue, programs: Programs, tmp_path: Path
) -> None:
    queue.enqueue("slow", {}, job_id="a")
    worker = programs.start(
        """
        import asyncio

        async def slow(_):
            note("running", "x")
            await asyncio.sleep(600)

        queue.process_jobs({"slow": slow}, workers=5)
        """
    )
    wait_for_notes(tmp_path / "running", 1)
    pid = worker.process.pid
    assert why(tmp_path, "a") == ("running", f"it is running in process {pid}, with others", "-")


def test_the_types_of_a_worker_are_in_its_slot_file_and_in_the_log(
    queue: Queue, programs: Programs, path: Path
) -> None:
    queue.enqueue("slow", {})
    programs.start(SLOW)
    wait_for_notes(programs.directory / "running", 1)
    slot = path.with_name("queue.tsv.pass.1")
    assert slot.read_text("utf-8").split("\n")[0].split("\t")[4] == "slow"
    assert queue.store.passes() == []
    for child in programs.children:
        child.clean_up()
    queue.process_jobs({"sync": str, "slow": str})
    wait_for(lambda: queue.store.passes(), "the row of the pass")
    assert [found.types for found in queue.store.passes()] == ["sync slow *"]
