"""The history: `queue.tsv.history`, with one row per finished attempt."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    NONE,
    NOW,
    Clock,
    Programs,
    add_attempts,
    add_lines,
    fill,
    history,
    is_free,
    line,
    raising,
    sibling,
    small_disk,
    store_of,
    wait_for,
    wait_for_notes,
)
from hypothesis import given
from hypothesis import strategies as st

from dbbasic_queue import Backoff, Delay, Fail, Handler, NotAQueue, Queue
from dbbasic_queue.model.checks import check_type
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.passes.tracebacks import MAX_TRACEBACK, format_traceback
from dbbasic_queue.store import history as history_file
from dbbasic_queue.store import rotated
from dbbasic_queue.store.disk.files import open_file
from dbbasic_queue.store.history import HEADER, HistoryWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def table(path: Path) -> list[list[str]]:
    """Return the columns of every row, as `awk -F'\\t'` would see them."""
    header, *lines = sibling(path, "history").read_bytes().decode().split("\n")
    assert header == HEADER.decode().strip("\n")
    assert lines.pop() == "", "the last line is not complete"
    return [line.split("\t") for line in lines]


def outcomes(path: Path) -> list[str]:
    return [columns[3] for columns in table(path)]


# --- its rows


def test_each_way_an_attempt_can_end_is_a_row(queue: Queue, path: Path, clock: Clock) -> None:
    handlers: dict[str, Any] = {
        "good": str,
        "bad": raising(ValueError("no such user")),
        "ends": raising(Fail("no card")),
        "waits": raising(Delay(60, "on hold")),
        "odd": lambda _: object(),
    }
    for job_type in [*handlers, "nobody"]:
        queue.enqueue(job_type, {}, job_id=job_type)
    queue.process_jobs(handlers)
    clock.now += 1000
    queue.process_jobs({"bad": handlers["bad"]}, 2, skip_unknown=True)
    found = [(id_, attempt, end, error) for id_, _, attempt, end, _, _, _, error, *_ in table(path)]
    json_types = "give a dict, list, str, int, float, bool or None"
    kept = f"result not kept: ValueError: object is not JSON ({json_types})"
    assert found == [
        ("good", "1", "completed", ""),
        ("bad", "1", "retried", "ValueError: no such user"),
        ("ends", "1", "failed", "no card"),
        ("waits", "1", "delayed", "delayed: on hold"),
        ("odd", "1", "completed", kept),
        ("nobody", "1", "retried", "No handler for nobody"),
        ("bad", "2", "failed", "ValueError: no such user"),
    ]
    assert [columns[1] for columns in table(path)][:3] == ["good", "bad", "ends"]
    assert [bool(columns[8]) for columns in table(path)] == [0, 1, 1, 0, 0, 0, 1]


class Stopwatch:
    """Monotonic seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_row_has_the_due_time_the_end_time_and_the_handlers_run_time(
    queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch()
    monkeypatch.setattr("dbbasic_queue.passes.executor.time", watch)

    def work(seconds: float) -> None:
        clock.now += seconds
        watch.seconds += seconds

    past = queue.enqueue("work", 0.25, run_at=NOW - 100)  # due when it was enqueued
    later = queue.enqueue("work", 1.5, run_at=NOW + 10)
    clock.now += 20.125
    queue.process_jobs({"work": work})
    (first,), (second,) = history(queue, past), history(queue, later)
    assert (first["due_at"], first["ended_at"], first["seconds"]) == (NOW, NOW + 20.375, 0.25)
    assert (second["due_at"], second["ended_at"], second["seconds"]) == (
        NOW + 10,
        NOW + 21.875,
        1.5,
    )


def test_history_returns_a_jobs_attempts_oldest_first(queue: Queue, clock: Clock) -> None:
    errors = [ValueError("a\tb\n"), Delay(5, "on\thold")]

    def work(_: Any) -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    job_id = queue.enqueue("work", {})
    queue.enqueue("other", {})
    for _ in range(3):
        queue.process_jobs({"work": work, "other": str})
        clock.now += 120
    first, second, third = history(queue, job_id)
    assert list(first) == HEADER.decode().split()
    trace = first.pop("traceback")
    assert first.pop("seconds") >= 0
    assert first.pop("worker") == second.pop("worker") == f"{os.uname().nodename}.{os.getpid()}"
    assert first == {
        "id": job_id,
        "type": "work",
        "attempt": 1,
        "outcome": "retried",
        "due_at": NOW,
        "ended_at": NOW,
        "error": "ValueError: a\tb\n",
        "exception": "ValueError",
        "output_offset": None,
    }
    assert trace.startswith("Traceback (most recent call last):\n") and "raise errors.pop" in trace
    assert (second["attempt"], second["outcome"]) == (2, "delayed")
    assert (second["error"], second["traceback"]) == ("delayed: on\thold", None)
    assert (third["attempt"], third["outcome"], third["error"]) == (2, "completed", None)
    assert third["due_at"] == NOW + 125


@pytest.mark.parametrize("job_id", ["unknown", "no id at all", "", None])
def test_a_job_that_has_not_run_has_no_history(queue: Queue, job_id: Any) -> None:
    queue.enqueue("work", {}, job_id="waits")
    assert history(queue, job_id) == history(queue, "waits") == []
    queue.enqueue("work", {})
    queue.process_jobs({"work": str}, skip_unknown=True)
    assert history(queue, job_id) == []


def test_an_id_that_starts_with_another_id_has_its_own_history(queue: Queue) -> None:
    for job_id in ("a", "ab"):
        queue.enqueue("work", {}, job_id=job_id)
    queue.process_jobs({"work": str})
    assert [found["id"] for found in history(queue, "a")] == ["a"]


@given(
    st.lists(st.sampled_from([b"a", b"b\t", b"ab\t", b"b\tx\n", b"\n", b"x" * 9])), st.booleans()
)
def test_a_search_for_the_rows_of_a_job_finds_the_lines_that_begin_with_its_id(
    pieces: list[bytes], is_ended: bool
) -> None:
    content = b"".join(pieces) + b"\n" * is_ended
    with tempfile.NamedTemporaryFile() as written, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotated, "LONGEST_ROW_BYTES", 8)  # it is also how much is read at once
        written.write(content)
        written.flush()
        file = open_file(written.name, os.O_RDONLY)
        assert file is not None
        for beginning in (b"b\t", b"ab\t", b"aab\t"):
            expected = [found for found in rotated.lines(file) if found.startswith(beginning)]
            os.lseek(file.fd, 0, os.SEEK_SET)
            assert list(rotated.lines_beginning(file, beginning)) == expected


