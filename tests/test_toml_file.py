"""`Handlers.from_toml`: what a file can declare, what is refused, and its protection."""

from __future__ import annotations

import math
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
from helpers import NOW, Clock, job

from dbbasic_queue import Handlers, InvalidHandlers, Queue


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a program, `hello.sh`, and a file that isn't one, `plain`."""
    directory = tmp_path / "app"
    directory.mkdir(0o755)
    (directory / "hello.sh").write_text('#!/bin/sh\necho "hello $1"\n')
    (directory / "hello.sh").chmod(0o755)
    (directory / "plain").write_text("text\n")
    (directory / "plain").chmod(0o644)
    return directory


def declare(place: Path, text: str) -> Path:
    file = place / "handlers.toml"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    file.chmod(0o644)
    return file


def refused(place: Path, text: str) -> str:
    """Return the error for a file with this text, without the file's path."""
    file = declare(place, text)
    with pytest.raises(InvalidHandlers) as error:
        Handlers.from_toml(file)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_each_table_declares_a_command(place: Path) -> None:
    handlers = Handlers.from_toml(
        declare(
            place,
            """
            [greet]
            command = ["./hello.sh", "{name}"]
            max_attempts = 5
            timeout = 30
            concurrency = 2
            backoff = { first = 10, factor = 3, cap = "1h", jitter = 0.1 }

            ["mail.send:now-1"]
            command = ["cat"]
            timeout = "1.5h"

            [mail.backoff]
            first = "90s"

            [mail]
            command = ["cat"]
            """,
        )
    )
    greet, mail = handlers["greet"], handlers["mail"]
    assert list(handlers) == ["greet", "mail.send:now-1", "mail"]
    assert (greet.max_attempts, greet.timeout, greet.concurrency) == (5, 30, 2)
    assert repr(greet.backoff) == "Backoff(first=10, factor=3, cap=3600.0, jitter=0.1)"
    assert handlers["mail.send:now-1"].timeout == 5400
    assert mail.timeout == math.inf
    assert repr(mail.backoff) == "Backoff(first=90.0, factor=2, jitter=0)"


