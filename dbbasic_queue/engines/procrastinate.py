"""The backend for PostgreSQL: jobs in the tables of Procrastinate, next to some of our own.

- **A queue is a schema**, `dbbasic_queue` unless the URL has `?queue=NAME`. Procrastinate's tables
  are installed in it, so they are others than those of an application that uses Procrastinate too.
- **A job is a row of `dbbasic_jobs` and one of `procrastinate_jobs`.** Each change of both is one
  transaction: one call of a function of `procrastinate.sql`, which calls Procrastinate's own.
  Pending is `todo` there, processing `doing`, completed `succeeded`, failed `failed`, cancelled
  `cancelled` or, if it was running, `aborted`. Its task and its queue are named like the job type.
- **Due jobs are claimed in the order of a text file**: the earliest `run_at` first, then in the
  order of adding. Procrastinate's priorities and locks aren't used.
- **A call may be repeated** if it isn't known whether it was made. A job's version is random at
  first, and one more after each change: so a repeated call finds what it has done before.

Procrastinate's tools show the jobs if the schema is in their search path, as with
`PGOPTIONS='-c search_path=dbbasic_queue' procrastinate ...`. What they change or delete is changed
in our table, too. Its workers don't know our job types: don't start one in the schema.
"""

from __future__ import annotations

import math
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from dbbasic_queue.engines.backend import (
    DEAD_SECONDS,
    MOVED,
    LiveWorker,
    StoredRow,
    unique_key,
)
from dbbasic_queue.engines.postgres_client import Client, MovedError, NotInstalledError, parse_url
from dbbasic_queue.engines.store import EngineStore
from dbbasic_queue.errors import QueueMoved, StoreError, queue_moved
from dbbasic_queue.model import states
from dbbasic_queue.model.states import State
from dbbasic_queue.store.protocol import Overview, Waiting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from dbbasic_queue.engines.backend import Change
    from dbbasic_queue.engines.postgres_client import News
    from dbbasic_queue.model.rows import Row

_KEPT_ATTEMPTS = 100_000
_BATCH = 500
_OLDEST_SERVER = 130_000
_COLUMNS = "id, type, payload, status, created_at, run_at, attempts, error, result, version"
_ARRAYS = (
    "%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::integer[], "
    "%s::text[], %s::text[], %s::text[]"
)
_random = random.SystemRandom()


def open_store(url: str, *, fsync: bool = True) -> EngineStore:
    """Return the store of a queue in PostgreSQL; nothing connects yet.

    `url` is one of libpq's, perhaps with `?queue=NAME`. With `fsync=False`, a commit doesn't wait
    for the server's disk. Raises NotAQueue for an invalid URL.
    """
    return EngineStore(ProcrastinateBackend(url, fsync=fsync))


