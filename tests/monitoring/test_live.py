"""`Live` says the same as a process that reads everything, after any sequence of changes."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NOW, Clock, add_attempts, add_lines, held, line, sibling, store_of
from hypothesis import given
from hypothesis import strategies as st

from dbbasic_queue import Delay, Fail, Queue
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.monitoring.figures import Figures
from dbbasic_queue.monitoring.live import Live
from dbbasic_queue.monitoring.metrics import measure
from dbbasic_queue.monitoring.status import Status
from dbbasic_queue.monitoring.summary import Summary
from dbbasic_queue.store import attempts, history
from dbbasic_queue.store.memory import MemoryStore
from dbbasic_queue.store.reading import counts, index, ordered
from dbbasic_queue.store.textfile import TextFileStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Store

TYPES = ["greet", "mail", "report", "wait"]
WINDOWS = [(3600.0, 20, None), (86400.0, 24, None), (3600.0, 7, "mail")]


class Once:
    """Reads everything at each call."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def status(self, now: float) -> Status:
        return Status(self.store, now, with_errors=True)

    def figures(self, now: float, window: float, count: int, job_type: str | None) -> Figures:
        return Figures(self.store, now, window, count, job_type)

    def metrics(self, now: float) -> dict[str, Any]:
        ended = self.store.history(since=now - 3600)
        return measure(Summary(self.store, now), ended, now, 3600)


def row_of(row: Row | None) -> object:
    return row and (row.id, row.type, row.payload, encode_state(row.state))


def all_said(reader: Live | Once, now: float) -> dict[str, Any]:
    """Return all that can be seen, in values that can be compared."""
    status = reader.status(now)
    summary = vars(status.summary)
    figures = [reader.figures(now, *window) for window in WINDOWS]
    return {
        **summary,
        "first_due": row_of(summary["first_due"]),
        "failures": [(f.type, f.error, f.count, f.last_at) for f in status.failures],
        "errors": [(row_of(row), ended_at) for row, ended_at in status.errors],
        "running": list(map(row_of, status.running)),
        "ended": [ended.as_dict() for ended in status.ended],
        "schedules": status.schedules,
        "verdict": str(status.verdict),
        "figures": [[(s.name, s.title, s.values) for s in f.series()] for f in figures],
        "metrics": reader.metrics(now),
    }


def agree(path: Path, now: float, *live: Live) -> None:
    """Compare what the readers say with what a new process would say."""
    store = TextFileStore(str(path), fsync=False)
    expected = all_said(Once(store), now)
    for reader in live:
        assert all_said(reader, now) == expected
    store.close()


