"""What must be so after an attack, told from the files and the log alone.

The files are read here by a parser of their own, so that no mistake of the package's reader can
hide behind itself. Each check returns what is wrong, as sentences that begin with the promise's
number in issue and docs (P1 ...): an empty list is what a test wants to see.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

from workloads import HEADER, MAX_ATTEMPTS, START

FINAL = ("completed", "failed", "cancelled")
STATUSES = ("pending", "processing", *FINAL)
# How often the handler of a type is entered if nothing goes wrong.
NATURAL = {"flaky": 2, "bad": MAX_ATTEMPTS}


@dataclass
class Job:
    """A job as the files have it."""

    id: str
    type: str
    key: str
    status: str
    run_at: int
    attempts: int
    error: str
    result: str


@dataclass
class Disk:
    """The files, read once, while nobody writes."""

    jobs: list[Job] = field(default_factory=list)
    in_file: dict[str, str] = field(default_factory=dict)
    """id -> the status that `cat` shows"""
    junk: list[bytes] = field(default_factory=list)
    partial: bytes = b""
    wrong: list[str] = field(default_factory=list)
    records: int = 0

    def by_key(self, key: str) -> list[Job]:
        return [job for job in self.jobs if job.key == key]


def read_disk(path: str) -> Disk:
    """Read the queue file as `cat` shows it, and the journal over it."""
    disk = Disk()
    if not os.path.exists(path):
        return disk
    content = _content(path)
    *lines, disk.partial = content.split(b"\n")
    if not lines or lines.pop(0).decode() + "\n" != HEADER:
        disk.wrong.append(f"P8: the file begins with {content[:40]!r}, not with its header")
        return disk
    if re.search(rb"[\0-\x08\x0b-\x1f\x7f]", content):
        disk.wrong.append("P8: the file holds a control character")
    states = _journal(path + ".journal", disk)
    for line in lines:
        job = _job(line)
        if job is None:
            disk.junk.append(line)
            continue
        disk.in_file[job.id] = job.status
        if job.id in states:
            job.status, _, run_at, attempts, job.error, job.result = states[job.id]
            job.run_at, job.attempts = int(run_at), int(attempts)
        disk.jobs.append(job)
    return disk


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _journal(path: str, disk: Disk) -> dict[str, list[str]]:
    states: dict[str, list[str]] = {}
    if os.path.exists(path):
        # The last one, too: the next writer ends the line, and then it counts if it is whole.
        for line in _content(path).split(b"\n"):
            body, _, checksum = line.rpartition(b"\t")
            if checksum == b"%08x" % zlib.crc32(body):
                job_id, *state = body.decode().split("\t")
                states[job_id] = state
                disk.records += 1
    return states


def _job(line: bytes) -> Job | None:
    columns = line.decode("utf-8", "replace").split("\t")
    if len(columns) != 9 or columns[3] not in STATUSES:
        return None
    try:
        key = json.loads(columns[2])["k"]
        run_at, attempts = int(columns[5]), int(columns[6])
    except ValueError:
        return None
    return Job(columns[0], columns[1], key, columns[3], run_at, attempts, columns[7], columns[8])


# -- what the log promises ---------------------------------------------------------------------


class Promises:
    """The log, read: what was asked, acknowledged, begun and reported."""

    def __init__(self, events: list[list[Any]]) -> None:
        self.events = events
        self.called: dict[str, Any] = {}
        self.kept: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.raised: list[tuple[list[str], str, list[Any]]] = []
        self.had: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self.starts_under_error: dict[str, int] = {}
        self.starts_by: dict[int, set[str]] = {}
        self.outcomes: dict[str, tuple[str, int]] = {}
        self.now: float = START
        self.gone = False
        self.wrong: list[str] = []
        self._running: dict[str, int] = {}
        self._under_error = False
        for pid, what, *rest in events:
            read = getattr(self, "_read_" + what, None)
            if read is not None:
                read(pid, *rest)

    def _read_call(self, _: int, key: str, operation: str, run_at: float | None) -> None:
        if operation == "enqueue":
            self.called[key] = run_at

    def _read_done(self, _: int, keys: str, operation: str, value: Any) -> None:
        if operation == "enqueue":
            self.kept[keys] = value
        elif operation == "enqueue_many":
            self.kept.update(zip(keys.split(" "), value, strict=True))
        elif operation == "cancel" and value is True:
            self.cancelled.add(keys)

    def _read_raised(self, _: int, keys: str, operation: str, *error: Any) -> None:
        self.raised.append((keys.split(" "), operation, list(error)))

    def _read_start(self, pid: int, key: str, now: float) -> None:
        self.starts[key] = self.starts.get(key, 0) + 1
        self.starts_by.setdefault(pid, set()).add(key)
        if self._under_error:
            self.starts_under_error[key] = self.starts_under_error.get(key, 0) + 1
        if key in self._running:
            self.wrong.append(f"P4: {key} is begun by {pid} while {self._running[key]} runs it")
        self._running[key] = pid
        if key in self.cancelled:
            self.wrong.append(f"P2: {key} is begun after its acknowledged cancel")
        job_id = self.kept.get(key, key)
        if self.outcomes.get(job_id, ("", 0))[0] in FINAL:
            self.wrong.append(f"P2: {key} is begun after its reported {self.outcomes[job_id][0]}")
        if now < (self.called.get(key) or 0):
            self.wrong.append(f"P1: {key} is begun before its time")

    def _read_had(self, _: int, key: str, attempts: int) -> None:
        self.had[key] = attempts

    def begun(self, key: str) -> int:
        """Return how many attempts of a job have been begun."""
        return self.had.get(key, 0) + self.starts.get(key, 0)

    def _read_end(self, _: int, key: str) -> None:
        self._running.pop(key, None)

    def _read_outcome(self, _: int, job_id: str, status: str, attempt: int) -> None:
        self.outcomes[job_id] = (status, attempt)

    def _read_final(self, _: int, job_id: str, status: str) -> None:
        self.outcomes[job_id] = (status, -1)

    def _read_clock(self, _: int, now: float) -> None:
        self.now = now

    def _read_dead(self, _: int, pid: int) -> None:
        self._running = {key: who for key, who in self._running.items() if who != pid}

    def _read_error(self, _: int, __: str) -> None:
        self._under_error = True

    def _read_gone(self, _: int) -> None:
        self._under_error = False
        self.gone = True

    def _read_wrong(self, _: int, text: str) -> None:
        self.wrong.append(text)


# -- the checks --------------------------------------------------------------------------------


def check_crashed(disk: Disk, promises: Promises, junk: int, torn: int) -> list[str]:
    """Check the files as a kill has left them: `torn` kills and errors so far."""
    wrong = list(disk.wrong)
    if len(disk.junk) > junk + torn:
        wrong.append(f"P8: {len(disk.junk)} lines are no rows: {disk.junk}")
    keys = [job.key for job in disk.jobs]
    for key in promises.kept:
        if keys.count(key) != 1:
            wrong.append(f"P1: {key} was enqueued, and is there {keys.count(key)} times")
    for key in keys:
        if key not in promises.called:
            wrong.append(f"P1: nobody has enqueued {key}")
    for job in disk.jobs:
        reported, attempt = promises.outcomes.get(job.id, ("", 0))
        if reported in FINAL and job.status != reported:
            wrong.append(f"P2: {job.key} was reported {reported}, and is {job.status}")
        if job.attempts < promises.begun(job.key):
            wrong.append(f"P5: {job.key} was begun {promises.begun(job.key)} times: {job}")
        if job.type != "nobody" and job.attempts > promises.begun(job.key) + torn:
            wrong.append(f"P5: {job.key} was begun {promises.begun(job.key)} times: {job}")
        if job.key in promises.cancelled and job.status != "cancelled":
            wrong.append(f"P2: the cancel of {job.key} was acknowledged, and it is {job.status}")
        if attempt > job.attempts:
            wrong.append(f"P5: {job.key} was reported in attempt {attempt}, has {job.attempts}")
    return wrong


def check_recovered(
    before: Disk, after: Disk, crashed: Promises, run: set[str], alive: frozenset[str]
) -> list[str]:
    """Check that one pass has recovered what the dead had, and has run all that is due."""
    wrong = []
    old = {job.id: job for job in before.jobs}
    for job in after.jobs:
        was = old.get(job.id)
        if job.key in alive:
            if was and (job.status, job.attempts) != (was.status, was.attempts):
                wrong.append(f"P3: {job.key} was taken from a live pass: {was} -> {job}")
            continue
        if job.status == "processing":
            wrong.append(f"P3: {job.key} is still processing after the next pass")
        if was is None or was.status in FINAL or job.status == "cancelled":
            continue
        lost = was.status == "processing"
        if not lost and was.run_at > crashed.now:
            continue
        # An attempt that was claimed and not begun may count, or be returned.
        counted = (
            {was.attempts}
            if not lost or crashed.begun(job.key) >= was.attempts
            else {
                was.attempts,
                was.attempts - 1,
            }
        )
        if lost and MAX_ATTEMPTS in counted and job.status == "failed" and job.key not in run:
            if job.attempts != MAX_ATTEMPTS or not job.error:
                wrong.append(f"P5: {was} was in its last attempt, and became {job}")
        elif job.type != "nobody" and job.key not in run:
            wrong.append(f"P3: {was} was not run by the next pass: {job}")
        elif job.attempts - 1 not in counted or job.attempts > MAX_ATTEMPTS:
            wrong.append(f"P5: {was} was run by the next pass, and became {job}")
    return wrong


def check_settled(disk: Disk, promises: Promises, junk: int, kills: int) -> list[str]:
    """Check the end: all is final, the accounts balance, and `cat` says so."""
    wrong = check_crashed(disk, promises, junk, kills) + promises.wrong
    if disk.records:
        wrong.append(f"P8: {disk.records} records are not folded after a whole pass")
    if disk.partial:
        wrong.append(f"P8: a torn line is left: {disk.partial!r}")
    ran = [job for job in disk.jobs if job.type != "nobody"]
    charged = {job.key: job.attempts - promises.begun(job.key) for job in ran}
    if sum(charged.values()) > kills:
        unbegun = {key: count for key, count in charged.items() if count}
        wrong.append(f"P5: {kills} kills cost more attempts that were never begun: {unbegun}")
    for job in disk.jobs:
        starts = promises.starts.get(job.key, 0)
        natural = min(NATURAL.get(job.type, 1), MAX_ATTEMPTS)
        if job.status not in FINAL:
            wrong.append(f"P3: {job.key} never ends: {job}")
        if starts > natural + kills:
            wrong.append(f"P2: {job.key} was begun {starts} times with {kills} kills")
        if job.attempts > MAX_ATTEMPTS:
            wrong.append(f"P5: {job.key} has {job.attempts} attempts")
        if job.status == "failed" and job.type in ("ok", "text") and kills < 2 and not job.error:
            wrong.append(f"P5: {job.key} failed without a reason")
        if job.status == "completed" and job.type in _RESULTS and job.result != _RESULTS[job.type]:
            wrong.append(f"P2: {job.key} has the result {job.result!r}")
        if job.status == "completed" and job.error and job.type != "odd":
            wrong.append(f"P2: {job.key} is completed, with the error {job.error!r}")
    return wrong


_RESULTS = {
    "ok": "0",
    "text": '{"text": "tab\\t newline\\n \\u2028", "list": []}',
    "flaky": '""',
    "nest": "false",
    "odd": "",
}


_OWNS_UP = re.compile(r"were added and may run|may have been (added|made)|the change was made")
"""What an exception may say whose change could not be taken back."""


def check_errors(disk: Disk, promises: Promises, root: str, error: int, lasting: bool) -> list[str]:
    """Check that each refused call said so, and has done nothing unless it said so."""
    wrong = []
    by_key = {job.key: job for job in disk.jobs}
    for keys, operation, (name, number, file, known, text) in promises.raised:
        if name == "DuplicateJob":
            continue
        if not known or number is None or not str(file).startswith(root):
            wrong.append(f"P6: {operation} raised {name}, file {file}, known {known}: {text}")
        elif error and number != error:
            wrong.append(f"P6: {operation} met {error}, and raised {number}: {text}")
        if operation.startswith("enqueue"):
            there = [key for key in keys if key in by_key and key not in promises.kept]
            if there and not _OWNS_UP.search(text):
                wrong.append(f"P6: {operation} raised, but {there} are in the queue: {text}")
        cancelled = operation == "cancel" and by_key[keys[0]].status == "cancelled"
        if cancelled and keys[0] not in promises.cancelled and not _OWNS_UP.search(text):
            wrong.append(f"P6: cancel raised, but {keys[0]} is cancelled: {text}")
    if lasting and error:
        for key, starts in promises.starts_under_error.items():
            if starts > 1:
                wrong.append(f"P6: {key} was begun {starts} times while nothing could be recorded")
    return wrong
