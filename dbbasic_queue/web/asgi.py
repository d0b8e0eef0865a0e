"""The page for an ASGI 3 server: the queue is used in a thread, not on the event loop."""

from __future__ import annotations

from dbbasic_queue.web.requests import Request, Response, text_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from dbbasic_queue.web.requests import Responder

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]


class Asgi:
    """The page as an ASGI application."""

    def __init__(self, page: Responder) -> None:
        self._page = page

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._page!r}>"

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        import asyncio

        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":  # a web socket
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        body = await _body(scope, receive, self._page.largest_body)
        if isinstance(body, _Gone):
            return
        try:
            request = _request(scope, body)
        except ValueError:
            response = text_response(400, "The request isn't valid.")
        else:
            response = await asyncio.to_thread(self._page.respond, request)
        await _send(send, response)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


class _Gone:
    """The client has hung up."""


async def _body(scope: Any, receive: Receive, largest: int) -> bytes | _Gone | None:
    """Return the content, None if it is too large."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return _Gone()
        piece = message.get("body", b"")
        size += len(piece)
        if scope["method"] == "POST" and size <= largest:
            pieces.append(piece)
        else:
            pieces.clear()
        if not message.get("more_body", False):
            break
        if size > largest:
            return None  # the rest is never read
    return b"".join(pieces) if size <= largest or scope["method"] != "POST" else None


def _request(scope: Any, body: bytes | None) -> Request:
    """Return the request. Raises ValueError if its address isn't ASCII."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        joint = "; " if key == "cookie" else ","
        headers[key] = f"{headers[key]}{joint}{text}" if key in headers else text
    prefix = scope.get("root_path", "").rstrip("/")
    path = scope["path"]
    if prefix and (path == prefix or path.startswith(prefix + "/")):
        path = path[len(prefix) :]  # since 2023, the path has the prefix
    if len(path) > 1:
        path = path.removesuffix("/")  # Litestar adds a slash to the paths of what is mounted
    client = scope.get("client")
    return Request(
        scope["method"],
        path,
        scope.get("query_string", b"").decode("ascii"),
        headers,
        body,
        prefix=prefix,
        scheme=scope.get("scheme", "http"),
        peer=client[0] if client else "",
        source=scope,
    )


async def _send(send: Send, response: Response) -> None:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
