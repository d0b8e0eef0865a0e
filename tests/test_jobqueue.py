"""The calls of a queue: what they accept and refuse, and what is in the file when they return."""

from __future__ import annotations

import inspect
import json
import math
import os
import pydoc
import re
import threading
from collections import UserDict
from datetime import UTC, date, datetime, timedelta, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    EMPTY,
    HEADER,
    NOW,
    Clock,
    add_lines,
    at_once,
    job,
    line,
    python,
    row,
    rows,
    sibling,
)

import dbbasic_queue
from dbbasic_queue import (
    Backoff,
    Delay,
    DuplicateJob,
    Fail,
    Handler,
    Handlers,
    InvalidArgument,
    InvalidHandlers,
    InvalidJob,
    Job,
    JobNotFound,
    NotAQueue,
    Queue,
    QueueBusy,
    QueueDamaged,
    QueueError,
    StoreError,
    Worker,
    default_queue,
    open_queue,
    testing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# --- enqueue


def test_a_new_job_is_a_row_of_the_file(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("send_email", {"to": "ada@example.org", "n": 1})
    payload = '{"to": "ada@example.org", "n": 1}'
    assert path.read_text() == HEADER + (
        f"{job_id}\tsend_email\t{payload}\tpending\t{NOW}\t{NOW}\t0\t\t\n"
    )
    assert len(job_id) == 16
    assert int(job_id, 16) >= 0


def test_a_job_reads_back_with_python_values(queue: Queue) -> None:
    job_id = queue.enqueue("greet", ["é\t\n\u2028\ud800", 1.5, None], NOW + 60)
    assert queue.get_job(job_id) == {
        "id": job_id,
        "type": "greet",
        "payload": ["é\t\n\u2028\ud800", 1.5, None],
        "status": "pending",
        "created_at": NOW,
        "run_at": NOW + 60,
        "attempts": 0,
        "error": None,
        "result": None,
    }


def test_ids_differ(queue: Queue) -> None:
    ids = [queue.enqueue("greet", {}) for _ in range(20)] + queue.enqueue_many("greet", [1] * 200)
    assert len(set(ids)) == 220


def test_no_payload_is_an_empty_object(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", None)
    assert (job(queue, job_id)["payload"], row(path, job_id)["payload"]) == ({}, "{}")


@pytest.mark.parametrize("payload", [0, False, "", [], {}, 0.0, "null", 10**4000])
def test_any_json_value_is_a_payload(queue: Queue, payload: object) -> None:
    found = job(queue, queue.enqueue("greet", payload))["payload"]
    assert (found, type(found)) == (payload, type(payload))


@pytest.mark.parametrize(
    ("run_at", "seconds"),
    [
        (None, NOW),
        (0, NOW),
        (0.0, NOW),
        (1, 1),
        (NOW - 5, NOW - 5),
        (NOW + 0.001, NOW + 1),
        (NOW + 60.0, NOW + 60),
        (253_402_300_799, 253_402_300_799),
        (datetime.fromtimestamp(NOW + 60, UTC), NOW + 60),
        (datetime.fromtimestamp(NOW + 60, UTC).astimezone(timezone(timedelta(hours=-9))), NOW + 60),
        (datetime.fromtimestamp(NOW, UTC) + timedelta(microseconds=1), NOW + 1),
    ],
)
def test_run_at_is_unix_seconds_or_an_aware_datetime(
    queue: Queue, path: Path, run_at: Any, seconds: int
) -> None:
    one = queue.enqueue("greet", {}, run_at)
    (other,) = queue.enqueue_many("greet", [{}], run_at)
    assert job(queue, one)["run_at"] == job(queue, other)["run_at"] == seconds
    assert row(path, one)["run_at"] == str(seconds)


def test_a_job_without_run_at_is_due_immediately(path: Path) -> None:
    with Queue(path, clock=Clock(NOW + 0.75)) as queue:
        job_id = queue.enqueue("greet", {})
        assert job(queue, job_id)["run_at"] == NOW
        assert queue.process_jobs({"greet": lambda _: None})["completed"] == 1


def test_a_fractional_run_at_is_never_early(queue: Queue, clock: Clock) -> None:
    queue.enqueue("greet", {}, NOW + 0.5)
    clock.now = NOW + 0.99
    assert queue.process_jobs({"greet": lambda _: None})["completed"] == 0
    clock.now = NOW + 1
    assert queue.process_jobs({"greet": lambda _: None})["completed"] == 1


def circular() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = {"a": value}
    return value


AWARE = "must have a time zone (use datetime.now(timezone.utc) or .astimezone())"
SECONDS = "must be Unix seconds (int or float) or a datetime with a time zone"
BOUNDS = "must be between 0 and 253402300799"
NUMBER = "give None or a str instead of NaN or infinity"
LARGE = "store large data in a file, and pass the file's name"
DEEP = "nested more than 100 deep"
ID = "must be 1 to 64 characters from A-Z a-z 0-9 . _ -"
TYPE = "must be 1 to 100 characters from A-Z a-z 0-9 _ . : -"
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"run_at": math.nan}, "run_at nan", BOUNDS),
    ({"run_at": math.inf}, "run_at inf", BOUNDS),
    ({"run_at": -math.inf}, "run_at -inf", BOUNDS),
    ({"run_at": -1}, "run_at -1", BOUNDS),
    ({"run_at": -0.5}, "run_at -0.5", BOUNDS),
    ({"run_at": 1e12}, "run_at 1000000000000.0", BOUNDS),
    ({"run_at": 10**400}, "run_at 1000", BOUNDS),
    ({"run_at": 10**5000}, "run_at ", BOUNDS),
    ({"run_at": True}, "run_at True", SECONDS),
    ({"run_at": False}, "run_at False", SECONDS),
    ({"run_at": ""}, "run_at ''", SECONDS),
    ({"run_at": "1800000000"}, "run_at '1800000000'", SECONDS),
    ({"run_at": []}, "run_at []", SECONDS),
    ({"run_at": date(2027, 1, 15)}, "run_at datetime.date(2027, 1, 15)", SECONDS),
    ({"run_at": datetime(2027, 1, 15)}, "run_at datetime.datetime(2027, 1, 15, 0, 0)", AWARE),
    ({"run_at": datetime(1969, 1, 1, tzinfo=UTC)}, "run_at datetime.datetime(1969", BOUNDS),
    ({"payload": math.nan}, "invalid payload: Out of range", NUMBER),
    ({"payload": {"a": [math.inf]}}, "Out of range", NUMBER),
    ({"payload": b"bytes"}, "bytes is not JSON", "decode it, or use base64"),
    ({"payload": {1, 2}}, "set is not JSON", "make it a list"),
    ({"payload": [datetime(2027, 1, 15)]}, "datetime is not JSON", "use its isoformat()"),
    ({"payload": object()}, "object is not JSON", "give a dict, list, str, int, float, bool"),
    ({"payload": {1: 2}}, "a dict has a key of type int", "convert it with str()"),
    ({"payload": circular()}, "Circular reference", "it contains itself"),
    ({"payload": nested(101)}, "invalid payload", DEEP),
    ({"payload": nested(100_000)}, "invalid payload", DEEP),
    ({"payload": 10**5000}, "4300", "give the number as a str"),
    ({"payload": "x" * 1_048_575}, "takes 1048577 bytes, and at most 1048576 are allowed", LARGE),
    ({"payload": "é" * 600_000}, "it takes 1200002 bytes", LARGE),
    ({"job_type": ""}, "job type ''", TYPE),
    ({"job_type": "a b"}, "job type 'a b'", TYPE),
    ({"job_type": "a\tb"}, r"job type 'a\\tb'", TYPE),
    ({"job_type": "a\n"}, r"job type 'a\\n'", TYPE),
    ({"job_type": "x" * 101}, "job type 'xxx", TYPE),
    ({"job_type": None}, "job type None", TYPE),
    ({"job_id": ""}, "job_id ''", ID),
    ({"job_id": "a b"}, "job_id 'a b'", ID),
    ({"job_id": "a\n"}, r"job_id 'a\\n'", ID),
    ({"job_id": "x" * 65}, "job_id 'xxx", ID),
    ({"job_id": 7}, "job_id 7", ID),
    ({"job_id": "--failed"}, "job_id '--failed'", 'must not begin with "-"'),
    ({"job_id": "é"}, "job_id 'é'", ID),
]


