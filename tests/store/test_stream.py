"""What is read once, without an index, is what the index says."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from helpers import BOMBS, HEADER, NASTY, NOT_JSON, NOW, add_lines, line

from dbbasic_queue import NotAQueue, Queue, StoreError
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.model.strict_json import all_json, from_json
from dbbasic_queue.monitoring.summary import Summary
from dbbasic_queue.store.reading.stream import Stream
from dbbasic_queue.store.textfile import TextFileStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dbbasic_queue.model.rows import Row


class ReadsAllRows:
    """A store with an index that counts nothing."""

    def __init__(self, path: Path) -> None:
        self._store = TextFileStore(str(path), fsync=False)
        self._store.lock.read(self._store._refresh)

    def overview(self, now: float, each: object = None) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def fields(rows: Sequence[Row]) -> list[tuple[str, str, str, bytes]]:
    return [(row.id, row.type, row.payload, encode_state(row.state)) for row in rows]


def figures(store: Any) -> dict[str, Any]:
    errors: list[str] = []
    summary = Summary(store, NOW, lambda row: errors.append(row.id), with_oldest=True)
    first = summary.first_due and summary.first_due.id
    return vars(summary) | {"first_due": first, "errors": errors}


def agree(path: Path) -> None:
    """Compare the three ways of reading."""
    indexed = ReadsAllRows(path)

    def fresh() -> TextFileStore:
        return TextFileStore(str(path), fsync=False)

    numbers: list[int] = []
    all_rows = fields(list(indexed.rows(numbers)))
    streamed: list[int] = []
    assert fields(list(fresh().rows(streamed))) == all_rows
    assert streamed == numbers
    assert fields(list(fresh().rows())) == all_rows
    assert figures(fresh()) == figures(indexed)
    overview = fresh().followed().overview(NOW)
    followed = Summary(fresh(), NOW, with_oldest=True, overview=overview)
    assert figures(indexed) == {
        **vars(followed),
        "first_due": followed.first_due and followed.first_due.id,
        "errors": figures(indexed)["errors"],
    }
    for status in STATUSES:
        wanted = [row for row in all_rows if row[3].startswith(status.encode())]
        assert fields(list(fresh().rows(statuses=(status,)))) == wanted
    begins = [row for row in all_rows if row[0].startswith("j1")]
    assert fields(list(fresh().rows(beginning="j1"))) == begins
    assert fields(fresh().running()[1]) == fields(indexed.running()[1])


def lines_of(seed: int, count: int) -> Iterator[str | bytes]:
    """Yield rows of all kinds, most of them plain, and lines that aren't jobs."""
    chance = random.Random(seed)
    for n in range(count):
        odd = chance.random()
        status = chance.choice(STATUSES)
        age = chance.randrange(-5000, 5000)
        columns: dict[str, object] = {
            "type": chance.choice(["greet", "mail", "渡辺"]),
            "status": status,
            "created_at": NOW - 5000 + n,
            "run_at": NOW - age,
            "attempts": chance.choice([0, 1, 7]),
            "error": chance.choice(["", "", "Boom: \\t"]) if status != "completed" else "",
            "payload": chance.choice(["{}", "", f'{{"n": {n}}}', "[" * 60 + "]" * 60, '"' * 2]),
        }
        job_id = f"j{n}"
        if odd < 0.02:
            columns["payload"] = chance.choice(NOT_JSON + BOMBS[:1])
        elif odd < 0.03:
            job_id = f"j{n // 2}"  # it occurs twice
        elif odd < 0.04:
            yield chance.choice([b"\n", b"\xff\n", b"a\tb\n", b"x\0y\n"])
            continue
        elif odd < 0.05:
            columns["error"] = chance.choice([t for t in NASTY if t.isascii() and t != "\n"])
        elif odd < 0.06:
            columns["run_at"] = f"{NOW}.5"
        yield line(job_id, **columns)


