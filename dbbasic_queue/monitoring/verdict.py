"""Whether the queue does its work: `running`, `idle` or `stalled`, and why.

**Stalled** means: a job is due or has lost its pass, no pass is alive, and the last pass ended
longer ago than twice the longest pause between two of the last ten passes, and at least two
minutes. So a queue whose cron line runs every hour isn't stalled between two passes, and one whose
line runs every minute is stalled two minutes after the last one. A pause is the time from the end
of a pass to the start of the next one. The longest is taken, not the mean: with two programs in the
crontab, every other pause is short. If fewer than three passes have ended, an hour is assumed; if
none has, two minutes are counted from when the first job was due.
"""

from __future__ import annotations

from itertools import pairwise

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.monitoring.durations import ago, duration, number_of
from dbbasic_queue.monitoring.summary import due_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.monitoring.summary import Summary
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.pass_log import EndedPass

    Word = Literal["running", "idle", "stalled", "moved"]

LEAST_SECONDS = 120.0
"""A queue isn't stalled before its last pass ended this long ago."""
UNKNOWN_PAUSE_SECONDS = 3600.0
"""the pause between passes that is assumed if too few have ended so far"""
_PASSES = 10
_FEW = 3
"""Fewer passes than this don't show how long a pause is: they may be of two programs."""
_LONG_SECONDS = 600.0
"""A job that runs longer than this, while others are due, is mentioned."""


class Verdict:
    """One line about the queue.

    `word`     running, idle, stalled or moved
    `text`     the rest of the sentence, for people
    `command`  the command to run next, "" if none is needed
    """

    __slots__ = ("command", "text", "word")

    def __init__(self, word: Word, text: str, command: str = "") -> None:
        self.word = word
        self.text = text
        self.command = command

    def __str__(self) -> str:
        return f"{self.word}: {self.text}"


def command(*words: str) -> str:
    """Return a command of this program as a person can paste it into a shell.

    >>> command("resume", "a; b"), command("show", "-x")
    ("dbbasic-queue resume 'a; b'", 'dbbasic-queue show -- -x')
    """
    from shlex import quote

    verb, *rest = map(printable, words)
    if rest and rest[0].startswith("-") and len(rest) == 1:
        rest.insert(0, "--")  # an id, or a type
    return " ".join(["dbbasic-queue", verb, *map(quote, rest)])


def longest_pause(ended: Sequence[EndedPass]) -> float | None:
    """Return the longest pause between the last ten passes, in seconds; None for too few."""
    last = ended[-_PASSES:]
    if len(last) < _FEW:
        return None
    pauses = [after.ended_at - after.seconds - before.ended_at for before, after in pairwise(last)]
    return max(0.0, *pauses)


def patience(ended: Sequence[EndedPass]) -> float:
    """Return how many seconds after the last pass a queue with due jobs counts as stalled."""
    pause = longest_pause(ended) if ended else 0.0
    return max(2 * (UNKNOWN_PAUSE_SECONDS if pause is None else pause), LEAST_SECONDS)


def quiet_seconds(ended: Sequence[EndedPass], first: Row | None, now: float) -> tuple[float, bool]:
    """Return for how long no pass has worked on the queue, and whether that is too long.

    `first` is the job that has been due for the longest time. No pass is alive.
    """
    if first is None:
        return 0.0, False
    since = ended[-1].ended_at if ended else due_at(first)
    quiet = max(now - since, 0.0)
    return quiet, quiet > patience(ended)


