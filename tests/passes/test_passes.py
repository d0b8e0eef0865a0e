"""A pass: which jobs run, in what order, how it ends, and what handlers can't break."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import fcntl
import functools
import inspect
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import types
from collections import Counter, UserDict
from decimal import Decimal, getcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    DEADLINE,
    NONE,
    NOW,
    Clock,
    add_lines,
    fill,
    job,
    join,
    line,
    python,
    raising,
    row,
    rows,
    sibling,
    small_disk,
    store_of,
    wait_for,
)

from dbbasic_queue import (
    Backoff,
    Handler,
    InvalidHandlers,
    InvalidJob,
    Queue,
    QueueBusy,
    StoreError,
)
from dbbasic_queue.passes import log_lines, signals
from dbbasic_queue.passes.policies import Policies
from dbbasic_queue.store.claiming.claims import Claims

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


def outcome(queue: Queue, handler: Callable[[Any], Any], attempts: int = 3) -> Any:
    """Enqueue one job, make a pass, and return the job."""
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": handler}, attempts)
    return job(queue, job_id)


# --- which jobs run, and in what order


def test_a_job_is_run_with_its_payload_and_its_result_is_recorded(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("add", [1, 2])
    assert queue.process_jobs({"add": sum}) == NONE | {"completed": 1}
    found = job(queue, job_id)
    assert (found["status"], found["result"], found["attempts"]) == ("completed", 3, 1)
    assert row(path, job_id)["status"] == "completed"
    assert sibling(path, "journal").read_bytes() == b""
    assert queue.process_jobs({"add": sum}) == NONE


def test_jobs_run_earliest_first_and_in_the_files_order_within_a_second(queue: Queue) -> None:
    order: list[str] = []
    for name, run_at in [("d", NOW - 1), ("a", 5), ("e", NOW - 1), ("c", 70), ("b", 6)]:
        queue.enqueue("greet", name, run_at)
    queue.enqueue("greet", "later", NOW + 1)
    assert queue.process_jobs({"greet": order.append})["completed"] == 5
    assert order == ["a", "b", "c", "d", "e"]


def test_many_jobs_run_once_each_and_in_order(path: Path) -> None:
    order: list[int] = []
    with Queue(path, fsync=False) as queue:
        queue.enqueue_many("greet", range(2500))
        assert queue.process_jobs({"greet": order.append}) == NONE | {"completed": 2500}
    assert order == list(range(2500))
    assert {(columns[3], columns[6]) for columns in rows(path)} == {("completed", "1")}


def test_a_job_that_is_not_due_waits(queue: Queue, clock: Clock) -> None:
    job_id = queue.enqueue("greet", {}, NOW + 60)
    assert queue.process_jobs({"greet": print}) == NONE
    clock.now += 60
    assert queue.process_jobs({"greet": lambda _: None}) == NONE | {"completed": 1}
    assert job(queue, job_id)["run_at"] == NOW + 60


def test_the_file_shows_a_job_as_processing_while_it_runs(queue: Queue, path: Path) -> None:
    seen = []

    def look(job_id: str) -> None:
        seen.append((row(path, job_id)["status"], row(path, job_id)["attempts"]))
        seen.append((job(queue, job_id)["status"], "the call"))
        with Queue(path) as other:
            seen.append((job(other, job_id)["status"], "another process's call"))

    queue.enqueue("greet", "mine", job_id="mine")
    queue.process_jobs({"greet": look})
    assert seen == [
        ("processing", "1"),
        ("processing", "the call"),
        ("processing", "another process's call"),
    ]


def test_each_outcome_is_recorded_before_the_next_job_begins(queue: Queue, path: Path) -> None:
    before: list[list[str]] = []
    ids = queue.enqueue_many("greet", range(30))

    def look(_: int) -> None:
        with Queue(path) as other:
            done = [found["id"] for found in other.jobs("completed")]
        before.append(done)

    queue.process_jobs({"greet": look})
    assert before == [ids[:n] for n in range(30)]


def test_a_pass_runs_jobs_of_many_types(queue: Queue) -> None:
    ran: list[str] = []
    handlers = {name: (lambda _, name=name: ran.append(name)) for name in ("a", "b:c", "d.e")}
    for name in ("b:c", "a", "d.e", "a"):
        queue.enqueue(name, {})
    queue.process_jobs(handlers)
    assert ran == ["b:c", "a", "d.e", "a"]


# --- errors, retries, the last attempt


def test_a_job_that_fails_is_tried_again_after_its_backoff(
    queue: Queue, clock: Clock, path: Path
) -> None:
    handlers = {"greet": raising(ValueError("no such user"))}
    job_id = queue.enqueue("greet", {})
    assert queue.process_jobs(handlers) == NONE | {"retried": 1}
    found = job(queue, job_id)
    assert (found["status"], found["attempts"], found["run_at"]) == ("pending", 1, NOW + 120)
    assert found["error"] == "ValueError: no such user"
    clock.now = NOW + 119
    assert queue.process_jobs(handlers) == NONE
    clock.now = NOW + 120
    assert queue.process_jobs(handlers) == NONE | {"retried": 1}
    assert (job(queue, job_id)["attempts"], job(queue, job_id)["run_at"]) == (2, NOW + 120 + 240)
    clock.now = NOW + 360
    assert queue.process_jobs(handlers) == NONE | {"failed": 1}
    found = job(queue, job_id)
    assert (found["status"], found["attempts"], found["error"]) == (
        "failed",
        3,
        "ValueError: no such user",
    )
    assert row(path, job_id)["status"] == "failed"
    clock.now += 10**6
    assert queue.process_jobs(handlers) == NONE


def test_a_job_that_succeeds_in_the_end_has_no_error_left(queue: Queue, clock: Clock) -> None:
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": raising(ValueError("busy"))})
    clock.now += 120
    assert queue.process_jobs({"greet": lambda _: "done"}) == NONE | {"completed": 1}
    found = job(queue, job_id)
    assert (found["error"], found["result"], found["attempts"]) == (None, "done", 2)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_job_fails_for_good_at_max_attempts(queue: Queue, clock: Clock, most: int) -> None:
    job_id = queue.enqueue("greet", {})
    for _ in range(most):
        assert job(queue, job_id)["status"] == "pending"
        queue.process_jobs({"greet": raising(ValueError("no"))}, max_attempts=most)
        clock.now += 60 << 10
    assert (job(queue, job_id)["status"], job(queue, job_id)["attempts"]) == ("failed", most)


@pytest.mark.parametrize(
    ("seconds", "run_at"),
    [(59, NOW + 1001 + 59), (120, NOW + 1001 + 120 - 41)],  # a minute or more: at a full minute
)
def test_the_backoff_starts_when_the_attempt_fails(
    queue: Queue, clock: Clock, seconds: int, run_at: int
) -> None:
    def slow(_: Any) -> None:
        clock.now += 1000.5
        raise ValueError

    handler = Handler(slow, backoff=Backoff(first=seconds))
    assert outcome(queue, handler)["run_at"] == run_at


def test_an_unknown_type_fails_like_any_error(queue: Queue, clock: Clock) -> None:
    job_id = queue.enqueue("nobody", {})
    assert queue.process_jobs({"greet": print}) == NONE | {"retried": 1}
    assert job(queue, job_id)["error"] == "No handler for nobody"
    for _ in range(2):
        clock.now += 60 << 5
        queue.process_jobs({"nobody": None})  # type: ignore[dict-item]
    assert (job(queue, job_id)["status"], job(queue, job_id)["attempts"]) == ("failed", 3)


class SilentError(Exception):
    pass


class RaisingText(Exception):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error


class WrongText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class LyingText(Exception):
    class Text(str):
        __slots__ = ()

        def __getitem__(self, _: Any) -> Any:
            return 7

        def __len__(self) -> int:
            raise RuntimeError

    def __str__(self) -> str:
        return self.Text("the truth")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Exception("no such user"), "no such user"),
        (ValueError("no such user"), "ValueError: no such user"),
        (KeyError("name"), "KeyError: 'name'"),
        (SilentError(), "SilentError"),
        (Exception(), "Exception"),
        (SystemExit(3), "SystemExit: 3"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit("over"), "GeneratorExit: over"),
        (BaseException("bare"), "BaseException: bare"),
        (MemoryError(), "MemoryError"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (StopIteration(1), "StopIteration: 1"),
        (RaisingText(RuntimeError()), "RaisingText: (its text isn't available: RuntimeError)"),
        (RaisingText(SystemExit()), "RaisingText: (its text isn't available: SystemExit)"),
        (RaisingText(KeyboardInterrupt()), "RaisingText: (its text isn't available: Keyboard"),
        (WrongText(), "WrongText: (its text isn't available: TypeError)"),
        (LyingText(), "LyingText: the truth"),
        (ValueError("a\tb\nc\r\n\\"), "ValueError: a\tb\nc\r\n\\"),
        (ValueError("\x1b[2J\0\x7f\x9b"), "ValueError: \x1b[2J\0\x7f\x9b"),
        (ValueError("\udcff\ud800 \u2028 \u202e \ufeff"), "ValueError: \udcff\ud800 \u2028 \u202e"),
        (ValueError("x\tgreet\t{}\tpending\t0\t0\t0\t\t\ny"), "ValueError: x\tgreet\t{}\tpending"),
        (OSError(2, "No such file", "caf\udce9"), "FileNotFoundError: [Errno 2] No such file"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_any_exception_of_a_handler_is_one_line_in_the_file_and_the_pass_goes_on(
    queue: Queue, path: Path, error: BaseException, text: str
) -> None:
    ids = queue.enqueue_many("greet", range(3))
    other = queue.enqueue("other", {})
    handlers = {"greet": raising(error), "other": lambda _: "fine"}
    assert queue.process_jobs(handlers) == NONE | {"retried": 3, "completed": 1}
    for job_id in ids:
        assert str(job(queue, job_id)["error"]).startswith(text)
        assert row(path, job_id)["error"].isprintable()
    assert job(queue, other)["result"] == "fine"
    assert {len(columns) for columns in rows(path)} == {9}
    assert len(rows(path)) == 4


def test_a_very_long_error_text_is_cut_off(queue: Queue, path: Path) -> None:
    found = outcome(queue, raising(ValueError("text\n" * 100_000)))
    assert found["error"].startswith("ValueError: text\ntext\n")
    assert found["error"].endswith("…")
    assert len(found["error"]) == len("ValueError: ") + 500
    assert len(rows(path)) == 1


def test_endless_recursion_is_the_jobs_error(queue: Queue) -> None:
    def endless(payload: Any) -> Any:
        return endless(payload)

    assert outcome(queue, endless)["error"].startswith("RecursionError: maximum recursion depth")


def test_an_exception_chain_with_a_loop_is_the_jobs_error(queue: Queue) -> None:
    error = ValueError("one")
    error.__cause__ = error
    assert outcome(queue, raising(error))["error"] == "ValueError: one"


# --- results


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (object(), "object is not JSON"),
        ({1, 2}, "set is not JSON"),
        (b"bytes", "bytes is not JSON"),
        (float("nan"), "not JSON compliant"),
        ("x" * 1_048_576, "it takes 1048578 bytes"),
        (10**5000, "4300"),
        ({(1, 2): 3}, "key of type tuple"),
        ({1: "a", "1": "b"}, "key of type int"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_job_whose_result_is_not_json_is_completed_and_never_run_again(
    queue: Queue, path: Path, clock: Clock, result: object, reason: str
) -> None:
    found = outcome(queue, lambda _: result)
    assert (found["status"], found["result"], found["attempts"]) == ("completed", None, 1)
    assert found["error"].startswith("result not kept: ValueError: ")
    assert reason in found["error"]
    assert row(path, found["id"])["result"] == ""
    clock.now += 10**9
    assert queue.process_jobs({"greet": lambda _: result}) == NONE


class Hostile(dict[str, Any]):
    def items(self) -> Any:
        raise SystemExit("from within the encoder")

    def __bool__(self) -> bool:
        raise RuntimeError


def test_a_result_that_raises_while_it_is_encoded_is_not_kept(queue: Queue) -> None:
    found = outcome(queue, lambda _: Hostile(a=1))
    assert found["status"] == "completed"
    assert found["error"] == "result not kept: SystemExit: from within the encoder"


def test_a_coroutine_function_is_awaited(queue: Queue) -> None:
    async def handler(payload: Any) -> Any:
        await asyncio.sleep(0)
        return payload

    found = outcome(queue, handler)
    assert (found["status"], found["result"]) == ("completed", found["payload"])


def test_a_generator_function_as_handler_is_an_error(queue: Queue) -> None:
    def handler(_: Any) -> Iterator[int]:
        yield 1

    async def asynchronous(_: Any) -> AsyncIterator[int]:
        yield 1

    for function in (handler, asynchronous):
        hidden: Any = functools.partial(lambda function, _: function(_), function)
        found = outcome(queue, hidden)
        assert found["status"] == "pending"
        assert "generator, which has not started: give a function" in found["error"]


# --- handlers that use the queue


def test_jobs_that_handlers_enqueue_run_in_the_next_pass(queue: Queue) -> None:
    ids: list[str] = []

    def grow(n: int) -> None:
        if n:
            ids.extend(queue.enqueue_many("grow", [n - 1, n - 1]))

    queue.enqueue("grow", 2)
    assert queue.process_jobs({"grow": grow})["completed"] == 1
    assert queue.process_jobs({"grow": grow})["completed"] == 2
    assert queue.process_jobs({"grow": grow})["completed"] == 4
    assert queue.process_jobs({"grow": grow}) == NONE
    assert {job(queue, job_id)["status"] for job_id in ids} == {"completed"}


def test_a_job_that_enqueues_itself_does_not_make_its_pass_endless(queue: Queue) -> None:
    ran: list[int] = []

    def again(n: int) -> None:
        ran.append(n)
        queue.enqueue("again", n + 1, 1)

    queue.enqueue("again", 0)
    for n in range(3):
        assert queue.process_jobs({"again": again}) == NONE | {"completed": 1}
        assert ran == list(range(n + 1))


def test_a_handler_sees_its_own_job_and_cannot_cancel_it(queue: Queue) -> None:
    seen: list[Any] = []

    def handler(job_id: str) -> str:
        seen.append((job(queue, job_id)["status"], queue.cancel_job(job_id)))
        return "done"

    queue.enqueue("greet", "mine", job_id="mine")
    assert queue.process_jobs({"greet": handler}) == NONE | {"completed": 1}
    assert seen == [("processing", False)]
    assert job(queue, "mine")["result"] == "done"


def test_a_handler_can_cancel_jobs_that_have_not_started(queue: Queue) -> None:
    ran: list[str] = []
    queue.enqueue("cancel", "b")
    for name in "abc":
        queue.enqueue("greet", name, job_id=name)
    handlers = {"cancel": queue.cancel_job, "greet": ran.append}
    assert queue.process_jobs(handlers) == NONE | {"completed": 3}
    assert ran == ["a", "c"]
    assert job(queue, "b")["status"] == "cancelled"


def test_a_handler_can_enqueue_read_and_close_the_queue(queue: Queue) -> None:
    def handler(n: int) -> int:
        queue.close()
        queue.enqueue("other", n, NOW * 2)
        return queue.counts()["processing"]

    ids = queue.enqueue_many("greet", range(20))
    assert queue.process_jobs({"greet": handler}) == NONE | {"completed": 20}
    assert job(queue, ids[0])["result"] == 1
    assert queue.counts()["pending"] == 20


# --- a clock that is wrong


def test_a_job_enqueued_while_the_clock_was_ahead_runs_when_the_clock_is_right_again(
    queue: Queue, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.now = NOW + 10**8
    queue.enqueue("greet", "now")
    queue.enqueue("greet", "later", NOW + 10**8 + 3600)
    queue.enqueue_many("greet", [1, 2], clock.now)
    clock.now = NOW
    queue.enqueue("greet", "scheduled", NOW + 10**8)
    ran: list[object] = []
    assert queue.process_jobs({"greet": ran.append})["completed"] == 3
    assert ran == ["now", 1, 2]
    assert [found["created_at"] for found in queue.jobs("completed")] == [NOW] * 3
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message == "3 jobs were enqueued while the clock was ahead: they are due now"
    clock.now = NOW + 100  # check the jobs again that the first pass has checked
    queue.enqueue("greet", "again")
    clock.now = NOW
    assert queue.process_jobs({"greet": ran.append})["completed"] == 1


def test_a_lingering_pass_runs_a_job_enqueued_with_a_clock_that_is_ahead(queue: Queue) -> None:
    def handler(name: str) -> None:
        if name == "first":
            with Queue(queue.path, clock=Clock(NOW + 10**8)) as other:
                other.enqueue("greet", "second")
        else:
            os.kill(os.getpid(), signal.SIGINT)

    queue.enqueue("greet", "first")
    with pytest.raises(KeyboardInterrupt):
        queue.process_jobs({"greet": handler}, linger=20)


@pytest.mark.parametrize("now", [-1e9, -0.5, 1.8e12, math.nan, math.inf, 10**400])
def test_a_clock_out_of_range_is_an_error_at_once(queue: Queue, now: float) -> None:
    queue.enqueue("greet", 1)
    with Queue(queue.path, clock=lambda: now) as other:
        calls: tuple[Callable[[], object], ...] = (
            lambda: other.enqueue("greet", {}),
            lambda: other.enqueue_many("greet", [1]),
            lambda: other.requeue("x"),
            lambda: other.process_jobs({"greet": print}),
        )
        for call in calls:
            with pytest.raises(InvalidJob, match=r"invalid time .* of the queue's clock: must be"):
                call()
    assert [found["payload"] for found in queue.jobs("pending")] == [1]


# --- lines that can't be read


def test_an_invalid_row_never_keeps_the_others_from_running(queue: Queue, path: Path) -> None:
    broken: list[str | bytes] = [
        "no job at all\n",
        "\n",
        line("a", run_at="soon"),
        line("b", run_at="nan"),
        line("c", payload="{"),
        line("d", payload="[" * 200),
        line("e", payload="9" * 5000),
        line("f", status="done"),
        line("g", attempts="x"),
        line("h", attempts="1" * 10),
        line("i", created_at="9" * 13),
        line("j")[:-9] + "\n",
        b"\xff\xfe\n",
        b"\0\0\0\n",
    ]
    ran: list[str] = []
    add_lines(path, line("first", payload='"first"'), *broken, line("last", payload='"last"'))
    for _ in range(2):
        queue.process_jobs({"greet": ran.append})
    assert ran == ["first", "last"]
    kept = path.read_bytes() + sibling(path, "rejected").read_bytes()
    for text in broken:
        assert (text if isinstance(text, bytes) else text.encode()) in kept


def test_payloads_that_are_not_json_leave_room_for_the_jobs_after_them(
    queue: Queue, path: Path
) -> None:
    payload = "'" + "x" * 100_000 + "'"  # 11 of them are more than one batch may hold
    then = NOW - 5000
    bad = [line(f"sh-{n}", payload=payload, created_at=then, run_at=then) for n in range(11)]
    huge = line("huge", payload="'" * 2**20, created_at=then, run_at=then)
    add_lines(path, *bad, huge)
    queue.enqueue_many("greet", range(3))
    assert queue.process_jobs({"greet": lambda _: None})["completed"] == 3


def test_invalid_lines_are_logged_with_their_line_numbers(
    queue: Queue, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_lines(path, line("a"), "what is this\n", line("b"), line("a"), line("c", payload="{"))
    queue.process_jobs({"greet": lambda _: None})
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage() == (
        f"{path}: ignoring 3 invalid lines (kept as they are; `dbbasic-queue unreadable` says "
        "why): line 3, 5, 6"
    )
    caplog.clear()
    queue.process_jobs({"greet": print})
    assert "ignoring 3 invalid lines" in caplog.text


# --- the log


class Record(logging.LogRecord):
    job_id: str
    job_type: str
    status: str
    attempt: int
    seconds: float


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[Record]]:
    caplog.set_level(logging.INFO, "dbbasic_queue")
    return lambda: caplog.records  # type: ignore[return-value]


def test_each_outcome_is_logged_with_its_details_after_it_was_synced(
    queue: Queue, path: Path, log: Callable[[], list[Record]]
) -> None:
    on_disk: list[str] = []

    class Look(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with Queue(path) as other:
                on_disk.append(job(other, record.__dict__["job_id"])["status"])

    look = Look()
    logging.getLogger("dbbasic_queue").addHandler(look)
    try:
        for n, name in enumerate(("fine", "odd", "busy", "nobody")):
            queue.enqueue(name, {}, n + 1, job_id=f"{name}-1")
        queue.process_jobs(
            {"fine": len, "odd": lambda _: object(), "busy": raising(OSError("try later"))}
        )
        queue.enqueue("busy", {}, job_id="busy-2")
        queue.process_jobs({"busy": raising(OSError("never"))}, max_attempts=1)
    finally:
        logging.getLogger("dbbasic_queue").removeHandler(look)
    facts = [(r.job_id, r.job_type, r.status, r.attempt, r.levelname) for r in log()]
    assert facts == [
        ("fine-1", "fine", "completed", 1, "INFO"),
        ("odd-1", "odd", "completed", 1, "WARNING"),
        ("busy-1", "busy", "pending", 1, "WARNING"),
        ("nobody-1", "nobody", "pending", 1, "WARNING"),
        ("busy-2", "busy", "failed", 1, "ERROR"),
    ]
    assert {r.name for r in log()} == {"dbbasic_queue"}
    assert all(0 <= r.seconds < 5 for r in log())
    assert [r.getMessage() for r in log()][0::2] == [
        "fine fine-1 completed, attempt 1",
        "busy busy-1 retried, attempt 1: OSError: try later",
        "busy busy-2 failed, attempt 1: OSError: never",
    ]
    assert on_disk == ["completed", "completed", "pending", "pending", "failed"]


def test_the_log_says_why_a_result_was_not_kept(
    queue: Queue, log: Callable[[], list[Record]]
) -> None:
    outcome(queue, lambda _: b"")
    assert "result not kept: ValueError: bytes is not JSON" in log()[0].getMessage()


def test_nothing_hostile_reaches_the_log_unescaped(
    queue: Queue, path: Path, log: Callable[[], list[Record]]
) -> None:
    add_lines(path, line("a", type="\x1b[2Jgreet"), line("b", type="c\u2028"))
    queue.enqueue("greet", {})
    queue.process_jobs({"greet": raising(ValueError("\x1b[2J\n"))})
    assert len(log()) == 3
    assert all(record.getMessage().isprintable() for record in log())


def test_jobs_lost_with_their_worker_are_logged(
    queue: Queue, path: Path, log: Callable[[], list[Record]]
) -> None:
    add_lines(path, line("a", status="processing", attempts=3))
    assert queue.process_jobs({}) == NONE | {"recovered": 1, "failed": 1}
    (record,) = log()
    assert (record.job_id, record.status, record.levelname) == ("a", "failed", "ERROR")
    assert "worker died in attempt 3" in record.getMessage()


@pytest.mark.parametrize("first", ["", "import logging; "], ids=["unused", "imported"])
def test_a_pass_prints_nothing_unless_the_program_configures_logging(
    tmp_path: Path, first: str
) -> None:
    code = first + (
        "from dbbasic_queue import *\n"
        "enqueue_many('greet', [0, 1]); enqueue('nobody', {}); enqueue('odd', {})\n"
        "handlers = {'greet': lambda n: 1 / n, 'odd': lambda _: object()}\n"
        "open('data/queue.tsv', 'a').write('no job\\n')\n"
        "assert sum(process_jobs(handlers, max_attempts=1).values()) == 4\n"
    )
    done = python(code, cwd=tmp_path, env={"DBBASIC_QUEUE_FILE": ""})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_pass_without_logging_records_its_outcomes(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "dbbasic_queue")
    assert outcome(queue, raising(ValueError("no")), 1)["status"] == "failed"
    assert caplog.records == []


class Raises(logging.Filter):
    """Like a filter that adds a web request's id and is used outside of one."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("no request")


