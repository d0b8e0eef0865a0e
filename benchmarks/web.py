"""What a look at the page costs, for long queues: time that passes, and CPU time.

    python benchmarks/web.py                  # 100,000 and 1,000,000 rows
    python benchmarks/web.py 10000 50000

"first" is the first look, which reads everything: the best of a few, each with a queue object that
has read nothing yet. If that takes longer than a second, the page answers before: see "answer".
"then" is the median of later looks. Before each of these, another queue object adds one job and
cancels one. The floor is the answer 403, for which nothing is read.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from dbbasic_queue import Queue
from dbbasic_queue.model.rows import HEADER
from dbbasic_queue.web import Page
from dbbasic_queue.web.requests import Request

_FIRSTS = 3
_REFRESHES = 7
_LONGEST_FIRST_SECONDS = 120
_HISTORY = "id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback"
_MOST_ATTEMPTS = 150_000  # about as many as a history has before it is rotated
_STATUSES = ("completed",) * 8 + ("failed", "pending")
_TYPES = ("send_email", "report", "sync")
_SCREENS = [
    ("Now", "/", ""),
    ("Jobs", "/jobs", ""),
    ("Jobs, failed", "/jobs", "status=failed"),
    ("Jobs, running", "/jobs", "status=processing"),
    ("Jobs with a text", "/jobs", "text=user77"),
    ("Job", "/job", f"id={8:016x}"),
    ("Attempts", "/attempts", ""),
]


def fill(path: Path, count: int) -> None:
    """Write a queue of the last day, with its history."""
    now = int(time.time())
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER.decode())
        for n in range(count):
            at = now - 86_400 + 86_400 * n // count
            status = _STATUSES[n % 10]
            due = at + 100_000 if status == "pending" and n % 20 else at
            error = f"ValueError: {n % 7}" if status == "failed" else ""
            file.write(
                f'{n:016x}\t{_TYPES[n % 3]}\t{{"to": "user{n}@example.org"}}\t{status}\t{at}\t{due}'
                f"\t1\t{error}\t\n"
            )
    with path.with_name(f"{path.name}.history").open("w", encoding="utf-8") as file:
        file.write(f"{_HISTORY}\tworker\texception\toutput_offset\n")
        attempts = min(count, _MOST_ATTEMPTS)
        for n in range(attempts):
            at = now - 86_400 + 86_400 * n // attempts
            outcome, error = (
                ("failed", f"ValueError: {n % 7}") if n % 10 == 8 else ("completed", "")
            )
            file.write(
                f"{n:016x}\t{_TYPES[n % 3]}\t1\t{outcome}\t{at}\t{at}.750\t0.500000\t{error}"
                "\t\tlocalhost.1\t\t\n"
            )


class Look:
    """What one look has cost, in milliseconds.

    `answered`  when the first answer came, `shown` when the screen did
    `cpu`       CPU time of the process until then
    """

    def __init__(self, page: Page, path: str, query: str, status: int = 200) -> None:
        gc.collect()
        cpu, started = time.process_time(), time.perf_counter()
        request = Request("GET", path, query, {"host": "localhost"})
        response = page.respond(request)
        self.answered = (time.perf_counter() - started) * 1000
        while response.status == 202:
            assert time.perf_counter() - started < _LONGEST_FIRST_SECONDS
            response = page.respond(request)
        self.shown = (time.perf_counter() - started) * 1000
        self.cpu = (time.process_time() - cpu) * 1000
        assert response.status == status, response.body


def first_look(queue_path: Path, path: str, query: str) -> Look:
    """Return the quickest of a few first looks: those of others had to share the machine."""
    found = []
    for _ in range(_FIRSTS):
        with Queue(queue_path, fsync=False) as queue:
            found.append(Look(Page(queue, lambda _: "read"), path, query))
    return min(found, key=lambda look: look.cpu)


def later_looks(page: Page, other: Queue, path: str, query: str, status: int = 200) -> float:
    """Return the median CPU time of looks at a queue that another one changes in between."""
    found = []
    for _ in range(_REFRESHES):
        other.cancel_job(other.enqueue("send_email", {}))
        page._shared.forget()  # as after the two seconds for which a reading is shared
        found.append(Look(page, path, query, status).cpu)
    return median(found)


def main() -> None:
    for count in [int(text) for text in sys.argv[1:]] or [100_000, 1_000_000]:
        print(f"{count:,} rows           first: answer     shown       CPU  |  then: CPU   (ms)")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "queue.tsv"
            fill(path, count)
            firsts = [first_look(path, address, query) for _, address, query in _SCREENS]
            with Queue(path, fsync=False) as queue, Queue(path, fsync=False) as other:
                page = Page(queue, lambda _: "read")
                for (name, address, query), first in zip(_SCREENS, firsts, strict=True):
                    Look(page, address, query)
                    then = later_looks(page, other, address, query)
                    print(
                        f"  {name:<18} {first.answered:15.0f} {first.shown:9.0f} {first.cpu:9.0f}"
                        f"  | {then:10.1f}",
                        flush=True,
                    )
                then = later_looks(Page(queue), other, "/", "", status=403)
                print(f"  {'403, the floor':<18} {'':>35}  | {then:10.1f}")


if __name__ == "__main__":
    main()
