"""`Backend`: what an engine must do, so that `EngineStore` and `EngineClaims` can do the rest.

`procrastinate` and `rq` are the backends. Each keeps the jobs in the tables or keys of its engine,
next to a few of its own: what the engine can't keep, such as our ids, the attempts and the errors.

- **Which change is legal, and what it does to a job, isn't known here.** `model.states` decides,
  and `change` makes the change if the job hasn't changed since it was read: its `version` says so.
- **Each call is one atomic change or look**, for all threads, processes and hosts. What it changed
  is as durable on return as the server is configured to be.
- **The server's clock** tells which workers are alive: those of two hosts may differ. All other
  times are those of the callers.
- **Errors**: `ConnectionLost` if the server can't be reached, or if the connection broke and the
  call may or may not have been made; StoreError if the server refuses. A call that can be repeated
  without harm is repeated once, on a new connection, before it raises `ConnectionLost`: a server
  that was restarted since the last call has closed the old one.
- **A queue that was moved** has its new address in the value `MOVED`. While that is set, calls that
  add or claim jobs raise QueueMoved and do nothing, except with `anyway`.
- **Forks**: a forked child opens connections of its own, and leaves those of its parent alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dbbasic_queue.errors import StoreError
from dbbasic_queue.model.rows import Row
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.model.strict_json import canonical_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Any, Self

    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.protocol import Overview

BEAT_SECONDS = 10.0
"""how often a live worker says that it is alive"""
DEAD_SECONDS = 30.0
"""A worker that hasn't said so for this long, by the server's clock, counts as dead."""


MOVED = "moved"
"""the named value with the address that the queue was moved to"""


class ConnectionLost(StoreError):
    """Raised if the server can't be reached; the call may have been made if the message says so."""

    is_temporary = True


class StoredRow(Row):
    """A job as read from the server; `version` is another one after each change."""

    __slots__ = ("version",)

    def __init__(
        self, job_id: str, job_type: str, payload: str, state: State, version: int
    ) -> None:
        super().__init__(job_id, job_type, payload, state)
        self.version = version


class Change(NamedTuple):
    """A change of one job: to `state`, or to `payload`, or its removal if both are None."""

    row: StoredRow
    state: State | None = None
    payload: str | None = None


class LiveWorker(NamedTuple):
    """A live worker: one pass; like `store.claiming.slots.LivePass`.

    `pid` is the host's name, a dot, and the process id. `listed_at` is when it last claimed jobs.
    `parallel` is how many of its claims it may have started at once. `claims` are (job id,
    attempt). Times are in Unix seconds, by the server's clock. `types` isn't known.
    """

    pid: str
    started_at: float
    listed_at: float
    parallel: int
    claims: frozenset[tuple[str, int]]
    types: str = ""


def unique_key(row: Row) -> str:
    """Return the same text for two jobs of the same type with the same payload, in any order."""
    text = f"{row.type}\t{canonical_json(row.payload or '{}')}"
    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


class News(Protocol):
    """Tells one pass whether jobs were added, without asking the server."""

    def have_come(self) -> bool:
        """Return whether a job may have been added since the last call; True if that is unknown.

        A job that becomes due, or pending again, isn't reported.
        """

    def close(self) -> None:
        """Close the connection."""


