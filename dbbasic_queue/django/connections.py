"""Django's connections to databases and caches, around jobs and in forked processes.

- Before and after each job, connections are closed that a request would close: those that are
  broken, or older than CONN_MAX_AGE.
- A pass that may fork keeps none: SQLite would share its locks with the forked process, and lose
  what both write.
- A forked process must not use what its parent has opened nevertheless (a pool, a connection within
  a transaction), nor close it: that would end it for the parent, too. It forgets it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from asgiref.sync import SyncToAsync
from django.core.cache import caches
from django.db import close_old_connections, connections, reset_queries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_process = os.getpid()
_inherited: list[Any] = []
"""objects of the parent's connections: if they were collected, they would close them"""


def forget_inherited() -> None:
    """In a forked process, forget what the parent has opened. Otherwise do nothing."""
    global _process
    if _process == os.getpid():
        return
    _process = os.getpid()
    for connection in connections.all(initialized_only=True):
        if getattr(connection, "is_in_memory_db", bool)():
            continue  # a test's: the fork has a copy of it
        _inherited.append(connection)
        pools = getattr(connection, "_connection_pools", None)
        if pools:
            _inherited.append(dict(pools))
            pools.clear()
        del connections[connection.alias]
    for alias in list(caches.settings):
        if hasattr(caches._connections, alias):
            _inherited.append(caches[alias])
            del caches[alias]
    # The parent's thread doesn't exist here, so what it is given would wait forever.
    _inherited.append(SyncToAsync.single_thread_executor)
    SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)


def before_job() -> None:
    """Close unusable connections, and forget the queries of earlier jobs."""
    reset_queries()
    close_old_connections()


def after_job(*, every: bool) -> None:
    """Close the connections that a request would close, or `every` one outside a transaction."""
    close_old_connections()
    if every:
        for connection in connections.all(initialized_only=True):
            if not connection.in_atomic_block:
                connection.close()
    for cache in caches.all(initialized_only=True):
        cache.close()