def test_an_interrupted_attempt_is_a_row(programs: Programs, tmp_path: Path) -> None:
    child = programs.start("""
        def work(payload):
            note("began", "x")
            time.sleep(60)
        queue.enqueue("work", {}, job_id="a")
        queue.process_jobs({"work": work})
        """)
    wait_for_notes(tmp_path / "began", 1)
    child.signal(signal.SIGINT)
    child.wait()
    with Queue(tmp_path / "data/queue.tsv") as queue:
        (found,) = history(queue, "a")
    assert (found["attempt"], found["outcome"]) == (1, "interrupted")
    assert found["error"] == "interrupted: the pass was stopped"
    assert 0 < found["seconds"] < 60


def test_a_late_outcome_is_a_row(queue: Queue, path: Path, clock: Clock) -> None:
    job_id = queue.enqueue("work", {})

    def work(_: Any) -> str:
        sibling(path, "pass.1").unlink()  # others assume that a pass without its slot file is dead
        with Queue(path, clock=clock) as other:
            assert other.process_jobs({"work": str}) == NONE | {"recovered": 1}
            clock.now += 120
            assert other.process_jobs({"work": str}) == NONE | {"completed": 1}
        return "late"

    assert queue.process_jobs({"work": work}) == NONE
    ends = [(found["attempt"], found["outcome"]) for found in history(queue, job_id)]
    assert ends == [(1, "died"), (2, "completed"), (1, "late")]


def test_a_killed_pass_loses_only_unwritten_rows_and_its_job_gets_a_row(
    programs: Programs, tmp_path: Path
) -> None:
    source = """
        def work(payload):
            note("began", payload)
            if payload == 20:
                time.sleep(60)
        queue.enqueue_many("work", range(20))
        queue.enqueue("work", 20, job_id="killed")
        queue.process_jobs({"work": work})
        """
    child = programs.start(source)
    wait_for_notes(tmp_path / "began", 21)
    child.kill()
    path = tmp_path / "data/queue.tsv"
    with Queue(path) as queue:
        known = set(outcomes(path)) if sibling(path, "history").exists() else set()
        assert known <= {"completed"}
        assert queue.process_jobs({"work": str}) == NONE | {"recovered": 1}
        assert [row["outcome"] for row in history(queue, "killed")] == ["died"]
        assert queue.run_now("killed")
        assert queue.process_jobs({"work": str}) == NONE | {"completed": 1}
        died, completed = history(queue, "killed")
    assert (died["attempt"], died["outcome"], died["seconds"]) == (1, "died", None)
    assert (died["error"], died["traceback"]) == ("worker died in attempt 1", None)
    assert died["ended_at"] >= died["due_at"]
    assert (completed["attempt"], completed["outcome"]) == (2, "completed")


def test_jobs_that_a_dead_pass_has_not_started_have_no_row(
    programs: Programs, tmp_path: Path
) -> None:
    programs.start("""
        from unittest.mock import patch
        patch("dbbasic_queue.passes.executor._SLOW_SECONDS", 1e9).start()  # keeps its claims
        patch("dbbasic_queue.passes.sequential._BATCH_SECONDS", 1e9).start()  # batches of 1, 8, 21
        queue.enqueue_many("work", range(30))
        def work(payload):
            if payload == 15:
                os.kill(os.getpid(), signal.SIGKILL)
        queue.process_jobs({"work": work})
        """).wait()
    path = tmp_path / "data/queue.tsv"
    with Queue(path) as queue:
        assert queue.process_jobs({"work": str}) == NONE | {"recovered": 15, "completed": 14}
        (died,) = queue.jobs("pending")
        assert died["payload"] == 15
    assert Counter(outcomes(path))["died"] == 1


# --- each way of running a handler


