"""A cron-driven job queue that is a plain text file."""

from __future__ import annotations

from dbbasic_queue.errors import (
    DuplicateJob,
    InvalidHandlers,
    InvalidJob,
    NotAQueue,
    QueueBusy,
    QueueDamaged,
    QueueError,
    StoreError,
)
from dbbasic_queue.handlers import Backoff, Delay, Fail, Handler, Job
from dbbasic_queue.queue import (
    Queue,
    aenqueue,
    aget_job,
    attempts,
    await_job,
    cancel_job,
    clear_failed,
    counts,
    enqueue,
    enqueue_many,
    get_job,
    jobs,
    metrics,
    pause,
    process_jobs,
    purge,
    remove_type,
    requeue,
    requeue_failed,
    resume,
    run_until_complete,
    wait,
    write_metrics,
)
from dbbasic_queue.registry import Handlers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.service import Worker
else:

    def __getattr__(name: str) -> object:
        """Import `Worker` on first use: neither a web app nor a pass by cron needs it."""
        if name != "Worker":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from dbbasic_queue.service import Worker

        return Worker


__version__ = "2.0.0"
__all__ = [
    "Backoff",
    "Delay",
    "DuplicateJob",
    "Fail",
    "Handler",
    "Handlers",
    "InvalidHandlers",
    "InvalidJob",
    "Job",
    "NotAQueue",
    "Queue",
    "QueueBusy",
    "QueueDamaged",
    "QueueError",
    "StoreError",
    "Worker",
    "aenqueue",
    "aget_job",
    "attempts",
    "await_job",
    "cancel_job",
    "clear_failed",
    "counts",
    "enqueue",
    "enqueue_many",
    "get_job",
    "jobs",
    "metrics",
    "pause",
    "process_jobs",
    "purge",
    "remove_type",
    "requeue",
    "requeue_failed",
    "resume",
    "run_until_complete",
    "wait",
    "write_metrics",
]