@pytest.mark.parametrize(
    ("arguments", "what", "way_out"), REFUSED, ids=[f"{next(iter(a))}: {w}" for a, w, _ in REFUSED]
)
def test_an_error_names_the_value_the_rule_and_the_fix_and_changes_no_file(
    queue: Queue, path: Path, arguments: dict[str, Any], what: str, way_out: str
) -> None:
    queue.enqueue("greet", {})
    before = path.read_bytes()
    full: dict[str, Any] = {"job_type": "greet", "payload": {}, **arguments}
    with pytest.raises(InvalidJob) as refusal:
        queue.enqueue(**full)
    assert what in str(refusal.value)
    assert way_out in str(refusal.value)
    assert len(str(refusal.value)) < 400
    if "job_id" not in arguments:
        payload = full.pop("payload")
        with pytest.raises(InvalidJob):
            queue.enqueue_many(payloads=[{}, payload, {}], **full)
    assert path.read_bytes() == before


@pytest.mark.parametrize("payloads", [{"to": "ada"}, UserDict(to="ada"), "ada", b"ada"])
def test_enqueue_many_refuses_a_single_payload(queue: Queue, path: Path, payloads: Any) -> None:
    with pytest.raises(InvalidJob, match=r"invalid payloads of type .* one payload for each job"):
        queue.enqueue_many("greet", payloads)
    assert not path.exists()
    assert len(queue.enqueue_many("greet", ({"to": name} for name in ("ada", "bob")))) == 2