class ProcrastinateBackend:
    """The jobs of one queue in PostgreSQL; `backend.Backend` describes the methods."""

    def __init__(self, url: str, *, fsync: bool = True) -> None:
        self.url = url
        self._fsync = fsync
        place = parse_url(url)
        self.name = place.name
        self.schema = place.schema
        self._client = Client(place, fsync=fsync)

    def __reduce__(self) -> Any:
        return _reopen, (self.url, self._fsync)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def exists(self) -> bool:
        """Return whether the queue was ever used."""
        return self._client.exists()

    def close(self) -> None:
        """Close all idle connections; the next call opens one again."""
        self._client.close()

    # -- jobs --

    def within(self, connection: Any) -> ProcrastinateBackend:
        """Return a backend whose calls belong to the transaction of a database connection."""
        backend = ProcrastinateBackend.__new__(ProcrastinateBackend)
        backend.__dict__ |= self.__dict__
        backend._client = self._client.within(connection)
        return backend

    def add(self, rows: Sequence[Row], *, own_id: bool = False, anyway: bool = False) -> bool:
        """Add jobs, in this order, all or none; False if an id is taken and `own_id` is set."""
        is_added: bool | None = self._client.write(
            f"SELECT {{}}.dbbasic_add({_ARRAYS}, %s::bigint, %s::boolean, %s::boolean)",
            *_arrays(rows),
            _token(),
            own_id,
            anyway,
            installs=True,
        )
        if is_added is None:
            raise self._moved()
        self._report()
        return is_added

    def _report(self) -> None:
        """Tell passes that wait that jobs were added. They also look by themselves.

        Not in the transaction that adds the jobs, unless it is the application's: PostgreSQL
        commits those that report something one after the other, each with a sync of its own.
        """
        with suppress(StoreError):
            self._client.read("SELECT pg_notify(%s, '')", self._channel())

    def _channel(self) -> str:
        return f"dbbasic_queue.{self.schema}"

    def _moved(self) -> QueueMoved:
        return queue_moved(self.name, self.read(MOVED).decode())

    def add_unless_pending(self, row: Row, *, anyway: bool = False) -> str | None:
        """Add a pending job, unless a pending one has the same key; return the id of that one."""
        state = row.state
        found: str | None = self._client.write(
            "SELECT {}.dbbasic_add_unless_pending("
            "%s::text, %s::text, %s::text, %s::bigint, %s::bigint, %s::text, %s::bigint, "
            "%s::boolean)",
            row.id,
            row.type,
            row.payload,
            state.created_at,
            state.run_at,
            unique_key(row),
            _token(),
            anyway,
            installs=True,
        )
        if found == "":
            raise self._moved()
        if found is None:
            self._report()
        return found

    def find(self, job_id: str) -> StoredRow | None:
        """Return the job, or None."""
        rows = self._client.read(f"SELECT {_COLUMNS} FROM {{}}.dbbasic_jobs WHERE id = %s", job_id)
        return _row(rows[0]) if rows else None

    def find_many(self, job_ids: Sequence[str]) -> dict[str, StoredRow]:
        """Return job id -> the job, for those that exist."""
        sql = f"SELECT {_COLUMNS} FROM {{}}.dbbasic_jobs WHERE id = ANY (%s::text[])"
        return {row[0]: _row(row) for row in self._client.read(sql, list(job_ids))}

    def overview(self, now: float) -> Overview:
        """Return how many jobs there are, and which were due first."""
        counts = dict(
            self._client.read("SELECT status, count(*) FROM {}.dbbasic_jobs GROUP BY status")
        )
        types = self._client.read(
            f"""
            SELECT {_COLUMNS}, waiting_type, waiting, due, next_at FROM (
                SELECT
                    type AS waiting_type, count(*) AS waiting,
                    count(*) FILTER (WHERE run_at <= %s) AS due,
                    min(ARRAY[greatest(run_at, created_at), number]) FILTER (WHERE run_at <= %s)
                        AS first,
                    min(run_at) FILTER (WHERE run_at > %s) AS next_at
                FROM {{}}.dbbasic_jobs WHERE status = 'pending' GROUP BY type
            ) found LEFT JOIN {{}}.dbbasic_jobs ON number = first[2]
            """,
            math.floor(now),
            math.floor(now),
            math.floor(now),
        )
        return Overview(
            counts,
            [
                Waiting(job_type, count, due, _row(row) if row[0] else None, next_at)
                for *row, job_type, count, due, next_at in types
            ],
            self._oldest,
        )

    def _oldest(self) -> float | None:
        ((oldest,),) = self._client.read(
            "SELECT min(greatest(run_at, created_at)) FROM {}.dbbasic_jobs "
            f"WHERE {_having(states.FINISHED)}"
        ) or [(None,)]
        return cast("float | None", oldest)

    def rows(
        self,
        statuses: Collection[str] = states.STATUSES,
        job_type: str | None = None,
        *,
        only_errors: bool = False,
    ) -> Iterator[StoredRow]:
        """Yield the jobs with one of the statuses, in the order of `add`."""
        ((last,),) = self._client.read("SELECT max(number) FROM {}.dbbasic_jobs") or [(None,)]
        number = 0
        errors = "AND error <> ''" if only_errors else ""
        while last is not None:
            rows = self._client.read(
                f"SELECT {_COLUMNS}, number FROM {{}}.dbbasic_jobs "
                f"WHERE {_having(statuses)} {errors} AND type = coalesce(%s, type) "
                "AND number > %s AND number <= %s ORDER BY number LIMIT %s",
                job_type,
                number,
                last,
                _BATCH,
            )
            yield from map(_row, rows)
            if len(rows) < _BATCH:
                return
            number = rows[-1][-1]

    def change(self, changes: Sequence[Change], *, again: bool = False) -> list[bool]:
        """Make each change whose job still has the version that was read; return which were."""
        if not changes:
            return []
        order = sorted(range(len(changes)), key=lambda n: changes[n].row.id)
        ids, versions, payloads, keys = [], [], [], []
        new_states: list[State | None] = []
        for n in order:
            row, state, payload = changes[n]
            ids.append(row.id)
            versions.append(row.version)
            payloads.append(payload)
            is_edit = state is None and payload is not None
            keys.append(unique_key(_edited(row, payload)) if is_edit else None)
            new_states.append(state)
        made: list[bool] = self._client.write(
            "SELECT {}.dbbasic_change(%s::text[], %s::bigint[], %s::text[], %s::text[], "
            "%s::text[], %s::bigint[], %s::bigint[], %s::integer[], %s::text[], %s::text[], %s)",
            ids,
            versions,
            payloads,
            keys,
            *_columns(new_states),
            again=again,
        )
        by_place = dict(zip(order, made, strict=True))
        return [by_place[n] for n in range(len(changes))]

    def types(self) -> set[str]:
        """Return the types of all jobs that are pending."""
        return {name for (name,) in self._client.read("SELECT {}.dbbasic_types()")}

    def has_open(self) -> bool:
        """Return whether any job is pending or processing."""
        return self._is(
            "SELECT EXISTS (SELECT FROM {}.dbbasic_jobs WHERE status = 'pending')"
            " OR EXISTS (SELECT FROM {}.dbbasic_jobs WHERE status = 'processing')"
        )

    def _is(self, sql: str, *arguments: Any) -> bool:
        return self._client.read(sql, *arguments) == [(True,)]

    def pending_types(self) -> set[str]:
        """Return the types of all jobs that are pending."""
        return self.types()

    def count_due(self, now: float) -> int:
        """Return how many pending jobs are due at `now`, in Unix seconds."""
        rows = self._client.read(
            "SELECT count(*) FROM {}.dbbasic_jobs WHERE status = 'pending' AND run_at <= %s",
            math.floor(now),
        )
        return int(rows[0][0]) if rows else 0

    def due_late(self, now: float) -> Iterator[StoredRow]:
        """Yield the pending jobs whose times a wrong clock may have set."""
        sql = f"SELECT {_COLUMNS} FROM {{}}.dbbasic_due_late(%s::bigint, %s::bigint)"
        latest = now + states.CLOCK_TOLERANCE_SECONDS
        return map(_row, self._client.read(sql, math.floor(now), math.floor(latest)))

    # -- named values --

    def read(self, name: str) -> bytes:
        """Return a value, b"" if it isn't set."""
        rows = self._client.read("SELECT value FROM {}.dbbasic_values WHERE name = %s", name)
        return bytes(rows[0][0]) if rows else b""

    def replace(
        self,
        name: str,
        before: bytes,
        after: bytes,
        rows: Sequence[Row] = (),
        *,
        anyway: bool = False,
    ) -> bool:
        """Set a value, and add jobs, if it is still `before`; return whether it was."""
        is_set: bool | None = self._client.write(
            "SELECT {}.dbbasic_replace(%s::text, %s::bytea, %s::bytea, %s::bigint, %s::boolean, "
            f"{_ARRAYS})",
            name,
            before,
            after,
            _token(),
            anyway,
            *_arrays(rows),
            installs=True,
        )
        if is_set is None:
            raise self._moved()
        if rows:
            self._report()
        return is_set

    # -- workers, and what they have claimed --

    def open_worker(self, name: str, parallel: int) -> str:
        """Register a worker, as one that is alive; return its id."""
        worker = self._client.write("SELECT {}.dbbasic_open_worker(%s::text, %s)", name, parallel)
        return str(worker)

    def beat(self, worker: str) -> bool:
        """Say that a worker is alive; False if it is no longer registered."""
        is_alive: bool = self._client.write("SELECT {}.dbbasic_beat(%s)", int(worker))
        return is_alive

    def close_worker(self, worker: str) -> None:
        """Remove a worker."""
        self._client.write("SELECT {}.dbbasic_close_worker(%s)", int(worker))

    def workers(self) -> list[LiveWorker]:
        """Return the live workers."""
        return [
            LiveWorker(
                pid, started_at, listed_at, parallel, frozenset(zip(ids, attempts, strict=True))
            )
            for pid, started_at, listed_at, parallel, ids, attempts in self._client.read(
                """
                SELECT
                    w.name, extract(epoch FROM w.started_at)::float8,
                    extract(epoch FROM w.listed_at)::float8, w.parallel,
                    array_remove(array_agg(j.id), NULL), array_remove(array_agg(j.attempts), NULL)
                FROM {}.procrastinate_workers p JOIN {}.dbbasic_workers w ON w.id = p.id
                LEFT JOIN {}.dbbasic_jobs j ON j.worker = w.id AND j.status = 'processing'
                WHERE p.last_heartbeat >= now() - make_interval(secs => %s)
                GROUP BY w.id ORDER BY w.id
                """,
                DEAD_SECONDS,
            )
        ]

    def claimed(self, worker: str) -> list[StoredRow]:
        """Return the jobs that a worker has claimed and not recorded."""
        return [
            _row(row)
            for row in self._client.read(
                f"SELECT {_COLUMNS} FROM {{}}.dbbasic_jobs WHERE status = 'processing' "
                "AND worker = %s ORDER BY claim_number, run_at, number",
                int(worker),
            )
        ]

    def dead_claims(self) -> list[tuple[StoredRow, bool]]:
        """Return the `processing` jobs of dead workers, and whether each may have been started."""
        # From now on a worker that counts as dead can't say any more that it is alive.
        if not self._client.read("SELECT {}.dbbasic_prune(%s)", DEAD_SECONDS):
            return []
        rows = self._client.read(
            f"""
            SELECT {_COLUMNS}, place <= coalesce(parallel, place) FROM (
                SELECT j.*, w.parallel, row_number() OVER (
                    PARTITION BY j.worker ORDER BY j.claim_number, j.run_at, j.number
                ) AS place
                FROM {{}}.dbbasic_jobs j LEFT JOIN {{}}.dbbasic_workers w ON w.id = j.worker
                WHERE j.status = 'processing'
            ) claimed
            WHERE NOT EXISTS (SELECT FROM {{}}.procrastinate_workers p WHERE p.id = worker)
            ORDER BY worker, place
            """
        )
        return [(_row(row), row[-1]) for row in rows]

    def listen(self) -> News:
        """Open a connection on which the server reports added jobs."""
        return self._client.listen(self._channel())

    def look(self, now: float) -> int:
        """Return a mark: jobs that are added later are after it."""
        rows = self._client.read(
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {}.dbbasic_pending_number"
        )
        return int(rows[0][0]) if rows else 0

    def has_due(self, types: Collection[str], now: float, mark: int | None) -> bool:
        """Return whether a job of one of the types, not after the mark, is due at `now`."""
        if not types:
            return False
        return self._is(
            "SELECT {}.dbbasic_has_due(%s::text[], %s::bigint, %s::bigint)",
            list(types),
            math.floor(now),
            mark,
        )

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
        """Claim up to `most` jobs of these types that are due at `now`, the earliest due first."""
        if not types or most < 1:
            return []
        try:
            rows = self._client.query(
                f"SELECT {_COLUMNS} FROM {{}}.dbbasic_claim("
                "%s::bigint, %s::text[], %s::integer, %s::bigint, %s::bigint, %s::text[], "
                "%s::text[], %s::integer[], %s::integer[], %s::float8, %s::integer, %s::text, "
                "%s::boolean)",
                [
                    int(worker),
                    list(types),
                    most,
                    math.floor(now),
                    mark,
                    list(skip),
                    list(limits),
                    [most_running for most_running, _ in limits.values()],
                    [most_claimed for _, most_claimed in limits.values()],
                    DEAD_SECONDS,
                    states.HIGHEST_ATTEMPT,
                    states.STOP_REQUESTED,
                    anyway,
                ],
                repeats=False,  # the caller first asks what the lost call has claimed
            )
        except NotInstalledError:
            return []
        except MovedError:
            raise self._moved() from None
        return [_row(row) for row in rows]

    # -- what attempts leave behind --

    def add_history(self, lines: Iterable[str]) -> None:
        """Add rows to the history; those before the last 100,000 are removed now and then."""
        lines = list(lines)
        columns = [line.split("\t", 6) for line in lines]
        self._client.write(
            "SELECT {}.dbbasic_add_history(%s::text[], %s::float8[], %s::text[], %s::integer, %s)",
            [row[0] for row in columns],
            [float(row[5]) for row in columns],
            lines,
            _KEPT_ATTEMPTS,
            again=False,
        )

    def history(self, job_id: str, since: float) -> Iterator[str]:
        """Yield the rows, those of one job unless `job_id` is "", in the order of adding."""
        where = "job_id = %s AND" if job_id else "%s = '' AND"
        number = 0
        while rows := self._client.read(
            f"SELECT line, number FROM {{}}.dbbasic_history WHERE {where} ended_at >= %s::float8 "
            "AND number > %s ORDER BY number LIMIT %s",
            job_id,
            since,
            number,
            _BATCH,
        ):
            for line, number in rows:  # noqa: B007 - the last one is where the next batch starts
                yield line
            if len(rows) < _BATCH:
                return

    def put_output(self, job_id: str, attempt: int, line: str) -> None:
        """Keep what an attempt has printed, until the job is removed."""
        printed = line.encode("utf-8", "surrogateescape")
        self._client.write(
            "SELECT {}.dbbasic_put_output(%s::text, %s, %s::bytea)", job_id, attempt, printed
        )

    def output(self, job_id: str, attempt: int | None) -> str | None:
        """Return what an attempt has printed, by default the one that was kept last."""
        rows = self._client.read(
            "SELECT line FROM {}.dbbasic_output WHERE job_id = %s "
            "AND attempt = coalesce(%s::integer, attempt) ORDER BY kept_at DESC LIMIT 1",
            job_id,
            attempt,
        )
        return bytes(rows[0][0]).decode("utf-8", "surrogateescape") if rows else None

    def put_progress(self, job_id: str, line: str | None) -> None:
        """Keep how far a job is, or forget it for None."""
        self._client.write("SELECT {}.dbbasic_put_progress(%s::text, %s::text)", job_id, line)

    def progress(self, job_ids: Collection[str]) -> dict[str, str]:
        """Return job id -> row, for those that have one."""
        sql = "SELECT job_id, line FROM {}.dbbasic_progress WHERE job_id = ANY (%s::text[])"
        return dict(self._client.read(sql, list(job_ids)))

    # -- the server --

    def warnings(self) -> list[str]:
        """Return what in the server's settings could lose jobs, one sentence each."""
        rows = self._client.query(
            "SELECT current_setting('synchronous_commit'), current_setting('fsync'), "
            "current_setting('full_page_writes'), current_setting('server_version_num')::integer"
        )
        ((commit, fsync, pages, version),) = rows
        found = []
        if commit == "off":
            found.append("synchronous_commit is off: a crash of the server loses the last changes")
        if fsync == "off":
            found.append("fsync is off: a crash of its machine can destroy the database")
        if pages == "off":
            found.append("full_page_writes is off: a crash of its machine can destroy the database")
        if version < _OLDEST_SERVER:
            found.append(f"PostgreSQL {version // 10000} is no longer supported: use 13 or newer")
        return found


