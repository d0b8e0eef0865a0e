"""Commands as they run: real programs, what they read and write, and how they end."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from helpers import NOW, Programs, history, job, notes, wait_for, wait_for_notes

from dbbasic_queue import Command, Queue
from dbbasic_queue.passes import guardian

MIB = 1 << 20


def sh(script: str, *arguments: str, **policy: Any) -> Command:
    return Command(["sh", "-c", textwrap.dedent(script), "sh", *arguments], **policy)


def run(queue: Queue, command: Command, payload: Any = None) -> dict[str, Any]:
    """Run one job with this command; return it."""
    job_id = queue.enqueue("run", payload)
    queue.process_jobs({"run": command})
    return job(queue, job_id)


def script(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- stdin, the environment, descriptors


@pytest.mark.parametrize("payload", [{"to": "ada", "ü": [1, None]}, "text", 5, [], "x" * 1_000_000])
def test_without_placeholders_the_payload_is_json_on_stdin(queue: Queue, payload: Any) -> None:
    assert run(queue, Command(["cat"]), payload)["result"] == payload


def test_the_payload_on_stdin_is_a_line(queue: Queue) -> None:
    assert run(queue, sh('read -r line; echo "$line$line"'), 12)["result"] == 1212


def test_with_placeholders_stdin_is_empty(queue: Queue) -> None:
    done = run(queue, sh('cat; echo "$1"', "{name}"), {"name": "Ada"})
    assert (done["status"], done["result"]) == ("completed", "Ada")


def test_a_program_knows_its_job_and_its_queue(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBBASIC_QUEUE_URL", "memory:other")
    monkeypatch.setenv("SETTING", "kept")
    job_id = queue.enqueue("env", {})
    command = sh(
        """
        echo "$DBBASIC_QUEUE_JOB_ID $DBBASIC_QUEUE_JOB_TYPE $DBBASIC_QUEUE_ATTEMPT"
        echo "$DBBASIC_QUEUE_FILE ${{DBBASIC_QUEUE_URL-unset}} $SETTING"
        """
    )
    queue.process_jobs({"env": command})
    assert job(queue, job_id)["result"] == f"{job_id} env 1\n{path} unset kept"


def test_a_program_can_enqueue_into_the_queue_of_its_job(queue: Queue, path: Path) -> None:
    add = "from dbbasic_queue import enqueue; print(enqueue('next', 0, job_id='next-1'))"
    done = run(queue, Command([sys.executable, "-c", add]))
    assert (done["status"], done["result"]) == ("completed", "next-1"), done
    assert job(queue, "next-1")["status"] == "pending"


def test_in_memory_a_command_runs_too() -> None:
    with Queue("memory:") as queue:
        assert run(queue, Command(["cat"]), [1])["result"] == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_program_inherits_four_descriptors_and_no_signal_settings(
    queue: Queue, tmp_path: Path
) -> None:
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        done = run(
            queue,
            sh("ls /proc/$$/fd; exec sed -En 's/Sig(Blk|Ign):\t//p' /proc/self/status"),
        )
    finally:
        os.close(inherited)
    *fds, blocked, ignored = done["result"].split("\n")
    assert fds == ["0", "1", "2", "3"]
    internal = 3 << 31  # glibc's own signals, 32 and 33
    assert int(blocked, 16) == int(ignored, 16) & ~internal == 0


def test_without_proc_a_command_runs_and_inherits_no_descriptor(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that hides /proc."""

    def refuse(path: str) -> list[str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "listdir", refuse)
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        script = f"(: <&{inherited}) 2>&- && echo inherited; cat"
        assert run(queue, Command(["sh", "-c", script]), [1])["result"] == [1]
    finally:
        os.close(inherited)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_worker_with_closed_standard_streams_runs_commands(
    queue: Queue, path: Path, tmp_path: Path, closed: str
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys\n"
        "from dbbasic_queue import Command, Queue\n"
        f"queue = Queue({str(path)!r}, clock=lambda: {NOW})\n"
        "queue.process_jobs({'run': Command(['sh', '-c', 'cat; echo why >&2; exit 0'])})\n"
    )
    job_id = queue.enqueue("run", [1, 2])
    subprocess.run(["sh", "-c", f"{sys.executable} {worker} {closed}"], check=True, timeout=60)
    assert (job(queue, job_id)["status"], job(queue, job_id)["result"]) == ("completed", [1, 2])


def test_a_program_that_does_not_read_its_stdin_is_not_an_error(queue: Queue) -> None:
    payload = "x" * 1_000_000  # more than a pipe holds
    scripts = ("echo done", "exec 0<&-; sleep 0.1; echo done", "head -c 9 >&2; echo done")
    for command in map(sh, scripts):
        done = run(queue, command, payload)
        assert (done["status"], done["result"], done["error"]) == ("completed", "done", None)


