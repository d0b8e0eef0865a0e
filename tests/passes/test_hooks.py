"""Hooks of a registry: called after an outcome is recorded, or around the handler."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import sqlite3
import sys
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from decimal import getcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    NONE,
    NOW,
    Clock,
    Programs,
    job,
    line,
    note,
    notes,
    raising,
    sibling,
    wait_for,
    wait_for_notes,
)

from dbbasic_queue import Delay, Fail, Handlers, InvalidHandlers, Job, Queue, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


@pytest.fixture
def jobs() -> Handlers:
    return Handlers()


@pytest.fixture
def calls(jobs: Handlers) -> list[Any]:
    """The calls of a hook of each kind."""
    calls: list[Any] = []
    jobs.on_failure(lambda job, error: calls.append(("failure", job.id, error)))
    jobs.on_success(lambda job, result: calls.append(("success", job.id, result)))
    jobs.on_retry(lambda job, error, run_at: calls.append(("retry", job.id, error, run_at)))
    return calls


def work(payload: Any) -> Any:
    if payload == "raise":
        raise ValueError("one\nor two")
    if payload == "fail":
        raise Fail("no such user")
    if payload == "delay":
        raise Delay(5, "later")
    return payload


async def work_async(payload: Any) -> Any:
    await asyncio.sleep(0)
    return work(payload)


# --- which hook is called, and with what


@pytest.mark.parametrize("function", [work, work_async])
@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize("workers", [1, 3])
def test_each_outcome_calls_its_hook(
    queue: Queue, jobs: Handlers, tmp_path: Path, function: Any, timeout: Any, workers: int
) -> None:
    seen = tmp_path / "seen"
    jobs.on_failure(lambda job, error: note(seen, f"failure {job.id} {error}"))
    jobs.on_success(lambda job, result: note(seen, f"success {job.id} {result}"))
    jobs.on_retry(lambda job, error, run_at: note(seen, f"retry {job.id} {error!r} {run_at}"))
    jobs.handler("work", timeout=timeout)(function)
    for payload in ("raise", "fail", "delay", "fine"):
        queue.enqueue("work", payload, job_id=payload)
    queue.process_jobs(jobs, workers=workers)
    assert sorted(notes(seen)) == [
        "failure fail no such user",
        f"retry raise 'ValueError: one\\nor two' {NOW + 120}",
        "success fine fine",
    ]


def test_a_hook_gets_the_last_error_and_the_number_of_the_attempt(
    queue: Queue, jobs: Handlers, clock: Clock
) -> None:
    seen: list[Any] = []
    jobs.on_retry(lambda job, error, run_at: seen.append((job.attempt, run_at)))
    jobs.on_failure(lambda job, error: seen.append((job.attempt, job.type, error)))
    queue.enqueue("unknown", {})
    for _ in range(3):
        queue.process_jobs(jobs)
        clock.now += 1000
    assert seen == [(1, NOW + 120), (2, NOW + 1200), (3, "unknown", "No handler for unknown")]


def test_a_hook_of_success_gets_the_result_as_get_job_returns_it(
    queue: Queue, jobs: Handlers, calls: list[Any]
) -> None:
    jobs.handler("work")(lambda payload: (payload, None, "é\t"))
    jobs.handler("nothing")(lambda payload: None)
    jobs.handler("large")(lambda payload: object())
    kept, empty, lost = (queue.enqueue(name, 1) for name in ("work", "nothing", "large"))
    queue.process_jobs(jobs)
    assert calls == [
        ("success", kept, [1, None, "é\t"]),
        ("success", empty, None),
        ("success", lost, None),
    ]
    assert job(queue, kept)["result"] == calls[0][2]


def test_a_hook_gets_the_payload_as_it_was_enqueued(queue: Queue, jobs: Handlers) -> None:
    seen: list[Any] = []

    @jobs.on_success
    def look(job: Job, result: Any) -> None:
        job.payload.clear()
        seen.append(job.payload)

    @jobs.handler("change")
    def change(payload: dict[str, int], job: Job) -> None:
        payload["a"] = 2
        seen.append(job.payload)

    queue.enqueue("change", {"a": 1})
    queue.process_jobs(jobs)
    assert seen == [{"a": 1}, {"a": 1}]


def test_hooks_are_called_in_the_order_of_registration(queue: Queue, jobs: Handlers) -> None:
    order: list[int] = []
    for n in range(3):
        jobs.on_success(partial(lambda n, job, result: order.append(n), n))
    jobs.handler("work")(work)
    queue.enqueue("work", 1)
    queue.process_jobs(jobs)
    assert order == [0, 1, 2]


def test_a_hook_is_called_after_the_outcome_is_recorded_counted_and_logged(
    queue: Queue, path: Path, jobs: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[Any] = []

    @jobs.on_failure
    @jobs.on_success
    def look(job: Job, _: Any) -> None:
        with Queue(path) as other:
            found = other.get_job(job.id)
            assert found is not None
            seen.append((found["status"], len(caplog.records)))

    jobs.handler("work")(work)
    queue.enqueue_many("work", ["fine", "fail"])
    queue.process_jobs(jobs)
    assert seen == [("completed", 1), ("failed", 2)]


def test_an_attempt_that_a_newer_one_has_replaced_calls_no_hook(
    queue: Queue, path: Path, jobs: Handlers, calls: list[Any]
) -> None:
    @jobs.handler("work")
    def outrun(payload: Any) -> str:
        sibling(path, "pass.1").unlink()  # the other pass assumes that this one is dead
        with Queue(path, clock=Clock()) as other:
            assert other.process_jobs({"work": str})["completed"] == 1
        return "outdated"

    queue.enqueue("work", {})
    assert queue.process_jobs(jobs) == NONE
    assert calls == []


def test_a_plain_dict_has_no_hooks_and_a_registry_without_any_is_pickled(jobs: Handlers) -> None:
    assert not hasattr({}, "hooks")
    assert jobs.hooks is None
    assert pickle.loads(pickle.dumps(jobs)).hooks is None


def test_a_registry_is_pickled_with_its_hooks(jobs: Handlers) -> None:
    jobs.on_success(print_result)
    copy = pickle.loads(pickle.dumps(jobs))
    assert copy.hooks.on_success == [print_result]


def print_result(job: Job, result: Any) -> None:
    print(result)


# --- a hook that misbehaves changes nothing


def exits(job: Job, *_: Any) -> None:
    sys.exit(f"hook of {job.type}")


def raises(job: Job, *_: Any) -> None:
    raise OSError(28, "hook\nof")


def interrupts(job: Job, *_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("hook", "raised"),
    [(exits, "SystemExit"), (raises, "OSError"), (interrupts, "KeyboardInterrupt")],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hook_that_raises_is_logged_and_changes_nothing(
    queue: Queue,
    jobs: Handlers,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    hook: Callable[..., None],
    raised: str,
    workers: int,
) -> None:
    seen = tmp_path / "seen"
    for register in (jobs.on_failure, jobs.on_success, jobs.on_retry):
        register(hook)
    jobs.on_success(lambda job, result: note(seen, job.id))  # is called all the same
    jobs.handler("work")(work)
    jobs.handler("later")(work_async)
    ids = queue.enqueue_many("work", ["raise", "fail", "fine"])
    later = queue.enqueue("later", "fine")
    counts = queue.process_jobs(jobs, workers=workers)
    assert counts == NONE | {"completed": 2, "failed": 1, "retried": 1}
    assert [job(queue, i)["status"] for i in ids] == ["pending", "failed", "completed"]
    assert [job(queue, i)["attempts"] for i in ids] == [1, 1, 1]
    assert sorted(notes(seen)) == sorted([ids[2], later])
    assert queue.process_jobs(jobs) == NONE
    if workers == 1:
        (found,) = [r for r in caplog.records if "on_failure hook" in r.getMessage()]
        assert f"raised {raised} for work {ids[1]}" in found.getMessage()
        assert found.levelno == logging.ERROR
        assert found.exc_info is not None


def test_a_child_that_a_hook_forks_does_not_become_a_second_worker(
    queue: Queue, programs: Programs
) -> None:
    queue.enqueue_many("work", range(3))
    program = programs.start(
        """
        from dbbasic_queue import Handlers
        jobs = Handlers()

        @jobs.on_success
        def fork(job, result):
            if os.fork():
                os.wait()

        @jobs.handler
        def work(payload):
            note("ran", f"{payload}")

        print(queue.process_jobs(jobs)["completed"])
        """
    )
    assert program.succeed() == "3"
    assert notes(programs.directory / "ran") == ["0", "1", "2"]
    text = program.errors.read_text("utf-8")
    assert text.count("the hook fork returned in a child that it had forked") == 3


def test_a_hook_that_ends_its_process_loses_no_outcome(queue: Queue, programs: Programs) -> None:
    ids = queue.enqueue_many("work", range(3))
    program = programs.start(
        """
        from dbbasic_queue import Handlers
        jobs = Handlers()
        jobs.on_success(lambda job, result: os._exit(3))
        jobs.handler("work")(lambda payload: note("ran", f"{payload}"))
        queue.process_jobs(jobs)
        """
    )
    assert program.wait() == 3
    with Queue(programs.directory / "data/queue.tsv") as now:
        now.process_jobs({"work": lambda payload: note(programs.directory / "ran", str(payload))})
        assert {job(now, i)["status"] for i in ids} == {"completed"}
        assert {job(now, i)["attempts"] for i in ids} == {1}
    assert notes(programs.directory / "ran") == ["0", "1", "2"]


def test_ctrl_c_interrupts_a_hook_and_ends_the_pass_after_the_recorded_outcome(
    queue: Queue, jobs: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    @jobs.on_success
    def press(job: Job, result: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        seen.append("not reached")

    jobs.on_success(lambda job, result: seen.append("the next hook"))
    jobs.handler("work")(work)
    ids = queue.enqueue_many("work", range(2))
    with pytest.raises(KeyboardInterrupt):
        queue.process_jobs(jobs)
    assert [job(queue, i)["status"] for i in ids] == ["completed", "pending"]
    assert job(queue, ids[1])["attempts"] == 0
    assert seen == ["the next hook"]
    assert not [r for r in caplog.records if "hook" in r.getMessage()]


def test_sigterm_lets_a_hook_finish(queue: Queue, jobs: Handlers) -> None:
    seen = []

    @jobs.on_success
    def stop(job: Job, result: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        seen.append("finished")

    jobs.handler("work")(work)
    ids = queue.enqueue_many("work", range(2))
    with pytest.raises(SystemExit):
        queue.process_jobs(jobs)
    assert seen == ["finished"]
    assert [job(queue, i)["status"] for i in ids] == ["completed", "pending"]


def test_a_hook_changes_neither_the_context_nor_the_decimal_precision_of_later_jobs(
    queue: Queue, jobs: Handlers
) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    @jobs.on_success
    def change(job: Job, result: Any) -> None:
        variable.set("set")
        getcontext().prec = 3

    jobs.handler("look")(lambda _: [variable.get(), getcontext().prec])
    ids = queue.enqueue_many("look", range(2))
    queue.process_jobs(jobs)
    assert job(queue, ids[1])["result"] == ["unset", 28]


def test_a_hook_may_use_the_queue(queue: Queue, jobs: Handlers, clock: Clock) -> None:
    @jobs.on_failure
    def compensate(job: Job, error: str) -> None:
        queue.enqueue("undo", job.payload)
        assert queue.process_jobs({"undo": print}, skip_unknown=True)["completed"] == 1

    jobs.handler("work")(work)
    queue.enqueue_many("work", ["fail", "fine"])
    assert queue.process_jobs(jobs) == NONE | {"completed": 1, "failed": 1}
    assert queue.counts()["completed"] == 2


def test_while_a_hook_takes_long_other_passes_can_run_the_rest(path: Path) -> None:
    jobs = Handlers()
    ran: list[int] = []
    seen: list[int] = []

    @jobs.on_success
    def slow(job: Job, result: Any) -> None:
        with Queue(path, fsync=False) as other:
            if seen or not other.counts()["processing"]:
                return  # the first batches have one job
            seen.append(job.payload)
            wait_for(lambda: not other.counts()["processing"], "the batch to be returned")
            other.process_jobs({"work": ran.append})

    jobs.handler("work")(lambda payload: None)
    with Queue(path, fsync=False) as queue:
        queue.enqueue_many("work", range(200))
        queue.process_jobs(jobs)
        assert queue.counts()["completed"] == 200
    assert ran == list(range(seen[0] + 1, 200))


# --- jobs whose pass died


def test_the_next_pass_logs_each_job_that_was_running_and_calls_its_hooks(
    queue: Queue,
    path: Path,
    jobs: Handlers,
    calls: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    queue.enqueue("first", {}, NOW + 1000)
    with path.open("a", encoding="utf-8") as file:
        file.write(line("again", type="crash", status="processing", attempts=1))
        file.write(line("lost", type="crash", status="processing", attempts=3))
    jobs.handler("crash")(print)
    queue.pause("crash")
    assert queue.process_jobs(jobs) == NONE | {"recovered": 2, "failed": 1}
    run_at = job(queue, "again")["run_at"]
    assert calls == [
        ("retry", "again", "worker died in attempt 1", run_at),
        ("failure", "lost", "worker died in attempt 3"),
    ]
    warning, error = (r for r in caplog.records if hasattr(r, "job_id"))
    assert (warning.levelno, error.levelno) == (logging.WARNING, logging.ERROR)
    assert warning.getMessage().startswith(
        "crash again was running when its pass died, in attempt 1; it runs again at 2027-01-15T08:"
    )
    assert (warning.__dict__["job_type"], warning.__dict__["attempt"]) == ("crash", 1)
    assert "crash lost failed, attempt 3: worker died in attempt 3" in error.getMessage()
    assert queue.process_jobs(jobs) == NONE
    assert len(calls) == 2


def test_the_report_after_a_crash_names_the_job_and_not_those_that_had_not_started(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Queue(tmp_path / "data/queue.tsv") as queue:
        queue.enqueue("work", "first")
        poison = queue.enqueue("crash", {})
        queue.enqueue_many("work", range(5))
        program = programs.start(
            """
            def crash(payload):
                os.kill(os.getpid(), signal.SIGSEGV)
            queue.process_jobs({"work": str, "crash": crash})
            """
        )
        assert program.wait() == -signal.SIGSEGV
        queue.process_jobs({"work": str}, skip_unknown=False)
    named = [r.getMessage() for r in caplog.records if "was running" in r.getMessage()]
    assert len(named) == 1
    assert f"crash {poison} was running when its pass died, in attempt 1" in named[0]


# --- around


class Trace:
    """An `around` hook that records what happens, in a file that all processes share."""

    def __init__(self, file: Path, name: str = "") -> None:
        self.file = file
        self.name = name

    @contextmanager
    def plain(self, job: Job) -> Iterator[None]:
        note(self.file, f"{self.name}enter {job.id}")
        try:
            yield
        except BaseException as e:
            note(self.file, f"{self.name}{type(e).__name__} {job.id}")
            raise
        note(self.file, f"{self.name}leave {job.id}")

    @asynccontextmanager
    async def coroutine(self, job: Job) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        with self.plain(job):
            yield


@pytest.mark.parametrize("function", [work, work_async, lambda payload: work_async(payload)])
@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize("workers", [1, 3])
def test_around_is_entered_in_the_process_that_runs_the_handler(
    queue: Queue, jobs: Handlers, tmp_path: Path, function: Any, timeout: Any, workers: int
) -> None:
    trace = Trace(tmp_path / "trace")
    in_process: ContextVar[int] = ContextVar("in_process")

    @jobs.around
    @contextmanager
    def remember(job: Job) -> Iterator[None]:
        token = in_process.set(os.getpid())
        yield
        in_process.reset(token)  # raises in another context

    jobs.around(trace.plain)

    def where(payload: Any) -> Any:
        assert in_process.get() == os.getpid()
        note(trace.file, "run")
        return function(payload)

    async def where_async(payload: Any) -> Any:
        assert in_process.get() == os.getpid()
        note(trace.file, "run")
        return await function(payload)

    handler = where_async if function is work_async else where
    jobs.handler("work", timeout=timeout)(handler)
    queue.enqueue("work", "fine", job_id="x")
    queue.enqueue("work", "later", NOW + 1000)
    assert queue.process_jobs(jobs, workers=workers) == NONE | {"completed": 1}
    assert notes(trace.file) == ["enter x", "run", "leave x"]
    queue.enqueue("work", "fail", job_id="y")
    assert queue.process_jobs(jobs, workers=workers) == NONE | {"failed": 1}
    assert notes(trace.file)[3:] == ["enter y", "run", "Fail y"]
    assert job(queue, "y")["error"] == "no such user"


def test_several_are_nested_and_plain_ones_mix_with_async_ones_for_coroutines(
    queue: Queue, jobs: Handlers, tmp_path: Path
) -> None:
    file = tmp_path / "trace"
    jobs.around(Trace(file, "1 ").plain)
    jobs.around(Trace(file, "2 ").coroutine)
    jobs.around(Trace(file, "3 ").plain)
    jobs.handler("work")(work_async)
    for workers in (1, 2):
        queue.enqueue("work", "fine", job_id=f"x{workers}")
        assert queue.process_jobs(jobs, workers=workers) == NONE | {"completed": 1}
    assert notes(file)[:6] == [
        "1 enter x1",
        "2 enter x1",
        "3 enter x1",
        "3 leave x1",
        "2 leave x1",
        "1 leave x1",
    ]
    assert len(notes(file)) == 12


def test_coroutines_that_run_together_each_have_their_own(queue: Queue, jobs: Handlers) -> None:
    current: ContextVar[str] = ContextVar("current")

    @jobs.around
    @asynccontextmanager
    async def around(job: Job) -> AsyncIterator[None]:
        current.set(job.id)
        await asyncio.sleep(0.01)
        yield

    @jobs.handler("look")
    async def look(payload: Any) -> str:
        await asyncio.sleep(0.01)
        return current.get()

    ids = queue.enqueue_many("look", range(20))
    queue.process_jobs(jobs, workers=20)
    assert [job(queue, i)["result"] for i in ids] == ids


@pytest.mark.parametrize("function", [work, work_async])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_it_raises_before_or_after_the_handler_is_the_jobs_error(
    queue: Queue, jobs: Handlers, function: Any, workers: int
) -> None:
    @jobs.around
    @contextmanager
    def connect(job: Job) -> Iterator[None]:
        if job.payload == "before":
            raise ConnectionError("no database")
        yield
        if job.payload == "after":
            raise sqlite3.OperationalError("cannot commit")

    jobs.handler("work")(function)
    before, after, fine = queue.enqueue_many("work", ["before", "after", "fine"])
    assert queue.process_jobs(jobs, workers=workers) == NONE | {"completed": 1, "retried": 2}
    assert job(queue, before)["error"] == "ConnectionError: no database"
    assert job(queue, after)["error"] == "OperationalError: cannot commit"
    assert job(queue, fine)["result"] == "fine"


@pytest.mark.parametrize("function", [work, work_async])
def test_it_cannot_hide_an_error_but_may_replace_it(
    queue: Queue, jobs: Handlers, function: Any
) -> None:
    @jobs.around
    @contextmanager
    def swallow(job: Job) -> Iterator[None]:
        with suppress(Exception):
            yield

    @jobs.around
    @contextmanager
    def postpone(job: Job) -> Iterator[None]:
        try:
            yield
        except ValueError:
            raise Delay(60, "a value") from None

    jobs.handler("work")(function)
    failed, delayed = queue.enqueue_many("work", ["fail", "raise"])
    assert queue.process_jobs(jobs) == NONE | {"failed": 1, "delayed": 1}
    assert job(queue, failed)["error"] == "no such user"
    assert job(queue, delayed)["error"] == "delayed: a value"


def test_the_traceback_in_the_history_begins_in_the_handler(queue: Queue, jobs: Handlers) -> None:
    @jobs.around
    @contextmanager
    def around(job: Job) -> Iterator[None]:
        yield

    jobs.handler("work")(work)
    failed = queue.enqueue("work", "fail")
    queue.process_jobs(jobs)
    (attempt,) = queue.history(failed)
    assert attempt["traceback"] is not None
    assert "in work" in attempt["traceback"].split("\n")[1]
    assert "dbbasic_queue/passes" not in attempt["traceback"]


def test_it_is_not_left_in_a_child_that_the_handler_has_forked(
    queue: Queue, programs: Programs
) -> None:
    queue.enqueue("work", {})
    program = programs.start(
        """
        from contextlib import contextmanager
        from dbbasic_queue import Handlers
        jobs = Handlers()

        @jobs.around
        @contextmanager
        def around(job):
            yield
            note("left", "once")

        @jobs.handler
        def work(payload):
            if os.fork():
                os.wait()

        print(queue.process_jobs(jobs)["completed"])
        """
    )
    assert program.succeed() == "1"
    assert notes(programs.directory / "left") == ["once"]


def test_ctrl_c_inside_it_returns_the_job(queue: Queue, jobs: Handlers) -> None:
    @jobs.around
    @contextmanager
    def press(job: Job) -> Iterator[None]:
        signal.raise_signal(signal.SIGINT)
        yield

    jobs.handler("work")(work)
    job_id = queue.enqueue("work", {})
    with pytest.raises(KeyboardInterrupt):
        queue.process_jobs(jobs)
    assert (job(queue, job_id)["status"], job(queue, job_id)["attempts"]) == ("pending", 0)


def test_a_time_limit_holds_for_it_too(queue: Queue, jobs: Handlers) -> None:
    @jobs.around
    @contextmanager
    def hang(job: Job) -> Iterator[None]:
        threading.Event().wait(60)
        yield

    jobs.handler("work", timeout=0.2)(work)
    job_id = queue.enqueue("work", {})
    queue.process_jobs(jobs)
    assert job(queue, job_id)["error"] == "timed out after 0.2 s"


def test_a_job_without_a_handler_enters_none(queue: Queue, jobs: Handlers, tmp_path: Path) -> None:
    jobs.around(Trace(tmp_path / "trace").plain)
    queue.enqueue("unknown", {})
    queue.process_jobs(jobs)
    assert notes(tmp_path / "trace") == []


def test_a_worker_calls_hooks_and_around(now_queue: Queue, jobs: Handlers, tmp_path: Path) -> None:
    jobs.around(Trace(tmp_path / "trace").plain)
    jobs.on_success(lambda job, result: note(tmp_path / "trace", f"done {job.id}"))
    jobs.handler("work")(work)
    with Worker(now_queue, jobs):
        now_queue.enqueue("work", {}, job_id="x")
        wait_for_notes(tmp_path / "trace", 3)
    assert notes(tmp_path / "trace") == ["enter x", "leave x", "done x"]


# --- invalid hooks


async def a_coroutine(job: Job, *_: Any) -> None: ...


def a_generator(job: Job) -> Iterator[None]:
    yield


async def an_async_generator(job: Job) -> AsyncIterator[None]:
    yield


def one_argument(job: Job) -> None: ...


def three_arguments(job: Job, error: str, more: int) -> None: ...


def by_name(job: Job, error: str, *, more: int) -> None: ...


@pytest.mark.parametrize(
    ("kind", "hook", "reason"),
    [
        ("on_failure", "print", "can't be called"),
        ("on_success", a_coroutine, "is a coroutine function .give a plain function"),
        ("around", a_coroutine, "contextlib.asynccontextmanager"),
        ("around", a_generator, "decorate it with contextlib.contextmanager"),
        ("around", an_async_generator, "decorate it with contextlib.asynccontextmanager"),
        ("on_retry", a_generator, "is a generator function"),
        ("on_failure", one_argument, "can't be called with what it gets: job, error"),
        ("on_failure", three_arguments, "can't be called with what it gets: job, error"),
        ("on_failure", by_name, "can't be called with what it gets: job, error"),
        ("around", contextmanager(lambda: iter(())), "can't be called with what it gets: job"),
        ("on_failure", partial(print_result, result=1), "can't be called with what it gets"),
    ],
)
def test_an_invalid_hook_is_refused_when_it_is_registered(
    jobs: Handlers, kind: str, hook: Any, reason: str
) -> None:
    with pytest.raises(InvalidHandlers, match=f"^invalid {kind} hook .*{reason}"):
        getattr(jobs, kind)(hook)
    assert not (jobs.hooks and getattr(jobs.hooks, kind))


@pytest.mark.parametrize(
    "hook",
    [
        print,
        lambda *_: None,
        lambda job, error="", more=0: None,
        partial(lambda first, job, error: None, 1),
        partial(lambda job, error, more: None, more=1),
        type("Hook", (), {"__call__": lambda self, job, error: None})(),
        Trace,
    ],
)
def test_any_callable_that_takes_the_arguments_is_accepted(jobs: Handlers, hook: Any) -> None:
    assert jobs.on_failure(hook) is hook


class AsyncOnly:
    def __init__(self, job: Job) -> None: ...

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("around", [Trace("", "").coroutine, AsyncOnly])  # type: ignore[arg-type]
def test_an_async_one_next_to_a_plain_handler_is_refused_before_any_job_runs(
    queue: Queue, jobs: Handlers, around: Any
) -> None:
    jobs.around(around)
    jobs.handler("good")(work_async)
    jobs.handler("bad")(work)
    job_id = queue.enqueue("good", {})
    reason = "is an async context manager, and the handler for 'bad' is a plain function"
    with pytest.raises(InvalidHandlers, match=reason):
        queue.process_jobs(jobs)
    with pytest.raises(InvalidHandlers, match=reason):
        Worker(queue, jobs)
    assert job(queue, job_id)["status"] == "pending"


def test_an_async_one_that_cannot_be_known_before_is_the_jobs_error(
    queue: Queue, jobs: Handlers
) -> None:
    jobs.around(lambda job: AsyncOnly(job) if job.payload else 7)
    jobs.handler("work")(work)
    asynchronous, neither = queue.enqueue_many("work", [1, 0])
    queue.process_jobs(jobs)
    assert "is an async context manager, and the handler" in job(queue, asynchronous)["error"]
    assert "returned a int, and not a context manager" in job(queue, neither)["error"]


# --- without hooks


def test_a_pass_without_hooks_imports_nothing_for_them(queue: Queue, programs: Programs) -> None:
    queue.enqueue_many("work", range(2))
    printed = programs.run(
        """
        from dbbasic_queue import Handlers
        jobs = Handlers()
        jobs.handler("work")(str)
        assert queue.process_jobs(jobs)["completed"] == 2
        print([name for name in sys.modules if "hook" in name or "digest" in name])
        """
    )
    assert printed == "[]"


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_failed_job_that_its_hook_requeues_waits_for_the_next_pass(
    path: Path, clock: Clock, jobs: Handlers, kind: str
) -> None:
    jobs.handler("work")(raising(ValueError("no")))
    with Queue(path if kind == "file" else "memory:", clock=clock) as queue:
        jobs.on_failure(lambda job, error: queue.requeue(job.id))
        job_id = queue.enqueue("work", {})
        for _ in range(2):
            assert queue.process_jobs(jobs, 1) == NONE | {"failed": 1}
            assert job(queue, job_id)["status"] == "pending"
