"""`watch` in a real terminal, and in a pipe."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from helpers import Child, Programs, add_lines, line, run_command, wait_for
from screen import Screen, command

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = re.compile(r"(?m)^([0-9a-f]{16,})  ")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with Queue(tmp_path / "data/queue.tsv") as queue:
        yield queue


def boom(_: object) -> None:
    raise ValueError("the \x1b[31mprinter\x07 is on fire")


def watching(place: Path, *arguments: str, columns: int = 80, lines: int = 24) -> Screen:
    return Screen(
        command("watch", "--interval", "0.1s", *arguments), place, columns=columns, lines=lines
    )


def test_it_shows_the_verdict_the_counts_the_rates_and_what_ended(
    tmp_path: Path, queue: Queue
) -> None:
    queue.enqueue("print", {}, job_id="first")
    queue.enqueue("mail", {}, job_id="second")
    queue.enqueue("later", {}, job_id="third", run_at=time.time() + 7000)
    queue.pause("other")
    queue.process_jobs({"print": boom, "mail": lambda _: None}, max_attempts=1)
    with watching(tmp_path) as screen:
        text = screen.wait_for("q quit")
        lines = text.split("\n")
        assert re.match(r"idle: nothing is due; the next job is due in 1 h 5\d min", lines[0])
        assert "pending 1  processing 0  completed 1  failed 1  cancelled 0  due 0" in text
        assert "last minute: 2 ended, 1 failed  paused: other" in text
        titles, *rows = (line for line in lines if re.match("ID|first|second", line))
        assert titles.split() == ["ID", "TYPE", "WHAT", "WHEN", "PROGRESS", "OR", "ERROR"]
        shown = {row.split()[0]: row for row in rows}
        assert re.search(
            r"first +print +failed +(just now|\d s ago) +ValueError: the", shown["first"]
        )
        assert re.search(r"second +mail +completed", shown["second"])
        screen.press("q")
        assert screen.wait() == 0


def test_running_jobs_have_a_bar_that_moves(
    tmp_path: Path, queue: Queue, programs: Programs
) -> None:
    queue.enqueue("slow", {}, job_id="movie")
    programs.start(
        """
        def slow(payload, job):
            def report(done, file):
                job.progress(done, 10, f"frame {done}")
                return Path(file).exists()

            wait_for(lambda: report(3, "go"), "go")
            wait_for(lambda: report(7, "end"), "end")

        queue.process_jobs({"slow": slow})
        """
    )
    with watching(tmp_path) as screen:
        text = screen.wait_for(r"movie +slow +running .*frame 3")
        assert "30%" in text or "3/10" in text or "30 %" in text, text
        assert re.search("(?m)^running: 1 job is running", text)
        (tmp_path / "go").touch()
        screen.wait_for(r"movie .*frame 7")
        (tmp_path / "end").touch()
        screen.wait_for(r"movie +slow +completed")
        screen.press("q")
        assert screen.wait() == 0


def test_keys_choose_a_job_and_show_requeue_pause_and_stop_it(tmp_path: Path, queue: Queue) -> None:
    queue.enqueue("print", {"pages": 7}, job_id="first")
    queue.process_jobs({"print": boom}, max_attempts=1)
    with watching(tmp_path) as screen:
        screen.wait_for("first +print +failed")
        screen.press("\r")
        screen.wait_for("choose a job first, with the arrow keys")
        screen.press("\x1b[B\r")  # down
        text = screen.wait_for("any other key returns")
        assert '"pages": 7' in text
        assert "it is failed: it runs again if you requeue it" in text
        screen.press(" ")
        screen.wait_for("last minute")
        screen.press("p")
        screen.wait_for("jobs of type print are paused")
        assert queue.paused() == {"print"}
        screen.press("p")
        screen.wait_for("jobs of type print run again")
        assert not queue.paused()
        screen.press("r")
        screen.wait_for("first was requeued")
        assert queue.counts()["pending"] == 1
        screen.wait_for(r"pending 1 ")
        screen.press("r")
        screen.wait_for("first is neither failed nor cancelled")
        screen.press("s")
        screen.wait_for("first: cancelled")
        assert queue.counts()["cancelled"] == 1
        screen.press("q")
        assert screen.wait() == 0


def test_a_filter_and_the_failed_jobs_only(tmp_path: Path, queue: Queue) -> None:
    for name in ("ann", "bob"):
        queue.enqueue("print", {}, job_id=name)
        queue.enqueue("mail", {}, job_id=f"{name}-mail")
    queue.process_jobs({"print": boom, "mail": lambda _: None}, max_attempts=1)
    with watching(tmp_path) as screen:
        screen.wait_for("bob-mail")
        screen.press("/aNnx\x7f")
        screen.wait_for("filter: aNn_")
        screen.press("\r")
        text = screen.wait_for("(?s)^(?!.*bob).*only jobs that contain 'ann'.*q quit.* a all")
        assert "ann-mail" in text
        screen.press("f")
        text = screen.wait_for(r"(?s)^(?!.*-mail).*\nann +print +failed")
        assert "only failed jobs that contain 'ann'" in text
        screen.press("a")
        assert "only " not in screen.wait_for("(?s)bob-mail.*f failed")
        screen.press("/zzz\r")
        screen.wait_for("there are no jobs that contain 'zzz'")
        screen.press("/\x1b")
        screen.wait_for("bob-mail")


def test_a_question_mark_shows_all_keys(tmp_path: Path, queue: Queue) -> None:
    queue.enqueue("print", {})
    with watching(tmp_path) as screen:
        shown = screen.wait_for(
            "no job is running, and none has ended yet(?s:.*)q quit .* f failed"
        )
        screen.press("?")
        text = screen.wait_for("any other key returns")
        named = set(re.findall(r"(?m)^(\S+)  ", text)) | {"?"}
        assert named >= set(re.findall(r"(\S+) [a-z]+(?:  |$)", shown.split("\n")[-1]))
        screen.press("x")
        screen.wait_for("q quit")


def test_what_is_shown_of_a_job_follows_the_size_and_scrolls(tmp_path: Path, queue: Queue) -> None:
    def fail(_: object) -> None:
        raise ValueError(" ".join(f"word{number}" for number in range(40)))

    queue.enqueue("print", {"pages": list(range(30))}, job_id="first")
    queue.process_jobs({"print": fail}, max_attempts=1)
    with watching(tmp_path, columns=160, lines=24) as screen:
        screen.wait_for("first +print +failed")
        screen.press("j\r")
        assert "word12" in screen.wait_for("arrows scroll, any other key returns")
        screen.resize(50, 12)
        text = screen.wait_for("(?s)word3\n(?!.*word30)")
        words = re.findall(r"word\d+", text)
        assert words == [f"word{number}" for number in range(len(words))] and len(words) > 5
        screen.press("jjjj")
        screen.wait_for("(?s)^(?!first)")
        screen.press("kkkk")
        screen.wait_for("(?s)^first")
        screen.press(" ")
        screen.wait_for("last minute")


def test_the_screen_follows_the_size_of_the_terminal(tmp_path: Path, queue: Queue) -> None:
    for n in range(50):
        queue.enqueue("a_type_with_a_name_that_is_rather_long", {}, job_id=f"job-{n:02}")
    queue.process_jobs({"a_type_with_a_name_that_is_rather_long": boom}, max_attempts=1)
    with watching(tmp_path, columns=160, lines=40) as screen:
        text = screen.wait_for("q quit")
        assert "a_type_with_a_name_that_is_rather_long  failed" in text
        for columns, lines in ((40, 12), (20, 5), (100, 30)):
            screen.resize(columns, lines)
            screen.wait_for("(?s)idle.*" if lines < 12 else "(?s)idle.*job-")
            assert len(screen.lines()) == lines
        screen.wait_for("q quit")
        screen.press("q")
        assert screen.wait() == 0


def test_an_unchanged_screen_sends_almost_nothing(tmp_path: Path, queue: Queue) -> None:
    for n in range(60):
        queue.enqueue("print", {}, job_id=f"job-{n:02}")
    queue.process_jobs({"print": boom}, max_attempts=1)
    with watching(tmp_path, "--count", "25", columns=160, lines=50) as screen:
        screen.wait_for("q quit")
        first = len(screen.raw)
        screen.wait()
        refreshes = 25
        assert (len(screen.raw) - first) / refreshes < 2000
        assert first > 3000


def test_text_from_jobs_does_not_control_the_terminal(tmp_path: Path, queue: Queue) -> None:
    queue.enqueue("print", {"x": "\x1b]0;owned\x07\u202e"}, job_id="first")
    queue.process_jobs({"print": boom}, max_attempts=1)
    with watching(tmp_path) as screen:
        text = screen.wait_for("first +print +failed")
        assert "\\x1b[31mprinter\\x07" in text
        screen.press("j\r")
        screen.wait_for("any other key returns")
        assert b"\x1b[31mprinter" not in screen.raw
        assert b"\x07" not in screen.raw
        assert "\u202e".encode() not in screen.raw


def test_it_says_that_the_queue_is_stalled_and_what_to_do(tmp_path: Path) -> None:
    add_lines(tmp_path / "data/queue.tsv", line("a", run_at=int(time.time()) - 9000))
    with watching(tmp_path) as screen:
        text = screen.wait_for("q quit").replace("\n", " ")
        assert re.search("stalled: 1 job is due, the first one for 2 h", text)
        assert "dbbasic-queue crontab --help" in " ".join(text.split())


def test_a_queue_that_cannot_be_read_for_a_while_is_shown_again(
    tmp_path: Path, queue: Queue
) -> None:
    queue.enqueue("print", {}, job_id="first")
    path = tmp_path / "data/queue.tsv"
    with watching(tmp_path) as screen:
        screen.wait_for("q quit")
        content = path.read_bytes()
        new = path.with_name("new")
        new.write_bytes(b"something else\n" * 9)
        new.rename(path)
        screen.wait_for("the first line is not the header")
        new.write_bytes(content)
        new.rename(path)
        screen.wait_for("q quit")


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "vt100"}, {"LC_ALL": "C"}])
def test_it_works_on_plain_terminals(
    tmp_path: Path, queue: Queue, variables: dict[str, str]
) -> None:
    queue.enqueue("print", {}, job_id="first")
    queue.process_jobs({"print": boom}, max_attempts=1)
    with Screen(command("watch"), tmp_path, more=variables) as screen:
        screen.wait_for("first +print +failed")
        if "LC_ALL" not in variables:
            assert not re.search(rb"\x1b\[[0-9;]*3[1-6]m", screen.raw)
        screen.press("q")
        assert screen.wait() == 0


def test_in_a_pipe_there_is_one_line_per_change(
    tmp_path: Path, queue: Queue, programs: Programs
) -> None:
    queue.enqueue("print", {}, job_id="old")
    queue.process_jobs({"print": boom}, max_attempts=1)
    child = Child(command("watch", "--interval", "0.05s"), tmp_path, "watch")
    programs.children.append(child)
    wait_for(lambda: child.output.read_bytes(), "the verdict")
    queue.enqueue("print", {}, job_id="new")
    queue.process_jobs({"print": boom}, max_attempts=1)
    wait_for(lambda: b"\tfailed\tnew\t" in child.output.read_bytes(), "the new job")
    lines = [line.split("\t")[1:] for line in child.output.read_text().splitlines()]
    assert lines[0][:2] == ["verdict", "idle"]
    assert [line[:4] for line in lines if line[1] == "new"][-1] == ["failed", "new", "print", "1"]
    assert not any(line[1] == "old" for line in lines)
    assert "\x1b" not in child.output.read_text()


def test_a_pipe_gets_no_control_characters(tmp_path: Path) -> None:
    text = line("a", type="t\x1b[31m\u009b\u202e", status="processing", attempts=1)
    add_lines(tmp_path / "data/queue.tsv", text)
    shown = run_command("watch", "--count", "1", cwd=tmp_path).stdout
    assert "\tstarted\ta\tt\\x1b[31m" in shown
    assert {c for c in shown if not c.isprintable()} == {"\t", "\n"}


def test_it_ends_after_as_many_refreshes_as_were_asked_for(tmp_path: Path, queue: Queue) -> None:
    queue.enqueue("print", {})
    ran = run_command("watch", "--count", "2", "--interval", "0.05s", cwd=tmp_path)
    assert ran.returncode == 0
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\tverdict\tidle\t1 job is due: the next pass runs it .*\n",
        ran.stdout,
    )
