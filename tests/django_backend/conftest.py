"""Sets Django up with the settings of the example site, and an app with odd tasks."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.conf import settings
from helpers import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbbasic_queue.django import TextFileBackend

HERE = Path(__file__).parent
SITE = PROJECT / "examples/django-site"


def _has_tasks() -> bool:
    if django.VERSION >= (6, 0):
        return True
    try:
        import_module("django_tasks")
    except ImportError:
        return False
    return True


def _set_up() -> None:
    """Configure Django, without changing this process's time zone as a settings module would."""
    directory = tempfile.mkdtemp(prefix="django-tests-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    sys.path[:0] = [str(SITE), str(HERE)]
    before = os.environ.get("SITE_DATA")
    os.environ["SITE_DATA"] = directory
    site = import_module("mysite.settings")
    os.environ.pop("SITE_DATA")
    if before is not None:
        os.environ["SITE_DATA"] = before
    given = {name: getattr(site, name) for name in dir(site) if name.isupper()}
    given["INSTALLED_APPS"] = [*given["INSTALLED_APPS"], "odd"]
    given["LOGGING_CONFIG"] = None
    settings.configure(**given)
    django.setup()


if _has_tasks():
    _set_up()
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def database() -> Iterator[None]:
    from django.core.management import call_command
    from django.db import connections
    from django.test.utils import setup_test_environment, teardown_test_environment

    setup_test_environment()
    call_command("migrate", verbosity=0)
    yield
    connections.close_all()
    teardown_test_environment()


@pytest.fixture
def configure(path: Path) -> Iterator[Callable[..., TextFileBackend]]:
    """Sets the backend's options, and returns the backend. The queue is that of the test."""
    from django.test import override_settings

    from dbbasic_queue.django.framework import task_backends

    with ExitStack() as stack:

        def use(*, queues: list[str] | None = None, **options: Any) -> TextFileBackend:
            given = {
                "BACKEND": "dbbasic_queue.django.TextFileBackend",
                "OPTIONS": {"PATH": path, **options},
                "QUEUES": ["default", "mail"] if queues is None else queues,
            }
            stack.enter_context(override_settings(TASKS={"default": given}))
            backend: TextFileBackend = task_backends["default"]
            return backend

        backend = use()
        yield use
        backend.queue.close()


@pytest.fixture(autouse=True)
def backend(configure: Callable[..., TextFileBackend]) -> TextFileBackend:
    """The backend, without options except its path."""
    return configure()


@pytest.fixture(autouse=True)
def no_orders(database: None) -> Iterator[None]:
    """Removes what a test has left in the database, and in the mailbox."""
    from django.core import mail
    from django.db import connections
    from shop.models import Order

    mail.outbox = []
    yield
    Order.objects.all().delete()
    connections.close_all()
