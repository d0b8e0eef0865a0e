"""The servers that a page may name: `db.example.com` stands for servers that the tests start.

| in a page | on this machine |
|---|---|
| `postgresql://app:secret@db.example.com/app` | PostgreSQL, with that user, password and database |
| `redis://db.example.com:6379` | Valkey, which syncs each change |

A port may be left out of a URL of PostgreSQL. What is printed is mapped back, with its port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from postgres_server import PostgresServer
from valkey_server import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Iterable

HOST = "db.example.com"
_POSTGRES, _REDIS = f"@{HOST}/", f"{HOST}:6379"
_POSTGRES_WITH_PORT = f"{HOST}:5432"


class Servers:
    """The servers that these texts name; each `here` is what a text on the page means."""

    def __init__(self, texts: Iterable[str]) -> None:
        text = "\n".join(texts)
        self._names_postgres = _POSTGRES in text or _POSTGRES_WITH_PORT in text
        self._names_redis = _REDIS in text
        self._running: list[PostgresServer | ValkeyServer] = []
        self._addresses: dict[str, str] = {}
        """name on the page -> address of the server that was started"""
        self.programs = ""
        """what to put before PATH, so that psql and pg_dump are those of the server"""

    def start(self) -> None:
        """Start the servers that are named."""
        if self._names_postgres:
            postgres = PostgresServer(fsync=True)
            self._running.append(postgres)
            self.programs = f"{postgres.binaries}:"
            postgres.execute("CREATE ROLE app LOGIN PASSWORD 'secret'")
            postgres.execute("CREATE DATABASE app OWNER app")
            self._addresses[_POSTGRES_WITH_PORT] = f"127.0.0.1:{postgres.port}"
        if self._names_redis:
            valkey = ValkeyServer(appendfsync="always")
            self._running.append(valkey)
            self._addresses[_REDIS] = f"127.0.0.1:{valkey.port}"

    def here(self, text: str) -> str:
        """Return a text of the page with the addresses of the servers."""
        if _POSTGRES_WITH_PORT in self._addresses:
            text = text.replace(_POSTGRES, f"@{_POSTGRES_WITH_PORT}/")
        for name, address in self._addresses.items():
            text = text.replace(name, address)
        return text

    def there(self, text: str) -> str:
        """Return a printed text as it is on the page."""
        for name, address in self._addresses.items():
            text = text.replace(address, name)
        return text

    def remove(self) -> None:
        """Stop the servers, and remove their data."""
        while self._running:
            self._running.pop().remove()
