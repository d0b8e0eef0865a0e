"""A pending job's payload is replaced; failed jobs are chosen by their error; a purge is tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import pytest
from helpers import DAY, NONE, NOW, at_once, job, raises

from dbbasic_queue import Fail, InvalidArgument, InvalidJob, JobNotFound
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from dbbasic_queue import Queue
    from dbbasic_queue.engines.protocol import Engine
    from dbbasic_queue.store.protocol import Store


def _store(queue: Engine) -> Store:
    return cast("Queue", queue).store


def _payload(queue: Engine, job_id: str) -> str:
    row = _store(queue).find(job_id)
    assert row is not None
    return row.payload


class TestEditing:
    """What `edit_job` promises, `requeue_failed` with an `error`, and `purge` with `dry_run`."""

    # --- edit_job

    def test_only_the_payload_of_an_edited_job_changes(self, queue: Engine) -> None:
        ids = queue.enqueue_many("mail", [{"to": "ada"}, {"to": "bob"}, {"to": "eve"}], NOW + 60)
        before = list(queue.jobs())
        assert queue.edit_job(ids[1], {"to": "bobby", "cc": ["é\t\n"]}) is True
        before[1]["payload"] = {"to": "bobby", "cc": ["é\t\n"]}
        assert list(queue.jobs()) == before
        assert queue.edit_job(ids[1], None) is True
        assert job(queue, ids[1])["payload"] == {}

    @pytest.mark.parametrize("payload", [0, False, "", [], {}, 0.0, "null", 10**30])
    def test_the_handler_gets_the_new_payload(self, queue: Engine, payload: Any) -> None:
        seen: list[Any] = []
        job_id = queue.enqueue("mail", {"to": "ada"})
        assert queue.edit_job(job_id, payload) is True
        assert queue.process_jobs({"mail": seen.append}) == NONE | {"completed": 1}
        assert (seen, type(seen[0])) == ([payload], type(payload))

    def test_a_job_that_waits_for_its_retry_keeps_its_attempts_and_its_error(
        self, queue: Engine, clock: Clock
    ) -> None:
        job_id = queue.enqueue("mail", "old")
        queue.process_jobs({"mail": raises(ValueError("no such mailbox"))})
        before = job(queue, job_id)
        assert queue.edit_job(job_id, "new") is True
        assert job(queue, job_id) == before | {"payload": "new"}
        clock.move(DAY)
        seen: list[Any] = []
        queue.process_jobs({"mail": seen.append})
        assert (seen, job(queue, job_id)["attempts"]) == (["new"], 2)

    def test_a_running_or_finished_job_keeps_its_payload(self, queue: Engine) -> None:
        def handler(payload: Any) -> bool:
            return queue.edit_job(payload, "new")

        for status in ("running", "failed", "cancelled"):
            queue.enqueue(status, status, job_id=status)
        queue.cancel_job("cancelled")
        queue.process_jobs({"running": handler, "failed": raises(Fail("no"))})
        assert job(queue, "running")["result"] is False
        before = list(queue.jobs())
        for status in ("running", "failed", "cancelled"):
            assert queue.edit_job(status, "new") is False
        assert list(queue.jobs()) == before
        assert [found["payload"] for found in before] == ["running", "failed", "cancelled"]

    def test_an_unknown_job_is_an_error(self, queue: Engine) -> None:
        queue.enqueue("mail", {}, job_id="known")
        for job_id in ("unknown", "", "a b"):
            with pytest.raises(JobNotFound, match="unknown job_id"):
                queue.edit_job(job_id, {})

    @pytest.mark.parametrize("payload", [math.nan, {1, 2}, {1: 2}, b"bytes", "x" * 1_048_575])
    def test_an_invalid_payload_is_an_error_and_changes_nothing(
        self, queue: Engine, payload: Any
    ) -> None:
        job_id = queue.enqueue("mail", "old")
        for edited in (job_id, "unknown"):
            with pytest.raises(InvalidJob, match="invalid payload"):
                queue.edit_job(edited, payload)
        assert job(queue, job_id)["payload"] == "old"

    def test_a_job_runs_with_its_old_payload_or_is_edited_never_both(self, queue: Engine) -> None:
        ids = queue.enqueue_many("mail", ["old"] * 60)
        edited: list[str] = []
        ran: dict[str, Any] = {}

        def handler(payload: Any, job: Any) -> None:
            ran[job.id] = payload

        def edit() -> None:
            edited.extend(job_id for job_id in reversed(ids) if queue.edit_job(job_id, "new"))

        at_once(edit, lambda: queue.process_jobs({"mail": handler}))
        assert ran == {job_id: "new" if job_id in edited else "old" for job_id in ids}
        assert {found["id"] for found in queue.jobs() if found["payload"] == "new"} == set(edited)

    def test_an_edit_of_an_older_payload_changes_nothing(self, queue: Engine) -> None:
        job_id = queue.enqueue("mail", {"to": "ada"})
        seen = _payload(queue, job_id)
        assert queue.edit_job(job_id, {"to": "bob"}) is True
        assert _store(queue).edit(job_id, '{"to": "eve"}', seen) is False
        assert job(queue, job_id)["payload"] == {"to": "bob"}
        assert _store(queue).edit(job_id, '{"to": "eve"}', _payload(queue, job_id)) is True
        assert job(queue, job_id)["payload"] == {"to": "eve"}
        queue.cancel_job(job_id)
        assert _store(queue).edit(job_id, "{}", _payload(queue, job_id)) is False

    def test_one_of_two_edits_at_once_is_made(self, queue: Engine) -> None:
        ids = queue.enqueue_many("mail", [""] * 20)
        seen = {job_id: _payload(queue, job_id) for job_id in ids}
        edited: list[str] = []

        def edit(number: int) -> None:
            edited.extend(i for i in ids if _store(queue).edit(i, str(number), seen[i]))

        at_once(lambda: edit(1), lambda: edit(2))
        assert sorted(edited) == sorted(ids)

    def test_an_edited_job_is_unique_by_its_new_payload(self, queue: Engine) -> None:
        job_id, *same = (queue.enqueue("mail", "old", unique="pending") for _ in range(3))
        assert same == [job_id, job_id]
        assert queue.edit_job(job_id, "new") is True
        assert queue.enqueue("mail", "new", unique="pending") == job_id
        other = queue.enqueue("mail", "old", unique="pending")
        assert other != job_id
        assert queue.edit_job(other, "new") is True  # only `enqueue` compares
        assert queue.enqueue("mail", "new", unique="pending") in (job_id, other)

    # --- requeue_failed(error=...)

    @pytest.fixture
    def failed(self, queue: Engine) -> Engine:
        """A queue with jobs that have failed; the payload of each is its error."""

        def handler(payload: str) -> None:
            raise Fail(payload)

        errors = ["SMTP 450: busy", "smtp 450", "tab\there", "SMTP 550"]
        for job_type in ("mail", "bulk"):
            queue.enqueue_many(job_type, errors)
        queue.process_jobs({"mail": handler, "bulk": handler})
        return queue

    def test_failed_jobs_are_requeued_by_a_part_of_their_error(self, failed: Engine) -> None:
        assert failed.requeue_failed("mail", error="SMTP") == 2
        pending = [(found["type"], found["payload"]) for found in failed.jobs("pending")]
        assert pending == [("mail", "SMTP 450: busy"), ("mail", "SMTP 550")]
        assert failed.requeue_failed(error="450") == 3
        assert failed.requeue_failed(error="no such error") == 0
        assert {found["payload"] for found in failed.jobs("failed")} == {"tab\there", "SMTP 550"}

    def test_the_error_is_compared_as_get_job_shows_it(self, failed: Engine) -> None:
        shown = {found["error"] for found in failed.jobs("failed") if "tab" in found["payload"]}
        assert shown == {"tab\there"}
        assert failed.requeue_failed(error="b\\t") == 0
        assert failed.requeue_failed(error="b\th") == 2

    def test_an_error_that_is_not_text_requeues_nothing(self, failed: Engine) -> None:
        for error in (b"SMTP", 450, ["SMTP"]):
            with pytest.raises(InvalidArgument, match="invalid error of type"):
                failed.requeue_failed(error=error)  # type: ignore[arg-type]
        assert failed.counts()["failed"] == 8

    # --- purge(dry_run=True)

    def test_a_dry_run_counts_what_a_purge_would_remove_and_changes_nothing(
        self, failed: Engine, clock: Clock
    ) -> None:
        failed.enqueue_many("mail", range(3))
        failed.process_jobs({"mail": raises()}, skip_unknown=True)
        clock.move(DAY)
        failed.cancel_job(failed.enqueue("mail", {}))
        failed.enqueue("mail", {})
        before = list(failed.jobs())
        for arguments, count in (((DAY - 1,), 11), ((DAY,), 0), ((0, "failed"), 8), ((0,), 11)):
            assert failed.purge(*arguments, dry_run=True) == count
        assert list(failed.jobs()) == before
        assert failed.purge(DAY - 1) == 11

    def test_a_dry_run_refuses_what_a_purge_would_refuse(self, failed: Engine) -> None:
        with pytest.raises(InvalidArgument):
            failed.purge(-1, dry_run=True)
        with pytest.raises(InvalidArgument):
            failed.purge(0, "pending", dry_run=True)  # type: ignore[arg-type]
