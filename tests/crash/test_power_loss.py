"""The power fails at every point of every workload, and nothing that was promised is gone.

Each workload is recorded once; of each point some of the disks that a power loss may leave
(`power.py` says which) are laid out, recovered by a fresh process's calls, and held against what
the workload had been told by then. Some 6,000 disks by default, 30,000 with DBBASIC_QUEUE_LONG=1;
DBBASIC_QUEUE_SEED chooses other ones.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from power import MODELS, Facts, Killed, Recorder, State, crash_states, lay_out

from dbbasic_queue import Backoff, Delay, Fail, Handler, Queue
from dbbasic_queue.rows import HEADER, decode_record, encode_record
from dbbasic_queue.store import files
from dbbasic_queue.store.store import Store
from dbbasic_queue.watcher import Watcher

LONG = bool(os.environ.get("DBBASIC_QUEUE_LONG"))
SEED = int(os.environ.get("DBBASIC_QUEUE_SEED", "1"))
STATES = 30_000 if LONG else 6_000
NOW = 1_700_000_000
MONTH = 30 * 86_400
FINAL = ("completed", "failed", "cancelled")
MAX_ATTEMPTS = 3
ARCHIVE = "archive.tsv.gz"


def done(payload: dict[str, Any]) -> dict[str, Any]:
    """A handler's result; it is as long as the payload, so that its record spans sectors."""
    return {"done": payload["n"], "text": payload.get("text", "")[::-1]}


class Session:
    """A program that works with a queue, and writes down what it was promised."""

    def __init__(self, root: Path, recorder: Recorder) -> None:
        self.path = root / "data" / "queue.tsv"
        self.recorder = recorder
        self.now = float(NOW)
        self.deadly = True
        self.numbers = max(recorder.facts.begun, default=0)
        self.queue = self.open()
        with recorder.paused():
            self.reader = Queue(self.path)

    def open(self) -> Queue:
        return Queue(self.path, clock=lambda: self.now)

    def look(self) -> None:
        """What a reader sees as final, it may rely on."""
        facts = self.recorder.facts
        with self.recorder.paused():
            for job in self.reader.jobs():
                if job["status"] in FINAL:
                    facts.final[job["id"]] = job
        self.recorder.tell()

    def payload(self, do: str, run_at: int | None = None, **more: Any) -> dict[str, Any]:
        self.numbers += 1
        due = int(self.now) if run_at is None else run_at
        payload = {"n": self.numbers, "do": do, **more}
        self.recorder.facts.begun[self.numbers] = {"payload": payload, "run_at": due}
        self.recorder.tell()
        return payload

    def keep(self, job_id: str, number: int) -> str:
        self.recorder.facts.kept[job_id] = number
        self.recorder.tell()
        return job_id

    def enqueue(
        self,
        do: str,
        run_at: int | None = None,
        job_id: str | None = None,
        queue: Queue | None = None,
        **more: Any,
    ) -> str:
        payload = self.payload(do, run_at, **more)
        job_id = (queue or self.queue).enqueue("step", payload, run_at, job_id=job_id)
        return self.keep(job_id, payload["n"])

    def enqueue_many(self, do: str, count: int, **more: Any) -> list[str]:
        payloads = [self.payload(do, **more) for _ in range(count)]
        ids = self.queue.enqueue_many("step", payloads)
        for job_id, payload in zip(ids, payloads, strict=True):
            self.recorder.facts.kept[job_id] = payload["n"]
        self.recorder.tell()
        return ids

    def cancel(self, job_id: str) -> None:
        assert self.queue.cancel_job(job_id)
        self.look()

    def chosen(self, *statuses: str) -> dict[str, int]:
        """Return id -> number of the jobs that have one of these statuses now."""
        with self.recorder.paused():
            jobs = [job for job in self.reader.jobs() if job["status"] in statuses]
        return {job["id"]: job["payload"]["n"] for job in jobs}

    def requeue(self, *statuses: str) -> None:
        """Requeue the only cancelled job, or all failed ones."""
        jobs = self.chosen(*statuses)
        facts = self.recorder.facts
        for job_id, number in jobs.items():
            facts.final.pop(job_id, None)
            facts.attempts.pop(job_id, None)
            facts.loose.add(job_id)
            facts.when.setdefault(number, []).append(int(self.now))
        self.recorder.tell()
        if statuses == ("failed",):
            assert self.queue.requeue_failed() == len(jobs) > 1
        else:
            (job_id,) = jobs
            assert self.queue.requeue(job_id)
        facts.requeued.update(dict.fromkeys(jobs, int(self.now)))
        self.recorder.tell()

    def remove(self, *statuses: str, archive: bool) -> list[str]:
        """Take all jobs with these statuses out; return their ids."""
        jobs = self.chosen(*statuses)
        facts = self.recorder.facts
        for job_id, number in jobs.items():
            for promised in (facts.kept, facts.final, facts.attempts, facts.requeued):
                promised.pop(job_id, None)
            if archive:
                facts.leaving.add(number)
        self.recorder.tell()
        if archive:
            assert statuses == FINAL
            place = self.path.with_name(ARCHIVE)
            assert self.queue.purge(0, archive=place) == len(jobs) > 1
        else:
            assert statuses == ("failed",)
            assert self.queue.clear_failed() == len(jobs) > 1
        facts.removed.update(jobs.values())
        self.recorder.tell()
        return list(jobs)

    def put_off(self, job_id: str, payload: dict[str, Any], seconds: int) -> None:
        """Raise Delay: from here on the attempt may be returned."""
        facts = self.recorder.facts
        facts.attempts[job_id] -= 1
        facts.when.setdefault(payload["n"], []).append(int(self.now) + seconds)
        self.recorder.tell()
        raise Delay(seconds, "too\tearly")

    def step(self, payload: dict[str, Any]) -> Any:
        facts = self.recorder.facts
        own_id = ""
        with self.recorder.paused():
            for job in self.reader.jobs():
                if isinstance(job["payload"], dict) and job["payload"].get("n") == payload["n"]:
                    own_id = job["id"]
                    facts.attempts[own_id] = job["attempts"]
        self.look()  # the outcomes of the jobs before are on the disk by now
        if payload["do"] == "give up":
            raise Fail(f"never {payload['n']}")
        if payload["do"] == "delay" and self.now < NOW + 100:
            self.put_off(own_id, payload, 120)
        if payload["do"] == "fail":
            raise ValueError(f"no\tsuch\nuser {payload['n']}")
        if payload["do"] == "nest":
            self.enqueue("ok", queue=self.queue)
        if payload["do"] == "die" and self.deadly:
            self.recorder.calls_until_death = 0
        return done(payload)

    def run_pass(self, queue: Queue | None = None, handler: Handler | None = None) -> None:
        handlers = {"step": handler or self.step}
        # On a busy machine a second thread would write while the recorder is paused.
        with patch.object(Watcher, "start_once", lambda _: None):
            (queue or self.queue).process_jobs(handlers, max_attempts=MAX_ATTEMPTS)
        self.look()

    def killed_in(self, act: Callable[[], object]) -> None:
        """Run what ends with this process's death, and go on as another process."""
        with pytest.raises(Killed):
            act()
        for file in list(files._to_close_after_fork):  # the slot's lock goes with its process
            file.close()
        self.queue.close()
        self.recorder.calls_until_death = None
        self.queue = self.open()


