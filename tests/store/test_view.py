"""The view: rows read in bulk equal rows read one by one, and their offsets stay right."""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path
from typing import Any

import pytest
from helpers import held
from hypothesis import given
from hypothesis import strategies as st

from dbbasic_queue.errors import StoreError
from dbbasic_queue.model import states
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import HEADER, parse_row
from dbbasic_queue.store.disk.files import open_file
from dbbasic_queue.store.reading import lookup
from dbbasic_queue.store.reading.bulk import NEVER, scan
from dbbasic_queue.store.reading.offsets import Offsets
from dbbasic_queue.store.reading.tail import Tail
from dbbasic_queue.store.reading.view import View
from dbbasic_queue.store.textfile import TextFileStore

PLAIN = b"%d\tgreet\t{}\tpending\t5\t%d\t0\t\t"
ODD = st.sampled_from(
    [
        b"",
        b"\t" * 8,
        b"no job",
        b"short\tgreet\t{}\tpending\t5\t7\t0",  # missing columns are empty
        b"shorter\tgreet\t{}\tpending\t5\t7",
        b"ten\tgreet\t{}\tpending\t5\t7\t0\tan\terror\tresult",
        b"nine-and-seven\tgreet\t{}\tpending\t5\t7\t0\t\t\tgreet\t{}\tpending",
        b"cr\tgreet\t{}\tpending\t5\t7\t0\t\t\r",
        b"fraction\tgreet\t{}\tpending\t5.5\t7.5\t0\t\t",
        b"late\tgreet\t{}\tpending\t5\t1234567890123\t0\t\t",
        b"signed\tgreet\t{}\tpending\t5\t+7\t0\t\t",
        b"retry\tgreet\t{}\tpending\t5\t7\t2\tValueError\t",
        b"many\tgreet\t{}\tpending\t5\t7\t0000000001\t\t",
        b"started\tgreet\t{}\tprocessing\t5\t7\t1\t\t",
        b"done\tgreet\t{}\tcompleted\t5\t7\t1\t\t1",
        b"unknown\tgreet\t{}\tdone\t5\t7\t1\t\t1",
        b"\tgreet\t{}\tpending\t5\t7\t0\t\t",
        b"no type\tgreet\t{}\tpending\t5\t7\t0\t\t",
        b"typeless\t\t{}\tpending\t5\t7\t0\t\t",
        b"x" * 65 + b"\tgreet\t{}\tpending\t5\t7\t0\t\t",
        b"nul\tgreet\t{\0}\tpending\t5\t7\t0\t\t",
        b"latin\tgr\xfcet\t{}\tpending\t5\t7\t0\t\t",
        b"1\tgreet\t{}\tpending\t5\t9\t0\t\t",  # an id that may occur twice
    ]
)
RUNS = st.lists(st.tuples(st.integers(0, 60), st.lists(ODD, max_size=2)), min_size=1, max_size=12)


