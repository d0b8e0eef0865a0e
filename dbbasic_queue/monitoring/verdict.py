"""Whether the queue does its work: `running`, `idle` or `stalled`, and why.

**Stalled** means: a job is due or has lost its pass, no pass is alive, and the last pass ended
longer ago than twice the longest pause between two of the last ten passes, and at least two
minutes. So a queue whose cron line runs every hour isn't stalled between two passes, and one whose
line runs every minute is stalled two minutes after the last one. `pauses` has the details. If no
pass has ended, two minutes are counted from when the first job was due.

A queue whose due jobs no pass has a handler for isn't stalled: the verdict's text says what is
wrong.
"""

from __future__ import annotations

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.monitoring.durations import ago, duration, number_of
from dbbasic_queue.monitoring.known_types import KnownTypes
from dbbasic_queue.monitoring.pauses import patience
from dbbasic_queue.monitoring.summary import due_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.monitoring.moves import Move
    from dbbasic_queue.monitoring.summary import Summary
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.pass_log import EndedPass

    Word = Literal["running", "idle", "stalled", "moved"]

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
    full_disk: str = "",
) -> Verdict:
    """Return the verdict on a queue at the instant `now`, in Unix seconds.

    `live` are the passes that are alive, `running` the jobs that are processing, and `ended` the
    passes that have ended, the last one last. `full_disk` is a sentence if the disk is full: that
    is named before the queue is stalled, too.
    """
    cause = f"{full_disk}: free some space" if full_disk else ""
    verdict = _judge(summary, live, running, ended, now, cause)
    if cause and verdict.word != "stalled":
        return Verdict(verdict.word, f"{verdict.text}; {cause}", command("doctor"))
    return verdict


def _judge(
    summary: Summary,
    live: Sequence[LivePass],
    running: Sequence[Row],
    ended: Sequence[EndedPass],
    now: float,
    cause: str,
) -> Verdict:
    """Return the verdict; `cause` is why the queue is stalled if it is, "" if that is unknown."""
    due = number_of(summary.due, "job is due", "jobs are due")
    lost = [row for row in running if holder_of(row, live) is None]
    left = _LeftAlone(summary, lost, KnownTypes(live, ended, now), now)
    if live:
        return _with_live_pass(summary, live, running, now, due, left)
    waiting = [due] if summary.due or not running else []
    if running:
        waiting.append(number_of(len(running), "job has lost its pass", "jobs have lost theirs"))
    first = min([*filter(None, [summary.first_due]), *running], key=due_at, default=None)
    quiet, is_stalled = quiet_seconds(ended, first, now)
    if is_stalled and ended:
        return Verdict(
            "stalled",
            f"{' and '.join(waiting)}, and no pass has ended for {duration(quiet)}: "
            f"{cause or 'does cron run, and does its line work?'}",
            command("doctor"),
        )
    if is_stalled:
        return Verdict(
            "stalled",
            f"{' and '.join(waiting)}, the first one for {duration(quiet)}, and no pass has ended "
            f"yet: {cause or 'is there a crontab line?'}",
            command("doctor") if cause else "dbbasic-queue crontab --help",
        )
    if left.is_all:
        return Verdict("idle", f"{' and '.join(waiting)}, but {left.text}", left.command)
    if first is not None:
        last = f"the last one ended {ago(now - ended[-1].ended_at)}" if ended else "none has ended"
        does = "runs" if summary.due else "recovers"
        them = "it" if summary.due + len(running) == 1 else "them"
        text = f"{' and '.join(waiting)}: the next pass {does} {them} ({last})"
        more = f"; but {left.text}" if left.text else ""
        return Verdict("idle", text + more, left.command)
    return _nothing_due(summary, now)


class _LeftAlone:
    """The types of due and `lost` jobs that a whole pass has left alone because it has no handler.

    A job is lost if its pass died. `text` is a sentence about the type that has waited for the
    longest time, "" if there is none, and `command` shows its jobs. `is_all` is True if none of
    these jobs has another type.
    """

    def __init__(
        self, summary: Summary, lost: Sequence[Row], known: KnownTypes, now: float
    ) -> None:
        waiting = {} if ALL in summary.paused_types else summary.waiting
        due = {t: s for t, s in waiting.items() if s > 0 and t not in summary.paused_types}
        for row in lost:
            due[row.type] = max(due.get(row.type, 0.0), now - due_at(row))
        types = [t for t, s in due.items() if known.was_left_alone(now - s)]
        types = sorted((t for t in types if not known.has_handler(t)), key=lambda t: -due[t])
        self.is_all = bool(types) and len(types) == len(due)
        self.text = self.command = ""
        if types:
            self.text = known.complaint(types[0], len(types) - 1)
            self.command = command("list", "--type", types[0])


def moved_verdict(
    summary: Summary, moved_to: str, running: int, schedules: int, move: Move | None
) -> Verdict:
    """Return the verdict on a queue that was moved to an address, with what is left in it.

    `running` and `schedules` are how many of these it has, and `move` what isn't finished.
    """
    left = [
        number_of(count, f"{noun} {is_there}", f"{noun}s {are_there}")
        for count, noun, is_there, are_there in (
            (summary.counts[PENDING], "job", "is still pending here", "are still pending here"),
            (running, "job", "is running here", "are running here"),
            (move.on_the_way if move else 0, "job", "is on its way", "are on their way"),
            (move.arrived if move else 0, "moved job", "is kept here", "are kept here"),
            (schedules, "schedule", "is left here", "are left here"),
        )
        if count
    ]
    text = f"this queue was moved to {moved_to}"
    if not left:
        return Verdict("moved", text)
    text += f", but not completely: {', '.join(left)} (run the move again)"
    return Verdict("moved", text, command("move", "--to", moved_to))


def with_move(verdict: Verdict, move: Move) -> Verdict:
    """Return the verdict on a queue that is still open, and from which a move isn't finished."""
    text = f"{verdict.text}; but {move.text()}"
    return Verdict(verdict.word, text, command("move", "--to", move.address))


def _with_live_pass(
    summary: Summary,
    live: Sequence[LivePass],
    running: Sequence[Row],
    now: float,
    due: str,
    left: _LeftAlone,
) -> Verdict:
    passes = number_of(len(live), "worker waits", "workers wait")
    if not running and not summary.due:
        verdict = _nothing_due(summary, now)
        return Verdict("idle", f"{passes}; {verdict.text}", verdict.command)
    if not running and left.is_all:
        return Verdict("idle", f"{passes}; {due}, but {left.text}", left.command)
    if not running:
        them = "it" if summary.due == 1 else "them"
        return Verdict("running", f"{due}, and a pass is about to start {them}", left.command)
    text = number_of(len(running), "job is running", "jobs are running")
    if not summary.due:
        return Verdict("running", f"{text}; no other is due")
    oldest, since = _longest_running(live, running)
    if oldest is not None and now - since > _LONG_SECONDS:
        text += f", {due}; {oldest.id} has been running for {duration(now - since)}"
        return Verdict("running", text, command("show", oldest.id))
    if left.text:
        return Verdict("running", f"{text}, {due}; but {left.text}", left.command)
    return Verdict("running", f"{text}, {due}")


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
            "idle", f"nothing is due; {waiting} because {types} paused", command("resume")
        )
    if summary.next_at is not None:
        return Verdict(
            "idle", f"nothing is due; the next job is due in {duration(summary.next_at - now)}"
        )
    return Verdict("idle", "nothing is due")
