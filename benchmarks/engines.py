"""Measures a queue on PostgreSQL and on Valkey, next to Procrastinate's and RQ's own workers.

    python benchmarks/engines.py [--rounds N] [--jobs N] [postgres] [redis]

Starts both servers from the wheels of the test extra, with their data synced on each commit, in
TMPDIR or the current directory: it must be on a disk. Prints one line per measure: its name, the
figure, and the goal or what it is made of. In a round, each subject runs the same number of no-op
jobs, one subject after the other, so other load on the machine affects all of them. The text file
is measured in the same rounds: it is the floor, as there is no server.
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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from postgres_server import PostgresServer  # noqa: E402 - it is next to the tests
from valkey_server import ValkeyServer  # noqa: E402

from dbbasic_queue import Queue, open_queue  # noqa: E402

Server: TypeAlias = PostgresServer | ValkeyServer

WORKERS = 2
MOST_WORKERS = (1, 2, 4, 8)
SPACE_JOBS = 5000
BEGIN = """
import sys, time
def ready():
    print("ready", flush=True)
    sys.stdin.readline()
    return time.process_time()
"""
OURS = """
from dbbasic_queue import open_queue
queue = open_queue(sys.argv[1])
queue.counts()
began = ready()
queue.process_jobs({"noop": lambda number: True})
print(time.process_time() - began)
"""
PROCRASTINATE = """
import asyncio, logging
import procrastinate, psycopg
logging.getLogger("procrastinate").setLevel(logging.ERROR)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=sys.argv[1]))
connection = psycopg.connect(sys.argv[1], autocommit=True)
@app.task(name="noop")
def noop(number):
    if sys.argv[2] == "results":
        connection.execute("INSERT INTO results VALUES (%s, 'true')", (number,))
async def main():
    async with app.open_async():
        began = ready()
        await app.run_worker_async(
            wait=False, concurrency=1, install_signal_handlers=False, listen_notify=False
        )
        print(time.process_time() - began)
asyncio.run(main())
"""
RQ = """
import redis, rq
from rq.serializers import JSONSerializer
connection = redis.Redis.from_url(sys.argv[1])
queue = rq.Queue("bare", connection=connection, serializer=JSONSerializer)
worker = rq.SimpleWorker([queue], connection=connection, serializer=JSONSerializer)
worker.log_job_description = worker.log_result_lifespan = False
began = ready()
worker.work(burst=True, logging_level="ERROR")
print(time.process_time() - began)
"""
LIVE = """
import time
from dbbasic_queue import Worker, open_queue
Worker(open_queue(sys.argv[1]), {"stamp": lambda _: time.time()}).run_forever()
"""


def noop(number: int) -> bool:
    """Do nothing: the job of RQ's worker."""
    return True


def say(what: str, figure: str, goal: str) -> None:
    print(f"{what:<66}{figure:>12}   ({goal})", flush=True)


# -- what a run costs --


def cpu_seconds(server: Server | None) -> float:
    """Return the CPU time that a server's process and its children have used; 0 for no server."""
    if server is None:
        return 0.0
    with open(f"/proc/{server.pid}/task/{server.pid}/children") as file:
        children = map(int, file.read().split())
    ticks = 0
    for process in [server.pid, *children]:
        try:
            with open(f"/proc/{process}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except FileNotFoundError:  # it has just ended
            continue
        ticks += sum(map(int, fields[11:15]))  # its own, and that of its ended children
    return ticks / os.sysconf("SC_CLK_TCK")


def log_bytes(server: Server | None) -> int:
    """Return how much a server has written to its log of changes, which it syncs."""
    if isinstance(server, PostgresServer):
        ((found,),) = server.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
        return int(found)
    if isinstance(server, ValkeyServer):
        with server.client() as client:
            return int(client.info("persistence")["aof_current_size"])
    return 0


class Run(NamedTuple):
    """What running some jobs has taken: CPU seconds per 1,000 jobs, bytes of its log per job."""

    jobs_per_second: float
    server_cpu: float
    worker_cpu: float
    log_bytes: float


def run(server: Server | None, jobs: int, workers: int, program: str, *arguments: str) -> Run:
    """Run jobs by a program in several processes, from their common start to the end of all."""
    command = [sys.executable, "-c", BEGIN + program, *arguments]
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
            for _ in range(workers)
        ]
        for process in processes:
            assert process.stdout and process.stdout.readline() == "ready\n"
        written, cpu = log_bytes(server), cpu_seconds(server)
        began = time.perf_counter()
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        worker_cpu = 0.0
        for process in processes:
            assert process.stdout
            worker_cpu += float(process.stdout.readline())
        seconds = time.perf_counter() - began
        cpu, written = cpu_seconds(server) - cpu, log_bytes(server) - written
    return Run(
        jobs / seconds,
        cpu / jobs * 1000,
        worker_cpu / jobs * 1000,
        written / jobs,
    )


