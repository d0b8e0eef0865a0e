"""What jobs print: kept if they run in a process of their own, whatever happens to them."""

from __future__ import annotations

import asyncio
import faulthandler
import math
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    NONE,
    Clock,
    Programs,
    fill,
    history,
    job,
    notes,
    raising,
    sibling,
    small_disk,
    wait_for,
    wait_for_notes,
)

from dbbasic_queue import Delay, Fail, Handler, Queue
from dbbasic_queue.passes import forked, time_limit
from dbbasic_queue.passes.tail import KEPT_BYTES, Printed, Tail
from dbbasic_queue.store import output as output_file

LONG = 60.0


def apart(function: Any, timeout: float = LONG) -> Handler:
    """Return a handler whose jobs run in a process of their own; the first attempt is the last."""
    return Handler(function, timeout=timeout, max_attempts=1)


def prints(text: str | bytes) -> None:
    """Print as a C library or another program does: without Python's `sys.stdout`."""
    os.write(1, text.encode() if isinstance(text, str) else text)


def output_of(queue: Queue, function: Any, timeout: float = LONG) -> str | None:
    """Run one job in a process of its own; return what is kept of its output."""
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": apart(function, timeout)})
    return queue.output(job_id)


# --- what is kept


def test_what_a_handler_and_its_programs_print_is_kept_in_order(queue: Queue) -> None:
    def work(_: Any) -> None:
        prints("from C\n")
        os.system("echo from a program; echo its error >&2")
        os.write(2, b"an error\n")

    assert output_of(queue, work) == "from C\nfrom a program\nits error\nan error\n"


