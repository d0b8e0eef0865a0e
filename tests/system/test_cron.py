"""The README's crontab line, under a real cron, runs the jobs that a real web app enqueues.

The app is Flask under gunicorn, which opens the queue and then forks two workers. Cron starts a
pass once a minute, so this test takes one or two minutes. It writes a file into /etc/cron.d, and
starts cron if it isn't running. It needs root and Debian's cron, and is skipped without them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DEADLINE, PROJECT, alone, environment, notes, wait_for

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

README = PROJECT / "README.md"
CRON_D = Path("/etc/cron.d")
A_MINUTE = 100.0
BURST = 150

APP = """
import os
from dbbasic_queue import enqueue, get_job
from flask import Flask, jsonify, request

app = Flask(__name__)
# This opens the queue before gunicorn forks its workers.
assert get_job(enqueue("greet", {"order": 0, "name": "preloaded"}))["attempts"] == 0


@app.post("/orders")
def order():
    job_id = enqueue("greet", request.get_json())
    assert get_job(job_id)["payload"] == request.get_json()
    return jsonify(id=job_id, server=os.getpid())
"""

WORKER = """
import os
import sys
import time
from dbbasic_queue import process_jobs


def greet(payload):
    note("effects", f"{payload['order']} {payload['name']}")
    time.sleep(0.005)  # so that jobs are added while this pass runs
    return {"greeted": payload["name"], "stdout": sys.stdout.encoding}


def note(file, line):
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)


if __name__ == "__main__":
    note("passes", f"began {os.getpid()} {os.environ.get('LANG')}")
    process_jobs({"greet": greet})
    note("passes", f"ended {os.getpid()}")
"""


def what_is_missing() -> str:
    """Return why this test can't run here; "" if it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux, to write to /etc/cron.d"
    if shutil.which("cron", path="/usr/sbin:/usr/bin") is None or not CRON_D.is_dir():
        return "needs cron (Debian: apt-get install cron)"
    missing = [name for name in ("flask", "gunicorn") if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


@contextmanager
def running(command: list[str], directory: Path, log: str, **options: Any) -> Iterator[Path]:
    """Run a server during the block; yield the file with its output."""
    path = directory / log
    with path.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **options,
        )
    try:
        yield path
        ended = server.poll()
        assert ended is None, f"{command[0]} ended with {ended}: {path.read_text('utf-8')}"
    finally:
        server.terminate()
        try:
            server.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def cron_is_running() -> bool:
    for name in Path("/proc").glob("[0-9]*/comm"):
        try:
            if name.read_text(encoding="utf-8") in ("cron\n", "crond\n"):
                return True
        except OSError:  # it has ended
            continue
    return False


@contextmanager
def cron(directory: Path) -> Iterator[None]:
    """Make sure that cron is running: the machine's own, or one started for this test."""
    with alone("cron"):
        if cron_is_running():
            yield
            return
        program = shutil.which("cron", path="/usr/sbin:/usr/bin")
        assert program is not None
        bare = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        with running([program, "-f"], directory, "cron.log", env=bare):
            yield
        # Its children have its name, too: the next test must not take one for a running cron.
        wait_for(lambda: not cron_is_running(), "the last jobs of cron")


@contextmanager
def crontab(directory: Path, *lines: str) -> Iterator[None]:
    """Give cron these crontab lines. In /etc/cron.d, a line also names a user."""
    for stale in CRON_D.glob("dbbasic-queue-test-*"):  # left by a test that was killed
        if not Path("/proc", stale.name.rpartition("-")[2]).exists():
            stale.unlink()
    file = CRON_D / f"dbbasic-queue-test-{os.getpid()}"
    content = ""
    for line in lines:
        schedule, command = line[: len("* * * * *")], line[len("* * * * *") :]
        content += f"{schedule} root{command.replace('/srv/app', str(directory))}\n"
    assert "%" not in content, "cron reads a percent sign as the end of the line"
    hidden = file.with_name(f".{file.name}")  # cron ignores names with a dot
    try:
        hidden.write_text(content, encoding="utf-8")
        hidden.chmod(0o644)
        # cron reads the directory again if its time of change, in whole seconds, is another one.
        # The kernel's clock for such times is a few milliseconds behind.
        seen = int(CRON_D.stat().st_mtime)
        wait_for(lambda: time.time() > seen + 1.1, "the next second")
        hidden.rename(file)
        yield
    finally:
        hidden.unlink(missing_ok=True)
        file.unlink(missing_ok=True)


