"""Several jobs at a time: forked passes, coroutines on one event loop, limits per job type."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    NONE,
    NOW,
    Clock,
    Programs,
    fork_without_hooks,
    job,
    note,
    notes,
    open_pipes,
    wait_for,
    wait_for_notes,
)

import dbbasic_queue
from dbbasic_queue import (
    Delay,
    Fail,
    Handler,
    Handlers,
    InvalidHandlers,
    JobDict,
    JobNotFound,
    Queue,
    StoreError,
    Worker,
)
from dbbasic_queue.passes import base
from dbbasic_queue.store.claiming import recovery

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path


# --- plain functions in forked passes


def test_plain_functions_run_at_the_same_time_in_one_process_per_worker(
    queue: Queue, tmp_path: Path
) -> None:
    """All of them run at the same time: each waits until it sees the others."""

    def meet(n: int) -> int:
        note(tmp_path / "here", str(n))
        wait_for_notes(tmp_path / "here", 8)
        return os.getpid()

    ids = queue.enqueue_many("meet", range(8))
    assert queue.process_jobs({"meet": meet}, workers=8) == NONE | {"completed": 8}
    pids = {job(queue, i)["result"] for i in ids}
    assert len(pids) == 8
    assert os.getpid() not in pids


def test_forked_passes_share_many_quick_jobs_and_run_each_once(
    queue: Queue, tmp_path: Path
) -> None:
    ids = queue.enqueue_many("mark", range(400))
    counts = queue.process_jobs({"mark": lambda n: note(tmp_path / "ran", str(n))}, workers=4)
    assert counts == NONE | {"completed": 400}
    assert sorted(map(int, notes(tmp_path / "ran"))) == list(range(400))
    assert {job(queue, i)["attempts"] for i in ids} == {1}


def test_the_outcomes_of_forked_passes_are_counted_like_others(queue: Queue) -> None:
    def work(name: str) -> None:
        if name == "raise":
            raise ValueError
        if name == "delay":
            raise Delay(5)
        if name == "fail":
            raise Fail

    queue.enqueue_many("work", ["raise", "delay", "fail", "return"])
    queue.enqueue("unknown", {})
    assert queue.process_jobs({"work": work}, 3, workers=3) == {
        "completed": 1,
        "failed": 1,
        "retried": 2,
        "delayed": 1,
        "stopped": 0,
        "recovered": 0,
    }


def test_no_more_processes_are_forked_than_there_are_jobs(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise AssertionError

    monkeypatch.setattr(os, "fork", fork)
    assert queue.process_jobs({"greet": len}, workers=8) == NONE
    queue.enqueue("greet", "ada")
    assert queue.process_jobs({"greet": len}, workers=8) == NONE | {"completed": 1}


def test_a_system_error_in_a_forked_pass_is_raised_by_the_call(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("breaks", range(2))

    def breaks(_: Any) -> None:
        journal = path.with_name("queue.tsv.journal")
        journal.unlink(missing_ok=True)
        journal.mkdir()

    with pytest.raises(dbbasic_queue.NotAQueue, match="not a file of the queue"):
        queue.process_jobs({"breaks": breaks}, workers=2)
    path.with_name("queue.tsv.journal").rmdir()
    assert queue.get_job(ids[0]) is not None


def test_a_forked_pass_that_is_killed_is_reported_and_its_job_recovered(queue: Queue) -> None:
    bad = queue.enqueue("die", {})
    queue.enqueue_many("greet", range(5))

    def die(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    handlers: dict[str, Any] = {"die": die, "greet": str}
    with pytest.raises(dbbasic_queue.QueueError, match="killed before it could report"):
        queue.process_jobs(handlers, 1, workers=2)
    assert queue.process_jobs({"greet": str}, 1)["recovered"] <= 1  # the other pass may have, too
    found = job(queue, bad)
    assert (found["status"], found["error"]) == ("failed", "worker died in attempt 1")
    assert queue.counts()["completed"] == 5


SLOW = """
    def work(n):
        note("started", f"{os.getpid()} {n}")
        wait_for(lambda: Path("go").exists(), "the file `go`", 600)
        return n

    note("supervisor", os.getpid())
    queue.process_jobs({"work": work}, workers=3)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_supervisor_forwards_signals_to_its_passes(
    programs: Programs, tmp_path: Path, number: int, code: int
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue_many("work", range(5))
    program = programs.start(SLOW)
    wait_for_notes(tmp_path / "started", 3)
    program.signal(number)
    if number == signal.SIGTERM:
        # The passes may have the signal already, if all processes of the group received it.
        for line in notes(tmp_path / "started"):
            os.kill(int(line.split()[0]), number)
        (tmp_path / "go").touch()
    assert program.wait() in (code, -number)
    statuses = [found["status"] for found in queue.jobs()]
    finished = 3 if number == signal.SIGTERM else 0
    assert statuses.count("completed") == finished
    assert statuses.count("pending") == 5 - finished
    assert {found["attempts"] for found in queue.jobs(status="pending")} == {0}


def test_the_programs_signal_handler_runs_in_the_supervisor_but_not_in_its_passes(
    programs: Programs, tmp_path: Path
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue_many("work", range(5))
    program = programs.start(
        """
    def ends(*_):
        note("called", os.getpid())
        sys.exit(3)

    signal.signal(signal.SIGTERM, ends)
"""
        + SLOW
    )
    wait_for_notes(tmp_path / "started", 3)
    os.killpg(program.process.pid, signal.SIGTERM)  # as systemd does by default
    (tmp_path / "go").touch()
    assert program.wait() == 3
    assert notes(tmp_path / "called") == [str(program.process.pid)]
    assert queue.counts()["completed"] == 3
    assert {found["attempts"] for found in queue.jobs(status="pending")} == {0}


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_ctrl_c_in_a_terminal_interrupts_each_job_of_forked_passes_once(
    programs: Programs, tmp_path: Path, kind: str
) -> None:
    """The terminal sends SIGINT to all processes, and the supervisor forwards it, too."""
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue_many("work", range(2))
    program = programs.start(
        f"""
        import asyncio

        def function(_):
            note("started", "")
            try:
                time.sleep(60)
            finally:
                time.sleep(0.4)
                note("cleaned", "")

        async def coroutine(_):
            note("started", "")
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.4)
                note("cleaned", "")

        queue.process_jobs({{"work": {kind}, "other": len}}, workers=2)
        """
    )
    wait_for_notes(tmp_path / "started", 2)
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.wait() in (130, -signal.SIGINT)
    assert len(notes(tmp_path / "cleaned")) == 2
    assert {(found["status"], found["attempts"]) for found in queue.jobs()} == {("pending", 0)}


def test_passes_whose_supervisor_is_killed_end_after_the_running_job(
    programs: Programs, tmp_path: Path
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue_many("work", range(9))
    program = programs.start(SLOW)
    wait_for_notes(tmp_path / "started", 3)
    program.kill()
    (tmp_path / "go").touch()
    wait_for(lambda: queue.counts()["processing"] == 0, "the passes to end")
    assert queue.counts()["completed"] == 3
    assert queue.process_jobs({"work": str})["completed"] == 6


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2", None])
def test_an_invalid_number_of_workers_is_refused(queue: Queue, workers: Any) -> None:
    with pytest.raises(InvalidHandlers, match="workers"):
        queue.process_jobs({}, workers=workers)


@pytest.mark.parametrize("fork", [os.fork, fork_without_hooks])
def test_the_call_returns_even_if_a_handler_leaves_a_daemon(
    queue: Queue, tmp_path: Path, fork: Callable[[], int]
) -> None:
    def start(_: Any) -> None:
        if (pid := fork()) == 0:
            signal.pause()
        note(tmp_path / "daemons", str(pid))

    queue.enqueue_many("start", range(2))
    try:
        assert queue.process_jobs({"start": start}, workers=2) == NONE | {"completed": 2}
    finally:
        for pid in notes(tmp_path / "daemons"):
            os.kill(int(pid), signal.SIGKILL)


def test_if_one_process_cannot_be_forked_the_other_passes_do_the_work(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, forked = os.fork, []

    def refuse_the_second() -> int:
        forked.append(0)
        if len(forked) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    queue.enqueue_many("greet", range(9))
    before = open_pipes()
    monkeypatch.setattr(os, "fork", refuse_the_second)
    with pytest.raises(StoreError, match=r"could not be started.*ulimit -u") as raised:
        queue.process_jobs({"greet": str}, workers=3)
    assert raised.value.errno == errno.EAGAIN
    assert queue.counts()["completed"] == 9
    assert open_pipes() == before


def test_a_killed_pass_of_a_long_running_worker_is_logged_and_replaced(
    programs: Programs, tmp_path: Path
) -> None:
    """Two jobs that wait for each other finish only if two passes run again."""
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue("die", {})
    program = programs.start(
        """
        import logging
        from dbbasic_queue import Backoff, Handler, Worker
        logging.basicConfig()

        def die(_):
            note("died", os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)

        def meet(n):
            note("here", n)
            wait_for_notes("here", 2)

        die = Handler(die, backoff=Backoff(first=0))
        Worker(queue, {"die": die, "meet": meet}, 2, workers=2).run_forever()
        """
    )
    wait_for_notes(tmp_path / "died", 2)
    ids = queue.enqueue_many("meet", range(2))
    for job_id in ids:
        found = queue.wait(job_id, 30)
        assert found is not None
        assert found["status"] == "completed"
    program.signal(signal.SIGTERM)
    program.succeed()
    log = program.errors.read_text(encoding="utf-8")
    assert "will be replaced in 0.1 seconds: a pass (process" in log
    assert "was killed before it could report (SIGKILL" in log


def test_a_forked_pass_with_an_endless_thread_exits_after_a_second(queue: Queue) -> None:
    import threading

    def work(_: Any) -> None:
        threading.Thread(target=signal.pause).start()

    queue.enqueue_many("work", range(2))
    assert queue.process_jobs({"work": work}, workers=2) == NONE | {"completed": 2}


def test_more_workers_than_slots_are_refused_before_anything_is_done(
    queue: Queue, path: Path
) -> None:
    with pytest.raises(InvalidHandlers, match="invalid workers 65: must be 1 to 64"):
        queue.process_jobs({"work": str}, workers=65)
    with pytest.raises(InvalidHandlers, match="invalid workers 65: must be 1 to 64"):
        Worker(queue, {"work": str}, workers=65)
    assert not path.parent.exists()


# --- coroutines


async def meet_all(n: int, here: set[int], count: int) -> int:
    here.add(n)
    while len(here) < count:
        await asyncio.sleep(0.001)
    return n


def test_coroutines_run_together_on_one_loop(queue: Queue) -> None:
    here: set[int] = set()

    async def meet(n: int) -> int:
        return await meet_all(n, here, 50)

    ids = queue.enqueue_many("meet", range(50))
    assert queue.process_jobs({"meet": meet}, workers=50) == NONE | {"completed": 50}
    assert [job(queue, i)["result"] for i in ids] == list(range(50))


def test_at_most_as_many_coroutines_as_workers_run_at_a_time(queue: Queue) -> None:
    running, most = set(), []

    async def work(n: int) -> None:
        running.add(n)
        most.append(len(running))
        await asyncio.sleep(0)
        running.discard(n)

    queue.enqueue_many("work", range(40))
    assert queue.process_jobs({"work": work}, workers=7)["completed"] == 40
    assert max(most) == 7


def test_a_pass_runs_coroutines_and_plain_functions_one_after_the_other(queue: Queue) -> None:
    seen = []
    loops = set()

    async def asynchronous(n: int) -> None:
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        seen.append(n)

    for n in range(6):
        queue.enqueue("async" if n % 2 else "plain", n, NOW - 100 + n)
    handlers = {"async": asynchronous, "plain": seen.append}
    assert queue.process_jobs(handlers) == NONE | {"completed": 6}
    assert seen == [0, 1, 2, 3, 4, 5]
    assert len(loops) == 1  # a client can stay open between jobs


def test_tasks_that_a_coroutine_leaves_running_end_with_its_job(queue: Queue) -> None:
    ended = []

    async def linger() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("linger")

    async def work(n: int) -> None:
        task = asyncio.ensure_future(linger())
        await asyncio.sleep(0)
        assert not task.done()
        ended.append(str(n))

    queue.enqueue("work", 1, NOW - 2)
    queue.enqueue("work", 2, NOW - 1)
    queue.process_jobs({"work": work})
    assert ended == ["1", "linger", "2", "linger"]


def test_coroutines_and_plain_functions_run_in_separate_passes(
    queue: Queue, tmp_path: Path
) -> None:
    here: set[int] = set()

    async def asynchronous(n: int) -> int:
        await meet_all(n, here, 3)
        return os.getpid()

    def plain(n: int) -> int:
        note(tmp_path / "here", str(n))
        wait_for_notes(tmp_path / "here", 3)
        return os.getpid()

    together = queue.enqueue_many("async", range(3))
    apart = queue.enqueue_many("plain", range(3))
    unknown = queue.enqueue("unknown", {})
    handlers = {"async": asynchronous, "plain": plain}
    counts = queue.process_jobs(handlers, workers=3)
    assert counts == NONE | {"completed": 6, "retried": 1}
    assert len({job(queue, i)["result"] for i in together}) == 1
    assert len({job(queue, i)["result"] for i in apart}) == 3
    assert job(queue, unknown)["error"] == "No handler for unknown"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_coroutine_has_the_same_outcomes_as_a_function(
    queue: Queue, clock: Clock, workers: int
) -> None:
    async def work(name: str) -> Any:
        await asyncio.sleep(0)
        if name == "raise":
            raise ValueError("no")
        if name == "delay":
            raise Delay(5, "later")
        if name == "fail":
            raise Fail("never")
        if name == "exit":
            raise SystemExit(3)
        if name == "cancelled":
            raise asyncio.CancelledError
        return 0

    names = ["raise", "delay", "fail", "exit", "cancelled", "return"]
    ids = dict(zip(names, queue.enqueue_many("work", names), strict=True))
    counts = queue.process_jobs({"work": work}, workers=workers)
    assert counts == NONE | {"completed": 1, "failed": 1, "retried": 3, "delayed": 1}
    found = {name: job(queue, i) for name, i in ids.items()}
    assert {name: found[name]["error"] for name in names} == {
        "raise": "ValueError: no",
        "delay": "delayed: later",
        "fail": "never",
        "exit": "SystemExit: 3",
        "cancelled": "CancelledError",
        "return": None,
    }
    assert found["return"]["result"] == 0
    assert found["raise"]["run_at"] == NOW + 120


TOGETHER = """
    import asyncio

    async def work(n):
        note("started", n)
        while not Path("go").exists():
            await asyncio.sleep(0.01)

    queue.process_jobs({"work": work}, workers=3)
"""


@pytest.mark.parametrize(
    ("number", "code", "completed"), [(signal.SIGTERM, 143, 3), (signal.SIGINT, 130, 0)]
)
def test_on_sigterm_running_coroutines_finish_and_on_ctrl_c_they_are_returned(
    programs: Programs, tmp_path: Path, number: int, code: int, completed: int
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue_many("work", range(8))
    program = programs.start(TOGETHER)
    wait_for_notes(tmp_path / "started", 3)
    program.signal(number)
    if completed:
        (tmp_path / "go").touch()
    assert program.wait() in (code, -number)
    assert queue.counts()["completed"] == completed
    assert queue.counts()["pending"] == 8 - completed
    assert {found["attempts"] for found in queue.jobs(status="pending")} == {0}


def test_a_kill_costs_each_running_coroutine_an_attempt(programs: Programs, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    ids = queue.enqueue_many("work", range(5))
    program = programs.start(TOGETHER)
    wait_for_notes(tmp_path / "started", 3)
    program.kill()
    assert (
        queue.process_jobs({}, 1, skip_unknown=True)["recovered"] == 0
    )  # only a pass with its handler knows the limit
    assert queue.process_jobs({"work": str}, 1) == NONE | {
        "completed": 2,
        "failed": 3,
        "recovered": 3,
    }
    lost = [job(queue, i)["error"] for i in ids]
    assert lost == ["worker died in attempt 1"] * 3 + [None] * 2


async def exits_in_a_task() -> None:
    async def task() -> None:
        sys.exit(3)

    await asyncio.gather(task())


async def is_interrupted_in_a_task() -> None:
    async def task() -> None:
        raise KeyboardInterrupt

    await asyncio.create_task(task())


async def exits_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.001)


async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.001)


async def cancels_all_others() -> None:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@pytest.mark.parametrize(
    ("clumsy", "error"),
    [
        (exits_in_a_task, "SystemExit: 3"),
        (is_interrupted_in_a_task, "KeyboardInterrupt"),
        (exits_in_a_callback, None),
        (stops_the_loop, None),
        (cancels_all_others, None),
        (cancels_itself, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_coroutine_that_disturbs_the_event_loop_does_not_affect_other_jobs(
    queue: Queue, clumsy: Callable[[], Coroutine[Any, Any, None]], error: str | None
) -> None:
    here: set[int] = set()
    done: list[str] = []

    async def good(n: int) -> int:
        await meet_all(n, here, 3)
        while not done:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.002)
        return n

    async def bad(_: Any) -> None:
        here.add(2)
        await meet_all(2, here, 3)
        done.append("done")
        await clumsy()

    ids = queue.enqueue_many("good", range(2))
    bad_id = queue.enqueue("bad", {})
    counts = queue.process_jobs({"good": good, "bad": bad}, workers=4)
    assert counts == NONE | ({"completed": 2, "retried": 1} if error else {"completed": 3})
    assert [(job(queue, i)["result"], job(queue, i)["attempts"]) for i in ids] == [(0, 1), (1, 1)]
    assert job(queue, bad_id)["error"] == error


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_left_on_the_event_loop_cannot_end_its_pass(
    queue: Queue, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    async def exits_when_it_is_cancelled() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            sys.exit(3)

    async def work(_: Any) -> asyncio.Task[None]:
        task = asyncio.ensure_future(exits_when_it_is_cancelled())
        await asyncio.sleep(0)
        return task

    queue.enqueue_many("work", range(3))
    counts = queue.process_jobs({"work": work}, workers=workers)
    assert sum(counts.values()) == 3


def test_running_coroutines_finish_and_are_recorded_after_a_failed_claim(
    queue: Queue, path: Path
) -> None:
    async def work(_: Any) -> str:
        path.with_name("queue.tsv.paused").mkdir()  # every claim reads it
        await asyncio.sleep(3 * base.POLL_SECONDS)
        return "done"

    job_id = queue.enqueue("work", {})
    with pytest.raises(dbbasic_queue.NotAQueue):
        queue.process_jobs({"work": work}, workers=2)
    path.with_name("queue.tsv.paused").rmdir()
    assert job(queue, job_id)["result"] == "done"


def test_other_coroutines_finish_after_an_outcome_could_not_be_recorded(
    queue: Queue, path: Path
) -> None:
    lock = path.with_name("queue.tsv.lock")
    refused: list[int] = []

    async def first(_: Any) -> None:
        lock.unlink()
        lock.mkdir()
        refused.append(1)

    async def second(_: Any) -> str:
        while not refused:
            await asyncio.sleep(0.001)
        await asyncio.sleep(3 * base.POLL_SECONDS)
        lock.rmdir()
        return "done"

    queue.enqueue("first", {})
    job_id = queue.enqueue("second", {})
    with pytest.raises(dbbasic_queue.NotAQueue):
        queue.process_jobs({"first": first, "second": second}, workers=2)
    assert job(queue, job_id)["result"] == "done"


def test_a_delayed_job_is_removed_from_the_slot_file_while_another_coroutine_runs(
    queue: Queue, path: Path
) -> None:
    """Otherwise another pass could claim it with the same attempt number, and be killed."""
    slot = path.with_name("queue.tsv.pass.1")
    listed: list[bool] = []

    async def put_off(_: Any) -> None:
        listed.append(b"short-1" in slot.read_bytes())
        raise Delay(0)

    async def long(_: Any) -> None:
        end = time.monotonic() + 30
        while b"short-1" in slot.read_bytes() and time.monotonic() < end:
            await asyncio.sleep(0.001)
        listed.append(b"short-1" in slot.read_bytes())
        assert b"long-1" in slot.read_bytes()

    queue.enqueue("put-off", {}, job_id="short-1")
    queue.enqueue("long", {}, job_id="long-1")
    handlers = {"put-off": put_off, "long": long}
    assert queue.process_jobs(handlers, workers=2) == NONE | {"completed": 1, "delayed": 1}
    assert listed == [True, False]


def test_a_coroutine_is_cancelled_only_once_and_can_clean_up(
    programs: Programs, tmp_path: Path
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    program = programs.start(
        """
        import asyncio

        async def work(_):
            try:
                note("started", "")
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.2)  # as when a connection is closed
                note("cleaned", "")

        queue.process_jobs({"work": work}, workers=3)
        """
    )
    wait_for_notes(tmp_path / "started", 1)
    program.signal(signal.SIGINT)
    assert program.wait() in (130, -signal.SIGINT)
    assert len(notes(tmp_path / "cleaned")) == 1
    assert (job(queue, job_id)["status"], job(queue, job_id)["attempts"]) == ("pending", 0)


def test_new_jobs_are_started_while_coroutines_run(queue: Queue) -> None:
    async def first(_: Any) -> None:
        second = queue.enqueue("second", {})
        while job(queue, second)["status"] != "completed":
            await asyncio.sleep(0.001)

    async def second(_: Any) -> None:
        pass

    queue.enqueue("first", {})
    counts = queue.run_until_complete({"first": first, "second": second}, workers=2)
    assert counts == NONE | {"completed": 2}


def test_a_pass_for_coroutines_in_a_running_event_loop_is_an_error_that_suggests_to_thread(
    queue: Queue,
) -> None:
    async def work(_: Any) -> int:
        return 5

    job_id = queue.enqueue("work", {})

    async def app() -> dict[str, int]:
        with pytest.raises(InvalidHandlers, match=r"asyncio\.to_thread"):
            queue.process_jobs({"work": work})
        return await asyncio.to_thread(queue.process_jobs, {"work": work})

    assert asyncio.run(app()) == NONE | {"completed": 1}
    assert job(queue, job_id)["result"] == 5


# --- limits per job type


def test_a_limit_per_type_holds_across_passes_and_processes(
    programs: Programs, tmp_path: Path
) -> None:
    """While it runs, each handler counts how many others do."""
    queue = Queue(tmp_path / "data/queue.tsv", fsync=False)
    queue.enqueue_many("limited", range(60))
    queue.enqueue_many("free", range(60))
    source = """
        import fcntl
        from dbbasic_queue import Handler

        def limited(n):
            places = [os.open(f"place-{k}", os.O_CREAT | os.O_RDWR) for k in range(8)]
            taken = None
            for k, fd in enumerate(places):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                taken = k
                break
            note("places", taken)
            time.sleep(0.002)
            for fd in places:
                os.close(fd)

        wait_for(lambda: Path("go").exists(), "the file `go`")
        while queue.counts()["pending"]:
            queue.process_jobs({"limited": Handler(limited, concurrency=2), "free": str})
    """
    started = [programs.start(source) for _ in range(4)]
    (tmp_path / "go").touch()
    for program in started:
        program.succeed()
    assert queue.counts()["completed"] == 120
    places = notes(tmp_path / "places")
    assert len(places) == 60
    assert set(places) <= {"0", "1"}


def test_a_limit_per_type_does_not_delay_the_other_types(queue: Queue) -> None:
    running: set[int] = set()
    most = []
    here: set[int] = set()

    async def limited(n: int) -> None:
        running.add(n)
        most.append(len(running))
        await asyncio.sleep(0.001)
        running.discard(n)

    async def free(n: int) -> int:
        return await meet_all(n, here, 5)

    jobs = Handlers()
    jobs.handler("limited", concurrency=2)(limited)
    jobs.handler("free")(free)
    queue.enqueue_many("limited", range(20), NOW - 5)
    queue.enqueue_many("free", range(5))
    assert queue.process_jobs(jobs, workers=10)["completed"] == 25
    assert max(most) == 2


def test_a_single_pass_runs_all_jobs_of_a_limited_type(queue: Queue) -> None:
    order: list[int] = []
    queue.enqueue_many("limited", range(30), NOW - 5)
    queue.enqueue_many("free", range(100, 130))
    limited = Handler(order.append, concurrency=1)
    handlers: dict[str, Any] = {"limited": limited, "free": order.append}
    assert queue.process_jobs(handlers)["completed"] == 60
    assert [n for n in order if n < 100] == list(range(30))


def test_a_job_held_back_by_a_limit_runs_later(queue: Queue, path: Path) -> None:
    """Another pass, which is inside a handler, already runs the one job that is allowed."""
    queue.enqueue("limited", "first")
    handlers: dict[str, Any] = {"limited": Handler(str, concurrency=1)}

    def look(_: Any) -> Any:
        waiting = queue.enqueue("limited", "second")
        with Queue(path, clock=queue.now) as other:
            counts = other.process_jobs({"limited": Handler(str, concurrency=1)})
            assert job(other, waiting)["status"] == "pending"
        return counts

    handlers["limited"] = Handler(look, concurrency=1)
    queue.process_jobs(handlers)
    (first, second) = queue.jobs()
    assert first["result"] == NONE
    assert second["status"] == "pending"
    assert queue.process_jobs({"limited": Handler(str, concurrency=1)})["completed"] == 1


# --- for async web apps


def test_the_async_calls_do_not_block_the_event_loop(queue: Queue) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def app() -> None:
        ticking = asyncio.ensure_future(tick())
        job_id = await queue.aenqueue("greet", "ada", NOW - 5, job_id="mine")
        assert job_id == "mine"
        assert (await queue.aget_job("mine")) == queue.get_job("mine")
        assert await queue.await_job("mine", 0.02) is None
        before = ticks
        waiting = asyncio.ensure_future(queue.await_job("mine", 30))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(queue.process_jobs, {"greet": str.upper})
        found = await waiting
        assert found is not None
        assert (found["result"], ticks > before) == ("ADA", True)
        with pytest.raises(JobNotFound, match="unknown job_id 'unknown'"):
            await queue.await_job("unknown", 30)
        ticking.cancel()

    asyncio.run(app())


@pytest.mark.parametrize("name", ["aenqueue", "aget_job", "await_job"])
def test_the_async_calls_are_coroutine_functions_with_the_same_signatures(name: str) -> None:
    """Web frameworks check this before they run a background task."""
    call = getattr(Queue, name)
    assert inspect.iscoroutinefunction(call)
    plain = getattr(Queue, {"await_job": "wait"}.get(name, name.removeprefix("a")))
    assert inspect.signature(call) == inspect.signature(plain)


@pytest.mark.parametrize(
    "name", ["enqueue", "enqueue_many", "aenqueue", "get_job", "cancel_job", "process_jobs"]
)
def test_a_function_of_the_module_has_the_signature_of_the_queues_method(name: str) -> None:
    function, method = getattr(dbbasic_queue, name), getattr(Queue, name)
    assert inspect.iscoroutinefunction(function) is (name == "aenqueue")
    assert function.__doc__
    signature = inspect.signature(method)
    assert list(inspect.signature(function).parameters.values()) == [
        parameter for parameter in signature.parameters.values() if parameter.name != "self"
    ]
    assert inspect.signature(function).return_annotation == signature.return_annotation


def test_the_module_has_only_these_functions() -> None:
    functions = {
        name for name in dbbasic_queue.__all__ if inspect.isfunction(getattr(dbbasic_queue, name))
    }
    assert functions == {
        "aenqueue",
        "cancel_job",
        "default_queue",
        "enqueue",
        "enqueue_many",
        "get_job",
        "open_queue",
        "process_jobs",
    }


def test_the_modules_aenqueue_uses_the_default_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", str(tmp_path / "data/queue.tsv"))

    async def app() -> JobDict | None:
        job_id = await dbbasic_queue.aenqueue("greet", "ada", NOW, job_id="mine")
        assert job_id == "mine"
        return await dbbasic_queue.default_queue().aget_job("mine")

    found = asyncio.run(app())
    assert found is not None
    assert (found["payload"], found["run_at"]) == ("ada", NOW)


def test_a_lingering_pass_of_coroutines_does_not_recover_its_own_jobs(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_SURVEY_SECONDS", 0.0)
    ran: list[str] = []

    async def slow(payload: str) -> str:
        ran.append(payload)
        await asyncio.sleep(0.5)
        return payload

    queue.enqueue("slow", "once")
    assert queue.process_jobs({"slow": slow}, workers=4, linger=0.8)["completed"] == 1
    assert ran == ["once"]
