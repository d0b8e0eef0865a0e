"""Signal handlers and finalizers that raise, or use the queue, during a call of the queue."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import add_lines, is_free, join, line, python, sibling, store_of

import dbbasic_queue
from dbbasic_queue import Queue, QueueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PACKAGE = str(Path(dbbasic_queue.__file__).parent)


class Interrupt(Exception):
    """What a signal handler raises."""


class Offsets:
    """Raises Interrupt at the n-th place where CPython may call a signal handler.

    These places are the start of a Python function and the return from a C function.
    """

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event in ("call", "c_return") and code.co_filename.startswith(PACKAGE):
            self.left -= 1
            if self.left == 0:
                self.place = f"{code.co_filename}:{frame.f_lineno} {code.co_name}, {event}"
                raise Interrupt


def interrupt(number: int, call: Callable[[], object]) -> str:
    """Interrupt the call at its n-th place; return that place, or "" if there are fewer."""
    places = Offsets(number)
    sys.setprofile(places)
    try:
        call()
    except Interrupt:
        pass
    finally:
        sys.setprofile(None)
    return places.place


def may_enter(queue: Queue) -> bool:
    """Return whether another thread could make a call now."""
    found: list[bool] = []

    def enter() -> None:
        mutex = store_of(queue).lock._mutex
        if mutex.acquire(blocking=False):
            mutex.release()
            found.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    join(thread, "a thread that tries the lock")
    return found == [True]


def others_fold(path: Path) -> None:
    with Queue(path, fsync=False) as other:
        other.cancel_job(other.enqueue("other", 1))


def others_edit(path: Path) -> None:
    """Replace the file by one with the jobs in another order."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    new = path.with_name("new")
    new.write_bytes(header + b"".join(reversed(lines)))
    new.rename(path)


CALLS: dict[str, Callable[[Queue], object]] = {
    "enqueue": lambda queue: queue.enqueue("work", 1),
    "cancel": lambda queue: queue.cancel_job("mine"),
    "look": lambda queue: queue.get_job("mine"),
    "list": lambda queue: list(queue.jobs()),
    "pause": lambda queue: queue.pause("work"),
    "requeue": lambda queue: queue.requeue("failed"),
}
BEFORE: dict[str, Callable[[Path], None]] = {
    "nothing": lambda _: None,
    "fold": others_fold,
    "edit": others_edit,
}


@pytest.mark.parametrize(
    ("call", "before"),
    [(call, "nothing") for call in CALLS] + [("list", "fold"), ("list", "edit")],
)
def test_after_a_signal_handler_raises_anywhere_the_locks_are_free_and_reads_are_right(
    tmp_path: Path, call: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "unraisablehook", lambda _: None
    )  # called if a finalizer is interrupted
    number, place = 0, "the first"
    while place:
        number += 1 if before == "nothing" and call != "cancel" else 3
        path = tmp_path / f"{number}.tsv"
        add_lines(path, line("failed", status="failed", attempts=3, error="no"), line("first"))
        add_lines(path, line("mine"), line("last"))
        sibling(path, "lock").touch()
        with Queue(path, fsync=False) as queue:
            assert len(list(queue.jobs())) == 4
            BEFORE[before](path)
            place = interrupt(number, lambda: CALLS[call](queue))
            assert is_free(sibling(path, "lock")), place
            assert may_enter(queue), place
            queue.enqueue("work", "after", job_id="after")
            with Queue(path, fsync=False) as fresh:
                right = list(fresh.jobs())
            assert list(queue.jobs()) == right, place
            assert queue.get_job("last") == right[[job["id"] for job in right].index("last")]
            assert len(right) == len({found["id"] for found in right}) >= 5
    assert number > 20


