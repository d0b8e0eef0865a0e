"""Reads the queue's files with a parser that shares no code with the package.

Otherwise a mistake in the package's reader could hide itself.
"""

from __future__ import annotations

import json
import re
import zlib
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass, field
from time import strptime

HEADER = "id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"
FINAL = ("completed", "failed", "cancelled")
STATUSES = ("pending", "processing", *FINAL)


@dataclass
class Job:
    """A job in the files."""

    id: str
    type: str
    key: str
    status: str
    run_at: int
    attempts: int
    error: str
    result: str
    version: int = 0
    """of the payload: which edit has written it; 0 for none"""
    is_unrecorded: bool = False
    """whether a schedule has added it, and the file of schedules doesn't know that yet"""


SCHEDULED = "@"
"""the payload's key of a job that a schedule has added: then its key is its id"""


@dataclass
class Disk:
    """The files, read at a time when no process writes."""

    jobs: list[Job] = field(default_factory=list)
    in_file: dict[str, str] = field(default_factory=dict)
    """id -> the status that `cat` shows"""
    junk: list[bytes] = field(default_factory=list)
    partial: bytes = b""
    wrong: list[str] = field(default_factory=list)
    records: int = 0
    archived: list[str] = field(default_factory=list)
    """keys of the jobs in the readable part of the archive"""
    archive_is_torn: bool = False
    paused: frozenset[str] = frozenset()
    """job types"""

    def by_key(self, key: str) -> list[Job]:
        return [job for job in self.jobs if job.key == key]

    def keys(self, chosen: Callable[[Job], bool]) -> list[str]:
        return [job.key for job in self.jobs if chosen(job)]

    def made(self, operation: str, keys: list[str]) -> set[bool]:
        """Return {True} if the requeue or removal was made, {False} if not, both if partly."""
        if operation == "requeue":
            return {job.status not in FINAL for key in keys for job in self.by_key(key)}
        return {not self.by_key(key) for key in keys}


def read_disk(path: str) -> Disk:
    """Read the queue file, apply the journal, and read the archive next to it."""
    disk = Disk()
    content = _content(path)
    if content is None:
        return disk
    *lines, disk.partial = content.split(b"\n")
    if not lines or lines.pop(0).decode() + "\n" != HEADER:
        disk.wrong.append(f"P8: the file begins with {content[:40]!r}, not with its header")
        return disk
    if re.search(rb"[\0-\x08\x0b-\x1f\x7f]", content):
        disk.wrong.append("P8: the file holds a control character")
    states = _journal(path + ".journal", disk)
    following = _schedules(path + ".schedule", disk)
    for line in lines:
        job = _job(line)
        if job is None:
            disk.junk.append(line)
            continue
        disk.in_file[job.id] = job.status
        name, _, stamp = job.id.partition(".")
        job.is_unrecorded = name in following and instant_of(stamp) >= following[name]
        if job.id in states:
            job.status, _, run_at, attempts, job.error, job.result = states[job.id]
            job.run_at, job.attempts = int(run_at), int(attempts)
        disk.jobs.append(job)
    _read_archive(archive_of(path), disk)
    disk.paused = frozenset((_content(path + ".paused") or b"").decode().split())
    return disk


def archive_of(path: str) -> str:
    """Return the path of the archive to which the workloads purge."""
    return path.removesuffix("queue.tsv") + "archive.tsv"


# Not `os.path.exists`: in an attacked process the shim would count that call.
def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _journal(path: str, disk: Disk) -> dict[str, list[str]]:
    states: dict[str, list[str]] = {}
    # Read the last one, too: it counts if it is complete as soon as the next writer ends the line.
    for line in (_content(path) or b"").split(b"\n"):
        body, _, checksum = line.rpartition(b"\t")
        if checksum == b"%08x" % zlib.crc32(body):
            job_id, *state = body.decode().split("\t")
            states[job_id] = state
            disk.records += 1
    return states


def instant_of(stamp: str) -> int:
    """Return the instant that is the end of a scheduled job's id, such as 20261126T020000Z."""
    return timegm(strptime(stamp, "%Y%m%dT%H%M%SZ"))


def _schedules(path: str, disk: Disk) -> dict[str, int]:
    """Return name -> next instant of the recorded schedules."""
    content = _content(path)
    if content is None:
        return {}
    header, *lines = content.decode().split("\n")
    rows = [line.split("\t") for line in lines[:-1]]
    whole = header.count("\t") == 6 and lines[-1:] == [""] and all(len(r) == 7 for r in rows)
    if not whole:
        disk.wrong.append(f"P8: the file of schedules is {content!r}")
        return {}
    return {row[0]: int(row[6]) for row in rows}


def _job(line: bytes) -> Job | None:
    columns = line.decode("utf-8", "replace").split("\t")
    if len(columns) != 9 or columns[3] not in STATUSES:
        return None
    try:
        payload = json.loads(columns[2])
        key, version = payload["k"], payload.get("v", 0)
        run_at, attempts = int(columns[5]), int(columns[6])
    except ValueError:
        return None
    key = columns[0] if key == SCHEDULED else key
    state = columns[3], run_at, attempts, columns[7], columns[8]
    return Job(columns[0], columns[1], key, *state, version)


def _read_archive(path: str, disk: Disk) -> None:
    header, *lines = (_content(path) or b"").split(b"\n")
    disk.archive_is_torn = bool(lines.pop() if lines else header)
    if lines and header.decode() + "\n" != HEADER:
        disk.wrong.append(f"P8: the archive begins with {header!r}")
    for line in lines:
        job = _job(line)
        if job is None or job.status not in FINAL:
            disk.wrong.append(f"P8: the archive holds {line!r}")
        else:
            disk.archived.append(job.key)
