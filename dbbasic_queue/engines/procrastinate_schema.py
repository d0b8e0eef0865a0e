"""A queue's schema in PostgreSQL: Procrastinate's tables, and our own next to them.

The comment of `dbbasic_jobs` says which version of `procrastinate.sql` a schema has. One process at
a time installs or upgrades it, in one transaction; the others wait, and find it done.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dbbasic_queue.errors import NotAQueue
from dbbasic_queue.lazy import load

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

VERSION = 1
"""of procrastinate.sql; a queue with an older one gets the new one"""
_STAMP = "dbbasic_queue "

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
READ_STAMP = (
    "SELECT d.description FROM pg_catalog.pg_namespace n "
    "JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'dbbasic_jobs' "
    "JOIN pg_catalog.pg_description d ON d.objoid = c.oid AND d.objsubid = 0 "
    "AND d.classoid = 'pg_catalog.pg_class'::regclass WHERE n.nspname = %s"
)


def version_of(rows: list[tuple[Any, ...]]) -> int | None:
    """Return the version in a comment that `READ_STAMP` has found."""
    for (comment,) in rows:
        if comment.startswith(_STAMP):
            return int(comment.removeprefix(_STAMP))
    return None


def read_version(connection: Connection, schema: str) -> int | None:
    """Return the version of the queue's tables and functions, None if it was never used."""
    return version_of(connection.execute(READ_STAMP.encode(), [schema]).fetchall())


def install(connection: Connection, schema: str, name: str) -> None:
    """Make or upgrade a queue's schema; `name` is the queue's, for messages.

    Raises NotAQueue if the schema is an application's own.
    """
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
            [f"dbbasic_queue install {schema}"],
        )
        found = read_version(connection, schema)
        if found == VERSION:
            return
        is_new = found is None
        if is_new:
            _make_schema(connection, schema, name)
        connection.execute(f'SET LOCAL search_path TO "{schema}", pg_temp'.encode())
        if is_new:
            connection.execute(load(_schema_of_procrastinate).encode())
            _check_procrastinate(connection, name)
        connection.execute(_sql().encode())
        connection.execute(f"COMMENT ON TABLE dbbasic_jobs IS '{_STAMP}{VERSION}'".encode())


def _make_schema(connection: Connection, schema: str, name: str) -> None:
    ((has_schema, is_used),) = connection.execute(
        "SELECT count(DISTINCT n.oid) > 0, count(c.oid) > 0 FROM pg_catalog.pg_namespace n "
        "LEFT JOIN pg_catalog.pg_class c "
        "ON c.relnamespace = n.oid AND c.relname = 'procrastinate_jobs' WHERE n.nspname = %s",
        [schema],
    ).fetchall()
    if is_used:
        raise NotAQueue(
            f"the schema {schema!r} has the Procrastinate tables of an application: "
            f"choose another ?queue=NAME: {name}"
        )
    if not has_schema:  # with IF NOT EXISTS, it would need the right to create one
        connection.execute(f'CREATE SCHEMA "{schema}"'.encode())


def _check_procrastinate(connection: Connection, name: str) -> None:
    missing = connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS f (name) WHERE to_regprocedure(name) IS NULL",
        [list(_PROCRASTINATE_FUNCTIONS)],
    ).fetchall()
    if missing:
        raise NotAQueue(
            f"this version of Procrastinate isn't supported: it has no {missing[0][0]} "
            f"(install another version, or a newer dbbasic-queue): {name}"
        )


def _sql() -> str:
    path = os.path.join(os.path.dirname(__file__), "procrastinate.sql")
    with open(path, encoding="utf-8") as file:
        return file.read()


def _schema_of_procrastinate() -> str:
    from procrastinate.schema import SchemaManager

    return SchemaManager.get_schema()
