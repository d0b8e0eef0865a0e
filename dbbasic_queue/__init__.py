"""A cron-driven job queue that is a plain text file."""

from __future__ import annotations

from dbbasic_queue.errors import (
    DuplicateJob,
    InvalidHandlers,
    InvalidJob,
    NotAQueue,
    QueueBusy,
    QueueError,
    StoreError,
)
from dbbasic_queue.handlers import Backoff, Delay, Fail, Handler, Job
from dbbasic_queue.queue import (
    Queue,
    cancel_job,
    counts,
    enqueue,
    enqueue_many,
    get_job,
    jobs,
    process_jobs,
)
from dbbasic_queue.registry import Handlers

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
    "QueueError",
    "StoreError",
    "cancel_job",
    "counts",
    "enqueue",
    "enqueue_many",
    "get_job",
    "jobs",
    "process_jobs",
]
