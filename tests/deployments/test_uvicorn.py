"""FastAPI under uvicorn, with a worker in its lifespan, is started and reloaded repeatedly."""

from __future__ import annotations

import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest
from deployment import Site, missing
from helpers import Child, environment, job, wait_for, wait_for_notes

from dbbasic_queue import Queue

REASON = missing("fastapi", "uvicorn")
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

UVICORN = [sys.executable, "-m", "uvicorn", "--fd", "{fd}", "--no-access-log", "fastapi_app:app"]
KINDS = ("coroutine", "function", "background")


def test_each_job_of_a_fastapi_app_with_a_worker_in_its_lifespan_runs_once(tmp_path: Path) -> None:
    site = Site(tmp_path, clients=200)
    while site.goes_on():
        with site.server(UVICORN) as server:
            site.order(server, 200, *KINDS)
            server.end()
    assert not site.unanswered
    site.check()


def test_each_job_of_a_fastapi_app_in_two_reloaded_processes_runs_once(tmp_path: Path) -> None:
    site = Site(tmp_path, clients=40)
    while site.goes_on():
        with site.server([*UVICORN, "--workers", "2"]) as server:
            site.order(server, 40, *KINDS)
            server.signal(signal.SIGHUP)
            site.order(server, 40, *KINDS)
            server.end()
    assert not site.unanswered
    site.check()


DRAINED = """
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from helpers import note, wait_for

from dbbasic_queue import Handlers, Queue, Worker

queue = Queue("queue.tsv")
jobs = Handlers(queue=queue)


@jobs.handler
def work(payload):
    note("started", "a job")
    wait_for(Path("go").exists, "the test")
    return "done"


@asynccontextmanager
async def lifespan(app):
    async with Worker(queue, jobs):
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def index():
    return "here"
"""


def test_a_job_that_runs_when_the_server_is_stopped_is_finished_first(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(DRAINED)
    queue = Queue(tmp_path / "queue.tsv")
    first, second = queue.enqueue_many("work", range(2))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, fd = listening.getsockname()[1], listening.fileno()
        command = [sys.executable, "-m", "uvicorn", "--fd", str(fd), "app:app"]
        server = Child(command, tmp_path, "server", environment(), [fd])
    try:
        wait_for_notes(tmp_path / "started", 1)
        # A request is answered while a plain function runs.
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert answer.read() == b'"here"'
        server.signal(signal.SIGTERM)
        wait_for(lambda: "application shutdown" in server.errors.read_text(), "the shutdown")
        assert server.is_running()
        (tmp_path / "go").touch()
        server.wait()
    finally:
        server.clean_up()
    assert "Traceback" not in server.errors.read_text()
    assert (job(queue, first)["status"], job(queue, first)["result"]) == ("completed", "done")
    assert (job(queue, second)["status"], job(queue, second)["attempts"]) == ("pending", 0)