async def waits(payload: Any) -> str:
    await asyncio.sleep(0)
    return fails(payload)


def fails(payload: Any) -> str:
    if payload == "bad":
        raise ValueError("no such user")
    return "done"


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("how", ["plain", "coroutine", "apart", "coroutine apart"])
def test_the_row_is_the_same_for_each_way_of_running_a_handler(
    queue: Queue, path: Path, how: str, workers: int
) -> None:
    function: Any = waits if "coroutine" in how else fails
    handler = Handler(function, timeout=20 if "apart" in how else None)
    bad = queue.enqueue("work", "bad")
    queue.enqueue_many("work", range(5))
    done = queue.process_jobs({"work": handler}, workers=workers)
    assert done == NONE | {"completed": 5, "retried": 1}
    assert Counter(outcomes(path)) == {"completed": 5, "retried": 1}
    (found,) = history(queue, bad)
    assert found["error"] == "ValueError: no such user"
    assert found["seconds"] > 0
    frames = [line.split(" in ")[1] for line in found["traceback"].split("\n") if " in " in line]
    assert frames == ["waits", "fails"][-1 - ("coroutine" in how) :]


def test_an_attempt_that_timed_out_has_an_error_and_no_traceback(queue: Queue) -> None:
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": Handler(lambda _: time.sleep(60), timeout=0.1)})
    (found,) = history(queue, job_id)
    assert found["error"].startswith("timed out after 0.1 s")
    assert (found["outcome"], found["traceback"]) == ("retried", None)
    assert 0.1 <= found["seconds"] < 60


# --- tracebacks


def caught(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as e:  # noqa: BLE001
        return e
    raise AssertionError("nothing was raised")


def test_a_traceback_starts_at_the_handler(queue: Queue) -> None:
    def outer(_: Any) -> None:
        inner()

    def inner() -> None:
        raise ValueError("no such user")

    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": outer})
    (found,) = history(queue, job_id)
    where = Path(__file__)
    first = outer.__code__.co_firstlineno
    lines = [text for text in found["traceback"].split("\n") if text.strip(" ~^")]  # 3.13's marks
    assert lines == [
        "Traceback (most recent call last):",
        f'  File "{where}", line {first + 1}, in outer',
        "    inner()",
        f'  File "{where}", line {first + 4}, in inner',
        '    raise ValueError("no such user")',
        "ValueError: no such user",
    ]


def test_a_traceback_shows_the_queue_calls_that_a_handler_makes(queue: Queue) -> None:
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": lambda _: queue.enqueue("no type", {})})
    (found,) = history(queue, job_id)
    assert "in <lambda>" in found["traceback"] and "in check_type" in found["traceback"]


def test_a_traceback_shows_a_handler_that_is_a_function_of_the_package(queue: Queue) -> None:
    job_id = queue.enqueue("work", "no type")
    queue.process_jobs({"work": check_type})
    (found,) = history(queue, job_id)
    assert found["traceback"].split("\n")[1].endswith("in check_type")


def test_a_traceback_shows_causes_notes_and_the_members_of_a_group() -> None:
    def chained() -> None:
        try:
            dict[str, str]()["key"]
        except KeyError as e:
            raise ValueError("second") from e

    text = unescape(format_traceback(caught(chained)))
    assert text.index("KeyError: 'key'") < text.index("direct cause") < text.index("second")

    def several() -> None:
        error = ExceptionGroup("several", [OSError("first"), OSError("other")])
        error.add_note("by hand")
        raise error

    text = unescape(format_traceback(caught(several)))
    assert all(part in text for part in ("several", "by hand", "first", "other"))


def test_a_handler_that_returns_a_generator_has_a_traceback_without_frames(queue: Queue) -> None:
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": lambda _: (n for n in "abc")})
    (found,) = history(queue, job_id)
    assert found["traceback"].startswith("TypeError: the handler returned a generator")


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "\n" * 50_000, "\x1b\u2028\\" * 9000, "ä€😀" * 9999]
)
def test_a_long_traceback_keeps_its_start_and_its_end_in_8_kilobytes(text: str) -> None:
    found = format_traceback(caught(lambda: raising(ValueError(text + "THE END"))(0)))
    assert len(found.encode()) <= MAX_TRACEBACK
    assert found.startswith(r"Traceback (most recent call last):\n") and found.endswith("THE END")
    assert "characters left out ...]" in found
    assert found.isprintable()


def test_endless_recursion_makes_a_short_traceback() -> None:
    def deeper() -> None:
        deeper()

    text = format_traceback(caught(deeper))
    assert "RecursionError" in text and "repeated" in text
    assert len(text) < 2000


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


