"""Stands for Django's two backends in Django's own tests: see `run_upstream_tests`.

`DummyBackend` keeps what it enqueues, and `ImmediateBackend` runs it at once. Here both are the
queue's backend, and a task is run by a real pass.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dbbasic_queue.django import TextFileBackend
from dbbasic_queue.django.handlers import TaskHandlers


class DummyBackend(TextFileBackend):
    """The queue's backend, with what Django's tests use to look at a DummyBackend."""

    @property
    def results(self) -> list[Any]:
        return [self.get_result(job["id"]) for job in self.queue.jobs()]

    def clear(self) -> None:
        self.queue.close()
        for file in Path(self.queue.path).parent.glob("queue.tsv*"):
            file.unlink()


class ImmediateBackend(TextFileBackend):
    """The queue's backend: `enqueue` makes a pass with one attempt, and returns the result."""

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        result = super().enqueue(task, args, kwargs)
        with ThreadPoolExecutor(1) as thread:  # Django's async tests call this with an event loop
            thread.submit(self._make_pass).result()
        return self.get_result(result.id)

    def _make_pass(self) -> None:
        self.queue.process_jobs(TaskHandlers(self), max_attempts=1)
