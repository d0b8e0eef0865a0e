"""The contract's tests find every planted bug, and `open_queue` finds the queue of a URL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

import planted_engines
import pytest
from helpers import NOW, PROJECT, job, join, python

from dbbasic_queue import Handler, NotAQueue, Queue, Worker, open_queue
from dbbasic_queue.engines import protocol
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from pathlib import Path

    from dbbasic_queue.engines.protocol import Engine


def test_the_contract_catches_every_planted_bug_and_passes_the_engine_without_one(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "tests/planted_engines.py",
                "-q",
                "--tb=no",
                "-rA",
            ),
            *("-p", "no:cacheprovider", f"--basetemp={tmp_path / 'engines'}"),
        ],
        cwd=PROJECT,
        env={key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    ended: defaultdict[str, set[str]] = defaultdict(set)
    for end, engine in re.findall(r"^([A-Z]+) \S+::test_\w+\[(\w+)", done.stdout, re.MULTILINE):
        ended[engine].add(end)
    assert ended.pop("Sound") == {"PASSED"}, done.stdout[-5000:]
    caught = {engine for engine, ends in ended.items() if "FAILED" in ends and "ERROR" not in ends}
    survived = {planted.__name__ for planted in planted_engines.CAUGHT} - caught
    assert survived == set()


# --- the protocol

BEYOND = {"aenqueue", "aget_job", "await_job"} | {
    "history",
    "of_store",
    "metrics",
    "output",
    "progress",
    "write_metrics",
    "unreadable",
    "remove_unreadable",
    "schedules",
    "remove_schedule",
}
"""What only `Queue` has: coroutines around other calls, and what a queue's other files tell."""


def test_the_protocol_has_every_call_of_a_queue() -> None:
    calls = {name for name in vars(protocol.Engine) if not name.startswith("_")}
    ours = {name for name in vars(Queue) if not name.startswith("_")}
    assert calls == ours - BEYOND


def test_both_kinds_of_queue_are_typed_as_engines() -> None:
    engines: list[Engine] = [Queue("queue.tsv"), Queue("memory:")]
    assert len(engines) == 2


def test_a_queue_in_memory_has_a_history_too() -> None:
    with Queue("memory:", clock=lambda: 1_800_000_000.5) as queue:
        good, bad = queue.enqueue("greet", "ada"), queue.enqueue("fail", {})
        queue.process_jobs({"greet": str, "fail": lambda _: 1 / 0})
        (attempt,) = queue.history(bad)
        assert (attempt["outcome"], attempt["error"]) == (
            "retried",
            "ZeroDivisionError: division by zero",
        )
        assert "1 / 0" in str(attempt["traceback"])
        assert [found["outcome"] for found in queue.history(good)] == ["completed"]
        assert queue.metrics()["types"]["greet"]["attempts"] == {"completed": 1}


# --- open_queue


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("data/queue.tsv", "data/queue.tsv"),
        ("a%20b.tsv", "a%20b.tsv"),
        ("./memory:.tsv", "memory:.tsv"),
        ("file:data/queue.tsv", "data/queue.tsv"),
        ("FILE:a%20b.tsv", "a b.tsv"),
        ("file:{tmp}/queue.tsv", "queue.tsv"),
        ("file://{tmp}/queue.tsv", "queue.tsv"),
        ("file://localhost{tmp}/queue.tsv", "queue.tsv"),
    ],
)
def test_a_path_or_file_url_is_a_text_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_queue(url.format(tmp=tmp_path), clock=lambda: NOW, fsync=False) as queue:
        assert type(queue) is Queue
        assert queue.path == str(tmp_path / path)
        found = queue.get_job(queue.enqueue("greet", {}))
        assert found is not None and found["created_at"] == NOW
    assert (tmp_path / path).read_text("utf-8").count("greet") == 1


