"""A job and its line of text: written lines can be read back, and any other line does no harm."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import pkgutil
import sys
import time
import unicodedata
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum
from typing import Any

import pytest
from helpers import BOMBS, NASTY, NOT_JSON, NOW, line
from hypothesis import assume, example, given
from hypothesis import strategies as st

import dbbasic_queue
from dbbasic_queue.errors import InvalidJob
from dbbasic_queue.model.checks import check_id, check_instant, check_type
from dbbasic_queue.model.escaping import escape, unescape
from dbbasic_queue.model.jsontext import MAX_PAYLOAD, decode_json, encode_json
from dbbasic_queue.model.records import (
    decode_record,
    decode_state,
    encode_record,
    encode_state,
    with_state,
)
from dbbasic_queue.model.rows import HEADER, is_binary, is_header, new_row, parse_row
from dbbasic_queue.model.states import STATUSES, State
from dbbasic_queue.model.strict_json import MAX_DEPTH

texts = st.lists(st.sampled_from(NASTY) | st.text(st.characters(), max_size=5)).map("".join)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # In JSON, two surrogates that make a pair are one character.
    | texts.filter(lambda text: json.loads(json.dumps(text)) == text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)
instants = st.integers(0, 253_402_300_799)
states = st.builds(
    State,
    st.sampled_from(STATUSES),
    instants,
    instants,
    st.integers(0, 999_999_999),
    texts.map(escape),
    (values.map(lambda value: encode_json(value, sys.maxsize))) | st.just(""),
)


def harmless(text: str) -> bool:
    """Return whether a text can't add a row or column, or control a terminal."""
    return not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text)


def columns(state: State) -> list[object]:
    return [getattr(state, name) for name in State.__slots__]


# --- free text


@given(texts)
@example("".join(map(chr, range(0x250))))
def test_any_text_is_escaped_to_one_harmless_line_and_can_be_read_back(text: str) -> None:
    written = escape(text)
    assert harmless(written)
    assert len(written.encode().split(b"\n")) == len(written.splitlines() or [""]) == 1
    assert unescape(written) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\tb\nc\rd\\", r"a\tb\nc\rd\\"),
        ("\x00\x1b\x7f\x9b", r"\x00\x1b\x7f\x9b"),
        ("\u2028\u202e\ufeff\udc80", r"\u2028\u202e\ufeff\udc80"),
        ("\U000e0001", r"\U000e0001"),
        ("é 漢 😀 \xa0 \u3000", "é 漢 😀 \xa0 \u3000"),
    ],
)
def test_text_is_escaped_like_postgresqls_copy(text: str, written: str) -> None:
    assert escape(text) == written


@pytest.mark.parametrize(
    "text", ["C:\\users", "\\q", "\\", "\\x1", "\\u12g4", "\\U00110000", "a\\", "\\\u2028"]
)
def test_a_backslash_that_starts_no_escape_stands_for_itself(text: str) -> None:
    assert unescape(text) == text


@given(texts)
def test_any_text_can_be_unescaped(text: str) -> None:
    assert isinstance(unescape(text), str)


# --- JSON


@given(values)
def test_any_json_value_is_encoded_as_one_harmless_line_and_can_be_read_back(value: object) -> None:
    written = encode_json(value, MAX_PAYLOAD)
    assert harmless(written)
    assert decode_json(written) == json.loads(written) == value


@pytest.mark.parametrize("value", [0, False, [], "", {}, 0.0, None])
def test_values_that_are_false_keep_their_type(value: object) -> None:
    copy = decode_json(encode_json(value, 100))
    assert (copy, type(copy)) == (value, type(value))


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def circular() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "not JSON compliant"),
        (math.inf, "not JSON compliant"),
        ({"a": [-math.inf]}, "not JSON compliant"),
        ({math.nan: 1}, "not JSON compliant"),
        (b"bytes", "bytes is not JSON"),
        ({1, 2}, "set is not JSON"),
        (object(), "object is not JSON"),
        ({(1, 2): 3}, "key of type tuple"),
        ({1: "a", "1": "b"}, "key of type int"),
        ([{"a": ({"b": [{None: 1}]},)}], "key of type NoneType"),
        ({"a": {True: 1}}, "key of type bool"),
        (OrderedDict(a=OrderedDict({0.5: 1})), "key of type float"),
        (circular(), "Circular"),
        (nested(MAX_DEPTH + 1), "nested more than 100 deep"),
        (nested(100_000), "nested more than 100 deep"),
        (10**5000, "4300"),
        ({"n": [-(10**5000)]}, "4300"),
        ("x" * 99, "101 bytes, and at most 100 are allowed"),
        ("é" * 50, "102 bytes, and at most 100 are allowed"),
        ("\x1b" * 20, "122 bytes, and at most 100 are allowed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_not_json_too_deep_or_too_large_are_refused(
    value: object, reason: str
) -> None:
    limit = 100 if "100 are allowed" in reason else MAX_PAYLOAD
    with pytest.raises(ValueError, match=reason):
        encode_json(value, limit)


