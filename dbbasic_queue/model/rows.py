"""A row: one job as one line of the queue's file.

    id type payload status created_at run_at attempts error result

Writing is strict: a row is one line of nine columns, separated by tabs, without control characters.
Reading is lenient: a line from another program or an older version is a job if its meaning is
clear.
"""

from __future__ import annotations

from dbbasic_queue.model.checks import IN_AN_ID
from dbbasic_queue.model.escaping import is_unsafe, numbered
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.states import STATUSES, State

HEADER = b"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"

LONGEST_ROW_BYTES = (1 << 26) + (1 << 16)
"""The most bytes of a row, without its end: a payload and a result of 32 MiB each, and the rest."""


class Row:
    """A job as read from its line; `payload` is JSON text, not checked, or "" for `{}`."""

    __slots__ = ("id", "payload", "state", "type")

    def __init__(self, job_id: str, job_type: str, payload: str, state: State) -> None:
        self.id = job_id
        self.type = job_type
        self.payload = payload
        self.state = state


def new_row(job_id: str, job_type: str, payload: str, now: int, run_at: int) -> str:
    r"""Return the line, with its end, of a new job.

    >>> new_row("a", "greet", "{}", 5, 7)
    'a\tgreet\t{}\tpending\t5\t7\t0\t\t\n'
    """
    return f"{job_id}\t{job_type}\t{payload}\tpending\t{now}\t{run_at}\t0\t\t\n"


def is_header(line: bytes) -> bool:
    """Return whether a first line, without its end, is the header. A BOM and a CR are ignored."""
    return line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r") == HEADER[:-1]


def is_binary(line: bytes) -> bool:
    """Return whether a line makes `grep` treat the file as binary: it has a NUL, or isn't UTF-8.

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
    r"""Return the job on a line, given without its end, or None if it isn't a job.

    It also accepts a CR at the end; missing columns after `attempts` (a line that ends earlier may
    be torn within `run_at`, and would run too early); empty `attempts`, which are 0; tabs in the
    error, which dbbasic-queue 1.0.0 didn't escape (the last column is the result); a fractional
    instant, which is rounded up. The payload isn't checked (`has_json` does that), nor is the type,
    unless it is empty.

    >>> row = parse_row(b"a\tgreet\t{}\tpending\t5\t6.5\t0")
    >>> row.type, row.state.status, row.state.run_at
    ('greet', 'pending', 7)
    >>> parse_row(b"a\tgreet\t{}\tpending\t5\t6") is None
    True
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None
    is_ascii = text.isascii()
    columns = text.removesuffix("\r").split("\t", 9)  # no more: a line may be nothing but tabs
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
    """Return whether the payload is JSON; otherwise the row isn't a job."""
    try:
        decode_json(row.payload or "{}")
    except ValueError:
        return False
    return True


def _is_attempts(text: str) -> bool:
    return not text or (len(text) <= 9 and text.isdigit() and text.isascii())


def parse_instant(text: str) -> int | None:
    """Return text of up to 12 digits, perhaps with a fraction, as whole seconds, rounded up.

    Returns None for any other text.

    >>> parse_instant("7"), parse_instant("6.5"), parse_instant("soon")
    (7, 7, None)
    """
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
    """Return an error that another program wrote, with its control characters escaped."""
    if error.isprintable():
        return error
    return "".join(numbered(c) if is_unsafe(c) else c for c in error)
