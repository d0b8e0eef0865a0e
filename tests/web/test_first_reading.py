"""The first look at a long queue is answered at once, while a thread reads the queue."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from helpers import Clock, add_lines, fork_without_hooks, held, line, store_of, wait_for
from visitor import Visitor, text_of

from dbbasic_queue import Queue
from dbbasic_queue.web import first_reading, shared

SCREENS = (("/", ""), ("/jobs", ""), ("/job", "id=j1"), ("/job/edit", "id=j1"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each queue a long one. Viewers don't wait for more than a moment."""
    monkeypatch.setattr(shared, "LONG_BYTES", 1)
    monkeypatch.setattr(first_reading, "PATIENCE_SECONDS", 0.001)


@pytest.fixture
def long(queue: Queue, path: Path) -> Queue:
    add_lines(path, *(line(f"j{n}") for n in range(5)))
    return queue


def status(visitor: Visitor, path: str, query: str = "") -> int:
    return visitor.send("GET", path, query).status


def readers() -> int:
    return sum("_run" in thread.name for thread in threading.enumerate())


def test_the_first_look_says_that_a_long_queue_is_read_and_loads_again(long: Queue) -> None:
    visitor = Visitor(long)
    with held(store_of(long).lock):  # so nothing can be read
        for path, query in SCREENS:
            response = visitor.send("GET", path, query)
            assert response.status == 202, path
            assert response.header("refresh") == "1"
            assert response.header("cache-control") == "no-store"
            text = text_of(response.body.decode())
            assert text.startswith("Reading a long queue for the first time")
            assert "The queue and its history have 0 MB." in text
        assert status(visitor, "/attempts") == 200
        assert status(visitor, "/schedules") == 200
    for path, query in SCREENS:
        wait_for(lambda p=path, q=query: status(visitor, p, q) == 200, path)  # type: ignore[misc]
    assert "Due now 5" in text_of(visitor.get("/"))
    assert readers() == 0


def test_a_change_is_not_made_while_the_queue_is_read_for_the_first_time(long: Queue) -> None:
    visitor = Visitor(long)
    visitor.get("/attempts")  # for its token; nothing of the queue file is read for it
    with held(store_of(long).lock):
        assert status(visitor, "/") == 202
        response = visitor.post("/job/cancel", id="j1")
        assert response.status == 503
        assert b"Nothing was done: try again" in response.body
    wait_for(lambda: status(visitor, "/") == 200, "the first reading")
    assert "It was cancelled." in visitor.done("/job/cancel", id="j1")


def test_many_viewers_wait_for_one_thread(long: Queue) -> None:
    visitor = Visitor(long)
    with held(store_of(long).lock):
        for _ in range(5):
            assert status(visitor, "/") == 202
        assert readers() == 1
    wait_for(lambda: status(visitor, "/") == 200, "the first reading")
    for _ in range(5):
        visitor.get("/")
    assert visitor.page._shared.count == 1


def test_a_viewer_that_comes_in_time_sees_the_queue_at_once(
    long: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_reading, "PATIENCE_SECONDS", 60)
    visitor = Visitor(long)
    for path, query in SCREENS:
        assert status(visitor, path, query) == 200


def test_an_error_of_the_first_reading_is_shown_and_the_next_look_tries_again(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_reading, "PATIENCE_SECONDS", 60)
    path.parent.mkdir()
    path.write_text("Dear Ada,\n")
    with Queue(path, clock=clock) as queue:
        visitor = Visitor(queue)
        for screen in ("/", "/jobs", "/"):
            response = visitor.send("GET", screen)
            assert response.status == 503
            assert b"The queue can't be used" in response.body
        path.unlink()
        add_lines(path, line("j1"))
        assert "Due now 1" in text_of(visitor.get("/"))


def test_a_server_process_that_was_forked_during_the_first_reading_reads_by_itself(
    long: Queue,
) -> None:
    visitor = Visitor(long)
    with store_of(long).lock._mutex:  # not `held`: the child would wait for its parent's lock
        assert status(visitor, "/") == 202
        child = fork_without_hooks()
        if not child:
            code = 1
            try:
                wait_for(lambda: status(visitor, "/") == 200, "the first reading in the child")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
