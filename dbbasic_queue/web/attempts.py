"""The screen Attempts: those that ended last."""

from __future__ import annotations

from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.monitoring.durations import took
from dbbasic_queue.web import layout
from dbbasic_queue.web.html import tag
from dbbasic_queue.web.visit import badge, empty, section, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.web.html import Content
    from dbbasic_queue.web.requests import Response
    from dbbasic_queue.web.visit import Visit

_SHOWN = 100
_REFRESH_SECONDS = 5
_LONGEST_ERROR = 160


def respond(visit: Visit) -> Response:
    """Return the screen."""
    latest = visit.queue.store.latest(_SHOWN)[::-1]
    heads: list[Content | tuple[Content, str]] = [
        "Job",
        "Outcome",
        "Type",
        "Ended",
        ("Ran for", "number"),
        ("Try", "number"),
        ("Error", "grow"),
    ]
    return layout.screen(
        visit,
        "Attempts",
        "/attempts",
        tag("h1", "Attempts"),
        section(
            "The latest attempts",
            "list",
            table("The latest attempts", heads, [_row(visit, attempt) for attempt in latest])
            if latest
            else empty("No job has been tried yet. Each attempt appears here when it has ended."),
        ),
        refresh=_REFRESH_SECONDS,
    )


def _row(visit: Visit, attempt: Attempt) -> list[Content]:
    error = unescape(attempt.error)
    shown = error if len(error) <= _LONGEST_ERROR else f"{error[: _LONGEST_ERROR - 3]}..."
    return [
        visit.job_link(attempt.id),
        badge(attempt.outcome),
        unescape(attempt.type),
        visit.time(attempt.ended_at),
        took(attempt.seconds),
        attempt.attempt,
        tag("span", shown, class_="error") if shown else "",
    ]
