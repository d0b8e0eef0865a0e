"""Which changes of a job's status are allowed, and the backoff."""

from __future__ import annotations

import pytest
from helpers import NOW

from dbbasic_queue.model.states import (
    CANCELLED,
    COMPLETED,
    FAILED,
    LATEST,
    PENDING,
    PROCESSING,
    STATUSES,
    State,
    backoff,
    cancel,
    claim,
    clamp,
    complete,
    delay,
    fail,
    is_to_stop,
    later,
    pull_in,
    recover,
    request_stop,
    requeue,
    retry,
    retry_at,
    run_now,
    stop,
    unclaim,
)


def state(status: str, *, run_at: int = NOW, attempts: int = 1, error: str = "") -> State:
    return State(status, NOW - 100, run_at, attempts, error, "")


def columns(after: State | None) -> tuple[object, ...]:
    assert after is not None
    return after.status, after.created_at, after.run_at, after.attempts, after.error, after.result


def test_the_backoff_starts_at_two_minutes_and_doubles() -> None:
    assert [backoff(attempt) for attempt in (1, 2, 3, 4)] == [120, 240, 480, 960]


@pytest.mark.parametrize("attempt", [33, 64, 1000, 10**9])
def test_the_backoff_of_a_very_high_attempt_is_the_latest_instant(attempt: int) -> None:
    assert backoff(attempt) == LATEST
    assert later(NOW, backoff(attempt)) == LATEST


def test_each_backoff_is_at_least_as_long_as_the_one_before() -> None:
    waits = [backoff(attempt) for attempt in range(1, 60)]
    assert waits == sorted(waits)


def test_a_fraction_of_a_second_is_rounded_up() -> None:
    assert later(NOW + 0.001, 120) == NOW + 121
    assert later(NOW, 120) == NOW + 120


def test_the_last_instant_is_the_end_of_the_year_9999() -> None:
    from datetime import UTC, datetime

    latest = datetime.fromtimestamp(LATEST, UTC)
    assert latest.isoformat() == "9999-12-31T23:59:59+00:00"


def test_a_claim_counts_the_attempt_at_once() -> None:
    after = claim(state(PENDING, attempts=2, error="ValueError: no"))
    assert columns(after) == (PROCESSING, NOW - 100, NOW, 3, "ValueError: no", "")


def test_a_completed_job_keeps_its_result_and_loses_its_error() -> None:
    after = complete(state(PROCESSING, error="ValueError: no"), "0")
    assert columns(after) == (COMPLETED, NOW - 100, NOW, 1, "", "0")


def test_a_retried_job_keeps_its_attempts() -> None:
    after = retry(state(PROCESSING, attempts=2), "ValueError: no", NOW + 245)
    assert columns(after) == (PENDING, NOW - 100, NOW + 245, 2, "ValueError: no", "")


def test_a_failed_job_is_not_due_again() -> None:
    after = fail(state(PROCESSING, attempts=3), "ValueError: no")
    assert columns(after) == (FAILED, NOW - 100, NOW, 3, "ValueError: no", "")


def test_a_delayed_job_gets_its_attempt_back_and_has_the_reason_as_its_error() -> None:
    after = delay(state(PROCESSING, attempts=2), "not yet", NOW + 10)
    assert columns(after) == (PENDING, NOW - 100, NOW + 10, 1, "delayed: not yet", "")
    assert columns(delay(state(PROCESSING), "", NOW + 10))[4] == "delayed"


@pytest.mark.parametrize(("status", "due"), [(FAILED, NOW + 7), (CANCELLED, NOW)])
def test_a_requeued_job_is_like_a_new_one_and_a_cancelled_one_keeps_its_run_at(
    status: str, due: int
) -> None:
    before = state(status, attempts=3, error="no")
    assert columns(requeue(before, NOW + 7.9)) == (PENDING, NOW - 100, due, 0, "", "")
    assert columns(requeue(before, NOW + 7.9, NOW + 3)) == (PENDING, NOW - 100, NOW + 3, 0, "", "")


def test_run_now_makes_a_pending_job_due_and_leaves_a_due_one_alone() -> None:
    later = state(PENDING, attempts=2, error="delayed")
    assert columns(run_now(later, NOW - 60.5)) == (PENDING, NOW - 100, NOW - 61, 2, "delayed", "")
    assert columns(run_now(later, NOW + 60)) == columns(later)
    for status in (PROCESSING, COMPLETED, FAILED, CANCELLED):
        assert run_now(state(status), NOW) is None


def test_a_returned_job_gets_its_attempt_back() -> None:
    before = state(PENDING, attempts=1, error="ValueError: no")
    claimed = claim(before)
    assert claimed is not None
    assert columns(unclaim(claimed)) == columns(before)
    assert columns(unclaim(claimed, "interrupted"))[4] == "interrupted"


def test_a_returned_job_never_has_less_than_zero_attempts() -> None:
    assert columns(unclaim(state(PROCESSING, attempts=0)))[3] == 0


