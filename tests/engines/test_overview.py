"""What a server counts is what the rows say; and it needn't send them for that."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

import pytest
from helpers import NOW

from dbbasic_queue import open_queue
from dbbasic_queue.model.rows import Row
from dbbasic_queue.model.states import FINISHED, STATUSES, State
from dbbasic_queue.monitoring.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Clock
    from postgres_server import PostgresServer
    from valkey_server import ValkeyServer

    from dbbasic_queue.engines.store import EngineStore

NAMES = itertools.count()


@pytest.fixture(params=["postgres", "valkey"])
def store(request: pytest.FixtureRequest, clock: Clock) -> Iterator[EngineStore]:
    server: PostgresServer | ValkeyServer = request.getfixturevalue(request.param)
    with open_queue(server.url(f"test_overview_{next(NAMES)}"), clock=clock) as queue:
        yield cast("EngineStore", queue.store)


class ReadsAllRows:
    """A store whose server counts nothing."""

    def __init__(self, store: EngineStore) -> None:
        self._store = store

    def overview(self, now: float, each: object = None) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def fill(store: EngineStore) -> list[Row]:
    """Add jobs of all statuses and ages, with and without errors, some of a paused type."""
    now = int(NOW)
    rows: list[Row] = []
    for n, (job_type, status, error) in enumerate(
        itertools.product("abc", [*FINISHED, "pending"], ["", "Boom: \\t"])
    ):
        for age in (50, 40 - n, -30):
            created_at = now - max(age, 10)
            state = State(status, created_at, now - age, int(error != ""), error, "")
            rows.append(Row(f"job{len(rows)}", job_type, '{"n": 1}', state))
    store.backend.add(rows)
    store.pause("b")
    return rows


def figures(store: Any, ids: list[str]) -> dict[str, Any]:
    summary = Summary(store, NOW, lambda row: ids.append(row.id) if row.state.error else None)
    return vars(summary) | {"first_due": summary.first_due and summary.first_due.id}


def test_a_server_counts_what_the_rows_say(store: EngineStore) -> None:
    ids: list[str] = []
    assert figures(store, ids)["counts"] == dict.fromkeys(STATUSES, 0)
    rows = fill(store)
    counted = figures(store, ids)
    all_ids: list[str] = []
    read = figures(ReadsAllRows(store), all_ids)
    assert counted == read
    assert counted["counts"]["pending"] == 18
    assert set(ids) <= set(all_ids)
    open_errors = [r.id for r in rows if r.state.error and r.state.status in ("pending", "failed")]
    assert ids == open_errors


def test_only_the_wanted_rows_are_read(store: EngineStore) -> None:
    rows = fill(store)
    for statuses in (("failed",), ("pending", "failed"), FINISHED, STATUSES):
        for job_type in (None, "a"):
            for only_errors in (False, True):
                found = store.rows(statuses=statuses, job_type=job_type, only_errors=only_errors)
                assert [row.id for row in found] == [
                    row.id
                    for row in rows
                    if row.state.status in statuses
                    and job_type in (None, row.type)
                    and (row.state.error or not only_errors)
                ]


def test_several_jobs_are_found_at_once(store: EngineStore) -> None:
    fill(store)
    found = store.backend.find_many(["job3", "none", "job1"])
    assert {job_id: row.id for job_id, row in found.items()} == {"job1": "job1", "job3": "job3"}
    assert store.backend.find_many([]) == {}
