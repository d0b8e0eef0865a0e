"""A small HTTP server for one user on this machine: what `dbbasic-queue web` runs.

It listens on 127.0.0.1 only. A client that sends its request too slowly is dropped, and so is one
that comes while many others are connected. Each connection has one request.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote_to_bytes

from dbbasic_queue.web.requests import Request, text_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.web.requests import Response

    Respond = Callable[[Request], Response]

HOST = "127.0.0.1"
REQUEST_SECONDS = 10.0
"""how long a client may take to send its request"""
MOST_CONNECTIONS = 64


class Server(ThreadingHTTPServer):
    """Answers requests, each in a thread, until `shutdown`."""

    daemon_threads = True
    request_queue_size = 128
    # Python's default is to share the port with a server that is there already on some systems.
    allow_reuse_address = True

    def __init__(self, port: int, largest_body: int, seconds: float = REQUEST_SECONDS) -> None:
        """Listen on a port, a free one for 0. Raises OSError if that isn't possible."""
        self.largest_body = largest_body
        self.seconds = seconds
        self.respond: Respond = lambda _: text_response(503, "Not ready yet.")
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((HOST, port), Handler)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self.server_address[1]
        return port

    @property
    def hosts(self) -> tuple[str, ...]:
        """The values of the header Host that are meant for it."""
        return f"{HOST}:{self.port}", f"localhost:{self.port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, unless there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:  # not for Ctrl-C: the thread may have started, and releases it itself
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer the request of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that has hung up, or was too slow."""


class _Incoming(io.RawIOBase):
    """What a client sends, until a deadline on the monotonic clock."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request came too slowly")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One connection: one request and its answer."""

    server: Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Read with a deadline for the whole request."""
        super().setup()
        deadline = time.monotonic() + self.server.seconds
        self.rfile.close()
        self.rfile = io.BufferedReader(_Incoming(self.connection, deadline))

    def handle_one_request(self) -> None:
        """Answer one request of any method, and close the connection."""
        self.close_connection = True
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline = self.request_version = self.command = ""
            self._send(text_response(414, "The address is too long."))
            return
        if not self.raw_requestline or not self.parse_request():
            return
        self.close_connection = True
        try:
            response = self.server.respond(self._request())
        except ValueError:
            response = text_response(400, "The request isn't valid.")
        self._send(response)

    def _request(self) -> Request:
        target = self.path
        if not target.startswith("/") or not target.isascii():
            raise ValueError("invalid target: must be a path")
        path, _, query = target.partition("?")
        for name in ("host", "content-length", "transfer-encoding", "origin"):
            if len(self.headers.get_all(name, [])) > 1:
                raise ValueError("invalid headers: one is sent twice")
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(
            self.command,
            unquote_to_bytes(path).decode("utf-8"),
            query,
            headers,
            self._body(),
            peer=self.client_address[0],
        )

    def _body(self) -> bytes | None:
        if "transfer-encoding" in self.headers:
            raise ValueError("invalid headers: only Content-Length is supported")
        text = self.headers.get("content-length", "0")
        if not (text.isascii() and text.isdecimal() and len(text) < 16):
            raise ValueError("invalid length: must be a number")
        length = int(text)
        if length > self.server.largest_body:
            return None
        body = self.rfile.read(length)
        if len(body) < length:
            raise ValueError("the request ended early")
        return body

    def _send(self, response: Response) -> None:
        self.connection.settimeout(self.server.seconds)
        status = HTTPStatus(response.status)
        lines = [f"HTTP/1.1 {response.status} {status.phrase}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in response.headers]
        if response.header("content-length") is None:
            lines.append(f"Content-Length: {len(response.body)}")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self.wfile.write(head + response.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that can't be parsed, without repeating any of it."""
        self.close_connection = True
        self._send(text_response(code, "The request isn't valid."))

    def log_message(self, format: str, *args: object) -> None:
        """Log no requests: only what they have changed, which the page does."""
