"""Connections to Redis or Valkey, and the scripts that run there.

- **Each call is one script**, so it is made completely or not at all. One that changes something
  carries the number of the call: if the connection breaks, the call is repeated once, and a script
  that was run already returns what it has returned before. redis-py itself repeats nothing.
- **After a fork** the child has connections of its own, which redis-py sees to, and numbers of its
  own: with those of its parent, a call of the one would look like a repetition of the other's.
- **Errors** of redis-py don't leave this module, nor does a password.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dbbasic_queue.engines.backend import ConnectionLost
from dbbasic_queue.errors import NotAQueue, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    T = TypeVar("T")

    Argument = str | bytes | int | float

DEFAULT_QUEUE = "dbbasic_queue"
_QUEUE_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_LONGEST_QUEUE = 64
_SECRETS = {"password", "ssl_password"}
_REFUSED = {"decode_responses", "encoding", "encoding_errors", "retry_on_error", "retry_on_timeout"}
"""what would change the meaning of replies, or repeat calls"""
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
"""how long to wait for a reply: a worker that has waited twice still counts as alive"""


class Place(NamedTuple):
    """Which queue a URL names: `url` is for redis-py, and `name` is for messages."""

    url: str
    queue: str
    name: str


def parse_url(url: str) -> Place:
    """Return which queue a URL names. Raises NotAQueue for an invalid one; it isn't shown.

    >>> parse_url("valkey://:secret@host/1?queue=mail")
    Place(url='redis://:secret@host/1', queue='mail', name='redis://host:6379/1?queue=mail')
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise NotAQueue(
            "invalid queue: the URL of a Redis server must be redis://HOST:PORT/NUMBER"
        ) from None
    scheme = parts.scheme.replace("valkey", "redis")
    queue = DEFAULT_QUEUE
    options = []
    for key, value in query:
        if key == "queue":
            queue = value
        elif key in _REFUSED:
            raise NotAQueue(f"invalid queue: a queue's URL can't have the option {key}")
        else:
            options.append((key, value))
    if not 0 < len(queue) <= _LONGEST_QUEUE or queue.strip(_QUEUE_CHARACTERS):
        raise NotAQueue(
            f"invalid queue {queue!r} in the URL: must be 1 to {_LONGEST_QUEUE} characters from "
            "A-Z a-z 0-9 _ -"
        )
    shown = [(key, value) for key, value in options if key not in _SECRETS and key != "db"]
    if queue != DEFAULT_QUEUE:
        shown.append(("queue", queue))
    db = dict(options).get("db") or ("0" if scheme == "unix" else parts.path.strip("/") or "0")
    user = f"{quote(unquote(parts.username))}@" if parts.username else ""
    if scheme == "unix":
        place, path = user, unquote(parts.path)
        shown[:0] = [("db", db)] if db != "0" else []
    else:
        host = parts.hostname or "localhost"
        place = f"{user}{f'[{host}]' if ':' in host else host}:{port or 6379}"
        path = f"/{db}"
        if not db.isdigit():
            raise NotAQueue(
                "invalid queue: the path of a Redis URL must be the number of a database, "
                "such as redis://HOST:PORT/0 (?queue=NAME chooses a queue)"
            )
    return Place(
        f"{scheme}://{parts.netloc}{parts.path}" + (f"?{urlencode(options)}" if options else ""),
        queue,
        f"{scheme}://{place}{path}" + (f"?{urlencode(shown)}" if shown else ""),
    )


def read_scripts(constants: Mapping[str, str]) -> dict[str, bytes]:
    """Return the scripts of `rq.lua` by name; `constants` are put before them."""
    common, *sections = Path(__file__).with_name("rq.lua").read_text("utf-8").split("\n-- script ")
    head = "".join(f"local {name} = {_lua_string(value)}\n" for name, value in constants.items())
    scripts = {}
    for section in sections:
        name, _, _ = section.partition(":")
        scripts[name] = f"{head}{common}\n-- {section}".encode()
    return scripts


def _lua_string(text: str) -> str:
    return (
        '"'
        + "".join(f"\\{byte:03d}" if byte in b'"\\\n' else chr(byte) for byte in text.encode())
        + '"'
    )