# --- results


@pytest.mark.parametrize(
    ("output", "result"),
    [
        ("", None),
        ("\n\n", None),
        (" ", None),
        ("null", None),
        ('{"frames": 40}\n', {"frames": 40}),
        ("0", 0),
        ("false\n", False),
        ('""', ""),
        ("hello\r\n", "hello"),
        ("  two\nlines\n\n", "  two\nlines"),
        ("NaN", "NaN"),
        ("{", "{"),
        ("[" * 200 + "]" * 200, "[" * 200 + "]" * 200),
        ("ä €", "ä €"),
    ],
)
def test_stdout_is_the_result_as_json_or_as_text(queue: Queue, output: str, result: Any) -> None:
    done = run(queue, sh('printf %s "$1"', "{output}"), {"output": output})
    assert (done["status"], done["result"], done["error"]) == ("completed", result, None)


def test_output_that_is_not_utf8_is_kept_as_text_with_replacement_characters(queue: Queue) -> None:
    assert run(queue, sh(r"printf 'a\377\0b'"))["result"] == "a\ufffd\0b"
    assert run(queue, sh(r"printf 'why\377' >&2; exit 3"))["error"] == "exit code 3: why\ufffd"


def test_a_result_that_is_too_large_is_dropped_and_the_job_is_completed(queue: Queue) -> None:
    done = run(queue, Command(["head", "-c", str(50 * MIB), "/dev/zero"]))
    assert (done["status"], done["attempts"], done["result"]) == ("completed", 1, None)
    assert done["error"].startswith(
        f"result not kept: ValueError: it takes {50 * MIB} bytes, and at most {MIB} are allowed"
    )


@pytest.mark.parametrize(("size", "is_kept"), [(MIB - 2, True), (MIB - 1, False), (MIB + 5, False)])
def test_a_text_is_kept_up_to_the_limit_of_the_queue(
    queue: Queue, size: int, is_kept: bool
) -> None:
    done = run(queue, sh("head -c $1 /dev/zero | tr '\\0' x; echo", "{size}"), {"size": size})
    assert done["status"] == "completed"
    assert done["result"] == ("x" * size if is_kept else None)
    assert (done["error"] is None) == is_kept


def test_a_limit_of_the_queue_applies_to_the_output_of_commands(path: Path) -> None:
    with Queue(path, max_payload=100) as queue:
        done = run(queue, sh("printf '%0101d' 1"))
    assert "at most 100 are allowed" in done["error"]


def test_huge_output_is_not_kept_in_memory(programs: Programs, tmp_path: Path) -> None:
    with Queue(tmp_path / "data/queue.tsv") as queue:
        job_id = queue.enqueue("run", {})
        most = programs.run(
            """
            import resource
            from dbbasic_queue import Command

            noise = "head -c 209715200 /dev/zero"
            script = f"{noise}; {noise} >&2; echo >&2; echo last >&2; exit 4"
            queue.process_jobs({"run": Command(["sh", "-c", script])})
            sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
            """
        )
        assert most.strip("\0") == ""  # what the program has written is passed on
        kilobytes = (tmp_path / "program-0.err").read_text("utf-8").rpartition("last\n")[2]
        assert 0 < int(kilobytes) < 100_000
        assert job(queue, job_id)["error"] == "exit code 4: last"


def test_what_a_program_writes_does_not_reach_the_output_of_its_pass(
    programs: Programs, tmp_path: Path
) -> None:
    """It is kept as the output of the job."""
    output = programs.run(
        """
        from dbbasic_queue import Command
        job_id = queue.enqueue("run", {})
        queue.process_jobs({"run": Command(["sh", "-c", "echo out; echo err >&2"])})
        print(sorted(queue.output(job_id).split()))
        """
    )
    assert output == "['err', 'out']"
    assert (tmp_path / "program-0.err").read_text("utf-8") == ""


# --- how a program ends


