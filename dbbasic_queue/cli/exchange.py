r"""The formats of `export` and `import`.

- **TSV**: the queue's own file, with its header and nine columns.
- **JSON lines**: one object per job with the nine columns as keys; payload and result are values.
- **CSV** (RFC 4180): the nine columns, for a spreadsheet. A cell that begins with `=`, `+`, `-`,
  `@`, one of their full-width forms, a tab or a line end would be executed as a formula there
  (https://owasp.org/www-community/attacks/CSV_Injection): it gets an apostrophe before it, and so
  does a cell that begins with an apostrophe, so that an import can take it away again.

In all of them, characters that could control a terminal are escaped. A round trip gives each job
the same values again.
"""

from __future__ import annotations

import json
import os

from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model.escaping import escape, printable, unescape
from dbbasic_queue.model.jsontext import decode_json, encode_json
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import HEADER, Row, has_json, is_header, parse_row
from dbbasic_queue.model.states import PENDING, PROCESSING, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable
    from typing import Any, TextIO

_COLUMNS = HEADER.decode().split()
_FORMATS = {".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_EXECUTED = (*"=+-@\t\r\n'", *"\uff1d\uff0b\uff0d\uff20")
_LARGEST = 1 << 26
_SHOWN_EVERY = 1000


def format_of(arguments: Namespace) -> str:
    """Return tsv, jsonl or csv: that of --format, or of the file's name."""
    if arguments.format is not None:
        return str(arguments.format)
    if arguments.path in (None, "-"):
        return "tsv"
    ending = os.path.splitext(arguments.path)[1].lower()
    if ending not in _FORMATS:
        arguments.wrong_usage(
            f"invalid FILE {arguments.path!r}: must end in .tsv, .jsonl or .csv (or give --format)"
        )
    return _FORMATS[ending]


# -- export ------------------------------------------------------------------------------------


def export(
    rows: Iterable[Row], file: TextIO, format_: str, show: Callable[[int], object] = lambda n: None
) -> int:
    """Write jobs to a file; return how many. Lines that aren't jobs aren't among them."""
    count = 0
    write = _writer(file, format_)
    for row in rows:
        if has_json(row):
            write(row)
            count += 1
            if count % _SHOWN_EVERY == 0:
                show(count)
    return count


def export_file(rows: Iterable[Row], path: str, format_: str, show: Callable[[int], object]) -> int:
    """Write jobs to the file at a path, which must not exist; it is complete on the disk on return.

    Raises InvalidArgument if there is a file at the path. After an error, there is none.
    """
    try:
        file = open(path, "x", encoding="utf-8", newline="", opener=_private)  # noqa: SIM115
    except FileExistsError:
        raise InvalidArgument(f"{path} exists: choose another name, or remove it") from None
    try:
        with file:
            count = export(rows, file, format_, show)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(path)
        raise
    return count


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # payloads may be confidential


def _writer(file: TextIO, format_: str) -> Callable[[Row], object]:
    if format_ == "jsonl":
        return lambda row: file.write(json.dumps(as_object(row)) + "\n")
    if format_ == "tsv":
        file.write(HEADER.decode())
        return lambda row: file.write("\t".join(_fields(row)) + "\n")
    import csv

    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    return lambda row: writer.writerow(map(neutralize, _fields(row)))


def _fields(row: Row) -> list[str]:
    """Return the nine columns as the file has them, without control characters."""
    *state, result = encode_state(row.state).decode().split("\t")
    return [row.id, printable(row.type), _safe(row.payload or "{}"), *state, _safe(result)]


def _safe(text: str) -> str:
    """Return JSON with the same value, without control characters; other text is escaped."""
    if text.isprintable():
        return text
    try:
        return encode_json(decode_json(text), _LARGEST)
    except ValueError:
        return printable(text)


def as_object(row: Row) -> dict[str, Any]:
    """Return what a line of JSON has: the columns, with values for payload and result."""
    state = row.state
    return {
        "id": row.id,
        "type": row.type,
        "payload": decode_json(row.payload or "{}"),
        "status": state.status,
        "created_at": state.created_at,
        "run_at": state.run_at,
        "attempts": state.attempts,
        "error": unescape(state.error) if state.error else None,
        "result": _result(state.result),
    }


def _result(text: str) -> Any:
    """Return the value of a result, None if there is none; text that isn't JSON stays text."""
    if not text:
        return None
    try:
        return decode_json(text)
    except ValueError:
        return text


def neutralize(cell: str) -> str:
    """Return a cell that no spreadsheet executes.

    >>> neutralize("=1+1"), neutralize("'quoted'"), neutralize("plain")
    ("'=1+1", "''quoted'", 'plain')
    """
    return f"'{cell}" if cell.startswith(_EXECUTED) else cell


# -- import ------------------------------------------------------------------------------------


def parse(text: str, format_: str, path: str) -> list[Row]:
    """Return the jobs of an export. A running job becomes pending.

    Raises InvalidArgument for the first line that isn't a job.
    """
    rows: list[Row] = []
    seen: set[str] = set()
    for number, row in _rows(text, format_, path):
        if not row.type.isprintable():  # otherwise as lenient as a queue that reads its file
            raise _invalid(path, number, f"invalid job type {row.type!r}")
        if not has_json(row):
            raise _invalid(path, number, "the payload must be JSON")
        if row.id in seen:
            raise _invalid(path, number, f"the id {row.id} occurs twice")
        seen.add(row.id)
        state = row.state
        if state.status == PROCESSING:
            attempts = max(state.attempts - 1, 0)
            row.state = State(PENDING, state.created_at, state.run_at, attempts, "", "")
        row.payload = row.payload or "{}"
        rows.append(row)
    return rows


def _invalid(path: str, number: int, why: str) -> InvalidArgument:
    return InvalidArgument(f"invalid line {number} of {path}: {why} (no job was imported)")


def _rows(text: str, format_: str, path: str) -> Iterable[tuple[int, Row]]:
    if format_ == "jsonl":
        return _json_rows(text, path)
    if format_ == "csv":
        return _csv_rows(text, path)
    return _tsv_rows(text.split("\n"), path)


def _tsv_rows(lines: list[str], path: str) -> Iterable[tuple[int, Row]]:
    for number, line in enumerate(lines, 1):
        if number == 1 and is_header(line.encode()):
            continue
        if line:
            row = parse_row(line.encode())
            if row is None:
                raise _invalid(path, number, f"must be a job in nine columns: {_start(line)}")
            yield number, row


def _csv_rows(text: str, path: str) -> Iterable[tuple[int, Row]]:
    import csv
    import io

    csv.field_size_limit(_LARGEST)
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        for cells in reader:
            if not cells or cells == _COLUMNS:
                continue
            fields = [cell.removeprefix("'") for cell in cells]
            row = parse_row("\t".join(fields).encode()) if len(fields) == len(_COLUMNS) else None
            if row is None:
                shown = _start(",".join(cells))
                raise _invalid(path, reader.line_num, f"must be a job in nine columns: {shown}")
            yield reader.line_num, row
    except csv.Error as e:
        raise _invalid(path, reader.line_num, str(e)) from None


def _json_rows(text: str, path: str) -> Iterable[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, _from_object(decode_json(line))
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            shown = f"missing {e}" if isinstance(e, KeyError) else str(e)
            raise _invalid(path, number, f"must be a job as JSON: {shown}") from None


def _from_object(job: Any) -> Row:
    if not isinstance(job, dict) or (unknown := job.keys() - set(_COLUMNS)):
        known = isinstance(job, dict)
        raise ValueError(f"unknown keys {sorted(unknown)}" if known else "it isn't an object")
    result = job.get("result")
    if not all(isinstance(job[name], str) for name in ("id", "type")):
        raise ValueError("id and type must be strings")
    fields = [
        job["id"],
        job["type"],
        encode_json(job.get("payload", {}), _LARGEST),
        job.get("status", PENDING),
        *(str(int(job[name])) for name in ("created_at", "run_at")),
        str(int(job.get("attempts", 0))),
        escape(job.get("error") or ""),
        "" if result is None else encode_json(result, _LARGEST),
    ]
    row = parse_row("\t".join(fields).encode())
    if row is None:
        raise ValueError("invalid values")
    return row


def _start(line: str) -> str:
    return f"'{printable(line[:60])}'"
