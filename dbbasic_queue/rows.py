r"""A job <-> one line of text, and a change <-> one line of the journal: pure.

A row has nine columns; a change is a row without its type and payload, and with a checksum:

    id type payload status created_at run_at attempts error result          queue.tsv
    id              status created_at run_at attempts error result crc32    queue.tsv.journal

Writing is strict, reading is lenient: a line that another program or an older version left is
read if its meaning is plain, else it is no job. Whatever is written is one line of nine columns
without a control character: free text is escaped as PostgreSQL's COPY does it (`\t \n \r \\`,
https://www.postgresql.org/docs/current/sql-copy.html), every other control, format, surrogate
and line-separator character as `\xNN`, `\uNNNN` or `\UNNNNNNNN`; in JSON, as JSON's `\uNNNN`.
"""

from __future__ import annotations

import json
import math
import re
from json import encoder
from zlib import crc32

from dbbasic_queue.errors import InvalidJob
from dbbasic_queue.job import LATEST, STATUSES, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

HEADER = b"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"
MAX_PAYLOAD = 1_048_576
MAX_DEPTH = 100
MAX_ERROR = 500

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TYPE = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_INSTANT = re.compile(r"[0-9]{1,12}(\.[0-9]*)?")
_COUNT = re.compile(r"[0-9]{0,9}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LONG_NUMBER = re.compile(r"[0-9]{4301}")  # Python's own limit for an int from text
_STATE = (
    rf"({'|'.join(STATUSES)})\t([0-9]{{1,12}})\t([0-9]{{1,12}})\t([0-9]{{1,9}})"
    r"\t([^\t\0]*)\t([^\t\0\r]*)"
)
_PLAIN_ROW = re.compile(r"([A-Za-z0-9._-]{1,64})\t([^\t\0]+)\t([^\t\0]*)\t" + _STATE)
_PLAIN_STATE = re.compile(_STATE.encode())
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}
_LONG = {"t": "\t", "n": "\n", "r": "\r"}


class Row:
    """One job as its line says it; `payload` is JSON text."""

    __slots__ = ("id", "payload", "state", "type")

    def __init__(self, job_id: str, job_type: str, payload: str, state: State) -> None:
        self.id = job_id
        self.type = job_type
        self.payload = payload
        self.state = state


# -- free text ---------------------------------------------------------------------------------


def _is_unsafe(character: str) -> bool:
    from unicodedata import category

    return category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _numbered(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def escape(text: str) -> str:
    r"""Return `text` as the file holds it: one line, no tab, no control character.

    >>> print(escape("no\tsuch\nuser \x1b[31m C:\\tmp"))
    no\tsuch\nuser \x1b[31m C:\\tmp
    """
    if "\\" not in text and text.isprintable():
        return text
    return "".join(
        _SHORT.get(c) or (_numbered(c) if not c.isprintable() and _is_unsafe(c) else c)
        for c in text
    )


def unescape(text: str) -> str:
    r"""Return what `escape` was given; a backslash that begins no escape stands for itself.

    >>> unescape(escape("a\tb\\n\u2028")) == "a\tb\\n\u2028"
    True
    """
    if "\\" not in text:
        return text

    def character(match: re.Match[str]) -> str:
        x, u, wide, short = match.groups()
        if short is None:
            code = int(x or u or wide, 16)
            return chr(code) if code <= 0x10FFFF else match.group()
        return _LONG.get(short) or (short if short == "\\" else match.group())

    return _ESCAPE.sub(character, text)


# -- JSON --------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_object(value: object) -> None:
    raise TypeError(type(value).__name__)


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant)
_scan_once: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once


def _made_once() -> Callable[[object, int], Iterable[str]] | None:
    """Return what `_encoder.encode` makes anew at each call, which takes longer than its work.

    None where this Python has no such thing. It does not look for circles: it raises there.
    """
    make: Any = getattr(encoder, "c_make_encoder", None)
    try:
        return make and make(  # type: ignore[no-any-return]
            None,
            _encoder.default,
            encoder.encode_basestring,
            _encoder.indent,
            _encoder.key_separator,
            _encoder.item_separator,
            _encoder.sort_keys,
            _encoder.skipkeys,
            _encoder.allow_nan,
        )
    except TypeError:
        return None


