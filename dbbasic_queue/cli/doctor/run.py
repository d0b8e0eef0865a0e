"""Runs the checks, prints what they find, and repairs what is safe."""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import nullcontext
from itertools import count

from dbbasic_queue.cli.doctor import cron, files, jobs, lock, machine
from dbbasic_queue.cli.doctor.findings import LEVELS, Finding
from dbbasic_queue.cli.doctor.lines import Line, find_lines
from dbbasic_queue.cli.doctor.names import files_of
from dbbasic_queue.cli.messages import complain, print_done, with_file
from dbbasic_queue.cli.queues import named_queue
from dbbasic_queue.cli.report import print_fields, print_json
from dbbasic_queue.cli.terminal import Terminal, wrapped
from dbbasic_queue.errors import QueueError
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.monitoring.status import Status
from dbbasic_queue.store import pass_log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.store.pass_log import EndedPass

_HOPELESS = ("no-directory", "no-queue", "no-header", "lock-held", "lock-access", "link")
"""With one of these, the jobs can't be read."""
_MOST_SHARE = 0.5
"""how much of the free space a copy may need"""
_STYLES = {"ok": None, "note": "dim", "warning": "magenta", "wrong": "red"}


def run(arguments: Namespace) -> int:
    """Check everything; return 1 if something is wrong, otherwise 0."""
    with named_queue(arguments, even_if_moved=True) as queue:
        found = list(_check(queue, arguments))
        if arguments.send_test_mail:
            found.append(cron.send_test_mail(arguments.send_test_mail))
        _print(found, arguments)
        code = int(any(finding.level == "wrong" for finding in found))
        if arguments.repair:
            code = _repair(queue, found, arguments)
    return code


def _check(queue: Queue, arguments: Namespace) -> Iterator[Finding]:
    path = queue.store.path
    found: list[Finding] = []
    lines: list[Line] = []
    if is_file := os.path.isabs(path):
        lines = find_lines(path)
        # Those who run its jobs must be able to use it, too.
        users = [line.user for line in lines if line.user not in ("", "root")]
        found = list(files.check_files(path, [*(arguments.user or []), *users]))
        if not any(finding.name == "no-directory" for finding in found):
            found += machine.check_machine(path)
        yield from found
    do_passes_run = is_file and jobs.passes_run([], _ended(path), queue.now())
    if not any(finding.name in _HOPELESS for finding in found):
        try:
            status = Status(queue.store, queue.now())
            do_passes_run = jobs.passes_run(status.live, status.ended, status.now)
            yield from jobs.check_jobs(queue, status)
        except (QueueError, OSError) as e:
            if not any(finding.level == "wrong" for finding in found):
                yield Finding("wrong", "unusable", str(e), "docs/operations.md, Incidents")
    if is_file:
        yield from cron.check_cron(path, lines, passes_run=do_passes_run)


def _ended(path: str) -> list[EndedPass]:
    """Return the passes that have ended, also of a queue that refuses to work."""
    try:
        return pass_log.read(path)
    except (QueueError, OSError):
        return []


def _print(found: list[Finding], arguments: Namespace) -> None:
    terminal = Terminal()
    ordered = sorted(found, key=lambda finding: -LEVELS.index(finding.level))
    for finding in ordered:
        finding.remedy = with_file(finding.remedy, arguments.file)
    if arguments.json:
        for finding in ordered:
            print_json(finding.as_dict())
        return
    if not terminal.is_screen:
        for finding in ordered:
            print_fields(finding.level, finding.name, finding.text, finding.remedy or None)
        return
    for finding in ordered:
        word = terminal.style(f"{finding.level:8}", _STYLES[finding.level])
        first, *rest = wrapped(terminal, " " * 8 + printable(finding.text), indent=" " * 8)
        print(word + first.strip())
        for line in rest:
            print(line)
        if finding.remedy and finding.level != "ok":
            print(" " * 8 + terminal.style(printable(finding.remedy), "bold"))
    wrong = sum(finding.level == "wrong" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    can_repair = sum(finding.repair is not None for finding in found)
    repair = with_file("dbbasic-queue doctor --repair", arguments.file)
    more = f"; {printable(repair)} mends some of it" if can_repair else ""
    print(f"\n{wrong} wrong, {warnings} to look at{more}")


def _repair(queue: Queue, found: list[Finding], arguments: Namespace) -> int:
    """Repair what is safe, after making a copy; return 1 if something stays wrong."""
    to_repair = [finding for finding in found if finding.repair is not None]
    if to_repair and os.path.isabs(queue.store.path):
        try:
            _tell(arguments, "copied", text=copy_files(queue.store.path))
        except OSError as e:
            return complain(f"nothing was repaired, because no copy could be made: {e}")
    tried: set[str] = set()
    while to_repair:
        for finding in to_repair:
            assert finding.repair is not None
            tried.add(finding.name)
            try:
                _tell(arguments, "repaired", finding.name, finding.repair())
            except (QueueError, OSError) as e:
                _tell(arguments, "failed", finding.name, str(e))
        found = list(_check(queue, arguments))  # the jobs of a closed directory can be read now
        to_repair = [f for f in found if f.repair is not None and f.name not in tried]
    return int(any(finding.level == "wrong" for finding in found))


def _tell(arguments: Namespace, what: str, name: str = "", text: str = "") -> None:
    if arguments.json:
        print_json({"level": what, "name": name or None, "text": text})
    else:
        print_done(what, *filter(None, (name, text)))


def copy_files(path: str) -> str:
    """Copy a queue's files to a new directory next to them, under its lock; return its path.

    Raises OSError, and leaves no copy, if that isn't possible.
    """
    names = [name for name in files_of(path) if os.path.isfile(name)]
    space = os.statvfs(os.path.dirname(path))
    if sum(map(os.path.getsize, names)) > space.f_bavail * space.f_frsize * _MOST_SHARE:
        raise OSError(errno.ENOSPC, "it would fill the disk", path)
    with lock.locked(path) if os.path.lexists(f"{path}.lock") else nullcontext():
        target = _new_directory(f"{path}.copy-{time.strftime('%Y%m%d-%H%M%S')}")
        # Others may be able to write to the directory around it: so no path is followed again.
        directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for name in names:
                _copy(name, directory)
        finally:
            os.close(directory)
    return target


def _new_directory(wanted: str) -> str:
    for number in count(1):
        target = wanted if number == 1 else f"{wanted}-{number}"
        try:
            os.mkdir(target, 0o700)
        except FileExistsError:
            continue
        return target
    raise AssertionError


def _copy(name: str, directory: int) -> None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, OSError) as e:
        if e.errno in (errno.ENOENT, errno.ELOOP):
            return  # a pass has removed it, or it's a link
        raise
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    target = os.open(os.path.basename(name), flags, 0o600, dir_fd=directory)
    with open(descriptor, "rb") as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy)
        copy.flush()
        os.fsync(copy.fileno())
        status = os.fstat(descriptor)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
