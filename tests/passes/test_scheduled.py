"""Passes add the jobs of schedules: each instant exactly once, whatever happens in between."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    DAY,
    NONE,
    NOW,
    Clock,
    Programs,
    exit_code,
    notes,
    python,
    raising,
    sibling,
    wait_for,
)

from dbbasic_queue import (
    Delay,
    Handlers,
    InvalidHandlers,
    NotAQueue,
    Queue,
    QueueDamaged,
    StoreError,
    Worker,
)
from dbbasic_queue.store import schedule_file
from dbbasic_queue.store.claiming.claims import Claims
from dbbasic_queue.store.writing.choice import Choice
from dbbasic_queue.store.writing.queue_files import QueueFiles

HOUR = 3600
assert NOW % HOUR == 0


@pytest.fixture(params=["file", "memory"])
def any_queue(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Iterator[Queue]:
    with Queue(path if request.param == "file" else "memory:", clock=clock) as queue:
        yield queue


def registry(*every: Any, name: str = "program", **options: Any) -> Handlers:
    """Return a registry with a handler `work`, and a schedule of it for each of `every`."""
    jobs = Handlers(name=name)
    jobs.handler("work")(lambda payload: payload)
    for number, rule in enumerate(every):
        jobs.every(rule, "work", name=f"s{number}", **options)
    return jobs


def instants(queue: Queue, name: str = "s0") -> list[int]:
    """Return the `run_at` of a schedule's jobs, and check that their ids say the same."""
    found = [job for job in queue.jobs() if job["id"].startswith(name + ".")]
    assert [job["id"] for job in found] == [
        schedule_file.job_id(name, job["run_at"]) for job in found
    ]
    return [job["run_at"] for job in found]


def next_of(queue: Queue, name: str = "s0") -> int:
    (row,) = [row for row in queue.schedules() if row["name"] == name]
    return row["next"]


class Overriding(Handlers):
    """The same program with other handlers."""

    def __init__(self, jobs: Handlers, handlers: dict[str, Callable[..., Any]]) -> None:
        super().__init__(name=jobs.name)
        for job_type, function in handlers.items():
            self.handler(job_type)(function)
        self.schedules = jobs.schedules


# -- which instants are added ----------------------------------------------------------------------


def test_a_new_schedule_starts_with_its_next_instant(any_queue: Queue, clock: Clock) -> None:
    jobs = registry("0 * * * *", timezone="UTC", payload={"a": [1]})
    clock.now = NOW + 0.5
    assert any_queue.process_jobs(jobs) == NONE
    assert instants(any_queue) == []
    clock.now = NOW + HOUR - 1
    assert any_queue.process_jobs(jobs) == NONE
    clock.now = NOW + HOUR + 5.5
    assert any_queue.process_jobs(jobs) == {**NONE, "completed": 1}
    (job,) = any_queue.jobs()
    assert job["id"] == "s0.20270115T090000Z"
    assert (job["type"], job["payload"], job["result"]) == ("work", {"a": [1]}, {"a": [1]})
    assert (job["run_at"], job["created_at"]) == (NOW + HOUR, NOW + HOUR + 5)
    assert any_queue.process_jobs(jobs) == NONE


def test_the_schedules_are_listed(any_queue: Queue, clock: Clock) -> None:
    jobs = registry("30  9 * * *", timedelta(hours=2))
    assert any_queue.schedules() == []
    any_queue.process_jobs(jobs)
    first, second = any_queue.schedules()
    assert first["next"] > NOW
    assert {**first, "next": 0} == {
        "name": "s0",
        "program": "program",
        "type": "work",
        "expression": "30 9 * * *",
        "timezone": "local",
        "last": None,
        "next": 0,
    }
    assert (second["expression"], second["timezone"], second["next"]) == ("7200s", "", NOW + 7200)
    clock.now = NOW + 2 * HOUR
    any_queue.process_jobs(jobs)
    assert any_queue.schedules()[1]["last"] == NOW + 2 * HOUR