class Kind(str, Enum):  # noqa: UP042 - its str() is not its value
    MAIL = "mail"


class Key(str, Enum):  # noqa: UP042 - its str() is not its value
    DAILY = "daily"


def test_every_call_accepts_a_str_enum(queue: Queue, path: Path) -> None:
    assert queue.enqueue(Kind.MAIL, {}, job_id=Key.DAILY) == "daily"
    queue.enqueue_many(Kind.MAIL, [{}])
    assert [row[1] for row in rows(path)] == ["mail", "mail"]
    with pytest.raises(DuplicateJob):
        queue.enqueue("mail", {}, job_id=Key.DAILY)
    assert job(queue, Key.DAILY) == job(queue, "daily")
    assert len(list(queue.jobs(job_type=Kind.MAIL))) == 2
    assert queue.pause(Kind.MAIL) and not queue.pause("mail")
    assert queue.process_jobs({"mail": len})["completed"] == 0
    assert queue.resume(Kind.MAIL)
    assert queue.process_jobs({Kind.MAIL: len})["completed"] == 2
    assert [attempt["type"] for attempt in queue.history(Key.DAILY)] == ["mail"]
    assert queue.remove_type(Kind.MAIL) == 2


def test_an_invalid_first_job_does_not_create_the_directory(queue: Queue, path: Path) -> None:
    with pytest.raises(InvalidJob):
        queue.enqueue("greet", math.nan)
    assert not path.parent.exists()


def test_the_largest_and_the_deepest_payload_are_accepted(queue: Queue) -> None:
    largest = "x" * 1_048_574
    assert job(queue, queue.enqueue("greet", largest))["payload"] == largest
    assert job(queue, queue.enqueue("greet", nested(100)))["payload"] == nested(100)


def test_the_largest_payload_can_be_set(path: Path) -> None:
    with Queue(path, max_payload=10) as queue:
        queue.enqueue("greet", "12345678")
        with pytest.raises(InvalidJob, match="it takes 11 bytes, and at most 10 are allowed"):
            queue.enqueue("greet", "123456789")


def test_errors_derive_from_the_builtin_errors_that_callers_expect() -> None:
    assert issubclass(InvalidJob, (QueueError, ValueError))
    assert issubclass(DuplicateJob, InvalidJob)
    builtin: dict[type[QueueError], type[Exception]] = {
        InvalidJob: ValueError,
        InvalidArgument: ValueError,
        InvalidHandlers: TypeError,
        JobNotFound: LookupError,
        NotAQueue: OSError,
        QueueBusy: OSError,
        QueueDamaged: NotAQueue,
        StoreError: OSError,
    }
    for error, base in builtin.items():
        assert issubclass(error, QueueError)
        assert issubclass(error, base)


# --- ids chosen by the caller


def test_the_caller_can_choose_the_job_id(queue: Queue) -> None:
    assert queue.enqueue("report", {}, job_id="report-2026-11-21") == "report-2026-11-21"
    assert job(queue, "report-2026-11-21")["type"] == "report"


def test_an_existing_id_is_refused_whatever_the_status_of_its_job(queue: Queue, path: Path) -> None:
    for status, handler in (("completed", lambda _: None), ("failed", lambda _: 1 / 0)):
        queue.enqueue("greet", {}, job_id=status)
        queue.process_jobs({"greet": handler}, max_attempts=1)
    queue.enqueue("greet", {}, job_id="cancelled")
    queue.cancel_job("cancelled")
    queue.enqueue("greet", {}, job_id="pending")
    before = path.read_bytes()
    for job_id in ("pending", "cancelled", "completed", "failed"):
        assert job(queue, job_id)["status"] == job_id
        with pytest.raises(DuplicateJob, match=rf"'{job_id}' is already .*dbbasic-queue show"):
            queue.enqueue("greet", {}, job_id=job_id)
    assert path.read_bytes() == before


def test_two_queues_cannot_add_the_same_job_id(queue: Queue, path: Path) -> None:
    with Queue(path) as other:
        other.enqueue("greet", {}, job_id="once")
        with pytest.raises(DuplicateJob):
            queue.enqueue("greet", {}, job_id="once")
    assert len(rows(path)) == 1


def test_only_one_of_many_threads_gets_a_job_id(queue: Queue, path: Path) -> None:
    refused = []

    def ask() -> None:
        try:
            queue.enqueue("greet", {}, job_id="once")
        except DuplicateJob as e:
            refused.append(e)

    at_once(*[ask] * 8)
    assert len(refused) == 7
    assert len(rows(path)) == 1


