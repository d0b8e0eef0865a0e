"""Real signals to real processes: no job is lost, and none runs again without a kill.

Each child process writes its progress to files. The tests wait for that before they kill, stop or
interrupt it, so they don't depend on timing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    DEADLINE,
    EMPTY,
    NONE,
    QUEUE,
    Child,
    Programs,
    is_free,
    job,
    note,
    notes,
    wait_for,
    wait_for_notes,
)

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# A handler that hangs until the file "go" exists, one that only writes a note, and a pass.
HANG = """
def hang(payload):
    note("effects", payload)
    note("started", payload)
    wait_for(Path("go").exists, "go")
    return "done"

def work(payload):
    note("effects", payload)
    return "done"

def make_a_pass(**handlers):
    print(json.dumps(queue.process_jobs(handlers)))

if sys.argv[1:]:  # the time that the pass sees
    queue = Queue(queue.path, clock=lambda: float(sys.argv[1]))
"""
A_PASS = HANG + "make_a_pass(hang=hang, work=work)"
A_DEADLY_PASS = (
    HANG
    + """
from unittest.mock import patch

# Claim many jobs at once, even if the machine is so slow that quick jobs look slow.
patch("dbbasic_queue.passes.sequential._BATCH_SECONDS", 1e9).start()

def deadly(payload):
    note("effects", payload)
    os.kill(os.getpid(), signal.SIGKILL)

make_a_pass(deadly=deadly, work=work)
"""
)


@pytest.fixture
def clock() -> Callable[[], float]:
    """The machine's clock, which the other processes use, too."""
    return time.time


def fates(queue: Queue) -> dict[str, tuple[str, int]]:
    """Return the status and the number of attempts of every job."""
    return {job["id"]: (job["status"], job["attempts"]) for job in queue.jobs()}


def when_due(queue: Queue, job_id: str) -> str:
    """Return a pending job's `run_at`, for a program to use as its time."""
    found = job(queue, job_id)
    assert found["status"] == "pending"
    return str(found["run_at"])


def pass_when_due(
    queue: Queue, job_id: str, handlers: dict[str, Callable[[Any], Any]]
) -> dict[str, int]:
    """Make a pass in this process at the time when a pending job is due."""
    with Queue(queue.path, clock=partial(float, when_due(queue, job_id))) as later:
        return later.process_jobs(handlers)


def counts_of(output: str) -> dict[str, int]:
    counts: dict[str, int] = json.loads(output)
    return counts


def begin(programs: Programs, source: str = A_PASS) -> Child:
    """Start a pass, and return it when its hanging handler has started."""
    child = programs.start(source)
    started = programs.directory / "started"
    before = len(notes(started))
    wait_for(lambda: len(notes(started)) > before or not child.is_running(), "the handler to start")
    assert child.is_running(), child.errors.read_text(encoding="utf-8")
    return child


# -- kill -9 of a pass


