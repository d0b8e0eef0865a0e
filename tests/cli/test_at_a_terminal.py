"""What a person sees at a terminal of commands that add, run and move jobs, and of Ctrl-C there."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from helpers import add_lines, line, run_command, wait_for
from screen import Screen, command, shown

from dbbasic_queue import Queue, QueueMoved

if TYPE_CHECKING:
    from pathlib import Path

HANDLERS = """
def mail(payload):
    if payload.get("bad"):
        raise ValueError("no such user")

jobs = {"mail": mail}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(HANDLERS)
    with Queue(tmp_path / "data/queue.tsv") as queue:
        queue.enqueue("mail", {}, job_id="mail-one")
        queue.enqueue("mail", {"bad": True}, job_id="mail-bad")
    return tmp_path


def lines(text: str) -> str:
    """Return the lines of a screen as one."""
    return " ".join(text.split())


# -- run and worker ----------------------------------------------------------------------------


def test_run_says_what_it_has_done_and_why_it_had_nothing_to_do(place: Path) -> None:
    assert shown(["run", "jobs:jobs"], place).endswith("1 completed, 1 retried")
    nothing = shown(["run", "jobs:jobs"], place)
    assert nothing.startswith("no job was run: nothing is due; the next job is due in "), nothing
    with Queue(place / "data/queue.tsv") as queue:
        queue.run_now("mail-bad")
        queue.pause("mail")
        paused = shown(["run", "jobs:jobs"], place)
        assert paused.startswith("no job was run: nothing is due; 1 job waits"), paused
        assert paused.endswith("\n  dbbasic-queue resume")
        queue.resume()
    failed = shown(["run", "jobs:jobs", "--max-attempts", "2"], place)
    assert failed.endswith("1 failed\n  dbbasic-queue failed"), failed
    assert run_command("run", "jobs:jobs", cwd=place).stdout == ""  # cron would mail it


def test_run_job_says_when_a_failed_job_is_due_again(place: Path) -> None:
    text = shown(["run", "jobs:jobs", "--job", "mail-bad"], place)
    assert "ValueError: no such user\nmail-bad: retried; due again in " in text
    assert shown(["run", "jobs:jobs", "--job", "mail-one"], place) == "mail-one: completed"
    with Queue(place / "data/queue.tsv") as queue:
        queue.pause("mail")
    text = lines(shown(["run", "jobs:jobs", "--job", "mail-bad"], place))
    assert text.endswith("was not run: jobs of type mail are paused (dbbasic-queue resume mail)")


def test_a_worker_says_that_it_runs_and_how_to_end_it(place: Path) -> None:
    with Screen(command("worker", "jobs:jobs"), place, columns=200) as screen:
        screen.wait_for(f"running jobs of {place}/data/queue.tsv until Ctrl-C")
        with Queue(place / "data/queue.tsv") as queue:
            wait_for(lambda: queue.counts()["completed"], "the first job")
        screen.press("\x03")
        assert screen.wait() == 130


# -- enqueue, import, export -------------------------------------------------------------------


def test_progress_is_not_mixed_with_the_ids_in_a_pipe(place: Path) -> None:
    (place / "lines").write_text("{}\n" * 2500)
    enqueue = f"{sys.executable} -m dbbasic_queue enqueue mail --lines @lines"
    with Screen(["sh", "-c", f"{enqueue} | tail -n 1"], place) as screen:
        screen.wait()
        assert b"added" not in screen.raw
    with Screen(["sh", "-c", f"{enqueue} > ids"], place) as screen:
        screen.wait()
        assert b"added 2,000 of 2,500" in screen.raw and screen.text() == ""
        assert len((place / "ids").read_text().splitlines()) == 2500


def test_a_dumb_terminal_gets_progress_without_escape_sequences(place: Path) -> None:
    (place / "lines").write_text("{}\n" * 1001)
    with Screen(command("enqueue", "mail", "@lines", "--lines"), place, more={"TERM": "dumb"}) as s:
        s.wait()
        assert b"added 1,000 of 1,001" in s.raw and b"\x1b" not in s.raw
        assert s.text() == "1,001 jobs were added"


def test_import_and_export_are_sentences_and_long_lists_are_cut(place: Path) -> None:
    assert shown(["export", "jobs.tsv"], place) == "2 jobs were exported to jobs.tsv"
    with Queue(place / "data/queue.tsv") as queue:
        queue.enqueue_many("mail", [{}] * 6)
    run_command("export", "all.tsv", cwd=place)
    assert shown(["import", "all.tsv", "--file", "new.tsv"], place) == "8 jobs were imported"
    again = shown(["import", "all.tsv", "--file", "new.tsv"], place).splitlines()
    assert again[:3] == [
        "0 jobs were imported",
        "8 jobs are in the queue already, and left alone:",
        "  mail-one",
    ]
    assert again[-1] == "  and 3 more" and len(again) == 8