@pytest.mark.parametrize("workers", [1, 2])
def test_logging_that_raises_ends_no_pass_and_costs_no_attempt(
    queue: Queue,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    async def work(_: Any) -> None:
        pass

    monkeypatch.setattr(log_lines, "_complained", False)
    add_lines(path, line("lost", status="processing", attempts=3), "this is not a job\n")
    queue.enqueue_many("work", range(3))
    queue.enqueue("unknown", {})
    log = logging.getLogger("dbbasic_queue")
    raises = Raises()
    log.addFilter(raises)
    try:
        counts = queue.process_jobs({"work": work}, workers=workers)
    finally:
        log.removeFilter(raises)
    assert counts == NONE | {"completed": 3, "retried": 1, "failed": 1, "recovered": 1}
    assert {found["attempts"] for found in queue.jobs("completed")} == {1}
    (said,) = capsys.readouterr().err.splitlines()
    assert said == "dbbasic_queue: the program's logging raised RuntimeError; a log record was lost"


def test_every_log_call_goes_through_the_function_that_catches_logging_errors() -> None:
    source = inspect.getsource(log_lines)
    assert re.findall(r"\blog\.(?:log|error|warning|info|exception)\(", source) == ["log.log("]


def test_a_pass_does_not_log_while_another_thread_imports_logging(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "logging", types.ModuleType("logging")
    )  # half imported: still empty
    queue.enqueue("greet", {})
    assert queue.process_jobs({"greet": lambda _: None})["completed"] == 1


# --- handlers that cannot work


@pytest.mark.parametrize(
    ("handlers", "attempts", "reason"),
    [
        ([len], 3, "invalid handlers of type list: must map"),
        (None, 3, "invalid handlers of type NoneType: must map"),
        (len, 3, "must map job types to callables (give a dict such as"),
        ({"greet": "len"}, 3, "invalid handler for 'greet': str can't be called"),
        ({"greet": 0}, 3, "invalid handler for 'greet': int can't be called"),
        ({"greet": len}, 0, "invalid max_attempts 0: must be an int of 1 or more"),
        ({"greet": len}, -1, "invalid max_attempts -1: must be"),
        ({"greet": len}, 2.5, "invalid max_attempts 2.5: must be"),
        ({"greet": len}, True, "invalid max_attempts True: must be"),
        ({"greet": len}, "3", "invalid max_attempts '3': must be"),
        ({"greet": len}, None, "invalid max_attempts None: must be"),
    ],
)
def test_invalid_handlers_and_limits_are_refused_before_anything_runs(
    queue: Queue, path: Path, handlers: Any, attempts: Any, reason: str
) -> None:
    queue.enqueue("greet", {})
    before = path.read_bytes()
    with pytest.raises(InvalidHandlers) as refusal:
        queue.process_jobs(handlers, max_attempts=attempts)
    assert reason in str(refusal.value)
    assert isinstance(refusal.value, TypeError)
    assert path.read_bytes() == before


def test_handlers_may_be_any_mapping_and_any_callable(queue: Queue) -> None:
    class Greeter:
        def __call__(self, name: str) -> str:
            return f"Hello {name}"

    job_id = queue.enqueue("greet", "Ada")
    queue.process_jobs(UserDict({"greet": Greeter()}))
    assert job(queue, job_id)["result"] == "Hello Ada"


# --- passes that overlap


def test_a_pass_raises_at_once_if_all_slots_are_held(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    held = []
    for number in range(1, 65):
        file = sibling(path, f"pass.{number}").open("w+")
        fcntl.flock(file, fcntl.LOCK_EX)
        held.append(file)
    began = time.monotonic()
    with pytest.raises(QueueBusy, match=r"all 64 passes .* are running: nothing was done"):
        queue.process_jobs({"greet": print})
    assert time.monotonic() - began < 5
    assert isinstance(QueueBusy(), OSError)
    assert job(queue, job_id)["attempts"] == 0
    queue.enqueue("greet", {})  # the lock is free
    held[40].close()
    assert queue.process_jobs({"greet": lambda _: None}) == NONE | {"completed": 2}
    for file in held:
        file.close()


def test_a_pass_inside_a_handler_runs_the_other_jobs_but_not_the_running_one(
    queue: Queue, path: Path
) -> None:
    ran: Counter[int] = Counter()

    def handler(n: int) -> None:
        ran[n] += 1
        if n % 5 == 0:
            with Queue(path, clock=Clock()) as other:
                inner.append(other.process_jobs({"greet": handler}))

    inner: list[dict[str, int]] = []
    queue.enqueue_many("greet", range(40))
    outer = queue.process_jobs({"greet": handler})
    assert ran == dict.fromkeys(range(40), 1)
    assert outer["completed"] + sum(counts["completed"] for counts in inner) == 40
    assert {counts["recovered"] for counts in inner} == {0}
    assert {job["attempts"] for job in queue.jobs("completed")} == {1}


def test_a_pass_inside_a_handler_can_use_the_same_queue_object(queue: Queue) -> None:
    ran: Counter[int] = Counter()

    def handler(n: int) -> None:
        ran[n] += 1
        queue.process_jobs({"greet": handler})

    queue.enqueue_many("greet", range(12))
    queue.process_jobs({"greet": handler})
    assert ran == dict.fromkeys(range(12), 1)


def wait_for_its_batch_to_be_returned(path: Path) -> bool:
    """Wait until this handler's pass has returned its other jobs; False if it has none."""
    end = time.monotonic() + 20
    with Queue(path) as other:
        if other.counts()["processing"] == 1:
            return False
        while other.counts()["processing"] > 1:
            assert time.monotonic() < end
    return True


def test_a_slow_batch_is_shared_with_other_passes(path: Path) -> None:
    ran: list[tuple[str, int]] = []
    seconds: list[int] = []

    def first(n: int) -> None:
        ran.append(("first", n))
        if not seconds and wait_for_its_batch_to_be_returned(path):
            seconds.append(n)
            with Queue(path, fsync=False) as other:
                other.process_jobs({"greet": lambda n: ran.append(("second", n))})

    with Queue(path, fsync=False) as queue:
        queue.enqueue_many("greet", range(200))
        queue.process_jobs({"greet": first})
    (slow,) = seconds
    assert ran == [("first", n) for n in range(slow + 1)] + [
        ("second", n) for n in range(slow + 1, 200)
    ]
    assert {(columns[3], columns[6]) for columns in rows(path)} == {("completed", "1")}


def test_returned_jobs_are_run_by_the_same_pass_if_there_is_no_other(path: Path) -> None:
    ran: list[int] = []
    seconds: list[int] = []

    def handler(n: int) -> None:
        ran.append(n)
        if not seconds and wait_for_its_batch_to_be_returned(path):
            seconds.append(n)

    with Queue(path, fsync=False) as queue:
        queue.enqueue_many("greet", range(200))
        assert queue.process_jobs({"greet": handler}) == NONE | {"completed": 200}
    assert seconds
    assert sorted(ran) == list(range(200))
    assert {(columns[3], columns[6]) for columns in rows(path)} == {("completed", "1")}


def test_a_job_that_has_killed_a_pass_runs_after_jobs_that_were_returned(path: Path) -> None:
    ran: list[str] = []
    slow: list[str] = []

    def handler(name: str) -> None:
        ran.append(name)
        if not slow and wait_for_its_batch_to_be_returned(path):
            slow.append(name)

    died = {"attempts": 1, "error": "worker died in attempt 1"}
    add_lines(path, line("deadly", payload='"deadly"', run_at=1, **died))
    with Queue(path, fsync=False) as queue:
        queue.enqueue_many("greet", [f"{n}" for n in range(200)])
        assert queue.process_jobs({"greet": handler}) == NONE | {"completed": 201}
    assert slow
    assert ran.index("deadly") == 200


def test_passes_in_many_threads_run_each_job_once(queue: Queue, path: Path) -> None:
    ran: list[int] = []
    queue.enqueue_many("greet", range(400))

    def run() -> None:
        with Queue(path, clock=Clock()) as own:
            for shared in (queue, own):
                shared.process_jobs({"greet": ran.append})

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread, "the passes of a thread", 4 * DEADLINE)
    assert sorted(ran) == list(range(400))
    assert {(columns[3], columns[6]) for columns in rows(path)} == {("completed", "1")}


@pytest.mark.parametrize("is_run_again", [True, False])
def test_the_outcome_of_an_outdated_attempt_is_not_recorded(
    queue: Queue, path: Path, log: Callable[[], list[Record]], is_run_again: bool
) -> None:
    """Neither after the job has been run again, nor while it waits for that."""

    def outrun(_: Any) -> str:
        if not inner:
            inner.append({})
            sibling(
                path, "pass.1"
            ).unlink()  # deleted by hand: the other pass assumes that this one is dead
            with Queue(path, clock=(later := Clock())) as other:
                inner[0] = other.process_jobs({"greet": lambda _: "current"})
                if is_run_again:
                    later.now += 120
                    inner.append(other.process_jobs({"greet": lambda _: "current"}))
        return "outdated"

    inner: list[dict[str, int]] = []
    job_id = queue.enqueue("greet", {})
    assert queue.process_jobs({"greet": outrun}) == NONE
    found = job(queue, job_id)
    if is_run_again:
        assert inner == [NONE | {"recovered": 1}, NONE | {"completed": 1}]
        assert (found["status"], found["attempts"]) == ("completed", 2)
        assert found["result"] == "current"
    else:
        assert inner == [NONE | {"recovered": 1}]
        assert (found["status"], found["attempts"]) == ("pending", 1)
        assert (found["run_at"], found["result"]) == (NOW + 120, None)
    assert "the outcome of attempt 1 came too late and was not recorded" in log()[-1].getMessage()


# --- passes that end early


def test_a_new_pass_overwrites_the_claims_of_the_slots_last_pass(queue: Queue, path: Path) -> None:
    queue.enqueue("look", {}, job_id="mine")
    stale = [f"old-{n}\t1\n" for n in range(5000)]
    sibling(path, "pass.1").write_text("pass\t1\t1\n" + "".join(stale))

    def look(_: Any) -> list[str]:
        return sibling(path, "pass.1").read_text().split()

    queue.process_jobs({"look": look})
    listed = job(queue, "mine")["result"]
    assert listed[:2] == ["pass", str(os.getpid())]
    assert listed[3:] == ["1", "look", "*", "mine", "1"]  # its types: it has one handler


def test_a_job_of_a_dead_pass_is_pending_at_once_and_runs_after_its_backoff(
    queue: Queue, path: Path, clock: Clock
) -> None:
    add_lines(path, line("a", status="processing", attempts=1), line("b"))
    assert queue.process_jobs({"greet": lambda _: 7}) == NONE | {"recovered": 1, "completed": 1}
    found = job(queue, "a")
    assert (found["status"], found["attempts"], found["run_at"]) == ("pending", 1, NOW + 120)
    assert found["error"] == "worker died in attempt 1"
    clock.now += 119
    assert queue.process_jobs({"greet": lambda _: 7}) == NONE
    clock.now += 1
    assert queue.process_jobs({"greet": lambda _: 7}) == NONE | {"completed": 1}
    assert (job(queue, "a")["attempts"], job(queue, "a")["error"]) == (2, None)


def test_jobs_that_a_dead_pass_has_not_started_keep_their_attempts(
    queue: Queue, path: Path, clock: Clock
) -> None:
    ids = queue.enqueue_many("greet", range(3))
    terms = Policies({}, 1)
    dead = Claims(store_of(queue).files, terms, clock())
    assert [claim.row.id for claim in dead.claim(8, clock())] == ids
    dead.abandon()
    with Queue(path, clock=clock) as other:
        assert other.process_jobs({"greet": lambda _: None}, max_attempts=1) == NONE | {
            "recovered": 3,
            "failed": 1,
            "completed": 2,
        }
    assert job(queue, ids[0])["error"] == "worker died in attempt 1"
    assert [job(queue, job_id)["attempts"] for job_id in ids] == [1, 1, 1]


def test_a_store_error_ends_the_pass_and_costs_unstarted_jobs_no_attempt(
    queue: Queue, path: Path, clock: Clock
) -> None:
    lock = sibling(path, "lock")
    ran: list[int] = []

    def handler(n: int) -> None:
        ran.append(n)
        if n == 4:
            lock.unlink()
            lock.mkdir()

    queue.enqueue_many("greet", range(20))
    with pytest.raises(OSError, match="not a file of the queue"):
        queue.process_jobs({"greet": handler}, max_attempts=2)
    lock.rmdir()
    queue.process_jobs({"greet": ran.append}, max_attempts=2)
    assert ran == list(range(20))
    clock.now += 120
    queue.process_jobs({"greet": ran.append}, max_attempts=2)
    assert ran == [*range(20), 4]
    assert [found["attempts"] for found in queue.jobs("completed")] == [1] * 4 + [2] + [1] * 15


def test_sigterm_lets_the_running_job_finish_and_returns_the_others(
    queue: Queue, path: Path
) -> None:
    def handler(n: int) -> str:
        if n == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return "done"

    queue.enqueue_many("greet", range(12))
    with pytest.raises(SystemExit) as end:
        queue.process_jobs({"greet": handler})
    assert end.value.code == 128 + signal.SIGTERM
    assert [columns[3] for columns in rows(path)] == ["completed"] * 3 + ["pending"] * 9
    assert {columns[6] for columns in rows(path)[3:]} == {"0"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)])
