"""`manage.py queue_pass`: one pass over the queue of a backend, for a crontab."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from dbbasic_queue.cli.arguments import natural, seconds
from dbbasic_queue.cli.foreground import run_job
from dbbasic_queue.cli.messages import called_as
from dbbasic_queue.django.choosing import choose
from dbbasic_queue.django.handlers import TaskHandlers
from dbbasic_queue.django.management.commands.queue import program
from dbbasic_queue.errors import QueueError
from dbbasic_queue.jobqueue import MAX_ATTEMPTS
from dbbasic_queue.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FAILED = 3


def duration(text: str) -> float:
    """Parse seconds, or a duration with a unit."""
    try:
        return seconds(f"{text}s" if text[-1:].isdecimal() else text)
    except argparse.ArgumentTypeError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


class Command(BaseCommand):
    """Makes one pass."""

    help = "Run the tasks that are due: one pass. Start it every minute, from a crontab."
    requires_system_checks: list[str] = []  # noqa: RUF012

    def add_arguments(self, parser: Any) -> None:
        """Add the command's arguments."""
        parser.add_argument("--backend", help="the alias in TASKS, if there are several")
        parser.add_argument(
            "--linger",
            type=duration,
            default=0,
            metavar="SECONDS",
            help="stay, and run tasks as they become due, such as 55",
        )
        parser.add_argument(
            "--forever", action="store_true", help="run tasks until SIGTERM, as a service"
        )
        parser.add_argument(
            "--workers", type=natural, metavar="N", default=1, help="how many at once"
        )
        parser.add_argument(
            "--max-attempts",
            type=natural,
            metavar="N",
            default=MAX_ATTEMPTS,
            help=f"for tasks without a number of their own (default: {MAX_ATTEMPTS})",
        )
        parser.add_argument(
            "--skip-unknown",
            action="store_true",
            help="leave jobs alone that aren't tasks of this project",
        )
        parser.add_argument(
            "--strict", action="store_true", help="exit with 3 if a task has failed for good"
        )
        parser.add_argument("--ping", metavar="URL", help="request this URL after the pass")
        parser.add_argument(
            "--job", metavar="ID", help="run only this job, now, in the foreground, to debug it"
        )
        parser.add_argument(
            "--crontab", action="store_true", help="print the crontab line, and run nothing"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the pass. Raises CommandError for errors of the queue, and for invalid OPTIONS."""
        backend = choose(options["backend"])
        if options["crontab"]:
            self.stdout.write(_crontab_line(options))
            return
        level = logging.INFO if options["verbosity"] > 1 else logging.ERROR
        handler = logging.StreamHandler()
        # Django's own loggers log at INFO, whatever the level of the root is. Without this, cron
        # would mail each task that was started.
        handler.setLevel(level)
        logging.basicConfig(
            level=level, format="%(asctime)s %(levelname)s %(message)s", handlers=[handler]
        )
        try:
            code = _run(TaskHandlers(backend), options)
        except (QueueError, ImproperlyConfigured) as e:
            raise CommandError(str(e)) from e
        if code:
            sys.exit(code)


def _run(handlers: TaskHandlers, options: dict[str, Any]) -> int:
    queue = handlers.queue
    assert queue is not None
    how = {"skip_unknown": options["skip_unknown"], "workers": options["workers"]}
    if options["job"] is not None:
        arguments = argparse.Namespace(**options, file=None, handlers="this project")
        with called_as(program(backend=options["backend"])):
            return run_job(queue, handlers, arguments)
    if options["forever"]:
        Worker(queue, handlers, options["max_attempts"], **how).run_forever()
        return 0
    counts = queue.process_jobs(
        handlers, options["max_attempts"], linger=options["linger"], ping=options["ping"], **how
    )
    return _FAILED if options["strict"] and counts["failed"] else 0


def _crontab_line(options: dict[str, Any]) -> str:
    """Return the line for this project, for the bare environment of cron."""
    here = os.getcwd()
    program = os.path.relpath(os.path.abspath(sys.argv[0]), here)
    words = [sys.executable, program, "queue_pass", "--linger", "55"]
    if options["workers"] > 1:
        words += ["--workers", str(options["workers"])]
    for name in ("settings", "pythonpath", "backend"):
        if options[name] is not None:
            words += [f"--{name}", options[name]]
    settings = os.environ.get("DJANGO_SETTINGS_MODULE")
    before = f"cd {shlex.quote(here)} && LC_ALL=C.UTF-8 "
    if settings and options["settings"] is None:
        before += f"DJANGO_SETTINGS_MODULE={shlex.quote(settings)} "
    return "* * * * * " + (before + shlex.join(words)).replace("%", r"\%")