@pytest.mark.parametrize(
    ("script_", "outcome", "error"),
    [
        ("exit 3", "retried", "exit code 3"),
        (
            "echo first >&2; printf '\\n  last one  \\n\\n' >&2; exit 255",
            "retried",
            "exit code 255: last one",
        ),
        ("printf 'a\\rb\\033[31m' >&2; exit 1", "retried", "exit code 1: b\x1b[31m"),
        ("echo bad data >&2; exit 65", "failed", "exit code 65: bad data"),
        ("exit 65", "failed", "exit code 65"),
        ("echo busy >&2; exit 75", "retried", "exit code 75: busy"),
        ("kill -KILL $$", "retried", "killed by SIGKILL"),
        ("echo oops >&2; kill -ABRT $$", "retried", "killed by SIGABRT: oops"),
        ("kill -TERM $$", "retried", "the handler's process was killed by SIGTERM"),
    ],
)
def test_an_exit_code_or_a_signal_decides_how_the_job_ends(
    queue: Queue, script_: str, outcome: str, error: str
) -> None:
    done = run(queue, sh(script_))
    assert done["error"] == error
    assert (done["status"], done["attempts"]) == ("failed" if outcome == "failed" else "pending", 1)
    assert done["run_at"] == (NOW if outcome == "failed" else NOW + 120)
    (attempt,) = history(queue, done["id"])
    assert (attempt["outcome"], attempt["error"]) == (outcome, error)
    assert attempt["traceback"] is None  # it would only show this package


def test_an_error_that_no_attempt_is_left_for_fails_the_job(queue: Queue) -> None:
    done = run(queue, sh("exit 75", max_attempts=1))
    assert (done["status"], done["error"]) == ("failed", "exit code 75")


@pytest.mark.parametrize(
    ("code", "level"),
    [(0, logging.INFO), (75, logging.INFO), (3, logging.WARNING), (65, logging.ERROR)],
)
def test_a_retry_that_a_program_asks_for_is_logged_at_info(
    queue: Queue, caplog: pytest.LogCaptureFixture, code: int, level: int
) -> None:
    caplog.set_level(logging.INFO, "dbbasic_queue")
    run(queue, sh("exit $1", "{code}"), {"code": code})
    assert [record.levelno for record in caplog.records] == [level]


