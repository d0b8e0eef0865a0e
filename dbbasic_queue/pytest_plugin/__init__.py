"""The pytest plugin: the fixture `job_queue`.

It is installed beside the package, not in it, as `pytest_dbbasic_queue`: pytest imports a plugin in
every run, before anything else has begun, and a module of the package would bring all of it along:
time for those who do not use the fixture, and lines that a coverage measurement would never see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dbbasic_queue.testing import JobQueue

pytest.register_assert_rewrite("dbbasic_queue.engines.conformance")


@pytest.fixture
def job_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobQueue]:
    """A fresh queue in `tmp_path`, which the module's functions act on, too, until the test ends.

    Its `clock` stands still, at the time when the test began, until it is moved.
    """
    import time

    from dbbasic_queue import queue
    from dbbasic_queue.testing import Clock, JobQueue

    path = tmp_path / "job_queue" / "queue.tsv"
    with JobQueue(path, Clock(time.time())) as fresh:
        monkeypatch.setenv("DBBASIC_QUEUE_FILE", fresh.path)
        monkeypatch.setattr(queue, "QUEUE_FILE", fresh.path)
        monkeypatch.setattr(queue, "_default", fresh)
        yield fresh
