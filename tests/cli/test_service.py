"""`dbbasic-queue worker`: SIGTERM, SIGHUP, and what it tells systemd."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import DEADLINE, Child, environment, job, notes, wait_for

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = """
import os
import time

VERSION = {version}


def version(payload):
    return [VERSION, os.getpid()]


def slow(payload):
    open("started", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return VERSION


jobs = {{"version": version, "slow": slow}}
"""
COMMAND = [sys.executable, "-m", "dbbasic_queue", "worker", "jobs:jobs"]


def deploy(app: Path, version: int) -> None:
    """Replace the module. Its size differs, so that no compiled copy is used."""
    (app / "jobs.py").write_text(JOBS.format(version=version) + "#" * version + "\n")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    deploy(tmp_path, 1)
    return tmp_path


@pytest.fixture
def default(app: Path) -> Iterator[Queue]:
    with Queue(app / "data/queue.tsv") as queue:
        yield queue


class Systemd:
    """The end of systemd: a socket that receives what a service reports."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(DEADLINE)
        self.env = {"NOTIFY_SOCKET": address.replace("\0", "@")}

    def receive(self) -> dict[str, str]:
        """Return the next report that isn't only the watchdog's."""
        while (found := self.receive_any()) == {"WATCHDOG": "1"}:
            pass
        return found

    def receive_any(self) -> dict[str, str]:
        lines = self.socket.recv(4096).decode().splitlines()
        return dict(text.split("=", 1) for text in lines)


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    name = f"\0dbbasic-queue-test-{os.getpid()}"
    found = Systemd(name if request.param == "abstract" else str(tmp_path / "notify"))
    with found.socket:
        yield found


@pytest.fixture
def children() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    for child in started:
        child.clean_up()


def start(app: Path, children: list[Child], *options: str, **env: str) -> Child:
    child = Child([*COMMAND, *options], app, f"worker-{len(children)}", env=environment() | env)
    children.append(child)
    return child


def result(queue: Queue, job_id: str) -> object:
    wait_for(lambda: job(queue, job_id)["status"] == "completed", f"job {job_id}")
    return job(queue, job_id)["result"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_lets_the_running_job_finish_and_ends_the_worker(
    app: Path, default: Queue, children: list[Child], workers: str
) -> None:
    slow = default.enqueue("slow", {})
    worker = start(app, children, "--workers", workers)
    wait_for((app / "started").exists, "the job")
    worker.signal(signal.SIGTERM)
    added = default.enqueue("version", {})
    time.sleep(0.2)
    assert worker.is_running()
    (app / "go").touch()
    assert worker.wait() == 0
    assert job(default, slow)["status"] == "completed"
    assert workers == "2" or job(default, added)["status"] == "pending"
    assert worker.errors.read_text() == ""


def test_sighup_lets_the_running_job_finish_and_loads_the_current_code(
    app: Path, default: Queue, children: list[Child]
) -> None:
    slow = default.enqueue("slow", {})
    worker = start(app, children)
    wait_for((app / "started").exists, "the job")
    deploy(app, 2)
    worker.signal(signal.SIGHUP)
    worker.signal(signal.SIGHUP)
    added = default.enqueue("version", {})
    (app / "go").touch()
    assert result(default, slow) == 1
    assert result(default, added) == [2, worker.process.pid]
    for version in range(3, 6):
        deploy(app, version)
        worker.signal(signal.SIGHUP)
        end = time.monotonic() + DEADLINE
        while result(default, default.enqueue("version", {})) != [version, worker.process.pid]:
            assert time.monotonic() < end, "it runs the old code"
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.errors.read_text() == ""


def test_sigterm_ends_a_worker_that_is_about_to_reload(
    app: Path, default: Queue, children: list[Child]
) -> None:
    default.enqueue("slow", {})
    worker = start(app, children)
    wait_for((app / "started").exists, "the job")
    worker.signal(signal.SIGHUP)
    worker.signal(signal.SIGTERM)
    (app / "go").touch()
    assert worker.wait() == 0


def test_many_reloads_kill_no_worker(app: Path, default: Queue, children: list[Child]) -> None:
    added = default.enqueue("version", {})
    worker = start(app, children)
    assert result(default, added) == [1, worker.process.pid]
    for _ in range(100):
        worker.signal(signal.SIGHUP)
        time.sleep(0.01)
    added = default.enqueue("version", {})
    assert result(default, added) == [1, worker.process.pid]


def test_systemd_learns_when_the_worker_is_ready_reloads_and_stops(
    app: Path, default: Queue, children: list[Child], systemd: Systemd
) -> None:
    default.enqueue("slow", {})
    worker = start(app, children, **systemd.env)
    ready = {"READY": "1", "MAINPID": str(worker.process.pid)}
    assert systemd.receive() == ready
    wait_for((app / "started").exists, "the job")
    before = time.monotonic_ns() // 1000
    worker.signal(signal.SIGHUP)
    reloading = systemd.receive()  # at once, although the job runs
    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    (app / "go").touch()
    assert systemd.receive() == ready
    worker.signal(signal.SIGTERM)
    assert systemd.receive() == {"STOPPING": "1"}
    assert worker.wait() == 0


def test_the_watchdog_is_fed_twice_as_often_as_it_asks_also_while_a_job_runs(
    app: Path, default: Queue, children: list[Child], systemd: Systemd
) -> None:
    default.enqueue("slow", {})
    worker = start(app, children, WATCHDOG_USEC="200000", **systemd.env)
    assert systemd.receive()["READY"] == "1"
    wait_for((app / "started").exists, "the job")
    at = []
    for _ in range(6):
        assert systemd.receive_any() == {"WATCHDOG": "1"}
        at.append(time.monotonic())
    assert 0.4 < at[-1] - at[0] < 5
    (app / "go").touch()
    worker.signal(signal.SIGTERM)
    assert systemd.receive() == {"STOPPING": "1"}


@pytest.mark.parametrize(
    "env", [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
def test_a_watchdog_that_is_off_or_another_process_s_gets_nothing(
    app: Path, default: Queue, children: list[Child], systemd: Systemd, env: dict[str, str]
) -> None:
    worker = start(app, children, **env, **systemd.env)
    assert systemd.receive_any()["READY"] == "1"
    result(default, default.enqueue("version", {}))
    worker.signal(signal.SIGTERM)
    assert systemd.receive_any() == {"STOPPING": "1"}


def test_a_worker_whose_systemd_is_gone_runs_on(
    app: Path, default: Queue, children: list[Child]
) -> None:
    start(app, children, NOTIFY_SOCKET=str(app / "nothing"))
    assert result(default, default.enqueue("version", {}))
    assert notes(app / "nothing") == []


def test_ctrl_c_ends_the_worker_without_a_traceback(
    app: Path, default: Queue, children: list[Child]
) -> None:
    slow = default.enqueue("slow", {})
    worker = start(app, children)
    wait_for((app / "started").exists, "the job")
    worker.signal(signal.SIGINT)
    assert worker.wait() == 130
    assert worker.errors.read_text() == ""
    assert (job(default, slow)["status"], job(default, slow)["attempts"]) == ("pending", 0)
