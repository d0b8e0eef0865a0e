"""The optional abilities: sharing jobs, surviving a killed process, archiving."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from helpers import EMPTY, NONE, NOW, at_once, job, raises

from dbbasic_queue import DuplicateJob, Fail, InvalidArgument
from dbbasic_queue.testing import Clock

if TYPE_CHECKING:
    from pathlib import Path

    from contract.conftest import Opener
    from dbbasic_queue.engines.protocol import Engine


@pytest.mark.needs("sharing")
class TestSharing:
    """All queues that a process opens at one place have the same jobs."""

    def test_queues_opened_at_one_place_have_the_same_jobs(
        self, queue: Engine, open_at: Opener, tmp_path: Path
    ) -> None:
        with open_at(tmp_path) as other, open_at(tmp_path / "x") as stranger:
            job_id = queue.enqueue("greet", {}, job_id="once")
            assert other.get_job(job_id) == queue.get_job(job_id)
            assert stranger.get_job(job_id) is None
            with pytest.raises(DuplicateJob):
                other.enqueue("greet", {}, job_id="once")
            assert other.process_jobs({"greet": raises(Fail("no"))}) == NONE | {"failed": 1}
            assert queue.process_jobs({"greet": raises()}) == NONE
            assert queue.requeue(job_id)
            assert other.cancel_job(job_id)
            assert queue.counts() == other.counts() == EMPTY | {"cancelled": 1}

    def test_jobs_are_still_there_when_the_place_is_opened_again(
        self, queue: Engine, open_at: Opener, clock: Clock, tmp_path: Path
    ) -> None:
        queue.enqueue("greet", {"to": "ada"}, job_id="retried")
        queue.enqueue("greet", {}, NOW + 60, job_id="later")
        queue.process_jobs({"greet": raises(ValueError("no"))})
        before = list(queue.jobs())
        queue.close()
        with open_at(tmp_path) as again:
            assert list(again.jobs()) == before
            clock.move(120)
            assert again.process_jobs({"greet": raises()}) == NONE | {"completed": 2}

    def test_passes_of_two_queues_at_one_place_run_each_job_once(
        self, queue: Engine, open_at: Opener, tmp_path: Path
    ) -> None:
        queue.enqueue_many("greet", range(200))
        ran: list[int] = []
        with open_at(tmp_path) as other:
            at_once(*(lambda q=q: q.process_jobs({"greet": ran.append}) for q in (queue, other)))
        assert sorted(ran) == list(range(200))


@pytest.mark.needs("durability")
class TestDurability:
    """Jobs survive the process that enqueued or ran them."""

    def run(self, url: str, code: str) -> None:
        """Run `code`, which uses `queue`, in another process that kills itself at the end."""
        program = (
            "import os, signal, sys\n"
            "from dbbasic_queue import open_queue\n"
            "queue = open_queue(sys.argv[1])\n"
            f"{code}\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, url],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout + done.stderr) == (-9, "")

    def test_acknowledged_changes_survive_a_kill(
        self, queue: Engine, open_at: Opener, clock: Clock, tmp_path: Path
    ) -> None:
        clock.now = time.time() + 5
        self.run(
            open_at.url(tmp_path),
            "queue.enqueue('greet', {'to': 'ada'}, job_id='one')\n"
            "queue.enqueue('other', {}, job_id='two')\n"
            "queue.cancel_job('two')",
        )
        assert job(queue, "one")["payload"] == {"to": "ada"}
        assert job(queue, "two")["status"] == "cancelled"
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}

    def test_a_job_whose_worker_was_killed_runs_again_and_the_attempt_counts(
        self, queue: Engine, open_at: Opener, clock: Clock, tmp_path: Path
    ) -> None:
        clock.now = time.time() + 5
        job_id = queue.enqueue("greet", {}, 1)
        self.run(
            open_at.url(tmp_path),
            "queue.process_jobs({'greet': lambda _: os.kill(os.getpid(), signal.SIGKILL)})",
        )
        found = job(queue, job_id)
        assert (found["status"], found["attempts"]) == ("processing", 1)
        open_at.let_dead_workers_expire(tmp_path)
        assert queue.process_jobs({"greet": raises()}) == NONE | {"recovered": 1}
        found = job(queue, job_id)
        assert (found["status"], found["attempts"]) == ("pending", 1)
        clock.move(121)
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
        assert job(queue, job_id)["attempts"] == 2


@pytest.mark.needs("archiving")
class TestArchiving:
    """`purge` can write an archive."""

    def test_purged_jobs_are_in_the_archive_as_rows_of_nine_columns(
        self, queue: Engine, clock: Clock, tmp_path: Path
    ) -> None:
        archive = tmp_path / "archive.tsv"
        for number in (1, 2):
            queue.enqueue("greet", {"to": "é"}, job_id=f"job-{number}")
            queue.process_jobs({"greet": lambda _: "a\tb"})
            clock.move(10)
            assert queue.purge(5, archive=archive) == 1
        assert queue.purge(5, archive=archive) == 0
        header, *lines = archive.read_text("utf-8").splitlines()
        assert header.split("\t") == [
            *("id", "type", "payload", "status", "created_at", "run_at"),
            *("attempts", "error", "result"),
        ]
        rows = [line.split("\t") for line in lines]
        assert rows == [
            [f"job-{n}", "greet", '{"to": "é"}', "completed", str(at), str(at), "1", "", r'"a\tb"']
            for n, at in ((1, NOW), (2, NOW + 10))
        ]
        assert list(queue.jobs()) == []

    def test_jobs_stay_in_the_queue_if_the_archive_cannot_be_written(
        self, queue: Engine, clock: Clock, tmp_path: Path
    ) -> None:
        queue.enqueue("greet", {}, job_id="kept")
        queue.process_jobs({"greet": raises()})
        clock.move(10)
        (tmp_path / "archive.tsv").mkdir()
        with pytest.raises(OSError):
            queue.purge(5, archive=tmp_path / "archive.tsv")
        with pytest.raises(InvalidArgument, match="invalid archive"):
            queue.purge(5, archive=tmp_path / "archive.tsv.gz")
        assert job(queue, "kept")["status"] == "completed"
