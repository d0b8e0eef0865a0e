"""Many processes, many threads and forks use one queue: no job is lost, none runs twice.

The large run at the top has four enqueuers, three overlapping passes, and a reader that keeps
reading the file with awk. With DBBASIC_QUEUE_LONG=1 it goes on until awk has read it 3,000 times.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DEADLINE, QUEUE, TERMS, Programs, is_free, note, notes, wait_for_notes

from dbbasic_queue import JobDict, Queue, StoreError
from dbbasic_queue.model.states import State
from dbbasic_queue.store.claiming.claims import Claims
from dbbasic_queue.store.protocol import Claim
from dbbasic_queue.store.writing.queue_files import QueueFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOOKS = 3000 if os.environ.get("DBBASIC_QUEUE_LONG") else 100
ENQUEUERS, PASSES, JOBS_EACH = 4, 3, 2000
HEADER = b"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult"
TALLY = r"""NR > 1 { n[$4]++ } END { for (s in n) print s, n[s] }"""

ENQUEUER = """
enqueuer, jobs = sys.argv[1], int(sys.argv[2])
n = 0
while n < jobs or not Path("enough").exists():
    time.sleep(0.02 if n >= jobs else 0)  # the rest only gives awk something to read
    name = f"{enqueuer}-{n}"
    n += 1
    if n % 100 == 0:
        job_id = queue.enqueue("fail", name)
    elif n % 100 == 1:
        job_id = queue.enqueue("work", name, run_at=time.time() + 86400)
    elif n % 100 == 2:  # a row larger than a page
        job_id = queue.enqueue("work", name + " " + "é" * 4000)
    elif n % 100 == 3:
        [job_id] = queue.enqueue_many("work", [name])
    else:
        job_id = queue.enqueue("work", name)
    note("enqueued", f"{name} {job_id} {n % 100 == 1:d}")
"""
REPEATED_PASSES = """
def work(payload):
    note("effects", payload.split(" ")[0])
    return {"done": payload[:20]}

def fail(payload):
    work(payload)
    raise ValueError("a\\ttab, a\\nline end and é")

is_last = False
while not is_last:
    is_last = Path("over").exists()
    with Queue(queue.path) as queue:
        queue.process_jobs({"work": work, "fail": fail})
    time.sleep(0.3)  # like cron, start passes now and then; jobs arrive in between
"""


@pytest.fixture
def clock() -> Callable[[], float]:
    """The machine's clock, which the other processes use, too."""
    return time.time


