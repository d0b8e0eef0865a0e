"""uWSGI, which forks in C, is started, reloaded and killed; each job it acknowledges runs once.

By default it imports the app before it forks, and doesn't run Python's fork hooks.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from deployment import Server, Site
from helpers import wait_for

PROGRAM = shutil.which("uwsgi", path=Path(sys.executable).parent)
REASON = "uWSGI isn't installed next to this Python (pip install pyuwsgi)"
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=REASON)

UWSGI = [str(PROGRAM), "--http-socket", "fd://{fd}", "--master", "--processes", "4"]
UWSGI += ["--worker-reload-mercy", "3"]  # a process that has just started may miss a SIGTERM
UWSGI += ["--module", "web_app:application", "--need-app", "--die-on-term", "--disable-logging"]
THREADS = ["--enable-threads", "--threads", "4"]


def kill(server: Server, pids: set[int]) -> str:
    with suppress(ProcessLookupError):
        os.kill(min(pids), signal.SIGKILL)
    return "Respawned uWSGI worker"


def reload(server: Server, pids: set[int]) -> str:
    server.signal(signal.SIGHUP)
    return "(RE)spawned uWSGI master"


def leave_alone(server: Server, pids: set[int]) -> str:
    return "spawned uWSGI master"


def wait_until_loaded(server: Server, words: str, each: bool) -> None:
    """Wait until every process has loaded the app.

    A signal during the import would raise KeyboardInterrupt.
    """

    def loaded() -> bool:
        log = server.log()
        started = log.count("pawned uWSGI worker") if each else 1
        return words in log and log.count("WSGI app 0 ") >= started

    wait_for(loaded, "the app to be loaded")


@pytest.mark.parametrize(
    ("options", "at_import"),
    [
        ([], ["enqueue", ""]),
        # No threads at import: if one runs while uWSGI forks without hooks, one of Python's own
        # locks may stay held in the child, whatever the thread does.
        (THREADS, ["enqueue", ""]),
        ([*THREADS, "--py-call-uwsgi-fork-hooks"], ["worker thread", "thread", "enqueue", ""]),
        ([*THREADS, "--lazy-apps"], ["worker thread", "thread"]),
    ],
    ids=["one-thread", "threads", "threads-and-fork-hooks", "threads-and-lazy-apps"],
)
def test_each_job_that_uwsgi_acknowledges_runs_once_and_no_start_hangs(
    tmp_path: Path, options: list[str], at_import: list[str]
) -> None:
    site = Site(tmp_path)
    kinds = ["threads", "once", "cancel"] if options else ["one", "once", "cancel"]
    disturbances = itertools.cycle([kill, leave_alone, reload])
    whats = itertools.cycle(at_import)
    while site.goes_on(at_least=len(at_import)):
        disturb = next(disturbances)
        with site.server(UWSGI + options, AT_IMPORT=next(whats)) as server:
            pids = site.order(server, 24, *kinds)
            words = disturb(server, pids)
            site.order(server, 24, *kinds)
            wait_until_loaded(server, words, "--lazy-apps" in options)
            server.end()
    assert site.unanswered <= 4 * site.starts
    site.check(may_be_killed="--py-call-uwsgi-fork-hooks" in options or "--lazy-apps" in options)
