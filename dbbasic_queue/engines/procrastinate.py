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
import os
import random
import re
import time
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from dbbasic_queue.engines.backend import (
    DEAD_SECONDS,
    MOVED,
    ConnectionLost,
    LiveWorker,
    StoredRow,
    unique_key,
)
from dbbasic_queue.engines.store import EngineStore
from dbbasic_queue.errors import InvalidArgument, NotAQueue, QueueMoved, StoreError, queue_moved
from dbbasic_queue.lazy import load
from dbbasic_queue.model import states
from dbbasic_queue.model.states import State
from dbbasic_queue.store.protocol import Overview, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

    from dbbasic_queue.engines.backend import Change
    from dbbasic_queue.model.rows import Row

    Connection = psycopg.Connection[tuple[Any, ...]]

DEFAULT_QUEUE = "dbbasic_queue"
_VERSION = 1
"""of procrastinate.sql; a queue with an older one gets the new one"""
_STAMP = "dbbasic_queue "
_MOST_IDLE = 4
_KEPT_ATTEMPTS = 100_000
_BATCH = 500
_MOST_COLLISIONS = 5
"""how often a call is repeated that the server has undone, because it was in another one's way"""
_OLDEST_SERVER = 130_000

_CONNECTION_OPTIONS: dict[str, int | str] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 20_000,  # ms; a server that vanished is noticed before we count as dead
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""unless the URL has others"""

_PERMANENT = re.compile(
    r"authentication failed|does not exist|no password supplied|no pg_hba\.conf entry"
    r"|not permitted to log in|permission denied for database"
)
"""why the server refuses a connection, if it will refuse the next one, too"""

_PROCRASTINATE_FUNCTIONS = (
    "procrastinate_defer_jobs_v1(procrastinate_job_to_defer_v1[])",
    "procrastinate_finish_job_v1(bigint,procrastinate_job_status,boolean)",
    "procrastinate_cancel_job_v1(bigint,boolean,boolean)",
    "procrastinate_retry_job_v2(bigint,timestamptz,integer,varchar,varchar)",
    "procrastinate_register_worker_v1()",
    "procrastinate_unregister_worker_v1(bigint)",
    "procrastinate_update_heartbeat_v1(bigint)",
    "procrastinate_prune_stalled_workers_v1(double precision)",
)
# From the catalogs themselves: to_regclass doesn't see a table that has just been committed by a
# transaction for whose lock this one has waited.
_READ_STAMP = (
    "SELECT d.description FROM pg_catalog.pg_namespace n "
    "JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'dbbasic_jobs' "
    "JOIN pg_catalog.pg_description d ON d.objoid = c.oid AND d.objsubid = 0 "
    "AND d.classoid = 'pg_catalog.pg_class'::regclass WHERE n.nspname = %s"
)
_COLUMNS = "id, type, payload, status, created_at, run_at, attempts, error, result, version"
_ARRAYS = (
    "%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::integer[], "
    "%s::text[], %s::text[], %s::text[]"
)
_QUEUE = re.compile(r"(?!pg_)[A-Za-z0-9_]{1,40}")
_CONNECTION_CODES = ("08", "57P01", "57P02", "57P03", "57P05")
"""broken or refused connections; the server shuts down, crashed, starts, or closes idle ones"""
_MOVED_CODE = "DBQ01"
_COLLISIONS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_UNDEFINED = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
)
_random = random.SystemRandom()


class _NotInstalledError(Exception):
    """Raised if the queue was never used: its schema, or what belongs in it, isn't there."""


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
        self.schema, self._options = _parse_url(url)
        self.name = _name(self.schema, self._options)
        self._connections = _Connections(self._connect)
        self._transaction: Any = None
        """the application's connection whose transaction the calls belong to"""

    def __reduce__(self) -> Any:
        return _reopen, (self.url, self._fsync)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def exists(self) -> bool:
        """Return whether the queue was ever used."""
        return self._stamp() is not None

    def close(self) -> None:
        """Close all idle connections; the next call opens one again."""
        self._connections.close()

    # -- calls of the server --

    def _query(
        self,
        sql: str,
        arguments: Sequence[Any] = (),
        *,
        again: bool | None = None,
        repeats: bool = True,
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a statement, in which `{}` is the schema.

        If the connection breaks, it is executed once more, on a new one, unless `repeats` is False.
        `again`, if given, is its last argument: whether it may have been made before. Raises
        _NotInstalledError if the queue was never used.
        """
        statement = sql.replace("{}", f'"{self.schema}"')
        if self._transaction is not None:
            return self._query_within(statement, arguments)
        collisions = 0
        lost: ConnectionLost | None = None
        while True:
            values = arguments if again is None else [*arguments, again]
            try:
                with self._connections.one() as connection:
                    return connection.execute(statement.encode(), values).fetchall()
            except ConnectionLost as e:  # there is no new connection
                raise lost or e from None
            except psycopg.Error as e:
                is_undefined = isinstance(e, _UNDEFINED)
                if is_undefined and self._stamp() is None:
                    raise _NotInstalledError from e
                if isinstance(e, _COLLISIONS) or is_undefined:  # just installed by someone else
                    collisions += 1
                    if collisions <= _MOST_COLLISIONS:
                        time.sleep(_random.random() / 20)
                        continue
                error = self._error(e)
                if not isinstance(error, ConnectionLost) or lost is not None or not repeats:
                    raise error from None
                lost = error
            self._connections.close()  # all of them are broken, if the server was restarted
            again = again if again is None else True

    def _query_within(self, statement: str, arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a statement in the application's transaction."""
        try:
            cursor = self._transaction.cursor()
            try:
                cursor.execute(statement, list(arguments))
                return cast("list[tuple[Any, ...]]", cursor.fetchall())
            finally:
                cursor.close()
        except Exception as e:
            if not _is_of_driver(e):
                raise
            raise StoreError(
                f"{self._text(e)} (nothing was added, and the transaction of the given connection "
                f"is aborted: roll it back): {self.name}"
            ) from e

    def _read(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query, none if the queue was never used."""
        try:
            return self._query(sql, arguments)
        except _NotInstalledError:
            return []

    def _write(
        self,
        sql: str,
        *arguments: Any,
        installs: bool = False,
        again: bool | None = None,
        repeats: bool = True,
    ) -> Any:
        """Return the value that a function returns; with `installs`, make the queue if needed."""
        try:
            try:
                ((value,),) = self._query(sql, arguments, again=again, repeats=repeats)
            except _NotInstalledError:
                if not installs:
                    raise
                self.install()
                ((value,),) = self._query(sql, arguments, again=again, repeats=repeats)
        except _NotInstalledError:
            raise StoreError(f"the queue was removed: {self.name}") from None
        return value

    def _error(self, e: psycopg.Error) -> StoreError | QueueMoved:
        """Return the error to raise for one that the driver raised for a statement."""
        text = self._text(e)
        code = e.sqlstate or ""
        if code == _MOVED_CODE:
            return self._moved()
        is_lost = not code or code.startswith(_CONNECTION_CODES)
        if isinstance(e, psycopg.OperationalError) and is_lost:
            return ConnectionLost(
                f"no connection to PostgreSQL: {text} (if this was a change, it may have been "
                f"made; is the server running?): {self.name}"
            )
        return StoreError(f"PostgreSQL refuses: {text} (nothing was changed): {self.name}")

    def _not_connected(self, e: psycopg.Error) -> StoreError:
        """Return the error to raise if the server can't be reached, or refuses a connection."""
        text = self._text(e)
        if _PERMANENT.search(text):
            return StoreError(f"PostgreSQL refuses: {text} (nothing was done): {self.name}")
        return ConnectionLost(
            f"no connection to PostgreSQL: {text} (nothing was done; is the URL right, and is the "
            f"server running?): {self.name}"
        )

    def _text(self, e: Exception) -> str:
        """Return what an error says, on one line, without the password."""
        diagnosis = getattr(getattr(e, "diag", None), "message_primary", None)
        text = " ".join((diagnosis or str(e)).split()) or type(e).__name__
        password = str(self._options.get("password", ""))
        return text.replace(password, "***") if len(password) > 2 else text

    # -- connections and installation --

    def _connect(self) -> Connection:
        """Return a new connection. Raises ConnectionLost if the server can't be reached."""
        options = {**_CONNECTION_OPTIONS, **self._options, "client_encoding": "utf8"}
        # Without prepared statements, which a pooler such as PgBouncer may not know.
        try:
            connection: Connection = psycopg.connect(
                **options, autocommit=True, prepare_threshold=None
            )
        except psycopg.Error as e:
            raise self._not_connected(e) from None
        try:
            # A count of running jobs must see what others have committed.
            settings = {"default_transaction_isolation": "read committed", "jit": "off"}
            if not self._fsync:
                settings["synchronous_commit"] = "off"
            connection.execute(
                "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) "
                "AS new (name, value)",
                [list(settings), list(settings.values())],
            )
            found = self._read_stamp(connection)
            if found is not None and found < _VERSION:
                self._install(connection)
            elif found is not None and found > _VERSION:
                raise NotAQueue(
                    "a newer version of dbbasic-queue has upgraded this queue: upgrade it for this "
                    f"program, too: {self.name}"
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _stamp(self) -> int | None:
        """Return the version of the queue's tables and functions, None if there are none."""
        return _version(self._query(_READ_STAMP, [self.schema]))

    def _read_stamp(self, connection: Connection) -> int | None:
        return _version(connection.execute(_READ_STAMP.encode(), [self.schema]).fetchall())

    def install(self) -> None:
        """Make the queue's schema, unless it is there; in a transaction of its own."""
        try:
            with self._connections.one() as connection:
                self._install(connection)
        except psycopg.Error as e:
            raise self._error(e) from None

    def _install(self, connection: Connection) -> None:
        with connection.transaction():
            connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
                [f"dbbasic_queue install {self.schema}"],
            )
            found = self._read_stamp(connection)
            if found == _VERSION:
                return
            is_new = found is None
            if is_new:
                self._make_schema(connection)
            connection.execute(f'SET LOCAL search_path TO "{self.schema}", pg_temp'.encode())
            if is_new:
                connection.execute(load(_schema_of_procrastinate).encode())
                self._check_procrastinate(connection)
            connection.execute(_sql().encode())
            connection.execute(f"COMMENT ON TABLE dbbasic_jobs IS '{_STAMP}{_VERSION}'".encode())

    def _make_schema(self, connection: Connection) -> None:
        ((has_schema, is_used),) = connection.execute(
            "SELECT count(DISTINCT n.oid) > 0, count(c.oid) > 0 FROM pg_catalog.pg_namespace n "
            "LEFT JOIN pg_catalog.pg_class c "
            "ON c.relnamespace = n.oid AND c.relname = 'procrastinate_jobs' WHERE n.nspname = %s",
            [self.schema],
        ).fetchall()
        if is_used:
            raise NotAQueue(
                f"the schema {self.schema!r} has the Procrastinate tables of an application: "
                f"choose another ?queue=NAME: {self.name}"
            )
        if not has_schema:  # with IF NOT EXISTS, it would need the right to create one
            connection.execute(f'CREATE SCHEMA "{self.schema}"'.encode())

    def _check_procrastinate(self, connection: Connection) -> None:
        missing = connection.execute(
            "SELECT name FROM unnest(%s::text[]) AS f (name) WHERE to_regprocedure(name) IS NULL",
            [list(_PROCRASTINATE_FUNCTIONS)],
        ).fetchall()
        if missing:
            raise NotAQueue(
                f"this version of Procrastinate isn't supported: it has no {missing[0][0]} "
                f"(install another version, or a newer dbbasic-queue): {self.name}"
            )

    # -- jobs --

    def within(self, connection: Any) -> ProcrastinateBackend:
        """Return a backend whose calls belong to the transaction of a database connection."""
        _check_connection(connection)
        if not self.exists():
            self.install()
        backend = ProcrastinateBackend.__new__(ProcrastinateBackend)
        backend.__dict__ |= self.__dict__
        backend._transaction = connection
        return backend

    def add(self, rows: Sequence[Row], *, own_id: bool = False, anyway: bool = False) -> bool:
        """Add jobs, in this order, all or none; False if an id is taken and `own_id` is set."""
        is_added: bool | None = self._write(
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
            self._read("SELECT pg_notify(%s, '')", self._channel())

    def _channel(self) -> str:
        return f"dbbasic_queue.{self.schema}"

    def _moved(self) -> QueueMoved:
        return queue_moved(self.name, self.read(MOVED).decode())

    def add_unless_pending(self, row: Row, *, anyway: bool = False) -> str | None:
        """Add a pending job, unless a pending one has the same key; return the id of that one."""
        state = row.state
        found: str | None = self._write(
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
        rows = self._read(f"SELECT {_COLUMNS} FROM {{}}.dbbasic_jobs WHERE id = %s", job_id)
        return _row(rows[0]) if rows else None

    def find_many(self, job_ids: Sequence[str]) -> dict[str, StoredRow]:
        """Return job id -> the job, for those that exist."""
        sql = f"SELECT {_COLUMNS} FROM {{}}.dbbasic_jobs WHERE id = ANY (%s::text[])"
        return {row[0]: _row(row) for row in self._read(sql, list(job_ids))}

    def overview(self, now: float) -> Overview:
        """Return how many jobs there are, and which were due first."""
        counts = dict(self._read("SELECT status, count(*) FROM {}.dbbasic_jobs GROUP BY status"))
        types = self._read(
            f"""
            SELECT {_COLUMNS}, waiting_type, waiting, due FROM (
                SELECT
                    type AS waiting_type, count(*) AS waiting,
                    count(*) FILTER (WHERE run_at <= %s) AS due,
                    min(ARRAY[greatest(run_at, created_at), number]) FILTER (WHERE run_at <= %s)
                        AS first
                FROM {{}}.dbbasic_jobs WHERE status = 'pending' GROUP BY type
            ) found LEFT JOIN {{}}.dbbasic_jobs ON number = first[2]
            """,
            math.floor(now),
            math.floor(now),
        )
        return Overview(
            counts,
            [
                Waiting(job_type, count, due, _row(row) if row[0] else None)
                for *row, job_type, count, due in types
            ],
            self._oldest,
        )

    def _oldest(self) -> float | None:
        ((oldest,),) = self._read(
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
        ((last,),) = self._read("SELECT max(number) FROM {}.dbbasic_jobs") or [(None,)]
        number = 0
        errors = "AND error <> ''" if only_errors else ""
        while last is not None:
            rows = self._read(
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
        made: list[bool] = self._write(
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
        return {name for (name,) in self._read("SELECT {}.dbbasic_types()")}

    def has_open(self) -> bool:
        """Return whether any job is pending or processing."""
        return self._is(
            "SELECT EXISTS (SELECT FROM {}.dbbasic_jobs WHERE status = 'pending')"
            " OR EXISTS (SELECT FROM {}.dbbasic_jobs WHERE status = 'processing')"
        )

    def _is(self, sql: str, *arguments: Any) -> bool:
        return self._read(sql, *arguments) == [(True,)]

    def pending_types(self) -> set[str]:
        """Return the types of all jobs that are pending."""
        return self.types()

    def count_due(self, now: float) -> int:
        """Return how many pending jobs are due at `now`, in Unix seconds."""
        rows = self._read(
            "SELECT count(*) FROM {}.dbbasic_jobs WHERE status = 'pending' AND run_at <= %s",
            math.floor(now),
        )
        return int(rows[0][0]) if rows else 0

    def due_late(self, now: float) -> Iterator[StoredRow]:
        """Yield the pending jobs whose times a wrong clock may have set."""
        sql = f"SELECT {_COLUMNS} FROM {{}}.dbbasic_due_late(%s::bigint, %s::bigint)"
        latest = now + states.CLOCK_TOLERANCE_SECONDS
        return map(_row, self._read(sql, math.floor(now), math.floor(latest)))

    # -- named values --

    def read(self, name: str) -> bytes:
        """Return a value, b"" if it isn't set."""
        rows = self._read("SELECT value FROM {}.dbbasic_values WHERE name = %s", name)
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
        is_set: bool | None = self._write(
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
        worker = self._write("SELECT {}.dbbasic_open_worker(%s::text, %s)", name, parallel)
        return str(worker)

    def beat(self, worker: str) -> bool:
        """Say that a worker is alive; False if it is no longer registered."""
        is_alive: bool = self._write("SELECT {}.dbbasic_beat(%s)", int(worker))
        return is_alive

    def close_worker(self, worker: str) -> None:
        """Remove a worker."""
        self._write("SELECT {}.dbbasic_close_worker(%s)", int(worker))

    def workers(self) -> list[LiveWorker]:
        """Return the live workers."""
        return [
            LiveWorker(
                pid, started_at, listed_at, parallel, frozenset(zip(ids, attempts, strict=True))
            )
            for pid, started_at, listed_at, parallel, ids, attempts in self._read(
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
            for row in self._read(
                f"SELECT {_COLUMNS} FROM {{}}.dbbasic_jobs WHERE status = 'processing' "
                "AND worker = %s ORDER BY claim_number, run_at, number",
                int(worker),
            )
        ]

    def dead_claims(self) -> list[tuple[StoredRow, bool]]:
        """Return the `processing` jobs of dead workers, and whether each may have been started."""
        # From now on a worker that counts as dead can't say any more that it is alive.
        if not self._read("SELECT {}.dbbasic_prune(%s)", DEAD_SECONDS):
            return []
        rows = self._read(
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

    def listen(self) -> _News:
        """Open a connection on which the server reports added jobs."""
        try:
            return _News(self._connect, self._channel())
        except psycopg.Error as e:
            raise self._error(e) from None

    def look(self, now: float) -> int:
        """Return a mark: jobs that are added later are after it."""
        rows = self._read(
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
            rows = self._query(
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
        except _NotInstalledError:
            return []
        return [_row(row) for row in rows]

    # -- what attempts leave behind --

    def add_history(self, lines: Iterable[str]) -> None:
        """Add rows to the history; those before the last 100,000 are removed now and then."""
        lines = list(lines)
        columns = [line.split("\t", 6) for line in lines]
        self._write(
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
        while rows := self._read(
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
        self._write(
            "SELECT {}.dbbasic_put_output(%s::text, %s, %s::bytea)", job_id, attempt, printed
        )

    def output(self, job_id: str, attempt: int | None) -> str | None:
        """Return what an attempt has printed, by default the one that was kept last."""
        rows = self._read(
            "SELECT line FROM {}.dbbasic_output WHERE job_id = %s "
            "AND attempt = coalesce(%s::integer, attempt) ORDER BY kept_at DESC LIMIT 1",
            job_id,
            attempt,
        )
        return bytes(rows[0][0]).decode("utf-8", "surrogateescape") if rows else None

    def put_progress(self, job_id: str, line: str | None) -> None:
        """Keep how far a job is, or forget it for None."""
        self._write("SELECT {}.dbbasic_put_progress(%s::text, %s::text)", job_id, line)

    def progress(self, job_ids: Collection[str]) -> dict[str, str]:
        """Return job id -> row, for those that have one."""
        sql = "SELECT job_id, line FROM {}.dbbasic_progress WHERE job_id = ANY (%s::text[])"
        return dict(self._read(sql, list(job_ids)))

    # -- the server --

    def warnings(self) -> list[str]:
        """Return what in the server's settings could lose jobs, one sentence each."""
        rows = self._query(
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


class _Connections:
    """The idle connections of a process. Threads take one for each call.

    A forked child has none, and never closes those of its parent: that would end them there.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._renew()

    def _renew(self) -> None:
        process = os.getpid()
        self._idle: deque[Connection] = deque()
        weakref.finalize(self, _close_all, process, self._idle)
        self._process = process  # last: now other threads of a forked child use the new ones, too

    @contextmanager
    def one(self) -> Iterator[Connection]:
        """Lend a connection during a `with` block; it is closed if its state isn't known after."""
        if self._process != os.getpid():
            self._renew()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        process = os.getpid()
        try:
            yield connection
        except psycopg.Error:
            self._return(connection)
            raise
        except BaseException:
            if os.getpid() == process:
                connection.close()
            raise
        self._return(connection)

    def _return(self, connection: Connection) -> None:
        is_idle = connection.info.transaction_status == pq.TransactionStatus.IDLE
        if is_idle and len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close all idle connections of this process."""
        if self._process == os.getpid():
            _close_all(self._process, self._idle)


class _News:
    """Tells one pass whether a call has reported jobs."""

    def __init__(self, connect: Callable[[], Connection], channel: str) -> None:
        self._connect = connect
        self._channel = channel
        self._process = os.getpid()
        self._listen()

    def _listen(self) -> None:
        self._connection = self._connect()
        self._connection.execute(f'LISTEN "{self._channel}"'.encode())

    def have_come(self) -> bool:
        """Return whether a job was added since the last call; True if the connection was broken.

        Then it is opened again, if that is possible.
        """
        try:
            return any(True for _ in self._connection.notifies(timeout=0))
        except psycopg.Error:
            self._connection.close()
        with suppress(psycopg.Error, StoreError):
            self._listen()
        return True

    def close(self) -> None:
        """Close the connection, in the process that opened it."""
        if os.getpid() == self._process:
            self._connection.close()


_of_parents: list[deque[Connection]] = []
"""Connections that were made before a fork. They are kept, because their end would close them."""


def _close_all(process: int, idle: deque[Connection]) -> None:
    if os.getpid() != process:
        _of_parents.append(idle)
        return
    while idle:
        try:
            idle.pop().close()
        except IndexError:  # another thread has just taken it
            return


def _reopen(url: str, fsync: bool) -> ProcrastinateBackend:
    return ProcrastinateBackend(url, fsync=fsync)


# -- rows --


def _version(rows: list[tuple[Any, ...]]) -> int | None:
    """Return the version in a comment that `_READ_STAMP` has found."""
    for (comment,) in rows:
        if comment.startswith(_STAMP):
            return int(comment.removeprefix(_STAMP))
    return None


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


# -- the URL --


def _parse_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return the schema, and what libpq needs to connect. Errors don't show the URL's password."""
    head, question, query = url.partition("?")
    queues, others = [], []
    for part in query.split("&") if question else []:
        name, _, value = part.partition("=")
        if name == "queue":
            queues.append(unquote(value))
        else:
            others.append(part)
    if len(queues) > 1 or not all(_QUEUE.fullmatch(name) for name in queues):
        raise NotAQueue(
            f"invalid queue {', '.join(queues)!r} in a PostgreSQL URL: ?queue=NAME must be 1 to 40 "
            "characters from A-Z a-z 0-9 _, and not begin with pg_"
        )
    try:
        options = conninfo_to_dict("?".join([head, "&".join(others)]) if others else head)
    except psycopg.Error:
        raise NotAQueue(
            "invalid PostgreSQL URL: must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
            "perhaps with ?queue=NAME and libpq's parameters (write other characters than letters "
            "and digits in a password as %XX)"
        ) from None
    return (queues or [DEFAULT_QUEUE])[0], dict(options)


def _name(schema: str, options: Mapping[str, Any]) -> str:
    """Return the URL of a queue, without a password; the same for all spellings of the URL.

    >>> _name("mail", {"dbname": "app", "user": "me", "password": "secret", "host": "/tmp"})
    'postgresql://me@%2Ftmp:5432/app?queue=mail'
    """
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val is not None
    }

    def get(keyword: str) -> str:
        return str(options.get(keyword) or defaults.get(keyword) or "")

    user = get("user")
    hosts = (get("host") or get("hostaddr") or "local").split(",")
    ports = (get("port") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    places = ",".join(
        f"{quote(host.lower() if host[:1] != '/' else host, safe='')}:{port}"
        for host, port in zip(hosts, ports, strict=False)
    )
    database = quote(get("dbname") or user, safe="")
    return f"postgresql://{quote(user, safe='')}@{places}/{database}?queue={schema}"


# -- the application's connections --


def _check_connection(connection: Any) -> None:
    """Raise InvalidArgument unless this is a connection to PostgreSQL that can be used here."""
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    calls = [getattr(connection, name, None) for name in ("cursor", "commit", "rollback")]
    if (
        not all(callable(call) for call in calls)
        or any(load(_inspect).iscoroutinefunction(call) for call in calls)
        or kind.startswith(("sqlite3.", "pymysql.", "MySQLdb.", "oracledb."))
        or getattr(connection, "vendor", "postgresql") != "postgresql"  # Django's
    ):
        raise InvalidArgument(
            f"invalid connection of type {kind}: must be a synchronous connection to PostgreSQL, "
            "of psycopg 3 or 2, or Django's django.db.connection (of an SQLAlchemy session, pass "
            "session.connection().connection)"
        )


def _inspect() -> ModuleType:
    import inspect

    return inspect


def _is_of_driver(e: Exception) -> bool:
    """Return whether an error is one that a driver, or Django, raises for the database."""
    return any(kind.__name__ in ("Error", "DatabaseError") for kind in type(e).__mro__)


# -- installing --


def _sql() -> str:
    path = os.path.join(os.path.dirname(__file__), "procrastinate.sql")
    with open(path, encoding="utf-8") as file:
        return file.read()


def _schema_of_procrastinate() -> str:
    from procrastinate.schema import SchemaManager

    return SchemaManager.get_schema()