def test_after_an_outage_only_the_latest_missed_instant_is_added(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = registry(HOUR)
    any_queue.process_jobs(jobs)
    clock.now = NOW + 5 * HOUR + 100
    any_queue.process_jobs(jobs)
    assert instants(any_queue) == [NOW + 5 * HOUR]


def test_with_missed_all_every_missed_instant_is_added(any_queue: Queue, clock: Clock) -> None:
    jobs = registry(HOUR, missed="all")
    any_queue.process_jobs(jobs)
    clock.now = NOW + 5 * HOUR + 100
    assert any_queue.process_jobs(jobs)["completed"] == 5
    assert instants(any_queue) == [NOW + n * HOUR for n in (1, 2, 3, 4, 5)]


def test_with_missed_skip_an_instant_is_added_only_within_five_minutes(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = registry(HOUR, missed="skip")
    any_queue.process_jobs(jobs)
    clock.now = NOW + 5 * HOUR + 301
    any_queue.process_jobs(jobs)
    assert instants(any_queue) == []
    assert next_of(any_queue) == NOW + 6 * HOUR
    clock.now = NOW + 7 * HOUR + 300
    any_queue.process_jobs(jobs)
    assert instants(any_queue) == [NOW + 7 * HOUR]


def test_a_changed_schedule_starts_with_its_next_instant(any_queue: Queue, clock: Clock) -> None:
    any_queue.process_jobs(registry(HOUR, missed="all"))
    clock.now = NOW + 5 * HOUR + 1
    for every, zone in ((HOUR // 2, None), ("*/10 * * * *", "UTC"), ("*/10 * * * *", "local")):
        any_queue.process_jobs(registry(every, missed="all", timezone=zone))
        assert instants(any_queue) == []
    assert next_of(any_queue) == NOW + 5 * HOUR + 600


def test_a_schedule_with_another_job_type_or_payload_goes_on(
    any_queue: Queue, clock: Clock
) -> None:
    any_queue.process_jobs(registry(HOUR))
    clock.now = NOW + HOUR - 10
    jobs = Handlers(name="program")
    jobs.every(HOUR, "other", name="s0", payload=[7])
    jobs.handler("other")(lambda payload: payload)
    any_queue.process_jobs(jobs)
    assert any_queue.schedules()[0]["type"] == "other"
    clock.now = NOW + HOUR
    assert any_queue.process_jobs(jobs)["completed"] == 1
    (job,) = any_queue.jobs()
    assert (job["type"], job["payload"]) == ("other", [7])


def test_a_clock_that_is_set_back_adds_nothing_twice_even_after_a_purge(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = registry(HOUR, missed="all")
    any_queue.process_jobs(jobs)
    clock.now = NOW + 3 * HOUR
    assert any_queue.process_jobs(jobs)["completed"] == 3
    clock.now += 1
    assert any_queue.purge(0) == 3
    clock.now = NOW + HOUR + 1
    assert any_queue.process_jobs(jobs) == NONE
    any_queue.process_jobs(registry(HOUR // 2, missed="all"))  # changed while the clock is back
    clock.now = NOW + 4 * HOUR
    any_queue.process_jobs(registry(HOUR // 2, missed="all"))
    assert instants(any_queue) == [NOW + 3 * HOUR + HOUR // 2, NOW + 4 * HOUR]


def test_a_clock_that_was_far_ahead_silences_a_schedule_until_it_is_removed(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = registry(HOUR)
    clock.now = NOW + 400 * DAY
    any_queue.process_jobs(jobs)
    clock.now = NOW + 5
    any_queue.process_jobs(jobs)
    assert next_of(any_queue) > NOW + 400 * DAY
    assert any_queue.remove_schedule("s0")
    assert not any_queue.remove_schedule("s0")
    any_queue.process_jobs(jobs)
    clock.now = NOW + HOUR
    any_queue.process_jobs(jobs)
    assert instants(any_queue) == [NOW + HOUR]


def test_without_overlap_nothing_is_added_while_the_previous_job_is_pending(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = registry(HOUR, overlap=False)
    held: dict[str, Callable[..., Any]] = {"work": raising(Delay(10 * HOUR))}
    any_queue.process_jobs(jobs)
    for hours in (1, 2, 3):
        clock.now = NOW + hours * HOUR
        any_queue.process_jobs(Overriding(jobs, held))
        any_queue.process_jobs(jobs)
    (job,) = any_queue.jobs()
    assert (job["id"], job["status"]) == (schedule_file.job_id("s0", NOW + HOUR), "pending")
    assert next_of(any_queue) == NOW + 4 * HOUR
    assert any_queue.cancel_job(job["id"])
    clock.now = NOW + 4 * HOUR
    assert any_queue.process_jobs(jobs)["completed"] == 1
    assert [job["run_at"] for job in any_queue.jobs("completed")] == [NOW + 4 * HOUR]


def test_without_overlap_nothing_is_added_while_the_previous_job_is_running(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = Handlers(name="program")
    seen: list[list[int]] = []

    @jobs.handler("work", every=HOUR, schedule_name="s0", overlap=False)
    def work(payload: Any) -> None:
        clock.now += HOUR
        any_queue.process_jobs(jobs)  # another pass, while this job runs
        seen.append(instants(any_queue))

    any_queue.process_jobs(jobs)
    clock.now = NOW + HOUR
    any_queue.process_jobs(jobs)
    assert seen == [[NOW + HOUR]]
    assert next_of(any_queue) == NOW + 3 * HOUR


def test_with_overlap_an_instant_is_added_while_the_previous_job_is_pending(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = registry(HOUR)
    any_queue.pause("work")
    any_queue.process_jobs(jobs)
    for hours in (1, 2):
        clock.now = NOW + hours * HOUR
        any_queue.process_jobs(jobs)
    assert instants(any_queue) == [NOW + HOUR, NOW + 2 * HOUR]
    assert any_queue.counts()["pending"] == 2


# -- several programs ------------------------------------------------------------------------------


def test_a_schedule_that_its_program_no_longer_declares_is_removed_and_logged(
    any_queue: Queue, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    other = Handlers(name="other")
    other.every(HOUR, "work", name="theirs")
    any_queue.process_jobs(other)
    any_queue.process_jobs(registry(HOUR, 2 * HOUR, name="first"))
    python_knows = registry(HOUR, name="first")
    with caplog.at_level(logging.INFO, "dbbasic_queue"):
        python_knows.retired = lambda names: [n for n in names if n == "s1"]  # type: ignore[method-assign]
        any_queue.process_jobs(python_knows)
    assert [row["name"] for row in any_queue.schedules()] == ["theirs", "s0"]
    assert "removed the schedules that first no longer declares: s1" in caplog.text


PROGRAM = """
jobs = Handlers(name="program")
jobs.handler("work")(lambda payload: None)
for name in sys.argv[1:]:
    jobs.every(3600, "work", name=name)
queue.process_jobs(jobs)
print(*[row["name"] for row in queue.schedules()])
"""


def test_the_next_version_of_a_program_removes_what_it_no_longer_declares(path: Path) -> None:
    prelude = f"import sys\nfrom dbbasic_queue import Handlers, Queue\nqueue = Queue({str(path)!r})"

    def names(*declared: str) -> list[str]:
        done = python(prelude + PROGRAM, *declared)
        assert done.stderr == ""
        return done.stdout.split()

    assert names("a", "b") == ["a", "b"]
    assert names("b", "c") == ["b", "c"]
    assert names() == []


def test_registries_of_one_program_leave_each_others_schedules_alone(any_queue: Queue) -> None:
    first, second = Handlers(name="two registries"), Handlers(name="two registries")
    first.every(60, "work", name="mine")
    second.every(60, "work", name="yours")
    for jobs in (first, second, first):
        any_queue.process_jobs(jobs)
    assert [row["name"] for row in any_queue.schedules()] == ["mine", "yours"]


def test_a_registry_that_was_pickled_keeps_its_schedules_in_another_process(path: Path) -> None:
    jobs = Handlers(name="pickled")
    jobs.every(HOUR, "work", name="hourly", missed="all")
    prelude = f"""
import pickle
from dbbasic_queue import Queue
queue = Queue({str(path)!r}, clock=lambda: {NOW} + hours * {HOUR})
jobs = pickle.loads({pickle.dumps(jobs)!r})
for hours in (0, 1, 2):
    queue.process_jobs(jobs, skip_unknown=True)
"""
    assert python(prelude).stderr == ""
    with Queue(path) as queue:
        assert instants(queue, "hourly") == [NOW + HOUR, NOW + 2 * HOUR]


def test_a_name_that_belongs_to_another_program_is_an_error_that_names_it(
    any_queue: Queue, clock: Clock
) -> None:
    any_queue.process_jobs(registry(HOUR, name="/srv/one.py"))
    any_queue.enqueue("work", {})
    with pytest.raises(InvalidHandlers, match=r"belongs to the program /srv/one\.py: give one"):
        any_queue.process_jobs(registry(HOUR, name="/srv/two.py"))
    assert any_queue.counts()["pending"] == 1
    assert [row["program"] for row in any_queue.schedules()] == ["/srv/one.py"]


def test_a_program_with_a_strange_name_is_recognized(queue: Queue, clock: Clock) -> None:
    jobs = registry(HOUR, name="a\tb\nc\\d \udcff é")
    for hours in (0, 1, 2):
        clock.now = NOW + hours * HOUR
        queue.process_jobs(jobs)
    assert len(instants(queue)) == 2
    assert queue.schedules()[0]["program"] == jobs.name


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_a_pass_adds_at_its_start_runs_in_that_pass(
    queue: Queue, path: Path, workers: int
) -> None:
    jobs = registry(HOUR)
    queue.process_jobs(jobs)
    seconds = itertools.count(-1)  # it comes due between two looks at the clock
    with Queue(path, clock=lambda: NOW + HOUR + next(seconds)) as late:
        done = late.process_jobs(jobs, workers=workers)
        assert done["completed"] == len(instants(late))


# -- free for those who don't use it ---------------------------------------------------------------


def test_passes_with_a_dict_ignore_schedules(queue: Queue, path: Path, clock: Clock) -> None:
    jobs = registry(HOUR)
    queue.process_jobs(jobs)
    clock.now = NOW + HOUR
    queue.process_jobs(dict(jobs))
    assert instants(queue) == []
    before = sibling(path, "schedule").read_bytes()
    queue.process_jobs({})
    assert sibling(path, "schedule").read_bytes() == before


def test_a_registry_without_schedules_creates_no_file(queue: Queue, path: Path) -> None:
    queue.process_jobs(registry())
    assert not path.parent.exists()
    queue.enqueue("work", {})
    queue.process_jobs(registry())
    assert not sibling(path, "schedule").exists()


def traced(queue: Queue, jobs: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls of an idle pass on the file of schedules."""
    calls: list[str] = []
    for name in ("lstat", "open", "pread", "stat", "write", "rename"):
        real = getattr(os, name)

        def call(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            if str(args[0]).endswith(".schedule"):
                calls.append(_name)
            return _real(*args, **options)

        monkeypatch.setattr(os, name, call)
    queue.process_jobs(jobs)
    monkeypatch.undo()
    return calls


def test_an_idle_pass_looks_at_the_file_once(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.enqueue("work", {}, run_at=NOW + DAY)
    jobs = registry(HOUR)
    assert traced(queue, dict(jobs), monkeypatch) == []
    assert traced(queue, registry(), monkeypatch) == ["lstat"]
    queue.process_jobs(jobs)
    assert traced(queue, dict(jobs), monkeypatch) == []
    assert traced(queue, jobs, monkeypatch) == ["open"]


IDLE = """
import sys
before = set(sys.modules)
from dbbasic_queue import Handlers, Queue
jobs = Handlers(name="program")
jobs.every("0 3 * * *", "work", timezone="Europe/Berlin", payload=None)
jobs.every("*/5 * * * *", "poll")
queue = Queue({path!r}, clock=lambda: {now})
queue.process_jobs(jobs)
print(*sorted({{"cronsim", "zoneinfo", "datetime", "json", "re"}} & (set(sys.modules) - before)))
"""


def test_a_pass_whose_next_instants_lie_in_the_future_imports_no_cronsim(path: Path) -> None:
    first = python(IDLE.format(path=str(path), now=NOW), flags=("-S",), env=_packages())
    assert (first.stderr, "cronsim" in first.stdout) == ("", True)
    idle = python(IDLE.format(path=str(path), now=NOW + 60), flags=("-S",), env=_packages())
    assert (idle.stderr, idle.stdout) == ("", "\n")


def test_a_pass_with_a_registry_without_schedules_imports_nothing_for_them(path: Path) -> None:
    done = python(
        "import sys\n"
        "from dbbasic_queue import Handlers, Queue\n"
        "jobs = Handlers(name='program')\n"
        "jobs.handler('work')(print)\n"
        f"queue = Queue({str(path)!r})\n"
        "queue.enqueue('later', {}, run_at=4e9)\n"
        "queue.process_jobs(jobs)\n"
        "print(*(name for name in sys.modules if 'schedule' in name), 'datetime' in sys.modules)",
        flags=("-S",),
        env=_packages(),
    )
    assert (done.stderr, done.stdout) == ("", "False\n")


def _packages() -> dict[str, str]:
    """Return an environment in which `python -S` finds cronsim."""
    import cronsim

    import dbbasic_queue

    folders = [Path(str(module.__file__)).parent.parent for module in (dbbasic_queue, cronsim)]
    return {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def test_without_cronsim_an_expression_is_an_error_that_names_the_extra(
    any_queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cronsim", None)
    any_queue.enqueue("work", {})
    with pytest.raises(InvalidHandlers, match=r'pip install "dbbasic-queue\[schedule\]"'):
        any_queue.process_jobs(registry("0 3 * * *"))
    assert (any_queue.counts()["pending"], any_queue.schedules()) == (1, [])
    jobs = registry(HOUR)
    any_queue.process_jobs(jobs)
    clock.now = NOW + HOUR
    assert any_queue.process_jobs(jobs)["completed"] == 1


# -- passes that go on -----------------------------------------------------------------------------


class Ticking(Clock):
    """A clock that each call moves."""

    seconds = 0.5

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("how", ["plain", "coroutines"])
def test_a_lingering_pass_adds_instants_as_they_come_due(path: Path, kind: str, how: str) -> None:
    clock = Ticking()
    queue = Queue(path if kind == "file" else "memory:", clock=clock)
    jobs = Handlers(name="program")

    async def work(payload: Any) -> None:
        await asyncio.sleep(0)

    jobs.handler("work")(work)
    jobs.every(2, "work", name="s0", missed="all")
    queue.process_jobs(jobs, linger=0.6, workers=3 if how == "coroutines" else 1)
    found = instants(queue)
    assert len(found) >= 3
    assert found == list(range(found[0], found[0] + 2 * len(found), 2))
    assert NOW < found[0] <= NOW + 4


def test_a_lingering_pass_waits_for_the_first_instant_of_a_new_queue(path: Path) -> None:
    queue = Queue(path, clock=Ticking())
    assert queue.process_jobs(registry(3), linger=0.5)["completed"] >= 1


def test_a_pass_with_a_long_backlog_adds_instants_in_between(queue: Queue, clock: Clock) -> None:
    jobs = Handlers(name="program")
    seen: list[int] = []

    @jobs.handler("slow")
    def slow(payload: Any) -> None:
        clock.now += 600
        seen.append(len(instants(queue)))

    jobs.every(HOUR, "slow", name="s0", missed="all")
    queue.process_jobs(jobs)
    queue.enqueue_many("slow", range(300))
    assert queue.process_jobs(jobs)["completed"] == 300
    assert seen[-1] >= 1


def test_a_schedule_that_is_declared_or_removed_while_a_worker_runs_is_noticed(
    path: Path,
) -> None:
    clock = Ticking()
    clock.seconds = 0.2
    queue = Queue(path, clock=clock)
    jobs = registry(1)
    with Worker(queue, jobs):
        wait_for(lambda: len(instants(queue)) > 1, "the first schedule")
        jobs.every(1, "work", name="later")
        wait_for(lambda: len(instants(queue, "later")) > 1, "the second schedule")
        assert queue.remove_schedule("s0")
        before = len(instants(queue))
        wait_for(lambda: len(instants(queue)) > before + 1, "the first schedule again")


def test_a_running_worker_of_an_older_version_leaves_newer_schedules_alone(path: Path) -> None:
    clock = Ticking()
    clock.seconds = 0.2
    queue = Queue(path, clock=clock)
    with Worker(queue, registry(1, name="versions")):
        wait_for(lambda: instants(queue), "the first instant")
        newer = registry(name="versions")
        newer.every(1000, "work", name="s0")
        newer.every(1000, "work", name="new")
        other = Queue(path, clock=clock)
        other.process_jobs(newer)
        seen = len(instants(queue))
        before = clock.now
        wait_for(lambda: clock.now > before + 5, "five seconds of the worker's clock")
        assert [row["expression"] for row in queue.schedules()] == ["1000s", "1000s"]
        assert len(instants(queue)) <= seen + 1


def test_run_until_complete_ends_although_there_are_schedules(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = registry(HOUR)
    any_queue.process_jobs(jobs)
    clock.now = NOW + HOUR
    assert any_queue.run_until_complete(jobs)["completed"] == 1


@pytest.mark.parametrize("linger", [0, 0.3])
def test_several_workers_add_each_instant_once(queue: Queue, clock: Clock, linger: float) -> None:
    jobs = registry(HOUR, HOUR, missed="all")

    @jobs.handler("fetch", every=HOUR)
    async def fetch(payload: Any) -> None: ...

    queue.process_jobs(jobs)
    clock.now = NOW + 3 * HOUR
    assert queue.process_jobs(jobs, workers=4, linger=linger)["completed"] == 7
    assert instants(queue, "s0") == instants(queue, "s1") == [NOW + n * HOUR for n in (1, 2, 3)]


# -- kills, purges and other processes -------------------------------------------------------------


def killed_at(path: Path, when: str, jobs: Handlers, now: float) -> None:
    """Make a pass in a forked process that is killed at a call on the schedules' file."""
    pid = os.fork()
    if pid == 0:
        real: Callable[..., Any] = os.rename

        def rename(old: str, new: str) -> None:
            if new.endswith(".schedule"):
                if when == "after":
                    real(old, new)
                os.kill(os.getpid(), signal.SIGKILL)
            real(old, new)

        os.rename = rename  # type: ignore[assignment]
        Queue(path, clock=lambda: now).process_jobs(jobs)
        os._exit(1)
    assert exit_code(pid) == -signal.SIGKILL


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_between_the_rows_and_the_file_adds_nothing_twice(
    path: Path, when: str, clock: Clock
) -> None:
    jobs = registry(HOUR, missed="all")
    Queue(path, clock=clock).process_jobs(jobs)
    killed_at(path, when, jobs, NOW + 2 * HOUR)
    queue = Queue(path, clock=clock)
    assert instants(queue) == [NOW + HOUR, NOW + 2 * HOUR]
    clock.now = NOW + 3 * HOUR
    assert queue.process_jobs(jobs)["completed"] == 3
    assert instants(queue) == [NOW + HOUR, NOW + 2 * HOUR, NOW + 3 * HOUR]
    assert queue.schedules()[0]["last"] == NOW + 3 * HOUR


@pytest.mark.parametrize("how", ["purge", "archive", "clear_failed", "remove_type"])
def test_a_job_whose_instant_is_not_recorded_stays_until_it_is(
    path: Path, how: str, clock: Clock, tmp_path: Path
) -> None:
    jobs = registry(HOUR, missed="all")
    queue = Queue(path, clock=clock)
    queue.process_jobs(jobs)
    clock.now = NOW + HOUR
    queue.process_jobs(jobs)
    killed_at(path, "before", jobs, NOW + 3 * HOUR)
    clock.now = NOW + 3 * HOUR
    handlers = {"work": lambda payload: 1 / 0} if how == "clear_failed" else dict(jobs)
    queue.process_jobs(handlers, max_attempts=1)
    clock.now += DAY
    calls: dict[str, Callable[[], int]] = {
        "purge": lambda: queue.purge(0),
        "archive": lambda: queue.purge(0, archive=tmp_path / "archive.tsv"),
        "clear_failed": queue.clear_failed,
        "remove_type": lambda: queue.remove_type("work"),
    }
    removed = calls[how]()
    assert removed == (0 if how == "clear_failed" else 1)
    assert instants(queue)[-2:] == [NOW + 2 * HOUR, NOW + 3 * HOUR]
    clock.now = NOW + 3 * HOUR
    assert queue.process_jobs(jobs) == NONE
    clock.now += DAY
    assert calls[how]() == 2
    clock.now = NOW + 3 * HOUR
    assert queue.process_jobs(jobs) == NONE


def test_a_purge_that_has_chosen_its_jobs_before_a_pass_died_leaves_that_pass_its_rows(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue file isn't replaced in the meantime, so the purge needn't choose again for that."""
    queue = Queue(path, clock=clock)
    weekly, hourly = registry(DAY * 7, missed="all"), registry(HOUR, missed="all")
    queue.process_jobs(weekly)
    clock.now = next_of(queue) + 1
    queue.process_jobs(weekly)
    real = Choice.read
    met: list[int] = []

    def read(self: Choice) -> None:
        real(self)
        if not met:
            Queue(path, clock=clock).process_jobs(hourly)
            killed_at(path, "before", hourly, clock.now + HOUR)
            killed_before_the_fold(path, dict(hourly), clock.now + HOUR)
            met.append(os.stat(path).st_ino)

    before = os.stat(path).st_ino
    monkeypatch.setattr(Choice, "read", read)
    clock.now += 1
    assert queue.remove_type("work") == 1
    monkeypatch.undo()
    assert met == [before]
    (unrecorded,) = queue.jobs()
    assert (unrecorded["run_at"], unrecorded["status"]) == (next_of(queue), "completed")
    clock.now += HOUR
    assert queue.process_jobs(hourly) == NONE


def killed_before_the_fold(path: Path, handlers: Any, now: float) -> None:
    """Run the due jobs in a forked process that is killed at the end of its pass."""
    pid = os.fork()
    if pid == 0:
        QueueFiles.is_fold_cheap = lambda *_: False  # type: ignore[method-assign]
        Claims.finish = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign]
        Queue(path, clock=lambda: now).process_jobs(handlers)
        os._exit(1)
    assert exit_code(pid) == -signal.SIGKILL


def test_a_users_own_id_is_not_mistaken_for_an_instant(queue: Queue, clock: Clock) -> None:
    queue.process_jobs(registry(HOUR))
    for own_id in ("s0.zzz", "s0.99999999X999999Z", "s0", "s0.20990101T00000xZ"):
        queue.enqueue("work", {}, job_id=own_id)
    queue.process_jobs(registry(HOUR))
    clock.now += 5
    assert queue.purge(0) == 4


def test_an_instant_whose_id_is_in_the_queue_is_not_added_again(
    any_queue: Queue, clock: Clock
) -> None:
    jobs = registry(HOUR)
    any_queue.process_jobs(jobs)
    any_queue.enqueue("work", "by hand", job_id=schedule_file.job_id("s0", NOW + HOUR))
    clock.now = NOW + HOUR
    assert any_queue.process_jobs(jobs)["completed"] == 1
    assert any_queue.schedules()[0]["last"] == NOW + HOUR


def test_the_record_of_a_row_that_was_removed_by_hand_does_not_apply_to_the_new_job(
    queue: Queue, path: Path, clock: Clock
) -> None:
    jobs = registry(HOUR)
    queue.process_jobs(jobs)
    own_id = queue.enqueue("work", {}, job_id=schedule_file.job_id("s0", NOW + HOUR))
    queue.enqueue("work", {}, NOW + DAY)
    from zlib import crc32

    body = f"{own_id}\tcompleted\t{NOW}\t{NOW}\t1\t\t7".encode()
    sibling(path, "journal").write_bytes(body + b"\t%08x\n" % crc32(body))
    text = path.read_text().split("\n")
    path.write_text("\n".join(line for line in text if own_id not in line))
    clock.now = NOW + HOUR
    assert Queue(path, clock=clock).process_jobs(jobs)["completed"] == 1


def test_a_pass_that_meets_another_pass_plans_again(
    queue: Queue, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = registry(HOUR, missed="all")
    queue.process_jobs(jobs)
    clock.now = NOW + 2 * HOUR
    other = Queue(path, clock=clock)
    real = queue.store.update_schedules
    met: list[bool] = []

    def update(seen: bytes, changes: Any) -> bool:
        if not met:
            other.process_jobs(jobs)
        met.append(real(seen, changes))
        return met[-1]

    monkeypatch.setattr(queue.store, "update_schedules", update)
    queue.process_jobs(jobs)
    assert met == [False]
    assert instants(queue) == [NOW + HOUR, NOW + 2 * HOUR]


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"s0\tprogram\twork\t3600s\t\t\t5\n",
        schedule_file.HEADER.encode() + b"s0\tprogram\twork\t3600s\t\t5\n",
        schedule_file.HEADER.encode() + b"s0\tprogram\twork\t3600s\t\tsoon\t5\n",
        schedule_file.HEADER.encode() + b"s0\tprogram\twork\t3600s\t\t5\t-1\n",
        schedule_file.HEADER.encode() + b"s0\tprogram\twork\t3600s\t\t5\t9999999999999\n",
        schedule_file.HEADER.encode() + b"\ns0\tprogram\twork\t3600s\t\t5\t6\n",
        schedule_file.HEADER.encode() + 2 * b"s0\tprogram\twork\t3600s\t\t5\t6\n",
        b"\0" * 100,
    ],
)
def test_a_damaged_file_is_an_error_that_says_what_to_do(
    queue: Queue, path: Path, content: bytes
) -> None:
    queue.enqueue("work", {})
    file = sibling(path, "schedule")
    file.write_bytes(content)
    calls: list[Callable[[], Any]] = [
        lambda: queue.process_jobs(registry(HOUR)),
        queue.schedules,
        lambda: queue.remove_schedule("s0"),
        lambda: queue.purge(0),
    ]
    for call in calls:
        with pytest.raises(QueueDamaged, match="nothing was done"):
            call()
    assert file.read_bytes() == content
    assert queue.counts()["pending"] == 1


def test_a_link_instead_of_the_file_is_refused(queue: Queue, path: Path, tmp_path: Path) -> None:
    queue.enqueue("work", {})
    (tmp_path / "elsewhere").write_text("x")
    sibling(path, "schedule").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotAQueue):
        queue.process_jobs(registry(HOUR))
    assert (tmp_path / "elsewhere").read_text() == "x"


def test_an_error_while_the_file_is_replaced_says_that_jobs_were_added(
    queue: Queue, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = registry(HOUR)
    queue.process_jobs(jobs)
    clock.now = NOW + HOUR
    real = os.rename

    def rename(old: str, new: str) -> None:
        if new.endswith(".schedule"):
            raise OSError(28, "No space left on device")
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StoreError, match="due jobs were added to the queue, and will not be added"):
        queue.process_jobs(jobs)
    monkeypatch.undo()
    assert not sibling(path, "schedule.new").exists()
    assert queue.process_jobs(jobs)["completed"] == 1
    assert instants(queue) == [NOW + HOUR]


def test_a_sync_error_leaves_no_row_that_is_not_on_the_disk(
    queue: Queue, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = registry(HOUR)
    queue.process_jobs(jobs)
    queue.enqueue("work", {}, NOW + DAY)
    clock.now = NOW + HOUR
    before = path.read_bytes(), sibling(path, "schedule").read_bytes()

    def fdatasync(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(StoreError, match="nothing was added"):
        queue.process_jobs(jobs)
    monkeypatch.undo()
    assert (path.read_bytes(), sibling(path, "schedule").read_bytes()) == before
    assert queue.process_jobs(jobs)["completed"] == 1


def test_a_schedule_in_a_directory_that_was_removed_is_not_created_again(
    queue: Queue, path: Path, clock: Clock
) -> None:
    jobs = registry(HOUR)
    queue.process_jobs(jobs)
    path.parent.rename(path.parent.with_name("moved"))
    with pytest.raises(StoreError, match="moved or removed"):
        queue.process_jobs(jobs)
    assert not path.parent.exists()


def test_a_program_by_cron_runs_each_instant_once(programs: Programs, tmp_path: Path) -> None:
    """Whole processes, with the machine's clock."""
    code = """
    from dbbasic_queue import Handlers
    jobs = Handlers(name="program")
    jobs.handler("work")(lambda payload, job: note("ran", job.id))
    jobs.every(1, "work", missed="all")
    queue.process_jobs(jobs, linger=1.2)
    """
    children = [programs.start(code) for _ in range(3)]
    wait_for(lambda: not any(child.is_running() for child in children), "the programs")
    ran = notes(tmp_path / "ran")
    assert len(ran) == len(set(ran)) >= 1
