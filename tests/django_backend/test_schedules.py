"""OPTIONS["SCHEDULES"]: passes enqueue tasks at their times; system checks find what is wrong."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.test import override_settings
from helpers import DAY, Clock
from odd import tasks

from dbbasic_queue import Queue
from dbbasic_queue.django import backend as backend_module
from dbbasic_queue.django.framework import TaskResultStatus
from dbbasic_queue.django.handlers import TaskHandlers
from dbbasic_queue.errors import InvalidHandlers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dbbasic_queue.django import TextFileBackend

    Configure = Callable[..., TextFileBackend]

NIGHTLY = {"task": "odd.tasks.add", "every": "0 3 * * *", "args": [1], "kwargs": {"b": 2}}


@pytest.fixture(autouse=True)
def queue(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """The backend's queue, with a clock that a test moves. It starts at 2027-01-15 08:00 UTC."""
    queue = Queue(path, clock=clock)
    monkeypatch.setitem(backend_module._queues, str(path), queue)
    return queue


def test_passes_enqueue_a_task_at_its_times_with_its_arguments(
    configure: Configure, clock: Clock
) -> None:
    backend = configure(SCHEDULES={"nightly": NIGHTLY})
    assert [m for m in backend.check() if "E" in m.id] == []
    for _ in range(3):
        call_command("queue_pass")
        clock.now += DAY
    ids = [job["id"] for job in backend.queue.jobs()]
    assert ids == ["nightly.20270116T030000Z", "nightly.20270117T030000Z"]
    result = tasks.add.get_result(ids[0])
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 3)
    assert (result.args, result.kwargs) == ([1], {"b": 2})


