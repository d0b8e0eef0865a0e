"""`dbbasic-queue init`: writes a worker for this directory, and prints its crontab line."""

from __future__ import annotations

import os
import shlex

from dbbasic_queue.cli import crontab
from dbbasic_queue.cli.messages import print_done
from dbbasic_queue.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from dbbasic_queue.jobqueue import Queue

_TOML = """\
# The types of jobs, and the command that runs each of them. {name} stands for that member of the
# payload. A command without such a placeholder gets the payload on stdin, as JSON. What it prints
# is the job's result. Its exit code is the outcome: after 0 the job is completed, after 65 it has
# failed for good, after any other one it is tried again. docs/commands.md of dbbasic-queue has all
# keys.

[hello]
command = ["echo", "Hello, {name}!"]
timeout = "60s"
max_attempts = 3
"""

_PYTHON = '''\
"""Runs the jobs of this app. Cron starts it every minute."""

import logging
import sys

from dbbasic_queue import Handlers, QueueError, process_jobs

jobs = Handlers()


@jobs.handler(timeout=60, max_attempts=3)
def hello(payload):
    """Say hello. The payload is what `enqueue` was given."""
    return f"Hello, {payload['name']}!"


if __name__ == "__main__":
    # One line on stderr for each job that has failed for good. Cron mails it.
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(message)s")
    try:
        process_jobs(jobs, linger=55)
    except QueueError as error:  # the disk is full, the wrong user, ...: its text says what to do
        sys.exit(f"worker: {error}")
'''


def run(arguments: Namespace, queue: Queue) -> int:
    """Write the file; return the exit code."""
    if arguments.find_worker is not None:
        raise InvalidArgument(
            "init writes a worker for a program without a web framework: this app has its handlers "
            "already (the command crontab prints its line)"
        )
    name, content = ("worker.py", _PYTHON) if arguments.python else ("handlers.toml", _TOML)
    directory = os.getcwd()
    worker = crontab.worker_in(directory, name, queue)
    line = crontab.line(worker, "* * * * *", os.path.join(directory, "worker.log"))
    try:
        # Nobody else may write it, whatever the umask is: `run` would refuse the file.
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise InvalidArgument(f"there is a {name} already: nothing was changed") from None
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    settings = crontab.setting_of(queue, directory).items()
    where = "".join(f"export {key}={shlex.quote(value)} && " for key, value in settings)
    # -v prints that the job is completed. The Python program would linger, and print nothing.
    program = f"dbbasic-queue run {'worker:jobs' if arguments.python else name} -v"
    print_done("wrote", os.path.join(directory, name))
    print("\nTry it:")
    print(f'  {where}dbbasic-queue enqueue hello \'{{"name": "Ada"}}\' && {program}')
    its_name = "" if crontab.default_worker() == name else f"{name} "  # there is another worker
    print("\nLet cron start it every minute (this adds the line below to your crontab):")
    print(f"  dbbasic-queue crontab {its_name}--install\n")
    print(f"  {line}")
    return 0
