"""Engines: what keeps and runs jobs, chosen by the URL that `Queue.open` is given.

    data/queue.tsv, file:data/queue.tsv, file:///srv/queue.tsv    the text file: Queue
    memory:, memory:NAME                                          a dict of this process
    any other scheme                                              what a package registers for it

An engine is a class with the calls of `protocol.Engine`. They are the calls of a queue, not of a
store: an engine for a server that has workers of its own translates each call, and how a job gets
from `enqueue` to its handler is its affair. A package registers one in the entry point group
`dbbasic_queue.engines`: the scheme is the name, and the object is called with the URL, and with the
options that `Queue.open` was given as keyword arguments.

    entry_points={"dbbasic_queue.engines": ["redis = my_package:RedisQueue"]}

`conformance` holds the tests that every engine has to pass.
"""

from __future__ import annotations

import os
import re

from dbbasic_queue.errors import NotAQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.engines.protocol import Engine

GROUP = "dbbasic_queue.engines"
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
    """Return what opens URLs of this scheme.

    Raises NotAQueue where there is no such engine, or more than one.
    """
    if scheme == "memory":
        # By name, as another package's engine is found: what is below does not import what is
        # above.
        from importlib import import_module

        ours: Callable[..., Engine] = import_module("dbbasic_queue.engines.memory").MemoryQueue
        return ours
    from importlib.metadata import entry_points

    installed = entry_points(group=GROUP)
    found = {point.value: point for point in installed if point.name == scheme}
    if len(found) == 1:
        (point,) = found.values()
        theirs: Callable[..., Engine] = point.load()
        return theirs
    if found:
        raise NotAQueue(
            f"the scheme {scheme!r} is refused: several installed packages claim it "
            f"({', '.join(sorted(found))}); uninstall all but one"
        )
    schemes = ", ".join(["file", "memory", *sorted({point.name for point in installed})])
    raise NotAQueue(
        f"the scheme {scheme!r} is refused: no engine has it (there are {schemes}; another comes "
        f"with a package that registers it; a path with a colon is written ./{scheme}:...)"
    )