def test_queue_schedules_shows_them(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    every = {"task": "odd.tasks.add_later", "every": timedelta(minutes=5), "args": [1]}
    configure(SCHEDULES={"nightly": {**NIGHTLY, "timezone": "Europe/Berlin"}, "poll": every})
    call_command("queue_pass")
    call_command("queue", "schedules")
    assert capsys.readouterr().out.splitlines() == [
        "nightly\tdjango:mysite:default\todd.tasks.add\t0 3 * * *\tEurope/Berlin\t-\t"
        "2027-01-16T02:00:00Z",
        "poll\tdjango:mysite:default\todd.tasks.add_later\t300s\t-\t-\t2027-01-15T08:05:00Z",
    ]


def test_an_expression_is_in_the_time_zone_of_the_site(configure: Configure) -> None:
    with override_settings(TIME_ZONE="Asia/Tokyo"):
        backend = configure(SCHEDULES={"nightly": NIGHTLY})
        call_command("queue_pass")
    (found,) = backend.queue.schedules()
    assert found["timezone"] == "Asia/Tokyo"
    assert datetime.fromtimestamp(found["next"], UTC).hour == 18


def test_missed_and_overlap_are_those_of_other_schedules(
    configure: Configure, clock: Clock, queue: Queue
) -> None:
    hourly = {"task": "odd.tasks.add", "every": 3600, "args": [1]}
    configure(
        SCHEDULES={
            "all": {**hourly, "missed": "all"},
            "one": {**hourly, "overlap": False, "task": "odd.tasks.wait_a_day", "args": []},
        }
    )
    call_command("queue_pass")
    for _ in range(2):
        clock.now += 2 * 3600
        call_command("queue_pass")
    names = [job["id"].partition(".")[0] for job in queue.jobs()]
    assert (names.count("all"), names.count("one")) == (4, 1)


def test_the_type_has_the_queue_that_the_task_is_declared_with(
    configure: Configure, clock: Clock, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = tasks.add.using(queue_name="mail")
    monkeypatch.setattr(tasks, "add", mail)
    monkeypatch.setattr("dbbasic_queue.django.discovery._found", {})
    configure(SCHEDULES={"nightly": NIGHTLY})
    call_command("queue_pass")
    clock.now += DAY
    call_command("queue_pass")
    assert [job["type"] for job in queue.jobs()] == ["mail:odd.tasks.add"]


def test_two_sites_with_one_queue_leave_each_others_schedules_alone(
    configure: Configure, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in ("mysite", "yoursite"):
        monkeypatch.setattr("dbbasic_queue.registry._declared", {})  # as in another process
        with override_settings(ROOT_URLCONF=f"{site}.urls"):
            configure(SCHEDULES={f"{site}-nightly": NIGHTLY})
            call_command("queue_pass")
    names = [schedule["name"] for schedule in queue.schedules()]
    assert names == ["mysite-nightly", "yoursite-nightly"]
    monkeypatch.setattr("dbbasic_queue.registry._declared", {})
    configure(SCHEDULES={})
    call_command("queue_pass")
    assert [schedule["name"] for schedule in queue.schedules()] == ["yoursite-nightly"]


# -- what is wrong with one --


@pytest.mark.parametrize(
    ("schedules", "text"),
    [
        ([NIGHTLY], "invalid SCHEDULES [{"),
        ({"x": "0 3 * * *"}, "SCHEDULES['x']: '0 3 * * *' must be a dict"),
        ({"x": {"every": 60}}, "SCHEDULES['x']: 'task' is missing"),
        ({"x": {"task": "odd.tasks.add"}}, "SCHEDULES['x']: 'every' is missing"),
        ({"x": {**NIGHTLY, "cron": "0 3 * * *"}}, "unknown key 'cron': must be one of task, "),
        ({"x": {**NIGHTLY, "task": 7}}, "SCHEDULES['x']: invalid job type 7"),
        ({"x": {**NIGHTLY, "every": "0 24 * * *"}}, "the hour '24' must be from 0 to 23"),
        ({"x": {**NIGHTLY, "every": 0.5}}, "SCHEDULES['x']: invalid every 0.5"),
        ({"x": {**NIGHTLY, "timezone": "Mars"}}, "SCHEDULES['x']: invalid timezone 'Mars'"),
        ({"x": {**NIGHTLY, "missed": "never"}}, "SCHEDULES['x']: invalid missed 'never'"),
        ({"x": {**NIGHTLY, "overlap": 1}}, "SCHEDULES['x']: invalid overlap 1"),
        ({"x": {**NIGHTLY, "args": "1"}}, "SCHEDULES['x']: invalid args '1': must be a list"),
        ({"x": {**NIGHTLY, "args": [{1}]}}, "SCHEDULES['x']: invalid payload"),
        ({"x": {**NIGHTLY, "kwargs": [1]}}, "SCHEDULES['x']: invalid kwargs [1]: must be a dict"),
        ({"x y": NIGHTLY}, "SCHEDULES['x y']: invalid name 'x y'"),
        ({7: NIGHTLY}, "SCHEDULES[7]: invalid name 7"),
    ],
)
def test_the_checks_report_an_invalid_schedule(
    configure: Configure, schedules: Any, text: str
) -> None:
    backend = configure(SCHEDULES=schedules)
    (error,) = [message for message in backend.check() if "E" in message.id]
    assert error.id == "dbbasic_queue.E001"
    assert text in error.msg
    with pytest.raises(ImproperlyConfigured):
        tasks.add.enqueue(1)
    with pytest.raises(CommandError):
        call_command("queue_pass")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"task": "odd.tasks.ad"}, "SCHEDULES['x']: passes find no task odd.tasks.ad"),
        ({"task": "os.getpid"}, "passes find no task os.getpid"),
        ({"args": []}, "wrong arguments for odd.tasks.add: missing a required argument: 'a'"),
        ({"kwargs": {"c": 1}}, "got an unexpected keyword argument 'c'"),
        ({"task": "odd.tasks.succeed_at", "kwargs": {}, "args": [1, 2]}, "too many positional"),
    ],
)
def test_the_checks_report_a_schedule_that_fits_no_task_and_a_pass_refuses_it(
    configure: Configure, queue: Queue, given: dict[str, Any], text: str
) -> None:
    backend = configure(SCHEDULES={"x": {**NIGHTLY, **given}})
    (error,) = [message for message in backend.check() if "E" in message.id]
    assert error.id == "dbbasic_queue.E004"
    assert text in error.msg
    tasks.add.enqueue(1)  # the web server goes on
    with pytest.raises(CommandError, match="SCHEDULES"):
        call_command("queue_pass")
    with pytest.raises(InvalidHandlers, match="SCHEDULES"):
        TaskHandlers(backend)
    assert queue.counts()["pending"] == 1


def test_the_checks_report_a_task_whose_queue_the_backend_doesnt_have(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "add", tasks.add.using(queue_name="mail"))
    monkeypatch.setattr("dbbasic_queue.django.discovery._found", {})
    backend = configure(SCHEDULES={"x": NIGHTLY}, queues=["default"])
    (error,) = [message for message in backend.check() if "E" in message.id]
    assert "the queue of odd.tasks.add, 'mail', isn't in QUEUES" in error.msg


def test_the_checks_report_an_expression_without_the_package_for_it(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    (error,) = [m for m in configure(SCHEDULES={"x": NIGHTLY}).check() if "E" in m.id]
    assert 'pip install "dbbasic-queue[schedule]"' in error.msg


def test_a_task_with_a_context_gets_it_in_addition(configure: Configure) -> None:
    context = {"task": "odd.tasks.succeed_at", "every": 60, "args": [1]}
    assert [m for m in configure(SCHEDULES={"x": context}).check() if "E" in m.id] == []
