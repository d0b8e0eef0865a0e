"""What a queue and a pass need from a store, whatever keeps the jobs.

`textfile` and `memory` are the stores. Each call is one atomic change or look, for all threads and,
if the store is shared, for all processes.
"""

from __future__ import annotations

from dbbasic_queue.model.records import encode_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from typing import Any, Protocol

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.reading.unreadable import Unreadable

    class Store(Protocol):
        """Where the jobs are kept."""

        path: str
        """the absolute path of the queue's file, or its URL"""
        is_shared: bool
        """whether other processes have the same jobs"""

        @property
        def skipped_history(self) -> Sequence[str]:
            """The start of each line of the history that the last reading skipped."""

        def exists(self) -> bool:
            """Return whether the queue exists. Only `add` creates it."""

        def close(self) -> None:
            """Close all files; the next call opens them again."""

        def add(self, rows: str, own_id: str | None = None) -> None:
            """Add new jobs, given as lines; raises DuplicateJob if a job has the id `own_id`."""

        def find(self, job_id: str) -> Row | None:
            """Return the job's row, or None. The payload's JSON isn't checked."""

        def rows(self, unreadable: list[int] | None = None) -> Iterator[Row]:
            """Yield every job as of the first step; add the lines that aren't jobs to the list."""

        def cancel(self, job_id: str) -> bool:
            """Cancel a pending job."""

        def run_now(self, job_id: str, now: float) -> bool:
            """Make a pending job due."""

        def requeue(
            self,
            now: float,
            *,
            job_id: str | None = None,
            run_at: int | None = None,
            job_type: str | None = None,
        ) -> int:
            """Requeue one job, or all failed ones, or those of a type; return how many."""

        def remove(self, unwanted: Callable[[Row], bool], archive: str | None = None) -> int:
            """Remove the unwanted jobs, except running ones; return how many."""

        def unreadable(self) -> Iterator[Unreadable]:
            """Yield each line that isn't a job."""

        def remove_unreadable(self) -> int:
            """Move the lines that aren't jobs away; return how many."""

        def paused(self) -> frozenset[str]:
            """Return the paused types; "*" means all."""

        def pause(self, job_type: str) -> bool:
            """Pause a type, or all ("*"); False if it was paused already."""

        def resume(self, job_type: str | None) -> bool:
            """End the pause of a type, or every pause; False if there was none."""

        def history(
            self, job_id: str = "", since: float = ..., *, only_errors: bool = False
        ) -> Iterator[Attempt]:
            """Yield the finished attempts, or those of one job."""

        def running(self) -> tuple[list[LivePass], list[Row]]:
            """Return the passes that are alive and the running jobs, as of one instant."""

        def take_skipped(self) -> tuple[int, int, list[int]]:
            """Return what was skipped since the last call: see `textfile`."""

        def has_work(self, now: float, longest_wait: Callable[[str, int], float]) -> bool:
            """Return whether a pass might have something to do."""

        def count_due(self, now: float) -> int:
            """Return how many pending jobs are due, whatever their types."""

        def is_complete(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
            """Return whether no job is running or pending, not counting paused types.

            The jobs in `apart_from`, pairs of path and id, may be running.
            """

        def open_claims(self, terms: Terms, now: float, parallel: int) -> Claims:
            """Return what claims jobs for a pass that runs `parallel` jobs at once."""

    class History(Protocol):
        """Receives the finished attempts of a pass."""

        def note(
            self,
            row: Row,
            outcome: str,
            error: str,
            ended_at: float,
            seconds: float | None,
            traceback: str = "",
        ) -> None:
            """Add a finished attempt."""

        def flush(self) -> None:
            """Write what is in memory."""

        def take_error(self) -> OSError | None:
            """Return why rows were lost, once."""

    class Claims(Protocol):
        """The jobs that one pass has claimed."""

        @property
        def history(self) -> History:
            """Where the finished attempts go."""

        pulled_in: int
        """how many jobs are due early: a clock that was ahead had enqueued them"""
        started_at: float

        def slot_fd(self) -> int:
            """Return the descriptor of the pass's slot, or -1."""

        def take_recovered(self) -> tuple[int, list[Row]]:
            """Return how many jobs were recovered since the last call, and the started ones."""

        def find_due(self, now: float) -> bool:
            """Look for jobs that are due at `now`; False if there are none."""

        def claim(self, most: int) -> list[Claim]:
            """Claim up to `most` due jobs, earliest `run_at` first."""

        def record(self, claim: Claim, state: State) -> State | None:
            """Record an outcome; None, and nothing recorded, if a newer attempt has started."""

        def record_all(self, ended: list[tuple[Claim, State]]) -> list[State | None]:
            """Record several outcomes."""

        def unclaim(self, claims: list[Claim], error: str = "") -> None:
            """Make claimed jobs pending again, their attempts not counted."""

        def is_published(self) -> bool:
            """Return whether the queue's file shows what is running."""

        def publish(self) -> None:
            """Make the queue's file show what is running."""

        def idle(self) -> None:
            """Do what is left to do while no job is due."""

        def check_slot(self) -> None:
            """Raise StoreError if the pass's slot is gone."""

        def finish(self) -> Exception | None:
            """End the pass; return why its changes couldn't be folded, if so."""

        def abandon(self) -> None:
            """End the pass after an error: make the claimed jobs pending again."""


class Claim:
    """One attempt of one job, which belongs to a pass until its outcome is recorded.

    `row` is the job as claimed, and `state` the text of its state in the files.
    """

    __slots__ = ("generation", "key", "payload", "row", "state")

    def __init__(self, row: Row, payload: Any, generation: int) -> None:
        self.key = row.id.encode()
        self.row = row
        self.payload = payload
        self.generation = generation
        self.state = encode_state(row.state)


class Terms:
    """What the handlers of a pass say about a job type.

    `limit`         the most attempts of a job of the type
    `longest_wait`  the longest backoff, in seconds, after an attempt of this number
    `wants`         whether the pass runs jobs of the type
    `concurrency`   how many jobs of a type may be processing at once; has a type only after
                    `wants` was asked about it
    `count`         how many types have a handler: if there are more than before, jobs that weren't
                    wanted are looked at again
    """

    def __init__(
        self,
        limit: Callable[[str], int],
        longest_wait: Callable[[str, int], float],
        wants: Callable[[str], bool],
        concurrency: Mapping[str, int] | None = None,
        count: Callable[[], int] = lambda: 0,
    ) -> None:
        self.limit = limit
        self.longest_wait = longest_wait
        self.wants = wants
        self.concurrency = {} if concurrency is None else concurrency
        self.count = count
