"""The screen Jobs: a filtered list, and what can be done with all jobs that it shows."""

from __future__ import annotations

from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.states import CANCELLED, FAILED, FINISHED, PENDING, PROCESSING, STATUSES
from dbbasic_queue.web import layout
from dbbasic_queue.web.html import join, tag
from dbbasic_queue.web.listing import Cursor, Listing, Shown, count_types
from dbbasic_queue.web.requests import Refused
from dbbasic_queue.web.visit import WORDS, badge, empty, section, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.web.html import Content, Markup
    from dbbasic_queue.web.requests import Response
    from dbbasic_queue.web.visit import Visit

_REFRESH_SECONDS = 5
_LONGEST_PAYLOAD = 120
_LONGEST_ERROR = 160

BULK = {
    "requeue": ("Run again", "will run again", (FAILED, CANCELLED)),
    "cancel": ("Cancel", "will be cancelled", (PENDING,)),
    "stop": (
        "Stop",
        "will be cancelled if they wait, and stopped if they run",
        (PENDING, PROCESSING),
    ),
    "purge": ("Remove", "will be removed for good", FINISHED),
}
"""action -> its button, what will happen to the jobs, the statuses of those that it can change"""


def respond(visit: Visit) -> Response:
    """Return the screen."""
    chosen = Shown(visit.fields, visit.hiding)
    cursor = Cursor.parse(visit.field("before"))
    visit.shared.wait_for_index()
    listing = Listing(visit.queue.store, chosen, cursor)
    return layout.screen(
        visit,
        "Jobs",
        "/jobs",
        tag("h1", "Jobs"),
        _filters(visit, chosen),
        _bulk(visit, chosen) if listing.rows else None,
        section(
            _title(chosen, cursor),
            "list",
            _table(visit, listing) if listing.rows else empty(_nothing(chosen, cursor)),
            _pages(visit, chosen, listing, cursor),
        ),
        refresh=_REFRESH_SECONDS,
    )


def _title(chosen: Shown, cursor: Cursor | None) -> str:
    which = {
        "": "",
        "pending": " that are waiting",
        "processing": " that are running",
        "completed": " that are done",
        "failed": " that have failed",
        "cancelled": " that were cancelled",
    }[chosen.status]
    return f"{'Older jobs' if cursor else 'The newest jobs'}{which}"


def _nothing(chosen: Shown, cursor: Cursor | None) -> str:
    if cursor is not None:
        return "There are no older jobs."
    if chosen.type or chosen.text:
        return "No job matches. Try fewer words, or another status."
    return {
        "": "There are no jobs yet. The first one appears here as soon as it is added.",
        "failed": "No job has failed. That is good.",
        "pending": "No job is waiting: everything that was added has run, or is running.",
        "processing": "No job is running at this moment.",
        "completed": "No finished job is kept here.",
        "cancelled": "No job was cancelled.",
    }[chosen.status]


def _filters(visit: Visit, chosen: Shown) -> Markup:
    options = [("", "any status"), *((status, WORDS.get(status, status)) for status in STATUSES)]
    return tag(
        "form",
        tag(
            "label",
            "Status ",
            tag(
                "select",
                [
                    tag("option", text, value=status, selected=status == chosen.status)
                    for status, text in options
                ],
                name="status",
            ),
        ),
        tag("label", "Type ", tag("input", name="type", value=chosen.type, autocomplete="off")),
        tag(
            "label",
            "Text ",
            tag(
                "input",
                name="text",
                type="search",
                value=chosen.text,
                placeholder="in id, payload, error, result",
                autocomplete="off",
            ),
        ),
        tag("button", "Show", type="submit"),
        tag("a", "Show all", href=visit.address("/jobs")) if chosen.fields() else None,
        action=visit.address("/jobs"),
        method="get",
        class_="filters",
        role="search",
    )


