"""A queue in PostgreSQL: with CONNECTION, a job is part of the site's own transaction."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from helpers import Child, environment

from django_backend.conftest import HERE

if TYPE_CHECKING:
    from pathlib import Path

    from postgres_server import PostgresServer

PROGRAM = """
import asyncio, sys
import django
from django.conf import settings
url, port, password = sys.argv[1:]
settings.configure(
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": port,
        "NAME": "postgres", "USER": "tester", "PASSWORD": password,
    }},
    INSTALLED_APPS=["dbbasic_queue.django", "odd"],
    TASKS={"default": {
        "BACKEND": "dbbasic_queue.django.TextFileBackend",
        "OPTIONS": {
            "PATH": url, "CONNECTION": "default", "POLICIES": {"*": {"timeout": 60}},
            "SCHEDULES": {"poll": {"task": "odd.tasks.add", "every": 1, "args": [7]}},
        },
    }},
    USE_TZ=True,
)
django.setup()
from django.core.management import call_command
from django.db import connection, transaction
from odd.tasks import add
from dbbasic_queue.django.framework import TaskResultDoesNotExist, task_backends
from dbbasic_queue.django.handlers import TaskHandlers

call_command("check", fail_level="WARNING")
backend = task_backends["default"]
first = add.enqueue(0)  # outside a transaction
try:
    with transaction.atomic():
        connection.cursor().execute("CREATE TABLE orders (id int)")
        undone = add.enqueue(1)
        raise KeyError
except KeyError:
    pass
with transaction.atomic():
    connection.cursor().execute("CREATE TABLE orders (id int)")
    done = add.enqueue_once("order-7", 2)
    again = add.enqueue_once("order-7", 2)
    assert again.id == done.id == "order-7"
    assert [job["id"] for job in backend.queue.jobs()] == [first.id]  # others don't see it yet
asyncio.run(add.aenqueue(3))
try:
    backend.get_result(undone.id)
except TaskResultDoesNotExist:
    counts = backend.queue.process_jobs(TaskHandlers(backend))
done.refresh()
while not (polled := [job for job in backend.queue.jobs() if job["id"].startswith("poll.")]):
    call_command("queue_pass")
assert polled[0]["type"] == "odd.tasks.add"
print(counts["completed"], done.return_value, done.attempts, len(done.worker_ids))
"""


@pytest.mark.skipif(not find_spec("psycopg"), reason="needs the extra postgres")
def test_a_job_is_part_of_the_transaction_of_the_sites_database(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    from postgres_server import PASSWORD

    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, str(program), postgres.url("django"), str(postgres.port), PASSWORD]
    found = environment()
    found["PYTHONPATH"] += f":{HERE}"
    child = Child(command, tmp_path, "program", found)
    try:
        assert child.succeed().splitlines()[-1] == "3 3 1 1"
    finally:
        child.clean_up()
