"""FastAPI under uvicorn, with a worker in its lifespan, is started and reloaded repeatedly."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from deployment import Site, missing

REASON = missing("fastapi", "uvicorn")
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

UVICORN = [sys.executable, "-m", "uvicorn", "--fd", "{fd}", "--no-access-log", "fastapi_app:app"]
KINDS = ("coroutine", "function", "background")


def test_each_job_of_a_fastapi_app_with_a_worker_in_its_lifespan_runs_once(tmp_path: Path) -> None:
    site = Site(tmp_path, clients=200)
    while site.goes_on():
        with site.server(UVICORN) as server:
            site.order(server, 200, *KINDS)
            server.end()
    assert not site.unanswered
    site.check()


def test_each_job_of_a_fastapi_app_in_two_reloaded_processes_runs_once(tmp_path: Path) -> None:
    site = Site(tmp_path, clients=40)
    while site.goes_on():
        with site.server([*UVICORN, "--workers", "2"]) as server:
            site.order(server, 40, *KINDS)
            server.signal(signal.SIGHUP)
            site.order(server, 40, *KINDS)
            server.end()
    assert not site.unanswered
    site.check()
