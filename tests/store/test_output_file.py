"""The file `queue.tsv.output`: its rows, its rotation, and how a row is found."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import NOW, Clock, Programs, history, sibling, store_of

from dbbasic_queue import Handler, InvalidArgument, NotAQueue, Queue
from dbbasic_queue.model import states
from dbbasic_queue.model.rows import Row
from dbbasic_queue.store import rotated
from dbbasic_queue.store.history import HistoryWriter
from dbbasic_queue.store.output import HEADER, OutputWriter


@pytest.fixture
def writer(queue: Queue) -> OutputWriter:
    return writer_of(queue)


def writer_of(queue: Queue) -> OutputWriter:
    return OutputWriter(queue.path, store_of(queue).lock, lambda: True)


def row_of(queue: Queue, job_id: str, attempts: int = 1) -> Row:
    """Return a job as it was claimed; it is enqueued if there is none."""
    if queue.get_job(job_id) is None:
        queue.enqueue("work", {}, job_id=job_id)
    row = queue.store.find(job_id)
    assert row is not None
    claimed = states.claim(row.state)
    assert claimed is not None
    claimed.attempts = attempts
    row.state = claimed
    return row


def keep(
    queue: Queue, writer: OutputWriter, job_id: str, text: str, at: float = NOW, attempt: int = 1
) -> int | None:
    """Write one attempt's output and its row in the history, as a pass does."""
    row = row_of(queue, job_id, attempt)
    offset = writer.keep(row, at, text.encode(), 0)
    log = HistoryWriter(queue.path, store_of(queue).lock, lambda: True)
    log.note(row, "completed", "", at, 0.1, output_offset=offset)
    log.close()
    return offset


def test_the_latest_attempt_that_has_printed_anything_is_found(queue: Queue) -> None:
    writer = writer_of(queue)
    for attempt in (1, 2):
        keep(queue, writer, "a", f"attempt {attempt}", NOW + attempt, attempt)
    log = HistoryWriter(queue.path, store_of(queue).lock, lambda: True)
    log.note(row_of(queue, "a", 3), "completed", "", NOW + 3, 0.1)
    log.close()
    assert queue.output("a") == queue.output("a", 2) == "attempt 2"
    assert queue.output("a", 1) == "attempt 1"
    assert queue.output("a", 3) is queue.output("a", 4) is None


def test_an_attempt_number_that_was_used_again_means_the_latest(queue: Queue) -> None:
    """A delayed attempt doesn't count: its number is used again."""
    writer = writer_of(queue)
    for at in (1, 2):
        keep(queue, writer, "a", f"at {at}", NOW + at)
    assert queue.output("a", 1) == "at 2"