class Changes:
    """Changes of all kinds, made by two programs and by hand."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.look: Callable[[], object] = lambda: None
        """what reads the queue before and after an edit that would be missed otherwise"""
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.queue, self.other = (Queue(path, clock=self.clock, fsync=False) for _ in range(2))
        self.handlers = dict.fromkeys(TYPES[:3], self.handle)
        self.added = 0
        self.edited = time.time_ns()

    def handle(self, payload: Any) -> None:
        self.clock.now += self.chance.choice([0, 0.25, 3])
        kind = self.chance.random()
        if kind < 0.15:
            raise ValueError(self.chance.choice(["bad", "worse\tand worse", "x" * 300]))
        if kind < 0.3:
            raise Fail(f"no hope for {self.chance.randrange(3)}")
        if kind < 0.35:
            raise Delay(30)

    def make_one(self) -> str:
        """Make a change; return its name."""
        names = [name for name in dir(self) if name.startswith("change_")]
        name = self.chance.choice(names)
        with suppress(FileNotFoundError):
            getattr(self, name)()
        return name

    def one_queue(self) -> Queue:
        return self.chance.choice([self.queue, self.other])

    def an_id(self) -> str:
        return f"j{self.chance.randrange(self.added + 1)}"

    def change_by_adding(self) -> None:
        for _ in range(self.chance.choice([1, 3, 40])):
            self.added += 1
            at = self.chance.choice([None, None, int(self.clock.now) + 20, NOW + 9000])
            job_type = self.chance.choice(TYPES)
            self.one_queue().enqueue(job_type, {"n": 1}, run_at=at, job_id=f"j{self.added}")

    def change_by_a_pass(self) -> None:
        self.one_queue().process_jobs(self.handlers, 2, skip_unknown=True)

    def change_by_commands(self) -> None:
        queue, job_id = self.one_queue(), self.an_id()
        kind = self.chance.randrange(7)
        if kind == 0:
            queue.cancel_job(job_id)
        elif kind == 1:
            queue.requeue(job_id)
        elif kind == 2:
            queue.requeue_failed()
        elif kind == 3:
            queue.purge(self.chance.choice([0, 100, 10_000]))
        elif kind == 4 and queue.get_job(job_id):
            queue.edit_job(job_id, {"edited": self.chance.random()})
        elif kind == 5:
            queue.pause(self.chance.choice([None, *TYPES]))
        else:
            queue.resume(self.chance.choice([None, *TYPES]))

    def change_in_the_journal(self) -> None:
        """Claim jobs and fail jobs, as a pass does that is killed afterwards."""
        store = store_of(self.one_queue())
        if not self.path.exists():
            return
        with held(store.lock):
            store.files.read_new()
            ids = sorted(store.view.index)
            now = int(self.clock.now)
            store.files.change(
                [
                    (job_id, b"%b\t%d\t%d\t1\t%b\t" % (status, NOW, now - 5, error))
                    for job_id in self.chance.sample(ids, min(len(ids), 3))
                    for status, error in [
                        self.chance.choice(
                            [(b"processing", b""), (b"failed", b"Boom"), (b"pending", b"")]
                        )
                    ]
                ]
            )

    def change_by_a_fold(self) -> None:
        store = store_of(self.one_queue())
        with held(store.lock):
            store.files.read_new()
            store.files.fold()

    def change_of_the_time(self) -> None:
        self.clock.now += self.chance.choice([1, 20, 500, 5000, 90_000, -30, -4000])

    def change_by_an_editor(self) -> None:
        """Write a new file with other lines, as most editors do."""
        self.fold_all()
        lines = self.path.read_bytes().split(b"\n")
        for _ in range(self.chance.choice([1, 2])):
            at = self.chance.randrange(1, len(lines)) if len(lines) > 1 else 1
            lines[at : at + self.chance.randrange(2)] = self.chance.choice(
                [
                    [],
                    [b"garbage"],
                    [b"odd\tgreet\t{\tpending\t5\t6\t0\t\t"],
                    [b"old\tgreet\t{}\tpending\t5\t6\t0"],
                    [line(self.an_id(), type="mail", status="failed", error="x").encode()[:-1]],
                    [b"", b"x\0y"],
                ]
            )
        edited = self.path.with_name("edited")
        edited.write_bytes(b"\n".join(lines if len(lines) > 1 else [*lines, b""]))
        edited.rename(self.path)

    def change_in_place(self) -> None:
        """Edit the file itself, without a change of its length.

        If a row was appended between the edit and the look before or after it, a view can't notice.
        """
        self.fold_all()
        self.look()
        content = self.path.read_bytes()
        old, new = self.chance.choice(
            [
                (b"\tgreet\t", b"\treply\t"),
                (b"\tpending\t", b"\tfailed\t\t"),
                (b'"n": 1', b'"n": !'),
            ]
        )
        with self.path.open("r+b") as file:
            file.write(content.replace(old, new, 3))
        self.edited += 10**9  # as an edit that isn't made within a millisecond of a change
        os.utime(self.path, ns=(self.edited, self.edited))
        self.look()

    def change_by_a_torn_row(self) -> None:
        add_lines(self.path, self.chance.choice([b"torn\tgreet\t{}\tpen", b"\n", b"\xff\n"]))

    def change_by_removing_unreadable_lines(self) -> None:
        self.one_queue().remove_unreadable()

    def change_of_the_history(self) -> None:
        """Edit the history, rotate it, or delete it."""
        file = sibling(self.path, "history")
        kind = self.chance.randrange(5)
        if kind == 0:
            file.unlink()
        elif kind == 1:
            file.rename(sibling(self.path, "history.1"))
        elif kind == 2:
            lines = file.read_bytes().split(b"\n")
            del lines[self.chance.randrange(len(lines)) :][:1]
            file.write_bytes(b"\n".join(lines[: self.chance.randrange(len(lines)) + 1]))
        elif kind == 3:
            with file.open("ab") as opened:
                opened.write(
                    b"torn\tgr\n"
                    b"nan\tmail\t1\tfailed\t5\tnan\t\tx\t\t\t\t\n"
                    b"nine\tmail\t1\tfailed\t%d\t%d.5\t\tBoom\t\n"
                    b"ten\tma\\x0ail\t1\tdied\t%d\t%d.5\t1.5\tBoom\t\t\t\t\n"
                    % (NOW, self.clock.now, NOW, self.clock.now - 9)
                )
        else:
            content = file.read_bytes()
            file.write_bytes(content.replace(b"bad", b"odd"))
            self.edited += 10**9
            os.utime(file, ns=(self.edited, self.edited))

    def fold_all(self) -> None:
        """Empty the journal, so that an edit by hand isn't overruled by it."""
        self.change_by_a_fold()


