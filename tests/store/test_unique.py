"""`enqueue` with `unique` and `exist_ok` in the text file: exact, safe like an append, quick."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    NOW,
    add_lines,
    at_once,
    exit_code,
    is_free,
    job,
    join,
    line,
    raises,
    rows,
    sibling,
    store_of,
)

from dbbasic_queue import DuplicateJob, Fail, Queue, StoreError
from dbbasic_queue.store.reading import index, unique
from dbbasic_queue.store.reading.unique import PendingPayloads
from dbbasic_queue.store.reading.view import View
from dbbasic_queue.store.writing import once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers import Clock, Programs


@pytest.fixture
def other(queue: Queue, clock: Clock) -> Iterator[Queue]:
    """The queue, as another process has it."""
    with Queue(queue.path, clock=clock) as other:
        yield other


def add(queue: Queue, payload: Any) -> str:
    return queue.enqueue("greet", payload, unique="pending")


# -- many processes

ENQUEUER = """
wait_for(Path("go").exists, "the start")
for turn in range(3):
    for n in range(40):
        note("returned", f"{n} {queue.enqueue('greet', {'n': n, 'of': 40}, unique='pending')}")
"""
CANCELLER = """
wait_for(Path("go").exists, "the start")
while not Path("over").exists():
    for job in queue.jobs("pending"):
        if job["payload"]["n"] % 4 == 0 and queue.cancel_job(job["id"]):
            note("cancelled", job["id"])
