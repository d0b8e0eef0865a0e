"""`export` and `import`: a round trip loses nothing, in each of the formats."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import pytest
from helpers import HEADER, NOW, Clock, add_lines, environment, line, run_command
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dbbasic_queue import Queue
from dbbasic_queue.cli import exchange
from dbbasic_queue.cli.main import main
from dbbasic_queue.model.escaping import escape
from dbbasic_queue.model.states import STATUSES

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("tsv", "jsonl", "csv")
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""the categories of characters that could control a terminal"""

texts = st.text(max_size=20) | st.sampled_from(
    [
        "=1+1",
        "'=1",
        "@x",
        "-5",
        "\t=",
        "\r\n",
        "a,b",
        'say "hi"',
        "\\n",
        "\x1b[31m",
        "\u2028",
        "\uff1d1",
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # A lone surrogate can't be in a queue's file.
    | texts.filter(
        lambda text: text.isprintable() or text.encode(errors="ignore").decode() == text
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
json_texts = values.map(json.dumps) | values.map(
    lambda value: json.dumps(value, ensure_ascii=False).encode(errors="ignore").decode()
)
lines = st.builds(
    lambda job_type, payload, status, when, attempts, error, result: line(
        "ID",
        type=job_type,
        payload=payload,
        status=status,
        created_at=when,
        run_at=when + attempts,
        attempts=attempts,
        error=error,
        result=result,
    ),
    st.sampled_from(["mail", "a.b:c-d", "send mail", "=cmd", "-x", "+1", "@a", "'quoted", "ä,b"]),
    json_texts,
    st.sampled_from([status for status in STATUSES if status != "processing"]),
    st.integers(0, 10**10),
    st.integers(0, 99),
    (texts | st.sampled_from(["=HYPERLINK()", '+1"'])).map(
        lambda text: escape(text.encode(errors="ignore").decode())
    ),
    st.just("") | json_texts,
)


@given(st.lists(lines, min_size=1, max_size=8), st.sampled_from(FORMATS))
@settings(max_examples=150)
def test_a_round_trip_gives_each_job_the_same_values(rows: list[str], format_: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        old, new = directory / "old.tsv", directory / "new.tsv"
        add_lines(old, *(text.replace("ID", f"job-{n}", 1) for n, text in enumerate(rows)))
        with Queue(old) as queue:
            before = list(queue.jobs())
            exported = directory / f"jobs.{format_}"
            with exported.open("w", encoding="utf-8", newline="") as file:
                exchange.export(queue.store.rows(), file, format_)
        text = exported.read_bytes().decode()
        is_csv = format_ == "csv"
        assert {c for c in text if category(c) in UNSAFE} <= set("\r\n" if is_csv else "\t\n")
        assert len(before) == len(rows)
        with Queue(new) as queue:
            found = exchange.parse(text, format_, "file")
            assert queue.store.add_missing(found) == []
            assert list(queue.jobs()) == before


class Cells:
    """Reads what a spreadsheet would read."""

    def __init__(self, text: str) -> None:
        self.rows = list(csv.reader(io.StringIO(text, newline="")))

    def __iter__(self) -> Iterator[str]:
        return (cell for row in self.rows for cell in row)


@given(st.lists(lines, min_size=1, max_size=8))
@example([line("ID", type="=cmd")])
def test_no_cell_of_a_csv_file_is_a_formula(rows: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        old = Path(name) / "old.tsv"
        add_lines(old, *(text.replace("ID", f"-job-{n}", 1) for n, text in enumerate(rows)))
        file = io.StringIO()
        with Queue(old) as queue:
            exchange.export(queue.store.rows(), file, "csv")
    cells = list(Cells(file.getvalue()))
    assert cells[:9] == HEADER.split()
    assert [
        cell for cell in cells if cell[:1] and cell[0] in "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
    ] == []


# -- the commands ------------------------------------------------------------------------------


@pytest.fixture
def three(path: Path) -> Queue:
    queue = Queue(path, clock=Clock())
    queue.enqueue("mail", {"to": "ada"}, job_id="a")
    queue.enqueue("sync", 2, job_id="b")
    queue.enqueue("mail", "\x1b[31m", job_id="c")
    queue.process_jobs({"sync": lambda _: {"done": True}}, skip_unknown=True)
    return queue


def ok(*arguments: str, cwd: Path) -> str:
    done = run_command(*arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["jobs.tsv", "jobs.jsonl", "jobs.csv"])
def test_a_queue_is_exported_to_a_file_and_imported_into_another(
    three: Queue, tmp_path: Path, name: str
) -> None:
    assert ok("export", name, cwd=tmp_path) == "exported\t3\n"
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600  # payloads may be confidential
    assert ok("import", name, "-n", "--file", "new.tsv", cwd=tmp_path) == "would be imported\t3\n"
    assert not (tmp_path / "new.tsv").exists()
    assert ok("import", name, "--file", "new.tsv", cwd=tmp_path) == "imported\t3\n"
    assert list(Queue(tmp_path / "new.tsv").jobs()) == list(three.jobs())
    before = (tmp_path / "new.tsv").read_bytes()
    again = ok("import", name, "--file", "new.tsv", cwd=tmp_path)
    assert (tmp_path / "new.tsv").read_bytes() == before
    assert again == "imported\t0\nexists\ta\nexists\tb\nexists\tc\n"


def test_an_export_to_stdout_is_tsv_unless_a_format_is_given(
    three: Queue, path: Path, tmp_path: Path
) -> None:
    printed = ok("export", cwd=tmp_path)
    assert printed == HEADER + "".join(ok("list", cwd=tmp_path))
    found = [
        json.loads(text)
        for text in ok("export", "--format", "jsonl", cwd=tmp_path).split("\n")[:-1]
    ]
    assert found == [dict(job) for job in three.jobs()]
    assert ok("export", "-", "--format", "csv", "--type", "sync", cwd=tmp_path).splitlines()[1] == (
        f'b,sync,2,completed,{NOW},{NOW},1,,"{{""done"": true}}"'
    )


def test_filters_choose_what_is_exported(three: Queue, tmp_path: Path) -> None:
    assert ok("export", "mail.jsonl", "--type", "mail", cwd=tmp_path) == "exported\t2\n"
    ids = [json.loads(text)["id"] for text in (tmp_path / "mail.jsonl").read_text().splitlines()]
    assert ids == ["a", "c"]


def test_an_export_never_replaces_a_file(three: Queue, path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    done = run_command("export", str(path), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("exists: choose another name, or remove it\n")
    assert path.read_bytes() == before
    done = run_command("export", "jobs.xlsx", cwd=tmp_path)
    assert done.returncode == 2
    assert "must end in .tsv, .jsonl or .csv (or give --format)" in done.stderr
    assert not (tmp_path / "jobs.xlsx").exists()


def test_an_export_that_fails_leaves_no_file(three: Queue, tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise OSError("no space")

    rows = [row for row in three.store.rows() for _ in range(1000)]
    with pytest.raises(OSError, match="no space"):
        exchange.export_file(rows, str(tmp_path / "x.tsv"), "tsv", fail)
    assert not (tmp_path / "x.tsv").exists()


def test_a_running_job_is_imported_as_pending_and_an_invalid_line_is_not_exported(
    path: Path, tmp_path: Path
) -> None:
    add_lines(
        path, line("a", status="processing", attempts=2), "not a job\n", line("b", payload="{")
    )
    assert ok("export", "jobs.tsv", cwd=tmp_path) == "exported\t1\n"
    ok("import", "jobs.tsv", "--file", "new.tsv", cwd=tmp_path)
    (found,) = Queue(tmp_path / "new.tsv").jobs()
    assert (found["status"], found["attempts"]) == ("pending", 1)


GOOD: dict[str, Any] = {"id": "x", "type": "mail", "created_at": 1, "run_at": 2}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("j.tsv", line("a") + "torn\tli", "invalid line 2 of j.tsv: must be a job in nine columns"),
        ("j.tsv", line("a") + line("a"), "invalid line 2 of j.tsv: the id a occurs twice"),
        ("j.tsv", line("a", payload="{"), "invalid line 1 of j.tsv: the payload must be JSON"),
        ("j.tsv", line("a", type="\x1b["), "invalid line 1 of j.tsv: invalid job type '\\x1b['"),
        ("j.tsv", b"\xff\xfe", "invalid text in j.tsv: must be UTF-8"),
        ("j.csv", "a,b\n", "invalid line 1 of j.csv: must be a job in nine columns: 'a,b'"),
        ("j.csv", '"a', "invalid line 1 of j.csv: unexpected end of data"),
        ("j.jsonl", "{", "invalid line 1 of j.jsonl: must be a job as JSON"),
        ("j.jsonl", "[]", "invalid line 1 of j.jsonl: must be a job as JSON: it isn't an object"),
        ("j.jsonl", '{"idd": 1}', "unknown keys ['idd']"),
        ("j.jsonl", '{"id": "a"}', "missing 'type'"),
        ("j.jsonl", json.dumps(GOOD | {"id": 5}), "id and type must be strings"),
        ("j.jsonl", json.dumps(GOOD | {"status": "done"}), "invalid values"),
        ("j.jsonl", json.dumps(GOOD | {"id": "a b"}), "invalid values"),
        ("j.jsonl", json.dumps(GOOD | {"type": "a\tb"}), "line 1 of j.jsonl"),
        (
            "j.jsonl",
            json.dumps(GOOD | {"run_at": "soon"}),
            "must be a job as JSON: invalid literal",
        ),
        ("j.jsonl", json.dumps(GOOD | {"run_at": 1e40}), "invalid values"),
        ("j.jsonl", json.dumps(GOOD | {"attempts": None}), "must be a job as JSON"),
        ("j.jsonl", json.dumps(GOOD | {"status": 5}), "must be a job as JSON"),
        ("j.jsonl", json.dumps(GOOD | {"error": 5}), "must be a job as JSON"),
    ],
)
def test_an_invalid_file_is_one_clear_line_and_imports_nothing(
    tmp_path: Path,
    name: str,
    content: str | bytes,
    why: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "j.jsonl":  # more jobs than are added at once come first
        good = "".join(json.dumps(GOOD | {"id": f"good-{n}"}) + "\n" for n in range(1500))
        content = f"{good}{content!s}"
        why = why.replace("line 1", "line 1501")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["import", name, "--file", "new.tsv"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert why in shown.err
    assert shown.err.rstrip("\n").isprintable()
    assert not (tmp_path / "new.tsv").exists()


def test_jobs_can_be_imported_from_stdin_and_from_a_file_with_a_bom_and_crlf(
    three: Queue, tmp_path: Path
) -> None:
    exported = {name: ok("export", "--format", name, cwd=tmp_path) for name in FORMATS}
    before = list(three.jobs())
    for number, (name, text) in enumerate(exported.items()):
        file = tmp_path / f"from-windows.{name}"
        lines = text.replace("\r\n", "\n").replace("\n", "\r\n")
        mark = "" if name == "jsonl" else "\ufeff"
        file.write_text(mark + lines, "utf-8", newline="")
        ok("import", file.name, "--file", f"new-{number}.tsv", cwd=tmp_path)
        assert list(Queue(tmp_path / f"new-{number}.tsv").jobs()) == before
    command = f"{sys.executable} -m dbbasic_queue"
    piped = f"{command} export --format jsonl | {command} import - --format jsonl --file p.tsv"
    done = subprocess.run(
        ["sh", "-c", piped],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\t3\n", "")
    assert list(Queue(tmp_path / "p.tsv").jobs()) == before