class _Caller(threading.local):
    """One thread's calls: its name on the server, and the number of its last call."""

    name = ""
    process = 0
    number = 0
    lost: object = None
    """which change the last call was to make, if it may or may not have been made"""


class News:
    """Tells one pass whether a job was added; see `backend.News`."""

    def __init__(self, connection: redis.Redis, channel: str) -> None:
        pubsub: Any = connection.pubsub
        self._pubsub = pubsub()
        self._process = os.getpid()
        self._pubsub.subscribe(channel)

    def have_come(self) -> bool:
        """Return whether a job was added since the last call; True if the connection is broken."""
        found = False
        try:
            while self._pubsub.get_message(timeout=0) is not None:
                found = True
        except (redis.RedisError, OSError):
            return True
        return found

    def close(self) -> None:
        """Close the connection, in the process that opened it."""
        if os.getpid() == self._process:
            self._pubsub.close()


class Client:
    """Runs the scripts of one queue. Threads, and forked processes, may share it."""

    def __init__(self, place: Place, scripts: Mapping[str, bytes]) -> None:
        self.name = place.name
        self._url = place.url
        self._keys = (f"dbbasic_queue:{place.queue}:", f"{place.queue}.")
        self._scripts = {
            name: (text, hashlib.sha1(text, usedforsecurity=False).hexdigest())
            for name, text in scripts.items()
        }
        self._caller = _Caller()
        self._redis = self._open()

    @property
    def prefix(self) -> str:
        """What the names of all keys of ours begin with."""
        return self._keys[0]

    def connection(self) -> redis.Redis:
        """Return the client of redis-py. It connects at its first command, in each process."""
        return self._redis

    def _open(self) -> redis.Redis:
        try:
            client = redis.Redis.from_url(
                self._url,
                retry=Retry(NoBackoff(), 0),
                socket_connect_timeout=_CONNECT_SECONDS,
                socket_timeout=_ANSWER_SECONDS,
                encoding_errors="surrogatepass",
                protocol=2,
            )
            pool = client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # refuses unknown options
        except (ValueError, TypeError) as e:
            reason = self._without_password(str(e))
            raise NotAQueue(f"invalid queue: redis-py refuses its URL: {reason}") from None
        return client

    def close(self) -> None:
        """Close the connections of this process; the next call opens one again."""
        self._redis.close()

    def listen(self) -> News:
        """Open a connection on which the server reports added jobs."""
        return self._repeat(lambda: News(self.connection(), self.prefix + "news"))

    # -- scripts --

    def run(self, script: str, *arguments: Argument) -> Any:
        """Run a script that can be run twice without harm; return its result."""
        return self._repeat(lambda: self._evaluate(script, arguments))

    def change(
        self, script: str, *arguments: Argument, which: object = None, again: bool = False
    ) -> Any:
        """Run a script that changes something, once; return its result.

        With `again`, if this thread's last call made the same change, as `which` says, and raised
        `ConnectionLost`, then this is that call: it isn't made if it was made already.
        """
        return self._numbered(
            which, again, lambda *number: self._evaluate(script, (*number, *arguments))
        )

    def change_together(self, script: str, calls: Sequence[Sequence[Argument]]) -> Any:
        """Run a script several times in one transaction; return the result of the first one."""

        def run(*number: Argument) -> Any:
            connection = self.connection()
            text, sha = self._scripts[script]
            connection.script_load(text)
            with connection.pipeline(transaction=True) as pipeline:
                execute: Any = pipeline.execute_command
                for arguments in calls:
                    execute("EVALSHA", sha, 2, *self._keys, *number, *arguments)
                return pipeline.execute()[0]

        return self._numbered(None, False, run)

    def _numbered(self, which: object, again: bool, run: Callable[..., T]) -> T:
        caller = self._caller
        if caller.process != os.getpid():
            caller.name, caller.process = uuid.uuid4().hex, os.getpid()
            caller.number, caller.lost = 0, None
        if not again or which is None or caller.lost != which:
            caller.number += 1
        caller.lost = which
        result = self._repeat(lambda: run(caller.name, caller.number))
        caller.lost = None
        return result

    def _evaluate(self, script: str, arguments: Sequence[Argument]) -> Any:
        text, sha = self._scripts[script]
        try:
            return self._execute("EVALSHA", sha, 2, *self._keys, *arguments)
        except redis.exceptions.NoScriptError:
            return self._execute("EVAL", text, 2, *self._keys, *arguments)

    def command(self, *arguments: Argument) -> Any:
        """Run one command that can be run twice without harm; return its reply."""
        return self._repeat(lambda: self._execute(*arguments))

    def _execute(self, *arguments: Argument) -> Any:
        execute: Any = self.connection().execute_command
        return execute(*arguments)

    # -- errors --

    def _repeat(self, call: Callable[[], T]) -> T:
        """Call a function, and once more if the connection breaks."""
        was_sent = False
        while True:
            try:
                return call()
            except (redis.ConnectionError, redis.TimeoutError, OSError) as e:
                if _is_refusal(e):
                    raise self._refused(e) from None
                if was_sent or _is_unreachable(e):
                    raise self._lost(e, was_sent) from None
                was_sent = True
            except redis.RedisError as e:
                raise self._refused(e) from None

    def _lost(self, e: Exception, was_sent: bool) -> ConnectionLost:
        reason = self._without_password(str(e) or type(e).__name__)
        if isinstance(e, redis.BusyLoadingError):
            details = f"is still loading its data: {reason} (nothing was done; try again later)"
        elif was_sent:
            details = (
                "has closed the connection, or doesn't answer, so the change may or may not have "
                f"been made: {reason} (is it running?)"
            )
        else:
            details = f"can't be reached: {reason} (nothing was done; is the URL right?)"
        return ConnectionLost(f"the server of {self.name} {details}")

    def _refused(self, e: Exception) -> StoreError:
        text = str(e)
        known = (a for error, a in _ADVICE.items() if error in text or error in type(e).__name__)
        advice = next(known, "see the server's log")
        reason = self._without_password(text.strip().removesuffix("."))
        return StoreError(
            f"the server of {self.name} refuses: {reason} (nothing was done; {advice})"
        )

    def _without_password(self, text: str) -> str:
        parts = urlsplit(self._url)
        secrets = [parts.password, *(v for k, v in parse_qsl(parts.query) if k in _SECRETS)]
        for secret in secrets:
            for form in (secret, unquote(secret)) if secret else ():
                text = text.replace(form, "...")
        return text


