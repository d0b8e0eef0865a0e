"""The page for a WSGI server (PEP 3333)."""

from __future__ import annotations

from dbbasic_queue.web.requests import Request, Response, text_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from dbbasic_queue.web.requests import Responder

_PIECE_BYTES = 1 << 16
_PHRASES = {
    200: "OK",
    202: "Accepted",
    303: "See Other",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
}


def answer(page: Responder, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer a request."""
    try:
        request = _request(environ, page.largest_body)
    except ValueError:
        response = text_response(400, "The request isn't valid.")
    else:
        response = page.respond(request)
    start_response(_status(response), response.headers)
    return [response.body]


def _status(response: Response) -> str:
    return f"{response.status} {_PHRASES.get(response.status, 'Error')}"


def _request(environ: dict[str, Any], largest_body: int) -> Request:
    """Return the request. Raises ValueError if its path isn't UTF-8, or its length no number."""
    headers = {
        name[5:].replace("_", "-").lower(): text
        for name, text in environ.items()
        if name.startswith("HTTP_")
    }
    if environ.get("CONTENT_TYPE"):
        headers["content-type"] = environ["CONTENT_TYPE"]
    return Request(
        environ["REQUEST_METHOD"],
        _text(environ.get("PATH_INFO", "")),
        environ.get("QUERY_STRING", ""),
        headers,
        _body(environ, largest_body),
        prefix=_text(environ.get("SCRIPT_NAME", "")),
        scheme=environ["wsgi.url_scheme"],
        peer=environ.get("REMOTE_ADDR", ""),
        source=environ,
    )


def _text(text: str) -> str:
    """Return a text that the server has decoded as Latin-1, as it must, as what it is."""
    return text.encode("latin-1").decode("utf-8")


def _body(environ: dict[str, Any], largest: int) -> bytes | None:
    """Return the content; None if it is too large."""
    if environ["REQUEST_METHOD"] != "POST":
        return b""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length < 0:
        raise ValueError("invalid length: is below 0")
    if length > largest:
        return None
    pieces = []
    while length > 0:
        piece = environ["wsgi.input"].read(min(length, _PIECE_BYTES))
        if not piece:
            raise ValueError("the request ended early")
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)
