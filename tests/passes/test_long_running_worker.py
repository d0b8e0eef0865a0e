"""A long-running worker: how it starts and stops, and which errors it survives."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import UserDict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers import PROJECT, Programs, job, join, notes, wait_for, wait_for_notes

from dbbasic_queue import Handler, InvalidArgument, InvalidHandlers, Queue, QueueError, Worker


class Gate:
    """A handler that waits. `began` is set when a job runs; set `open` to let it finish."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.open = threading.Event()

    def __call__(self, _: Any) -> str:
        self.began.set()
        assert self.open.wait(30)
        return "done"


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbbasic_queue.worker._RESTART_SECONDS", 0.01)


def done(queue: Queue, job_id: str) -> Any:
    found = queue.wait(job_id, 30)
    assert found is not None, "the worker has not run the job"
    return found


# --- start and stop


def test_a_worker_in_a_thread_runs_new_jobs_until_it_is_stopped(queue: Queue) -> None:
    with Worker(queue, {"greet": str.upper}) as worker:
        assert done(queue, queue.enqueue("greet", "ada"))["result"] == "ADA"
        worker.start()  # does nothing: it is already running
        assert done(queue, queue.enqueue("greet", "bob"))["result"] == "BOB"
    late = queue.enqueue("greet", "late")
    assert worker.stop()
    assert job(queue, late)["status"] == "pending"
    worker.start()
    done(queue, late)
    assert worker.stop()


def test_is_alive_and_repr_show_if_a_worker_runs(queue: Queue) -> None:
    gate = Gate()
    worker = Worker(queue, {"work": gate})
    assert (worker.is_alive(), repr(worker)) == (False, f"<Worker of {queue.path}: idle>")
    worker.start()
    assert (worker.is_alive(), repr(worker)) == (True, f"<Worker of {queue.path}: running>")
    queue.enqueue("work", {})
    assert gate.began.wait(30)
    assert worker.stop(0) is False
    assert (worker.is_alive(), repr(worker)) == (True, f"<Worker of {queue.path}: stopping>")
    gate.open.set()
    assert worker.stop()
    assert (worker.is_alive(), repr(worker)) == (False, f"<Worker of {queue.path}: idle>")


def test_start_makes_a_stopping_worker_continue(queue: Queue) -> None:
    gate = Gate()
    worker = Worker(queue, {"work": gate, "greet": str.upper})
    worker.start()
    first = queue.enqueue("work", {})
    assert gate.began.wait(30)
    assert worker.stop(0) is False
    worker.start()
    gate.open.set()
    assert done(queue, first)["result"] == "done"
    assert done(queue, queue.enqueue("greet", "ada"))["result"] == "ADA"
    assert worker.stop()


def test_a_stop_that_waits_returns_false_if_the_worker_is_started_again(queue: Queue) -> None:
    gate = Gate()
    worker = Worker(queue, {"work": gate})
    worker.start()
    queue.enqueue("work", {})
    assert gate.began.wait(30)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(worker.stop()))
    waiting.start()
    wait_for(lambda: "stopping" in repr(worker), "the stop")
    worker.start()
    waiting.join(30)
    assert answers == [False]
    gate.open.set()
    assert worker.stop()


def test_several_threads_that_start_a_worker_start_one_thread(queue: Queue) -> None:
    worker = Worker(queue, {"greet": str.upper})
    before = threading.active_count()
    ready = threading.Barrier(8)

    def start() -> None:
        ready.wait(30)
        worker.start()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread, "a start of the worker")
    assert threading.active_count() == before + 1
    assert worker.stop()


def test_a_stop_before_run_forever_ends_it_at_once_but_not_the_next_one(queue: Queue) -> None:
    worker = Worker(queue, {"last": lambda _: worker.stop()})
    job_id = queue.enqueue("last", {})
    assert worker.stop()
    worker.run_forever()
    assert job(queue, job_id)["status"] == "pending"
    worker.run_forever()
    assert job(queue, job_id)["result"] is False


def test_a_running_worker_cannot_be_run_a_second_time(queue: Queue) -> None:
    with (
        Worker(queue, {"greet": str.upper}) as worker,
        pytest.raises(QueueError, match="this worker is already running"),
    ):
        worker.run_forever()