def test_a_dry_run_of_import_knows_which_jobs_are_there(place: Path) -> None:
    run_command("export", "jobs.jsonl", cwd=place)
    done = run_command("import", "-n", "jobs.jsonl", cwd=place)
    assert done.stdout == "would be imported\t0\nexists\tmail-one\nexists\tmail-bad\n"
    run_command("clear", "mail-bad", cwd=place)
    done = run_command("import", "-n", "jobs.jsonl", cwd=place)
    assert done.stdout == "would be imported\t1\nexists\tmail-one\n"
    run_command("import", "-n", "jobs.jsonl", "--file", "new.tsv", cwd=place)
    assert not (place / "new.tsv").exists()


# -- move --------------------------------------------------------------------------------------


def test_move_asks_with_all_that_will_be_different_and_says_what_is_next(place: Path) -> None:
    run_command("cancel", "mail-bad", cwd=place)
    with Screen(command("move", "--to", "new.tsv"), place, columns=400) as screen:
        question = lines(screen.wait_for(r"Go on\? \[y/N\]"))
        assert question == (
            f"1 job will be moved to {place}/new.tsv; 1 finished job stays here (--finished moves "
            "them, too). Then this queue is closed: programs and crontab lines must use the other "
            "one. Go on? [y/N]"
        )
        screen.press("y\n")
        assert screen.wait() == 0
        assert lines(screen.text()).endswith(
            f"1 job was moved; programs and crontab lines must use {place}/new.tsv now"
        )
        assert b"moved 1, left 0" in screen.raw and "left 0" not in screen.text()


def test_move_names_the_running_jobs_that_it_waits_for(place: Path) -> None:
    run_command("cancel", "mail-bad", cwd=place)
    with Queue(place / "data/queue.tsv") as queue, ExitStack() as stack:
        queue.enqueue("slow", 1, job_id="slow-1")

        def handler(_: object) -> None:
            screen = stack.enter_context(
                Screen(command("move", "--to", "new.tsv", "-y"), place, columns=200)
            )
            screen.wait_for(r"moved \d; waits until 1 job \(slow-1\) has ended")
            screens.append(screen)

        screens: list[Screen] = []
        with pytest.raises(QueueMoved):
            queue.process_jobs({"slow": handler}, linger=20, skip_unknown=True)
        assert screens[0].wait() == 0
        assert "was moved; programs" in screens[0].text()


def test_what_was_moved_is_a_sentence(place: Path) -> None:
    run_command("cancel", "mail-bad", cwd=place)
    text = shown(["move", "--to", "new.tsv", "--finished", "-y"], place, columns=400)
    assert text.startswith("1 job and 1 finished job were moved; programs and crontab lines must")
    text = shown(["move", "--to", "new.tsv", "-y"], place, columns=400)
    assert text.startswith("no job was moved; ")


def test_an_interrupted_move_says_that_it_is_not_complete(tmp_path: Path) -> None:
    add_lines(tmp_path / "data/queue.tsv", *[line(f"job-{number}") for number in range(30000)])
    with Screen(command("move", "--to", "new.tsv", "--yes"), tmp_path) as screen:
        screen.wait_for("moved [1-9]")
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 130
        assert screen.text() == (
            "dbbasic-queue: the move isn't complete: run the same command again"
        )


def test_move_names_the_urls_that_it_knows(place: Path) -> None:
    done = run_command("move", "--to", "amqp://u:secret@host/0", cwd=place)
    assert done.returncode == 2 and "secret" not in done.stderr
    assert (
        "invalid --to: unknown URL scheme 'amqp': must be a path, or a postgresql:" in done.stderr
    )
    done = run_command("list", "--file", "redis://host/0", cwd=place)
    assert "for a queue on a server, set $DBBASIC_QUEUE_URL)" in done.stderr


# -- questions, pauses, edit -------------------------------------------------------------------


def test_after_ctrl_c_at_a_question_the_prompt_has_its_own_line(place: Path) -> None:
    with Screen(command("cancel", "--all"), place) as screen:
        screen.wait_for(r"\[y/N\]")
        screen.interrupt()
        assert screen.wait() == 130
        assert screen.raw.endswith(b"\r\n")


def test_pauses_of_all_types_are_words(place: Path) -> None:
    assert shown(["pause"], place) == "paused     all types"
    assert shown(["resume"], place) == "resumed    all types"
    done = run_command("resume", cwd=place)
    assert done.stderr == "dbbasic-queue: warning: no type was paused\n"


