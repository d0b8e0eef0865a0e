"""A job's state as text, and a record: one line of the journal, which gives a job a new state.

A record is a row without type and payload, and with a checksum:

    id status created_at run_at attempts error result crc32

The checksum is that of all bytes before its tab, as eight hex digits.
"""

from __future__ import annotations

from zlib import crc32

from dbbasic_queue.lazy import load
from dbbasic_queue.model.rows import is_binary
from dbbasic_queue.model.states import STATUSES, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable


def encode_state(state: State) -> bytes:
    """Return the last six columns of a row as in the file."""
    return (
        f"{state.status}\t{state.created_at}\t{state.run_at}\t{state.attempts}"
        f"\t{state.error}\t{state.result}"
    ).encode()


def decode_state(state: bytes) -> State:
    """Return the state that `encode_state` has encoded."""
    status, created_at, run_at, attempts, error, result = state.decode().split("\t")
    return State(status, int(created_at), int(run_at), int(attempts), error, result)


def with_state(line: bytes, state: bytes) -> bytes:
    r"""Return a row's line with `state` after its payload.

    >>> with_state(b"a\tgreet\t{}\tpending\t5\t7\t0\t\t", b"cancelled\t5\t7\t0\t\t")
    b'a\tgreet\t{}\tcancelled\t5\t7\t0\t\t'
    """
    job_id, job_type, payload, _ = line.split(b"\t", 3)
    return b"\t".join((job_id, job_type, payload, state))


def with_payload(line: bytes, payload: bytes) -> bytes:
    r"""Return a row's line with another payload.

    >>> with_payload(b"a\tgreet\t{}\tpending\t5\t7\t0\t\t", b"[1]")
    b'a\tgreet\t[1]\tpending\t5\t7\t0\t\t'
    """
    job_id, job_type, _, state = line.split(b"\t", 3)
    return b"\t".join((job_id, job_type, payload, state))


def encode_record(job_id: bytes, state: bytes) -> bytes:
    r"""Return the record, with its line end, that gives the job this state.

    >>> encode_record(b"a", b"cancelled\t5\t7\t0\t\t")
    b'a\tcancelled\t5\t7\t0\t\t\t04ae72ce\n'
    """
    body = job_id + b"\t" + state
    return b"%b\t%08x\n" % (body, crc32(body))


def decode_record(line: bytes) -> tuple[bytes, bytes] | None:
    """Return the job's id and state; None if the line is torn, damaged or not a valid record.

    `line` is without its end. A right checksum isn't enough: the state must be valid, too.
    """
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


# Matching a pattern takes two thirds of the time of a split. `re` is imported when the first record
# is read.
_matches_state: Callable[[bytes], object] = _first_matches_state