def test_the_limits_themselves_are_allowed() -> None:
    assert decode_json(encode_json(nested(MAX_DEPTH), 1000)) == nested(MAX_DEPTH)
    assert encode_json("x" * 98, 100) == '"' + "x" * 98 + '"'
    assert decode_json(encode_json(10**4299, 10_000)) == 10**4299


def test_brackets_and_digits_inside_a_string_do_not_count() -> None:
    for text in ("[" * 200, '\\"[{' * 200, "9" * 5000, '"' * 101 + "[" * 101):
        assert decode_json(encode_json([text], MAX_PAYLOAD)) == [text]


@pytest.mark.parametrize("text", NOT_JSON)
def test_text_that_is_not_strict_json_is_not_decoded(text: str) -> None:
    with pytest.raises(ValueError):
        decode_json(text)


@pytest.mark.parametrize("text", BOMBS, ids=lambda text: f"{text[:5]} and so on")
def test_a_json_bomb_is_refused_before_it_is_decoded(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested more than 100 deep|more than 4300 digits"):
        decode_json(text)


@given(texts)
def test_decoding_raises_only_value_error(text: str) -> None:
    try:
        decode_json(text)
    except ValueError:
        return


# --- ids, types, instants


@pytest.mark.parametrize("job_id", ["a", "report-2026-11-21", "A.b_C-9", "x" * 64, "."])
def test_a_callers_own_id_can_be_a_name(job_id: str) -> None:
    assert check_id(job_id) == job_id


@pytest.mark.parametrize(
    "job_id",
    ["", "x" * 65, "a b", "a\tb", "a\n", "é", "a/b", 7, b"a", True, "-", "--failed"],
)
def test_other_ids_are_refused(job_id: Any) -> None:
    with pytest.raises(InvalidJob, match=r"invalid job_id .*: must be 1 to 64 characters from"):
        check_id(job_id)


@pytest.mark.parametrize("job_type", ["send_email", "app.mail:send-2", "x" * 100])
def test_a_type_can_be_a_dotted_name(job_type: str) -> None:
    assert check_type(job_type) == job_type


@pytest.mark.parametrize("job_type", ["", "x" * 101, "a b", "a\tb", "a\n", "é", "a/b", None, 7])
def test_other_types_are_refused(job_type: Any) -> None:
    with pytest.raises(InvalidJob, match=r"invalid job type .*: must be 1 to 100 characters from"):
        check_type(job_type)


class Kind(str, Enum):  # noqa: UP042 - its str() is not its value
    MAIL = "mail"


class Soon(IntEnum):
    AT = NOW


class Shouting(str):
    def __str__(self) -> str:
        return self.upper()

    __repr__ = __str__


@pytest.mark.parametrize("text", [Kind.MAIL, Shouting("mail")])
def test_an_id_or_type_that_is_a_subclass_of_str_becomes_a_plain_str(text: str) -> None:
    for checked in (check_id(text), check_type(text)):
        assert (checked, type(checked), f"{checked}") == ("mail", str, "mail")


def test_enums_in_a_payload_become_their_values() -> None:
    assert encode_json({Kind.MAIL: [Kind.MAIL, Soon.AT]}, 100) == f'{{"mail": ["mail", {NOW}]}}'


ZONE = timezone(timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    ("instant", "seconds"),
    [
        (0, 0),
        (NOW, NOW),
        (Soon.AT, NOW),
        (NOW + 0.25, NOW + 1),
        (float(NOW), NOW),
        (0.0001, 1),
        (-0.0, 0),
        (253_402_300_799, 253_402_300_799),
        (datetime(2027, 1, 15, 8, tzinfo=UTC), NOW),
        (datetime(2027, 1, 15, 13, 30, tzinfo=ZONE), NOW),
        (datetime(2027, 1, 15, 8, 0, 0, 1, tzinfo=UTC), NOW + 1),
    ],
)
def test_an_instant_is_rounded_up_to_whole_seconds(instant: object, seconds: int) -> None:
    checked = check_instant(instant)
    assert (checked, type(checked)) == (seconds, int)


@pytest.mark.parametrize(
    "instant",
    [
        math.nan,
        math.inf,
        -math.inf,
        -1,
        -0.5,
        True,
        False,
        "1800000000",
        "",
        b"1",
        1j,
        [],
        253_402_300_800,
        253_402_300_799.5,
        10**400,
        10**5000,
        datetime(2027, 1, 15, 8),
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
        datetime.min.replace(tzinfo=ZONE),
        datetime(2027, 1, 15).date(),
        timedelta(seconds=5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_at_that_is_not_an_instant_from_1970_to_9999_is_refused(instant: object) -> None:
    with pytest.raises(InvalidJob, match=r"invalid run_at .*: must "):
        check_instant(instant)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "value",
    [10**5000, Unshowable(), "x" * 10**6, "\x1b[31m"],
    ids=["a number that is too long", "no text", "a text that is too long", "a colour"],
)
def test_errors_show_any_value_in_a_short_and_harmless_way(value: Any) -> None:
    for check in (check_id, check_type, check_instant):
        with pytest.raises(InvalidJob) as refusal:
            check(value)
        assert harmless(str(refusal.value))
        assert len(str(refusal.value)) < 300


MANY = 20_000
HOSTILE_TEXTS = {
    "an unclosed string of escaped quotes": '"' + '\\"' * MANY,
    "a string of escaped quotes": '"' + '\\"' * MANY + '"',
    "quotes without a comma between them": "[" + '"' * MANY,
    "a deep list, then an unclosed string": "[" * 101 + '"' + '\\"' * MANY,
    "a backslash at the end": '"' + "\\\\" * MANY + "\\",
    "numbers of 4300 digits": f"[{','.join(['1' * 4300] * 240)}]",
    "a fraction without an end": "1." + "1" * MANY,
    "unfinished escapes": '"' + "\\u" * MANY,
    "half surrogates": '"' + "\\ud800" * MANY,
    "white space": "1" + " " * MANY + "2",
    "many small lists": "[" + "[]," * MANY,
    "nothing but tabs": "\t" * MANY,
    "nothing but NULs": "\0" * MANY,
}


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_a_hostile_text_is_read_in_time_proportional_to_its_length(text: str) -> None:
    started = time.process_time()
    with suppress(ValueError):
        decode_json(text)
    unescape(text)
    for row in (
        line("a", payload=text),
        line("a", error=text),
        line("a", run_at=f"1.{text}"),
        line(text),
        text,
    ):
        parse_row(row.removesuffix("\n").encode())
    decode_record(text.encode() + b"\t00000000")
    decode_record(encode_record(b"a", f"pending\t1\t1\t1\t{text}\t".encode())[:-1])
    assert (
        time.process_time() - started < 1
    )  # it takes 0.05 s; searching again from each quote takes 10 s


def test_a_fraction_of_any_length_is_rounded_up() -> None:
    for run_at, seconds in (("5.000", 5), ("5.", 5), ("5." + "0" * 400 + "1", 6), ("5.9", 6)):
        row = parse_row(line("a", run_at=run_at)[:-1].encode())
        assert row is not None
        assert row.state.run_at == seconds


# --- rows


@given(
    st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_.:-]{1,100}", fullmatch=True),
    values,
    instants,
    instants,
)
def test_a_new_row_is_one_line_of_nine_columns_that_can_be_read_back(
    job_id: str, job_type: str, payload: object, now: int, run_at: int
) -> None:
    text = new_row(job_id, job_type, encode_json(payload, sys.maxsize), now, run_at)
    assert text.count("\t") == 8
    assert text.endswith("\n")
    assert harmless(text[:-1].replace("\t", ""))
    row = parse_row(text[:-1].encode())
    assert row is not None
    assert (row.id, row.type, decode_json(row.payload)) == (job_id, job_type, payload)
    assert columns(row.state) == columns(State("pending", now, run_at, 0, "", ""))


@given(st.binary(max_size=200))
def test_no_line_makes_the_parsers_raise(content: bytes) -> None:
    parse_row(content)
    decode_record(content)
    is_header(content)
    is_binary(content)


fields = st.sampled_from(
    ["", "a", "{}", "pending", "processing", "0", "1.5", "1e9", "-1", "nan", "٣", "9" * 13, "\x85"]
)


@given(st.lists(fields | texts, min_size=5, max_size=14))
def test_a_row_that_was_parsed_can_be_written_again(cells: list[str]) -> None:
    content = "\t".join(cells).encode("utf-8", "replace")
    row = parse_row(content)
    if row is None:
        return
    state = encode_state(row.state)
    assert state.count(b"\t") == 5
    assert columns(decode_state(state)) == columns(row.state)
    again = parse_row(with_state(content, state))
    assert again is not None
    assert (again.id, again.type, columns(again.state)) == (row.id, row.type, columns(row.state))
    assert harmless(row.state.error.replace("\t", ""))


def read(content: str) -> State:
    row = parse_row(content.removesuffix("\n").encode())
    assert row is not None
    return row.state


def test_a_row_without_the_last_columns_is_a_job() -> None:
    for text in (f"{NOW}\t{NOW}\t2", f"{NOW}\t{NOW}\t2\t"):
        state = read(f"a\tgreet\t{{}}\tpending\t{text}")
        assert columns(state) == columns(State("pending", NOW, NOW, 2, "", ""))


def test_a_row_with_a_carriage_return_is_a_job() -> None:
    assert read(line("a", result="7")[:-1] + "\r").result == "7"
    assert read(f"a\tgreet\t{{}}\tpending\t{NOW}\t{NOW}\t2\r").attempts == 2


def test_a_fractional_run_at_is_rounded_up() -> None:
    assert read(line("a", run_at=f"{NOW}.25")).run_at == NOW + 1
    assert read(line("a", run_at=f"{NOW}.0")).run_at == NOW


def test_tabs_in_an_error_are_part_of_the_error() -> None:
    state = read(line("a", status="failed", error="one\ttwo\tthree", result=""))
    assert (unescape(state.error), state.result) == ("one\ttwo\tthree", "")


def test_control_characters_in_an_error_are_shown_by_number() -> None:
    assert read(line("a", error="\x1b[31m\u2028")).error == r"\x1b[31m\u2028"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a job",
        HEADER.decode(),
        "a\tgreet\t{}\tpending\t1",
        "a\tgreet\t{}\tpending\t1\t1",  # run_at may be torn, so the job would run early
        line("a b"),
        line(""),
        line("a", type=""),
        line("a", status="done"),
        line("a", status="Pending"),
        line("a", run_at=""),
        line("a", run_at="soon"),
        line("a", run_at="nan"),
        line("a", run_at="inf"),
        line("a", run_at="-5"),
        line("a", run_at="1e9"),
        line("a", run_at="1_000"),
        line("a", run_at="٣"),
        line("a", run_at="9" * 13),
        line("a", created_at=""),
        line("a", attempts="x"),
        line("a", attempts="-1"),
        line("a", attempts="9" * 10),
        line("a", error="\0"),
    ],
)
def test_an_ambiguous_line_is_not_a_job(content: str) -> None:
    assert parse_row(content.removesuffix("\n").encode()) is None


