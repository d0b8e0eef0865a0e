"""What a refresh of the page costs: CPU time of the screens Now and Jobs, for long queues.

    python benchmarks/web.py                  # 100,000 and 1,000,000 rows
    python benchmarks/web.py 10000 50000

Between two refreshes, one job is added and one is cancelled. "first" is the first look of a
process, which reads everything; "then" is the median of the later ones. The floor is the answer
403, for which nothing is read.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from dbbasic_queue import Queue
from dbbasic_queue.model.rows import HEADER
from dbbasic_queue.web import Page
from dbbasic_queue.web.requests import Request

_REFRESHES = 7
_HISTORY = "id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback"
_MOST_ATTEMPTS = 150_000  # about as many as a history has before it is rotated
_STATUSES = ("completed",) * 8 + ("failed", "pending")
_TYPES = ("send_email", "report", "sync")


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


def cost(page: Page, queue: Queue, path: str, query: str = "", status: int = 200) -> list[float]:
    """Return the CPU time of each refresh, in milliseconds."""
    found = []
    for _ in range(_REFRESHES):
        queue.cancel_job(queue.enqueue("send_email", {}))
        page._shared.forget()  # as after the two seconds for which a reading is shared
        started = time.process_time()
        response = page.respond(Request("GET", path, query, {"host": "localhost"}))
        found.append((time.process_time() - started) * 1000)
        assert response.status == status, response.body
    return found


def measure(count: int) -> list[tuple[str, float, float]]:
    """Return name, first and median later cost of each screen, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queue.tsv"
        fill(path, count)
        found = []
        screens: list[tuple[str, str, str]] = [
            ("Now", "/", ""),
            ("Jobs", "/jobs", ""),
            ("Jobs, failed", "/jobs", "status=failed"),
            ("Jobs, running", "/jobs", "status=processing"),
            ("Jobs with a text", "/jobs", "text=user77"),
            ("Attempts", "/attempts", ""),
        ]
        with Queue(path, fsync=False) as queue:
            closed: Any = cost(Page(queue), queue, "/", status=403)
            found.append(("403, the floor", closed[0], median(closed[1:])))
        with Queue(path, fsync=False) as queue:
            page = Page(queue, lambda _: "read")
            for name, address, query in screens:
                costs = cost(page, queue, address, query)
                found.append((name, costs[0], median(costs[1:])))
    return found


def main() -> None:
    for count in [int(text) for text in sys.argv[1:]] or [100_000, 1_000_000]:
        print(f"{count:,} rows                first       then   (ms of CPU)")
        for name, first, then in measure(count):
            print(f"  {name:<18} {first:10.1f} {then:10.1f}")


if __name__ == "__main__":
    main()
