"""What each form of the page changes, and what it doesn't."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DAY, NOW, Clock, add_lines, counts, job, line, raises, sibling
from visitor import Visitor, new_log, text_of

from dbbasic_queue import Handler, Queue
from dbbasic_queue.web import Access
from dbbasic_queue.web.access import ACTIONS

if TYPE_CHECKING:
    from dbbasic_queue import Job


@pytest.fixture(params=["file", "memory"])
def any_queue(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Queue:
    return Queue(path if request.param == "file" else "memory:", clock=clock)


def fail(queue: Queue, job_type: str = "greet") -> str:
    """Add a job that has failed; return its id."""
    job_id = queue.enqueue(job_type, {})
    queue.process_jobs({job_type: raises(ValueError("no"))}, max_attempts=1, skip_unknown=True)
    assert job(queue, job_id)["status"] == "failed"
    return job_id


# -- one job --


def test_a_failed_job_is_run_again(any_queue: Queue) -> None:
    job_id = fail(any_queue)
    assert "It will run again." in Visitor(any_queue).done("/job/requeue", id=job_id)
    assert job(any_queue, job_id)["status"] == "pending"


def test_a_pending_job_is_made_due(any_queue: Queue) -> None:
    job_id = any_queue.enqueue("greet", {}, run_at=NOW + DAY)
    assert "It is due now" in Visitor(any_queue).done("/job/run_now", id=job_id)
    assert job(any_queue, job_id)["run_at"] == NOW


def test_a_pending_job_is_cancelled(any_queue: Queue) -> None:
    job_id = any_queue.enqueue("greet", {})
    assert "It was cancelled." in Visitor(any_queue).done("/job/cancel", id=job_id)
    assert job(any_queue, job_id)["status"] == "cancelled"


def test_a_finished_job_is_removed(any_queue: Queue) -> None:
    job_id, other = fail(any_queue), fail(any_queue)
    assert "The job was removed." in Visitor(any_queue).done("/job/purge", id=job_id)
    assert any_queue.get_job(job_id) is None and any_queue.get_job(other)


def test_a_running_job_is_stopped(now_queue: Queue) -> None:
    job_id = now_queue.enqueue("greet", {})
    shown: list[str] = []

    def handler(_: object, job: Job) -> None:
        shown.append(Visitor(now_queue).done("/job/stop", id=job_id))
        job.check_stop()

    now_queue.process_jobs({"greet": Handler(handler)})
    assert "It was asked to stop." in shown[0]
    assert job(now_queue, job_id)["status"] == "cancelled"


def test_a_job_that_has_changed_in_the_meantime_is_left_alone(any_queue: Queue) -> None:
    job_id = any_queue.enqueue("greet", {})
    any_queue.process_jobs({"greet": lambda _: None})
    visitor = Visitor(any_queue)
    for action in ("cancel", "requeue", "run_now", "stop"):
        response = visitor.post(f"/job/{action}", id=job_id)
        assert response.status == 409
        assert "The job has changed in the meantime." in text_of(response.body.decode())
    assert job(any_queue, job_id)["status"] == "completed"


def test_an_action_on_an_unknown_job_is_refused(any_queue: Queue) -> None:
    for action in ("cancel", "requeue", "run_now", "stop", "edit", "purge"):
        assert Visitor(any_queue).post(f"/job/{action}", id="nothing").status == 404


# -- editing --


def payload_form(page: str) -> dict[str, str]:
    """Return the fields of the form that edits a payload."""
    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page)
    area = re.search(r"(?s)<textarea[^>]*>\n(.*?)</textarea>", page)
    assert area is not None
    return {name: html.unescape(text) for name, text in hidden if name != "token"} | {
        "payload": html.unescape(area[1])
    }


def test_the_payload_of_a_pending_job_is_edited(any_queue: Queue) -> None:
    job_id = any_queue.enqueue("greet", {"to": "<ada>", "n": 1})
    visitor = Visitor(any_queue)
    form = payload_form(visitor.get("/job/edit", id=job_id))
    assert json.loads(form["payload"]) == {"to": "<ada>", "n": 1}
    form["payload"] = '{"to": "grace"}\r\n'
    assert "The payload was changed." in visitor.done("/job/edit", **form)
    assert job(any_queue, job_id)["payload"] == {"to": "grace"}


def test_an_edit_keeps_the_members_that_are_hidden(any_queue: Queue) -> None:
    old: Any = {"to": "ada", "password": "p", "smtp": [{"apiKey": {"a": 1}}, {"apiKey": "second"}]}
    job_id = any_queue.enqueue("greet", old)
    visitor = Visitor(any_queue)
    form = payload_form(visitor.get("/job/edit", id=job_id))
    new = json.loads(form["payload"])
    assert new["password"] == "hidden 1"
    new["to"] = "grace"
    new["smtp"].reverse()
    visitor.done("/job/edit", **form | {"payload": json.dumps(new)})
    assert job(any_queue, job_id)["payload"] == {
        "to": "grace",
        "password": "p",
        "smtp": [{"apiKey": "second"}, {"apiKey": {"a": 1}}],
    }


def test_a_hidden_member_can_be_replaced_but_not_moved_into_the_open(any_queue: Queue) -> None:
    job_id = any_queue.enqueue("greet", {"to": "ada", "password": "s3cret"})
    visitor = Visitor(any_queue)
    form = payload_form(visitor.get("/job/edit", id=job_id))
    form["payload"] = '{"to": "hidden 1", "password": "new"}'
    visitor.done("/job/edit", **form)
    assert job(any_queue, job_id)["payload"] == {"to": "hidden 1", "password": "new"}


def test_an_edit_that_is_not_json_keeps_the_text_and_changes_nothing(any_queue: Queue) -> None:
    job_id = any_queue.enqueue("greet", {"n": 1})
    visitor = Visitor(any_queue)
    form = payload_form(visitor.get("/job/edit", id=job_id))
    for text in ("{'n': 2}", "NaN", "", '{"token": "hidden 7"}'):
        response = visitor.post("/job/edit", **form | {"payload": text})
        assert response.status == 409
        shown = response.body.decode()
        assert "Nothing was saved" in text_of(shown)
        assert payload_form(shown)["payload"] == text
    assert job(any_queue, job_id)["payload"] == {"n": 1}


def test_two_users_who_edit_at_once_do_not_overwrite_each_other(any_queue: Queue) -> None:
    job_id = any_queue.enqueue("greet", {"n": 1})
    ada, grace = Visitor(any_queue), Visitor(any_queue)
    first = payload_form(ada.get("/job/edit", id=job_id))
    second = payload_form(grace.get("/job/edit", id=job_id))
    ada.done("/job/edit", **first | {"payload": '{"n": 2}'})
    response = grace.post("/job/edit", **second | {"payload": '{"n": 3}'})
    assert response.status == 409
    shown = response.body.decode()
    assert "someone else has changed the job" in text_of(shown)
    assert "It is now: { &quot;n&quot;: 2 }" in re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", shown))
    assert job(any_queue, job_id)["payload"] == {"n": 2}
    again = payload_form(shown)  # what grace wrote, and what she has seen by now
    assert again["payload"] == '{"n": 3}'
    grace.done("/job/edit", **again)
    assert job(any_queue, job_id)["payload"] == {"n": 3}


def test_an_edit_between_the_comparison_and_the_change_is_not_overwritten(
    any_queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = any_queue.enqueue("greet", {"n": 1})
    visitor = Visitor(any_queue)
    form = payload_form(visitor.get("/job/edit", id=job_id))
    edit = any_queue.store.edit

    def edited_first(job_id: str, payload: str, before: str | None = None) -> bool:
        edit(job_id, '{"n": 2}')
        return edit(job_id, payload, before)

    monkeypatch.setattr(any_queue.store, "edit", edited_first)
    assert visitor.post("/job/edit", **form | {"payload": '{"n": 3}'}).status == 409
    assert job(any_queue, job_id)["payload"] == {"n": 2}


def test_a_payload_that_is_too_large_is_not_saved(path: Path, clock: Clock) -> None:
    with Queue(path, clock=clock, max_payload=100) as queue:
        job_id = queue.enqueue("greet", {"n": 1})
        visitor = Visitor(queue)
        form = payload_form(visitor.get("/job/edit", id=job_id))
        response = visitor.post("/job/edit", **form | {"payload": f'"{"x" * 200}"'})
        assert response.status == 409 and b"at most 100 are allowed" in response.body
        assert job(queue, job_id)["payload"] == {"n": 1}


@pytest.mark.parametrize("text", ['{"n": "</textarea><b>"}', "{'n': 2}"])
def test_a_payload_that_comes_too_late_can_be_copied_from_the_answer(
    any_queue: Queue, text: str
) -> None:
    job_id = any_queue.enqueue("greet", {"n": 1})
    visitor = Visitor(any_queue)
    form = payload_form(visitor.get("/job/edit", id=job_id)) | {"payload": text}
    any_queue.process_jobs({"greet": lambda _: None})
    response = visitor.post("/job/edit", **form)
    assert response.status == 409
    shown = response.body.decode()
    assert "this one isn't waiting any more. Nothing was saved." in text_of(shown)
    assert written(shown) == text
    assert 'name="payload"' not in shown
    assert job(any_queue, job_id)["payload"] == {"n": 1}
    any_queue.store.remove(lambda _: True, statuses=("completed",), archive=None, job_type="greet")
    response = visitor.post("/job/edit", **form)
    assert response.status == 404
    shown = response.body.decode()
    assert "There is no such job." in text_of(shown) and written(shown) == text


def written(page: str) -> str:
    """Return the text in the page's text field."""
    area = re.search(r"(?s)<textarea[^>]* readonly[^>]*>\n(.*?)</textarea>", page)
    assert area is not None
    return html.unescape(area[1])


