"""The fixture `job_queue` for users' tests, in pytest runs started as users start them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DAY, NONE, NOW, PROJECT

from dbbasic_queue import Backoff, Delay, Handler, Handlers, Job
from dbbasic_queue.testing import Clock, JobQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester"]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobQueue]:
    with JobQueue(tmp_path / "queue.tsv", Clock(NOW)) as jobs:
        yield jobs


# --- the clock, run_all


def test_time_only_passes_when_the_test_moves_the_clock(jobs: JobQueue) -> None:
    jobs.enqueue("greet", {}, NOW + 60)
    assert jobs.process_jobs({"greet": str}) == NONE
    jobs.clock.move(60)
    assert jobs.process_jobs({"greet": str}) == NONE | {"completed": 1}
    jobs.clock.move(-DAY)
    assert jobs.clock() == jobs.clock.now == NOW + 60 - DAY


def test_run_all_runs_retries_delays_and_new_jobs_at_their_time(
    jobs: JobQueue,
) -> None:
    errors = [ValueError("no"), Delay(DAY), ValueError("no")]
    ran: list[tuple[Any, float]] = []

    def greet(payload: Any) -> None:
        ran.append((payload, jobs.clock.now - NOW))
        if payload == "ada" and errors:
            raise errors.pop(0)
        if payload == "bob":
            jobs.enqueue("greet", "from bob")

    jobs.enqueue("greet", "ada")
    jobs.enqueue("greet", "bob", NOW + 300)
    done = jobs.run_all({"greet": Handler(greet, backoff=Backoff(first=50, factor=1))})
    assert done == NONE | {"completed": 3, "retried": 2, "delayed": 1}
    assert ran == [
        ("ada", 0),
        ("ada", 50),
        ("bob", 300),
        ("from bob", 300),
        ("ada", 50 + DAY),
        ("ada", 100 + DAY),
    ]
    assert jobs.run_all({}) == NONE


def test_run_all_ends_when_no_attempts_are_left(jobs: JobQueue) -> None:
    jobs.enqueue("greet", {})
    assert jobs.run_all({}, 2) == NONE | {"retried": 1, "failed": 1}
    assert jobs.clock.now == NOW + 120


def test_run_all_ends_although_a_job_of_a_schedule_is_tried_again(jobs: JobQueue) -> None:
    handlers = Handlers(name="shop")

    @handlers.handler(every=60)
    def poll(payload: Any, job: Job) -> int:
        if job.attempt == 1:
            raise ValueError("not yet")
        return job.attempt

    assert jobs.run_all(handlers) == NONE
    for _ in range(2):
        jobs.clock.move(60)
        assert jobs.run_all(handlers) == NONE | {"retried": 1, "completed": 1}
    assert [job["run_at"] for job in jobs.jobs()] == [NOW + 180, NOW + 360]


def test_run_all_skips_unknown_and_paused_types(jobs: JobQueue) -> None:
    jobs.enqueue("other", {})
    jobs.enqueue("other", {}, NOW + 60)
    jobs.enqueue("greet", {}, NOW + 30)
    assert jobs.run_all({"greet": str}, skip_unknown=True) == NONE | {"completed": 1}
    assert jobs.counts()["pending"] == 2
    jobs.pause("other")
    assert jobs.run_all({"other": str}) == NONE
    jobs.resume()
    assert jobs.run_all({"other": str}) == NONE | {"completed": 2}


def test_run_all_raises_an_error_that_names_jobs_that_never_end(jobs: JobQueue) -> None:
    def put_off(_: Any) -> None:
        raise Delay(60, "not yet")

    jobs.enqueue("greet", {"to": "ada"})
    with pytest.raises(AssertionError, match="the jobs never end: after 1000 passes") as error:
        jobs.run_all({"greet": put_off})
    assert "  greet {'to': 'ada'} pending at " in str(error.value)
    assert str(error.value).endswith(" delayed: not yet")


# --- assertions


def test_an_assertion_finds_jobs_by_type_payload_and_members(jobs: JobQueue) -> None:
    first = jobs.enqueue("send_email", {"to": "ada", "tags": ["a", "b"], "cc": None})
    jobs.enqueue("send_email", {"to": "bob"})
    jobs.enqueue("resize", "cat.png", NOW + 60)
    assert jobs.assert_enqueued("send_email") == jobs.get_job(first)
    assert jobs.assert_enqueued("send_email", to="bob")["payload"] == {"to": "bob"}
    assert jobs.assert_enqueued("send_email", tags=("a", "b"), cc=None)["id"] == first
    assert jobs.assert_enqueued("send_email", {"to": "bob"})["payload"] == {"to": "bob"}
    assert jobs.assert_enqueued("resize", "cat.png")["run_at"] == NOW + 60
    assert len(jobs.enqueued("send_email")) == 2
    for nothing in (
        jobs.enqueued("send_email", {"to": "ada"}),
        jobs.enqueued("send_email", to="ada", cc="bob"),
        jobs.enqueued("send_email", subject=None),
        jobs.enqueued("resize", to="ada"),
        jobs.enqueued("unknown"),
    ):
        assert nothing == []
    jobs.assert_not_enqueued("send_email", to="eve")


def test_a_job_that_was_enqueued_with_none_is_found_by_none(jobs: JobQueue) -> None:
    jobs.assert_not_enqueued("ping", None)
    job_id = jobs.enqueue("ping", None)
    assert jobs.assert_enqueued("ping", None)["id"] == job_id
    assert jobs.assert_enqueued("ping", {})["id"] == job_id


def test_an_assertion_finds_jobs_of_any_status(jobs: JobQueue) -> None:
    jobs.enqueue("greet", {"to": "ada"})
    jobs.cancel_job(jobs.enqueue("greet", {"to": "bob"}))
    jobs.run_all({"greet": str})
    assert jobs.assert_enqueued("greet", to="ada")["status"] == "completed"
    assert jobs.assert_enqueued("greet", to="bob")["status"] == "cancelled"


def test_a_failing_assertion_lists_the_jobs(jobs: JobQueue) -> None:
    with pytest.raises(AssertionError) as error:
        jobs.assert_enqueued("greet", to="ada")
    assert str(error.value) == "no job greet(to='ada') was enqueued; these jobs were:\n  nothing"
    jobs.enqueue("greet", {"to": "bob", "text": "x" * 1000})
    jobs.enqueue("broken", 1)
    with pytest.raises(AssertionError) as error:
        jobs.run_all({"greet": str, "broken": Handler(lambda n: 1 / 0, max_attempts=1)})
        jobs.assert_enqueued("greet", 5)
    assert str(error.value).splitlines() == [
        "no job greet(5) was enqueued; these jobs were:",
        f"  greet {str({'to': 'bob', 'text': 'x' * 1000})[:200]}... completed at {NOW}",
        f"  broken 1 failed at {NOW} ZeroDivisionError: division by zero",
    ]
    with pytest.raises(AssertionError) as error:
        jobs.assert_not_enqueued("broken")
    assert str(error.value).startswith("a job broken() was enqueued:\n  broken 1 failed")
    jobs.enqueue_many("greet", range(30))
    with pytest.raises(AssertionError, match=r"and 12 more$"):
        jobs.assert_enqueued("other")


def test_an_assertion_takes_only_one_payload(jobs: JobQueue) -> None:
    with pytest.raises(TypeError, match="one payload"):
        jobs.assert_enqueued("greet", 1, 2)


# --- the plugin


@pytest.fixture
def installed(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A directory for a user's tests, with the plugin registered as in setup.py."""
    metadata = tmp_path / "site" / "dbbasic_queue-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Name: dbbasic-queue\nVersion: 0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(entry_points(), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{metadata.parent}:{PROJECT}")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return pytester


