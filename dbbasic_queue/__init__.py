"""A cron-driven job queue in a plain text file."""

from __future__ import annotations

from dbbasic_queue.errors import (
    DuplicateJob,
    InvalidArgument,
    InvalidHandlers,
    InvalidJob,
    JobNotFound,
    NotAQueue,
    QueueBusy,
    QueueDamaged,
    QueueError,
    QueueMoved,
    StoreError,
)
from dbbasic_queue.handlers import Backoff, Delay, Fail, Handler, Job, JobStopped
from dbbasic_queue.jobqueue import Queue
from dbbasic_queue.model.jobdict import JobDict, Status
from dbbasic_queue.opening import open_queue
from dbbasic_queue.queue import (
    aenqueue,
    cancel_job,
    default_queue,
    enqueue,
    enqueue_many,
    get_job,
    process_jobs,
)
from dbbasic_queue.registry import Handlers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.commands import Command
    from dbbasic_queue.worker import Worker
else:

    def __getattr__(name: str) -> object:
        """Import `Command` and `Worker` on first use: most programs don't need them."""
        if name == "Command":
            from dbbasic_queue.commands import Command

            return Command
        if name == "Worker":
            from dbbasic_queue.worker import Worker

            return Worker
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "2.0.0"
__all__ = [
    "Backoff",
    "Command",
    "Delay",
    "DuplicateJob",
    "Fail",
    "Handler",
    "Handlers",
    "InvalidArgument",
    "InvalidHandlers",
    "InvalidJob",
    "Job",
    "JobDict",
    "JobNotFound",
    "JobStopped",
    "NotAQueue",
    "Queue",
    "QueueBusy",
    "QueueDamaged",
    "QueueError",
    "QueueMoved",
    "Status",
    "StoreError",
    "Worker",
    "aenqueue",
    "cancel_job",
    "default_queue",
    "enqueue",
    "enqueue_many",
    "get_job",
    "open_queue",
    "process_jobs",
]