def test_a_recovered_job_runs_again_after_its_backoff() -> None:
    after = recover(state(PROCESSING, run_at=NOW - 50), 3, NOW + 120)
    assert columns(after) == (PENDING, NOW - 100, NOW + 120, 1, "worker died in attempt 1", "")


@pytest.mark.parametrize(
    ("now", "seconds", "at"),
    [
        (NOW, 59, NOW + 59),
        (NOW + 0.5, 59, NOW + 60),
        (NOW + 2, 60, NOW + 60),
        (NOW + 59, 60, NOW + 60),
        (NOW + 1, 120, NOW + 120),
        (NOW + 1, 4e15, LATEST - LATEST % 60),
    ],
)
def test_a_retry_after_a_minute_or_more_is_due_at_a_full_minute(
    now: float, seconds: float, at: int
) -> None:
    assert retry_at(now, seconds) == at


def test_a_request_to_stop_marks_only_a_processing_job() -> None:
    marked = request_stop(state(PROCESSING, error="no"))
    assert columns(marked) == (PROCESSING, NOW - 100, NOW, 1, "Stop requested by user", "")
    assert marked is not None and is_to_stop(marked)
    assert request_stop(state(PENDING)) is None
    assert stop(state(PENDING), 1) is None


def test_an_error_that_reads_like_a_request_to_stop_stops_nothing() -> None:
    claimed = claim(state(PENDING, error="Stop requested by user"))
    assert claimed is not None and not is_to_stop(claimed)


def test_a_recovered_job_without_attempts_left_has_failed() -> None:
    after = recover(state(PROCESSING, attempts=3), 3, NOW)
    assert columns(after) == (FAILED, NOW - 100, NOW, 3, "worker died in attempt 3", "")


def test_a_retry_further_ahead_than_its_backoff_is_pulled_in() -> None:
    years = 10 * 365 * 86400
    after = clamp(state(PENDING, run_at=NOW + years, attempts=2, error="no"), NOW + 240)
    assert columns(after) == (PENDING, NOW - 100, NOW + 240, 2, "no", "")


@pytest.mark.parametrize(
    ("run_at", "attempts", "error"),
    [
        (NOW + 240, 2, "no"),
        (NOW - 1, 2, "no"),
        (NOW + 10**9, 0, ""),
        (NOW + 10**9, 2, "delayed: not yet"),
    ],
    ids=["within the backoff", "due", "run_at of the caller", "delayed by its handler"],
)
def test_other_waits_are_left_alone(run_at: int, attempts: int, error: str) -> None:
    waiting = state(PENDING, run_at=run_at, attempts=attempts, error=error)
    assert clamp(waiting, NOW + 240) is None


def test_the_error_of_a_cancelled_job_names_who_cancelled_it() -> None:
    after = cancel(state(PENDING, attempts=1, error="ValueError: no"))
    assert columns(after) == (CANCELLED, NOW - 100, NOW, 1, "Cancelled by user", "")


@pytest.mark.parametrize("status", STATUSES)
def test_each_change_starts_from_one_status_and_a_recorded_outcome_is_final(status: str) -> None:
    before = state(status, run_at=LATEST)
    changes = {
        "claim": claim(before),
        "cancel": cancel(before),
        "clamp": clamp(before, NOW),
        "complete": complete(before, ""),
        "delay": delay(before, "no", NOW),
        "fail": fail(before, "no"),
        "retry": retry(before, "no", NOW),
        "requeue": requeue(before, NOW),
        "unclaim": unclaim(before),
        "recover": recover(before, 3, NOW),
    }
    legal = {name for name, after in changes.items() if after is not None}
    assert legal == {
        PENDING: {"claim", "cancel", "clamp"},
        PROCESSING: {"complete", "delay", "fail", "unclaim", "recover", "retry"},
        FAILED: {"requeue"},
        CANCELLED: {"requeue"},
    }.get(status, set())


def test_no_change_alters_the_state_that_it_starts_from() -> None:
    before = state(PROCESSING, attempts=2, error="no")
    copy = columns(before)
    complete(before, "1")
    fail(before, "other")
    retry(before, "other", NOW)
    delay(before, "other", NOW)
    unclaim(before, "other")
    recover(before, 1, NOW)
    request_stop(before)
    stop(before, 1)
    assert columns(before) == copy


def test_a_job_enqueued_for_now_by_a_clock_that_was_ahead_is_due_now() -> None:
    ahead = NOW + 3 * 365 * 86_400
    for created_at, run_at, due in (
        (ahead, ahead, True),
        (ahead, ahead + 1, True),  # time.time(), rounded up
        (ahead, NOW + 7200, True),
        (ahead, ahead + 2, False),  # meant for later
        (NOW + 60, NOW + 60, False),  # another machine's clock
        (NOW, ahead, False),
    ):
        pulled_in = pull_in(State("pending", created_at, run_at, 0, "", ""), NOW + 0.5)
        assert (pulled_in is not None) == due
        if pulled_in is not None:
            assert (pulled_in.created_at, pulled_in.run_at) == (NOW, NOW)
    for state in (
        State("pending", ahead, ahead, 1, "", ""),
        State("completed", ahead, ahead, 0, "", ""),
    ):
        assert pull_in(state, NOW) is None