# -- the subjects --


def ours(url: str, server: Server | None, jobs: int, workers: int) -> Run:
    with open_queue(url) as queue:
        queue.enqueue_many("noop", range(jobs))
        found = run(server, jobs, workers, OURS, url)
        assert queue.counts()["completed"] == jobs, queue.counts()
        queue.remove_type("noop")
    return found


def procrastinate(server: Server, jobs: int, workers: int, *, results: bool) -> Run:
    import psycopg

    url = server.url()
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
        found = run(server, jobs, workers, PROCRASTINATE, url, "results" if results else "none")
        done = connection.execute(
            "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        ).fetchone()
        assert done == (jobs,), done
    return found


def rq(server: Server, jobs: int, workers: int) -> Run:
    from redis import Redis
    from rq import Queue as RqQueue
    from rq.serializers import JSONSerializer

    url = server.url()
    queue = RqQueue("bare", connection=Redis.from_url(url), serializer=JSONSerializer)
    queue.enqueue_many([RqQueue.prepare_data("engines.noop", (n,)) for n in range(jobs)])
    found = run(server, jobs, workers, RQ, url)
    assert queue.count == 0 and queue.finished_job_registry.count >= jobs
    for job_id in queue.finished_job_registry.get_job_ids():
        queue.connection.delete(f"rq:job:{job_id}", f"rq:results:{job_id}")
    queue.connection.delete(queue.finished_job_registry.key)
    return found


# -- the measures --


def throughput(name: str, subjects: dict[str, Callable[[int], Run]], rounds: int) -> None:
    """Measure the subjects in turns; compare the first with each of the others."""
    found: dict[str, list[Run]] = {subject: [] for subject in subjects}
    for _ in range(rounds):
        for subject, measure in subjects.items():
            found[subject].append(measure(WORKERS))
    first, *others = found
    for subject, runs in found.items():
        say_speed(f"{name}: {subject}, {WORKERS} workers", runs)
    for other in others:
        if "text file" not in other:
            ratios = [
                one.jobs_per_second / two.jobs_per_second
                for one, two in zip(found[first], found[other], strict=True)
            ]
            say(f"{name}: {first} / {other}", f"{statistics.median(ratios):.2f}", "at least 0.80")
    for subject, runs in found.items():
        server, workers, written = (
            statistics.median(run[at] for run in runs) for at in range(1, len(Run._fields))
        )
        parts = f"server {server:.2f} s, workers {workers:.2f} s"
        say(f"{name}: {subject}, CPU for 1,000 jobs", f"{server + workers:.2f} s", parts)
        if server:
            say(f"{name}: {subject}, log of changes", f"{written / 1e3:.1f} kB", "per job")


def say_speed(what: str, runs: list[Run]) -> None:
    figures = [run.jobs_per_second for run in runs]
    spread = f"{min(figures):,.0f} to {max(figures):,.0f}"
    say(what, f"{statistics.median(figures):,.0f} /s", spread)


def scaling(subjects: dict[str, Callable[[int], Run]], rounds: int) -> None:
    """Measure the subjects with several numbers of workers, in turns."""
    found: dict[tuple[str, int], list[Run]] = {}
    for _ in range(rounds):
        for workers in MOST_WORKERS:
            for subject, measure in subjects.items():
                found.setdefault((subject, workers), []).append(measure(workers))
    for (subject, workers), runs in sorted(found.items()):
        say_speed(f"{subject}: {workers} workers", runs)


def pick_up(name: str, url: str) -> None:
    """Measure how soon live workers start jobs that are due at once, or later."""
    command = [sys.executable, "-c", BEGIN + LIVE, url]
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
    say(f"{name}: a delayed job is late by, median", f"{statistics.median(delayed):.2f} s", "-")
    say(f"{name}: the same, worst", f"{max(delayed):.2f} s", "at most 2 s")


def results(queue: Queue) -> dict[str, float]:
    return {job["id"]: job["result"] for job in queue.jobs("completed")}


def enqueue(name: str, url: str, server: Server | None) -> None:
    with open_queue(url) as queue:
        queue.enqueue("noop", 0)
        before, began, cpu = cpu_seconds(server), time.perf_counter(), time.process_time()
        for n in range(1000):
            queue.enqueue("noop", n)
        one = time.perf_counter() - began
        own = time.process_time() - cpu
        servers = cpu_seconds(server) - before
        began = time.perf_counter()
        queue.enqueue_many("noop", range(10_000))
        many = 10_000 / (time.perf_counter() - began)
        queue.remove_type("noop")
    say(f"{name}: one enqueue", f"{one:.2f} ms", "a sync of the disk, and a round trip")
    parts = f"server {servers:.2f} s, program {own:.2f} s"
    say(f"{name}: 1,000 single enqueues, CPU", f"{servers + own:.2f} s", parts)
    say(f"{name}: enqueue_many of 10,000 jobs", f"{many:,.0f} /s", "-")


def space(name: str, url: str, size: Callable[[], int]) -> None:
    """Measure how much room a job takes, when it waits, and when it is completed."""
    with open_queue(url) as queue:
        queue.enqueue_many("noop", range(100))
        before = size()
        queue.enqueue_many("noop", range(SPACE_JOBS))
        waiting = (size() - before) / SPACE_JOBS
        queue.process_jobs({"noop": lambda number: True})
        finished = (size() - before) / SPACE_JOBS
        queue.remove_type("noop")
    say(f"{name}: room for a waiting job", f"{waiting:,.0f} B", "besides its payload")
    say(f"{name}: room for a finished job", f"{finished:,.0f} B", "with its row of the history")


# -- the servers --


@contextmanager
def closing(server: Any) -> Iterator[Any]:
    try:
        yield server
    finally:
        server.remove()


def postgres(server: PostgresServer, arguments: argparse.Namespace, file: Any) -> None:
    url, jobs = server.url("bench"), arguments.jobs
    enqueue("PostgreSQL", url, server)
    pick_up("PostgreSQL", url)
    subjects: dict[str, Callable[[int], Run]] = {
        "dbbasic_queue": lambda workers: ours(url, server, jobs, workers),
        "Procrastinate that stores results": lambda workers: procrastinate(
            server, jobs, workers, results=True
        ),
        "Procrastinate without results": lambda workers: procrastinate(
            server, jobs, workers, results=False
        ),
        "dbbasic_queue in a text file": file,
    }
    throughput("PostgreSQL", subjects, arguments.rounds)

    def size() -> int:
        ((found,),) = server.execute(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c "
            "WHERE relnamespace = 'space'::regnamespace AND relkind = 'r'"
        )
        return int(found)

    space("PostgreSQL", server.url("space"), size)


def valkey(server: ValkeyServer, arguments: argparse.Namespace, file: Any) -> None:
    url, jobs = server.url("bench"), arguments.jobs
    with server.client() as client:
        enqueue("Valkey", url, server)
        blocked = client.info("commandstats")["cmdstat_exec"]["usec"]
        say("Valkey: the same, answers nobody else for", f"{blocked / 1e3:.0f} ms", "-")
        pick_up("Valkey", url)
        subjects: dict[str, Callable[[int], Run]] = {
            "dbbasic_queue": lambda workers: ours(url, server, jobs, workers),
            "RQ's SimpleWorker": lambda workers: rq(server, jobs, workers),
            "dbbasic_queue in a text file": file,
        }
        throughput("Valkey", subjects, arguments.rounds)
        space("Valkey", server.url("space"), lambda: int(client.info("memory")["used_memory"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("engines", nargs="*", default=["postgres", "redis"])
    arguments = parser.parse_args()
    jobs = arguments.jobs
    with (
        tempfile.TemporaryDirectory(dir=os.path.abspath(os.environ.get("TMPDIR", "."))) as home,
        ExitStack() as stack,
    ):
        Path(home).chmod(0o755)  # the server's user must reach its directory
        path = os.path.join(home, "queue.tsv")

        def file(workers: int) -> Run:
            return ours(path, None, jobs, workers)

        subjects: dict[str, Callable[[int], Run]] = {"text file": file}
        enqueue("text file", path, None)
        if "postgres" in arguments.engines:
            sql = stack.enter_context(closing(PostgresServer(fsync=True, parent=home)))
            postgres(sql, arguments, file)
            subjects["PostgreSQL"] = lambda n: ours(sql.url("bench"), sql, jobs, n)
        if "redis" in arguments.engines:
            keys = stack.enter_context(closing(ValkeyServer(appendfsync="always", parent=home)))
            valkey(keys, arguments, file)
            subjects["Valkey"] = lambda n: ours(keys.url("bench"), keys, jobs, n)
        scaling(subjects, min(arguments.rounds, 3))


if __name__ == "__main__":
    main()
