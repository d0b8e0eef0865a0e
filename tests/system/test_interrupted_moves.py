"""Moves that are killed at random moments, while a pass and two enqueuers use the queues.

Nobody tells these programs where the queue is: they find out by QueueMoved. `DBBASIC_QUEUE_LONG=1`
makes 200 kills in each direction, with 100,000 jobs, instead of 10 with 1,000.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from helpers import Programs, environment, notes, wait_for_notes

from dbbasic_queue import open_queue
from dbbasic_queue.model.states import is_moved, is_moving

if TYPE_CHECKING:
    from pathlib import Path

    from postgres_server import PostgresServer
    from valkey_server import ValkeyServer

IS_LONG = os.environ.get("DBBASIC_QUEUE_LONG") == "1"
JOBS, KILLS, BATCH = (100_000, 200, 500) if IS_LONG else (1_000, 10, 20)
WINDOW_SECONDS = 2.5 if IS_LONG else 0.2
"""how long after its start a move is killed, at most"""
PAIRS = [
    "text_file other_text_file",
    "text_file postgresql",
    "text_file redis",
    *(["redis postgresql"] if IS_LONG else []),
]
PAUSE_SECONDS = 0.1
"""how long an enqueuer pauses between two jobs, at most"""
MOST_KILLS_IN_A_ROW = 60 if IS_LONG else 8
FAR = 3_000_000_000
"""when those jobs are due that are still pending at the end, in Unix seconds"""

FOLLOW = """
import random
from dbbasic_queue import QueueMoved, open_queue

first, other = map(open_queue, sys.argv[1:3])
queue, places = first, {first.path: first, other.path: other}
"""
ENQUEUER = (
    FOLLOW
    + f"""
chance = random.Random(sys.argv[3])
while not Path("stop").exists():
    run_at = chance.choice([None, {FAR}])
    try:
        job_id = queue.enqueue("work", None, run_at)
    except QueueMoved as e:
        queue = places[e.address]
    else:
        note("acknowledged", job_id)
    time.sleep(chance.random() * {PAUSE_SECONDS})
"""
)
PASS = (
    FOLLOW
    + """
def work(payload, job):
    note("effects", job.id)

while not Path("stop").exists():
    try:
        queue.process_jobs({"work": work}, linger=1)
    except QueueMoved as e:
        queue = places[e.address]
"""
)
MOVE = """
from unittest.mock import patch
from dbbasic_queue import moving, open_queue

source, target, batch = sys.argv[1:]
patch("dbbasic_queue.moving._BATCH", int(batch)).start()
note("moves", "started")
with (
    open_queue(source, even_if_moved=True) as from_queue,
    open_queue(target, even_if_moved=True) as to_queue,
):
    moving.move(from_queue.store, to_queue.store)
"""


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    return f"file:{tmp_path}/one/queue.tsv"


@pytest.fixture
def other_text_file(tmp_path: Path) -> str:
    return f"file:{tmp_path}/two/queue.tsv"


@pytest.fixture
def redis(tmp_path: Path, valkey: ValkeyServer) -> str:
    return valkey.url(queue_name(tmp_path))


@pytest.fixture
def postgresql(tmp_path: Path, postgres: PostgresServer) -> str:
    return postgres.url(f"q_{queue_name(tmp_path)}")


def queue_name(directory: Path) -> str:
    return hashlib.sha1(str(directory).encode(), usedforsecurity=False).hexdigest()[:30]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_a_move_killed_at_any_moment_and_made_again_loses_and_doubles_no_job(
    programs: Programs, tmp_path: Path, request: pytest.FixtureRequest, pair: str
) -> None:
    source, target = urls = [request.getfixturevalue(name) for name in pair.split()]
    chance = random.Random(pair)
    with open_queue(source) as queue:
        prepared = set(queue.enqueue_many("work", [None] * JOBS, FAR))
    others = [
        programs.start(ENQUEUER, *urls, "1"),
        programs.start(ENQUEUER, *urls, "2"),
        programs.start(PASS, *urls),
    ]
    kills = Counter[str]()
    while min(kills[url] for url in urls) < KILLS:
        for _ in range(chance.randrange(3, MOST_KILLS_IN_A_ROW)):
            started = len(notes(tmp_path / "moves"))
            mover = programs.start(MOVE, source, target, str(BATCH))
            wait_for_notes(tmp_path / "moves", started + 1)
            time.sleep(chance.random() * WINDOW_SECONDS)
            mover.kill()
            if mover.process.returncode == 0:
                break
            assert mover.process.returncode == -signal.SIGKILL, mover.errors.read_text()
            kills[source] += 1
            if not IS_LONG or kills[source] % 10 == 0:
                ids = [job_id for url in urls for job_id in pending(url)]
                assert len(ids) == len(set(ids)), "a job is pending in both queues"
        finish(source, target, tmp_path)
        source, target = target, source
    wait_for_notes(tmp_path / "effects", 10)
    (tmp_path / "stop").touch()
    for program in others:
        program.succeed()
    finish(source, target, tmp_path)

    acknowledged = prepared.union(notes(tmp_path / "acknowledged"))
    places = [states_of(url) for url in urls]
    assert Counter(job_id for place in places for job_id in place) == dict.fromkeys(acknowledged, 1)
    assert pending(source) == []
    effects = Counter(notes(tmp_path / "effects"))
    finished = [job_id for place in places for job_id, state in place.items() if state != "pending"]
    assert effects == dict.fromkeys(finished, 1)
    print(f"{dict(kills)} kills, {len(acknowledged)} jobs, {len(finished)} of them have run")


def finish(source: str, target: str, directory: Path) -> None:
    """Move all that is left, with the command."""
    done = subprocess.run(
        [sys.executable, "-m", "dbbasic_queue", "move", "--to", target],
        cwd=directory,
        env={**environment(), "DBBASIC_QUEUE_URL": source},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def states_of(url: str) -> dict[str, str]:
    """Return id -> status of the jobs that are in a queue, whether it was moved or not."""
    with open_queue(url, even_if_moved=True) as queue:
        rows = [r for r in queue.store.rows() if not is_moving(r.state) and not is_moved(r.state)]
        assert len(rows) == len({row.id for row in rows})
        return {row.id: row.state.status for row in rows}


def pending(url: str) -> list[str]:
    return [job_id for job_id, status in states_of(url).items() if status == "pending"]
