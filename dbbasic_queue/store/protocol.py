"""What a queue and a pass need from a store, whatever keeps the jobs.

`textfile` and `memory` are the stores. Each call is one atomic change or look, for all threads and,
if the store is shared, for all processes. A change is on the disk when the call returns, if the
store keeps files and was opened with `fsync`. A call that raises StoreError has changed nothing,
unless the error says so.
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
            """Add new jobs, given as lines, all or none.

            Raises DuplicateJob if a job has the id `own_id`.
            """

        def find(self, job_id: str) -> Row | None:
            """Return the job's row, or None. The payload's JSON isn't checked."""

        def rows(self, unreadable: list[int] | None = None) -> Iterator[Row]:
            """Yield every job as of the first step; add the lines that aren't jobs to the list."""

        def cancel(self, job_id: str) -> bool:
            """Cancel a pending job; False if it isn't pending, or if there is no such job."""

        def run_now(self, job_id: str, now: float) -> bool:
            """Make a pending job due at `now`, in Unix seconds; False if it isn't pending."""

        def requeue(
            self,
            now: float,
            *,
            job_id: str | None = None,
            run_at: int | None = None,
            job_type: str | None = None,
        ) -> int:
            """Requeue one job, or all failed ones, or those of a type; return how many.

            `run_at`, in Unix seconds, is for one job. Without it, a failed job is due at `now`, and
            a cancelled one keeps its `run_at`.
            """

        def remove(self, unwanted: Callable[[Row], bool], archive: str | None = None) -> int:
            """Remove the unwanted jobs, except running ones; return how many.

            With `archive`, a path, their rows are on the disk there before they are removed.
            """

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
            """Yield the finished attempts, or those of one job; see `history.read`."""

        def running(self) -> tuple[list[LivePass], list[Row]]:
            """Return the live passes and the running jobs, as of one instant."""

        def take_skipped(self) -> tuple[int, int, list[int]]:
            """Return what was skipped since the last call, so that a pass can report it.

            How many lines were moved to `queue.tsv.rejected`, how many damaged records of the
            journal were skipped, and the numbers of all lines that aren't jobs.
            """

        def has_work(self, now: float, longest_wait: Callable[[str, int], float]) -> bool:
            """Return whether a pass might have something to do.

            `longest_wait` as in `Terms`.
            """

        def count_due(self, now: float) -> int:
            """Return how many pending jobs are due, whatever their types."""

        def is_complete(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
            """Return whether no job is running or pending, not counting paused types.

            The jobs in `apart_from`, pairs of path and id, may be running.
            """

        def open_claims(self, terms: Terms, now: float, parallel: int) -> Claims:
            """Return what claims jobs for a pass that runs `parallel` jobs at once.

            Raises QueueBusy if as many passes are running as there may be.
            """

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
            """Add a finished attempt.

            `row` is the job as claimed. `error` and `traceback` are escaped. `ended_at` is in Unix
            seconds. `seconds` is how long the handler ran, None if that is unknown.
            """

        def flush(self) -> None:
            """Write what is in memory."""

        def take_error(self) -> OSError | None:
            """Return why rows were lost, once."""

    class Claims(Protocol):
        """The jobs that one pass has claimed."""

        @property
        def history(self) -> History:
            """Where the finished attempts go."""

        looked_at: float
        """when the pass looked for due jobs last, in Unix seconds"""

        def slot_fd(self) -> int:
            """Return the descriptor of the pass's slot, or -1."""

        def take_recovered(self) -> tuple[int, list[Row]]:
            """Return how many jobs were recovered since the last call, and the started ones."""

        def take_pulled_in(self) -> int:
            """Return how many jobs became due since the last call because a clock had been ahead.

            They were enqueued to run at once, while the clock was ahead.
            """

        def find_due(self, now: float) -> bool:
            """Look for jobs that are due at `now`; False if there are none."""

        def claim(self, most: int) -> list[Claim]:
            """Claim up to `most` due jobs, earliest `run_at` first; recorded on return."""

        def record(self, claim: Claim, state: State) -> State | None:
            """Record an outcome; return the recorded state.

            Returns None, and records nothing, if a newer attempt has replaced this one.
            """

        def record_all(self, ended: list[tuple[Claim, State]]) -> list[State | None]:
            """Record several outcomes; otherwise like `record`."""

        def unclaim(self, claims: list[Claim], error: str = "") -> None:
            """Make claimed jobs pending again, their attempts not counted."""

        def is_published(self) -> bool:
            """Return whether the queue's file shows what is running."""

        def publish(self) -> None:
            """Make the queue's file show what is running."""

        def idle(self) -> None:
            """Publish, and make sure that no other pass waits for this one while no job is due."""

        def check_slot(self) -> None:
            """Raise StoreError if the pass's slot is gone."""

        def finish(self) -> Exception | None:
            """End the pass; return why its changes couldn't be folded, if so."""

        def abandon(self) -> None:
            """End the pass after an error: make the claimed jobs pending again."""


class Claim:
    """One attempt of one job, which belongs to a pass until its outcome is recorded.

    `key`        the job's id, as bytes
    `row`        the job as claimed
    `payload`    the payload, decoded
    `state`      the text of the claimed state, as in the files
    `generation` of the view that the row was read from
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
    `concurrency`   how many jobs of a type may be processing at once; has a type only after `wants`
                    was called for it
    `count`         how many types have a handler: if there are more than before, the pass looks
                    again at jobs that it didn't want
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
