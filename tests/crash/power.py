"""Simulated power loss: records what a workload writes, and builds the disks that may remain.

`Recorder` records the calls of `os` that change files, in order, and in between the facts that the
program knows (`Facts`): an enqueue that returned, an outcome that a reader has seen.
`crash_states` then yields what the disk may hold after a power loss at each point, in two models:

    ORDERED  one log of all directory operations and truncations, as on ext4 and XFS: a first part
             of the log remains, and any sync makes everything before it durable.
    FREE     only what POSIX guarantees: each operation since the last sync of that file, or of that
             directory, remains or is lost, in any order.

In both, a write that was not synced is lost, complete, torn at any byte, zeros from any byte on, or
has sectors of zeros. The file may have its new size without the content.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dbbasic_queue import JobDict

ORDERED = "ordered"
FREE = "free"
MODELS = (ORDERED, FREE)
ROOT = 0
SECTOR = 512
NOTHING_PROMISED = (".pass.", ".history", ".output", ".passes", ".progress")
"""parts of the names of files whose content isn't promised to survive"""
NOTHING, EVERYTHING = 0, 1
CHOICES = EVERYTHING  # and seven more: which of the last three names and truncations are lost
NO_CONTENT, RANDOM, NO_NAMES, FIRST_LOST = 9, 10, 11, 12
PLANNED = 13
IN_ORDER = (NOTHING, FIRST_LOST, EVERYTHING, *range(2, FIRST_LOST), *range(PLANNED, 400))


def promises_nothing(name: str) -> bool:
    return any(part in name for part in NOTHING_PROMISED)


@dataclass
class Facts:
    """What was promised by a point of the recording.

    They only grow, except that a requeue or a removal first withdraws what it changes.
    """

    started: dict[int, dict[str, Any]] = field(default_factory=dict)
    """number in the payload -> payload and run_at of an enqueue that was called; and "or", the new
    payload, during an edit"""
    kept: dict[str, int] = field(default_factory=dict)
    """id -> number, of an enqueue that returned"""
    final: dict[str, JobDict] = field(default_factory=dict)
    """id -> the job, as a reader saw it completed, failed or cancelled"""
    attempts: dict[str, int] = field(default_factory=dict)
    """id -> the highest attempt in which its handler was entered, unless it was returned"""
    when: dict[int, list[int]] = field(default_factory=dict)
    """number -> the instants to which the job may have been delayed or requeued"""
    requeued: dict[str, int] = field(default_factory=dict)
    """id -> the instant of a requeue that returned"""
    uncertain: set[str] = field(default_factory=set)
    """ids for which only the row is certain, because a requeue was called"""
    leaving: set[int] = field(default_factory=set)
    """numbers of jobs whose archiving was called: they are in the queue or in the archive"""
    removed: set[int] = field(default_factory=set)
    """numbers of jobs whose removal returned"""
    paused: tuple[str, ...] = ()
    """job types for which a pause returned"""
    lines: list[bytes] = field(default_factory=list)
    """invalid lines, which must be kept: in the file, or in the file of rejected lines"""

    def copy(self) -> Facts:
        return Facts(
            dict(self.started),
            dict(self.kept),
            dict(self.final),
            dict(self.attempts),
            {number: list(when) for number, when in self.when.items()},
            dict(self.requeued),
            set(self.uncertain),
            set(self.leaving),
            set(self.removed),
            self.paused,
            list(self.lines),
        )


# -- events, in order --------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """Names in one directory are changed to other files (None: removed), in one step."""

    directory: int
    changes: tuple[tuple[str, int | None], ...]
    made: int | None = None  # a new directory


@dataclass(frozen=True)
class Write:
    file: int
    offset: int
    content: bytes


@dataclass(frozen=True)
class Truncation:
    file: int
    size: int


@dataclass(frozen=True)
class Sync:
    file: int


@dataclass(frozen=True)
class SyncNames:
    directory: int


@dataclass(frozen=True)
class Promised:
    facts: Facts


Change = Names | Write | Truncation
Event = Change | Sync | SyncNames | Promised


