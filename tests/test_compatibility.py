"""Files that dbbasic-queue 1.0.0 wrote can be used, and code written for it runs unchanged.

The real 1.0.0 writes the files. Each test run installs it from PyPI; without access to PyPI these
tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from helpers import HEADER, NONE, job, join, rows, sibling

import dbbasic_queue
from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def old_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the real 1.0.0."""
    folder = tmp_path_factory.mktemp("dbbasic-queue-1.0.0")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input"]
    command += ["--retries", "1", "--timeout", "20", "--target", str(folder)]
    try:
        done = subprocess.run(
            [*command, "dbbasic-queue==1.0.0"], capture_output=True, encoding="utf-8", timeout=120
        )
        reason = done.stderr.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        reason = "no answer in time"
    if not (folder / "dbbasic_queue" / "queue.py").exists():
        pytest.skip(f"dbbasic-queue 1.0.0 can't be installed from PyPI: {reason}")
    return folder


@pytest.fixture
def old(
    old_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Run code with 1.0.0 in the test's directory, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", "data/queue.tsv")

    def run(code: str) -> None:
        prelude = f"import sys; sys.path.insert(0, {str(old_release)!r})\n"
        prelude += "import os, time, dbbasic_queue\nfrom dbbasic_queue import *\n"
        prelude += "assert dbbasic_queue.__version__ == '1.0.0'\n"
        done = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", prelude + textwrap.dedent(code)],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        assert done.stderr == ""

    return run


def found(**columns: Any) -> Any:
    jobs: Any = dbbasic_queue.default_queue().jobs()
    (one,) = [job for job in jobs if all(job[column] == value for column, value in columns.items())]
    return one


# --- processes of both releases at the same time


def test_jobs_enqueued_by_1_0_0_during_passes_of_this_release_are_not_lost(
    old: Callable[[str], None],
) -> None:
    """As after an upgrade, until the web app's processes have been restarted.

    A program that is stopped between opening the file and writing to it can lose a row
    (docs/migrating.md). So the passes leave it a tenth of a second, as even a busy machine does.
    """
    ran: list[int] = []
    dbbasic_queue.enqueue("count", -1)
    program = "for n in range(1000): enqueue('count', n); time.sleep(0.002)"
    enqueuing = Thread(target=old, args=[program])
    enqueuing.start()
    passes = 0
    is_last = False
    while not is_last:
        is_last = not enqueuing.is_alive()
        dbbasic_queue.process_jobs({"count": ran.append})
        passes += 1
        time.sleep(0.1)
    join(enqueuing, "the program that enqueues")
    assert sorted(ran) == list(range(-1, 1000))
    assert passes > 2  # one before, one after, and at least one in between


# --- files that 1.0.0 wrote


def test_jobs_enqueued_by_1_0_0_are_run(old: Callable[[str], None]) -> None:
    old("""
        enqueue('greet', {'name': 'Ada', 'é': '\\u2028'})
        enqueue('greet', ['Grace'], time.time() - 5.5)
        enqueue('greet', 'later', time.time() + 1000.25)
        enqueue('greet', None)
        """)
    ran: list[Any] = []
    assert dbbasic_queue.process_jobs({"greet": ran.append}) == NONE | {"completed": 3}
    assert ran == [["Grace"], {"name": "Ada", "é": "\u2028"}, None]
    later = found(status="pending")
    assert later["payload"] == "later"
    assert later["run_at"] > time.time() + 999
    assert all(len(columns) == 9 for columns in rows(Path("data/queue.tsv")))


def test_jobs_finished_by_1_0_0_are_kept_and_not_run_again(
    old: Callable[[str], None],
) -> None:
    old("""
        ids = [enqueue(name, {}) for name in ('fine', 'bad', 'nobody', 'cancelled')]
        cancel_job(ids[3])
        def bad(_): raise ValueError('no such user')
        process_jobs({'fine': lambda _: {'sent': True}, 'bad': bad}, max_attempts=1)
        """)
    before = Path("data/queue.tsv").read_text()
    assert dbbasic_queue.process_jobs({"fine": pytest.fail, "bad": pytest.fail}) == NONE
    assert Path("data/queue.tsv").read_text() == before
    assert found(type="fine")["result"] == {"sent": True}
    assert found(type="bad")["error"] == "no such user"
    assert found(type="nobody")["error"] == "No handler for nobody"
    assert found(type="cancelled")["error"] == "Cancelled by user"
    assert dbbasic_queue.default_queue().counts()["failed"] == 2


def test_a_retry_scheduled_by_1_0_0_waits_for_its_time(old: Callable[[str], None]) -> None:
    old("""
        enqueue('bad', {})
        process_jobs({'bad': lambda _: 1 / 0})
        """)
    waiting = found(type="bad")
    assert (waiting["status"], waiting["attempts"]) == ("pending", 1)
    assert waiting["error"] == "division by zero"
    assert 100 < waiting["run_at"] - time.time() <= 120
    assert dbbasic_queue.process_jobs({"bad": pytest.fail}) == NONE


def test_jobs_left_in_processing_by_1_0_0_are_recovered(old: Callable[[str], None]) -> None:
    old("""
        import multiprocessing
        def run():
            enqueue('kill', {'n': 7})
            process_jobs({'kill': lambda _: os._exit(9)})
        multiprocessing.get_context('fork').Process(target=run).start()
        """)
    stuck = found(type="kill")
    assert (stuck["status"], stuck["attempts"]) == ("processing", 0)
    outcome = dbbasic_queue.process_jobs({"kill": lambda payload: payload["n"]})
    assert outcome == NONE | {"recovered": 1}
    waiting = found(type="kill")
    assert (waiting["status"], waiting["error"]) == ("pending", "worker died in attempt 0")
    assert dbbasic_queue.default_queue().run_now(waiting["id"])
    outcome = dbbasic_queue.process_jobs({"kill": lambda payload: payload["n"]})
    assert outcome == NONE | {"completed": 1}
    assert found(type="kill")["result"] == 7


def test_rows_without_trailing_columns_are_read(old: Callable[[str], None]) -> None:
    old("""
        enqueue('greet', 'Ada')
        enqueue('bad', {})
        process_jobs({'bad': lambda _: 1 / 0, 'greet': lambda _: 1 / 0}, max_attempts=1)
        enqueue('greet', 'Grace')
        """)
    path = Path("data/queue.tsv")
    # Some editors strip trailing white space, and 1.0.0 itself reads such a file.
    path.write_text("".join(f"{text.rstrip()}\n" for text in path.read_text().split("\n")[:-1]))
    assert dbbasic_queue.process_jobs({"greet": lambda name: name}) == NONE | {"completed": 1}
    assert found(payload="Grace")["result"] == "Grace"
    assert found(payload="Ada")["error"] == "division by zero"
    assert dbbasic_queue.default_queue().counts()["failed"] == 2


def test_tabs_and_newlines_in_errors_of_1_0_0_block_nothing_and_lose_nothing(
    old: Callable[[str], None],
) -> None:
    old("""
        def bad(text): raise ValueError(text)
        enqueue('bad', 'one\\ttwo\\tthree')
        process_jobs({'bad': bad})
        enqueue('bad', 'first line\\nsecond line')
        process_jobs({'bad': bad})
        enqueue('greet', 'Ada')
        """)
    path = Path("data/queue.tsv")
    before = path.read_text()
    assert any(len(text.split("\t")) > 9 for text in before.split("\n"))
    assert dbbasic_queue.process_jobs({"greet": lambda name: name}) == NONE | {"completed": 1}
    assert found(type="greet")["result"] == "Ada"
    tabs = found(payload="one\ttwo\tthree")
    assert (tabs["status"], tabs["attempts"]) == ("pending", 1)
    assert tabs["error"].startswith("one\ttwo")
    lines = found(payload="first line\nsecond line")
    assert (lines["status"], lines["error"]) == ("pending", "first line")
    assert "\nsecond line" in path.read_text()
    assert not sibling(path, "rejected").exists()


def test_a_row_inside_an_error_of_1_0_0_does_not_become_a_second_job(
    old: Callable[[str], None],
) -> None:
    old("""
        job_id = enqueue('bad', {})
        def bad(_): raise ValueError(f'x\\n{job_id}\\tevil\\t{{}}\\tpending\\t0\\t0\\t0\\t\\t')
        process_jobs({'bad': bad}, max_attempts=1)
        """)
    assert dbbasic_queue.process_jobs({"evil": pytest.fail}) == NONE
    assert found()["status"] == "failed"


def test_a_float_run_at_of_1_0_0_is_rounded_up(old: Callable[[str], None]) -> None:
    old("enqueue('greet', {}, 1700000000.25)")
    assert "\t1700000000.25\t" in Path("data/queue.tsv").read_text()
    assert found(type="greet")["run_at"] == 1_700_000_001


def test_both_releases_can_use_one_queue_file(old: Callable[[str], None]) -> None:
    old("enqueue('greet', 'old')")
    mine = dbbasic_queue.enqueue("greet", "new")
    assert dbbasic_queue.process_jobs({"greet": lambda name: name}) == NONE | {"completed": 2}
    old(f"""
        assert get_job({mine!r})['result'] == 'new'
        enqueue('greet', 'old again')
        """)
    assert dbbasic_queue.process_jobs({"greet": lambda name: name}) == NONE | {"completed": 1}
    with Queue("data/queue.tsv") as queue:
        assert queue.counts()["completed"] == 3
    content = Path("data/queue.tsv").read_text()
    assert content.startswith(HEADER)


# --- code that was written for 1.0.0


def test_the_examples_of_the_1_0_0_readme_run_unchanged(
    old_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", "data/queue.tsv")
    (metadata,) = old_release.glob("dbbasic_queue-1.0.0.dist-info/METADATA")
    examples = re.findall(r"```python\n(.*?)```", metadata.read_text("utf-8"), re.DOTALL)
    assert len(examples) == 2
    names: dict[str, Any] = {"__name__": "__main__", "time": time}  # an import its worker lacks
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    sent = job(Queue("data/queue.tsv"), names["job_id"])
    assert (sent["status"], sent["attempts"]) == ("completed", 1)
    assert sent["payload"]["to"] == "user@example.com"
    assert abs(sent["result"]["sent_at"] - time.time()) < 60


SCENARIO = """
import json, sys
import dbbasic_queue
import dbbasic_queue.queue as module
from dbbasic_queue import enqueue, process_jobs, get_job, cancel_job

module.QUEUE_FILE = sys.argv[1]
assert module.MAX_ATTEMPTS == 3
sorted_out = {}
def fail(payload): raise Exception("no such user")
def fine(payload): return {"echo": payload}
ids = {
    "fine": enqueue("fine", {"n": 1}),
    "positional": enqueue("fine", {}, 1000),
    "keyword": enqueue(job_type="fine", payload={}, run_at=1000),
    "now": enqueue("fine", {}, run_at=0),
    "later": enqueue("fine", {}, run_at=4000000000),
    "fail": enqueue("fail", {}),
    "nobody": enqueue("nobody", {}),
    "cancelled": enqueue("fine", {}),
}
assert cancel_job(ids["cancelled"]) is True
assert cancel_job(ids["cancelled"]) is False
assert cancel_job("0" * 16) is False
assert get_job("0" * 16) is None
process_jobs({"fine": fine, "fail": fail})
assert cancel_job(ids["fine"]) is False
process_jobs({}, 3)
process_jobs(handlers={"fine": fine}, max_attempts=1)
for name, job_id in ids.items():
    job = get_job(job_id)
    assert job.pop("id") == job_id and len(job_id) == 16
    for instant in ("created_at", "run_at"):
        assert type(job[instant]) is int
        if 1600000000 < job[instant] < 4000000000:
            job[instant] = "recent"
    sorted_out[name] = job
print(json.dumps(sorted_out, indent=1))
"""


def test_code_written_for_1_0_0_gets_the_same_results_from_both_releases(
    old_release: Path, tmp_path: Path
) -> None:
    seen = []
    for name, folder in [("old", old_release), ("new", Path(dbbasic_queue.__file__).parents[1])]:
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", SCENARIO, str(tmp_path / name / "queue.tsv")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filtered_path()])},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        assert done.stderr == ""
        seen.append(json.loads(done.stdout))
    assert seen[0] == seen[1]
    assert seen[0]["fine"]["result"] == {"echo": {"n": 1}}
    assert [len(rows(tmp_path / name / "queue.tsv")) for name in ("old", "new")] == [8, 8]


def filtered_path() -> list[str]:
    """Return the folders of PYTHONPATH that don't contain this package."""
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [folder for folder in folders if not Path(folder, "dbbasic_queue").exists()]
