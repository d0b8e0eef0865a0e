"""HTTP requests of a pass: the ping, and the POST of a webhook. Only http and https."""

from __future__ import annotations

from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.deadline import within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from urllib.request import Request

PING_SECONDS = 5.0
WEBHOOK_SECONDS = 10.0


def check_url(url: object, name: str) -> str:
    """Return a URL that can be requested. Raises InvalidArgument for any other.

    >>> check_url("https://hc-ping.example/5f0c", "ping")
    'https://hc-ping.example/5f0c'
    """
    from urllib.parse import urlsplit

    rule = "must be an http or https URL, such as https://example.org/path"
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidArgument(f"invalid {name} {url!r}: {rule} (write other characters as %XX)")
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_valid = is_valid and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise InvalidArgument(f"invalid {name} {url!r}: {rule}")
    if "@" in parts.netloc:
        raise InvalidArgument(f"invalid {name} {url!r}: a user name or password isn't supported")
    return url


def place_of(url: str) -> str:
    """Return a URL without its path, which may be a secret.

    >>> place_of("https://hc-ping.example/5f0c?a=b")
    'https://hc-ping.example'
    """
    scheme, _, rest = url.partition("://")
    for end in "/?#":
        rest = rest.partition(end)[0]
    return f"{scheme}://{rest}"


def ping(url: str) -> None:
    """Request a URL, after a pass. A failure is logged."""
    from dbbasic_queue.passes.attempt import describe

    try:
        within(PING_SECONDS, _get, url)
    except Exception as e:  # noqa: BLE001 - whatever it is: the jobs are recorded
        if log := log_lines.logger():
            log_lines.not_pinged(log, place_of(url), describe(e))


def _get(url: str) -> None:
    from urllib.request import HTTPRedirectHandler, Request

    request = Request(url, headers={"User-Agent": "dbbasic-queue"})
    _open(request, PING_SECONDS, HTTPRedirectHandler)


def post_json(url: str, body: bytes) -> None:
    """Send JSON by POST. Raises an exception unless the answer is 2xx, or for a redirect."""
    from urllib.request import Request

    headers = {"Content-Type": "application/json", "User-Agent": "dbbasic-queue"}
    _open(Request(url, body, headers, method="POST"), WEBHOOK_SECONDS)


def _open(request: Request, seconds: float, *more: type) -> None:
    """Make a request; only http and https, also after a redirect."""
    from urllib import request as urllib
    from urllib.error import HTTPError

    opener = urllib.OpenerDirector()
    for handler in (
        urllib.ProxyHandler,
        urllib.HTTPHandler,
        urllib.HTTPSHandler,
        urllib.HTTPDefaultErrorHandler,
        urllib.HTTPErrorProcessor,
        urllib.UnknownHandler,
        *more,
    ):
        opener.add_handler(handler())
    try:
        with opener.open(request, timeout=seconds) as answer:
            answer.read(65536)
    except HTTPError as e:
        e.close()  # it is an answer, too, with a connection
        raise
