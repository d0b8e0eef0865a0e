"""The policy of a handler, the exceptions that it can raise, and the job that it receives."""

from __future__ import annotations

import functools
import logging
import os
import random
import time
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NONE, NOW, Clock, add_lines, job, line, passes_on, raises

from dbbasic_queue import Backoff, Delay, Fail, Handler, InvalidHandlers, Job, Queue
from dbbasic_queue.model.states import LATEST, backoff
from dbbasic_queue.store.claiming import slots
from dbbasic_queue.store.disk.files import open_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# --- Backoff


def test_the_default_backoff_equals_that_of_the_file_format() -> None:
    for attempt in (*range(50), 5_000, 999_999_999):
        assert Backoff().seconds(attempt) == backoff(attempt)


@pytest.mark.parametrize(
    ("made", "waits"),
    [
        (Backoff(first=30, factor=3), {1: 30, 2: 90, 3: 270}),
        (Backoff(first=10, factor=1), {1: 10, 5_000: 10}),
        (Backoff(first=120, cap=100), {0: 60, 1: 100, 5_000: 100}),
        (Backoff(first=0.75, factor=1.5), {1: 0.75, 2: 1.125}),
        (Backoff(first=0), {1: 0, 5_000: 0}),
        (Backoff(cap=0), {1: 0, 5_000: 0}),
        (Backoff(first=LATEST, factor=LATEST), {1: LATEST, 5_000: LATEST}),
    ],
)
def test_a_backoff_starts_at_first_grows_by_factor_and_stops_at_cap(
    made: Backoff, waits: dict[int, float]
) -> None:
    assert {attempt: made.seconds(attempt) for attempt in waits} == waits
    assert {attempt: made.draw(attempt) for attempt in waits} == waits


def test_jitter_only_adds_time_and_at_most_its_share() -> None:
    random.seed(4)
    made = Backoff(first=20, factor=2, cap=100, jitter=0.5)
    for attempt in (1, 2, 3, 4, 5_000):
        plain = Backoff(first=20, factor=2, cap=100).seconds(attempt)
        drawn = [made.draw(attempt) for _ in range(300)]
        assert plain <= min(drawn) < plain * 1.1
        assert plain * 1.4 < max(drawn) <= made.longest(attempt) == plain * 1.5


@pytest.mark.parametrize("name", ["first", "factor", "cap", "jitter"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 10**400, True, "60", None])
def test_an_invalid_number_in_a_backoff_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidHandlers, match=name):
        Backoff(**{name: value})


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(InvalidHandlers, match=r"invalid factor 0\.5: must be a number, 1 or more"):
        Backoff(factor=0.5)


def test_first_and_cap_are_seconds_or_a_timedelta() -> None:
    made = Backoff(first=timedelta(minutes=2), factor=3, cap=timedelta(minutes=10))
    assert [made.seconds(attempt) for attempt in (1, 2, 3)] == [120, 360, 600]
    for wrong in (timedelta(seconds=-1), timedelta.max):
        with pytest.raises(InvalidHandlers, match="invalid first"):
            Backoff(first=wrong)
        with pytest.raises(InvalidHandlers, match="invalid cap"):
            Backoff(cap=wrong)
    with pytest.raises(InvalidHandlers, match="invalid factor"):
        Backoff(factor=timedelta(2))  # type: ignore[arg-type]


# --- policies


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "30", timedelta(0), timedelta(-1)])
def test_a_handlers_invalid_timeout_is_an_error(value: Any) -> None:
    rule = "must be seconds or a timedelta, more than 0"
    with pytest.raises(InvalidHandlers, match=f"invalid timeout .*: {rule}"):
        Handler(print, timeout=value)


