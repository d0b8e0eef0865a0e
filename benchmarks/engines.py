"""Measures a queue on PostgreSQL and on Valkey, next to Procrastinate's and RQ's own workers.

    python benchmarks/engines.py [--rounds N] [--jobs N] [postgres] [redis]

Starts both servers from the wheels of the test extra, with their data synced on each commit, in
TMPDIR or the current directory. Prints one line per measure: its name, the figure, and the goal. In
a round, each subject runs the same number of no-op jobs, one subject after the other, so other load
on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from postgres_server import PostgresServer  # noqa: E402 - it is next to the tests
from valkey_server import ValkeyServer  # noqa: E402

from dbbasic_queue import Queue, open_queue  # noqa: E402

WORKERS = 2
OURS = """
import sys
from dbbasic_queue import open_queue
queue = open_queue(sys.argv[1])
queue.counts()
print("ready", flush=True)
sys.stdin.readline()
queue.process_jobs({"noop": lambda number: True})
"""
PROCRASTINATE = """
import asyncio, sys
import procrastinate, psycopg
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=sys.argv[1]))
connection = psycopg.connect(sys.argv[1], autocommit=True)
@app.task(name="noop")
def noop(number):
    if sys.argv[2] == "results":
        connection.execute("INSERT INTO results VALUES (%s, 'true')", (number,))
async def main():
    async with app.open_async():
        print("ready", flush=True)
        sys.stdin.readline()
        await app.run_worker_async(
            wait=False, concurrency=1, install_signal_handlers=False, listen_notify=False
        )
asyncio.run(main())
"""
RQ = """
import sys
import redis, rq
from rq.serializers import JSONSerializer
connection = redis.Redis.from_url(sys.argv[1])
queue = rq.Queue("bare", connection=connection, serializer=JSONSerializer)
worker = rq.SimpleWorker([queue], connection=connection, serializer=JSONSerializer)
worker.log_job_description = worker.log_result_lifespan = False
print("ready", flush=True)
sys.stdin.readline()
worker.work(burst=True, logging_level="ERROR")
"""
LIVE = """
import sys, time
from dbbasic_queue import Worker, open_queue
Worker(open_queue(sys.argv[1]), {"stamp": lambda _: time.time()}).run_forever()
"""


def noop(number: int) -> bool:
    """Do nothing: the job of RQ's worker."""
    return True


def say(what: str, figure: str, goal: str) -> None:
    print(f"{what:<66}{figure:>12}   ({goal})", flush=True)


def seconds_of(program: str, *arguments: str) -> float:
    """Run a program in WORKERS processes; return how long they take from their common start."""
    command = [sys.executable, "-c", program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for _ in range(WORKERS)
        ]
        for process in processes:
            assert process.stdout and process.stdout.readline() == "ready\n"
        began = time.perf_counter()
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            assert process.wait() == 0
        return time.perf_counter() - began


def ours(url: str, jobs: int) -> float:
    with open_queue(url) as queue:
        queue.enqueue_many("noop", range(jobs))
        seconds = seconds_of(OURS, url)
        assert queue.counts()["completed"] == jobs, queue.counts()
        queue.remove_type("noop")
    return jobs / seconds