@pytest.mark.parametrize("seed", range(8))
def test_what_is_followed_is_what_a_new_process_reads(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "LARGEST_BYTES", 5000)
    monkeypatch.setattr(index, "_MOST_LISTED", 60 if seed % 2 else 1 << 16)
    monkeypatch.setattr(counts, "_ROWS_AT_ONCE", 7 if seed % 3 else 20_000)
    path = tmp_path / "data" / "queue.tsv"
    changes = Changes(path, seed)
    live = Live(TextFileStore(str(path), fsync=False))
    same_process = Live(changes.queue.store)
    changes.look = lambda: agree(path, changes.clock.now, live, same_process)
    made: list[str] = []
    for step in range(60):
        made.append(changes.make_one())
        if changes.chance.random() < 0.8:
            try:
                changes.look()
            except AssertionError as e:
                raise AssertionError(f"after {made[-5:]}, step {step}") from e


# -- one change at a time: what each part of it is for --


@pytest.fixture
def live(path: Path) -> Live:
    """A queue that another process changes, of 1,000 jobs; it was looked at already."""
    statuses = ("pending", "pending", "completed", "failed", "cancelled")
    rows = (line(f"j{n}", status=statuses[n % 5], type=TYPES[n % 4]) for n in range(1000))
    add_lines(path, line("runs", status="processing"), *rows)
    add_attempts(path, *({"id": f"j{n}", "ended_at": f"{NOW - n}.5"} for n in range(100)))
    live = Live(TextFileStore(str(path), fsync=False))
    all_said(live, NOW)
    return live


def change(queue: Queue, *records: tuple[str, bytes], fold: bool = False) -> None:
    """Give jobs new states by another process."""
    store = store_of(queue)
    with held(store.lock):
        store.files.read_new()
        if records:
            store.files.change([(job_id.encode(), state) for job_id, state in records])
        if fold:
            store.files.fold()


FAILED_STATE = b"failed\t%d\t%d\t1\tBoom\t" % (NOW, NOW)


def test_a_change_in_the_journal_is_counted(live: Live, queue: Queue, path: Path) -> None:
    change(queue, ("j0", FAILED_STATE), ("j1", FAILED_STATE), ("j7", FAILED_STATE))
    assert sibling(path, "journal").stat().st_size
    assert live.status(NOW).summary.counts["failed"] == 203
    agree(path, NOW, live)


def test_a_change_that_was_folded_is_counted(live: Live, queue: Queue, path: Path) -> None:
    change(queue, ("j0", FAILED_STATE), ("j999", FAILED_STATE), fold=True)
    assert not sibling(path, "journal").stat().st_size
    assert live.status(NOW).summary.counts["failed"] == 202
    agree(path, NOW, live)


def test_a_payload_that_was_edited_is_a_job_again(queue: Queue, path: Path) -> None:
    """The process that edits it writes no record: the payload is only in the row."""
    add_lines(path, line("a"))
    live = Live(queue.store)
    edited = path.read_bytes().replace(b"{}", b"{!")
    path.write_bytes(edited + b"\n")
    assert live.status(NOW).summary.unreadable == [2]
    path.write_bytes(edited.replace(b"{!", b"{}"))
    assert live.status(NOW).summary.unreadable == []
    queue.edit_job("a", {"n": 1})
    agree(path, NOW, live)


