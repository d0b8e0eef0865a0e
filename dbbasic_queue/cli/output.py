"""For the command `output`: what a job has printed, safe for a terminal, or why it isn't there."""

from __future__ import annotations

from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import PROCESSING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.jobqueue import Queue


def safe(text: str) -> str:
    r"""Return text for a terminal: control characters are escaped, except line feeds and tabs.

    A carriage return before a line feed is left out.

    >>> safe("one\ttwo\r\n\x1b[31m")
    'one\ttwo\n\\x1b[31m'
    """
    lines = text.split("\n")
    return "\n".join(
        "\t".join(map(printable, line.removesuffix("\r").split("\t"))) for line in lines
    )


def why_not(queue: Queue, job_id: str, attempt: int | None) -> str:
    """Return why there is no output of a job, or of one of its attempts."""
    job, attempts = queue.get_job(job_id), queue.history(job_id)
    if job is None and not attempts:
        return f"there is no job {job_id}"
    what = f"job {job_id}" if attempt is None else f"attempt {attempt} of job {job_id}"
    if attempt is not None:
        attempts = [found for found in attempts if found["attempt"] == attempt]
    if any(found["output_offset"] is not None for found in attempts):
        return f"the output of {what} was rotated away, or deleted"
    if job is not None and job["status"] == PROCESSING and attempt in (None, job["attempts"]):
        return f"{what} is running: its output is kept when the attempt has ended"
    if not attempts:
        return (
            f"there is no output of {what}: it has not run, or the history doesn't go back so far"
        )
    return (
        f"there is no output of {what}: it has printed nothing, or ran inside its pass (only what "
        "a handler with a timeout, or a Command, prints is kept)"
    )
