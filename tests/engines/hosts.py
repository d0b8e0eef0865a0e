"""Four hosts share a queue on a server, and everything that can fail on a network does.

Each host is a process with a long-running worker, in a network namespace with an address of its own
if that is possible (root, Linux). Two more start short passes, as cron does. They run many jobs,
while workers are killed (-9), connections are cut, cables are pulled, and the server is killed and
restarted. Every process writes down when it starts and ends each attempt; `check` compares that
with the queue.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from helpers import environment

from dbbasic_queue import Queue, open_queue
from dbbasic_queue.engines.backend import DEAD_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOSTS = 4
_PARTS = 20
BACK_SECONDS = 60.0
"""how soon the job of a killed worker must be pending again, in seconds, as documented"""
NETWORK = "10.213.77"
SERVER_ADDRESS = f"{NETWORK}.1"

PROGRAM = """
import os, sys, time
from dbbasic_queue import Backoff, Handlers, Worker, open_queue

url, log, kind = sys.argv[1:]
log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
queue = open_queue(url)
jobs = Handlers(queue=queue)
at_once = Backoff(first=0)

def run(milliseconds, job):
    line = f"{job.id} {job.attempt} {os.getpid()}"
    os.write(log, f"start {line} {time.monotonic()}\\n".encode())
    time.sleep(milliseconds / 1000)
    os.write(log, f"end {line} {time.monotonic()}\\n".encode())
    return milliseconds

more = {"quick": {}, "slow": {}, "narrow": {"concurrency": 2}, "own": {"timeout": 60}}
for name, more in more.items():
    def function(milliseconds, job):
        return run(milliseconds, job)
    jobs.handler(name, max_attempts=100, backoff=at_once, **more)(function)

if kind == "worker":
    Worker(queue, jobs, max_attempts=100).run_forever()
else:
    while True:
        try:
            queue.process_jobs(jobs, max_attempts=100)
        except OSError as e:
            print(e, file=sys.stderr)
        time.sleep(1)
"""


class Server(Protocol):
    """A server that the hosts can reach."""

    def url(self, queue: str = "", host: str = "127.0.0.1") -> str:
        """Return the URL of a queue, for a host that reaches the server at the address `host`."""

    def cut_connections(self) -> None:
        """Close all connections from the server's side."""

    def crash(self) -> None:
        """Kill the server, and start it again with its data."""

    def remove(self) -> None:
        """Kill the server, and remove its data."""


@dataclass
class Process:
    """A process on a host, and what is known about its life (on the monotonic clock)."""

    program: subprocess.Popen[bytes]
    started_at: float
    killed_at: float | None = None


@dataclass
class Host:
    """Where a worker runs; `name` is its network namespace, or "" for this machine's network."""

    number: int
    name: str
    kind: str
    processes: list[Process] = field(default_factory=list)
    partitions: list[tuple[float, float]] = field(default_factory=list)
    """when it was cut off from the server for so long that its worker counts as dead"""

    def kills(self) -> list[float]:
        return [at for process in self.processes if (at := process.killed_at) is not None]

    def killed_after(self, at: float) -> float:
        """Return when the process that was running at this instant was killed."""
        return min(kill for kill in self.kills() if kill >= at)

    def is_cut_off(self, at: float) -> bool:
        return any(begin <= at <= end for begin, end in self.partitions)


@dataclass
class Attempt:
    job_id: str
    number: int
    host: Host
    started_at: float
    ended_at: float | None = None


