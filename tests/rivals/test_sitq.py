"""The examples of sitq, with our calls: the end-to-end one and the five numbered ones.

`docs/comparison.md` lists which of our calls replaces which of theirs.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NOW, Clock, Programs, history, job, notes

from dbbasic_queue import Delay, Handlers, InvalidJob, JobNotFound, Queue, QueueError, Worker

if TYPE_CHECKING:
    from pathlib import Path


def test_from_enqueue_to_result_with_a_coroutine_and_a_plain_function(now_queue: Queue) -> None:
    """examples/basic/01_end_to_end.py, and its README's basic usage: enqueue, work, get results."""
    tasks = Handlers(queue=now_queue)

    @tasks.handler(unpack=True)
    async def say_hello(name: str) -> str:
        await asyncio.sleep(0)
        return f"Hello, {name}!"

    @tasks.handler(unpack=True)
    def add_numbers(a: int, b: int) -> int:
        return a + b

    async def web_app() -> list[Any]:
        first = await now_queue.aenqueue("say_hello", {"name": "World"})
        second = await asyncio.to_thread(add_numbers.enqueue, {"a": 5, "b": 3})
        return [await now_queue.await_job(job_id, timeout=30) for job_id in (first, second)]

    with Worker(now_queue, tasks) as worker:
        done = asyncio.run(web_app())
        assert worker.stop() is True
    assert [(found["status"], found["result"]) for found in done] == [
        ("completed", "Hello, World!"),
        ("completed", 8),
    ]


def test_one_of_four_tasks_fails_with_its_error_and_the_others_complete(tmp_path: Path) -> None:
    """dev_notes/example_end_to_end.py: two coroutines, a function, a failure, two at a time."""
    with Programs(tmp_path) as programs:
        results = programs.run(
            """
            import asyncio
            from dbbasic_queue import Handlers

            tasks = Handlers(queue=queue)

            @tasks.handler(unpack=True)
            async def task_a(name, delay):
                await asyncio.sleep(delay)
                return f"Result from {name}"

            @tasks.handler(unpack=True)
            def task_b(name):
                return f"Result from {name}"

            @tasks.handler(unpack=True, max_attempts=1)
            async def failing_task():
                raise ValueError("always fails")

            ids = [
                task_a.enqueue({"name": "A1", "delay": 0.02}),
                task_a.enqueue({"name": "A2", "delay": 0.01}),
                task_b.enqueue({"name": "B"}),
                failing_task.enqueue(),
            ]
            queue.run_until_complete(tasks, workers=2)
            for job_id in ids:
                job = queue.wait(job_id, timeout=0)
                print(job["status"], "|", job["result"] or job["error"])
            """
        )
    assert results.splitlines() == [
        "completed | Result from A1",
        "completed | Result from A2",
        "completed | Result from B",
        "failed | ValueError: always fails",
    ]


def test_a_task_with_an_eta_waits_for_it(queue: Queue, clock: Clock) -> None:
    """examples/basic/02_eta_delayed_execution.py: `enqueue(..., eta=...)`, with a time zone."""
    soon = datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=3)
    job_id = queue.enqueue("report", {}, run_at=soon)
    clock.now += 2
    assert queue.process_jobs({"report": str})["completed"] == 0
    clock.now += 1
    assert queue.process_jobs({"report": str})["completed"] == 1
    assert job(queue, job_id)["run_at"] == NOW + 3
    with pytest.raises(InvalidJob, match="must have a time zone"):
        queue.enqueue("report", {}, run_at=datetime(2030, 1, 1))


def test_never_more_tasks_run_at_a_time_than_allowed(queue: Queue) -> None:
    """examples/basic/03_bounded_concurrency.py: `Worker(max_concurrency=2)`."""
    together = most = 0

    async def work(n: int) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.01)
        together -= 1

    queue.enqueue_many("work", range(6))
    assert queue.process_jobs({"work": work}, workers=2)["completed"] == 6
    assert most == 2


