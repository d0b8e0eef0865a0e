"""`manage.py queue ...`: the command line of dbbasic-queue, for the queue of a backend."""

from __future__ import annotations

import argparse
import sys

from django.core.management.base import BaseCommand, CommandError

from dbbasic_queue.cli.embedded import run
from dbbasic_queue.django.choosing import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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
            code = self._run(given.backend, rest)
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
        if code := self._run(options["backend"], [*args, *options["arguments"]]):
            sys.exit(code)

    def _run(self, alias: str | None, arguments: list[str]) -> int:
        return run(choose(alias).queue, arguments)