@contextmanager
def web_app(directory: Path) -> Iterator[int]:
    """Serve the app with gunicorn and two forked workers; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2"]
        command += ["--bind", f"fd://{listening.fileno()}", "app:app"]
        with running(
            command,
            directory,
            "gunicorn.log",
            env=environment() | {"HOME": str(directory)},
            pass_fds=[listening.fileno()],
        ) as log:
            wait_for(
                lambda: log.read_text(encoding="utf-8").count("Booting worker") == 2,
                "gunicorn's workers",
            )
            yield port


def install(directory: Path, worker: str) -> None:
    """Install an app as the README says: with its own .venv, its worker and the web app."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(directory / ".venv")],
        check=True,
        timeout=DEADLINE,
    )
    [packages] = (directory / ".venv").glob("lib/python3*/site-packages")
    paths = [*environment()["PYTHONPATH"].split(os.pathsep), *site.getsitepackages()]
    (packages / "tests.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    (directory / worker).write_text(WORKER, encoding="utf-8")
    (directory / "app.py").write_text(APP, encoding="utf-8")


def name_of(order: int) -> str:
    return f"Žofie — 渡辺 №{order}"


def post(port: int, order: int) -> dict[str, Any]:
    body = json.dumps({"order": order, "name": name_of(order)}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/orders", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=DEADLINE) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


@pytest.mark.slow
@pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())
def test_cron_runs_each_job_that_a_web_app_enqueues_once(tmp_path: Path) -> None:
    [line] = re.findall(r"^\* \* \* \* \* cd /srv/app .*$", README.read_text("utf-8"), re.MULTILINE)
    install(tmp_path, line.split()[-1])
    effects, passes = tmp_path / "effects", tmp_path / "passes"
    answers: dict[int, dict[str, Any]] = {}
    with (
        web_app(tmp_path) as port,
        cron(tmp_path),
        crontab(tmp_path, line),
        ThreadPoolExecutor(4) as clients,
    ):

        def burst(first: int) -> None:
            orders = range(first, first + BURST)
            found = clients.map(lambda order: post(port, order), orders)
            answers.update(zip(orders, found, strict=True))

        burst(1)
        wait_for(lambda: notes(effects), "cron's first pass", A_MINUTE)
        burst(1 + BURST)
        wait_for(
            lambda: len(notes(effects)) > 2 * BURST and len(notes(passes)) % 2 == 0,
            "cron's last pass",
            A_MINUTE,
        )
    assert len({answer["server"] for answer in answers.values()}) == 2
    assert len({answer["id"] for answer in answers.values()}) == 2 * BURST
    expected = {f"{order} {name_of(order)}": 1 for order in answers} | {"0 preloaded": 1}
    assert Counter(notes(effects)) == expected
    with Queue(tmp_path / "data" / "queue.tsv") as queue:
        for order, answer in answers.items():
            job = queue.get_job(answer["id"])
            assert job is not None
            assert (job["status"], job["attempts"], job["error"]) == ("completed", 1, None)
            assert job["payload"] == {"order": order, "name": name_of(order)}
            assert job["result"]["greeted"] == name_of(order)
        assert queue.counts() == dict.fromkeys(queue.counts(), 0) | {"completed": 2 * BURST + 1}
        encodings = {job["result"]["stdout"] for job in queue.jobs()}
    began = [pass_.split()[2] for pass_ in notes(passes) if pass_.startswith("began")]
    print(f"{len(began)} passes under LANG={began[0]}, stdout {encodings}: {line}")
