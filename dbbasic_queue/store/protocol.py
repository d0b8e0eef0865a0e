"""What a queue and a pass need from a store, whatever keeps the jobs.

`textfile` and `memory` are the stores. Each call is one atomic change or look, for all threads and,
if the store is shared, for all processes. A change is on the disk when the call returns, if the
store keeps files and was opened with `fsync`. A call that raises StoreError has changed nothing,
unless the error says otherwise. Ids and types are checked by the caller.
"""

from __future__ import annotations

from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.states import STATUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import Any, Protocol

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.claiming.slots import LivePass
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.output import Output
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.progress import Progress
    from dbbasic_queue.store.reading.unreadable import Unreadable
    from dbbasic_queue.store.schedule_file import Change

    class Store(Protocol):
        """Where the jobs are kept."""

        path: str
        """the absolute path of the queue's file, or its URL without a password"""
        is_shared: bool
        """whether other processes can use the same jobs"""

        @property
        def address(self) -> str:
            """What another process needs to open the queue: `path`, or a URL with its password."""

        @property
        def skipped_history(self) -> Sequence[str]:
            """The start of each invalid line that the last call of `history` skipped."""

        def warnings(self) -> list[str]:
            """Return what in the settings of the queue's server could lose jobs."""

        def exists(self) -> bool:
            """Return whether the queue exists. Only `add` creates it."""

        def close(self) -> None:
            """Close all files; the next call opens them again."""

        def within(self, connection: Any) -> Store:
            """Return a store whose `add` calls belong to a database connection's transaction.

            Raises InvalidArgument if this store has none, or for an object that isn't one.
            """

        def add(self, rows: str, own_id: str | None = None) -> None:
            """Add new jobs, all or none, given as lines of `rows.new_row`.

            `own_id` is the job's id if a user has chosen it: then there is only one new job, and
            DuplicateJob is raised if another job has this id. Generated ids aren't compared.
            """

        def add_once(self, row: str, own_id: str) -> None:
            """Add one job, given as a line, unless a job has the id `own_id` already."""

        def add_unless_pending(self, row: str, job_type: str, payload: str) -> str | None:
            """Add one job, unless a job of this type with the same payload (JSON text) is pending.

            Returns the id of that job, or None if the new one was added. Exact for all threads and
            processes.
            """

        def find(self, job_id: str) -> Row | None:
            """Return the job's row, or None. The payload's JSON isn't checked."""

        def rows(
            self,
            unreadable: list[int] | None = None,
            *,
            statuses: Collection[str] = STATUSES,
            job_type: str | None = None,
            only_errors: bool = False,
            beginning: str = "",
        ) -> Iterator[Row]:
            """Yield every job as it is when the iteration starts, in the order of enqueueing.

            The numbers of lines that aren't jobs are added to `unreadable`, the header being 1. A
            store may leave out jobs that have none of the statuses, another type, with
            `only_errors` no error, or whose id doesn't have this `beginning`.
            """

        def newest(self, statuses: Collection[str] = STATUSES) -> Iterator[Row] | None:
            """Return the jobs with one of the statuses, in reverse order of enqueueing.

            Returns None if that isn't quicker than `rows`.
            """

        def overview(
            self, now: float, each: Callable[[Row], object] | None = None
        ) -> Overview | None:
            """Return how many jobs there are, or None if the caller is to read all rows.

            `now` is in Unix seconds. `each` is called with every pending or failed job that has an
            error, in the order of enqueueing.
            """

        def cancel(self, job_id: str) -> bool:
            """Cancel a pending job; False if it isn't pending, or if there is no such job."""

        def stop(self, job_id: str) -> str | None:
            """Cancel a pending job, or mark a processing one for its pass to stop.

            Returns the job's status after that: `cancelled` or `processing`. Returns None if it is
            finished, or if there is no such job.
            """

        def run_now(self, job_id: str, now: float) -> bool:
            """Make a pending job due at `now`, in Unix seconds, unless it is due already.

            Returns False if it isn't pending, or if there is no such job.
            """

        def requeue(
            self,
            now: float,
            *,
            job_id: str | None = None,
            run_at: int | None = None,
            wanted: Callable[[Row], bool] = ...,
        ) -> int:
            """Requeue one job, or the failed ones that `wanted` returns True for; return how many.

            `run_at`, in Unix seconds, is for one job. Without it, a failed job is due at `now`, and
            a cancelled one keeps its `run_at`.
            """

        def edit(self, job_id: str, payload: str, before: str | None = None) -> bool:
            """Replace the payload, JSON text, of a pending job.

            Returns False if it isn't pending, or if there is no such job. With `before`, also if
            its payload isn't that text, as `find` has returned it, any more. A pass that has chosen
            the job, but hasn't claimed it yet, runs it with the new payload or not at all.
            """

        def remove(
            self,
            unwanted: Callable[[Row], bool],
            archive: str | None = None,
            *,
            statuses: Collection[str] = STATUSES,
            job_type: str | None = None,
        ) -> int:
            """Remove the jobs that `unwanted` returns True for, except running ones.

            A store may call it only for the jobs that `rows` would yield. Returns how many. If
            `archive` is a path, their rows are on the disk in that file before they are removed.
            Raises NotAQueue if that file isn't an archive, QueueBusy if another purge has been
            writing to it for a minute.
            """

        def take_turn_to_purge(self, types: Collection[str], now: float, pause: float) -> bool:
            """Return whether a pass should remove old jobs of these types now.

            True if that was `pause` seconds ago or longer for one of them, in any process; then
            `now` is recorded for all of them.
            """

        def unreadable(self) -> Iterator[Unreadable]:
            """Yield each line that isn't a job."""

        def remove_unreadable(self) -> int:
            """Move the lines that aren't jobs to `queue.tsv.rejected`; return how many."""

        def paused(self) -> frozenset[str]:
            """Return the paused types; "*" means all."""

        def pause(self, job_type: str) -> bool:
            """Pause a type, or all ("*"); False if it was paused already."""

        def resume(self, job_type: str | None) -> bool:
            """End the pause of a type or, for None, every pause; False if there was none."""

        def has_schedules(self) -> bool:
            """Return whether any schedule was ever recorded."""

        def read_schedules(self) -> bytes:
            """Return the recorded schedules, as `schedule_file.parse` reads them."""

        def update_schedules(self, seen: bytes, changes: list[Change]) -> bool:
            """Add the jobs of due instants, unless they were added before, and record that.

            `changes` were planned with the content `seen`. Returns False, and does nothing, if that
            has changed.
            """

        def exchange(self, changes: Sequence[tuple[Row, State]]) -> list[Row | None]:
            """Give each job its new state, if it still has that of the row.

            Returns each job as it was, or None if its state has changed, or if there is no such
            job. A call that raises may have changed some of them.
            """

        def add_missing(self, rows: Sequence[Row]) -> list[str]:
            """Add the jobs whose ids no job has; return the other ids. None is `processing`.

            The other jobs are as safe as those that were added.
            """

        def moved_to(self) -> str:
            """Return the address that the queue was moved to, "" if it wasn't moved."""

        def set_moved(self, address: str) -> None:
            """Record that the queue was moved to this address, or that it wasn't if it is "".

            If it was, all calls raise QueueMoved, in all processes, except those of stores that
            were opened to be used nevertheless, and those by which running passes record outcomes.
            """

        def add_history(self, attempts: Sequence[Attempt]) -> None:
            """Add finished attempts of another queue to the history."""

        def history(
            self, job_id: str = "", since: float = ..., *, only_errors: bool = False
        ) -> Iterator[Attempt]:
            """Yield the finished attempts, or those of one job; see `history.read`."""

        def latest(self, count: int) -> list[Attempt]:
            """Return the attempts that ended last, at most `count`, the oldest first."""

        def output(self, job_id: str, attempt: int | None = None) -> Output | None:
            """Return what the job's latest attempt, or this attempt, has printed; or None.

            None if that isn't kept; see `output.read`.
            """

        def progress(self, rows: Iterable[Row]) -> dict[str, Progress]:
            """Return job id -> how far it is, for those of the jobs that run and have reported."""

        def running(self) -> tuple[list[LivePass], list[Row]]:
            """Return the live passes and the `processing` jobs, as of one instant.

            The job of a dead pass is `processing`, too, until it is recovered.
            """

        def take_skipped(self) -> tuple[int, int, list[int]]:
            """Return what a pass has to report about invalid lines.

            That is how many lines were moved to `queue.tsv.rejected` since the last call, how many
            damaged records of the journal were skipped since then, and the numbers of all lines
            that aren't jobs.
            """

        def note_pass(self, line: str) -> None:
            """Add a pass that has ended to the log of passes. `line` is of `pass_log.encode_row`.

            Raises no StoreError: the row is lost if it can't be written.
            """

        def passes(self) -> list[EndedPass]:
            """Return the passes that have ended, as far back as the log goes, the last one last."""

        def has_work(self, now: float, longest_wait: Callable[[str, int], float]) -> bool:
            """Return whether a pass might have something to do. `longest_wait` is as in `Terms`."""

        def count_due(self, now: float) -> int:
            """Return how many pending jobs of all types are due."""

        def is_complete(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
            """Return whether no job is running, and none is pending whose type isn't paused.

            The jobs in `apart_from`, pairs of path and id, may be running.
            """

        def open_claims(self, terms: Terms, now: float, parallel: int) -> Claims:
            """Return the claims of a new pass, which runs up to `parallel` jobs at once.

            Raises QueueBusy if too many passes are running.
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
            exception: str = "",
            output_offset: int | None = None,
        ) -> None:
            """Add a finished attempt.

            `row` is the job as claimed. `error`, `traceback` and `exception`, the path of its
            class, are escaped. `ended_at` is in Unix seconds. `seconds` is how long the handler
            ran, None if that is unknown. `output_offset` is what `OutputNotes.keep` returned.
            """

        def flush(self) -> None:
            """Write the attempts that are still in memory only."""

        def take_error(self) -> OSError | None:
            """Return why attempts were lost, or None. The same failure is returned once."""

    class OutputNotes(Protocol):
        """Receives what the jobs of a pass have printed."""

        def keep(self, row: Row, ended_at: float, printed: bytes, left_out: int) -> int | None:
            """Keep what an attempt has printed; return its offset, None if it's lost.

            `row` is the job as claimed. `ended_at` is in Unix seconds. `left_out` is how many bytes
            came before `printed`. Call it after the attempt's outcome was recorded.
            """

        def take_error(self) -> OSError | None:
            """Return why something was lost, or None. The same failure is returned once."""

    class ProgressNotes(Protocol):
        """Receives how far the jobs of a pass are."""

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
            """Keep how far an attempt is at the instant `at`.

            `started_at` is when its handler was called; both are in Unix seconds. `total` is None
            if it is unknown. `note` is escaped. Raises QueueError if it can't be kept here.
            """

        def forget(self, row: Row, at: float) -> None:
            """End what an attempt has reported: its number may be used again.

            `row` is the job as claimed, and `at` is now.
            """

        def take_error(self) -> OSError | None:
            """Return why something was lost, or None. The same failure is returned once."""

    class Claims(Protocol):
        """The jobs that one pass has claimed."""

        @property
        def history(self) -> History:
            """Where the finished attempts go."""

        @property
        def output(self) -> OutputNotes:
            """Where it goes what they have printed."""

        @property
        def progress(self) -> ProgressNotes:
            """Where it goes how far the jobs are."""

        looked_at: float
        """when the pass looked for due jobs last, in Unix seconds"""

        def slot_fd(self) -> int:
            """Return the descriptor of the pass's slot, or -1 if it has none."""

        def take_recovered(self) -> tuple[int, list[tuple[Row, State]]]:
            """Return how many jobs were recovered since the last call, and those that had started.

            Each of the latter is its row as claimed, and its new state: pending, failed if no
            attempt is left, or cancelled if a stop was requested.
            """

        def take_pulled_in(self) -> int:
            """Return how many jobs were pulled in since the last call.

            They were enqueued to run at once, but while the clock was ahead. Now they are due.
            """

        def find_due(self, now: float) -> bool:
            """Look for jobs that are due at `now`; return False if there are none to claim.

            True means that there may be some. Recovers the jobs of dead passes first, if needed.
            """

        def claim(self, most: int, now: float) -> list[Claim]:
            """Claim up to `most` due jobs; recorded on return.

            Those of the highest priority come first, then the earliest `run_at`. Jobs that were
            added or became due after `looked_at` wait for the next `find_due`, except those that
            are due at `now` and have a higher priority than a job that is still to be claimed.
            """

        def may_start(self, claim: Claim) -> bool:
            """Return False if the job's state has changed since the claim, as far as is known.

            Then a stop was requested, or the claim was returned by a call that raised. Reads
            nothing.
            """

        def is_to_stop(self, row: Row) -> bool:
            """Return whether a stop was requested for a claimed job. `row` is that of its claim."""

        def record(self, claim: Claim, state: State) -> State | None:
            """Record an outcome; return the recorded state.

            If a stop was requested, and the job hasn't completed, it is cancelled instead. Returns
            None, and records nothing, if a newer attempt has replaced this one.
            """

        def record_all(self, ended: list[tuple[Claim, State]]) -> list[State | None]:
            """Record several outcomes; otherwise like `record`."""

        def unclaim(self, claims: list[Claim], error: str = "") -> None:
            """Make claimed jobs pending again without counting their attempts.

            `error`, if given, becomes the jobs' error. If a stop was requested, a job is cancelled
            instead. Also removes finished claims from the list that other passes see; for this,
            `claims` may be empty.
            """

        def is_published(self) -> bool:
            """Return whether the queue's file shows what is running."""

        def publish(self) -> None:
            """Make the queue's file show what is running."""

        def idle(self) -> None:
            """Publish, and empty the list of claims that other passes see.

            Called while no job is due or running.
            """

        def check_slot(self) -> None:
            """Raise StoreError if the pass's slot is lost: other passes may run its jobs."""

        def finish(self) -> Exception | None:
            """End the pass. Returns the error if the last fold failed: nothing is lost then."""

        def abandon(self) -> None:
            """End the pass after an error.

            The jobs that are still claimed become pending again, at once or when another pass
            recovers them.
            """

    class Terms(Protocol):
        """What the handlers of a pass determine about a job type."""

        concurrency: dict[str, int]
        """type -> how many of its jobs may be processing at once, if that is limited; has a type
        only after `wants` was called for it"""

        def count(self) -> int:
            """Return how many types have a handler.

            If there are more than before, the pass looks again at jobs that it didn't want.
            """

        def wants(self, job_type: str) -> bool:
            """Return whether the pass runs jobs of the type."""

        def limit(self, job_type: str) -> int:
            """Return how many attempts a job of the type has."""

        def wait(self, job_type: str, attempt: int) -> float:
            """Return the backoff after this attempt, in seconds."""

        def longest_wait(self, job_type: str, attempt: int) -> float:
            """Return the most seconds that `wait` can return."""

        def priority(self, job_type: str) -> int:
            """Return the priority of the type's jobs; higher ones run first."""

        def types(self) -> str:
            """Return the types that have a handler, as in the log of passes; see `pass_log`."""

        def prioritizes(self) -> bool:
            """Return whether a type may have another priority than 0."""


class Waiting:
    """The pending jobs of one type.

    `count`    how many there are
    `due`      how many of them are due
    `first`    the one that has been due for the longest time, or None
    `next_at`  when the first of those that aren't due yet becomes due, in Unix seconds; None if
               there is none, or if that isn't known because others are due
    """

    __slots__ = ("count", "due", "first", "next_at", "type")

    def __init__(
        self,
        job_type: str,
        count: int,
        due: int,
        first: Row | None,
        next_at: int | None = None,
    ) -> None:
        self.type = job_type
        self.count = count
        self.due = due
        self.first = first
        self.next_at = next_at


class Overview:
    """What a server or a store has counted, so that the caller needn't read all jobs.

    `counts`      status -> how many jobs
    `types`       the types that have pending jobs
    `oldest`      returns when the first finished job was due or, if that is later, was enqueued;
                  None if there is none
    `unreadable`  the numbers of the lines that aren't jobs, the header being 1
    """

    __slots__ = ("counts", "oldest", "types", "unreadable")

    def __init__(
        self,
        counts: dict[str, int],
        types: Sequence[Waiting],
        oldest: Callable[[], float | None],
        unreadable: Sequence[int] = (),
    ) -> None:
        self.counts = dict.fromkeys(STATUSES, 0) | counts
        self.types = types
        self.oldest = oldest
        self.unreadable = unreadable


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
