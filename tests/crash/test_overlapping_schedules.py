"""Four overlapping passes, killed at random, over a month with a change of daylight saving time.

The passes are real processes with one clock, which the test moves on while they run: in Berlin,
over March 2027, when an hour is skipped, and October 2027, when an hour is repeated. They are
killed by SIGKILL and replaced all the time, and finished jobs are purged. Every instant must be
added exactly once. The expected instants are computed here by trying each minute, without cronsim.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from helpers import note, notes

from dbbasic_queue import Handlers, Queue

LONG = os.environ.get("DBBASIC_QUEUE_LONG") == "1"
SEED = int(os.environ.get("DBBASIC_QUEUE_SEED", "1"))
PASSES = 4
STEP_SECONDS = 1800 if not LONG else 300
"""how far the clock moves at once"""
REAL_SECONDS = 0.0006 if not LONG else 0.003
"""how long the test waits between two steps"""
BERLIN = ZoneInfo("Europe/Berlin")


def by_real_time(minutes: set[int], hours: set[int]) -> Callable[[datetime], bool]:
    return lambda moment: moment.minute in minutes and moment.hour in hours


EVERY = set(range(24))
BY_REAL_TIME = {
    "hourly": ("7 * * * *", by_real_time({7}, EVERY)),
    "twice": ("*/30 2 * * *", by_real_time({0, 30}, {2})),
    "often": ("0,20,40 * * * *", by_real_time({0, 20, 40}, EVERY)),
}
"""name -> expression with a wildcard minute or hour, and the local times at which it is due"""
FIXED = {
    "gap": ("30 2 * * *", [(2, 30)]),
    "gap2": ("5,55 2,3 * * *", [(2, 5), (2, 55), (3, 5), (3, 55)]),
    "morning": ("0 3 * * *", [(3, 0)]),
    "weekly": ("15 2 * * sun", [(2, 15)]),
}
"""name -> expression without wildcards, and its local times"""


def expected(start: int, end: int) -> set[str]:
    """Return the ids of the jobs of all instants after `start`, up to `end`."""
    found: set[str] = set()

    def add(name: str, instant: float) -> None:
        if start < instant <= end:
            stamp = datetime.fromtimestamp(instant, UTC).strftime("%Y%m%dT%H%M%SZ")
            found.add(f"{name}.{stamp}")

    for minute in range(start // 60 * 60, end + 1, 60):
        moment = datetime.fromtimestamp(minute, BERLIN)
        for name, (_, is_due) in BY_REAL_TIME.items():
            if is_due(moment):
                add(name, minute)
    day = datetime.fromtimestamp(start, BERLIN).date() - timedelta(days=1)
    while day <= datetime.fromtimestamp(end, BERLIN).date():
        for name, (_, at) in FIXED.items():
            for hour, minute in at:
                if name == "weekly" and day.weekday() != 6:
                    continue
                local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=BERLIN)
                instant = local.timestamp()  # the first one if the time occurs twice
                while datetime.fromtimestamp(instant, BERLIN).replace(fold=0) != local:
                    # The time is skipped: the first minute that exists after it.
                    local += timedelta(minutes=1)
                    instant = local.timestamp()
                add(name, instant)
        day += timedelta(days=1)
    for number in range(start // INTERVAL + 1, end // INTERVAL + 1):
        add("interval", number * INTERVAL)
    return found


INTERVAL = 5 * 3600 + 1


class Clock:
    """A clock that forked processes share."""

    def __init__(self, now: int) -> None:
        self._memory = mmap.mmap(-1, 8)
        self.set(now)

    def set(self, now: int) -> None:
        self._memory[:] = struct.pack("=q", now)

    def __call__(self) -> int:
        now: int = struct.unpack("=q", self._memory)[0]
        return now


def registry(log: Path) -> Handlers:
    jobs = Handlers(name="program")

    @jobs.handler(max_attempts=99)
    def work(payload: Any, job: Any) -> None:
        note(log, f"{job.id} {job.attempt}")

    for name, (expression, _) in (*BY_REAL_TIME.items(), *FIXED.items()):
        jobs.every(expression, "work", name=name, timezone="Europe/Berlin", missed="all")
    jobs.every(INTERVAL, "work", name="interval", missed="all")
    return jobs


def start_passes(path: Path, jobs: Handlers, clock: Clock) -> int:
    """Make passes in a forked process until it is killed; now and then, purge what is finished."""
    pid = os.fork()
    if pid:
        return pid
    try:
        queue = Queue(path, fsync=False, clock=clock)
        rng = random.Random(os.getpid())
        while True:
            queue.process_jobs(jobs)
            if rng.random() < 0.05:
                queue.purge(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("month", [3, 10])
def test_four_passes_that_are_killed_at_random_add_every_instant_of_a_month_exactly_once(
    tmp_path: Path, month: int
) -> None:
    rng = random.Random(f"{SEED} {month}")
    start = int(datetime(2027, month, 1, tzinfo=BERLIN).timestamp())
    end = int(datetime(2027, month + 1, 1, tzinfo=BERLIN).timestamp())
    path, log = tmp_path / "data" / "queue.tsv", tmp_path / "log"
    clock, jobs = Clock(start), registry(log)
    Queue(path, clock=clock).process_jobs(jobs)
    running = [start_passes(path, jobs, clock) for _ in range(PASSES)]
    kills = 0
    try:
        for now in range(start, end + 1, STEP_SECONDS):
            clock.set(now)
            time.sleep(REAL_SECONDS)
            if rng.random() < 0.25:
                number = rng.randrange(PASSES)
                kill(running[number])
                kills += 1
                time.sleep(rng.choice((0, 0, 0.005)))
                running[number] = start_passes(path, jobs, clock)
    finally:
        for pid in running:
            kill(pid)
    queue = Queue(path, clock=clock)
    clock.set(end)
    rounds = 0
    while sum(queue.process_jobs(jobs).values()) or queue.counts()["pending"]:
        clock.set(clock() + 86_400)
        jobs.schedules = {}  # the month is over: only retries are left
        rounds += 1
        assert rounds < 100
    wanted = expected(start, end)
    in_file = [job["id"] for job in queue.jobs()]
    assert len(in_file) == len(set(in_file)) and wanted.issuperset(in_file)
    ran = Counter(notes(log))
    ids = {line.split()[0] for line in ran}
    assert (sorted(wanted - ids), sorted(ids - wanted)) == ([], [])
    # A kill may cost a job an attempt; but a job that is added twice has an attempt twice.
    assert {line: count for line, count in ran.items() if count > 1} == {}
    assert kills > 100
    print(f"month {month}: {len(wanted)} instants, {kills} kills, {ran.total()} attempts")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_expected_instants_follow_the_rules_of_cron() -> None:
    """The skipped hour of 28 March 2027 is from 01:00 to 02:00 UTC, the repeated one ends then."""
    day = datetime(2027, 3, 28, tzinfo=UTC)
    found = expected(int(day.timestamp()), int(day.timestamp()) + 2 * 3600)
    assert {name for name in found if name[:3] in ("gap", "twi", "wee")} == {
        "gap.20270328T010000Z",
        "gap2.20270328T010000Z",
        "gap2.20270328T010500Z",
        "gap2.20270328T015500Z",
        "weekly.20270328T010000Z",
    }
    day = datetime(2027, 10, 31, tzinfo=UTC)
    found = expected(int(day.timestamp()) - 1, int(day.timestamp()) + 2 * 3600)
    assert {name for name in found if name[:3] in ("gap", "twi", "hou")} == {
        "gap.20271031T003000Z",
        "gap2.20271031T000500Z",
        "gap2.20271031T005500Z",
        "twice.20271031T000000Z",
        "twice.20271031T003000Z",
        "twice.20271031T010000Z",
        "twice.20271031T013000Z",
        "hourly.20271031T000700Z",
        "hourly.20271031T010700Z",
    }