_encode_once = _made_once()


def _to_json(value: object) -> str:
    if _encode_once is not None:
        try:
            return "".join(_encode_once(value, 0))
        except Exception:  # noqa: BLE001, S110 - what is wrong is said below
            pass
    return _encoder.encode(value)


def _from_json(text: str) -> Any:
    try:
        value, end = _scan_once(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else _decoder.decode(text)  # space around it, or an error


def _depth(text: str) -> int:
    depth = deepest = 0
    for c in _STRING.sub("", text):
        if c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def _check_bounds(text: str) -> None:
    if len(text) <= MAX_DEPTH:
        return
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if len(text) > 4300 and _LONG_NUMBER.search(_STRING.sub("", text)):
        raise ValueError("it has a number of more than 4300 digits")


def encode_json(value: object, limit: int) -> str:
    """Return `value` as strict JSON on one line, at most `limit` bytes of UTF-8.

    Raises ValueError, in words that continue "the value is refused: ...", if it is not JSON
    (NaN and infinity are not), is nested over 100 deep, or is too long.
    """
    try:
        text = _to_json(value)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except TypeError as e:
        raise ValueError(str(e)) from None
    _check_bounds(text)
    if not text.isprintable():
        text = "".join(
            json.dumps(c)[1:-1] if not c.isprintable() and _is_unsafe(c) else c for c in text
        )
    size = len(text) if text.isascii() else len(text.encode())
    if size > limit:
        raise ValueError(f"it takes {size} bytes, and {limit} are allowed")
    return text


def decode_json(text: str) -> Any:
    """Return the value of strict JSON text; raises ValueError where it is not that."""
    try:
        _check_bounds(text)
        return _from_json(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None


# -- rows --------------------------------------------------------------------------------------


def is_id(job_id: object) -> bool:
    """Tell whether a job can have this id."""
    return isinstance(job_id, str) and _ID.fullmatch(job_id) is not None


def check_id(job_id: str) -> str:
    """Return `job_id`; raises InvalidJob if it cannot be one."""
    if not is_id(job_id):
        raise InvalidJob(
            f"job_id {_shown(job_id)} is refused: it must be 1 to 64 of A-Z a-z 0-9 . _ -"
        )
    return job_id


def check_type(job_type: object) -> str:
    """Return `job_type`; raises InvalidJob if it cannot name a handler."""
    if not isinstance(job_type, str) or not _TYPE.fullmatch(job_type):
        raise InvalidJob(
            f"job type {_shown(job_type)} is refused: it must be 1 to 100 of A-Z a-z 0-9 _ . : -"
        )
    return job_type


def check_instant(instant: object, name: str = "run_at") -> int:
    """Return an instant in whole Unix seconds, rounded up; raises InvalidJob where it is none."""
    if type(instant) is int:
        seconds: float = instant
    elif isinstance(instant, (int, float)) and not isinstance(instant, bool):
        seconds = float(instant) if isinstance(instant, float) else int(instant)
    else:
        seconds = _from_datetime(instant, name)
    if not 0 <= seconds <= LATEST:  # false for NaN too
        raise InvalidJob(
            f"{name} {_shown(instant)} is refused: it must lie between 0 and {LATEST} "
            "(Unix seconds; 1970 to 9999)"
        )
    return math.ceil(seconds)


def _from_datetime(instant: object, name: str) -> float:
    from datetime import datetime

    if not isinstance(instant, datetime):
        raise InvalidJob(
            f"{name} {_shown(instant)} is refused: give Unix seconds (int or float) or an aware "
            "datetime"
        )
    if instant.utcoffset() is None:
        raise InvalidJob(
            f"{name} {_shown(instant)} is refused: it has no time zone; "
            "use datetime.now(timezone.utc) or .astimezone()"
        )
    return instant.timestamp()


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception as e:  # noqa: BLE001 - an int of 5,000 digits, or whatever a class does
        text = f"<{type(value).__name__}: {type(e).__name__}>"
    return escape(text if len(text) <= 80 else text[:77] + "...")


def new_row(job_id: str, job_type: str, payload: str, now: int, run_at: int) -> str:
    """Return the line, with its end, of a job that nobody has begun."""
    return f"{job_id}\t{job_type}\t{payload}\tpending\t{now}\t{run_at}\t0\t\t\n"


def is_header(line: bytes) -> bool:
    """Tell whether a first line (without its end) is the header, a BOM and a CR read over."""
    return line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r") == HEADER[:-1]


def is_binary(line: bytes) -> bool:
    """Tell whether a line keeps `grep` from treating the file as text: a NUL, or no UTF-8.

    >>> is_binary(b"a\\tb"), is_binary(b"a\\0b"), is_binary(b"a\\xff")
    (False, True, True)
    """
    if b"\0" in line:
        return True
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False


def parse_row(line: bytes) -> Row | None:
    """Return the job that a line (without its end) holds, or None where it is no job.

    Read over: a CR at the end; missing columns after `attempts` (a line that ends earlier may be
    torn within `run_at`, and would run early); tabs inside the error, as
    dbbasic-queue 1.0.0 left them (then the last column is the result); a fractional instant.
    The payload's JSON is not looked at.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None
    plain = _PLAIN_ROW.fullmatch(text)
    if plain is None:
        return _parse_lenient(text)
    job_id, job_type, payload, status, created_at, run_at, attempts, error, result = plain.groups()
    state = State(status, int(created_at), int(run_at), int(attempts), _printable(error), result)
    return Row(job_id, job_type, payload, state)


def _parse_lenient(text: str) -> Row | None:
    columns = text.removesuffix("\r").split("\t")
    if "\0" in text or len(columns) < 7 or not _ID.fullmatch(columns[0]) or not columns[1]:
        return None
    if len(columns) > 9:
        columns[7:-1] = ["\\t".join(columns[7:-1])]
    columns += [""] * (9 - len(columns))
    job_id, job_type, payload, status, created_at, run_at, attempts, error, result = columns
    if (
        status not in STATUSES
        or not _INSTANT.fullmatch(created_at)
        or not _INSTANT.fullmatch(run_at)
        or not _COUNT.fullmatch(attempts)
    ):
        return None
    state = State(
        status,
        math.ceil(float(created_at)),
        math.ceil(float(run_at)),
        int(attempts or 0),
        _printable(error),
        result,
    )
    return Row(job_id, job_type, payload, state)


def _printable(error: str) -> str:
    """Return an error that another program left, its backslashes its own, without controls."""
    if error.isprintable():
        return error
    return "".join(_numbered(c) if _is_unsafe(c) else c for c in error)


# -- states and journal records ----------------------------------------------------------------


def encode_state(state: State) -> bytes:
    """Return the last six columns of a row as they stand in the file."""
    return (
        f"{state.status}\t{state.created_at}\t{state.run_at}\t{state.attempts}"
        f"\t{state.error}\t{state.result}"
    ).encode()


def decode_state(state: bytes) -> State:
    """Return the state that `encode_state` wrote."""
    status, created_at, run_at, attempts, error, result = state.decode().split("\t")
    return State(status, int(created_at), int(run_at), int(attempts), error, result)


def with_state(line: bytes, state: bytes) -> bytes:
    """Return a row's line with `state` in the place of what follows its payload."""
    job_id, job_type, payload, _ = line.split(b"\t", 3)
    return b"\t".join((job_id, job_type, payload, state))


def encode_record(job_id: bytes, state: bytes) -> bytes:
    """Return the journal's line, with its end, that gives the job a new state."""
    body = job_id + b"\t" + state
    return b"%b\t%08x\n" % (body, crc32(body))


def decode_record(line: bytes) -> tuple[bytes, bytes] | None:
    """Return the job's id and state, or None where the line is torn or damaged."""
    body, _, checksum = line.rpartition(b"\t")
    if b"%08x" % crc32(body) != checksum:
        return None
    job_id, _, state = body.partition(b"\t")
    return (job_id, state) if _PLAIN_STATE.fullmatch(state) else None
