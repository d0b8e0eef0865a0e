"""Every call, in any order, has the same effect on the queue as on a dict of jobs.

Hypothesis chooses the calls, the payloads, the clock, and which of two queues on the same path
makes the call (each has caches of its own, as two processes would). Between the calls, raw bytes
are appended as an editor might, and writes are torn. 2,000 examples with DBBASIC_QUEUE_LONG=1.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from dbbasic_queue import DuplicateJob, InvalidJob, JobNotFound, Queue

LONG = bool(os.environ.get("DBBASIC_QUEUE_LONG"))
START = 1_700_000_000
MAX_ATTEMPTS = 3
STATUSES = ("pending", "processing", "completed", "failed", "cancelled")
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

HOSTILE = [
    "a\tb",
    "line\nmine\tsend\t{}\tpending\t0\t0\t0\t\t",
    "\r\n",
    "\0",
    "\x1b[2J\x1b]0;title\x07",
    "\u2028\u2029\x85\x0b\x0c",
    "\ud800 lone",
    "=cmd()",
    "\\t\\n\\x00 \\",
    "\u202e\u200b\ufeff",
    "é漢😀",
    "",
    " ",
]
texts = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=()), max_size=30)
scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | texts
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
results: st.SearchStrategy[Any] = st.sampled_from([None, 0, False, [], "", {}, 0.0]) | values
job_types = st.sampled_from(["ok", "fail", "unknown", "exit", "nest", "not-json", "a.b:c-d_9"])
run_ats = (
    st.none()
    | st.just(0)
    | st.integers(START - 1000, START + 2000)
    | st.floats(START - 5.0, START + 500.0)
)
own_ids = st.none() | st.sampled_from(["mine", "a.b-c_d", "0", "x" * 64, "."])
bad_lines = st.sampled_from(
    [
        b"not a job",
        b"only\ttwo",
        b"x y\tok\t{}\tpending\t0\t0\t0\t\t",
        b"h1\tok\t{}\tdone\t0\t0\t0\t\t",
        b"h2\tok\t{}\tpending\tnan\t0\t0\t\t",
        b"h3\tok\t{}\tpending\t0\tsoon\t0\t\t",
        b"h4\tok\t{}\tpending\t0\t0\t-1\t\t",
        b"h5\t\t{}\tpending\t0\t0\t0\t\t",
        b"\xff\xfe\x00",
        b"\0\0\0\0",
        b"",
    ]
)
STATUS, CREATED, RUN_AT, ATTEMPTS, ERROR, RESULT = range(3, 9)


def backoff(attempt: int) -> int:
    return int(60 * 2**attempt)


class TheQueueAndItsModel(RuleBasedStateMachine):
    ids = Bundle("ids")

    @initialize(first=st.booleans())
    def begin(self, first: bool) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="model-", dir="/dev/shm" if MEMORY else None))
        self.path = self.home / "data" / "queue.tsv"
        self.now = float(START)
        self.queues = [self.open(), self.open()]
        self.model: dict[str, dict[str, Any]] = {}
        self.lines: list[bytes] = []
        self.outcome: Any = None
        self.ran: list[str] = []
        self.hands = 0
        if first:
            self.queues[0].enqueue_many("ok", [])

    def open(self) -> Queue:
        return Queue(self.path, clock=lambda: self.now)

    def teardown(self) -> None:
        for queue in getattr(self, "queues", []):
            queue.close()
        if hasattr(self, "home"):
            shutil.rmtree(self.home)

    def expect(self, job_id: str, job_type: str, payload: Any, run_at: float | None) -> None:
        now = int(self.now)
        due = -int(-run_at // 1) if run_at else now
        self.model[job_id] = {
            "id": job_id,
            "type": job_type,
            "payload": {} if payload is None else payload,
            "status": "pending",
            "created_at": now,
            "run_at": due,
            "attempts": 0,
            "error": None,
            "result": None,
        }

    # -- calls --

    @rule(
        target=ids,
        which=st.integers(0, 1),
        job_type=job_types,
        payload=values,
        run_at=run_ats,
        job_id=own_ids,
    )
    def enqueue(
        self, which: int, job_type: str, payload: Any, run_at: float | None, job_id: str | None
    ) -> Any:
        if job_id is not None and job_id in self.model:
            with pytest.raises(DuplicateJob):
                self.queues[which].enqueue(job_type, payload, run_at, job_id=job_id)
            return multiple()
        got = self.queues[which].enqueue(job_type, payload, run_at, job_id=job_id)
        assert got == job_id if job_id else re.fullmatch("[0-9a-f]{16}", got)
        assert got not in self.model
        self.expect(got, job_type, payload, run_at)
        return got

    @rule(
        target=ids,
        which=st.integers(0, 1),
        job_type=job_types,
        payloads=st.lists(values, max_size=5),
        run_at=run_ats,
    )
    def enqueue_many(
        self, which: int, job_type: str, payloads: list[Any], run_at: float | None
    ) -> Any:
        got = self.queues[which].enqueue_many(job_type, payloads, run_at)
        assert len(got) == len(payloads)
        for job_id, payload in zip(got, payloads, strict=True):
            self.expect(job_id, job_type, payload, run_at)
        return multiple(*got)

    @rule(
        which=st.integers(0, 1),
        wrong=st.sampled_from(
            [
                {"job_type": "a b"},
                {"job_type": ""},
                {"job_type": "x\n"},
                {"payload": float("nan")},
                {"payload": {1, 2}},
                {"payload": b"bytes"},
                {"run_at": "tomorrow"},
                {"run_at": float("inf")},
                {"run_at": -1},
                {"run_at": True},
                {"job_id": "a/b"},
                {"job_id": "tab\t"},
                {"job_id": ""},
            ]
        ),
    )
    def enqueue_an_invalid_job(self, which: int, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidJob):
            self.queues[which].enqueue(**{"job_type": "ok", "payload": {}, **wrong})

    @rule(which=st.integers(0, 1), job_id=ids | st.sampled_from(["unknown", "\ud800", "h1"]))
    def get_job(self, which: int, job_id: str) -> None:
        assert self.queues[which].get_job(job_id) == self.model.get(job_id)

    @rule(which=st.integers(0, 1), job_id=ids | st.sampled_from(["unknown", "\ud800"]))
    def cancel(self, which: int, job_id: str) -> None:
        job = self.model.get(job_id)
        legal = job is not None and job["status"] == "pending"
        assert self.queues[which].cancel_job(job_id) is legal
        if job is not None and legal:
            job |= {"status": "cancelled", "error": "Cancelled by user", "result": None}

    @rule(which=st.integers(0, 1), job_id=ids | st.sampled_from(["unknown", "\ud800"]))
    def stop(self, which: int, job_id: str) -> None:
        job = self.model.get(job_id)
        if job is None:
            with pytest.raises(JobNotFound):
                self.queues[which].stop_job(job_id)
        elif job["status"] != "pending":
            assert self.queues[which].stop_job(job_id) is None
        else:
            assert self.queues[which].stop_job(job_id) == "cancelled"
            job |= {"status": "cancelled", "error": "Cancelled by user", "result": None}

    @rule(which=st.integers(0, 1), result=results, text=texts, plain=st.booleans())
    def make_a_pass(self, which: int, result: Any, text: str, plain: bool) -> None:
        for job in self.model.values():  # enqueued for now while the clock was ahead: due now
            if (
                (job["status"], job["attempts"]) == ("pending", 0)
                and job["run_at"] <= job["created_at"] + 1
                and job["created_at"] > self.now + 60
                and job["run_at"] > self.now
            ):
                job["created_at"] = job["run_at"] = int(self.now)
        due = sorted(
            (job["run_at"], place, job)
            for place, job in enumerate(self.model.values())
            if job["status"] == "pending" and job["run_at"] <= self.now
        )
        for job in self.model.values():  # a wait that is longer than the backoff is cut short
            latest = -int(-(self.now + backoff(job["attempts"])) // 1)
            if job["status"] == "pending" and job["attempts"] and job["run_at"] > latest:
                job["run_at"] = latest
        ran: list[Any] = []
        nested: list[tuple[str, Any]] = []
        queue = self.queues[which]

        def ok(payload: Any) -> Any:
            ran.append(payload)
            return result

        def fail(payload: Any) -> Any:
            ran.append(payload)
            raise (Exception if plain else ValueError)(text)

        def leave(payload: Any) -> Any:
            ran.append(payload)
            raise SystemExit(3)

        def nest(payload: Any) -> Any:
            ran.append(payload)
            nested.append((self.queues[1 - which].enqueue("ok", payload), payload))
            return len(nested)

        def not_json(payload: Any) -> Any:
            ran.append(payload)
            return {1, 2}

        counts = queue.process_jobs(
            {
                "ok": ok,
                "fail": fail,
                "exit": leave,
                "nest": nest,
                "not-json": not_json,
                "a.b:c-d_9": ok,
            },
            max_attempts=MAX_ATTEMPTS,
        )
        assert ran == [job["payload"] for _, _, job in due if job["type"] != "unknown"]
        outcomes = ("completed", "failed", "retried", "delayed", "stopped", "recovered")
        expected = dict.fromkeys(outcomes, 0)
        nests = 0
        for _, _, job in due:
            job["attempts"] += 1
            if job["type"] in ("ok", "a.b:c-d_9"):
                job |= {"status": "completed", "error": None, "result": result}
            elif job["type"] == "nest":
                nests += 1
                job |= {"status": "completed", "error": None, "result": nests}
            elif job["type"] == "not-json":
                error = "result not kept: ValueError: set is not JSON (make it a list)"
                job |= {"status": "completed", "result": None}
                job["error"] = self.error_of(queue, job, error.partition(": ")[0])
            else:
                error = {"unknown": "No handler for unknown", "exit": "SystemExit: 3"}.get(
                    job["type"], ""
                )
                if job["type"] == "fail":
                    name = "Exception" if plain else "ValueError"
                    error = text if plain and text else f"{name}: {text}" if text else name
                job["error"] = error
                if job["attempts"] >= MAX_ATTEMPTS:
                    job["status"] = "failed"
                else:
                    at = -int(-(self.now + backoff(job["attempts"])) // 1)
                    job["run_at"] = at // 60 * 60  # a backoff of a minute or more is rounded down
            expected["retried" if job["status"] == "pending" else job["status"]] += 1
        assert counts == expected
        for job_id, payload in nested:
            self.expect(job_id, "ok", payload, None)

    @staticmethod
    def error_of(queue: Queue, job: dict[str, Any], beginning: str) -> str:
        found = queue.get_job(job["id"])
        assert found is not None and str(found["error"]).startswith(beginning)
        return str(found["error"])

    # -- changes that are not calls --

    @rule(seconds=st.sampled_from([1, 59, 121, 300, 1000, 86_400, -1, -500, -86_400, 0.5]))
    def the_clock_jumps(self, seconds: float) -> None:
        self.now = max(self.now + seconds, START - 200_000.0)

    @rule(which=st.integers(0, 1), close=st.booleans())
    def reopen(self, which: int, close: bool) -> None:
        if close:
            self.queues[which].close()  # a closed queue can be used again
        else:
            self.queues[which] = self.open()

    def by_hand(self, content: bytes) -> None:
        with open(self.path, "ab") as file:
            file.write(content)

    @precondition(lambda self: self.path.exists())
    @rule(line=bad_lines, carriage=st.booleans())
    def an_editor_adds_an_invalid_line(self, line: bytes, carriage: bool) -> None:
        if carriage and line:
            line += b"\r"
        self.by_hand(line + b"\n")
        self.lines.append(line)

    @precondition(lambda self: self.path.exists())
    @rule(
        target=ids,
        job_type=st.sampled_from(["ok", "fail", "unknown"]),
        due=st.integers(START - 10, START + 100),
        short=st.booleans(),
        ended=st.booleans(),
    )
    def an_editor_adds_a_job(self, job_type: str, due: int, short: bool, ended: bool) -> Any:
        self.hands += 1
        job_id = f"hand{self.hands}"
        row = f"{job_id}\t{job_type}\t[1]\tpending\t{START}\t{due}\t0" + ("" if short else "\t\t")
        # Without a line end it isn't a job until the next writer adds the end: here at once.
        self.by_hand(row.encode() + (b"\n" if ended else b""))
        if not ended:
            assert self.queues[0].get_job(job_id) is None
            now, self.now = self.now, float(START)
            self.enqueue_one("after-" + job_id)
            self.now = now
        self.model[job_id] = {
            "id": job_id,
            "type": job_type,
            "payload": [1],
            "status": "pending",
            "created_at": START,
            "run_at": due,
            "attempts": 0,
            "error": None,
            "result": None,
        }
        if not ended:  # put them in the order of the file
            after = self.model.pop("after-" + job_id)
            self.model["after-" + job_id] = after
        return job_id

    def enqueue_one(self, job_id: str) -> None:
        self.queues[1].enqueue("ok", 1, job_id=job_id)
        self.expect(job_id, "ok", 1, None)

    @precondition(lambda self: self.path.exists())
    @rule(which=st.integers(0, 1), cut=st.integers(1, 60), zeros=st.booleans())
    def a_writer_is_killed_while_it_writes(self, which: int, cut: int, zeros: bool) -> None:
        self.hands += 1
        row = f"torn{self.hands}\tok\t{{}}\tpending\t{START}\t{START + 10**9}\t0\t\t\n".encode()
        torn = row[: min(cut, row.index(b"\t17") + 22)]
        if zeros:
            torn += bytes(9)
        self.by_hand(torn)
        self.queues[which].enqueue("ok", None, job_id=f"after-torn{self.hands}")
        self.expect(f"after-torn{self.hands}", "ok", None, None)
        self.lines.append(torn)

    @precondition(lambda self: self.path.exists())
    @rule(
        content=st.sampled_from([b"torn", b"mine\tcompleted\t1\t1\t1\t\t\t0badc0de\n", bytes(30)])
    )
    def a_torn_record_is_left_in_the_journal(self, content: bytes) -> None:
        journal = self.path.with_name("queue.tsv.journal")
        if journal.exists():
            with open(journal, "ab") as file:
                file.write(content)

    # -- invariants --

    @invariant()
    def the_queue_agrees_with_the_model(self) -> None:
        if not hasattr(self, "queues"):
            return
        expected = list(self.model.values())
        for queue in self.queues:
            jobs = list(queue.jobs())
            assert jobs == expected
            # 0 == False and 0 == 0.0: compare their text, too.
            assert repr(jobs) == repr(expected)
            counts = dict.fromkeys(STATUSES, 0)
            for job in expected:
                counts[job["status"]] += 1
            assert queue.counts() == counts

    @invariant()
    def every_line_of_the_file_has_nine_columns(self) -> None:
        if not hasattr(self, "path") or not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        lines.pop()
        assert lines[0] == b"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult"
        strange = list(self.lines)
        for line in lines[1:]:
            if line in strange:
                strange.remove(line)
                continue
            if not line.startswith(b"hand"):
                assert line.count(b"\t") == 8, line
            assert not FORBIDDEN.search(line.decode()), line
        aside = self.path.with_name("queue.tsv.rejected")
        rejected = aside.read_bytes().split(b"\n") if aside.exists() else []
        for line in strange:
            assert line in rejected, f"{line!r} is gone"


MEMORY = os.access("/dev/shm", os.W_OK)
TestTheQueueAndItsModel = TheQueueAndItsModel.TestCase
TestTheQueueAndItsModel.settings = settings(
    max_examples=2_000 if LONG else 100,
    stateful_step_count=30,
    derandomize=not LONG,
    print_blob=LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
