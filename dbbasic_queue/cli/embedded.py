"""The command line inside another program's, such as `manage.py queue` and `flask queue`."""

from __future__ import annotations

import os

from dbbasic_queue.cli.main import main
from dbbasic_queue.cli.messages import called_as

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbbasic_queue.cli.crontab import FindWorker
    from dbbasic_queue.jobqueue import Queue

_FILE, _URL = "DBBASIC_QUEUE_FILE", "DBBASIC_QUEUE_URL"


def run(queue: Queue, arguments: Sequence[str], program: str, find_worker: FindWorker) -> int:
    """Run a command with this queue as the default queue; return its exit code.

    `program` is what a person types before a command here, such as `flask queue`: suggestions name
    it. `find_worker` says what cron has to start for this program.

    Raises SystemExit as `main` does.
    """
    before = {name: os.environ.pop(name, None) for name in (_FILE, _URL)}
    address = queue.store.address
    os.environ[_FILE if os.path.isabs(address) else _URL] = address
    try:
        with called_as(program):
            return main(arguments, find_worker=find_worker)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
