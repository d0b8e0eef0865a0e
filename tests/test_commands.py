"""Commands as they are declared: arguments, placeholders, the registry."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from helpers import job

from dbbasic_queue import (
    Backoff,
    Command,
    Fail,
    Handler,
    Handlers,
    InvalidHandlers,
    InvalidJob,
    Queue,
    QueueError,
)
from dbbasic_queue.commands import Program


def filled(command: list[str], payload: Any) -> list[str]:
    return [word.decode() for word in Program(command, "/").filled(payload)]


# --- placeholders


@pytest.mark.parametrize(
    ("argument", "becomes"),
    [
        ("{input}", "a.mov"),
        ("--crf={crf}", "--crf=23"),
        ("{input}.{crf}", "a.mov.23"),
        ("{scale}", "0.5"),
        ("{big}", "12345678901234567890"),
        ("{größe.x-y_z}", "4"),
        ("{{input}}", "{input}"),
        ("{{{input}}}", "{a.mov}"),
        ("}}{{", "}{"),
        ("{empty}", ""),
        ("{hostile}", "a b; rm -rf $HOME `id` 'q' \"\n*"),
        ("-{input}", "-a.mov"),
    ],
)
def test_a_placeholder_is_replaced_by_that_member_of_the_payload(
    argument: str, becomes: str
) -> None:
    payload = {
        "input": "a.mov",
        "crf": 23,
        "scale": 0.5,
        "big": 12345678901234567890,
        "größe.x-y_z": 4,
        "empty": "",
        "hostile": "a b; rm -rf $HOME `id` 'q' \"\n*",
        "unused": {"any": "value"},
    }
    assert filled(["convert", argument], payload) == ["convert", becomes]


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({}, "the payload has no member 'x', which the command needs"),
        ({"x": None}, "the payload's member 'x' is null: must be text or a number"),
        ({"x": True}, "the payload's member 'x' is true or false: must be text or a number"),
        ({"x": [1]}, "the payload's member 'x' is a list: must be text or a number"),
        ({"x": {"a": 1}}, "the payload's member 'x' is an object: must be text or a number"),
        ({"x": "a\0b"}, "the payload's member 'x' contains a NUL: no argument can"),
        (
            {"x": "\udc80"},
            "the payload's member 'x' contains half of a surrogate pair: no argument can",
        ),
        (
            ["x"],
            "the payload is of type list: must be a JSON object, whose members replace the "
            "command's placeholders",
        ),
    ],
)
def test_a_payload_that_does_not_fit_fails_the_job_for_good_and_the_error_names_the_member(
    queue: Queue, payload: Any, error: str
) -> None:
    with pytest.raises(Fail) as failure:
        filled(["cat", "a-{x}"], payload)
    assert str(failure.value) == error
    if "surrogate" not in error:
        job_id = queue.enqueue("show", payload)
        assert queue.process_jobs({"show": Command(["echo", "a-{x}"])})["failed"] == 1
        assert job(queue, job_id)["error"] == error


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (["rm", "{file}"], {"file": "-rf"}),
        (["rm", "{file}"], {"file": "-"}),
        (["rm", "{file}"], {"file": "--"}),
        (["rm", "{file}.txt"], {"file": "--force"}),
        (["rm", "{none}{file}"], {"none": "", "file": "-rf"}),
        (["kill", "{file}"], {"file": -9}),
        (["rm", "{file}", "--", "{other}"], {"file": "-rf", "other": "-x"}),
        (["rm", "-{dash}", "{file}"], {"dash": "-", "file": "-rf"}),
    ],
)
def test_an_argument_that_a_payload_makes_an_option_is_refused(
    command: list[str], payload: Any
) -> None:
    with pytest.raises(Fail, match="begins with a dash, so the program could take it as an option"):
        filled(command, payload)


def test_text_may_begin_with_a_dash_after_two_dashes_and_behind_other_text() -> None:
    payload = {"file": "-rf", "number": -5}
    assert filled(["rm", "-v", "--", "{file}", "{number}"], payload)[3:] == ["-rf", "-5"]
    assert filled(["rm", "--name={file}"], payload) == ["rm", "--name=-rf"]


# --- declarations


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("ffmpeg -y", "must be a list with the program and its arguments"),
        (b"ffmpeg", "must be a list with the program and its arguments"),
        (None, "must be a list with the program and its arguments"),
        ([], "must begin with a program"),
        (["", "x"], "must begin with a program"),
        (["head", 5], "5 isn't text"),
        (["cat", "a\0b"], "can't contain a NUL"),
        (["{program}", "x"], "a payload could choose what is run"),
        (["./{program}"], "a payload could choose what is run"),
        (["sh", "-c", "ls {x}"], "its code has a placeholder, so a payload could run any command"),
        (["/bin/bash", "-euc", "x={x}"], "its code has a placeholder"),
        (["python3.11", "-c", "print({x})"], "its code has a placeholder"),
        (["php", "-r", "echo {x};"], "its code has a placeholder"),
        (["sh", "-c", "--", "ls {x}"], "its code has a placeholder"),
        (["perl", "-e{x}"], "its code has a placeholder"),
        (["find", "-exec", "{}"], r"invalid placeholder \{\} .*write \{\{ and \}\} for braces"),
        (["awk", "{print $1}"], r"invalid placeholder \{print \$1\}"),
        (["awk", "{print"], r"invalid placeholder \{print in the argument '\{print'"),
        (["awk", "x}"], "it has a single brace"),
    ],
)
def test_a_command_that_can_never_run_is_refused_where_it_is_declared(
    command: Any, error: str
) -> None:
    with pytest.raises(InvalidHandlers, match=error):
        Command(command)


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"timeout": 0}, "timeout"),
        ({"concurrency": 0}, "concurrency"),
        ({"backoff": 5}, "backoff"),
    ],
)
def test_an_invalid_policy_of_a_command_is_refused(policy: Any, error: str) -> None:
    with pytest.raises(InvalidHandlers, match=f"invalid {error}"):
        Command(["true"], **policy)


def test_a_command_is_a_handler_with_a_process_of_its_own(tmp_path: Path) -> None:
    command = Command([tmp_path / "x", "{a}"], max_attempts=4, backoff=Backoff(1), concurrency=2)
    assert isinstance(command, Handler)
    assert command.timeout == Command(["true"], timeout=None).timeout == math.inf
    assert Command(["true"], timeout=5).timeout == 5
    assert (command.max_attempts, command.concurrency) == (4, 2)
    assert repr(Command(["cat", "{a}"], timeout=5)) == "<Command ['cat', '{a}'], timeout=5>"


def test_a_command_cannot_be_called_because_only_a_pass_gives_it_a_process() -> None:
    with pytest.raises(QueueError, match="runs only as the handler of a job"):
        Command(["true"])({})


def test_a_command_inside_another_handler_fails_instead_of_running_in_the_pass(
    queue: Queue,
) -> None:
    job_id = queue.enqueue("wrapped", {})
    queue.process_jobs({"wrapped": Handler(Command(["true"]))})
    assert "runs only as the handler of a job" in job(queue, job_id)["error"]


def test_the_arguments_of_a_script_can_be_members() -> None:
    for command in (
        ["sh", "my.sh", "-c", "{x}"],
        ["php", "my.php", "-r", "{x}"],
        ["ls", "-c", "{x}"],
    ):
        assert filled(command, {"x": "y"})[-1] == "y"


def test_a_shell_gets_members_as_arguments_of_its_code(queue: Queue) -> None:
    command = Command(["sh", "-c", 'printf %s "$1"', "sh", "{x}"])
    job_id = queue.enqueue("show", {"x": "$(id); `id`"})
    queue.process_jobs({"show": command})
    assert job(queue, job_id)["result"] == "$(id); `id`"


# --- the registry


@pytest.fixture
def jobs(queue: Queue) -> Handlers:
    return Handlers(queue=queue)


def test_a_registered_command_enqueues_jobs_of_its_type(jobs: Handlers, queue: Queue) -> None:
    greet = jobs.add("greet", Command(["echo", "hello {name}"], max_attempts=5))
    assert (greet.type, greet.max_attempts, jobs["greet"]) == ("greet", 5, greet)
    job_id = greet.enqueue({"name": "Ada"}, job_id="greet-1")
    assert queue.process_jobs(jobs)["completed"] == 1
    assert job(queue, job_id)["result"] == "hello Ada"


def test_a_payload_that_does_not_fit_the_placeholders_is_refused_at_enqueue(
    jobs: Handlers, queue: Queue
) -> None:
    greet = jobs.add("greet", Command(["echo", "{name}"]))
    for payload in (None, {}, {"name": "-n"}, [1]):
        with pytest.raises(InvalidJob, match="invalid payload: the payload"):
            greet.enqueue(payload)
    assert list(queue.jobs()) == []


def test_a_command_without_placeholders_takes_any_payload(jobs: Handlers) -> None:
    show = jobs.add("show", Command(["cat"]))
    for payload in (None, [1], "text"):
        assert show.enqueue(payload)


def test_registering_a_type_twice_is_refused_for_commands_too(jobs: Handlers) -> None:
    first = jobs.add("greet", Command(["echo"]))
    with pytest.raises(InvalidHandlers, match="registered twice"):
        jobs.add("greet", Command(["cat"]))
    with pytest.raises(InvalidHandlers, match="registered twice"):
        jobs.handler("greet")(lambda payload: None)
    jobs.handler("other")(lambda payload: None)
    with pytest.raises(InvalidHandlers, match="registered twice"):
        jobs.add("other", Command(["echo"]))
    assert jobs["greet"] is first
    assert jobs.add("greet", Command(["echo"], timeout=5)).timeout == 5  # a reloaded module


def test_only_a_command_with_a_valid_type_can_be_added(jobs: Handlers) -> None:
    with pytest.raises(InvalidHandlers, match="must be a Command"):
        jobs.add("greet", len)  # type: ignore[arg-type]
    with pytest.raises(InvalidHandlers, match="invalid job type 'a b'"):
        jobs.add("a b", Command(["echo"]))
    with pytest.raises(InvalidHandlers, match="a command has a policy of its own"):
        jobs.handler("greet")(Command(["echo"], timeout=5))
    assert len(jobs) == 0


def test_a_registry_with_commands_can_be_pickled(path: Path) -> None:
    with Queue(path) as queue:
        jobs = Handlers(queue=queue)
        jobs.add("greet", Command(["echo", "{name}"], cwd="/"))
        copy: Handlers = pickle.loads(pickle.dumps(jobs))
        assert copy["greet"].function == jobs["greet"].function
        job_id = queue.enqueue("greet", {"name": "Ada"})
        queue.process_jobs(copy)
        assert job(queue, job_id)["result"] == "Ada"


def test_commands_and_functions_share_a_registry_and_a_dict(queue: Queue, jobs: Handlers) -> None:
    jobs.add("command", Command(["echo", "1"]))
    jobs.handler("function")(lambda payload: 2)
    for handlers in (jobs, {**jobs}):
        ids = [queue.enqueue(kind, {}) for kind in ("command", "function")]
        assert queue.process_jobs(handlers)["completed"] == 2
        assert [job(queue, job_id)["result"] for job_id in ids] == [1, 2]


def test_the_working_directory_of_a_command_is_that_of_its_declaration(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("declared", "given", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "declared")
    handlers = {"here": Command(["pwd"]), "there": Command(["pwd"], cwd="../given")}
    monkeypatch.chdir(tmp_path / "other")
    for name, directory in (("here", "declared"), ("there", "given")):
        job_id = queue.enqueue(name, {})
        queue.process_jobs(handlers)
        assert job(queue, job_id)["result"] == str(tmp_path / directory)
    assert Path.cwd() == tmp_path / "other"
    assert "DBBASIC_QUEUE_JOB_ID" not in os.environ


@pytest.mark.parametrize("cwd", [5, b"/tmp"])
def test_a_working_directory_is_a_path(cwd: Any) -> None:
    with pytest.raises(InvalidHandlers, match=r"invalid cwd .*: must be the path of a directory"):
        Command(["cat"], cwd=cwd)
