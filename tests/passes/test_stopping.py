"""`stop_job`: a pending job is cancelled, a running one is stopped or asked to stop."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    NONE,
    Clock,
    Programs,
    add_lines,
    history,
    job,
    join,
    line,
    note,
    notes,
    run_command,
    wait_for,
    wait_for_notes,
)
from test_time_limit import is_alive, spin_in_c

from dbbasic_queue import Command, Delay, Handler, Job, JobNotFound, JobStopped, Queue

LONG = 60.0
STOPPED = ("cancelled", "Stopped by user")


def ended(queue: Queue, job_id: str) -> tuple[str, str | None]:
    found = job(queue, job_id)
    return found["status"], found["error"]


def working(queue: Queue, handlers: dict[str, Any], counts: dict[str, int]) -> threading.Thread:
    """Make a pass in a thread; it adds what it returns to `counts`."""
    thread = threading.Thread(target=lambda: counts.update(queue.process_jobs(handlers)))
    thread.start()
    return thread


def test_a_pending_job_is_cancelled(queue: Queue) -> None:
    job_id = queue.enqueue("greet", {})
    assert queue.stop_job(job_id) == "cancelled"
    assert ended(queue, job_id) == ("cancelled", "Cancelled by user")
    assert queue.process_jobs({"greet": len}) == NONE


def test_a_finished_job_is_left_alone(queue: Queue) -> None:
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": lambda _: 7})
    assert queue.stop_job(job_id) is None
    assert job(queue, job_id)["result"] == 7


@pytest.mark.parametrize("job_id", ["nobody", "not an id"])
def test_an_unknown_job_is_an_error(queue: Queue, job_id: str) -> None:
    with pytest.raises(JobNotFound, match=job_id):
        queue.stop_job(job_id)


def sleep_in_a_tree_of_processes(place: str) -> None:
    script = f"trap '' TERM; sleep {LONG} & echo $! >> {place}; wait; sleep {LONG}"
    subprocess.run(["setsid", "sh", "-c", script], check=True)


@pytest.mark.parametrize("how", ["a loop in C", "a tree of processes", "a command"])
def test_a_job_in_a_process_of_its_own_is_stopped_within_a_second(
    now_queue: Queue, tmp_path: Path, how: str
) -> None:
    started = tmp_path / "started"

    def in_c(payload: Any) -> None:
        note(started, "0")
        spin_in_c(payload)

    handlers = {
        "a loop in C": Handler(in_c, timeout=LONG),
        "a tree of processes": Handler(sleep_in_a_tree_of_processes, timeout=LONG),
        "a command": Command(["sh", "-c", f'sleep {LONG} & echo $! > "$0"; wait', str(started)]),
    }
    job_id = now_queue.enqueue("long", str(started))
    counts: dict[str, int] = {}
    thread = working(now_queue, {"long": handlers[how]}, counts)
    wait_for_notes(started, 1)
    begin = time.monotonic()
    with Queue(now_queue.path) as other:
        assert other.stop_job(job_id) == "stopped"
    assert time.monotonic() - begin < 10  # in fact about 0.5 s, see benchmarks/
    join(thread, "the end of the pass", LONG)
    assert counts == NONE | {"stopped": 1}
    assert ended(now_queue, job_id) == STOPPED
    if pid := int(notes(started)[0]):
        wait_for(lambda: not is_alive(pid), "the end of the sleeping process")
    (attempt,) = history(now_queue, job_id)
    assert (attempt["outcome"], attempt["error"]) == ("stopped", "Stopped by user")
    assert now_queue.process_jobs({"long": len}) == NONE


def test_a_process_may_clean_up_after_sigterm_and_its_job_is_cancelled_all_the_same(
    now_queue: Queue, tmp_path: Path
) -> None:
    started = tmp_path / "started"

    def finishes(_: Any) -> str:
        done = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: done.set())
        note(started, "yes")
        while not done.wait(0.01):
            pass
        note(started, "cleaned up")
        return "finished"

    job_id = now_queue.enqueue("careful", {})
    thread = working(now_queue, {"careful": Handler(finishes, timeout=LONG)}, {})
    wait_for_notes(started, 1)
    assert now_queue.stop_job(job_id) == "stopped"
    join(thread, "the end of the pass", LONG)
    assert notes(started) == ["yes", "cleaned up"]
    assert ended(now_queue, job_id) == STOPPED


def asks(queue: Queue, how: str, seen: list[Any]) -> Any:
    """Return a handler that has its own job stopped, and then reacts in that way."""

    def handler(_: Any, job: Job) -> str:
        seen.append(job.stop_requested)
        assert queue.store.stop(job.id) == "processing"
        job._next_look_at = 0.0  # a tenth of a second later
        seen.append(job.stop_requested)
        if how == "checks":
            job.check_stop()
        if how == "raises":
            raise ValueError("no")
        if how == "delays":
            raise Delay(60)
        return "done"

    async def coroutine(payload: Any, job: Job) -> str:
        return str(handler(payload, job))

    return coroutine if how == "awaits" else handler


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("how", ["checks", "raises", "delays", "returns", "awaits"])
def test_a_job_that_runs_in_the_pass_is_asked(path: Path, kind: str, how: str) -> None:
    seen: list[Any] = []
    with Queue(path if kind == "file" else "memory:") as queue:
        job_id = queue.enqueue("long", {})
        counts = queue.process_jobs({"long": asks(queue, how, seen)})
        returns = how in ("returns", "awaits")
        assert seen == [False, True]
        assert counts == NONE | {"completed" if returns else "stopped": 1}
        found = job(queue, job_id)
        assert (found["status"], found["error"], found["result"]) == (
            ("completed", None, "done") if returns else (*STOPPED, None)
        )
        assert queue.process_jobs({"long": len}) == NONE


def test_without_a_request_check_stop_does_nothing(queue: Queue) -> None:
    def handler(_: Any, job: Job) -> str:
        job.check_stop()
        return "done"

    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": handler})
    assert job(queue, job_id)["result"] == "done"


def test_a_job_raises_job_stopped(queue: Queue) -> None:
    raised = []

    def handler(_: Any, job: Job) -> None:
        queue.store.stop(job.id)
        with pytest.raises(JobStopped, match=job.id) as caught:
            job.check_stop()
        raised.append(caught.value)

    queue.enqueue("greet", {})
    queue.process_jobs({"greet": handler})
    assert len(raised) == 1


def test_a_request_is_visible_in_the_file_and_returns_after_a_moment(
    now_queue: Queue, path: Path
) -> None:
    let_go, entered = threading.Event(), threading.Event()

    def handler(_: Any) -> None:
        entered.set()
        let_go.wait(LONG)

    job_id = now_queue.enqueue("greet", {})
    thread = working(now_queue, {"greet": handler}, {})
    entered.wait(LONG)
    assert now_queue.stop_job(job_id) == "requested"
    assert ended(now_queue, job_id) == ("processing", "Stop requested by user")
    assert "Stop requested by user" in path.read_text()
    let_go.set()
    join(thread, "the end of the pass", LONG)
    assert ended(now_queue, job_id) == ("completed", None)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_claimed_job_that_has_not_started_never_starts(path: Path, kind: str) -> None:
    ran = []
    with Queue(path if kind == "file" else "memory:") as queue:
        ids = queue.enqueue_many("greet", range(3))
        queue.process_jobs({"greet": lambda _: None})  # the next batch is larger
        ids = queue.enqueue_many("greet", range(30))

        def handler(payload: int) -> None:
            ran.append(payload)
            if payload == 10:
                queue.store.stop(ids[11])

        counts = queue.process_jobs({"greet": handler})
        assert counts == NONE | {"completed": 29, "stopped": 1}
        assert 11 not in ran
        assert job(queue, ids[11])["status"] == "cancelled"


def test_the_job_of_a_dead_pass_is_cancelled_and_never_runs(queue: Queue, path: Path) -> None:
    add_lines(path, line("a", status="processing", attempts=1), line("b"))
    assert queue.store.stop("a") == "processing"
    ran: list[Any] = []
    counts = queue.process_jobs({"other": ran.append, "greet": ran.append})
    assert counts == NONE | {"recovered": 1, "stopped": 1, "completed": 1}
    assert ended(queue, "a") == STOPPED
    assert [attempt["outcome"] for attempt in history(queue, "a")] == ["stopped"]
    assert len(ran) == 1


def test_a_pass_that_does_not_know_the_type_cancels_it_too(queue: Queue, path: Path) -> None:
    add_lines(path, line("a", status="processing", attempts=1))
    queue.store.stop("a")
    counts = queue.process_jobs({"other": len}, skip_unknown=True)
    assert counts == NONE | {"recovered": 1, "stopped": 1}
    assert ended(queue, "a") == STOPPED


def test_a_stopped_job_can_be_requeued(queue: Queue, path: Path) -> None:
    add_lines(path, line("a", status="processing", attempts=1))
    queue.store.stop("a")
    queue.process_jobs({"greet": len})
    assert queue.requeue("a")
    assert queue.process_jobs({"greet": lambda _: 7}) == NONE | {"completed": 1}


def test_a_request_survives_a_fold_by_another_process(queue: Queue, clock: Clock) -> None:
    with Queue(queue.path, clock=clock) as other:

        def handler(_: Any, job: Job) -> None:
            other.store.stop(job.id)
            assert other.purge(0) == 1  # a rewrite of the file
            raise ValueError("no")

        queue.enqueue("greet", {}, job_id="old")
        queue.cancel_job("old")
        clock.now += 1
        job_id = queue.enqueue("greet", {})
        assert queue.process_jobs({"greet": handler}) == NONE | {"stopped": 1}
        assert ended(queue, job_id) == STOPPED


RANDOM_STOPS = 1000
WORKER = """
from dbbasic_queue import Handler

