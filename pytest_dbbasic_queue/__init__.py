"""The pytest plugin: the fixture `job_queue`.

It is a package of its own, next to `dbbasic_queue`, because pytest imports every installed plugin
at the start of every run. A module inside `dbbasic_queue` would import that whole package: runs
that don't use the fixture would take longer to start, and a coverage measurement, which starts
later, would miss the lines that run at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dbbasic_queue.testing import JobQueue


@pytest.fixture
def job_queue(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[JobQueue]:
    """A new queue in `tmp_path` that replaces the program's own queues until the test ends.

    `enqueue` and the other functions use it, and so does every `Queue` of this process, made before
    or during the test, that is on a server, or whose file is outside of pytest's temporary
    directories: several such queues become this one. A `Queue` in `tmp_path`, or in memory, isn't
    replaced. In programs that the test starts, only the default queue is replaced.

    Its `clock` stands still at the time when the test started, until the test moves it.
    """
    import time

    from dbbasic_queue import Queue, queue
    from dbbasic_queue.testing import REDIRECTED, Clock, JobQueue, Redirected

    path = tmp_path / "job_queue" / "queue.tsv"
    with JobQueue(path, Clock(time.time())) as fresh:
        monkeypatch.setenv("DBBASIC_QUEUE_FILE", fresh.path)
        monkeypatch.delenv("DBBASIC_QUEUE_URL", raising=False)
        monkeypatch.setattr(queue, "QUEUE_FILE", fresh.path)
        monkeypatch.setattr(queue, "_default", (fresh.path, fresh))
        for name in REDIRECTED:
            attribute = Redirected(name, fresh, str(tmp_path_factory.getbasetemp()))
            monkeypatch.setattr(Queue, name, attribute, raising=False)
        yield fresh
