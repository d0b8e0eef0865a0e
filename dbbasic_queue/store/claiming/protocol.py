"""What claiming needs of the queue's files. Only type checkers import it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.store.disk.lock import QueueLock
    from dbbasic_queue.store.reading.view import View


class QueueFiles(Protocol):
    """The part of `TextFileStore` that claims, due jobs and recovery use.

    Call `catch_up`, `read_new`, `change` and `try_fold` under the lock. Changes are pairs of a job
    id and the text of the job's new state.
    """

    path: str
    view: View
    lock: QueueLock

    def rescue(self) -> None:
        """Copy rows that other programs have appended to a file after it was replaced."""

    def read_new(self) -> None:
        """Read what others have written, and end a torn last line."""

    def catch_up(self) -> None:
        """Read what others have changed; costs one read if that is nothing."""

    def change(self, changes: list[tuple[bytes, bytes]], *, last: bool = False) -> None:
        """Append new states of jobs to the journal; on the disk on return.

        With `last`, the caller does nothing more under the lock.
        """

    def enqueued_ahead(self, now: float) -> list[tuple[bytes, bytes]]:
        """Return the changes for due jobs that a clock that was ahead has enqueued."""

    def unexplained(
        self, now: float, longest_wait: Callable[[str, int], float]
    ) -> list[tuple[bytes, bytes]]:
        """Return the changes for retries that wait longer than their backoff allows."""

    def is_fold_cheap(self, seconds: float, share: float = 0.0) -> bool:
        """Return whether a fold takes less than this time, or share of the time since the last."""

    def try_fold(self) -> OSError | None:
        """Fold; return the error if that has to wait."""
