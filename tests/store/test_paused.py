"""Pausing: passes don't claim jobs of a paused type, and its name is in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from helpers import NONE, job, sibling

from dbbasic_queue import InvalidJob, NotAQueue, Queue

if TYPE_CHECKING:
    from pathlib import Path


def test_a_paused_type_is_not_claimed_until_it_is_resumed(queue: Queue, path: Path) -> None:
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


def test_a_pause_during_a_pass_applies_from_the_next_claim_on(queue: Queue) -> None:
    """Jobs that are already claimed still run."""
    queue.enqueue("greet", "first")

    def work(payload: Any) -> None:
        if payload == "first":
            queue.pause("greet")

    queue.process_jobs({"greet": work})
    second = queue.enqueue("greet", "second")
    assert queue.process_jobs({"greet": work}) == NONE
    assert job(queue, second)["status"] == "pending"


def test_a_lingering_pass_notices_a_resume(queue: Queue) -> None:
    job_id = queue.enqueue("greet", "ada")
    queue.pause("greet")
    seen = []

    def look(_: Any) -> None:
        seen.append(job(queue, job_id)["status"])
        queue.resume("greet")

    queue.enqueue("look", {})
    counts = queue.run_until_complete({"greet": str, "look": look})
    assert (seen, counts["completed"]) == (["pending"], 2)


def test_a_type_can_be_paused_and_resumed_from_a_shell(queue: Queue, path: Path) -> None:
    queue.enqueue("mail", {})
    sibling(path, "paused").write_text("  mail  \n\n")
    assert queue.process_jobs({"mail": str}) == NONE
    sibling(path, "paused").unlink()
    assert queue.process_jobs({"mail": str}) == NONE | {"completed": 1}


def test_a_job_of_a_paused_type_can_be_enqueued_and_cancelled(queue: Queue) -> None:
    queue.pause("mail")
    job_id = queue.enqueue("mail", {})
    assert queue.cancel_job(job_id)
    assert queue.metrics()["paused"] == 0


def test_an_invalid_type_cannot_be_paused_or_resumed(queue: Queue) -> None:
    for call in (queue.pause, queue.resume):
        for name in ("*", "", "a b", 5):
            with pytest.raises(InvalidJob, match="job type"):
                call(name)  # type: ignore[arg-type]


def test_a_link_at_the_lists_path_is_refused_and_its_target_is_left_alone(
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


def test_an_unfinished_list_left_by_a_crash_is_ignored(queue: Queue, path: Path) -> None:
    queue.enqueue("mail", {})
    sibling(path, "paused.new").write_text("greet\n")
    assert queue.metrics()["paused"] == 0
    assert queue.pause("mail")
    assert sibling(path, "paused").read_text() == "mail\n"
    assert not sibling(path, "paused.new").exists()
