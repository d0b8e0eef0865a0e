"""Many processes are killed and stopped at random. At the end, every job must be accounted for.

Passes overlap, enqueuers enqueue and cancel, an observer polls the file, and a seeded driver sends
SIGKILL, SIGSTOP and SIGCONT. Each process appends one line per action to one shared log, with a
single write. At the end the log and the queue must agree.

A job counts as finished when the observer has seen it finished, or when its enqueuer's `cancel_job`
has returned True: after that, no handler may start it. DBBASIC_QUEUE_SOAK_SECONDS sets the length
(12 by default).
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbbasic_queue import JobDict, Queue

SECONDS = float(os.environ.get("DBBASIC_QUEUE_SOAK_SECONDS", "12"))
SEED = int(os.environ.get("DBBASIC_QUEUE_SEED", "1"))
MAX_ATTEMPTS = 5
FINAL = ("completed", "failed", "cancelled")
MOST_WAITING = 30
WORKERS, ENQUEUERS = 4, 2


class Log:
    """An append-only log. Each line is a single write, so lines of several processes never mix."""

    def __init__(self, home: Path) -> None:
        self.fd = os.open(home / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        line = f"{time.monotonic_ns()} {os.getpid()} " + " ".join(map(str, words)) + "\n"
        os.write(self.fd, line.encode())


# -- the programs ------------------------------------------------------------------------------


def enqueue(home: Path, seed: int) -> None:
    log, rng = Log(home), random.Random(seed)
    queue = Queue(home / "data" / "queue.tsv")
    for n in range(10**9):
        while n % 10 == 0 and queue.counts()["pending"] > MOST_WAITING:
            time.sleep(0.02)
        own = f"{seed}.{n}"  # without the process id: ids are reused within half an hour
        log.write("begin", own)
        do = rng.choice(("quick",) * 30 + ("slow", "fail", "exit", "die"))
        queue.enqueue("step", {"id": own, "do": do}, job_id=own)
        log.write("kept", own)
        if rng.random() < 0.1:
            for job_id in queue.enqueue_many("many", [{"n": n}] * rng.randint(1, 8)):
                log.write("kept", job_id)
        if rng.random() < 0.1 and queue.cancel_job(own):
            log.write("final", own, "cancelled")
        time.sleep(rng.random() * 0.01)


def work(home: Path, seed: int) -> None:
    log, rng = Log(home), random.Random(seed)
    queue = Queue(home / "data" / "queue.tsv", clock=lambda: time.time() + ahead())
    locks = home / "locks"

    def ahead() -> float:
        # The clock runs an hour per second, so retries are due within seconds.
        return (time.time() - started) * 3600

    started = float((home / "started").read_text())

    def step(payload: dict[str, Any]) -> str:
        fd = os.open(locks / payload["id"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.write("two", payload["id"])
            raise
        log.write("start", payload["id"])
        try:
            if payload["do"] == "slow":
                time.sleep(0.3)
            if payload["do"] == "die":
                log.write("dies", payload["id"])
                os.kill(os.getpid(), signal.SIGKILL)
            if payload["do"] == "exit":
                sys.exit(payload["id"])
            if payload["do"] == "fail":
                raise ValueError(payload["id"])
            time.sleep(rng.random() * 0.02)
            log.write("end", payload["id"])
            return str(payload["id"])
        finally:
            os.close(fd)

    while True:
        queue.process_jobs({"step": step, "many": lambda _: None}, max_attempts=MAX_ATTEMPTS)
        log.write("pass")
        time.sleep(rng.random() * 0.02)


def observe(home: Path, seed: int) -> None:
    """Log each job once when the file shows it as finished, and log everything that is wrong."""
    log = Log(home)
    log.write("started")
    path = home / "data" / "queue.tsv"
    queue = Queue(path)
    finished: dict[str, JobDict] = {}
    most = 0
    while True:
        for job in queue.jobs():
            if job["status"] not in FINAL:
                if job["id"] in finished:
                    log.write("wrong", job["id"], "was", finished[job["id"]]["status"])
            elif job["id"] not in finished:
                finished[job["id"]] = job
                log.write("final", job["id"], job["status"])
            elif finished[job["id"]] != job:
                log.write("wrong", job["id"], "has changed")
        lines = path.read_bytes().split(b"\n")
        for line in lines[:-1]:  # as `cat` shows them: only the last line may be partial
            if line.count(b"\t") != 8 and not line.startswith(b"torn"):
                log.write("wrong", "line", line[:60].hex())
        if len(lines) < most:
            log.write("wrong", "rows", len(lines), most)
        most = max(most, len(lines))
        time.sleep(0.02)


PROGRAMS = {"enqueue": enqueue, "work": work, "observe": observe}


# -- the driver --------------------------------------------------------------------------------


class Driver:
    """Keeps the programs running, and kills and stops them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.rng = random.Random(SEED)
        self.log = Log(home)
        self.running: dict[int, str] = {}
        self.errors = open(home / "errors", "wb")  # noqa: SIM115 - the programs write to it
        self.did: Counter[str] = Counter()
        self.started = 0
        self.active: set[int] = set()  # the processes that have logged something
        self.reader = open(home / "log", encoding="ascii")  # noqa: SIM115 - read while it grows

    def start(self, program: str) -> None:
        """Fork a program. A new interpreter would spend most of its short life on imports."""
        self.started += 1
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(self.errors.fileno(), 2)
                PROGRAMS[program](self.home, SEED + self.started)
            except BaseException:  # noqa: BLE001 - the test shows it
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        self.running[pid] = program

    def reap(self) -> None:
        for pid, program in list(self.running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self.running[pid]
            if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
                self.did["died otherwise"] += 1
            self.start(program)

    def read_log(self) -> None:
        self.active.update(int(line.split()[1]) for line in self.reader)

    def victim(self, chosen: str) -> int | None:
        """Choose a process that has logged something: killing one earlier would test nothing."""
        self.read_log()
        victims = [
            pid for pid, program in self.running.items() if program == chosen and pid in self.active
        ]
        return self.rng.choice(victims) if victims else None

    def run(self, seconds: float) -> None:
        for program, count in (("work", WORKERS), ("enqueue", ENQUEUERS), ("observe", 1)):
            for _ in range(count):
                self.start(program)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.rng.random() * 0.3)
            self.reap()
            victim = self.victim(self.rng.choice(("work", "work", "enqueue")))
            if victim is None:
                continue
            if self.rng.random() < 0.7:
                self.log.write("kill", victim)
                os.kill(victim, signal.SIGKILL)
                self.active.discard(victim)
                self.did["kills"] += 1
            else:
                os.kill(victim, signal.SIGSTOP)
                # If it is stopped while it holds the queue's lock, all others must wait.
                time.sleep(self.rng.random() * 0.2)
                os.kill(victim, signal.SIGCONT)
                self.did["stops"] += 1
        for pid in self.running:
            self.log.write("kill", pid)
            os.kill(pid, signal.SIGKILL)
        for pid in self.running:
            os.waitpid(pid, 0)
        self.errors.close()
        self.reader.close()