class Backend(Protocol):
    """The jobs of one queue on a server. Ids and types are checked by the caller."""

    name: str
    """the URL without its password, for messages"""
    url: str
    """the URL as given"""

    def exists(self) -> bool:
        """Return whether the queue was ever used. Only `add` and `replace` create it."""

    def close(self) -> None:
        """Close all connections; the next call opens one again."""

    def __reduce__(self) -> Any:
        """Let another process open the same queue, with connections of its own."""

    # -- jobs --

    def within(self, connection: Any) -> Self:
        """Return a backend whose `add` calls belong to the transaction of a database connection.

        Raises InvalidArgument if the engine can't do that, or not with such an object.
        """

    def add(self, rows: Sequence[Row], *, own_id: bool = False, anyway: bool = False) -> bool:
        """Add jobs, in this order, all or none. They may have any status but `processing`.

        Returns False if one of the ids is taken and `own_id` is set. Without it, ids are random,
        and not compared: a repeated call adds nothing.
        """

    def add_unless_pending(self, row: Row, *, anyway: bool = False) -> str | None:
        """Add a pending job, unless a pending one has the same `unique_key`.

        Returns the id of that job, or None if the new one was added. Exact for all callers.
        """

    def find(self, job_id: str) -> StoredRow | None:
        """Return the job, or None."""

    def find_many(self, job_ids: Sequence[str]) -> dict[str, StoredRow]:
        """Return job id -> the job, for those that exist."""

    def overview(self, now: float) -> Overview:
        """Return how many jobs there are, and which were due first at `now`, in Unix seconds.

        That the first finished job is the one that was added first is close enough.
        """

    def rows(
        self,
        statuses: Collection[str] = STATUSES,
        job_type: str | None = None,
        *,
        only_errors: bool = False,
    ) -> Iterator[StoredRow]:
        """Yield the jobs with one of the statuses, in the order of `add`.

        Those of one type if it is given; those that have an error with `only_errors`.
        Jobs that change while this goes on may be seen as they were before or after the change.
        """

    def change(self, changes: Sequence[Change], *, again: bool = False) -> list[bool]:
        """Make each change whose job still has the version that was read; return which were made.

        All that are made, are made at once. A job that becomes `pending` runs at its `run_at`. With
        `again`, the same call has raised `ConnectionLost`: a change that it made counts as made.
        """

    def types(self) -> set[str]:
        """Return the types of all jobs that are pending, and perhaps some more."""

    def has_open(self) -> bool:
        """Return whether any job is pending or processing."""

    def pending_types(self) -> set[str]:
        """Return the types of all jobs that are pending, and no more."""

    def count_due(self, now: float) -> int:
        """Return how many pending jobs are due at `now`, in Unix seconds."""

    def due_late(self, now: float) -> Iterator[StoredRow]:
        """Yield the pending jobs whose times a wrong clock may have set.

        That is those that are due after `now` and have attempts, and those that were created more
        than `states.CLOCK_TOLERANCE_SECONDS` after `now`.
        """

    # -- named values --

    def read(self, name: str) -> bytes:
        """Return a value, b"" if it isn't set."""

    def replace(
        self,
        name: str,
        before: bytes,
        after: bytes,
        rows: Sequence[Row] = (),
        *,
        anyway: bool = False,
    ) -> bool:
        """Set a value, and add jobs, if it is still `before`; return whether it was.

        Returns False, and adds nothing, if one of the jobs' ids is taken.
        """

    # -- workers, and what they have claimed --

    def open_worker(self, name: str, parallel: int) -> str:
        """Register a worker, as one that is alive; return its id.

        `name` is the `pid` of `LiveWorker`.
        """

    def beat(self, worker: str) -> bool:
        """Say that a worker is alive; False if it counted as dead, and is no longer registered."""

    def close_worker(self, worker: str) -> None:
        """Remove a worker. Jobs that it still has are those of a dead worker."""

    def workers(self) -> list[LiveWorker]:
        """Return the live workers."""

    def claimed(self, worker: str) -> list[StoredRow]:
        """Return the jobs that a worker has claimed and not recorded, in the order of its claims.

        Removed and dead workers may have some, too.
        """

    def dead_claims(self) -> list[tuple[StoredRow, bool]]:
        """Return the `processing` jobs of dead workers, and whether each may have been started.

        The first `parallel` jobs of a worker, in the order of its claims, may have been.
        """

    def listen(self) -> News:
        """Open a connection on which the server reports added jobs."""

    def look(self, now: float) -> int:
        """Return a mark: jobs that are added later are after it.

        Prepares what the engine needs, so that jobs that are due at `now` can be claimed.
        """

    def has_due(self, types: Collection[str], now: float, mark: int | None) -> bool:
        """Return whether a job of one of the types, not after the mark, is due at `now`."""

    def claim(
        self,
        worker: str,
        types: Collection[str],
        most: int,
        now: float,
        *,
        mark: int | None,
        limits: Mapping[str, tuple[int, int]],
        skip: Collection[str],
        anyway: bool = False,
    ) -> list[StoredRow]:
        """Claim up to `most` jobs of these types that are due at `now`, the first ones first.

        Which ones come first is up to the engine: those that were due first, or added first.

        Their state becomes that of `states.claim`. Jobs after the mark, and those with the ids in
        `skip`, are left out. `limits` has, for some types, how many of its jobs may be processing
        on all workers together, and how many this call may claim. Returns the jobs as claimed, in
        the order in which they will be started. Returns [] if the worker counts as dead.
        """

    # -- what attempts leave behind: rows of text, as in the files of a text file queue --

    def add_history(self, lines: Iterable[str]) -> None:
        """Add rows, as `history.Attempt` parses them. At least the last 100,000 are kept."""

    def history(self, job_id: str, since: float) -> Iterator[str]:
        """Yield the rows, those of one job unless `job_id` is "", in the order of `add_history`.

        Those of attempts that ended before `since`, in Unix seconds, are left out.
        """

    def put_output(self, job_id: str, attempt: int, line: str) -> None:
        """Keep a row, as `output.Output` parses it, until the job is removed."""

    def output(self, job_id: str, attempt: int | None) -> str | None:
        """Return the row of an attempt, or the one that was kept last; None if there is none."""

    def put_progress(self, job_id: str, line: str | None) -> None:
        """Keep a row, as `progress.Progress` parses it, or remove it for None."""

    def progress(self, job_ids: Collection[str]) -> dict[str, str]:
        """Return job id -> row, for those that have one."""

    # -- the server --

    def warnings(self) -> list[str]:
        """Return what in the server's settings could lose jobs, one sentence each."""
