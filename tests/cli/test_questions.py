"""What is asked at a terminal before many jobs are changed, and what a person sees there."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from helpers import DEADLINE, add_lines, environment, line, wait_for

from dbbasic_queue import Handlers, Queue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    At = Callable[..., tuple[int, str]]


@pytest.fixture
def at_terminal(tmp_path: Path) -> At:
    def at_terminal(*arguments: str, answers: str = "", **more: str) -> tuple[int, str]:
        """Run a command at a terminal, and type answers; return its exit code and the screen."""
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "dbbasic_queue", *arguments],
            cwd=tmp_path,
            env=environment() | {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"} | more,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        os.write(ours, answers.encode())
        shown = b""
        end = time.monotonic() + DEADLINE
        try:
            while time.monotonic() < end:
                if select.select([ours], [], [], 0.1)[0]:
                    try:
                        shown += os.read(ours, 65536)
                    except OSError:  # the command has ended
                        break
            return child.wait(DEADLINE), shown.decode().replace("\r\n", "\n")
        finally:
            child.kill()
            os.close(ours)

    return at_terminal


@pytest.fixture
def queue(path: Path) -> Queue:
    queue = Queue(path)
    queue.enqueue_many("mail", range(3))
    queue.enqueue("sync", {}, job_id="sync-job")
    return queue


@pytest.mark.parametrize(
    ("command", "question", "done"),
    [
        ("cancel --type mail", "3 jobs (3 mail) will be cancelled. Go on?", "were cancelled"),
        ("cancel --all", "4 jobs (3 mail, 1 sync) will be cancelled. Go on?", "were cancelled"),
        ("stop --all", "4 jobs (3 mail, 1 sync) will be stopped. Go on?", "were cancelled"),
        (
            "clear --all",
            "4 jobs (3 mail, 1 sync), all still pending, will be removed. Go on?",
            "were removed",
        ),
        (
            "clear sync-job",
            "1 job (1 sync), still pending, will be removed. Go on?",
            "removed",
        ),
    ],
)
@pytest.mark.parametrize("answer", ["n", "", "nope", "\x04"])
def test_only_a_yes_changes_jobs(
    queue: Queue, at_terminal: At, command: str, question: str, done: str, answer: str
) -> None:
    before = list(queue.jobs())
    code, shown = at_terminal(*command.split(), answers=answer + "\n")
    assert code == 1
    assert f"{question} [y/N]" in shown
    own_line = "\n" if answer == "\x04" else ""  # Ctrl-D ends no line
    assert f"{own_line}dbbasic-queue: nothing was changed" in shown
    assert list(queue.jobs()) == before


@pytest.mark.parametrize("answer", ["y", "Y", "yes"])
def test_after_a_yes_the_jobs_are_changed(queue: Queue, at_terminal: At, answer: str) -> None:
    code, shown = at_terminal("cancel", "--type", "mail", answers=answer + "\n")
    assert code == 0
    assert "3 jobs (3 mail) were cancelled" in shown
    assert queue.counts()["cancelled"] == 3


def test_yes_and_dry_run_ask_nothing(queue: Queue, at_terminal: At) -> None:
    code, shown = at_terminal("cancel", "--all", "--dry-run")
    assert (code, shown) == (0, "4 jobs (3 mail, 1 sync) would be cancelled\n")
    assert queue.counts()["cancelled"] == 0
    code, shown = at_terminal("cancel", "--type", "mail", "--yes")
    assert (code, shown) == (0, "3 jobs (3 mail) were cancelled\n")
    code, shown = at_terminal("cancel", "sync-job")
    assert (code, shown) == (0, "cancelled  sync-job\n")
    code, shown = at_terminal("cancel", "--all")  # there is nothing to ask about
    assert (code, shown) == (0, "0 jobs were cancelled\n")


def test_removing_lines_that_are_not_jobs_asks_first(
    queue: Queue, at_terminal: At, path: Path
) -> None:
    assert at_terminal("unreadable", "--remove") == (0, "rejected   0\n")
    add_lines(path, "not a job\n")
    code, shown = at_terminal("unreadable", "--remove", answers="n\n")
    assert code == 1
    assert "1 line will be moved to" in shown and "nothing was changed" in shown
    assert at_terminal("unreadable", "--remove", "-n") == (0, "would be rejected  1\n")
    assert len(list(queue.unreadable())) == 1
    assert at_terminal("unreadable", "--remove", "-y") == (0, "rejected   1\n")
    assert not list(queue.unreadable())


def test_removing_a_schedule_asks_first(queue: Queue, at_terminal: At) -> None:
    handlers = Handlers()
    handlers.handler("work")(lambda _: None)
    handlers.every(3600, "work", name="report")
    queue.process_jobs(handlers, skip_unknown=True)
    code, shown = at_terminal("schedules", "--remove", "report", answers="n\n")
    assert code == 1
    assert "The schedule report will be removed. Go on? [y/N]" in shown
    assert at_terminal("schedules", "--remove", "report", "-n") == (0, "would be removed  report\n")
    assert len(queue.schedules()) == 1
    assert at_terminal("schedules", "--remove", "report", "-y") == (0, "removed    report\n")
    assert not queue.schedules()


def test_one_job_is_one_job(queue: Queue, at_terminal: At) -> None:
    code, shown = at_terminal("cancel", "--type", "sync", "-y")
    assert (code, shown) == (0, "1 job (1 sync) was cancelled\n")


def test_many_types_are_cut(queue: Queue, at_terminal: At) -> None:
    for number in range(7):
        queue.enqueue(f"type-{number}", {})
    _, shown = at_terminal("cancel", "--all", "-n")
    assert shown == (
        "11 jobs (3 mail, 1 sync, 1 type-0, 1 type-1, 1 type-2, ...) would be cancelled\n"
    )


def test_pausing_a_type_that_nobody_knows_asks_first(queue: Queue, at_terminal: At) -> None:
    code, shown = at_terminal("pause", "mial", answers="n\n")
    assert code == 1
    assert "No job and no handler has the type mial. Pause it? [y/N]" in shown
    assert queue.paused() == set()
    assert at_terminal("pause", "mail") == (0, "paused     mail\n")
    assert at_terminal("pause", "mial", "--yes") == (0, "paused     mial\n")
    queue.process_jobs({"report": str}, skip_unknown=True)
    assert at_terminal("pause", "report") == (0, "paused     report\n")
    assert at_terminal("pause")[0] == 0
    code, shown = at_terminal("pause", "a b", answers="y\n")
    assert code == 1
    assert "dbbasic-queue: invalid job type 'a b'" in shown
    assert "[y/N]" not in shown


def test_an_invalid_edit_can_be_edited_again(queue: Queue, at_terminal: At, tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "path, tried = Path(sys.argv[1]), Path('tried')\n"
        "text = path.read_text()\n"
        "path.write_text(text + 'x' if not tried.exists() else text.replace('x', '')\n"
        "                .replace('sync\\t{}', 'sync\\t[7]'))\n"
        "tried.touch()\n"
    )
    code, shown = at_terminal("edit", answers="y\n", EDITOR=f"{sys.executable} {script}")
    assert "Edit it again? [y/N]" in shown
    assert code == 0
    found = queue.get_job("sync-job")
    assert found is not None and found["payload"] == [7]


def test_ctrl_c_at_a_question_changes_nothing(queue: Queue, tmp_path: Path) -> None:
    before = list(queue.jobs())
    pid, screen = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.environ.update(environment())
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
        os.execv(sys.executable, [sys.executable, "-m", "dbbasic_queue", "cancel", "--all"])
    shown, codes = b"", []
    next_key = 0.0

    def has_ended() -> bool:
        nonlocal next_key
        if time.monotonic() > next_key:  # Python misses one just before it waits for the answer
            os.write(screen, b"\x03")
            next_key = time.monotonic() + 2
        ended, status = os.waitpid(pid, os.WNOHANG)
        codes.append(os.waitstatus_to_exitcode(status))
        return bool(ended)

    try:
        while b"[y/N]" not in shown:
            assert select.select([screen], [], [], DEADLINE)[0], shown
            shown += os.read(screen, 1000)
        wait_for(has_ended, "the end of the command")
    finally:
        os.close(screen)
    assert codes[-1] == 130
    assert list(queue.jobs()) == before


HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"


@pytest.mark.parametrize("columns", ["40", "80", "160"])
@pytest.mark.parametrize(
    "command",
    [
        "status",
        "list",
        "failed",
        "due",
        "running",
        "show bad",
        "show lost",
        "history",
        "stats",
        "unreadable",
        "cancel --all -n",
        "export",
        "export --format csv",
        "export --format jsonl",
        "requeue --all",
        "list --file MARK",
        "show MARK",
        "pause MARK",
        "output MARK",
        "list --error (MARK",
        "import MARK.tsv",
        "enqueue MARK",
    ],
)
def test_text_from_jobs_and_arguments_never_controls_the_terminal(
    path: Path, at_terminal: At, command: str, columns: str
) -> None:
    hostile = HOSTILE.replace("\x9b", "\u009b")
    add_lines(
        path,
        line("bad", type=f"t{hostile}", payload=f'"\u009b{hostile[-1]}"', status="failed")[:-2]
        + f"{hostile}\t{hostile}\n",
        line("waits", type=f"t{hostile}", payload='"\u202e\u009b"'),
        line("lost", type=f"t{hostile}", status="processing", attempts=1),
        f"not a job {hostile}\n",
    )
    path.with_name("queue.tsv.history").write_text(
        "id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback\tworker\n"
        + "\t".join(["bad", f"t{hostile}", "1", "failed", "1", f"{time.time():.3f}", "0.1"])
        + f"\t{hostile}\t{hostile}\t{hostile}\n",
        "utf-8",
    )
    words = [word.replace("MARK", hostile) for word in command.split()]
    _, shown = at_terminal(*words, answers="n\n", COLUMNS=columns, LC_ALL="C.UTF-8")
    bad = {c for c in shown if not c.isprintable()} - {"\n", "\t", "\r"}
    assert bad == set(), f"{bad}: {shown!r}"
    assert shown


def test_the_errors_of_a_handler_module_show_no_control_characters(
    queue: Queue, at_terminal: At, tmp_path: Path
) -> None:
    def stumble(_: object) -> None:
        raise ValueError(HOSTILE)

    queue.enqueue("bad", {}, job_id="bad-job")
    queue.process_jobs({"bad": stumble}, skip_unknown=True)
    _, shown = at_terminal("show", "bad-job", LC_ALL="C.UTF-8")
    assert "last traceback" in shown and "in stumble" in shown
    assert {c for c in shown if not c.isprintable()} == {"\n"}


def test_colours_are_left_out_for_no_color_and_a_dumb_terminal(
    queue: Queue, at_terminal: At
) -> None:
    assert "\x1b[" in at_terminal("status", NO_COLOR="")[1]
    assert "\x1b" not in at_terminal("status")[1]
    assert "\x1b" not in at_terminal("status", NO_COLOR="", TERM="dumb")[1]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", at_terminal("list", NO_COLOR="")[1])
    assert (
        re.sub("just now|[0-9]+ s ago|now", "", plain).split()
        == re.sub("just now|[0-9]+ s ago|now", "", at_terminal("list")[1]).split()
    )


def test_stop_says_that_a_job_inside_its_pass_may_go_on(queue: Queue, at_terminal: At) -> None:
    seen = []
    queue.enqueue("slow", {}, job_id="slow-job")
    queue.process_jobs(
        {"slow": lambda _: seen.append(at_terminal("stop", "slow-job"))}, skip_unknown=True
    )
    [(code, shown)] = seen
    assert code == 0
    assert " ".join(shown.split()) == (
        "requested slow-job dbbasic-queue: slow-job runs inside its pass, so it was only asked to "
        "stop; if it goes on: dbbasic-queue show slow-job"
    )