def test_a_path_object_is_never_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_queue((tmp_path / "memory:x").relative_to(tmp_path)) as queue:
        queue.enqueue("greet", {})
    assert (tmp_path / "memory:x").is_file()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://user:secret@host/0", "scheme 'amqp': must be file or memory .*write ./amqp:"),
        ("data:x.tsv", "unknown URL scheme 'data'"),
        ("file://other/queue.tsv", "must be a file on this machine, not on 'other'"),
        ("file:", "must name a file"),
        ("file://localhost", "must name a file"),
    ],
)
def test_a_url_without_an_engine_is_refused_and_no_password_is_shown(url: str, text: str) -> None:
    with pytest.raises(NotAQueue, match=text) as refusal:
        open_queue(url)
    assert "secret" not in str(refusal.value)


def test_each_queue_in_memory_is_new_unless_it_has_a_name() -> None:
    with open_queue("memory:") as one, open_queue("memory:") as two:
        one.enqueue("greet", {})
        assert (one.counts()["pending"], two.counts()["pending"]) == (1, 0)
    with open_queue("memory:test_engines") as named:
        named.enqueue("greet", {}, job_id="shared")
    with open_queue("MEMORY:test_engines") as again:
        assert again.get_job("shared") is not None
        again.remove_type("greet")


# --- limits of a queue in memory


def test_a_forked_child_cannot_use_its_copy_of_a_queue_in_memory() -> None:
    code = """
import os
from dbbasic_queue import Queue, StoreError
with Queue("memory:") as queue:
    queue.enqueue("greet", {})
    if os.fork() == 0:
        for call in (lambda: queue.enqueue("greet", {}), queue.counts, lambda: queue.get_job("x"),
                     lambda: queue.process_jobs({"greet": print})):
            try:
                call()
            except StoreError as e:
                assert "has only a copy" in str(e)
            else:
                os._exit(1)
        queue.close()
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.wait()[1]), queue.counts()["pending"])
"""
    done = python(code)
    assert (done.stdout, done.stderr) == ("7 1\n", "")


def test_a_handler_in_its_own_process_cannot_enqueue_into_a_queue_in_memory() -> None:
    with Queue("memory:") as queue:
        job_id = queue.enqueue("greet", {})
        handler = Handler(lambda _: queue.enqueue("other", {}), timeout=60)
        assert queue.process_jobs({"greet": handler}, 1)["failed"] == 1
        assert "has only a copy" in job(queue, job_id)["error"]
        assert queue.counts()["pending"] == 0


def test_workers_do_not_fork_for_a_queue_in_memory() -> None:
    ran: list[int] = []
    with Queue("memory:") as queue:
        queue.enqueue_many("greet", range(20))
        assert queue.process_jobs({"greet": ran.append}, workers=8)["completed"] == 20
        assert queue.run_until_complete({}, workers=8)["failed"] == 0
    assert ran == list(range(20))


def test_a_worker_runs_jobs_in_memory_too() -> None:
    with Queue("memory:") as queue, Worker(queue, {"greet": str.upper}):
        found = queue.wait(queue.enqueue("greet", "ada"), 60)
        assert found is not None and found["result"] == "ADA"


def test_an_error_in_the_pass_itself_returns_its_claims() -> None:
    clock = Clock(NOW)
    queue = Queue("memory:", clock=clock)
    ids = queue.enqueue_many("greet", range(20))

    def broken() -> float:
        raise OSError("the clock has stopped")

    def handler(number: int) -> None:
        if number == 11:
            queue.now = broken
            raise ValueError

    class Running(threading.Thread):
        error: BaseException | None = None

        def run(self) -> None:
            try:
                queue.process_jobs({"greet": handler})
            except OSError as e:
                self.error = e

    def stopping() -> float:
        return broken() if queue.now is broken else clock()

    queue.now = stopping
    running = Running()
    running.start()
    join(running, "the end of the pass")
    assert str(running.error) == "the clock has stopped"
    queue.now = clock
    assert [job(queue, i)["status"] for i in ids] == ["completed"] * 11 + ["pending"] * 9
    assert queue.process_jobs({"greet": str})["completed"] == 9
    assert {found["attempts"] for found in queue.jobs()} == {1}