def test_a_handlers_timeout_can_be_a_timedelta(queue: Queue) -> None:
    assert Handler(print, timeout=timedelta(minutes=1)).timeout == 60
    job_id = queue.enqueue("greet", {})
    slow = Handler(lambda _: time.sleep(60), timeout=timedelta(seconds=0.1))
    assert queue.process_jobs({"greet": slow}) == NONE | {"retried": 1}
    assert job(queue, job_id)["error"].startswith("timed out after 0.1 s")


@pytest.mark.parametrize(
    "policy",
    [
        {"max_attempts": 0},
        {"max_attempts": 2.0},
        {"max_attempts": True},
        {"backoff": 60},
        {"concurrency": 0},
        {"concurrency": "2"},
    ],
)
def test_an_invalid_policy_is_refused_when_it_is_declared(policy: Any) -> None:
    with pytest.raises(InvalidHandlers):
        Handler(print, **policy)


class Limit(IntEnum):
    TWICE = 2


def test_an_int_enum_can_be_a_limit(queue: Queue) -> None:
    handler = Handler(len, max_attempts=Limit.TWICE, concurrency=Limit.TWICE, timeout=Limit.TWICE)
    queue.enqueue("greet", "ada", run_at=Limit.TWICE)
    assert (
        queue.process_jobs({"greet": handler}, Limit.TWICE, workers=Limit.TWICE)["completed"] == 1
    )


def test_a_handler_must_be_callable() -> None:
    function: Any = "print"
    with pytest.raises(InvalidHandlers, match="can't be called"):
        Handler(function)


def test_each_type_has_its_own_limit_and_backoff_next_to_plain_functions(
    queue: Queue, clock: Clock
) -> None:
    def fail(_: Any) -> None:
        raise ValueError("no")

    handlers: dict[str, Any] = {
        "once": Handler(fail, max_attempts=1),
        "soon": Handler(fail, max_attempts=4, backoff=Backoff(first=6, factor=2)),
        "plain": fail,
    }
    ids = {name: queue.enqueue(name, {}) for name in handlers}
    assert queue.process_jobs(handlers, max_attempts=2) == NONE | {"failed": 1, "retried": 2}
    assert job(queue, ids["soon"])["run_at"] == NOW + 6
    assert job(queue, ids["plain"])["run_at"] == NOW + 120
    clock.now += 120
    assert queue.process_jobs(handlers, max_attempts=2) == NONE | {"failed": 1, "retried": 1}
    clock.now += 12
    assert queue.process_jobs(handlers, max_attempts=2) == NONE | {"retried": 1}
    clock.now += 24
    assert queue.process_jobs(handlers, max_attempts=2) == NONE | {"failed": 1}
    assert {name: job(queue, i)["attempts"] for name, i in ids.items()} == {
        "once": 1,
        "soon": 4,
        "plain": 2,
    }


def test_a_backoff_of_zero_waits_for_the_next_pass(queue: Queue) -> None:
    calls: list[Any] = []

    def fail(payload: Any) -> None:
        calls.append(payload)
        raise ValueError("no")

    handlers = {"greet": Handler(fail, backoff=Backoff(first=0))}
    queue.enqueue("greet", {})
    for attempt in (1, 2):
        assert queue.process_jobs(handlers) == NONE | {"retried": 1}
        assert len(calls) == attempt
    assert queue.process_jobs(handlers) == NONE | {"failed": 1}


def test_a_job_of_a_dead_pass_is_recovered_with_the_limit_and_the_backoff_of_its_type(
    queue: Queue, path: Path, clock: Clock
) -> None:
    add_lines(
        path,
        line("patient", type="patient", status="processing", attempts=3),
        line("hasty", type="hasty", status="processing", attempts=1),
        line("plain", type="plain", status="processing", attempts=2),
    )
    handlers: dict[str, Any] = {
        "patient": Handler(lambda _: None, max_attempts=5, backoff=Backoff(first=600, factor=1)),
        "hasty": Handler(lambda _: None, max_attempts=1),
        "plain": lambda _: None,
    }
    done = queue.process_jobs(handlers, max_attempts=3)
    assert done == NONE | {"recovered": 3, "failed": 1}
    assert job(queue, "hasty")["error"] == "worker died in attempt 1"
    assert [job(queue, name)["run_at"] - NOW for name in ("patient", "plain")] == [600, 240]
    clock.now += 600
    assert queue.process_jobs(handlers, max_attempts=3) == NONE | {"completed": 2}
    assert [job(queue, name)["attempts"] for name in ("patient", "plain")] == [4, 3]