def _bulk(visit: Visit, chosen: Shown) -> Markup | None:
    """Return links to the confirmation of each change that could apply to these jobs."""
    links = [
        tag(
            "a",
            f"{label} ...",
            href=visit.address(f"/jobs/{action}", **chosen.fields()),
            class_="button",
        )
        for action, (label, _, statuses) in BULK.items()
        if visit.access.may(action) and set(statuses) & set(chosen.statuses)
    ]
    if not links:
        return None
    return tag(
        "p", tag("span", "All jobs that are shown, also on other pages: "), links, class_="row"
    )


def _table(visit: Visit, listing: Listing) -> Markup:
    return table(
        "Jobs",
        [
            "Job",
            "Status",
            "Type",
            "Added",
            "Due",
            ("Tries", "number"),
            ("Error or payload", "grow"),
        ],
        [_row(visit, row) for row in listing.rows],
    )


def _row(visit: Visit, row: Row) -> list[Content]:
    state = row.state
    return [
        visit.job_link(row.id),
        badge(state.status),
        row.type,
        visit.time(state.created_at),
        visit.time(state.run_at),
        state.attempts,
        _what(visit, row),
    ]


def _what(visit: Visit, row: Row) -> Markup:
    error = unescape(row.state.error)
    if error:
        return tag("span", _cut(error, _LONGEST_ERROR), class_="error")
    payload = visit.hiding.text(row.payload)
    if payload is None:
        return tag("span", "(its payload isn't JSON)", class_="error")
    return tag("code", _cut(payload, _LONGEST_PAYLOAD), class_="payload")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _pages(visit: Visit, chosen: Shown, listing: Listing, cursor: Cursor | None) -> Markup | None:
    links = []
    if cursor is not None:
        links.append(tag("a", "The newest jobs", href=visit.address("/jobs", **chosen.fields())))
    if listing.following is not None:
        fields = chosen.fields() | {"before": str(listing.following)}
        links.append(tag("a", "Older jobs", href=visit.address("/jobs", **fields), rel="next"))
    return tag("nav", links, class_="pages", aria_label="Pages") if links else None


# -- many jobs at once -----------------------------------------------------------------------------


def confirm(visit: Visit, action: str) -> Response:
    """Return the question before many jobs are changed: how many, of which types."""
    if not visit.access.may(action):
        raise Refused(403, "You may not do that.")
    label, what, statuses = BULK[action]
    chosen = Shown(visit.fields, visit.hiding)
    types = count_types(chosen.only(statuses).rows(visit.queue.store))
    count = sum(types.values())
    back = tag("a", "Back to the jobs", href=visit.address("/jobs", **chosen.fields()))
    if not count:
        states = " or ".join(WORDS.get(status, status) for status in statuses)
        text = f"None of these jobs can be changed that way: only those that are {states}."
        content: Content = [empty(text), tag("p", back)]
    else:
        noun = "job" if count == 1 else "jobs"
        content = [
            tag("p", tag("strong", f"{count:,} {noun}"), f" {what}:", class_="question"),
            tag(
                "ul",
                [
                    tag("li", f"{number:,} of type {name}")
                    for name, number in list(types.items())[:10]
                ],
                tag("li", f"and {len(types) - 10:,} other types") if len(types) > 10 else None,
            ),
            _chosen_by(chosen),
            tag(
                "div",
                visit.form(
                    action,
                    f"/jobs/{action}",
                    f"{label} {count:,} {noun}",
                    chosen.fields(),
                    kind="danger" if action in ("purge", "stop", "cancel") else "main",
                ),
                back,
                class_="row",
            ),
        ]
    return layout.screen(visit, label, "/jobs", tag("h1", f"{label}: are you sure?"), content)


def _chosen_by(chosen: Shown) -> Markup:
    parts = [
        join(f"{name} ", tag("strong", WORDS.get(text, text) if name == "status" else text))
        for name, text in chosen.fields().items()
    ]
    if not parts:
        return tag("p", "No filter is set: this is about the whole queue.", class_="note")
    return tag(
        "p", "The filter: ", [join(", " if at else "", part) for at, part in enumerate(parts)]
    )
