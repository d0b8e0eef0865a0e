"""Why a job isn't running, in one sentence, and the command that changes that."""

from __future__ import annotations

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.states import (
    DELAYED,
    DIED,
    PENDING,
    PROCESSING,
    is_moved,
    is_moving,
    is_to_stop,
    move_address,
)
from dbbasic_queue.monitoring.durations import ago, duration, number_of
from dbbasic_queue.monitoring.known_types import KnownTypes
from dbbasic_queue.monitoring.summary import due_at
from dbbasic_queue.monitoring.verdict import command, holder_of, quiet_seconds, running_since
from dbbasic_queue.store.pass_log import parse_types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.protocol import Store

_SHOWN = 3


class Reason:
    """Why a job isn't running.

    `word` is one of running, stopping, lost, finished, moved, paused, retry, delayed, later, limit,
    busy, handler, next, stalled. `text` is a sentence for people. `command` is what to run next, ""
    if nothing is to be done.
    """

    __slots__ = ("command", "text", "word")

    def __init__(self, word: str, text: str, command: str = "") -> None:
        self.word = word
        self.text = text
        self.command = command


def why(store: Store, row: Row, now: float) -> Reason:
    """Return why a job isn't running, or that it is. `now` is in Unix seconds.

    Acquires the lock for a moment, to find out which passes are alive.
    """
    state = row.state
    if state.status == PROCESSING:
        return _processing(store, row, now)
    if is_moving(state) or is_moved(state):
        return _moving(state)
    if state.status != PENDING:
        next_ = "" if state.status == "completed" else command("requeue", row.id)
        again = ": it runs again if you requeue it" if next_ else ""
        return Reason("finished", f"it is {state.status}{again}", next_)
    if address := store.moved_to():
        return Reason(
            "moved",
            f"the queue was moved to {printable(address)}: move it there, too",
            command("move", "--to", address),
        )
    if (reason := _paused(store, row)) is not None:
        return reason
    if state.run_at > now:
        return _not_due(row, now)
    return _due(store, row, now)


def _moving(state: State) -> Reason:
    address = unescape(move_address(state.error))
    next_ = command("move", "--to", address)
    if is_moved(state):
        text = f"it was moved to {printable(address)}, and is kept here until that move is finished"
        return Reason("moved", text, next_)
    return Reason(
        "moved",
        f"it is on its way to {printable(address)}, and that move isn't finished: if it was "
        "interrupted, run it again",
        next_,
    )


def _processing(store: Store, row: Row, now: float) -> Reason:
    live, _ = store.running()
    holder = holder_of(row, live)
    if holder is None:
        return _lost(store, row, live, now)
    where = f"in process {holder.pid}"
    if is_to_stop(row.state):
        return Reason(
            "stopping", f"it is running {where}, and was asked to stop", f"kill -INT {holder.pid}"
        )
    if holder.parallel > 1:
        return Reason("running", f"it is running {where}, with others")
    return Reason("running", f"it has been running for {duration(now - holder.listed_at)} {where}")


def _lost(store: Store, row: Row, live: Sequence[LivePass], now: float) -> Reason:
    ended = store.passes()
    quiet, is_stalled = quiet_seconds(ended, row, now)
    if is_stalled and not live:
        return Reason("lost", f"its pass died, and {_since(ended, quiet)}", "dbbasic-queue doctor")
    known = KnownTypes(live, ended, now)
    if not known.has_handler(row.type):
        complaint = known.complaint(row.type)
        return Reason("lost", f"its pass died, and {complaint}: one that has recovers it")
    return Reason("lost", "its pass died; the next pass recovers it")


def _paused(store: Store, row: Row) -> Reason | None:
    paused = store.paused()
    if ALL in paused:
        return Reason("paused", "everything is paused", "dbbasic-queue resume")
    if row.type in paused:
        text = f"jobs of type {printable(row.type)} are paused"
        return Reason("paused", text, command("resume", row.type))
    return None


def _not_due(row: Row, now: float) -> Reason:
    state = row.state
    when = ago(now - state.run_at)
    run_now = command("run-now", row.id)
    if state.error.startswith(DELAYED):
        reason = printable(state.error.removeprefix(DELAYED).removeprefix(": "))
        why_delayed = f" ({reason})" if reason else ""
        return Reason(
            "delayed", f"its handler has put it off: it is due {when}{why_delayed}", run_now
        )
    if state.error.startswith(DIED):
        return Reason(
            "retry", f"its pass died in attempt {state.attempts}; it is tried again {when}", run_now
        )
    if state.attempts and state.error:
        return Reason(
            "retry", f"attempt {state.attempts} failed; it is tried again {when}", run_now
        )
    return Reason("later", f"it is due {when}", run_now)


def _due(store: Store, row: Row, now: float) -> Reason:
    live, processing = store.running()
    ended = store.passes()
    able = [found for found in live if _runs(found.types, row.type)]
    if able:
        return _waits_for_live_pass(row, able, live, processing, now)
    known = KnownTypes(live, ended, now)
    if not known.has_handler(row.type):
        return Reason("handler", known.complaint(row.type), command("list", "--type", row.type))
    quiet, is_stalled = quiet_seconds(ended, row, now)
    if is_stalled:
        return Reason(
            "stalled",
            f"it has been due for {duration(now - due_at(row))}, and {_since(ended, quiet)}",
            "dbbasic-queue doctor",
        )
    last = f"the last one ended {ago(now - ended[-1].ended_at)}" if ended else "none has ended yet"
    return Reason("next", f"the next pass runs it ({last})")


def _since(ended: Sequence[EndedPass], quiet: float) -> str:
    since = f"no pass has ended for {duration(quiet)}" if ended else "no pass has ended yet"
    return f"{since}: does cron run, and does its line work?"


def _runs(types: str, job_type: str) -> bool:
    """Return whether a pass runs jobs of a type; True if its types are unknown."""
    return not types or not parse_types(types).keys().isdisjoint((job_type, ALL))


def _waits_for_live_pass(
    row: Row,
    able: Sequence[LivePass],
    live: Sequence[LivePass],
    processing: Sequence[Row],
    now: float,
) -> Reason:
    limits = [parse_types(found.types).get(row.type) for found in able]
    running = [other for other in processing if holder_of(other, live) is not None]
    of_type = [other for other in running if other.type == row.type]
    known = [limit for limit in limits if limit is not None]
    if known and len(of_type) >= min(known):
        limit = number_of(min(known), "job", "jobs")
        return Reason(
            "limit",
            f"its type runs at most {limit} at a time, and {_names(of_type)} "
            f"{'is' if len(of_type) == 1 else 'are'} running",
            command("show", of_type[0].id),
        )
    if running:
        first = min(running, key=lambda other: _started_at(other, live, now))
        started_at = _started_at(first, live, now)
        return Reason(
            "busy",
            f"it waits until a pass is free: {number_of(len(running), 'job is', 'jobs are')} "
            f"running, {first.id} for {duration(now - started_at)}",
            command("show", first.id),
        )
    return Reason("next", "a pass is running, and starts it now")


def _names(rows: Sequence[Row]) -> str:
    """Return the ids of the first jobs, and how many others there are."""
    names = [row.id for row in rows[:_SHOWN]]
    others = len(rows) - len(names)
    last = number_of(others, "other", "others") if others else names.pop()
    return f"{', '.join(names)} and {last}" if names else last


def _started_at(row: Row, live: Sequence[LivePass], now: float) -> float:
    since = running_since(holder_of(row, live))
    return now if since is None else since