@dataclass
class Disk:
    """Files and directories by number; the root directory is number 0."""

    files: dict[int, bytes] = field(default_factory=dict)
    directories: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})

    def copy(self) -> Disk:
        return Disk(dict(self.files), {d: dict(names) for d, names in self.directories.items()})

    def apply(self, change: Change) -> None:
        if isinstance(change, Names):
            names = self.directories.setdefault(change.directory, {})
            for name, number in change.changes:
                if number is None:
                    names.pop(name, None)
                else:
                    names[name] = number
            if change.made is not None:
                self.directories.setdefault(change.made, {})
        elif isinstance(change, Truncation):
            content = self.files.get(change.file, b"")
            self.files[change.file] = content[: change.size].ljust(change.size, b"\0")
        else:
            content = self.files.get(change.file, b"").ljust(change.offset, b"\0")
            end = change.offset + len(change.content)
            self.files[change.file] = content[: change.offset] + change.content + content[end:]

    def tree(self, directory: int = ROOT) -> dict[str, Any]:
        """Return name -> bytes of a file, or a dict for a directory."""
        return {
            name: self.tree(number) if number in self.directories else self.files.get(number, b"")
            for name, number in sorted(self.directories[directory].items())
        }


def lay_out(tree: dict[str, Any], path: Path) -> None:
    """Write a tree into a fresh directory."""
    path.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            lay_out(content, path / name)
        else:
            (path / name).write_bytes(content)


class Killed(BaseException):
    """Raised by each recorded call of a process that counts as dead."""


