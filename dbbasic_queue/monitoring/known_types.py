"""Which job types the passes run, as far as the live ones and the log of ended ones show.

A program that runs once an hour has a handler between its passes, too: a type loses its handler
only if no pass has had one for longer than those that had one usually pause.
"""

from __future__ import annotations

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.monitoring.durations import duration, number_of
from dbbasic_queue.monitoring.pauses import patience
from dbbasic_queue.store.pass_log import parse_types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.pass_log import EndedPass

_SHOWN = 3
_LONG_ENOUGH_SECONDS = 60.0
"""A live pass has left a job alone if it has been due for this long."""


class KnownTypes:
    """What `live` and `ended` passes, the last one last, say about job types at the instant `now`.

    `is_known` is False if there are none, or if one doesn't say which types it runs.
    """

    def __init__(self, live: Sequence[LivePass], ended: Sequence[EndedPass], now: float) -> None:
        self.is_known = bool(live or ended) and all(found.types for found in live)
        self._now = now
        self._last = ended[-1] if ended else None
        self._has_live = bool(live)
        self._live = {name for found in live for name in parse_types(found.types)}
        self._ended: dict[str, list[EndedPass]] = {}
        parsed: dict[str, list[str]] = {}
        for found in ended:
            if found.types not in parsed:
                parsed[found.types] = list(parse_types(found.types))
            for name in parsed[found.types]:
                self._ended.setdefault(name, []).append(found)

    def has_handler(self, job_type: str) -> bool:
        """Return whether some pass runs jobs of a type, or tries to; True if that is unknown."""
        return not self.is_known or any(map(self._is_run, (job_type, ALL)))

    def names(self) -> list[str]:
        """Return the types that have a handler."""
        return sorted(name for name in {*self._live, *self._ended} - {ALL} if self._is_run(name))

    def _is_run(self, name: str) -> bool:
        if name in self._live:
            return True
        if self._last is None or not (ended := self._ended.get(name)):
            return False
        until = self._now if self._has_live else self._last.ended_at
        return until - ended[-1].ended_at <= patience(ended)

    def last_seconds(self, job_type: str) -> float | None:
        """Return how long ago the last pass with a handler ended; None if the log has none."""
        ended = self._ended.get(job_type)
        return self._now - ended[-1].ended_at if ended else None

    def was_left_alone(self, due_at: float) -> bool:
        """Return whether a whole pass has run since a job became due, or one is still alive."""
        last = self._last
        if last is not None and due_at + 1 < last.ended_at - last.seconds:  # in whole seconds
            return True
        return self._has_live and due_at < self._now - _LONG_ENOUGH_SECONDS

    def complaint(self, job_type: str, others: int = 0) -> str:
        """Return that no pass has a handler for the type, for how long, and for which they have.

        That it has none for `others`, that many types, is mentioned, too.
        """
        more = f" and {number_of(others, 'other type', 'other types')}" if others else ""
        text = f"no pass has a handler for {printable(job_type)}{more}"
        if not others and (seconds := self.last_seconds(job_type)) is not None:
            text = f"no pass has had a handler for {printable(job_type)} for {duration(seconds)}"
        names = self.names()
        shown = ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        return f"{text} ({f'they have handlers for {shown}' if names else 'they have none'})"