@pytest.mark.parametrize("seed", range(8))
def test_all_rows_are_read_as_with_an_index(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "queue.tsv"
    add_lines(path, *lines_of(seed, 3000))
    if seed % 2:
        add_lines(path, b"torn\tgreet\t{}\tpend")
    agree(path)


@pytest.mark.parametrize("seed", range(4))
def test_plain_rows_are_read_as_with_an_index(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "queue.tsv"
    rows = (line(f"j{n}", status=STATUSES[n % 5], run_at=NOW - n * seed) for n in range(5000))
    add_lines(path, *rows)
    agree(path)


def test_the_states_in_the_journal_count(tmp_path: Path) -> None:
    path = tmp_path / "queue.tsv"
    add_lines(path, *(line(f"j{n}", payload=f"[{n}]") for n in range(3000)))
    store = TextFileStore(str(path), fsync=False)
    changes = [b"cancelled\t5\t6\t0\t\t", b"processing\t5\t6\t1\t\t", b"failed\t5\t6\t1\tBoom\t"]

    def change() -> None:
        store.files.read_new()
        for n in range(0, 3000, 7):
            store.files.change([(b"j%d" % n, changes[n % 3])])

    store.lock.run(change)
    assert path.with_name("queue.tsv.journal").stat().st_size
    agree(path)
    assert len(TextFileStore(str(path), fsync=False).running()[1]) > 100


def test_of_jobs_that_became_due_together_the_first_in_the_file_is_the_first_due(
    tmp_path: Path,
) -> None:
    path = tmp_path / "queue.tsv"
    rows = (("a", "greet", 5), ("b", "mail", 50), ("c", "greet", 50), ("d", "work", 50))
    add_lines(path, *(line(i, type=kind, run_at=NOW - ago) for i, kind, ago in rows))
    assert figures(TextFileStore(str(path), fsync=False))["first_due"] == "b"
    agree(path)


def test_jobs_that_are_added_later_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "queue.tsv"
    add_lines(path, line("a"), line("b"))
    stream = Stream(str(path))
    add_lines(path, line("c"))
    assert [row.id for row in stream.rows()] == ["a", "b"]


def test_a_file_that_is_edited_in_place_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "queue.tsv"
    add_lines(path, *(line(f"j{n}") for n in range(10_000)))
    rows = Stream(str(path)).rows()
    next(rows)
    path.write_bytes(HEADER.encode() + b"x" * 2_000_000)
    with pytest.raises(StoreError, match="edited in place"):
        list(rows)


@pytest.mark.parametrize("content", ["id\ttype\n", "a b c\n" * 9])
def test_the_file_of_another_program_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "queue.tsv"
    path.write_text(content)
    with pytest.raises(NotAQueue):
        list(Queue(path).store.rows())
    with pytest.raises(NotAQueue):
        Summary(Queue(path).store, NOW)


def test_an_empty_queue_has_no_jobs(tmp_path: Path) -> None:
    path = tmp_path / "queue.tsv"
    for content in (None, b"", HEADER.encode()):
        if content is not None:
            path.write_bytes(content)
        assert list(Stream(str(path)).rows()) == []
        assert figures(Queue(path).store)["due"] == 0
        assert Stream(str(path)).running() == []


@pytest.mark.parametrize(
    "texts",
    [
        ["1", "2"],
        ["1, 2", "3"],
        ["[1", "2]"],
        ["[1", "2]", "1, 2"],
        ['"a', 'b"'],
        ["{", "}"],
        ["", " 1 "],
        ["]", "["],
        *([text] for text in NOT_JSON),
        *(["1", text, "2"] for text in NOT_JSON + BOMBS),
    ],
)
def test_many_texts_are_json_only_if_each_one_is(texts: list[str]) -> None:
    def is_json(text: str) -> bool:
        try:
            from_json(text or "{}")
        except ValueError:
            return False
        return True

    assert all_json([text.encode() for text in texts]) <= all(map(is_json, texts))
    assert all_json([b"1", b'{"a": [null, "\xc3\xa9"]}', b""])
