"""`dbbasic-queue bench`: how fast a queue on this disk is."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import tempfile
import time

from dbbasic_queue.cli.messages import complain
from dbbasic_queue.cli.report import print_fields
from dbbasic_queue.cli.terminal import Line, Terminal
from dbbasic_queue.jobqueue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from io import FileIO
    from types import FrameType
    from typing import NoReturn

_ENQUEUES = 300
"""how many single calls are measured, or fewer if there are fewer jobs"""


def run(arguments: Namespace) -> int:
    """Measure, and print one line per measure; return the exit code."""
    place = os.path.abspath(arguments.dir or ".")
    if not os.path.isdir(place):
        return complain(f"{place}: there is no such directory")
    signal.signal(signal.SIGTERM, _end)
    try:
        directory = tempfile.mkdtemp(prefix="dbbasic-queue-bench-", dir=place)
    except OSError as error:  # it names a directory that isn't there
        raise OSError(error.errno, error.strerror, place) from None
    try:
        rows = list(_measure(directory, arguments.jobs))
    finally:
        shutil.rmtree(directory)
    is_screen = Terminal().is_screen
    if is_screen:
        print(f"a queue of {arguments.jobs:,} jobs in {place}")
    for name, value, unit in rows:
        if is_screen:
            print(f"{name:<44} {value:>12,.0f} {unit}")
        else:
            print_fields(name, f"{value:.1f}", unit)
    return 0


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End the program as SIGTERM would, but remove the directory first."""
    raise SystemExit(128 + number)


def _measure(directory: str, jobs: int) -> list[tuple[str, float, str]]:
    progress = Line()
    try:
        return _steps(directory, jobs, progress)
    finally:
        progress.end()


def _steps(directory: str, jobs: int, progress: Line) -> list[tuple[str, float, str]]:
    path = os.path.join(directory, "queue.tsv")
    singles = min(_ENQUEUES, jobs)
    with (
        Queue(path) as queue,
        Queue(path, fsync=False) as unsynced,
        open(os.path.join(directory, "floor"), "ab", buffering=0) as floor,
    ):
        progress.show("step 1 of 5: syncing this disk")
        sync = _median(lambda: _sync(floor), singles)
        progress.show(f"step 2 of 5: enqueuing {singles:,} jobs, one by one")
        enqueue = _median(lambda: queue.enqueue("noop", 1), singles)
        progress.show(f"step 3 of 5: enqueuing {singles + jobs:,} jobs")
        without = _median(lambda: unsynced.enqueue("noop", 1), singles)
        many = _seconds(lambda: queue.enqueue_many("noop", [None] * jobs)) / jobs
        count = jobs + 2 * singles
        progress.show(f"step 4 of 5: running {count:,} jobs")
        run_all = _seconds(lambda: queue.process_jobs({"noop": lambda payload: None})) / count
        progress.show("step 5 of 5: looking for jobs when there are none")
        idle = _seconds(lambda: queue.process_jobs({"noop": lambda payload: None}))
    return [
        ("this disk: one append and sync", sync * 1e6, "us"),
        ("enqueue, on the disk on return", enqueue * 1e6, "us"),
        ("enqueue with fsync=False", without * 1e6, "us"),
        ("enqueue_many, per job", many * 1e6, "us"),
        ("run a job that does nothing", run_all * 1e6, "us"),
        ("jobs run per second", 1 / run_all, "1/s"),
        ("a pass with nothing to do", idle * 1e6, "us"),
    ]


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _median(function: Callable[[], object], count: int) -> float:
    """Return the time of a typical call, in seconds."""
    return statistics.median(_seconds(function) for _ in range(count))


def _sync(file: FileIO) -> None:
    """Append a line and sync it, as the fastest possible queue would: the floor."""
    file.write(b"x" * 80)
    os.fdatasync(file.fileno())
