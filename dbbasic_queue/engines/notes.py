"""What the attempts of a pass leave behind, on an engine: history, output and progress.

The rows are the same text as in the files of a text file queue. Those of the history are kept in
memory until there are 512 of them, the oldest is a second old, or the pass waits for a job: a kill
loses them, as it does there.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dbbasic_queue.errors import StoreError
from dbbasic_queue.store import output, progress
from dbbasic_queue.store.history import encode_row, format_instant
from dbbasic_queue.store.worker import worker_name

if TYPE_CHECKING:
    from dbbasic_queue.engines.backend import Backend
    from dbbasic_queue.model.rows import Row

_MOST_ROWS = 512
_LONGEST_DELAY_SECONDS = 1.0


class _Notes:
    """Keeps the first error until it is taken."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._error: OSError | None = None

    def take_error(self) -> OSError | None:
        """Return why something was lost, or None. The same failure is returned once."""
        taken, self._error = self._error, None
        return taken


class EngineHistory(_Notes):
    """Receives the finished attempts of a pass. Two threads of the pass may use it at once."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._lines: list[str] = []
        self._oldest_at = 0.0
        self._worker = worker_name()
        self._mutex = threading.Lock()

    def note(
        self,
        row: Row,
        outcome: str,
        error: str,
        ended_at: float,
        seconds: float | None,
        traceback: str = "",
        exception: str = "",
        output_offset: int | None = None,
    ) -> None:
        """Add a finished attempt."""
        ended = format_instant(ended_at)
        line = encode_row(
            row, outcome, error, ended, seconds, traceback, self._worker, exception, None
        )
        if not self._lines:
            self._oldest_at = ended_at
        self._lines.append(line)
        age = ended_at - self._oldest_at  # below 0 if the clock was set back
        if len(self._lines) >= _MOST_ROWS or not 0 <= age < _LONGEST_DELAY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the attempts that are still in memory only; they are lost if that fails."""
        if not self._lines:
            return
        with self._mutex:
            lines = self._lines[:]
            del self._lines[: len(lines)]
        try:
            self._backend.add_history(lines)
        except StoreError as e:
            self._error = e


class EngineOutput(_Notes):
    """Receives what the jobs of a pass have printed."""

    def keep(self, row: Row, ended_at: float, printed: bytes, left_out: int) -> None:
        """Keep what an attempt has printed."""
        line = output.encode_row(row, ended_at, printed, left_out)
        try:
            self._backend.put_output(row.id, row.state.attempts, line)
        except StoreError as e:
            self._error = e


class EngineProgress(_Notes):
    """Receives how far the jobs of a pass are, also in a process that it has forked for a job."""

    def note(
        self,
        job_id: str,
        attempt: int,
        started_at: float,
        at: float,
        done: float,
        total: float | None,
        note: str,
    ) -> None:
        """Keep how far an attempt is."""
        line = progress.encode_row(job_id, attempt, started_at, at, done, total, note)
        try:
            self._backend.put_progress(job_id, line)
        except StoreError as e:
            self._error = e

    def forget(self, row: Row, at: float) -> None:
        """End what an attempt has reported: its number may be used again."""
        try:
            self._backend.put_progress(row.id, None)
        except StoreError as e:
            self._error = e
