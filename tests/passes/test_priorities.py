"""Priorities: which due job runs first, and which newly due ones a long pass takes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import NONE, NOW, Clock, add_lines, job, join, line, rows

from dbbasic_queue import Backoff, Handler, Handlers, InvalidHandlers, Queue

BACKLOG = 1000
"""more jobs than a pass claims at once"""


@pytest.fixture(params=["file", "memory"])
def any_queue(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Queue:
    return Queue(path if request.param == "file" else "memory:", clock=clock)


class Ran:
    """Handlers of several priorities, which note the payloads in the order of their jobs."""

    def __init__(self, **priorities: int) -> None:
        self.payloads: list[Any] = []
        self.then: dict[Any, Any] = {}
        """payload -> a function to call in its job"""
        self.handlers = {
            name: Handler(self.note, priority=priority) for name, priority in priorities.items()
        }

    def note(self, payload: Any) -> None:
        self.payloads.append(payload)
        if payload in self.then:
            self.then.pop(payload)()


def test_higher_priorities_run_first_then_earlier_jobs_then_the_order_of_the_file(
    any_queue: Queue,
) -> None:
    ran = Ran(low=-1, plain=0, high=10)
    for payload, name, run_at in [
        ("low, early", "low", NOW - 9),
        ("plain, late", "plain", NOW - 1),
        ("plain, early", "plain", NOW - 5),
        ("plain, early, too", "plain", NOW - 5),
        ("high, late", "high", NOW - 2),
        ("high, early", "high", NOW - 3),
    ]:
        any_queue.enqueue(name, payload, run_at)
    assert any_queue.process_jobs(ran.handlers) == NONE | {"completed": 6}
    assert ran.payloads == [
        "high, early",
        "high, late",
        "plain, early",
        "plain, early, too",
        "plain, late",
        "low, early",
    ]


def test_a_registry_declares_priorities(any_queue: Queue) -> None:
    jobs, ran = Handlers(), []

    @jobs.handler
    def newsletter(payload: Any) -> None:
        ran.append(payload)

    @jobs.handler(priority=10)
    def password_mail(payload: Any) -> None:
        ran.append(payload)

    any_queue.enqueue("newsletter", 1)
    any_queue.enqueue("password_mail", 2)
    any_queue.process_jobs(jobs)
    assert ran == [2, 1]
    assert repr(password_mail).endswith("password_mail, priority=10>")


@pytest.mark.parametrize("priority", [True, 1.5, "high", None])
def test_a_priority_is_an_int(priority: Any) -> None:
    with pytest.raises(InvalidHandlers, match=r"invalid priority .*: must be an int"):
        Handler(print, priority=priority)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_long_pass_takes_newly_due_jobs_of_a_higher_priority_first(
    any_queue: Queue, clock: Clock, parallel: bool
) -> None:
    ran = Ran(mail=10, letter=5, news=0)
    any_queue.enqueue_many("news", range(BACKLOG))

    def add() -> None:
        any_queue.enqueue("news", "later")
        any_queue.enqueue("letter", "letter")
        any_queue.enqueue("mail", "mail")
        clock.now += 1
        any_queue.enqueue("mail", "mail, too")

    ran.then = {20: add}
    if parallel:

        async def note(payload: Any) -> None:
            ran.note(payload)
            await asyncio.sleep(0)

        ran.handlers = {
            name: Handler(note, priority=handler.priority) for name, handler in ran.handlers.items()
        }
    workers = 2 if parallel else 1
    counts = any_queue.process_jobs(ran.handlers, workers=workers)
    assert counts == NONE | {"completed": BACKLOG + 3}
    added = [payload for payload in ran.payloads if isinstance(payload, str)]
    assert added == ["mail", "mail, too", "letter"]
    assert [payload for payload in ran.payloads if isinstance(payload, int)] == [*range(BACKLOG)]
    assert ran.payloads[-1] == BACKLOG - 1, (
        "the newly due jobs were not taken before the backlog ended"
    )
    assert any_queue.counts()["pending"] == 1, (
        "a pass ends when the jobs are done that were due at its start"
    )
    any_queue.process_jobs(ran.handlers)
    assert ran.payloads[-1] == "later"


def test_a_job_of_a_higher_priority_that_becomes_due_in_time_is_taken(
    any_queue: Queue, clock: Clock
) -> None:
    ran = Ran(mail=10, news=0)
    any_queue.enqueue("mail", "in 5 s", NOW + 5)
    any_queue.enqueue("mail", "in 50 s", NOW + 50)
    any_queue.enqueue("news", "in 5 s, too", NOW + 5)
    any_queue.enqueue_many("news", range(BACKLOG))
    ran.then = {
        20: lambda: setattr(clock, "now", NOW + 4),
        50: lambda: setattr(clock, "now", NOW + 5),
    }
    any_queue.process_jobs(ran.handlers)
    assert 51 < ran.payloads.index("in 5 s") < BACKLOG
    assert "in 50 s" not in ran.payloads
    assert "in 5 s, too" not in ran.payloads


def test_a_job_that_someone_makes_due_is_taken(any_queue: Queue) -> None:
    ran = Ran(mail=10, news=0)
    moved = any_queue.enqueue("mail", "moved", NOW + 1000)
    failed = any_queue.enqueue("mail", "failed")
    any_queue.process_jobs({"mail": lambda _: 1 / 0}, max_attempts=1)
    any_queue.enqueue_many("news", range(BACKLOG))
    ran.then = {30: lambda: any_queue.run_now(moved), 500: lambda: any_queue.requeue(failed)}
    any_queue.process_jobs(ran.handlers)
    assert 30 < ran.payloads.index("moved") < 500 < ran.payloads.index("failed") < BACKLOG


def test_a_retry_of_a_higher_priority_waits_for_the_next_pass(
    any_queue: Queue, clock: Clock
) -> None:
    ran = Ran(mail=10, news=0)

    def fails(payload: Any) -> None:
        ran.note(payload)
        clock.now += 5
        raise ValueError("no")

    ran.handlers["mail"] = Handler(fails, priority=10, backoff=Backoff(first=1, factor=1))
    any_queue.enqueue("mail", "mail")
    for n in range(10):
        any_queue.enqueue("news", n)
    assert any_queue.process_jobs(ran.handlers) == NONE | {"retried": 1, "completed": 10}
    assert ran.payloads == ["mail", *range(10)]


def test_a_cancelled_job_of_a_higher_priority_is_not_run(any_queue: Queue) -> None:
    ran = Ran(mail=10, news=0)
    any_queue.enqueue_many("news", range(BACKLOG))
    ran.then = {9: lambda: any_queue.cancel_job(any_queue.enqueue("mail", "mail"))}
    assert any_queue.process_jobs(ran.handlers) == NONE | {"completed": BACKLOG}


def test_priorities_respect_pauses_and_concurrency(any_queue: Queue) -> None:
    ran = Ran(mail=10, sms=20, news=0)
    ran.handlers["mail"] = Handler(ran.note, priority=10, concurrency=1)
    any_queue.pause("sms")
    for n in range(4):
        any_queue.enqueue("news", f"news {n}")
        any_queue.enqueue("sms", f"sms {n}")
        any_queue.enqueue("mail", f"mail {n}")
    assert any_queue.process_jobs(ran.handlers) == NONE | {"completed": 8}
    assert ran.payloads[0] == "mail 0"
    assert [p for p in ran.payloads if p.startswith("mail")] == [f"mail {n}" for n in range(4)]
    assert not [p for p in ran.payloads if p.startswith("sms")]


def test_newly_due_jobs_are_found_while_the_file_is_rewritten(
    queue: Queue, path: Path, clock: Clock
) -> None:
    ran = Ran(mail=10, news=0)
    with Queue(path, clock=clock) as other:
        ids = other.enqueue_many("news", range(BACKLOG))

        def rewrite() -> None:
            other.enqueue("mail", "mail")
            for job_id in ids[-5:]:
                other.cancel_job(job_id)
            clock.now += 1
            assert other.purge(0, "cancelled") == 5

        ran.then = {20: rewrite}
        assert queue.process_jobs(ran.handlers) == NONE | {"completed": BACKLOG - 4}
    assert 20 < ran.payloads.index("mail") < BACKLOG - 5
    assert [p for p in ran.payloads if p != "mail"] == [*range(BACKLOG - 5)]


def test_a_lingering_pass_takes_them_too(now_queue: Queue) -> None:
    ran = Ran(mail=10, news=0)
    now_queue.enqueue_many("news", range(BACKLOG))
    ran.then = {20: lambda: now_queue.enqueue("mail", "mail")}
    now_queue.run_until_complete(ran.handlers)
    assert 20 < ran.payloads.index("mail") < BACKLOG


def test_invalid_lines_do_not_disturb_priorities(queue: Queue, path: Path) -> None:
    ran = Ran(mail=10, news=0)
    add_lines(path, line("a", type="news", payload='"a"'), "what?\n", "x\ty\n", "\n")
    add_lines(path, line("b", type="mail", payload='"b"'), line("c", type="news", payload="{"))
    assert queue.process_jobs(ran.handlers) == NONE | {"completed": 2}
    assert ran.payloads == ["b", "a"]
    assert len(rows(path)) == 6


def test_a_pass_of_another_process_can_take_a_job_first(queue: Queue, clock: Clock) -> None:
    ran = Ran(mail=10, news=0)
    with Queue(queue.path, clock=clock) as other:
        queue.enqueue_many("news", range(BACKLOG))

        def elsewhere() -> None:
            queue.enqueue("mail", "mail")
            done = threading.Thread(
                target=lambda: other.process_jobs({"mail": len}, skip_unknown=True)
            )
            done.start()
            join(done, "the other pass")

        ran.then = {10: elsewhere}
        assert queue.process_jobs(ran.handlers) == NONE | {"completed": BACKLOG}
        assert "mail" not in ran.payloads
        (mail,) = queue.jobs(job_type="mail")
        assert job(queue, mail["id"])["attempts"] == 1


def test_a_newly_due_job_runs_before_those_that_wait_for_the_concurrency_of_their_type(
    any_queue: Queue,
) -> None:
    ran = Ran(low=0, high=10)
    ran.handlers["low"].concurrency = 1
    any_queue.enqueue_many("low", range(BACKLOG))
    ran.then[100] = lambda: any_queue.enqueue("high", "mail")
    assert any_queue.process_jobs(ran.handlers) == NONE | {"completed": BACKLOG + 1}
    assert ran.payloads.index("mail") == 101


def test_a_newly_due_job_of_a_higher_priority_runs_before_jobs_that_have_killed_a_pass(
    queue: Queue, path: Path
) -> None:
    ran = Ran(low=0, high=10)
    died = {"attempts": 1, "error": "worker died in attempt 1"}
    for name in ("first", "second"):
        add_lines(path, line(name, type="low", payload=f'"{name}"', **died))
    ran.then["first"] = lambda: queue.enqueue("high", "mail")
    assert queue.process_jobs(ran.handlers) == NONE | {"completed": 3}
    assert ran.payloads == ["first", "mail", "second"]
