"""Measures what running handlers costs: concurrency, time limits, latency, priorities, stops.

    python benchmarks/handlers.py

Prints one line per measure: its name, the figure, and the figure if it cost nothing.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dbbasic_queue import Command, Handler, Queue

LINGERING = """
import os, sys, time
from dbbasic_queue import Queue
def stamp(sent):
    return time.time() - sent
queue = Queue(sys.argv[1])
queue.process_jobs({"stamp": stamp}, linger=float(sys.argv[2]))
print(sum(os.times()[:2]))
"""


MAILING = """
import sys, time
from dbbasic_queue import Handler, Queue
def stamp(sent):
    return time.time() - sent
def newsletter(_):
    time.sleep(0.005)
handlers = {"newsletter": newsletter, "mail": Handler(stamp, priority=10)}
Queue(sys.argv[1]).process_jobs(handlers, linger=1, workers=int(sys.argv[2]))
"""
ENDLESS = """
import os, re, subprocess, sys, time
from dbbasic_queue import Command, Handler, Queue
def note():
    with open(sys.argv[2], "w") as file:
        file.write("started")
def loop_in_c(_):
    note()
    re.match(r"(a+)+$", "a" * 64 + "b")
def tree(_):
    note()
    subprocess.run(["sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"])
script = 'exec 3>&-; echo started > "$0"; sleep 60'
handlers = {
    "loop": Handler(loop_in_c, timeout=60),
    "tree": Handler(tree, timeout=60),
    "command": Command(["sh", "-c", script, sys.argv[2]]),
}
Queue(sys.argv[1]).run_until_complete(handlers)
"""


def say(what: str, figure: str, ideal: str) -> None:
    print(f"{what:<62}{figure:>12}   ({ideal})", flush=True)


def run(queue: Queue, handlers: dict[str, Any], payloads: list[Any], workers: int) -> float:
    queue.enqueue_many("work", payloads)
    began = time.perf_counter()
    counts = queue.process_jobs(handlers, 1, workers=workers)
    seconds = time.perf_counter() - began
    assert counts["completed"] + counts["failed"] == len(payloads), counts
    return seconds


async def sleep_together(seconds: float) -> None:
    await asyncio.sleep(seconds)


def spin(_: Any) -> None:
    import re

    re.match(r"(a+)+$", "a" * 64 + "b")


def spawn_and_wait(count: int) -> float:
    """Return the seconds that it takes to run `true` that many times, and to do nothing else."""
    began = time.perf_counter()
    for _ in range(count):
        os.waitpid(os.posix_spawnp("true", ["true"], os.environ), 0)
    return time.perf_counter() - began


def pick_up(path: Path, seconds: int) -> tuple[list[float], float, float]:
    """Return the latencies of a lingering pass, and its CPU share when busy and when idle."""
    shares = []
    latencies: list[float] = []
    for jobs in (100, 0):
        command = [sys.executable, "-c", LINGERING, str(path), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            queue = Queue(path)
            time.sleep(0.5)
            for _ in range(jobs):
                queue.enqueue("stamp", time.time())
                time.sleep((seconds - 1) / jobs)
            output, _ = process.communicate()
        shares.append(float(output) / seconds)
        latencies += [job["result"] for job in queue.jobs(status="completed")]
        queue.close()
    return latencies[:100], shares[0], shares[1]


def mail_latencies(path: Path, workers: int, mails: int) -> list[float]:
    """Return after how many seconds a mail starts while 10,000 newsletter jobs are due."""
    with Queue(path) as queue:
        queue.enqueue_many("newsletter", [None] * 10_000)
        command = [sys.executable, "-c", MAILING, str(path), str(workers)]
        with subprocess.Popen(command):
            time.sleep(1)
            for n in range(mails):
                queue.enqueue("mail", time.time())
                time.sleep(0.1 + 0.013 * (n % 7))  # not in step with the batches
            waiting = queue.counts()["pending"]
            assert waiting, "the newsletter jobs had all run"
            queue.remove_type("newsletter")
        return [job["result"] for job in queue.jobs("completed", "mail")]


def stop_seconds(path: Path, job_type: str) -> float:
    """Return how long it takes to stop a job that doesn't end by itself."""
    with Queue(path) as queue:
        job_id = queue.enqueue(job_type, None)
        started = Path(f"{path}.started")
        with subprocess.Popen([sys.executable, "-c", ENDLESS, str(path), str(started)]):
            while not started.exists():
                time.sleep(0.01)
            time.sleep(0.2)
            began = time.perf_counter()
            assert queue.stop_job(job_id) == "stopped"
            return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as home:
        queue = Queue(Path(home, "queue.tsv"))
        handlers = {"work": sleep_together}
        seconds = run(queue, handlers, [0.1] * 1000, 100)
        say("1,000 coroutines of 0.1 s, workers=100", f"{seconds:.2f} s", "1.00 s")
        seconds = run(queue, {"work": time.sleep}, [1] * 8, 8)
        say("8 plain functions of 1 s, workers=8", f"{seconds:.2f} s", "1.00 s")
        plain = run(queue, {"work": str}, [1] * 100, 1)
        apart = run(queue, {"work": Handler(str, timeout=30)}, [1] * 100, 1)
        say("a job in its own process", f"{(apart - plain) * 10:.1f} ms", "0 ms")
        seconds = run(queue, {"work": Command(["true"])}, [1] * 1000, 1)
        floor = spawn_and_wait(1000)
        say("1,000 commands (`true`)", f"{seconds:.2f} s", f"{floor:.2f} s: posix_spawn and wait")
        late = [run(queue, {"work": Handler(spin, timeout=0.5)}, [1], 1) - 0.5 for _ in range(10)]
        say(
            "an endless C loop ends after its limit, median",
            f"{statistics.median(late) * 1e3:.0f} ms",
            "0 ms",
        )
        latencies, busy, idle = pick_up(Path(home, "pick.tsv"), 20)
        cuts = statistics.quantiles(latencies, n=100)
        say(
            "latency of a lingering pass, median",
            f"{cuts[49] * 1e3:.0f} ms",
            "25 ms: it polls every 50 ms",
        )
        say("the same, p99", f"{cuts[98] * 1e3:.0f} ms", "50 ms")
        say("CPU of a lingering pass, idle, including its start", f"{idle:.2%}", "0 %")
        say("the same, 5 jobs a second", f"{busy:.2%}", "0 %")
        for workers in (1, 4):
            found = mail_latencies(Path(home, f"mail{workers}.tsv"), workers, 40)
            say(
                f"a mail among 10,000 jobs of 5 ms, workers={workers}, median",
                f"{statistics.median(found) * 1e3:.0f} ms",
                "0 ms",
            )
        endless = {
            "loop": "an endless C loop",
            "tree": "a tree of processes",
            "command": "a command",
        }
        for job_type, what in endless.items():
            found = [stop_seconds(Path(home, f"{job_type}{n}.tsv"), job_type) for n in range(5)]
            say(f"stop_job of {what}, worst of 5", f"{max(found) * 1e3:.0f} ms", "0 ms")
        say(
            "peak memory",
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB",
            "Python alone: 10 MiB",
        )


if __name__ == "__main__":
    main()
