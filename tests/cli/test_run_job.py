"""`dbbasic-queue run HANDLERS --job ID`: one job in the foreground, to debug it."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import DEADLINE, Child, environment, exit_code, job, notes, run_command, wait_for

from dbbasic_queue import Queue
from dbbasic_queue.model.records import encode_state

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = """
import asyncio
import os
import time
from contextlib import contextmanager

from dbbasic_queue import Delay, Handlers

jobs = Handlers()


@jobs.handler
def plain(payload, job):
    print("plain prints", payload, job.attempt)
    return payload


@jobs.handler(timeout=1)
def limited(payload):
    print("limited prints", os.getpid() == int(open("pid").read()) if os.path.exists("pid") else "")
    time.sleep(1.5)  # longer than the limit, as a person at a breakpoint
    return "slow"


@jobs.handler
async def coroutine(payload):
    await asyncio.sleep(0)
    print("coroutine prints")
    return "awaited"


@jobs.handler(max_attempts=2)
def bad(payload):
    secret_value = payload
    raise ValueError("no such user")


@jobs.handler
def later(payload):
    raise Delay(3600, "the shop is closed")


@jobs.handler(concurrency=1)
def one_at_a_time(payload):
    open("started", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)


@jobs.handler
def debugged(payload):
    answer = 41
    breakpoint()
    return answer


@jobs.around
@contextmanager
def context(job):
    print("around", job.type)
    yield
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    toml = tmp_path / "handlers.toml"
    toml.write_text('[echo]\ncommand = ["sh", "-c", "echo to stderr >&2; cat"]\ntimeout = "9s"\n')
    toml.chmod(0o644)
    return tmp_path


@pytest.fixture
def default(app: Path) -> Iterator[Queue]:
    with Queue(app / "data/queue.tsv") as queue:
        yield queue


def run_job(app: Path, job_id: str, handlers: str = "jobs:jobs") -> tuple[int, list[str], str]:
    done = run_command("run", handlers, "--job", job_id, cwd=app)
    return done.returncode, done.stdout.splitlines(), done.stderr


def state(queue: Queue, job_id: str) -> bytes:
    found = queue.store.find(job_id)
    assert found is not None
    return encode_state(found.state)


def test_a_job_runs_in_the_foreground_with_its_output_and_its_hooks(
    app: Path, default: Queue
) -> None:
    default.enqueue("plain", "ž", job_id="xyzabc")
    default.enqueue("plain", "other", job_id="other1")
    code, lines, errors = run_job(app, "xyzabc")
    assert (code, errors) == (0, "")
    assert lines == ["around plain", "plain prints ž 1", "completed\txyzabc"]
    assert job(default, "xyzabc")["result"] == "ž"
    assert job(default, "other1")["attempts"] == 0
    [attempt] = default.history("xyzabc")
    assert attempt["outcome"] == "completed"
    assert job(default, "xyzabc")["run_at"] == job(default, "xyzabc")["created_at"]


def test_a_time_limit_does_not_end_a_job_that_is_debugged(app: Path, default: Queue) -> None:
    default.enqueue("limited", {}, job_id="xyzabc")
    code, lines, errors = run_job(app, "xyzabc")
    assert (code, errors, lines[-1]) == (0, "", "completed\txyzabc")


def test_a_coroutine_function_runs(app: Path, default: Queue) -> None:
    default.enqueue("coroutine", {}, job_id="xyzabc")
    assert run_job(app, "xyzabc")[1][-2:] == ["coroutine prints", "completed\txyzabc"]


def test_a_command_runs_and_what_it_writes_is_shown(app: Path, default: Queue) -> None:
    default.enqueue("echo", {"a": 1}, job_id="xyzabc")
    code, lines, errors = run_job(app, "xyzabc", "handlers.toml")
    assert code == 0
    assert lines[-1] == "completed\txyzabc"
    assert '{"a":1}' in "".join(lines).replace(" ", "")
    assert "to stderr" in "\n".join([*lines, errors])
    assert job(default, "xyzabc")["result"] == {"a": 1}


def test_a_job_that_fails_shows_the_traceback_and_exits_with_3(app: Path, default: Queue) -> None:
    default.enqueue("bad", {}, job_id="xyzabc")
    code, lines, _ = run_job(app, "xyzabc")
    assert code == 3
    assert lines[-1] == "retried\txyzabc\tValueError: no such user"
    assert "Traceback" in "\n".join(lines)
    found = job(default, "xyzabc")
    assert (found["status"], found["attempts"]) == ("pending", 1)
    assert found["run_at"] > time.time() + 60
    code, lines, _ = run_job(app, "xyzabc")  # at once, although it isn't due
    assert (code, lines[-1]) == (3, "failed\txyzabc\tValueError: no such user")
    code, lines, errors = run_job(app, "xyzabc")
    assert (code, lines) == (1, [])
    assert "it is failed (to run it again: dbbasic-queue requeue xyzabc)" in errors