def test_a_last_attempt_that_ends_with_75_is_logged_as_an_error(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    run(queue, sh("exit 75", max_attempts=1))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("end", ["done", "fails", "closes its outputs"])
def test_a_program_that_leaves_a_child_with_its_pipes_ends_and_the_child_is_killed(
    queue: Queue, tmp_path: Path, end: str
) -> None:
    scripts = {
        "done": "echo 7",
        "fails": "echo why >&2; exit 3",
        "closes its outputs": "echo 7; exec >&- 2>&-; sleep 0.1",
    }
    daemon = "setsid sh -c 'echo $$ >> pid; while :; do echo x; sleep 0.01; done' &"
    command = Command(
        ["sh", "-c", f"{daemon} while [ ! -e pid ]; do sleep 0.01; done; {scripts[end]}"],
        cwd=tmp_path,
        timeout=20,
    )
    done = run(queue, command)
    if end == "fails":
        assert done["error"] == "exit code 3: why"
    else:
        assert done["status"] == "completed"
        assert "7" in str(done["result"])
    if sys.platform == "linux":
        assert not is_alive(int(notes(tmp_path / "pid")[0]))


def test_a_program_that_closes_its_outputs_early_is_waited_for(
    queue: Queue, tmp_path: Path
) -> None:
    command = Command(
        ["sh", "-c", "echo 1; exec 1>&- 2>&-; sleep 0.2; : > ended; exit 5"], cwd=tmp_path
    )
    assert run(queue, command)["error"] == "exit code 5"
    assert (tmp_path / "ended").exists()


# --- programs that can't be started


@pytest.mark.parametrize("slash", [True, False])
def test_a_missing_program_is_an_error_of_the_job(
    queue: Queue, tmp_path: Path, slash: bool
) -> None:
    done = run(queue, Command(["./missing" if slash else "missing-program"], cwd=tmp_path))
    where = f"in {tmp_path}" if slash else "it is in no directory of PATH"
    name = "./missing" if slash else "missing-program"
    assert done["error"] == f"could not start {name}: No such file or directory ({where})"
    assert (done["status"], done["attempts"]) == ("pending", 1)


def test_the_error_of_a_program_that_cannot_be_started_says_what_to_do(
    queue: Queue, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.write_text("echo hello\n")
    error = run(queue, Command(["./plain"], cwd=tmp_path))["error"]
    assert error.startswith("could not start ./plain: Permission denied (is it executable")
    plain.chmod(0o755)
    error = run(queue, Command(["./plain"], cwd=tmp_path))["error"]
    assert error.endswith("Exec format error (does a script begin with a line such as #!/bin/sh?)")
    script(tmp_path / "other", "#!/no/such/interpreter\n")
    error = run(queue, Command(["./other"], cwd=tmp_path))["error"]
    assert error.endswith("(is the interpreter installed that its first line names?)")
    long = run(queue, Command(["echo", "{x}"]), {"x": "x" * 200_000})
    assert long["error"].endswith(
        "Argument list too long (pass long values on stdin, or in a file)"
    )
    gone = run(queue, Command(["true"], cwd=tmp_path / "gone"))
    assert "could not start true in " in gone["error"]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_if_the_system_has_no_process_for_a_program_the_attempt_does_not_count(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*args: Any, **options: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_spawnp", refuse)
    done = run(queue, Command(["true"]))
    assert (done["status"], done["attempts"], done["run_at"]) == ("pending", 0, NOW + 5)
    assert done["error"].startswith("delayed: the command true could not be started: ")


# --- time limits, signals, the pass


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_has_started(
    queue: Queue, tmp_path: Path
) -> None:
    tree = "echo $$ >> pids; setsid sh -c 'echo $$ >> pids; sleep 1000' & sleep 1000"
    done = run(queue, Command(["sh", "-c", tree], cwd=tmp_path, timeout=1))
    assert done["error"] == "timed out after 1 s"
    assert len(notes(tmp_path / "pids")) == 2
    assert not any(is_alive(int(pid)) for pid in notes(tmp_path / "pids"))


def test_a_command_whose_time_is_up_can_clean_up_first(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian, "GRACE_SECONDS", 5.0)  # the machine may be slow
    trap = "trap 'sleep 0.2; : > cleaned; exit' TERM; while :; do sleep 0.01; done"
    done = run(queue, Command(["sh", "-c", trap], cwd=tmp_path, timeout=0.5))
    assert done["error"] == "timed out after 0.5 s"
    assert (tmp_path / "cleaned").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux finds all descendants")
def test_a_program_dies_with_the_process_that_has_started_it(queue: Queue, tmp_path: Path) -> None:
    script = "echo $$ > pid; kill -KILL $PPID; exec sleep 1000"
    done = run(queue, Command(["sh", "-c", script], cwd=tmp_path))
    assert done["error"] == "the handler's process was killed by SIGKILL"
    assert not is_alive(int(notes(tmp_path / "pid")[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux finds all descendants")
def test_a_command_without_a_time_limit_is_killed_with_its_pass(
    programs: Programs, tmp_path: Path
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    worker = programs.start(
        """
        from dbbasic_queue import Command
        script = "echo $$ >> pids; setsid sh -c 'echo $$ >> pids; sleep 1000' & sleep 1000"
        queue.process_jobs({"work": Command(["sh", "-c", script])})
        """
    )
    wait_for_notes(tmp_path / "pids", 2)
    worker.kill()
    wait_for(
        lambda: not any(is_alive(int(pid)) for pid in notes(tmp_path / "pids")),
        "the command's processes to end",
    )
    wait_for(lambda: queue.process_jobs({}, 2)["recovered"], "the guardian to free the slot")
    assert job(queue, job_id)["error"] == "worker died in attempt 1"


def test_a_command_is_returned_if_sigterm_goes_to_all_processes_of_its_service(
    programs: Programs, tmp_path: Path
) -> None:
    """As systemd stops a service."""
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    worker = programs.start(
        """
        from dbbasic_queue import Command
        note("pids", os.getpid())
        script = "echo $PPID >> pids; echo $$ >> pids; exec sleep 1000"
        queue.process_jobs({"work": Command(["sh", "-c", script])})
        """
    )
    wait_for_notes(tmp_path / "pids", 3)
    for pid in map(int, notes(tmp_path / "pids")):
        os.kill(pid, signal.SIGTERM)
    assert worker.wait() == 143
    found = job(queue, job_id)
    assert (found["status"], found["attempts"]) == ("pending", 0)
    assert found["error"] == "interrupted: the pass was stopped"


def test_while_a_command_runs_its_pass_is_asked_to_stop_and_lets_it_finish(
    programs: Programs, tmp_path: Path
) -> None:
    queue = Queue(tmp_path / "data/queue.tsv")
    job_id = queue.enqueue("work", {})
    worker = programs.start(
        """
        from dbbasic_queue import Command
        script = "echo $$ >> pids; while [ ! -e go ]; do sleep 0.01; done; echo 5"
        queue.process_jobs({"work": Command(["sh", "-c", script])})
        """
    )
    wait_for_notes(tmp_path / "pids", 1)
    worker.signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert worker.wait() == 143
    assert job(queue, job_id)["result"] == 5


def test_several_workers_run_commands_at_the_same_time(now_queue: Queue, tmp_path: Path) -> None:
    meet = "echo $$ >> here; while [ $(wc -l < here) -lt 3 ]; do sleep 0.01; done; echo met"
    ids = now_queue.enqueue_many("meet", [1, 2, 3])
    counts = now_queue.process_jobs(
        {"meet": Command(["sh", "-c", meet], cwd=tmp_path, timeout=30)}, workers=3
    )
    assert counts["completed"] == 3
    assert {job(now_queue, job_id)["result"] for job_id in ids} == {"met"}