def test_every_job_is_accounted_for_after_random_kills_and_stops(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "started").write_text(str(time.time()))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "queue.tsv"
    Queue(path).enqueue("many", None)
    driver = Driver(tmp_path)
    driver.run(SECONDS)
    assert not driver.did["died otherwise"], (tmp_path / "errors").read_text()[-3000:]

    # The last passes, ten years later, finish all remaining jobs and their retries.
    later = time.time() + 10 * 365 * 86_400
    last = Log(tmp_path)
    with Queue(path, clock=lambda: later) as queue:
        for _ in range(MAX_ATTEMPTS + 1):
            queue.process_jobs({"step": last_handler(last), "many": lambda _: None}, MAX_ATTEMPTS)
            later += 365 * 86_400
        jobs = {job["id"]: job for job in queue.jobs()}
        assert sum(queue.counts().values()) == len(jobs)
    assert driver.did["kills"], "no process was killed: this run proves nothing"
    outcome = Outcome(tmp_path)
    outcome.check(jobs)
    print(
        f"{SECONDS:.0f} s: {driver.did['kills']} kills by the driver, {outcome.deaths} by "
        f"jobs, {driver.did['stops']} stops, {driver.started} processes, {outcome.passes} "
        f"passes; {len(jobs)} jobs, {sum(outcome.starts.values())} runs, "
        f"{outcome.again} of them again after a kill; seed {SEED}",
    )


def last_handler(log: Log) -> Callable[[dict[str, Any]], None]:
    def step(payload: dict[str, Any]) -> None:
        log.write("start", payload["id"])
        log.write("end", payload["id"])

    return step


class Outcome:
    """What happened, according to the log."""

    def __init__(self, home: Path) -> None:
        self.kept: set[str] = set()
        self.started: set[str] = set()
        self.final: dict[str, str] = {}
        self.starts: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.runners: dict[str, list[str]] = defaultdict(list)
        self.problems: list[str] = []
        self.passes = self.deaths = self.again = 0
        killed: set[str] = set()
        for line in (home / "log").read_text().split("\n")[:-1]:
            _, pid, word, *rest = line.split(" ")
            if word == "kept":
                self.kept.add(rest[0])
            elif word == "begin":
                self.started.add(rest[0])
            elif word == "final":
                if self.final.setdefault(rest[0], rest[1]) != rest[1]:
                    self.problems.append(f"{rest[0]} was {self.final[rest[0]]}: {line}")
            elif word == "start":
                self.starts[rest[0]] += 1
                self.runners[rest[0]].append(pid)
                if rest[0] in self.final:
                    self.problems.append(f"started after it was {self.final[rest[0]]}: {line}")
            elif word == "end":
                self.ends[rest[0]] += 1
            elif word in ("two", "wrong"):
                self.problems.append(line)
            elif word == "kill":
                killed.add(rest[0])
            elif word == "dies":
                killed.add(pid)
                self.deaths += 1
            elif word == "pass":
                self.passes += 1
        self.killed = killed

    def check(self, jobs: dict[str, JobDict]) -> None:
        assert not self.problems, self.problems[:20]
        missing = self.kept - jobs.keys()
        assert not missing, f"enqueued and lost: {sorted(missing)[:20]}"
        for job_id, job in jobs.items():
            assert job["status"] in FINAL, job
            assert self.final.get(job_id, job["status"]) == job["status"], job
            if job["type"] != "step":
                assert job["status"] == "completed", job
                continue
            assert job_id in self.started, f"never enqueued: {job}"
            if job["status"] == "cancelled":
                assert not self.ends[job_id], f"cancelled after it was done: {job}"
            if job["status"] == "completed":
                assert self.ends[job_id], f"completed, and was never done: {job}"
            # A job may run again after a finished run only if a kill came in between.
            finishes = self.ends[job_id]
            fatal = sum(pid in self.killed for pid in self.runners[job_id])
            assert finishes - 1 <= fatal, f"done {finishes} times, killed {fatal} times: {job}"
            assert self.starts[job_id] <= MAX_ATTEMPTS, f"{self.starts[job_id]} runs: {job}"
            if job["payload"]["do"] in ("quick", "slow"):
                self.again += max(self.starts[job_id] - 1, 0)
                spare = self.starts[job_id] - (job["status"] == "completed")
                assert spare <= fatal, f"{self.starts[job_id]} runs, {fatal} killed: {job}"