def test_a_job_that_puts_itself_off_has_not_failed(app: Path, default: Queue) -> None:
    default.enqueue("later", {}, job_id="xyzabc")
    code, lines, _ = run_job(app, "xyzabc")
    assert (code, lines[-1].split("\t")[:2]) == (1, ["delayed", "xyzabc"])
    assert job(default, "xyzabc")["attempts"] == 0


def test_a_job_that_is_due_later_or_may_have_killed_its_pass_runs_now(
    app: Path, default: Queue
) -> None:
    default.enqueue_many("plain", range(5))
    default.enqueue("plain", "later", job_id="xyzabc", run_at=4_000_000_000)
    assert run_job(app, "xyzabc")[0] == 0
    assert default.counts()["pending"] == 5
    assert abs(job(default, "xyzabc")["run_at"] - time.time()) < 60
    default.enqueue("one_at_a_time", {}, job_id="killer")
    worker = Child([sys.executable, "-m", "dbbasic_queue", "run", "jobs:jobs"], app, "worker")
    wait_for((app / "started").exists, "the job")
    worker.kill()
    (app / "go").touch()
    others = default.enqueue_many("one_at_a_time", range(3))
    default.pause("one_at_a_time")
    assert run_command("run", "jobs:jobs", cwd=app).returncode == 0  # recovers it
    default.resume()
    assert "died" in job(default, "killer")["error"]
    assert run_job(app, "killer")[1][-1] == "completed\tkiller"
    assert [job(default, i)["attempts"] for i in others] == [0] * 3


def test_no_other_pass_can_run_it_at_the_same_time(app: Path, default: Queue) -> None:
    default.enqueue("one_at_a_time", {}, job_id="xyzabc")
    command = [sys.executable, "-m", "dbbasic_queue", "run", "jobs:jobs"]
    child = Child([*command, "--job", "xyzabc"], app, "debugger")
    try:
        wait_for((app / "started").exists, "the job")
        assert run_command("run", "jobs:jobs", cwd=app).returncode == 0
        assert job(default, "xyzabc")["status"] == "processing"
        code, _, errors = run_job(app, "xyzabc")
        assert code == 1
        assert "it is processing" in errors
        (app / "go").touch()
        child.succeed()
        assert job(default, "xyzabc")["attempts"] == 1
    finally:
        child.clean_up()


def test_a_job_that_another_pass_claims_first_is_not_run(app: Path, default: Queue) -> None:
    default.enqueue("plain", "by another", job_id="xyzabc")
    (app / "jobs.py").write_text(
        JOBS
        + "from dbbasic_queue import Queue\n"
        + "from dbbasic_queue.model.states import claim\n"
        + "from dbbasic_queue.store.claiming.claims import Claims\n"
        + "def claim_first(self):\n"  # called between the start of the pass and the claim
        + "    with Queue('data/queue.tsv') as queue:\n"
        + "        (row,) = queue.store.rows()\n"
        + "        state = claim(row.state)\n"
        + "        assert queue.store.exchange([(row, state)]) != [None]\n"
        + "    return 0, []\n"
        + "Claims.take_recovered = claim_first\n"
    )
    code, lines, errors = run_job(app, "xyzabc")
    assert (code, lines) == (1, [])
    assert "xyzabc was not run: " in errors
    assert (job(default, "xyzabc")["status"], job(default, "xyzabc")["attempts"]) == (
        "processing",
        1,
    )


def test_a_job_that_may_not_run_gets_back_its_state(app: Path, default: Queue) -> None:
    default.enqueue("bad", {}, job_id="xyzabc")
    run_job(app, "xyzabc")
    default.pause("bad")
    before = state(default, "xyzabc")
    code, lines, errors = run_job(app, "xyzabc")
    assert (code, lines) == (1, [])
    assert "was not run: jobs of type bad are paused" in errors
    assert state(default, "xyzabc") == before


