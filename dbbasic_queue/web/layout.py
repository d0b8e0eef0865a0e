"""What all screens have around them: head, navigation, the message of what was done, foot."""

from __future__ import annotations

import os
import time

from dbbasic_queue.model.escaping import printable
from dbbasic_queue.web import static_files
from dbbasic_queue.web.html import document, tag
from dbbasic_queue.web.requests import Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.web.html import Content, Markup
    from dbbasic_queue.web.visit import Visit

_SCREENS = (("/", "Now"), ("/jobs", "Jobs"), ("/schedules", "Schedules"), ("/attempts", "Attempts"))

_READING_REFRESH_SECONDS = 1

DONE = {
    "requeued": "It will run again.",
    "run_now": "It is due now: the next worker runs it.",
    "cancelled": "It was cancelled.",
    "stopped": "It was stopped.",
    "requested": "It was asked to stop.",
    "edited": "The payload was changed.",
    "removed": "The job was removed.",
    "paused": "No more jobs of this type are started. Running ones go on.",
    "paused-all": "No more jobs are started. Running ones go on.",
    "resumed": "Jobs of this type are started again.",
    "resumed-all": "Jobs are started again.",
    "added": "The job was added. The next worker runs it.",
}
"""what the address says after a change -> what the screen says; no other text can get there"""
DONE_MANY = {
    "requeue": "will run again",
    "cancel": "cancelled",
    "stop": "stopped, or asked to stop",
    "purge": "removed",
}


def screen(
    visit: Visit, title: str, current: str, *content: Content, status: int = 200, refresh: int = 0
) -> Response:
    """Return a screen. With `refresh`, the script updates it that often, in seconds."""
    name = queue_name(visit)
    root = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", f"{title} - {name}"),
            tag("link", rel="icon", href=visit.address(static_files.path("icon.svg"))),
            tag("link", rel="stylesheet", href=visit.address(static_files.path("page.css"))),
            tag("script", src=visit.address(static_files.path("page.js")), defer=True),
        ),
        tag(
            "body",
            tag("a", "Skip to the content", href="#main", class_="skip"),
            _header(visit, current, name),
            tag(
                "main",
                _message(visit),
                content,
                id="main",
                tabindex="-1",
                data_refresh=refresh or None,
            ),
            _footer(visit),
        ),
        lang="en",
    )
    headers = [("Content-Type", "text/html; charset=utf-8")]
    return Response(status, document(root), headers)


def queue_name(visit: Visit) -> str:
    """Return the queue's name: of its file, without the directories, or its URL."""
    path = visit.queue.path
    return printable(path if ":" in path else os.path.basename(path))


def _header(visit: Visit, current: str, name: str) -> Markup:
    links = [
        tag(
            "a",
            label,
            href=visit.address(path),
            aria_current="page" if path == current else None,
        )
        for path, label in _SCREENS
    ]
    return tag(
        "header",
        tag(
            "div",
            tag("a", name, href=visit.address("/"), class_="name", title=visit.queue.path),
            tag("nav", links, aria_label="Screens"),
            class_="wide",
        ),
    )


def _message(visit: Visit) -> Markup | None:
    done, count = visit.field("done"), visit.field("count")
    text = DONE.get(done, "")
    if done in DONE_MANY and count.isascii() and count.isdecimal() and len(count) < 12:
        number = int(count)
        text = f"{number:,} {'job' if number == 1 else 'jobs'} {DONE_MANY[done]}."
    return tag("p", text, class_="message", role="status") if text else None


def _footer(visit: Visit) -> Markup:
    rights = "You may make changes." if visit.access.rights else "Read-only."
    user = f"Signed in as {visit.access.user}. " if visit.access.user else ""
    clock = time.strftime("%H:%M:%S", time.localtime(visit.now))
    return tag(
        "footer",
        tag(
            "div",
            tag("p", "As of ", tag("span", clock, id="clock"), ". ", tag("span", id="updating")),
            tag("p", user, rights),
            class_="wide",
        ),
    )


def still_reading(visit: Visit) -> Response:
    """Return the screen for the time of the first reading. The browser loads it again by itself."""
    title = "Reading a long queue for the first time"
    response = screen(
        visit,
        title,
        "",
        tag("h1", title),
        tag(
            "p",
            f"The queue and its history have {visit.shared.size() / 1e6:,.0f} MB. They are read "
            "once after this page's server has started, which takes about 4 seconds per million "
            "jobs. After that, only what is new is read.",
        ),
        tag("p", "You can wait here: this screen loads again by itself until the queue is read."),
        status=202,
    )
    response.headers.append(("Refresh", str(_READING_REFRESH_SECONDS)))
    return response


def sorry(visit: Visit, title: str, text: str, status: int, *content: Content) -> Response:
    """Return a screen that says why something wasn't done."""
    return screen(
        visit, title, "", tag("h1", title), tag("p", text, class_="problem"), content, status=status
    )
