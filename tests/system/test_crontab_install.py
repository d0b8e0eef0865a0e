"""`dbbasic-queue crontab --install` under a real cron, by and for an ordinary user.

Cron's environment is bare: the C locale, a short PATH and, if this test has started cron, the umask
077. Takes one or two minutes, since cron starts a pass once a minute. It needs root, to create the
user, and Debian's cron.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import wait_for
from ordinary_user import ordinary_user, what_is_missing
from test_cron import A_MINUTE, cron

WHO = "Žofie — 渡辺 №1 100%"
HANDLERS = """
[greet]
command = ["sh", "-c", 'printf %s "$1"; env > env; umask > umask; id -un > user', "sh", "{who}"]
"""


def lacks() -> str:
    has_cron = shutil.which("cron", path="/usr/sbin:/usr/bin") is not None
    if sys.platform.startswith("linux") and not has_cron:
        return "needs cron (Debian: apt-get install cron)"
    return what_is_missing()


@pytest.mark.slow
@pytest.mark.skipif(bool(lacks()), reason=lacks())
def test_the_installed_line_runs_the_jobs_of_an_ordinary_user(tmp_path: Path) -> None:
    before = b"# mine\n\nMAILTO=nobody\n@yearly true\n"
    mask = os.umask(0o077)
    try:
        with ordinary_user("my app 100%") as user, cron(tmp_path):
            started_at = time.time()
            handlers = user.app / "handlers.toml"
            handlers.write_text(HANDLERS)
            shutil.chown(handlers, user.name)
            user.set_crontab(before)
            text = f'{{"who": "{WHO}"}}'
            user.queue_command("enqueue", "greet", text, "--id", "x", LC_ALL="C.UTF-8")
            # cron reads the crontabs again if the time of change, in whole seconds, is another one.
            wait_for(lambda: int(time.time()) > int(started_at) + 1, "the next second")
            user.queue_command("crontab", "--install")

            def status() -> str:
                return user.queue_command("show", "x", LC_ALL="C.UTF-8")

            wait_for(lambda: "\nstatus\tcompleted\n" in status(), "cron's pass", A_MINUTE)
            user.queue_command("crontab", "--remove")
            assert user.crontab() == before
            assert f'\nresult\t"{WHO}"\n' in status()
            assert (user.app / "worker.log").read_bytes() == b""  # so cron has mailed nothing
            assert (user.app / "user").read_text() == f"{user.name}\n"
            environment = (user.app / "env").read_text().splitlines()
            assert "LC_ALL=C.UTF-8" in environment
            found = sorted(v for v in environment if v.startswith(("PATH=", "LANG=", "LC_")))
            for process in Path("/proc").glob("[0-9]*"):  # the pass lingers for 55 seconds
                with suppress(FileNotFoundError):
                    if process.owner() == user.name:
                        os.kill(int(process.name), signal.SIGTERM)
            print(f"umask {(user.app / 'umask').read_text().strip()}, {' '.join(found)}")
    finally:
        os.umask(mask)