class Recorder:
    """Stands between the package and `os`, for the files under one directory."""

    def __init__(self, root: Path, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.root = os.fspath(root)
        self.events: list[Event] = []
        self.facts = Facts()
        self.start = Disk()
        self.slots: set[int] = set()
        self.before_sync: Callable[[], object] | None = None
        self.calls_until_death: int | None = None
        self._now = Disk()
        self._files: dict[int, tuple[int, bool]] = {}
        self._next = 1
        self._paused = 0

    def start_with(self, tree: dict[str, Any], facts: Facts) -> None:
        """Assume that what is already in the directory is on the disk."""

        def add(tree: dict[str, Any], directory: int) -> None:
            for name, content in tree.items():
                number = self._number()
                self.start.directories[directory][name] = number
                if isinstance(content, dict):
                    self.start.directories[number] = {}
                    add(content, number)
                else:
                    self.start.files[number] = content
                    if promises_nothing(name):
                        self.slots.add(number)

        add(tree, ROOT)
        self._now = self.start.copy()
        self.facts = facts.copy()
        self.promise()

    def promise(self) -> None:
        """Record the facts as they are now: from here on they must survive."""
        self.events.append(Promised(self.facts.copy()))

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Don't record calls in the block."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _note(self, change: Change) -> None:
        self._now.apply(change)
        self.events.append(change)

    def _place(self, path: str | os.PathLike[str]) -> tuple[int, str] | None:
        """Return (directory, name) of a path under the root, ("", root) for itself."""
        text = os.path.abspath(os.fspath(path))
        if text == self.root:
            return ROOT, ""
        if not text.startswith(self.root + "/"):
            return None
        *parents, name = text[len(self.root) + 1 :].split("/")
        directory = ROOT
        for parent in parents:
            if parent not in self._now.directories[directory]:
                return None
            directory = self._now.directories[directory][parent]
        return directory, name

    def _live(self) -> None:
        if self.calls_until_death is not None:
            if self.calls_until_death == 0:
                raise Killed
            self.calls_until_death -= 1

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Record the calls in the block."""
        names = ("open", "close", "write", "ftruncate", "rename", "unlink", "mkdir")
        real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in names}

        def opened(path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
            place = None if self._paused else self._place(path)
            if place is None:
                return int(real["open"](path, flags, mode, **rest))
            directory, name = place
            number: int | None = directory
            if name:
                number = self._now.directories.get(directory, {}).get(name)
                if number is None and flags & os.O_CREAT:
                    self._live()
            fd = int(real["open"](path, flags, mode, **rest))
            if number is None:
                number = self._number()
                self._note(Names(directory, ((name, number),)))
                if promises_nothing(name):
                    self.slots.add(number)
            if flags & os.O_TRUNC:
                self._note(Truncation(number, 0))
            self._files[fd] = number, bool(flags & os.O_APPEND)
            return fd

        def close(fd: int) -> None:
            self._files.pop(fd, None)
            real["close"](fd)

        def write(fd: int, content: bytes) -> int:
            if self._paused or fd not in self._files:
                return int(real["write"](fd, content))
            self._live()
            number, appends = self._files[fd]
            offset = os.fstat(fd).st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
            written = int(real["write"](fd, content))
            self._note(Write(number, offset, bytes(content[:written])))
            return written

        def ftruncate(fd: int, size: int) -> None:
            if not self._paused and fd in self._files:
                self._live()
                number = self._files[fd][0]
                if size != len(self._now.files.get(number, b"")):
                    self._note(Truncation(number, size))
            real["ftruncate"](fd, size)

        def rename(source: Any, target: Any, **rest: Any) -> None:
            a, b = self._place(source), self._place(target)
            if not self._paused and a is not None and b is not None:
                self._live()
                assert a[0] == b[0], "the queue renames within its directory"
                number = self._now.directories[a[0]][a[1]]
                self._note(Names(a[0], ((a[1], None), (b[1], number))))
            real["rename"](source, target, **rest)

        def unlink(path: Any, **rest: Any) -> None:
            place = self._place(path)
            if not self._paused and place is not None:
                self._live()
            real["unlink"](path, **rest)
            if not self._paused and place is not None:
                self._note(Names(place[0], ((place[1], None),)))

        def mkdir(path: Any, mode: int = 0o777, **rest: Any) -> None:
            place = self._place(path)
            real["mkdir"](path, mode, **rest)
            if not self._paused and place is not None:
                number = self._number()
                self._note(Names(place[0], ((place[1], number),), made=number))

        def synced(fd: int) -> None:
            if not self._paused and fd in self._files:
                self._live()
                number = self._files[fd][0]
                if number in self._now.directories:
                    self.events.append(SyncNames(number))
                else:
                    hook, self.before_sync = self.before_sync, None
                    if hook is not None:
                        hook()
                    self.events.append(Sync(number))
            # The real disk doesn't need a sync.

        def refused(*_: Any, **__: Any) -> Any:
            raise AssertionError("the package makes a call that power.py doesn't know")

        with (
            patch.object(os, "open", opened),
            patch.object(os, "close", close),
            patch.object(os, "write", write),
            patch.object(os, "ftruncate", ftruncate),
            patch.object(os, "rename", rename),
            patch.object(os, "replace", rename),
            patch.object(os, "unlink", unlink),
            patch.object(os, "remove", unlink),
            patch.object(os, "mkdir", mkdir),
            patch.object(os, "fsync", synced),
            patch.object(os, "fdatasync", synced),
            patch.object(os, "urandom", self.random.randbytes),
            patch.object(os, "pwrite", refused),
            patch.object(os, "writev", refused),
            patch.object(os, "link", refused),
            patch.object(os, "symlink", refused),
            patch.object(os, "truncate", refused),
        ):
            yield self


# -- the disks that may remain -----------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """One disk that may remain after a power loss after `point` events, and what it must hold."""

    point: int
    tree: dict[str, Any]
    facts: Facts
    how: str


def crash_states(
    recorder: Recorder, model: str, budget: int, rng: random.Random
) -> Iterator[State]:
    """Yield at most `budget` different states, from all points of a recording.

    The first states of each point: only what was synced; all but the first of several writes, with
    zeros instead of that write; everything; each choice among the last three names and truncations;
    all sizes without content; a random one; all content without names. Then random ones.
    """
    seen: set[int] = set()
    points = list(_points(recorder, model))
    for nth in IN_ORDER:
        for point, sure, pending, facts in points:
            if nth and not pending:
                continue
            if nth == FIRST_LOST and sum(isinstance(change, Write) for change in pending) < 2:
                continue
            how, disk = _left(sure, pending, model, nth, recorder.slots, rng)
            tree = disk.tree()
            promised = (len(facts.kept), len(facts.final), sum(facts.attempts.values()))
            gone = (len(facts.requeued), len(facts.leaving), len(facts.removed), facts.paused)
            files = tree if nth >= PLANNED else _without_slots(tree)
            key = hash((repr(files), promised, gone, len(facts.lines)))
            if key in seen:
                continue
            if len(seen) >= budget:
                return
            seen.add(key)
            yield State(point, tree, facts, how)


def _without_slots(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_slots(content) if isinstance(content, dict) else content
        for name, content in tree.items()
        if not promises_nothing(name)
    }


def _points(recorder: Recorder, model: str) -> Iterator[tuple[int, Disk, list[Change], Facts]]:
    sure = recorder.start.copy()
    pending: list[Change] = []
    facts = Facts()
    events = recorder.events
    for point, event in enumerate(events, 1):
        if isinstance(event, Promised):
            facts = event.facts
        elif isinstance(event, (Names, Write, Truncation)):
            pending = [*pending, event]
        else:
            sure = sure.copy()
            kept: list[Change] = []
            for i, change in enumerate(pending):
                if _is_made_sure(change, pending[i + 1 :], event, model):
                    sure.apply(change)
                else:
                    kept.append(change)
            pending = kept
        if point == len(events) or not isinstance(events[point], Promised):
            yield point, sure, pending, facts


def _is_made_sure(change: Change, after: list[Change], event: Sync | SyncNames, model: str) -> bool:
    if isinstance(change, Names):
        if model == ORDERED:
            return True
        return isinstance(event, SyncNames) and event.directory == change.directory
    if isinstance(event, Sync) and event.file == change.file:
        return True
    if model == ORDERED:
        # A truncation in the log is durable; what was written before it no longer matters.
        later_cut = any(isinstance(c, Truncation) and c.file == change.file for c in after)
        return isinstance(change, Truncation) or later_cut
    return False


def _left(
    sure: Disk,
    pending: list[Change],
    model: str,
    nth: int,
    slots: set[int],
    rng: random.Random,
) -> tuple[str, Disk]:
    """Choose what remains of the pending changes: the nth planned choice, then random."""
    disk = sure.copy()
    how: list[str] = []
    logged = [i for i, change in enumerate(pending) if not isinstance(change, Write)]
    if nth in (NOTHING, NO_NAMES):
        keep = set()
    elif nth < PLANNED and nth != RANDOM:
        choice = nth - CHOICES if nth < NO_CONTENT else 0
        weighty = [i for i in reversed(logged) if getattr(pending[i], "file", -1) not in slots]
        lost = {i for bit, i in enumerate(weighty) if choice >> bit & 1}
        keep = {i for i in logged if i not in lost}
    else:
        keep = {i for i in logged if rng.random() < 0.5}
    if model == ORDERED:
        first_lost = min((i for i in logged if i not in keep), default=len(pending))
        keep = {i for i in logged if i < first_lost}
    cut_lost: set[int] = set()
    zeroed = next(
        (i for i, c in enumerate(pending) if isinstance(c, Write) and c.file not in slots), -1
    )
    for i, change in enumerate(pending):
        if not isinstance(change, Write):
            if i in keep:
                disk.apply(change)
            elif isinstance(change, Truncation):
                cut_lost.add(change.file)
            how.append(f"{change} {'kept' if i in keep else 'lost'}")
            continue
        part = _part(change, NO_CONTENT if nth == FIRST_LOST and i == zeroed else nth, rng)
        if part is None or (model == ORDERED and change.file in cut_lost):
            how.append(f"file {change.file}: write lost")
        else:
            disk.apply(part)
            how.append(f"file {change.file}: {_shown(part.content)} of {len(change.content)} bytes")
    return "; ".join(how[-8:]) or "everything synced", disk


def _shown(content: bytes) -> str:
    zeros = content.count(0)
    return f"{len(content)}" + (f" ({zeros} of them zeros)" if zeros else "")


def _part(change: Write, nth: int, rng: random.Random) -> Write | None:
    """Return what remains of a write that was not synced, or None."""
    content = change.content
    length = len(content)
    if nth == NOTHING:
        return None
    if nth == NO_CONTENT:
        return Write(change.file, change.offset, b"\0" * length)
    if nth < PLANNED and nth != RANDOM:
        return change
    fate = rng.randrange(7)
    if fate == 0:
        return None
    if fate == 1:
        return change
    at = rng.randint(0, length)
    if rng.random() < 0.7:  # shortly after the start of a column
        columns = [i + 1 for i, byte in enumerate(content) if byte in b"\t\n"]
        at = min(rng.choice(columns or [0]) + rng.choice((0, 0, 1, 2, 3, 9)), length)
    if fate in (2, 3):
        return Write(change.file, change.offset, content[:at])
    if fate == 4:
        return Write(change.file, change.offset, content[:at].ljust(length, b"\0"))
    if fate == 5:
        return Write(change.file, change.offset, b"\0" * at)
    holed = bytearray(content)
    first = change.offset // SECTOR
    for sector in range(first, (change.offset + length) // SECTOR + 1):
        if rng.random() < 0.5:
            start = max(sector * SECTOR - change.offset, 0)
            end = min((sector + 1) * SECTOR - change.offset, length)
            holed[start:end] = bytes(end - start)
    return Write(change.file, change.offset, bytes(holed))


def check_state(
    state: State, scratch: Path, label: str, seed: int, check: Callable[[Path, Facts], object]
) -> None:
    """Lay out a disk, and call `check` with it and with what must be there.

    An error names the disk.
    """
    root = scratch / "state"
    lay_out(state.tree, root)
    try:
        check(root, state.facts)
    except Exception as e:
        raise AssertionError(
            f"{label}, seed {seed}, power lost after event {state.point} ({state.how}): "
            f"{type(e).__name__}: {e}\nthe disk was {state.tree}"
        ) from e
    finally:
        shutil.rmtree(root)