class Untraceable(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise SystemExit("no notes")


def test_an_exception_whose_text_raises_has_a_traceback_without_it(queue: Queue) -> None:
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": raising(Unspeakable())})
    (found,) = history(queue, job_id)
    assert found["outcome"] == "retried"
    assert found["error"].startswith("Unspeakable: (its text isn't available")
    assert found["traceback"].endswith("Unspeakable: <exception str() failed>")


def test_an_exception_that_cannot_be_formatted_only_loses_its_traceback(
    queue: Queue,
) -> None:
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": raising(Untraceable("no"))})
    (found,) = history(queue, job_id)
    assert (found["outcome"], found["traceback"]) == ("retried", None)
    assert found["error"] == "Untraceable: no"


@pytest.mark.parametrize(
    "text",
    ["\t", "\n", "\r\n", "\\", "\\n", "\x00", "\x1b[31m", "\u2028", "\udcff", "a\t" * 9 + "\n# x"],
)
def test_no_text_can_add_a_row_or_column_or_control_a_terminal(
    queue: Queue, path: Path, text: str
) -> None:
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": raising(ValueError(text))})
    assert [len(columns) for columns in table(path)] == [12]
    content = sibling(path, "history").read_text("utf-8")
    assert content.replace("\t", "").replace("\n", "").isprintable()
    (found,) = history(queue, job_id)
    assert found["error"] == f"ValueError: {text}"
    assert found["traceback"].endswith(f"ValueError: {text}".rstrip("\n"))


def test_a_control_character_in_a_type_edited_by_hand_is_escaped(queue: Queue, path: Path) -> None:
    add_lines(path, line("strange", type="a\x1b[31m\u2028b"))
    queue.process_jobs({})
    assert [columns[1] for columns in table(path)] == [r"a\x1b[31m\u2028b"]


# --- when rows are written


class Space:
    """Whether disk space for outcomes is still reserved, so that the history may be written."""

    is_reserved = True

    def __call__(self) -> bool:
        return self.is_reserved


@pytest.fixture
def space() -> Space:
    return Space()


@pytest.fixture
def log(queue: Queue, space: Space) -> HistoryWriter:
    return log_of(queue, space)


def log_of(queue: Queue, space: Space) -> HistoryWriter:
    queue.enqueue("work", {}, job_id=f"job-{queue.counts()['pending']}")
    return HistoryWriter(queue.path, store_of(queue).lock, space)


def add(queue: Queue, log: HistoryWriter, at: float = NOW, trace: str = "") -> None:
    (row, *_) = queue.store.rows()
    log.note(row, "completed", "", at, 0.5, trace)


def test_rows_are_written_once_a_second_has_passed(
    queue: Queue, path: Path, log: HistoryWriter
) -> None:
    for at in (NOW, NOW + 0.5, NOW + 0.999):
        add(queue, log, at)
    assert not sibling(path, "history").exists()
    add(queue, log, NOW + 1)
    assert len(table(path)) == 4


def test_rows_are_written_at_once_if_the_clock_is_set_back(
    queue: Queue, path: Path, log: HistoryWriter
) -> None:
    add(queue, log, NOW)
    add(queue, log, NOW - 3600)
    assert len(table(path)) == 2


def test_rows_are_written_once_there_are_512(queue: Queue, path: Path, log: HistoryWriter) -> None:
    for _ in range(511):
        add(queue, log)
    assert not sibling(path, "history").exists()
    add(queue, log)
    assert len(table(path)) == 512


def test_earlier_attempts_can_be_read_while_a_long_job_runs(
    programs: Programs, tmp_path: Path
) -> None:
    programs.start("""
        def work(payload):
            if payload == "long":
                note("began", "long")
                time.sleep(60)
        queue.enqueue("work", 1, job_id="short", run_at=1)
        queue.enqueue("work", "long", run_at=2)
        queue.process_jobs({"work": work})
        """)
    wait_for_notes(tmp_path / "began", 1)
    with Queue(tmp_path / "data/queue.tsv") as queue:
        wait_for(lambda: len(history(queue, "short")) == 1, "the history")


def test_a_lingering_pass_writes_its_rows_before_it_waits(
    programs: Programs, tmp_path: Path
) -> None:
    programs.start("""
        queue.enqueue("work", 1, job_id="a")
        queue.process_jobs({"work": str}, linger=60)
        """)
    path = tmp_path / "data/queue.tsv"
    wait_for(sibling(path, "lock").exists, "the lock file")
    with Queue(path) as queue:
        wait_for(lambda: len(history(queue, "a")) == 1, "the history")


def test_a_pass_writes_its_rows_before_it_raises(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(payload: int) -> None:
        if payload == 3:
            monkeypatch.setattr(os, "write", broken)

    def broken(*_: Any) -> int:
        monkeypatch.undo()
        raise OSError(5, "the disk is broken")

    queue.enqueue_many("work", range(5))
    with pytest.raises(OSError, match="broken"):
        queue.process_jobs({"work": work})
    assert outcomes(path) == ["completed"] * 3


# --- deleted, damaged and full files


def test_the_history_can_be_deleted_at_any_time(queue: Queue, path: Path) -> None:
    def work(payload: int) -> None:
        if payload in (40, 41):
            sibling(path, "history").unlink(missing_ok=True)

    queue.enqueue_many("work", range(50))
    assert queue.process_jobs({"work": work}) == NONE | {"completed": 50}
    assert set(outcomes(path)) == {"completed"}
    sibling(path, "history").unlink()
    assert history(queue, "x") == []
    queue.enqueue_many("work", range(5))
    assert queue.process_jobs({"work": work}) == NONE | {"completed": 5}
    assert outcomes(path) == ["completed"] * 5


def test_a_history_that_is_deleted_while_a_pass_has_it_open_is_created_again(
    queue: Queue, path: Path, log: HistoryWriter
) -> None:
    for _ in range(3):
        add(queue, log)
        log.flush()
        assert len(table(path)) == 1
        sibling(path, "history").unlink()


def test_invalid_lines_are_skipped_and_the_next_writer_ends_a_torn_one(
    queue: Queue, path: Path
) -> None:
    def run() -> None:
        queue.enqueue("work", {}, job_id=f"j{queue.counts()['completed']}")
        queue.process_jobs({"work": str})

    run()
    whole = sibling(path, "history").read_bytes().split(b"\n")[1]
    foreign = [b"# a note", b"j0\twork", b"\xff\xfe", whole.replace(b"\t1\t", b"\tone\t")]
    foreign += [whole + b"\tmore", whole.replace(b"work", b"w\0rk"), HEADER[:-1], b""]
    columns = whole.split(b"\t")
    foreign += [b"\t".join([*columns[:6], n, *columns[7:]]) for n in (b"nan", b"-1", b"1e99")]
    foreign += [
        b"\t".join([*columns[:place], b"1" + b"0" * zeros, *columns[place + 1 :]])
        for place in (2, 4, 5, 6)
        for zeros in (15, 400, 5000)
    ]
    foreign += [b"x" * 3_000_000 + whole, whole + b"x" * 3_000_000, b"\t" * 3_000_000]
    with sibling(path, "history").open("ab") as file:
        file.write(b"\n".join(foreign) + b"\n" + whole[:-3])
    assert len(history(queue, "j0")) == 1
    run()
    assert len(history(queue, "j0")) == len(history(queue, "j1")) == 1
    with sibling(path, "history").open("ab") as file:
        file.write(whole + b"Traceback (mo")  # its writer may not be done yet
    assert len(history(queue, "j0")) == 1
    assert whole[:-3] + b"\n" in sibling(path, "history").read_bytes()
    assert queue.metrics()["types"]["work"]["attempts"] == {"completed": 2}


def test_invalid_lines_of_the_history_are_reported_once(
    queue: Queue, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue.enqueue("work", {}, job_id="a")
    queue.process_jobs({"work": str})
    with sibling(path, "history").open("ab") as file:
        file.write(b"a\twork\t1\tcompleted\t" + b"9" * 400 + b"\t%d\t1\t\t\n" % NOW + b"\x1b[31m\n")
    for _ in range(3):
        assert sum(queue.metrics()["types"]["work"]["attempts"].values()) == 1
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message.startswith(f"{path}.history: skipped 2 invalid lines; the first is: a\\twork")
    assert len(history(queue, "a")) == 1


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "directory"])
@pytest.mark.parametrize("suffix", ["history", "history.1"])
def test_a_link_at_the_historys_path_is_left_alone_and_the_pass_goes_on(
    queue: Queue,
    path: Path,
    tmp_path: Path,
    kind: str,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history_file, "LARGEST_BYTES", 300)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    queue.enqueue_many("work", range(20))
    if suffix == "history.1":
        sibling(path, "history").write_bytes(HEADER + b"#" * 300 + b"\n")
    place = sibling(path, suffix)
    if kind == "symlink":
        place.symlink_to(victim)
    elif kind == "hard link":
        if os.geteuid():
            pytest.skip("needs root, to give a file to another user")
        os.chown(victim, 12345, 12345)
        place.hardlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    before = place.lstat()
    with caplog.at_level(logging.ERROR):
        assert queue.process_jobs({"work": str}) == NONE | {"completed": 20}
    (message,) = [record.getMessage() for record in caplog.records]
    assert "the attempt history" in message and "not a file of the queue" in message
    assert place.lstat()[:7] == before[:7]
    assert victim.read_text() == "precious"
    with pytest.raises(NotAQueue):
        history(queue, "x")


def test_two_passes_that_find_the_history_full_rotate_it_once(
    queue: Queue, path: Path, space: Space
) -> None:
    first, second = log_of(queue, space), log_of(queue, space)
    for log in (first, second):
        add(queue, log)
        log.flush()
    for log in (first, second):
        log.file.largest_bytes = sibling(path, "history").stat().st_size
    for log in (first, second):
        add(queue, log)
        log.flush()
    assert sibling(path, "history.1").read_bytes().count(b"\n") == 3
    assert len(table(path)) == 2
    assert len(history(queue, "job-0")) == 4
    add(queue, second)
    second.flush()
    add(queue, first)
    first.flush()
    assert sibling(path, "history.1").read_bytes().count(b"\n") == 3  # one old one is kept
    assert len(table(path)) == 2


def test_a_pass_does_not_rotate_if_another_did_before_it_got_the_lock(
    queue: Queue, path: Path, space: Space
) -> None:
    first = log_of(queue, space)
    for _ in range(2):
        add(queue, first)
    first.flush()
    full = sibling(path, "history").read_bytes()
    first.file.largest_bytes = len(full)

    class Overtaken:
        def run(self, function: Any) -> object:
            add(queue, first)
            first.flush()
            return store_of(queue).lock.run(function)

    lock: Any = Overtaken()
    second = HistoryWriter(queue.path, lock, space)
    second.file.largest_bytes = len(full)
    add(queue, second)
    second.flush()
    assert sibling(path, "history.1").read_bytes() == full
    assert len(table(path)) == 2


ROTATE = """
from unittest.mock import patch
patch("dbbasic_queue.store.history.LARGEST_BYTES", 3000).start()
for _ in range(40):
    queue.enqueue_many("work", range(5))
    queue.process_jobs({"work": str})
print(len(list(queue.jobs())))
"""


def test_four_processes_that_write_and_rotate_at_once_keep_every_row_whole(
    programs: Programs, tmp_path: Path
) -> None:
    children = [programs.start(ROTATE) for _ in range(4)]
    path = tmp_path / "data/queue.tsv"
    for child in children:
        child.succeed()
    with Queue(path) as queue:
        ids = {found["id"] for found in queue.jobs("completed")}
    assert len(ids) == 800
    seen: Counter[str] = Counter()
    for suffix in ("history.1", "history"):
        content = sibling(path, suffix).read_bytes().decode()
        header, *lines = content.split("\n")
        assert header + "\n" == HEADER.decode()
        assert lines.pop() == ""
        assert (
            len(content) < 3000 + 4 * 5 * 120
        )  # each process may have added its rows to a full one
        for text in lines:
            assert len(text.split("\t")) == 12, text
            seen[text.split("\t")[0]] += 1
    assert 20 < len(seen) < 100
    assert set(seen) <= ids
    assert max(seen.values()) == 1


def test_a_reader_misses_no_row_during_a_rotation(
    queue: Queue, path: Path, log: HistoryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(queue, log)
    log.flush()
    real = vars(rotated)["open_file"]
    is_rotated = False

    def opens(place: str, flags: int) -> Any:
        nonlocal is_rotated
        if place.endswith(".1") and not is_rotated:
            is_rotated = True
            log.file.largest_bytes = sibling(path, "history").stat().st_size
            add(queue, log, NOW + 0.5)
            log.flush()
        return real(place, flags)

    monkeypatch.setattr(rotated, "open_file", opens)
    assert [found["ended_at"] for found in history(queue, "job-0")] == [NOW, NOW + 0.5]


def test_the_history_is_created_and_rotated_under_the_queues_lock(
    queue: Queue, path: Path, log: HistoryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two passes that check at the same time would both rotate it."""
    done: list[str] = []

    def locked(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            assert not is_free(sibling(path, "lock")), name
            done.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, call)

    locked("rename")
    locked("ftruncate")
    for _ in range(2):
        add(queue, log)
        log.flush()
        log.file.largest_bytes = sibling(path, "history").stat().st_size
    assert done == ["ftruncate", "rename", "ftruncate"]


# --- rows of nine columns, as before 2.0.0 was released

OLD_HEADER = b"id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback\n"
OLD = b"a\twork\t1\tretried\t%d\t%d.250\t0.500000\tValueError: no\tTraceback\\nno\n" % (NOW, NOW)
OLD_GOOD = b"b\twork\t1\tcompleted\t%d\t%d.250\t0.500000\t\t\n" % (NOW, NOW)


@pytest.mark.parametrize("header", [OLD_HEADER, HEADER])
def test_old_and_new_rows_can_be_read_from_one_file(
    queue: Queue, path: Path, clock: Clock, header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever version has started the file."""
    path.parent.mkdir()
    sibling(path, "history").write_bytes(header + OLD + OLD_GOOD)
    queue.enqueue("work", {}, job_id="a")
    clock.now += 10
    queue.process_jobs({"work": raising(ValueError("again"))})
    with sibling(path, "history").open("ab") as file:
        file.write(OLD_GOOD)
    first, second = history(queue, "a")
    assert first == {
        "id": "a",
        "type": "work",
        "attempt": 1,
        "outcome": "retried",
        "due_at": NOW,
        "ended_at": NOW + 0.25,
        "seconds": 0.5,
        "error": "ValueError: no",
        "traceback": "Traceback\nno",
        "worker": None,
        "exception": None,
        "output_offset": None,
    }
    assert (second["error"], second["exception"]) == ("ValueError: again", "ValueError")
    assert len(history(queue, "b")) == 2
    assert queue.metrics()["types"]["work"]["attempts"] == {"completed": 2, "retried": 2}
    assert not [r for r in caplog.records if "skipped" in r.getMessage()]
    assert sibling(path, "history").read_bytes().startswith(header + OLD + OLD_GOOD)


def test_only_attempts_with_an_error_are_found_in_rows_of_both_kinds(
    queue: Queue, path: Path
) -> None:
    handlers: dict[str, Any] = {
        "good": str,
        "bad": raising(ValueError("no")),
        "slow": Handler(lambda _: time.sleep(60), timeout=0.1),  # an error without a traceback
    }
    for name in [*handlers, "nobody"]:
        queue.enqueue(name, {}, job_id=name)
    queue.process_jobs(handlers)
    new = sibling(path, "history").read_bytes()
    old = b"".join(
        b"\t".join(line.split(b"\t")[:9]) + b"\n" for line in new.removesuffix(b"\n").split(b"\n")
    )
    for content in (new, old, old + new):
        sibling(path, "history").write_bytes(content)
        found = {attempt.id for attempt in queue.store.history(only_errors=True)}
        assert found == {"bad", "slow", "nobody"}


def test_an_error_of_an_attempt_without_a_worker_is_found(queue: Queue, path: Path) -> None:
    """Such as one that was moved here, and was recorded before rows named a worker."""
    for error in ("Boom", ""):
        add_attempts(path, {"id": f"x{error}", "outcome": "died", "error": error, "worker": ""})
    content = sibling(path, "history").read_bytes().replace(b"\tBoom\t", b"\tBoom\t\t\t")
    sibling(path, "history").write_bytes(content)
    assert [found.id for found in queue.store.history(only_errors=True)] == ["xBoom"]


# --- `queue.tsv.attempts`, its name in earlier versions


@pytest.fixture
def old(queue: Queue, path: Path) -> list[bytes]:
    """A queue with a current and a rotated history under their old names; both contents."""
    for job_id in ("first", "second"):
        queue.enqueue("work", {}, job_id=job_id)
        queue.process_jobs({"work": str})
        sibling(path, "history").rename(sibling(path, f"history.{job_id}"))
    sibling(path, "history.first").rename(sibling(path, "attempts.1"))
    sibling(path, "history.second").rename(sibling(path, "attempts"))
    return [sibling(path, name).read_bytes() for name in ("attempts.1", "attempts")]


def names(path: Path) -> set[str]:
    """Return the endings of the history's files that exist."""
    found = {file.name.removeprefix(f"{path.name}.") for file in path.parent.iterdir()}
    return {name for name in found if name.startswith(("history", "attempts"))}


def test_a_history_with_the_old_name_can_be_read_without_changing_it(
    queue: Queue, path: Path, old: list[bytes]
) -> None:
    for job_id in ("first", "second"):
        assert [found["outcome"] for found in history(queue, job_id)] == ["completed"]
    assert queue.metrics()["types"]["work"]["attempts"] == {"completed": 2}
    assert names(path) == {"attempts", "attempts.1"}
    assert [sibling(path, name).read_bytes() for name in ("attempts.1", "attempts")] == old


def test_the_next_pass_that_writes_renames_a_history_with_the_old_name(
    queue: Queue, path: Path, old: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(*names: str) -> None:
        assert not is_free(sibling(path, "lock"))
        real(*names)

    monkeypatch.setattr(os, "rename", rename)
    assert queue.process_jobs({"work": str}) == NONE
    assert names(path) == {"attempts", "attempts.1"}  # nothing was written
    queue.enqueue("work", {}, job_id="third")
    assert queue.process_jobs({"work": str}) == NONE | {"completed": 1}
    assert names(path) == {"history", "history.1"}
    assert sibling(path, "history.1").read_bytes() == old[0]
    assert sibling(path, "history").read_bytes().startswith(old[1])
    assert [columns[0] for columns in table(path)] == ["second", "third"]
    for job_id in ("first", "second", "third"):
        assert len(history(queue, job_id)) == 1


def test_a_full_history_with_the_old_name_is_renamed_and_rotated(
    queue: Queue, path: Path, old: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "LARGEST_BYTES", len(old[1]))
    queue.enqueue("work", {}, job_id="third")
    queue.process_jobs({"work": str})
    assert names(path) == {"history", "history.1"}
    assert sibling(path, "history.1").read_bytes() == old[1]
    assert [columns[0] for columns in table(path)] == ["third"]


def test_a_history_that_a_killed_pass_has_half_renamed_can_be_read_and_is_renamed(
    queue: Queue, path: Path, old: list[bytes]
) -> None:
    sibling(path, "attempts.1").rename(sibling(path, "history.1"))
    assert len(history(queue, "first")) == len(history(queue, "second")) == 1
    queue.enqueue("work", {}, job_id="third")
    queue.process_jobs({"work": str})
    assert names(path) == {"history", "history.1"}
    assert sibling(path, "history.1").read_bytes() == old[0]
    assert [columns[0] for columns in table(path)] == ["second", "third"]


def test_a_history_with_the_old_name_next_to_a_new_one_is_left_alone(
    queue: Queue, path: Path, old: list[bytes]
) -> None:
    sibling(path, "history").write_bytes(HEADER)
    queue.enqueue("work", {}, job_id="third")
    queue.process_jobs({"work": str})
    assert names(path) == {"history", "attempts", "attempts.1"}
    assert [sibling(path, name).read_bytes() for name in ("attempts.1", "attempts")] == old
    assert [columns[0] for columns in table(path)] == ["third"]


@pytest.mark.parametrize("moved", ["before", "after", "in between"])
def test_a_reader_misses_no_row_while_a_history_is_renamed(
    queue: Queue, path: Path, old: list[bytes], monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    real = vars(rotated)["open_file"]
    is_taken_over = False

    def take_over() -> None:
        nonlocal is_taken_over
        if is_taken_over:
            return
        is_taken_over = True
        if moved == "in between":  # between its two renames
            sibling(path, "attempts.1").rename(sibling(path, "history.1"))
        else:
            history_file._take_over(str(sibling(path, "history")))

    def opens(place: str, flags: int) -> Any:
        if place.endswith(".attempts") and moved == "before":
            take_over()
        file = real(place, flags)
        if place.endswith(".attempts") and moved != "before":
            take_over()
        return file

    monkeypatch.setattr(rotated, "open_file", opens)
    found = [attempt.id for attempt in history_file.read(queue.path)]
    assert is_taken_over
    assert found == ["first", "second"]


@pytest.mark.parametrize("suffix", ["attempts", "attempts.1"])
def test_a_link_at_the_old_historys_path_is_left_alone_and_the_pass_goes_on(
    queue: Queue,
    path: Path,
    old: list[bytes],
    tmp_path: Path,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    sibling(path, suffix).unlink()
    sibling(path, suffix).symlink_to(victim)
    queue.enqueue("work", {})
    with caplog.at_level(logging.ERROR):
        assert queue.process_jobs({"work": str}) == NONE | {"completed": 1}
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{path}.{suffix}" in message
    assert victim.read_text() == "precious"
    assert sibling(path, suffix).is_symlink()
    with pytest.raises(NotAQueue):
        history(queue, "first")


# --- full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as disk:
        yield disk


def test_on_a_full_disk_the_history_leaves_the_reserved_space_to_the_outcomes(
    disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracebacks of one batch exceed the buffer, and none of them may be written."""
    monkeypatch.setattr(
        "dbbasic_queue.passes.sequential._BATCH_SECONDS", 1e9
    )  # batches of 1, 8, 64
    monkeypatch.setattr("dbbasic_queue.passes.executor._SLOW_SECONDS", 1e9)
    ran: Counter[int] = Counter()

    def work(number: int) -> None:
        ran[number] += 1
        room_in_block = -sibling(path, "journal").stat().st_size % 4096
        if number > 9 and room_in_block < 150 and not (disk / "filler").exists():
            fill(disk)  # this outcome has to use the reserved space
        raise Fail("no" * 50) from ValueError("x" * 20_000)

    path = disk / "data/queue.tsv"
    with Queue(path, clock=Clock()) as queue:
        queue.enqueue_many("work", range(73))
        with caplog.at_level(logging.CRITICAL):
            assert queue.process_jobs({"work": work}) == NONE | {"failed": 73}
        assert set(ran.values()) == {1} and len(ran) == 73
        (disk / "filler").unlink()
        assert queue.process_jobs({"work": work}) == NONE
        assert queue.counts()["failed"] == 73


def test_a_write_error_loses_rows_and_is_logged_once(
    queue: Queue, path: Path, log: HistoryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch()
    monkeypatch.setattr(rotated, "time", watch)
    watch.seconds = 1000
    add(queue, log)
    log.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = sibling(path, "history").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        errors = []
        for _ in range(3):
            add(queue, log)
            log.flush()
            errors.append(log.take_error())
            watch.seconds += 61
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert errors[0] is not None and errors[0].errno
    assert errors[1:] == [None, None]
    watch.seconds += 61
    add(queue, log)
    log.flush()
    log.close()
    assert len(history(queue, "job-0")) == 2
    assert log.take_error() is None


def test_after_a_write_error_the_next_try_is_a_minute_later(
    queue: Queue, path: Path, log: HistoryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch()
    monkeypatch.setattr(rotated, "time", watch)
    sibling(path, "history").mkdir()
    add(queue, log)
    log.flush()
    sibling(path, "history").rmdir()
    watch.seconds += 59
    add(queue, log)
    log.flush()
    assert not sibling(path, "history").exists()
    watch.seconds += 1
    add(queue, log)
    log.flush()
    assert len(table(path)) == 1


def test_nothing_is_written_after_the_reserved_disk_space_was_freed(
    queue: Queue, path: Path, log: HistoryWriter, space: Space
) -> None:
    space.is_reserved = False
    for at in range(10):
        add(queue, log, NOW + at)
    log.flush()
    assert not sibling(path, "history").exists()
    space.is_reserved = True
    log.close()
    assert len(table(path)) == 10


def test_a_pass_succeeds_even_if_the_history_cannot_be_written(
    queue: Queue, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue.enqueue_many("work", range(3))
    sibling(path, "history").symlink_to("nowhere")
    with caplog.at_level(logging.INFO):
        assert queue.process_jobs({"work": str}) == NONE | {"completed": 3}
    lost = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lost) == 1
    assert not (path.parent / "nowhere").exists()


def test_the_row_of_a_retry_comes_after_the_row_of_the_failed_attempt(
    queue: Queue, path: Path, clock: Clock
) -> None:
    """Even if the pass in which it failed writes later."""
    soon = Backoff(first=0)
    queue.enqueue("work", 0, run_at=NOW - 6)  # a batch of its own
    job_id = queue.enqueue("work", 1, run_at=NOW - 5)
    queue.enqueue("work", 2)

    def work(payload: int) -> None:
        if payload == 1:
            raise ValueError("no")
        if payload == 0:
            return
        clock.now += 0.5
        with Queue(path, clock=clock) as other:
            assert other.process_jobs({"work": str})["completed"] == 1

    assert queue.process_jobs({"work": Handler(work, backoff=soon)})["retried"] == 1
    assert [columns[2] for columns in table(path) if columns[0] == job_id] == ["2", "1"]
    assert [found["attempt"] for found in history(queue, job_id)] == [1, 2]
