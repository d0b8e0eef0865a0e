"""Closed streams, errors of the system, and the options that every command shares."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from helpers import environment, run_command

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from pathlib import Path


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell; $Q is the command."""
    more = {"Q": f"{sys.executable} -m dbbasic_queue"}
    return subprocess.run(
        ["sh", "-c", command],
        cwd=cwd,
        env=environment() | more,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def queue(path: Path) -> Queue:
    queue = Queue(path)
    queue.enqueue("mail", {"to": "ada"}, job_id="mail-1")
    return queue


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("$Q list >&-", 0, ""),
        ("$Q list <&- >&-", 0, ""),
        ("$Q list 2>&-", 0, ""),
        ("$Q show nope >&- 2>&-", 1, ""),
        ("$Q import - <&-", 0, ""),
        ("$Q cancel --all <&- >&-", 0, ""),
        ("$Q list >/dev/full", 1, "dbbasic-queue: No space left on device\n"),
        ("$Q export >/dev/full", 1, "dbbasic-queue: No space left on device\n"),
    ],
)
def test_a_closed_stream_is_like_dev_null(
    queue: Queue, tmp_path: Path, command: str, code: int, error: str
) -> None:
    done = shell(command, tmp_path)
    assert (done.returncode, done.stderr) == (code, error)


def test_nothing_is_printed_into_the_queue_if_stdout_is_closed(
    queue: Queue, tmp_path: Path, path: Path
) -> None:
    assert shell("$Q enqueue mail --id mail-2 <&- >&- 2>&-", tmp_path).returncode == 0
    assert shell("$Q cancel mail-2 <&- >&- 2>&-", tmp_path).returncode == 0
    assert not list(queue.unreadable())
    assert [job["status"] for job in queue.jobs()] == ["pending", "cancelled"]


def test_json_may_come_before_the_command(queue: Queue, tmp_path: Path) -> None:
    status = run_command("--json", cwd=tmp_path)
    assert (status.returncode, status.stderr) == (0, "")
    assert json.loads(status.stdout)["jobs"]["pending"] == 1
    before = run_command("--json", "list", cwd=tmp_path)
    assert before.stdout == run_command("list", "--json", cwd=tmp_path).stdout
    assert json.loads(before.stdout)["id"] == "mail-1"


def test_a_command_without_json_says_so_and_does_nothing(
    queue: Queue, tmp_path: Path, path: Path
) -> None:
    done = run_command("--json", "cancel", "mail-1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "dbbasic-queue cancel: cancel prints no JSON: leave out --json "
        "(see dbbasic-queue cancel --help)\n"
    )
    assert [job["status"] for job in queue.jobs()] == ["pending"]


def test_an_unknown_command_is_one_line_with_the_command_that_was_meant(tmp_path: Path) -> None:
    done = run_command("canel", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "dbbasic-queue: there is no command 'canel': did you mean cancel? "
        "(see dbbasic-queue --help)\n"
    )


@pytest.mark.parametrize(
    "arguments, what, help_of",
    [
        ("requeue --eror=x", "there is no option --eror: did you mean --error?", " requeue"),
        ("pause --type mail", "there is no option --type", " pause"),
        ("--jsn list", "there is no option --jsn: did you mean --json?", ""),
        ("list mail", "unexpected argument 'mail'", " list"),
        (
            'enqueue mail {"to": "ada"}',
            "unexpected argument '\"ada\"}' (write JSON in single quotes)",
            " enqueue",
        ),
    ],
)
def test_an_unknown_option_is_one_line_with_the_help_of_its_command(
    tmp_path: Path, arguments: str, what: str, help_of: str
) -> None:
    done = run_command(*arguments.split(" "), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"dbbasic-queue{help_of}: {what} (see dbbasic-queue{help_of} --help)\n")


@pytest.mark.parametrize("number", ["0", "9" * 20, "9" * 5000, "-1", "²"])
def test_an_impossible_number_is_wrong_usage(queue: Queue, tmp_path: Path, number: str) -> None:
    done = run_command("list", f"--limit={number}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "argument --limit: invalid number" in done.stderr and len(done.stderr) < 200


def test_resuming_what_was_not_paused_warns(queue: Queue, tmp_path: Path) -> None:
    done = run_command("resume", "mail", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "dbbasic-queue: warning: mail was not paused\n"


def test_the_commands_to_run_next_name_the_same_file(tmp_path: Path) -> None:
    file = "my jobs.tsv"
    queue = Queue(tmp_path / file)
    queue.enqueue("mail", {}, job_id="mail-1")
    queue.pause("mail")
    done = run_command("status", "--file", file, cwd=tmp_path)
    assert "\tdbbasic-queue --file 'my jobs.tsv' resume\n" in done.stdout
    done = run_command("--file", file, "show", "mail-1", cwd=tmp_path)
    assert "\tdbbasic-queue --file 'my jobs.tsv' resume mail\n" in done.stdout
    done = run_command("doctor", "--file", file, cwd=tmp_path)
    assert "\tdbbasic-queue --file 'my jobs.tsv' resume\n" in done.stdout
    shown = json.loads(run_command("--json", "--file", file, cwd=tmp_path).stdout)
    assert shown["command"] == "dbbasic-queue --file 'my jobs.tsv' resume"
    command = shown["command"].replace("dbbasic-queue", "$Q")
    assert shell(command, tmp_path).stdout == "resumed\t*\n"
