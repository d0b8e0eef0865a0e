"""The name of a process that runs jobs, as in the history and in the log of passes."""

from __future__ import annotations

import os

from dbbasic_queue.model.escaping import escape


def worker_name() -> str:
    """Return the column `worker` for this process: the host's name, a dot, the process id."""
    return f"{escape(os.uname().nodename)}.{os.getpid()}"