# -- the workloads -----------------------------------------------------------------------------


def first_steps(s: Session) -> None:
    """The directory and every file are new; each outcome once."""
    s.enqueue("ok")
    s.enqueue("fail", job_id="mine")
    s.enqueue("nest")
    future = s.enqueue("ok", run_at=NOW + MONTH)
    s.run_pass()
    s.enqueue_many("ok", 4)
    s.cancel(future)
    s.now += 200
    s.run_pass()
    s.now += 500
    s.enqueue("ok", job_id="later")
    s.run_pass()


def bulk(s: Session) -> None:
    """Writes of several sectors, batches of claims, and folds in between."""
    s.enqueue_many("ok", 12, text="x" * 300)
    s.enqueue_many("fail", 3, text="é" * 500)
    s.run_pass()
    waiting = s.enqueue("ok", run_at=NOW + MONTH, text="y" * 5000)
    s.enqueue_many("nest", 2)
    s.now += 130
    s.run_pass()
    s.cancel(waiting)
    s.now += 250
    s.run_pass()


def two_processes(s: Session) -> None:
    """Between an enqueue's write and its sync another process claims, runs and folds."""
    other = s.open()
    s.enqueue("ok")
    s.recorder.before_sync = lambda: s.run_pass(other)
    s.enqueue("ok")
    first = s.enqueue("ok", run_at=NOW + MONTH)
    s.recorder.before_sync = lambda: other.cancel_job(first)
    s.enqueue("fail")
    s.look()
    s.recorder.before_sync = lambda: s.enqueue("ok", queue=other)
    s.enqueue("nest")
    s.now += 10
    s.run_pass(other)
    s.enqueue_many("ok", 3)
    s.run_pass()


