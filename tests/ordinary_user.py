"""An ordinary user of this machine with an app of its own, for tests that run as root.

The user is created for the test and removed after it. Its Python is a virtual environment in the
app's directory, with a copy of the package, because it may not be able to read the tests' own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

import dbbasic_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

BARE = {"PATH": "/usr/bin:/bin", "LANG": "C"}
PYTHONS = ("/usr/bin/python3", "/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11")
CHECK = "import sys, venv; sys.exit(sys.version_info < (3, 11))"


def what_is_missing() -> str:
    """Return why no user can be created here; "" if one can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux, to create a user"
    missing = [name for name in ("useradd", "crontab") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return "" if _python() else "needs a system-wide Python 3.11 or newer"


def _python() -> str:
    for program in PYTHONS:
        if os.access(program, os.X_OK):
            done = subprocess.run([program, "-c", CHECK], capture_output=True, check=False)
            if done.returncode == 0:
                return program
    return ""


class User:
    """A user, and the directory of an app that belongs to it."""

    def __init__(self, name: str, app: Path) -> None:
        self.name = name
        self.app = app
        self.python = app / ".venv/bin/python"

    @property
    def entry(self) -> pwd.struct_passwd:
        return pwd.getpwnam(self.name)

    def run(
        self, *command: str, cwd: Path | None = None, stdin: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, in its app, in cron's bare environment."""
        return subprocess.run(
            command,
            cwd=cwd or self.app,
            env={**BARE, "HOME": self.entry.pw_dir, "LOGNAME": self.name, **env},
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
            umask=0o077,
            user=self.name,
            group=self.entry.pw_gid,
            extra_groups=[],
        )

    def queue_command(self, *arguments: str, cwd: Path | None = None, **env: str) -> str:
        """Run a dbbasic-queue command as this user; return its output."""
        done = self.run(str(self.python), "-m", "dbbasic_queue", *arguments, cwd=cwd, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def crontab(self) -> bytes | None:
        """Return the user's crontab as the crontab program stores it; None if there is none."""
        return self._read(["crontab", "-u", self.name, "-l"])

    @staticmethod
    def _read(command: list[str]) -> bytes | None:
        env = {**os.environ, "CRONTAB_NOHEADER": "N", "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, env=env, check=False)
        if done.returncode:
            assert b"no crontab for" in done.stderr
            return None
        lines = done.stdout.splitlines(keepends=True)
        # The second line of Debian's header is the time of the last change.
        return b"".join(lines[3:] if lines[0].startswith(b"# DO NOT EDIT") else lines)

    def set_crontab(self, content: bytes | None) -> None:
        """Replace the user's crontab, as the user would."""
        command = ["crontab", "-u", self.name, "-r" if content is None else "-"]
        subprocess.run(command, input=content, capture_output=True, check=content is not None)


@contextmanager
def ordinary_user(directory_name: str = "app") -> Iterator[User]:
    """Create a user with an app, and remove both at the end."""
    name = f"dbq{os.getpid()}"
    # Not a fixture's directory: only root may enter those.
    place = Path(tempfile.mkdtemp(prefix="dbbasic-queue-user-", dir="/tmp"))
    place.chmod(0o755)
    command = ["useradd", "--home-dir", str(place / "home"), "--create-home", "--shell", "/bin/sh"]
    subprocess.run([*command, name], check=True, capture_output=True, timeout=60)
    try:
        app = place / directory_name
        subprocess.run(
            [_python(), "-m", "venv", "--without-pip", str(app / ".venv")], check=True, timeout=60
        )
        [packages] = (app / ".venv").glob("lib/python3*/site-packages")
        for module in (dbbasic_queue, filelock):
            source = Path(str(module.__file__)).parent
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, packages / source.name, ignore=ignored)
        subprocess.run(["chown", "-R", f"{name}:", str(app)], check=True, timeout=60)
        yield User(name, app)
    finally:
        subprocess.run(["crontab", "-u", name, "-r"], capture_output=True, check=False)
        subprocess.run(["userdel", "--force", name], capture_output=True, check=True, timeout=60)
        shutil.rmtree(place)
