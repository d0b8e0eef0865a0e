"""Checks of cron: that it runs, that a line starts a worker for this queue, that mail leaves."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
import time
from email.message import EmailMessage
from pathlib import Path
from shutil import which

from dbbasic_queue import __version__
from dbbasic_queue.cli.doctor.findings import Finding
from dbbasic_queue.cli.doctor.lines import Line
from dbbasic_queue.cli.messages import PROGRAM, program
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.monitoring.durations import number_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_DAEMONS = ("cron", "crond", "fcron", "supercronic", "dcron")
_MAIL_QUEUES = (
    "/var/spool/postfix/maildrop",
    "/var/spool/postfix/deferred",
    "/var/spool/exim4/input",
    "/var/spool/mqueue",
    "/var/spool/nullmailer/queue",
)
_MOST_MAILS = 20
_OLD_SECONDS = 3600.0
_SENDMAIL = ("/usr/sbin/sendmail", "/usr/lib/sendmail")
_PROGRAM_SECONDS = 20
_WRONG_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")


def check_cron(path: str, lines: list[Line], *, passes_run: bool) -> Iterator[Finding]:
    """Check what starts passes for the queue at a path: these lines, as `find_lines` returns them.

    `passes_run` is whether a pass is alive, or has ended recently. Then something starts them,
    whether it can be found here or not: a scheduler outside of this container, another user's
    crontab, a program.
    """
    in_crontabs = [line for line in lines if line.is_crontab]
    runs = _cron_runs()
    if runs:
        yield Finding("ok", "cron", f"{runs} runs")
    elif runs is None:
        yield Finding("note", "cron-unknown", "this user can't see whether cron runs")
    elif in_crontabs or not (passes_run or lines):
        yield Finding(
            "wrong",
            "cron-down",
            "no cron runs on this machine",
            "sudo systemctl enable --now cron   (apt install cron, if there is none)",
        )
    for line in lines:
        yield Finding("ok", "line", f"{line.place} starts a worker: {line.text}")
        yield from _check_line(line)
    if not lines:
        yield _no_line(path, passes_run=passes_run)
    if runs and in_crontabs:
        yield from check_mail()


def _no_line(path: str, *, passes_run: bool) -> Finding:
    if passes_run:
        return Finding(
            "note",
            "other-start",
            "passes run, but no crontab line or unit was found that starts them",
        )
    there = f"cd {shlex.quote(os.path.dirname(os.path.dirname(path)))} && "
    if program() != PROGRAM:  # another program's, which runs in its own directory
        there = ""
    return Finding(
        "wrong",
        "no-line",
        f"no crontab line or unit starts a worker for {path}, as far as this user can see",
        f"{there}dbbasic-queue crontab --install",
    )


def _cron_runs() -> str | None:
    """Return the name of the cron that runs, "" if none does, None if that can't be seen."""
    try:
        Path("/proc/1/comm").read_bytes()
    except OSError:
        return None  # not Linux, or this user sees only its own processes
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            comm = (directory / "comm").read_text(encoding="utf-8").strip()
            # Busybox is also a shell, a web server and much more.
            if comm == "busybox" and b"crond" in (directory / "cmdline").read_bytes().split(b"\0"):
                return "busybox crond"
            is_zombie = "\nState:\tZ" in (directory / "status").read_text(encoding="utf-8")
        except OSError:
            continue  # it has just ended
        if comm in _DAEMONS and not is_zombie:
            return comm
    return ""


# -- one line ----------------------------------------------------------------------------------


def _check_line(line: Line) -> Iterator[Finding]:
    if line.is_cut:
        yield Finding(
            "wrong",
            "percent",
            f"a line in {line.place} has a % without a backslash: cron cuts the line there",
            r"write \% instead of %",
        )
    if not line.words:
        yield Finding(
            "wrong", "quotes", f"a quote isn't closed in {line.place}: {line.text}", "crontab -e"
        )
        return
    name = os.path.basename(line.place)
    is_debian = os.path.exists("/etc/debian_version")
    if line.place.startswith("/etc/cron.") and is_debian and _WRONG_IN_NAME.search(name):
        yield Finding(
            "wrong",
            "line-ignored",
            f"Debian's cron ignores {line.place}, because its name has other characters than "
            "letters, digits, - and _",
            f"sudo mv {line.place} {line.place.removesuffix(name)}{_WRONG_IN_NAME.sub('-', name)}",
        )
    if line.directory and not os.path.isdir(line.directory) and _can_see(line.directory):
        yield Finding(
            "wrong",
            "line-directory",
            f"the line in {line.place} goes to {line.directory}, which isn't there",
            "crontab -e" if line.is_crontab else f"edit {line.place}",
        )
        return
    yield from _check_program(line)


def _can_see(path: str) -> bool:
    """Return whether this user would see the path if it were there."""
    while (parent := os.path.dirname(path)) != path:
        if os.path.isdir(parent):
            return os.access(parent, os.X_OK)
        path = parent
    return False


