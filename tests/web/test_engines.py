"""The page of a queue in PostgreSQL and in Redis: the same screens and actions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from helpers import Clock, job, raises
from test_actions import payload_form
from visitor import Visitor, text_of

from dbbasic_queue import Queue, open_queue

if TYPE_CHECKING:
    from postgres_server import PostgresServer
    from valkey_server import ValkeyServer


@pytest.fixture(params=["postgresql", "redis"])
def engine(request: pytest.FixtureRequest) -> Iterator[Queue]:
    fixture = "postgres" if request.param == "postgresql" else "valkey"
    server: PostgresServer | ValkeyServer = request.getfixturevalue(fixture)
    with open_queue(server.url("the_page"), clock=Clock()) as queue:
        yield queue


def test_the_page_of_a_queue_on_a_server(engine: Queue) -> None:
    failing = engine.enqueue("greet", {"n": 1})
    engine.process_jobs({"greet": raises(ValueError("no <user>"))}, max_attempts=1)
    many = engine.enqueue_many("mail", [{"n": n} for n in range(60)])
    edited = engine.enqueue("report", {"month": 1, "password": "s3cret"})
    visitor = Visitor(engine)

    now = text_of(visitor.get("/"))
    assert "mail 60" in now and "ValueError: no <user> greet 1" in now
    assert "Last finished: greet" in now
    first = visitor.get("/jobs", type="mail")
    assert f'id={many[59]}"' in first and f'id={many[9]}"' not in first
    older = visitor.get(
        "/jobs", type="mail", before=f"{job(engine, many[10])['created_at']}.{many[10]}"
    )
    assert f'id={many[9]}"' in older and f'id={many[10]}"' not in older
    assert "no <user>" in text_of(visitor.get("/job", id=failing))
    assert "no <user>" in text_of(visitor.get("/attempts"))
    assert "There are no schedules." in text_of(visitor.get("/schedules"))

    assert "It will run again." in visitor.done("/job/requeue", id=failing)
    assert "60 jobs cancelled." in visitor.done("/jobs/cancel", type="mail")
    assert "60 jobs will run again." in visitor.done("/jobs/requeue", type="mail")
    assert "60 jobs stopped" in visitor.done("/jobs/stop", type="mail")
    assert "60 jobs removed." in visitor.done("/jobs/purge", type="mail")
    assert engine.get_job(many[0]) is None
    form = payload_form(visitor.get("/job/edit", id=edited))
    form["payload"] = form["payload"].replace("1,", "2,")
    visitor.done("/job/edit", **form)
    assert job(engine, edited)["payload"] == {"month": 2, "password": "s3cret"}
    visitor.done("/types/pause", type="report")
    assert "paused Resume" in text_of(visitor.get("/"))
    assert "The job was removed." not in text_of(visitor.get("/jobs"))
    visitor.done("/job/cancel", id=edited)
    visitor.done("/job/purge", id=edited)
    assert engine.get_job(edited) is None
