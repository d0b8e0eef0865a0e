"""The management commands, and what the system checks report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.test import override_settings
from helpers import environment, job
from odd import elsewhere, tasks
from ordinary_user import BARE

from dbbasic_queue import Queue
from dbbasic_queue.django.checks import check_app
from django_backend.conftest import SITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.django import TextFileBackend

    Configure = Callable[..., TextFileBackend]


TASK = """
import logging
from dbbasic_queue.django import task

@task
def send_receipt(name):
    logging.getLogger("django.tasks").info("as Django 6 does for each task")
    return name
"""


def manage(*arguments: str) -> int:
    """Run a command as `manage.py` does; return its exit code."""
    command: Any = load_command_class(get_commands()[arguments[0]], arguments[0])
    try:
        command.run_from_argv(["manage.py", *arguments])
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def test_queue_pass_runs_the_tasks_that_are_due(backend: TextFileBackend) -> None:
    tasks.add.enqueue(1)
    assert manage("queue_pass") == 0
    assert backend.queue.counts()["completed"] == 1


def test_queue_suggests_commands_that_work_here(
    backend: TextFileBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tasks.add.enqueue(1)
    backend.queue.pause()
    assert manage("queue", "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["command"] == "python manage.py queue resume"
    assert manage("queue", "--backend", "default", "show", result.id) == 0
    assert "\tpython manage.py queue --backend=default resume\n" in capsys.readouterr().out
    assert manage("queue_pass", "--job", result.id) == 1
    why = capsys.readouterr().err
    assert why.startswith("python manage.py queue: ") and "(python manage.py queue resume)" in why
    call_command("queue", "list")
    with pytest.raises(SystemExit):
        call_command("queue", "list", "nonsense")
    assert "(see python manage.py queue list --help)" in capsys.readouterr().err


@pytest.mark.parametrize("linger", ["0.1", "0.1s"])
def test_queue_pass_lingers_for_seconds_with_or_without_a_unit(linger: str) -> None:
    tasks.add.enqueue(1)
    assert manage("queue_pass", "--linger", linger) == 0


def test_queue_pass_has_the_options_of_a_run(backend: TextFileBackend) -> None:
    tasks.fail.enqueue("alas")
    backend.queue.enqueue("of-another-program", {})
    arguments = ["--max-attempts", "1", "--skip-unknown", "--workers", "2", "--strict"]
    assert manage("queue_pass", *arguments) == 3
    counts = backend.queue.counts()
    assert (counts["failed"], counts["pending"]) == (1, 1)


def test_queue_pass_runs_one_job_in_the_foreground(
    backend: TextFileBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tasks.add.enqueue(1)
    tasks.add.enqueue(2)
    assert manage("queue_pass", "--job", result.id[:8]) == 0
    assert "completed" in capsys.readouterr().out
    assert backend.queue.counts()["pending"] == 1


@pytest.mark.parametrize("arguments", [["--linger", "soon"], ["--workers", "0"]])
def test_queue_pass_refuses_wrong_arguments(arguments: list[str]) -> None:
    assert manage("queue_pass", *arguments) != 0


def test_queue_pass_prints_a_crontab_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "manage.py"), "queue_pass", "--crontab"])
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "mysite.settings")
    call_command("queue_pass", crontab=True, workers=2)
    line = capsys.readouterr().out
    assert line == (
        f"* * * * * cd {tmp_path} && LC_ALL=C.UTF-8 DJANGO_SETTINGS_MODULE=mysite.settings "
        f"{sys.executable} manage.py queue_pass --linger 55 --workers 2\n"
    )


def test_cron_runs_the_tasks_by_the_line_of_queue_crontab(tmp_path: Path) -> None:
    """With the site's settings and backend, in a bare environment. There is nothing to mail."""
    site = shutil.copytree(SITE, tmp_path / "a site", ignore=shutil.ignore_patterns("data"))
    (site / "shop/tasks.py").write_text(TASK)
    command = [sys.executable, str(site / "manage.py"), "queue", "--backend", "default"]
    bare = {**BARE, "PYTHONPATH": environment()["PYTHONPATH"]}

    def run(*command: str, **where: Any) -> str:
        done = subprocess.run(
            command, env=bare, capture_output=True, text=True, timeout=60, check=False, **where
        )
        assert (done.returncode, done.stderr) == (0, "")
        printed: str = done.stdout
        return printed

    with Queue(site / "data/queue.tsv") as queue:
        job_id = queue.enqueue("shop.tasks.send_receipt", {"args": ["Ada"]})
        line = run(*command, "crontab", cwd=site)
        assert f"DJANGO_SETTINGS_MODULE=mysite.settings {sys.executable} " in line
        words = line.split(maxsplit=5)[5]
        assert " queue_pass --backend default --linger 55 " in words
        assert run("sh", "-c", words.replace(" --linger 55", ""), cwd="/") == ""
        assert job(queue, job_id)["result"] == "Ada"


def test_queue_crontab_needs_no_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    assert manage("queue", "crontab", "shop:jobs") == 1
    assert "leave out shop:jobs: cron starts manage.py queue_pass" in capsys.readouterr().err