def test_removing_several_lines_in_the_editor_asks_first(place: Path) -> None:
    editor = {"EDITOR": "sed -i /^mail-/d", "TMPDIR": str(place)}
    before = run_command("list", cwd=place).stdout
    for answer, code in (("n\n", 1), ("\x03", 1), ("y\n", 0)):
        with Screen(command("edit"), place, more=editor) as screen:
            screen.wait_for(r"2 jobs will be removed. Go on\? \[y/N\]")
            assert run_command("list", cwd=place).stdout == before
            screen.interrupt() if answer == "\x03" else screen.press(answer)
            assert screen.wait() == code
            kept = list(place.glob("dbbasic-queue-edit-*"))
            assert bool(kept) == bool(code)
            for path in kept:
                assert "nothing was changed; your text is in" in lines(screen.text())
                path.unlink()
    assert run_command("list", cwd=place).stdout == ""


def test_an_edit_without_a_change_says_so(place: Path) -> None:
    text = shown(["edit"], place, EDITOR="true", VISUAL="")
    assert text == "nothing was changed"
    done = run_command("edit", "mail-one", cwd=place, EDITOR="true", VISUAL="")
    assert (done.returncode, done.stdout) == (0, "unchanged\tmail-one\n")


def test_the_start_of_an_invalid_line_is_escaped_once(place: Path) -> None:
    (place / "bad.tsv").write_text("one\ttwo\n")
    done = run_command("import", "bad.tsv", cwd=place)
    assert r"nine columns: 'one\ttwo' (no job" in done.stderr


def test_an_archive_in_a_missing_directory_is_noticed_before_the_question(place: Path) -> None:
    done = shown(["clear", "--all", "--archive", "nowhere/old.tsv"], place, columns=300)
    assert done == (f"dbbasic-queue: {place}/nowhere: there is no such directory (for the archive)")


# -- other commands ----------------------------------------------------------------------------


def test_ctrl_c_leaves_no_progress_on_the_line(tmp_path: Path) -> None:
    with Screen(command("bench", "--jobs", "1000000"), tmp_path) as screen:
        screen.wait_for("step 4 of 5")
        screen.press("\x03")
        assert screen.wait() == 130
        assert screen.text() in ("", "^C")


def test_over_ssh_web_says_how_to_reach_its_address(place: Path) -> None:
    ssh = {"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.1 22"}
    with Screen(command("web"), place, more=ssh, columns=200) as screen:
        text = screen.wait_for("run this there first: .*192")
        port = text.partition("127.0.0.1:")[2].partition("/")[0]
        assert f"ssh -L {port}:127.0.0.1:{port} 192.0.2.1" in text
        screen.press("\x03")
        assert screen.wait() == 130
    with Screen(command("web"), place, columns=200, more={"SSH_CONNECTION": ""}) as screen:
        assert "ssh" not in screen.wait_for("Ctrl-C ends it")


def test_a_long_error_of_the_last_day_is_marked_as_cut(tmp_path: Path) -> None:
    def boom(payload: str) -> None:
        raise ValueError(payload)

    with Queue(tmp_path / "data/queue.tsv") as queue:
        queue.enqueue("mail", "x" * 200)
        queue.process_jobs({"mail": boom}, 1)
    text = shown(["status"], tmp_path, columns=200)
    assert f"ValueError: {'x' * 88}…\n" in text


def test_the_demo_fits_80_columns(tmp_path: Path) -> None:
    done = run_command("demo", "--dir", "d", cwd=tmp_path)
    assert done.returncode == 0
    own = [
        text
        for text in done.stdout.splitlines()
        if not text.startswith("$ ")
        and "\t" not in text
        and str(tmp_path) not in text
        and "* * * *" not in text
        and "mail-to-busy" not in text
    ]
    assert len(own) > 30
    assert [text for text in own if len(text) > 79] == []


# -- changes -----------------------------------------------------------------------------------


def test_what_was_done_to_one_job_has_no_tabs_at_a_terminal(place: Path) -> None:
    with Screen(command("cancel", "mail-one", "mail-bad"), place) as screen:
        assert screen.wait() == 0
        assert b"\t" not in screen.raw
        assert screen.text().splitlines()[:2] == ["cancelled  mail-one", "cancelled  mail-bad"]
    with Screen(command("move", "--to", "new.tsv", "-n", "--finished"), place) as screen:
        assert screen.wait() == 0
        assert b"\t" not in screen.raw and "would be moved  cancelled  2" in screen.text()
    in_a_pipe = run_command("requeue", "mail-one", cwd=place)
    assert in_a_pipe.stdout == "requeued\tmail-one\n"
