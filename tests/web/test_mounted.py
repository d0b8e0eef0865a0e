"""The page, and a worker, in Flask, FastAPI, Starlette and Litestar, under their real servers."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPMessage
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import Child, environment
from test_servers import Client

from dbbasic_queue import Queue

COMMON = """
from contextlib import asynccontextmanager

from dbbasic_queue import Queue, Worker
from dbbasic_queue.web import Access, page

queue = Queue("queue.tsv")


async def shout(text):
    return text.upper()


@asynccontextmanager
async def lifespan(app):
    async with Worker(queue, {"shout": shout}, skip_unknown=True):
        yield


async def result():
    job = await queue.await_job(await queue.aenqueue("shout", "done"), 30)
    return job["result"]


def allow(request):
    if request.cookie("user") == "ada" and request.source:
        return Access("all", user="ada")
"""

FLASK = """
from flask import Flask, abort, request, session
from dbbasic_queue.flask import FlaskHandlers
from dbbasic_queue.web import Access

app = Flask(__name__, instance_path=__import__("os").getcwd())
app.secret_key = "a secret"


@app.before_request
def no_posts_with_forms_of_ours():
    if request.form is not None and request.method == "POST":
        abort(400, "no token")


def allow(_):
    if request.cookies["user"] == "ada" and session is not None:
        return Access("all", user="ada")


jobs = FlaskHandlers()
jobs.init_app(app, allow=allow)


@app.get("/")
def index():
    job_id = jobs.queue.enqueue("shout", "done")
    jobs.queue.process_jobs({"shout": str.upper}, skip_unknown=True)
    return jobs.queue.get_job(job_id)["result"]
"""

FASTAPI = """
from fastapi import FastAPI

app = FastAPI(lifespan=lifespan)
app.mount("/queue", page(queue, allow).asgi)


@app.get("/")
async def index():
    return await result()
"""

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route


async def index(request):
    return PlainTextResponse(await result())


app = Starlette(
    routes=[Route("/", index), Mount("/queue", page(queue, allow).asgi)],
    lifespan=lifespan,
)
"""

LITESTAR = """
from litestar import Litestar, asgi, get
from litestar.types import Receive, Scope, Send

the_page = page(queue, allow)


@get("/")
async def index() -> str:
    return await result()


@asgi("/queue", is_mount=True, copy_scope=True)
async def queue_page(scope: Scope, receive: Receive, send: Send) -> None:
    root_path = scope["root_path"] + "/queue"
    await the_page.asgi({**scope, "root_path": root_path}, receive, send)


app = Litestar([index, queue_page], lifespan=[lifespan])
"""

GUNICORN = ["gunicorn", "--bind", "fd://{fd}", "--workers", "2", "--threads", "4", "--preload"]
GUNICORN += ["--no-control-socket", "--log-level", "warning", "app:app"]
UVICORN = ["uvicorn", "--fd", "{fd}", "--log-level", "warning", "app:app"]


class MountedClient(Client):
    """A client whose paths are below /queue: nothing has cut that off."""

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, str, HTTPMessage]:
        return super().ask(method, f"{self.prefix}{path}", body, **headers)


@contextmanager
def serving(app: str, command: list[str], directory: Path) -> Iterator[int]:
    (directory / "app.py").write_text(app)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port: int = listening.getsockname()[1]
        command = [part.format(fd=listening.fileno()) for part in command]
        server = Child(
            [sys.executable, "-m", *command],
            directory,
            "server",
            environment(),
            [listening.fileno()],
        )
    try:
        yield port
        server.signal(signal.SIGTERM)
        server.wait()
        log = server.errors.read_text("utf-8") + server.output.read_text("utf-8")
        assert "Traceback" not in log, log
    finally:
        server.clean_up()


@pytest.mark.parametrize(
    ("framework", "app", "command"),
    [
        ("flask", FLASK, GUNICORN),
        ("fastapi", COMMON + FASTAPI, UVICORN),
        ("starlette", COMMON + STARLETTE, UVICORN),
        ("litestar", COMMON + LITESTAR, UVICORN),
    ],
    ids=["flask", "fastapi", "starlette", "litestar"],
)
def test_the_page_below_a_path_of_an_app(
    framework: str, app: str, command: list[str], tmp_path: Path
) -> None:
    for package in (framework, command[0]):
        if find_spec(package) is None:
            pytest.skip(f"{package} isn't installed")
    with (
        serving(app, command, tmp_path) as port,
        Queue(tmp_path / "queue.tsv") as queue,
    ):
        client = MountedClient(port, "/queue")
        client.use(queue)
        # Without the token of its own forms, and from another site, a form changes nothing.
        job_id = queue.enqueue("greet", {})
        assert client.post("/job/cancel", id=job_id, token="x" * 43) == 403
        body = f"id={job_id}&token={client.cookies['dbbasic_queue_form']}".encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (
            client.ask("POST", "/job/cancel", body, Origin="http://evil.example", **kind)[0] == 403
        )
        assert queue.counts()["pending"] == 1
        # The app's own view is still there, and gets the result of a job.
        status, text, _ = Client(port).ask("GET", "/")
        assert (status, text.strip('"')) == (200, "DONE")
        # Below the path only: /queues isn't the page's.
        assert Client(port).ask("GET", "/queues")[0] == 404
