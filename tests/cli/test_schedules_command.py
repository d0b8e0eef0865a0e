"""`dbbasic-queue schedules`: one line per schedule, for grep and awk."""

from __future__ import annotations

from pathlib import Path

from helpers import NOW, Clock, run_command

from dbbasic_queue import Handlers, Queue


def declare(path: Path, *names: str, program: str = "program") -> None:
    """Let a pass at NOW, and one two hours later, record schedules."""
    clock = Clock()
    jobs = Handlers(name=program)
    jobs.handler("work")(lambda payload: None)
    for name in names:
        jobs.every("0 * * * *", "work", name=name, timezone="Europe/Berlin")
        jobs.every(86_400, "work", name=f"{name}.daily")
    with Queue(path, clock=clock) as queue:
        queue.process_jobs(jobs)
        clock.now += 7200
        queue.process_jobs(jobs)


def test_the_schedules_are_printed_with_their_instants_in_utc(tmp_path: Path) -> None:
    declare(tmp_path / "data" / "queue.tsv", "a", program="pro\tgram")
    done = run_command("schedules", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("\t", "|").splitlines() == [
        "a|pro\\tgram|work|0 * * * *|Europe/Berlin|2027-01-15T10:00:00Z|2027-01-15T11:00:00Z",
        "a.daily|pro\\tgram|work|86400s|-|-|2027-01-16T00:00:00Z",
    ]
    assert NOW == 1_800_000_000  # 2027-01-15T08:00:00Z


def test_a_schedule_is_removed_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "data" / "queue.tsv"
    declare(path, "a")
    done = run_command("schedules", "--remove", "a", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "removed\ta\n")
    assert [row["name"] for row in Queue(path).schedules()] == ["a.daily"]
    done = run_command("schedules", "--remove", "a", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dbbasic-queue: there is no schedule a\n"


def test_schedules_can_be_printed_before_the_first_job(tmp_path: Path) -> None:
    jobs = Handlers(name="program")
    jobs.every(60, "work")
    Queue(tmp_path / "data" / "queue.tsv").process_jobs(jobs)
    assert not (tmp_path / "data" / "queue.tsv").exists()
    done = run_command("schedules", cwd=tmp_path)
    assert done.stdout.startswith("work\tprogram\twork\t60s\t-\t-\t")


def test_without_schedules_nothing_is_printed_and_without_a_queue_that_is_an_error(
    tmp_path: Path,
) -> None:
    done = run_command("schedules", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no queue" in done.stderr
    Queue(tmp_path / "data" / "queue.tsv").enqueue("work", {})
    done = run_command("schedules", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
