"""The web app of the deployment tests. It enqueues at import, in each request and from threads.

It is plain WSGI. The environment variable `AT_IMPORT` selects what happens at import, by these
words:

- `enqueue`: the importing thread enqueues one job.
- `worker`: a `Worker` runs jobs in this process.
- `thread`: a thread enqueues while the server forks.

It writes one line per job to these files: `acknowledged` (added at import), `cancelled`, and
`effects` (one line per run).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from helpers import QUEUE, note

from dbbasic_queue import DuplicateJob, Queue, Worker, cancel_job, enqueue

faulthandler.register(signal.SIGRTMIN, chain=False)  # prints the stacks of a server that hangs

JOBS_OF_THE_THREAD = 20


def work(payload: Any, job: Any) -> None:
    note("effects", job.id)


def add(origin: str) -> None:
    note("acknowledged", enqueue("work", f"{origin} {os.urandom(8).hex()}"))


def enqueue_in_a_thread() -> None:
    for _ in range(JOBS_OF_THE_THREAD):
        add("thread")


at_import = os.environ.get("AT_IMPORT", "").split()
if "enqueue" in at_import:
    add("import")
if "worker" in at_import:
    worker = Worker(Queue(QUEUE), {"work": work}, max_attempts=100)
    worker.start()
if "thread" in at_import:
    threading.Thread(target=enqueue_in_a_thread, daemon=True).start()


def answer(kind: str, number: int) -> list[str]:
    """Do what a request of this kind asks for; return the ids of the jobs it added."""
    match kind:
        case "one":
            return [enqueue("work", f"one {number}")]
        case "threads":
            with ThreadPoolExecutor(3) as threads:
                return list(threads.map(lambda n: enqueue("work", f"{n} of {number}"), range(3)))
        case "once":  # only one of four requests gets the id
            try:
                return [
                    enqueue("work", f"once {number}", job_id=f"once-{number // 16}-{number % 4}")
                ]
            except DuplicateJob:
                return []
        case "cancel":
            job_id = enqueue("work", f"cancel {number}")
            if cancel_job(job_id):  # otherwise it has run
                note("cancelled", job_id)
            return [job_id]
    raise AssertionError(kind)


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """Respond with the process id and the ids of the jobs."""
    _, kind, number = environ["PATH_INFO"].split("/")
    ids = answer(kind, int(number))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join([str(os.getpid()), *ids]).encode()]
