"""`dbbasic-queue status`: what it shows about queues and about running passes."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from helpers import NOW, Clock, Programs, add_lines, line, run_command, sibling, wait_for_notes

from dbbasic_queue import Delay, Fail, Queue
from dbbasic_queue.monitoring.durations import instant
from dbbasic_queue.monitoring.status import lines

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def by_first_word(texts: Iterable[str]) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for text in texts:
        name, *words = text.split("\t")
        found.setdefault(name, []).append(words)
    return found


def status(queue: Queue, now: float = NOW) -> dict[str, list[list[str]]]:
    """Return the words of the status lines, by their first word."""
    return by_first_word(lines(queue.store, now))


def status_of(directory: Path) -> dict[str, list[list[str]]]:
    """Return the same from the command, run in the programs' directory."""
    done = run_command("status", cwd=directory)
    assert (done.returncode, done.stderr) == (0, "")
    return by_first_word(done.stdout.splitlines())


def fail(payload: object) -> None:
    raise Fail(f"no {payload}")


def test_a_fresh_queue_has_zeros_and_dashes(queue: Queue, path: Path) -> None:
    queue.cancel_job(queue.enqueue("greet", {}))
    assert list(lines(queue.store, NOW)) == [
        f"queue\t{path}",
        "verdict\tidle\tnothing is due\t-",
        "pending\t0",
        "processing\t0",
        "completed\t0",
        "failed\t0",
        "cancelled\t1",
        "due\t0\t-\t-",
        "paused\t0\t-",
        "finished\t1\t0",
        "unreadable\t0\t-",
    ]


def test_status_shows_how_long_the_first_due_job_has_waited(queue: Queue, clock: Clock) -> None:
    queue.enqueue("greet", {}, run_at=NOW + 9, job_id="second")
    queue.enqueue("greet", {}, run_at=NOW + 5, job_id="first")
    queue.enqueue("greet", {}, run_at=NOW + 1000, job_id="not-yet")
    assert status(queue)["due"] == [["0", "-", "-"]]
    clock.now = NOW + 65
    assert status(queue, clock.now)["due"] == [["2", "60", "first"]]


def test_waiting_time_starts_no_earlier_than_the_enqueue(queue: Queue) -> None:
    queue.enqueue("greet", {}, run_at=1, job_id="a")
    assert status(queue, NOW + 7)["due"] == [["1", "7", "a"]]


def test_paused_types_are_named_and_their_jobs_are_not_due(queue: Queue) -> None:
    queue.enqueue("greet", {})
    queue.enqueue("mail", {})
    queue.pause("mail")
    queue.pause("call")
    found = status(queue)
    assert found["paused"] == [["1", "call mail"]]
    assert found["due"][0][0] == "1"
    queue.pause()
    assert status(queue)["paused"] == [["2", "* call mail"]]


def test_the_latest_errors_come_first_and_delays_are_not_errors(queue: Queue, clock: Clock) -> None:
    def put_off(payload: object) -> None:
        raise Delay(60, "not now")

    handlers = {"break": fail, "put_off": put_off, "again": lambda payload: 1 / 0}
    for number in range(7):
        queue.enqueue("break", number, run_at=NOW - 100 + number, job_id=f"job-{number}")
        clock.now = NOW + (number - 4) * 10
        queue.process_jobs(handlers)
    clock.now = NOW + 30
    queue.enqueue("put_off", {})
    queue.enqueue("again", {}, job_id="again")
    queue.process_jobs(handlers)
    found = status(queue)
    assert found["failed"] == [["7"]]
    assert [words[0] for words in found["error"]] == ["again", "job-6", "job-5", "job-4", "job-3"]
    assert found["error"][0][1:] == [
        "again",
        "pending",
        "1",
        instant(NOW + 30),
        "ZeroDivisionError: division by zero",
    ]
    assert found["error"][1][2:] == ["failed", "1", instant(NOW + 20), "no 6"]


def test_errors_are_ordered_by_when_they_happened_not_by_run_at(
    queue: Queue, path: Path, clock: Clock
) -> None:
    handlers = {"break": fail, "again": lambda payload: 1 / 0}
    queue.enqueue("again", {}, job_id="waits")  # its retry is due after all others
    queue.process_jobs(handlers)
    clock.now += 5
    queue.enqueue("break", 1, job_id="late", run_at=NOW + 5)
    queue.enqueue("break", 2, job_id="urgent", run_at=7)
    queue.process_jobs(handlers)
    clock.now += 5
    queue.enqueue("break", 3, job_id="last", run_at=8)
    queue.process_jobs(handlers)
    add_lines(
        path,
        line("other", status="failed", error="of another program", run_at=NOW + 9),
        line("older", status="failed", error="of another program", run_at=NOW + 8),
    )
    shown = [(words[0], words[4]) for words in status(queue)["error"]]
    assert shown == [
        ("last", instant(NOW + 10)),
        ("late", instant(NOW + 5)),
        ("urgent", instant(NOW + 5)),
        ("waits", instant(NOW)),
        ("other", "-"),
    ]
    history = sibling(path, "history")
    history.unlink()
    history.mkdir()
    assert status(queue)["error"][0][0] == "waits"