def test_a_clock_that_is_set_back_makes_jobs_wait_again(live: Live, path: Path) -> None:
    add_lines(path, line("soon", type="mail", run_at=NOW + 10))
    agree(path, NOW + 20, live)
    agree(path, NOW, live)
    assert live.status(NOW).summary.next_at is None  # others are due
    agree(path, NOW - 5000, live)
    agree(path, NOW + 20, live)


def test_an_edit_in_place_that_keeps_the_length_is_noticed(live: Live, path: Path) -> None:
    edited = path.read_bytes().replace(b"\tcompleted\t", b"\tcancelled\t", 7)
    path.write_bytes(edited)
    os.utime(path, ns=(1, 1))
    assert live.status(NOW).summary.counts["cancelled"] == 207
    agree(path, NOW, live)


def test_a_history_that_is_rotated_is_read_on(live: Live, path: Path) -> None:
    for n in range(3):
        sibling(path, "history").rename(sibling(path, "history.1"))
        add_attempts(path, {"id": f"new{n}", "outcome": "failed", "error": "Boom"})
        agree(path, NOW, live)
        add_attempts(path, {"id": f"newer{n}", "ended_at": f"{NOW - 4}.000"})
        agree(path, NOW, live)


def test_a_failure_of_a_job_that_was_known_already_is_the_last_error(
    live: Live, queue: Queue, path: Path
) -> None:
    change(queue, ("j3", FAILED_STATE), ("j8", FAILED_STATE))
    for at, n in enumerate((3, 8, 3)):
        add_attempts(
            path, {"id": f"j{n}", "outcome": "failed", "error": "Boom", "ended_at": f"{NOW + at}.5"}
        )
        assert live.status(NOW).errors[0][0].id == f"j{n}"
        agree(path, NOW, live)


def test_an_attempt_that_is_written_late_takes_its_place(live: Live, path: Path) -> None:
    """Passes write their attempts up to a second later, each for itself."""
    for at in (5.5, 5.25, 60.0, 3000.0, 3599.5, 3600.5, 90_000.0):
        add_attempts(path, {"ended_at": f"{NOW - at:.3f}", "seconds": "2.000000"})
        agree(path, NOW, live)
        agree(path, NOW - 1, live)
    agree(path, NOW + 3000, live)
    agree(path, NOW - 3000, live)