def procrastinate(url: str, jobs: int, *, results: bool) -> float:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('procrastinate_jobs')").fetchone() == (None,):
            from procrastinate.schema import SchemaManager

            connection.execute(SchemaManager.get_schema().encode())
            connection.execute("CREATE TABLE results (number int, result text)")
        connection.execute("TRUNCATE procrastinate_jobs, results CASCADE")
        connection.execute(
            "SELECT procrastinate_defer_jobs_v1(array_agg(ROW('default', 'noop', 0, NULL, NULL, "
            "json_build_object('number', n), NULL)::procrastinate_job_to_defer_v1)) "
            "FROM generate_series(1, %s) AS n",
            (jobs,),
        )
        seconds = seconds_of(PROCRASTINATE, url, "results" if results else "none")
        done = connection.execute(
            "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        ).fetchone()
        assert done == (jobs,), done
    return jobs / seconds


def rq(url: str, jobs: int) -> float:
    from redis import Redis
    from rq import Queue as RqQueue
    from rq.serializers import JSONSerializer

    queue = RqQueue("bare", connection=Redis.from_url(url), serializer=JSONSerializer)
    queue.enqueue_many([RqQueue.prepare_data("engines.noop", (n,)) for n in range(jobs)])
    seconds = seconds_of(RQ, url)
    assert queue.count == 0 and queue.finished_job_registry.count >= jobs
    for job_id in queue.finished_job_registry.get_job_ids():
        queue.connection.delete(f"rq:job:{job_id}", f"rq:results:{job_id}")
    queue.connection.delete(queue.finished_job_registry.key)
    return jobs / seconds


def throughput(name: str, subjects: dict[str, Any], rounds: int) -> None:
    """Measure the subjects in turns; compare the first with each of the others."""
    found: dict[str, list[float]] = {subject: [] for subject in subjects}
    for _ in range(rounds):
        for subject, measure in subjects.items():
            found[subject].append(measure())
    first, *others = found
    for subject, figures in found.items():
        low, high = min(figures), max(figures)
        figure = f"{statistics.median(figures):,.0f} /s"
        say(f"{name}: {subject}, {WORKERS} workers", figure, f"{low:,.0f} to {high:,.0f}")
    for other in others:
        ratios = [one / two for one, two in zip(found[first], found[other], strict=True)]
        say(f"{name}: {first} / {other}", f"{statistics.median(ratios):.2f}", "at least 0.80")


def pick_up(name: str, url: str) -> None:
    """Measure how soon live workers start jobs that are due at once, or later."""
    command = [sys.executable, "-c", LIVE, url]
    with open_queue(url) as queue, ExitStack() as stack:
        queue.enqueue("stamp", 0)  # the queue exists
        workers = [stack.enter_context(subprocess.Popen(command)) for _ in range(WORKERS)]
        time.sleep(3)
        try:
            sent = {}
            for n in range(400):
                sent[queue.enqueue("stamp", n)] = time.time()
                time.sleep(0.02 + 0.013 * (n % 7))  # not in step with anything
            due = {}
            for n in range(100):
                run_at = int(time.time()) + 3 + n % 5
                due[queue.enqueue("stamp", n, run_at)] = run_at
            time.sleep(12)
            late = [results(queue)[job_id] - at for job_id, at in sent.items()]
            delayed = [results(queue)[job_id] - at for job_id, at in due.items()]
        finally:
            for worker in workers:
                worker.terminate()
        queue.remove_type("stamp")
    cuts = statistics.quantiles(late, n=100)
    say(f"{name}: pick-up of a due job, median", f"{cuts[49] * 1e3:.0f} ms", "under 50 ms")
    say(f"{name}: the same, p99", f"{cuts[98] * 1e3:.0f} ms", "under 1,000 ms")
    say(f"{name}: a delayed job is late by, worst", f"{max(delayed):.2f} s", "at most 2 s")


def results(queue: Queue) -> dict[str, float]:
    return {job["id"]: job["result"] for job in queue.jobs("completed")}


def enqueue(name: str, url: str) -> None:
    with open_queue(url) as queue:
        queue.enqueue("noop", 0)
        began = time.perf_counter()
        for n in range(1000):
            queue.enqueue("noop", n)
        one = (time.perf_counter() - began) / 1000
        began = time.perf_counter()
        queue.enqueue_many("noop", range(10_000))
        many = 10_000 / (time.perf_counter() - began)
        queue.remove_type("noop")
    say(f"{name}: one enqueue", f"{one * 1e3:.2f} ms", "a sync of the disk, and a round trip")
    say(f"{name}: enqueue_many of 10,000 jobs", f"{many:,.0f} /s", "-")


@contextmanager
def closing(server: Any) -> Iterator[Any]:
    try:
        yield server
    finally:
        server.remove()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("engines", nargs="*", default=["postgres", "redis"])
    arguments = parser.parse_args()
    rounds, jobs = arguments.rounds, arguments.jobs
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as home:
        Path(home).chmod(0o755)  # the server's user must reach its directory
        if "postgres" in arguments.engines:
            with closing(PostgresServer(fsync=True, parent=home)) as server:
                url, bare = server.url("bench"), server.url()
                enqueue("PostgreSQL", url)
                pick_up("PostgreSQL", url)
                subjects: dict[str, Any] = {
                    "dbbasic_queue": lambda: ours(url, jobs),
                    "Procrastinate that stores results": lambda: procrastinate(
                        bare, jobs, results=True
                    ),
                    "Procrastinate without results": lambda: procrastinate(
                        bare, jobs, results=False
                    ),
                }
                throughput("PostgreSQL", subjects, rounds)
        if "redis" in arguments.engines:
            with closing(ValkeyServer(appendfsync="always", parent=home)) as server:
                url, bare = server.url("bench"), server.url()
                enqueue("Valkey", url)
                pick_up("Valkey", url)
                subjects = {
                    "dbbasic_queue": lambda: ours(url, jobs),
                    "RQ's SimpleWorker": lambda: rq(bare, jobs),
                }
                throughput("Valkey", subjects, rounds)


if __name__ == "__main__":
    main()
