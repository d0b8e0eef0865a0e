"""The page in real servers: the WSGI and ASGI rules, gunicorn, uvicorn, and `dbbasic-queue web`."""

from __future__ import annotations

import asyncio
import http.client
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from helpers import DEADLINE, Child, environment, job, run_command, wait_for

from dbbasic_queue import Queue
from dbbasic_queue.web import Page
from dbbasic_queue.web.server import HOST, Server

APP = """
from dbbasic_queue import Queue
from dbbasic_queue.web import Access, page

def allow(request):
    if request.cookie("user") == "ada" and request.source:
        return Access("all", user="ada")

the_page = page(Queue("queue.tsv"), allow)
application = the_page
asgi = the_page.asgi
"""


class Client:
    """A browser without a screen: one cookie jar, one server.

    `prefix` is where the page says that it is. A proxy has cut it off the requests' paths.
    """

    def __init__(self, port: int, prefix: str = "") -> None:
        self.port = port
        self.prefix = prefix
        self.cookies = {"user": "ada"}

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, str, http.client.HTTPMessage]:
        sent = {"Cookie": "; ".join(f"{name}={text}" for name, text in self.cookies.items())}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, sent | headers)
            response = connection.getresponse()
            text = response.read().decode()
        for cookie in response.headers.get_all("set-cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return response.status, text, response.headers

    def post(self, path: str, **fields: str) -> int:
        body = urlencode({"token": self.cookies["dbbasic_queue_form"], **fields}).encode()
        return self.ask(
            "POST",
            path,
            body,
            **{
                "Content-Type": "application/x-www-form-urlencoded",
                "Origin": f"http://127.0.0.1:{self.port}",
            },
        )[0]

    def use(self, queue: Queue) -> None:
        """Look at every screen, and change a job."""
        job_id = queue.enqueue("greet", {"to": "ä"})
        for path in ("/", "/jobs?text=%C3%A4", "/schedules", "/attempts", f"/job?id={job_id}"):
            status, text, headers = self.ask("GET", path)
            assert status == 200, (path, text)
            assert headers["x-frame-options"] == "DENY"
            for address in re.findall(r'(?:href|src|action)="([^"#]*)"', text):
                assert address.startswith(f"{self.prefix}/"), address
        (style,) = re.findall(r'rel="stylesheet" href="([^"]*)"', text)
        assert self.ask("GET", style.removeprefix(self.prefix))[0] == 200
        assert self.ask("HEAD", "/")[:2] == (200, "")
        assert self.ask("GET", "/%ff")[0] in (400, 404)
        assert self.ask("GET", "/nothing")[0] == 404
        assert self.post("/job/cancel", id=job_id) == 303
        assert job(queue, job_id)["status"] == "cancelled"
        self.cookies["user"] = "eve"
        assert self.ask("GET", "/")[0] == 403
        assert self.post("/job/requeue", id=job_id) == 403
        self.cookies["user"] = "ada"
        with suppress(ConnectionError):  # the server may answer, and hang up, before it is sent
            assert self.post("/job/requeue", id=job_id, x="x" * 4_000_000) == 413
        assert job(queue, job_id)["status"] == "cancelled"


@contextmanager
def serving(command: list[str], directory: Path, name: str) -> Iterator[int]:
    """Run a server on a free port; {fd} in its command is the socket."""
    (directory / "app.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port: int = listening.getsockname()[1]
        fd = listening.fileno()
        command = [part.format(fd=fd) for part in command]
        server = Child(command, directory, name, environment(), [fd])
    try:
        yield port
        server.signal(signal.SIGTERM)
        server.wait()
        assert "Traceback" not in server.errors.read_text("utf-8")
    finally:
        server.clean_up()


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="gunicorn isn't installed")
def test_the_page_under_gunicorn(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gunicorn", "--bind", "fd://{fd}", "--threads", "4"]
    with (
        serving([*command, "app:application"], tmp_path, "gunicorn") as port,
        Queue(tmp_path / "queue.tsv") as queue,
    ):
        Client(port).use(queue)


@pytest.mark.skipif(find_spec("uvicorn") is None, reason="uvicorn isn't installed")
def test_the_page_under_uvicorn_below_a_path(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uvicorn", "--fd", "{fd}", "--no-access-log"]
    with (
        serving([*command, "--root-path", "/q", "app:asgi"], tmp_path, "uvicorn") as port,
        Queue(tmp_path / "queue.tsv") as queue,
    ):
        # uvicorn adds the root path to the path itself.
        Client(port, "/q").use(queue)


# -- the rules of WSGI and ASGI --


def test_the_wsgi_application_keeps_to_the_rules(queue: Queue) -> None:
    job_id = queue.enqueue("greet", {})
    application = validator(Page(queue, lambda _: "all"))
    for method, path, query in [
        ("GET", "/", ""),
        ("HEAD", "/jobs", ""),
        ("GET", "", ""),
        ("GET", "/job", f"id={job_id}"),
        ("POST", "/job/cancel", ""),
        ("PUT", "/", ""),
        ("GET", "/\xc3\xa4", "a=1&a=2"),
        ("GET", "/\xff", ""),
    ]:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SCRIPT_NAME": "/q" if path in ("", "/") else "",
        }
        setup_testing_defaults(environ)
        environ["PATH_INFO"] = path
        statuses: list[str] = []

        def start(status: str, headers: Any, *_: object, into: list[str] = statuses) -> Any:
            into.append(status)

        answer = application(environ, start)
        content = b"".join(answer)
        answer.close()  # type: ignore[attr-defined]
        assert re.match(r"[2345]\d\d ", statuses[0])
        assert bool(content) == (method != "HEAD")


def asgi(page: Page, messages: list[Any], **scope: Any) -> list[Any]:
    """Return what the ASGI application sends after these messages."""
    sent: list[Any] = []
    left = iter(messages)

    async def receive() -> Any:
        return next(left)

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"x")]} | scope
    asyncio.run(page.asgi(whole, receive, send))
    return sent


