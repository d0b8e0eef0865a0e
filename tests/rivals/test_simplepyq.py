"""The seven usage examples of simplepyq 0.1.3's README and its five unit tests, with our calls.

`docs/comparison.md` lists which of our calls replaces which of theirs.
"""

from __future__ import annotations

import os
import signal
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NOW, Clock, Programs, job, join, wait_for

from dbbasic_queue import Backoff, Delay, Handler, Handlers, InvalidHandlers, Queue, Worker

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE = Backoff(first=0)


class Api(HTTPServer):
    """A server that answers its first requests with the given statuses, and later ones with 200."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.statuses = list(statuses)
        self.requests = 0
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> Api:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        join(self.thread, "the end of the server")
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def status_of(port: int) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/data")
        return connection.getresponse().status
    finally:
        connection.close()


# -- its README's examples -----------------------------------------------------------------------


def test_two_pages_are_scraped_at_a_time_in_the_background(tmp_path: Path) -> None:
    """Example 1, Basic Task Queuing with Channels: `add_channel(..., max_workers=2)`, `start`."""
    with Programs(tmp_path) as programs, Queue(tmp_path / "data/queue.tsv") as queue:
        background = programs.start(
            """
            from dbbasic_queue import Handler, Worker

            def scrape(payload):
                note("scraping", payload["url"])
                wait_for_notes("scraping", 2)  # neither ends before both are running
                return len(payload["url"])

            Worker(queue, {"scrape": Handler(scrape, concurrency=2)}, workers=2).run_forever()
            """
        )
        urls = ["https://example.com", "https://example.org/"]
        ids = [queue.enqueue("scrape", {"url": url}) for url in urls]
        done = [queue.wait(job_id, timeout=30) for job_id in ids]
        assert [found and found["result"] for found in done] == [19, 20]
        background.signal(signal.SIGTERM)
        background.succeed()


def test_a_failing_fetch_is_retried_up_to_three_times(now_queue: Queue) -> None:
    """Example 2, Task Retries for Resilience: `enqueue(..., retries=3)`."""

    def fetch(payload: dict[str, int]) -> str:
        if (status := status_of(payload["port"])) != 200:
            raise ConnectionError(f"status {status}")
        return "fetched"

    with Api(503, 503) as api:
        job_id = now_queue.enqueue("fetch", {"port": api.server_port})
        counts = now_queue.run_until_complete(
            {"fetch": Handler(fetch, max_attempts=4, backoff=AT_ONCE)}
        )
    assert (counts["retried"], counts["completed"]) == (2, 1)
    found = job(now_queue, job_id)
    assert (found["result"], found["attempts"]) == ("fetched", 3)


def test_a_rate_limited_call_is_delayed_for_a_minute(queue: Queue, clock: Clock) -> None:
    """Example 3, Dynamic Task Deferral with DelayException: `raise DelayException(60)`."""

    def call(payload: dict[str, int]) -> str:
        if status_of(payload["port"]) == 403:
            raise Delay(60, "rate limit")
        return "called"

    with Api(403) as api:
        job_id = queue.enqueue("call", {"port": api.server_port})
        assert queue.process_jobs({"call": call})["delayed"] == 1
        found = job(queue, job_id)
        assert (found["status"], found["run_at"], found["attempts"]) == ("pending", NOW + 60, 0)
        clock.now += 59
        queue.process_jobs({"call": call})
        assert api.requests == 1
        clock.now += 1
        assert queue.process_jobs({"call": call})["completed"] == 1
        assert api.requests == 2


def test_failed_jobs_of_a_type_are_cleared(now_queue: Queue) -> None:
    """Example 4, Clearing Failed Tasks: `clear_failed("risky")`."""

    def risky(payload: object) -> None:
        raise RuntimeError("on purpose")

    now_queue.enqueue("risky", {"n": 1})
    now_queue.enqueue("other", {})
    handlers: dict[str, Any] = {
        "risky": Handler(risky, max_attempts=2, backoff=AT_ONCE),
        "other": risky,
    }
    counts = now_queue.run_until_complete(handlers, max_attempts=1)
    assert (counts["retried"], counts["failed"]) == (1, 2)
    assert now_queue.clear_failed("risky") == 1
    assert [found["type"] for found in now_queue.jobs()] == ["other"]


def test_a_failed_job_is_requeued_with_one_retry(now_queue: Queue) -> None:
    """Example 5, Requeuing Failed Tasks: `requeue_failed("flaky", retries=1)`.

    The number of attempts is set where the job is run, not where it is requeued.
    """
    failures = iter([OSError("once"), OSError("twice")])

    def flaky(payload: object) -> str:
        if error := next(failures, None):
            raise error
        return "at last"

    job_id = now_queue.enqueue("flaky", {})
    assert now_queue.run_until_complete({"flaky": flaky}, max_attempts=1)["failed"] == 1
    assert now_queue.requeue_failed("flaky") == 1
    with_one_retry = {"flaky": Handler(flaky, max_attempts=2, backoff=AT_ONCE)}
    assert now_queue.run_until_complete(with_one_retry)["completed"] == 1
    assert job(now_queue, job_id)["result"] == "at last"


def test_all_jobs_of_a_type_are_removed(queue: Queue) -> None:
    """Example 6, Removing a Channel: `remove_channel("temp")`."""
    queue.enqueue("temp", {"n": 1})
    queue.process_jobs({"temp": str})
    queue.enqueue("temp", {"n": 2})
    kept = queue.enqueue("other", {})
    assert queue.remove_type("temp") == 2
    assert [found["id"] for found in queue.jobs()] == [kept]


def test_a_batch_is_run_until_nothing_is_left(now_queue: Queue) -> None:
    """Example 7, Running Until Completion: `run_until_complete()`."""
    seen: list[str] = []
    now_queue.enqueue("data", {"item": "first"})
    now_queue.enqueue("data", {"item": "second"})
    now_queue.run_until_complete({"data": lambda payload: seen.append(payload["item"])})
    assert seen == ["first", "second"]
    assert now_queue.counts()["completed"] == 2


# -- its unit tests ------------------------------------------------------------------------------


def test_a_job_is_run_with_its_payload(now_queue: Queue) -> None:
    """Its test_basic_task."""
    values: list[int] = []
    now_queue.enqueue("test", {"value": 42})
    now_queue.run_until_complete({"test": lambda payload: values.append(payload["value"])})
    assert values == [42]


def test_a_job_that_fails_once_is_run_twice(now_queue: Queue) -> None:
    """Its test_retries."""
    attempts: list[int] = []

    def flaky(payload: object, job: Any) -> None:
        attempts.append(job.attempt)
        if job.attempt == 1:
            raise RuntimeError("not yet")

    now_queue.enqueue("test", {})
    now_queue.run_until_complete({"test": Handler(flaky, backoff=AT_ONCE)}, max_attempts=2)
    assert attempts == [1, 2]


def test_a_delayed_job_does_not_run_before_its_time_in_a_worker(queue: Queue, clock: Clock) -> None:
    """Its test_delay, which always passes: it only measures its own sleep."""
    started: list[float] = []

    def put_off(payload: object) -> None:
        started.append(clock.now)
        raise Delay(1)

    def is_pending_again(run_at: int) -> bool:
        found = job(queue, job_id)
        return (found["status"], found["run_at"]) == ("pending", run_at)

    job_id = queue.enqueue("test", {})
    with Worker(queue, {"test": put_off}) as worker:
        wait_for(lambda: is_pending_again(NOW + 1), "the first delay")
        clock.now += 1
        wait_for(lambda: is_pending_again(NOW + 2), "the second delay")
        assert worker.stop() is True
    assert started == [NOW, NOW + 1]
    assert job(queue, job_id)["attempts"] == 0


def test_cleared_jobs_are_gone(now_queue: Queue) -> None:
    """Its test_clear_failed."""
    now_queue.enqueue("test", {})
    now_queue.run_until_complete({"test": lambda payload: 1 / 0}, max_attempts=1)
    assert now_queue.counts()["failed"] == 1
    assert now_queue.clear_failed() == 1
    assert now_queue.counts()["failed"] == 0


def test_requeued_jobs_run_again(now_queue: Queue) -> None:
    """Its test_requeue_failed."""
    values: list[int] = []
    now_queue.enqueue("test", {"value": 1})
    now_queue.run_until_complete({"test": lambda payload: 1 / 0}, max_attempts=1)
    assert now_queue.requeue_failed() == 1
    now_queue.run_until_complete({"test": lambda payload: values.append(payload["value"])})
    assert values == [1]


# -- other promises of its README ----------------------------------------------------------------


def test_a_channel_that_is_added_twice_is_refused() -> None:
    """`add_channel` raises ValueError for a name that is taken."""
    channels = Handlers()
    channels.handler("scrape")(str)
    with pytest.raises(InvalidHandlers, match="'scrape' is registered twice"):
        channels.handler("scrape")(len)


def test_jobs_outlive_the_program_that_enqueued_them(tmp_path: Path) -> None:
    """Persistence: "not lost if the application restarts"."""
    with Programs(tmp_path) as programs:
        job_id = programs.run("print(queue.enqueue('greet', {'to': 'ada'}))")
        programs.run("assert queue.process_jobs({'greet': lambda p: p['to']})['completed'] == 1")
        found = job(Queue(tmp_path / "data/queue.tsv"), job_id)
    assert (found["status"], found["result"]) == ("completed", "ada")
    assert os.path.getsize(tmp_path / "data/queue.tsv.journal") == 0
