"""The power fails at each point while a queue is moved, and moved back: no job is lost or doubled.

As in `test_power_loss.py`, a workload is recorded, and disks are built as a power loss could leave
them. Both queues are on the same disk. Of `Facts`, `kept` has the ids of the jobs whose enqueue
returned, and `final` those that a reader has seen completed.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from power import MODELS, Facts, Recorder, check_state, crash_states
from power_workloads import NOW

from dbbasic_queue import Queue, moving
from dbbasic_queue.model.states import is_moved, is_moving
from dbbasic_queue.passes.ticker import Ticker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONG = bool(os.environ.get("DBBASIC_QUEUE_LONG"))
SEED = int(os.environ.get("DBBASIC_QUEUE_SEED", "1"))
STATES = 5000 if LONG else 400
OLD, NEW = "old/queue.tsv", "new/queue.tsv"


class Named:
    """A store that has another address: the one that it had before the power loss."""

    def __init__(self, store: Any, path: str) -> None:
        self._store, self.path = store, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def move(root: Path, source: str, target: str, live: Path) -> None:
    """Move from one place to another under `root`; at the recording, they were under `live`."""
    with (
        Queue(root / source, clock=lambda: NOW, even_if_moved=True) as from_queue,
        Queue(root / target, clock=lambda: NOW, even_if_moved=True) as to_queue,
        patch.object(moving, "_BATCH", 3),
    ):
        stores: Any = [
            Named(from_queue.store, str(live / source)),
            Named(to_queue.store, str(live / target)),
        ]
        assert moving.move(*stores, clock=lambda: NOW).is_complete()


class Program:
    """Processes that use both queues, and record what they were promised."""

    def __init__(self, root: Path, recorder: Recorder) -> None:
        self.root = root
        self.recorder = recorder
        self.count = 0

    def enqueue(self, place: str, count: int) -> None:
        with Queue(self.root / place, clock=lambda: NOW) as queue:
            for _ in range(count):
                self.count += 1
                due = NOW + 9 if self.count % 3 else NOW
                job_id = queue.enqueue("work", "x" * 90, due, job_id=f"job-{self.count}")
                self.recorder.facts.kept[job_id] = self.count
                self.recorder.promise()

    def run_pass(self, place: str) -> None:
        with (
            patch.object(Ticker, "start_once", lambda _: None),  # no second thread writes
            Queue(self.root / place, clock=lambda: NOW) as queue,
        ):
            assert queue.process_jobs({"work": lambda _: 0})["completed"]
        with self.recorder.unrecorded(), Queue(self.root / place) as reader:
            for job in reader.jobs(status="completed"):
                self.recorder.facts.final[job["id"]] = job
        self.recorder.promise()

    def move(self, source: str, target: str) -> None:
        move(self.root, source, target, self.root)


def there_and_back(program: Program) -> None:
    program.enqueue(OLD, 7)
    program.run_pass(OLD)
    program.enqueue(OLD, 3)
    program.move(OLD, NEW)
    program.run_pass(NEW)
    program.enqueue(NEW, 3)
    program.move(NEW, OLD)
    program.run_pass(OLD)


def ids_of(path: Path) -> list[str]:
    with Queue(path, even_if_moved=True) as queue:
        rows = queue.store.rows()
        return [r.id for r in rows if not is_moving(r.state) and not is_moved(r.state)]


def is_unfinished(path: Path) -> bool:
    """Return whether a queue was moved, or some of its jobs."""
    with Queue(path, even_if_moved=True) as queue:
        on_their_way = [r for r in queue.store.rows() if is_moving(r.state) or is_moved(r.state)]
        return bool(queue.store.moved_to() or on_their_way)


def check(root: Path, facts: Facts, live: Path) -> None:
    """Go on like processes that start after the power loss. Raises AssertionError."""
    pending = []
    for place in (OLD, NEW):
        with Queue(root / place, even_if_moved=True) as queue:
            pending += [job["id"] for job in queue.jobs(status="pending")]
    assert len(pending) == len(set(pending)), f"pending in both: {pending}"
    ran: Counter[str] = Counter()
    for now in (NOW + 99, NOW + 999):  # a job of a dead pass runs after its backoff
        # A withdrawal whose record was torn may become valid only when the first pass has ended it.
        for source, target in ((OLD, NEW), (NEW, OLD)):
            if is_unfinished(root / source):
                move(root, source, target, live)
        for place in (OLD, NEW):
            with Queue(root / place, clock=partial(float, now), even_if_moved=True) as queue:
                queue.process_jobs({"work": lambda _, job: ran.update([job.id])})
    for place in (OLD, NEW):
        with Queue(root / place, even_if_moved=True) as queue:
            assert not list(queue.jobs(status="pending"))
    ids = Counter(job_id for place in (OLD, NEW) for job_id in ids_of(root / place))
    assert set(facts.kept) <= set(ids), f"lost: {set(facts.kept).difference(ids)}"
    assert all(count == 1 for count in ids.values()), f"in both: {ids}"
    assert all(count == 1 for count in ran.values()), f"ran twice: {ran}"
    assert not set(facts.final).intersection(ran), "a completed job ran again"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("work", [there_and_back], ids=lambda work: work.__name__)
def test_after_a_power_loss_in_a_move_each_job_is_in_one_queue_and_runs_once(
    work: Callable[[Program], None], model: str, scratch: Path
) -> None:
    live = scratch / "live"
    live.mkdir()
    recorder = Recorder(live)
    with recorder.recording():
        recorder.promise()
        work(Program(live, recorder))
    states = 0
    label = f"{work.__name__}, {model}"
    for state in crash_states(recorder, model, STATES, random.Random(f"{SEED} {label}")):
        check_state(state, scratch, label, SEED, lambda root, facts: check(root, facts, live))
        states += 1
    print(f"{label}: {len(recorder.events)} points, {states} disks")