def test_programs_and_their_working_directory_are_relative_to_the_file(
    place: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(place, '[greet]\ncommand = ["./hello.sh", "{name}"]\n[where]\ncommand = ["pwd"]')
    monkeypatch.chdir(place.parent)
    handlers = Handlers.from_toml("app/handlers.toml", queue=queue)
    monkeypatch.chdir("/")
    greeted = queue.enqueue("greet", {"name": "Ada"})
    where = queue.enqueue("where", {})
    assert queue.process_jobs(handlers)["completed"] == 2
    assert job(queue, greeted)["result"] == "hello Ada"
    assert job(queue, where)["result"] == str(place)


def test_the_registry_of_a_file_belongs_to_its_queue(
    place: Path, queue: Queue, tmp_path: Path
) -> None:
    handlers = Handlers.from_toml(declare(place, '[a]\ncommand = ["cat"]'), queue=queue)
    with Queue(tmp_path / "other.tsv") as other, pytest.raises(InvalidHandlers, match="enqueues"):
        other.process_jobs(handlers)


def test_tables_declare_schedules(place: Path) -> None:
    handlers = Handlers.from_toml(
        declare(
            place,
            """
            ["mail:send"]
            command = ["cat"]
            every = "5m"
            schedule_name = "mails"

            [report]
            command = ["./hello.sh", "{name}"]
            every = "0 3 * * mon-fri"
            timezone = "UTC"
            missed = "skip"
            overlap = false
            payload = { name = "ada" }
            """,
        )
    )
    assert handlers.name == str(place / "handlers.toml")
    mails, report = handlers.schedules["mails"], handlers.schedules["report"]
    assert (mails.type, mails.seconds, mails.payload) == ("mail:send", 300, "{}")
    assert (report.type, report.expression, report.timezone) == ("report", "0 3 * * mon-fri", "UTC")
    assert (report.missed, report.overlap, report.payload) == ("skip", False, '{"name": "ada"}')


def test_ignore_case_applies_to_the_whole_file(place: Path) -> None:
    handlers = Handlers.from_toml(declare(place, 'ignore_case = true\n[Greet]\ncommand = ["cat"]'))
    assert handlers["gREET"] is handlers["Greet"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no job type (write a table for each, such as [send_email])"),
        ("[a", "Expected ']' at the end of a table declaration"),
        ('[a]\ncommand = ["cat"]\n[a]\n', "Cannot declare ('a',) twice"),
        ('x = 1\n[a]\ncommand = ["cat"]', "unknown key 'x' (known keys: ignore_case, keep, name)"),
        ('ignore_cas = true\n[a]\ncommand = ["cat"]', "(did you mean ignore_case?)"),
        (
            'ignore_case = 1\n[a]\ncommand = ["cat"]',
            "ignore_case: invalid value 1: must be true or",
        ),
        ("[a]", '[a]: no command: must have one, such as command = ["./program", "{member}"]'),
        (
            '["a b"]\ncommand = ["cat"]',
            "[a b]: invalid job type 'a b': must be 1 to 100 characters",
        ),
        (
            '[a]\ncommand = ["cat"]\nmax_atempts = 3',
            "[a]: unknown key 'max_atempts' (did you mean max",
        ),
        (
            '[a]\ncommand = ["cat"]\nretries = 3',
            "[a]: unknown key 'retries' (known keys: command, max_attempts, backoff, timeout, conc",
        ),
        (
            '[mail.send]\ncommand = ["cat"]',
            "[mail]: unknown key 'send' (a job type with a dot need",
        ),
        ('[a]\ncommand = "cat {x}"', "[a]: command: invalid value 'cat {x}': must be a list"),
        ("[a]\ncommand = []", "[a]: invalid command []: must begin with a program"),
        ('[a]\ncommand = ["cat", 5]', "[a]: invalid command ['cat', 5]: 5 isn't text"),
        ('[a]\ncommand = ["cat", "{"]', "[a]: invalid placeholder { in the argument '{'"),
        ('[a]\ncommand = ["cat"]\ntimeout = 0', "[a]: invalid timeout 0: must be seconds"),
        (
            '[a]\ncommand = ["cat"]\ntimeout = "5"',
            "[a]: timeout: invalid duration '5': must be a num",
        ),
        (
            '[a]\ncommand = ["cat"]\ntimeout = true',
            "[a]: timeout: invalid value True: must be a numb",
        ),
        ('[a]\ncommand = ["cat"]\ntimeout = nan', "[a]: invalid timeout nan"),
        ('[a]\ncommand = ["cat"]\nmax_attempts = 0', "[a]: invalid max_attempts 0"),
        (
            '[a]\ncommand = ["cat"]\nmax_attempts = "3"',
            "[a]: max_attempts: invalid value '3': must be",
        ),
        (
            '[a]\ncommand = ["cat"]\nconcurrency = 1.5',
            "[a]: concurrency: invalid value 1.5: must be",
        ),
        ('[a]\ncommand = ["cat"]\nbackoff = 5', "[a]: backoff: invalid value 5: must be a table"),
        (
            '[a]\ncommand = ["cat"]\nbackoff = { frist = 5 }',
            "[a]: backoff: unknown key 'frist' (did you mean first?)",
        ),
        (
            '[a]\ncommand = ["cat"]\nbackoff = { first = -5 }',
            "[a]: backoff: invalid first -5",
        ),
        (
            '[a]\ncommand = ["cat"]\nbackoff = { cap = "x" }',
            "[a]: backoff: cap: invalid duration 'x'",
        ),
        ('[a]\ncommand = ["./missing"]', "[a]: command: there is no program "),
        ('[a]\ncommand = ["./plain"]', "[a]: command: "),
        ('[a]\ncommand = ["/"]', "[a]: command: there is no program /"),
        (
            '[a]\ncommand = ["no-such-program"]',
            "[a]: command: there is no program no-such-program in",
        ),
        ('[a]\ncommand = ["hello.sh"]', "write ./hello.sh)"),
        (
            '[a]\ncommand = ["cat", "{x}"]\nevery = 60',
            "[a]: payload: the payload has no member 'x', which the command needs (each job of",
        ),
        (
            '[a]\ncommand = ["cat", "{x}"]\nevery = 60\npayload = { x = true }',
            "[a]: payload: the payload's member 'x' is true or false: must be text or a number (",
        ),
        ('[a]\ncommand = ["cat"]\nevery = 60\nschedule_name = "b:c"', "[a]: invalid name 'b:c' of"),
        ('[a]\ncommand = ["cat"]\nschedule_name = "b"', "[a]: schedule_name belongs to a schedule"),
    ],
)
def test_what_is_wrong_is_refused_and_the_error_names_file_table_and_key(
    place: Path, text: str, error: str
) -> None:
    assert error in refused(place, text)