def _reopen(url: str, fsync: bool) -> ProcrastinateBackend:
    return ProcrastinateBackend(url, fsync=fsync)


# -- rows --


def _row(columns: Sequence[Any]) -> StoredRow:
    job_id, job_type, payload, status, created_at, run_at, attempts, error, result, version = (
        columns[:10]
    )
    state = State(status, created_at, run_at, attempts, error, result)
    return StoredRow(job_id, job_type, payload, state, version)


def _edited(row: StoredRow, payload: str | None) -> StoredRow:
    return StoredRow(row.id, row.type, payload or "", row.state, row.version)


def _arrays(rows: Sequence[Row]) -> list[list[Any]]:
    """Return the columns of `_ARRAYS`."""
    return [
        [row.id for row in rows],
        [row.type for row in rows],
        [row.payload for row in rows],
        *_columns([row.state for row in rows]),
        [unique_key(row) for row in rows],
    ]


def _columns(new: Sequence[State | None]) -> list[list[Any]]:
    return [
        [state and state.status for state in new],
        [state and state.created_at for state in new],
        [state and state.run_at for state in new],
        [state and state.attempts for state in new],
        [state and state.error for state in new],
        [state and state.result for state in new],
    ]


def _having(statuses: Collection[str]) -> str:
    """Return a condition as the partial indexes have it."""
    wanted = [status for status in states.STATUSES if status in statuses]
    return "(" + " OR ".join(f"status = '{status}'" for status in wanted) + ")"


def _token() -> int:
    """Return a number that no other call has."""
    return _random.getrandbits(61)