def test_an_edit_keeps_characters_that_cannot_be_seen(any_queue: Queue) -> None:
    """Such as a soft hyphen and the parts of a flag: the page shows escapes for them."""
    payload = {"text": "soft\u00adhyphen \x7f\x9b \u202e \U0001f3f4\U000e0067 non\u00a0breaking"}
    job_id = any_queue.enqueue("greet", payload)
    visitor = Visitor(any_queue)
    form = payload_form(visitor.get("/job/edit", id=job_id))
    assert "soft\\u00adhyphen" in form["payload"]
    visitor.done("/job/edit", **form)
    assert job(any_queue, job_id)["payload"] == payload
    broken = form | {"payload": '{"text": "a\u00adb"'}
    shown = payload_form(visitor.post("/job/edit", **broken).body.decode())
    assert shown["payload"] == '{"text": "a\\u00adb"'


# -- many jobs --


def test_failed_jobs_of_one_type_are_run_again_after_a_question_with_the_count(
    any_queue: Queue,
) -> None:
    mails = [fail(any_queue, "mail") for _ in range(3)]
    other = fail(any_queue, "report")
    visitor = Visitor(any_queue)
    question = text_of(visitor.get("/jobs/requeue", status="failed", type="mail"))
    assert "3 jobs will run again: 3 of type mail" in question
    done = visitor.done("/jobs/requeue", status="failed", type="mail")
    assert "3 jobs will run again." in done
    assert {job(any_queue, i)["status"] for i in mails} == {"pending"}
    assert job(any_queue, other)["status"] == "failed"


