"""Real power cuts: a file system is shut down under running processes, and mounted again.

ext4 and XFS, each on a loop device. The processes are stopped. `FS_IOC_SHUTDOWN` without a flush of
the log drops what the file system hasn't written yet, like a power cut. Then the processes are
killed, and the next mount replays the log. Next to the queue runs a control, which appends lines
and calls fsync: if it loses a line, the cut proves nothing. Needs root.
DBBASIC_QUEUE_CUTS is the number of cuts of each file system (5).
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import DEADLINE, wait_for

from dbbasic_queue import Queue

CUTS = int(os.environ.get("DBBASIC_QUEUE_CUTS", "5"))
SEED = int(os.environ.get("DBBASIC_QUEUE_SEED", "1"))
SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN
NO_LOG_FLUSH = 0x2
MEGABYTES = {"ext4": 64, "xfs": 320}
MONTH = 30 * 86_400
PROGRAMS = ("control", "enqueue", "bulk", "work", "work")


# -- the programs; they report acknowledged calls to a pipe, outside the dying file system --------


def control(place: Path, report: Any) -> None:
    fd = os.open(place / "control", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    directory = os.open(place, os.O_RDONLY)
    os.fsync(directory)
    # Like the queue, first end a line that the last cut has torn. Otherwise the next line would
    # become a part of the torn one, even though it is synced.
    os.write(fd, b"\n")
    for n in range(10**9):
        os.write(fd, f"line {os.getpid()} {n}\n".encode())
        os.fsync(fd)
        report(f"line {os.getpid()} {n}")


def enqueue(place: Path, report: Any) -> None:
    queue = Queue(place / "data" / "queue.tsv")
    rng = random.Random(os.getpid())
    for n in range(10**9):
        text = "x" * rng.choice((0, 10, 700, 5000))
        do = rng.choice(("ok", "ok", "ok", "fail"))
        report(f"kept {queue.enqueue('step', {'do': do, 'text': text})}")
        if n % 5 == 0:
            job_id = queue.enqueue("step", {"do": "never"}, time.time() + MONTH)
            report(f"kept {job_id}")
            assert queue.cancel_job(job_id)
            report(f"final {job_id} cancelled")


def bulk(place: Path, report: Any) -> None:
    queue = Queue(place / "data" / "queue.tsv")
    while True:
        for job_id in queue.enqueue_many("step", [{"do": "ok", "text": "y" * 300}] * 20):
            report(f"kept {job_id}")
        time.sleep(0.01)


def work(place: Path, report: Any) -> None:
    queue = Queue(place / "data" / "queue.tsv")
    reader = Queue(place / "data" / "queue.tsv")
    ended: list[str] = []

    def step(payload: dict[str, str]) -> None:
        # Only now is it certain that the outcomes of earlier jobs are recorded.
        while ended:
            report(f"final {ended.pop()} completed")
        if payload["do"] == "fail":
            raise ValueError("not this time")

    while True:
        before = {job["id"] for job in reader.jobs(status="completed")}
        queue.process_jobs({"step": step})
        for job in reader.jobs(status="completed"):
            if job["id"] not in before:
                report(f"final {job['id']} completed")
        time.sleep(0.005)


# -- the cut -----------------------------------------------------------------------------------


def run(*command: str | Path) -> None:
    subprocess.run([os.fspath(part) for part in command], check=True, capture_output=True)


def unmount(place: Path) -> None:
    for _ in range(100):
        done = subprocess.run(["umount", place], capture_output=True, text=True)
        if done.returncode == 0:
            wait_for(lambda: not is_in_use(place.with_name("image")), "the end of the file system")
            return
        time.sleep(0.05)
    run("umount", "--lazy", place)
    raise AssertionError(f"{place} stays busy: {done.stderr}")


def is_in_use(image: Path) -> bool:
    """Return whether the image is still mounted, perhaps in a mount namespace of another test."""
    found = subprocess.run(["losetup", "-j", image], capture_output=True, check=True)
    return found.stdout != b""


@contextmanager
def file_system(kind: str) -> Iterator[tuple[Path, Path]]:
    """Yield the image and its mount point; skip the test if it can't be mounted."""
    if os.geteuid() != 0:
        pytest.skip("a power cut needs root: mount and FS_IOC_SHUTDOWN")
    for program in (f"mkfs.{kind}", "mount", "umount"):
        if shutil.which(program) is None:
            pytest.skip(f"a power cut on {kind} needs {program}")
    # Not pytest's directory: the next session would empty it if the mount stayed.
    home = Path(tempfile.mkdtemp(prefix="power-cut-"))
    image, place = home / "image", home / "mounted"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(MEGABYTES[kind] << 20)
    run(f"mkfs.{kind}", "-q", image)
    done = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True)
    try:
        if done.returncode:
            pytest.skip(f"{kind} cannot be mounted on a loop device here: {done.stderr.strip()}")
        yield image, place
    finally:
        if os.path.ismount(place):
            unmount(place)
        shutil.rmtree(home)


