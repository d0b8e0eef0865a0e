"""The commands of `dbbasic-queue`, on the queue that `DBBASIC_QUEUE_URL` names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from helpers import run_command

if TYPE_CHECKING:
    from pathlib import Path

    from contract.conftest import Opener

HANDLERS = r"""
[shout]
command = ["sh", "-c", "echo \"$1\" | tr a-z A-Z", "sh", "{text}"]

[break]
command = ["sh", "-c", "echo broken >&2; exit 1"]
max_attempts = 1

[every_night]
command = ["true"]
every = "24h"
"""


@pytest.mark.needs("durability")
class TestCommandLine:
    """Another process can do with these commands what the calls do."""

    @pytest.fixture(autouse=True)
    def place(self, open_at: Opener, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.url = open_at.url(tmp_path)
        (tmp_path / "handlers.toml").write_text(HANDLERS, "utf-8")

    def ok(self, *arguments: str) -> list[list[str]]:
        """Run a command that succeeds; return the fields of each line."""
        done = run_command(*arguments, cwd=self.directory, DBBASIC_QUEUE_URL=self.url)
        assert (done.returncode, done.stderr) == (0, "")
        return [line.split("\t") for line in done.stdout.splitlines()]

    def refused(self, *arguments: str) -> str:
        """Run a command that isn't done; return why."""
        done = run_command(*arguments, cwd=self.directory, DBBASIC_QUEUE_URL=self.url)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    def run_handlers(self) -> str:
        """Make one pass; return what it logs."""
        done = run_command("run", "handlers.toml", cwd=self.directory, DBBASIC_QUEUE_URL=self.url)
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr

    def status(self) -> dict[str, list[str]]:
        return {name: fields for name, *fields in self.ok("status")}

    def test_a_queue_that_nobody_has_used_is_reported_as_missing(self) -> None:
        for command in ("status", "list", "pause"):
            assert "there is no queue" in self.refused(command)

    def test_jobs_are_added_run_shown_and_changed(self) -> None:
        self.ok("enqueue", "shout", '{"text": "hello"}', "--id", "one")
        self.ok("enqueue", "break", "--id", "two")
        self.ok("enqueue", "shout", '{"text": "later"}', "--id", "three", "--at", "@4000000000")
        assert "already in the queue" in self.refused("enqueue", "shout", "--id", "one")
        assert "broken" in self.run_handlers()

        assert [(row[0], row[3], row[6]) for row in self.ok("list")][:3] == [
            ("one", "completed", "1"),
            ("two", "failed", "1"),
            ("three", "pending", "0"),
        ]
        assert [row[0] for row in self.ok("list", "--status", "failed")] == ["two"]
        shown = self.ok("show", "two")
        assert ["status", "failed"] in shown
        assert [fields[1:3] for fields in shown if fields[0] == "attempt"] == [["1", "failed"]]
        assert self.ok("output", "one") == [["HELLO"]]
        assert [row[0] for row in self.ok("schedules")] == ["every_night"]
        status = self.status()
        assert status["completed"] == ["1"]
        assert status["error"][:4] == ["two", "break", "failed", "1"]

        self.ok("edit", "three", '{"text": "sooner"}')
        self.ok("requeue", "two")
        self.ok("cancel", "two")
        assert self.ok("stop", "three") == [["cancelled", "three"]]
        assert "there is no job four" in self.refused("show", "four")
        assert "it is completed" in self.refused("requeue", "one")
        assert self.ok("requeue", "three", "two") == [["requeued", "three"], ["requeued", "two"]]
        self.ok("pause", "shout")
        assert self.status()["paused"][1] == "shout"
        self.ok("resume")
        assert self.ok("unreadable") == []
        metrics = "\n".join(map("".join, self.ok("metrics")))
        assert 'dbbasic_queue_jobs{status="completed"} 1' in metrics

    def test_old_jobs_are_purged_into_an_archive(self) -> None:
        self.ok("enqueue", "shout", '{"text": "hello"}', "--id", "one")
        self.run_handlers()
        time.sleep(1.1)  # times are whole seconds
        arguments = ("purge", "--older-than", "0s", "--archive", "archive.tsv")
        assert self.ok(*arguments, "--dry-run") == [["would be purged", "1", "shout=1"]]
        assert self.ok(*arguments) == [["purged", "1", "shout=1"]]
        assert "HELLO" not in str(self.ok("list"))
        archive = (self.directory / "archive.tsv").read_text("utf-8")
        assert archive.count("\n") == 2
        assert "one\tshout\t" in archive
