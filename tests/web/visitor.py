"""A visitor of the page without a browser: sends requests to `Page.respond`, and keeps cookies."""

from __future__ import annotations

import html
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from dbbasic_queue.web import Access, Page
from dbbasic_queue.web.requests import Request, Response

if TYPE_CHECKING:
    from dbbasic_queue import Queue

HOST = "queue.example.org"
ADA = Access("all", user="ada")


class Visitor:
    """Someone who looks at the page of a queue, with all rights unless others are given."""

    def __init__(self, queue: Queue, access: Any = ADA, **options: Any) -> None:
        self.page = Page(queue, lambda _: access, **options)
        self.cookie = ""
        self.prefix = ""
        self.scheme = "http"

    def send(
        self, method: str, path: str, query: str = "", body: bytes = b"", **headers: str
    ) -> Response:
        """Send a request. A header named `sec_fetch_site` is `sec-fetch-site`."""
        sent = {"host": HOST, "cookie": self.cookie}
        sent |= {name.replace("_", "-"): text for name, text in headers.items()}
        response = self.page.respond(
            Request(
                method,
                path,
                query,
                sent,
                body,
                prefix=self.prefix,
                scheme=self.scheme,
                peer="192.0.2.7",
            )
        )
        if (cookie := response.header("set-cookie")) is not None:
            self.cookie = cookie.partition(";")[0]
        return response

    def get(self, path: str, **fields: str) -> str:
        """Return a screen's HTML; it must be there."""
        response = self.send("GET", path, urlencode(fields))
        assert response.status == 200, response.body
        return response.body.decode()

    def token(self) -> str:
        """Return the token of this visitor's forms."""
        if not self.cookie:
            self.send("GET", "/")
        return self.cookie.partition("=")[2]

    def post(self, path: str, **fields: str) -> Response:
        """Send a form as the page's own, with its token."""
        body = urlencode({"token": self.token(), **fields}).encode()
        return self.send("POST", path, body=body, **form_headers(f"{self.scheme}://{HOST}"))

    def done(self, path: str, **fields: str) -> str:
        """Send a form that must succeed; return the text of the screen that it leads to."""
        response = self.post(path, **fields)
        assert response.status == 303, (response.status, text_of(response.body.decode()))
        address = urlsplit(response.header("location") or "")
        shown = self.send("GET", address.path.removeprefix(self.prefix), address.query)
        assert shown.status == 200
        return text_of(shown.body.decode())


def form_headers(origin: str = f"http://{HOST}") -> dict[str, str]:
    """Return the headers that a browser sends with one of the page's own forms."""
    return {
        "content_type": "application/x-www-form-urlencoded",
        "origin": origin,
        "sec_fetch_site": "same-origin",
    }


def text_of(page: str) -> str:
    """Return what a page says, without its tags, with single spaces."""
    main = re.sub(r"(?s)^.*<main|</main>.*$", "<main", page)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", main)).split())


class Lines(logging.Handler):
    """Keeps what a logger has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


def new_log() -> tuple[logging.Logger, list[str]]:
    """Return a logger, and the list of the lines that it logs."""
    log = logging.Logger("test", logging.INFO)
    lines = Lines()
    log.addHandler(lines)
    return log, lines.texts