def test_a_file_that_is_not_utf8_is_refused(place: Path) -> None:
    (place / "handlers.toml").write_bytes(b"# \xff\n")
    with pytest.raises(InvalidHandlers, match=r"handlers\.toml: 'utf-8' codec can't decode"):
        Handlers.from_toml(place / "handlers.toml")


def test_a_missing_file_is_an_error_of_the_system(place: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"handlers\.toml"):
        Handlers.from_toml(place / "handlers.toml")


def test_a_program_that_is_not_executable_is_named(place: Path) -> None:
    error = refused(place, '[a]\ncommand = ["./plain"]')
    assert error == f"[a]: command: {place}/plain isn't executable (chmod +x it)"


# --- protection from other users


GOOD = """
[shell]
command = ["./bin/job.sh"]

[script]
command = ["sh", "-e", "lib/report.sh", "{x}"]
"""


@pytest.fixture
def app(place: Path) -> Path:
    for name in ("bin/job.sh", "lib/report.sh"):
        file = place / name
        file.parent.mkdir(0o755)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    declare(place, GOOD)
    return place


@pytest.mark.parametrize(
    "name", ["handlers.toml", ".", "bin/job.sh", "bin", "lib/report.sh", "lib"]
)
def test_a_file_or_program_that_any_user_could_change_is_refused(app: Path, name: str) -> None:
    file = app / name
    assert len(Handlers.from_toml(app / "handlers.toml")) == 2
    mode = file.stat().st_mode
    file.chmod(mode | 0o020)  # its group may write, as in the queue's directory
    assert len(Handlers.from_toml(app / "handlers.toml")) == 2
    for wrong in (0o002, 0o1002):  # also with the sticky bit, as /tmp
        file.chmod(mode | wrong)
        with pytest.raises(InvalidHandlers, match="world-writable, so any user could change what"):
            Handlers.from_toml(app / "handlers.toml")
    file.chmod(mode)
    assert len(Handlers.from_toml(app / "handlers.toml")) == 2