# --- enqueue_many


def test_enqueue_many_keeps_the_order_of_the_payloads(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", (n for n in range(100)), NOW + 60)
    assert [columns[0] for columns in rows(path)] == ids
    assert [job(queue, job_id)["payload"] for job_id in ids] == list(range(100))
    assert {columns[5] for columns in rows(path)} == {str(NOW + 60)}


def test_enqueue_many_without_payloads_writes_nothing(queue: Queue, path: Path) -> None:
    assert queue.enqueue_many("greet", []) == []
    assert queue.enqueue_many("greet", iter(())) == []
    assert not path.exists()


def test_a_generator_that_fails_adds_no_job(queue: Queue, path: Path) -> None:
    def payloads() -> Iterator[int]:
        yield 1
        raise LookupError("the database is gone")

    queue.enqueue("greet", {})
    before = path.read_bytes()
    with pytest.raises(LookupError):
        queue.enqueue_many("greet", payloads())
    assert path.read_bytes() == before


def test_a_generator_of_payloads_can_use_the_queue(queue: Queue) -> None:
    def payloads() -> Iterator[str]:
        for n in range(3):
            yield queue.enqueue("other", n)

    ids = queue.enqueue_many("greet", payloads())
    assert [job(queue, job(queue, i)["payload"])["payload"] for i in ids] == [0, 1, 2]


def test_invalid_arguments_are_refused_even_without_payloads(queue: Queue) -> None:
    with pytest.raises(InvalidJob):
        queue.enqueue_many("a b", [])
    with pytest.raises(InvalidJob):
        queue.enqueue_many("greet", [], math.nan)


# --- get_job, cancel_job


@pytest.mark.parametrize(
    "job_id",
    ["", "nobody", "a\tgreet", "a\t", "\na", "x\na", "\ud800", "é", "id", "A", None, 7, b"a"],
)
def test_get_job_of_an_unknown_id_returns_none(queue: Queue, path: Path, job_id: Any) -> None:
    assert queue.get_job(job_id) is None
    assert queue.cancel_job(job_id) is False
    queue.enqueue("greet", {}, job_id="x")
    queue.enqueue("greet", {}, job_id="a")
    with Queue(path) as other:  # it hasn't read the file before its first look-up
        for _ in range(5):
            assert other.get_job(job_id) is None
        assert other.cancel_job(job_id) is False
        assert other.get_job(job_id) is None
    assert queue.counts()["pending"] == 2


def test_reading_a_missing_queue_writes_nothing(queue: Queue, path: Path) -> None:
    assert (queue.get_job("x"), list(queue.jobs()), queue.counts()) == (None, [], EMPTY)
    assert queue.cancel_job("x") is False
    assert queue.process_jobs({})["completed"] == 0
    assert not path.parent.exists()


@pytest.mark.parametrize("result", [0, False, [], "", {}, 0.0, "\t\n\u2028\x1b\ud800", [None]])
def test_a_falsy_result_is_kept(queue: Queue, path: Path, result: object) -> None:
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": lambda _: result})
    found = job(queue, job_id)
    assert (found["status"], found["error"]) == ("completed", None)
    assert (found["result"], type(found["result"])) == (result, type(result))
    assert json.loads(row(path, job_id)["result"]) == result


def test_the_result_none_is_an_empty_column(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": lambda _: None})
    assert (row(path, job_id)["result"], job(queue, job_id)["result"]) == ("", None)


def test_an_error_reads_back_unescaped(queue: Queue, path: Path) -> None:
    def handler(_: Any) -> None:
        raise ValueError("no\tsuch\nuser \x1b \\n")

    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": handler})
    assert job(queue, job_id)["error"] == "ValueError: no\tsuch\nuser \x1b \\n"
    assert row(path, job_id)["error"] == r"ValueError: no\tsuch\nuser \x1b \\n"


def test_a_pending_job_can_be_cancelled_once(queue: Queue, path: Path) -> None:
    job_id = queue.enqueue("greet", {})
    assert queue.cancel_job(job_id) is True
    assert queue.cancel_job(job_id) is False
    assert job(queue, job_id)["status"] == row(path, job_id)["status"] == "cancelled"
    assert job(queue, job_id)["error"] == "Cancelled by user"
    assert queue.process_jobs({"greet": lambda _: None})["completed"] == 0
    assert job(queue, job_id)["attempts"] == 0


def test_a_job_that_waits_for_its_retry_can_be_cancelled(queue: Queue, clock: Clock) -> None:
    job_id = queue.enqueue("greet", {})
    assert queue.process_jobs({})["retried"] == 1
    assert queue.cancel_job(job_id) is True
    clock.now += 10**6
    assert sum(queue.process_jobs({}).values()) == 0


@pytest.mark.parametrize("handler", [lambda _: None, lambda _: 1 / 0], ids=["completed", "failed"])
def test_a_finished_job_cannot_be_cancelled(queue: Queue, handler: Any) -> None:
    job_id = queue.enqueue("greet", {})
    queue.process_jobs({"greet": handler}, max_attempts=1)
    before = job(queue, job_id)
    assert queue.cancel_job(job_id) is False
    assert queue.get_job(job_id) == before


def test_a_cancel_is_in_the_file_immediately_even_if_the_file_has_grown(
    queue: Queue, path: Path
) -> None:
    queue.cancel_job(queue.enqueue("greet", {}))
    job_id, *_ = queue.enqueue_many("greet", ["x" * 1000] * 300)
    assert queue.cancel_job(job_id) is True
    assert row(path, job_id)["status"] == "cancelled"


# --- jobs, counts


def test_an_invalid_status_is_an_error_before_iteration(queue: Queue) -> None:
    with pytest.raises(ValueError, match="invalid status 'done': must be one of"):
        queue.jobs("done")  # type: ignore[arg-type]


def test_changes_during_an_iteration_do_not_affect_it(queue: Queue, path: Path) -> None:
    ids = queue.enqueue_many("greet", ["x" * 5000] * 500)  # more than is read at a time
    seen = []
    for found in queue.jobs():
        seen.append((found["id"], found["status"]))
        if len(seen) % 100 == 1:
            queue.enqueue("greet", {})
            assert queue.cancel_job(ids[-len(seen)])
            with Queue(path) as other:
                assert other.cancel_job(ids[-len(seen) - 1])
    assert seen == [(job_id, "pending") for job_id in ids]


def test_iterating_raises_if_the_file_is_cut_in_place(queue: Queue, path: Path) -> None:
    """1.0.0 writes the whole file again, and shorter for a moment."""
    queue.enqueue_many("work", ["x" * 1000] * 1000)
    jobs = queue.jobs()
    next(jobs)
    os.truncate(path, 2000)
    with pytest.raises(StoreError, match=r"edited in place.*try again"):
        list(jobs)


def test_iterating_goes_on_after_a_close(queue: Queue) -> None:
    queue.enqueue_many("greet", ["x" * 5000] * 500)
    iterator = queue.jobs()
    next(iterator)
    queue.close()
    assert sum(1 for _ in iterator) == 499


def test_counts_name_all_five_statuses_and_agree_with_the_file(queue: Queue, path: Path) -> None:
    assert queue.counts() == EMPTY
    ids = queue.enqueue_many("greet", range(5))
    queue.enqueue("other", {})
    queue.cancel_job(ids[0])
    queue.process_jobs({"greet": lambda n: None if n < 3 else 1 / 0, "other": None}, 1)  # type: ignore[dict-item]
    assert queue.counts() == EMPTY | {"cancelled": 1, "completed": 2, "failed": 3}
    statuses = [columns[3] for columns in rows(path)]
    assert queue.counts() == {name: statuses.count(name) for name in EMPTY}


# --- durations


HOUR = timedelta(hours=1)


@pytest.mark.parametrize("window", [HOUR, timedelta(seconds=0.5), 3600, 0.5])
def test_a_window_is_seconds_or_a_timedelta(queue: Queue, tmp_path: Path, window: Any) -> None:
    queue.enqueue("greet", {})
    queue.process_jobs({"greet": lambda _: None})
    by_seconds = window.total_seconds() if isinstance(window, timedelta) else window
    assert queue.metrics(window) == queue.metrics(by_seconds)
    queue.write_metrics(tmp_path / "a.prom", window)
    queue.write_metrics(tmp_path / "b.prom", window=by_seconds)
    assert (tmp_path / "a.prom").read_text() == (tmp_path / "b.prom").read_text()


@pytest.mark.parametrize("value", [0, -1, math.nan, True, "1h", None, -HOUR], ids=repr)
def test_an_invalid_window_is_an_error(queue: Queue, tmp_path: Path, value: Any) -> None:
    rule = "must be seconds or a timedelta, more than 0"
    with pytest.raises(InvalidArgument, match=f"invalid window .*: {rule}"):
        queue.metrics(value)
    with pytest.raises(InvalidArgument, match="invalid window"):
        queue.write_metrics(tmp_path / "a.prom", value)
    assert list(tmp_path.iterdir()) == []


# --- where the queue is


def test_the_directory_is_created_with_its_parents(tmp_path: Path) -> None:
    with Queue(tmp_path / "a" / "b" / "c" / "queue.tsv") as queue:
        queue.enqueue("greet", {})
    assert (tmp_path / "a" / "b" / "c" / "queue.tsv").exists()


def test_a_relative_path_is_that_of_the_directory_when_the_queue_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Queue("data/queue.tsv") as queue:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        queue.enqueue("greet", {})
    assert (tmp_path / "data" / "queue.tsv").exists()
    assert not (tmp_path / "other" / "data").exists()


def test_a_closed_queue_can_be_used_again(queue: Queue) -> None:
    job_id = queue.enqueue("greet", {})
    queue.close()
    queue.close()
    assert job(queue, job_id)["status"] == "pending"
    queue.close()
    assert queue.process_jobs({"greet": lambda _: 7})["completed"] == 1
    queue.close()
    other = queue.enqueue("greet", {})
    queue.close()
    assert queue.cancel_job(other)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc/self/fd here")
def test_a_closed_queue_holds_no_file(path: Path) -> None:
    def held() -> list[str]:
        names = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                names.append(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:  # the directory that is being listed
                continue
        return [name for name in names if name.startswith(str(path))]

    with Queue(path) as queue:
        job_id = queue.enqueue("greet", {})
        queue.enqueue("greet", {}, NOW * 2)
        queue.process_jobs({"greet": lambda _: None})
        queue.cancel_job(job_id)
        queue.get_job(job_id)
        assert held()
    assert held() == []


def test_a_queue_can_be_closed_while_other_threads_use_it(queue: Queue, path: Path) -> None:
    errors = []

    def enqueue() -> None:
        try:
            for n in range(50):
                queue.get_job(queue.enqueue("greet", n))
                queue.cancel_job(queue.enqueue("greet", n))
        except BaseException as e:  # noqa: BLE001 - checked by the test
            errors.append(e)

    threads = [threading.Thread(target=enqueue) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        queue.close()
    assert errors == []
    assert queue.counts() == EMPTY | {"pending": 150, "cancelled": 150}
    assert len(rows(path)) == 300


# --- the default queue


def test_the_module_functions_use_the_default_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", "data/queue.tsv")
    job_id = dbbasic_queue.enqueue("greet", {"name": "Ada"})
    assert dbbasic_queue.enqueue("greet", {}, 1, job_id="own") == "own"
    ids = dbbasic_queue.enqueue_many("greet", [1, 2], NOW * 2)
    assert dbbasic_queue.cancel_job(ids[0])
    found = dbbasic_queue.get_job(job_id)
    assert found is not None
    assert found["payload"] == {"name": "Ada"}
    outcome = dbbasic_queue.process_jobs({"greet": lambda _: 1}, max_attempts=3)
    assert outcome == {
        "completed": 2,
        "failed": 0,
        "retried": 0,
        "delayed": 0,
        "stopped": 0,
        "recovered": 0,
    }
    assert [job["id"] for job in default_queue().jobs("completed", "greet")] == [job_id, "own"]
    assert default_queue().counts() == EMPTY | {"completed": 2, "pending": 1, "cancelled": 1}
    assert len(rows(tmp_path / "data" / "queue.tsv")) == 4
    assert dbbasic_queue.queue.MAX_ATTEMPTS == 3


def test_queue_file_is_read_at_each_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", str(tmp_path / "one.tsv"))
    job_id = dbbasic_queue.enqueue("greet", {})
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", tmp_path / "two.tsv")
    assert dbbasic_queue.get_job(job_id) is None
    other = dbbasic_queue.enqueue("greet", {})
    assert dbbasic_queue.get_job(other) is not None
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", str(tmp_path / "one.tsv"))
    assert dbbasic_queue.get_job(job_id) is not None
    assert (len(rows(tmp_path / "one.tsv")), len(rows(tmp_path / "two.tsv"))) == (1, 1)


def test_the_default_queue_follows_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", "data/queue.tsv")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        dbbasic_queue.enqueue("greet", {"directory": name})
    for name in ("one", "two"):
        monkeypatch.chdir(tmp_path / name)
        assert [job["payload"]["directory"] for job in default_queue().jobs()] == [name]


@pytest.mark.parametrize(
    ("value", "file"),
    [
        ("mine/jobs.tsv", "mine/jobs.tsv"),
        ("", "data/queue.tsv"),
        ("file:mine/a%20b.tsv", "mine/a b.tsv"),
        ("~/jobs.tsv", "home/jobs.tsv"),
        ("file:~/jobs.tsv", "home/jobs.tsv"),
    ],
)
def test_the_environment_can_name_the_default_queue(tmp_path: Path, value: str, file: str) -> None:
    code = "import dbbasic_queue as q; print(q.queue.QUEUE_FILE, q.enqueue('greet', {}), sep='|')"
    home = str(tmp_path / "home")
    done = python(code, cwd=tmp_path, env={"DBBASIC_QUEUE_FILE": value, "HOME": home})
    assert done.stderr == ""
    name, job_id = done.stdout.strip().split("|")
    assert (tmp_path / name) == tmp_path / file
    assert [columns[0] for columns in rows(tmp_path / file)] == [job_id]


def test_the_environment_is_read_at_each_call_and_not_at_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.tsv", "two.tsv"):
        monkeypatch.setenv("DBBASIC_QUEUE_FILE", name)
        dbbasic_queue.enqueue("greet", {})
        assert len(rows(tmp_path / name)) == 1
        assert str(tmp_path / name) == dbbasic_queue.queue.QUEUE_FILE


def test_queue_file_set_by_the_program_overrides_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBBASIC_QUEUE_FILE", str(tmp_path / "environment.tsv"))
    with monkeypatch.context() as patch:
        patch.setattr("dbbasic_queue.queue.QUEUE_FILE", str(tmp_path / "program.tsv"))
        assert dbbasic_queue.queue.default_queue().path == str(tmp_path / "program.tsv")
    assert dbbasic_queue.queue.default_queue().path == str(tmp_path / "environment.tsv")
    monkeypatch.setenv("DBBASIC_QUEUE_FILE", str(tmp_path / "other.tsv"))
    assert dbbasic_queue.queue.default_queue().path == str(tmp_path / "other.tsv")


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        ("memory:", "unknown URL scheme 'memory': must be a path or file:PATH"),
        ("memory:x", "write ./memory:..."),
        ("redis://user:secret@host/0", "unknown URL scheme 'redis': must be a path or file:PATH"),
        ("file://host/q.tsv", "must be a file on this machine, not on 'host'"),
        ("file:", "must name a file"),
    ],
)
def test_dbbasic_queue_file_can_only_name_a_file(tmp_path: Path, value: str, way_out: str) -> None:
    code = (
        "import dbbasic_queue as q\ntry: q.enqueue('greet', {})\nexcept q.NotAQueue as e: print(e)"
    )
    done = python(code, cwd=tmp_path, env={"DBBASIC_QUEUE_FILE": value})
    assert done.stderr == ""
    assert done.stdout.startswith("invalid DBBASIC_QUEUE_FILE")
    assert way_out in done.stdout
    assert "secret" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("jobs.tsv", "jobs.tsv"),
        ("file:a%20b.tsv", "a b.tsv"),
        ("~/jobs.tsv", "home/jobs.tsv"),
        ("file:///{tmp}/jobs.tsv", "jobs.tsv"),
    ],
)
def test_dbbasic_queue_url_can_name_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DBBASIC_QUEUE_URL", url.format(tmp=str(tmp_path)[1:]))
    job_id = dbbasic_queue.enqueue("greet", {})
    assert str(tmp_path / file) == default_queue().path == dbbasic_queue.queue.QUEUE_FILE
    assert [columns[0] for columns in rows(tmp_path / file)] == [job_id]


