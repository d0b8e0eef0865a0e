"""Programs start processes, in every way that Python has, while their threads use the queue."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from deployment import HERE, SECONDS, Site


@pytest.mark.parametrize("method", ["os.fork", "fork", "forkserver", "spawn"])
def test_each_job_of_a_program_that_starts_processes_beside_threads_runs_once(
    tmp_path: Path, method: str
) -> None:
    site = Site(tmp_path)
    site.run([sys.executable, str(HERE / "many_processes.py"), method, str(SECONDS)])
    site.check()
    print((tmp_path / "program-1.out").read_text("utf-8").strip())
