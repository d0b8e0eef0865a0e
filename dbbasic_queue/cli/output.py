"""For the command `output`: what a job has printed, safe for a terminal, or why it isn't there."""

from __future__ import annotations

import time

from dbbasic_queue.cli.messages import INTERRUPTED, complain
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.states import FINISHED, PROCESSING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.jobqueue import Queue

_POLL_SECONDS = 0.5


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


def follow(queue: Queue, job_id: str) -> int:
    """Print what each attempt of a job prints, as soon as it has ended, until the job is finished.

    Returns the exit code.
    """
    if not is_id(job_id):
        return complain(f"there is no job {job_id}")
    seen: set[tuple[int, float]] = set()
    """number and end of the attempts in the history"""
    shown: set[tuple[int, float]] = set()
    """those whose output was printed"""
    try:
        while True:
            job = queue.get_job(job_id)  # first: after its end, nothing more is printed
            for attempt in queue.history(job_id):
                key = attempt["attempt"], attempt["ended_at"]
                if key in seen:
                    continue
                seen.add(key)
                # After a requeue, a number is used again: this is the latest attempt with it.
                found = queue.store.output(job_id, attempt["attempt"])
                if found is None or (found.attempt, found.ended_at) in shown:
                    continue
                shown.add((found.attempt, found.ended_at))
                text = safe(unescape(found.text))
                print(text, end="" if text.endswith("\n") else "\n", flush=True)
            if job is None:
                return complain(f"there is no job {job_id}")
            if job["status"] in FINISHED:
                return 0
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        return INTERRUPTED
