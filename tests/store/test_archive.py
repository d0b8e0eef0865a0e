"""The archive of a purge: a TSV file that several queues can share."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import HEADER, NOW, Clock, Programs, add_lines, line, sibling

from dbbasic_queue import InvalidArgument, NotAQueue, Queue, QueueBusy, StoreError
from dbbasic_queue.store.disk import files
from dbbasic_queue.store.writing import archive as archives

if TYPE_CHECKING:
    from dbbasic_queue.store.disk.openfile import OpenFile

OLD = 5
"""number of finished jobs in each queue of these tests"""


def finished(name: str, count: int = OLD) -> list[str]:
    return [line(f"{name}-{n}", status="completed", run_at=NOW - 9) for n in range(count)]


@pytest.fixture
def old(queue: Queue, path: Path) -> Queue:
    """A queue with finished jobs and a pending one."""
    add_lines(path, *finished("old"), line("waiting"))
    return queue


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive.tsv"


def archived(archive: Path) -> list[str]:
    """Return the ids in an archive. Each of its lines must be complete."""
    header, *lines = archive.read_text("utf-8").split("\n")
    assert header + "\n" == HEADER
    assert lines.pop() == ""
    assert all(text.count("\t") == 8 for text in lines)
    return [text.split("\t")[0] for text in lines]


def ids(queue: Queue) -> list[str]:
    return [found["id"] for found in queue.jobs()]


def test_purged_rows_are_appended_to_a_table_with_one_header(
    old: Queue, path: Path, archive: Path, clock: Clock
) -> None:
    lines = path.read_text("utf-8").splitlines()[1 : OLD + 1]
    assert old.purge(0, archive=archive) == OLD
    assert old.purge(0, archive=archive) == 0
    assert archive.read_text("utf-8") == HEADER + "".join(text + "\n" for text in lines)
    assert old.cancel_job("waiting")
    clock.now += 1
    assert old.purge(0, archive=str(archive)) == 1
    assert archived(archive) == [*(f"old-{n}" for n in range(OLD)), "waiting"]
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600


def test_purges_of_two_queues_into_one_archive_do_not_cut_off_each_others_rows(
    old: Queue, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_lines(tmp_path / "other.tsv", *finished("other"))
    other = Queue(tmp_path / "other.tsv", clock=lambda: NOW)
    real = os.write
    monkeypatch.setattr(archives, "PATIENCE_SECONDS", 0)
    met: list[QueueBusy] = []

    def write(fd: int, content: bytes) -> int:
        if b"old-0\t" not in content or met or not archive.exists():
            return real(fd, content)
        written = real(fd, content[:100])  # a short write, as on a busy disk
        with pytest.raises(QueueBusy, match="another purge") as caught:
            other.purge(0, archive=archive)
        met.append(caught.value)
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert old.purge(0, archive=archive) == OLD
    assert met
    assert other.purge(0, archive=archive) == OLD
    assert archived(archive) == [f"{name}-{n}" for name in ("old", "other") for n in range(OLD)]


def test_many_processes_purge_into_one_archive_and_every_row_is_there_once(
    programs: Programs, tmp_path: Path, archive: Path
) -> None:
    names = [f"queue{n}" for n in range(4)]
    for name in names:
        rows = (line(f"{name}.{n}", status="completed", run_at=n) for n in range(200))
        add_lines(tmp_path / f"{name}.tsv", *rows)
    code = (
        "import sys; from dbbasic_queue import Queue\n"
        "for last in range(10, 210, 10):\n"
        "    with Queue(sys.argv[1] + '.tsv', clock=lambda: last) as queue:\n"
        "        assert queue.purge(0, archive='archive.tsv') == 10\n"
    )
    children = [programs.start(code, name) for name in names]
    assert [child.wait() for child in children] == [0] * 4
    assert sorted(archived(archive)) == sorted(f"{name}.{n}" for name in names for n in range(200))


@pytest.mark.parametrize("torn", ["old-9\tgreet\t", "\0" * 70_000, "x" * 70_000])
def test_a_row_torn_by_a_kill_is_removed_from_the_archive(
    old: Queue, archive: Path, torn: str
) -> None:
    archive.write_text(HEADER + line("before") + torn, "utf-8")
    assert old.purge(0, archive=archive) == OLD
    assert archived(archive) == ["before", *(f"old-{n}" for n in range(OLD))]


@pytest.mark.parametrize("torn", ["", HEADER[:9], "\0" * 9, HEADER[:9] + "\0" * 11])
def test_a_header_torn_by_a_kill_or_a_power_cut_is_repaired(
    old: Queue, archive: Path, torn: str
) -> None:
    archive.write_text(torn, "utf-8")
    assert old.purge(0, archive=archive) == OLD
    assert len(archived(archive)) == OLD


def test_an_archive_that_logrotate_renames_during_a_purge_is_created_again(
    old: Queue, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated = archive.with_suffix(".1")
    real = files.append

    def append(file: OpenFile, size: int, content: bytes) -> None:
        if b"old-0" in content and not rotated.exists():
            archive.rename(rotated)
        real(file, size, content)

    monkeypatch.setattr(archives, "append", append)
    assert old.purge(0, archive=archive) == OLD
    assert len(archived(rotated)) == len(archived(archive)) == OLD


@pytest.mark.parametrize("content", ["a person's notes\n", "notes", "id\tname\n", "\0" * 99])
def test_a_file_that_is_not_an_archive_is_left_alone_and_nothing_is_created(
    old: Queue, archive: Path, content: str
) -> None:
    archive.write_text(content, "utf-8")
    before = set(archive.parent.iterdir())
    with pytest.raises(NotAQueue, match="not an archive"):
        old.purge(0, archive=archive)
    assert archive.read_text("utf-8") == content
    assert set(archive.parent.iterdir()) == before
    assert len(ids(old)) == OLD + 1


def test_another_programs_lock_file_is_left_alone(old: Queue, archive: Path) -> None:
    lock = sibling(archive, "lock")
    lock.write_text("poetry's", "utf-8")
    with pytest.raises(NotAQueue, match=r"archive\.tsv\.lock"):
        old.purge(0, archive=archive)
    assert lock.read_text("utf-8") == "poetry's"
    assert not archive.exists()


def test_another_queue_is_not_used_as_an_archive(old: Queue, tmp_path: Path) -> None:
    with Queue(tmp_path / "other.tsv") as other:
        other.enqueue("greet", {}, job_id="there")
        assert other.cancel_job("there")
        before = (tmp_path / "other.tsv").read_bytes()
        with pytest.raises(NotAQueue, match="a queue, not an archive"):
            old.purge(0, archive=other.path)
        assert (tmp_path / "other.tsv").read_bytes() == before


def test_an_archive_cannot_have_the_name_of_a_file_of_its_queue(
    old: Queue, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(path.parent)
    there = tmp_path / "link" / path.name
    for name in (path, sibling(path, "journal"), sibling(path, "lock"), there, sibling(there, "x")):
        with pytest.raises(InvalidArgument, match="a file of the queue"):
            old.purge(0, archive=name)
    assert len(ids(old)) == OLD + 1


def test_a_name_that_ends_in_gz_is_refused_and_the_error_says_why(
    old: Queue, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=r"invalid archive 'x\.tsv\.gz': archives are plain"):
        old.purge(0, archive="x.tsv.gz")
    assert len(ids(old)) == OLD + 1


def test_without_the_archives_directory_nothing_is_removed(old: Queue, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        old.purge(0, archive=tmp_path / "missing" / "archive.tsv")
    assert caught.value.errno == errno.ENOENT
    assert not (tmp_path / "missing").exists()
    assert old.purge(0) == OLD


@pytest.mark.parametrize("kind", ["link", "FIFO", "directory"])
def test_a_link_fifo_or_directory_at_the_archives_path_is_refused(
    old: Queue, archive: Path, kind: str
) -> None:
    if kind == "link":
        archive.symlink_to(archive.with_name("elsewhere"))
    elif kind == "FIFO":
        os.mkfifo(archive)
    else:
        archive.mkdir()
    before = set(archive.parent.iterdir())
    with pytest.raises(NotAQueue):
        old.purge(0, archive=archive)
    assert set(archive.parent.iterdir()) == before
    assert len(ids(old)) == OLD + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("first", [True, False])
def test_on_a_full_disk_nothing_is_removed_and_the_archive_stays_whole(
    old: Queue, archive: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    if not first:
        archive.write_text(HEADER + line("before"), "utf-8")
    else:
        archive.touch()
    kept = archive.read_bytes()
    real = os.write

    def write(fd: int, content: bytes) -> int:
        if os.path.samestat(os.fstat(fd), archive.stat()) and content != HEADER.encode():
            if len(content) > 50:
                return real(fd, content[:30])
            raise OSError(errno.ENOSPC, "no space")
        return real(fd, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(StoreError, match="full"):
            old.purge(0, archive=archive)
    assert archive.read_bytes() == kept or (first and archive.read_text("utf-8") == HEADER)
    assert len(ids(old)) == OLD + 1
    assert old.purge(0, archive=archive) == OLD
    assert len(archived(archive)) == OLD + (not first)
