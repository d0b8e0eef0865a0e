"""What a web server passes to the page, and what the page returns: no I/O, and no framework."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol

    class Responder(Protocol):
        """What a web server's adapter needs of the page."""

        largest_body: int
        """how many bytes of a request are read"""

        def respond(self, request: Request) -> Response:
            """Return the answer to a request. Raises nothing."""


LONGEST_QUERY = 4096
"""A longer query string is refused. In characters."""
_MOST_FIELDS = 100


class Refused(Exception):
    """A request that isn't answered: an HTTP status, and a sentence that says why."""

    def __init__(self, status: int, text: str, *headers: tuple[str, str]) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


class Request:
    """One request.

    `method`   in capitals
    `path`     below the prefix, decoded; "" or begins with "/"
    `query`    what follows the "?", as sent
    `headers`  name in lower case -> value
    `body`     the content; None if it was too large to be read
    `prefix`   where the page is mounted, as in an address, such as "/queue"; "" at the root
    `scheme`   http or https
    `peer`     the client's address, "" if unknown
    `source`   the WSGI environ or ASGI scope, for `allow`
    """

    def __init__(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = b"",
        *,
        prefix: str = "",
        scheme: str = "http",
        peer: str = "",
        source: Any = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = dict(headers or {})
        self.body = body
        # Only one slash at its start: two would lead to another server.
        self.prefix = quote(f"/{prefix.strip('/')}") if prefix.strip("/") else ""
        self.scheme = scheme
        self.peer = peer
        self.source = source

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method} {self.path!r}>"

    @property
    def host(self) -> str:
        """The header Host, in lower case."""
        return self.headers.get("host", "").lower()

    def fields(self) -> dict[str, str]:
        """Return the query's fields. Raises Refused if they aren't valid."""
        if len(self.query) > LONGEST_QUERY:
            raise Refused(414, "The address is too long.")
        return _fields(self.query)

    def form(self) -> dict[str, str]:
        """Return the fields of a form that was sent. Raises Refused if they aren't valid."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise Refused(415, "This page only takes its own forms.")
        if self.body is None:
            raise Refused(413, "The form is too large.")
        try:
            text = self.body.decode("ascii")
        except UnicodeDecodeError:
            raise Refused(400, "The form isn't valid.") from None
        return _fields(text)

    def cookie(self, name: str) -> str:
        """Return the value of a cookie, "" if it wasn't sent, or was sent twice."""
        found = [
            value
            for part in self.headers.get("cookie", "").split(";")
            for key, _, value in [part.strip().partition("=")]
            if key == name
        ]
        return found[0] if len(found) == 1 else ""


def _fields(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
        )
        unquote(text, errors="strict")
    except ValueError:
        raise Refused(400, "The address or the form isn't valid.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Refused(400, "A field of the address or the form is given twice.")
    return fields


class Response:
    """One answer: its status, its headers in order, and its content."""

    def __init__(
        self, status: int, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.status = status
        self.body = body
        self.headers = list(headers)

    def header(self, name: str) -> str | None:
        """Return the first header of this name, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def text_response(status: int, text: str, *headers: tuple[str, str]) -> Response:
    """Return a plain text."""
    kind = ("Content-Type", "text/plain; charset=utf-8")
    return Response(status, f"{text}\n".encode("utf-8", "backslashreplace"), [kind, *headers])


def redirect(address: str) -> Response:
    """Return an answer that leads to another screen with a GET."""
    return text_response(303, "See the other page.", ("Location", address))