def test_a_retry_set_by_a_wrong_clock_is_moved_to_the_backoff_of_its_type(
    queue: Queue, path: Path
) -> None:
    years = NOW + 10**9
    add_lines(
        path,
        line("own", type="own", attempts=1, run_at=years, error="no"),
        line("plain", type="plain", attempts=1, run_at=years, error="no"),
    )
    own = Handler(print, backoff=Backoff(first=100000, jitter=0.1))
    queue.process_jobs({"own": own, "plain": print})
    assert job(queue, "own")["run_at"] == NOW + 110_000
    assert job(queue, "plain")["run_at"] == NOW + 120


def test_a_long_backoff_is_not_mistaken_for_a_wrong_clock(queue: Queue, clock: Clock) -> None:
    random.seed(4)
    slow = Backoff(first=259200, factor=3, jitter=0.5)
    handlers = {"greet": Handler(raises(ValueError("no")), backoff=slow)}
    job_id = queue.enqueue("greet", {})
    queue.process_jobs(handlers)
    run_at = job(queue, job_id)["run_at"]
    assert NOW + 3 * 86_400 <= run_at <= NOW + 4.5 * 86_400 + 1
    for _ in range(3):
        clock.now += 60
        assert queue.process_jobs(handlers) == NONE
    assert job(queue, job_id)["run_at"] == run_at


def test_a_pass_for_other_types_does_not_shorten_a_backoff_that_it_does_not_know(
    queue: Queue, path: Path
) -> None:
    add_lines(path, line("own", type="own", attempts=1, run_at=NOW + 86_400, error="no"))
    queue.enqueue("other", {})
    assert queue.process_jobs({"other": len}, skip_unknown=True) == NONE | {"completed": 1}
    assert job(queue, "own")["run_at"] == NOW + 86_400


def test_a_delay_after_a_failed_attempt_is_not_mistaken_for_a_wrong_clock(
    queue: Queue, clock: Clock
) -> None:
    handlers = {"greet": raises(ValueError("no"), Delay(10**8, "next year"))}
    job_id = queue.enqueue("greet", {})
    queue.process_jobs(handlers)
    clock.now += 120
    assert queue.process_jobs(handlers) == NONE | {"delayed": 1}
    clock.now += 60
    assert queue.process_jobs(handlers) == NONE
    found = job(queue, job_id)
    assert (found["attempts"], found["run_at"]) == (1, NOW + 120 + 10**8)


# --- Delay


def test_a_delayed_job_is_pending_with_its_reason_and_costs_no_attempt(
    queue: Queue, clock: Clock
) -> None:
    handlers = {"greet": raises(*[Delay(30.5, "the shop\tis closed")] * 5)}
    job_id = queue.enqueue("greet", {})
    for _ in range(5):
        began = clock.now
        assert queue.process_jobs(handlers, max_attempts=1) == NONE | {"delayed": 1}
        found = job(queue, job_id)
        assert (found["status"], found["attempts"], found["run_at"]) == ("pending", 0, began + 31)
        assert found["error"] == "delayed: the shop\tis closed"
        clock.now = began + 30
        assert queue.process_jobs(handlers) == NONE
        clock.now = began + 31
    assert queue.process_jobs(handlers, max_attempts=1) == NONE | {"completed": 1}
    found = job(queue, job_id)
    assert (found["attempts"], found["error"]) == (1, None)