def kills(s: Session) -> None:
    """Processes die in a handler, before a journal's write and in a fold; others go on."""
    s.enqueue("ok")
    s.enqueue("die")
    s.killed_in(s.run_pass)
    s.enqueue("fail")
    for _ in range(MAX_ATTEMPTS - 1):
        s.killed_in(s.run_pass)
    s.run_pass()
    s.enqueue_many("ok", 3)
    s.recorder.calls_until_death = 9
    s.killed_in(s.run_pass)
    s.run_pass()
    s.look()


def journal_only(s: Session) -> None:
    """As in a long queue: what has happened is in the journal alone until the pass ends."""
    assert hasattr(Store, "fold_if_cheap")
    with patch.object(Store, "fold_if_cheap", lambda *_: None):
        s.enqueue("ok", text="abc" * 600)
        s.enqueue_many("fail", 2)
        s.enqueue("nest")
        s.run_pass()
        waiting = s.enqueue("ok", run_at=NOW + MONTH)
        s.cancel(waiting)
        s.enqueue("die", text="xyz" * 300)
        s.enqueue("ok")
        for _ in range(MAX_ATTEMPTS):
            s.killed_in(s.run_pass)
        s.now += 130
        s.run_pass()


def by_hand(s: Session) -> None:
    """Lines that are no jobs, one with a NUL, and an id that is used again."""
    s.enqueue("ok", job_id="again")
    s.run_pass()
    bad = [b"no job at all", b"\0\0\0 zeros \xff", b"x\ty\t{}\tdone\t1\t1\t0\t\t"]
    fd = os.open(s.path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"\n".join(bad) + b"\n")
    os.fdatasync(fd)
    os.close(fd)
    s.recorder.facts.lines += bad
    s.recorder.tell()
    s.enqueue("ok")
    s.run_pass()
    s.enqueue("nest")
    s.run_pass()


def policies(s: Session) -> None:
    """Handlers put off, give up, and try again by a policy of their own."""
    policy = Handler(s.step, max_attempts=2, backoff=Backoff(base=5))
    s.enqueue_many("delay", 2)
    s.enqueue("give up")
    s.enqueue("fail")
    s.run_pass(handler=policy)
    s.now += 60
    s.enqueue("delay")
    s.run_pass(handler=policy)
    s.now += 200
    s.run_pass(handler=policy)


def requeues(s: Session) -> None:
    """What has failed or was cancelled, in the file or in the journal alone, is requeued."""
    s.enqueue_many("give up", 2, text="r" * 300)
    s.enqueue_many("ok", 2)
    waiting = s.enqueue("ok", run_at=NOW + MONTH)
    with patch.object(Store, "fold_if_cheap", lambda *_: None):
        s.run_pass()
        s.cancel(waiting)
        s.now += 60
        s.requeue("cancelled")
        s.enqueue("give up")
        s.run_pass()
        s.now += 60
        s.requeue("failed")
        s.run_pass()
        s.enqueue("ok")
        s.cancel(s.enqueue("ok", run_at=NOW + MONTH))
        s.now += 60
        s.requeue("failed")
        s.requeue("cancelled")


def purges(s: Session) -> None:
    """What is finished leaves, into an archive or for good, and ids come back."""
    with patch.object(Store, "fold_if_cheap", lambda *_: None):
        for n in range(4):
            s.enqueue("ok", job_id=f"own.{n}", text="p" * 200)
        waiting = s.enqueue("ok", run_at=NOW + 10)
        s.run_pass()
        s.cancel(waiting)
        s.now += 60
        gone = s.remove(*FINAL, archive=True)
        s.enqueue("ok", job_id=gone[0])
        s.enqueue_many("give up", 2)
        s.run_pass()
        s.now += 60
        gone = s.remove("failed", archive=False)
        s.enqueue("ok", job_id=gone[1])
        s.enqueue("fail")
        s.run_pass()
        s.cancel(s.enqueue("ok", run_at=NOW + 130))
        s.now += 60
        s.remove(*FINAL, archive=True)
        s.enqueue("ok", job_id="own.2")
        s.run_pass()


WORKLOADS = [
    first_steps,
    bulk,
    two_processes,
    journal_only,
    kills,
    by_hand,
    policies,
    requeues,
    purges,
]


def record(work: Callable[[Session], None], root: Path) -> Recorder:
    recorder = Recorder(root)
    with recorder.recording():
        recorder.tell()
        work(Session(root, recorder))
    return recorder


# -- what must hold of each disk ---------------------------------------------------------------