def test_start_while_another_thread_runs_the_worker_does_nothing(queue: Queue) -> None:
    worker = Worker(queue, {"greet": str.upper})
    thread = threading.Thread(target=worker.run_forever)
    thread.start()
    done(queue, queue.enqueue("greet", "ada"))
    before = threading.active_count()
    worker.start()
    assert threading.active_count() == before
    assert worker.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_in_a_forked_child_a_worker_is_stopped_and_can_be_started(
    programs: Programs, tmp_path: Path
) -> None:
    """As under gunicorn with --preload, which loads the program and then forks its workers."""
    programs.run(
        """
        import warnings
        from dbbasic_queue import Worker
        warnings.simplefilter("ignore")  # a process with threads forks

        def work(_):
            note("ran", os.getpid())

        worker = Worker(queue, {"work": work})
        worker.start()
        queue.wait(queue.enqueue("work", {}), 30)
        with worker._change:  # as another thread may hold it at the fork
            pid = os.fork()
        if pid == 0:
            try:
                assert not worker.is_alive()
                assert worker.stop()
                worker.start()
                wait_for(lambda: str(os.getpid()) in notes("ran"), "a job to run in the child")
                assert worker.stop()
                note("child", "stopped")
            finally:
                os._exit(0)
        while not notes("child"):
            queue.wait(queue.enqueue("work", {}), 30)
        os.waitpid(pid, 0)
        assert worker.is_alive()
        assert worker.stop()
        """
    )
    assert notes(tmp_path / "child") == ["stopped"]


# --- stopping


def test_a_worker_that_is_stopped_lets_the_running_job_finish(queue: Queue) -> None:
    gate = Gate()
    job_id = queue.enqueue("work", {})
    worker = Worker(queue, {"work": gate})
    worker.start()
    assert gate.began.wait(30)
    assert worker.stop(0.01) is False
    assert worker.stop(timedelta(milliseconds=10)) is False
    gate.open.set()
    assert worker.stop(timedelta(seconds=30))
    assert job(queue, job_id)["result"] == "done"


@pytest.mark.parametrize("timeout", [float("nan"), "5", True])
def test_stop_with_an_invalid_timeout_raises_and_the_worker_goes_on(
    queue: Queue, timeout: Any
) -> None:
    with Worker(queue, {"greet": str.upper}) as worker:
        with pytest.raises(
            InvalidArgument, match=r"invalid timeout .*: must be seconds or a timed"
        ):
            worker.stop(timeout)
        assert done(queue, queue.enqueue("greet", "ada"))["result"] == "ADA"


@pytest.mark.parametrize(("kind", "workers"), [("function", 1), ("function", 2), ("coroutine", 2)])
def test_stop_interrupts_no_job_however_often_it_is_called(
    programs: Programs, tmp_path: Path, kind: str, workers: int
) -> None:
    """A first SIGTERM after it doesn't interrupt a job either."""
    programs.run(
        f"""
        import asyncio, threading, warnings
        from dbbasic_queue import Worker
        warnings.simplefilter("ignore")  # a process with threads forks

        def function(_):
            note("began", "")
            wait_for(Path("go").exists, "the file `go`")
            return "done"

        async def coroutine(_):
            note("began", "")
            while not Path("go").exists():
                await asyncio.sleep(0.01)
            return "done"

        def stop():
            wait_for_notes("began", 1)
            for _ in range(3):
                assert worker.stop(0.2) is False
            os.kill(os.getpid(), signal.SIGTERM)
            assert worker.stop(0.2) is False
            Path("go").touch()

        job_id = queue.enqueue("work", {{}})
        worker = Worker(queue, {{"work": {kind}}}, workers={workers})
        threading.Thread(target=stop).start()
        worker.run_forever()
        assert queue.get_job(job_id)["result"] == "done", queue.get_job(job_id)
        """
    )
    assert len(notes(tmp_path / "began")) == 1


@pytest.mark.parametrize("how", ["function", "coroutine"])
def test_a_job_may_stop_its_worker(queue: Queue, how: str) -> None:
    def function(_: Any) -> bool:
        return worker.stop()

    async def coroutine(_: Any) -> bool:
        return await asyncio.to_thread(worker.stop)

    handlers: dict[str, Any] = {"function": function, "coroutine": coroutine}
    worker = Worker(queue, {"work": handlers[how], "greet": str.upper})
    job_id = queue.enqueue("work", {}, 1)
    late = queue.enqueue("greet", "late")
    worker.start()
    found = done(queue, job_id)
    assert (found["status"], found["result"], found["attempts"]) == ("completed", False, 1)
    wait_for(lambda: not worker.is_alive(), "the worker to end")
    assert job(queue, late)["status"] == "pending"


