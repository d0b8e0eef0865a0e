"""Lines of the queue's file that are not jobs, and why; loaded when a person asks for them."""

from __future__ import annotations

from dbbasic_queue.model.escaping import decode_json, escape
from dbbasic_queue.model.rows import LONGEST_ROW, is_id, parse_instant
from dbbasic_queue.model.states import STATUSES

_SHOWN = 200
"""Characters of a line's beginning that are shown."""

SHOWN_BYTES = 4 * _SHOWN


class Unreadable:
    """A line that isn't a job: its number in the file, why, and how it begins (escaped)."""

    __slots__ = ("line", "reason", "text")

    def __init__(self, line: int, reason: str, beginning: bytes) -> None:
        self.line = line
        self.reason = reason
        text = beginning[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
        self.text = "".join(c if c == "\\" else escape(c) for c in text[:_SHOWN])

    def as_dict(self) -> dict[str, object]:
        """Return the three as a dict."""
        return {"line": self.line, "reason": self.reason, "text": self.text}


def reason(line: bytes, length: int, job_line: int) -> str:
    """Return why a line, `length` bytes long, is not a job.

    `job_line` is the number of the line that has the job with this id. Of a line that is too long,
    `line` is the beginning.
    """
    if length > LONGEST_ROW:
        return f"it has {length} bytes, and a row may have {LONGEST_ROW}"
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
        return f"its payload is not JSON: {escape(str(e))[:100]}"
    return f"line {job_line} has the job with this id"
