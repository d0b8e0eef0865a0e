"""The rights of each request: none, unless `allow` gives some.

Each check raises `Refused`, and a check that fails in an unexpected way refuses, too. A change
needs all of these: a right, a token that only this page's forms have, and an `Origin` that is this
page's own. A page of another site can send a form here, but it can't read the token.
"""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import urlsplit

from dbbasic_queue.web.requests import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from logging import Logger
    from typing import Any, Literal, TypeAlias

    from dbbasic_queue.web.requests import Request

    Rights: TypeAlias = "Literal['read', 'all'] | Collection[str]"

ACTIONS = (
    "requeue",
    "run_now",
    "cancel",
    "stop",
    "edit",
    "purge",
    "pause",
    "resume",
    "run_schedule",
)
"""What a user can be allowed to do, besides looking."""

CLOSED = """\
This page is closed, because it was made without a rule for access.

Say so where it is made, with a function that looks at the request:

    from dbbasic_queue.web import page

    def allow(request):
        if request.headers.get("x-user") == "ada":   # whatever your site knows about its users
            return "all"                             # or "read", or {"requeue", "cancel"}
        return None                                  # nothing

    application = page(queue, allow=allow)

On your own machine, `dbbasic-queue web` opens the page for you alone.
"""
_COOKIE = "dbbasic_queue_form"
_TOKEN_BYTES = 24


class Access:
    """What one user may do.

    `rights` is "read", "all", or names of actions: requeue, run_now, cancel, stop, edit, purge,
    pause, resume, run_schedule. With any of them, the user may look, too. `user` is for the log.

    Raises ValueError for anything else.
    """

    def __init__(self, rights: Rights, user: str = "") -> None:
        if rights == "read":
            rights = ()
        elif rights == "all":
            rights = ACTIONS
        elif isinstance(rights, (str, bytes)) or not isinstance(
            rights, (set, frozenset, list, tuple)
        ):
            raise ValueError(f"invalid rights {rights!r}: {_RULE}")
        unknown = sorted(repr(name) for name in rights if name not in ACTIONS)
        if unknown:
            raise ValueError(f"invalid rights {', '.join(unknown)}: {_RULE}")
        if not isinstance(user, str):
            raise ValueError(f"invalid user of type {type(user).__name__}: must be a str")
        self.rights = frozenset(rights)
        self.user = user

    def __repr__(self) -> str:
        return f"Access({set(self.rights) or 'read'!r}, user={self.user!r})"

    def may(self, action: str) -> bool:
        """Return whether the user may do this."""
        return action in self.rights


_RULE = f"must be None, 'read', 'all', or a set of {', '.join(ACTIONS)}"


def access_of(allow: Callable[[Request], Any] | None, request: Request, log: Logger) -> Access:
    """Return what the sender of a request may do. Raises Refused if that is nothing.

    An error of `allow`, and a value that it mustn't return, are logged, and refuse the request.
    """
    if allow is None:
        raise Refused(403, CLOSED)
    try:
        found = allow(request)
        if found is not None and not isinstance(found, Access):
            found = Access(found)
    except Exception:
        log.exception("allow() failed, so the request was refused")
        raise Refused(403, "You may not see this page.") from None
    if found is None:
        raise Refused(403, "You may not see this page.")
    access: Access = found
    return access


def check_host(request: Request, hosts: Collection[str] | None) -> None:
    """Refuse a request for another host: its name may have been made to lead here.

    That is DNS rebinding: a page of evil.example, whose name suddenly means 127.0.0.1, can read
    whatever a server there answers.
    """
    host = request.host
    if hosts is None:
        return
    if host not in hosts and host.rpartition(":")[0] not in hosts:
        raise Refused(421, "This server isn't meant to be reached under this name.")


def check_origin(request: Request) -> None:
    """Refuse a form that a page of another site has sent."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    is_foreign = site is not None and site != "same-origin"
    if origin is not None:
        # Behind a proxy, this side may see http, and the browser https: only the host counts.
        is_foreign = is_foreign or not _is_of(origin, request.host)
    if is_foreign:
        raise Refused(403, "This form was sent by another site. Nothing was done.")


def _is_of(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        sent = parts.hostname, parts.port or _PORTS[parts.scheme]
        ours = urlsplit(f"//{host}")
        return sent == (ours.hostname, ours.port or _PORTS[parts.scheme]) and bool(sent[0])
    except (ValueError, KeyError):
        return False


_PORTS = {"http": 80, "https": 443}


def token_of(request: Request) -> tuple[str, list[tuple[str, str]]]:
    """Return the token for this browser's forms, and the headers that set its cookie, if any."""
    name = _cookie_name(request)
    found = request.cookie(name)
    if _is_token(found):
        return found, []
    token = secrets.token_hex(_TOKEN_BYTES)
    secure = "; Secure" if request.scheme == "https" else ""
    cookie = f"{name}={token}; Path=/; HttpOnly; SameSite=Strict{secure}"
    return token, [("Set-Cookie", cookie)]


def check_token(request: Request, sent: str) -> None:
    """Refuse a form without the token that this browser's cookie has."""
    token = request.cookie(_cookie_name(request))
    if not _is_token(token) or not hmac.compare_digest(token.encode(), sent.encode()):
        raise Refused(
            403, "This form is out of date. Nothing was done: go back, reload the page, try again."
        )


def _cookie_name(request: Request) -> str:
    """Return the cookie's name. With __Host-, no other site of the domain can set it."""
    return f"__Host-{_COOKIE}" if request.scheme == "https" else _COOKIE


def _is_token(text: str) -> bool:
    return len(text) == 2 * _TOKEN_BYTES and text.isascii() and text.isalnum()