def shut_down(place: Path, kind: str) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    except OSError as e:
        if e.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            pytest.skip(f"this kernel's {kind} has no FS_IOC_SHUTDOWN")
        raise
    finally:
        os.close(fd)


def stop(running: list[subprocess.Popen[bytes]]) -> None:
    """Stop the programs, so that none of them sees the shutdown.

    An fsync that runs while XFS is shut down may return as if it had succeeded, and the control
    loses lines. With a power cut, no program can see that.
    """
    for process in running:
        process.send_signal(signal.SIGSTOP)
    for process in running:
        stat = Path(f"/proc/{process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] not in ("T", "Z"):
            time.sleep(0.001)


def cut_once(kind: str, image: Path, place: Path, home: Path, seconds: float) -> list[list[str]]:
    """Let the programs run for a moment, cut the power, mount again; return what they reported."""
    read_end, write_end = os.pipe()
    running = [
        subprocess.Popen(
            [sys.executable, __file__, program, place / home, str(write_end)],
            pass_fds=[write_end],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for program in PROGRAMS
    ]
    os.close(write_end)
    content = b""
    try:
        end = None
        patience = time.monotonic() + 4 * DEADLINE
        while end is None or time.monotonic() < end:
            assert time.monotonic() < patience, f"not all programs report: {content[-500:]!r}"
            # All programs have started when each of the three kinds of report was read.
            os.set_blocking(read_end, False)
            try:
                content += os.read(read_end, 1 << 16)
            except BlockingIOError:
                time.sleep(0.002)
            if end is None and all(word in content for word in (b"line", b"kept", b"final")):
                end = time.monotonic() + seconds
            assert all(p.poll() is None for p in running), "a program ended before the cut"
        stop(running)
        shut_down(place, kind)
    finally:
        for process in running:
            process.send_signal(signal.SIGKILL)
        for process in running:
            process.wait(DEADLINE)
        with suppress(BlockingIOError):  # all that they have written is in the pipe
            while more := os.read(read_end, 1 << 16):
                content += more
        os.close(read_end)
    unmount(place)
    run("mount", "-o", "loop", image, place)
    return [line.split() for line in content.decode().split("\n")[:-1]]


def check(place: Path, reports: list[list[str]]) -> None:
    """Compare what the cut has left with all reports since the directory was created."""
    lines = (place / "control").read_text().split("\n") if (place / "control").exists() else []
    control_lines = set(lines)
    lost = [
        words for words in reports if words[0] == "line" and " ".join(words) not in control_lines
    ]
    assert not lost, f"the control has lost {len(lost)} lines: this cut proves nothing"
    with Queue(place / "data" / "queue.tsv") as queue:
        for when in ("as found", "after a pass"):
            if when == "after a pass":
                queue.process_jobs({"step": lambda _: None})
                assert not queue.counts()["processing"]
            jobs = {job["id"]: job for job in queue.jobs()}
            for word, job_id, *status in reports:
                if word in ("kept", "final"):
                    assert job_id in jobs, f"{when}: {job_id} was {word}, but is lost"
                if word == "final":
                    assert jobs[job_id]["status"] == status[0], f"{when}: {jobs[job_id]}"
    file = (place / "data" / "queue.tsv").read_bytes()
    assert file.endswith(b"\n") and b"\0" not in file


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_loses_nothing_that_was_acknowledged(kind: str) -> None:
    began = time.monotonic()
    rng = random.Random(f"{SEED} {kind}")
    reported: Counter[str] = Counter()
    with file_system(kind) as (image, place):
        reports: list[list[str]] = []
        for n in range(CUTS):
            home = place / f"home{n // 3}"
            if n % 3 == 0:  # each directory goes through three cuts, and is new in the first
                shutil.rmtree(place / f"home{n // 3 - 1}", ignore_errors=True)
                home.mkdir()
                os.sync()
                reports = []
            seconds = rng.choice((0.0, 0.02, 0.1, 0.3)) * rng.random()
            now = cut_once(kind, image, place, Path(home.name), seconds)
            reports += now
            reported += Counter(words[0] for words in now)
            check(home, reports)
    print(
        f"{kind}: {CUTS} power cuts after {reported['kept']} enqueues and {reported['final']} "
        f"ends, and {reported['line']} lines of the control; nothing lost; seed {SEED}, "
        f"{time.monotonic() - began:.0f} s",
    )


if __name__ == "__main__":
    out = int(sys.argv[3])
    {"control": control, "enqueue": enqueue, "bulk": bulk, "work": work}[sys.argv[1]](
        Path(sys.argv[2]), lambda text: os.write(out, (text + "\n").encode())
    )
