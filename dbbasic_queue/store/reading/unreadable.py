"""Lines of the queue file that aren't jobs, and why. Imported on first use."""

from __future__ import annotations

from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.rows import LONGEST_ROW_BYTES, parse_instant
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.store.reading.snapshot import SHOWN_BYTES

_SHOWN_CHARACTERS = SHOWN_BYTES // 4


class Unreadable:
    """A line that isn't a job.

    `line`    its number in the file, where the header is line 1
    `reason`  why it isn't a job
    `text`    how it begins: at most 200 characters, before control characters are escaped
    """

    __slots__ = ("line", "reason", "text")

    def __init__(self, line: int, reason: str, beginning: bytes) -> None:
        self.line = line
        self.reason = reason
        text = beginning[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
        self.text = printable(text[:_SHOWN_CHARACTERS])

    def as_dict(self) -> dict[str, object]:
        """Return `line`, `reason` and `text` as a dict."""
        return {"line": self.line, "reason": self.reason, "text": self.text}


def reason(line: bytes, length: int, job_line: int) -> str:
    r"""Return why a line, `length` bytes long, isn't a job.

    `line` may be only the beginning if the line is too long for a row. `job_line` is the number in
    the file of the line whose job has the same id: that is the reason if there is no other.

    >>> reason(b"a\tgreet\t{}\tdone\t5\t7\t0\t\t", 22, 0)
    'its status is not one of pending, processing, completed, failed, cancelled'
    """
    if length > LONGEST_ROW_BYTES:
        return f"it has {length} bytes; a row may have at most {LONGEST_ROW_BYTES}"
    if b"\0" in line:
        return "it has NUL bytes"
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "it is not UTF-8"
    columns = text.removesuffix("\r").split("\t", 7)
    if len(columns) < 7:
        return "it has fewer than nine columns separated by tabs"
    job_id, job_type, payload, status, created_at, run_at, attempts = columns[:7]
    if not is_id(job_id):
        return "its id is not 1 to 64 characters from A-Z a-z 0-9 . _ -"
    if not job_type:
        return "its type is empty"
    if status not in STATUSES:
        return f"its status is not one of {', '.join(STATUSES)}"
    for name, instant in (("created_at", created_at), ("run_at", run_at)):
        if parse_instant(instant) is None:
            return f"its {name} is not a number of at most 12 digits"
    if len(attempts) > 9 or not (attempts or "0").isdigit() or not attempts.isascii():
        return "its attempts are not a number of at most 9 digits"
    try:
        decode_json(payload or "{}")
    except ValueError as e:
        return f"its payload is not JSON: {printable(str(e))[:100]}"
    return f"line {job_line} has a job with the same id"
