"""`enqueue --exist-ok` and `--unique`, `edit`, `requeue --error`, `purge --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import NOW, Clock, raises, rows, run_command

from dbbasic_queue import Fail, Queue

if TYPE_CHECKING:
    from pathlib import Path


def ok(*arguments: str, cwd: Path) -> str:
    done = run_command(*arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(*arguments: str, cwd: Path) -> str:
    """Run a command that isn't done; return the line that says why."""
    done = run_command(*arguments, cwd=cwd)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_unique_job_is_added_once_and_its_id_printed_each_time(
    tmp_path: Path, path: Path
) -> None:
    first = ok("enqueue", "sync", '{"a": 1, "b": 2}', "--unique", cwd=tmp_path)
    assert ok("enqueue", "sync", '{"b":2,"a":1}', "--unique", cwd=tmp_path) == first
    assert ok("enqueue", "sync", '{"a": 2}', "--unique", cwd=tmp_path) != first
    assert len(rows(path)) == 2


def test_an_id_that_may_exist_is_printed_each_time(tmp_path: Path, path: Path) -> None:
    for _ in range(2):
        assert ok("enqueue", "sync", "1", "--id", "a", "--exist-ok", cwd=tmp_path) == "a\n"
    assert "already in the queue" in refused("enqueue", "sync", "--id", "a", cwd=tmp_path)
    assert len(rows(path)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("enqueue", "sync", "--exist-ok"),
        ("enqueue", "sync", "--unique", "--id", "a"),
        ("requeue", "a", "--error", "SMTP"),
        ("requeue", "--error", "("),
        ("edit", "a", "{"),
    ],
)
def test_options_that_do_not_fit_together_are_wrong_usage(
    tmp_path: Path, path: Path, arguments: tuple[str, ...]
) -> None:
    Queue(path).enqueue("sync", {}, job_id="a")
    before = path.read_bytes()
    done = run_command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dbbasic-queue ")
    assert path.read_bytes() == before


def test_edit_replaces_the_payload_of_a_pending_job(
    tmp_path: Path, path: Path, queue: Queue
) -> None:
    for job_id in ("waits", "done"):
        queue.enqueue(job_id, {"to": "ada"}, job_id=job_id)
    queue.process_jobs({"done": raises()}, skip_unknown=True)
    assert ok("edit", "waits", '{"to": "eve"}', cwd=tmp_path) == "edited\twaits\n"
    assert [columns[2] for columns in rows(path)] == ['{"to": "eve"}', '{"to": "ada"}']
    assert "done was not edited: it is completed" in refused("edit", "done", "1", cwd=tmp_path)
    assert "no such job" in refused("edit", "unknown", "1", cwd=tmp_path)


def test_requeue_chooses_failed_jobs_by_their_error(tmp_path: Path, queue: Queue) -> None:
    for job_type, error in (("mail", "SMTP 450"), ("mail", "other"), ("bulk", "SMTP 550")):
        queue.enqueue(job_type, {})
        queue.process_jobs({job_type: raises(Fail(error))}, skip_unknown=True)
    both = ("--type", "mail", "--error", "SMTP")
    assert ok("requeue", "--failed", *both, cwd=tmp_path) == "requeued\t1\tmail=1\n"
    assert ok("requeue", "--error", "SMTP 5.0$", cwd=tmp_path) == "requeued\t1\tbulk=1\n"
    assert [job["error"] for job in queue.jobs("failed")] == ["other"]


def test_a_dry_run_prints_how_many_jobs_a_purge_would_remove(
    tmp_path: Path, path: Path, clock: Clock
) -> None:
    queue = Queue(path, clock=Clock(NOW - 800_000_000))
    for _ in range(3):
        queue.cancel_job(queue.enqueue("sync", {}))
    before = path.read_bytes()
    purge = ("purge", "--older-than", "1d")
    assert ok(*purge, "--dry-run", cwd=tmp_path) == "would be purged\t3\tsync=3\n"
    of_failed = ok(*purge, "--dry-run", "--status", "failed", cwd=tmp_path)
    assert of_failed == "would be purged\t0\t-\n"
    assert path.read_bytes() == before
    assert ok(*purge, cwd=tmp_path) == "purged\t3\tsync=3\n"