def judge(
    summary: Summary,
    live: Sequence[LivePass],
    running: Sequence[Row],
    ended: Sequence[EndedPass],
    now: float,
    moved_to: str = "",
) -> Verdict:
    """Return the verdict on a queue at the instant `now`, in Unix seconds.

    `live` are the passes that are alive, `running` the jobs that are processing, and `ended` the
    passes that have ended, the last one last. `moved_to` is the address that the queue was moved
    to, if it was.
    """
    if moved_to:
        return _moved(summary, moved_to)
    due = number_of(summary.due, "job is due", "jobs are due")
    if live:
        return _with_live_pass(summary, live, running, now, due)
    waiting = [due] if summary.due or not running else []
    if running:
        waiting.append(number_of(len(running), "job has lost its pass", "jobs have lost theirs"))
    first = min([*filter(None, [summary.first_due]), *running], key=due_at, default=None)
    quiet, is_stalled = quiet_seconds(ended, first, now)
    if is_stalled and ended:
        return Verdict(
            "stalled",
            f"{' and '.join(waiting)}, and no pass has ended for {duration(quiet)}: does cron run, "
            "and does its line work?",
            "dbbasic-queue doctor",
        )
    if is_stalled:
        return Verdict(
            "stalled",
            f"{' and '.join(waiting)}, the first one for {duration(quiet)}, and no pass has ended "
            "yet: is there a crontab line?",
            "dbbasic-queue crontab --help",
        )
    if first is not None:
        last = f"the last one ended {ago(now - ended[-1].ended_at)}" if ended else "none has ended"
        does = "runs" if summary.due else "recovers"
        them = "it" if summary.due + len(running) == 1 else "them"
        return Verdict("idle", f"{' and '.join(waiting)}: the next pass {does} {them} ({last})")
    return _nothing_due(summary, now)


def _moved(summary: Summary, moved_to: str) -> Verdict:
    text = f"this queue was moved to {moved_to}"
    if not (count := summary.counts[PENDING]):
        return Verdict("moved", text)
    added = number_of(count, "job has been added since", "jobs have been added since")
    return Verdict("moved", f"{text}; {added}", command("move", "--to", moved_to))


def _with_live_pass(
    summary: Summary, live: Sequence[LivePass], running: Sequence[Row], now: float, due: str
) -> Verdict:
    if not running and not summary.due:
        passes = number_of(len(live), "worker waits", "workers wait")
        verdict = _nothing_due(summary, now)
        return Verdict("idle", f"{passes}; {verdict.text}", verdict.command)
    text = f"{number_of(len(running), 'job is running', 'jobs are running')}, {due}"
    if summary.due:
        oldest, since = _longest_running(live, running)
        if oldest is not None and now - since > _LONG_SECONDS:
            text += f"; {oldest.id} has been running for {duration(now - since)}"
            return Verdict("running", text, command("show", oldest.id))
    return Verdict("running", text)


def _longest_running(live: Sequence[LivePass], running: Sequence[Row]) -> tuple[Row | None, float]:
    """Return the job that has been running for the longest time, and when it started."""
    found: tuple[Row | None, float] = None, 0.0
    for row in running:
        since = running_since(holder_of(row, live))
        if since is not None and (found[0] is None or since < found[1]):
            found = row, since
    return found


def holder_of(row: Row, live: Sequence[LivePass]) -> LivePass | None:
    """Return the live pass that has claimed a running job; None if that pass is dead."""
    claim = row.id, row.state.attempts
    return next((found for found in live if claim in found.claims), None)


def running_since(holder: LivePass | None) -> float | None:
    """Return when a live pass started its job, in Unix seconds; None if that is unknown.

    That is so for a pass that runs several coroutines, and for one that is dead.
    """
    return holder.listed_at if holder is not None and holder.parallel == 1 else None


def _nothing_due(summary: Summary, now: float) -> Verdict:
    if summary.paused:
        waiting = number_of(summary.paused, "job waits", "jobs wait")
        types = "everything is" if ALL in summary.paused_types else "its type is"
        if summary.paused > 1 and ALL not in summary.paused_types:
            types = "their types are"
        return Verdict(
            "idle", f"nothing is due; {waiting} because {types} paused", "dbbasic-queue resume"
        )
    if summary.next_at is not None:
        return Verdict(
            "idle", f"nothing is due; the next job is due in {duration(summary.next_at - now)}"
        )
    return Verdict("idle", "nothing is due")
