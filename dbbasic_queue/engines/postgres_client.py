"""Connections to PostgreSQL, and the statements that run there.

- **Each change is one statement**. If the connection breaks, it is executed once more, on a new
  one: what it calls must then find what it has done before. psycopg itself repeats nothing.
- **In the transaction of an application's connection**, nothing is repeated.
- **The schema is made when it is needed**, by the first statement that writes in it.
- **After a fork** the child has connections of its own, and never closes those of its parent.
- **Errors** of psycopg don't leave this module, nor does a password.
"""

from __future__ import annotations

import os
import random
import re
import time
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import quote, unquote

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from dbbasic_queue.engines import procrastinate_schema
from dbbasic_queue.engines.backend import ConnectionLost
from dbbasic_queue.errors import InvalidArgument, NotAQueue, StoreError
from dbbasic_queue.lazy import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import ModuleType

    Connection = psycopg.Connection[tuple[Any, ...]]

DEFAULT_QUEUE = "dbbasic_queue"
_MOST_IDLE = 4
_MOST_COLLISIONS = 5
"""how often a call is repeated that the server has undone, because it was in another one's way"""

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
_QUEUE = re.compile(r"(?!pg_)[A-Za-z0-9_]{1,40}")
_CONNECTION_CODES = ("08", "57P01", "57P02", "57P03", "57P05")
"""broken or refused connections; the server shuts down, crashed, starts, or closes idle ones"""
_MOVED_CODE = "DBQ01"
"""raised by functions of procrastinate.sql"""
_COLLISIONS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_UNDEFINED = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
)
_random = random.SystemRandom()


class NotInstalledError(Exception):
    """Raised if the queue was never used: its schema, or what belongs in it, isn't there."""


class MovedError(Exception):
    """Raised if a statement finds that the queue was moved to another address."""


class Place(NamedTuple):
    """Which queue a URL names: `options` are for libpq, and `name` is for messages."""

    schema: str
    options: dict[str, Any]
    name: str


def parse_url(url: str) -> Place:
    """Return which queue a URL names. Raises NotAQueue for an invalid one; it isn't shown."""
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
    schema = (queues or [DEFAULT_QUEUE])[0]
    return Place(schema, dict(options), _name(schema, options))


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


class Client:
    """Makes the calls of one queue, in any thread, and in children after a fork."""

    def __init__(self, place: Place, *, fsync: bool = True) -> None:
        self.schema, self._options, self.name = place
        self._fsync = fsync
        self._connections = _Connections(self._connect)
        self._transaction: Any = None
        """the application's connection whose transaction the calls belong to"""

    def within(self, connection: Any) -> Client:
        """Return a client whose calls belong to the transaction of a database connection."""
        _check_connection(connection)
        if not self.exists():
            self.install()
        client = Client.__new__(Client)
        client.__dict__ |= self.__dict__
        client._transaction = connection
        return client

    def exists(self) -> bool:
        """Return whether the queue was ever used."""
        return self._stamp() is not None

    def close(self) -> None:
        """Close all idle connections; the next call opens one again."""
        self._connections.close()

    def listen(self, channel: str) -> News:
        """Open a connection on which the server reports what is sent to a channel."""
        try:
            return News(self._connect, channel)
        except psycopg.Error as e:
            raise self._error(e) from None

    def query(
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
        NotInstalledError if the queue was never used, MovedError if it was moved.
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
            except ConnectionLost as e:  # it can't connect again
                raise lost or e from None
            except psycopg.Error as e:
                is_undefined = isinstance(e, _UNDEFINED)
                if is_undefined and self._stamp() is None:
                    raise NotInstalledError from e
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

    def read(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query, none if the queue was never used."""
        try:
            return self.query(sql, arguments)
        except NotInstalledError:
            return []

    def write(
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
                ((value,),) = self.query(sql, arguments, again=again, repeats=repeats)
            except NotInstalledError:
                if not installs:
                    raise
                self.install()
                ((value,),) = self.query(sql, arguments, again=again, repeats=repeats)
        except NotInstalledError:
            raise StoreError(f"the queue was removed: {self.name}") from None
        return value

    def _error(self, e: psycopg.Error) -> StoreError | MovedError:
        """Return the error to raise for one that the driver raised for a statement."""
        text = self._text(e)
        code = e.sqlstate or ""
        if code == _MOVED_CODE:
            return MovedError()
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
            found = procrastinate_schema.read_version(connection, self.schema)
            if found is not None and found < procrastinate_schema.VERSION:
                procrastinate_schema.install(connection, self.schema, self.name)
            elif found is not None and found > procrastinate_schema.VERSION:
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
        return procrastinate_schema.version_of(
            self.query(procrastinate_schema.READ_STAMP, [self.schema])
        )

    def install(self) -> None:
        """Make the queue's schema, unless it is there; in a transaction of its own."""
        try:
            with self._connections.one() as connection:
                procrastinate_schema.install(connection, self.schema, self.name)
        except psycopg.Error as e:
            raise self._error(e) from None


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


class News:
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
