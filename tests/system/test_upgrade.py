"""Programs that append to the file without the lock, as dbbasic-queue 1.0.0 does, lose no job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import exit_code, line, rows

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable

    Append = Callable[[], None]


def append(path: Path, job_id: str) -> None:
    """Add a job exactly as 1.0.0 does."""
    with open(path, "a") as file:
        file.write(line(job_id))


def ids(queue: Queue) -> list[str]:
    """Return the first column of the file, as `queue` and a new reader must see it."""
    found = [columns[0] for columns in rows(Path(queue.path))]
    for reader in (queue, Queue(queue.path)):
        assert [job["id"] for job in reader.jobs()] == found
    return found


@pytest.fixture
def at_rename(monkeypatch: pytest.MonkeyPatch) -> Callable[[Append, Append], None]:
    """Return a function that sets callbacks for right before and right after the next rename."""

    def set_up(before: Append, after: Append) -> None:
        real = os.rename

        def rename(old: str, new: str) -> None:
            monkeypatch.setattr(os, "rename", real)
            before()
            real(old, new)
            after()

        monkeypatch.setattr(os, "rename", rename)

    return set_up


@pytest.fixture
def change(queue: Queue) -> Callable[[], object]:
    """Return a call that cancels a job. As the queue is short, this folds."""
    queue.enqueue("greet", {}, job_id="first")
    return lambda: queue.cancel_job("first")


@pytest.fixture
def while_copying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Append], None]:
    """Return a function that sets a callback: the next fold calls it before it copies the rows."""

    def set_up(action: Append) -> None:
        real = os.fchmod

        def chmod(fd: int, mode: int) -> None:
            if os.readlink(f"/dev/fd/{fd}").endswith(".fold"):
                monkeypatch.setattr(os, "fchmod", real)
                action()
            real(fd, mode)

        monkeypatch.setattr(os, "fchmod", chmod)

    return set_up


def test_a_row_appended_while_a_fold_copies_the_file_is_kept(
    queue: Queue, path: Path, change: Append, while_copying: Callable[[Append], None]
) -> None:
    while_copying(lambda: append(path, "old"))
    change()
    assert ids(queue) == ["first", "old"]


def test_a_row_appended_while_a_fold_copies_the_file_survives_a_kill_after_the_rename(
    queue: Queue,
    path: Path,
    change: Append,
    while_copying: Callable[[Append], None],
    at_rename: Callable[[Append, Append], None],
) -> None:
    while_copying(lambda: append(path, "old"))
    at_rename(lambda: None, lambda: os._exit(0))
    child = os.fork()
    if not child:
        change()
        os._exit(1)
    assert exit_code(child) == 0
    assert ids(queue) == ["first", "old"]


def test_a_row_appended_around_the_rename_is_kept(
    queue: Queue, path: Path, change: Append, at_rename: Callable[[Append, Append], None]
) -> None:
    """One program writes before the rename, another to the old file after it."""
    with path.open("a") as opened:

        def write() -> None:
            opened.write(line("after"))
            opened.flush()

        at_rename(lambda: append(path, "before"), write)
        change()
    assert ids(queue) == ["first", "before", "after"]


def test_a_row_appended_to_the_old_file_after_a_fold_is_kept_by_the_next_call(
    queue: Queue, path: Path, change: Append
) -> None:
    with path.open("a") as opened:
        change()
        opened.write(line("late"))
    assert not queue.cancel_job("first")
    assert ids(queue) == ["first", "late"]


def test_a_row_appended_to_the_old_file_is_kept_when_the_queue_is_closed(
    queue: Queue, path: Path, change: Append
) -> None:
    with path.open("a") as opened:
        change()
        opened.write(line("late"))
    queue.close()
    assert ids(queue) == ["first", "late"]


def test_a_row_appended_to_a_file_that_a_purge_replaced_is_kept(
    queue: Queue, path: Path, change: Append, at_rename: Callable[[Append, Append], None]
) -> None:
    change()
    at_rename(lambda: append(path, "before"), lambda: None)
    with path.open("a") as opened:
        assert queue.remove_type("greet") == 1
        opened.write(line("after"))
    queue.close()
    assert ids(queue) == ["before", "after"]


def test_rows_of_an_old_file_that_was_rewritten_do_not_come_back(
    queue: Queue, path: Path, change: Append, at_rename: Callable[[Append, Append], None]
) -> None:
    """A pass of 1.0.0 empties the file and writes all rows again: new ones can't be recognized."""
    with path.open("r+") as opened:
        change()
        queue.purge(0)
        content = opened.read()
        opened.seek(0)
        opened.truncate()
        opened.write(content.replace("pending", "processing") * 2)
    queue.close()
    assert ids(queue) == ["first"]