def test_each_failure_is_recorded_with_its_error_and_other_jobs_still_run(queue: Queue) -> None:
    """examples/basic/04_failures_and_tracebacks.py."""
    tasks = Handlers(queue=queue)

    @tasks.handler(unpack=True)
    async def succeed(name: str) -> str:
        return f"Hello, {name}!"

    @tasks.handler
    async def divide(payload: object) -> float:
        return 1 / 0

    @tasks.handler(unpack=True)
    async def check(item: str) -> str:
        raise KeyError(f"Invalid item: {item}")

    ids = [divide.enqueue(), check.enqueue({"item": "x"}), succeed.enqueue({"name": "World"})]
    queue.process_jobs(tasks, max_attempts=1)
    found = [job(queue, job_id) for job_id in ids]
    assert [(f["status"], f["error"] or f["result"]) for f in found] == [
        ("failed", "ZeroDivisionError: division by zero"),
        ("failed", "KeyError: 'Invalid item: x'"),
        ("completed", "Hello, World!"),
    ]


def test_each_failure_has_its_traceback(queue: Queue) -> None:
    """The same example: `Result.traceback`, `started_at`, `finished_at`. Kept for every attempt."""

    def divide(payload: object) -> float:
        return 1 / 0

    job_id = queue.enqueue("divide", {})
    queue.process_jobs({"divide": divide}, max_attempts=1)
    (attempt,) = history(queue, job_id)
    assert (attempt["outcome"], attempt["ended_at"]) == ("failed", NOW)
    first, *_, last = attempt["traceback"].splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == "ZeroDivisionError: division by zero"
    assert "in divide" in attempt["traceback"]
    assert attempt["seconds"] >= 0


def test_plain_code_shares_a_queue_with_a_worker_of_coroutines(tmp_path: Path) -> None:
    """examples/basic/05_sync_client_with_worker.py: `SyncTaskQueue` is simply `Queue`."""
    with Programs(tmp_path) as programs, Queue(tmp_path / "data/queue.tsv") as queue:
        worker = programs.start(
            """
            import asyncio

            async def process(payload):
                await asyncio.sleep(0.01)
                return f"processed {payload}"

            handlers = {"process": process, "multiply": lambda pair: pair[0] * pair[1]}
            queue.process_jobs(handlers, linger=30, workers=2)
            """
        )
        ids = [
            queue.enqueue("multiply", [5, 3]),
            queue.enqueue("process", "Task A"),
            queue.enqueue("process", "Task B"),
            queue.enqueue("multiply", [7, 2]),
        ]
        done = [queue.wait(job_id, timeout=30) for job_id in ids]
        assert worker.is_running()
    results = [found and found["result"] for found in done]
    assert results == [15, "processed Task A", "processed Task B", 14]


# -- other promises of its pages -----------------------------------------------------------------


def test_waiting_for_a_result_ends_at_the_timeout(now_queue: Queue) -> None:
    """`get_result(timeout=...)`: None when the time is up, an error if there is no such job."""
    job_id = now_queue.enqueue("slow", {})
    assert now_queue.wait(job_id, timeout=0.01) is None
    assert asyncio.run(now_queue.await_job(job_id, timeout=0.01)) is None
    with pytest.raises(JobNotFound):
        now_queue.wait("no-such-job", timeout=3600)


def test_errors_have_one_base_class_and_keep_their_cause(queue: Queue) -> None:
    """`SitqError` and its context. Our errors name the value, the rule and what to do."""
    with pytest.raises(QueueError) as refused:
        queue.enqueue("report", {"when": {1, 2}})
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value.__cause__, ValueError)
    assert "set is not JSON (make it a list)" in str(refused.value)


def test_a_job_with_an_earlier_run_at_runs_first(queue: Queue) -> None:
    """`priority`: due jobs run in the order of `run_at`, which can be in the past."""
    order: list[str] = []
    queue.enqueue("work", "normal")
    queue.enqueue("work", "urgent", run_at=1)
    queue.enqueue("work", "also normal")
    queue.process_jobs({"work": order.append})
    assert order == ["urgent", "normal", "also normal"]