def test_dbbasic_queue_url_can_name_a_queue_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DBBASIC_QUEUE_URL", "memory:")
    job_id = dbbasic_queue.enqueue("greet", "ada")
    assert dbbasic_queue.process_jobs({"greet": str.upper})["completed"] == 1
    found = dbbasic_queue.get_job(job_id)
    assert found is not None and found["result"] == "ADA"
    assert default_queue().path == dbbasic_queue.queue.QUEUE_FILE == "memory:"
    monkeypatch.setenv("DBBASIC_QUEUE_URL", "memory:test_queue")
    assert dbbasic_queue.get_job(job_id) is None
    assert open_queue("memory:test_queue").store is default_queue().store
    assert list(tmp_path.iterdir()) == []


def test_dbbasic_queue_url_of_another_kind_is_an_error_that_shows_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DBBASIC_QUEUE_URL", "amqp://user:secret@host/0")
    with pytest.raises(NotAQueue, match="unknown URL scheme 'amqp'") as refusal:
        dbbasic_queue.enqueue("greet", {})
    assert "secret" not in str(refusal.value)


def test_both_variables_set_is_an_error_unless_the_program_has_set_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DBBASIC_QUEUE_FILE", "jobs.tsv")
    monkeypatch.setenv("DBBASIC_QUEUE_URL", "redis://user:secret@host/0")
    for call in (default_queue, lambda: dbbasic_queue.enqueue("greet", {})):
        with pytest.raises(NotAQueue, match="both DBBASIC_QUEUE_URL and DBBASIC_QUEUE_FILE") as e:
            call()
        assert "unset one of them" in str(e.value)
        assert "secret" not in str(e.value)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setitem(vars(dbbasic_queue.queue), "QUEUE_FILE", "own.tsv")
        assert default_queue().path == str(tmp_path / "own.tsv")
    monkeypatch.setenv("DBBASIC_QUEUE_URL", "")  # an empty variable counts as unset
    assert default_queue().path == str(tmp_path / "jobs.tsv")


