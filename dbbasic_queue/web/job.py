"""The screen of one job: its row, why it isn't running, its attempts, what it printed."""

from __future__ import annotations

import hashlib

from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.rows import has_json
from dbbasic_queue.model.states import CANCELLED, FAILED, PENDING, PROCESSING
from dbbasic_queue.monitoring.durations import took
from dbbasic_queue.operating.changes import can_be_removed
from dbbasic_queue.operating.details import JobDetails
from dbbasic_queue.web import layout, payload_form
from dbbasic_queue.web.html import join, tag
from dbbasic_queue.web.now import progress_of
from dbbasic_queue.web.requests import Refused
from dbbasic_queue.web.visit import badge, empty, facts, section

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.web.html import Content, Markup
    from dbbasic_queue.web.requests import Response
    from dbbasic_queue.web.visit import Visit

_REFRESH_SECONDS = 3
_MOST_SHOWN = 20_000
_MOST_ATTEMPTS = 50
_FINISHED = {
    "completed": "it is done",
    "failed": "it has failed, and won't run again by itself",
    "cancelled": "it was cancelled, and won't run by itself",
}


def find(visit: Visit) -> Row:
    """Return the job that the request names. Raises Refused if there is none."""
    job_id = visit.field("id")
    visit.shared.wait_while_indexing()
    row = visit.queue.store.find(job_id) if is_id(job_id) else None
    if row is None or not has_json(row):
        raise Refused(
            404, "There is no such job. It may have been removed, or moved to an archive."
        )
    return row


def respond(visit: Visit) -> Response:
    """Return the screen."""
    row = find(visit)
    details = JobDetails(visit.queue, row)
    return layout.screen(
        visit,
        f"Job {row.id}",
        "/jobs",
        tag("h1", "Job ", tag("span", row.id, class_="id")),
        _state(visit, details),
        _actions(visit, row),
        _json(visit, "Payload", "payload", row.payload, _edit_link(visit, row)),
        _json(visit, "Result", "result", row.state.result) if row.state.result else None,
        _attempts(visit, details),
        _output(details),
        refresh=_REFRESH_SECONDS,
    )


def _state(visit: Visit, details: JobDetails) -> Markup:
    row, state, reason = details.row, details.row.state, details.why
    text = _FINISHED.get(state.status) or printable(reason.text)
    command = "" if state.status in _FINISHED else reason.command
    return section(
        "Status",
        "state",
        tag("p", badge(state.status), " ", f"{text[:1].upper()}{text[1:]}.", class_="why"),
        tag("p", "Run ", tag("code", command), class_="remedy") if command else None,
        facts(
            ("Type", tag("a", row.type, href=visit.address("/jobs", type=row.type))),
            ("Added", visit.time(state.created_at)),
            ("Due", visit.time(state.run_at)),
            ("Tries", f"{state.attempts:,}"),
            ("Progress", progress_of(details.progress, visit.now) if details.progress else None),
            ("Error", tag("span", unescape(state.error), class_="error") if state.error else None),
        ),
    )


def _actions(visit: Visit, row: Row) -> Markup | None:
    status, fields = row.state.status, {"id": row.id}
    forms: list[Markup | None] = []
    if status in (FAILED, CANCELLED):
        forms.append(visit.form("requeue", "/job/requeue", "Run again", fields, kind="main"))
    if status == PENDING:
        forms.append(visit.form("run_now", "/job/run_now", "Run now", fields, kind="main"))
        forms.append(visit.form("cancel", "/job/cancel", "Cancel", fields))
    if status == PROCESSING:
        form = visit.form("stop", "/job/stop", "Yes, stop it", fields, kind="danger")
        forms.append(_sure("Stop ...", "It won't run again by itself.", form))
    if status != PENDING and can_be_removed(row):
        form = visit.form("purge", "/job/purge", "Yes, remove it", fields, kind="danger")
        forms.append(_sure("Remove ...", "It is gone for good then.", form))
    found = [form for form in forms if form is not None]
    if not found:
        return None
    return tag("div", found, class_="row", id="actions", data_live=True)


def _sure(label: str, what: str, form: Markup | None) -> Markup | None:
    """Return a button that shows the real one."""
    if form is None:
        return None
    name = label.partition(" ")[0].lower()
    return tag("details", tag("summary", label), tag("span", what), form, id=name, class_="sure")