def check(root: Path, facts: Facts) -> None:
    """Recover as a process does that starts after the power loss; raises AssertionError."""
    path = root / "data" / "queue.tsv"
    now = float(max((b["run_at"] for b in facts.begun.values()), default=NOW))
    clock = min(now, NOW + MONTH / 2)
    ran: Counter[int] = Counter()
    queue = Queue(path, fsync=False, clock=lambda: clock)

    def step(payload: dict[str, Any]) -> dict[str, Any]:
        ran[payload["n"]] += 1
        number = payload["n"]
        assert number in facts.begun, f"{payload} runs, and was never enqueued"
        assert facts.begun[number]["payload"] == payload, f"{payload} runs, changed"
        due = min([facts.begun[number]["run_at"], *facts.when.get(number, ())])
        assert due <= clock, f"{number} runs at {clock} and is due at {due}"
        return done(payload)

    found = holds(queue, facts, "as found")
    queue.process_jobs({"step": step}, max_attempts=MAX_ATTEMPTS)
    holds(queue, facts, "after the first pass")
    new = queue.enqueue("new", {})
    clock += 10 * 365 * 86_400
    queue.process_jobs({"step": step, "new": lambda _: None}, max_attempts=MAX_ATTEMPTS)
    jobs = {job["id"]: job for job in queue.jobs()}
    holds(queue, facts, "in the end")
    assert jobs[new]["status"] == "completed", "a new job does not run"
    for job in jobs.values():
        assert job["status"] in FINAL, f"never done: {job}"
    for job_id, number in facts.kept.items():
        times = ran[number]
        was = found[job_id]["status"]
        assert times <= 1, f"{jobs[job_id]} ran {times} times"
        assert not times or job_id not in facts.final, f"{facts.final[job_id]} ran again"
        if job_id in facts.loose and was in FINAL:
            assert not times, f"{found[job_id]} ran again"
        elif job_id not in facts.attempts and was != "cancelled":
            spent = jobs[job_id]["attempts"] == MAX_ATTEMPTS  # all by crashes right after a claim
            assert times == 1 or spent, f"never run: {jobs[job_id]}"
    check_archive(queue, facts, jobs)
    queue.close()
    file = path.read_bytes()
    assert file.startswith(HEADER) and file.endswith(b"\n")
    lines = file.split(b"\n")[:-1]
    rejected = path.with_name("queue.tsv.rejected")
    aside = rejected.read_bytes().split(b"\n") if rejected.exists() else []
    for line in facts.lines:
        assert line in lines or line in aside, f"the line {line!r} is gone"
    assert not any(b"\0" in line for line in lines), "a NUL stays in the file"


def check_archive(queue: Queue, facts: Facts, jobs: dict[str, dict[str, Any]]) -> None:
    """What was to be archived is in the queue or in the archive; that is whole after a purge."""
    archive = Path(queue.path).with_name(ARCHIVE)
    if not facts.leaving:
        assert not archive.exists() or not facts.kept, "there is an archive of nothing"
        return
    there = {job["payload"]["n"] for job in jobs.values() if job["type"] != "new"}
    queue.purge(0, archive=archive)
    header, *lines = gzip.decompress(archive.read_bytes()).split(b"\n")
    assert header + b"\n" == HEADER and lines.pop() == b""
    numbers = {n for line in lines if (n := json.loads(line.split(b"\t")[2]).get("n"))}
    lost = facts.leaving - numbers
    assert not lost, f"neither in the queue nor in the archive: {lost}; in the queue {there}"


def holds(queue: Queue, facts: Facts, when: str) -> dict[str, dict[str, Any]]:
    jobs: dict[str, dict[str, Any]] = {}
    for job in queue.jobs():
        assert job["id"] not in jobs, f"{when}: {job['id']} is there twice"
        jobs[job["id"]] = job
        if job["type"] == "new":
            continue
        number = job["payload"]["n"]
        assert number in facts.begun, f"{when}: {job} was never enqueued"
        begun = facts.begun[number]
        assert job["payload"] == begun["payload"], f"{when}: {job} is not {begun}"
        if job["status"] == "completed":
            assert job["result"] == done(job["payload"]), f"{when}: {job} has another result"
        if job["attempts"] == 0:
            instants = [begun["run_at"], *facts.when.get(number, ())]
            assert job["run_at"] in instants, f"{when}: {job} was for {instants}"
        assert number not in facts.removed, f"{when}: {job} was removed"
    for job_id, number in facts.kept.items():
        assert job_id in jobs, f"{when}: {job_id} is lost: {facts.begun[number]}"
        assert jobs[job_id]["payload"]["n"] == number
        assert queue.get_job(job_id) == jobs[job_id]
    for job_id, instant in facts.requeued.items():
        assert jobs[job_id]["run_at"] >= instant, f"{when}: {jobs[job_id]} was requeued"
    for job_id, job in facts.final.items():
        # Whoever was not told that a job is there may have seen it finish all the same.
        found = jobs.get(job_id)
        assert found == job or (found is None and job_id not in facts.kept), (
            f"{when}: {job} was final, and is {found}"
        )
    for job_id, attempt in facts.attempts.items():
        if job_id in jobs:
            assert jobs[job_id]["attempts"] >= attempt, f"{when}: an attempt is forgotten"
    return jobs


