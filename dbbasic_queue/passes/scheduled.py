"""Adds the jobs of schedules that have come due, at the start of a pass and while it goes on.

A pass only handles the schedules that its own registry declares. What has to be done is planned
without the lock, and made under it if no other pass has changed the schedules in between.
"""

from __future__ import annotations

from dbbasic_queue import schedules
from dbbasic_queue.errors import StoreError
from dbbasic_queue.passes import log_lines
from dbbasic_queue.store import schedule_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from dbbasic_queue.schedules import Schedule
    from dbbasic_queue.store.protocol import Store

    class Registry(Protocol):
        """The part of a registry of handlers that declares schedules."""

        name: str | None
        schedules: Mapping[str, Schedule]

        def retired(self, names: list[str]) -> list[str]:
            """Return those schedules of its program that the program doesn't declare any more."""


_LOOK_SECONDS = 1.0
"""how often a pass that goes on reads the file again: others may have changed it"""
_TRIES = 100


class Scheduler:
    """The schedules of one pass."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._declared: Mapping[str, Schedule] | None = None
        """the schedules that were declared at the last look; None before the first one"""
        self._looked_at = 0.0
        self._look_again_at = 0.0
        """the first instant that is due, but at most `_LOOK_SECONDS` after the last look"""

    def add_due(self, now: float) -> None:
        """Add the jobs that are due at `now`, and record that; on the disk on return.

        Raises InvalidHandlers, with nothing changed, if a schedule's name belongs to another
        program or its instants can't be computed; StoreError or NotAQueue if the files can't be
        used.
        """
        declared = self._registry.schedules
        if declared is self._declared and self._looked_at <= now < self._look_again_at:
            return
        for _ in range(_TRIES):
            if self._try_to_add(declared, now):
                break
        else:
            raise StoreError(
                f"the schedules were changed by others {_TRIES} times in a row: nothing was added: "
                f"{self._store.path}"
            )
        self._declared = declared

    def _try_to_add(self, declared: Mapping[str, Schedule], now: float) -> bool:
        """Return False if another process has changed the schedules in the meantime."""
        store, program = self._store, self._registry.name
        assert program is not None
        content = store.read_schedules()
        rows = schedule_file.parse(content, store.path)
        # A pass that goes on removes nothing: it may be of an older version of the program.
        only_due = declared is self._declared
        own = [] if only_due else [name for name, row in rows.items() if row.program == program]
        retired = self._registry.retired(own)
        changes = schedules.changes(
            declared, program, rows, now, undeclared=retired, only_due=only_due
        )
        if changes:
            if not store.update_schedules(content, changes):
                return False
            if retired and (log := log_lines.logger()):
                log_lines.schedules_removed(log, retired, program)
            rows |= {change.name: change.row for change in changes if change.row is not None}
        own_next = (rows[name].next for name in declared if name in rows and rows[name].next > now)
        self._looked_at = now
        self._look_again_at = min((now + _LOOK_SECONDS, *own_next))
        return True
