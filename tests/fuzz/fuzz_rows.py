"""Feeds any bytes to the functions that read lines: only documented exceptions, and round trips.

To run it for an hour under the coverage-guided fuzzer atheris, which nothing else needs:

    pip install atheris
    PYTHONPATH=.:tests python tests/fuzz/fuzz_rows.py -max_total_time=3600 -max_len=4096

A crash writes its input to `crash-...`: add it to `test_fuzz_rows.py` as an example. That test runs
the same targets for a few seconds, on the seeds below and on inputs from Hypothesis.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from helpers import BOMBS, NASTY, NOT_JSON

from dbbasic_queue.model.escaping import escape, unescape
from dbbasic_queue.model.jsontext import MAX_PAYLOAD, decode_json, encode_json
from dbbasic_queue.model.records import (
    decode_record,
    decode_state,
    encode_record,
    encode_state,
    with_state,
)
from dbbasic_queue.model.rows import new_row, parse_row
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.store.reading.bulk import NEVER, scan

SEEDS = [
    b"",
    b"a\tb\t{}\tpending\t1\t2\t0\t\t",
    b"a\tb\t{}\tpending\t1\t2.5\t\t\t\r",
    b"a\tb\t{}\tpending\t1\t2\t0\t\t\r\r",
    b"a\tb\t{}\tcompleted\t1\t2\t3\tan error\twith tabs\t[1]",
    b"a\tb\t{}\tfailed\t999999999999\t0.\t999999999\tx\t",
    b"a\tpending\t1\t2\t0\t\t\t00000000",
    encode_record(b"a", b"completed\t1\t2\t1\t\t0")[:-1],
    b'{"a": [1, 2.5, null, true, "\\ud800"]}',
    b"1e999",
    b'{"a": 1, "a": 2}',
    *(text.encode("utf-8", "surrogatepass") for text in NASTY + NOT_JSON),
    *(text[:5000].encode() for text in BOMBS),
]
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def parses_any_line(data: bytes) -> None:
    """A line is a job or None. A job can be written, and reads back as the same job."""
    line = data.replace(b"\n", b"")
    row = parse_row(line)
    if row is None or row.state.result.endswith("\r"):
        return  # a result from the file is never written back: every change sets a new one
    state = encode_state(row.state)
    assert encode_state(decode_state(state)) == state
    assert state.count(b"\t") == 5 and b"\n" not in state
    again = parse_row(with_state(line, state))
    assert again is not None, line
    assert (again.id, again.type, again.payload) == (row.id, row.type, row.payload)
    assert encode_state(again.state) == state


def escapes_any_text(data: bytes) -> None:
    """Any text fits in one column of one line, and reads back as the same text."""
    for text in (data.decode("utf-8", "surrogateescape"), data.decode("latin-1")):
        escaped = escape(text)
        assert not _BREAKS.search(escaped), escaped
        escaped.encode()
        assert unescape(escaped) == text
        unescape(text)  # another program may have written anything


def decodes_any_record(data: bytes) -> None:
    """A line of the journal is None or a record; a record is written as the same line."""
    record = decode_record(data.replace(b"\n", b""))
    if record is not None:
        assert encode_record(*record) == data.replace(b"\n", b"") + b"\n"
    flipped = bytearray(encode_record(b"id", b"pending\t1\t2\t3\t\t")[:-1])
    for place, byte in enumerate(data[: len(flipped)]):
        flipped[place] ^= byte
    if any(data[: len(flipped)]):
        assert decode_record(bytes(flipped).replace(b"\n", b" ")) is None


def decodes_any_json(data: bytes) -> None:
    """JSON text is a value or a ValueError; a value is written on one line and reads back equal."""
    try:
        value = decode_json(data.decode("utf-8", "surrogatepass"))
    except ValueError:
        return
    try:
        text = encode_json(value, MAX_PAYLOAD)
    except ValueError:  # 1e999 is read as infinity, which is not JSON
        assert _has_infinity(value) or len(data) * 12 > MAX_PAYLOAD, value
        return
    assert not _BREAKS.search(text)
    assert repr(json.loads(text)) == repr(value)
    row = parse_row(new_row("id", "type", text, 1, 2).encode()[:-1])
    assert row is not None and row.payload == text
    assert repr(decode_json(row.payload)) == repr(value)


def _has_infinity(value: Any) -> bool:
    if isinstance(value, float):
        return value in (float("inf"), float("-inf"))
    if isinstance(value, dict):
        return any(map(_has_infinity, value.values()))
    return isinstance(value, list) and any(map(_has_infinity, value))


_PLAIN = b"id.%d\tb\t{}\tpending\t1\t2\t0\t\t"


def scans_what_it_parses(data: bytes) -> None:
    """Scanning many rows at once gives the same jobs as parsing each row by itself."""
    around = [_PLAIN % n for n in range(48)]
    content = b"\n".join([*around[:24], *data.split(b"\n"), *around[24:]]) + b"\n"
    scanned = b""
    for piece, columns in scan(content):
        scanned += piece
        if columns is not None:
            lines = piece.split(b"\n")[:-1]
            latest = 0
            for line, job_id, status, run_at, attempts in zip(lines, *columns[:4], strict=True):
                row = parse_row(line)
                assert row is not None, line
                assert (row.id.encode(), row.state.status.encode()) == (job_id, status)
                due_at = row.state.run_at if row.state.status == PENDING else NEVER
                assert (due_at, row.state.attempts) == (run_at, int(attempts))
                latest = max(latest, row.state.created_at)
            assert columns[4] == latest
    assert scanned == content


TARGETS: list[Callable[[bytes], None]] = [
    parses_any_line,
    escapes_any_text,
    decodes_any_record,
    decodes_any_json,
    scans_what_it_parses,
]


def all_targets(data: bytes) -> None:
    for target in TARGETS:
        target(data)


def main() -> None:
    atheris = import_module("atheris")
    atheris.instrument_all()
    atheris.Setup(sys.argv, all_targets)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
