"""The page: from a request to an answer, whatever server or framework it is mounted in."""

from __future__ import annotations

import logging

from dbbasic_queue.errors import QueueError
from dbbasic_queue.model.escaping import escape
from dbbasic_queue.web import actions, attempts, job, jobs, layout, now, schedules, static_files
from dbbasic_queue.web.access import access_of, check_host, check_origin, check_token, token_of
from dbbasic_queue.web.asgi import Asgi
from dbbasic_queue.web.first_reading import StillReading
from dbbasic_queue.web.hiding import WORDS, Hiding
from dbbasic_queue.web.requests import Refused, redirect, text_response
from dbbasic_queue.web.shared import Shared
from dbbasic_queue.web.visit import TOKEN_FIELD, Visit
from dbbasic_queue.web.wsgi import answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any, Literal

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.web.access import Access
    from dbbasic_queue.web.requests import Request, Response

    Allowed = Literal["read", "all"] | Collection[str] | Access | None

LOGGER = "dbbasic_queue.web"
_METHODS = ("GET", "HEAD", "POST")
_LARGEST_REST = 65_536
"""how many bytes a form may have besides a payload"""
_NOT_READ_YET = (
    "A long queue is being read for the first time. Nothing was done: try again in a few seconds."
)
_BYTES_PER_BYTE = 3
"""how many bytes a form needs for one byte of a payload, at most: %XX"""

SECURITY_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    # Not no-referrer: with it, browsers send "Origin: null" with the forms of this page, too.
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
"""the headers of every answer"""

_SCREENS: dict[str, Callable[[Visit], Response]] = {
    "/": now.respond,
    "/jobs": jobs.respond,
    "/job": job.respond,
    "/job/edit": job.edit,
    "/schedules": schedules.respond,
    "/schedules/run": schedules.confirm,
    "/attempts": attempts.respond,
    **{
        f"/jobs/{action}": lambda visit, action=action: jobs.confirm(visit, action)  # type: ignore[misc]
        for action in jobs.BULK
    },
}


class Page:
    """A queue in the browser: a WSGI application; `asgi` is the same for an ASGI server.

    `respond` is what both do. It may be called by many threads at once.
    """

    def __init__(
        self,
        queue: Queue,
        allow: Callable[[Any], Allowed] | None = None,
        *,
        hide: Iterable[str] = WORDS,
        hosts: Collection[str] | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self.queue = queue
        self.largest_body = queue.max_payload * _BYTES_PER_BYTE + _LARGEST_REST
        """how many bytes of a request are read"""
        self.asgi = Asgi(self)
        """the page as an ASGI application"""
        self._allow = allow
        self._hiding = Hiding(hide)
        if isinstance(hosts, str):
            raise ValueError(f"invalid hosts {hosts!r}: must be a list or a set of names")
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self._log = log or logging.getLogger(LOGGER)
        self._shared = Shared(queue)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.queue.path}>"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return answer(self, environ, start_response)

    def respond(self, request: Request) -> Response:
        """Return the answer to a request. Raises nothing."""
        return self.guarded(request, self._respond)

    def guarded(self, request: Request, respond: Callable[[Request], Response]) -> Response:
        """Return what a function answers, or why it doesn't, with the headers of every answer."""
        try:
            self._check(request)
            response = respond(request)
        except Refused as refused:
            response = text_response(refused.status, refused.text, *refused.headers)
        except (QueueError, OSError) as error:
            self._log.warning("the queue can't be used: %s", escape(str(error)))
            response = text_response(503, f"The queue can't be used: {error}.")
        except Exception:  # noqa: BLE001 - the log has it, and the server goes on
            self._log.exception("an error in the page")
            response = text_response(500, "An error in the page: its log says more.")
        if response.header("cache-control") is None:
            response.headers.append(("Cache-Control", "no-store"))
        response.headers += SECURITY_HEADERS
        response.headers.append(("Content-Length", str(len(response.body))))
        if request.method == "HEAD":
            response.body = b""
        return response

    def _check(self, request: Request) -> None:
        if request.method not in _METHODS:
            raise Refused(
                405, "This page knows GET, HEAD and POST.", ("Allow", ", ".join(_METHODS))
            )
        check_host(request, self._hosts)

    def _respond(self, request: Request) -> Response:
        access = access_of(self._allow, request, self._log)
        if request.method == "POST":
            return self._change(request, access)
        fields = request.fields()
        if request.path == "":
            return redirect(f"{request.prefix}/")
        if (found := static_files.respond(request.path)) is not None:
            return found
        screen = _SCREENS.get(request.path)
        if screen is None:
            raise Refused(404, "There is no such page.")
        token, cookies = token_of(request)
        visit = self._visit(request, access, token, fields)
        try:
            response = screen(visit)
        except Refused as refused:
            if refused.status not in (400, 404):
                raise
            response = layout.sorry(visit, "Not found", refused.text, refused.status)
        except StillReading:
            response = layout.still_reading(visit)
        response.headers += cookies
        return response

    def _change(self, request: Request, access: Access) -> Response:
        check_origin(request)
        form = request.form()
        token = form.pop(TOKEN_FIELD, "")
        check_token(request, token)
        visit = self._visit(request, access, token, form)
        try:
            return actions.respond(visit, request.path, self._log)
        except StillReading:
            raise Refused(503, _NOT_READ_YET, ("Retry-After", "2")) from None

    def _visit(self, request: Request, access: Access, token: str, fields: dict[str, str]) -> Visit:
        return Visit(request, access, self.queue, self._shared, self._hiding, token, fields)


def page(
    queue: Queue,
    allow: Callable[[Any], Allowed] | None = None,
    *,
    hide: Iterable[str] = WORDS,
    hosts: Collection[str] | None = None,
    log: logging.Logger | None = None,
) -> Page:
    """Return the queue's page: a WSGI application, with an `asgi` attribute for ASGI servers.

    Without `allow`, every request is refused. `allow` takes a `Request` (`headers`, `cookie(name)`,
    `path`, `peer`, and `source`, which is the WSGI environ or ASGI scope) and returns what its
    sender may do: None for nothing, "read", "all", a set of actions (requeue, run_now, cancel,
    stop, edit, purge, pause, resume, run_schedule), or `Access(rights, user="ada")`, whose user the
    log names. An error in it, and any other value, refuse the request.

    Members of payloads and results whose names contain one of the words in `hide` are not shown.
    `hosts`, if given, are the names under which the server may be reached, such as
    "queue.example.org". Every change is logged by `log`, by default the logger "dbbasic_queue.web".
    """
    return Page(queue, allow, hide=hide, hosts=hosts, log=log)