def test_the_latest_of_thousands_of_errors_are_found(queue: Queue, path: Path) -> None:
    add_lines(
        path,
        *(
            line(f"j{n}", status="failed", error=f"E{n}", run_at=NOW - (n * 7919) % 2503)
            for n in range(2503)
        ),
    )
    latest = sorted(range(2503), key=lambda n: (n * 7919) % 2503)[:5]
    assert [words[-1] for words in status(queue)["error"]] == [f"E{n}" for n in latest]


def test_unreadable_lines_are_listed_by_number(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", {})
    add_lines(path, "what is this?\n", line("fine"), "and this\n")
    assert status(queue)["unreadable"] == [["2", "3 5"]]
    add_lines(path, *["x\n"] * 20)
    assert status(queue)["unreadable"] == [["22", "3 5 6 7 8 9 10 11 12 13"]]


def test_no_control_characters_reach_the_terminal(queue: Queue, path: Path) -> None:
    add_lines(path, line("bad", type="gr\x1b[31meet", error="E\x07", status="failed"))
    for text in lines(queue.store, NOW):
        assert text.replace("\t", "").isprintable(), text


def test_reading_the_status_changes_no_file(queue: Queue, path: Path) -> None:
    queue.enqueue("break", 1)
    queue.process_jobs({"break": fail})
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    list(lines(queue.store, NOW))
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_running_job_is_shown_with_its_process_and_as_lost_after_a_kill(
    programs: Programs,
) -> None:
    slow = programs.start(
        """
        queue.enqueue("slow", {}, job_id="in-hand")
        queue.enqueue("slow", {}, job_id="next")

        def slow(payload):
            note("started", "x")
            time.sleep(600)

        queue.process_jobs({"slow": slow})
        """
    )
    wait_for_notes(programs.directory / "started", 1)
    found = status_of(programs.directory)
    ((pid, since),) = found["pass"]
    assert int(pid) == slow.process.pid
    ((job_id, job_type, attempt, holder, claimed, seconds),) = found["running"]
    assert [job_id, job_type, attempt, holder] == ["in-hand", "slow", "1", pid]
    assert since <= claimed and 0 <= int(seconds) <= 60
    assert "lost" not in found

    slow.kill()
    found = status_of(programs.directory)
    assert "pass" not in found and "running" not in found
    assert found["lost"] == [["in-hand", "slow", "1"]]
    assert found["processing"] == [["1"]]

    programs.run("queue.process_jobs({'slow': lambda payload: None})")
    found = status_of(programs.directory)
    assert "lost" not in found
    assert (found["completed"], found["pending"]) == ([["1"]], [["1"]])  # it waits for its backoff

    programs.run("queue.run_now('in-hand'); queue.process_jobs({'slow': lambda payload: None})")
    assert status_of(programs.directory)["completed"] == [["2"]]


def test_running_coroutines_are_shown_with_their_process_and_no_time(programs: Programs) -> None:
    child = programs.start(
        """
        import asyncio
        queue.enqueue_many("slow", [1, 2])

        async def slow(payload):
            note("started", "x")
            await asyncio.sleep(600)

        queue.process_jobs({"slow": slow}, workers=5)
        """
    )
    wait_for_notes(programs.directory / "started", 2)
    running = status_of(programs.directory)["running"]
    assert [words[2:] for words in running] == [["1", str(child.process.pid), "-", "-"]] * 2


def test_reading_the_status_does_not_disturb_running_passes(programs: Programs) -> None:
    looking = programs.start(
        """
        from dbbasic_queue.monitoring.status import lines
        while not Path("done").exists():
            words = [text.split("\\t")[0] for text in lines(queue.store, time.time())]
            assert "lost" not in words, words
            note("looks", "x")
        """
    )
    wait_for_notes(programs.directory / "looks", 1)
    programs.run(
        """
        queue.enqueue_many("count", range(300))
        for _ in range(3):
            queue.process_jobs({"count": lambda n: note("runs", str(n))}, workers=2)
            queue.enqueue_many("count", range(100))
        """
    )
    (programs.directory / "done").touch()
    looking.succeed()
    runs = (programs.directory / "runs").read_text().split()
    assert len(runs) == 500


def test_status_works_with_an_empty_slot_file(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", {})
    fd = os.open(f"{path}.pass.1", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        assert status(queue)["pass"] == [["0", instant(0)]]
    finally:
        os.close(fd)
