"""A program that starts processes while its threads enqueue and its worker runs jobs.

Arguments: how to start processes (`os.fork` or a method of multiprocessing), and for how many
seconds.
"""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from helpers import QUEUE, note, notes
from web_app import work

from dbbasic_queue import Queue, Worker, enqueue

faulthandler.register(signal.SIGRTMIN, chain=False)
numbers = itertools.count()
counts: Counter[str] = Counter()
JOBS = {"add_in_the_thread": 1, "fork": 2, "process": 1, "pool": 12, "executor": 12}


def add(payload: object) -> None:
    note("acknowledged", enqueue("work", payload))


def add_in_the_thread(_: str) -> None:
    add(f"thread {next(numbers)}")


def fork(_: str) -> None:
    """Fork once, without multiprocessing."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            add(f"child {os.getpid()}")
            add(f"child {os.getpid()}, again")
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"a child exited with {os.waitstatus_to_exitcode(status)}"


def process(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    started = context.Process(target=add, args=[f"process {next(numbers)}"])
    started.start()
    started.join()  # not checked: another thread that starts a process may have reaped it


def pool(method: str) -> None:
    with multiprocessing.get_context(method).Pool(3) as processes:
        processes.map(add, [f"pool {next(numbers)}" for _ in range(12)])
        processes.close()
        processes.join()


def executor(method: str) -> None:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(3, mp_context=context) as processes:
        list(processes.map(add, [f"executor {next(numbers)}" for _ in range(12)]))


def repeat(start: Callable[[str], None], method: str, end: float) -> None:
    while time.monotonic() < end:
        start(method)
        counts[start.__name__] += 1


def main(method: str, seconds: float) -> None:
    starts = [fork, fork, fork] if method == "os.fork" else [process, pool, executor]
    if method == "fork" and sys.version_info >= (3, 14):
        # A process forked by another thread may inherit the held lock of an executor's wakeup pipe,
        # and wait for it at exit (concurrent.futures.process._python_exit).
        starts.remove(executor)
    end = time.monotonic() + seconds
    with Worker(Queue(QUEUE), {"work": work}):
        threads = [
            threading.Thread(target=repeat, args=(start, method, end))
            for start in (add_in_the_thread, add_in_the_thread, *starts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(notes("acknowledged")) == sum(JOBS[name] * n for name, n in counts.items())
    print(method, dict(counts))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