def test_pending_jobs_with_a_text_are_cancelled_and_others_not(any_queue: Queue) -> None:
    wanted = any_queue.enqueue("mail", {"to": "ada"})
    other = any_queue.enqueue("mail", {"to": "grace"})
    done = fail(any_queue, "ada")
    visitor = Visitor(any_queue)
    assert "1 job will be cancelled" in text_of(visitor.get("/jobs/cancel", text="ada"))
    assert "1 job cancelled." in visitor.done("/jobs/cancel", text="ada")
    found = [job(any_queue, i)["status"] for i in (wanted, other, done)]
    assert found == ["cancelled", "pending", "failed"]


def test_all_jobs_are_stopped(any_queue: Queue) -> None:
    for _ in range(3):
        any_queue.enqueue("mail", {})
    assert "3 jobs stopped, or asked to stop." in Visitor(any_queue).done("/jobs/stop")
    assert {row.state.status for row in any_queue.store.rows()} == {"cancelled"}


def test_finished_jobs_that_are_shown_are_removed_and_no_others(any_queue: Queue) -> None:
    failed = fail(any_queue)
    waiting = any_queue.enqueue("greet", {})
    cancelled = any_queue.enqueue("greet", {})
    any_queue.cancel_job(cancelled)
    visitor = Visitor(any_queue)
    assert "1 job will be removed for good" in text_of(visitor.get("/jobs/purge", status="failed"))
    assert "1 job removed." in visitor.done("/jobs/purge", status="failed")
    assert any_queue.get_job(failed) is None
    assert "1 job removed." in visitor.done("/jobs/purge")  # a waiting job is never removed
    assert any_queue.get_job(cancelled) is None and any_queue.get_job(waiting)


def test_a_filter_without_a_job_that_can_be_changed_changes_nothing(queue: Queue) -> None:
    job_id = fail(queue)
    visitor = Visitor(queue)
    assert "None of these jobs can be changed" in text_of(
        visitor.get("/jobs/cancel", status="failed")
    )
    assert "0 jobs cancelled." in visitor.done("/jobs/cancel", status="failed")
    assert job(queue, job_id)["status"] == "failed"


# -- pauses, schedules --


def test_a_type_is_paused_and_resumed(any_queue: Queue) -> None:
    visitor = Visitor(any_queue)
    assert "No more jobs of this type are started." in visitor.done("/types/pause", type="mail")
    assert any_queue.paused() == {"mail"}
    visitor.done("/types/resume", type="mail")
    assert any_queue.paused() == set()


