"""Programs start processes in each of Python's ways while their threads use the queue."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from deployment import HERE, SECONDS, Site


@pytest.mark.parametrize("method", ["os.fork", "fork", "forkserver", "spawn"])
def test_each_job_runs_once_in_a_program_that_starts_processes_and_has_threads(
    tmp_path: Path, method: str
) -> None:
    site = Site(tmp_path)
    site.run([sys.executable, str(HERE / "many_processes.py"), method, str(SECONDS)])
    site.check()
    print((tmp_path / "program-1.out").read_text("utf-8").strip())