def entry_points() -> str:
    """Return setup.py's entry points in the format of an installed package."""
    (call,) = [
        node.value
        for node in ast.parse((PROJECT / "setup.py").read_text("utf-8")).body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "setup"
    ]
    (groups,) = [ast.literal_eval(k.value) for k in call.keywords if k.arg == "entry_points"]
    assert groups["pytest11"] == ["dbbasic_queue = pytest_dbbasic_queue"]
    return "".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in groups.items())


def test_the_fixture_needs_no_configuration(installed: pytest.Pytester) -> None:
    installed.makepyfile(
        """
        import os, subprocess, sys
        import dbbasic_queue
        from dbbasic_queue import Handlers, Queue, enqueue, get_job, process_jobs

        jobs = Handlers()

        @jobs.handler
        def greet(name):
            if not enqueued:
                enqueued.append(name)
                raise ValueError("once")
            return "hello " + name

        enqueued = []

        def test_functions_and_registries_use_it(job_queue):
            first, second = enqueue("greet", "ada"), greet.enqueue("bob")
            job_queue.assert_enqueued("greet", "ada")
            assert job_queue.run_all(jobs)["retried"] == 1
            assert get_job(first)["result"] == "hello ada"
            assert get_job(second)["result"] == "hello bob"

        def test_each_test_has_its_own(job_queue, tmp_path):
            assert job_queue.counts()["pending"] == 0
            assert isinstance(job_queue, Queue) and str(tmp_path) in job_queue.path
            job_queue.assert_not_enqueued("greet")

        def test_child_processes_use_it_too(job_queue):
            code = "import dbbasic_queue; dbbasic_queue.enqueue('greet', 'eve')"
            subprocess.run([sys.executable, "-c", code], check=True)
            job_queue.assert_enqueued("greet", "eve")

        def test_the_clock_starts_now_and_does_not_move(job_queue):
            import time
            assert abs(job_queue.clock() - time.time()) < 3600
            assert job_queue.clock() == job_queue.clock()

        def test_everything_is_restored_afterwards(monkeypatch):
            assert "DBBASIC_QUEUE_FILE" not in os.environ
            assert dbbasic_queue.queue.QUEUE_FILE == os.path.abspath("data/queue.tsv")
            assert dbbasic_queue.queue.default_queue().path == os.path.abspath("data/queue.tsv")
            assert not os.path.exists("data")
            monkeypatch.setenv("DBBASIC_QUEUE_FILE", "other.tsv")
            assert dbbasic_queue.queue.default_queue().path == os.path.abspath("other.tsv")
        """
    )
    done = installed.runpytest_subprocess("-Werror", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=5)


