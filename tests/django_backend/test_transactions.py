"""When a job is there: after the commit, or at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.core import mail
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import transaction
from django.test import AsyncClient, Client
from helpers import rows
from odd import tasks
from shop import orders
from shop.models import Order
from shop.tasks import send_receipt

from dbbasic_queue.django.framework import TaskResultDoesNotExist, TaskResultStatus
from dbbasic_queue.django.handlers import TaskHandlers

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.django import TextFileBackend

    Configure = Callable[..., TextFileBackend]


class Undone(Exception):
    """Rolls a transaction back."""


def test_without_the_option_a_rollback_leaves_a_job_without_its_order(
    path: Path, backend: TextFileBackend
) -> None:
    with pytest.raises(Undone), transaction.atomic():
        order = Order.objects.create(email="ada@example.com")
        send_receipt.enqueue(order.pk)
        raise Undone
    assert len(rows(path)) == 1
    other = Order.objects.create(email="bob@example.com")
    assert other.pk == order.pk, "SQLite uses the key of the order that was rolled back again"
    backend.queue.process_jobs(TaskHandlers(backend))
    assert [message.to for message in mail.outbox] == [["bob@example.com"]]
    assert [message.body for message in mail.outbox] == [f"Thank you for order {other.pk}."]


def test_with_the_option_a_rollback_leaves_no_job(path: Path, configure: Configure) -> None:
    configure(ENQUEUE_ON_COMMIT=True)
    with pytest.raises(Undone), transaction.atomic():
        result = tasks.add.enqueue(1)
        raise Undone
    assert not path.exists()
    with pytest.raises(TaskResultDoesNotExist):
        result.refresh()


def test_with_the_option_the_job_is_there_after_the_outermost_commit(
    path: Path, configure: Configure
) -> None:
    configure(ENQUEUE_ON_COMMIT="default")
    numbers = [1]
    with transaction.atomic():
        with transaction.atomic():
            result = tasks.add.enqueue(*numbers)
        with pytest.raises(Undone), transaction.atomic():
            tasks.add.enqueue(0)
            raise Undone
        numbers[0] = 2
        assert not path.exists()
        assert (result.status, result.enqueued_at) == (TaskResultStatus.READY, None)
    assert [row[0] for row in rows(path)] == [result.id]
    assert result.enqueued_at is not None
    result.refresh()
    assert tasks.add.get_result(result.id) == result
    assert tasks.add.get_result(result.id).args == [1]


def test_the_option_makes_no_difference_outside_a_transaction(
    path: Path, configure: Configure
) -> None:
    configure(ENQUEUE_ON_COMMIT=True)
    tasks.add.enqueue(1)
    assert len(rows(path)) == 1


def test_the_arguments_are_those_at_the_call(path: Path, configure: Configure) -> None:
    configure(ENQUEUE_ON_COMMIT=True)
    numbers = [1]
    with transaction.atomic():
        result = tasks.add.enqueue(numbers)
        numbers.append(2)
    assert rows(path)[0][2] == '{"args": [[1]]}'
    assert result.args == [[1]]


def test_an_id_of_its_own_is_kept_until_the_commit(path: Path, configure: Configure) -> None:
    backend = configure(ENQUEUE_ON_COMMIT=True)
    tasks.add.enqueue_once("order-7", 1)
    backend.queue.process_jobs(TaskHandlers(backend))
    with transaction.atomic():
        result = tasks.add.enqueue_once("order-7", 1)
        assert result.status == TaskResultStatus.READY
    assert result.return_value == 2
    assert len(rows(path)) == 1


def test_coroutines_enqueue_on_commit_too(path: Path, configure: Configure) -> None:
    configure(ENQUEUE_ON_COMMIT=True)

    def place() -> Any:
        return orders.place("ada@example.com")

    async def request() -> tuple[Any, Any]:
        await tasks.add.aenqueue(1)
        return await sync_to_async(place)(), await tasks.add.aenqueue(2)

    order, _ = asyncio.run(request())
    assert [row[1] for row in rows(path)] == [
        "odd.tasks.add",
        "shop.tasks.send_receipt",
        "odd.tasks.add",
    ]
    assert rows(path)[1][0] == f"receipt-{order.pk}"


def test_an_invalid_order_has_neither_a_row_nor_a_job(path: Path, configure: Configure) -> None:
    configure(ENQUEUE_ON_COMMIT=True)
    with pytest.raises(ValidationError):
        orders.place("nobody")
    assert not Order.objects.exists()
    assert not path.exists()


def test_the_pages_of_the_site_place_orders(path: Path, configure: Configure) -> None:
    configure(ENQUEUE_ON_COMMIT=True)
    client, async_client = Client(), AsyncClient()
    assert b"E-mail" in client.get("/").content
    assert client.post("/", {"email": "ada@example.com"}).status_code == 200
    assert client.post("/", {"email": "nobody"}).status_code == 400

    async def request(email: str) -> int:
        response = await async_client.post("/async/", {"email": email})
        status: int = response.status_code
        return status

    assert asyncio.run(request("bob@example.com")) == 200
    assert asyncio.run(request("nobody")) == 400
    ids = [f"receipt-{order.pk}" for order in Order.objects.order_by("pk")]
    assert [row[0] for row in rows(path)] == ids
    assert len(ids) == 2


def test_what_a_killed_server_hasnt_enqueued_is_enqueued_once(
    path: Path, configure: Configure
) -> None:
    backend = configure(ENQUEUE_ON_COMMIT=True)
    there, missing = orders.place("ada@example.com"), Order(email="bob@example.com")
    missing.save()  # as if the server had been killed right after the commit
    for _ in range(2):
        call_command("enqueue_missing")
    assert [row[0] for row in rows(path)] == [f"receipt-{there.pk}", f"receipt-{missing.pk}"]
    assert backend.queue.process_jobs(TaskHandlers(backend))["completed"] == 2
    call_command("enqueue_missing")
    assert len(rows(path)) == 2
    assert len(mail.outbox) == 2
