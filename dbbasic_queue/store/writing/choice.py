"""The jobs that a rewrite changes: chosen without the lock, checked under it.

Reading a long queue takes seconds, so it is read before the lock is acquired. Under the lock, only
new jobs and jobs that have changed since then are checked.
"""

from __future__ import annotations

from dbbasic_queue.model.rows import has_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.reading.view import View

    Pick = Callable[[Row, bytes], bytes | None]
    """Given a job's row and its line, returns the bytes to keep for it; None if it isn't wanted."""


class Choice:
    """The chosen jobs: `picked` maps the number of each one's row to what `pick` has returned."""

    def __init__(self, view: View, pick: Pick) -> None:
        """Remember the jobs as they are in `view`, which is up to date. `read` then chooses."""
        self.picked: dict[int, bytes] = {}
        self._pick = pick
        self._view = view.snapshot()
        self._count = len(view.when)

    def read(self) -> None:
        """Choose from all remembered jobs. Needs no lock, and may take seconds."""
        for number, line, row in self._view.jobs():
            picked = self._pick(row, line)
            if picked is not None:
                self.picked[number] = picked

    def update(self, view: View, *, add: bool) -> bool:
        """Drop the chosen jobs that have changed since.

        With `add`, then choose those changed and new jobs that are wanted now. Call it under the
        lock, with an up-to-date `view`. Returns False, and does nothing, if the file was replaced:
        then nobody can tell what has changed.
        """
        if view.generation != self._view.generation:
            return False
        before, index = self._view.records, view.index
        changed = {index.get(key) for key, s in view.records.items() if before.get(key) != s}
        for number in changed.union(range(self._count, len(view.when))):
            if number is None:
                continue  # the row is gone
            self.picked.pop(number, None)
            if add and (row := view.row(number)) and has_json(row):
                picked = self._pick(row, view.current_line(view.line(number)))
                if picked is not None:
                    self.picked[number] = picked
        return True
