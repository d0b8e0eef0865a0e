"""Where a queue is: a path, `file:PATH`, `memory:` or `memory:NAME`."""

from __future__ import annotations

import os

from dbbasic_queue.errors import NotAQueue
from dbbasic_queue.lazy import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.store.memory import MemoryStore
    from dbbasic_queue.store.protocol import Store
    from dbbasic_queue.store.textfile import TextFileStore

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SCHEME_CHARACTERS = _LETTERS + "0123456789+.-"


def open_store(
    location: str | os.PathLike[str], *, fsync: bool, even_if_moved: bool = False
) -> Store:
    """Return the store that a path or URL names; no file is opened yet.

    With `fsync`, changes to files are on the disk before a call returns. With `even_if_moved`, no
    call raises QueueMoved. Raises NotAQueue for a URL
    that is neither `memory:` nor valid for `path_of`.
    """
    scheme = scheme_of(location)
    if scheme == "memory":
        return load(_memory_store)(os.fspath(location))
    path = os.path.abspath(path_of(location))
    return load(_text_file_store)(path, fsync=fsync, even_if_moved=even_if_moved)


def _text_file_store() -> type[TextFileStore]:
    from dbbasic_queue.store.textfile import TextFileStore

    return TextFileStore


def _memory_store() -> Callable[[str], MemoryStore]:
    from dbbasic_queue.store.memory import memory_store

    return memory_store


def scheme_of(location: str | os.PathLike[str]) -> str:
    """Return a URL's scheme in lower case; "file" for a path.

    >>> [scheme_of(u) for u in ("data/queue.tsv", "./a:b.tsv", "Memory:", "redis://host/0")]
    ['file', 'file', 'memory', 'redis']
    """
    if not isinstance(location, str):
        return "file"
    scheme, colon, _ = location.partition(":")
    if not colon or not scheme or scheme[0] not in _LETTERS or scheme.strip(_SCHEME_CHARACTERS):
        return "file"
    return scheme.lower()


def path_of(location: str | os.PathLike[str], name: str = "queue") -> str:
    """Return the path that a path or `file:` URL (RFC 8089) means; `~` is the home directory.

    `name` is the argument's name in error messages. Raises NotAQueue for any other URL, and for
    a `file:` URL without a path or of another machine.

    >>> [path_of(u) for u in ("a%20b.tsv", "file:a%20b.tsv", "file:///srv/queue.tsv")]
    ['a%20b.tsv', 'a b.tsv', '/srv/queue.tsv']
    """
    path = os.fspath(location)
    scheme = scheme_of(location)
    if scheme != "file":
        server = "set $DBBASIC_QUEUE_URL" if name == "--file" else "use open_queue"
        # Don't show the URL: it may contain a password.
        raise NotAQueue(
            f"invalid {name}: unknown URL scheme {scheme!r}: must be "
            f"{'file or memory' if name == 'queue' else 'a path or file:PATH'} (for a path with a "
            f"colon, write ./{scheme}:...; for a queue on a server, {server})"
        )
    if isinstance(location, str) and "://" in location and location[:5].lower() != "file:":
        raise NotAQueue(  # it may be one with quotes or spaces before it
            f"invalid {name}: '://' in a path: is it meant to be a URL? It must begin with its "
            "scheme: remove quotes and spaces around it (it isn't shown: it may have a password)"
        )
    if isinstance(location, str) and location[:5].lower() == "file:":
        from urllib.parse import unquote

        path = path[5:]
        if path.startswith("//"):
            host, slash, path = path[2:].partition("/")
            if host not in ("", "localhost"):
                raise NotAQueue(
                    f"invalid {name} {location!r}: must be a file on this machine, not on {host!r} "
                    "(write file:///path or file:relative/path)"
                )
            path = slash + path
        if not path:
            raise NotAQueue(
                f"invalid {name} {location!r}: must name a file (write file:data/queue.tsv)"
            )
        path = unquote(path)
    return os.path.expanduser(path) if path[:1] == "~" else path