_CLUSTER = "Redis Cluster isn't supported: use a single server, perhaps with replicas"
_ADVICE = {
    "OutOfMemory": "the server is out of memory: raise its maxmemory, or remove old jobs",
    "OOM": "the server is out of memory: raise its maxmemory, or remove old jobs",
    "MISCONF": "the server can't save its data: check its disk and its log",
    "READONLY": "this server is a replica: use the URL of the primary",
    "ReadOnly": "this server is a replica: use the URL of the primary",
    "MASTERDOWN": "this server is a replica: use the URL of the primary",
    "WRONGPASS": "check the user and the password in the URL",
    "Authentication required": "the server wants a password: put it into the URL",
    "unauthenticated": "the server wants a password: put it into the URL",
    "NOAUTH": "the server wants a password: put it into the URL",
    "NOPERM": "this user needs the permission to run scripts, and to use these keys",
    "NoPermission": "this user needs the permission to run scripts, and to use these keys",
    "Authentic": "check the user and the password in the URL",
    "invalid username-password": "check the user and the password in the URL",
    "DB index": "the server has no database of this number: check the end of the URL",
    "BUSY": "a script of another program blocks the server",
    "MOVED": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "CrossSlot": _CLUSTER,
    "CLUSTERDOWN": _CLUSTER,
    "ClusterDown": _CLUSTER,
    "cluster mode": _CLUSTER,
    "Moved": _CLUSTER,
    "WRONGTYPE": "another program uses the same keys: choose another ?queue=NAME or database",
}
"""part of an error -> what to do"""


def _is_refusal(e: Exception) -> bool:
    """Return whether redis-py makes a connection error of a refusal."""
    return isinstance(e, (redis.AuthenticationError, redis.exceptions.AuthorizationError))


def _is_unreachable(e: Exception) -> bool:
    """Return whether no connection could be opened, so that nothing was sent."""
    return isinstance(e, redis.BusyLoadingError) or "connecting to" in str(e)
