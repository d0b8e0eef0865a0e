"""Tasks become jobs, passes run them, and results say how they ended."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.utils import timezone
from helpers import add_lines, line, rows
from odd import elsewhere, tasks

from dbbasic_queue import Backoff
from dbbasic_queue.django.framework import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_enqueued,
    task_finished,
    task_started,
)
from dbbasic_queue.django.handlers import TaskHandlers
from dbbasic_queue.errors import DuplicateJob, InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dbbasic_queue.django import TextFileBackend

    Configure = Callable[..., TextFileBackend]

NO_WAIT = {"*": {"backoff": Backoff(first=0)}}


def run(backend: TextFileBackend, max_attempts: int = 3, **how: Any) -> dict[str, int]:
    """Run all jobs, and return the counts of their outcomes."""
    return backend.queue.process_jobs(TaskHandlers(backend), max_attempts, **how)


def run_all(backend: TextFileBackend, max_attempts: int = 3) -> dict[str, int]:
    """Do the same, and wait for retries."""
    return backend.queue.run_until_complete(TaskHandlers(backend), max_attempts)


@pytest.mark.parametrize("name", ["task", "results"])
def test_the_examples_in_the_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"dbbasic_queue.django.{name}"))
    assert result.attempted and not result.failed


def test_a_task_is_run_by_a_pass_and_has_a_result(backend: TextFileBackend) -> None:
    result = tasks.add.enqueue(1, b=2)
    assert (result.status, result.attempts) == (TaskResultStatus.READY, 0)
    assert run(backend)["completed"] == 1
    result.refresh()
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 3)
    assert result.attempts == len(result.worker_ids) == 1
    assert result.enqueued_at <= result.started_at <= result.finished_at <= timezone.now()
    assert result.started_at == result.last_attempted_at
    assert tasks.add.get_result(result.id) == result


def test_a_job_of_the_default_queue_has_the_task_as_its_type(path: Path) -> None:
    result = tasks.add.enqueue(1, b=2)
    ((job_id, job_type, payload, *_),) = rows(path)
    assert (job_id, job_type) == (result.id, "odd.tasks.add")
    assert payload == '{"args": [1], "kwargs": {"b": 2}}'


def test_another_queue_is_a_prefix_of_the_type_that_can_be_paused(
    path: Path, backend: TextFileBackend
) -> None:
    mail = tasks.add.using(queue_name="mail").enqueue(1)
    other = tasks.add.enqueue(1)
    assert [row[1] for row in rows(path)] == ["mail:odd.tasks.add", "odd.tasks.add"]
    backend.queue.pause("mail:odd.tasks.add")
    assert run(backend)["completed"] == 1
    mail.refresh()
    other.refresh()
    assert (mail.status, other.return_value) == (TaskResultStatus.READY, 2)
    backend.queue.resume()
    run(backend)
    mail.refresh()
    assert mail.return_value == 2
    assert backend.get_result(mail.id).task.queue_name == "mail"


def test_a_deferred_task_isnt_run_before_its_time(backend: TextFileBackend) -> None:
    later = timezone.now().replace(microsecond=0) + timedelta(hours=1)
    result = tasks.add.using(run_after=later).enqueue(1)
    assert run(backend)["completed"] == 0
    assert backend.get_result(result.id).task.run_after == later
    backend.queue.run_now(result.id)
    assert run(backend)["completed"] == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_coroutines_and_functions_run_in_one_pass(backend: TextFileBackend, workers: int) -> None:
    results = [task.enqueue(n) for n in range(3) for task in (tasks.add, tasks.add_later)]
    assert run(backend, workers=workers)["completed"] == 6
    for result in results:
        result.refresh()
    assert [result.return_value for result in results] == [1, 1, 2, 2, 3, 3]


def test_coroutines_can_enqueue_and_read_results(backend: TextFileBackend) -> None:
    async def enqueue() -> Any:
        result = await tasks.add.aenqueue(1)
        await result.arefresh()
        assert result.status == TaskResultStatus.READY
        return result

    result = asyncio.run(enqueue())
    run(backend)
    assert asyncio.run(tasks.add.aget_result(result.id)).return_value == 2


def test_the_errors_of_all_attempts_are_in_the_result(configure: Configure) -> None:
    backend = configure(POLICIES=NO_WAIT)
    result = tasks.succeed_at.enqueue(3)
    assert run_all(backend)["retried"] == 2
    result.refresh()
    assert result.return_value == [3, result.id, 3]
    assert len(result.worker_ids) == 3
    assert [error.exception_class for error in result.errors] == [ConnectionError] * 2
    assert result.errors[1].traceback.startswith("Traceback (most recent call last):\n")
    assert result.errors[1].traceback.endswith("ConnectionError: attempt 2\n")
    assert "dbbasic_queue" not in result.errors[1].traceback
    assert result.started_at < result.last_attempted_at


def test_a_task_that_has_no_attempt_left_has_failed(backend: TextFileBackend) -> None:
    result = tasks.fail.enqueue("no such user")
    assert run(backend, max_attempts=1)["failed"] == 1
    result.refresh()
    assert (result.status, result.is_finished) == (TaskResultStatus.FAILED, True)
    assert result.errors[0].exception_class is ValueError
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value


def test_a_task_that_is_tried_again_isnt_finished(backend: TextFileBackend) -> None:
    result = tasks.fail.enqueue("try again")
    assert run(backend)["retried"] == 1
    result.refresh()
    assert (result.status, result.attempts) == (TaskResultStatus.READY, 1)
    assert result.finished_at is None
    assert result.last_attempted_at is not None


def test_a_task_can_fail_at_once_or_be_delayed(backend: TextFileBackend) -> None:
    refused, delayed = tasks.refuse.enqueue("never"), tasks.wait_a_day.enqueue()
    counts = run(backend)
    assert (counts["failed"], counts["delayed"]) == (1, 1)
    refused.refresh()
    delayed.refresh()
    assert refused.status == TaskResultStatus.FAILED
    assert (delayed.status, delayed.attempts) == (TaskResultStatus.READY, 0)


@pytest.mark.parametrize("task", [tasks.die, tasks.sleep], ids=["died", "took too long"])
def test_a_task_without_an_exception_has_an_error_nevertheless(
    configure: Configure, task: Any
) -> None:
    backend = configure(POLICIES={"*": {"timeout": 0.3}})
    result = task.enqueue(*([9] if task is tasks.sleep else []))
    assert run(backend, max_attempts=1)["failed"] == 1
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class.__name__ == "AttemptFailed"


def test_a_result_that_isnt_json_fails_the_task_which_doesnt_run_again(
    backend: TextFileBackend,
) -> None:
    result = tasks.return_a_set.enqueue()
    assert run(backend)["failed"] == 1
    result.refresh()
    assert "Unsupported type: <class 'set'>" in result.errors[0].traceback


@pytest.mark.parametrize("argument", [timezone.now(), {1}, object()])
def test_arguments_must_be_json(path: Path, argument: object) -> None:
    with pytest.raises(TypeError, match="Unsupported type"):
        tasks.add.enqueue(argument)
    with pytest.raises(InvalidJob, match="invalid arguments"):
        tasks.add.enqueue(math.nan)
    assert not path.exists()


@pytest.mark.parametrize(
    "payload", ["7", "[7]", '{"args": 7}', '{"kwargs": [7]}', '{"a": 1}', '{"args": [7], "x": 1}']
)
def test_a_payload_that_isnt_the_arguments_of_a_task_fails_at_once(
    path: Path, backend: TextFileBackend, payload: str
) -> None:
    add_lines(path, line("a", type="odd.tasks.add", payload=payload, created_at=1, run_at=1))
    assert run(backend)["failed"] == 1
    assert "invalid payload: must be the arguments of a task" in str(backend.queue.get_job("a"))


# -- which tasks there are --


@pytest.mark.parametrize(
    "job_type",
    [
        "odd.dangerous",
        "odd.dangerous.anything",
        "odd.tasks.not_a_task",
        "odd.tasks.Path",
        "odd.tasks.add.func",
        "mail:odd.tasks.not_a_task",
        "os.system",
        "shop.management.commands.enqueue_missing.Command",
    ],
)
def test_a_row_can_neither_import_a_module_nor_call_a_function_that_isnt_a_task(
    tmp_path: Path,
    path: Path,
    backend: TextFileBackend,
    monkeypatch: pytest.MonkeyPatch,
    job_type: str,
) -> None:
    monkeypatch.setenv("TRACE_OF_IMPORT", str(tmp_path / "trace"))
    payload = f'{{"args": ["{tmp_path}/trace"]}}'
    add_lines(path, line("a", type=job_type, payload=payload, created_at=1, run_at=1))
    assert run(backend, max_attempts=1)["failed"] == 1
    assert not (tmp_path / "trace").exists()
    assert f"No handler for {job_type}" in str(backend.queue.get_job("a"))
    with pytest.raises(TaskResultDoesNotExist):
        backend.get_result("a")


def test_a_task_that_no_pass_would_find_cant_be_enqueued(path: Path) -> None:
    with pytest.raises(InvalidTask, match=r"no pass would find the task odd\.elsewhere\.greet"):
        elsewhere.greet.enqueue("Ada")
    assert not path.exists()


def test_passes_find_the_tasks_in_modules_that_the_options_name(configure: Configure) -> None:
    backend = configure(MODULES=["odd.elsewhere"])
    result = elsewhere.greet.enqueue("Ada")
    run(backend)
    result.refresh()
    assert result.return_value == "Hello Ada"


def test_a_queue_that_the_backend_doesnt_have_has_no_tasks(configure: Configure) -> None:
    backend = configure(queues=["default"])
    backend.queue.enqueue("mail:odd.tasks.add", {"args": [1]})
    assert run(backend, max_attempts=1)["failed"] == 1


def test_there_is_no_result_of_an_unknown_job(backend: TextFileBackend) -> None:
    for result_id in ("nothing", "no valid id", ""):
        with pytest.raises(TaskResultDoesNotExist):
            backend.get_result(result_id)


@pytest.mark.parametrize("queue_name", ["with space", "tab\t", "q" * 100])
def test_a_queue_whose_name_no_type_can_have_is_invalid(
    configure: Configure, queue_name: str
) -> None:
    configure(queues=[])
    with pytest.raises(InvalidTask, match="invalid job type"):
        tasks.add.using(queue_name=queue_name)


def test_a_priority_of_one_job_is_refused() -> None:
    with pytest.raises(InvalidTask, match="priority"):
        tasks.add.using(priority=1)


# -- policies --


def test_policies_in_the_options_are_for_one_task_or_for_all(configure: Configure) -> None:
    policies = {"*": {"max_attempts": 7, "timeout": 9}, "odd.tasks.fail": {"max_attempts": 2}}
    handlers = TaskHandlers(configure(POLICIES=policies))
    fail, add = handlers["odd.tasks.fail"], handlers["odd.tasks.add"]
    assert (fail.max_attempts, fail.timeout) == (2, 9)
    assert (add.max_attempts, add.timeout) == (7, 9)
    assert handlers["odd.tasks.die"].backoff is None


def test_a_pass_keeps_to_the_policy_of_the_options(configure: Configure) -> None:
    backend = configure(POLICIES=NO_WAIT | {"odd.tasks.fail": {"max_attempts": 2}})
    result = tasks.fail.enqueue("twice")
    assert run_all(backend)["failed"] == 1
    assert backend.get_result(result.id).attempts == 2


@pytest.mark.skipif(
    (6, 0) <= django.VERSION < (6, 1), reason="@task of 6.0 takes no more arguments"
)
def test_a_task_can_declare_its_policy(configure: Configure) -> None:
    backend = configure(POLICIES={"*": {"max_attempts": 7, "concurrency": 2}})
    declared = tasks.task(max_attempts=5, backoff=Backoff(first=1), timeout=60)(tasks.add.func)
    from dbbasic_queue.django.task import policy_of

    policy = policy_of(declared, backend.settings.policies)
    assert policy.pop("backoff").first == 1
    assert policy == {"max_attempts": 5, "timeout": 60, "concurrency": 2}
    with pytest.raises(InvalidTask, match="invalid max_attempts 0"):
        tasks.task(max_attempts=0)(tasks.add.func)


# -- an id of one's own --


def test_a_job_with_an_id_of_its_own_is_there_once(path: Path, backend: TextFileBackend) -> None:
    first = tasks.add.enqueue_once("order-7", 1)
    second = asyncio.run(tasks.add.aenqueue_once("order-7", 1))
    assert first == second
    assert len(rows(path)) == 1
    run(backend)
    assert tasks.add.enqueue_once("order-7", 1).return_value == 2
    with pytest.raises(InvalidJob, match="invalid job_id"):
        tasks.add.enqueue_once("order 7", 1)
    backend.queue.enqueue("other", job_id="order-8", payload=None)
    with pytest.raises(DuplicateJob):
        tasks.add.enqueue_once("order-8", 1)


# -- signals --


@pytest.fixture
def signals() -> Iterator[list[tuple[Any, ...]]]:
    """What the three signals have sent: name, id, status, attempts, errors."""
    seen: list[tuple[Any, ...]] = []

    def receiver(name: str) -> Any:
        def receive(sender: Any, task_result: Any, **_: Any) -> None:
            assert sender.__name__ == "TextFileBackend"
            seen.append((name, task_result.status.lower(), task_result.attempts, task_result))

        return receive

    all_signals = {"enqueued": task_enqueued, "started": task_started, "finished": task_finished}
    receivers = {name: receiver(name) for name in all_signals}
    for name, signal in all_signals.items():
        signal.connect(receivers[name])
    yield seen
    for name, signal in all_signals.items():
        signal.disconnect(receivers[name])


def test_signals_are_sent_when_a_task_is_enqueued_started_and_finished(
    backend: TextFileBackend, signals: list[tuple[Any, ...]]
) -> None:
    tasks.add.enqueue(1)
    run(backend)
    assert [seen[:3] for seen in signals] == [
        ("enqueued", "ready", 0),
        ("started", "running", 1),
        ("finished", "successful", 1),
    ]
    assert signals[-1][3].return_value == 2
    assert signals[-1][3].finished_at >= signals[-1][3].started_at


def test_finished_is_sent_once_after_the_last_attempt_and_has_all_errors(
    configure: Configure, signals: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    backend = configure(POLICIES=NO_WAIT)
    tasks.fail.enqueue("no such user")
    run_all(backend, max_attempts=2)
    assert [seen[:3] for seen in signals[1:]] == [
        ("started", "running", 1),
        ("started", "running", 2),
        ("finished", "failed", 2),
    ]
    errors = signals[-1][3].errors
    assert [error.exception_class for error in errors] == [ValueError, ValueError]
    assert "in fail\n" in errors[-1].traceback
    logged = [record for record in caplog.records if record.name.startswith("django")]
    assert "no such user" in str(logged[-1].exc_info)


def test_finished_is_sent_for_a_task_in_a_process_of_its_own(
    configure: Configure, signals: list[tuple[Any, ...]]
) -> None:
    backend = configure(POLICIES={"*": {"timeout": 20}})
    tasks.add.enqueue(1)
    tasks.fail.enqueue("alas")
    run(backend, max_attempts=1)
    assert [seen[:3] for seen in signals[2:]] == [
        ("finished", "successful", 1),
        ("finished", "failed", 1),
    ]
    assert signals[-2][3].started_at is not None
    assert signals[-1][3].errors[0].exception_class is ValueError