def test_the_fixture_replaces_every_queue_of_the_program(
    installed: pytest.Pytester,
) -> None:
    installed.makepyfile(
        """
        import os, pickle
        from dbbasic_queue import Handlers, Queue, Worker, enqueue, open_queue

        media, other = Queue("data/media.tsv"), Queue("data/other.tsv", fsync=False)
        servers = [open_queue(f"{scheme}://127.0.0.1:1/0") for scheme in ("postgresql", "redis")]
        memory = open_queue("memory:")
        jobs = Handlers(queue=media)

        @jobs.handler
        def convert(name):
            return name.upper()

        def test_queues_made_before_the_test_and_their_registries(job_queue):
            job_id = convert.enqueue("cat")
            other.enqueue("convert", "dog", job_queue.clock() + 60)
            job_queue.assert_enqueued("convert", "cat")
            assert media.path == other.path == job_queue.path
            assert job_queue.run_all(jobs)["completed"] == 2
            assert media.get_job(job_id)["result"] == "CAT"
            assert media.wait(job_id, 5)["status"] == "completed"

        def test_queues_made_during_the_test_and_their_copies(job_queue):
            with Queue("data/media.tsv") as late:
                late.enqueue("convert", "cat")
            assert pickle.loads(pickle.dumps(media)).path == job_queue.path
            with Worker(media, jobs):
                assert other.wait(enqueue("convert", "dog"), 30)["result"] == "DOG"
            job_queue.assert_enqueued("convert", "cat")

        def test_a_queue_in_the_tests_directory_or_in_memory_is_not_replaced(job_queue, tmp_path):
            with Queue(tmp_path / "own.tsv") as own:
                own.enqueue("convert", "cat")
                assert own.path == str(tmp_path / "own.tsv")
            memory.enqueue("convert", "cat")
            job_queue.assert_not_enqueued("convert")

        def test_queues_on_servers_and_their_transactions(job_queue):
            for server in servers:
                server.enqueue("convert", server is servers[0], connection=object())
                job_queue.assert_enqueued("convert", server is servers[0])
            assert job_queue.run_all({"convert": str})["completed"] == 2

        def test_everything_is_restored_afterwards():
            assert servers[0].path.startswith("postgresql:")
            assert media.path == os.path.abspath("data/media.tsv")
            assert media.get_job("a") is None and media.store.path == media.path
            assert not os.path.exists("data")
        """
    )
    done = installed.runpytest_subprocess("-Werror", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=5)


def test_the_package_is_not_imported_unless_the_fixture_is_used(
    installed: pytest.Pytester,
) -> None:
    installed.makepyfile(
        """
        import sys

        def test_nothing_is_imported(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("dbbasic_queue")
            assert [name for name in sys.modules if name.startswith("dbbasic_queue")] == []
            assert "filelock" not in sys.modules
        """
    )
    installed.runpytest_subprocess("-Werror").assert_outcomes(passed=1)


def test_a_failing_assertion_shows_the_jobs_in_the_pytest_report(
    installed: pytest.Pytester,
) -> None:
    installed.makepyfile(
        """
        def test_a_mail_is_sent(job_queue):
            job_queue.enqueue("send_email", {"to": "bob"})
            job_queue.assert_enqueued("send_email", to="ada")
        """
    )
    done = installed.runpytest_subprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            "E * no job send_email(to='ada') was enqueued; these jobs were:",
            "E * send_email {'to': 'bob'} pending at *",
        ]
    )
