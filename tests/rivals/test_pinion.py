"""The examples of Pinion 0.1 and 0.2 (pinion-queue), with our calls.

The two quick starts, the examples of their docs, and their commands. `docs/comparison.md` lists
which of our calls replaces which of theirs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from helpers import NONE, NOW, Clock, Programs, job, run_command, wait_for, wait_for_notes

from dbbasic_queue import Backoff, Handlers, Queue, Worker, open_queue

if TYPE_CHECKING:
    from pathlib import Path

# Their default: 0.5 s, doubled each time, at most 10 s, three retries after the first attempt.
THEIR_BACKOFF = Backoff(first=0.5, factor=2, cap=10)
THEIR_ATTEMPTS = 4


def test_a_worker_runs_a_registered_function_in_any_case_of_its_name(tmp_path: Path) -> None:
    """Quick start "Library usage (in-memory)": `@task`, a worker in the background, its counts.

    A function with a time limit runs in its own process, so the worker here is a program, not a
    thread. As in their example, `BOOM` isn't registered.
    """
    with Programs(tmp_path) as programs:
        counts = programs.run(
            """
            from dbbasic_queue import Backoff, Handlers

            tasks = Handlers(ignore_case=True, queue=queue)

            @tasks.handler(unpack=True, timeout=20)
            def add(a, b):
                return a + b

            add.enqueue({"a": 1, "b": 2}, job_id="add")
            queue.enqueue("ADD", {"a": 3, "b": 4}, job_id="ADD")
            queue.enqueue("BOOM", {}, job_id="BOOM")
            print(queue.run_until_complete(tasks, max_attempts=1))
            """
        )
        queue = Queue(tmp_path / "data/queue.tsv")
    assert "'completed': 2, 'failed': 1" in counts
    assert [job(queue, i)["result"] for i in ("add", "ADD")] == [3, 7]
    assert job(queue, "BOOM")["error"] == "No handler for BOOM"


def test_a_job_that_always_fails_is_kept_with_its_error(queue: Queue, clock: Clock) -> None:
    """Quick start "Library usage (SQLite)": a job on disk is retried, then a dead letter.

    Their example enqueues "fail", but registers the task as "boom"; this one enqueues both.
    """
    tasks = Handlers(queue=queue)

    @tasks.handler("boom", max_attempts=THEIR_ATTEMPTS, backoff=THEIR_BACKOFF)
    def fail(payload: object) -> None:
        raise ValueError("kaboom")

    def is_retried(attempt: int) -> bool:
        found = job(queue, "boom")
        return (found["status"], found["attempts"]) == ("pending", attempt)

    fail.enqueue(job_id="boom")
    queue.enqueue("fail", {}, job_id="fail")
    with Worker(queue, tasks, max_attempts=1) as worker:
        for attempt in range(1, THEIR_ATTEMPTS):
            wait_for(partial(is_retried, attempt), f"the end of attempt {attempt}")
            clock.now += 10
        queue.wait("boom", timeout=30)
        assert worker.stop() is True
    queue.close()
    dead = {f["id"]: (f["attempts"], f["error"]) for f in queue.jobs(status="failed")}
    assert dead == {"boom": (4, "ValueError: kaboom"), "fail": (1, "No handler for fail")}


def test_retries_can_wait_as_long_as_theirs(queue: Queue, clock: Clock) -> None:
    """`RetryPolicy(max_retries=3, base_delay=0.5, cap=10)`: 0.5, 1, 2 s. Ours are whole seconds."""
    assert [THEIR_BACKOFF.seconds(n) for n in (1, 2, 3, 9)] == [0.5, 1, 2, 10]
    waits = []
    tasks = Handlers(queue=queue)
    boom = tasks.handler("boom", max_attempts=THEIR_ATTEMPTS, backoff=THEIR_BACKOFF)(
        lambda payload: 1 / 0
    )
    job_id = boom.enqueue()
    for _ in range(3):
        queue.process_jobs(tasks)
        waits.append(job(queue, job_id)["run_at"] - clock.now)
        clock.now = job(queue, job_id)["run_at"]
    assert waits == [1, 1, 2]
    assert queue.process_jobs(tasks)["failed"] == 1


def test_a_task_that_exceeds_its_timeout_is_killed(tmp_path: Path) -> None:
    """Docs, "Task timeout": `Worker(task_timeout=0.05)`. They can't kill the task's thread."""
    with Programs(tmp_path) as programs:
        error = programs.run(
            """
            from dbbasic_queue import Handler

            def slow(payload):
                note("started", os.getpid())
                time.sleep(600)

            job_id = queue.enqueue("slow", {})
            queue.process_jobs({"slow": Handler(slow, timeout=0.3, max_attempts=1)})
            (pid,) = notes("started")
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                print(queue.get_job(job_id)["error"])
            """
        )
    assert error == "timed out after 0.3 s"


def test_a_running_job_is_recovered_as_soon_as_its_worker_is_dead(tmp_path: Path) -> None:
    """Docs, "Reaping stale RUNNING jobs": `heartbeat`, `reap_stale(visibility_timeout)`."""
    with Programs(tmp_path) as programs:
        first = programs.start(
            """
            queue.enqueue("work", {}, job_id="a")

            def hang(payload):
                note("started", "x")
                time.sleep(600)

            queue.process_jobs({"work": hang})
            """
        )
        wait_for_notes(tmp_path / "started", 1)
        queue = Queue(tmp_path / "data/queue.tsv")
        assert queue.process_jobs({"work": str}) == NONE  # slow is not dead
        first.kill()
        assert queue.process_jobs({"work": str}) == NONE | {"recovered": 1}
    assert (job(queue, "a")["status"], job(queue, "a")["attempts"]) == ("pending", 1)
    assert queue.run_now("a")  # without waiting for its backoff
    assert queue.process_jobs({"work": str}) == NONE | {"completed": 1}
    assert job(queue, "a")["attempts"] == 2


def test_dead_letters_are_listed_and_replayed_from_a_shell(tmp_path: Path) -> None:
    """`pinion status`, `pending`, `running`, `dlq-list`, `dlq-replay`, `enqueue`, `worker`."""

    def command(*arguments: str) -> str:
        done = run_command(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    with Programs(tmp_path) as programs:
        worker = """
            from dbbasic_queue import Handlers, process_jobs
            tasks = Handlers()

            @tasks.handler(unpack=True, timeout=20)
            def add(a, b):
                return a + b

            process_jobs(tasks, max_attempts=1, linger=0.1)
            """
        job_id = command("enqueue", "add", '{"a": 1, "b": 2}').strip()
        command("enqueue", "ad", "{}", "--id", "typo")
        assert "pending\t2\n" in command("status")
        assert command("list", "--status", "pending").count("\n") == 2
        programs.run(worker)
        assert command("list", "--status", "processing") == ""
        assert "No handler for ad" in command("list", "--status", "failed")
        assert "result\t3\n" in command("show", job_id)
        assert command("requeue", "--failed") == "requeued\t1\tad=1\n"
        assert "due\t1\t" in command("status")


def test_a_test_can_use_a_queue_in_memory(clock: Clock) -> None:
    """`InMemoryStorage`."""
    with open_queue("memory:", clock=clock) as queue:
        job_id = queue.enqueue("add", {"a": 1, "b": 2})
        queue.process_jobs({"add": lambda payload: payload["a"] + payload["b"]})
        found = queue.get_job(job_id)
    assert found is not None
    assert (found["status"], found["result"], found["created_at"]) == ("completed", 3, NOW)
