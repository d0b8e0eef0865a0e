"""The door of the page on this machine: a token that works once, and then a cookie.

The person at the terminal has the token. An address may end up in a browser's history or in a log,
so it opens nothing a second time.
"""

from __future__ import annotations

import hmac
import secrets
import threading

from dbbasic_queue.web.requests import redirect, text_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from dbbasic_queue.web.application import Page
    from dbbasic_queue.web.requests import Request, Response

ENTRY = "/enter"


class Door:
    """Lets in the browser that has used the token. `rights` are what its user may do."""

    def __init__(self, port: int, rights: Literal["read", "all"]) -> None:
        self.token = secrets.token_urlsafe(24)
        self._session = secrets.token_urlsafe(24)
        self._rights = rights
        # A browser sends the cookies of a host to all of its ports.
        self._cookie = f"dbbasic_queue_{port}"
        self._mutex = threading.Lock()
        self._is_used = False

    def allow(self, request: Request) -> Literal["read", "all"] | None:
        """Return what the sender of a request may do, for `page`."""
        sent = request.cookie(self._cookie)
        is_ours = hmac.compare_digest(sent.encode(), self._session.encode())
        return self._rights if is_ours else None

    def respond(self, page: Page, request: Request) -> Response:
        """Return the page's answer; at the entry, set the cookie."""
        if request.path != ENTRY or request.method != "GET":
            return page.respond(request)
        return page.guarded(request, self._enter)

    def _enter(self, request: Request) -> Response:
        if self.allow(request) is not None:
            return redirect("/")
        sent = request.fields().get("token", "")
        with self._mutex:
            is_right = hmac.compare_digest(sent.encode(), self.token.encode())
            if not is_right or self._is_used:
                return text_response(403, _USED if is_right else _WRONG)
            self._is_used = True
        response = redirect("/")
        response.headers.append(
            ("Set-Cookie", f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict")
        )
        return response


_USED = "This address was used already, and works only once. Start `dbbasic-queue web` again."
_WRONG = "This address isn't valid. Use the one that `dbbasic-queue web` has printed last."
