"""Engines: what keeps and runs jobs. The URL that `Queue.open` is given selects one.

    data/queue.tsv, file:data/queue.tsv, file:///srv/queue.tsv    the text file: Queue
    memory:, memory:NAME                                          a dict of this process

An engine is a class with the calls of `protocol.Engine`. These are the calls of a queue, not of a
store: an engine for a server with its own workers translates each call, and decides how a job gets
from `enqueue` to its handler. `tests/contract/` tests every engine.
"""

from __future__ import annotations

import os
import re

from dbbasic_queue.errors import NotAQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.engines.protocol import Engine

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def scheme_of(url_or_path: str | os.PathLike[str]) -> str:
    """Return the scheme in lower case; "file" for a path.

    >>> [scheme_of(u) for u in ("data/queue.tsv", "./a:b.tsv", "Memory:", "redis://host/0")]
    ['file', 'file', 'memory', 'redis']
    """
    found = _SCHEME.match(url_or_path) if isinstance(url_or_path, str) else None
    return found[1].lower() if found else "file"


def path_of(url_or_path: str | os.PathLike[str]) -> str:
    """Return the path that a `file:` URL (RFC 8089) or a path means.

    >>> [path_of(u) for u in ("a%20b.tsv", "file:a%20b.tsv", "file:///srv/queue.tsv")]
    ['a%20b.tsv', 'a b.tsv', '/srv/queue.tsv']

    Raises NotAQueue for the URL of another machine's file, or of none.
    """
    path = os.fspath(url_or_path)
    if not isinstance(url_or_path, str) or not _SCHEME.match(path):
        return path
    from urllib.parse import unquote

    path = path.partition(":")[2]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise NotAQueue(
                f"{url_or_path!r} is refused: it names the machine {host!r}, and a queue is a "
                "file of this one (write file:///path or file:relative/path)"
            )
        path = slash + path
    if not path:
        raise NotAQueue(f"{url_or_path!r} is refused: it names no file (write file:data/queue.tsv)")
    return unquote(path)


def find(scheme: str) -> Callable[..., Engine]:
    """Return the engine that opens URLs of this scheme. Raises NotAQueue if there is none."""
    if scheme == "memory":
        from dbbasic_queue.engines.memory import MemoryQueue  # it imports Queue, which imports this

        return MemoryQueue
    raise NotAQueue(
        f"unknown URL scheme {scheme!r}: must be file or memory (if it is a path, write "
        f"./{scheme}:...)"
    )
