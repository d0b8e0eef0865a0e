"""gunicorn is started, reloaded and killed repeatedly; each job it acknowledges runs once."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from deployment import Server, Site, missing

pytestmark = pytest.mark.skipif(bool(missing("gunicorn")), reason=missing("gunicorn"))

KINDS = ("threads", "once", "cancel")
GUNICORN = [sys.executable, "-m", "gunicorn", "--bind", "fd://{fd}", "--workers", "3"]
GUNICORN += ["--graceful-timeout", "2"]  # it may miss a SIGTERM while it starts workers
GUNICORN += ["--no-control-socket", "web_app:application"]


def kill(server: Server, pids: set[int]) -> None:
    with suppress(ProcessLookupError):
        os.kill(min(pids), signal.SIGKILL)


def reload(server: Server, pids: set[int]) -> None:
    server.signal(signal.SIGHUP)


def more_and_fewer(server: Server, pids: set[int]) -> None:
    server.signal(signal.SIGTTIN)
    server.signal(signal.SIGTTOU)


@pytest.mark.parametrize(
    "options",
    [["--preload"], ["--preload", "--threads", "4"], ["--threads", "4", "--max-requests", "8"]],
    ids=["preload", "preload-and-threads", "threads-and-max-requests"],
)
def test_each_job_that_gunicorn_acknowledges_runs_once_and_no_start_hangs(
    tmp_path: Path, options: list[str]
) -> None:
    site = Site(tmp_path)
    disturbances = itertools.cycle([kill, reload, more_and_fewer])
    at_import = itertools.cycle(["worker thread", "thread", "enqueue thread", ""])
    while site.goes_on(at_least=4):
        disturb = next(disturbances)
        with site.server(GUNICORN + options, AT_IMPORT=next(at_import)) as server:
            pids = site.order(server, 12, *KINDS)
            disturb(server, pids)
            site.order(server, 12, *KINDS)
            server.end()
    assert site.unanswered <= 4 * site.starts
    site.check(may_be_killed=True)
