"""One attacked run of a workload in a forked child, and the recovery after it.

The files are in /dev/shm if the machine has it, so that a run takes milliseconds. A kill doesn't
depend on what has reached the disk (a power cut does: `power.py`).
"""

from __future__ import annotations

import gc
import glob
import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from bench import DAY, Bench, Log
from checks import check_crashed, check_recovered, check_settled
from disk import FINAL, Disk, archive_of, read_disk
from promises import Promises
from shim import Call, Plan, Shim
from workloads import Workload

import dbbasic_queue.passes.executor
import dbbasic_queue.passes.ticker
from dbbasic_queue import lazy

HANGS_AFTER = 20
"""seconds after which a child is killed by SIGALRM"""
JUMP = 100_000
"""seconds by which `settle` moves the clock before each pass: longer than any job waits"""
ROUNDS = 8
"""how many passes `settle` makes at most"""


def start(work: Callable[[], None]) -> int:
    """Do the work in a forked child; return its process id. A child that hangs gets SIGALRM."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(HANGS_AFTER)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - the child must end here
        traceback.print_exc()
    finally:
        os._exit(code)


def patch_constant(module: ModuleType, name: str, value: object) -> None:
    """Set a module's constant. Raises AttributeError if the module has no such constant."""
    getattr(module, name)
    setattr(module, name, value)


