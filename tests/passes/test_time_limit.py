"""Jobs that run in their own process: time limits, crashes, and processes that they leave."""

from __future__ import annotations

import atexit
import ctypes
import errno
import faulthandler
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

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
    row,
    wait_for,
    wait_for_notes,
)

from dbbasic_queue import Delay, Fail, Handler, InvalidHandlers, Job, Queue
from dbbasic_queue.handlers import Backoff
from dbbasic_queue.passes import guardian

SHORT = 0.3
LONG = 30.0
WITHOUT_RESULT = "the handler's process ended with exit code 0, without a result"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def spin_in_c(_: Any) -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # handles no signals until it ends, which takes forever


def ignore_sigterm(_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def wait_for_a_stuck_program(_: Any) -> None:
    subprocess.run(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], check=True)


def crash(_: Any) -> None:
    faulthandler.disable()  # pytest enables it; it would print the stack into the test output
    ctypes.string_at(0)


def eat_memory(_: Any) -> None:
    limit = 512 << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    hoard = []
    while True:
        hoard.append(bytearray(1 << 20))


def be_killed_because_memory_is_short(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does


def exit_with_3(_: Any) -> None:
    os._exit(3)


def exit_with_0(_: Any) -> None:
    os._exit(0)


def become_another_program(_: Any) -> None:
    os.execvp("true", ["true"])


def be_terminated(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fork_and_lose_children(_: Any) -> None:
    os.fork()  # now there are two, in a loop
    while True:
        child = os.fork()
        if child == 0:
            os.fork()  # its parent exits
            os._exit(0)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("handler", "timeout", "error"),
    [
        (spin_in_c, SHORT, "timed out after 0.3 s"),
        (ignore_sigterm, SHORT, "timed out after 0.3 s"),
        (wait_for_a_stuck_program, SHORT, "timed out after 0.3 s"),
        (fork_and_lose_children, SHORT, "timed out after 0.3 s"),
        (crash, LONG, "the handler's process was killed by SIGSEGV"),
        (eat_memory, LONG, "MemoryError"),
        (be_killed_because_memory_is_short, LONG, "the handler's process was killed by SIGKILL"),
        (exit_with_3, LONG, "the handler's process ended with exit code 3"),
        (exit_with_0, LONG, WITHOUT_RESULT),
        (become_another_program, LONG, WITHOUT_RESULT),
        (be_terminated, LONG, "the handler's process was killed by SIGTERM"),
    ],
)
def test_however_its_process_ends_the_job_gets_an_error_and_the_pass_goes_on(
    queue: Queue, path: Path, handler: Any, timeout: float, error: str
) -> None:
    bad = queue.enqueue("bad", {}, NOW - 1)
    good = queue.enqueue("good", 5)
    counts = queue.process_jobs({"bad": Handler(handler, timeout=timeout), "good": lambda n: n})
    assert (counts["retried"], counts["completed"]) == (1, 1)
    assert row(path, bad) | {"id": "", "payload": ""} == {
        "id": "",
        "type": "bad",
        "payload": "",
        "status": "pending",
        "created_at": str(NOW),
        "run_at": str(NOW + 120),
        "attempts": "1",
        "error": error,
        "result": "",
    }
    assert job(queue, good)["result"] == 5


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux can find all descendants (subreaper)"
)
@pytest.mark.parametrize("ending", ["timed out", "done", "crashed"])
def test_no_process_that_a_job_has_started_outlives_it(
    queue: Queue, tmp_path: Path, ending: str
) -> None:
    """Not even a daemon: a process in another session whose parent has exited."""

    def start_daemons(_: Any) -> str:
        script = "echo $$ >> pids; setsid sh -c 'echo $$ >> pids; sleep 1000' & sleep 1000"
        subprocess.Popen(["setsid", "sh", "-c", script], cwd=tmp_path, stdout=subprocess.DEVNULL)
        wait_for_notes(tmp_path / "pids", 2)
        if ending == "crashed":
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        if ending == "timed out":
            time.sleep(1000)
        return "done"

    queue.enqueue("start", {})
    timeout = 3.0 if ending == "timed out" else LONG
    counts = queue.process_jobs({"start": Handler(start_daemons, timeout=timeout)})
    assert counts["completed" if ending == "done" else "retried"] == 1
    pids = [int(pid) for pid in notes(tmp_path / "pids")]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_a_daemon_that_cannot_be_found_does_not_block_the_pass(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example in a container without /proc."""

    def start(_: Any) -> str:
        if fork_without_hooks() == 0:
            os.setsid()
            note(tmp_path / "pids", str(os.getpid()))
            signal.pause()
        wait_for_notes(tmp_path / "pids", 1)
        return "started"

    monkeypatch.setattr(guardian, "_children", lambda: None)
    job_id = queue.enqueue("start", {})
    try:
        queue.process_jobs({"start": Handler(start, timeout=LONG)})
        assert job(queue, job_id)["result"] == "started"
    finally:
        os.kill(int(notes(tmp_path / "pids")[0]), signal.SIGKILL)


def test_endless_input_does_not_delay_the_time_limit() -> None:
    quiet, quiet_end = os.pipe()
    news = os.open("/dev/zero", os.O_RDONLY)  # endless input
    with subprocess.Popen(["sleep", "10"]) as sleeper:
        how, _ = guardian._watch(sleeper.pid, SHORT, quiet, news, quiet, os.getppid())
        sleeper.kill()
    assert how == "late 0"
    for fd in (quiet, quiet_end, news):
        os.close(fd)


def test_a_job_that_times_out_can_clean_up_first(queue: Queue, tmp_path: Path) -> None:
    def clean_up(*_: object) -> NoReturn:
        (tmp_path / "cleaned").touch()
        sys.exit()

    def work(_: Any) -> None:
        signal.signal(signal.SIGTERM, clean_up)
        time.sleep(1000)

    queue.enqueue("work", {})
    queue.process_jobs({"work": Handler(work, timeout=SHORT)})
    assert (tmp_path / "cleaned").exists()
    (found,) = queue.jobs()
    assert found["error"] == "timed out after 0.3 s"


KILLED = """
    import subprocess
    from dbbasic_queue import Handler

    def work(_):
        sleeper = subprocess.Popen(["setsid", "sleep", "1000"])
        note("pids", os.getpid()), note("pids", sleeper.pid)
        time.sleep(1000)

    note("pass", os.getpid())
    queue.process_jobs({"work": Handler(work, timeout=900)})
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux can find all descendants (subreaper)"
)
def test_the_job_is_killed_with_its_pass(programs: Programs, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    program = programs.start(KILLED)
    wait_for_notes(tmp_path / "pids", 2)
    program.kill()
    wait_for(
        lambda: not any(is_alive(int(pid)) for pid in notes(tmp_path / "pids")),
        "the job's processes to end",
    )
    wait_for(lambda: queue.process_jobs({}, 2)["recovered"], "the guardian to free the slot")
    assert job(queue, job_id)["error"] == "worker died in attempt 1"
    assert queue.run_now(job_id)
    assert queue.process_jobs({}, 2) == NONE | {"failed": 1}
    assert job(queue, job_id)["error"] == "No handler for work"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to find the processes")
def test_a_job_of_a_dead_pass_is_not_run_again_while_it_still_runs(
    programs: Programs, tmp_path: Path
) -> None:
    """Even if its guardian is late: here the guardian is stopped."""
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    program = programs.start(
        """
        from dbbasic_queue import Handler

        def work(_):
            os.kill(os.getppid(), signal.SIGSTOP)
            note("pids", os.getppid()), note("pids", os.getpid())
            time.sleep(1000)

        queue.process_jobs({"work": Handler(work, timeout=900)})
        """
    )
    wait_for_notes(tmp_path / "pids", 2)
    guardian, pid = map(int, notes(tmp_path / "pids"))
    program.kill()
    try:
        assert queue.process_jobs({"work": lambda _: None})["recovered"] == 0
        assert job(queue, job_id)["status"] == "processing"
        assert is_alive(pid)
    finally:
        os.kill(guardian, signal.SIGCONT)
    wait_for(lambda: queue.process_jobs({})["recovered"], "the guardian to free the slot")
    wait_for(lambda: not is_alive(pid), "the job's process to end")


@pytest.mark.parametrize("fork", ["os.fork", "fork_without_hooks"])
def test_the_job_ends_with_its_pass_even_if_the_program_has_forked_other_processes(
    programs: Programs, tmp_path: Path, fork: str
) -> None:
    """No other process may keep the pipe open that tells the job when its pass is dead."""
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue("work", {})
    program = programs.start(
        f"""
        import threading
        from dbbasic_queue import Handler
        from helpers import fork_without_hooks

        def start_helper():
            wait_for_notes("pids", 1)
            if {fork}() == 0:
                signal.pause()
            note("helper", "started")

        def work(_):
            note("pids", os.getpid())
            time.sleep(1000)

        threading.Thread(target=start_helper).start()
        queue.process_jobs({{"work": Handler(work, timeout=900)}})
        """
    )
    wait_for_notes(tmp_path / "helper", 1)
    program.kill()
    (pid,) = notes(tmp_path / "pids")
    wait_for(lambda: not is_alive(int(pid)), "the job's process to end")


def test_a_process_that_the_program_forks_inherits_no_pipes_of_a_job(
    programs: Programs, tmp_path: Path
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue("work", {})
    programs.run(
        """
        import threading
        from dbbasic_queue import Handler
        from helpers import open_pipes

        def start_helper():
            wait_for(lambda: open_pipes() != before, "the job to start")
            if os.fork() == 0:
                note("inherited", open_pipes() - before)
                os._exit(0)
            os.wait()

        before = open_pipes()
        helper = threading.Thread(target=start_helper)

        def work(_):
            wait_for_notes("inherited", 1)
            if os.fork() == 0:
                note("inherited", open_pipes() - before)
                os._exit(0)
            os.wait()

        helper.start()
        queue.process_jobs({"work": Handler(work, timeout=900)})
        """
    )
    assert notes(tmp_path / "inherited") == ["set()", "set()"]


@pytest.mark.parametrize("refused", ["guardian", "handler"])
def test_a_job_whose_process_cannot_be_started_is_returned_with_its_attempt(
    queue: Queue,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refused: str,
) -> None:
    """If either the guardian's process or the handler's can't be forked."""
    fork, this_pass = os.fork, os.getpid()

    def refuse() -> int:
        if (os.getpid() == this_pass) == (refused == "guardian"):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    ids = queue.enqueue_many("timed", range(3))
    plain = queue.enqueue("plain", 5)
    handlers: dict[str, Any] = {
        "timed": Handler(lambda n: n, timeout=LONG, max_attempts=1),
        "plain": lambda n: n,
    }
    before = open_pipes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        counts = queue.process_jobs(handlers)
    assert (counts["delayed"], counts["completed"]) == (3, 1)
    assert job(queue, plain)["result"] == 5
    assert open_pipes() == before
    for found in map(job, [queue] * 3, ids):
        assert (found["status"], found["attempts"], found["run_at"]) == ("pending", 0, NOW + 5)
        assert found["error"].startswith("delayed: the job's process could not be started: ")
        assert "ulimit -u" in found["error"]
    (error,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "the job's process could not be started" in error
    clock.now += 5
    queue.process_jobs(handlers)
    assert [job(queue, i)["result"] for i in ids] == [0, 1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_job_is_killed_with_its_guardian(programs: Programs, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    program = programs.start(
        """
        from dbbasic_queue import Handler

        def work(_):
            if os.fork():
                note("guardian", os.getppid())
            else:
                os.setpgid(0, 0)
            note("pids", os.getpid())
            time.sleep(1000)

        queue.process_jobs({"work": Handler(work, timeout=900)})
        """
    )
    wait_for_notes(tmp_path / "pids", 2)
    os.kill(int(notes(tmp_path / "guardian")[0]), signal.SIGKILL)
    program.succeed()
    pids = notes(tmp_path / "pids")
    wait_for(lambda: not any(is_alive(int(pid)) for pid in pids), "the job's processes to end")
    found = job(queue, job_id)
    assert (found["status"], found["attempts"]) == ("pending", 1)
    assert found["error"] == "the handler's process was lost: its guardian was killed"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to find the processes")
def test_a_time_limit_holds_if_the_guardian_is_stopped(programs: Programs, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    programs.run(
        """
        import subprocess
        from unittest.mock import patch
        from dbbasic_queue import Handler
        from dbbasic_queue.passes import time_limit

        def work(_):
            sleeper = subprocess.Popen(["setsid", "sleep", "1000"])
            note("pids", os.getppid()), note("pids", os.getpid()), note("pids", sleeper.pid)
            os.kill(os.getppid(), signal.SIGSTOP)
            time.sleep(1000)

        assert time_limit._REPORT_SECONDS > 5
        patch.object(time_limit, "_REPORT_SECONDS", 0.5).start()
        queue.process_jobs({"work": Handler(work, timeout=0.5)})
        """
    )
    assert job(queue, job_id)["error"] == "timed out after 0.5 s"
    pids = notes(tmp_path / "pids")
    wait_for(lambda: not any(is_alive(int(pid)) for pid in pids), "the job's processes to end")


SERVICE = """
    from dbbasic_queue import Handler, Worker

    def work(_):
        note("pids", os.getppid()), note("pids", os.getpid())
        time.sleep(1000)

    Worker(queue, {"work": Handler(work, timeout=900, max_attempts=1)}).run_forever()
"""


def test_a_job_is_returned_if_sigterm_goes_to_all_processes_of_its_service(
    programs: Programs, tmp_path: Path
) -> None:
    """As systemd does by default. The pass may be the last to receive the signal."""
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    program = programs.start(SERVICE)
    wait_for_notes(tmp_path / "pids", 2)
    pids = [int(pid) for pid in notes(tmp_path / "pids")]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not is_alive(pids[1]), "the job's process to end")
    program.signal(signal.SIGTERM)
    program.succeed()
    found = job(queue, job_id)
    assert (found["status"], found["attempts"]) == ("pending", 0)
    assert found["error"] == "interrupted: the pass was stopped"


@pytest.mark.parametrize(
    ("number", "status", "attempts", "code"),
    [(signal.SIGTERM, "completed", 1, 143), (signal.SIGINT, "pending", 0, -signal.SIGINT)],
)
def test_on_sigterm_a_pass_lets_the_job_finish_and_on_ctrl_c_it_kills_it(
    programs: Programs, tmp_path: Path, number: int, status: str, attempts: int, code: int
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    program = programs.start(
        """
        from dbbasic_queue import Handler

        def work(_):
            note("pids", os.getpid())
            wait_for(lambda: Path("go").exists(), "the file `go`", 600)

        queue.process_jobs({"work": Handler(work, timeout=900)})
        """
    )
    wait_for_notes(tmp_path / "pids", 1)
    program.signal(number)
    if number == signal.SIGTERM:
        (tmp_path / "go").touch()
    assert program.wait() in (code, 130 if code < 0 else code)
    assert not is_alive(int(notes(tmp_path / "pids")[0]))
    found = job(queue, job_id)
    assert (found["status"], found["attempts"]) == (status, attempts)


def test_every_kind_of_outcome_is_reported_by_the_jobs_process(queue: Queue, clock: Clock) -> None:
    def respond(payload: Any, about: Job) -> Any:
        if payload == "delay":
            raise Delay(7, "not yet")
        if payload == "fail":
            raise Fail("never")
        if payload == "raise":
            raise ValueError("a\tb\nc\udcff")
        if payload == "exit":
            sys.exit(4)
        if payload == "unfit":
            return object()
        return [about.id, about.attempt, "x" * 300_000] if payload == "long" else payload

    ids = {
        p: queue.enqueue("say", p)
        for p in ("delay", "fail", "raise", "exit", "unfit", "long", 0, "")
    }
    handlers = {"say": Handler(respond, timeout=LONG, backoff=Backoff(first=5, factor=1))}
    queue.process_jobs(handlers)
    found = {p: job(queue, job_id) for p, job_id in ids.items()}
    assert (found["delay"]["run_at"], found["delay"]["attempts"]) == (NOW + 7, 0)
    assert found["delay"]["error"] == "delayed: not yet"
    assert (found["fail"]["status"], found["fail"]["error"]) == ("failed", "never")
    assert (found["raise"]["run_at"], found["raise"]["error"]) == (
        NOW + 5,
        "ValueError: a\tb\nc\udcff",
    )
    assert found["exit"]["error"] == "SystemExit: 4"
    assert found["unfit"]["status"] == "completed"
    assert "result not kept" in found["unfit"]["error"]
    assert found["long"]["result"] == [ids["long"], 1, "x" * 300_000]
    assert [found[0]["result"], found[""]["result"]] == [0, ""]


def test_a_handlers_output_is_printed_once(queue: Queue, capfd: pytest.CaptureFixture[str]) -> None:
    queue.enqueue("work", {})
    with open(os.dup(1), "w", encoding="utf-8") as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        print("before")  # still in the buffer when the process is forked
        queue.process_jobs({"work": Handler(lambda _: print("in the job"), timeout=LONG)})
    assert capfd.readouterr().out == "before\nin the job\n"


def test_a_coroutine_with_a_time_limit_runs_in_its_own_process(queue: Queue) -> None:
    import asyncio

    async def work(_: Any) -> int:
        await asyncio.sleep(0)
        return os.getpid()

    async def hang(_: Any) -> None:
        await asyncio.sleep(1000)

    ids = [queue.enqueue("work", {}), queue.enqueue("hang", {})]
    queue.process_jobs(
        {"work": Handler(work, timeout=LONG), "hang": Handler(hang, timeout=SHORT)}, workers=2
    )
    assert job(queue, ids[0])["result"] not in (None, os.getpid())
    assert job(queue, ids[1])["error"] == "timed out after 0.3 s"


def test_while_a_job_with_a_time_limit_runs_long_other_passes_can_run_the_rest(
    programs: Programs, tmp_path: Path
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue_many("quick", range(50), 1)
    slow = queue.enqueue("slow", {}, 2)
    last = queue.enqueue_many("quick", range(3), 3)
    programs.start(
        """
        from dbbasic_queue import Handler

        def slow(_):
            note("slow", "started")
            wait_for(lambda: Path("go").exists(), "the file `go`", 600)

        queue.process_jobs({"quick": str, "slow": Handler(slow, timeout=900)})
        """
    )
    wait_for_notes(tmp_path / "slow", 1)
    file = tmp_path / "data/queue.tsv"
    wait_for(lambda: row(file, slow)["status"] == "processing", "the file to show the running job")
    wait_for(lambda: all(job(queue, i)["status"] == "pending" for i in last), "the rest")
    assert queue.process_jobs({"quick": str})["completed"] == len(last)
    assert row(file, slow)["status"] == "processing"
    (tmp_path / "go").touch()


def test_an_error_when_other_jobs_are_unclaimed_is_not_charged_to_the_running_job(
    queue: Queue, path: Path
) -> None:
    journal = Path(f"{path}.journal")
    away = journal.with_suffix(".away")

    def work(name: str) -> str:
        if name == "slow":  # long enough for the pass to unclaim the others, which fails
            journal.rename(away)
            journal.mkdir()
            time.sleep(0.6)
            journal.rmdir()
            away.rename(journal)
        return name

    ids = queue.enqueue_many("work", ["quick", "slow", "last", "last"])
    assert queue.process_jobs({"work": Handler(work, timeout=LONG)})["completed"] == 4
    for job_id in ids:
        done = job(queue, job_id)
        assert (done["status"], done["attempts"], done["result"]) == (
            "completed",
            1,
            done["payload"],
        )


@pytest.mark.parametrize("timeout", [math.inf, 30 * 86400, 2_147_484])
def test_a_time_limit_can_have_any_length(queue: Queue, timeout: float) -> None:
    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": Handler(lambda _: os.getpid(), timeout=timeout)})
    assert job(queue, job_id)["result"] not in (None, os.getpid())


@pytest.mark.parametrize(
    ("processes", "call"),
    [
        pytest.param(1, "process_jobs({'work': Handler(work, timeout=900)})", id="a job's"),
        pytest.param(2, "process_jobs({'work': work}, workers=2)", id="a pass's"),
    ],
)
def test_a_forked_process_exits_like_a_program(
    programs: Programs, tmp_path: Path, processes: int, call: str
) -> None:
    """What the program itself has registered runs only when the program exits."""
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue_many("work", range(processes))
    programs.run(
        """
        import atexit, logging.handlers
        from concurrent.futures import ThreadPoolExecutor
        from dbbasic_queue import Handler

        def remember(name):
            log = logging.getLogger(name)
            log.addHandler(logging.handlers.MemoryHandler(9, target=logging.FileHandler("log")))
            log.warning("a record of the %s", name)

        def work(n):
            atexit.register(note, "atexit", f"job {n}")
            remember(f"job {n}")
            ThreadPoolExecutor().submit(lambda: (time.sleep(0.05), note("thread", f"job {n}")))
            while len(notes("atexit")) + len(set(notes("started"))) < int(sys.argv[1]):
                note("started", n)  # wait until each process has a job

        atexit.register(note, "atexit", "program")
        remember("program")
        """
        f"queue.{call}",
        str(processes),
    )
    jobs = [f"job {n}" for n in range(processes)]
    assert sorted(notes(tmp_path / "atexit")) == [*jobs, "program"]
    assert sorted(notes(tmp_path / "thread")) == jobs
    assert sorted(notes(tmp_path / "log")) == [
        *(f"a record of the {name}" for name in jobs),
        "a record of the program",
    ]


def test_the_exit_of_a_jobs_process_ends_no_other_process_of_the_program(
    programs: Programs, tmp_path: Path
) -> None:
    """multiprocessing ends a process's daemons when it exits, but these belong to the program."""
    queue = Queue(tmp_path / "data/queue.tsv")
    queue.enqueue("work", {})
    queue.enqueue_many("plain", range(2))
    programs.run(
        """
        import multiprocessing
        from dbbasic_queue import Handler

        def double(n):
            return 2 * n

        def work(_):
            with context.Pool(1) as pool:
                return pool.map(double, [1, 2])

        context = multiprocessing.get_context("fork")
        daemon = context.Process(target=signal.pause, daemon=True)
        daemon.start()
        counts = queue.process_jobs({"work": Handler(work, timeout=900)}, skip_unknown=True)
        assert counts["completed"] == 1, next(queue.jobs())
        queue.process_jobs({"plain": str}, workers=2)
        daemon.join(0.1)
        assert daemon.is_alive()
        """
    )
    assert next(queue.jobs())["result"] == [2, 4]


def test_a_job_with_an_endless_thread_ends_a_second_after_its_handler(queue: Queue) -> None:
    def work(_: Any) -> str:
        threading.Thread(target=signal.pause).start()
        return "done"

    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": Handler(work, timeout=LONG)})
    assert job(queue, job_id)["result"] == "done"


def test_an_atexit_callback_that_hangs_beyond_the_time_limit_does_not_undo_the_job(
    queue: Queue,
) -> None:
    def work(_: Any) -> str:
        atexit.register(signal.pause)
        return "done"

    job_id = queue.enqueue("work", {})
    queue.process_jobs({"work": Handler(work, timeout=SHORT)})
    assert job(queue, job_id)["result"] == "done"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "30", True])
def test_an_invalid_time_limit_is_refused(timeout: Any) -> None:
    with pytest.raises(InvalidHandlers, match="timeout"):
        Handler(len, timeout=timeout)
