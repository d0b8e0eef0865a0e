"""The verdict of `status`: when a queue counts as stalled, and when it must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import (
    NONE,
    NOW,
    Clock,
    Programs,
    add_lines,
    fill,
    line,
    run_command,
    small_disk,
    wait_for,
    wait_for_notes,
)

from dbbasic_queue import Queue
from dbbasic_queue.monitoring.status import Status
from dbbasic_queue.store.pass_log import encode_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dbbasic_queue.monitoring.verdict import Verdict

MINUTE, HOUR = 60.0, 3600.0
Pass = tuple[float, float]
"""when a pass starts and ends"""


class Cron:
    """Makes passes that start and end at these instants, and asks for the verdict in between.

    One job is always due: no handler has its type.
    """

    def __init__(self, queue: Queue, clock: Clock) -> None:
        self.queue = queue
        self.clock = clock
        queue.enqueue("due", {}, job_id="due", run_at=NOW - 10)

    def run(self, passes: Iterable[Pass], types: str = "other") -> None:
        for started_at, ended_at in passes:
            self.clock.now = ended_at
            row = encode_row(ended_at, ended_at - started_at, types, NONE)
            self.queue.store.note_pass(row)

    def verdict(self, now: float) -> Verdict:
        return Status(self.queue.store, now).verdict

    def words(self, passes: list[Pass], looks: Iterable[float]) -> set[str]:
        """Return the verdicts at these instants, each given the passes that have ended by then."""
        left: list[Pass] = list(passes)
        found: set[str] = set()
        for look in sorted(looks):
            while left and left[0][1] <= look:
                self.run([left.pop(0)])
            is_alive = any(started_at <= look < ended_at for started_at, ended_at in left)
            if not is_alive:
                found.add(self.verdict(look).word)
        return found


@pytest.fixture
def cron(queue: Queue, clock: Clock) -> Cron:
    return Cron(queue, clock)


def every(seconds: float, count: int, *, lasts: float = 0.2, late: float = 0.0) -> list[Pass]:
    """Return passes that start every N seconds, every third one a little late."""
    starts = [NOW + n * seconds + (late if n % 3 == 2 else 0.0) for n in range(count)]
    return [(started_at, started_at + lasts) for started_at in starts]


def looks(passes: list[Pass], step: float) -> list[float]:
    """Return instants from the end of the first pass to that of the last one."""
    first, last = passes[0][1], passes[-1][1]
    regular = [first + n * step for n in range(int((last - first) / step) + 1)]
    just_before = [started_at - 0.001 for started_at, _ in passes[1:]]
    return regular + just_before


@pytest.mark.parametrize(
    ("passes", "step"),
    [
        pytest.param(every(MINUTE, 30, late=5), 7, id="every minute"),
        pytest.param(every(MINUTE, 30, lasts=55), 7, id="every minute, and stays for 55 s"),
        pytest.param(every(HOUR, 14, late=5), 300, id="every hour"),
        pytest.param(
            sorted(every(HOUR, 14) + [(at + 60, end + 60) for at, end in every(HOUR, 14)]),
            300,
            id="two programs, one just after the other",
        ),
        pytest.param(
            sorted(every(HOUR, 12) + every(MINUTE, 700), key=lambda found: found[1]),
            97,
            id="two programs, one every minute",
        ),
        pytest.param(
            sorted([*every(MINUTE, 10), *every(MINUTE, 40)[15:]]), 7, id="a restart of the machine"
        ),
    ],
)
def test_a_queue_whose_cron_line_works_is_never_stalled(
    cron: Cron, passes: list[Pass], step: float, request: pytest.FixtureRequest
) -> None:
    instants = looks(passes, step)
    if "restart" in request.node.callspec.id:  # while it is off, nobody looks
        instants = [at for at in instants if not passes[9][1] + 60 < at < passes[10][1]]
    assert cron.words(passes, instants) == {"idle"}


def test_a_line_that_runs_once_a_day_is_known_after_three_days(cron: Cron) -> None:
    days = every(24 * HOUR, 13, late=60)
    cron.run(days[:2])
    assert cron.words(days[2:], looks(days[2:], 3 * HOUR)) == {"idle"}


@pytest.mark.parametrize(
    ("seconds", "noticed_after"), [(MINUTE, 2 * MINUTE), (10.0, 2 * MINUTE), (HOUR, 2 * HOUR)]
)
def test_a_cron_line_that_does_not_work_any_more_is_noticed(
    cron: Cron, seconds: float, noticed_after: float
) -> None:
    passes = every(seconds, 10, lasts=0.0)
    cron.run(passes)
    last = passes[-1][1]
    assert cron.verdict(last + noticed_after - 1).word == "idle"
    found = cron.verdict(last + noticed_after + 1)
    assert found.word == "stalled"
    assert found.text.startswith("1 job is due, and no pass has ended for 2 ")
    assert found.command == "dbbasic-queue doctor"


def test_only_the_last_ten_passes_say_how_long_the_pauses_are(cron: Cron) -> None:
    hourly = every(HOUR, 5, lasts=0.0)
    start = hourly[-1][1]
    cron.run(hourly + [(start + n * 60, start + n * 60) for n in range(1, 10)])
    assert cron.verdict(start + 540 + 121).word == "stalled"


def test_a_queue_that_no_pass_has_worked_on_is_stalled_two_minutes_after_a_job_was_due(
    queue: Queue, clock: Clock
) -> None:
    queue.enqueue("work", {}, run_at=NOW + 100)
    for seconds, word in ((99, "idle"), (101, "idle"), (219, "idle"), (221, "stalled")):
        assert (seconds, Status(queue.store, NOW + seconds).verdict.word) == (seconds, word)
    found = Status(queue.store, NOW + 400).verdict
    assert "no pass has ended yet: is there a crontab line?" in found.text
    assert found.command == "dbbasic-queue crontab --help"


@pytest.mark.parametrize("passes", [[(NOW, NOW + 1)], [(NOW - 60, NOW - 59), (NOW, NOW + 1)]])
def test_one_or_two_passes_do_not_say_that_the_line_runs_more_than_once_an_hour(
    cron: Cron, passes: list[Pass]
) -> None:
    cron.run(passes)
    assert cron.verdict(NOW + HOUR + 30).word == "idle"
    assert cron.verdict(NOW + 2 * HOUR + 2).word == "stalled"


def test_a_queue_without_a_due_job_is_not_stalled(queue: Queue, clock: Clock) -> None:
    queue.enqueue("work", {})
    for number in range(10):
        clock.now = NOW + number * 60
        queue.process_jobs({"work": str})
    now = clock.now + 10 * HOUR
    assert Status(queue.store, now).verdict.word == "idle"
    queue.enqueue("work", {}, run_at=now + 60)
    queue.enqueue("mail", {})
    queue.pause("mail")
    found = Status(queue.store, now).verdict
    assert (found.word, found.command) == ("idle", "dbbasic-queue resume")
    assert found.text == "nothing is due; 1 job waits because its type is paused"
    assert Status(queue.store, now + 61).verdict.word == "stalled"


def test_idle_passes_and_working_passes_are_logged(queue: Queue, clock: Clock) -> None:
    queue.enqueue("work", {})
    queue.process_jobs({"work": str})
    clock.now += 60
    queue.process_jobs({"work": str})
    assert [(found.ended_at, found.counts["completed"]) for found in queue.store.passes()] == [
        (NOW, 1),
        (NOW + 60, 0),
    ]


def test_a_pass_that_raises_is_not_logged_as_ended(queue: Queue, path: Path) -> None:
    def spoil(_: object) -> None:
        path.write_text("not a queue\n")

    queue.enqueue("work", {})
    with pytest.raises(OSError):
        queue.process_jobs({"work": spoil})
    assert queue.store.passes() == []


WORKER = """
    def work(_):
        note("running", "x")
        time.sleep(600)

    queue.process_jobs({"work": work}, linger=600)
    """


def test_a_queue_with_a_live_worker_is_never_stalled_but_one_whose_worker_was_killed_is(
    programs: Programs, now_queue: Queue
) -> None:
    now_queue.enqueue("work", {}, job_id="first")
    worker = programs.start(WORKER)
    wait_for_notes(programs.directory / "running", 1)
    now_queue.enqueue("work", {}, job_id="second")
    later = now_queue.now() + 30 * 24 * HOUR
    found = Status(now_queue.store, later).verdict
    assert found.word == "running"
    assert found.text.startswith("1 job is running, 1 job is due; first has been running for 30 d")
    assert found.command == "dbbasic-queue show first"

    worker.kill()
    found = Status(now_queue.store, now_queue.now() + 1).verdict
    assert found.word == "idle"
    assert found.text.startswith("1 job is due and 1 job has lost its pass: the next pass runs ")
    assert Status(now_queue.store, later).verdict.word == "stalled"


def test_a_worker_that_waits_for_jobs_is_idle(programs: Programs, now_queue: Queue) -> None:
    now_queue.enqueue("other", {}, run_at=now_queue.now() + 600)
    worker = programs.start(
        """
        from dbbasic_queue.store.claiming.claims import Claims
        before = Claims.__init__
        def opened(self, *arguments, **options):
            before(self, *arguments, **options)
            note("alive", "x")
        Claims.__init__ = opened
        queue.process_jobs({"work": str}, linger=600)
        """
    )
    wait_for_notes(programs.directory / "alive", 1)
    found = Status(now_queue.store, now_queue.now()).verdict
    assert found.word == "idle"
    assert found.text.startswith("1 worker waits; nothing is due; the next job is due in ")
    assert worker.is_running()


def test_a_job_whose_pass_died_counts_as_waiting(cron: Cron, path: Path) -> None:
    cron.queue.cancel_job("due")
    add_lines(path, line("lost", status="processing", attempts=1))
    passes = every(MINUTE, 10)
    cron.run(passes, "greet")
    found = cron.verdict(passes[-1][1] + 30)
    assert found.word == "idle"
    assert found.text.startswith("1 job has lost its pass: the next pass recovers it")
    assert cron.verdict(passes[-1][1] + 130).word == "stalled"


def test_a_job_whose_pass_died_stays_if_no_pass_has_a_handler_for_it(
    cron: Cron, path: Path
) -> None:
    add_lines(path, line("lost", status="processing", attempts=1, run_at=NOW - 60))
    passes = every(MINUTE, 10)
    cron.run(passes)
    found = cron.verdict(passes[-1][1] + 30)
    assert found.text.startswith(
        "1 job is due and 1 job has lost its pass, but no pass has a handler for greet and 1 other"
    )
    assert found.command == "dbbasic-queue list --type greet"


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows + "torn",
        lambda rows: rows + "one\ttwo\n",
        lambda rows: rows.replace("\t0\n", "\t0\n\n"),
        lambda rows: rows + rows.split("\n")[1].replace("1800", "nan") + "\n",
    ],
)
def test_damaged_rows_of_the_log_are_left_out(
    cron: Cron, path: Path, change: Callable[[str], str]
) -> None:
    passes = every(MINUTE, 10)
    cron.run(passes)
    log = path.with_name("queue.tsv.passes")
    log.write_text(change(log.read_text("utf-8")), "utf-8")
    assert len(cron.queue.store.passes()) == 10
    assert cron.verdict(passes[-1][1] + 60).word == "idle"


# -- types that no pass has a handler for --


def test_a_job_that_no_pass_has_a_handler_for_is_not_said_to_be_run_next(cron: Cron) -> None:
    passes = every(MINUTE, 3)
    cron.run(passes[:2])
    cron.queue.enqueue("fax", {}, run_at=NOW + 70)
    found = cron.verdict(NOW + 80)
    assert found.text.startswith("2 jobs are due: the next pass runs them (the last one ended ")
    assert found.text.endswith("but no pass has a handler for due (they have handlers for other)")
    cron.run(passes[2:])
    found = cron.verdict(passes[-1][1] + 30)
    assert (found.word, found.command) == ("idle", "dbbasic-queue list --type due")
    assert found.text == (
        "2 jobs are due, but no pass has a handler for due and 1 other type "
        "(they have handlers for other)"
    )
    cron.queue.pause("due")
    assert cron.verdict(passes[-1][1] + 30).text.startswith("1 job is due, but no pass has a ")
    cron.run([(NOW + 160, NOW + 161)], "fax other=2")
    found = cron.verdict(NOW + 170)
    assert found.text == "1 job is due: the next pass runs it (the last one ended 9 s ago)"


def test_a_program_that_runs_once_an_hour_has_handlers_between_its_passes(cron: Cron) -> None:
    hourly = [(at + 1, end + 1) for at, end in every(HOUR, 5)]
    minutely = every(MINUTE, 241)
    for number, found in enumerate(minutely):
        cron.run([found])
        if number % 60 == 0:
            cron.run([hourly[number // 60]], "due")
        if number >= 180:
            assert "handler" not in cron.verdict(cron.clock.now + 20).text
    for number in range(241, 361):
        cron.run([(NOW + number * MINUTE, NOW + number * MINUTE + 0.2)])
    found_text = cron.verdict(cron.clock.now).text
    assert "but no pass has had a handler for due for 2 h (" not in found_text
    cron.run([(NOW + 362 * MINUTE, NOW + 362 * MINUTE)])
    found_text = cron.verdict(cron.clock.now).text
    assert "but no pass has had a handler for due for 2 h 1 min (they have handlers" in found_text


def test_passes_that_also_try_other_types_run_every_job(cron: Cron) -> None:
    cron.run(every(MINUTE, 3), "other *")
    assert "the next pass runs it" in cron.verdict(NOW + 130).text


def test_a_worker_without_a_handler_for_the_due_job(now_queue: Queue, programs: Programs) -> None:
    now_queue.enqueue("due", {})
    worker = programs.start("""queue.process_jobs({"other": str}, linger=600, skip_unknown=True)""")
    store, now = now_queue.store, now_queue.now()
    wait_for(lambda: store.running()[0], "the pass")
    found = Status(store, now + 30).verdict
    assert found.text == "1 job is due, and a pass is about to start it"
    found = Status(store, now + 70).verdict
    assert found.word == "idle"
    assert found.text.startswith("1 worker waits; 1 job is due, but no pass has a handler for due")
    assert worker.is_running()


def test_a_full_disk_is_named_before_and_after_the_queue_is_stalled(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk, Queue(disk / "queue.tsv") as queue:
        full = f"the disk of {disk} is full: free some space"
        queue.enqueue("work", {})
        now = queue.now()
        before = Status(queue.store, now)
        assert (before.full_disk, before.verdict.command) == ("", "")
        fill(disk)
        found = Status(queue.store, now).verdict
        assert found.command == "dbbasic-queue doctor"
        assert str(found) == f"idle: 1 job is due: the next pass runs it (none has ended); {full}"
        found = Status(queue.store, now + 300).verdict
        assert found.command == "dbbasic-queue doctor"
        assert found.text.endswith(f"and no pass has ended yet: {full}")
        done = run_command("check", cwd=disk, DBBASIC_QUEUE_FILE=queue.path)
        assert done.returncode == 2
        assert done.stdout.startswith(f"CRITICAL: the disk of {disk} is full | ")
        (disk / "filler").unlink()
        assert Status(queue.store, now).full_disk == ""


def test_a_queue_that_was_moved_says_so(path: Path) -> None:
    from dbbasic_queue.moving import move

    with Queue(path, even_if_moved=True) as old, Queue(path.with_name("new.tsv")) as new:
        old.enqueue("work", {})
        move(old.store, new.store)
        found = Status(old.store, NOW).verdict
    assert (found.word, found.command) == ("moved", "")
    assert str(found) == f"moved: this queue was moved to {path.with_name('new.tsv')}"