class Attack:
    """One attacked run of a workload, and the recovery after it.

    The files are in `base`; those of the attack before this one are removed.
    """

    def __init__(self, base: str, workload: Workload) -> None:
        self.workload = workload
        self.root = os.path.join(base, "queue")
        self.trace_file = os.path.join(base, "trace")
        for path in (self.root, os.path.join(base, "log")):
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)
        os.mkdir(self.root)
        self.path = os.path.join(self.root, "web", "data", "queue.tsv")
        self.log = Log(os.path.join(base, "log"))
        self.bench = Bench(self.path, self.log)
        self.trace: list[Call] = []
        """the file calls of the last attacked process that wasn't killed"""
        self.imported: list[str] = []
        """the modules that this process had imported at its end"""
        self.loaded: list[list[str]] = []
        """the functions that it had called for `lazy.load`: module and name"""
        self._promises = Promises([])
        self.wrong: list[str] = []
        """the mistakes that were found, as in `checks`"""
        self.kills = 0
        """how many attacked processes were killed as planned"""
        self.partner = 0
        """the process id of the partner, whose pass is alive; 0 if there is none"""
        self._wake = -1
        """the end of a pipe; closing it lets the partner's job finish"""
        self._recovery = 0
        """the process id of the recovery, which makes the last passes, too"""
        self._go = -1
        """the end of a pipe, for the instant of the last passes"""

    def prepare(self) -> None:
        """Create the workload's files, and start its partner."""
        self.workload.prepare(self.bench)
        if self.workload.damage is not None:
            self._start_partner()
            self.workload.damage(self.bench)

    def _start_partner(self) -> None:
        wait_read, self._wake = os.pipe()
        ready, ready_write = os.pipe()
        bench = self.bench

        def work() -> None:
            os.close(self._wake)
            # Otherwise it would fold while its job waits.
            patch_constant(dbbasic_queue.passes.executor, "_SLOW_SECONDS", 1e9)
            bench.pipes = (wait_read, ready_write)
            bench.work()

        self.partner = start(work)
        os.close(wait_read)
        os.close(ready_write)
        if os.read(ready, 1) != b"!":
            raise RuntimeError("the partner hasn't started its job")
        os.close(ready)

    def end_partner(self) -> None:
        if self.partner:
            os.close(self._wake)
            self._wait(self.partner, "the partner")
            self.partner = 0

    def attack(
        self,
        work: Callable[[Bench], None],
        plan: Plan | None,
        error: bool = False,
        act: Callable[[Bench], None] = lambda _: None,
    ) -> None:
        """Do the work in a child. Its file calls are counted; the plan attacks one of them.

        With `error`, the child goes on after the work: it makes passes while calls still fail (a
        `lasting` plan), and then adds a job "post" and runs it, without errors. `act` is what
        another process does, for plans with the phase "act".
        """
        shim = Shim(self.root, plan)
        shim.on_error = lambda site: self.log.add("error", site)
        shim.act = lambda: act(self.bench)

        def child() -> None:
            _steady_times(self.bench, self.workload.folds_seem_expensive)
            shim.install()
            work(self.bench)
            if error:
                self._after_error(shim)
            shim.on = False
            calls = [[call.name, call.file, call.site, call.locked] for call in shim.trace]
            loaded = [[function.__module__, function.__name__] for function in lazy._loaded]
            with open(self.trace_file, "w", encoding="utf-8") as file:
                file.write(json.dumps([calls, list(sys.modules), loaded]))

        if os.path.exists(self.trace_file):
            os.unlink(self.trace_file)
        if self._wait(start(child), "the attacked process"):
            self.kills += 1
        else:
            with open(self.trace_file, encoding="utf-8") as file:
                calls, self.imported, self.loaded = json.load(file)
            self.trace = [Call(*call) for call in calls]

    def _after_error(self, shim: Shim) -> None:
        bench = self.bench
        if shim.plan and shim.plan.lasting:
            for _ in range(3):
                bench.work()
        shim.plan = None
        bench.log.add("over")
        bench.enqueue("post")
        bench.work()

    def _wait(self, pid: int, who: str) -> bool:
        """Wait for a child's end; return whether it was killed as planned."""
        _, status = os.waitpid(pid, 0)
        self.log.add("dead", pid)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return True
        if os.WIFSIGNALED(status):
            self.wrong.append(f"{who} was killed by signal {os.WTERMSIG(status)}: it hung")
        elif status:
            self.wrong.append(f"{who} ended with {os.waitstatus_to_exitcode(status)}")
        return False

    def promises(self) -> Promises:
        """Return what the log promises by now. Don't change it."""
        events = self.log.events()
        if len(events) != len(self._promises.events):
            self._promises = Promises(events)
        return self._promises

    def check(self, events: int = 1) -> Disk:
        """Check the files as they are, after `events` kills and errors; log the final jobs."""
        self.log_interrupted_changes()
        disk = read_disk(self.path)
        self.wrong += check_crashed(disk, self.promises(), self.workload.junk, events)
        for job in disk.jobs:
            if job.status in FINAL:
                self.log.add("final", job.id, job.status)
        return disk

    def log_interrupted_changes(self) -> None:
        """Log for each change during which a process was killed whether it was made."""
        disk = read_disk(self.path)
        for operation, keys in self.promises().underway.values():
            made = disk.made(operation, keys)
            if len(made) > 1:
                self.wrong.append(f"P2: {operation} of {keys} is only partly made")
            self.log.add("made", " ".join(keys), operation, True in made)

    def recover(self, plan: Plan | None = None) -> None:
        """Make one pass in a new process, at the time of the crash, and check what it did.

        With a plan, attack this pass instead, and check nothing. Otherwise, call `settle` next: the
        process waits for it, because most of what a process costs here is its start.
        """
        promises = self.promises()
        before = read_disk(self.path)
        alive = frozenset(("c1",)) if self.partner else frozenset()
        if plan is not None:
            self.attack(lambda bench: self._pass(bench, promises.now), plan)
            return
        wait, self._go = os.pipe()
        done, done_write = os.pipe()

        def work() -> None:
            os.close(self._go)
            if self.partner:
                os.close(self._wake)
            self._pass(self.bench, promises.now)
            os.write(done_write, b"!")
            self._last_passes(float(os.read(wait, 100)))

        self._recovery = pid = start(work)
        os.close(wait)
        os.close(done_write)
        if os.read(done, 1) != b"!":
            self._end_recovery("the recovery")
        os.close(done)
        started = self.promises().starts_by.get(pid, set())
        after = read_disk(self.path)
        self.wrong += check_recovered(before, after, promises, started, alive)

    @staticmethod
    def _pass(bench: Bench, now: float) -> None:
        bench.queue = bench.open()
        bench.now = now
        bench.work()

    def settle(self, events: int) -> Disk:
        """Make passes until all jobs are final, and check the result.

        `events` is how many kills and errors there were.
        """
        self.end_partner()
        now = self.promises().now
        if self._recovery:
            os.write(self._go, repr(now).encode())
            self._end_recovery("the last passes")
        else:
            self._wait(start(lambda: self._last_passes(now)), "the last passes")
        disk = read_disk(self.path)
        promises = self.promises()
        self.wrong += check_settled(disk, promises, self.workload.junk, events)
        return disk

    def _last_passes(self, now: float) -> None:
        bench = self.bench
        bench.queue = bench.open()
        bench.now = now
        bench.enqueue("last")  # a torn last line must not tear this one
        for job_type in read_disk(self.path).paused:
            bench.resume(job_type)
        if os.path.exists(archive_of(self.path)):
            bench.archive(DAY)  # this repairs a torn archive
        for n in range(1, ROUNDS + 1):
            bench.set_clock(now + n * JUMP)
            bench.work()
            counts = bench.queue.counts()
            if not counts["pending"] and not counts["processing"]:
                break

    def _end_recovery(self, who: str) -> None:
        os.close(self._go)
        self._wait(self._recovery, who)
        self._recovery = 0

    def state(self) -> tuple[str, str]:
        """Return a digest of the files, and one of the files and the log.

        Each is the same for another attack if only random ids, processes' ids, the times at which
        passes started, and checksums differ: then a recovery has the same work to do.
        """
        events = self.log.events()
        processes = {str(event[2] if event[1] == "dead" else event[0]) for event in events}
        names: dict[bytes, bytes] = {}
        random = re.compile(rf"\b(?:{'|'.join(processes)})\b|[0-9a-f]{{16}}".encode())

        def plain(content: bytes) -> bytes:
            content = re.sub(rb"(?m)^(pass\t\d+)\t\d+|\t[0-9a-f]{8}$", rb"\1\t", content)
            return random.sub(lambda id: names.setdefault(id[0], b"<%d>" % len(names)), content)

        digest = hashlib.sha256()
        for path in sorted(glob.glob(f"{self.root}/**", recursive=True, include_hidden=True)):
            digest.update(plain(f"{path}\0{os.stat(path).st_mode:o}\0".encode()))
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    digest.update(plain(file.read()) + b"\0")
        files = digest.hexdigest()
        for _, what, *rest in events:
            digest.update(plain(json.dumps([what, *rest]).encode()) + b"\0")
        return files, digest.hexdigest()