def test_a_delay_can_be_a_datetime(queue: Queue) -> None:
    instant = datetime.fromtimestamp(NOW + 90.25, timezone(timedelta(hours=5)))
    job_id = queue.enqueue("greet", {})
    assert queue.process_jobs({"greet": raises(Delay(instant))}) == NONE | {"delayed": 1}
    found = job(queue, job_id)
    assert (found["run_at"], found["error"]) == (NOW + 91, "delayed")


def test_a_delay_can_be_a_timedelta(queue: Queue) -> None:
    job_id = queue.enqueue("greet", {})
    delay = Delay(timedelta(minutes=1, seconds=0.5), "on hold")
    assert queue.process_jobs({"greet": raises(delay)}) == NONE | {"delayed": 1}
    found = job(queue, job_id)
    assert (found["run_at"], found["error"]) == (NOW + 61, "delayed: on hold")


PAST = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("when", [0, -5, 0.001, PAST])
def test_a_delayed_job_is_not_due_again_in_the_same_pass_however_short_the_delay(
    queue: Queue, when: Any
) -> None:
    job_id = queue.enqueue("greet", {})
    handlers = {"greet": raises(*[Delay(when)] * 2)}
    assert queue.process_jobs(handlers) == NONE | {"delayed": 1}
    assert NOW <= job(queue, job_id)["run_at"] <= NOW + 1


def test_a_clock_set_back_during_a_pass_makes_no_job_due_again(queue: Queue, clock: Clock) -> None:
    calls: list[str] = []

    def put_off(payload: str) -> None:
        clock.now = NOW - 3600
        calls.append(payload)
        if payload == "delay":
            raise Delay(60)
        raise ValueError("no")

    queue.enqueue("greet", "delay")
    queue.enqueue("greet", "fail")
    assert queue.process_jobs({"greet": put_off}) == NONE | {"delayed": 1, "retried": 1}
    assert calls == ["delay", "fail"]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Forgetful(Delay):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    "delay",
    [
        Delay(float("nan")),
        Delay(float("inf")),
        Delay(10**12),
        Delay(10**400),
        Delay(True),
        Delay("soon"),  # type: ignore[arg-type]
        Delay(None),  # type: ignore[arg-type]
        Delay(datetime(2030, 1, 1)),
        Delay(5, Unprintable()),  # type: ignore[arg-type]
        Forgetful(),
    ],
    ids=lambda delay: f"{getattr(delay, 'when', 'none')!r:.20}",
)
def test_an_invalid_delay_fails_the_job_like_any_error(queue: Queue, delay: Delay) -> None:
    job_id = queue.enqueue("greet", {})
    other = queue.enqueue("other", {})
    done = queue.process_jobs({"greet": raises(delay), "other": len})
    assert done == NONE | {"retried": 1, "completed": 1}
    found = job(queue, job_id)
    assert (found["attempts"], found["run_at"]) == (1, NOW + 120)
    assert found["error"].partition(":")[0] in ("InvalidJob", "RuntimeError", "AttributeError")
    assert job(queue, other)["status"] == "completed"


def test_a_long_reason_is_cut(queue: Queue) -> None:
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": raises(Delay(1, "x" * 10_000))})
    assert len(job(queue, job_id)["error"]) == len("delayed: ") + 500


# --- Fail


@pytest.mark.parametrize(
    ("error", "text"), [(Fail("no such user"), "no such user"), (Fail(), "Fail")]
)
def test_a_job_that_raises_fail_is_not_retried(queue: Queue, error: Fail, text: str) -> None:
    handler = Handler(raises(error), max_attempts=9)
    job_id = queue.enqueue("greet", {})
    assert queue.process_jobs({"greet": handler}) == NONE | {"failed": 1}
    found = job(queue, job_id)
    assert (found["status"], found["attempts"], found["error"]) == ("failed", 1, text)


# --- the second argument


