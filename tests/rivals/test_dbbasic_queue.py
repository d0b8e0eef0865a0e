"""The examples of dbbasic-queue 1.0.0's usage guide, with our calls.

`tests/test_compatibility.py` runs the examples of its README unchanged. `docs/comparison.md` has
the table.
"""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from helpers import DAY, EMPTY, NOW, Clock, Programs, job

from dbbasic_queue import Fail, Queue

if TYPE_CHECKING:
    from pathlib import Path


def test_a_report_is_scheduled_for_midnight(queue: Queue, clock: Clock) -> None:
    """Guide, Example 3: Scheduled Jobs."""
    now = datetime.fromtimestamp(NOW).astimezone()
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0)
    queue.enqueue("report", {"kind": "sales"}, run_at=midnight, job_id="report")
    clock.now = midnight.timestamp() - 1
    assert queue.process_jobs({"report": str})["completed"] == 0
    clock.now += 1
    assert queue.process_jobs({"report": str})["completed"] == 1


def test_a_thousand_letters_are_queued_at_once_and_sent_one_by_one(queue: Queue) -> None:
    """Guide, Example 4: Bulk Operations. A loop of `enqueue` works too, with one sync per job."""
    sent: list[int] = []
    letters = [{"user": n, "letter": 42} for n in range(1000)]
    ids = queue.enqueue_many("letter", letters)
    assert len(set(ids)) == 1000
    counts = queue.process_jobs({"letter": lambda payload: sent.append(payload["user"])})
    assert counts["completed"] == 1000
    assert sent == list(range(1000))


def test_a_worker_script_logs_each_job_and_each_error(tmp_path: Path) -> None:
    """Guide, Worker Script: `logging.basicConfig`, then `process_jobs`."""
    with Programs(tmp_path) as programs:
        worker = programs.start(
            """
            import logging
            from dbbasic_queue import process_jobs

            logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
            queue.enqueue("greet", {}, job_id="a")
            queue.enqueue("break", {}, job_id="b")
            process_jobs({"greet": str, "break": lambda payload: 1 / 0})
            """
        )
        worker.succeed()
        assert worker.errors.read_text().splitlines() == [
            "INFO greet a completed, attempt 1",
            "WARNING break b retried, attempt 1: ZeroDivisionError: division by zero",
        ]


def test_an_admin_page_can_show_the_counts(queue: Queue) -> None:
    """Guide, Admin Endpoint, which reads the file: here `counts()`, all 0 if there is no file."""
    assert queue.counts() == EMPTY
    queue.enqueue("greet", {})
    assert queue.counts() == EMPTY | {"pending": 1}


def test_grep_and_tail_can_read_the_queue(queue: Queue, path: Path) -> None:
    """Guide, Check Queue Status: `grep pending | wc -l`, `grep failed`, `tail`."""
    queue.enqueue("send", {"to": "a"})
    queue.enqueue("send", {"to": "b"}, run_at=NOW + 60)
    queue.process_jobs({"send": lambda payload: 1 / 0}, max_attempts=1)
    count = subprocess.check_output(["sh", "-c", f"grep -c pending {path}"], encoding="utf-8")
    assert count == "1\n"
    failed = subprocess.check_output(["sh", "-c", f"grep failed {path}"], encoding="utf-8")
    assert failed.endswith("\tZeroDivisionError: division by zero\t\n")
    assert b'"b"' in subprocess.check_output(["tail", "-1", path])


def test_finished_jobs_are_archived_and_the_others_stay(
    queue: Queue, clock: Clock, tmp_path: Path
) -> None:
    """Guide, Queue file too large. There it is done by hand, and loses jobs added at that time."""
    queue.enqueue("greet", {}, job_id="old")
    queue.process_jobs({"greet": str})
    clock.now += 8 * DAY
    queue.enqueue("greet", {}, job_id="new")
    queue.process_jobs({"greet": str})
    queue.enqueue("greet", {}, job_id="waiting")
    assert queue.purge(7 * DAY, archive=tmp_path / "archive.tsv") == 1
    assert [found["id"] for found in queue.jobs()] == ["new", "waiting"]


def test_a_handler_can_fail_a_job_without_retries_if_a_field_is_missing(queue: Queue) -> None:
    """Guide, Best Practices: "Validate payload", "Make handlers idempotent"."""

    def send(payload: dict[str, str]) -> None:
        if "to" not in payload:
            raise Fail("no recipient")

    job_id = queue.enqueue("send", {})
    assert queue.process_jobs({"send": send})["failed"] == 1
    assert job(queue, job_id)["error"] == "no recipient"


@pytest.mark.parametrize(
    ("payload", "run_at"), [({"n": 1}, None), ({}, NOW + 3600), ({"deep": [{"er": [1]}]}, 1.5)]
)
def test_a_job_reads_back_as_the_guide_shows_it(
    queue: Queue, payload: dict[str, object], run_at: float | None
) -> None:
    """Guide, `get_job`: the nine keys."""
    found = job(queue, queue.enqueue("work", payload, run_at=run_at))
    assert list(found) == [
        *("id", "type", "payload", "status", "created_at", "run_at", "attempts", "error", "result")
    ]
    assert (found["payload"], found["attempts"], found["error"]) == (payload, 0, None)
