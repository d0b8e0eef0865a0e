"""Starts real servers again and again, and checks that every job they enqueued ran once."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import filelock
from helpers import QUEUE, Child, environment, notes, rows

HERE = Path(__file__).parent
LONG = bool(os.environ.get("DBBASIC_QUEUE_LONG"))
HANGS_AFTER = 40.0  # a start takes 0.3 s, and up to 3 s on a busy machine

# Since Python 3.12, forking in a program with threads is deprecated. Servers do it.
QUIET = "ignore::DeprecationWarning"

RUN_ALL = """
from dbbasic_queue import Backoff, Handler, Queue
from helpers import QUEUE
from web_app import work
work = Handler(work, backoff=Backoff(first=0))  # a job whose server was killed is due at once
Queue(QUEUE).run_until_complete({"work": work, "work_in_the_loop": work}, max_attempts=100)
"""


SECONDS = 60.0 if LONG else 4.0
"""How long a test keeps starting servers: in the long version, a minute per kind of server."""


class Deployed(Child):
    """A program and its child processes. They must not hang or print a traceback."""

    def finish(self) -> None:
        """Wait for its end."""
        end = time.monotonic() + SECONDS + HANGS_AFTER  # some programs run for SECONDS
        while self.is_running():
            assert time.monotonic() < end, f"it doesn't end: {self.stacks()}"
            time.sleep(0.005)
        log = self.log()
        assert "Traceback" not in log and "Exception ignored" not in log, log

    def stacks(self) -> str:
        """Make every process print its stacks; return the output."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                session = stat.read_text("utf-8").rpartition(")")[2].split()[3]
                if int(session) == self.process.pid:
                    os.kill(int(stat.parent.name), signal.SIGRTMIN)
                    time.sleep(0.1)
        return f"exit code {self.process.poll()}\n{self.log()}"

    def log(self) -> str:
        return self.errors.read_text("utf-8") + self.output.read_text("utf-8")


class Server(Deployed):
    """A server on a socket that the test has opened, so requests can be sent immediately."""

    def __init__(
        self, command: list[str], directory: Path, name: str, more: Mapping[str, str]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
            self.port: int = listening.getsockname()[1]
            command = [part.format(fd=listening.fileno()) for part in command]
            super().__init__(command, directory, name, variables(**more), [listening.fileno()])

    def ask(self, order: str) -> list[str] | None:
        """Return the words of the answer; None if the process was killed before it answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANGS_AFTER)
        try:
            connection.request("GET", order)
            response = connection.getresponse()
            text = response.read().decode()
        except TimeoutError:
            raise AssertionError(f"no answer to {order}: {self.stacks()}") from None
        except (ConnectionError, http.client.IncompleteRead):
            return None
        finally:
            connection.close()
        assert response.status == 200, f"{response.status}: {text}\n{self.log()}"
        return text.split()

    def end(self) -> None:
        self.signal(signal.SIGTERM)
        self.finish()


class Site:
    """One queue, the servers that use it one after another, and the jobs they acknowledged."""

    def __init__(self, directory: Path, clients: int = 4) -> None:
        self.directory = directory
        self.acknowledged: list[str] = []
        self.end = time.monotonic() + SECONDS
        self.starts = 0
        self.unanswered = 0
        self._orders = itertools.count()
        self._clients = ThreadPoolExecutor(clients)

    @contextmanager
    def server(self, command: list[str], **more: str) -> Iterator[Server]:
        """Start a server ({fd} in its command is the socket). It is killed after the block."""
        self.starts += 1
        server = Server(command, self.directory, f"server-{self.starts}", more)
        try:
            yield server
        finally:
            server.clean_up()

    def run(self, command: list[str]) -> None:
        """Run a program and check that it succeeds."""
        self.starts += 1
        program = Deployed(command, self.directory, f"program-{self.starts}", variables())
        try:
            program.finish()
            assert program.wait() == 0, program.log()
        finally:
            program.clean_up()

    def goes_on(self, at_least: int = 1) -> bool:
        """Return whether another server should be started."""
        return self.starts < at_least or time.monotonic() < self.end

    def order(self, server: Server, count: int, *kinds: str) -> set[int]:
        """Send requests of these kinds at the same time; return the processes that answered."""

        def ask(n: int) -> list[str] | None:
            return server.ask(f"/{kinds[n % len(kinds)]}/{n}")

        pids = set()
        for answer in self._clients.map(ask, itertools.islice(self._orders, count)):
            if answer is None:
                self.unanswered += 1
            else:
                pids.add(int(answer[0]))
                self.acknowledged += answer[1:]
        return pids

    def check(self, may_be_killed: bool = False) -> None:
        """Run the remaining jobs in another process, then check that each job has run once.

        If a server's `Worker` was killed after a job's effect and before its record, the job runs
        again: it has one more attempt and one more effect. Other jobs must have exactly one.
        """
        self.run([sys.executable, "-c", RUN_ALL])
        acknowledged = self.acknowledged + notes(self.directory / "acknowledged")
        effects = Counter(notes(self.directory / "effects"))
        jobs = {row[0]: row for row in rows(self.directory / QUEUE)}
        assert len(jobs) == len(rows(self.directory / QUEUE)), "two rows have the same id"
        assert len({row[2] for row in jobs.values()}) == len(jobs), "a call added two jobs"
        assert max(Counter(acknowledged).values()) == 1, "two calls returned the same id"
        lost = set(acknowledged) - set(jobs)
        assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged jobs are lost"
        cancelled = {job_id for job_id, row in jobs.items() if row[3] == "cancelled"}
        assert cancelled >= set(notes(self.directory / "cancelled"))
        done = jobs.keys() - cancelled
        assert {jobs[job_id][3] for job_id in done} == {"completed"}
        assert effects.keys() == done
        attempts = {job_id: int(jobs[job_id][6]) for job_id in done}
        wrong = {i: (effects[i], attempts[i]) for i in done if not 1 <= effects[i] <= attempts[i]}
        assert not wrong, f"(effects, attempts): {wrong}"
        again = sum(attempts.values()) - len(attempts)
        assert may_be_killed or not again
        print(
            f"{self.starts} starts, {len(acknowledged)} jobs acknowledged, {len(done)} run, "
            f"{again} twice, {len(cancelled)} cancelled, {self.unanswered} requests not answered"
        )


def variables(**more: str) -> dict[str, str]:
    """Return a server's environment. Without coverage, which would add fork hooks."""
    plain = {name: text for name, text in environment().items() if not name.startswith("COV")}
    packages = Path(filelock.__file__).parents[1]  # uWSGI doesn't know the virtual environment
    path = os.pathsep.join([str(HERE), environment()["PYTHONPATH"], str(packages)])
    return plain | {"PYTHONPATH": path, "PYTHONWARNINGS": QUIET, **more}


def missing(*modules: str) -> str:
    """Return which of the modules aren't installed, as a reason to skip; "" if all are."""
    names = [name for name in modules if find_spec(name) is None]
    return f"{' and '.join(names)} not installed" if names else ""
