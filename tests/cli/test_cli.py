"""The command line, started as a process, as users start it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from helpers import HEADER, PROJECT, Clock, add_lines, line, row, run_command

import dbbasic_queue
from dbbasic_queue import Fail, Job, Queue
from dbbasic_queue.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(sys.executable).with_name("dbbasic-queue")


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    done = run_command("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"dbbasic-queue {dbbasic_queue.__version__}\n"


@pytest.mark.skipif(not SCRIPT.exists(), reason="the package is not installed here")
def test_the_console_script_is_the_same_command(tmp_path: Path) -> None:
    done = run(str(SCRIPT), "--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"dbbasic-queue {dbbasic_queue.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["fly"], ["--fly"], ["demo", "--fly"], ["demo", "one"], ["demo", "--dir"]]
)
def test_wrong_usage_exits_with_2_and_one_line(tmp_path: Path, arguments: list[str]) -> None:
    done = run_command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dbbasic-queue")
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_commands(tmp_path: Path) -> None:
    done = run_command("--help", cwd=tmp_path, COLUMNS="40")
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def test_an_error_is_one_line_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_command("demo", "--dir", "file/below", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dbbasic-queue: ")
    assert done.stderr.count("\n") == 1


def test_a_closed_pipe_exits_with_1_and_prints_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dbbasic_queue", "demo", "--dir", "demo"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_main_returns_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--dir", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_a_command_does_not_import_modules_that_only_others_need(tmp_path: Path) -> None:
    program = (
        "import sys, dbbasic_queue.cli.main as cli\n"
        "print(sorted({'dbbasic_queue.cli.demo', 'subprocess'} & set(sys.modules)))\n"
        "cli.argument_parser()\n"
        "late = {'dbbasic_queue.cli.demo', 'subprocess', 'socketserver'}\n"
        "print(sorted(late & set(sys.modules)))\n"
    )
    done = run(sys.executable, "-c", program, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


def test_the_command_works_from_a_copy_that_is_not_installed(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "dbbasic_queue", tmp_path / "checkout" / "dbbasic_queue")
    shutil.copytree(PROJECT / "workers", tmp_path / "checkout" / "workers")
    done = run_command("demo", "--dir", "demo", cwd=tmp_path / "checkout", PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "checkout" / "demo" / "report.tsv").exists()


# -- commands that use a queue -------------------------------------------------------------------

EXISTING = (
    ["status"],
    ["list"],
    ["show", "a"],
    ["cancel", "a"],
    ["requeue", "a"],
    ["requeue", "--failed"],
    ["purge", "--older-than", "1d"],
    ["pause"],
    ["resume"],
    ["metrics"],
    ["unreadable"],
    ["unreadable", "--remove"],
)


def ok(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed; return its output."""
    done = run_command(*arguments, cwd=cwd, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run a command that must fail; return the line that says why."""
    done = run_command(*arguments, cwd=cwd, **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    return done.stderr.removeprefix("dbbasic-queue: ").strip()


def fail(payload: object) -> None:
    raise Fail("no")


@pytest.fixture
def some(tmp_path: Path) -> Iterator[Queue]:
    """A queue with a completed job, a failed job, and one that is due later."""
    with Queue(tmp_path / "data/queue.tsv") as queue:
        queue.enqueue("greet", {"to": "ada"}, job_id="done")
        queue.enqueue("break", {}, job_id="broken")
        queue.process_jobs({"greet": lambda payload: "hello", "break": fail})
        queue.enqueue("greet", {"to": "bob"}, run_at=4_000_000_000, job_id="later")
        yield queue


@pytest.mark.parametrize("arguments", EXISTING)
def test_a_typo_in_the_path_does_not_look_like_an_empty_queue(
    tmp_path: Path, arguments: list[str]
) -> None:
    why = refused(*arguments, "--file", "no/queue.tsv", cwd=tmp_path)
    assert "there is no queue (go to the app's directory, or name the queue's file" in why
    assert why.startswith(f"{tmp_path}/no/queue.tsv: there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [*EXISTING[:7], EXISTING[9], ["enqueue", "greet"]])
def test_a_file_that_is_not_a_queue_is_refused_and_not_changed(
    tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "letter").write_text("Dear Sir,\n")
    assert "not the header of a queue" in refused(*arguments, "--file", "letter", cwd=tmp_path)
    assert (tmp_path / "letter").read_text() == "Dear Sir,\n"


def test_the_queue_comes_from_the_option_the_environment_or_the_default(tmp_path: Path) -> None:
    ok("enqueue", "greet", "--id", "a", cwd=tmp_path)
    ok("enqueue", "greet", "--id", "b", cwd=tmp_path, DBBASIC_QUEUE_FILE="other.tsv")
    ok("enqueue", "greet", "--id", "c", "--file", "third.tsv", cwd=tmp_path)
    for file, job_id in (("data/queue.tsv", "a"), ("other.tsv", "b"), ("third.tsv", "c")):
        assert [job["id"] for job in Queue(tmp_path / file).jobs()] == [job_id]


def test_the_environment_can_name_the_queue_by_url(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/by%20url.tsv"
    ok("enqueue", "greet", "--id", "a", cwd=tmp_path, DBBASIC_QUEUE_URL=url)
    assert [job["id"] for job in Queue(tmp_path / "by url.tsv").jobs()] == ["a"]
    assert ok("list", cwd=tmp_path, DBBASIC_QUEUE_URL=url).startswith("a\tgreet\t")
    ok("enqueue", "greet", "--id", "b", "--file", "own.tsv", cwd=tmp_path, DBBASIC_QUEUE_URL=url)
    ok("enqueue", "greet", "--id", "c", "--file", "file:own.tsv", cwd=tmp_path)
    assert [job["id"] for job in Queue(tmp_path / "own.tsv").jobs()] == ["b", "c"]
    assert sorted(file.name for file in tmp_path.glob("*.tsv")) == ["by url.tsv", "own.tsv"]


@pytest.mark.parametrize("command", [["enqueue", "greet"], ["status"]])
@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (
            {"DBBASIC_QUEUE_URL": "file:a.tsv", "DBBASIC_QUEUE_FILE": "b.tsv"},
            "both DBBASIC_QUEUE_URL and DBBASIC_QUEUE_FILE ('b.tsv') are set: unset one of them",
        ),
        ({"DBBASIC_QUEUE_FILE": "memory:"}, "invalid DBBASIC_QUEUE_FILE: unknown URL scheme"),
        ({"DBBASIC_QUEUE_URL": "nowhere://host/0"}, "unknown URL scheme 'nowhere': must be file"),
    ],
)
def test_an_invalid_setting_in_the_environment_is_an_error(
    tmp_path: Path, command: list[str], environment: dict[str, str], why: str
) -> None:
    assert why in refused(*command, cwd=tmp_path, **environment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["enqueue", "greet"], ["status"], ["list"]])
@pytest.mark.parametrize("url", ["memory:", "memory:jobs"])
def test_a_command_cannot_use_a_queue_in_memory(
    tmp_path: Path, command: list[str], url: str
) -> None:
    why = refused(*command, "--file", url, cwd=tmp_path)
    assert why.startswith("invalid --file: unknown URL scheme 'memory': must be a path or file:")
    why = refused(*command, cwd=tmp_path, DBBASIC_QUEUE_URL=url)
    assert why.startswith(f"invalid DBBASIC_QUEUE_URL '{url}': a command can't use a queue in the")
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_enqueued_and_its_id_printed(tmp_path: Path) -> None:
    job_id = ok("enqueue", "greet", '{"to": "Ren\u00e9"}', cwd=tmp_path, LC_ALL="C").strip()
    queue = Queue(tmp_path / "data/queue.tsv")
    job = queue.get_job(job_id)
    assert job is not None
    assert (job["type"], job["payload"]) == ("greet", {"to": "Ren\u00e9"})
    assert queue.process_jobs({"greet": lambda payload: None})["completed"] == 1


def test_a_job_can_be_enqueued_for_later_and_only_once_per_id(tmp_path: Path) -> None:
    arguments = ["enqueue", "greet", "--at", "@4000000000.5", "--id", "report-1"]
    assert ok(*arguments, cwd=tmp_path) == "report-1\n"
    job = Queue(tmp_path / "data/queue.tsv").get_job("report-1")
    assert job is not None
    assert (job["payload"], job["run_at"]) == ({}, 4_000_000_001)
    assert "job_id 'report-1' is already in the queue" in refused(*arguments, cwd=tmp_path)


@pytest.mark.parametrize("payload", ["{to: ada}", "ada", "NaN", "", "{} {}"])
def test_a_payload_that_is_not_json_is_wrong_usage_and_writes_nothing(
    tmp_path: Path, payload: str
) -> None:
    done = run_command("enqueue", "greet", payload, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid PAYLOAD: must be JSON: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_job_type_is_refused(tmp_path: Path) -> None:
    assert "invalid job type 'a b'" in refused("enqueue", "a b", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("some")
def test_list_prints_the_rows_of_the_file_by_status_and_by_type(tmp_path: Path) -> None:
    lines = (tmp_path / "data/queue.tsv").read_text().splitlines(keepends=True)[1:]
    assert ok("list", cwd=tmp_path) == "".join(lines)
    assert ok("list", "--status", "failed", cwd=tmp_path) == lines[1]
    assert ok("list", "--type", "greet", cwd=tmp_path) == lines[0] + lines[2]
    both = ok("list", "--type", "greet", "--status", "pending", cwd=tmp_path)
    assert both == lines[2]
    assert ok("list", "--type", "none", cwd=tmp_path) == ""


def test_list_shows_changes_that_are_only_in_the_journal(some: Queue, tmp_path: Path) -> None:
    seen = []

    def look(payload: object) -> None:
        seen.append(ok("list", "--type", "look", cwd=tmp_path).split("\t")[3])

    some.enqueue("look", {})
    some.process_jobs({"look": look})
    assert seen == ["processing"]


@pytest.mark.parametrize("command", [["list"], ["show", "bad"]])
def test_rows_of_other_programs_send_no_control_codes_to_the_terminal(
    tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "data/queue.tsv"
    add_lines(path, line("bad", type="a\x1b[2J", payload='"\x9b2J"', error="\x07", result="\x1b"))
    shown = ok(*command, cwd=tmp_path)
    assert "\\x1b[2J" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


@pytest.mark.usefixtures("some")
def test_show_prints_one_line_per_column_of_the_job(tmp_path: Path) -> None:
    shown = ok("show", "later", cwd=tmp_path).split("\n")
    assert [text.split("\t")[0] for text in shown] == [*HEADER.split(), "why", ""]  # it has not run
    assert shown[2] == 'payload\t{"to": "bob"}'
    assert shown[5] == "run_at\t4000000000\t2096-10-02T07:06:40Z"
    assert refused("show", "nobody", cwd=tmp_path) == "there is no job nobody"
    assert refused("show", "\udcff", cwd=tmp_path) == "there is no job \\udcff"
    assert refused("cancel", "\udcff", cwd=tmp_path).startswith("\\udcff was not cancelled")


def test_show_prints_the_attempts_of_a_job_and_the_last_traceback(tmp_path: Path) -> None:
    def stumble(payload: object) -> None:
        raise ValueError("a\nb \x1b[31m")

    clock = Clock()
    with Queue(tmp_path / "data/queue.tsv", clock=clock) as queue:
        queue.enqueue("walk", {}, job_id="a")
        queue.process_jobs({"walk": stumble})
        clock.now += 120
        queue.process_jobs({"walk": lambda payload: "home"})
    shown = ok("show", "a", cwd=tmp_path)
    assert "\x1b" not in shown
    attempts = [line.split("\t") for line in shown.splitlines() if line.startswith("attempt\t")]
    assert [words[1:4] for words in attempts] == [
        ["1", "retried", "2027-01-15T08:00:00Z"],
        ["2", "completed", "2027-01-15T08:02:00Z"],
    ]
    assert attempts[0][5] == "ValueError: a\\nb \\x1b[31m"
    assert all(float(words[4]) >= 0 for words in attempts)
    traceback = [line for line in shown.splitlines() if line.startswith("traceback\t")]
    assert any("in stumble" in line for line in traceback)
    assert traceback[-1].endswith("b \\x1b[31m")


@pytest.mark.usefixtures("some")
def test_metrics_are_printed_or_written_to_a_file(tmp_path: Path) -> None:
    printed = ok("metrics", "--window", "60s", cwd=tmp_path)
    assert printed.startswith("# ") and 'type="greet"' in printed
    assert ok("metrics", "queue.prom", cwd=tmp_path) == ""
    assert 'type="greet"' in (tmp_path / "queue.prom").read_text()


def test_cancel_reports_which_jobs_it_cancelled_and_which_not(some: Queue, tmp_path: Path) -> None:
    done = run_command("cancel", "done", "later", "nobody", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "cancelled\tlater\n")
    assert done.stderr.splitlines() == [
        "dbbasic-queue: done was not cancelled: it is completed (only a pending job can be)",
        "dbbasic-queue: nobody was not cancelled: there is no such job",
    ]
    assert some.counts()["cancelled"] == 1


@pytest.mark.usefixtures("some")
def test_a_job_that_cannot_be_changed_names_the_command_that_can(tmp_path: Path) -> None:
    for command in (["run-now", "broken"], ["edit", "broken", "{}"]):
        assert refused(*command, cwd=tmp_path).endswith(
            "it is failed (only a pending job can be; first: dbbasic-queue requeue broken)"
        )
    with Queue(tmp_path / "data/queue.tsv") as queue:
        refusals = []

        def cancel_itself(payload: object, job: Job) -> None:
            refusals.append(refused("cancel", job.id, "--file", queue.path, cwd=tmp_path))

        queue.enqueue("slow", {}, job_id="slow-1")
        queue.process_jobs({"slow": cancel_itself})
    assert refusals == [
        "slow-1 was not cancelled: it is processing (only a pending job can be; "
        f"to stop it: dbbasic-queue --file {queue.path} stop slow-1)"
    ]


@pytest.mark.usefixtures("some")
def test_a_job_type_instead_of_an_id_is_recognized(tmp_path: Path) -> None:
    for verb, done in (("run-now", "made due"), ("cancel", "cancelled"), ("stop", "stopped")):
        assert refused(verb, "greet", cwd=tmp_path) == (
            f"greet was not {done}: there is no such job (greet is a job type: "
            "for all jobs of it, write --type greet)"
        )


def test_requeue_accepts_ids_or_all_failed_jobs(some: Queue, tmp_path: Path) -> None:
    assert ok("requeue", "broken", cwd=tmp_path) == "requeued\tbroken\n"
    assert "it is pending" in refused("requeue", "broken", cwd=tmp_path)
    some.process_jobs({"break": fail})
    assert ok("requeue", "--failed", "--type", "greet", cwd=tmp_path) == "requeued\t0\t-\n"
    assert ok("requeue", "--failed", "--type", "break", cwd=tmp_path) == "requeued\t1\tbreak=1\n"
    some.process_jobs({"break": fail})
    assert ok("requeue", "--failed", cwd=tmp_path) == "requeued\t1\tbreak=1\n"
    job = some.get_job("broken")
    assert job is not None
    assert (job["status"], job["attempts"], job["error"]) == ("pending", 0, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["requeue"],
        ["requeue", "a", "--failed"],
        ["requeue", "broken", "--type", "b"],
        ["requeue", "broken", "--all"],
        ["clear"],
        ["stop"],
        ["purge"],
        ["purge", "--older-than", "a week"],
        ["purge", "--older-than", "1d", "--status", "pending"],
        ["list", "--status", "done"],
        ["cancel"],
        ["enqueue"],
        ["enqueue", "greet", "--at", "tomorrow"],
        ["show"],
        ["show", "a", "--file"],
    ],
)
@pytest.mark.usefixtures("some")
def test_a_command_with_wrong_usage_exits_with_2_and_changes_nothing(
    tmp_path: Path, arguments: list[str]
) -> None:
    before = (tmp_path / "data/queue.tsv").read_bytes()
    done = run_command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"dbbasic-queue {arguments[0]}: ")
    assert (tmp_path / "data/queue.tsv").read_bytes() == before


def test_purge_removes_old_jobs_and_can_append_them_to_an_archive(
    some: Queue, tmp_path: Path
) -> None:
    with Queue(some.path, clock=lambda: time.time() - 2 * 86_400) as then:
        then.enqueue("greet", {}, job_id="old")
        then.enqueue("greet", {}, job_id="old-too")
        then.process_jobs({"greet": lambda payload: None})
    of_failed = ok("purge", "--older-than", "1d", "--status", "failed", cwd=tmp_path)
    assert of_failed == "purged\t0\t-\n"
    archived = ok("purge", "--older-than", "0.5d", "--archive", "a.tsv", cwd=tmp_path)
    assert archived == "purged\t2\tgreet=2\n"
    archive = (tmp_path / "a.tsv").read_text("utf-8")
    assert [text.split("\t")[0] for text in archive.splitlines()] == ["id", "old", "old-too"]
    assert [job["id"] for job in some.jobs()] == ["done", "broken", "later"]
    assert "archives are plain TSV files now" in refused(
        "purge", "--older-than", "1d", "--archive", "a.tsv.gz", cwd=tmp_path
    )


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("12h", 43_200),
        ("1.5h", 5400),
        ("30d", 2_592_000),
    ],
)
def test_a_duration_is_a_number_with_a_unit(
    path: Path, clock: Clock, duration: str, seconds: int
) -> None:
    clock.now = time.time() - seconds
    with Queue(path, clock=clock) as queue:
        clock.now -= 5
        queue.enqueue("greet", {}, job_id="older")
        clock.now += 605
        queue.enqueue("greet", {}, job_id="newer")
        queue.process_jobs({"greet": str})
        assert main(["purge", "--older-than", duration, "--file", str(path)]) == 0
        assert [job["id"] for job in queue.jobs()] == ["newer"]


def test_all_finished_jobs_are_older_than_0s(path: Path) -> None:
    with Queue(path, clock=lambda: time.time() - 1) as queue:
        queue.cancel_job(queue.enqueue("greet", {}))
        assert main(["purge", "--older-than", "0s", "--file", str(path)]) == 0
        assert list(queue.jobs()) == []


@pytest.mark.usefixtures("some")
def test_the_metrics_cover_an_hour_unless_a_window_is_given(tmp_path: Path) -> None:
    history = tmp_path / "data/queue.tsv.history"
    rows = history.read_text("utf-8").splitlines(keepends=True)
    ended_at = rows[1].split("\t")[5]
    then = f"{time.time() - 7200:.3f}"
    history.write_text(rows[0] + rows[1].replace(ended_at, then), "utf-8")
    attempts = 'dbbasic_queue_attempts{type="greet",outcome="completed"} 1\n'
    for window, is_counted in {
        (): False,
        ("--window", "90m"): False,
        ("--window", "1.5h"): False,
        ("--window", "3h"): True,
        ("--window", "1d"): True,
    }.items():
        assert (attempts in ok("metrics", *window, cwd=tmp_path)) is is_counted


def test_pause_and_resume_take_one_type_or_all(some: Queue, tmp_path: Path) -> None:
    some.enqueue("greet", {})
    assert ok("pause", "greet", cwd=tmp_path) == "paused\tgreet\n"
    assert ok("pause", cwd=tmp_path) == "paused\t*\n"
    assert ok("pause", cwd=tmp_path) == "paused\t*\n"
    assert some.process_jobs({"greet": str})["completed"] == 0
    why = refused("resume", "greet", cwd=tmp_path)
    assert why.startswith("greet stays paused, because all types are paused (resume without TYPE ")
    assert ok("resume", cwd=tmp_path) == "resumed\t*\n"
    assert some.process_jobs({"greet": str})["completed"] == 1


@pytest.mark.usefixtures("some")
def test_a_pipe_of_commands_works_as_in_a_shell(tmp_path: Path) -> None:
    command = f"{sys.executable} -m dbbasic_queue"
    pipe = f"{command} list --status failed | awk -F'\\t' '{{print $1}}' | xargs {command} requeue"
    done = run("sh", "-ec", pipe, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "requeued\tbroken\n", "")


ESCAPE = b"\x1b]0;owned\x07\x1b[8m\x9b"


def test_no_command_prints_raw_control_characters_from_any_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data/queue.tsv"
    with Queue(path) as queue:
        job_id = queue.enqueue("work-MARK", {})
        queue.enqueue("last", {})
        queue.process_jobs({"work-MARK": lambda _: None}, skip_unknown=True)
        queue.pause("pause-MARK")
    record = b"%b\tfailed\t1\t1\t1\t%b\t" % (job_id.encode(), ESCAPE.replace(b"\x9b", b""))
    with open(f"{path}.journal", "ab") as journal:
        journal.write(b"%b\t%08x\n" % (record, crc32(record)))
    escape = ESCAPE.decode("latin-1").encode()
    paused, history = Path(f"{path}.paused"), Path(f"{path}.history")
    paused.write_bytes(paused.read_bytes().replace(b"pause-MARK", escape))
    history.write_bytes(
        history.read_bytes().replace(b"work-MARK", escape).replace(b"completed", escape)
    )
    colour = "\x1b[31m"
    for words, code in {
        ("status",): 0,
        ("list",): 0,
        ("show", job_id): 0,
        ("metrics",): 0,
        ("show", colour): 1,
        ("cancel", colour): 1,
        ("list", "--file", colour): 1,
        ("list", f"--{colour}"): 2,
    }.items():
        done = run_command(*words, cwd=tmp_path)
        assert done.returncode == code
        shown = done.stdout + done.stderr
        assert [c for c in shown if not c.isprintable() and c not in "\t\n"] == []
        assert r"\x1b" in shown


def test_an_id_that_starts_with_a_dash_is_not_read_as_an_option(tmp_path: Path) -> None:
    path = tmp_path / "data/queue.tsv"
    add_lines(path, *(line(name, status="failed") for name in ("--failed", "innocent")))
    assert ok("show", "--", "--failed", cwd=tmp_path).startswith("id\t--failed\n")
    assert ok("requeue", "--", "--failed", cwd=tmp_path) == "requeued\t--failed\n"
    assert ok("cancel", "--", "--failed", cwd=tmp_path) == "cancelled\t--failed\n"
    assert [row(path, name)["status"] for name in ("--failed", "innocent")] == [
        "cancelled",
        "failed",
    ]
    assert "invalid job_id '--failed'" in refused("enqueue", "work", "--id=--failed", cwd=tmp_path)


@pytest.mark.parametrize(
    "duration",
    [
        "30",
        "0",
        "-1d",
        "nan",
        "nand",
        "inf",
        "infd",
        "30 d",
        "1e999d",
        "d",
        "",
        "a week",
        "1w",
        "1D",
    ],
)
@pytest.mark.parametrize("words", [("purge", "--older-than"), ("metrics", "--window")])
@pytest.mark.usefixtures("some")
def test_a_duration_without_a_unit_or_a_number_is_wrong_usage(
    tmp_path: Path, words: tuple[str, str], duration: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data/queue.tsv"
    before = path.read_bytes()
    command, option = words
    with pytest.raises(SystemExit) as end:
        main([command, f"{option}={duration}", "--file", str(path)])
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == (
        f"dbbasic-queue {command}: argument {option}: invalid duration {duration!r}: "
        "must be a number with a unit, such as 90s, 15m, 12h or 30d "
        f"(see dbbasic-queue {command} --help)"
    )
    assert path.read_bytes() == before


@pytest.mark.usefixtures("some")
def test_a_window_of_zero_is_an_error(tmp_path: Path) -> None:
    why = refused("metrics", "--window", "0s", cwd=tmp_path)
    assert why == "invalid window 0.0: must be seconds or a timedelta, more than 0"


def test_unreadable_lines_are_printed_and_can_be_moved_away(tmp_path: Path) -> None:
    job_id = ok("enqueue", "greet", cwd=tmp_path).strip()
    path = tmp_path / "data" / "queue.tsv"
    with path.open("a") as file:
        file.write("what\x1b[31m is\tthis\n")
        file.write(path.read_text().splitlines()[1].replace("{}", "'").replace(job_id, "b") + "\n")
    number, reason, text = ok("unreadable", cwd=tmp_path).splitlines()[0].split("\t")
    assert (number, text) == ("3", r"what\x1b[31m is\tthis")
    assert reason == "it has fewer than nine columns separated by tabs"
    assert ok("status", cwd=tmp_path).splitlines()[-1] == "unreadable\t2\t3 4"
    assert ok("unreadable", "--remove", cwd=tmp_path) == "rejected\t2\n"
    assert ok("unreadable", cwd=tmp_path) == ""
    assert ok("status", cwd=tmp_path).splitlines()[-1] == "unreadable\t0\t-"
    assert len(path.read_text().splitlines()) == 2
    assert len((tmp_path / "data" / "queue.tsv.rejected").read_bytes().splitlines()) == 2