def test_a_job_that_stops_its_worker_stops_all_of_its_passes(
    programs: Programs, tmp_path: Path
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    programs.run(
        """
        from dbbasic_queue import Worker

        worker = Worker(queue, {"work": lambda _: worker.stop()}, workers=3)
        worker.run_forever()
        """
    )
    assert job(queue, job_id)["result"] is False


def test_a_job_with_a_time_limit_that_stops_its_worker_gets_an_error(queue: Queue) -> None:
    worker = Worker(queue, {"work": Handler(lambda _: worker.stop(), timeout=30, max_attempts=1)})
    job_id = queue.enqueue("work", {})
    threading.Thread(target=lambda: (done(queue, job_id), worker.stop())).start()
    worker.run_forever()
    error = job(queue, job_id)["error"]
    assert error.startswith("QueueError: the worker can't be stopped by a job with a timeout")


@pytest.mark.parametrize("workers", [1, 2])
def test_run_forever_finishes_the_running_jobs_and_returns_on_sigterm(
    programs: Programs, tmp_path: Path, workers: int
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    program = programs.start(
        f"""
        from dbbasic_queue import Worker

        def work(n):
            note("started", n)
            wait_for(lambda: Path("go").exists(), "the file `go`")

        Worker(queue, {{"work": work}}, workers={workers}).run_forever()
        print("returned")
        """
    )
    ids = [queue.enqueue("work", n) for n in range(workers)]
    wait_for_notes(tmp_path / "started", workers)
    program.signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert program.succeed() == "returned"
    assert {job(queue, i)["status"] for i in ids} == {"completed"}


@pytest.mark.parametrize(
    ("handler", "code", "status"),
    [("lambda *_: sys.exit(3)", 3, "pending"), ("lambda *_: worker.stop()", 0, "completed")],
)
def test_the_programs_own_signal_handler_can_end_run_forever(
    programs: Programs, tmp_path: Path, handler: str, code: int, status: str
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    program = programs.start(
        f"""
        from dbbasic_queue import Worker

        def work(_):
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, {handler})
        worker = Worker(queue, {{"work": work}})
        worker.run_forever()
        """
    )
    assert program.wait() == code
    found = job(queue, job_id)
    assert (found["status"], found["attempts"]) == (status, 0 if status == "pending" else 1)


# --- errors


def test_a_worker_goes_on_after_a_system_error(
    queue: Queue, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue.enqueue("greet", "ada")
    slots = [path.with_name(f"queue.tsv.pass.{n}") for n in range(1, 65)]
    held = [slot.open("w") for slot in slots]
    for file in held:
        fcntl.flock(file, fcntl.LOCK_EX)
    with Worker(queue, {"greet": str.upper}):
        wait_for(lambda: "the worker restarts" in caplog.text, "the log line")
        for file in held:
            file.close()
        wait_for(lambda: queue.counts()["completed"], "the job")


@pytest.mark.parametrize("how", ["no header", "a directory"])
def test_a_worker_goes_on_once_a_damaged_file_is_repaired(
    queue: Queue, path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """An editor may write the file in two steps; a directory may be mounted late."""
    queue.enqueue("greet", "ada")
    with Worker(queue, {"greet": str.upper}):
        wait_for(lambda: queue.counts()["completed"], "the first job")
        kept = path.with_name("kept")
        with path.with_name("queue.tsv.lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a fold would restore the whole file
            path.rename(kept)
            if how == "no header":
                path.write_bytes(kept.read_bytes().split(b"\n", 1)[1])
                path.chmod(0o600)
            else:
                path.mkdir()
        wait_for(lambda: "the worker restarts" in caplog.text, "the log line")
        if how == "a directory":
            path.rmdir()
        kept.rename(path)
        done(queue, queue.enqueue("greet", "bob"))


def test_an_unexpected_error_is_logged_with_its_traceback_and_the_worker_goes_on(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(UserDict[str, Any]):
        left = 2

        def get(self, key: str, default: Any = None) -> Any:
            if self.left:
                self.left -= 1
                raise asyncio.CancelledError("a bug in the program")
            return super().get(key, default)

    job_id = queue.enqueue("greet", "ada")
    with Worker(queue, Breaks(greet=str.upper)):
        assert done(queue, job_id)["result"] == "ADA"
    records = [r for r in caplog.records if "the worker restarts" in r.getMessage()]
    assert len(records) == 2
    assert "CancelledError: a bug in the program" in records[0].getMessage()
    assert records[0].exc_info


@pytest.mark.parametrize("logging", ["", "import logging"])
def test_without_logging_the_error_is_on_stderr_and_sigterm_during_the_pause_ends_the_worker(
    programs: Programs, tmp_path: Path, logging: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/queue.tsv").write_text("no header, no job\n")
    program = programs.start(
        f"""
        {logging}
        from unittest.mock import patch
        from dbbasic_queue import Worker

        patch("dbbasic_queue.worker._RESTART_SECONDS", 600.0).start()
        Worker(queue, {{"greet": str.upper}}).run_forever()
        print("returned")
        """
    )
    wait_for(lambda: program.errors.read_text("utf-8"), "the error")
    program.signal(signal.SIGTERM)
    assert program.succeed() == "returned"
    assert program.errors.read_text("utf-8").startswith(
        "dbbasic_queue: the worker restarts in 600 seconds: "
    )


def test_sigterm_between_two_passes_ends_the_worker_as_at_any_other_time(
    programs: Programs, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/queue.tsv").write_text("no header, no job\n")
    program = programs.start(
        """
        import logging, os, signal
        from dbbasic_queue import Worker

        class Terminate(logging.Handler):
            def emit(self, record):
                if "the worker restarts" in record.getMessage():
                    os.kill(os.getpid(), signal.SIGTERM)

        logging.getLogger().addHandler(Terminate())
        Worker(queue, {"greet": str.upper}).run_forever()
        print("returned")
        """
    )
    assert program.succeed() == "returned"


def test_a_signal_is_not_forgotten_if_an_error_ends_the_pass(
    queue: Queue, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = path.with_name("queue.tsv.lock")

    def work(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        lock.unlink()
        lock.mkdir()

    job_id = queue.enqueue("work", {})
    Worker(queue, {"work": work}).run_forever()
    lock.rmdir()
    assert "the worker restarts" in caplog.text
    assert job(queue, job_id)["status"] == "processing"


def test_stop_ends_the_pause_at_once(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dbbasic_queue.worker._RESTART_SECONDS", 600.0)
    path.mkdir(parents=True)
    worker = Worker(queue, {"greet": str.upper})
    worker.start()
    wait_for(lambda: "the worker restarts" in caplog.text, "the log line")
    assert worker.stop(30)


def test_a_worker_checks_its_handlers_when_it_is_created(queue: Queue) -> None:
    with pytest.raises(InvalidHandlers):
        Worker(queue, {"greet": 5})  # type: ignore[dict-item]


# --- in a program with an event loop


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_of_coroutines_can_be_created_and_started_in_a_running_event_loop(
    queue: Queue, workers: int
) -> None:
    """For example in the lifespan function of a web app."""

    async def work(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    async def lifespan() -> None:
        with pytest.raises(
            InvalidHandlers, match="an event loop is already running in this thread"
        ):
            Worker(queue, {"work": work}, workers=workers).run_forever()
        worker = Worker(queue, {"work": work}, workers=workers)
        worker.start()
        found = await queue.await_job(await queue.aenqueue("work", 1), 30)
        assert found is not None
        assert found["result"] == 2
        assert await asyncio.to_thread(worker.stop)

    asyncio.run(lifespan())


def test_async_with_starts_a_worker_and_waits_for_its_job_while_the_event_loop_goes_on(
    queue: Queue,
) -> None:
    gate = Gate()
    job_id = queue.enqueue("work", {})

    async def open_the_gate(worker: Worker) -> None:
        while "stopping" not in repr(worker):
            await asyncio.sleep(0.001)
        gate.open.set()

    async def lifespan() -> None:
        async with Worker(queue, {"work": gate}) as worker:
            assert worker.is_alive()
            assert await asyncio.to_thread(gate.began.wait, 30)
            opening = asyncio.ensure_future(open_the_gate(worker))
        assert opening.done()  # the event loop ran it while the worker was stopping
        assert not worker.is_alive()

    asyncio.run(asyncio.wait_for(lifespan(), 30))
    assert job(queue, job_id)["result"] == "done"


def test_async_with_stops_the_worker_if_its_block_raises_an_exception(queue: Queue) -> None:
    async def lifespan() -> None:
        async with Worker(queue, {"greet": str.upper}) as worker:
            workers.append(worker)
            raise LookupError

    workers: list[Worker] = []
    with pytest.raises(LookupError):
        asyncio.run(lifespan())
    assert not workers[0].is_alive()


# --- a systemd service

DEPLOYMENT = (PROJECT / "docs/deployment.md").read_text(encoding="utf-8")
FILE = re.compile(r"^```\w+(?: norun)? file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_worker_program_in_the_docs_runs_jobs_and_exits_with_0_on_sigterm(
    programs: Programs, tmp_path: Path
) -> None:
    (source,) = [text for name, text in FILE.findall(DEPLOYMENT) if name == "worker.py"]
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("greet", "ada")
    program = programs.start(source.replace("/srv/app/", f"{tmp_path}/"))
    assert done(queue, job_id)["result"] == "ADA"
    wait_for(lambda: "completed, attempt 1" in program.errors.read_text("utf-8"), "its log")
    program.signal(signal.SIGTERM)
    program.succeed()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_units_in_the_docs(tmp_path: Path) -> None:
    units = {name: text for name, text in FILE.findall(DEPLOYMENT) if name.startswith("app-")}
    assert len(units) == 3
    for name, text in units.items():
        here = text.replace("/srv/app/.venv/bin/python", sys.executable).replace("User=app\n", "")
        (tmp_path / name).write_text(here.replace("/srv/app", str(tmp_path)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
    )
    complaints = [line for line in done.stderr.splitlines() if "app-" in line]
    assert (done.returncode, complaints) == (0, [])