@contextmanager
def at_the_first_sync(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> Iterator[None]:
    """Run `act` at the first sync: in the middle of a call."""
    acted: list[bool] = []

    def acting(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            if not acted:
                acted.append(True)
                act()
            real(fd)

        return sync

    with monkeypatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, acting(getattr(os, name)))
        yield
    assert acted


MIDDLE: dict[str, Callable[[Queue], object]] = {
    "enqueue": lambda queue: queue.enqueue("work", 3),
    "enqueue_many": lambda queue: queue.enqueue_many("work", [3, 4]),
    "cancel": lambda queue: queue.cancel_job("mine"),
    "pass": lambda queue: queue.process_jobs({"work": lambda _: None}),
    "purge": lambda queue: queue.purge(0),
    "pause": lambda queue: queue.pause("work"),
}


@pytest.fixture
def used(tmp_path: Path) -> Iterator[Queue]:
    with Queue(tmp_path / "queue.tsv") as queue:
        queue.enqueue("work", 1)
        queue.process_jobs({"work": lambda _: None})
        queue.enqueue("work", 2, job_id="mine")
        yield queue


@pytest.mark.parametrize("call", MIDDLE)
def test_a_call_by_a_signal_handler_inside_a_call_works_or_is_refused_at_once(
    used: Queue, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    refused: list[str] = []

    def beat(*_: object) -> None:
        try:
            given.append(used.enqueue("beat", {}))
        except QueueError as e:
            refused.append(str(e))

    before = signal.signal(signal.SIGUSR1, beat)
    try:
        with at_the_first_sync(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1)):
            MIDDLE[call](used)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(given) + len(refused) == 1
    assert all("called inside another call of the same queue" in text for text in refused)
    if call in ("pass", "purge", "pause"):  # they hold the lock while they sync
        assert refused
    with Queue(used.path) as other:
        assert [job["id"] for job in other.jobs(job_type="beat")] == given
        other.enqueue("after", {})
    assert used.counts() == Queue(used.path).counts()


def test_a_call_by_a_finalizer_inside_a_call_is_refused_at_once(
    used: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Resource:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            with pytest.raises(QueueError, match="by a signal handler or a finalizer"):
                used.get_job("mine")
            ended.append(True)

    ended: list[bool] = []

    def collect() -> None:
        Resource()
        gc.collect()

    with at_the_first_sync(monkeypatch, collect):
        used.process_jobs({"work": lambda _: None})
    assert ended == [True]


def test_a_signal_during_the_first_use_finds_no_half_imported_module(tmp_path: Path) -> None:
    """Both the signal handler's call and the interrupted one work."""
    program = """
import importlib.abc, os, signal, sys
from dbbasic_queue import Queue
queue = Queue("queue.tsv")
signal.signal(signal.SIGUSR1, lambda *_: queue.enqueue("beat", {"n": 1}))

class Signals(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("json", "json.decoder"):
            os.kill(os.getpid(), signal.SIGUSR1)

sys.meta_path.insert(0, Signals())
queue.enqueue("work", {"n": 1})
print(queue.counts()["pending"])
"""
    done = python(program, cwd=tmp_path, flags=("-S",))
    assert done.stderr == ""
    assert int(done.stdout) in (2, 3)  # two signals may be merged into one


def test_a_finalizer_cannot_load_a_module_that_its_thread_is_importing() -> None:
    from dbbasic_queue import lazy

    seen: list[str] = []

    def inner() -> int:
        return 1

    def outer() -> int:
        with suppress(QueueError):
            lazy.load(inner)
            seen.append("loaded")
        return 2

    thread = threading.Thread(target=lambda: seen.append(str(lazy.load(outer))))
    thread.start()
    join(thread, "the import")
    assert seen == ["2"]
    assert lazy.load(inner) == 1


# --- signals during a fork


def test_a_process_that_a_handler_has_just_forked_is_ended_by_sigterm(tmp_path: Path) -> None:
    """Python loses a signal that arrives while a process with signal handlers is being forked."""
    code = """
import os, signal, time
from dbbasic_queue import Queue

def start_and_end_processes(count):
    for _ in range(count):
        pid = os.fork()
        if not pid:
            time.sleep(5)
            os._exit(0)
        os.kill(pid, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != -signal.SIGTERM:
            return code

queue = Queue("queue.tsv", fsync=False)
job_id = queue.enqueue("work", 200)
queue.process_jobs({"work": start_and_end_processes})
print(queue.get_job(job_id)["result"])
"""
    done = python(code, cwd=tmp_path, flags=("-W", "ignore::DeprecationWarning"))
    assert (done.stdout.split(), done.stderr) == (["None"], "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_fork_of_a_handler_ends_the_pass(
    tmp_path: Path, number: signal.Signals
) -> None:
    code = f"""
import os, threading, time
from dbbasic_queue import Queue

def send():
    time.sleep(0.002)
    os.kill(os.getpid(), {number.value})

def start_processes(_):
    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(20):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    thread.join()

queue = Queue("queue.tsv", fsync=False)
for _ in range(20):
    queue.enqueue("work", {{}})
    try:
        queue.process_jobs({{"work": start_processes}})
    except (SystemExit, KeyboardInterrupt) as e:
        print(type(e).__name__)
    queue.remove_type("work")
print(queue.counts()["processing"])
"""
    name = "KeyboardInterrupt" if number == signal.SIGINT else "StopRequested"
    done = python(code, cwd=tmp_path, flags=("-W", "ignore::DeprecationWarning"))
    assert (done.stdout.split(), done.stderr) == ([name] * 20 + ["0"], "")