def test_ctrl_c_or_a_second_signal_returns_the_running_job(
    queue: Queue, path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def handler(n: int) -> str:
        for number in signals:
            if n == 2:
                os.kill(os.getpid(), number)
        return "done"

    try:
        ids = queue.enqueue_many("greet", range(12))
        with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
            queue.process_jobs({"greet": handler})
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(end.value, KeyboardInterrupt) is (signals == (signal.SIGINT,))
    assert [columns[3] for columns in rows(path)] == ["completed"] * 2 + ["pending"] * 10
    found = job(queue, ids[2])
    assert (found["attempts"], found["error"]) == (0, "interrupted: the pass was stopped")
    assert queue.process_jobs({"greet": len}) == NONE | {"retried": 10}


def test_a_second_ctrl_c_also_interrupts_the_jobs_cleanup(queue: Queue) -> None:
    def work(_: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            ran.append("cleaned up")

    ran: list[str] = []
    job_id = queue.enqueue("greet", {})
    with handling(signal.SIGINT, signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        queue.process_jobs({"greet": work})
    assert ran == []
    assert state(queue, job_id) == ("pending", 0)
    assert queue.process_jobs({"greet": len})["retried"] == 0


def test_the_programs_own_signal_handler_is_left_alone(queue: Queue) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        queue.enqueue_many("greet", range(3))
        kill = {"greet": lambda _: os.kill(os.getpid(), signal.SIGTERM)}
        assert queue.process_jobs(kill) == NONE | {"completed": 3}
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM] * 3


class Shutdown(Exception):
    """What some programs raise in their signal handlers."""


@contextlib.contextmanager
def handling(number: int, handler: Callable[[int, Any], Any]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def state(queue: Queue, job_id: str) -> tuple[str, int]:
    found = job(queue, job_id)
    return found["status"], found["attempts"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt(), Shutdown()])
def test_if_the_programs_signal_handler_raises_the_job_is_returned_and_the_pass_ends(
    queue: Queue, number: int, error: BaseException
) -> None:
    ids = queue.enqueue_many("greet", range(4))

    def work(n: int) -> None:
        if n == 1:
            os.kill(os.getpid(), number)

    def ends(*_: object) -> None:
        raise error

    with handling(number, ends), pytest.raises(type(error)) as caught:
        queue.process_jobs({"greet": work})
    assert caught.value is error
    assert [state(queue, i) for i in ids] == [("completed", 1)] + [("pending", 0)] * 3
    assert job(queue, ids[1])["error"] == "interrupted: the pass was stopped"


def test_the_programs_signal_handler_does_not_interrupt_the_pass_itself(
    queue: Queue,
) -> None:
    """If it raises while an outcome is logged, the exception is raised at the end of the pass."""

    class Kills(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            after.append("the handler has returned")

    after: list[str] = []
    ids = queue.enqueue_many("greet", range(3))
    kills = Kills()
    log = logging.getLogger("dbbasic_queue")
    log.addHandler(kills)
    try:
        with handling(signal.SIGTERM, lambda *_: sys.exit(7)), pytest.raises(SystemExit) as end:
            queue.process_jobs({"greet": lambda _: object()})
    finally:
        log.removeHandler(kills)
    assert end.value.code == 7
    assert len(after) == 1
    assert [state(queue, i) for i in ids] == [("completed", 1)] + [("pending", 0)] * 2


def test_coroutines_finish_if_the_programs_signal_handler_raises(queue: Queue) -> None:
    async def work(n: int) -> None:
        if n == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.001)

    ids = queue.enqueue_many("greet", range(4))
    with handling(signal.SIGTERM, lambda *_: sys.exit(7)), pytest.raises(SystemExit) as end:
        queue.process_jobs({"greet": work}, workers=2)
    assert end.value.code == 7
    assert [state(queue, i) for i in ids] == [("completed", 1)] * 2 + [("pending", 0)] * 2


def test_a_signal_handler_that_a_job_installs_stays(queue: Queue) -> None:
    def install(_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    queue.enqueue("greet", {})
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert queue.process_jobs({"greet": install})["completed"] == 1
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("where", ["the same thread", "another thread"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_pass_inside_a_job_ends_with_the_outer_pass(queue: Queue, where: str, times: int) -> None:
    """After one signal the inner job finishes; after two it is returned, in the main thread."""

    def inner(n: int) -> None:
        for sent in range(times if n == 1 else 0):
            os.kill(os.getpid(), signal.SIGTERM)
            if where == "another thread":  # the main thread receives it a little later
                assert signals._enclosing is not None
                around = signals._enclosing.get()
                assert around is not None
                wait_for(partial(received, around, sent + 1), "the signal")

    def received(around: signals.Interrupts, count: int) -> bool:
        return len(around.received) >= count

    def outer(_: Any) -> None:
        passes = {"inner": inner}
        if where == "the same thread":
            queue.process_jobs(passes, skip_unknown=True)
        else:
            asyncio.run(asyncio.to_thread(queue.process_jobs, passes, skip_unknown=True))

    outer_id = queue.enqueue("outer", {}, NOW - 1)
    ids = queue.enqueue_many("inner", range(6))
    late = queue.enqueue("outer", {})
    with pytest.raises(SystemExit) as end:
        queue.process_jobs({"outer": outer}, skip_unknown=True)
    assert end.value.code == 143
    assert state(queue, outer_id) == state(queue, late) == ("pending", 0)
    whole = 2 if times == 1 or where == "another thread" else 1
    assert [state(queue, i) for i in ids] == [("completed", 1)] * whole + [("pending", 0)] * (
        6 - whole
    )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_pass_that_a_job_starts_after_the_signal_ends_at_once(queue: Queue) -> None:
    def outer(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while queue.counts()["pending"]:
            queue.process_jobs({"inner": len}, skip_unknown=True)

    queue.enqueue("outer", {})
    queue.enqueue("inner", [])
    with pytest.raises(SystemExit):
        queue.process_jobs({"outer": outer}, skip_unknown=True)
    assert queue.counts()["pending"] == 2


def test_a_context_kept_after_its_pass_does_not_stop_a_later_one(queue: Queue) -> None:
    contexts = []

    def keep(_: Any) -> None:
        contexts.append(contextvars.copy_context())
        os.kill(os.getpid(), signal.SIGTERM)

    queue.enqueue("keep", {})
    with pytest.raises(SystemExit):
        queue.process_jobs({"keep": keep})
    queue.enqueue("greet", [])
    assert contexts[0].run(queue.process_jobs, {"greet": len})["completed"] == 1


def test_a_function_that_returns_a_coroutine_is_the_jobs_error_in_a_running_event_loop(
    queue: Queue,
) -> None:
    async def work() -> int:
        return 1

    hidden = queue.enqueue("hidden", {})
    ids = queue.enqueue_many("plain", range(3))

    async def view() -> dict[str, int]:
        return queue.process_jobs({"hidden": lambda _: work(), "plain": lambda _: None})

    assert asyncio.run(view()) == NONE | {"completed": 3, "retried": 1}
    assert "an event loop is already running in this thread" in job(queue, hidden)["error"]
    assert [state(queue, i) for i in ids] == [("completed", 1)] * 3
    assert queue.process_jobs({"hidden": lambda _: work()}) == NONE


def test_jobs_run_even_if_the_fold_fails(queue: Queue, path: Path) -> None:
    path.parent.mkdir()
    sibling(path, "fold").mkdir()
    with pytest.raises(StoreError):
        queue.enqueue("greet", {})
    sibling(path, "fold").rename(sibling(path, "away"))
    job_id = queue.enqueue("greet", {})
    sibling(path, "away").rename(sibling(path, "fold"))
    assert queue.process_jobs({"greet": lambda _: 7}) == NONE | {"completed": 1}
    assert job(queue, job_id)["result"] == 7
    assert row(path, job_id)["status"] == "pending"
    sibling(path, "fold").rename(sibling(path, "away"))
    queue.process_jobs({})
    assert json.loads(row(path, job_id)["result"]) == 7


# --- full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "128k") as disk:
        yield disk


def test_a_disk_that_is_full_when_the_handler_returns_has_space_for_the_outcome(
    disk: Path,
) -> None:
    path = disk / "data" / "queue.tsv"
    with Queue(path, clock=Clock()) as queue:
        job_id = queue.enqueue("greet", {})
        outcome = queue.process_jobs({"greet": lambda _: fill(disk)}, max_attempts=1)
        assert outcome == NONE | {"completed": 1}
        assert job(queue, job_id)["status"] == "completed"
        (disk / "filler").unlink()
        assert queue.process_jobs({"greet": pytest.fail}) == NONE
        assert row(path, job_id)["status"] == "completed"


def test_on_a_full_disk_no_handler_runs_and_nothing_is_lost(disk: Path) -> None:
    ran: list[int] = []
    path = disk / "data" / "queue.tsv"
    with Queue(path, clock=Clock()) as queue:
        ids = queue.enqueue_many("greet", range(5))
        queue.cancel_job(ids[4])
        fill(disk)
        before = path.read_bytes()
        for _ in range(4):
            with pytest.raises(StoreError, match="the disk is full: free some space"):
                queue.process_jobs({"greet": ran.append}, max_attempts=2)
        with pytest.raises(StoreError, match="nothing was added; the disk is full"):
            queue.enqueue_many("greet", ["x" * 5000])
        assert (ran, path.read_bytes()) == ([], before)
        (disk / "filler").unlink()
        assert queue.process_jobs({"greet": ran.append}, 2) == NONE | {"completed": 4}
        assert {columns[6] for columns in rows(path)} == {"0", "1"}


def test_a_result_too_large_for_a_full_disk_is_not_kept_and_its_job_is_not_repeated(
    disk: Path,
) -> None:
    ran: list[int] = []

    def handler(_: Any) -> str:
        ran.append(1)
        fill(disk)
        return "x" * 50_000

    with Queue(disk / "data" / "queue.tsv", clock=Clock()) as queue:
        job_id = queue.enqueue("greet", {})
        with contextlib.suppress(StoreError):
            queue.process_jobs({"greet": handler})
        (disk / "filler").unlink()
        queue.process_jobs({"greet": handler})
        found = job(queue, job_id)
        assert (found["status"], found["attempts"], len(ran)) == ("completed", 1, 1)
        assert "result not kept" in found["error"]


# --- system errors before a handler is called


def test_a_pass_that_cannot_start_its_ticker_keeps_no_other_jobs_while_one_runs(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    held = []

    def work(n: int) -> int:
        held.append(queue.counts()["processing"])
        return n

    ids = queue.enqueue_many("work", range(9))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert queue.process_jobs({"work": work}, 1)["completed"] == 9
    assert [job(queue, i)["result"] for i in ids] == list(range(9))
    assert held == [1] * 9
    (error,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "can't start new thread (too many processes and threads" in error


@pytest.mark.parametrize("workers", [1, 2])
def test_a_coroutine_without_an_event_loop_loses_no_attempt(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Alone in its pass, it is returned; a pass that would run several raises the error."""

    async def work(_: Any) -> None:
        raise AssertionError

    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    job_id = queue.enqueue("work", {})
    monkeypatch.setattr(asyncio, "new_event_loop", refuse)
    reason = "an event loop could not be started: Too many open files"
    if workers == 1:
        assert queue.process_jobs({"work": work}, 1)["delayed"] == 1
        assert reason in job(queue, job_id)["error"]
    else:
        with pytest.raises(StoreError, match=reason):
            queue.process_jobs({"work": work}, 1, workers=workers)
    found = job(queue, job_id)
    assert (found["status"], found["attempts"]) == ("pending", 0)


# --- a context for each job

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


@pytest.mark.parametrize("kind", ["plain", "coroutines", "together"])
def test_a_handlers_context_variables_do_not_reach_the_next_job(queue: Queue, kind: str) -> None:
    def plain(name: str) -> list[str]:
        found = [TENANT.get(), str(Decimal(1) / 7)]
        TENANT.set(name)
        getcontext().prec = 3
        return [*found, TENANT.get(), str(Decimal(1) / 7)]

    async def coroutine(name: str) -> list[str]:
        return plain(name)

    precision = getcontext().prec  # creates the context that the jobs' contexts copy
    names = ["ada", "bob", "eve"]
    ids = queue.enqueue_many("work", names)
    handler = plain if kind == "plain" else coroutine
    queue.process_jobs({"work": handler}, workers=2 if kind == "together" else 1)
    seventh = str(Decimal(1) / 7)
    for name, job_id in zip(names, ids, strict=True):
        assert job(queue, job_id)["result"] == ["nobody", seventh, name, "0.143"]
    assert (TENANT.get(), getcontext().prec) == ("nobody", precision)