def awk(directory: Path, program: str) -> list[bytes]:
    """Run an awk program on the file, as a user would; return the lines it prints."""
    command = ["awk", "-F\\t", program, QUEUE]
    done = subprocess.run(command, cwd=directory, capture_output=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.split(b"\n")[:-1]


# -- four enqueuers, three passes, one reader


class Crowd:
    """One run of enqueuers, passes and awk: what it left, and what awk printed during it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.looks = 0
        self.partial: list[bytes] = []
        self.queue = Queue(directory / QUEUE)
        self.queue.enqueue("work", "first")

    def run(self) -> None:
        with Programs(self.directory) as programs:
            enqueuers = [programs.start(ENQUEUER, str(n), str(JOBS_EACH)) for n in range(ENQUEUERS)]
            passes = [programs.start(REPEATED_PASSES) for _ in range(PASSES)]
            while any(child.is_running() for child in enqueuers) or self.looks < LOOKS:
                self.look()
                if self.looks == LOOKS:
                    (self.directory / "enough").touch()
            (self.directory / "over").touch()
            while any(child.is_running() for child in passes):
                self.look()
            for child in (*enqueuers, *passes):
                assert child.succeed() == ""
        print(
            f"awk has read the file {self.looks} times and seen {len(self.partial)} partial lines"
        )

    def look(self) -> None:
        """Read the file with awk; now and then, also check that each enqueued job is there once."""
        wrong = awk(self.directory, "NF!=9")
        assert len(wrong) <= 1, wrong
        self.partial += wrong
        self.looks += 1
        if self.looks % (LOOKS // 100):  # a hundred full checks are enough
            return
        enqueued = {line.split(" ")[1].encode() for line in notes(self.directory / "enqueued")}
        header, *lines, partial = (self.directory / QUEUE).read_bytes().split(b"\n")
        assert header == HEADER
        assert partial.count(b"\t") <= 8
        ids = [line.split(b"\t", 1)[0] for line in lines]
        assert len(set(ids)) == len(ids)
        assert enqueued <= set(ids)

    def jobs(self) -> list[JobDict]:
        return list(self.queue.jobs())


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    crowd = Crowd(tmp_path_factory.mktemp("crowd"))
    crowd.run()
    yield crowd
    crowd.queue.close()


def test_four_enqueuers_and_three_overlapping_passes_lose_none_of_8000_jobs(crowd: Crowd) -> None:
    enqueued = {}
    for line in notes(crowd.directory / "enqueued"):
        name, job_id, _ = line.split(" ")
        enqueued[job_id] = name
    jobs = {job["id"]: job for job in crowd.jobs()}
    assert len(enqueued) >= 8000
    assert {i: job["payload"].split(" ")[0] for i, job in jobs.items() if i in enqueued} == enqueued
    assert len(jobs) == len(enqueued) + 1
    for job in jobs.values():
        future = job["run_at"] > job["created_at"] + 80_000
        fate = (job["status"], job["attempts"], job["error"])
        if job["type"] == "fail":
            assert fate == ("pending", 1, "ValueError: a\ttab, a\nline end and é")
        else:
            assert fate == (("pending", 0, None) if future else ("completed", 1, None))


def test_four_enqueuers_and_three_overlapping_passes_run_none_of_8000_jobs_twice(
    crowd: Crowd,
) -> None:
    enqueued = [line.split(" ") for line in notes(crowd.directory / "enqueued")]
    due = [name for name, _, is_later in enqueued if is_later == "0"]
    assert Counter(notes(crowd.directory / "effects")) == dict.fromkeys([*due, "first"], 1)


def test_awk_sees_whole_rows_while_passes_run_and_enqueuers_write(crowd: Crowd) -> None:
    """Each read saw the header and one row per job: the run itself asserts that."""
    assert crowd.looks >= LOOKS
    rows = (crowd.directory / QUEUE).read_bytes().split(b"\n")
    for partial in crowd.partial:
        start = b"\t".join(partial.split(b"\t")[:3])  # the rest has changed since
        assert any(row.startswith(start) for row in rows), partial
    assert len(crowd.partial) <= 1 + crowd.looks // 10


def test_counts_by_awk_agree_with_the_queues_own_when_passes_have_ended(crowd: Crowd) -> None:
    assert awk(crowd.directory, "NF!=9") == []
    tally = dict(line.decode().split(" ") for line in awk(crowd.directory, TALLY))
    counts = {status: str(n) for status, n in crowd.queue.counts().items() if n}
    assert tally == counts
    assert set(tally) == {"completed", "pending"}


# -- cancel against passes


def test_each_job_is_either_cancelled_and_never_run_or_run_once_and_cancel_returns_which(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    names = [f"job-{n}" for n in range(700)]
    for name in names:
        queue.enqueue("work", name, job_id=name)
    canceller = """
    from random import Random
    names = [f"job-{n}" for n in range(700)]
    Random(sys.argv[1]).shuffle(names)
    wait_for(lambda: notes("effects"), "the passes to begin")
    for name in names[:500]:
        if queue.cancel_job(name):
            note("cancelled", name)
            job = queue.get_job(name)
            assert (job["status"], job["error"]) == ("cancelled", "Cancelled by user"), job
    """
    a_pass = """
    def work(payload):
        note("effects", payload)
        time.sleep(0.001)  # so that the cancellers get a chance

    queue.process_jobs({"work": work})
    """
    children = [programs.start(canceller, str(n)) for n in range(2)]
    children += [programs.start(a_pass) for _ in range(2)]
    for child in children:
        child.succeed()
    queue.process_jobs({"work": lambda payload: note(tmp_path / "effects", payload)})

    cancelled = notes(tmp_path / "cancelled")
    runs = notes(tmp_path / "effects")
    assert cancelled and runs
    assert Counter(cancelled + runs) == dict.fromkeys(names, 1)
    assert {job["id"] for job in queue.jobs("cancelled")} == set(cancelled)
    assert {job["id"] for job in queue.jobs("completed")} == set(runs)


# -- threads


def test_eight_threads_of_one_process_share_a_queue_with_a_pass(queue: Queue) -> None:
    runs: list[str] = []
    cancelled: list[str] = []
    enqueued: list[str] = []
    problems: list[BaseException] = []
    over = threading.Event()

    def use(thread: int) -> None:
        for n in range(50):
            name = f"{thread}-{n}"
            assert queue.enqueue("work", name, job_id=name) == name
            enqueued.append(name)
            job = queue.get_job(name)
            assert job is not None and job["payload"] == name
            if n % 2:
                was_pending = queue.cancel_job(name)
                job = queue.get_job(name)
                assert job is not None
                assert (job["status"] == "cancelled") is was_pending
                if was_pending:
                    cancelled.append(name)

    def process() -> None:
        while not over.is_set():
            queue.process_jobs({"work": runs.append})

    def guarded(work: Any, *arguments: int) -> None:
        try:
            work(*arguments)
        except BaseException as e:  # noqa: BLE001 - for the test to raise
            problems.append(e)

    users = [threading.Thread(target=guarded, args=(use, n), daemon=True) for n in range(8)]
    worker = threading.Thread(target=guarded, args=(process,), daemon=True)
    for thread in (*users, worker):
        thread.start()
    for thread in users:
        thread.join(DEADLINE)
    over.set()
    worker.join(DEADLINE)
    assert not any(thread.is_alive() for thread in (*users, worker))
    assert not problems, problems
    queue.process_jobs({"work": runs.append})

    assert len(enqueued) == 400
    assert Counter(cancelled + runs) == dict.fromkeys(enqueued, 1)
    assert {job["id"] for job in queue.jobs("cancelled")} == set(cancelled)


# -- both sides of a fork

OPEN_QUEUE = """
import warnings
warnings.simplefilter("error")
queue.enqueue("work", "parent", job_id="before")
assert queue.get_job("before")["payload"] == "parent"

def use(name, times=40):
    for n in range(times):
        job_id = queue.enqueue("work", f"{name}-{n}")
        note("enqueued", job_id)
        assert queue.get_job(job_id)["payload"] == f"{name}-{n}"
    assert queue.get_job("before")["status"] == "pending"
"""


def check_forks(queue: Queue, directory: Path, users: int) -> None:
    ids = notes(directory / "enqueued")
    assert len(ids) == len(set(ids)) == 40 * users
    assert {job["id"] for job in queue.jobs()} == {*ids, "before"}
    runs: list[str] = []
    queue.process_jobs({"work": runs.append})
    assert len(runs) == len(set(runs)) == 40 * users + 1


def test_a_queue_that_was_open_at_a_fork_works_in_the_parent_and_all_children(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    programs.run(
        OPEN_QUEUE
        + """
children = []
for n in range(4):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            use(f"child-{n}")
            code = 0
        finally:
            os._exit(code)
    children.append(child)
use("parent")
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""
    )
    check_forks(queue, tmp_path, 5)