# --- the public names


SHORTCUTS = ("enqueue", "enqueue_many", "aenqueue", "get_job", "cancel_job", "process_jobs")


def test_the_package_has_only_these_functions() -> None:
    functions = {name for name, value in vars(dbbasic_queue).items() if inspect.isfunction(value)}
    assert {name for name in functions if not name.startswith("_")} == {
        *SHORTCUTS,
        "default_queue",
        "open_queue",
    }
    assert all(hasattr(dbbasic_queue, name) for name in dbbasic_queue.__all__)


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_module_function_has_the_signature_of_the_queues_method(name: str) -> None:
    function, method = getattr(dbbasic_queue, name), getattr(Queue, name)
    _self, *parameters = inspect.signature(method).parameters.values()
    signature = inspect.signature(function)
    assert list(signature.parameters.values()) == parameters
    assert signature.return_annotation == inspect.signature(method).return_annotation
    assert inspect.iscoroutinefunction(function) is inspect.iscoroutinefunction(method)


def test_help_shows_the_signature_and_what_a_call_does() -> None:
    text = pydoc.plain(pydoc.render_doc(dbbasic_queue.enqueue))
    assert re.search(r"enqueue\(\s*job_type: ", text)  # Python 3.13 breaks the line
    assert "run_at: " in text and "job_id: " in text
    assert "Add one job to the default queue" in text and "Raises InvalidJob" in text
    assert inspect.iscoroutinefunction(dbbasic_queue.aenqueue)


