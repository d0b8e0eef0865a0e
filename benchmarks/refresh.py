"""Measures what it costs to look at a queue again and again, as the web page does.

    python benchmarks/refresh.py [--rows N]... [--looks N] [--dir DIR]

The process that looks reads all that the page shows: everything at a glance, the figures of the
last hour and of the last day, and the percentiles of each type. Between two looks, other processes
change 300 jobs, add 100, and write 300 attempts. A queue has jobs of 20 types, and 100,000 attempts
of the last day in its history. The median of the looks is printed, in CPU seconds, next to the
floor: a `stat` of each file. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from command_line import HEADER, MIXED  # noqa: E402

from dbbasic_queue.model.records import encode_state  # noqa: E402
from dbbasic_queue.model.states import State  # noqa: E402
from dbbasic_queue.monitoring.figures import Figures  # noqa: E402
from dbbasic_queue.monitoring.live import Live  # noqa: E402
from dbbasic_queue.monitoring.metrics import measure  # noqa: E402
from dbbasic_queue.monitoring.status import Status  # noqa: E402
from dbbasic_queue.monitoring.summary import Summary  # noqa: E402
from dbbasic_queue.store.history import HEADER as HISTORY_HEADER  # noqa: E402
from dbbasic_queue.store.textfile import TextFileStore  # noqa: E402

ATTEMPTS = 100_000
DAY = 86_400
TYPES = 20


def fill(path: Path, rows: int) -> None:
    """Write a queue with that many rows, and its history."""
    chance = random.Random(1)
    now = int(time.time())
    statuses = chance.choices(list(MIXED), list(MIXED.values()), k=rows)
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER)
        for n, status in enumerate(statuses):
            created_at = now - DAY + n * DAY // rows
            run_at = created_at + (2 * DAY if status == "pending" and n % 2 else 0)
            error = "SMTPServerDisconnected: unexpectedly closed" if status == "failed" else ""
            attempts = int(status in ("completed", "failed"))
            result = "true" if status == "completed" else ""
            file.write(
                f'job-{n:012}\ttype{n % TYPES}\t{{"to": "user{n}@example.com", "n": {n}}}'
                f"\t{status}\t{created_at}\t{run_at}\t{attempts}\t{error}\t{result}\n"
            )
    Path(f"{path}.history").write_bytes(HISTORY_HEADER)
    add_attempts(path, rows, [now - DAY + n * DAY / ATTEMPTS for n in range(ATTEMPTS)])


def add_attempts(path: Path, rows: int, ends: list[float]) -> None:
    """Write attempts that ended at these instants; every tenth one failed."""
    chance = random.Random(ends[0])
    with open(f"{path}.history", "a", encoding="utf-8") as file:
        for n, at in enumerate(ends):
            outcome, error, traceback = "completed", "", ""
            if n % 10 == 0:
                outcome, error, traceback = "failed", f"Boom: number {n % 50}", "Traceback"
            file.write(
                f"job-{chance.randrange(rows):012}\ttype{n % TYPES}\t1\t{outcome}"
                f"\t{int(at) - chance.randrange(60)}\t{at:.3f}\t{chance.expovariate(1):.6f}"
                f"\t{error}\t{traceback}\thost:1\t\t\n"
            )


def change(path: Path, rows: int, *, fold: bool) -> None:
    """Do what passes and programs do in two seconds."""
    chance = random.Random()
    store = TextFileStore(str(path), fsync=False)
    now = int(time.time())

    def record() -> None:
        store.files.read_new()
        changes = []
        for _ in range(300):
            status = chance.choice(["completed", "pending", "failed"])
            state = encode_state(State(status, now - 100, now - 50, 1, "", ""))
            changes.append((f"job-{chance.randrange(rows):012}".encode(), state))
        store.files.change(changes)
        if fold:
            store.files.fold()

    store.lock.run(record)
    row = f"\ttype1\t{{}}\tpending\t{now}\t{now}\t0\t\t\n"
    store.add("".join(f"new-{chance.getrandbits(64)}{row}" for _ in range(100)))
    store.close()
    add_attempts(path, rows, [time.time() - chance.random() for _ in range(300)])


def all_shown(live: Live, now: float) -> None:
    """Read what the page shows."""
    live.status(now)
    live.figures(now, 3600, 60)
    live.figures(now, DAY, 96)
    live.metrics(now)


def all_read(path: Path, now: float) -> None:
    """Read the same once, without `Live`."""
    store = TextFileStore(str(path), fsync=False)
    Status(store, now, with_errors=True)
    Figures(store, now, 3600, 60)
    Figures(store, now, DAY, 96)
    measure(Summary(store, now), store.history(since=now - 3600), now, 3600)


def stat_all(path: Path) -> None:
    for ending in ("", ".journal", ".history", ".history.1", ".passes", ".paused", ".schedule"):
        with suppress(FileNotFoundError):
            os.stat(f"{path}{ending}")


def cpu(call: object, *arguments: object) -> float:
    assert callable(call)
    started = time.process_time()
    call(*arguments)
    return time.process_time() - started


def changed_by_another(path: Path, rows: int, *, fold: bool) -> None:
    command = [sys.executable, __file__, "--change", str(path), str(rows), "fold" if fold else ""]
    subprocess.run(command, check=True)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def table(rows: int, looks: int, place: Path) -> None:
    """Print the figures of a queue with that many rows."""
    path = place / "queue.tsv"
    fill(path, rows)
    live = Live(TextFileStore(str(path), fsync=False))
    figures = {
        "all read once, without `Live`": cpu(all_read, path, time.time()),
        "the first look": cpu(all_shown, live, time.time()),
        "nothing has changed": median([cpu(all_shown, live, time.time()) for _ in range(looks)]),
    }
    for name, fold in ("700 changes", False), ("700 changes and a fold", True):
        times = []
        for _ in range(looks):
            changed_by_another(path, rows, fold=fold)
            times.append(cpu(all_shown, live, time.time()))
        figures[name] = median(times)
    figures["floor: a stat of each file"] = median([cpu(stat_all, path) for _ in range(looks)])
    print(f"{rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB")
    for name, seconds in figures.items():
        print(f"{name:<32}{1e3 * seconds:>10.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--rows", type=int, action="append", help="(default: 100,000 and 1,000,000)"
    )
    parser.add_argument("--looks", type=int, default=5)
    parser.add_argument("--dir", help="where the queues are written (default: a temporary one)")
    parser.add_argument("--change", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.change:
        path, rows, fold = arguments.change
        change(Path(path), int(rows), fold=bool(fold))
        return
    for rows in arguments.rows or [100_000, 1_000_000]:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as place:
            table(rows, arguments.looks, Path(place))


if __name__ == "__main__":
    main()