def test_a_queue_that_was_open_at_a_fork_works_with_multiprocessing(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    programs.run(
        OPEN_QUEUE
        + """
import multiprocessing

context = multiprocessing.get_context("fork")
children = [context.Process(target=use, args=(f"child-{n}",)) for n in range(4)]
for child in children:
    child.start()
use("parent")
for child in children:
    child.join(30)
    assert child.exitcode == 0
"""
    )
    check_forks(queue, tmp_path, 5)


def test_a_pass_in_a_forked_child_and_one_in_its_parent_share_the_jobs(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    programs.run(
        OPEN_QUEUE
        + """
use("parent", 300)
queue.store.is_complete()  # builds the index
child = os.fork()
queue.process_jobs({"work": lambda payload: note("effects", payload)})
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    names = [f"parent-{n}" for n in range(300)]
    assert Counter(notes(tmp_path / "effects")) == dict.fromkeys([*names, "parent"], 1)
    assert queue.counts() == dict.fromkeys(queue.counts(), 0) | {"completed": 301}


# A child is forked while a thread of its parent holds the lock, as with gunicorn and
# multiprocessing. Python 3.12 and later warn about a fork in a process with threads.
A_THREAD_IN_A_LOCK = """
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
queue.enqueue("work", 0)
lock = queue.store.lock
held, let_go = threading.Event(), threading.Event()

def hold():
    held.set()
    assert let_go.wait(30)

thread = threading.Thread(target=lock.run, args=(hold,), daemon=True)
thread.start()
assert held.wait(30)
"""


def test_a_child_forked_while_a_thread_of_its_parent_holds_the_lock_waits_for_it(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    child = programs.start(
        A_THREAD_IN_A_LOCK
        + """
child = os.fork()
if child == 0:
    code = 1
    try:
        note("child", "begins")
        queue.enqueue("work", 1)
        code = 0
    finally:
        os._exit(code)
wait_for(Path("go").exists, "go")
let_go.set()
thread.join()
queue.enqueue("work", 2)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    wait_for_notes(tmp_path / "child", 1)
    assert not is_free(tmp_path / f"{QUEUE}.lock")
    assert [job["payload"] for job in queue.jobs()] == [0]
    (tmp_path / "go").touch()
    child.succeed()
    assert sorted(job["payload"] for job in queue.jobs()) == [0, 1, 2]


def test_a_forked_child_that_closes_its_queue_and_exits_does_not_release_its_parents_lock(
    programs: Programs, tmp_path: Path
) -> None:
    programs.run(
        A_THREAD_IN_A_LOCK
        + """
from helpers import is_free

child = os.fork()
if child == 0:
    queue.close()
    lock.close()
    sys.exit(0)  # with all that the interpreter cleans up
assert os.waitpid(child, 0)[1] == 0
assert not is_free(lock.path)
let_go.set()
thread.join()
assert is_free(lock.path)
"""
    )


def test_a_forked_child_that_outlives_its_killed_parent_does_not_keep_its_lock(
    programs: Programs, queue: Queue, tmp_path: Path
) -> None:
    child = programs.start(
        A_THREAD_IN_A_LOCK
        + """
if os.fork() == 0:
    note("child", "lives")
    wait_for(Path("go").exists, "go")
    note("child", "ends")
    os._exit(0)
wait_for(lambda: notes("child"), "the child")
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert child.wait() == -9
    try:
        assert notes(tmp_path / "child") == ["lives"]
        assert is_free(tmp_path / f"{QUEUE}.lock")
        queue.enqueue("work", 1)
    finally:
        (tmp_path / "go").touch()
        wait_for_notes(tmp_path / "child", 2)


@pytest.mark.parametrize("is_open", ["first used", "long open"])
def test_forks_at_random_instants_of_a_busy_thread_never_hang_a_child(
    programs: Programs, queue: Queue, is_open: str
) -> None:
    """Even while the thread imports what its first lock needs, and so holds an import lock."""
    programs.run(
        ('queue.enqueue("work", "parent")' if is_open == "long open" else "")
        + """
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
over = threading.Event()

def be_busy():
    while not over.is_set():
        job_id = queue.enqueue("work", "thread")
        assert queue.get_job(job_id)
        assert queue.cancel_job(job_id)

thread = threading.Thread(target=be_busy, daemon=True)
thread.start()
children = []
for n in range(30):
    children.append(os.fork())
    if children[-1] == 0:
        code = 1
        try:
            assert queue.get_job(queue.enqueue("work", "child"))["payload"] == "child"
            code = 0
        finally:
            os._exit(code)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
over.set()
thread.join()
"""
    )
    assert [job["payload"] for job in queue.jobs("pending")][-30:] == ["child"] * 30


# -- races, made certain by running passes step by step


def a_pass(queue: Queue, *, fsync: bool = False) -> Claims:
    """Return a pass with its own descriptors and view, as in another process."""
    return Claims(
        QueueFiles(queue.path, fsync=fsync),
        TERMS,
        time.time(),
    )


def long_id(letter: str) -> str:
    return letter * 50


def claimed(passing: Claims, most: int) -> dict[str, Claim]:
    return {claim.row.id[0]: claim for claim in passing.claim(most, time.time())}


def complete(passing: Claims, claim: Claim) -> None:
    started = claim.row.state
    state = State("completed", started.created_at, started.run_at, started.attempts, "", "")
    assert passing.record(claim, state)


def test_a_pass_that_missed_a_fold_notices_it_even_if_the_journal_has_its_old_length_and_end(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold truncates the journal, which may then grow until it ends in the same bytes again."""
    monkeypatch.setattr(QueueFiles, "is_fold_cheap", lambda *_: False)  # as in a long queue
    for letter in "abcd":
        queue.enqueue("work", letter, run_at=1, job_id=long_id(letter))
    slow = a_pass(queue)
    claims = claimed(slow, 2)
    assert set(claims) == {"a", "b"}
    slow.unclaim([claims["a"]])
    journal = f"{queue.path}.journal"
    with open(journal, "rb") as file:
        before = file.read()

    quick = a_pass(queue)
    done = claimed(quick, 3)
    assert set(done) == {"a", "c", "d"}
    for letter in "cd":
        complete(quick, done[letter])
    quick.unclaim([done["a"]])
    assert quick.finish() is None
    queue.enqueue("work", "e", run_at=1, job_id=long_id("e"))
    last = a_pass(queue)
    claims_of_last = claimed(last, 2)
    assert set(claims_of_last) == {"a", "e"}
    last.unclaim([claims_of_last["a"]])
    with open(journal, "rb") as file:
        after = file.read()
    assert (len(after), after[-64:]) == (len(before), before[-64:]) and after != before

    assert set(claimed(slow, 5)) == {"a"}  # neither "c" nor "d", which are completed
    complete(slow, claims["b"])
    complete(last, claims_of_last["e"])
    assert {job["id"][0] for job in queue.jobs("completed")} == set("bcde")


def test_jobs_that_a_pass_has_not_returned_yet_stay_claimed_when_it_claims_again(
    queue: Queue,
) -> None:
    """A pass claims while its ticker thread waits for the lock to return unstarted jobs."""
    for letter in "abc":
        queue.enqueue("work", letter, run_at=1, job_id=letter)
    passing = a_pass(queue)
    claims = claimed(passing, 2)
    complete(passing, claims["a"])
    assert set(claimed(passing, 1)) == {"c"}

    other = a_pass(queue)
    assert other.take_recovered() == (0, [])
    passing.unclaim([claims["b"]])
    assert set(claimed(other, 1)) == {"b"}
    found = queue.get_job("b")
    assert found is not None and (found["attempts"], found["error"]) == (1, None)


# -- an outcome is synced after the lock was released


class Syncs:
    """Runs an action during one sync, and decides how that sync ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = os.fdatasync
        self.action: Callable[[], object] | None = None
        self.error: int | None = None
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, fd: int) -> None:
        act, self.action = self.action, None
        if act is None:
            self._real(fd)
            return
        act()
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


def statuses(queue: Queue) -> dict[str, str]:
    """Return what a process that starts now reads."""
    with Queue(queue.path) as fresh:
        return {job["id"]: job["status"] for job in fresh.jobs()}


def test_other_processes_go_on_while_an_outcome_is_synced(queue: Queue, syncs: Syncs) -> None:
    queue.enqueue("work", 1, run_at=1, job_id="a")
    passing = a_pass(queue, fsync=True)
    claims = claimed(passing, 1)
    syncs.action = lambda: queue.enqueue("work", 2, job_id="b")
    complete(passing, claims["a"])
    assert syncs.action is None
    assert statuses(queue) == {"a": "completed", "b": "pending"}
    assert passing.finish() is None


def test_a_claim_is_synced_before_the_lock_is_released(queue: Queue, syncs: Syncs) -> None:
    """If it can't be synced, it is undone, and the job keeps its attempt."""
    queue.enqueue("work", 1, run_at=1, job_id="a")
    passing = a_pass(queue, fsync=True)
    free: list[bool] = []
    syncs.action = lambda: free.append(is_free(f"{queue.path}.lock"))
    syncs.error = errno.EIO
    with pytest.raises(StoreError, match="nothing was changed"):
        claimed(passing, 1)
    assert free == [False]
    assert statuses(queue) == {"a": "pending"}


def test_an_outcome_that_cannot_be_synced_is_undone(queue: Queue, syncs: Syncs) -> None:
    queue.enqueue("work", 1, run_at=1, job_id="a")
    passing = a_pass(queue, fsync=True)
    claims = claimed(passing, 1)
    syncs.action, syncs.error = lambda: None, errno.EIO
    with pytest.raises(StoreError, match=r"nothing was changed"):
        complete(passing, claims["a"])
    assert statuses(queue) == {"a": "processing"}


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("folded", [True, False])
def test_an_outcome_that_cannot_be_synced_stays_if_others_have_written_after_it(
    queue: Queue, syncs: Syncs, monkeypatch: pytest.MonkeyPatch, folded: bool, error: int
) -> None:
    """Truncating it would remove their records, or leave records that don't fit the file."""
    monkeypatch.setattr(QueueFiles, "is_fold_cheap", lambda *_: folded)
    for job_id in "ab":
        queue.enqueue("work", job_id, run_at=1, job_id=job_id)
    passing = a_pass(queue, fsync=True)
    claims = claimed(passing, 1)
    syncs.action, syncs.error = lambda: queue.cancel_job("b"), error
    with pytest.raises(StoreError, match="the change was made, but may not survive a power cut"):
        complete(passing, claims["a"])
    assert (os.path.getsize(f"{queue.path}.journal") == 0) == folded
    assert statuses(queue) == {"a": "completed", "b": "cancelled"}