@pytest.mark.parametrize("name", dbbasic_queue.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(dbbasic_queue, name))


def test_public_objects_have_a_readable_repr(tmp_path: Path) -> None:
    def send(_: Any) -> None: ...

    queue = Queue(tmp_path / "queue.tsv")
    jobs = Handlers()
    assert repr(jobs) == "<Handlers (none)>"
    jobs.handler("mail:send", max_attempts=5)(send)
    jobs.handler(len)
    handler = Handler(send, backoff=Backoff(first=5), timeout=30, concurrency=2)
    name = send.__qualname__
    assert repr(queue) == f"<Queue {tmp_path}/queue.tsv>"
    assert repr(open_queue("memory:x")) == "<Queue memory:x>"
    assert repr(jobs) == "<Handlers mail:send, len>"
    assert repr(jobs["mail:send"]) == f"<Registered {name}, max_attempts=5>"
    backoff = "Backoff(first=5, factor=2, jitter=0)"
    assert repr(handler) == f"<Handler {name}, backoff={backoff}, timeout=30, concurrency=2>"
    capped = Backoff(first=timedelta(seconds=30), factor=3, cap=timedelta(hours=1), jitter=0.1)
    assert repr(capped) == "Backoff(first=30.0, factor=3, cap=3600.0, jitter=0.1)"
    assert repr(Delay(60)) == "Delay(60)"
    assert repr(Delay(timedelta(hours=1), "on hold")) == (
        "Delay(datetime.timedelta(seconds=3600), 'on hold')"
    )
    assert repr(Fail("no such user")) == "Fail('no such user')"
    worker = Worker(queue, jobs)
    assert repr(worker) == f"<Worker of {queue.path}: idle>"
    assert repr(testing.Clock(NOW)) == f"Clock({NOW})"
    seen: list[str] = []

    def look(_: Any, job: Job) -> None:
        seen.append(repr(job))

    job_id = queue.enqueue("look", {})
    queue.process_jobs({"look": look})
    assert seen == [f"<Job {job_id}: look, attempt 1>"]