def test_a_job_can_wait_for_another(queue: Queue, clock: Clock) -> None:
    """`depends_on`: a job delays itself until another one is completed."""
    ran: list[str] = []

    def step(payload: dict[str, str]) -> None:
        if after := payload.get("after"):
            first = queue.get_job(after)
            if first is None or first["status"] != "completed":
                raise Delay(60, f"waits for {after}")
        ran.append(payload["name"])

    queue.enqueue("step", {"name": "load", "after": "extract"}, job_id="load")
    queue.enqueue("step", {"name": "extract"}, run_at=NOW + 30, job_id="extract")
    assert queue.process_jobs({"step": step})["delayed"] == 1
    clock.now += 30
    queue.process_jobs({"step": step})
    clock.now += 30
    queue.process_jobs({"step": step})
    assert ran == ["extract", "load"]
    assert job(queue, "load")["attempts"] == 1


def test_a_job_can_enqueue_the_next_step_once(queue: Queue) -> None:
    """Chains: the next step has an id derived from the first, so a retry doesn't add it again."""

    def extract(payload: object, job: Any) -> str:
        if queue.get_job(f"{job.id}.load") is None:
            queue.enqueue("load", {"of": job.id}, job_id=f"{job.id}.load")
        return "extracted"

    queue.enqueue("extract", {}, job_id="run-1")
    handlers: dict[str, Any] = {"extract": extract, "load": lambda payload: payload["of"]}
    queue.process_jobs(handlers)
    queue.process_jobs(handlers)
    assert job(queue, "run-1.load")["result"] == "run-1"


def test_each_outcome_is_a_log_record_with_its_facts(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """`on_success`, `on_error`: each outcome is a log record with its facts as attributes."""
    queue.enqueue("fine", {}, job_id="a")
    queue.enqueue("wrong", {}, job_id="b")
    with caplog.at_level("INFO", "dbbasic_queue"):
        queue.process_jobs({"fine": str, "wrong": lambda payload: 1 / 0}, max_attempts=1)
    logged = [
        (record.levelname, *(vars(record)[name] for name in ("job_id", "status", "attempt")))
        for record in caplog.records
    ]
    assert logged == [("INFO", "a", "completed", 1), ("ERROR", "b", "failed", 1)]


def test_a_job_can_limit_its_memory(queue: Queue) -> None:
    """`max_memory_mb`: a job with a time limit runs in its own process, which can limit itself."""
    tasks = Handlers(queue=queue)

    @tasks.handler(timeout=60, max_attempts=1)
    def hungry(payload: object) -> int:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        return len(bytearray(1 << 31))

    job_id = hungry.enqueue()
    queue.process_jobs(tasks)
    assert job(queue, job_id)["error"] == "MemoryError"


def test_a_payload_can_be_the_text_of_another_serializer(queue: Queue) -> None:
    """`serializer=`: the caller turns other data into text, compressed or encrypted if needed."""
    import base64
    import zlib

    def pack(content: bytes) -> str:
        return base64.b64encode(zlib.compress(content)).decode()

    def unpack(payload: str) -> int:
        return len(zlib.decompress(base64.b64decode(payload)))

    job_id = queue.enqueue("unpack", pack(b"\0" * 100_000))
    queue.process_jobs({"unpack": unpack})
    assert job(queue, job_id)["result"] == 100_000


def test_a_copy_under_the_lock_is_a_backup(tmp_path: Path) -> None:
    """`backup`, `restore`: copy the directory while a pass is running."""
    with Programs(tmp_path) as programs:
        copied = programs.run(
            """
            import subprocess

            def copy(payload):
                command = "flock data/queue.tsv.lock cp -r data backup"
                subprocess.run(["sh", "-c", command], check=True)

            queue.enqueue_many("mark", range(50))
            queue.enqueue("copy", {}, job_id="copy")
            queue.enqueue_many("mark", range(50))
            queue.process_jobs({"mark": lambda n: note("ran", str(n)), "copy": copy})
            with Queue("backup/queue.tsv") as restored:
                restored.process_jobs({"mark": str, "copy": str})
                print(restored.counts()["completed"], end=" ")
                restored.run_now("copy")  # it was running, so it waits for its backoff
                restored.process_jobs({"mark": str, "copy": str})
                print(restored.counts()["completed"])
            """
        )
        assert len(notes(tmp_path / "ran")) == 100
    assert copied == "100 101"
