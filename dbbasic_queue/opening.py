"""`open_queue`: the queue that a path or URL names, in a store or on an engine."""

from __future__ import annotations

import os

from dbbasic_queue.errors import NotAQueue
from dbbasic_queue.jobqueue import Queue
from dbbasic_queue.lazy import load
from dbbasic_queue.store.location import scheme_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.engines.store import EngineStore

POSTGRES_SCHEMES = ("postgresql", "postgres")
REDIS_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")


def open_queue(
    path_or_url: str | os.PathLike[str],
    *,
    fsync: bool = True,
    even_if_moved: bool = False,
    **options: Any,
) -> Queue:
    """Return the queue at a path or URL.

    A path or `file:PATH` is a text file, `memory:` and `memory:NAME` are in this process's memory.
    `postgresql://USER:PASSWORD@HOST/DATABASE` is in PostgreSQL, in Procrastinate's tables;
    `redis://HOST:PORT/NUMBER` in Redis or Valkey, in RQ's keys (`rediss:` with TLS, `unix:` by a
    socket). `?queue=NAME` at the end chooses one of several queues there. `options` are those of
    `Queue`. With `fsync=False`, a crash of the PostgreSQL server may lose the last jobs; Redis has
    a setting of its own for that. With `even_if_moved`, no call raises QueueMoved.

    No connection is made yet. Raises NotAQueue for a URL of another kind, or if the packages that
    it needs aren't installed: `pip install 'dbbasic-queue[postgres]'`, or `[redis]`.
    """
    scheme = scheme_of(path_or_url)
    if scheme in POSTGRES_SCHEMES + REDIS_SCHEMES:
        _check_url(str(path_or_url))
    if scheme in POSTGRES_SCHEMES:
        store = _open(_postgres, "postgres")(path_or_url, fsync=fsync)
    elif scheme in REDIS_SCHEMES:
        store = _open(_redis, "redis")(path_or_url)
    else:
        return Queue(path_or_url, fsync=fsync, even_if_moved=even_if_moved, **options)
    store.even_if_moved = even_if_moved
    return Queue.of_store(store, **options)


def _check_url(url: str) -> None:
    """Raise NotAQueue for a URL that would be taken apart at the wrong places.

    It isn't shown: parts of its password could be taken for the host or the path.
    """
    if url.split() != [url]:
        raise NotAQueue("invalid queue: the URL has spaces or line breaks in it or around it")
    if url[:5].lower() == "unix:":
        return
    if url.count("@") > 1 or "@" in url.partition("://")[2].partition("/")[2].partition("?")[0]:
        raise NotAQueue(
            "invalid queue: the URL has an @ too many, or a / before its @: in a user or password, "
            "write special characters as %XX, such as %40 for @, %2F for /, %3F for ? and %23 for #"
        )


def _open(function: Callable[[], Callable[..., EngineStore]], extra: str) -> Any:
    try:
        return load(function)
    except ImportError as e:
        raise NotAQueue(
            f"a queue of this kind needs packages that aren't installed ({e}): "
            f"pip install 'dbbasic-queue[{extra}]'"
        ) from e


def _postgres() -> Callable[..., EngineStore]:
    from dbbasic_queue.engines.procrastinate import open_store

    return open_store


def _redis() -> Callable[..., EngineStore]:
    from dbbasic_queue.engines.rq import open_store

    return open_store
