"""A job <-> one line of text, and a change <-> one line of the journal: pure.

A row has nine columns; a change is a row without its type and payload, and with a checksum:

    id type payload status created_at run_at attempts error result          queue.tsv
    id              status created_at run_at attempts error result crc32    queue.tsv.journal

Writing is strict, reading is lenient: a line that another program or an older version left is
read if its meaning is plain, else it is no job. Whatever is written is one line of nine columns
without a control character: `text` sees to that.
"""

from __future__ import annotations

import math
from zlib import crc32

from dbbasic_queue.errors import InvalidArgument, InvalidJob
from dbbasic_queue.lazy import load
from dbbasic_queue.model.escaping import decode_json, escape, is_unsafe, numbered
from dbbasic_queue.model.states import LATEST, STATUSES, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable

HEADER = b"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"

LONGEST_ROW = (1 << 26) + (1 << 16)
"""Bytes of a line, without its end, that can be a row: a payload and a result of 32 MiB each."""

IN_AN_ID = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
_IN_A_TYPE = IN_AN_ID + ":"


class Row:
    """One job as its line says it; `payload` is JSON text."""

    __slots__ = ("id", "payload", "state", "type")

    def __init__(self, job_id: str, job_type: str, payload: str, state: State) -> None:
        self.id = job_id
        self.type = job_type
        self.payload = payload
        self.state = state


# -- rows --------------------------------------------------------------------------------------


def is_id(job_id: object) -> bool:
    """Tell whether a job can have this id."""
    if not isinstance(job_id, str) or not 0 < len(job_id) <= 64:
        return False
    return (job_id.isalnum() and job_id.isascii()) or not job_id.strip(IN_AN_ID)  # strip is slower


def check_id(job_id: str) -> str:
    """Return a new job's id as a plain str; raises InvalidJob if it cannot be one.

    A job that is in the file already may have an id that begins with "-".
    """
    if not is_id(job_id) or job_id[0] == "-":
        raise InvalidJob(
            f"invalid job_id {_shown(job_id)}: must be 1 to 64 characters from A-Z a-z 0-9 . _ - "
            'and must not begin with "-", which a shell command would take for an option'
        )
    return job_id if type(job_id) is str else _plain(job_id)


def check_type(job_type: object) -> str:
    """Return `job_type` as a plain str; raises InvalidJob if it cannot name a handler."""
    if (  # quick, and true of most types; the full rule takes five times as long
        type(job_type) is str
        and job_type.isidentifier()
        and job_type.isascii()
        and len(job_type) <= 100
    ):
        return job_type
    if not isinstance(job_type, str) or not 0 < len(job_type) <= 100 or job_type.strip(_IN_A_TYPE):
        raise InvalidJob(
            f"invalid job type {_shown(job_type)}: must be 1 to 100 characters from "
            "A-Z a-z 0-9 _ . : -"
        )
    return job_type if type(job_type) is str else _plain(job_type)


def _plain(text: str) -> str:
    """Return the characters of a str, also of an Enum that formats as its name."""
    return str.__str__(text)


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


def check_seconds(
    seconds: object,
    name: str,
    *,
    above: float | None = None,
    error: type[Exception] = InvalidArgument,
) -> float:
    """Return a duration, seconds or a `timedelta`, in seconds; infinity is allowed, NaN isn't.

    Raises `error` unless it is 0 or more, or, if given, more than `above`.
    """
    total = getattr(seconds, "total_seconds", None)
    number = seconds if total is None else total()
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not (number >= 0 if above is None else number > above)
    ):
        rule = "0 or more" if above is None else f"more than {above}"
        rule = "" if above == -math.inf else f", {rule}"
        raise error(f"invalid {name} {_shown(seconds)}: must be seconds or a timedelta{rule}")
    return number


class CheckedClock:
    """A clock that raises InvalidJob for a time that no row can hold."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def __call__(self) -> float:
        now = self.clock()
        if not 0 <= now <= LATEST:  # false for NaN too
            raise InvalidJob(
                f"invalid time {_shown(now)} of the queue's clock: must be between 0 and {LATEST} "
                "(Unix seconds; 1970 to 9999)"
            )
        return now


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
    is_ascii = text.isascii()
    columns = text.removesuffix("\r").split("\t", 9)  # a line may be nothing but tabs
    if len(columns) != 9:
        if len(columns) < 7:
            return None
        if len(columns) > 9:
            error, _, result = "\t".join(columns[7:]).rpartition("\t")
            columns[7:] = [error.replace("\t", "\\t"), result]
        columns += [""] * (9 - len(columns))
    job_id, job_type, payload, status, created_at, run_at, attempts, error, result = columns
    if (
        not 0 < len(job_id) <= 64
        or (not (job_id.isalnum() and is_ascii) and job_id.strip(IN_AN_ID))
        or not job_type
        or status not in STATUSES
        or "\0" in text
        or (created := parse_instant(created_at)) is None
        or (due := created if run_at == created_at else parse_instant(run_at)) is None
        or (attempts != "0" and not _is_attempts(attempts))
    ):
        return None
    state = State(status, created, due, int(attempts or 0), error and _printable(error), result)
    return Row(job_id, job_type, payload, state)


def has_json(row: Row) -> bool:
    """Tell whether the payload is JSON, without which a row isn't a job."""
    try:
        decode_json(row.payload or "{}")
    except ValueError:
        return False
    return True


def _is_attempts(text: str) -> bool:
    return not text or (len(text) <= 9 and text.isdigit() and text.isascii())


def parse_instant(text: str) -> int | None:
    """Return the whole seconds, rounded up, of up to 12 digits and perhaps a fraction; or None."""
    if len(text) <= 12 and text.isdigit() and text.isascii():
        return int(text)
    whole, dot, fraction = text.partition(".")
    if (
        not dot
        or not 0 < len(whole) <= 12
        or not (whole + fraction).isdigit()
        or not text.isascii()
    ):
        return None
    return int(whole) + bool(fraction.strip("0"))


def _printable(error: str) -> str:
    """Return an error that another program left, its backslashes its own, without controls."""
    if error.isprintable():
        return error
    return "".join(numbered(c) if is_unsafe(c) else c for c in error)


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
    """Return the job's id and state, or None where the line is torn, damaged or forged."""
    body, _, checksum = line.rpartition(b"\t")
    if b"%08x" % crc32(body) != checksum or (not body.isascii() and is_binary(body)):
        return None
    job_id, _, state = body.partition(b"\t")
    return (job_id, state) if _matches_state(state) else None


def _first_matches_state(state: bytes) -> object:
    global _matches_state
    statuses = "|".join(STATUSES).encode()
    _matches_state = load(_compile)(
        rb"(%b)\t[0-9]{1,12}\t[0-9]{1,12}\t[0-9]{1,9}\t[^\t\0]*\t[^\t\0\r]*" % statuses
    ).fullmatch
    return _matches_state(state)


def _compile() -> Callable[[bytes], re.Pattern[bytes]]:
    import re

    return re.compile


# A pattern takes two thirds of the time of a split; `re` is loaded with the first record.
_matches_state: Callable[[bytes], object] = _first_matches_state