def can_make_networks() -> bool:
    """Return whether this process may make network namespaces."""
    if os.geteuid() != 0:
        return False
    with suppress(OSError):
        name = f"dbq-try-{os.getpid()}"
        done = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        return done.returncode == 0
    return False


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Hosts:
    """The hosts, and the jobs that they run."""

    server: Server
    queue: Queue

    def __init__(
        self, start: Callable[[str], Server], queue: str, directory: Path, *, seed: int
    ) -> None:
        """`start` starts the server; it listens on this address, too, unless that is ""."""
        self.random = random.Random(seed)
        self._start_server = start
        self.queue_name = queue
        self.directory = directory
        self.has_networks = can_make_networks()
        must_have_networks = os.geteuid() == 0 and "CI" in os.environ
        assert self.has_networks or not must_have_networks, "CI's root can't make networks"
        self.hosts: list[Host] = []
        self.ids: set[str] = set()
        self.last_running: dict[tuple[str, int], float] = {}
        """job id and attempt -> when it was running last, on the monotonic clock"""
        (directory / "worker.py").write_text(PROGRAM, "utf-8")

    def __enter__(self) -> Hosts:
        if self.has_networks:
            self._remove_networks()
            _ip("link", "add", "dbq-bridge", "type", "bridge")
            _ip("addr", "add", f"{SERVER_ADDRESS}/24", "dev", "dbq-bridge")
            _ip("link", "set", "dbq-bridge", "up")
        self.server = self._start_server(SERVER_ADDRESS if self.has_networks else "")
        self.queue = open_queue(self.server.url(self.queue_name))
        for number in range(HOSTS + 2):
            name = f"dbq-{number}" if self.has_networks else ""
            if name:
                self._make_network(number, name)
            host = Host(number, name, "worker" if number < HOSTS else "cron")
            self.hosts.append(host)
        return self

    def _make_network(self, number: int, name: str) -> None:
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}-out", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", f"{name}-out", "master", "dbq-bridge")
        _ip("link", "set", f"{name}-out", "up")
        _ip("-n", name, "addr", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def _remove_networks(self) -> None:
        for number in range(HOSTS + 2):
            for words in (["netns", "del", f"dbq-{number}"], ["link", "del", f"dbq-{number}-out"]):
                subprocess.run(["ip", *words], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", "dbq-bridge"], capture_output=True, check=False)

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            self._pull(host, up=True)
            for process in host.processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.program.pid, signal.SIGKILL)
                process.program.wait()
        if self.has_networks:
            self._remove_networks()
        self.queue.close()
        self.server.remove()

    # -- what happens --

    def enqueue(self, counts: dict[str, tuple[int, int]]) -> None:
        """Add jobs: type -> how many, and for how many milliseconds each sleeps.

        The types are mixed, so that some process runs a job of each at any time.
        """
        for _ in range(_PARTS):
            for job_type, (count, milliseconds) in counts.items():
                payloads = [milliseconds] * (count // _PARTS)
                self.ids.update(self.queue.enqueue_many(job_type, payloads))

    def start(self, host: Host) -> None:
        """Start the host's process, in place of one that was killed."""
        address = SERVER_ADDRESS if self.has_networks else "127.0.0.1"
        # Not with `ip netns exec`: it would also copy the mounts that other tests make.
        inside = ["nsenter", f"--net=/run/netns/{host.name}"] if host.name else []
        url = self.server.url(self.queue_name, address)
        log = str(self.directory / f"host-{host.number}.log")
        with open(self.directory / f"host-{host.number}.errors", "ab") as errors:
            program = subprocess.Popen(
                [*inside, sys.executable, "worker.py", url, log, host.kind],
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        host.processes.append(Process(program, time.monotonic()))

    def kill(self, host: Host) -> None:
        """Kill the host's process, and all that it has started."""
        process = host.processes[-1]
        os.killpg(process.program.pid, signal.SIGKILL)
        process.program.wait()
        process.killed_at = time.monotonic()

    def _pull(self, host: Host, *, up: bool) -> None:
        if host.name:
            subprocess.run(
                ["ip", "link", "set", f"{host.name}-out", "up" if up else "down"],
                capture_output=True,
                check=False,
            )

    def run(self, *, most_seconds: float, partition: bool) -> Iterator[str]:
        """Run the jobs while things fail, until all have ended; yield what happened."""
        began = time.monotonic()
        for host in self.hosts:
            self.start(host)
        crashes_at = began + 8
        cut_off: Host | None = None
        until = began + 12
        while time.monotonic() < began + most_seconds:
            time.sleep(self.random.uniform(0.3, 1.0))
            now = time.monotonic()
            self._check_processes()
            self._look_at_running()
            if partition and cut_off is None and self.has_networks and now > began + 4:
                cut_off = self.hosts[0]
                self._pull(cut_off, up=False)
                until = now + DEAD_SECONDS + 15
                cut_off.partitions.append((now, until))
                yield f"{cut_off.name} is cut off for {until - now:.0f} s"
            if cut_off is not None and now > until:
                self._pull(cut_off, up=True)
            if now > crashes_at:
                crashes_at = float("inf")
                self.server.crash()
                yield "the server was killed and restarted"
            if now < began + 25:
                yield self._fail(cut_off)
            elif self._is_complete() and (cut_off is None or now > until + 5):
                return
        raise AssertionError(f"not done after {most_seconds} s: {self.queue.counts()}")

    def _fail(self, cut_off: Host | None) -> str:
        """Let one thing fail."""
        host = self.random.choice([h for h in self.hosts if h is not cut_off])
        what = self.random.random()
        if what < 0.5:
            self.kill(host)
            self.start(host)
            return f"killed {host.kind} {host.number}"
        if what < 0.8 or not host.name:
            with suppress(OSError):
                self.server.cut_connections()
            return "cut all connections"
        self._pull(host, up=False)
        time.sleep(self.random.uniform(0.2, 2))
        self._pull(host, up=True)
        return f"pulled the cable of {host.number} for a moment"

    def _check_processes(self) -> None:
        for host in self.hosts:
            if host.processes[-1].program.poll() is not None:
                errors = (self.directory / f"host-{host.number}.errors").read_text("utf-8")
                raise AssertionError(f"the {host.kind} {host.number} has ended: {errors[-2000:]}")

    def _look_at_running(self) -> None:
        """Note which attempts are running, as the server sees it."""
        with suppress(OSError):
            for row in self.queue.store.running()[1]:
                self.last_running[row.id, row.state.attempts] = time.monotonic()

    def _is_complete(self) -> bool:
        try:
            return self.queue.store.is_complete()
        except OSError:
            return False

    # -- what was seen --

    def attempts(self) -> list[Attempt]:
        """Return all attempts that were started, in the order of their start."""
        found: dict[tuple[str, str, str, str], Attempt] = {}
        for host in self.hosts:
            log = self.directory / f"host-{host.number}.log"
            lines = log.read_text("utf-8").splitlines() if log.exists() else []
            for line in lines:
                what, job_id, number, pid, at = line.split()
                key = (job_id, number, pid, str(host.number))
                if what == "start":
                    assert key not in found, f"{line}: this process has started it before"
                    found[key] = Attempt(job_id, int(number), host, float(at))
                else:
                    found[key].ended_at = float(at)
        return sorted(found.values(), key=lambda attempt: attempt.started_at)

    def check(self) -> dict[str, float]:
        """Check every promise; return some figures."""
        jobs = {job["id"]: job for job in self.queue.jobs()}
        assert set(jobs) == self.ids, "jobs were lost, or made up"
        not_done = [job for job in jobs.values() if job["status"] != "completed"]
        assert not not_done, f"{len(not_done)} jobs aren't completed, such as {not_done[:3]}"
        by_job: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts():
            by_job[attempt.job_id].append(attempt)
        assert set(by_job) == self.ids, "jobs are completed that never ran"
        kills = sum(len(host.kills()) for host in self.hosts)
        slowest = 0.0
        repeated = interrupted = 0
        for job_id, attempts in by_job.items():
            recorded = jobs[job_id]["attempts"]
            late = [attempt for attempt in attempts if attempt.number > recorded]
            assert not late, f"ran again after its outcome was recorded: {late}, {recorded}"
            numbers = [attempt.number for attempt in attempts]
            assert len(numbers) == len(set(numbers)), f"an attempt was started twice: {attempts}"
            repeated += len(attempts) > 1
            interrupted += any(attempt.ended_at is None for attempt in attempts)
            for one, two in pairwise(attempts):
                end = one.ended_at or one.host.killed_after(one.started_at)
                if not one.host.is_cut_off(two.started_at):
                    assert two.started_at >= end, f"two live workers ran it: {one} {two}"
                    # Then it was pending again, behind all jobs that were due before.
                    last = self.last_running.get((job_id, one.number), end)
                    slowest = max(slowest, last - end)
        assert slowest <= BACK_SECONDS, f"a job of a killed worker came back after {slowest} s"
        assert interrupted, "no kill has hit a running job"
        return {
            "kills": kills,
            "interrupted": interrupted,
            "repeated": repeated,
            "slowest return in s": round(slowest, 1),
        }