"""


def test_many_processes_that_enqueue_the_same_jobs_leave_one_pending_job_of_each(
    programs: Programs, now_queue: Queue, tmp_path: Path
) -> None:
    """One more process cancels some of them, and folds the journal, in the meantime."""
    now_queue.enqueue_many("greet", [{"n": -1}])
    enqueuers = [programs.start(ENQUEUER) for _ in range(6)]
    canceller = programs.start(CANCELLER)
    (tmp_path / "go").touch()
    for child in enqueuers:
        child.succeed()
    (tmp_path / "over").touch()
    canceller.succeed()
    found = {job["id"]: job for job in now_queue.jobs(job_type="greet")}
    pending = Counter(job["payload"]["n"] for job in found.values() if job["status"] == "pending")
    assert set(pending.values()) == {1}
    assert {n for n in range(40) if n % 4} <= set(pending)
    returned = [text.split() for text in (tmp_path / "returned").read_text().splitlines()]
    assert len(returned) == 6 * 3 * 40
    for n, job_id in returned:
        assert found[job_id]["payload"]["n"] == int(n)
    added = {job_id for job_id, job in found.items() if job["payload"]["n"] >= 0}
    assert {job_id for _, job_id in returned} == added


def test_many_processes_that_ask_for_the_same_id_all_get_it(
    programs: Programs, now_queue: Queue, tmp_path: Path
) -> None:
    program = """
    wait_for(Path("go").exists, "the start")
    for n in range(50):
        assert queue.enqueue("greet", sys.argv[1], job_id=f"sync-{n}", exist_ok=True) == f"sync-{n}"
    """
    children = [programs.start(program, str(n)) for n in range(4)]
    (tmp_path / "go").touch()
    for child in children:
        child.succeed()
    assert Counter(job["id"] for job in now_queue.jobs()) == {f"sync-{n}": 1 for n in range(50)}


def test_no_other_process_adds_a_job_between_a_look_up_and_its_append(
    queue: Queue, other: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(queue, "first")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(add(other, "same")))
    real = PendingPayloads.find

    def find(self: PendingPayloads, *arguments: str) -> Any:
        job = real(self, *arguments)
        if not thread.ident:
            thread.start()
            thread.join(0.2)  # it waits for the lock
        return job

    monkeypatch.setattr(PendingPayloads, "find", find)
    assert found == []
    job_id = add(queue, "same")
    join(thread, "the other call")
    assert found == [job_id]


# -- what others write is known

CHANGES: dict[str, Callable[[Queue], object]] = {
    "fold": lambda queue: queue.process_jobs({}, skip_unknown=True),
    "purge": lambda queue: queue.remove_type("gone"),
    "requeue of several jobs": lambda queue: queue.requeue_failed(),
    "record": lambda queue: queue.run_now("other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_pending_job_is_found_after_another_process_has_changed_the_files(
    queue: Queue, other: Queue, change: str
) -> None:
    for job_id in ("gone", "failed", "cancelled"):
        other.enqueue(job_id, {}, job_id=job_id)
    other.cancel_job("cancelled")
    other.process_jobs({"failed": raises(Fail("no"))}, skip_unknown=True)
    other.enqueue("other", {}, NOW + 60, job_id="other")
    ids = [add(queue, n) for n in range(3)]
    other.cancel_job("gone")
    CHANGES[change](other)
    assert [add(queue, n) for n in range(3)] == ids
    last = add(other, 3)
    assert add(queue, 3) == last
    assert [add(other, n) for n in range(4)] == [*ids, last]


def test_a_job_that_another_process_makes_pending_again_is_found(
    queue: Queue, other: Queue
) -> None:
    ids = {payload: add(queue, payload) for payload in "abc"}
    assert {payload: add(queue, payload) for payload in "abc"} == ids
    queue.cancel_job(ids["a"])
    queue.process_jobs({"greet": raises(Fail("no"), ValueError("later"))})
    found = add(queue, "b"), add(queue, "c")
    assert found[0] != ids["b"] and found[1] == ids["c"]
    queue.cancel_job(found[0])
    assert other.requeue(ids["a"]) and other.requeue_failed() == 1
    assert {payload: add(queue, payload) for payload in "abc"} == ids


def test_a_payload_that_another_process_has_edited_is_known(queue: Queue, other: Queue) -> None:
    """Also if the journal had a record of the job, so that its state is known."""
    first, second = add(queue, "old"), add(queue, "plain")
    assert (add(queue, "old"), add(queue, "plain")) == (first, second)
    assert store_of(queue).view.records
    assert other.edit_job(first, "new") and other.edit_job(second, "newer")
    assert (add(queue, "new"), add(queue, "newer")) == (first, second)
    assert add(queue, "old") not in (first, second)
    assert job(queue, first)["payload"] == "new"


def test_rows_of_other_programs_are_compared_by_what_their_payload_means(
    queue: Queue, path: Path
) -> None:
    add_lines(
        path, line("shell", payload='{"to":"\\u00e9",  "n":[1,2]}'), line("empty", payload="")
    )
    assert add(queue, {"n": [1, 2], "to": "é"}) == "shell"
    assert add(queue, {}) == "empty"
    add_lines(path, line("later", payload="[ 1 ]"))
    assert add(queue, [1]) == "later"


def test_lines_that_are_not_jobs_are_never_found(queue: Queue, path: Path) -> None:
    add_lines(path, line("a", payload="{"), line("b", payload="NaN"), "x\n", line("c", payload="1"))
    add_lines(path, line("a", payload="2"), line("d", payload="1e999"), "torn\tgreet\t3")
    ids = [add(queue, payload) for payload in (1, 2, 3)]
    assert ids[0] == "c"
    assert len({*ids, "a", "d", "torn"}) == 6
    assert [add(queue, payload) for payload in (1, 2, 3)] == ids


def test_an_id_of_a_line_that_is_not_a_job_cannot_be_used(queue: Queue, path: Path) -> None:
    add_lines(path, line("sync", payload="{"))
    with pytest.raises(DuplicateJob, match="unreadable"):
        queue.enqueue("greet", {}, job_id="sync", exist_ok=True)


def test_after_an_edit_by_hand_the_pending_jobs_are_found(queue: Queue, path: Path) -> None:
    ids = [add(queue, n) for n in range(4)]
    header, *lines = path.read_text().splitlines(keepends=True)
    edited = path.with_name("edited")
    edited.write_text(header + "".join([lines[3], lines[0], lines[1].replace("\t1\t", "\t9\t")]))
    os.rename(edited, path)
    assert [add(queue, n) for n in (0, 9, 3)] == [ids[0], ids[1], ids[3]]
    assert add(queue, 2) != ids[2]


def test_a_forked_child_finds_what_its_parent_has_added(queue: Queue) -> None:
    first = add(queue, 1)
    pid = os.fork()
    if not pid:
        os._exit(0 if (add(queue, 1), add(queue, 2)) == (first, add(queue, 2)) else 1)
    assert exit_code(pid) == 0
    assert add(queue, 1) == first
    assert len(rows_of(queue)) == 2


def rows_of(queue: Queue) -> list[Any]:
    return list(queue.jobs())


# -- a job that was found is as safe as one that was added


class Syncs:
    """Records the name of each file that is synced; `during` is called in the next sync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.during: Callable[[], object] | None = None
        self.error = 0
        self._real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, fd: int) -> None:
        self.names.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        during, self.during = self.during, None
        if during is None:
            self._real(fd)
        else:
            during()
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


FINDERS: dict[str, Callable[[Queue], str]] = {
    "unique": lambda queue: queue.enqueue("greet", 1, unique="pending"),
    "exist_ok": lambda queue: queue.enqueue("greet", 2, job_id="mine", exist_ok=True),
}


