"""A job <-> one line of text, and a change <-> one line of the journal: pure.

A row has nine columns; a change is a row without its type and payload, and with a checksum:

    id type payload status created_at run_at attempts error result          queue.tsv
    id              status created_at run_at attempts error result crc32    queue.tsv.journal

Writing is strict, reading is lenient: a line that another program or an older version left is
read if its meaning is plain, else it is no job. Whatever is written is one line of nine columns
without a control character: `text` sees to that.
"""

from __future__ import annotations

from dbbasic_queue.model.checks import IN_AN_ID
from dbbasic_queue.model.escaping import is_unsafe, numbered
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.states import STATUSES, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

HEADER = b"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"

LONGEST_ROW = (1 << 26) + (1 << 16)
"""Bytes of a line, without its end, that can be a row: a payload and a result of 32 MiB each."""


class Row:
    """One job as its line says it; `payload` is JSON text."""

    __slots__ = ("id", "payload", "state", "type")

    def __init__(self, job_id: str, job_type: str, payload: str, state: State) -> None:
        self.id = job_id
        self.type = job_type
        self.payload = payload
        self.state = state


# -- rows --------------------------------------------------------------------------------------


def new_row(job_id: str, job_type: str, payload: str, now: int, run_at: int) -> str:
    """Return the line, with its end, of a job that nobody has started."""
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