# --- files that aren't queues


@pytest.mark.parametrize(
    "content", [b"hello\nworld\n", b"hello", b"\0" * 100, b"id\ttype\n", b"\n", HEADER.encode()[1:]]
)
def test_every_call_refuses_a_file_that_is_not_a_queue(
    queue: Queue, path: Path, content: bytes
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for _ in range(2):
        for call in (
            lambda: queue.enqueue("greet", {}),
            lambda: queue.enqueue("greet", {}, job_id="own"),
            lambda: queue.enqueue_many("greet", [1]),
            lambda: queue.get_job("x"),
            lambda: queue.cancel_job("x"),
            lambda: list(queue.jobs()),
            lambda: queue.counts(),
            lambda: queue.process_jobs({}),
        ):
            with pytest.raises(NotAQueue, match=r"not the header|header is lost") as refusal:
                call()
            assert refusal.value.filename == str(path)
    assert path.read_bytes() == content


def test_a_row_with_an_invalid_payload_is_not_a_job(queue: Queue, path: Path) -> None:
    add_lines(path, line("a", payload="{"), line("b", payload=""), line("c", result="{"))
    assert queue.get_job("a") is None
    assert [job["id"] for job in queue.jobs()] == ["b", "c"]
    assert job(queue, "b")["payload"] == {}
    assert job(queue, "c")["result"] is None
    assert not sibling(path, "lock").exists()
