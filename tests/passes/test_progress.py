"""`job.progress`: how far a running job is, for those who look at the queue."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    NONE,
    NOW,
    Clock,
    Programs,
    exit_code,
    fill,
    job,
    join,
    sibling,
    small_disk,
    store_of,
    wait_for_notes,
)

from dbbasic_queue import Delay, Handler, InvalidArgument, Job, JobNotFound, NotAQueue, Queue
from dbbasic_queue.store import progress as progress_file
from dbbasic_queue.store.progress import HEADER, Progress, ProgressWriter

LONG = 60.0


def run(queue: Queue, function: Any, **policy: Any) -> str:
    """Run one job, whose only attempt must succeed; return its id."""
    job_id = queue.enqueue("work", {})
    counts = queue.process_jobs({"work": Handler(function, max_attempts=1, **policy)})
    assert counts == NONE | {"completed": 1}, queue.get_job(job_id)
    return job_id


def rows(path: Path) -> list[list[str]]:
    """Return the columns of the rows, without the header."""
    header, *lines = sibling(path, "progress").read_bytes().decode().split("\n")
    assert header + "\n" == HEADER.decode()
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


# --- how jobs report, and what is shown


def test_a_running_job_shows_how_far_it_is(queue: Queue, clock: Clock) -> None:
    seen = []

    def work(_: Any, job: Job) -> None:
        assert queue.progress(job.id) is None
        clock.now += 10
        job.progress(40, 100, "frame 40")
        seen.append(queue.progress(job.id))
        clock.now += 5
        seen.append(queue.progress(job.id))

    job_id = run(queue, work)
    first = {
        "done": 40,
        "total": 100,
        "note": "frame 40",
        "at": NOW + 10,
        "started_at": NOW,
        "seconds_left": 15,
    }
    assert seen == [first, first | {"seconds_left": 10}]
    assert queue.progress(job_id) is None, "it has ended"


def test_a_coroutine_and_its_threads_report_like_a_function(queue: Queue) -> None:
    import asyncio

    seen = []

    async def work(payload: Any, job: Job) -> None:
        await asyncio.to_thread(job.progress, payload, 10)
        seen.append((payload, queue.progress(job.id)))

    queue.enqueue_many("work", range(3))
    assert queue.process_jobs({"work": work}, workers=3)["completed"] == 3
    assert sorted((payload, found["done"]) for payload, found in seen if found) == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]


def test_a_job_in_a_process_of_its_own_reports_from_there(
    programs: Programs, tmp_path: Path
) -> None:
    programs.start("""
        from dbbasic_queue import Handler
        def work(_, job):
            job.progress(1, 4, "one of four")
            note("began", os.getpid())
            time.sleep(60)
        queue.enqueue("work", {}, job_id="a")
        queue.process_jobs({"work": Handler(work, timeout=60)})
        """)
    wait_for_notes(tmp_path / "began", 1)
    with Queue(tmp_path / "data/queue.tsv") as queue:
        found = queue.progress("a")
        assert found is not None
        assert (found["done"], found["total"], found["note"]) == (1, 4, "one of four")
        assert found["started_at"] <= found["at"]


def test_jobs_of_several_passes_report_to_one_file(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("work", range(20))
    handlers = {"work": lambda n, job: job.progress(n, 20)}
    assert queue.process_jobs(handlers, workers=4)["completed"] == 20
    assert sorted((row[0], row[4]) for row in rows(path)) == sorted(
        (job_id, str(n)) for n, job_id in enumerate(ids)
    )


def test_progress_of_an_unknown_job_raises(queue: Queue) -> None:
    for job_id in ("unknown", "no id at all"):
        with pytest.raises(JobNotFound, match="unknown job_id"):
            queue.progress(job_id)
    assert queue.progress(queue.enqueue("work", {})) is None


def test_a_job_that_a_test_has_made_reports_to_nobody(queue: Queue) -> None:
    row = queue.store.find(queue.enqueue("work", {}))
    assert row is not None
    Job(row).progress(1, 2)
    with pytest.raises(InvalidArgument):
        Job(row).progress(-1)


# --- which attempt it is about


def test_progress_of_an_earlier_attempt_is_not_shown(queue: Queue, clock: Clock) -> None:
    seen = []

    def work(_: Any, job: Job) -> None:
        seen.append(queue.progress(job.id))
        clock.now += 1
        job.progress(len(seen), 10)
        if len(seen) == 1:
            raise ValueError("again")
        if len(seen) == 2:
            raise Delay(5)  # the next attempt has the same number

    job_id = queue.enqueue("work", {})
    for _ in range(3):
        queue.process_jobs({"work": work})
        assert queue.progress(job_id) is None
        clock.now += 500
    assert seen == [None, None, None]
    assert job(queue, job_id)["status"] == "completed"


def test_progress_from_before_a_requeue_is_not_shown(queue: Queue, clock: Clock) -> None:
    seen = []

    def work(_: Any, job: Job) -> None:
        seen.append(queue.progress(job.id))
        job.progress(1, 10)
        raise ValueError("no")

    job_id = queue.enqueue("work", {})
    for _ in range(2):
        queue.process_jobs({"work": work}, max_attempts=1)
        clock.now += 10
        assert queue.requeue(job_id)
    assert seen == [None, None]


# --- how often it is written


@pytest.mark.parametrize("how", ["interrupted", "stopped", "stopped and dead"])
def test_progress_of_an_attempt_whose_number_is_used_again_is_not_shown(
    queue: Queue, programs: Programs, tmp_path: Path, how: str
) -> None:
    def done() -> float | None:
        found = queue.progress("a")
        return found and found["done"]

    queue.enqueue("work", {}, 1, job_id="a")
    first = programs.start("""
        def work(_, job):
            job.progress(1, 4)
            note("began", "")
            while True:
                job.check_stop()
                time.sleep(0.01)
        queue.process_jobs({"work": work})
        """)
    wait_for_notes(tmp_path / "began", 1)
    assert done() == 1
    if how == "interrupted":
        first.signal(signal.SIGINT)
    elif how == "stopped":
        assert queue.stop_job("a") == "stopped"
    else:
        first.signal(signal.SIGSTOP)
        assert queue.stop_job("a") == "requested"
        first.kill()
    first.wait()
    seen = []

    def work(_: Any, job: Job) -> None:
        seen.append((job.attempt, done()))
        job.progress(2, 4)
        seen.append((job.attempt, done()))

    if how == "stopped and dead":
        assert queue.process_jobs({"work": work}) == NONE | {"recovered": 1, "stopped": 1}
    assert how == "interrupted" or queue.requeue("a")
    assert queue.process_jobs({"work": work}) == NONE | {"completed": 1}
    assert seen == [(1, None), (1, 2)]


def test_at_most_one_report_per_second_is_written_and_the_end_at_once(
    queue: Queue, path: Path, clock: Clock
) -> None:
    def work(_: Any, job: Job) -> None:
        for done in range(41):
            job.progress(done, 40)
            clock.now += 0.125
        for _ in range(5):
            job.progress(40, 40, "cleaning up")

    run(queue, work)
    assert [row[4] for row in rows(path)] == ["0", "8", "16", "24", "32", "40"]


def test_the_end_is_written_even_right_after_another_report(queue: Queue, path: Path) -> None:
    def work(_: Any, job: Job) -> None:
        for done in (1, 2, 3, 3):
            job.progress(done, 3)

    run(queue, work)
    assert [row[4] for row in rows(path)] == ["1", "3"]


def test_reports_go_on_after_the_clock_was_set_back(queue: Queue, path: Path, clock: Clock) -> None:
    def work(_: Any, job: Job) -> None:
        job.progress(1)
        clock.now -= 3600
        job.progress(2)

    run(queue, work)
    assert [row[4] for row in rows(path)] == ["1", "2"]


# --- the arguments


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((-1,), "invalid done -1: must be a number, 0 or more, at most 10**15"),
        ((math.nan,), "invalid done nan"),
        ((math.inf,), "invalid done inf"),
        ((True,), "invalid done True"),
        (("5",), "invalid done '5'"),
        ((None,), "invalid done None"),
        ((10**16,), "invalid done 10000000000000000"),
        ((1, 0), "invalid total 0: must be a number, more than 0, at most 10**15"),
        ((1, -5), "invalid total -5"),
        ((1, "2"), "invalid total '2'"),
        ((1, 2, None), "invalid note None: must be a str"),
        ((1, 2, b"x"), "invalid note b'x': must be a str"),
    ],
)
def test_an_invalid_report_raises_and_writes_nothing(
    queue: Queue, path: Path, arguments: Any, error: str
) -> None:
    def work(_: Any, job: Job) -> str:
        with pytest.raises(InvalidArgument) as caught:
            job.progress(*arguments)
        return str(caught.value)

    assert job(queue, run(queue, work))["result"].startswith(error)
    assert not sibling(path, "progress").exists()


class Half(float):
    def __repr__(self) -> str:
        return "a\nhalf"

    __str__ = __repr__

    def __format__(self, _: str) -> str:
        return "a\nhalf"


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        ((0,), ["0", "", ""]),
        ((0.5, 2.25, "x"), ["0.5", "2.25", "x"]),
        ((200, 100), ["200", "100", ""]),
        ((1e-9, 1e15), ["1e-09", "1000000000000000.0", ""]),
        ((Half(0.5), 10**15), ["0.5", "1000000000000000", ""]),
        ((1, None, "a\tb\n\x1b[31m\\"), ["1", "", r"a\tb\n\x1b[31m\\"]),
        ((1, None, "x" * 300), ["1", "", "x" * 200]),
    ],
)
def test_no_report_can_add_a_row_or_a_column(
    queue: Queue, path: Path, arguments: Any, columns: list[str]
) -> None:
    seen = []

    def work(_: Any, job: Job) -> None:
        job.progress(*arguments)
        seen.append(queue.progress(job.id))

    run(queue, work)
    (row,) = rows(path)
    assert row[4:] == columns
    (found,) = seen
    assert found is not None
    given = dict(zip(("done", "total", "note"), arguments, strict=False))
    assert found["done"] == given["done"]
    assert found["total"] == given.get("total")
    assert found["note"] == given.get("note", "")[:200]


# --- the estimate


@pytest.mark.parametrize(
    ("done", "total", "now", "left"),
    [
        (40, 100, NOW + 10, 15),
        (40, 100, NOW + 14, 11),
        (40, 100, NOW + 100, 0),
        (40, 100, NOW + 5, 15),  # a clock that is behind
        (100, 100, NOW + 10, 0),
        (120, 100, NOW + 10, 0),
        (0, 100, NOW + 10, None),
        (40, "", NOW + 10, None),
    ],
)
def test_the_rest_is_estimated_to_take_as_long_per_unit(
    done: int, total: Any, now: float, left: float | None
) -> None:
    found = Progress(f"a\t1\t{NOW}.000\t{NOW + 10}.000\t{done}\t{total}\t\n")
    assert found.seconds_left(now) == left


# --- errors: none of them is the job's


def test_a_report_that_cannot_be_written_is_logged_once_and_the_job_goes_on(
    queue: Queue, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def work(_: Any, job: Job) -> str:
        for done in range(5):
            job.progress(done, 9)
            clock.now += 10
        return "done"

    queue.enqueue("work", {})
    sibling(path, "progress").mkdir()
    with caplog.at_level(logging.ERROR):
        assert queue.process_jobs({"work": work}) == NONE | {"completed": 1}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("could not write the progress of a job (the queue is not affected)")


@pytest.mark.parametrize("timeout", [None, LONG])
def test_a_report_on_a_full_disk_does_not_fail_the_job(
    tmp_path: Path, timeout: float | None
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:

        def work(_: Any, job: Job) -> str:
            fill(disk)
            job.progress(1, 2)
            return "done"

        with Queue(disk / "data/queue.tsv") as queue:
            job_id = queue.enqueue("work", {})
            assert queue.process_jobs({"work": Handler(work, timeout=timeout)})["completed"] == 1
            assert job(queue, job_id)["result"] == "done"


def test_a_report_by_a_signal_handler_inside_a_call_of_the_queue_is_dropped(
    queue: Queue, path: Path
) -> None:
    """It would need the lock to create the file."""

    def work(_: Any, job: Job) -> str:
        store_of(queue).lock.run(lambda: job.progress(1, 2))
        return "done"

    assert job(queue, run(queue, work))["result"] == "done"
    assert not sibling(path, "progress").exists()


@pytest.mark.parametrize("suffix", ["progress", "progress.1"])
def test_a_progress_file_that_is_a_link_is_refused(
    queue: Queue, path: Path, tmp_path: Path, suffix: str
) -> None:
    def work(_: Any, job: Job) -> None:
        job.progress(1)
        sibling(path, suffix).unlink(missing_ok=True)
        sibling(path, suffix).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(NotAQueue):
            queue.progress(job.id)

    run(queue, work)


# --- the file


def writer_of(queue: Queue) -> ProgressWriter:
    return ProgressWriter(queue.path, store_of(queue).lock, lambda: True)


def test_the_file_stays_small_and_the_last_report_can_be_read_during_a_rotation(
    queue: Queue, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "LARGEST_BYTES", 2000)

    def work(_: Any, job: Job) -> None:
        for done in range(300):
            job.progress(done, 1000)
            clock.now += 1
            found = queue.progress(job.id)
            assert found is not None
            assert found["done"] == done

    run(queue, work)
    for suffix in ("progress", "progress.1"):
        assert sibling(path, suffix).stat().st_size < 2100


def test_the_file_can_be_deleted_while_the_job_runs(queue: Queue, path: Path, clock: Clock) -> None:
    def work(_: Any, job: Job) -> None:
        for done in range(3):
            job.progress(done)
            sibling(path, "progress").unlink()
            assert queue.progress(job.id) is None
            clock.now += 1
        job.progress(3)
        assert queue.progress(job.id) is not None

    run(queue, work)


def test_invalid_lines_are_skipped_and_the_next_writer_ends_a_torn_one(
    queue: Queue, path: Path, clock: Clock
) -> None:
    def work(_: Any, job: Job) -> None:
        job.progress(1, 2)
        whole = sibling(path, "progress").read_bytes().split(b"\n")[1]
        foreign = [b"# a note", b"", HEADER[:-1], whole + b"\tx", whole + b"\0", b"\xff" * 9]
        for place in range(1, 6):
            columns = whole.split(b"\t")
            for number in (b"nan", b"-1", b"inf", b"9" * 400, b"x"):
                foreign.append(b"\t".join([*columns[:place], number, *columns[place + 1 :]]))
        with sibling(path, "progress").open("ab") as file:
            file.write(b"\n".join(foreign) + b"\n" + whole[:-4])
        found = queue.progress(job.id)
        assert found is not None
        assert (found["done"], found["total"]) == (1, 2)
        clock.now += 1
        job.progress(2, 2)
        assert queue.progress(job.id) == found | {"done": 2, "at": NOW + 1, "seconds_left": 0}

    run(queue, work)


def test_several_threads_and_processes_may_report_at_once(queue: Queue, path: Path) -> None:
    writer = writer_of(queue)

    def report(name: str) -> None:
        for done in range(200):
            writer.note(name, 1, NOW, NOW, done, 200, "x" * 100)

    threads = [threading.Thread(target=report, args=(f"t{n}",)) for n in range(3)]
    queue.enqueue("work", {})
    child = os.fork()
    if child == 0:
        report("child")
        os._exit(0)
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread, "the reports of a thread")
    assert exit_code(child) == 0
    # A row that is half written looks torn to the next writer: it may end it by an empty line.
    found = [row for row in rows(path) if row != [""]]
    assert {len(row) for row in found} == {7}
    for name in ("t0", "t1", "t2", "child"):
        assert [row[4] for row in found if row[0] == name] == [str(n) for n in range(200)]


def test_a_queue_in_memory_shows_progress_too(clock: Clock) -> None:
    with Queue("memory:", clock=clock) as queue:
        seen = []

        def work(_: Any, job: Job) -> None:
            job.progress(1, 4, "one")
            seen.append(queue.progress(job.id))

        job_id = run(queue, work)
        (found,) = seen
        assert found is not None
        assert (found["done"], found["total"], found["note"]) == (1, 4, "one")
        assert queue.progress(job_id) is None
        # A forked process has only a copy of the jobs: the report is lost, and nothing else.
        assert run(queue, lambda _, job: job.progress(1, 2), timeout=LONG)


def test_a_killed_pass_leaves_progress_that_nobody_sees(programs: Programs, tmp_path: Path) -> None:
    child = programs.start("""
        def work(_, job):
            job.progress(1, 4)
            note("began", "x")
            time.sleep(60)
        queue.enqueue("work", {}, job_id="a")
        queue.process_jobs({"work": work})
        """)
    wait_for_notes(tmp_path / "began", 1)
    child.kill()
    with Queue(tmp_path / "data/queue.tsv") as queue:
        seen = []

        def work(_: Any, job: Job) -> None:
            seen.append((job.attempt, queue.progress(job.id)))

        assert queue.process_jobs({"work": work})["recovered"] == 1
        assert queue.run_now("a")
        assert queue.process_jobs({"work": work})["completed"] == 1
        assert seen == [(2, None)]