def test_a_line_that_is_not_utf8_is_not_a_job() -> None:
    assert parse_row(line("a", error="caf").removesuffix("\t\n").encode() + b"\xe9\t") is None


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("after", [b"", b"\r"])
def test_the_header_can_have_a_byte_order_mark_and_a_carriage_return(
    before: bytes, after: bytes
) -> None:
    assert is_header(before + HEADER[:-1] + after)
    assert not is_header(before + HEADER[:-2] + after)
    assert not is_header(before + HEADER[:-1] + b"\textra" + after)


# --- the journal


@given(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True), states)
def test_a_change_is_one_line_that_can_be_read_back(job_id: str, state: State) -> None:
    record = encode_record(job_id.encode(), encode_state(state))
    assert record.endswith(b"\n")
    assert record.count(b"\n") == 1
    assert harmless(record[:-1].decode().replace("\t", ""))
    decoded = decode_record(record[:-1])
    assert decoded is not None
    assert decoded[0] == job_id.encode()
    assert columns(decode_state(decoded[1])) == columns(state)


@given(states, st.data())
def test_a_torn_or_damaged_change_is_ignored(state: State, data: st.DataObject) -> None:
    record = encode_record(b"a-job", encode_state(state))[:-1]
    assert decode_record(record[: data.draw(st.integers(0, len(record) - 1))]) is None
    place = data.draw(st.integers(0, len(record) - 1))
    other = data.draw(st.integers(0, 255))
    assume(other != record[place])
    assert decode_record(record[:place] + bytes([other]) + record[place + 1 :]) is None
    assert decode_record(record + record) is None
    assert decode_record(bytes(len(record))) is None


# --- the docstrings

MODULES = [
    module.name
    for module in pkgutil.walk_packages(dbbasic_queue.__path__, "dbbasic_queue.")
    if not module.name.endswith("__main__") and not module.name.startswith("dbbasic_queue.django")
]
"""Django's are looked at in tests/django_backend, which has settings for it."""


def test_the_examples_in_the_docstrings_are_true() -> None:
    tested = set()
    for name in MODULES:
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        if result.attempted:
            tested.add(name)
    assert "dbbasic_queue.model.rows" in tested
