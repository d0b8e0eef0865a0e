"""Runs the contract's tests on engines with one bug each. `test_planted_engines.py` runs this file.

`CAUGHT` names the test that must catch each bug. The engine without a bug must pass every test.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
from contract.conftest import Opener, clock, queue
from contract.test_at_most_one import TestAtMostOne
from contract.test_editing import TestEditing
from contract.test_enqueueing import TestEnqueueing
from contract.test_maintenance import TestMaintenance
from contract.test_outcomes import TestOutcomes
from contract.test_passes import TestPasses
from contract.test_sharing import TestArchiving, TestSharing

from dbbasic_queue import Queue
from dbbasic_queue.errors import DuplicateJob
from dbbasic_queue.model import states
from dbbasic_queue.store.memory import MemoryStore
from dbbasic_queue.store.memory_claims import MemoryClaims, MemoryJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Claim
    from dbbasic_queue.testing import Clock

# pytest collects these here too, for the engines of this file.
__all__ = [
    "TestArchiving",
    "TestAtMostOne",
    "TestEditing",
    "TestEnqueueing",
    "TestMaintenance",
    "TestOutcomes",
    "TestPasses",
    "TestSharing",
    "clock",
    "queue",
]


class Planted(Queue):
    """The engine without a bug. Subclasses replace the store, the claims or a call."""

    memory: type[MemoryStore] = MemoryStore
    claims: type[MemoryClaims] = MemoryClaims
    places: dict[str, MemoryStore]

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        store = self.places.setdefault(url, self.memory(url))
        store.open_claims = partial(self.claims, store)  # type: ignore[method-assign]
        self.store = cast("Any", store)

    def __init_subclass__(cls) -> None:
        cls.places = {}


class Sound(Planted):
    """No bug: every test must pass."""


# --- stored data


class AcceptsValuesThatAreNotJson(Planted):
    def enqueue(self, job_type: str, payload: Any, *arguments: Any, **options: Any) -> str:
        as_json = json.loads(json.dumps(payload, default=str, allow_nan=False, skipkeys=True))
        return super().enqueue(job_type, as_json, *arguments, **options)


class AddsSomeOfTheJobs(Planted):
    def enqueue_many(
        self, job_type: str, payloads: Iterable[Any], run_at: Any = None, **_: Any
    ) -> list[str]:
        return [self.enqueue(job_type, payload, run_at) for payload in payloads]


class AcceptsAnIdTwice(Planted):
    def enqueue(self, *arguments: Any, job_id: str | None = None, **options: Any) -> str:
        try:
            return super().enqueue(*arguments, job_id=job_id, **options)
        except DuplicateJob:
            assert job_id is not None
            return job_id


class ReturnsItsOwnPayloads(Planted):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._shown: dict[str, Any] = {}

    def get_job(self, job_id: str) -> Any:
        found = super().get_job(job_id)
        if found is not None:
            found["payload"] = self._shown.setdefault(job_id, found["payload"])
        return found


class LosesFalsyResults(Planted):
    class claims(MemoryClaims):
        def record(self, claim: Claim, state: states.State) -> states.State | None:
            if state.result in ("0", "false", '""', "[]", "{}", "0.0"):
                state.result = ""
            return super().record(claim, state)


# --- running jobs


class RunsTwice(Planted):
    def process_jobs(self, handlers: Any, *arguments: Any, **options: Any) -> dict[str, int]:
        def twice(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def run(payload: Any) -> Any:
                handler(payload)
                return handler(payload)

            return run

        if isinstance(handlers, dict):
            handlers = {t: twice(h) if type(h) is type(twice) else h for t, h in handlers.items()}
        return super().process_jobs(handlers, *arguments, **options)


class RunsEarly(Planted):
    class claims(MemoryClaims):
        def find_due(self, now: float) -> bool:
            return super().find_due(now + 1)


class RunsTheLatestFirst(Planted):
    class claims(MemoryClaims):
        def _look(self) -> bool:
            found = super()._look()
            self._due.reverse()
            return found


class RunsCancelledJobs(Planted):
    class memory(MemoryStore):
        def cancel(self, job_id: str) -> bool:
            with self.lock:
                row = self.jobs.get(job_id)
                return row is not None and row.state.status == states.PENDING


class CancelsRunningJobs(Planted):
    class memory(MemoryStore):
        def cancel(self, job_id: str) -> bool:
            row = self.jobs.get(job_id)
            if row is None or row.state.status not in (states.PENDING, states.PROCESSING):
                return False
            row.state = states.State(states.CANCELLED, row.state.created_at, 0, 0, "", "")
            return True


class RunsJobsOfItsOwnHandlers(Planted):
    class claims(MemoryClaims):
        looks = 0

        def _look(self) -> bool:
            self.looks += 1
            if self.looks < 5:
                self._last_number = self.store.last_number
            return super()._look()


class RecordsOutcomesAtTheEnd(Planted):
    class claims(MemoryClaims):
        def __init__(self, *arguments: Any) -> None:
            self._ended: list[tuple[Claim, states.State]] = []
            super().__init__(*arguments)

        def record(self, claim: Claim, state: states.State) -> states.State:
            self._ended.append((claim, state))
            return state

        def finish(self) -> None:
            for claim, state in self._ended:
                super().record(claim, state)


class RunsPausedJobs(Planted):
    class claims(MemoryClaims):
        def _may_be_claimed(self, job: MemoryJob) -> bool:
            store = cast("MemoryStore", self.store)
            with store.lock:
                paused = store.paused()
                store.resume(None)
                try:
                    return super()._may_be_claimed(job)
                finally:
                    for job_type in paused:
                        store.pause(job_type)


class IgnoresLimits(Planted):
    class claims(MemoryClaims):
        def _use_remaining(self, job_type: str, remaining: dict[str, int]) -> bool:
            return True


# --- outcomes


class CountsADelayAsAnAttempt(Planted):
    class claims(MemoryClaims):
        def record(self, claim: Claim, state: states.State) -> states.State | None:
            if state.error.startswith(states.DELAYED):
                state.attempts += 1
            return super().record(claim, state)


class TriesOnceTooOften(Planted):
    def process_jobs(self, handlers: Any, max_attempts: Any = 3, **options: Any) -> dict[str, int]:
        if type(max_attempts) is int and max_attempts:
            max_attempts += 1
        return super().process_jobs(handlers, max_attempts, **options)


class KeepsTheOldError(Planted):
    class claims(MemoryClaims):
        def record(self, claim: Claim, state: states.State) -> states.State | None:
            state.error = state.error or claim.row.state.error
            return super().record(claim, state)


# --- maintenance


class DoesNotWait(Planted):
    def wait(self, job_id: str, timeout: Any) -> Any:
        return self.get_job(job_id)


class WaitsForAMissingJob(Planted):
    def wait(self, job_id: str, timeout: Any) -> Any:
        return super().wait(job_id, timeout) if self.get_job(job_id) else None


class MakesNothingDue(Planted):
    class memory(MemoryStore):
        def run_now(self, job_id: str, now: float) -> bool:
            row = self.jobs.get(job_id)
            return row is not None and row.state.status == states.PENDING


class MakesFinishedJobsDue(Planted):
    class memory(MemoryStore):
        def run_now(self, job_id: str, now: float) -> bool:
            row = self.jobs.get(job_id)
            if row is not None:
                row.state.run_at = int(now)
            return row is not None


class SendsACancelledReminderToday(Planted):
    def requeue(self, job_id: str, run_at: Any = None) -> bool:
        return super().requeue(job_id, 0 if run_at is None else run_at)


class AlwaysRequeuesForNow(Planted):
    def requeue(self, job_id: str, run_at: Any = None) -> bool:
        return super().requeue(job_id, run_at) and (run_at is None or self.run_now(job_id))


class ForgetsThatAllArePaused(Planted):
    def paused(self) -> frozenset[str]:
        return super().paused() - {"*"}


class IgnoresPriorities(Planted):
    class claims(MemoryClaims):
        def _place(self, job: MemoryJob) -> tuple[int, int, int]:
            return 0, job.state.run_at, job.number


class StopsPendingJobsOnly(Planted):
    class memory(MemoryStore):
        def stop(self, job_id: str) -> str | None:
            if self.cancel(job_id):
                return "cancelled"
            row = self.find(job_id)
            return row.state.status if row and row.state.status == "processing" else None


class KeepsAttemptsOnRequeue(Planted):
    class memory(MemoryStore):
        def requeue(self, now: float, **which: Any) -> int:
            before = {row.id: row.state.attempts for row in self.rows()}
            requeued = super().requeue(now, **which)
            for row in self.jobs.values():
                if row.state.status == states.PENDING:
                    row.state.attempts = before[row.id]
            return requeued


class RemovesRunningJobs(Planted):
    class memory(MemoryStore):
        def remove(
            self, unwanted: Callable[[Row], bool], archive: str | None = None, **_: object
        ) -> int:
            removed = super().remove(unwanted, archive)
            for row in list(self.rows()):
                if unwanted(row):
                    del self.jobs[row.id]
                    removed += 1
            return removed


class PurgesYoungJobs(Planted):
    def purge(self, older_than: Any, *arguments: Any, **options: Any) -> int:
        super().purge(older_than, *arguments, **options)
        return super().purge(0, *arguments, **options)


class RefusesAnIdThatMayExist(Planted):
    def enqueue(self, *arguments: Any, exist_ok: bool = False, **options: Any) -> str:
        return super().enqueue(*arguments, **options)


class ComparesPayloadsAsText(Planted):
    class memory(MemoryStore):
        def add_unless_pending(self, row: str, job_type: str, payload: str) -> str | None:
            for job in self.jobs.values():
                if (job.type, job.payload, job.state.status) == (job_type, payload, states.PENDING):
                    return job.id
            self.add(row)
            return None


class FindsRunningJobs(Planted):
    class memory(MemoryStore):
        def add_unless_pending(self, row: str, job_type: str, payload: str) -> str | None:
            for job in self.jobs.values():
                same = (job.type, job.payload) == (job_type, payload)
                if same and job.state.status == states.PROCESSING:
                    return job.id
            return super().add_unless_pending(row, job_type, payload)


class EditsRunningJobs(Planted):
    class memory(MemoryStore):
        def edit(self, job_id: str, payload: str, before: str | None = None) -> bool:
            if job_id in self.jobs:
                self.jobs[job_id].payload = payload
            return job_id in self.jobs


class EditsWhatHasChanged(Planted):
    class memory(MemoryStore):
        def edit(self, job_id: str, payload: str, before: str | None = None) -> bool:
            return super().edit(job_id, payload)


class IgnoresTheError(Planted):
    def requeue_failed(self, job_type: Any = None, *, error: Any = None) -> int:
        return super().requeue_failed(job_type)


class PurgesInADryRun(Planted):
    def purge(self, *arguments: Any, dry_run: bool = False, **options: Any) -> int:
        return super().purge(*arguments, **options)


class ListsJobsAddedDuringTheIteration(Planted):
    class memory(MemoryStore):
        def rows(self, unreadable: list[int] | None = None, **_: object) -> Iterator[Row]:
            for job_id in list(self.jobs):
                row = self.find(job_id)
                if row is not None:
                    yield row


class SharesNothing(Planted):
    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.store = cast("Any", MemoryStore(url))


class LosesItsArchive(Planted):
    def purge(self, *arguments: Any, archive: Any = None, **options: Any) -> int:
        return super().purge(*arguments, **options)


CAUGHT: dict[type[Planted], str] = {
    AcceptsValuesThatAreNotJson: "invalid_arguments_are_refused_and_add_no_job",
    AddsSomeOfTheJobs: "an_error_while_iterating_over_the_payloads_adds_no_job",
    AcceptsAnIdTwice: "an_id_can_be_used_only_once_whatever_the_status_of_its_job",
    ReturnsItsOwnPayloads: "changing_a_returned_job_does_not_change_the_queue",
    LosesFalsyResults: "a_json_result_reads_back_unchanged",
    RunsTwice: "concurrent_passes_run_each_job_once",
    RunsEarly: "a_job_runs_when_it_is_due_and_not_before",
    RunsTheLatestFirst: "jobs_run_in_the_order_of_run_at_and_then_of_their_enqueue",
    IgnoresPriorities: "jobs_of_a_higher_priority_run_first",
    StopsPendingJobsOnly: "a_stopped_job_that_does_not_complete_is_cancelled_and_never_runs_again",
    RunsCancelledJobs: "a_pending_job_can_be_cancelled_once_and_never_runs",
    CancelsRunningJobs: "a_running_or_finished_job_cannot_be_cancelled",
    RunsJobsOfItsOwnHandlers: "a_job_enqueued_by_a_handler_waits_for_the_next_pass",
    RecordsOutcomesAtTheEnd: "each_outcome_is_recorded_before_the_next_handler_starts",
    RunsPausedJobs: "jobs_of_a_paused_type_wait_and_are_counted_until_it_is_resumed",
    IgnoresLimits: "all_passes_together_keep_the_concurrency_limit_of_a_type",
    CountsADelayAsAnAttempt: "a_delay_postpones_a_job_and_costs_no_attempt",
    TriesOnceTooOften: ("a_failing_job_is_retried_after_its_backoff_until_no_attempts_are_left"),
    KeepsTheOldError: "a_job_that_finally_succeeds_has_no_error",
    DoesNotWait: "wait_returns_the_finished_job_or_none_after_the_timeout",
    WaitsForAMissingJob: "wait_returns_the_finished_job_or_none_after_the_timeout",
    MakesNothingDue: "a_pending_job_can_be_made_due_now",
    MakesFinishedJobsDue: "run_now_returns_false_unless_pending_and_raises_for_an_unknown_job",
    SendsACancelledReminderToday: (
        "a_failed_or_cancelled_job_can_be_requeued_and_runs_as_if_it_were_new"
    ),
    AlwaysRequeuesForNow: "a_requeued_job_is_due_at_its_run_at",
    ForgetsThatAllArePaused: "paused_returns_the_paused_types_and_a_star_for_all",
    KeepsAttemptsOnRequeue: (
        "a_failed_or_cancelled_job_can_be_requeued_and_runs_as_if_it_were_new"
    ),
    RemovesRunningJobs: "maintenance_calls_do_not_touch_a_running_job",
    PurgesYoungJobs: "purge_removes_old_finished_jobs",
    RefusesAnIdThatMayExist: "an_id_that_exists_is_returned_whatever_its_job_is",
    ComparesPayloadsAsText: ("a_pending_job_of_the_same_type_and_payload_is_found_and_left_alone"),
    FindsRunningJobs: "a_running_job_does_not_count",
    EditsRunningJobs: "a_running_or_finished_job_keeps_its_payload",
    EditsWhatHasChanged: "an_edit_of_an_older_payload_changes_nothing",
    IgnoresTheError: "failed_jobs_are_requeued_by_a_part_of_their_error",
    PurgesInADryRun: "a_dry_run_counts_what_a_purge_would_remove_and_changes_nothing",
    ListsJobsAddedDuringTheIteration: "changes_during_an_iteration_do_not_affect_it",
    SharesNothing: "queues_opened_at_one_place_have_the_same_jobs",
    LosesItsArchive: "purged_jobs_are_in_the_archive_as_rows_of_nine_columns",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on the engine without a bug, and on those whose bugs it must catch."""
    caught = [e for e, by in CAUGHT.items() if metafunc.definition.originalname == f"test_{by}"]
    metafunc.parametrize("open_at", [Sound, *caught], ids=lambda e: e.__name__, indirect=True)


@pytest.fixture
def open_at(request: pytest.FixtureRequest, clock: Clock) -> Opener:
    return Opener(clock, "memory:{}", request.param)