def check_state(state: State, scratch: Path, label: str) -> None:
    root = scratch / "state"
    lay_out(state.tree, root)
    try:
        check(root, state.facts)
    except Exception as e:
        raise AssertionError(
            f"{label}, seed {SEED}, power lost after event {state.point} ({state.how}): "
            f"{type(e).__name__}: {e}\nthe disk was {state.tree}"
        ) from e
    finally:
        shutil.rmtree(root)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory where there is one: the disks are simulated, the calls are real."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="power-", dir=where))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.__name__)
def test_after_a_power_loss_at_any_point_nothing_promised_is_gone(
    work: Callable[[Session], None],
    model: str,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = time.monotonic()
    rng = random.Random(f"{SEED} {work.__name__} {model}")
    (scratch / "live").mkdir()
    recorder = record(work, scratch / "live")
    budget = STATES * 8 // 10 // (2 * len(WORKLOADS) - 1)
    label = f"{work.__name__}, {model}"
    states = []
    for state in crash_states(recorder, model, budget, rng):
        check_state(state, scratch, label)
        states.append(state)
    again = 0
    for state in rng.sample(states, max(len(states) // 40, 1)):
        again += crash_in_recovery(state, model, scratch, rng, label)
    with capsys.disabled():
        print(
            f"\n  {label}: {len(recorder.events)} points, {len(states)} disks, and {again} left "
            f"by a power loss in the recovery; seed {SEED}, {time.monotonic() - began:.1f} s",
            end="",
        )


def crash_in_recovery(
    state: State, model: str, scratch: Path, rng: random.Random, label: str
) -> int:
    """The power comes back, and fails again while the first pass recovers."""
    root = scratch / "again"
    lay_out(state.tree, root)
    recorder = Recorder(root, seed=1 + state.point)
    recorder.begin_with(state.tree, state.facts)
    try:
        with recorder.recording():
            session = Session(root, recorder)
            session.deadly = False
            session.now = NOW + 20 * 60.0
            session.run_pass()
            session.enqueue("ok")
            session.run_pass()
    finally:
        shutil.rmtree(root)
    states = list(crash_states(recorder, model, 12, rng))
    for second in states:
        check_state(second, scratch, f"{label}, recovery from event {state.point} ({state.how})")
    return len(states)


@pytest.mark.parametrize("model", MODELS)
def test_an_id_whose_row_the_disk_has_lost_can_be_used_again(model: str, scratch: Path) -> None:
    # Another process has run the job before its enqueue was synced: its end was, its row was not.
    record = encode_record(b"mine", b"completed\t1700000000\t1700000000\t1\t\t")
    tree = {"data": {"queue.tsv": HEADER, "queue.tsv.journal": record, "queue.tsv.lock": b""}}
    root = scratch / "live"
    lay_out(tree, root)
    recorder = Recorder(root)
    recorder.begin_with(tree, Facts())
    with recorder.recording():
        session = Session(root, recorder)
        session.enqueue("ok", job_id="mine")
        session.enqueue("ok")
        session.run_pass()
    for state in crash_states(recorder, model, 300, random.Random(SEED)):
        check_state(state, scratch, model)


def test_the_recorder_sees_every_change_of_the_files(scratch: Path) -> None:
    root = scratch / "live"
    root.mkdir()
    recorder = record(first_steps, root)
    disk = recorder._now.tree()
    assert sorted(disk["data"]) == sorted(os.listdir(root / "data"))
    for name in os.listdir(root / "data"):
        assert disk["data"][name] == (root / "data" / name).read_bytes(), name


def test_a_torn_line_of_the_journal_is_no_record() -> None:
    line = b"a\tcompleted\t1\t1\t1\t\t\t"
    assert decode_record(line) is None
    assert decode_record(b"\0" * 40) is None
    assert decode_record(b"") is None