def test_the_asgi_application_keeps_to_the_rules(queue: Queue) -> None:
    page = Page(queue, lambda request: "all" if request.source["path"] else None)
    empty = [{"type": "http.request"}]
    start, body = asgi(page, empty)
    assert start["status"] == 200 and body["body"].startswith(b"<!DOCTYPE")
    assert all(name == name.lower() for name, _ in start["headers"])
    assert asgi(page, empty, path="/jobs", query_string=b"\xff")[0]["status"] == 400
    for path in ("/q", "/q/jobs", "/jobs"):  # with the prefix, as today, or without
        start, body = asgi(page, empty, path=path, root_path="/q")
        assert start["status"] == (303 if path == "/q" else 200), path
        if path == "/q":
            assert (b"location", b"/q/") in start["headers"]
    assert asgi(page, [{"type": "http.disconnect"}]) == []
    pieces = [{"type": "http.request", "body": b"x" * 100_000, "more_body": True}] * 200
    assert asgi(page, pieces, method="POST", path="/job/cancel")[0]["status"] in (403, 413, 415)
    lifespan = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert [message["type"] for message in asgi(page, lifespan, type="lifespan")] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    socket_ = asgi(page, [{"type": "websocket.connect"}], type="websocket")
    assert [message["type"] for message in socket_] == ["websocket.close"]


def test_cookies_in_several_headers_are_joined(queue: Queue) -> None:
    page = Page(queue, lambda request: "read" if request.cookie("user") == "ada" else None)
    headers = [(b"cookie", b"a=b"), (b"Cookie", b"user=ada")]
    assert asgi(page, [{"type": "http.request"}], headers=headers)[0]["status"] == 200


# -- the command --


@contextmanager
def command(directory: Path, *options: str) -> Iterator[tuple[str, Child]]:
    """Run `dbbasic-queue web`; yield the address that it prints."""
    words = [sys.executable, "-m", "dbbasic_queue", "--file", "queue.tsv", "web", *options]
    child = Child(words, directory, "web")
    try:
        wait_for(lambda: child.output.read_text("utf-8").endswith("\n"), "the address")
        yield child.output.read_text("utf-8").strip(), child
    finally:
        child.clean_up()


def enter(address: str) -> Client:
    """Return a client that has opened the address."""
    parts = urlsplit(address)
    assert parts.hostname == "127.0.0.1" and parts.port
    client = Client(parts.port)
    assert client.ask("GET", f"{parts.path}?{parts.query}")[0] == 303
    return client


def test_the_command_prints_an_address_that_opens_a_read_only_page(tmp_path: Path) -> None:
    with Queue(tmp_path / "queue.tsv") as queue:
        job_id = queue.enqueue("greet", {})
        with command(tmp_path) as (address, child):
            client = enter(address)
            assert "Read-only." in client.ask("GET", "/")[1]
            assert client.post("/job/cancel", id=job_id) == 403
            assert job(queue, job_id)["status"] == "pending"
            assert Client(client.port).ask("GET", "/")[0] == 403
            child.signal(signal.SIGINT)
            assert child.wait() == 130
        assert "Traceback" not in child.errors.read_text("utf-8")


def test_ctrl_c_while_the_thread_of_a_request_starts_ends_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        real(thread)
        thread.join(DEADLINE)  # the answer may be sent before `start` returns
        raise KeyboardInterrupt

    with Server(0, 0) as server, socket.create_connection((HOST, server.port)) as client:
        client.settimeout(DEADLINE)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        server.timeout = DEADLINE
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
        assert client.recv(12) == b"HTTP/1.1 503"


def test_the_command_with_write_lets_jobs_be_changed_and_logs_it(tmp_path: Path) -> None:
    with Queue(tmp_path / "queue.tsv") as queue:
        job_id = queue.enqueue("greet", {})
        with command(tmp_path, "--write") as (address, child):
            client = enter(address)
            client.ask("GET", "/")
            assert client.post("/job/cancel", id=job_id) == 303
            assert job(queue, job_id)["status"] == "cancelled"
            log = child.errors.read_text("utf-8")
            assert f"cancel by - from 127.0.0.1: id='{job_id}': done" in log


def test_the_command_needs_a_queue_and_a_valid_port(tmp_path: Path) -> None:
    done = run_command("web", "--file", "nothing.tsv", cwd=tmp_path)
    assert done.returncode == 1 and "there is no queue" in done.stderr
    done = run_command("web", "--port", "65536", cwd=tmp_path)
    assert done.returncode == 2 and "invalid port" in done.stderr