def test_everything_is_paused_and_resumed(any_queue: Queue) -> None:
    visitor = Visitor(any_queue)
    assert "No more jobs are started." in visitor.done("/types/pause")
    assert any_queue.paused() == {"*"}
    assert "Jobs are started again." in visitor.done("/types/resume")
    assert any_queue.paused() == set()


def test_an_invalid_type_is_not_paused(queue: Queue) -> None:
    response = Visitor(queue).post("/types/pause", type="a b")
    assert response.status == 400 and b"invalid job type" in response.body
    assert queue.paused() == set()


def test_a_schedule_is_run_now_with_the_payload_of_its_last_job(queue: Queue, path: Path) -> None:
    at = NOW - DAY
    from dbbasic_queue.store.schedule_file import job_id

    add_lines(
        path,
        line(job_id("nightly", at), type="report", payload='{"month": 1, "token": "s3cret"}'),
    )
    sibling(path, "schedule").write_text(
        "name\tprogram\ttype\texpression\ttimezone\tlast\tnext\n"
        f"nightly\t/srv/app.py\treport\t0 3 * * *\tUTC\t{at}\t{NOW + 60}\n"
    )
    visitor = Visitor(queue)
    form = payload_form(visitor.get("/schedules/run", name="nightly"))
    assert json.loads(form["payload"]) == {"month": 1, "token": "hidden 1"}
    form["payload"] = form["payload"].replace("1,", "2,")
    assert "The job was added." in visitor.done("/schedules/run", **form)
    payloads = [row.payload for row in queue.store.rows()]
    assert payloads[1:] == ['{"month": 2, "token": "s3cret"}']
    assert queue.schedules()[0]["next"] == NOW + 60  # it goes on as before


def test_a_schedule_whose_last_job_is_gone_asks_for_the_payload(queue: Queue, path: Path) -> None:
    add_lines(path)
    sibling(path, "schedule").write_text(
        "name\tprogram\ttype\texpression\ttimezone\tlast\tnext\n"
        f"often\t/srv/app.py\tsync\t300s\t\t\t{NOW + 60}\n"
    )
    visitor = Visitor(queue)
    assert "write the payload that it needs" in text_of(visitor.get("/schedules/run", name="often"))
    assert visitor.post("/schedules/run", name="often", payload="{").status == 409
    assert counts(queue)["pending"] == 0
    visitor.done("/schedules/run", name="often", payload="[1]")
    assert [row.type for row in queue.store.rows()] == ["sync"]
    assert visitor.post("/schedules/run", name="nothing", payload="[1]").status == 404


# -- rights, and the log --


def test_each_right_allows_its_action_and_no_other(any_queue: Queue) -> None:
    paths = {name: f"/job/{name}" for name in ACTIONS} | {
        "pause": "/types/pause",
        "resume": "/types/resume",
        "run_schedule": "/schedules/run",
    }
    for right in ACTIONS:
        visitor = Visitor(any_queue, {right})
        for action, path in paths.items():
            status = visitor.post(path, id="nothing", name="nothing", type="mail").status
            assert (status == 403) == (action != right), (right, action, status)
        for action in ("requeue", "cancel", "stop", "purge"):
            assert (visitor.post(f"/jobs/{action}").status == 403) == (action != right)
            assert (visitor.send("GET", f"/jobs/{action}").status == 403) == (action != right)


def test_every_change_is_logged_with_its_user(queue: Queue) -> None:
    log, lines = new_log()
    visitor = Visitor(queue, Access("all", user="ada\nroot"), log=log)
    job_id = queue.enqueue("greet", {})
    visitor.done("/job/cancel", id=job_id)
    visitor.post("/job/cancel", id=job_id)
    visitor.done("/jobs/requeue", status="cancelled", text="\n<b>")
    visitor.done("/types/pause")
    assert lines == [
        f"cancel by ada\\nroot from 192.0.2.7: id='{job_id}': done",
        f"cancel by ada\\nroot from 192.0.2.7: id='{job_id}': not done (409)",
        "requeue by ada\\nroot from 192.0.2.7: status='cancelled' text='\\\\n<b>': done",
        "pause by ada\\nroot from 192.0.2.7: everything: done",
    ]
    visitor.get("/")
    assert len(lines) == 4  # looking is not logged


def test_a_refused_change_is_logged(queue: Queue) -> None:
    log, lines = new_log()
    visitor = Visitor(queue, Access({"cancel"}, user="eve"), log=log)
    assert visitor.post("/types/pause").status == 403
    assert lines == ["pause by eve from 192.0.2.7: everything: refused: no right to it"]