def one(payload: Any) -> None: ...
def two(payload: Any, about: Any) -> None: ...
def named(payload: Any, job: Any = None) -> None: ...
def default(payload: Any, retries: int = 3) -> None: ...
def many(*args: Any, **kwargs: Any) -> None: ...
def of_a_database(database: Any, payload: Any, about: Any) -> None: ...


class Mailer:
    def one(self, payload: Any) -> None: ...
    def two(self, payload: Any, about: Any) -> None: ...
    def __call__(self, payload: Any, job: Any) -> None: ...

    @classmethod
    def of_class(cls, payload: Any, about: Any) -> None: ...

    @staticmethod
    def static(payload: Any) -> None: ...


def gives_a_database(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args, "database")

    return wrapper


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (one, False),
        (two, True),
        (named, True),
        (default, False),
        (many, False),
        (lambda _: None, False),
        (lambda _, about: None, True),
        (lambda _, name="x": None, False),
        (Mailer().one, False),
        (Mailer().two, True),
        (Mailer(), True),
        (Mailer().__call__, True),
        (Mailer.of_class, True),
        (Mailer.static, False),
        (functools.partial(two), True),
        (functools.partial(two, about=1), False),
        (functools.partial(of_a_database, "database"), True),
        (functools.partial(Mailer().two), True),
        (functools.partial(one), False),
        (print, False),
        (len, False),
        ([].append, False),
        (dict, False),
        (Mailer, False),
        (passes_on(named), True),
        (passes_on(one), False),
        (gives_a_database(two), False),
        (Handler(two), True),
        (Handler(one), False),
    ],
)
def test_handlers_with_a_second_argument_receive_the_job(
    function: Callable[..., Any], wanted: bool
) -> None:
    assert Handler(function).takes_job is wanted


def test_a_handler_receives_its_job_at_each_attempt(queue: Queue, clock: Clock) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(payload: Any, about: Job) -> None:
        seen.append((payload, about.id, about.type, about.attempt, about.created_at))
        raise ValueError("no")

    job_id = queue.enqueue("mail:send", "p", NOW + 5)
    clock.now += 10
    queue.process_jobs({"mail:send": look})
    clock.now += 120
    queue.process_jobs({"mail:send": look})
    assert seen == [("p", job_id, "mail:send", 1, NOW), ("p", job_id, "mail:send", 2, NOW)]


def test_log_records_of_a_job_have_its_id_and_attempt(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def work(_: Any, job: Job) -> None:
        job.log.info("half %s", "done")

    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": work})
    (record,) = [r for r in caplog.records if r.name == "dbbasic_queue.job.greet"]
    assert record.getMessage() == "half done"
    assert (record.__dict__["job_id"], record.__dict__["attempt"]) == (job_id, 1)


def test_a_delayed_job_is_logged_as_such(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": raises(Delay(5, "busy"))})
    assert [r.getMessage() for r in caplog.records] == [
        f"greet {job_id} delayed, attempt 0: delayed: busy"
    ]


def test_a_sleeping_pass_lists_no_claims_in_its_slot(
    queue: Queue, path: Path, clock: Clock
) -> None:
    """Otherwise a job that it delayed, and that another pass claimed and lost, isn't recovered."""
    listed: list[list[tuple[str, int]]] = []

    def look(seconds: float) -> None:
        file = open_file(f"{path}.pass.1", os.O_RDONLY)
        assert file is not None
        listed.append(slots.read_claims(file)[0])
        raise TimeoutError

    job_id = queue.enqueue("greet", {})
    handlers = {"greet": raises(Delay(60))}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TimeoutError):
        # Only in the pass: a process that held the lock for long sleeps, too.
        pass_time = SimpleNamespace(sleep=look, monotonic=time.monotonic)
        patch.setattr("dbbasic_queue.passes.sequential.time", pass_time)
        queue.process_jobs(handlers, linger=5)
    assert listed == [[]]
    assert job(queue, job_id)["status"] == "pending"
