"""The measures. `run.py` runs this program once per figure, in a new process:

    python measures.py MEASURE SUBJECT DIRECTORY OPTIONS

OPTIONS is JSON: the measure's keyword arguments. The last line of the output is JSON: the figures
by name. It imports little, and no module for statistics, because memory is measured too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from time import perf_counter

import peers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Figures = dict[str, Any]
    Open = partial[peers.Subject]
    """Opens the subject on the measure's queue, as a new process does."""

_SAMPLE = "sample.json"


def spread(seconds: list[float]) -> Figures:
    """Return median, mean, 99th percentile and maximum in microseconds, and the count."""
    ordered = sorted(seconds)
    return {
        "median_us": 1e6 * ordered[len(ordered) // 2],
        "mean_us": 1e6 * sum(ordered) / len(ordered),
        "p99_us": 1e6 * ordered[len(ordered) * 99 // 100],
        "worst_us": 1e6 * ordered[-1],
        "calls": len(ordered),
    }


def timed(call: Callable[[], object]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def fill(open_queue: Open, due: int, waiting: int, finished: int, run: bool) -> Figures:
    """Fill the queue for the next measure; with `run`, also run the jobs."""
    subject = open_queue()
    ids = subject.fill(due, waiting, finished)
    if run:
        subject.work(600)
    subject.close()
    with open(_SAMPLE, "w") as file:
        json.dump(ids, file)
    os.sync()
    return {}


def fdatasync(open_queue: Open, calls: int) -> Figures:
    """Cost of the disk: append 100 bytes, fdatasync."""
    fd = os.open("fdatasync", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def call() -> None:
        os.write(fd, b"x" * 100)
        os.fdatasync(fd)

    return spread([timed(call) for _ in range(calls)])


def enqueue(open_queue: Open, calls: int) -> Figures:
    """Enqueue one job per call, again and again."""
    subject = open_queue()
    for n in range(100):
        subject.enqueue(n)
    times = []
    for n in range(calls):
        began = perf_counter()
        subject.enqueue(n)
        times.append(perf_counter() - began)
    subject.close()
    return spread(times)


def enqueue_unique(open_queue: Open, calls: int) -> Figures:
    """Enqueue with `unique`: the first call, jobs that are new, jobs that exist; and without it."""
    subject = open_queue()
    assert isinstance(subject, peers.Ours)
    queue = subject.queue

    def unique(n: int) -> float:
        return timed(lambda: queue.enqueue("noop", peers.payload(n), unique="pending"))

    first = unique(-1)
    new = [unique(10**9 + n) for n in range(calls)]
    found = [unique(10**9 + n) for n in range(calls)]
    plain = [timed(partial(subject.enqueue, n)) for n in range(calls)]
    subject.close()
    figures = spread(new)
    figures["first_ms"] = 1e3 * first
    figures["found_us"], figures["plain_us"] = _median_us(found), _median_us(plain)
    return figures


def enqueue_during_pass(open_queue: Open, due: int) -> Figures:
    """Enqueue one job per call, from the start to the end of another process's pass.

    This includes the pass's last fold. A floor has no pass: another process appends to a file.
    """
    import subprocess

    subject = open_queue()
    for n in range(100):
        subject.enqueue(n)
    options = json.dumps({"due": due})
    command = [sys.executable, __file__, "begin_and_run", *sys.argv[2:4], options]
    times = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as other:
        assert other.stdout
        assert other.stdout.readline() == "started\n"
        while other.poll() is None:
            began = perf_counter()
            subject.enqueue(1)
            times.append(perf_counter() - began)
        jobs = json.loads(other.stdout.read().splitlines()[-1])["jobs"]
    subject.close()
    assert jobs >= due, f"{jobs} of {due} jobs ran"
    return spread(times)


def begin_and_run(open_queue: Open, due: int) -> Figures:
    subject = open_queue()
    print("started", flush=True)
    jobs = subject.run_during_enqueues(due)
    subject.close()
    return {"jobs": jobs}


def bulk(open_queue: Open, jobs: int) -> Figures:
    """Enqueue many jobs with the fastest call."""
    subject = open_queue()
    seconds = timed(lambda: subject.enqueue_many(range(jobs)))
    subject.close()
    return {"seconds": seconds, "us_a_job": 1e6 * seconds / jobs}


def run_all(open_queue: Open, jobs: int, seconds: float) -> Figures:
    """Run the due jobs: one pass over no-op jobs, in a process that hasn't read the queue yet."""
    subject = open_queue()
    began = perf_counter()
    ran = subject.work(seconds)
    took = perf_counter() - began
    subject.close()
    assert ran == jobs or took > seconds or type(subject).few, f"{ran} of {jobs} jobs ran"
    return {
        "jobs_a_second": ran / took,
        "us_a_job": 1e6 * took / ran,
        "jobs": ran,
        "peak_mib": peers.peak_mib(),
        "file_mib": os.path.getsize(getattr(subject, "path", ".")) / (1 << 20),
    }


def find_due(open_queue: Open, due: int) -> Figures:
    """One pass when few of many jobs are due. For a floor: read and split the file."""
    subject = open_queue()
    began = perf_counter()
    if isinstance(subject, peers.Floor):
        _read_and_split(subject.path)
    else:
        ran = subject.work(600)
        assert ran == due, f"{ran} of {due} jobs ran"
    seconds = perf_counter() - began
    subject.close()
    return {"seconds": seconds, "peak_mib": peers.peak_mib()}


def _read_and_split(path: str) -> None:
    with open(path, "rb") as file:
        for line in file.read().split(b"\n"):
            line.split(b"\t")


def look_up(open_queue: Open) -> Figures:
    """Look up a job by its id: right after opening the queue, again, and while it grows."""
    with open(_SAMPLE) as file:
        ids = json.load(file)
    subject = open_queue()
    began = perf_counter()
    assert subject.look_up(ids[0])
    figures: Figures = {"first_us": 1e6 * (perf_counter() - began)}
    if not isinstance(subject, peers.Floor):  # a floor reads the file each time
        figures["again_us"] = _median_us([timed(partial(subject.look_up, i)) for i in ids])
        if isinstance(subject, peers.Ours):
            # This object shares nothing with the first, as if it were in another process. It
            # doesn't sync: that would time how a core wakes up instead of the look-up.
            other = peers.OursNoSync(*open_queue.args)
            times = []
            for n, job_id in enumerate(ids):
                other.enqueue(n)
                times.append(timed(partial(subject.look_up, job_id)))
            figures["growing_us"] = _median_us(times)
            other.close()
    subject.close()
    return figures


def _median_us(seconds: list[float]) -> float:
    return 1e6 * sorted(seconds)[len(seconds) // 2]


WATCH_THE_LOCK = """
import fcntl, os, select, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
longest = 0.0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.0002)[0]:
    began = time.perf_counter()
    fcntl.flock(fd, fcntl.LOCK_EX)
    longest = max(longest, time.perf_counter() - began)
    fcntl.flock(fd, fcntl.LOCK_UN)
print(longest)
"""


def held(open_queue: Open, call: str, rows: int) -> Figures:
    """The longest time that another process waits for the lock during one call.

    The call is the first one of its process. For comparison: the time to copy and sync the file.
    """
    import subprocess

    subject = open_queue()
    assert isinstance(subject, peers.Ours)
    queue, path = subject.queue, subject.path
    last, waiting = f"{rows - 1:016x}", f"{1:016x}"
    calls: dict[str, Callable[[], object]] = {
        "pass": lambda: queue.process_jobs({"noop": peers.noop})["completed"] == 10,
        "purge": lambda: queue.purge(0) == rows // 2,
        "archive": lambda: queue.purge(0, archive="archive.tsv") == rows // 2,
        "own_id": lambda: queue.enqueue("noop", peers.payload(1), job_id="own"),
        "requeue": lambda: queue.requeue(last),
        "cancel": lambda: queue.cancel_job(waiting),
    }
    copying = timed(lambda: _copy_and_sync(path))
    command = [sys.executable, "-c", WATCH_THE_LOCK, path + ".lock"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as watch:
        assert watch.stdout
        assert watch.stdout.readline() == "ready\n"
        began = perf_counter()
        assert calls[call]()
        seconds = perf_counter() - began
        longest = float(watch.communicate("\n")[0])
    subject.close()
    return {"held_ms": 1e3 * longest, "copy_ms": 1e3 * copying, "call_ms": 1e3 * seconds}


def _copy_and_sync(path: str) -> None:
    with open(path, "rb") as old, open(path + ".copy", "wb") as new:
        while piece := old.read(1 << 16):
            new.write(piece)
        new.flush()
        os.fsync(new.fileno())
    os.unlink(path + ".copy")


def contention(
    open_queue: Open, producers: int, jobs: int, workers: int, seconds: float
) -> Figures:
    """Producers enqueue `jobs` jobs each; workers run until all jobs have run or time is up.

    Counts every job. A job is lost if its enqueue returned and it never ran, doubled if it ran
    twice.
    """
    from multiprocessing import get_context

    context = get_context("fork")
    gate = context.Barrier(producers + workers + 1, timeout=60)
    produced = context.Event()

    def at_the_gate() -> peers.Subject:
        gate.wait()
        warm_up(open_queue)
        mine = open_queue()
        gate.wait()
        return mine

    def produce(number: int) -> None:
        mine = at_the_gate()
        put = []
        for n in range(number * jobs, (number + 1) * jobs):
            try:
                mine.enqueue(n)
                put.append(n)
            except Exception as e:  # noqa: BLE001 - the error is counted
                print(f"enqueue: {type(e).__name__}: {e}", file=sys.stderr)
        mine.close()
        _write_json(f"produced-{number}", put)

    def work(number: int) -> None:
        mine = at_the_gate()
        peers.ran = []
        errors = 0
        last = perf_counter()
        end = last + seconds
        finished = False
        while not finished and perf_counter() < end:
            finished = produced.is_set()
            before = len(peers.ran)
            try:
                mine.work(end - perf_counter())
            except Exception as e:  # noqa: BLE001 - the error is counted; cron would start it again
                print(f"work: {type(e).__name__}: {e}", file=sys.stderr)
                errors += 1
                finished = False
            if len(peers.ran) > before:
                last = perf_counter()
                finished = False
            elif not finished:
                time.sleep(0.001)
        _write_json(f"worked-{number}", [peers.ran, errors, last])
        mine.close()

    makers = [context.Process(target=produce, args=(n,)) for n in range(producers)]
    runners = [context.Process(target=work, args=(n,)) for n in range(workers)]
    for process in makers + runners:
        process.start()
    subject = open_queue()  # after the forks; it creates the files, or starts a server
    gate.wait()
    gate.wait()
    began = perf_counter()  # all processes of a machine share this clock
    for process in makers:
        process.join()
    produced.set()
    for process in runners:
        process.join()
    late: list[int] = []  # jobs that run after the time is up; counted only
    peers.ran = late
    end = perf_counter() + seconds
    while (found := len(late)) == 0 or perf_counter() < end:
        subject.work(end - perf_counter())
        if len(late) == found:
            break
    subject.close()

    put = [n for i in range(producers) for n in _read_json(f"produced-{i}")]
    worked = [_read_json(f"worked-{i}") for i in range(workers)]
    ran = [n for numbers, *_ in worked for n in numbers]
    last = max(last for _, _, last in worked)
    in_time = len(set(ran))
    ran += late
    return {
        "jobs_a_second": in_time / (last - began),
        "enqueued": len(put),
        "late": len(late),
        "lost": len(set(put) - set(ran)) if perf_counter() < end else None,
        "doubled": len(ran) - len(set(ran)),
        "errors": producers * jobs - len(put) + sum(errors for _, errors, _ in worked),
    }


def _write_json(name: str, value: object) -> None:
    with open(name + ".part", "w") as file:
        json.dump(value, file)
    os.rename(name + ".part", name)


def _read_json(name: str) -> Any:
    with open(name) as file:
        return json.load(file)


def start_up(open_queue: Open, times: int) -> Figures:
    """Milliseconds that an import, and an idle pass, add to a Python that does nothing."""
    import subprocess

    subject = open_queue()
    module, path = type(subject).module, getattr(subject, "path", "")
    subject.close()
    bare, importing, idle = "pass", f"import {module}", ""
    if isinstance(subject, peers.Ours):
        idle = f"from dbbasic_queue import Queue; Queue({path!r}).process_jobs({{}})"
    elif isinstance(subject, peers.OneZero):
        idle = f"from dbbasic_queue import queue; queue.QUEUE_FILE = {path!r}; "
        idle += "queue.process_jobs({})"
    seconds: dict[str, list[float]] = {code: [] for code in (bare, importing, idle) if code}
    for _ in range(times + 1):
        for code in seconds:
            command = [sys.executable, "-c", code]
            seconds[code].append(timed(partial(subprocess.run, command, check=True)))
    median = {code: _median_us(values[1:]) / 1000 for code, values in seconds.items()}
    figures: Figures = {"bare_ms": median[bare], "import_ms": median[importing] - median[bare]}
    if idle:
        figures["idle_ms"] = median[idle] - median[bare]
    return figures


def bare(open_queue: Open) -> Figures:
    """The memory of a Python that has imported only this module."""
    return {"peak_mib": peers.peak_mib()}


MEASURES: dict[str, Callable[..., Figures]] = {
    f.__name__: f
    for f in (
        fill,
        fdatasync,
        enqueue,
        enqueue_unique,
        enqueue_during_pass,
        begin_and_run,
        bulk,
        run_all,
        find_due,
        look_up,
        held,
        contention,
        start_up,
        bare,
    )
}


def main(measure: str, name: str, directory: str, options: str) -> None:
    open_queue = partial(peers.SUBJECTS[name], directory)
    if measure not in ("fill", "fdatasync", "bare", "start_up", "contention"):
        warm_up(open_queue)
    os.chdir(directory)
    before = pace()
    figures = MEASURES[measure](open_queue, **json.loads(options))
    print(json.dumps(figures | {"pace_ms": (before + pace()) / 2}))


def pace() -> float:
    """Milliseconds for 100,000 turns of an empty loop: other guests can slow the processor."""

    def turn() -> None:
        for _ in range(100_000):
            pass

    return 1000 * min(timed(turn) for _ in range(3))


def warm_up(open_queue: Open) -> None:
    """Put a job through its whole life in another queue, so that imports aren't measured."""
    (place,) = open_queue.args
    directory = os.path.join(place, f"warm-up-{os.getpid()}")
    os.mkdir(directory)
    subject = open_queue.func(directory)
    job_id = subject.enqueue(0)
    subject.enqueue_many([1])
    subject.work(5)
    if subject.finds:
        subject.look_up(job_id)
    subject.close()
    os.chdir(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
