"""The screen Schedules, and running one now.

The queue doesn't know a schedule's payload: its program does. So a job that is added by hand gets
the payload of the schedule's last job, if that is still in the queue, and the user sees it first.
"""

from __future__ import annotations

import time

from dbbasic_queue.model.jobdict import as_dict
from dbbasic_queue.monitoring.durations import rule
from dbbasic_queue.store.schedule_file import job_id
from dbbasic_queue.web import layout, payload_form
from dbbasic_queue.web.html import tag
from dbbasic_queue.web.requests import Refused
from dbbasic_queue.web.visit import empty, facts, section, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.model.jobdict import ScheduleDict
    from dbbasic_queue.web.html import Content, Markup
    from dbbasic_queue.web.requests import Response
    from dbbasic_queue.web.visit import Visit

_REFRESH_SECONDS = 10


def respond(visit: Visit) -> Response:
    """Return the screen."""
    found = sorted(_schedules(visit), key=lambda schedule: schedule["next"])
    heads: list[Content | tuple[Content, str]] = ["Schedule", "Type", "When", "Last", "Next"]
    may = visit.access.may("run_schedule")
    if may:
        heads.append("By hand")
    rows: list[list[Content]] = [
        [
            schedule["name"],
            tag("a", schedule["type"], href=visit.address("/jobs", type=schedule["type"])),
            _rule(schedule),
            "-" if schedule["last"] is None else visit.time(schedule["last"]),
            visit.time(schedule["next"]),
            *([_run_link(visit, schedule)] if may else []),
        ]
        for schedule in found
    ]
    return layout.screen(
        visit,
        "Schedules",
        "/schedules",
        tag("h1", "Schedules"),
        section(
            "What runs by the clock",
            "list",
            table("Schedules", heads, rows)
            if rows
            else empty(
                "There are no schedules. A program that declares one appears here after its first "
                "run."
            ),
        ),
        refresh=_REFRESH_SECONDS,
    )


def _schedules(visit: Visit) -> list[ScheduleDict]:
    return visit.queue.schedules() if visit.queue.store.has_schedules() else []


def _rule(schedule: ScheduleDict) -> Markup:
    zone = f" ({schedule['timezone']})" if schedule["timezone"] else ""
    return tag("code", f"{rule(schedule['expression'])}{zone}")


def _run_link(visit: Visit, schedule: ScheduleDict) -> Markup:
    return tag(
        "a",
        "Run now ...",
        href=visit.address("/schedules/run", name=schedule["name"]),
        aria_label=f"Run {schedule['name']} now",
        class_="button small",
    )


def find(visit: Visit) -> ScheduleDict:
    """Return the schedule that the request names. Raises Refused if there is none."""
    name = visit.field("name")
    found = next((schedule for schedule in _schedules(visit) if schedule["name"] == name), None)
    if found is None:
        raise Refused(404, "There is no such schedule.")
    return found


def last_payload(visit: Visit, schedule: ScheduleDict) -> Any:
    """Return the payload of the schedule's last job; None if that isn't in the queue any more."""
    if schedule["last"] is None:
        return None
    visit.shared.wait_while_indexing()
    row = visit.queue.store.find(job_id(schedule["name"], schedule["last"]))
    job = as_dict(row) if row is not None and row.type == schedule["type"] else None
    return None if job is None else job["payload"]


def confirm(visit: Visit, text: str | None = None, problem: str = "") -> Response:
    """Return the question before a schedule's job is added: with which payload?"""
    if not visit.access.may("run_schedule"):
        raise Refused(403, "You may not do that.")
    schedule = find(visit)
    payload = last_payload(visit, schedule)
    known = payload is not None
    if text is None:
        text = payload_form.as_text(visit.hiding.editable({} if payload is None else payload))
    help_ = (
        "This is the payload of its last job. Leave a text such as “hidden 1” as it is to keep the "
        "value that is hidden there."
        if known
        else "Its last job isn't in the queue any more, so write the payload that it needs."
    )
    form = visit.form(
        "run_schedule",
        "/schedules/run",
        "Run now",
        {"name": schedule["name"]},
        payload_form.area(text, help_, problem),
        kind="main",
    )
    zone = time.strftime("%Y-%m-%d %H:%M", time.localtime(schedule["next"]))
    return layout.screen(
        visit,
        f"Run {schedule['name']} now",
        "/schedules",
        tag("h1", "Run ", tag("span", schedule["name"], class_="id"), " now"),
        tag("p", problem, class_="problem", role="alert") if problem else None,
        tag("p", "One job more is added, and the schedule goes on as before."),
        facts(("Type", schedule["type"]), ("When", _rule(schedule)), ("Next", zone)),
        form,
        tag("p", tag("a", "Back to the schedules", href=visit.address("/schedules"))),
        status=409 if problem else 200,
    )
