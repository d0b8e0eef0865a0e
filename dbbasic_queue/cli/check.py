"""`dbbasic-queue check`: one line, and the exit codes of a Nagios plug-in.

https://www.monitoring-plugins.org/doc/guidelines.html: OK 0, WARNING 1, CRITICAL 2, UNKNOWN 3;
after a `|`, what was measured.
"""

from __future__ import annotations

import time

from dbbasic_queue.cli.messages import reason
from dbbasic_queue.cli.queues import existing_queue
from dbbasic_queue.errors import QueueError
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import FAILED
from dbbasic_queue.monitoring.durations import duration, number_of
from dbbasic_queue.monitoring.status import Status
from dbbasic_queue.monitoring.summary import waited_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

_OK, _WARNING, _CRITICAL, _UNKNOWN = range(4)
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def run(arguments: Namespace) -> int:
    """Print the line; return the exit code."""
    try:
        with existing_queue(arguments, even_if_moved=True) as queue:
            status = Status(queue.store, time.time())
    except (QueueError, OSError) as e:
        return _say(_UNKNOWN, reason(e))
    problems = _problems(arguments, status)
    code = max((code for code, _ in problems), default=_OK)
    texts = [text for _, text in sorted(problems, reverse=True)] or [str(status.verdict)]
    return _say(code, "; ".join(texts), f" | {_measured(status)}")


def _say(code: int, text: str, measured: str = "") -> int:
    text = printable(text).replace("|", "/")  # a | would begin what was measured
    print(f"{_WORDS[code]}: {text}{measured}")
    return code


def _problems(arguments: Namespace, status: Status) -> list[tuple[int, str]]:
    """Return what is wrong: its exit code, and a text."""
    found = []
    first, now = status.summary.first_due, status.now
    if status.verdict.word in ("stalled", "moved"):
        found.append((_CRITICAL, str(status.verdict)))
    elif status.full_disk:
        found.append((_CRITICAL, status.full_disk))
    elif status.move is not None:  # it may still be running
        found.append((_WARNING, status.move.text()))
    waited = waited_seconds(first, now) if first else 0.0
    if arguments.max_wait is not None and first and waited > arguments.max_wait:
        found.append((_CRITICAL, f"{first.id} has been due for {duration(waited)}"))
    failed = status.summary.counts[FAILED]
    if arguments.max_failed is not None and failed > arguments.max_failed:
        found.append((_WARNING, number_of(failed, "job is failed", "jobs are failed")))
    most = arguments.max_age_of_last_pass
    if most is not None and not status.live:
        if not status.ended:
            found.append((_CRITICAL, "no pass has ended yet"))
        elif now - status.ended[-1].ended_at > most:
            ago = duration(now - status.ended[-1].ended_at)
            found.append((_CRITICAL, f"the last pass ended {ago} ago"))
    return found


def _measured(status: Status) -> str:
    summary = status.summary
    first = summary.first_due
    waited = waited_seconds(first, status.now) if first else 0.0
    parts = [f"{name}={count}" for name, count in summary.counts.items()]
    return " ".join([*parts, f"due={summary.due}", f"oldest_due={waited:.0f}s"])
