"""A site whose servers and passes are killed again and again has one job for each order.

The servers are gunicorn (its workers are killed) and uvicorn, with a synchronous and an async view.
Some requests are rolled back. What a kill between a commit and its `on_commit` call has left out is
added by `manage.py enqueue_missing`, as on a real site: without it, the claim would be wrong.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
import urllib.parse
from collections import Counter
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import Child, environment, rows, wait_for

from dbbasic_queue import Queue
from django_backend.conftest import SITE

if TYPE_CHECKING:
    from collections.abc import Iterator

KILLS = 50 if os.environ.get("DBBASIC_QUEUE_LONG") == "1" else 10
CLIENTS = 4
TOKEN = "t" * 32
_SECONDS = 60


class Site:
    """The example site with its servers and a pass, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[Child] = []
        self.answers: list[tuple[int, str]] = []
        """status and text of each answer"""
        self.is_over = threading.Event()
        self.listening = [
            socket.create_server(("127.0.0.1", 0), backlog=64) for _ in ("gunicorn", "uvicorn")
        ]
        self.ports = [server.getsockname()[1] for server in self.listening]

    def start(self, *command: str, fds: tuple[int, ...] = ()) -> Child:
        name = f"program-{len(self.started)}"
        env = environment() | {
            "SITE_DATA": str(self.directory),
            "PYTHONPATH": os.pathsep.join([str(SITE), environment()["PYTHONPATH"]]),
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
        }
        child = Child([sys.executable, *command], self.directory, name, env, fds)
        self.started.append(child)
        return child

    def manage(self, *arguments: str) -> Child:
        return self.start(str(SITE / "manage.py"), *arguments)

    def gunicorn(self) -> Child:
        fd = self.listening[0].fileno()
        how = ["--preload", "--workers", "2", "--threads", "2", "--bind", f"fd://{fd}"]
        how += ["--no-control-socket"] if _gunicorn_version() >= "27" else []
        return self.start("-m", "gunicorn", *how, "mysite.wsgi", fds=(fd,))

    def uvicorn(self) -> Child:
        fd = self.listening[1].fileno()
        return self.start("-m", "uvicorn", "--fd", str(fd), "mysite.asgi:application", fds=(fd,))

    def a_pass(self) -> Child:
        return self.manage("queue_pass", "--linger", "60")

    def clients(self) -> None:
        """Place orders until it is over; every fourth address is invalid."""
        for number in range(1_000_000):
            if self.is_over.is_set():
                return
            email = f"nobody-{number}" if number % 4 == 3 else f"{number}@example.com"
            port, path = (self.ports[0], "/") if number % 2 else (self.ports[1], "/async/")
            with suppress(ConnectionError, http.client.HTTPException, TimeoutError):
                self.answers.append(self.post(port, path, email))
            time.sleep(0.05)

    def post(self, port: int, path: str, email: str) -> tuple[int, str]:
        body = urllib.parse.urlencode({"email": email, "csrfmiddlewaretoken": TOKEN})
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": f"csrftoken={TOKEN}",
        }
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)) as connection:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def wait_for_answers(self, count: int) -> None:
        wait_for(lambda: len(self.answers) >= count, f"answers; {self.log()}", _SECONDS)

    def orders(self) -> dict[int, bool]:
        """Return the key of each order, and whether its mail was sent."""
        with closing(sqlite3.connect(self.directory / "db.sqlite3")) as database:
            found = database.execute("SELECT id, mailed_at IS NOT NULL FROM shop_order").fetchall()
            return {key: bool(mailed) for key, mailed in found}

    def jobs(self) -> list[str]:
        path = self.directory / "queue.tsv"
        return [row[0] for row in rows(path)] if path.exists() else []

    def mails(self) -> Counter[int]:
        texts = [file.read_text("utf-8") for file in (self.directory / "mails").glob("*.log")]
        found = [re.findall(r"Thank you for order (\d+)\.", text) for text in texts]
        return Counter(int(key) for keys in found for key in keys)

    def log(self) -> str:
        return "\n".join(child.errors.read_text("utf-8")[-2000:] for child in self.started[-4:])


def _gunicorn_version() -> str:
    from importlib.metadata import version

    return version("gunicorn")


def workers_of(master: Child) -> list[int]:
    children = Path(f"/proc/{master.process.pid}/task/{master.process.pid}/children")
    return [int(pid) for pid in children.read_text("utf-8").split()]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.is_over.set()
    for child in site.started:
        child.clean_up()
    for server in site.listening:
        server.close()


@pytest.mark.slow
def test_after_random_kills_there_are_as_many_jobs_as_committed_orders(site: Site) -> None:
    seed = random.randrange(1_000_000)
    print("seed", seed)
    chance = random.Random(seed)
    site.manage("migrate", "-v", "0").succeed()
    gunicorn, uvicorn, a_pass = site.gunicorn(), site.uvicorn(), site.a_pass()
    threads = [threading.Thread(target=site.clients) for _ in range(CLIENTS)]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join, _SECONDS)
        stack.callback(site.is_over.set)  # first
        site.wait_for_answers(CLIENTS)
        for kill in range(KILLS):
            enough = len(site.answers) + 3
            time.sleep(chance.uniform(0, 0.3))
            match kill % 5:  # most kills hit gunicorn's workers: their new ones are cheap
                case 1:
                    uvicorn.kill()
                    uvicorn = site.uvicorn()
                case 3:
                    os.killpg(a_pass.process.pid, signal.SIGKILL)
                    a_pass.kill()
                    a_pass = site.a_pass()
                case _:
                    wait_for(lambda: workers_of(gunicorn), "gunicorn's workers", _SECONDS)
                    with suppress(ProcessLookupError):
                        os.kill(chance.choice(workers_of(gunicorn)), signal.SIGKILL)
            site.wait_for_answers(enough)
    for child in (gunicorn, uvicorn, a_pass):
        child.clean_up()

    orders, jobs = site.orders(), site.jobs()
    wanted = {f"receipt-{key}" for key in orders}
    assert len(jobs) == len(set(jobs))
    assert set(jobs) <= wanted, "a job without an order"
    lost = len(wanted) - len(jobs)
    print(f"{len(orders)} orders; {lost} without a job after {KILLS} kills")
    assert lost <= KILLS * 2, "more than the kills can explain"
    statuses = Counter(status for status, _ in site.answers)
    assert statuses.keys() == {200, 400}, site.answers
    acknowledged = {int(text.split()[-1].strip(".")) for code, text in site.answers if code == 200}
    assert acknowledged <= orders.keys()

    site.manage("enqueue_missing").succeed()
    assert sorted(site.jobs()) == sorted(wanted)
    site.manage("queue_pass").succeed()  # recovers the job of the last pass that was killed, too
    with Queue(site.directory / "queue.tsv") as queue:
        for job in queue.jobs("pending"):  # it would wait for its backoff
            queue.run_now(job["id"])
    site.manage("queue_pass", "--strict").succeed()
    assert all(site.orders().values()), "an order without its receipt"
    mails = site.mails()
    assert mails.keys() == orders.keys()
    assert mails.total() <= len(orders) + KILLS, "a kill of a pass repeats one mail at most"
