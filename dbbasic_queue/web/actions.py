"""Changes that a form asks for: each leads to the screen that shows it.

The caller has checked the form's token and origin; the right is checked here, for each action.
"""

from __future__ import annotations

from dbbasic_queue.errors import InvalidJob, JobNotFound
from dbbasic_queue.model.checks import check_type
from dbbasic_queue.model.escaping import escape
from dbbasic_queue.model.jsontext import decode_json, encode_json
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.operating import changes
from dbbasic_queue.operating.changes import CANCEL, REQUEUE, RUN_NOW, can_be_removed
from dbbasic_queue.web import job, layout, payload_form, schedules
from dbbasic_queue.web.html import tag
from dbbasic_queue.web.jobs import BULK
from dbbasic_queue.web.listing import Shown
from dbbasic_queue.web.requests import Refused, Response, redirect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger

    from dbbasic_queue.web.visit import Visit

_ONE = {
    "requeue": (REQUEUE, "requeued"),
    "cancel": (CANCEL, "cancelled"),
    "run_now": (RUN_NOW, "run_now"),
}


def respond(visit: Visit, path: str, log: Logger) -> Response:
    """Make the change that a path stands for. Raises Refused without one, or without the right."""
    action, function = _FORMS.get(path, ("", None))
    if function is None:
        raise Refused(404, "There is no such page.")
    if not visit.access.may(action):
        _log(log, visit, action, "refused: no right to it")
        raise Refused(403, "You may not do that.")
    try:
        response = function(visit, action)
    except Refused as refused:
        _log(log, visit, action, f"refused: {refused.text}")
        raise
    except InvalidJob as error:
        _log(log, visit, action, f"refused: {error}")
        raise Refused(400, f"Nothing was done: {error}.") from None
    finally:
        visit.shared.forget()
    done = response.header("location")
    _log(log, visit, action, "done" if done else f"not done ({response.status})")
    return response


def _log(log: Logger, visit: Visit, action: str, outcome: str) -> None:
    """Log one line: the user, the address, the action, its jobs, and the outcome."""
    names = ("id", "name", "status", "type", "text")
    what = " ".join(
        f"{name}={escape(visit.field(name))[:200]!r}" for name in names if visit.field(name)
    )
    user, peer = escape(visit.access.user) or "-", escape(visit.request.peer) or "-"
    log.info("%s by %s from %s: %s: %s", action, user, peer, what or "everything", escape(outcome))


def _one(visit: Visit, action: str) -> Response:
    row = job.find(visit)
    verb, done = _ONE[action]
    if not verb.one(visit.queue, row.id):
        return _not_done(visit, row.id, f"Only {verb.which} can be {verb.done}.")
    return redirect(visit.address("/job", id=row.id, done=done))


def _not_done(visit: Visit, job_id: str, rule: str) -> Response:
    return layout.sorry(
        visit,
        "Nothing was done",
        f"The job has changed in the meantime. {rule}",
        409,
        tag("p", tag("a", f"Look at job {job_id}", href=visit.job_address(job_id))),
    )


def _stop(visit: Visit, _: str) -> Response:
    row = job.find(visit)
    try:
        done = visit.queue.stop_job(row.id)
    except JobNotFound:
        done = None
    if done is None:
        return _not_done(visit, row.id, "It has ended by itself.")
    return redirect(visit.address("/job", id=row.id, done=done))


def _remove(visit: Visit, _: str) -> Response:
    row = job.find(visit)
    statuses = (row.state.status,)
    wanted = row.id
    count = visit.queue.store.remove(
        lambda found: (
            found.id == wanted and found.state.status in statuses and can_be_removed(found)
        ),
        statuses=statuses,
        job_type=row.type,
    )
    if not count:
        return _not_done(visit, row.id, "A running job can't be removed.")
    return redirect(visit.address("/jobs", done="removed"))


def _edit(visit: Visit, _: str) -> Response:
    text = visit.field("payload").replace("\r\n", "\n")
    try:
        row = job.find(visit)
    except Refused as refused:
        return layout.sorry(
            visit, "Nothing was saved", refused.text, refused.status, payload_form.written(text)
        )
    if row.state.status != PENDING:
        return job.edit(visit, text)
    if job.seen(visit, row) != visit.field("before"):
        return job.edit(visit, text, _EDITED)
    try:
        value = visit.hiding.edited(decode_json(text), decode_json(row.payload or "{}"))
        payload = encode_json(value, visit.queue.max_payload)
    except ValueError as error:
        return job.edit(visit, text, f"Nothing was saved: this isn't a valid payload: {error}.")
    if not visit.queue.store.edit(row.id, payload, before=row.payload):
        return job.edit(visit, text, _EDITED)
    return redirect(visit.address("/job", id=row.id, done="edited"))


_EDITED = (
    "Nothing was saved: someone else has changed the job in the meantime. Compare, and save again "
    "to replace it."
)


def _many(visit: Visit, action: str) -> Response:
    _, _, statuses = BULK[action]
    shown = Shown(visit.fields, visit.hiding)
    chosen = shown.only(statuses)
    queue = visit.queue
    if not chosen.statuses:
        count = 0
    elif action == "purge":
        count = sum(changes.remove(queue, chosen, can_be_removed).values())
    elif action == "stop":
        count = sum(1 for _ in changes.stop(queue, chosen))
    else:
        verb = {"requeue": REQUEUE, "cancel": CANCEL}[action]
        count = sum(1 for _ in verb.many(queue, chosen.rows(queue.store)))
    return redirect(visit.address("/jobs", **shown.fields(), done=action, count=count))


def _pause(visit: Visit, _: str) -> Response:
    job_type = visit.field("type") or None
    visit.queue.pause(job_type and check_type(job_type))
    return redirect(visit.address("/", done="paused" if job_type else "paused-all"))


def _resume(visit: Visit, _: str) -> Response:
    job_type = visit.field("type") or None
    visit.queue.resume(job_type and check_type(job_type))
    return redirect(visit.address("/", done="resumed" if job_type else "resumed-all"))


def _run_schedule(visit: Visit, _: str) -> Response:
    schedule = schedules.find(visit)
    text = visit.field("payload").replace("\r\n", "\n")
    try:
        value = visit.hiding.edited(decode_json(text), schedules.last_payload(visit, schedule))
    except ValueError as error:
        return schedules.confirm(visit, text, f"Nothing was added: this isn't valid JSON: {error}.")
    job_id = visit.queue.enqueue(schedule["type"], value)
    return redirect(visit.address("/job", id=job_id, done="added"))


_FORMS: dict[str, tuple[str, Callable[[Visit, str], Response]]] = {
    "/job/requeue": ("requeue", _one),
    "/job/run_now": ("run_now", _one),
    "/job/cancel": ("cancel", _one),
    "/job/stop": ("stop", _stop),
    "/job/purge": ("purge", _remove),
    "/job/edit": ("edit", _edit),
    "/jobs/requeue": ("requeue", _many),
    "/jobs/cancel": ("cancel", _many),
    "/jobs/stop": ("stop", _many),
    "/jobs/purge": ("purge", _many),
    "/types/pause": ("pause", _pause),
    "/types/resume": ("resume", _resume),
    "/schedules/run": ("run_schedule", _run_schedule),
}