def test_queue_is_the_command_line_for_the_backends_queue(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBBASIC_QUEUE_FILE", "/nowhere/queue.tsv")
    result = tasks.fail.enqueue("no such user")
    assert manage("queue", "status", "--json") == 0
    assert f'"{path}"' in capsys.readouterr().out
    assert manage("queue", "list", "--type", "odd.tasks.fail", "--settings", "mysite.settings") == 0
    assert result.id in capsys.readouterr().out
    call_command("queue", "cancel", result.id)
    result.refresh()
    assert result.status == "FAILED"
    assert manage("queue", "nonsense") == 2
    assert os.environ["DBBASIC_QUEUE_FILE"] == "/nowhere/queue.tsv"


def test_a_backend_is_chosen_by_its_alias(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"BACKEND": "dbbasic_queue.django.TextFileBackend", "OPTIONS": {"PATH": path}}
    other = one | {"OPTIONS": {"PATH": path.with_name("other.tsv")}}
    with override_settings(TASKS={"a": one, "b": other}):
        assert manage("queue_pass") == 1
        assert manage("queue", "status") == 1
        assert "name one of the backends with --backend: a, b" in capsys.readouterr().err
        assert manage("queue_pass", "--backend", "b") == 0
        assert manage("queue_pass", "--backend", "c") == 1
    with override_settings(TASKS={"only": one}):
        assert manage("queue_pass") == 0
    with override_settings(TASKS={}), pytest.raises(CommandError, match="TASKS has no backend"):
        call_command("queue_pass")


# -- system checks --


def ids(backend: TextFileBackend) -> list[tuple[str, str]]:
    return [(message.id.partition(".")[2], message.msg) for message in backend.check()]


def test_the_checks_have_nothing_to_report_about_a_good_configuration(configure: Configure) -> None:
    tasks.add.enqueue(1)
    good = {"ENQUEUE_ON_COMMIT": True, "KEEP": 3600, "POLICIES": {"*": {"priority": 1}}}
    assert ids(configure(MODULES=["odd.elsewhere"], **good)) == []
    assert check_app() == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"PTAH": "x"}, "unknown option 'PTAH': must be one of PATH, "),
        ({"PATH": 7}, "invalid PATH 7"),
        ({"PATH": "rabbitmq://host/"}, "invalid PATH: invalid queue: unknown URL scheme"),
        ({"ENQUEUE_ON_COMMIT": "other"}, "invalid ENQUEUE_ON_COMMIT 'other'"),
        ({"ENQUEUE_ON_COMMIT": 1}, "invalid ENQUEUE_ON_COMMIT 1"),
        ({"CONNECTION": "other"}, "invalid CONNECTION 'other'"),
        ({"CONNECTION": "default"}, "invalid CONNECTION: only a queue in PostgreSQL"),
        ({"CONNECTION": "default", "ENQUEUE_ON_COMMIT": True}, "exclude each other"),
        ({"MODULES": "odd.elsewhere"}, "invalid MODULES 'odd.elsewhere': must be a list"),
        ({"MODULES": ["odd/elsewhere.py"]}, "invalid MODULES"),
        ({"POLICIES": {"*": 7}}, "invalid POLICIES"),
        ({"POLICIES": {"*": {"max_attempts": 0}}}, "invalid POLICIES of '*': invalid max_attempts"),
        ({"POLICIES": {"*": {"attempts": 1}}}, "invalid POLICIES of '*'"),
        ({"KEEP": "30 days"}, "invalid KEEP '30 days'"),
    ],
)
def test_the_checks_report_wrong_options(
    configure: Configure, options: dict[str, Any], text: str
) -> None:
    backend = configure(**options)
    errors = [message for code, message in ids(backend) if code.startswith("E")]
    assert len([message for message in errors if text in message]) == 1, errors
    if not {"PATH", "CONNECTION"} & options.keys():
        with pytest.raises(ImproperlyConfigured, match=re.escape(text)):
            tasks.add.enqueue(1)


def test_a_relative_path_is_relative_to_the_project(configure: Configure, tmp_path: Path) -> None:
    with override_settings(BASE_DIR=tmp_path):
        assert configure(PATH="data/queue.tsv").queue.path == f"{tmp_path}/data/queue.tsv"
    with override_settings(BASE_DIR=None):
        ((code, text),) = [m for m in ids(configure(PATH="queue.tsv")) if m[0] == "E001"]
    assert (code, "it is relative" in text) == ("E001", True)


def test_the_checks_report_a_queue_that_visitors_could_download(
    configure: Configure, tmp_path: Path
) -> None:
    with override_settings(MEDIA_ROOT=tmp_path):
        assert [code for code, _ in ids(configure())] == ["E003", "W003"]


def test_the_checks_report_a_queue_that_cant_be_written(
    configure: Configure, tmp_path: Path
) -> None:
    assert ids(configure(PATH=tmp_path))[0][0] == "W001"
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert ids(configure())[0][0] == "W001"
        tmp_path.chmod(0o700)


def test_the_checks_report_a_task_that_no_pass_would_find(backend: TextFileBackend) -> None:
    assert elsewhere.greet.name == "greet"
    ((code, text),) = ids(backend)
    assert (code, "odd.elsewhere.greet" in text) == ("W003", True)


def test_the_checks_report_an_app_that_no_backend_uses() -> None:
    with override_settings(TASKS={}):
        (message,) = check_app()
    assert message.id == "dbbasic_queue.W004"


def test_the_checks_report_a_backend_without_its_app(backend: TextFileBackend) -> None:
    from django.apps import apps
    from django.conf import settings

    installed = [name for name in settings.INSTALLED_APPS if name != "dbbasic_queue.django"]
    with override_settings(INSTALLED_APPS=installed):
        assert not apps.is_installed("dbbasic_queue.django")
        assert [code for code, _ in ids(backend)] == ["W002", "W003"]