@pytest.mark.parametrize("name", ["handlers.toml", "bin/job.sh"])
def test_a_link_is_followed_and_both_its_ends_are_checked(
    app: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "elsewhere" / "file"
    target.parent.mkdir(0o755)
    (app / name).rename(target)
    (app / name).symlink_to(target)
    assert len(Handlers.from_toml(app / "handlers.toml")) == 2
    target.parent.chmod(0o757)
    with pytest.raises(InvalidHandlers, match="elsewhere is world-writable"):
        Handlers.from_toml(app / "handlers.toml")
    target.parent.chmod(0o755)
    (app / name).parent.chmod(0o757)
    with pytest.raises(InvalidHandlers, match="is world-writable"):
        Handlers.from_toml(app / "handlers.toml")
    (app / name).parent.chmod(0o755)
    target.chmod(0o757)
    with pytest.raises(InvalidHandlers, match="file is world-writable"):
        Handlers.from_toml(app / "handlers.toml")


def test_the_rule_is_that_of_the_queues_directory(app: Path) -> None:
    """What is refused for `handlers.toml` is refused for a queue, and the other way round."""
    for mode in (0o700, 0o755, 0o770, 0o2775, 0o757, 0o777, 0o1777):
        app.chmod(mode)
        found: list[Any] = []
        for use in (
            lambda: Handlers.from_toml(app / "handlers.toml"),
            lambda: Queue(app / "queue.tsv").enqueue("a", {}),
        ):
            try:
                use()
                found.append("accepted")
            except (InvalidHandlers, OSError) as e:
                assert "world-writable" in str(e)
                found.append("refused")
        assert found in (["accepted"] * 2, ["refused"] * 2), (oct(mode), found)
    app.chmod(0o755)
    assert os.access(app, os.W_OK)


SCHEDULED = """
name = "shop"
keep = "30d"

[report]
command = ["cat"]
priority = 5
every = "0 3 * * *"
timezone = "Europe/Berlin"
missed = "all"

[poll]
command = ["echo", "{feed}"]
every = "15m"
overlap = false
payload = { feed = "news" }
"""


def test_a_table_may_declare_a_schedule_and_a_priority(place: Path) -> None:
    handlers = Handlers.from_toml(declare(place, SCHEDULED))
    assert (handlers.name, handlers.keep) == ("shop", 30 * 86_400)
    assert handlers["report"].priority == 5
    assert sorted(handlers.schedules) == ["poll", "report"]
    clock = Clock(NOW)
    with Queue("memory:", clock=clock) as queue:
        queue.process_jobs(handlers)
        found = {schedule["name"]: schedule for schedule in queue.schedules()}
        assert found["report"]["timezone"] == "Europe/Berlin"
        assert found["poll"]["program"] == found["report"]["program"] == "shop"
        clock.now += 900
        queue.process_jobs({}, skip_unknown=True)
        queue.process_jobs(Handlers(name="other"))
        handlers_again = Handlers.from_toml(declare(place, SCHEDULED))
        assert queue.process_jobs(handlers_again)["completed"] == 1
        (polled,) = queue.jobs("completed", "poll")
        assert (polled["payload"], polled["result"]) == ({"feed": "news"}, "news")


def test_without_a_name_the_schedules_belong_to_the_file(place: Path) -> None:
    file = declare(place, '[a]\ncommand = ["cat"]\nevery = 60')
    assert Handlers.from_toml(file).name == str(file)


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ('every = "5 m"', "[a]: every: invalid schedule '5 m': must be a cron expression"),
        ('every = "0.5"', "[a]: every: invalid schedule '0.5': must be a cron expression"),
        ('every = "0 25 * * *"', "[a]: "),
        ('every = "0.5s"', "[a]: "),
        ("every = true", "[a]: every: invalid value True: must be a number"),
        ('every = "5m"\ntimezone = "Europe/Berlin"', "[a]: "),
        ('every = "@daily"\ntimezone = "Nowhere/Land"', "[a]: "),
        ('every = "5m"\nmissed = "never"', "[a]: "),
        ('every = "5m"\noverlap = "no"', "[a]: overlap: invalid value 'no': must be true or fal"),
        ('timezone = "Europe/Berlin"', "[a]: timezone belongs to a schedule: give every"),
        ('every = "5m"\npayload = { n = 2026-11-27 }', "[a]: payload: the payload's member 'n' is"),
        ("priority = 1.5", "[a]: priority: invalid value 1.5: must be a whole number"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(place: Path, keys: str, error: str) -> None:
    command = '["echo", "{n}"]' if "payload" in keys else '["cat"]'
    assert refused(place, f"[a]\ncommand = {command}\n{keys}").startswith(error)


@pytest.mark.parametrize(
    "key",
    ['keep = "30"', "keep = -1", 'keep = "a month"', 'name = ""', "name = 3"],
)
def test_a_setting_of_the_file_that_cannot_work_is_refused(place: Path, key: str) -> None:
    refused(place, f'{key}\n[a]\ncommand = ["cat"]')


# -- on_failure


COMMAND = """
    [hello]
    command = ["./hello.sh", "ada"]
"""


def test_a_mail_and_a_webhook_are_declared_for_all_job_types(place: Path) -> None:
    file = declare(
        place,
        """
        [on_failure]
        mail = ["ada@example.org", "bob@example.org"]
        sender = "queue@example.org"
        server = "mail.example.org"
        port = 465
        webhook = "https://example.org/failed"
        """
        + COMMAND,
    )
    handlers = Handlers.from_toml(file)
    assert list(handlers) == ["hello"]
    assert handlers.hooks is not None
    assert [repr(hook) for hook in handlers.hooks.on_failure] == [
        "<Mail to ada@example.org, bob@example.org, by mail.example.org:465>",
        "<Webhook https://example.org>",
    ]


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ("", "it names nobody: give mail, an address, or webhook, a URL"),
        ('server = "mail"', "server belongs to a mail: give mail, an address, too"),
        (
            'mail = "nobody"',
            "invalid to 'nobody': must be an email address, such as ops@example.org",
        ),
        ("mail = 5", "mail: invalid value 5: must be text"),
        (
            'to = "ada@example.org"',
            "unknown key 'to' (known keys: mail, sender, server, port, user",
        ),
        ('webhook = "ftp://example.org"', "invalid url 'ftp://example.org'"),
        ('mail = "ada@example.org"\nuser = "ada"', "invalid user or password: give both"),
    ],
)
def test_an_invalid_notification_is_refused(place: Path, table: str, error: str) -> None:
    text = f"[on_failure]\n{table}\n{textwrap.dedent(COMMAND)}"
    assert refused(place, text).startswith(f"[on_failure]: {error}")


def test_a_password_that_every_user_can_read_is_refused(place: Path) -> None:
    file = declare(
        place,
        """
        [on_failure]
        mail = "ada@example.org"
        user = "ada"
        password = "secret"
        """
        + COMMAND,
    )
    with pytest.raises(InvalidHandlers, match="every user can read") as error:
        Handlers.from_toml(file)
    assert "secret" not in str(error.value)
    file.chmod(0o640)
    assert Handlers.from_toml(file).hooks is not None
