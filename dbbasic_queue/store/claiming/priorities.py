"""The order in which due jobs are claimed if a handler of the pass has a priority.

A pass without priorities needs neither the jobs' types nor this module: it keeps the numbers of the
due rows in one array, in the order of `run_at`.

With priorities, a pass also takes jobs that become due while it runs: a password mail doesn't wait
for the newsletter. Only those count that have a higher priority than a job that is still to be
claimed. So the pass still ends when the jobs are done that were due when it looked last.
"""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dbbasic_queue.store.reading.view import View

_READ_AHEAD_BYTES = 1 << 16


class ByPriority:
    """Numbers of due rows, used like an array in which the row to claim next comes last.

    `priority_of_type` returns the priority of a job type. `newly_due` finds rows that become due
    later.
    """

    def __init__(
        self, view: View, priority_of_type: Callable[[str], int], newly_due: NewlyDue
    ) -> None:
        self._view = view
        self._priority_of_type = priority_of_type
        self._newly_due = newly_due
        self._numbers: dict[int, array[int]] = {}
        """priority -> the due rows with it, the next one last; no array is empty"""

    @property
    def until(self) -> float:
        """Until when a row must have become due to be here, in Unix seconds."""
        return self._newly_due.until

    def __len__(self) -> int:
        return sum(map(len, self._numbers.values()))

    def pop(self) -> int:
        """Remove and return the number of the row to claim next."""
        highest = max(self._numbers)
        numbers = self._numbers[highest]
        number = numbers.pop()
        if not numbers:
            del self._numbers[highest]
        return number

    def extend(self, numbers: Iterable[int]) -> None:
        """Add rows; of those with the same priority, the last one is claimed next."""
        for priority, added in self._group(numbers).items():
            self._numbers.setdefault(priority, array("q")).extend(added)

    def add_newly_due(self, now: float, waiting: Iterable[int]) -> None:
        """Add rows that have become due, if their priority is higher than that of a row here.

        They are claimed after those of the same priority that are here already. `waiting` are the
        priorities of due rows that aren't here, because their types have reached their concurrency.
        The view must be up to date.
        """
        lowest = min((*self._numbers, *waiting), default=None)
        if lowest is None:
            return
        for priority, added in self._group(self._newly_due.take(now)).items():
            if priority > lowest:
                self._numbers[priority] = added + self._numbers.get(priority, array("q"))

    def _group(self, numbers: Iterable[int]) -> dict[int, array[int]]:
        """Return priority -> rows with it, in the given order."""
        numbers = list(numbers)
        types: dict[int, bytes] = {}
        for number in sorted(numbers):  # in the order of the file, because of the reading ahead
            columns = self._view.line(number, _READ_AHEAD_BYTES).split(b"\t", 2)
            types[number] = columns[1] if len(columns) > 1 else b""
        priorities = {
            job_type: self._priority_of_type(job_type.decode("utf-8", "replace"))
            for job_type in set(types.values())
        }
        groups: dict[int, array[int]] = {}
        for number in numbers:
            groups.setdefault(priorities[types[number]], array("q")).append(number)
        return groups


class NewlyDue:
    """Finds the rows that have become due since a search for the rows that were due at `now`.

    `rows` is how many rows that search has seen.
    """

    def __init__(self, view: View, now: float, rows: int) -> None:
        self.until = now
        """all rows that were due at this instant have been found, in Unix seconds"""
        self._view = view
        self._rows = rows
        self._pending_count = view.pending_count
        self._next_at = view.next_after(now)
        """no other row becomes due earlier"""

    def take(self, now: float) -> list[int]:
        """Return the rows that have become due since the last call, the one to claim next last.

        The view must be up to date, and its numbering must not have changed.
        """
        when = self._view.when
        again = self._view.pending_since(self._pending_count)
        changed = set(range(len(when)) if again is None else again)
        changed.update(range(self._rows, len(when)))
        self._rows, self._pending_count = len(when), self._view.pending_count
        due = {number for number in changed if when[number] <= now}
        self._next_at = min([self._next_at, *(when[number] for number in changed - due)])
        if self._next_at <= now:
            due.update(number for number, at in enumerate(when) if self.until < at <= now)
            self._next_at = self._view.next_after(now)
        self.until = max(self.until, now)
        return sorted(due, key=lambda number: (when[number], number), reverse=True)