def _check_program(line: Line) -> Iterator[Finding]:
    """Check that the interpreter of a line is there, and which version of the package it runs."""
    word = next((w for w in line.words if _is_python(w)), None)
    if word is None:
        return
    program: str | None = (
        line.resolve(word) if "/" in word else which(word, path=line.settings["PATH"])
    )
    if program == "":
        return  # it can't be known here
    if program is None or (not os.access(program, os.X_OK) and _can_see(program)):
        where = "isn't there, or can't be run" if "/" in word else "isn't in cron's PATH"
        yield Finding(
            "wrong",
            "line-program",
            f"the line in {line.place} starts {word}, which {where}",
            "recreate the virtual environment, or write the program's absolute path",
        )
        return
    if os.path.basename(word) == "dbbasic-queue":
        script, program = program, _interpreter(program)
        if program and not os.access(program, os.X_OK) and _can_see(program):
            yield Finding(
                "wrong",
                "line-program",
                f"{script}, which {line.place} starts, needs {program}, which isn't there",
                "recreate the virtual environment: it was moved",
            )
            return
    if program and os.access(program, os.X_OK):
        yield from _check_version(line, program)


def _is_python(word: str) -> bool:
    name = os.path.basename(word)
    return bool(re.fullmatch(r"python[0-9.]*|pypy[0-9.]*|dbbasic-queue", name))


def _interpreter(script: str) -> str:
    """Return the interpreter that a script names, "" if it isn't a Python script."""
    try:
        with open(script, "rb") as file:
            first = file.readline(1000).decode("utf-8", "replace")
    except OSError:
        return ""
    words = first.removeprefix("#!").split()
    return words[0] if first.startswith("#!/") and words and _is_python(words[0]) else ""


def _check_version(line: Line, python: str) -> Iterator[Finding]:
    source = "import dbbasic_queue as d; print(getattr(d, '__version__', '1.0.0'))"
    identity = _identity(line)
    if identity is None:
        return
    try:
        done = subprocess.run(
            [python, "-c", source],
            cwd=line.directory or "/",
            env={"HOME": "/", **line.settings},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PROGRAM_SECONDS,
            check=False,
            **identity,
        )
    except (OSError, subprocess.SubprocessError):
        return
    if done.returncode:
        yield Finding(
            "wrong",
            "line-package",
            f"{python}, which {line.place} starts, can't import dbbasic_queue",
            f"{shlex.quote(python)} -m pip install dbbasic-queue",
        )
    elif done.stdout.strip() != __version__:
        found = printable(done.stdout.strip())
        yield Finding(
            "wrong",
            "mixed-versions",
            f"{python}, which {line.place} starts, has version {found}, and this command "
            f"{__version__}: versions must not be mixed",
            f"{shlex.quote(python)} -m pip install dbbasic-queue=={__version__}",
        )


def _identity(line: Line) -> dict[str, Any] | None:
    """Return as whom to start a line's program; None if this user may not.

    Another user's program must not run as this user, least of all as root.
    """
    try:
        me = pwd.getpwuid(os.geteuid()).pw_name
        if line.user in ("", me):
            return {}
        if os.geteuid() != 0:
            return None
        entry = pwd.getpwnam(line.user)
    except KeyError:
        return None
    groups = os.getgrouplist(line.user, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


# -- mail --------------------------------------------------------------------------------------


def check_mail() -> Iterator[Finding]:
    """Check whether cron's mail can leave the machine."""
    if sendmail() is None:
        yield Finding(
            "warning",
            "no-sendmail",
            "there is no sendmail program: cron can't mail you errors",
            "sudo apt install msmtp-mta   (or have the worker mail: docs/notifications.md)",
        )
        return
    for directory in _MAIL_QUEUES:
        try:
            names = [os.path.join(d, f) for d, _, fs in os.walk(directory) for f in fs]
            old = [n for n in names if time.time() - os.stat(n).st_mtime > _OLD_SECONDS]
        except OSError:
            continue
        if len(old) > _MOST_MAILS:
            waiting = number_of(len(old), "mail waits", "mails wait")
            yield Finding(
                "warning",
                "mail-stuck",
                f"{waiting} in {directory} for over an hour: mail doesn't leave this machine",
                "mailq; tail /var/log/mail.log",
            )
            return
    yield Finding("ok", "mail", f"{sendmail()} is there")


def sendmail() -> str | None:
    """Return the path of the sendmail program, None if there is none."""
    return next((name for name in _SENDMAIL if os.access(name, os.X_OK)), which("sendmail"))


def send_test_mail(to: str) -> Finding:
    """Have the sendmail program send a mail, as cron does."""
    program = sendmail()
    if program is None:
        return Finding(
            "wrong", "no-sendmail", "there is no sendmail program", "apt install msmtp-mta"
        )
    message = EmailMessage()
    message["To"], message["Subject"] = to, "dbbasic-queue doctor: a test"
    message.set_content("If you can read this, cron's mail arrives.\n")
    try:
        done = subprocess.run(
            [program, "-i", "--", to],
            input=bytes(message),
            capture_output=True,
            timeout=_PROGRAM_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return Finding("wrong", "test-mail", f"{program} failed: {e}", "mailq")
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip()
        return Finding("wrong", "test-mail", f"{program} failed: {printable(why)}", "mailq")
    return Finding("ok", "test-mail", f"{program} has accepted a mail to {to}: does it arrive?")