def test_a_job_whose_pass_was_killed_runs_again_after_its_backoff(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    queue.enqueue("hang", "a", job_id="a")
    begin(programs).kill()
    assert job(queue, "a")["status"] == "processing"

    (tmp_path / "go").touch()
    killed_at = time.time()
    assert counts_of(programs.run(A_PASS)) == NONE | {"recovered": 1}
    assert fates(queue) == {"a": ("pending", 1)}
    assert job(queue, "a")["error"] == "worker died in attempt 1"
    run_at = job(queue, "a")["run_at"]
    assert killed_at + 60 < run_at < time.time() + 121
    assert run_at % 60 == 0
    assert counts_of(programs.run(A_PASS, str(run_at - 1))) == NONE
    assert counts_of(programs.run(A_PASS, str(run_at))) == NONE | {"completed": 1}

    assert job(queue, "a")["status"] == "completed"
    assert job(queue, "a")["attempts"] == 2
    assert job(queue, "a")["error"] is None
    assert notes(tmp_path / "effects") == ["a", "a"]


def test_a_job_that_always_kills_its_worker_ends_failed_and_blocks_no_other(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    for name in ("deadly", "work"):
        queue.enqueue(name, name, int(time.time()), job_id=name)
    counts = []
    for attempt in (1, 2, 3):
        now = when_due(queue, "deadly")
        assert programs.start(A_DEADLY_PASS, now).wait() == -signal.SIGKILL
        assert job(queue, "deadly")["attempts"] == attempt
        counts.append(counts_of(programs.run(A_DEADLY_PASS, now)))

    assert counts == [
        NONE | {"recovered": 1, "completed": 1},
        NONE | {"recovered": 1},
        NONE | {"recovered": 1, "failed": 1},
    ]
    assert fates(queue) == {"deadly": ("failed", 3), "work": ("completed", 1)}
    assert job(queue, "deadly")["error"] == "worker died in attempt 3"
    assert notes(tmp_path / "effects") == ["deadly", "work", "deadly", "deadly"]


def enqueue_50_with_a_poisoned_one(queue: Queue, place: int) -> Callable[[int], str]:
    """Enqueue jobs that are due one minute after the other.

    Returns a function: given a number of minutes, it returns the time, for a program to use, when
    all jobs up to that number are due.
    """
    first = int(time.time()) // 60 * 60
    for n in range(50):
        run_at = first + 60 * n
        queue.enqueue("work" if n != place else "deadly", f"{n}", run_at, job_id=f"{n}")
    return lambda minutes: str(first + 60 * minutes)


def test_a_job_that_has_killed_a_pass_runs_after_all_others(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    minute = enqueue_50_with_a_poisoned_one(queue, 3)
    assert programs.start(A_DEADLY_PASS, minute(10)).wait() == -signal.SIGKILL
    assert notes(tmp_path / "effects") == ["0", "1", "2", "3"]
    claimed = queue.counts()["processing"]
    counts = counts_of(programs.run(A_DEADLY_PASS, minute(10)))
    assert counts == NONE | {"recovered": claimed, "completed": 7}  # the other jobs up to 10

    assert when_due(queue, "3") == minute(12)
    now = minute(60)  # the others are due, too: most of them since later than this job
    for n in (2, 3):
        assert programs.start(A_DEADLY_PASS, now).wait() == -signal.SIGKILL
        assert notes(tmp_path / "effects")[-1] == "3"
        assert queue.counts()["completed"] == 49
        counts = counts_of(programs.run(A_DEADLY_PASS, now))
        assert counts == NONE | {"recovered": 1, "failed": int(n == 3)}
        now = minute(60 + 4)
    assert fates(queue)["3"] == ("failed", 3)
    assert Counter(notes(tmp_path / "effects"))["3"] == 3


def test_a_job_that_crashes_its_worker_holds_up_none_of_100_others(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    """The others are all done by the end of the next pass."""
    for n in range(101):
        queue.enqueue("work" if n != 40 else "crash", str(n), job_id=str(n))
    crashes = """
        import ctypes, faulthandler
        from dbbasic_queue import Queue

        def crash(name):
            faulthandler.disable()
            note("effects", name)
            ctypes.string_at(0)

        handlers = {"crash": crash, "work": lambda name: note("effects", name)}
        print(json.dumps(queue.process_jobs(handlers)))
        """
    assert programs.start(crashes).wait() == -signal.SIGSEGV
    assert notes(tmp_path / "effects") == [str(n) for n in range(41)]
    counts = counts_of(programs.run(crashes))
    assert (counts["completed"], counts["failed"]) == (60, 0)
    assert queue.counts() == EMPTY | {"completed": 100, "pending": 1}
    assert fates(queue)["40"] == ("pending", 1)


def test_a_coroutine_that_has_killed_a_pass_runs_alone(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    a_pass = (
        HANG
        + """
import asyncio

async def work(name):
    note("effects", name)
    await asyncio.sleep(name in ("48", "49"))  # these two are still running at the end

async def deadly(name):
    note("effects", name)
    os.kill(os.getpid(), signal.SIGKILL)

queue.process_jobs({"work": work, "deadly": deadly}, workers=4)
"""
    )
    minute = enqueue_50_with_a_poisoned_one(queue, 0)
    for at in (3, 60, 64):  # only four jobs are due at first
        assert programs.start(a_pass, minute(at)).wait() == -signal.SIGKILL
        assert notes(tmp_path / "effects")[-1] == "0"
        programs.run(a_pass, minute(at))
    # The three that ran with it could have been the cause, so the kill counted as their attempt.
    attempts = [("completed", 2)] * 3 + [("completed", 1)] * 46
    assert list(fates(queue).values()) == [("failed", 3), *attempts]
    assert Counter(notes(tmp_path / "effects")) == {f"{n}": 1 for n in range(1, 50)} | {"0": 3}


def enqueue_a_batch(queue: Queue) -> tuple[list[str], list[str]]:
    """Enqueue quick jobs, a deadly one, and quick jobs; return the ids before and after it.

    After the quick jobs, the pass claims many at once. The deadly job is so short that the pass
    doesn't return the others before it dies.
    """
    names = [f"{n:02}" for n in range(30)]
    for name in names:
        queue.enqueue("deadly" if name == "15" else "work", name, job_id=name)
    return names[:15], names[16:]


def test_the_other_jobs_of_a_killed_pass_are_recovered_at_once_and_run_once(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    before, after = enqueue_a_batch(queue)
    assert programs.start(A_DEADLY_PASS).wait() == -signal.SIGKILL
    claimed = [name for name, (status, _) in fates(queue).items() if status == "processing"]
    assert claimed[0] == "15" and len(claimed) > 1

    def work(payload: str) -> None:
        note(tmp_path / "effects", payload)

    counts = queue.process_jobs({"deadly": work, "work": work})

    assert counts == NONE | {"recovered": len(claimed), "completed": 14}
    assert Counter(notes(tmp_path / "effects")) == dict.fromkeys([*before, "15", *after], 1)
    assert pass_when_due(queue, "15", {"deadly": work}) == NONE | {"completed": 1}
    assert {status for status, _ in fates(queue).values()} == {"completed"}
    assert fates(queue)["15"] == ("completed", 2)
    assert Counter(notes(tmp_path / "effects")) == dict.fromkeys([*before, *after], 1) | {"15": 2}


def test_a_kill_does_not_fail_jobs_that_the_pass_had_not_started(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    _, after = enqueue_a_batch(queue)
    assert programs.start(A_DEADLY_PASS).wait() == -signal.SIGKILL

    queue.process_jobs({"work": lambda payload: note(tmp_path / "effects", payload)}, 1)

    assert fates(queue)["15"] == ("failed", 1)
    assert {name: fates(queue)[name] for name in after} == dict.fromkeys(after, ("completed", 1))


def test_passes_killed_at_random_lose_no_job_and_repeat_at_most_one_per_kill(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    source = """
    from dbbasic_queue import Backoff, Handler

    def work(payload):
        note("effects", payload)
        time.sleep(0.001)  # so that some kills hit a handler

    handlers = {"work": Handler(work, backoff=Backoff(first=0))}
    if sys.argv[1:]:
        queue.run_until_complete(handlers, max_attempts=1000)
    else:
        queue.process_jobs(handlers, max_attempts=1000)
    """
    names = [f"job-{n}" for n in range(800)]
    for name in names:
        queue.enqueue("work", name, job_id=name)
    effects = tmp_path / "effects"
    chance = random.Random(20)
    kills = 0
    for _ in range(10):
        pair = [programs.start(source), programs.start(source)]
        enough = min(len(notes(effects)) + chance.randrange(1, 60), len(names))
        wait_for_notes(effects, enough)
        for child in pair:
            child.kill()
            kills += child.process.returncode == -signal.SIGKILL
    programs.run(source, "until complete")

    runs = Counter(notes(effects))
    assert kills
    assert set(runs) == set(names)
    assert sum(runs.values()) <= len(names) + kills
    assert {status for status, _ in fates(queue).values()} == {"completed"}
    assert all(runs[name] <= attempts for name, (_, attempts) in fates(queue).items())


# -- a pass that is slow or stopped is not dead


def test_a_stopped_pass_keeps_its_job_and_its_outcome_is_recorded_once(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    queue.enqueue("hang", "a", job_id="a")
    stopped = begin(programs)
    stopped.stop(tmp_path / f"{QUEUE}.lock")
    queue.enqueue("work", "b", job_id="b")

    counts = [counts_of(programs.run(A_PASS)) for _ in range(3)]
    assert counts == [NONE | {"completed": 1}, NONE, NONE]
    assert fates(queue) == {"a": ("processing", 1), "b": ("completed", 1)}

    (tmp_path / "go").touch()
    stopped.signal(signal.SIGCONT)
    assert counts_of(stopped.succeed()) == NONE | {"completed": 1}
    assert fates(queue) == {"a": ("completed", 1), "b": ("completed", 1)}
    assert counts_of(programs.run(A_PASS)) == NONE
    assert notes(tmp_path / "effects") == ["a", "b"]


def test_a_hanging_pass_keeps_its_job_whatever_the_clock_shows(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    queue.enqueue("hang", "a", job_id="a")
    hanging = begin(programs)

    for years in (1, 10, 1000, -10):
        then = time.time() + years * 31_557_600
        with Queue(queue.path, clock=partial(float, then)) as later:
            assert later.process_jobs({"hang": lambda _: note(tmp_path / "effects", "!")}) == NONE
    assert fates(queue) == {"a": ("processing", 1)}

    (tmp_path / "go").touch()
    assert counts_of(hanging.succeed()) == NONE | {"completed": 1}
    assert fates(queue) == {"a": ("completed", 1)}
    assert notes(tmp_path / "effects") == ["a"]


# -- SIGTERM, Ctrl-C, sys.exit


def test_sigterm_lets_the_running_job_finish_and_returns_the_others(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    names = [f"{n:02}" for n in range(30)]
    for name in names:
        queue.enqueue("hang" if name == "15" else "work", name, job_id=name)
    child = begin(programs)
    child.signal(signal.SIGTERM)
    (tmp_path / "go").touch()

    assert child.wait() == 128 + signal.SIGTERM
    assert child.errors.read_text(encoding="utf-8") == ""
    assert fates(queue) == dict.fromkeys(names[:16], ("completed", 1)) | dict.fromkeys(
        names[16:], ("pending", 0)
    )
    assert job(queue, "15")["result"] == "done"
    assert counts_of(programs.run(A_PASS)) == NONE | {"completed": 14}
    assert notes(tmp_path / "effects") == names


def test_a_second_sigterm_returns_the_running_job_too(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    queue.enqueue("hang", "a", job_id="a")
    queue.enqueue("work", "b", job_id="b")
    child = begin(
        programs,
        HANG
        + """
def hang_twice(payload):
    signal_handler = signal.getsignal(signal.SIGTERM)
    def report(number, frame):
        note("signals", str(number))
        signal_handler(number, frame)
    signal.signal(signal.SIGTERM, report)
    return hang(payload)

make_a_pass(hang=hang_twice, work=work)
""",
    )
    for n in (1, 2):
        child.signal(signal.SIGTERM)
        wait_for_notes(tmp_path / "signals", n)

    assert child.wait() == 128 + signal.SIGTERM
    assert fates(queue) == {"a": ("pending", 0), "b": ("pending", 0)}


def test_ctrl_c_returns_the_running_job_and_its_attempt(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    queue.enqueue("hang", "a", job_id="a")
    queue.enqueue("work", "b", job_id="b")
    child = begin(programs)
    child.signal(signal.SIGINT)

    assert child.wait() == -signal.SIGINT
    assert "KeyboardInterrupt" in child.errors.read_text(encoding="utf-8")
    assert fates(queue) == {"a": ("pending", 0), "b": ("pending", 0)}

    (tmp_path / "go").touch()
    assert counts_of(programs.run(A_PASS)) == NONE | {"completed": 2}
    assert fates(queue) == {"a": ("completed", 1), "b": ("completed", 1)}


def test_a_handler_that_calls_sys_exit_fails_and_its_pass_goes_on(
    programs: Programs, queue: Queue
) -> None:
    for name in ("a", "b"):
        queue.enqueue("exits", name, job_id=name)
    queue.enqueue("work", "c", job_id="c")
    source = HANG + "make_a_pass(exits=lambda payload: sys.exit(7), work=work)"

    assert counts_of(programs.run(source)) == NONE | {"retried": 2, "completed": 1}
    assert fates(queue) == {"a": ("pending", 1), "b": ("pending", 1), "c": ("completed", 1)}
    assert job(queue, "a")["error"] == "SystemExit: 7"


# -- handlers that fork


@pytest.mark.parametrize("child_does", ["return", "raise ValueError", "sys.exit(0)"])
def test_a_child_forked_by_a_handler_does_not_become_a_second_worker(
    programs: Programs, queue: Queue, tmp_path: Path, child_does: str
) -> None:
    names = [f"job-{n}" for n in range(12)]
    for name in names:
        queue.enqueue("forks", name, job_id=name)
    source = f"""
def forks(payload):
    note("effects", payload)
    child = os.fork()
    if child == 0:
        {child_does}
    else:
        _, status = os.waitpid(child, 0)
        note("children", str(os.waitstatus_to_exitcode(status)))

make_a_pass(forks=forks)
print("the pass is over", os.getpid())
"""
    child = programs.start(HANG + source)
    first, last = child.succeed().split("\n")

    assert counts_of(first) == NONE | {"completed": 12}
    assert last == f"the pass is over {child.process.pid}"
    assert notes(tmp_path / "effects") == names
    assert notes(tmp_path / "children") == ["1"] * 12
    assert fates(queue) == dict.fromkeys(names, ("completed", 1))


FORKS_A_DAEMON = """
def forks(payload):
    note("effects", payload)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            note("daemon", str(os.getpid()))
            wait_for(Path("go").exists, "go")
            note("daemon", "ended")
        os._exit(0)
    wait_for(lambda: notes("daemon"), "the daemon to start")
    if payload == "dies":
        os.kill(os.getpid(), signal.SIGKILL)

make_a_pass(forks=forks, work=work)
"""


@pytest.mark.parametrize("fate", ["ends", "dies"])
def test_a_daemon_started_by_a_handler_holds_neither_the_slot_nor_the_lock(
    programs: Programs, queue: Queue, tmp_path: Path, fate: str
) -> None:
    queue.enqueue("forks", fate, job_id="a")
    child = programs.start(HANG + FORKS_A_DAEMON)
    assert child.wait() == (-signal.SIGKILL if fate == "dies" else 0)
    try:
        assert len(notes(tmp_path / "daemon")) == 1
        assert is_free(tmp_path / f"{QUEUE}.lock")
        assert is_free(tmp_path / f"{QUEUE}.pass.1")
        queue.enqueue("work", "b", job_id="b")
        counts = queue.process_jobs({"forks": lambda _: None, "work": lambda _: None})
    finally:
        (tmp_path / "go").touch()
        wait_for_notes(tmp_path / "daemon", 2)

    recovered = int(fate == "dies")
    assert counts == NONE | {"recovered": recovered, "completed": 1}
    if recovered:
        assert pass_when_due(queue, "a", {"forks": lambda _: None}) == NONE | {"completed": 1}
    assert fates(queue) == {"a": ("completed", 1 + recovered), "b": ("completed", 1)}


def test_a_program_started_by_a_handler_holds_neither_the_slot_nor_the_lock(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    queue.enqueue("starts", "a", job_id="a")
    source = """
def starts(payload):
    import subprocess
    reader, writer = os.pipe()
    subprocess.Popen(["cat", "started"], stdout=writer, start_new_session=True, close_fds=False)
    os.close(writer)
    assert os.read(reader, 9) == b"running"
    os.kill(os.getpid(), signal.SIGKILL)

make_a_pass(starts=starts)
"""
    started = tmp_path / "started"
    os.mkfifo(started)  # cat ends when the test closes the other end
    child = programs.start(HANG + source)
    with started.open("w", encoding="utf-8") as fifo:
        fifo.write("running")
        fifo.flush()
        assert child.wait() == -signal.SIGKILL
        assert is_free(tmp_path / f"{QUEUE}.lock")
        assert is_free(tmp_path / f"{QUEUE}.pass.1")
        counts = queue.process_jobs({"starts": lambda _: None})

    assert counts == NONE | {"recovered": 1}
    assert pass_when_due(queue, "a", {"starts": lambda _: None}) == NONE | {"completed": 1}


# -- kill -9 of enqueuers


def test_enqueuers_killed_at_random_leave_a_readable_file_with_all_reported_jobs(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    source = """
    enqueuer, sync = sys.argv[1:]
    queue = Queue(queue.path, fsync=sync == "True")
    n = 0
    while True:
        name = f"{enqueuer}-{n}"
        n += 1
        text = "é" * (500_000 if n % 3 == 0 else n)
        queue.enqueue("work", {"name": name, "length": len(text), "text": text}, job_id=name)
        note("reported", name)
    """
    reported = tmp_path / "reported"
    chance = random.Random(21)
    for turn in range(8):
        children = [programs.start(source, f"{turn}-{n}", str(n == 0)) for n in range(2)]
        for child in children:
            enough = len(notes(reported)) + chance.randrange(1, 7)
            wait_for_notes(reported, enough)
            if turn % 2:
                wait_for_a_large_write(tmp_path / QUEUE)
            child.kill()
            assert child.process.returncode == -signal.SIGKILL

    names = notes(reported)
    queue.enqueue("work", {"name": "last", "length": 0, "text": ""}, job_id="last")
    jobs = {job["id"]: job["payload"] for job in queue.jobs()}
    assert set(jobs) >= {*names, "last"}
    assert all(len(payload["text"]) == payload["length"] for payload in jobs.values())
    header, *lines, end = (tmp_path / QUEUE).read_bytes().split(b"\n")
    assert header.startswith(b"id\t") and end == b""
    torn = [line for line in lines if line.count(b"\t") != 8]
    assert len(torn) <= 16
    assert len(lines) == len(jobs) + len(torn)
    print(f"16 kills, {len(names)} jobs reported, {len(jobs)} in the file, {len(torn)} lines torn")

    effects = tmp_path / "effects"
    counts = queue.process_jobs({"work": lambda payload: note(effects, payload["name"])})
    assert counts == NONE | {"completed": len(jobs)}
    assert Counter(notes(effects)) == dict.fromkeys(jobs, 1)


def wait_for_a_large_write(file: Path) -> None:
    """Return when a large row is probably being written."""
    end = time.monotonic() + DEADLINE
    size = file.stat().st_size
    while time.monotonic() < end:
        before, size = size, file.stat().st_size
        if size - before > 16_384:
            return
    raise AssertionError("no process has written a large row")
