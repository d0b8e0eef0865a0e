"""Connections to the database are closed around jobs, and never shared with a forked process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from django.db import connection, connections
from odd import tasks
from shop.models import Order

from dbbasic_queue.django.handlers import TaskHandlers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbbasic_queue.django import TextFileBackend

    Configure = Callable[..., TextFileBackend]

OWN_PROCESS = {
    "odd.tasks.look_in_own_process": {"timeout": 10},
    "odd.tasks.look_from_coroutine_in_own_process": {"timeout": 10},
}


@pytest.fixture
def persistent() -> Iterator[None]:
    """Connections are kept for an hour, if nothing closes them."""
    before = connection.settings_dict["CONN_MAX_AGE"]
    connection.settings_dict["CONN_MAX_AGE"] = 3600
    connections.close_all()
    yield
    connection.settings_dict["CONN_MAX_AGE"] = before


def looks(backend: TextFileBackend, *names: str, workers: int = 1) -> list[tuple[bool, bool]]:
    """Run tasks; return whether each ran in this process, and found an open connection."""
    results = [getattr(tasks, name).enqueue() for name in names]
    counts = backend.queue.process_jobs(TaskHandlers(backend), workers=workers)
    assert counts["completed"] == len(names), [backend.queue.get_job(r.id) for r in results]
    found = [backend.get_result(result.id).return_value for result in results]
    assert all(works == 1 for *_, works in found)
    return [(process == os.getpid(), was_open) for process, was_open, _ in found]


def test_a_job_leaves_no_connection_open(backend: TextFileBackend) -> None:
    assert looks(backend, *["look_at_connection"] * 2) == [(True, False)] * 2
    assert connection.connection is None


@pytest.mark.usefixtures("persistent")
def test_a_persistent_connection_serves_the_next_job(backend: TextFileBackend) -> None:
    assert looks(backend, *["look_at_connection"] * 2) == [(True, False), (True, True)]


@pytest.mark.usefixtures("persistent")
def test_a_pass_that_forks_keeps_no_connection(configure: Configure) -> None:
    backend = configure(POLICIES=OWN_PROCESS)
    assert looks(backend, *["look_at_connection", "look_in_own_process"] * 2) == [
        (True, False),
        (False, False),
        (True, False),
        (False, False),
    ]


@pytest.mark.usefixtures("persistent")
def test_a_forked_process_opens_a_connection_of_its_own(configure: Configure) -> None:
    backend = configure(POLICIES=OWN_PROCESS)
    Order.objects.create(email="ada@example.com")
    assert connection.connection is not None
    assert looks(backend, "look_in_own_process") == [(False, False)]
    assert Order.objects.count() == 1
    found = looks(configure(), *["look_at_connection"] * 4, workers=2)
    assert (False, False) in found
    assert not any(here for here, _ in found)


@pytest.mark.usefixtures("persistent")
def test_a_coroutine_in_a_process_of_its_own_doesnt_wait_for_a_thread_of_the_parent(
    configure: Configure,
) -> None:
    backend = configure(POLICIES=OWN_PROCESS)
    names = ["look_from_coroutine", "look_from_coroutine_in_own_process"] * 2
    assert [process for process, _ in looks(backend, *names)] == [True, False] * 2


def test_a_broken_connection_is_replaced_before_the_next_job(backend: TextFileBackend) -> None:
    connection.ensure_connection()
    connection.connection.close()
    connection.errors_occurred = True
    assert looks(backend, "look_at_connection") == [(True, False)]