def _steady_times(bench: Bench, folds_seem_expensive: bool) -> None:
    """Make the measured times the same in each run, so that each run makes the same calls.

    Jobs seem quick, and folds cheap, or expensive if `folds_seem_expensive`.
    """
    sleep = time.sleep
    bench.ticks = 0.0
    gc.disable()
    counter = itertools.count(step=1_000_000 if folds_seem_expensive else 0)
    time.perf_counter = lambda: float(next(counter))
    time.monotonic = lambda: bench.ticks or 0.0
    time.sleep = lambda seconds: sleep(min(float(seconds), 0.0005))
    patch_constant(dbbasic_queue.passes.ticker, "_TICK_SECONDS", 0.01)


@contextmanager
def scratch() -> Iterator[str]:
    """A directory for the files of a sweep, in memory if possible."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    base = tempfile.mkdtemp(prefix="queue-crash-", dir=memory)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def trace_of(base: str, workload: Workload) -> list[Call]:
    """Run the workload without an attack; return its calls. Raises AssertionError if it fails.

    Imports what the attacked process has imported, so that none of thousands has to.
    """
    attack = Attack(base, workload)
    attack.prepare()
    attack.attack(workload.script, None)
    attack.check(0)
    attack.settle(0)
    for name in attack.imported:
        importlib.import_module(name)
    for module, name in attack.loaded:
        lazy.load(getattr(sys.modules[module], name))
    gc.freeze()  # so that children don't copy the parent's memory
    raised = [text for _, _, (*_, text) in attack.promises().raised]
    assert not attack.wrong + raised, attack.wrong + raised
    return attack.trace