def lines_of(runs: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Return runs of plain rows with odd lines between them."""
    lines: list[bytes] = []
    for plain, odd in runs:
        lines += [PLAIN % (len(lines) + n, n + 5) for n in range(plain)] + odd
    return lines


def written(directory: str, lines: list[bytes]) -> str:
    path = os.path.join(directory, "queue.tsv")
    Path(path).write_bytes(HEADER + b"".join(line + b"\n" for line in lines))
    return path


@given(RUNS)
def test_rows_read_in_bulk_are_the_same_as_rows_read_one_by_one(
    runs: list[tuple[int, list[bytes]]],
) -> None:
    lines = lines_of(runs)
    index: dict[bytes, int] = {}
    when, processing, retrying, unreadable = [], set(), set(), []
    for number, line in enumerate(lines):
        row = parse_row(line)
        when.append(NEVER)
        if row is None or index.setdefault(row.id.encode(), number) != number:
            unreadable += [number] if line else []
        elif row.state.status == states.PROCESSING:
            processing.add(number)
        elif row.state.status == states.PENDING:
            when[number] = row.state.run_at
            retrying |= {number} if row.state.attempts else set()

    with tempfile.TemporaryDirectory() as directory:
        view = View(written(directory, lines))
        view.refresh()

        assert view.index == index
        assert list(view.when) == when
        assert (view.processing, view.retrying) == (processing, retrying)
        assert sorted(view.unreadable) == unreadable
        assert view.soonest <= min(when, default=NEVER)
        assert are_floors(view)
        assert [view.line(n) for n in range(len(lines))] == lines
        view.close()


def test_only_the_rows_near_an_odd_line_are_read_one_by_one() -> None:
    lines = [PLAIN % (n, n) for n in range(2000)]
    lines[1234] = b"odd"

    pieces = list(scan(b"".join(line + b"\n" for line in lines)))

    assert b"".join(content for content, _ in pieces) == b"\n".join(lines) + b"\n"
    alone = [content for content, columns in pieces if columns is None]
    assert b"\nodd\n" in b"\n" + b"".join(alone)
    assert sum(map(len, alone)) < 2000


@given(st.lists(st.integers(0, 40), max_size=80), st.data())
def test_offsets_stay_right_when_rows_are_added_and_change_their_length(
    lengths: list[int], data: st.DataObject
) -> None:
    offsets = Offsets(7)
    cut = data.draw(st.integers(0, len(lengths)))
    for part in (lengths[:cut], lengths[cut:]):
        offsets.extend(part)
    start = 7
    if lengths:
        numbers = sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1))))
        changed = [data.draw(st.integers(0, 40)) for _ in numbers]
        start = 5
        offsets.update(start, numbers, changed)
        for number, length in zip(numbers, changed, strict=True):
            lengths[number] = length

    starts = [start + sum(lengths[:n]) + n for n in range(len(lengths) + 1)]
    assert [offsets.start(n) for n in range(len(lengths) + 1)] == starts
    assert [offsets.extent(n) for n in range(len(lengths))] == list(
        zip(starts, lengths, strict=False)
    )
    for size in (0, 100):
        for n in range(len(lengths)):
            ahead = offsets.lengths(n, size)
            assert ahead == lengths[n : n + len(ahead)]
            assert len(ahead) == 1 or sum(ahead) <= size
    pieces = list(offsets.pieces(100))
    assert [number for rows, _, _ in pieces for number in rows] == list(range(len(lengths)))
    assert all(
        (begin, end) == (starts[rows.start], starts[rows.stop]) for rows, begin, end in pieces
    )


@given(RUNS, st.data())
def test_a_fold_changes_only_the_rows_that_the_journal_names(
    runs: list[tuple[int, list[bytes]]], data: st.DataObject
) -> None:
    lines = [line for line in lines_of(runs) if b"\0" not in line and b"\xfc" not in line]
    jobs = {n: row for n, line in enumerate(lines) if (row := parse_row(line))}
    firsts = {row.id: n for n, row in reversed(jobs.items())}
    chosen = data.draw(st.sets(st.sampled_from(sorted(firsts)))) if firsts else set()
    with tempfile.TemporaryDirectory() as directory:
        path = written(directory, lines)
        store = TextFileStore(path, fsync=False)
        with held(store.lock):
            store.files.read_new()
            changes = []
            for job_id in chosen:
                state = states.State(states.COMPLETED, 5, 7, 1, "", '"a longer result than before"')
                changes.append((job_id.encode(), encode_state(state)))
                columns = lines[firsts[job_id]].split(b"\t")
                lines[firsts[job_id]] = b"\t".join([*columns[:3], encode_state(state)])
            store.files.change(changes)
            store.files.fold()
        assert Path(path).read_bytes() == HEADER + b"".join(line + b"\n" for line in lines)
        assert [store.view.line(n) for n in range(len(lines))] == lines
        store.close()


def test_a_file_edited_in_place_in_the_middle_of_a_change_is_not_folded(tmp_path: Path) -> None:
    lines = [PLAIN % (n, n) for n in range(10)]
    path = Path(written(str(tmp_path), lines))
    store = TextFileStore(str(path), fsync=False)
    with held(store.lock):
        store.files.read_new()
        store.files.change([(b"3", encode_state(states.State(states.CANCELLED, 5, 7, 0, "", "")))])
        edited = path.read_bytes().replace(b"\n3\t", b"\nx\t")
        path.write_bytes(edited)
        with pytest.raises(StoreError, match=r"edited in place.*the queue is as it was"):
            store.files.fold()
        assert path.read_bytes() == edited
        assert store.files.try_fold() is None  # everything was read again
    assert path.read_bytes() == edited
    store.close()


@given(RUNS)
def test_a_lookup_without_an_index_finds_the_same_job_as_the_index(
    runs: list[tuple[int, list[bytes]]],
) -> None:
    lines = lines_of(runs)
    with tempfile.TemporaryDirectory() as directory:
        path = written(directory, lines)
        view = View(path)
        view.refresh()
        for job_id in {line.split(b"\t")[0] for line in lines} - {b""}:
            found, known = lookup.search(path, job_id), view.find(job_id)
            assert (found and (found.id, found.state.run_at)) == (
                known and (known.id, known.state.run_at)
            )
        view.close()


def test_lines_longer_than_one_read_are_followed(tmp_path: Path) -> None:
    lines = [b"x" * size for size in (1, 1 << 16, 1 << 18, 1 << 20, 3, 5 << 20, 7)]
    path = tmp_path / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + b"torn")

    follower = Tail(open_file(str(path), os.O_RDONLY))

    assert b"".join(follower.new()).split(b"\n") == [*lines, b""]
    assert list(follower.new()) == []


def are_floors(view: View) -> bool:
    """Return whether no job of a block of rows is due before the block's floor."""
    size = 1 << 10
    blocks = [view.when[start : start + size] for start in range(0, len(view.when), size)]
    return len(blocks) == len(view.floors) and all(
        floor <= min(block) for floor, block in zip(view.floors, blocks, strict=True)
    )


def test_the_cost_of_finding_due_jobs_depends_on_their_number_not_on_the_rows(
    tmp_path: Path,
) -> None:
    read = 0

    class Counted(array):  # type: ignore[type-arg]
        def __getitem__(self, at: Any) -> Any:
            nonlocal read
            found = super().__getitem__(at)
            read += len(found) if isinstance(at, slice) else 1
            return found

    path = written(str(tmp_path), [PLAIN % (n, 10**9 + n) for n in range(20_000)])
    store = TextFileStore(path, fsync=False)
    store.lock.read(store.view.refresh)
    store.add("new\tgreet\t{}\tpending\t5\t6\t0\t\t\n")
    store.lock.read(store.view.refresh)
    store.view.when = Counted("q", store.view.when)

    assert list(store.view.due(7, 20_001)) == [20_000]
    assert read < 2000
    store.view.apply(b"new", encode_state(states.State(states.COMPLETED, 5, 6, 1, "", "")))
    for _ in range(100):
        assert not store.view.due(7, 20_001)
    assert store.view.soonest == 10**9
    assert read < 4000
    assert store.view.next_after(-1) == 10**9
    assert store.view.next_after(10**9 + 5000) == 10**9 + 5001
    store.close()


def knowledge(view: View) -> dict[str, object]:
    return {
        "index": view.index,
        "when": view.when.tolist(),
        "processing": view.processing,
        "retrying": view.retrying,
        "unreadable": sorted(view.unreadable),
        "binary": view.binary,
        "records": view.records,
        "lines": [view.line(n) for n in range(len(view.when))],
        "soon enough": view.soonest <= min(view.when, default=NEVER) and are_floors(view),
    }


STATES = st.builds(
    states.State,
    st.sampled_from(states.STATUSES),
    st.just(5),
    st.integers(0, 20),
    st.integers(0, 2),
    st.sampled_from(["", "ValueError: a longer error than the row had"]),
    st.just(""),
)
EDITED = st.lists(st.one_of(ODD, st.just(b"1\tgreet\t{}\tfailed\t5\t9\t3\tx\t")), max_size=2)
ACTS = ["change", "fold", "add", "purge", "edit", "restore", "look"]


@given(RUNS, st.data())
def test_a_view_that_follows_changes_knows_the_same_as_a_new_view(
    runs: list[tuple[int, list[bytes]]], data: st.DataObject
) -> None:
    lines = lines_of(runs)
    with tempfile.TemporaryDirectory() as directory:
        path = written(directory, lines)
        store, kept = TextFileStore(path, fsync=False), View(path)
        kept.refresh()
        for step in range(data.draw(st.integers(1, 8))):
            act = data.draw(st.sampled_from(ACTS))
            with held(store.lock):
                store.files.read_new()
                ids = sorted(store.view.index)
                if act == "change" and ids:
                    chosen = data.draw(st.sets(st.sampled_from(ids), max_size=5))
                    store.files.change([(i, encode_state(data.draw(STATES))) for i in chosen])
                elif act == "fold":
                    store.files.fold()
            if act == "add":
                store.add(f"added-{step}\tgreet\t{{}}\tpending\t5\t6\t0\t\t\n")
            elif act == "purge" and ids:
                gone = data.draw(st.sets(st.sampled_from(ids), max_size=3))
                store.remove(lambda row: row.id.encode() in gone)  # noqa: B023 - called at once
            elif act in ("edit", "restore"):
                content = Path(path).read_bytes().split(b"\n")
                if act == "edit":
                    at = data.draw(st.integers(1, len(content) - 1))
                    content[at : at + data.draw(st.integers(0, 2))] = data.draw(EDITED)
                elif os.path.exists(path + ".journal"):
                    os.truncate(path + ".journal", 0)
                Path(path + ".edited").write_bytes(b"\n".join(content))
                os.rename(path + ".edited", path)
            elif act == "look":
                kept.refresh()
        kept.refresh()
        fresh = View(path)
        fresh.refresh()
        assert knowledge(kept) == knowledge(fresh)
        store.close()


def test_after_the_fold_of_another_process_rows_keep_their_numbers(tmp_path: Path) -> None:
    path = written(str(tmp_path), [PLAIN % (n, n) for n in range(3000)])
    store, view = TextFileStore(path, fsync=False), View(path)
    view.refresh()
    numbering, generation = view.numbering, view.generation
    done = encode_state(states.State(states.COMPLETED, 5, 7, 1, "", '"longer than before"'))
    with held(store.lock):
        store.files.read_new()
        store.files.change([(b"%d" % n, done) for n in (0, 1500, 2999)])
        store.files.fold()
    store.add("3000\tgreet\t{}\tpending\t5\t6\t0\t\t\n")
    view.refresh()
    assert (view.numbering, view.generation) == (numbering, generation + 1)
    assert [n for n in range(3001) if view.when[n] == NEVER] == [0, 1500, 2999]

    store.remove(lambda row: row.id == "1500")
    view.refresh()
    assert view.numbering > numbering
    assert len(view.when) == 3000
    store.close()


def test_a_file_that_was_edited_in_place_and_then_folded_is_read_again(tmp_path: Path) -> None:
    path = Path(written(str(tmp_path), [PLAIN % (n, n) for n in range(100)]))
    view = View(str(path))
    view.refresh()
    path.write_bytes(
        path.read_bytes().replace(b"\n50\tgreet\t{}\tpending", b"\n50\tgreet\t{}\tfailed")
    )
    store = TextFileStore(str(path), fsync=False)
    with held(store.lock):
        store.files.read_new()
        store.files.change([(b"7", encode_state(states.State(states.CANCELLED, 5, 7, 0, "", "")))])
        store.files.fold()
    view.refresh()
    assert [n for n in range(100) if view.when[n] == NEVER] == [7, 50]
    store.close()


def test_a_change_that_was_undone_is_forgotten_after_a_fold(tmp_path: Path) -> None:
    """Its row is the same in both files, and differs from the state that the view had read."""
    path = written(str(tmp_path), [PLAIN % (n, n) for n in range(3000)])
    cancelled = encode_state(states.State(states.CANCELLED, 5, 7, 0, "", ""))
    view = View(path)
    for job_id in (b"7", b"2999"):
        store = TextFileStore(path, fsync=False)
        with held(store.lock):
            store.files.read_new()
            store.files.change([(job_id, cancelled)])
            if job_id == b"2999":
                store.files.fold()
        view.refresh()
        if job_id == b"7":
            assert view.when[7] == NEVER
            os.truncate(path + ".journal", 0)  # as after a sync that failed
        store.close()
    assert [n for n in range(3000) if view.when[n] == NEVER] == [2999]
