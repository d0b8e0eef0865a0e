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
    await_job,
    cancel_job,
    clear_failed,
    counts,
    enqueue,
    enqueue_many,
    get_job,
    jobs,
    pause,
    process_jobs,
    purge,
    remove_type,
    requeue,
    requeue_failed,
    resume,
    run_until_complete,
    wait,
)
from dbbasic_queue.registry import Handlers
from dbbasic_queue.service import Worker

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
    "await_job",
    "cancel_job",
    "clear_failed",
    "counts",
    "enqueue",
    "enqueue_many",
    "get_job",
    "jobs",
    "pause",
    "process_jobs",
    "purge",
    "remove_type",
    "requeue",
    "requeue_failed",
    "resume",
    "run_until_complete",
    "wait",
]