def _edit_link(visit: Visit, row: Row) -> Markup | None:
    if row.state.status != PENDING or not visit.access.may("edit"):
        return None
    return tag("p", tag("a", "Edit the payload", href=visit.address("/job/edit", id=row.id)))


def _json(visit: Visit, title: str, name: str, text: str, *content: Content) -> Markup:
    shown = visit.hiding.text(text, indent=2)
    if shown is None:
        return section(
            title, name, tag("p", "This isn't JSON, so it isn't shown.", class_="problem")
        )
    return section(title, name, _block(title, shown), content)


def _block(label: str, text: str) -> Markup:
    left_out = len(text) - _MOST_SHOWN
    return join(
        tag(
            "pre",
            tag("code", text[:_MOST_SHOWN]),
            tabindex="0",
            role="region",
            aria_label=label,
        ),
        tag("p", f"{left_out:,} more characters aren't shown.") if left_out > 0 else None,
    )


def _attempts(visit: Visit, details: JobDetails) -> Markup:
    if not details.attempts:
        running = details.row.state.status == PROCESSING
        text = "Its first attempt is running." if running else "It hasn't been tried yet."
        return section("Attempts", "attempts", empty(text))
    shown = details.attempts[-_MOST_ATTEMPTS:][::-1]
    more = len(details.attempts) - len(shown)
    return section(
        "Attempts",
        "attempts",
        tag(
            "ol", [_attempt(visit, attempt) for attempt in shown], class_="attempts", reversed=True
        ),
        tag("p", f"{more:,} earlier ones aren't shown.") if more else None,
    )


def _attempt(visit: Visit, attempt: Any) -> Markup:
    where = f", by worker {attempt['worker']}" if attempt["worker"] else ""
    key = f"traceback-{attempt['attempt']}-{attempt['ended_at']:.3f}"
    return tag(
        "li",
        tag(
            "p",
            tag("strong", f"Attempt {attempt['attempt']}"),
            " ",
            badge(attempt["outcome"]),
            " ",
            visit.time(attempt["ended_at"]),
            f", ran for {took(attempt['seconds'])}{where}",
        ),
        tag("p", attempt["error"], class_="error") if attempt["error"] else None,
        tag(
            "details",
            tag("summary", "Traceback"),
            _block("Traceback", attempt["traceback"]),
            id=key,
        )
        if attempt["traceback"]
        else None,
    )


def _output(details: JobDetails) -> Markup | None:
    if not details.output:
        return None
    return section("What it printed", "output", _block("Output", details.output[-_MOST_SHOWN:]))


# -- editing ---------------------------------------------------------------------------------------


def seen(visit: Visit, row: Row) -> str:
    """Return a mark of the payload as the user sees it: it changes if that does."""
    text = visit.hiding.text(row.payload) or ""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def edit(visit: Visit, text: str | None = None, problem: str = "") -> Response:
    """Return the screen on which a payload is edited: with the text that the user wrote, if any."""
    row = find(visit)
    if not visit.access.may("edit"):
        raise Refused(403, "You may not do that.")
    back = tag("a", "Back to the job", href=visit.job_address(row.id))
    title = f"Edit the payload of job {row.id}"
    if row.state.status != PENDING:
        rule = "Only the payload of a waiting job can be edited, and this one isn't waiting"
        rule += "." if text is None else " any more. Nothing was saved."
        kept = None if text is None else payload_form.written(text)
        return layout.sorry(visit, title, rule, 409, kept, tag("p", back))
    current = payload_form.as_text(visit.hiding.editable(decode_json(row.payload or "{}")))
    form = visit.form(
        "edit",
        "/job/edit",
        "Save",
        {"id": row.id, "before": seen(visit, row)},
        payload_form.area(
            current if text is None else text,
            "Leave a text such as “hidden 1” as it is to keep the value that is hidden there.",
            problem,
        ),
        kind="main",
    )
    return layout.screen(
        visit,
        title,
        "/jobs",
        tag("h1", "Edit the payload of job ", tag("span", row.id, class_="id")),
        tag("p", problem, class_="problem", role="alert") if problem else None,
        [tag("p", "It is now:"), _block("Payload", current)]
        if problem and text != current
        else None,
        form,
        tag("p", back),
        status=409 if problem else 200,
    )