def test_what_print_has_buffered_is_kept(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what a thread, or an atexit callback, prints last."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    text = programs.run("""
        import atexit, threading
        from dbbasic_queue import Handler
        def last():
            time.sleep(0.1)
            print("a thread", end="")
        def work(_):
            print("one")
            print("two", file=sys.stderr)
            print("three", end=" ")
            threading.Thread(target=last).start()
            atexit.register(print, ", at exit", end="")
        job_id = queue.enqueue("work", {})
        print("before")
        queue.process_jobs({"work": Handler(work, timeout=60)})
        print("after")
        print(repr(queue.output(job_id)))
        """)
    assert text.split("\n") == ["before", "after", repr("one\ntwo\nthree a thread, at exit")]
    assert (tmp_path / "program-0.err").read_text() == ""


def test_what_print_has_written_before_a_kill_is_kept(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a pipe isn't a terminal, each line leaves Python's buffer at once."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    text = programs.run("""
        from dbbasic_queue import Handler
        def work(_):
            print("converting")
            os.kill(os.getpid(), signal.SIGKILL)
        job_id = queue.enqueue("work", {})
        queue.process_jobs({"work": Handler(work, timeout=60)})
        print(queue.output(job_id), queue.get_job(job_id)["error"])
        """)
    assert text == "converting\n the handler's process was killed by SIGKILL"


def crashes(_: Any) -> None:
    prints("crashing\n")
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(_: Any) -> None:
    prints("hanging\n")
    time.sleep(LONG)


def ignores_sigterm(_: Any) -> None:
    def complain(*_: Any) -> None:
        prints("no\n")

    signal.signal(signal.SIGTERM, complain)
    prints("deaf\n")
    while True:
        time.sleep(1)


def exits(_: Any) -> None:
    prints("leaving\n")
    os._exit(3)


def becomes_a_program(_: Any) -> None:
    os.execvp("echo", ["echo", "another"])


def fails(_: Any) -> None:
    prints("trying\n")
    raise Fail("no")


def delays(_: Any) -> None:
    prints("waiting\n")
    raise Delay(60)


@pytest.mark.parametrize(
    ("function", "timeout", "printed"),
    [
        (crashes, LONG, "crashing\n"),
        (hangs, 1.0, "hanging\n"),
        (ignores_sigterm, 1.0, "deaf\nno\n"),
        (exits, LONG, "leaving\n"),
        (becomes_a_program, LONG, "another\n"),
        (fails, LONG, "trying\n"),
        (delays, LONG, "waiting\n"),
    ],
)
def test_output_is_kept_whatever_the_outcome(
    queue: Queue, function: Any, timeout: float, printed: str
) -> None:
    assert output_of(queue, function, timeout) == printed


def test_a_coroutine_in_a_process_of_its_own_has_output_too(queue: Queue) -> None:
    async def work(_: Any) -> None:
        await asyncio.sleep(0)
        prints("async\n")

    assert output_of(queue, work, math.inf) == "async\n"


@pytest.mark.parametrize("workers", [1, 3])
def test_output_is_kept_for_each_job_of_several_passes(queue: Queue, workers: int) -> None:
    ids = queue.enqueue_many("work", range(12))
    queue.process_jobs({"work": apart(lambda n: prints(f"job {n}\n"))}, workers=workers)
    assert [queue.output(job_id) for job_id in ids] == [f"job {n}\n" for n in range(12)]


def test_a_job_that_runs_inside_the_pass_or_prints_nothing_has_no_output(
    queue: Queue, path: Path
) -> None:
    for handler in (str, apart(str)):
        job_id = queue.enqueue("work", {})
        queue.process_jobs({"work": handler})
        assert queue.output(job_id) is None
    assert not sibling(path, "output").exists()


# --- how much is kept


def test_only_the_last_64_kilobytes_of_100_megabytes_are_kept(programs: Programs) -> None:
    """The job isn't held up, and neither the guardian nor the pass grows."""
    text = programs.run("""
        import resource
        from dbbasic_queue import Handler
        def work(megabytes):
            for _ in range(16 * megabytes):
                os.write(1, b"x" * 65_536)
            os.write(1, b"the end\\n")
        def kibibytes():
            return sum(resource.getrusage(process).ru_maxrss for process in (
                resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        used = []
        for megabytes in (1, 100):
            job_id = queue.enqueue("work", megabytes)
            queue.process_jobs({"work": Handler(work, timeout=60)})
            used.append(kibibytes())
        found = queue.output(job_id)
        print(len(found), found.endswith("xxxthe end\\n"), used[1] - used[0] < 20_000)
        """)
    assert text == "65536 True True"


def test_how_much_was_left_out_is_in_the_row(queue: Queue, path: Path) -> None:
    output_of(queue, lambda _: prints("x" * 70_000))
    assert columns(path)[4:] == [str(70_000 - KEPT_BYTES), "x" * KEPT_BYTES]


def columns(path: Path) -> list[str]:
    """Return the columns of the only row."""
    header, row, end = sibling(path, "output").read_bytes().decode().split("\n")
    assert (header + "\n", end) == (output_file.HEADER.decode(), "")
    return row.split("\t")


def test_a_character_whose_beginning_is_left_out_is_left_out_too(queue: Queue, path: Path) -> None:
    output_of(queue, lambda _: prints("€" * 30_000))  # three bytes each
    left_out, text = columns(path)[4:]
    assert set(text) == {"€"}
    assert int(left_out) + len(text.encode()) == 90_000


def test_a_tail_reads_a_pipe_to_its_end_without_waiting() -> None:
    reading, writing = os.pipe()
    tail = Tail(reading)
    with pytest.raises(BlockingIOError):
        tail.read()
    tail.read_rest()
    os.write(writing, b"a" * 10_000)
    os.write(writing, b"b" * 30_000)
    tail.read_rest()
    os.write(writing, b"c" * 60_000)
    os.close(writing)
    tail.read_rest()
    assert not tail.read()
    assert len(tail.kept) == KEPT_BYTES
    assert tail.kept == b"b" * 5_536 + b"c" * 60_000
    assert tail.left_out == 100_000 - KEPT_BYTES
    os.close(reading)


def test_a_process_that_prints_without_end_does_not_keep_the_guardian() -> None:
    zero = os.open("/dev/zero", os.O_RDONLY)
    tail = Tail(zero)
    tail.read_rest()
    assert len(tail.kept) == KEPT_BYTES
    os.close(zero)


# --- any bytes


BYTES = (
    bytes(range(256)) + b"\xe2\x82\xac \xe2\x82 \x1b[31m\x1b]0;title\x07\r\n\t\\n\\x41 \xe2\x80\xa8"
)


def test_any_bytes_are_kept_and_can_be_returned(queue: Queue, path: Path) -> None:
    found = output_of(queue, lambda _: prints(BYTES))
    assert found is not None
    assert found.encode("utf-8", "surrogateescape") == BYTES
    content = sibling(path, "output").read_text("utf-8")
    assert content.replace("\t", "").replace("\n", "").isprintable()
    assert len(columns(path)) == 6


@pytest.mark.parametrize("text", ["\n", "\t", "\nid\tfake\t1\t1.000\t0\tx\n", "\0", "\x1b[31m"])
def test_no_output_can_add_a_row_or_a_column(queue: Queue, path: Path, text: str) -> None:
    assert output_of(queue, lambda _: prints(text)) == text
    assert len(columns(path)) == 6


# --- processes that go on


def test_a_process_that_keeps_the_pipe_open_delays_nothing(queue: Queue, tmp_path: Path) -> None:
    def work(_: Any) -> str:
        script = "echo $$ >> pids; while :; do echo still here; sleep 0.01; done"
        subprocess.Popen(["setsid", "sh", "-c", script], cwd=tmp_path)
        wait_for_notes(tmp_path / "pids", 1)
        prints("done\n")
        return "done"

    started_at = time.monotonic()
    found = output_of(queue, work)
    assert time.monotonic() - started_at < 10
    assert found is not None and "done\n" in found
    with pytest.raises(ProcessLookupError):
        os.kill(int(notes(tmp_path / "pids")[0]), 0)


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_job_that_closes_its_stdout_goes_on(queue: Queue) -> None:
    """The guardian doesn't poll the closed pipe all the time."""

    def work(_: Any) -> str:
        prints("first\n")
        os.close(1)
        os.close(2)
        time.sleep(2)
        return "done"

    job_id = queue.enqueue("work", {})
    before = cpu_seconds_of_children()
    queue.process_jobs({"work": apart(work)})
    assert cpu_seconds_of_children() - before < 0.25  # on a busy machine, polling takes 0.4
    assert queue.output(job_id) == "first\n"
    assert job(queue, job_id)["result"] == "done"


def test_output_is_kept_in_a_program_that_has_closed_its_standard_files(
    programs: Programs, tmp_path: Path
) -> None:
    """New pipes get the numbers 0 to 2 there."""
    programs.start("""
        from dbbasic_queue import Handler
        os.closerange(0, 3)
        def work(_):
            os.write(1, b"out ")
            os.write(2, b"err")
            return "done"
        job_id = queue.enqueue("work", {})
        queue.process_jobs({"work": Handler(work, timeout=60)})
        note("result", queue.get_job(job_id)["result"])
        note("result", queue.output(job_id))
        """).wait()
    assert notes(tmp_path / "result") == ["done", "out err"]


# --- when it is written


def test_output_is_written_after_the_outcome_was_recorded(
    queue: Queue, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a kill, or a full disk, between the two would cost an outcome."""
    real = output_file.OutputWriter.keep
    seen = []

    def keep(*arguments: Any) -> Any:
        with Queue(path, clock=clock) as other:
            seen.append(job(other, "a")["status"])
        return real(*arguments)

    monkeypatch.setattr(output_file.OutputWriter, "keep", keep)
    queue.enqueue("work", {}, job_id="a")
    queue.process_jobs({"work": apart(lambda _: prints("done\n"))})
    assert seen == ["completed"]


def test_the_output_of_a_job_can_be_found_as_soon_as_it_has_ended(
    programs: Programs, tmp_path: Path
) -> None:
    """Though its pass, and so the history, goes on."""
    programs.start("""
        from dbbasic_queue import Handler
        def work(_):
            os.write(1, b"first")
        queue.enqueue("work", {}, job_id="a", run_at=1)
        queue.enqueue("sleep", 60, run_at=2)
        queue.process_jobs({"work": Handler(work, timeout=60), "sleep": time.sleep})
        """)
    with Queue(tmp_path / "data/queue.tsv") as queue:
        wait_for(lambda: queue.store.exists(), "the queue")
        wait_for(lambda: queue.output("a") == "first", "the output")
        wait_for(lambda: history(queue, "a"), "the history")
        assert history(queue, "a")[0]["output_offset"] == len(output_file.HEADER)


def test_a_killed_pass_leaves_no_output_and_a_job_that_runs_again(
    programs: Programs, tmp_path: Path
) -> None:
    child = programs.start("""
        from dbbasic_queue import Handler
        def work(_):
            os.write(1, b"first\\n")
            note("began", "x")
            time.sleep(60)
        queue.enqueue("work", {}, job_id="a")
        queue.process_jobs({"work": Handler(work, timeout=60)})
        """)
    wait_for_notes(tmp_path / "began", 1)
    child.kill()
    path = tmp_path / "data/queue.tsv"
    with Queue(path) as queue:
        handlers = {"work": Handler(lambda _: prints("second\n"), timeout=LONG)}
        wait_for(lambda: queue.process_jobs(handlers)["recovered"], "the guardian to end")
        assert queue.run_now("a")
        assert queue.process_jobs(handlers)["completed"] == 1
        assert queue.output("a") == queue.output("a", 2) == "second\n"
        assert queue.output("a", 1) is None


def test_an_interrupted_job_that_a_signal_to_its_service_has_ended_keeps_its_output(
    programs: Programs, tmp_path: Path
) -> None:
    child = programs.start("""
        from dbbasic_queue import Handler
        def work(_):
            os.write(1, b"converting\\n")
            note("began", os.getpid())
            time.sleep(60)
        queue.enqueue("work", {}, job_id="a")
        queue.process_jobs({"work": Handler(work, timeout=60)})
        """)
    wait_for_notes(tmp_path / "began", 1)
    os.kill(int(notes(tmp_path / "began")[0]), signal.SIGTERM)
    child.signal(signal.SIGTERM)
    child.wait()
    with Queue(tmp_path / "data/queue.tsv") as queue:
        assert history(queue, "a")[0]["outcome"] == "interrupted"
        assert queue.output("a") == "converting\n"


# --- errors


def test_without_a_pipe_for_the_output_the_job_is_returned(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guardian's third pipe is that for the output."""
    real, this_pass, made = forked.pipe, os.getpid(), []

    def pipe() -> tuple[int, int]:
        if os.getpid() != this_pass:
            made.append(1)
            if len(made) == 3:
                raise OSError(24, "Too many open files")
        return real()

    monkeypatch.setattr(forked, "pipe", pipe)
    job_id = queue.enqueue("work", {})
    assert queue.process_jobs({"work": apart(str)}) == NONE | {"delayed": 1}
    assert job(queue, job_id)["error"].startswith("delayed: the job's process could not be started")
    assert job(queue, job_id)["attempts"] == 0


OUTCOME = b"\0\0\0\0\0\0\0\4done"


@pytest.mark.parametrize("cut", range(len(b"exit 0 12 3 7\n") + len(OUTCOME) + 4))
def test_a_report_cut_short_anywhere_is_either_an_outcome_or_an_error(cut: int) -> None:
    report = (b"exit 0 12 3 7\n" + OUTCOME + b"abc")[:cut]
    try:
        outcome, printed = time_limit._outcome(report, 1.0, is_late=False)
    except time_limit.Died:
        assert cut < 26
        return
    assert cut >= 26
    assert outcome == b"done"
    assert (printed is None) == (cut < 29)


def test_a_report_has_what_was_printed_before_an_error() -> None:
    report = b"late 0 5 3 7\n" + OUTCOME[:5] + b"abc"
    with pytest.raises(time_limit.Died, match="timed out after 1 s") as caught:
        time_limit._outcome(report, 1.0, is_late=False)
    printed = caught.value.printed
    assert isinstance(printed, Printed)
    assert (printed.kept, printed.left_out) == (b"abc", 7)


def test_on_a_full_disk_the_outcome_is_recorded_and_the_output_is_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        path = disk / "data/queue.tsv"

        def work(_: Any) -> str:
            prints("x" * 60_000)
            fill(disk)
            return "done"

        with Queue(path) as queue:
            ids = queue.enqueue_many("work", range(2))
            queue.process_jobs({"work": apart(work)})
            assert job(queue, ids[0])["result"] == "done"
            assert queue.output(ids[0]) is None
            (disk / "filler").unlink()
            queue.process_jobs({"work": apart(lambda _: prints("again\n"))})
            later = queue.enqueue("work", {})
            queue.process_jobs({"work": apart(lambda _: prints("later\n"))})
            assert queue.counts()["completed"] == 3
            assert queue.output(later) == "later\n"


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_a_link_at_the_outputs_path_is_left_alone_and_the_pass_goes_on(
    queue: Queue, path: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    ids = queue.enqueue_many("work", range(2))
    place = sibling(path, "output")
    if kind == "symlink":
        place.symlink_to(victim)
    elif kind == "directory":
        place.mkdir()
    else:
        os.mkfifo(place)
    counts = queue.process_jobs({"work": apart(lambda _: prints("x"))})
    assert counts == NONE | {"completed": 2}
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert message.startswith("could not write what a job has printed (the queue is not affected)")
    assert victim.read_text() == "precious"
    assert [found["output_offset"] for found in history(queue, ids[0])] == [None]


# --- the exception's class, in the history


class OwnError(Exception):
    pass


@pytest.mark.parametrize("timeout", [None, LONG])
def test_the_history_has_the_path_of_the_exceptions_class(
    queue: Queue, timeout: float | None
) -> None:
    errors = {
        "builtin": (KeyError("x"), "KeyError"),
        "library": (subprocess.SubprocessError("x"), "subprocess.SubprocessError"),
        "own": (OwnError("x"), f"{__name__}.OwnError"),
        "fail": (Fail("x"), "dbbasic_queue.handlers.Fail"),
        "delay": (Delay(5), None),
    }
    for name in errors:
        queue.enqueue(name, {}, job_id=name)
    queue.process_jobs(
        {name: Handler(raising(error), timeout=timeout) for name, (error, _) in errors.items()}
    )
    found = {name: history(queue, name)[0]["exception"] for name in errors}
    assert found == {name: path for name, (_, path) in errors.items()}


def test_the_worker_of_an_attempt_is_the_pass_that_has_recorded_it(queue: Queue) -> None:
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": apart(str)})
    (found,) = history(queue, job_id)
    assert found["worker"] == f"{os.uname().nodename}.{os.getpid()}"
    ids = queue.enqueue_many("work", range(4))
    queue.process_jobs({"work": str}, workers=2)
    for worker in [history(queue, job_id)[0]["worker"] for job_id in ids]:
        assert worker.startswith(f"{os.uname().nodename}.")
        assert not worker.endswith(f".{os.getpid()}")


def test_the_path_of_an_exceptions_class_cannot_add_a_row_or_a_column(queue: Queue) -> None:
    class Odd(Exception):
        pass

    Odd.__module__ = "m\n\t\x1b" * 200
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": raising(Odd("x"))})
    (found,) = history(queue, job_id)
    assert found["exception"] == ("m\n\t\x1b" * 200)[:200]
