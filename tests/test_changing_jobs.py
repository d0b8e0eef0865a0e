"""Passes for some types, lingering passes, waiting, and calls that change jobs: requeue, purge."""

from __future__ import annotations

import asyncio
import signal
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    DAY,
    NONE,
    NOW,
    TERMS,
    Clock,
    Programs,
    add_lines,
    held,
    job,
    line,
    notes,
    row,
    sibling,
    store_of,
    wait_for_notes,
)

from dbbasic_queue import (
    Backoff,
    Delay,
    Fail,
    Handler,
    InvalidArgument,
    InvalidHandlers,
    JobNotFound,
    Queue,
    open_queue,
)
from dbbasic_queue.model.states import CANCELLED, COMPLETED, FAILED, PENDING, PROCESSING, STATUSES
from dbbasic_queue.passes.policies import Policies
from dbbasic_queue.store.claiming.claims import Claims
from dbbasic_queue.store.reading.view import View

if TYPE_CHECKING:
    from collections.abc import Callable


class Night:
    """The time that a lingering pass sees: it and the clock move only while the pass sleeps.

    `polls` counts the sleeps. `at` has functions to call, by the number of the poll.
    """

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = clock
        self.at: dict[int, Callable[[], object]] = {}
        self.polls = 0
        self.asked = 0
        self.seconds = 0.0
        for module in ("base", "sequential", "executor"):
            monkeypatch.setattr(f"dbbasic_queue.passes.{module}.time", self)

    def monotonic(self) -> float:
        self.asked += 1
        assert self.asked < 20_000, "an idle pass doesn't sleep"
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.polls += 1
        self.seconds += seconds
        self.clock.now += seconds
        self.at.get(self.polls, lambda: None)()