@pytest.mark.parametrize("find", FINDERS)
def test_the_row_of_a_job_that_was_found_is_synced_before_its_id_is_returned(
    queue: Queue, other: Queue, syncs: Syncs, find: str
) -> None:
    queue.enqueue("greet", 1, job_id="mine")
    syncs.names.clear()
    assert FINDERS[find](other) == "mine"
    assert syncs.names[-1] == "queue.tsv"


@pytest.mark.parametrize("find", FINDERS)
def test_a_job_that_was_found_stays_even_if_the_call_that_adds_it_fails(
    queue: Queue, other: Queue, syncs: Syncs, find: str
) -> None:
    found: list[str] = []
    syncs.during, syncs.error = lambda: found.append(FINDERS[find](other)), errno.EIO
    with pytest.raises(StoreError, match="were added and may run"):
        queue.enqueue("greet", 1, job_id="mine")
    assert found == ["mine"]
    with Queue(queue.path) as fresh:
        assert [job["id"] for job in fresh.jobs()] == ["mine"]


@pytest.mark.parametrize("find", FINDERS)
def test_an_error_while_a_found_job_is_synced_is_raised_and_the_next_call_works(
    queue: Queue, syncs: Syncs, find: str
) -> None:
    queue.enqueue("greet", 1, job_id="mine")
    FINDERS[find](queue)
    syncs.during, syncs.error = lambda: None, errno.EIO
    with pytest.raises(StoreError, match="may not survive a power cut"):
        FINDERS[find](queue)
    assert FINDERS[find](queue) == "mine"
    assert len(rows_of(queue)) == 1


def test_a_unique_job_that_could_not_be_synced_is_added_by_the_next_call(
    queue: Queue, syncs: Syncs, path: Path
) -> None:
    add(queue, 1)
    syncs.during, syncs.error = lambda: None, errno.ENOSPC
    with pytest.raises(StoreError, match="nothing was added"):
        add(queue, 2)
    second = add(queue, 2)
    assert add(queue, 2) == second
    assert len(rows(path)) == 2


# -- quick


def test_all_threads_of_a_process_share_one_index(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    real = once.AddOnce.__init__

    def make(self: once.AddOnce, *arguments: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # for another thread that makes one
        real(self, *arguments)

    monkeypatch.setattr(once.AddOnce, "__init__", make)
    found: list[object] = []
    at_once(*[lambda: found.append(store_of(queue)._once())] * 2)
    assert found[0] is found[1]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each row that was read to compare its payload."""
    found: list[int] = []
    real = View.line

    def read(self: View, number: int, ahead: int = 0) -> bytes:
        found.append(number)
        return real(self, number, ahead)

    monkeypatch.setattr(View, "line", read)
    return found


def test_only_the_first_call_of_a_process_reads_the_payloads_of_all_pending_jobs(
    queue: Queue, other: Queue, looks: list[int]
) -> None:
    queue.enqueue_many("greet", range(1000))
    add(queue, 0)
    assert len(looks) >= 1000
    changes: list[Callable[[], object]] = [bool, other.counts, lambda: other.enqueue("greet", "x")]
    for n, change in enumerate(changes):
        change()
        looks.clear()
        add(queue, n)
        add(queue, f"new {n}")
        assert len(looks) <= 5, n
    other.process_jobs({}, skip_unknown=True)  # folds
    looks.clear()
    add(queue, 500)
    assert len(looks) <= 5


def test_if_too_many_jobs_became_pending_again_all_are_read_again(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_MOST_LISTED", 3)
    ids = [add(queue, n) for n in range(9)]
    for _ in range(2):
        for job_id in ids:
            queue.cancel_job(job_id)
        for job_id in ids:
            queue.requeue(job_id)
        assert [add(queue, n) for n in range(9)] == ids


def test_many_payloads_are_read_without_the_lock(
    queue: Queue, other: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others add in the meantime is found all the same."""
    monkeypatch.setattr(once, "_MUCH_ROWS", 10)
    queue.enqueue_many("greet", range(20))
    free: list[bool] = []
    added: list[str] = []
    real = PendingPayloads.update

    def update(self: PendingPayloads) -> None:
        free.append(is_free(sibling(path, "lock")))
        if not added:
            added.append(other.enqueue("greet", "new"))
        real(self)

    monkeypatch.setattr(PendingPayloads, "update", update)
    assert add(queue, "new") == added[0]
    assert free == [True, False]


def test_payloads_with_the_same_hash_are_different_jobs(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unique, "_hash", lambda *_: 7)
    ids = [add(queue, n) for n in range(5)]
    queue.cancel_job(ids[2])
    assert len(set(ids)) == 5
    assert [add(queue, n) for n in (0, 1, 3, 4)] == [ids[n] for n in (0, 1, 3, 4)]
    assert add(queue, 2) != ids[2]