@pytest.mark.parametrize("attempt", [0, -1, True, "1", 1.0])
def test_an_invalid_attempt_is_refused(queue: Queue, attempt: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be an int of 1 or more"):
        queue.output("a", attempt)


@pytest.mark.parametrize("job_id", ["unknown", "no id at all", "", None])
def test_an_unknown_job_has_no_output(queue: Queue, job_id: Any) -> None:
    assert queue.output(job_id) is None
    keep(queue, writer_of(queue), "a", "x")
    assert queue.output(job_id) is None


def test_an_id_that_ends_or_starts_another_id_has_its_own_output(queue: Queue) -> None:
    writer = writer_of(queue)
    for job_id in ("ab", "a", "b", "aba"):
        keep(queue, writer, job_id, f"of {job_id}")
    assert [queue.output(job_id) for job_id in ("a", "b")] == ["of a", "of b"]
    sibling(Path(queue.path), "history").unlink()
    assert [queue.output(job_id) for job_id in ("a", "b")] == ["of a", "of b"]


def test_output_is_found_after_a_rotation_and_gone_after_two(
    queue: Queue, path: Path, writer: OutputWriter
) -> None:
    keep(queue, writer, "a", "of a")
    writer.file.largest_bytes = len(HEADER) + 1
    keep(queue, writer, "b", "of b")
    assert sibling(path, "output.1").exists()
    assert history(queue, "a")[0]["output_offset"] == history(queue, "b")[0]["output_offset"]
    assert [queue.output(job_id) for job_id in ("a", "b")] == ["of a", "of b"]
    keep(queue, writer, "c", "of c")
    assert [queue.output(job_id) for job_id in ("a", "b", "c")] == [None, "of b", "of c"]


def test_the_row_at_a_position_counts_only_if_it_is_that_attempts(
    queue: Queue, path: Path, writer: OutputWriter
) -> None:
    """After two rotations, the same attempt of the same job may be at the same place."""
    keep(queue, writer, "a", "first", NOW)
    sibling(path, "output").unlink()
    keep(queue, writer, "a", "second", NOW + 1)
    sibling(path, "output").unlink()
    keep(queue, writer, "b", "of b", NOW + 2)
    assert queue.output("a") is None
    assert queue.output("b") == "of b"
    content = sibling(path, "output").read_bytes()
    sibling(path, "output").write_bytes(content.replace(b"b\twork", b"xb\twork"))
    assert queue.output("b") is None, "a part of a row isn't a row"


def test_output_is_found_without_the_history(queue: Queue, path: Path) -> None:
    writer = writer_of(queue)
    for attempt in (2, 1):
        keep(queue, writer, "a", f"attempt {attempt}", NOW + attempt, attempt)
    sibling(path, "history").unlink()
    assert queue.output("a") == "attempt 2"
    assert queue.output("a", 1) == "attempt 1"


def test_the_files_can_be_deleted_at_any_time(queue: Queue, path: Path) -> None:
    writer = writer_of(queue)
    for text in ("one", "two"):
        keep(queue, writer, "a", text)
        assert queue.output("a") == text
        sibling(path, "output").unlink()
        assert queue.output("a") is None


def test_invalid_lines_are_skipped_and_the_next_writer_ends_a_torn_one(
    queue: Queue, path: Path, writer: OutputWriter
) -> None:
    keep(queue, writer, "a", "of a")
    whole = sibling(path, "output").read_bytes().split(b"\n")[1]
    foreign = [
        b"# a note",
        b"a\twork",
        b"a\twork\t1\tnan\t0\tx",
        b"a\twork\t1\t1\t0\tx\0",
        HEADER[:-1],
    ]
    foreign += [b"a\twork\tx\t1.0\t0\tx", whole + b"\tmore", b"a" + b"x" * 3_000_000, b"\xff\t" * 9]
    with sibling(path, "output").open("ab") as file:
        file.write(b"\n".join(foreign) + b"\n" + whole[:-6])
    keep(queue, writer, "b", "of b")
    sibling(path, "history").unlink()
    assert (queue.output("a"), queue.output("b")) == ("of a", "of b")
    assert b"\n" + whole[:-6] + b"\n" in sibling(path, "output").read_bytes()


def test_a_position_is_right_even_if_others_append_at_the_same_time(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are written without the lock: the file may grow between the look at it and the write."""
    writer, other = writer_of(queue), writer_of(queue)
    a, b = row_of(queue, "a"), row_of(queue, "b")
    other.keep(b, NOW, b"of b", 0)
    real = os.pread
    calls = []

    def pread(fd: int, count: int, offset: int) -> bytes:
        calls.append(offset)
        if len(calls) == 1:  # between the look and the write of `writer`
            other.keep(b, NOW, b"of b", 0)
        return real(fd, count, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        offset = writer.keep(a, NOW, b"of a", 0)
    assert offset == len(HEADER) + 2 * len(b"b\twork\t1\t1800000000.000\t0\tof b\n")


def test_a_reader_misses_no_row_during_a_rotation(
    queue: Queue, writer: OutputWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(queue, writer, "a", "of a")
    writer.file.largest_bytes = len(HEADER) + 1
    real = vars(rotated)["open_file"]
    is_rotated = False

    def opens(place: str, flags: int) -> Any:
        nonlocal is_rotated
        if place.endswith("output.1") and not is_rotated:
            is_rotated = True
            keep(queue, writer, "b", "of b")
        return real(place, flags)

    monkeypatch.setattr(rotated, "open_file", opens)
    assert queue.output("a") == "of a"
    assert is_rotated


PASSES = """
from unittest.mock import patch
from dbbasic_queue import Handler
patch("dbbasic_queue.store.output.LARGEST_BYTES", 20_000).start()
def work(n):
    os.write(1, f"output of {n} ".encode() * 50)
for _ in range(4):
    queue.enqueue_many("work", range(5))
    queue.process_jobs({"work": Handler(work, timeout=60)})
"""


def test_four_passes_that_write_and_rotate_at_once_keep_every_row_whole(
    programs: Programs, tmp_path: Path
) -> None:
    children = [programs.start(PASSES) for _ in range(4)]
    for child in children:
        child.succeed()
    path = tmp_path / "data/queue.tsv"
    seen: Counter[str] = Counter()
    with Queue(path) as queue:
        jobs = {found["id"]: found["payload"] for found in queue.jobs("completed")}
        assert len(jobs) == 80
        for suffix in ("output.1", "output"):
            header, *lines = sibling(path, suffix).read_bytes().decode().split("\n")
            assert header + "\n" == HEADER.decode()
            assert lines.pop() == ""
            for line in lines:
                job_id, *_, text = line.split("\t")
                assert text == f"output of {jobs[job_id]} " * 50
                seen[job_id] += 1
        assert 20 <= len(seen) < 80
        assert max(seen.values()) == 1
        for job_id in jobs:
            expected = f"output of {jobs[job_id]} " * 50 if job_id in seen else None
            assert queue.output(job_id) == expected


@pytest.mark.parametrize("suffix", ["output", "output.1"])
def test_an_output_that_is_a_symbolic_link_is_refused(
    queue: Queue, path: Path, tmp_path: Path, suffix: str
) -> None:
    keep(queue, writer_of(queue), "a", "of a")
    sibling(path, suffix).unlink(missing_ok=True)
    sibling(path, suffix).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotAQueue):
        queue.output("a")


def test_a_queue_in_memory_keeps_output_too(clock: Clock) -> None:
    with Queue("memory:", clock=clock) as queue:
        for n in (1, 2):
            queue.enqueue("work", n, job_id=f"job-{n}")
        handler = Handler(lambda n: os.write(1, f"out {n}\n".encode() * n), timeout=60)
        assert queue.process_jobs({"work": handler})["completed"] == 2
        assert queue.output("job-1") == queue.output("job-1", 1) == "out 1\n"
        assert queue.output("job-2") == "out 2\nout 2\n"
        assert queue.output("job-1", 2) is queue.output("unknown") is None
        (attempt,) = queue.history("job-1")
        assert attempt["worker"]