@pytest.fixture
def night(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Night:
    return Night(clock, monkeypatch)


def record_reads(monkeypatch: pytest.MonkeyPatch, reads: list[object]) -> None:
    """Append to the list each time that a row is read from the file."""
    real = View.row

    def row(view: View, *args: Any, **options: Any) -> Any:
        reads.append(args)
        return real(view, *args, **options)

    monkeypatch.setattr(View, "row", row)


# --- skip_unknown


def test_skip_unknown_does_not_touch_jobs_of_other_types(queue: Queue, path: Path) -> None:
    add_lines(path, line("lost", type="other", status="processing", attempts=3))
    queue.enqueue("other", {}, job_id="other")
    queue.enqueue("none", {}, job_id="none")
    queue.enqueue("mine", {}, job_id="mine")
    before = {job_id: row(path, job_id) for job_id in ("lost", "other", "none")}
    handlers: Any = {"mine": len, "none": None}
    assert queue.process_jobs(handlers, skip_unknown=True) == NONE | {"completed": 1}
    assert {job_id: row(path, job_id) for job_id in before} == before
    assert job(queue, "mine")["status"] == COMPLETED


def test_without_skip_unknown_jobs_of_other_types_fail(queue: Queue) -> None:
    job_id = queue.enqueue("other", {})
    assert queue.process_jobs({"mine": len}) == NONE | {"retried": 1}
    assert job(queue, job_id)["error"] == "No handler for other"


def test_jobs_that_a_dead_pass_had_not_started_are_returned_whatever_their_type(
    queue: Queue, path: Path, clock: Clock
) -> None:
    ids = queue.enqueue_many("other", range(3))
    terms = Policies({}, 1)
    dead = Claims(store_of(queue).files, terms, clock())
    dead.claim(8, dead.looked_at)
    dead.abandon()
    with Queue(path, clock=clock) as mine:
        assert mine.process_jobs({"mine": len}, 1, skip_unknown=True) == NONE | {"recovered": 2}
        states = [(job(mine, i)["status"], job(mine, i)["attempts"]) for i in ids]
        assert states == [(PROCESSING, 1), (PENDING, 0), (PENDING, 0)]
        assert mine.process_jobs({"other": str}, 1) == NONE | {
            "recovered": 1,
            "failed": 1,
            "completed": 2,
        }


# --- linger


@pytest.mark.parametrize("linger", [-1, float("nan"), True, "55", None])
def test_an_invalid_linger_is_an_error(queue: Queue, linger: Any) -> None:
    with pytest.raises(InvalidArgument, match="invalid linger"):
        queue.process_jobs({"greet": len}, linger=linger)


def test_a_lingering_pass_runs_new_and_due_jobs_when_it_polls_next(
    queue: Queue, path: Path, night: Night
) -> None:
    ran: list[tuple[Any, float]] = []
    queue.enqueue("greet", "later", NOW + 2)
    with Queue(path, clock=night.clock) as other:
        night.at[7] = lambda: other.enqueue("greet", "new")
        done = queue.process_jobs({"greet": lambda p: ran.append((p, night.seconds))}, linger=5)
    assert done == NONE | {"completed": 2}
    assert [payload for payload, _ in ran] == ["new", "later"]
    assert [at for _, at in ran] == pytest.approx([0.35, 2], abs=0.11)
    assert 4.9 < night.seconds < 5.2


def test_a_linger_may_be_a_timedelta(queue: Queue, night: Night) -> None:
    queue.enqueue("greet", {}, NOW + 2)
    done = queue.process_jobs({"greet": len}, linger=timedelta(seconds=5))
    assert done == NONE | {"completed": 1}
    assert 4.9 < night.seconds < 5.2


def test_a_lingering_pass_runs_its_own_retries_and_delays_when_they_are_due(
    queue: Queue, night: Night
) -> None:
    errors = [ValueError("no"), Delay(2), ValueError("no")]
    ran: list[float] = []

    def work(_: Any) -> None:
        ran.append(night.seconds)
        if errors:
            raise errors.pop(0)

    queue.enqueue("greet", {})
    soon = Handler(work, backoff=Backoff(first=1))
    done = queue.process_jobs({"greet": soon}, linger=20)
    assert done == NONE | {"completed": 1, "retried": 2, "delayed": 1}
    # `run_at` is rounded up to whole seconds, and the pass finds the job at its next poll.
    assert ran == pytest.approx([0, 1, 4, 7], abs=0.11)


def test_an_idle_lingering_pass_polls_20_times_a_second_and_reads_no_row(
    queue: Queue, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue_many("other", range(50))
    queue.enqueue_many("greet", range(50), NOW + DAY)
    queue.enqueue_many("greet", range(50))
    # A first pass folds: on a busy machine, an idle pass could do that at any poll, and reread.
    done = queue.process_jobs({"greet": str}, skip_unknown=True)
    assert done == NONE | {"completed": 50}
    reads: list[object] = []
    night.at[2] = lambda: record_reads(monkeypatch, reads)
    assert queue.process_jobs({"greet": str}, skip_unknown=True, linger=10) == NONE
    assert night.polls <= 202
    assert reads == []


def test_due_jobs_of_unknown_types_do_not_hide_other_jobs(queue: Queue, night: Night) -> None:
    queue.enqueue("other", {})
    queue.enqueue("other", {}, NOW + 1)
    queue.enqueue("greet", "a", NOW + 2)
    night.at[60] = lambda: queue.enqueue("greet", "b")
    night.at[80] = lambda: queue.enqueue("other", "c")
    night.at[81] = lambda: queue.enqueue("greet", "d")
    assert queue.process_jobs({"greet": str}, skip_unknown=True, linger=5) == NONE | {
        "completed": 3
    }


def test_an_idle_lingering_pass_uses_hardly_any_cpu_time(programs: Programs) -> None:
    source = """
    queue.enqueue_many("other", range(500))
    handlers = {"greet": str}
    queue.process_jobs(handlers, skip_unknown=True, linger=0.1)
    before = time.process_time()
    queue.process_jobs(handlers, skip_unknown=True, linger=2)
    print(time.process_time() - before)
    """
    assert float(programs.run(source)) < 0.2


LINGER = """
from dbbasic_queue import Backoff, Handler

def work(payload):
    note("effects", payload)
    if payload == "hang" and sys.argv[1] == "first":
        note("hangs", payload)
        time.sleep(60)
    return "done"

note("passes", sys.argv[1])
queue.enqueue("other", {}, 9999999999)
handlers = {"work": Handler(work, backoff=Backoff(first=0))}
print(queue.process_jobs(handlers, linger=float(sys.argv[2])))
"""


def test_a_lingering_pass_runs_jobs_of_other_processes_immediately_until_sigterm(
    programs: Programs, tmp_path: Path
) -> None:
    child = programs.start(LINGER, "stays", "100")
    wait_for_notes(tmp_path / "passes", 1)
    with Queue(tmp_path / "data/queue.tsv") as queue:
        for name in ("a", "b"):
            job_id = queue.enqueue("work", name)
            wait_for_notes(tmp_path / "effects", 1 + (name == "b"))
            found = queue.wait(job_id, 20)
            assert found is not None and found["status"] == COMPLETED
    began = time.monotonic()
    child.signal(signal.SIGTERM)
    assert child.wait() == 143
    assert time.monotonic() - began < 10  # it would linger for 100 seconds
    assert notes(tmp_path / "effects") == ["a", "b"]


def test_ctrl_c_ends_a_lingering_pass(programs: Programs, tmp_path: Path) -> None:
    child = programs.start(LINGER, "stays", "100")
    wait_for_notes(tmp_path / "passes", 1)
    with Queue(tmp_path / "data/queue.tsv") as queue:
        queue.wait(queue.enqueue("work", "a"), 20)
    child.signal(signal.SIGINT)
    assert child.wait() in (1, -signal.SIGINT)
    assert "KeyboardInterrupt" in child.errors.read_text("utf-8")


def test_a_lingering_pass_recovers_the_job_of_a_pass_that_dies(
    programs: Programs, tmp_path: Path
) -> None:
    with Queue(tmp_path / "data/queue.tsv") as queue:
        job_id = queue.enqueue("work", "hang")
        dead = programs.start(LINGER, "first", "0")
        wait_for_notes(tmp_path / "hangs", 1)
        stays = programs.start(LINGER, "stays", "100")
        wait_for_notes(tmp_path / "passes", 2)
        dead.kill()
        found = queue.wait(job_id, 20)
        assert found is not None
        assert (found["status"], found["attempts"]) == (COMPLETED, 2)
        stays.signal(signal.SIGTERM)
        assert stays.wait() == 143
    assert notes(tmp_path / "effects") == ["hang", "hang"]


def test_a_job_added_between_the_start_of_a_pass_and_its_first_poll_is_found(
    queue: Queue,
) -> None:
    """It wasn't there when the pass started, so it isn't due yet. At the next poll it must be."""
    queue.cancel_job("create the files")
    claims = Claims(store_of(queue).files, TERMS, NOW)
    queue.enqueue("greet", {})
    assert claims.claim(1, claims.looked_at) == []
    assert claims.find_due(NOW)
    assert len(claims.claim(1, claims.looked_at)) == 1
    claims.abandon()


# --- run_until_complete


def test_run_until_complete_waits_for_retries_and_delays(queue: Queue, night: Night) -> None:
    errors = [ValueError("no"), Delay(3), ValueError("no"), Delay(1)]

    def work(_: Any) -> None:
        if errors:
            raise errors.pop(0)

    queue.enqueue("greet", {}, NOW + 5)
    queue.enqueue("other", {})
    handlers: dict[str, Any] = {"other": len}
    handlers["greet"] = Handler(work, backoff=Backoff(first=4))
    done = queue.run_until_complete(handlers)
    assert done == NONE | {"completed": 2, "retried": 2, "delayed": 2}
    assert 5 + 4 + 3 + 8 + 1 <= night.seconds < 5 + 4 + 3 + 8 + 1 + 5
    assert queue.run_until_complete(handlers) == NONE


def test_run_until_complete_waits_for_jobs_that_another_pass_runs(
    queue: Queue, path: Path, night: Night
) -> None:
    job_id = queue.enqueue("greet", {})
    with Queue(path, clock=night.clock) as other:
        elsewhere = Claims(store_of(other).files, TERMS, NOW)
        (claim,) = elsewhere.claim(1, elsewhere.looked_at)

        def end() -> None:
            elsewhere.unclaim([claim])
            elsewhere.finish()

        night.at[30] = end
        assert queue.run_until_complete({"greet": len}) == NONE | {"completed": 1}
    assert night.polls >= 30
    assert job(queue, job_id)["attempts"] == 1


def test_run_until_complete_returns_immediately_if_there_is_no_queue(queue: Queue) -> None:
    assert queue.run_until_complete({"greet": len}) == NONE
    with pytest.raises(InvalidHandlers):
        queue.run_until_complete({"greet": len}, 0)


@pytest.mark.parametrize("all_types", [True, False])
def test_run_until_complete_does_not_wait_for_paused_jobs(
    queue: Queue, night: Night, all_types: bool
) -> None:
    queue.enqueue("paused", {})
    queue.enqueue("paused", {}, NOW + DAY)
    if all_types:
        queue.pause()
        assert queue.run_until_complete({"greet": len}) == NONE
    else:
        queue.pause("paused")
        queue.enqueue("greet", [], NOW + 5)
        assert queue.run_until_complete({"greet": len}) == NONE | {"completed": 1}
        assert 5 <= night.seconds < 6
    assert queue.counts()[PENDING] == 2


def test_run_until_complete_reads_jobs_of_other_types_once_while_it_waits(
    queue: Queue, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.pause("paused")
    queue.enqueue_many("paused", range(50))
    queue.enqueue("greet", [], NOW + 9)
    reads: list[object] = []
    record_reads(monkeypatch, reads)
    assert queue.run_until_complete({"greet": len}) == NONE | {"completed": 1}
    assert len(reads) < 300


@pytest.mark.parametrize(
    ("url", "how"),
    [
        ("text file", "function"),
        ("text file", "coroutine"),
        ("text file", "timeout"),
        ("memory:", "function"),
        ("memory:", "coroutine"),
    ],
)
def test_run_until_complete_inside_a_job_does_not_wait_for_that_job(
    tmp_path: Path, url: str, how: str
) -> None:
    queue = Queue(tmp_path / "queue.tsv") if url == "text file" else open_queue(url)

    def function(_: Any) -> Any:
        return queue.run_until_complete({"greet": len})

    async def coroutine(_: Any) -> Any:
        return await asyncio.to_thread(queue.run_until_complete, {"greet": len})

    ways: dict[str, Any] = {"function": function, "coroutine": coroutine}
    outer = ways.get(how) or Handler(function, timeout=30)
    queue.enqueue("greet", [])
    job_id = queue.enqueue("outer", {})
    queue.process_jobs({"outer": outer}, skip_unknown=True)
    found = queue.get_job(job_id)
    assert found is not None
    assert found["result"] == NONE | {"completed": 1}


# --- wait


@pytest.mark.parametrize("status", [COMPLETED, FAILED, CANCELLED])
def test_wait_returns_a_finished_job(queue: Queue, path: Path, status: str) -> None:
    add_lines(path, line("a", status=status))
    assert queue.wait("a", 0) == queue.get_job("a")


@pytest.mark.parametrize("status", [PENDING, PROCESSING])
def test_wait_returns_none_after_the_timeout(queue: Queue, path: Path, status: str) -> None:
    add_lines(path, line("a", status=status))
    assert queue.wait("a", 0) is None
    assert queue.wait("a", 0.02) is None
    assert queue.wait("a", -1) is None


@pytest.mark.parametrize("job_id", ["unknown", "no id at all", ""])
def test_wait_raises_at_once_if_there_is_no_such_job(queue: Queue, job_id: str) -> None:
    with pytest.raises(JobNotFound, match=f"unknown job_id {job_id!r}: .* has no such job"):
        queue.wait(job_id, 1000)
    with pytest.raises(LookupError):
        asyncio.run(queue.await_job(job_id, 1000))


@pytest.mark.parametrize("timeout", [0.02, timedelta(seconds=0.02), timedelta(seconds=-1)])
def test_a_timeout_is_seconds_or_a_timedelta(queue: Queue, timeout: Any) -> None:
    job_id = queue.enqueue("greet", {})
    assert queue.wait(job_id, timeout) is None
    assert asyncio.run(queue.await_job(job_id, timeout)) is None
    queue.cancel_job(job_id)
    assert queue.wait(job_id, timeout) == asyncio.run(queue.await_job(job_id, timeout))
    assert queue.wait(job_id, timeout=timeout) == queue.get_job(job_id)


@pytest.mark.parametrize("timeout", [float("nan"), "1", True, None])
def test_an_invalid_timeout_is_an_error(queue: Queue, timeout: Any) -> None:
    job_id = queue.enqueue("greet", {})
    with pytest.raises(InvalidArgument, match=r"invalid timeout .*: must be seconds"):
        queue.wait(job_id, timeout)
    with pytest.raises(InvalidArgument, match="invalid timeout"):
        asyncio.run(queue.await_job(job_id, timeout))


def test_wait_sees_a_job_that_another_process_finishes(programs: Programs, tmp_path: Path) -> None:
    with Queue(tmp_path / "data/queue.tsv") as queue:
        job_id = queue.enqueue("greet", "ada")
        programs.start("queue.process_jobs({'greet': str.upper})")
        found = queue.wait(job_id, 30)
    assert found is not None and found["result"] == "ADA"


# --- requeue, clear, remove, purge

AGES = {"old": NOW - 10 * DAY, "new": NOW - 10}


@pytest.fixture
def full(queue: Queue, path: Path) -> Queue:
    """A queue with an old and a new job of each status, for two types. `processing` jobs run."""
    add_lines(
        path,
        *(
            line(f"{status}-{age}-{job_type}", type=job_type, status=status, run_at=run_at)
            for job_type in ("a", "b")
            for status in STATUSES
            for age, run_at in AGES.items()
        ),
    )
    return queue


def ids(queue: Queue) -> set[str]:
    return {found["id"] for found in queue.jobs()}


@pytest.mark.parametrize("status", STATUSES)
def test_only_failed_and_cancelled_jobs_can_be_requeued_and_a_cancelled_one_keeps_its_run_at(
    queue: Queue, path: Path, status: str
) -> None:
    add_lines(path, line("x", status=status, attempts=3, error="no", run_at=7))
    before = row(path, "x")
    legal = status in (FAILED, CANCELLED)
    assert queue.requeue("x") is legal
    due = str(NOW) if status == FAILED else "7"
    again = before | {"status": PENDING, "attempts": "0", "error": "", "run_at": due}
    assert row(path, "x") == (again if legal else before)
    assert queue.requeue("x") is False


@pytest.mark.parametrize("status", [FAILED, CANCELLED])
def test_requeue_can_set_a_new_run_at(queue: Queue, path: Path, status: str) -> None:
    for job_id in ("a", "b", "c"):
        add_lines(path, line(job_id, status=status, attempts=3, error="no", run_at=7))
    assert queue.requeue("a", NOW + 60)
    assert queue.requeue("b", run_at=datetime.fromtimestamp(NOW + 59.5, UTC))
    assert queue.requeue("c", run_at=0)
    found = [row(path, job_id) for job_id in ("a", "b", "c")]
    assert [columns["run_at"] for columns in found] == [str(NOW + 60), str(NOW + 60), str(NOW)]
    assert {(columns["status"], columns["attempts"]) for columns in found} == {(PENDING, "0")}


def test_a_cancelled_reminder_that_is_requeued_is_not_sent_before_its_time(
    queue: Queue, clock: Clock
) -> None:
    queue.enqueue("remind", {}, NOW + DAY, job_id="tomorrow")
    assert queue.cancel_job("tomorrow") and queue.requeue("tomorrow")
    assert queue.process_jobs({"remind": len}) == NONE
    clock.now += DAY
    assert queue.process_jobs({"remind": len}) == NONE | {"completed": 1}


# --- run_now


def test_run_now_changes_run_at_in_the_file(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {}, NOW + DAY)
    before = row(path, job_id)
    assert queue.run_now(job_id) is True
    assert row(path, job_id) == before | {"run_at": str(NOW)}
    assert queue.process_jobs({"greet": len}) == NONE | {"completed": 1}
    assert queue.run_now(job_id) is False


@pytest.mark.parametrize("status", STATUSES)
def test_only_a_pending_job_can_be_made_due_now(queue: Queue, path: Path, status: str) -> None:
    add_lines(path, line("x", status=status, attempts=2, error="no", run_at=NOW + 60))
    before = row(path, "x")
    assert queue.run_now("x") is (status == PENDING)
    assert row(path, "x") == (before | {"run_at": str(NOW)} if status == PENDING else before)


@pytest.mark.parametrize("job_id", ["unknown", "no id at all", "", None])
def test_run_now_is_an_error_if_there_is_no_such_job(queue: Queue, path: Path, job_id: Any) -> None:
    with pytest.raises(JobNotFound, match=f"unknown job_id {job_id!r}: {path} has no such job"):
        queue.run_now(job_id)
    assert not path.exists()


def test_a_lingering_pass_runs_a_job_that_is_made_due_now(
    queue: Queue, path: Path, night: Night
) -> None:
    job_id = queue.enqueue("greet", {}, NOW + DAY)
    with Queue(path, clock=night.clock) as other:
        night.at[20] = lambda: other.run_now(job_id)
        assert queue.process_jobs({"greet": len}, linger=5) == NONE | {"completed": 1}


@pytest.mark.parametrize("job_id", ["unknown", "no id at all", "", None])
def test_requeue_of_an_unknown_job_returns_false(queue: Queue, job_id: Any) -> None:
    assert queue.requeue(job_id) is False


def test_requeue_failed_requeues_all_failed_jobs_or_those_of_one_type(
    full: Queue, path: Path
) -> None:
    assert full.requeue_failed("b") == 2
    assert full.requeue_failed("unknown") == 0
    assert full.counts()[FAILED] == 2
    assert full.requeue_failed() == 2
    assert full.requeue_failed() == 0
    assert full.counts() == dict.fromkeys(STATUSES, 4) | {FAILED: 0, PENDING: 8}
    assert row(path, "failed-old-a")["run_at"] == str(NOW)


def test_clear_failed_removes_all_failed_jobs_or_those_of_one_type(full: Queue) -> None:
    before = ids(full)
    assert full.clear_failed("b") == 2
    assert before - ids(full) == {"failed-old-b", "failed-new-b"}
    assert full.clear_failed() == 2
    assert full.clear_failed() == 0
    assert full.counts() == dict.fromkeys(STATUSES, 4) | {FAILED: 0}


def test_remove_type_removes_all_jobs_of_a_type_except_running_ones(full: Queue) -> None:
    assert full.remove_type("b") == 8
    assert {i for i in ids(full) if i.endswith("b")} == {"processing-old-b", "processing-new-b"}
    assert len(ids(full)) == 12
    assert full.remove_type("b") == full.remove_type("unknown") == 0


@pytest.mark.parametrize("status", [None, COMPLETED, FAILED, CANCELLED])
def test_purge_removes_old_finished_jobs(full: Queue, status: Any) -> None:
    before = ids(full)
    statuses = [status] if status else [COMPLETED, FAILED, CANCELLED]
    gone = {f"{s}-old-{t}" for s in statuses for t in "ab"}
    assert full.purge(DAY, status) == len(gone)
    assert before - ids(full) == gone
    assert full.purge(DAY, status) == 0
    assert full.purge(0, status) == len(gone)
    assert full.counts()[PROCESSING] == full.counts()[PENDING] == 4


def test_an_early_run_at_does_not_make_a_job_old_enough_for_a_purge(
    queue: Queue, clock: Clock
) -> None:
    """`run_at=1` makes a job run first. It says nothing about the age of the job."""
    queue.enqueue("greet", {}, 1)
    queue.process_jobs({"greet": str})
    assert queue.purge(60) == 0
    clock.now += 61
    assert queue.purge(60) == 1


def test_the_age_for_a_purge_can_be_a_timedelta(full: Queue) -> None:
    assert full.purge(timedelta(days=10, seconds=1)) == 0
    assert full.purge(timedelta(days=1), FAILED) == 2
    assert full.purge(timedelta(0)) == 10


@pytest.mark.parametrize("older_than", [-1, float("nan"), "1", None, True, timedelta(days=-1)])
def test_an_invalid_age_for_a_purge_is_an_error(full: Queue, older_than: Any) -> None:
    with pytest.raises(InvalidArgument, match="invalid older_than"):
        full.purge(older_than)
    assert len(ids(full)) == 20


@pytest.mark.parametrize("status", [PENDING, PROCESSING, "done", ""])
def test_only_finished_jobs_can_be_purged(full: Queue, status: Any) -> None:
    with pytest.raises(InvalidArgument, match="invalid status"):
        full.purge(0, status)
    assert len(ids(full)) == 20


def test_purge_keeps_unreadable_lines_and_the_permissions_of_the_file(
    full: Queue, path: Path
) -> None:
    add_lines(path, "# a note\n", line("failed-old-a", type="twice"))
    path.chmod(0o640)
    full.purge(0)
    text = path.read_text("utf-8")
    assert "# a note\n" in text and "\ttwice\t" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_maintenance_of_an_empty_queue_changes_nothing(queue: Queue, path: Path) -> None:
    assert queue.purge(0) == queue.clear_failed() == queue.remove_type("a") == 0
    assert queue.requeue_failed() == 0
    assert not path.exists()


# --- reused ids, late outcomes


@pytest.mark.parametrize("folded", [True, False])
def test_a_purged_id_can_be_enqueued_again_and_runs(
    queue: Queue, path: Path, clock: Clock, folded: bool
) -> None:
    """With and without records of the old job in the journal."""
    with Queue(path, clock=clock) as reader:
        queue.enqueue("greet", 1, job_id="x")
        queue.process_jobs({"greet": lambda _: "first"})
        if not folded:
            path.with_name("other").write_bytes(path.read_bytes())
            queue.enqueue("greet", 1, job_id="y")
            with held(store_of(queue).lock):  # as a cancel does that doesn't fold
                store_of(queue).files.read_new()
                state = b"cancelled\t%d\t%d\t0\tno\t" % (NOW, NOW)
                store_of(queue).files.change([(b"y", state)])
            assert sibling(path, "journal").stat().st_size > 0
        assert job(reader, "x")["result"] == "first"
        clock.now += 5
        assert queue.purge(1) == (1 if folded else 2)
        assert sibling(path, "journal").stat().st_size == 0
        for job_id in ("x", "y"):
            assert reader.get_job(job_id) is None
            assert reader.enqueue("greet", 2, job_id=job_id) == job_id
        assert queue.process_jobs({"greet": lambda _: "again"}) == NONE | {"completed": 2}
        for job_id in ("x", "y"):
            assert job(reader, job_id)["result"] == "again"
            assert job(reader, job_id)["attempts"] == 1


def test_an_outcome_of_an_attempt_before_a_requeue_is_not_recorded(
    queue: Queue, path: Path, clock: Clock
) -> None:
    job_id = queue.enqueue("greet", {})

    def work(_: Any) -> str:
        sibling(path, "pass.1").unlink()  # without its slot, the pass is assumed to be dead
        clock.now += 5
        with Queue(path, clock=clock) as other:
            assert other.process_jobs({"greet": len}, 1) == NONE | {"recovered": 1, "failed": 1}
            assert other.requeue(job_id)
        return "late"

    assert queue.process_jobs({"greet": work}, 1) == NONE
    found = job(queue, job_id)
    assert (found["status"], found["attempts"], found["result"]) == (PENDING, 0, None)
    assert queue.process_jobs({"greet": lambda _: "current"}, 1) == NONE | {"completed": 1}
    assert job(queue, job_id)["result"] == "current"


def test_a_requeued_job_that_another_pass_loses_is_recovered_while_its_first_pass_lingers(
    queue: Queue, path: Path, night: Night
) -> None:
    errors = [Fail("no")]

    def work(_: Any) -> None:
        if errors:
            raise errors.pop()

    job_id = queue.enqueue("greet", {})

    def lose() -> None:
        with Queue(path, clock=night.clock) as other:
            assert other.requeue(job_id)
            dead = Claims(store_of(other).files, TERMS, night.clock())
            assert len(dead.claim(1, dead.looked_at)) == 1
            dead.abandon()
        with Queue(path, clock=night.clock) as third:
            assert third.process_jobs({"greet": work}) == NONE | {"recovered": 1}
            night.clock.now += 120
            assert third.process_jobs({"greet": work}) == NONE | {"completed": 1}

    night.at[3] = lose
    assert queue.process_jobs({"greet": work}, linger=1) == NONE | {"failed": 1}
    assert job(queue, job_id)["attempts"] == 2


def test_a_purge_during_a_pass_removes_none_of_its_jobs(queue: Queue, path: Path) -> None:
    ran: list[int] = []

    def work(number: int) -> None:
        ran.append(number)
        with Queue(path, clock=queue.now) as other:
            if number == 1:
                other.remove_type("last")
            other.purge(0)

    queue.enqueue_many("work", range(40))
    queue.enqueue("last", {})
    assert queue.process_jobs({"work": work}) == NONE | {"completed": 40}
    assert ran == list(range(40))
    assert {found["status"] for found in queue.jobs()} == {COMPLETED}


def test_a_handler_can_purge_its_own_queue(queue: Queue, clock: Clock) -> None:
    queue.enqueue_many("old", range(3))
    clock.now += DAY
    queue.enqueue_many("purge", range(3))
    handlers: dict[str, Any] = {"old": str, "purge": lambda _: queue.purge(3600)}
    assert queue.process_jobs(handlers) == NONE | {"completed": 6}
    assert [found["result"] for found in queue.jobs()] == [3, 0, 0]