def test_a_look_reads_only_what_is_new(
    live: Live, queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    pread = os.pread

    def counted(fd: int, size: int, at: int) -> bytes:
        nonlocal read
        content = pread(fd, size, at)
        read += len(content)
        return content

    def look() -> int:
        nonlocal read
        read = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", counted)
            all_said(live, NOW)
        return read

    size = path.stat().st_size
    assert look() < size / 16
    change(queue, ("j0", FAILED_STATE), ("j9", FAILED_STATE))
    add_attempts(path, {"id": "j0", "outcome": "failed", "error": "Boom"})
    queue.enqueue("greet", {})
    assert look() < size / 8
    agree(path, NOW, live)


def test_an_exception_in_the_middle_of_a_look_loses_nothing(
    live: Live, queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the one that a signal handler raises."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    change(queue, *((f"j{n}", FAILED_STATE) for n in range(20)))
    add_attempts(path, {"id": "j3", "outcome": "failed", "error": "Boom"})
    kinds: list[tuple[object, str]] = [(counts.Counts, "_add_line"), (attempts.Columns, "add")]
    for kind, name in kinds:
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                live.status(NOW)
    agree(path, NOW, live)


def test_other_threads_get_a_chance_while_many_rows_are_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "_ROWS_AT_ONCE", 100)
    add_lines(path, *(line(f"j{n}") for n in range(1000)))
    store = TextFileStore(str(path), fsync=False)
    called = 0
    read = store.lock.read

    def counted(*arguments: Any) -> Any:
        nonlocal called
        called += 1
        found = read(*arguments)
        if called == 3:  # a job that was counted already
            change(Queue(path), ("j5", FAILED_STATE), fold=True)
        return found

    monkeypatch.setattr(store.lock, "read", counted)
    assert Live(store).status(NOW).summary.counts["failed"] == 1
    assert called >= 10


ODD_LINES = (
    b"odd\tmail\t{}\tpending\t5\t6.5\t0\t\t",
    b"odd\tmail\t{}\tcompleted\t5.5\t1\t0\t\t",
    b"odd\tmail\t{}\tpending\t 5\t5\t0\t\t",
    b"odd\tmail\t{}\tpending\t5\t1_0\t0\t\t",
    b"odd\tmail\t{}\tpending\t5\t+6\t0\t\t",
    b"odd\tmail\t{}\tpending\t5\t-6\t0\t\t",
    b"odd\tmail\t{}\tpending\t5\t" + b"9" * 30 + b"\t0\t\t",
    b"odd\tmail\t{}\tpending\t5\t6\tsoon\t\t",
    b"odd\tmail\t{}\tsleeping\t5\t6\t0\t\t",
    b"odd\t\t{}\tpending\t5\t6\t0\t\t",
    b"\tmail\t{}\tpending\t5\t6\t0\t\t",
    b"od/d\tmail\t{}\tpending\t5\t6\t0\t\t",
    b"j7\tmail\t{}\tpending\t5\t6\t0\t\t",
    b"odd\tmail\t{\tpending\t5\t6\t0\t\t",
    b"odd\tmail\t{}\tpending\t5\t6\t0",
    b"odd\tmail\t{}\tpending\t5\t6",
    b"odd\tmail\t{}\tfailed\t5\t6\t1\ta\tb\tresult",
    b"odd\tmail\t{}\tfailed\t5\t6\t1\ta\x00\t",
    b"odd\tmail\t{}\tfailed\t5\t6\t1\ta\xff\t",
    b"odd\tmail\t{}\tpending\t5\t6\t0\t\t\r",
    b"",
    b"\t" * 17,
)


@pytest.mark.parametrize("odd", ODD_LINES)
def test_a_line_that_nobody_would_write_counts_as_it_does_for_a_new_process(
    path: Path, odd: bytes
) -> None:
    rows = [line(f"j{n}", status="completed", run_at=NOW - n).encode() for n in range(60)]
    add_lines(path, *rows[:31], odd + b"\n", *rows[31:])
    agree(path, NOW, Live(TextFileStore(str(path), fsync=False)))


def test_the_oldest_finished_job_is_found_again_when_it_has_run_again(
    live: Live, queue: Queue, path: Path
) -> None:
    """Of 3,000: they are looked through in parts."""
    finished = (line(f"k{n}", status="completed", run_at=NOW + n - 2500) for n in range(2000))
    add_lines(path, *finished)
    agree(path, NOW, live)
    for n in (0, 1, 1500):
        change(queue, (f"k{n}", FAILED_STATE.replace(b"failed", b"pending")))
        agree(path, NOW, live)


def test_jobs_in_memory_are_read_again() -> None:
    store = MemoryStore("memory:")
    live = Live(store)
    for n in range(3):
        store.add(line(f"j{n}"))
        assert live.status(NOW).summary.due == n + 1
        assert all_said(live, NOW) == all_said(Once(store), NOW)


# -- the parts --


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=80), st.data())
def test_ordered_values_are_what_a_sorted_list_has(
    steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "_PIECE", 2)
        patch.setattr(ordered, "_LONGEST_PIECE", 4)
        start = data.draw(st.lists(st.integers(0, 40)))
        values, expected = ordered.Ordered(start), sorted(start)
        for step, value in steps:
            if step == 0:
                values.add(value)
                expected = sorted([*expected, value])
            elif step == 1 and value in expected:
                values.remove(value)
                expected.remove(value)
            elif step == 1:
                with pytest.raises(ValueError, match="not among"):
                    values.remove(value)
            elif step == 2:
                taken = values.take_below(value)
                assert taken == [n for n in expected if n < value]
                expected = expected[len(taken) :]
            else:
                values.add_all([value, value + 1])
                expected = sorted([*expected, value, value + 1])
            assert list(values) == expected
            assert len(values) == len(expected)
            assert values.first() == (expected[0] if expected else None)
            assert [values[n] for n in range(len(expected))] == expected
            assert values.below_each(range(43)) == [sum(v < n for v in expected) for n in range(43)]
