"""Every command that looks at or changes jobs, on each store that another process can use."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from helpers import run_command

from dbbasic_queue import Queue

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
class TestEveryVerb:
    @pytest.fixture(autouse=True)
    def place(self, open_at: Opener, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.url = open_at.url(tmp_path)
        (tmp_path / "handlers.toml").write_text(HANDLERS, "utf-8")

    def run(self, *arguments: str, code: int = 0, **more: str) -> list[list[str]]:
        """Run a command; check its exit code; return the fields of each line that it printed."""
        more.setdefault("DBBASIC_QUEUE_URL", self.url)
        done = run_command(*arguments, cwd=self.directory, **more)
        assert done.returncode == code, (arguments, done.stderr)
        if not code:
            assert done.stderr == "" or arguments[0] == "run", (arguments, done.stderr)
        return [line.split("\t") for line in done.stdout.splitlines()]

    def json(self, *arguments: str) -> list[Any]:
        return [json.loads("\t".join(fields)) for fields in self.run(*arguments, "--json")]

    def refused(self, *arguments: str) -> str:
        """Run a command that isn't done; return why."""
        done = run_command(*arguments, cwd=self.directory, DBBASIC_QUEUE_URL=self.url)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    def status(self) -> dict[str, list[str]]:
        return {name: fields for name, *fields in self.run("status")}

    def test_a_job_is_followed_from_its_enqueue_to_its_removal(self) -> None:
        run = self.run
        for number, text in enumerate(("one", "two", "three")):
            payload = json.dumps({"text": text})
            assert run("enqueue", "shout", payload, "--id", f"shout-{number}") == [
                [f"shout-{number}"]
            ]
        assert run("enqueue", "shout", "--id", "shout-0", "--exist-ok") == [["shout-0"]]
        (unique,) = run("enqueue", "shout", '{"text": "u"}', "--unique")
        assert run("enqueue", "shout", '{"text": "u"}', "--unique") == [unique]
        (self.directory / "lines").write_text('{"text": "a"}\n{"text": "b"}\n')
        lines = run("enqueue", "shout", "@lines", "--lines", "--in", "2h")
        assert len(lines) == 2
        run("enqueue", "break", "--id", "broken-1")
        run("enqueue", "unknown", "--id", "unknown-1")

        assert len(run("due")) == 6
        assert len(run("list", "--since", "+1h")) == 2
        assert run("cancel", unique[0][:8]) == [["cancelled", unique[0]]]
        assert run("run-now", lines[0][0]) == [["made due", lines[0][0]]]
        assert run("edit", "shout-2", '{"text": "edited"}') == [["edited", "shout-2"]]
        assert run("pause", "shout") == [["paused", "shout"]]
        assert self.json("show", "shout-0")[0]["why"]["word"] == "paused"
        assert len(run("due")) == 2
        assert run("resume", "shout") == [["resumed", "shout"]]
        run("run", "handlers.toml", "--strict", code=3)

        assert [job["id"] for job in self.json("failed")] == ["broken-1"]
        assert run("running") == []
        assert run("output", "shout-2") == [["EDITED"]]
        assert run("output", "-f", "shout-0") == [["ONE"]]
        assert run("wait", "shout-0") == [["completed"]]
        assert run("wait", "broken-1", code=3) == [["failed"]]
        assert run("wait", unique[0], code=4) == [["cancelled"]]
        assert run("wait", "unknown-1", "--timeout", "0s", code=5) == []
        history = [fields[0] for fields in run("history", "--outcome", "completed")]
        assert sorted(history) == sorted(["shout-0", "shout-1", "shout-2", lines[0][0]])
        stats = {fields[0]: fields[1:3] for fields in run("stats")}
        assert stats["break"] == ["1", "1"]
        assert [fields[0] for fields in run("schedules")] == ["every_night"]
        assert run("unreadable") == []
        shown = self.json("show", "broken-1")[0]
        assert (shown["status"], shown["history"][0]["outcome"]) == ("failed", "failed")
        assert "broken" in shown["output"]
        assert self.json("show", "unknown-1")[0]["why"]["word"] == "handler"

        status = self.json("status")[0]
        assert (status["verdict"], status["jobs"]["failed"]) == ("idle", 1)
        assert status["last_pass"]["completed"] == 4
        assert [found["type"] for found in status["failures"]] == ["break"]

        assert run("requeue", "--failed", "--dry-run") == [["would be requeued", "1", "break=1"]]
        assert run("requeue", "--failed") == [["requeued", "1", "break=1"]]
        assert run("stop", "--type", "break") == [["cancelled", "1", "break=1"]]
        assert run("requeue", "--type", "break") == [["requeued", "1", "break=1"]]
        assert run("stop", "broken-1") == [["cancelled", "broken-1"]]
        assert run("cancel", "--all")[0][:2] == ["cancelled", "2"]
        time.sleep(1.1)  # times are whole seconds
        purge = run("purge", "--older-than", "0s", "--status", "completed", "--archive", "old.tsv")
        assert purge == [["purged", "4", "shout=4"]]
        assert (self.directory / "old.tsv").read_text("utf-8").count("\n") == 5
        assert run("clear", "broken-1") == [["removed", "1", "break=1"]]
        assert run("clear", "--all")[0][:2] == ["removed", "3"]
        assert run("list") == []

    def test_a_queue_is_exported_imported_and_edited_in_an_editor(self) -> None:
        for number in range(3):
            self.run("enqueue", "shout", str(number), "--id", f"job-{number}")
        self.run("cancel", "job-2")
        before = self.json("list")
        for name in ("jobs.tsv", "jobs.jsonl", "jobs.csv"):
            assert self.run("export", name) == [["exported", "3"]]
            assert self.run("import", name)[0] == ["imported", "0"]
            self.run("clear", "--all")
            assert self.run("import", name) == [["imported", "3"]]
            assert self.json("list") == before
        (self.directory / "editor.py").write_text(
            "import sys\n"
            "from pathlib import Path\n"
            "path = Path(sys.argv[1])\n"
            "header, first, second, third = path.read_text().splitlines(True)\n"
            "new = second.replace('job-1', 'new-1')\n"
            "path.write_text(header + first.replace('\\t0\\t', '\\t[0]\\t', 1) + third + new)\n"
        )
        editor = f"{sys.executable} editor.py"
        assert self.run("edit", EDITOR=editor, VISUAL="") == [
            ["added", "1"],
            ["changed", "1"],
            ["removed", "1"],
        ]
        assert [(job["id"], job["payload"]) for job in self.json("list")] == [
            ("job-0", [0]),
            ("job-2", 2),
            ("new-1", 1),
        ]

    def test_a_queue_is_moved_and_only_some_commands_look_at_the_old_one(self) -> None:
        self.run("enqueue", "shout", "--id", "job-1")
        assert self.run("move", "--to", "new.tsv") == [["moved", "1"]]
        assert self.json("status")[0]["verdict"] == "moved"
        assert len(self.run("export")) == 1  # the header
        for command in (["list"], ["cancel", "job-1"], ["enqueue", "shout"], ["pause"]):
            self.run(*command, code=1)
        assert self.run("list", DBBASIC_QUEUE_URL="new.tsv")[0][0] == "job-1"
        assert Queue(self.directory / "new.tsv").counts()["pending"] == 1

    def test_a_queue_that_nobody_has_used_is_reported_as_missing(self) -> None:
        for command in ("status", "list", "pause"):
            assert "there is no queue" in self.refused(command)

    def test_jobs_are_added_run_shown_and_changed(self) -> None:
        self.run("enqueue", "shout", '{"text": "hello"}', "--id", "one")
        self.run("enqueue", "break", "--id", "two")
        self.run("enqueue", "shout", '{"text": "later"}', "--id", "three", "--at", "@4000000000")
        assert "already in the queue" in self.refused("enqueue", "shout", "--id", "one")
        self.run("run", "handlers.toml")

        assert [(row[0], row[3], row[6]) for row in self.run("list")][:3] == [
            ("one", "completed", "1"),
            ("two", "failed", "1"),
            ("three", "pending", "0"),
        ]
        assert [row[0] for row in self.run("list", "--status", "failed")] == ["two"]
        shown = self.run("show", "two")
        assert ["status", "failed"] in shown
        assert [fields[1:3] for fields in shown if fields[0] == "attempt"] == [["1", "failed"]]
        assert self.run("output", "one") == [["HELLO"]]
        assert [row[0] for row in self.run("schedules")] == ["every_night"]
        status = self.status()
        assert status["completed"] == ["1"]
        assert status["error"][:4] == ["two", "break", "failed", "1"]

        self.run("edit", "three", '{"text": "sooner"}')
        self.run("requeue", "two")
        self.run("cancel", "two")
        assert self.run("stop", "three") == [["cancelled", "three"]]
        assert "there is no job four" in self.refused("show", "four")
        assert "it is completed" in self.refused("requeue", "one")
        assert self.run("requeue", "three", "two") == [["requeued", "three"], ["requeued", "two"]]
        self.run("pause", "shout")
        assert self.status()["paused"][1] == "shout"
        self.run("resume")
        assert self.run("unreadable") == []
        metrics = "\n".join(map("".join, self.run("metrics")))
        assert 'dbbasic_queue_jobs{status="completed"} 1' in metrics

    def test_old_jobs_are_purged_into_an_archive(self) -> None:
        self.run("enqueue", "shout", '{"text": "hello"}', "--id", "one")
        self.run("run", "handlers.toml")
        time.sleep(1.1)  # times are whole seconds
        arguments = ("purge", "--older-than", "0s", "--archive", "archive.tsv")
        assert self.run(*arguments, "--dry-run") == [["would be purged", "1", "shout=1"]]
        assert self.run(*arguments) == [["purged", "1", "shout=1"]]
        assert "HELLO" not in str(self.run("list"))
        archive = (self.directory / "archive.tsv").read_text("utf-8")
        assert archive.count("\n") == 2
        assert "one\tshout\t" in archive