def work(payload, job):
    note("started", f"{job.id} {job.attempt}")
    time.sleep(payload["seconds"])
    note("ended", job.id)
    return 1

handlers = {"own": Handler(work, timeout=60), "shared": work}
queue.process_jobs(handlers, linger=1000, workers=3)
"""


def test_of_1000_random_stops_each_job_is_stopped_or_finished_and_never_both(
    now_queue: Queue, programs: Programs, tmp_path: Path
) -> None:
    draw = random.Random(12)
    ids = []
    for n in range(RANDOM_STOPS):
        kind = "own" if n % 10 == 0 else "shared"
        ids.append(now_queue.enqueue(kind, {"seconds": 0.02 if kind == "own" else 0.002}))
    worker = programs.start(WORKER)
    wait_for_notes(tmp_path / "started", 1)
    answers = {}
    order = ids[:]
    draw.shuffle(order)
    for job_id in order:
        answers[job_id] = now_queue.store.stop(job_id)
    wait_for(
        lambda: not (now_queue.counts()["pending"] or now_queue.counts()["processing"]),
        "the end of all jobs",
    )
    worker.signal(signal.SIGTERM)
    wait_for(lambda: not worker.is_running(), "the end of the worker")
    starts = [text.split()[0] for text in notes(tmp_path / "started")]
    finished = notes(tmp_path / "ended")
    assert len(starts) == len(set(starts)), "a job was started twice"
    for job_id, answer in answers.items():
        found = job(now_queue, job_id)
        if answer == "cancelled":
            assert job_id not in starts
            assert ended(now_queue, job_id) == ("cancelled", "Cancelled by user")
        elif found["status"] == "completed":
            assert job_id in finished
        else:
            assert answer == "processing"
            assert ended(now_queue, job_id) == STOPPED
    assert {*answers.values()} >= {"cancelled", "processing"}


def test_the_command_says_what_it_has_done_with_each_job(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    queue.enqueue("greet", {}, job_id="done")
    queue.process_jobs({"greet": len}, max_attempts=1)
    queue.enqueue("greet", {}, job_id="waiting")
    add_lines(path, line("lost", status="processing", attempts=1))
    ids = ["waiting", "lost", "done", "nobody"]
    done = run_command("stop", *ids, "--file", str(path), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "cancelled\twaiting\nrequested\tlost\n"
    assert done.stderr.splitlines() == [
        "dbbasic-queue: done was not stopped: it is finished",
        "dbbasic-queue: nobody was not stopped: there is no such job",
    ]
