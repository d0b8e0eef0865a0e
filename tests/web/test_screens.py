"""What each screen says, for queues of several kinds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import DAY, NOW, Clock, add_lines, line, raises, sibling
from visitor import Visitor, text_of

from dbbasic_queue import Handler, Queue

if TYPE_CHECKING:
    from dbbasic_queue import Job

SCREENS = ("/", "/jobs", "/schedules", "/attempts")


@pytest.fixture(params=["file", "memory"])
def any_queue(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Queue:
    return Queue(path if request.param == "file" else "memory:", clock=clock)


# -- Now --


def test_an_empty_queue_says_in_words_that_this_is_good(any_queue: Queue) -> None:
    visitor = Visitor(any_queue)
    now = text_of(visitor.get("/"))
    assert "Nothing to do" in now
    assert "No attempt has failed in the last day. That is good." in now
    assert "No job is running at this moment." in now
    jobs = visitor.get("/jobs")
    assert "There are no jobs yet." in text_of(jobs) and "/jobs/purge" not in jobs
    assert "No job has failed. That is good." in text_of(visitor.get("/jobs", status="failed"))
    assert "There are no schedules." in text_of(visitor.get("/schedules"))
    assert "No job has been tried yet." in text_of(visitor.get("/attempts"))


def test_an_idle_queue_shows_what_it_did_in_the_last_hour(any_queue: Queue, clock: Clock) -> None:
    job_id = any_queue.enqueue("greet", {})
    any_queue.process_jobs({"greet": lambda _: None})
    clock.now += 4
    now = text_of(Visitor(any_queue).get("/"))
    assert f"Last finished: greet {job_id} , done, 4 s ago ." in now
    assert "Done 1 in the last hour" in now
    assert "Nothing to do" in now


def test_now_counts_the_jobs_of_each_type(any_queue: Queue, clock: Clock) -> None:
    any_queue.enqueue("mail", {})
    any_queue.enqueue("mail", {}, run_at=NOW + DAY)
    any_queue.process_jobs({"report": raises(ValueError("no such month"))}, skip_unknown=True)
    any_queue.enqueue("report", {})
    any_queue.process_jobs(
        {"report": raises(ValueError("no such month"))}, max_attempts=1, skip_unknown=True
    )
    clock.now += 30
    now = text_of(Visitor(any_queue).get("/"))
    assert "mail 1 30 s 0 0 0 - - Pause" in now
    assert "report 0 - 0 0 1 0.00 s, 0.00 s" in now
    assert "ValueError: no such month report 1 30 s ago" in now
    assert "Later 1" in now and "Failed 1" in now


def test_now_says_that_a_queue_is_stalled_and_what_to_run(path: Path, clock: Clock) -> None:
    with Queue(path, clock=clock) as queue:
        queue.enqueue("greet", {})
        clock.now += 600
        now = text_of(Visitor(queue).get("/"))
        assert "Stalled 1 job is due, the first one for 10 min" in now
        assert "Run dbbasic-queue crontab --help" in now


def test_now_shows_a_running_job_with_its_progress(now_queue: Queue) -> None:
    job_id = now_queue.enqueue("import", {})
    seen: list[str] = []

    def handler(_: object, job: Job) -> None:
        job.progress(40, 160, "rows <b>")
        seen.append(Visitor(now_queue).get("/"))
        seen.append(Visitor(now_queue).get("/job", id=job_id))

    now_queue.process_jobs({"import": Handler(handler)})
    for page in seen:
        assert "25 %, rows <b>" in text_of(page)
        assert '<progress value="0.250" max="1"' in page
    assert "Running 1 job is running" in text_of(seen[0])


def test_now_names_paused_types_and_lets_them_be_resumed(any_queue: Queue) -> None:
    any_queue.enqueue("mail", {})
    any_queue.pause("mail")
    visitor = Visitor(any_queue)
    assert "paused Resume" in text_of(visitor.get("/"))
    any_queue.pause()
    visitor = Visitor(any_queue)
    assert "Everything is paused: no more jobs are started." in text_of(visitor.get("/"))


def test_now_mentions_invalid_lines(queue: Queue, path: Path) -> None:
    add_lines(path, "rubbish\n")
    assert "1 line of the file isn't a job" in text_of(Visitor(queue).get("/"))


def test_many_viewers_share_one_reading(queue: Queue) -> None:
    visitor = Visitor(queue)
    for _ in range(5):
        visitor.get("/")
    assert visitor.page._shared.count == 1
    visitor.done("/types/pause", type="mail")  # its own change is seen at once
    assert visitor.page._shared.count == 2


def test_nothing_is_read_while_nobody_looks(queue: Queue) -> None:
    visitor = Visitor(queue)
    assert visitor.page._shared.count == 0
    visitor.get("/jobs")
    assert visitor.page._shared.count == 0


def test_a_chart_has_a_bar_for_each_interval_with_an_attempt(queue: Queue, clock: Clock) -> None:
    for _ in range(3):
        queue.enqueue("greet", {})
        queue.process_jobs({"greet": lambda _: None})
        clock.now += 300
    now = Visitor(queue).get("/")
    hour = now[now.index("Last hour") : now.index("Last day")]
    assert hour.count("<rect") == 3
    assert "Attempts: 3 ended in the last 1 h, 0 of them failed" in hour


# -- Jobs --


@pytest.fixture
def full(queue: Queue, path: Path) -> Queue:
    """A queue of 120 jobs: every third one has failed, every tenth is of the type `rare`."""
    add_lines(
        path,
        *(
            line(
                f"job-{n:03}",
                type="rare" if n % 10 == 0 else "greet",
                payload=f'{{"n": {n}}}',
                status="failed" if n % 3 == 0 else "completed",
                error="ValueError: it's odd" if n % 3 == 0 else "",
                created_at=NOW - 1000 + n // 2,
                run_at=NOW - 1000 + n // 2,
                attempts=1,
            )
            for n in range(120)
        ),
    )
    return queue


def ids(page: str) -> list[str]:
    import re

    return re.findall(r'class="id">(job-\d+)<', page)


def test_jobs_are_paged_newest_first_without_gap_or_repetition(full: Queue) -> None:
    import html
    import re

    visitor = Visitor(full)
    found: list[str] = []
    query = ""
    for _ in range(4):
        page = visitor.send("GET", "/jobs", query).body.decode()
        found += ids(page)
        link = re.search(r'href="/jobs\?([^"]*)" rel="next"', page)
        if link is None:
            break
        query = html.unescape(link[1])
    assert found == [f"job-{n:03}" for n in reversed(range(120))]


def test_a_page_stays_the_same_if_jobs_are_added_and_its_cursor_is_removed(
    full: Queue, path: Path
) -> None:
    visitor = Visitor(full)
    before = f"{NOW - 1000 + 70 // 2}.job-070"
    old = ids(visitor.get("/jobs", before=before))
    full.enqueue("greet", {})
    assert ids(visitor.get("/jobs", before=before)) == old
    full.store.remove(lambda row: row.id == "job-070")
    # Of the jobs that were enqueued in the same second, one may be shown again, none is left out.
    assert ids(visitor.get("/jobs", before=before)) == ["job-071", *old[:-1]]


def test_jobs_are_filtered_by_status_type_and_text_together(full: Queue) -> None:
    visitor = Visitor(full)
    found = ids(visitor.get("/jobs", status="failed", type="rare", text="it's"))
    assert found == ["job-090", "job-060", "job-030", "job-000"]
    assert ids(visitor.get("/jobs", text='"n": 77')) == ["job-077"]
    assert ids(visitor.get("/jobs", text="job-01")) == [f"job-01{n}" for n in reversed(range(10))]
    page = visitor.get("/jobs", status="failed", text="it's")
    assert 'value="it&#39;s"' in page and '<option value="failed" selected>' in page


def test_a_search_without_a_match_says_so(full: Queue) -> None:
    assert "No job matches." in text_of(Visitor(full).get("/jobs", text="nothing like that"))


def test_an_unknown_status_is_not_taken_for_any(full: Queue) -> None:
    response = Visitor(full).send("GET", "/jobs", "status=odd")
    assert response.status == 400
    assert "There is no such status" in text_of(response.body.decode())


def test_a_user_with_the_right_to_read_sees_no_button(full: Queue) -> None:
    visitor = Visitor(full, "read")
    for path, fields in [("/", {}), ("/jobs", {}), ("/job", {"id": "job-003"})]:
        page = visitor.get(path, **fields)
        assert 'method="post"' not in page and "/jobs/purge" not in page
        assert "Read-only." in page


# -- Job --


def test_a_job_is_shown_with_its_attempts_and_tracebacks(any_queue: Queue, clock: Clock) -> None:
    job_id = any_queue.enqueue("greet", {"to": ["ada", {"n": 1}]})
    any_queue.process_jobs({"greet": raises(ValueError("no <such> user"))})
    clock.now += 10
    shown = text_of(Visitor(any_queue).get("/job", id=job_id))
    assert "Attempt 1 failed, tried again 10 s ago" in shown
    assert "attempt 1 failed; it is tried again in" in shown.lower()
    assert "Traceback (most recent call last)" in shown
    assert "ValueError: no <such> user" in shown
    assert '"to": [ "ada", { "n": 1 } ]' in shown


def test_a_job_is_shown_with_its_output(now_queue: Queue) -> None:
    job_id = now_queue.enqueue("talk", {})

    def talk(_: object) -> dict[str, str]:
        os.write(1, b"one <b>\x1b[31m\ntwo")
        return {"said": "all"}

    now_queue.process_jobs({"talk": Handler(talk, timeout=20)})
    page = Visitor(now_queue).get("/job", id=job_id)
    assert "one &lt;b&gt;\\x1b[31m\ntwo" in page
    assert "What it printed" in page and "said" in page


def test_the_screen_of_an_unknown_job_says_so(queue: Queue) -> None:
    for job_id in ("nothing", "", "../etc/passwd", "a b", "x" * 100):
        response = Visitor(queue).send("GET", "/job", f"id={job_id.replace(' ', '+')}")
        assert response.status == 404
        assert "There is no such job." in text_of(response.body.decode())


def test_text_that_is_not_json_is_not_shown(queue: Queue, path: Path) -> None:
    add_lines(path, line("bad", payload="{password: s3cret"), line("odd", result="{token: s3cret"))
    visitor = Visitor(queue)
    assert "s3cret" not in visitor.get("/jobs")
    assert visitor.send("GET", "/job", "id=bad").status == 404
    page = visitor.get("/job", id="odd")
    assert "This isn't JSON" in text_of(page) and "s3cret" not in page


def test_ids_that_look_like_paths_or_options_have_a_screen(queue: Queue, path: Path) -> None:
    add_lines(path, *map(line, ("..", "-x", ".")))
    visitor = Visitor(queue)
    for job_id in ("..", "-x", "."):
        assert f'href="/job?id={job_id}"' in visitor.get("/jobs")
        assert f"Job {job_id}" in text_of(visitor.get("/job", id=job_id))


# -- Schedules, Attempts --


@pytest.fixture
def scheduled(queue: Queue, path: Path) -> Queue:
    add_lines(path, line("nightly.20270114T080000Z", type="report", payload='{"month": 1}'))
    sibling(path, "schedule").write_text(
        "name\tprogram\ttype\texpression\ttimezone\tlast\tnext\n"
        f"nightly\t/srv/app.py\treport\t0 3 * * *\tEurope/Berlin\t{NOW - DAY}\t{NOW + 60}\n"
        f"often\t/srv/app.py\tsync\t300s\t\t\t{NOW + 30}\n"
    )
    return queue


def test_schedules_are_shown_the_next_one_first(scheduled: Queue) -> None:
    shown = text_of(Visitor(scheduled).get("/schedules"))
    assert "often sync every 5 min - in 30 s" in shown
    assert "nightly report 0 3 * * * (Europe/Berlin) 1 d ago in 1 min" in shown
    assert shown.index("often") < shown.index("nightly")
    assert "nightly report in 1 min" in text_of(Visitor(scheduled).get("/"))


def test_attempts_are_shown_the_latest_first(any_queue: Queue, clock: Clock) -> None:
    for name in ("first", "second"):
        any_queue.enqueue(name, {})
        any_queue.process_jobs({name: lambda _: None})
        clock.now += 5
    shown = text_of(Visitor(any_queue).get("/attempts"))
    assert shown.index("second") < shown.index("first")
    assert "done second 5 s ago 0.00 s 1" in shown


# -- the frame --


def test_every_screen_has_landmarks_a_title_and_one_main_heading(queue: Queue) -> None:
    queue.enqueue("greet", {}, job_id="mine")
    visitor = Visitor(queue)
    for path, fields in [*((screen, {}) for screen in SCREENS), ("/job", {"id": "mine"})]:
        page = visitor.get(path, **fields)
        for part in ("<header", "<nav", "<main", "<footer", '<html lang="en"', "<title>"):
            assert part in page, (path, part)
        assert page.count("<h1") == 1
        assert page.startswith("<!DOCTYPE html>")
        assert "style=" not in page and "onclick" not in page and "<script>" not in page


def test_links_and_forms_stay_below_the_prefix(queue: Queue) -> None:
    import re

    queue.enqueue("greet", {}, job_id="mine")
    visitor = Visitor(queue)
    visitor.prefix = "/admin/queue"
    for path, fields in [*((screen, {}) for screen in SCREENS), ("/job", {"id": "mine"})]:
        addresses = re.findall(r'(?:href|src|action)="([^"]*)"', visitor.get(path, **fields))
        assert addresses
        assert [a for a in addresses if not a.startswith(("/admin/queue/", "#"))] == []
    assert visitor.send("GET", "").header("location") == "/admin/queue/"
    assert "It is due now" in visitor.done("/job/run_now", id="mine")


def test_style_and_script_are_cached_by_their_content(queue: Queue) -> None:
    import re

    visitor = Visitor(queue)
    page = visitor.get("/")
    for address in re.findall(r'(?:href|src)="(/static/[^"]*)"', page):
        response = visitor.send("GET", address)
        assert response.status == 200 and len(response.body) > 100
        assert "immutable" in (response.header("cache-control") or "")
        assert response.header("content-security-policy")
    assert len(set(re.findall(r'"(/static/[^"]*)"', page))) == 3


def test_the_screen_of_an_unreadable_queue_says_why(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("Dear Ada,\n")
    response = Visitor(Queue(tmp_path / "letters.txt")).send("GET", "/")
    assert response.status == 503
    assert b"The queue can't be used" in response.body


def test_the_screen_of_a_queue_that_was_moved_says_so(queue: Queue, path: Path) -> None:
    queue.enqueue("greet", {})
    queue.store.set_moved("file:/srv/new.tsv")
    with Queue(path, even_if_moved=True) as moved:
        assert "Moved This queue was moved to file:/srv/new.tsv" in text_of(Visitor(moved).get("/"))