def test_a_job_whose_type_is_at_its_limit_gets_back_its_state(app: Path, default: Queue) -> None:
    default.enqueue("one_at_a_time", {}, job_id="first1")
    command = [sys.executable, "-m", "dbbasic_queue", "run", "jobs:jobs"]
    child = Child(command, app, "worker")
    try:
        wait_for((app / "started").exists, "the job")
        default.enqueue("one_at_a_time", {}, job_id="second", run_at=4_000_000_000)
        before = state(default, "second")
        code, _, errors = run_job(app, "second")
        assert code == 1
        assert "was not run" in errors
        assert state(default, "second") == before
        (app / "go").touch()
        child.succeed()
    finally:
        child.clean_up()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_claim_leaves_the_job_as_it_was(
    app: Path, default: Queue, number: int, code: int
) -> None:
    default.enqueue("plain", {}, job_id="xyzabc", run_at=4_000_000_000)
    before = state(default, "xyzabc")
    (app / "jobs.py").write_text(
        JOBS
        + "from dbbasic_queue.store.claiming.claims import Claims\n"
        + "def report_nothing(self):\n"  # called between the start of the pass and the claim
        + f"    os.kill(os.getpid(), {int(number)})\n"
        + "    return 0, []\n"
        + "Claims.take_recovered = report_nothing\n"
    )
    done = run_command("run", "jobs:jobs", "--job", "xyzabc", cwd=app)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert state(default, "xyzabc") == before


def test_workers_that_poll_do_not_snatch_the_job_away(app: Path, default: Queue) -> None:
    command = [sys.executable, "-m", "dbbasic_queue", "worker", "jobs:jobs", "--workers", "3"]
    worker = Child(command, app, "worker")
    try:
        default.enqueue("plain", {}, job_id="first1")
        wait_for(lambda: job(default, "first1")["status"] == "completed", "the worker")
        for number in range(8):
            default.enqueue("plain", number, job_id=f"xyzabc{number}", run_at=4_000_000_000)
            code, lines, errors = run_job(app, f"xyzabc{number}")
            assert (code, errors) == (0, "")
            assert f"plain prints {number} 1" in lines
    finally:
        worker.clean_up()


def test_ctrl_c_in_the_job_leaves_it_as_it_was(app: Path, default: Queue) -> None:
    default.enqueue("one_at_a_time", {}, job_id="xyzabc", run_at=4_000_000_000)
    before = state(default, "xyzabc")
    command = [sys.executable, "-m", "dbbasic_queue", "run", "jobs:jobs", "--job", "xyzabc"]
    child = Child(command, app, "debugger")
    try:
        wait_for((app / "started").exists, "the job")
        child.signal(signal.SIGINT)
        assert child.wait() == 130
        assert child.errors.read_text() == ""
        assert state(default, "xyzabc") == before
    finally:
        child.clean_up()


def test_a_breakpoint_works(app: Path, default: Queue) -> None:
    default.enqueue("debugged", {}, job_id="xyzabc")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(app)
        arguments = ["-m", "dbbasic_queue", "run", "jobs:jobs", "--job", "xyzabc"]
        os.execve(sys.executable, [sys.executable, *arguments], environment())
    shown = b""

    def read(count: int) -> bytes:
        assert select.select([terminal], [], [], DEADLINE)[0], shown
        return os.read(terminal, count)

    try:
        for prompt, answer in ((b"(Pdb) ", b"answer += 1\n"), (b"(Pdb) ", b"continue\n")):
            while not shown.endswith(prompt):
                shown += read(1000)
            os.write(terminal, answer)
            shown += read(1)
        while True:
            try:
                shown += read(1000)
            except OSError:  # it has ended
                break
        assert exit_code(pid) == 0
    finally:
        os.close(terminal)  # this ends it with SIGHUP, if it is still there
    assert b"completed" in shown
    assert job(default, "xyzabc")["result"] == 42


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["jobs:jobs", "--job", "nobody"], "there is no job nobody"),
        (["jobs:jobs", "--job", "xyz"], "write at least 6 characters"),
        (["handlers.toml", "--job", "xyzabc"], "handlers.toml has no handler for plain"),
        (["jobs:os", "--job", "xyzabc"], "invalid handlers of type module"),
        (["jobs:nothing"], "the module jobs has no nothing"),
        (["nothing:jobs"], "there is no module nothing in"),
        (["jobs"], "invalid HANDLERS 'jobs'"),
        (["jobs.py"], "started by python3 jobs.py"),
        (["missing.py"], "started by python3 missing.py"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_changes_nothing(
    app: Path, default: Queue, arguments: list[str], error: str
) -> None:
    default.enqueue("plain", {}, job_id="xyzabc1")
    done = run_command("run", *arguments, cwd=app)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert error in done.stderr
    assert job(default, "xyzabc1")["attempts"] == 0


def test_an_error_in_the_module_itself_shows_its_traceback(app: Path, default: Queue) -> None:
    (app / "jobs.py").write_text(textwrap.dedent("import nothing_like_that\n"))
    done = run_command("run", "jobs:jobs", cwd=app)
    assert done.returncode == 1
    assert "nothing_like_that" in done.stderr
    assert 'jobs.py", line 1' in done.stderr
    assert notes(app / "started") == []
