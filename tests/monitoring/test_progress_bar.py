"""How far a running job is, in `status` and `show`: a bar and an estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from helpers import Clock, Programs, run_command, sibling, wait_for_notes

from dbbasic_queue import Job, Queue
from dbbasic_queue.monitoring.progress_bar import bar
from dbbasic_queue.monitoring.status import lines

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("done", "total", "left", "text"),
    [
        (0, 10, None, "[..........] 0 %"),
        (1, 10, 9.0, "[#.........] 10 %, 9 s left"),
        (9.99, 10, 0.001, "[#########.] 99 %, 1 s left"),
        (10, 10, 0.0, "[##########] 100 %, 0 s left"),
        (1000, 10, 0.0, "[##########] 100 %, 0 s left"),
        (0.5, None, None, "0.5 done"),
        (10**15, None, None, "1000000000000000 done"),
        (1, 10**15, 1e18, "[..........] 0 %, 11574074074074 d left"),
    ],
)
def test_a_bar_is_full_only_when_everything_is_done(
    done: float, total: float | None, left: float | None, text: str
) -> None:
    assert bar(done, total, left, width=10) == text
    assert text.isascii()


def test_status_shows_a_bar_after_the_line_of_a_running_job(
    queue: Queue, path: Path, clock: Clock
) -> None:
    found: list[str] = []

    def work(_: Any, job: Job) -> None:
        clock.now += 30
        job.progress(1, 4, "one\tof \x1b[31m four")
        found.extend(lines(queue.store, clock.now + 15))
        sibling(path, "progress").unlink()
        sibling(path, "progress").mkdir()  # the rest of the status is useful without it
        found.extend(lines(queue.store, clock.now))

    queue.enqueue("work", {}, job_id="a")
    queue.process_jobs({"work": work})
    kinds = [line.split("\t")[0] for line in found]
    assert kinds.count("progress") == 1
    assert kinds.count("running") == 2
    at = kinds.index("progress")
    assert found[at - 1].startswith("running\ta\twork\t1\t")
    text = "[#####...............] 25 %, 1 min 15 s left"
    assert found[at].split("\t") == [
        "progress",
        "a",
        "1",
        "4",
        "75",
        text,
        r"one\tof \x1b[31m four",
    ]


def test_status_shows_dashes_for_what_is_unknown(queue: Queue, clock: Clock) -> None:
    found: list[str] = []

    def work(_: Any, job: Job) -> None:
        job.progress(7)
        found.extend(lines(queue.store, clock.now))

    queue.enqueue("work", {}, job_id="a")
    queue.process_jobs({"work": work})
    assert [line for line in found if line.startswith("progress")] == [
        "progress\ta\t7\t-\t-\t7 done\t-"
    ]


def test_the_commands_status_and_show_print_the_progress_of_a_running_job(
    programs: Programs, tmp_path: Path
) -> None:
    programs.start("""
        def work(_, job):
            job.progress(100, 100, "almost done")
            note("began", "x")
            time.sleep(60)
        queue.enqueue("work", {}, job_id="a")
        queue.process_jobs({"work": work})
        """)
    wait_for_notes(tmp_path / "began", 1)
    fields = f"100\t100\t0\t[{'#' * 20}] 100 %, 0 s left\talmost done"
    for command, line in (
        (["show", "a"], f"progress\t{fields}"),
        (["status"], f"progress\ta\t{fields}"),
    ):
        done = run_command(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert line in done.stdout.split("\n")
