"""`manage.py queue ...`: the command line of dbbasic-queue, for the queue of a backend."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from django.core.management.base import BaseCommand, CommandError

from dbbasic_queue.cli.embedded import run
from dbbasic_queue.django.choosing import choose
from dbbasic_queue.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.cli.crontab import Worker
    from dbbasic_queue.jobqueue import Queue


class Command(BaseCommand):
    """Sets the default queue, and leaves the arguments to `dbbasic-queue`."""

    help = "Look at the queue and change it: queue status, queue list, queue requeue ..."
    requires_system_checks: list[str] = []  # noqa: RUF012

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command of `argv`, which follows `manage.py queue`; exit with its code."""
        own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        own.add_argument("--backend")
        own.add_argument("--settings")
        own.add_argument("--pythonpath")
        given, rest = own.parse_known_args(argv[2:])
        try:
            code = self._run(given.backend, rest, program(argv[0], **vars(given)))
        except CommandError as e:
            print(f"{argv[0]} queue: {e}", file=sys.stderr)
            code = 1
        sys.exit(code)

    def add_arguments(self, parser: Any) -> None:
        """Add the arguments for `call_command`."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)
        parser.add_argument("--backend")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the command of `call_command("queue", "status")`. Exits if its code isn't 0."""
        alias = options["backend"]
        if code := self._run(alias, [*args, *options["arguments"]], program(backend=alias)):
            sys.exit(code)

    def _run(self, alias: str | None, arguments: list[str], program: str) -> int:
        def find_worker(handlers: str | None, queue: Queue) -> Worker:
            return _worker(handlers, queue, alias)

        return run(choose(alias).queue, arguments, program, find_worker)


def program(path: str = "manage.py", **options: str | None) -> str:
    """Return what a person types before a command, such as `python manage.py queue`.

    `path` is that of the program that was called, and `options` are those of this command.
    """
    name = os.path.basename(path)
    if name == "__main__.py":
        words = ["python", "-m", "django"]
    else:
        words = ["python", path] if name.endswith(".py") else [name]
    given = [f"--{option}={value}" for option, value in options.items() if value is not None]
    return shlex.join([*words, "queue", *given])


def _worker(handlers: str | None, queue: Queue, alias: str | None) -> Worker:
    """Return what cron has to start: `manage.py queue_pass`. Raises InvalidArgument."""
    from dbbasic_queue.cli.crontab import Worker

    if handlers is not None:
        raise InvalidArgument(
            f"leave out {handlers}: cron starts manage.py queue_pass, which runs the tasks of the "
            "site"
        )
    command = [sys.executable, os.path.abspath(sys.argv[0]), "queue_pass"]
    settings = os.environ.get("DJANGO_SETTINGS_MODULE")
    return Worker(
        os.getcwd(),
        queue.path,
        command if alias is None else [*command, "--backend", alias],
        linger=("--linger", "55"),
        environment={} if settings is None else {"DJANGO_SETTINGS_MODULE": settings},
    )
