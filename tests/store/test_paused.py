"""Pausing: passes claim nothing of a type, and anyone can see why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from helpers import NONE, job, sibling

from dbbasic_queue import InvalidJob, NotAQueue, Queue

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_of_a_paused_type_is_claimed_until_it_is_resumed(queue: Queue, path: Path) -> None:
    paused, free = queue.enqueue("mail", "a"), queue.enqueue("greet", "b")
    assert queue.pause("mail") is True
    assert queue.pause("mail") is False
    handlers = {"mail": str, "greet": str}
    assert queue.process_jobs(handlers) == NONE | {"completed": 1}
    assert (job(queue, paused)["status"], job(queue, free)["status"]) == ("pending", "completed")
    assert sibling(path, "paused").read_text() == "mail\n"
    zeros = dict.fromkeys(queue.counts(), 0)
    assert queue.counts() == zeros | {"pending": 1, "completed": 1}
    assert queue.metrics()["paused"] == 1
    assert queue.paused() == {"mail"}
    assert queue.resume("mail") is True
    assert queue.resume("mail") is False
    assert not sibling(path, "paused").exists()
    assert queue.process_jobs(handlers) == NONE | {"completed": 1}


def test_a_paused_type_without_a_handler_does_not_fail(queue: Queue) -> None:
    queue.enqueue("unknown", {})
    queue.pause("unknown")
    assert queue.process_jobs({}) == NONE


def test_all_types_can_be_paused_at_once(queue: Queue, path: Path) -> None:
    queue.enqueue_many("mail", range(3))
    queue.enqueue("greet", {})
    queue.pause()
    queue.pause("mail")
    assert sibling(path, "paused").read_text() == "*\nmail\n"
    assert queue.process_jobs({"mail": str, "greet": str}) == NONE
    assert queue.metrics()["paused"] == 4
    assert queue.resume("mail") is True
    assert queue.process_jobs({"mail": str, "greet": str}) == NONE
    queue.pause("mail")
    assert queue.resume() is True  # everything
    assert queue.metrics()["paused"] == 0
    assert queue.process_jobs({"mail": str, "greet": str}) == NONE | {"completed": 4}


def test_a_pause_inside_a_pass_holds_from_the_next_claim_on(queue: Queue) -> None:
    """What has been claimed runs; a pause takes nothing out of a pass's hands."""
    queue.enqueue("greet", "first")

    def work(payload: Any) -> None:
        if payload == "first":
            queue.pause("greet")

    queue.process_jobs({"greet": work})
    second = queue.enqueue("greet", "second")
    assert queue.process_jobs({"greet": work}) == NONE
    assert job(queue, second)["status"] == "pending"


def test_a_worker_that_lingers_notices_a_resume(queue: Queue) -> None:
    job_id = queue.enqueue("greet", "ada")
    queue.pause("greet")
    seen = []

    def look(_: Any) -> None:
        seen.append(job(queue, job_id)["status"])
        queue.resume("greet")

    queue.enqueue("look", {})
    counts = queue.run_until_complete({"greet": str, "look": look})
    assert (seen, counts["completed"]) == (["pending"], 2)


def test_a_person_may_pause_and_resume_with_a_shell(queue: Queue, path: Path) -> None:
    queue.enqueue("mail", {})
    sibling(path, "paused").write_text("  mail  \n\n")
    assert queue.process_jobs({"mail": str}) == NONE
    sibling(path, "paused").unlink()
    assert queue.process_jobs({"mail": str}) == NONE | {"completed": 1}


def test_a_paused_job_can_be_cancelled_and_more_can_come(queue: Queue) -> None:
    queue.pause("mail")
    job_id = queue.enqueue("mail", {})
    assert queue.cancel_job(job_id)
    assert queue.metrics()["paused"] == 0


def test_what_cannot_be_a_type_is_refused(queue: Queue) -> None:
    for call in (queue.pause, queue.resume):
        for name in ("*", "", "a b", 5):
            with pytest.raises(InvalidJob, match="job type"):
                call(name)  # type: ignore[arg-type]


def test_a_link_in_the_place_of_the_list_is_refused_with_the_victim_untouched(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    queue.enqueue("mail", {})
    victim = tmp_path / "victim"
    victim.write_text("precious")
    sibling(path, "paused").symlink_to(victim)
    for call in (queue.pause, queue.resume, queue.counts, lambda: queue.process_jobs({})):
        with pytest.raises(NotAQueue):
            call()
    assert victim.read_text() == "precious"


def test_what_a_crash_has_left_of_a_new_list_is_no_list(queue: Queue, path: Path) -> None:
    queue.enqueue("mail", {})
    sibling(path, "paused.new").write_text("greet\n")
    assert queue.metrics()["paused"] == 0
    assert queue.pause("mail")
    assert sibling(path, "paused").read_text() == "mail\n"
    assert not sibling(path, "paused.new").exists()
