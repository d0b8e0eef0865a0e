"""Runs the attacks: one forked process for each point, from a parent that has all imported.

    python tests/crash/sweep.py kill WORKLOAD [EVERY]      kill at each call
    python tests/crash/sweep.py double WORKLOAD [EVERY]    ... and again in the recovery
    python tests/crash/sweep.py creations WORKLOAD [EVERY] kill at each creation, for a group
    python tests/crash/sweep.py meetings WORKLOAD [EVERY]  let others act at each call
    python tests/crash/sweep.py errors WORKLOAD [EVERY]    refuse each call
    python tests/crash/sweep.py pairs WORKLOAD [EVERY]     ... and one of those that come of that

EVERY is the step through the points (1: all of them); of each kind of call, told by its name, its
file and who makes it, there is one at least for each moment of a kill, and one for the errors. The
last line printed is a JSON object with
the counts and with what is wrong; with DBBASIC_QUEUE_STOP=1 the sweep ends at the first of that.
The files lie in memory where the machine has /dev/shm: a kill does not ask what is on the disk
(`power.py` does), and so a run takes milliseconds.
"""

from __future__ import annotations

import errno
import gc
import hashlib
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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from bench import DAY, Bench, Log
from checks import check_crashed, check_errors, check_recovered, check_settled
from disk import FINAL, Disk, archive_of, read_disk
from promises import Promises
from shim import PRESENT_IN, Call, Plan, Shim, changes
from workloads import MEANWHILE, WORKLOADS, Workload, tear

import dbbasic_queue.store.slots
import dbbasic_queue.worker

HANGS_AFTER = 20
JUMP = 100_000
ROUNDS = 8
REACH = 3


class EnoughFound(Exception):
    """Raised if one violation is all that the caller wants to know."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


@dataclass
class Result:
    """What a sweep has done and found."""

    points: int = 0
    runs: int = 0
    kills: int = 0
    errors: int = 0
    unmet: int = 0
    states: set[str] = field(default_factory=set)
    wrong: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, plan: object, site: str, sentences: list[str]) -> None:
        for sentence in sentences:
            kind = re.sub(r"\d{4,}|[0-9a-f]{16}", "N", sentence)[:300]
            self.wrong[kind] += 1
            self.first.setdefault(kind, f"{plan} ({site}): {sentence}")
        if sentences and os.environ.get("DBBASIC_QUEUE_STOP") == "1":
            raise EnoughFound(self)

    def as_dict(self) -> dict[str, Any]:
        return {
            "points": self.points,
            "runs": self.runs,
            "kills": self.kills,
            "errors": self.errors,
            "unmet": self.unmet,
            "states": len(self.states),
            "wrong": [f"{count} x {self.first[kind]}" for kind, count in self.wrong.most_common()],
        }


def start(work: Callable[[], None]) -> int:
    """Do the work in a forked child; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(HANGS_AFTER)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may go on in the child
        traceback.print_exc()
    finally:
        os._exit(code)


class Attack:
    """One run of a workload, and what comes after it."""

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
        self.wrong: list[str] = []
        self.kills = 0
        self.partner = 0
        self._wake = -1

    def lay(self) -> None:
        """Put the workload's files there, and start its partner."""
        self.workload.lay(self.bench)
        if self.workload.ruin is not None:
            self._start_partner()
            self.workload.ruin(self.bench)

    def _start_partner(self) -> None:
        wait_read, self._wake = os.pipe()
        ready, ready_write = os.pipe()
        bench = self.bench

        def work() -> None:
            os.close(self._wake)
            vars(dbbasic_queue.worker)["_SLOW"] = 1e9  # it would fold while we look
            bench.pipes = (wait_read, ready_write)
            bench.work()

        self.partner = start(work)
        os.close(wait_read)
        os.close(ready_write)
        if os.read(ready, 1) != b"!":
            raise RuntimeError("the partner has not begun its job")
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
        meanwhile: Callable[[Bench], None] = lambda _: None,
    ) -> None:
        """Do the work in a child whose calls are counted, killed or refused."""
        shim = Shim(self.root, plan)
        shim.told = lambda site: self.log.say("error", site)
        shim.meanwhile = lambda: meanwhile(self.bench)

        def child() -> None:
            _steady_times(self.bench, self.workload.dear)
            shim.install()
            work(self.bench)
            if error:
                self._after_error(shim)
            shim.on = False
            calls = [[call.name, call.file, call.site, call.locked] for call in shim.trace]
            with open(self.trace_file, "w", encoding="utf-8") as file:
                json.dump(calls, file)

        if os.path.exists(self.trace_file):
            os.unlink(self.trace_file)
        if self._wait(start(child), "the attacked process"):
            self.kills += 1
        else:
            with open(self.trace_file, encoding="utf-8") as file:
                self.trace = [Call(*call) for call in json.load(file)]

    def _after_error(self, shim: Shim) -> None:
        bench = self.bench
        if shim.plan and shim.plan.lasting:
            for _ in range(3):
                bench.work()
        shim.plan = None
        bench.log.say("gone")
        bench.enqueue("post")
        bench.work()

    def _wait(self, pid: int, who: str) -> bool:
        """Wait for a child's end; tell whether it was killed as planned."""
        _, status = os.waitpid(pid, 0)
        self.log.say("dead", pid)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return True
        if os.WIFSIGNALED(status):
            self.wrong.append(f"{who} was ended by signal {os.WTERMSIG(status)}: it hung")
        elif status:
            self.wrong.append(f"{who} ended with {os.waitstatus_to_exitcode(status)}")
        return False

    def promises(self) -> Promises:
        return Promises(self.log.events())

    def look(self, events: int = 1) -> Disk:
        """Check the files as they are; remember what is final."""
        self.see_what_is_made()
        disk = read_disk(self.path)
        self.wrong += check_crashed(disk, self.promises(), self.workload.junk, events)
        for job in disk.jobs:
            if job.status in FINAL:
                self.log.say("final", job.id, job.status)
        return disk

    def see_what_is_made(self) -> None:
        """Note of the changes in which a process was killed whether they are made: all, or none."""
        disk = read_disk(self.path)
        for operation, keys in self.promises().underway.values():
            made = disk.made(operation, keys)
            if len(made) > 1:
                self.wrong.append(f"P2: {operation} of {keys} is half made")
            self.log.say("made", " ".join(keys), operation, True in made)

    def recover(self, plan: Plan | None = None) -> None:
        """Let a fresh process make one pass, at the time of the crash."""
        promises = self.promises()
        before = read_disk(self.path)
        alive = frozenset(("c1",)) if self.partner else frozenset()
        if plan is not None:
            self.attack(lambda bench: self._pass(bench, promises.now), plan)
            return
        pid = start(lambda: self._pass(self.bench, promises.now))
        self._wait(pid, "the recovery")
        begun = self.promises().starts_by.get(pid, set())
        after = read_disk(self.path)
        self.wrong += check_recovered(before, after, promises, begun, alive)

    @staticmethod
    def _pass(bench: Bench, now: float) -> None:
        bench.queue = bench.open()
        bench.now = now
        bench.work()

    def settle(self, events: int) -> Disk:
        """Make passes until all is final, and check the accounts."""
        self.end_partner()
        now = self.promises().now

        def work() -> None:
            bench = self.bench
            bench.queue = bench.open()
            bench.now = now
            bench.enqueue("last")  # a torn last line must not tear this one
            if os.path.exists(archive_of(self.path)):
                bench.archive(DAY)  # what is torn of it is mended by this
            for n in range(1, ROUNDS + 1):
                bench.set_clock(now + n * JUMP)
                bench.work()
                counts = bench.queue.counts()
                if not counts["pending"] and not counts["processing"]:
                    break

        self._wait(start(work), "the last passes")
        disk = read_disk(self.path)
        promises = self.promises()
        self.wrong += check_settled(disk, promises, self.workload.junk, events)
        return disk

    def state(self) -> str:
        """Return a digest of the files, the same for states that differ in random ids alone."""
        digest = hashlib.sha256()
        directory = os.path.dirname(self.path)
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            with open(os.path.join(directory, name), "rb") as file:
                content = re.sub(rb"[0-9a-f]{16}", b"I", file.read())
            if name.endswith(".gz"):  # the seconds of its making are in it
                content = repr(len(content)).encode()
            content = re.sub(rb"pass\t.*|\b[0-9a-f]{8}\n|\.[0-9]{2,7}\.", b"", content)
            digest.update(name.encode() + b"\0" + content + b"\0")
        return digest.hexdigest()


def _steady_times(bench: Bench, dear: bool) -> None:
    """Let folds look cheap, or dear, and jobs quick: the calls must be the same in each run."""
    sleep = time.sleep
    bench.ticks = 0.0
    gc.disable()
    counter = itertools.count(step=1_000_000 if dear else 0)
    time.perf_counter = lambda: float(next(counter))
    time.monotonic = lambda: bench.ticks or 0.0
    time.sleep = lambda seconds: sleep(min(float(seconds), 0.0005))
    vars(dbbasic_queue.worker)["_WATCH"] = 0.01


@contextmanager
def scratch() -> Iterator[str]:
    """A directory for the files of a sweep, in memory where that can be had."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    base = tempfile.mkdtemp(prefix="queue-crash-", dir=memory)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def trace_of(base: str, workload: Workload) -> list[Call]:
    """Run the workload unharmed; return its calls. Raises AssertionError if it goes wrong."""
    attack = Attack(base, workload)
    attack.lay()
    attack.attack(workload.script, None)
    attack.look(0)
    attack.settle(0)
    raised = [text for _, _, (*_, text) in attack.promises().raised]
    assert not attack.wrong + raised, attack.wrong + raised
    return attack.trace


def _kill_plans(trace: list[Call]) -> Iterator[tuple[Call, Plan]]:
    for number, call in enumerate(trace):
        for phase in call.phases():
            yield call, Plan(number, phase)


def sample(plans: list[tuple[Call, Plan]], every: int) -> list[tuple[Call, Plan]]:
    """Return about one in `every`, of each kind of call at least one."""
    kinds: dict[tuple[Call, str, int], list[int]] = {}
    for number, (call, plan) in enumerate(plans):
        phase = "" if plan.error and not plan.then_error else plan.phase
        kinds.setdefault((replace(call, locked=True), phase, plan.then_error), []).append(number)
    chosen: list[int] = []
    for turn, numbers in enumerate(kinds.values()):
        chosen += numbers[turn % min(every, len(numbers)) :: every]
    return [plans[number] for number in sorted(chosen)]


def sweep_kills(base: str, workload: Workload, every: int) -> Result:
    """Kill at every call; recover; check."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    for call, plan in sample(list(_kill_plans(trace)), every):
        attack = Attack(base, workload)
        attack.lay()
        attack.attack(workload.script, plan)
        result.runs += 1
        result.kills += attack.kills
        result.unmet += not attack.kills
        attack.look()
        result.states.add(attack.state())
        attack.recover()
        attack.settle(1)
        _check_nothing_raised(attack)
        result.note(plan, f"{call.name} {call.file} in {call.site}", attack.wrong)
    return result


def _check_nothing_raised(attack: Attack) -> None:
    for keys, operation, (*_, text) in attack.promises().raised:
        attack.wrong.append(f"P3: after a kill {operation} of {keys} raised {text}")


def sweep_double_kills(base: str, workload: Workload, every: int) -> Result:
    """Kill in the recovery from a sample of the crash states, too; then recover and check."""
    result = Result()
    trace = trace_of(base, workload)
    plans = list(_kill_plans(trace))[::every]
    for n, (call, plan) in enumerate(plans):
        second: Plan | None = None
        attack = Attack(base, workload)
        attack.lay()
        attack.attack(workload.script, plan)
        attack.recover(Plan(1 << 30, "before"))  # counts the calls of this state's recovery
        attack.end_partner()
        recovery = list(_kill_plans(attack.trace))
        result.points += len(attack.trace)
        # A few points in each recovery, others in each: together they cover it.
        for call2, second in recovery[n % 7 :: max(1, len(recovery) // 4)]:
            attack = Attack(base, workload)
            attack.lay()
            attack.attack(workload.script, plan)
            attack.see_what_is_made()
            attack.recover(second)
            result.runs += 1
            result.kills += attack.kills
            result.unmet += attack.kills < 2
            attack.look(2)
            result.states.add(attack.state())
            attack.recover()
            attack.settle(2)
            _check_nothing_raised(attack)
            site = f"{call.name} {call.file} in {call.site}; {call2.name} in {call2.site}"
            result.note(f"{plan}, then {second}", site, attack.wrong)
    return result


def sweep_creations(base: str, workload: Workload, every: int) -> Result:
    """Kill while files are created in a directory of a group's; the group must get in."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    plans = [
        (call, plan)
        for call, plan in _kill_plans(trace)
        if call.name in ("create", "mkdir", "fchmod", "fchown")
    ]
    for call, plan in plans[::every]:
        attack = Attack(base, workload)
        os.chmod(attack.root, 0o2770)
        attack.lay()
        attack.attack(workload.script, plan)
        result.runs += 1
        result.kills += attack.kills
        attack.settle(1)
        for directory, _, names in os.walk(os.path.join(attack.root, "web")):
            for path in (directory, *(os.path.join(directory, name) for name in names)):
                mode = os.stat(path).st_mode & 0o7777
                if mode & 0o060 != 0o060:
                    attack.wrong.append(f"P10: {os.path.basename(path)} is left at {mode:o}")
        result.note(plan, f"{call.name} {call.file} in {call.site}", attack.wrong)
    return result


def sweep_meetings(base: str, workload: Workload, every: int) -> Result:
    """Let another process act before each call that is made without the lock."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    plans = [
        (call, Plan(number, "meanwhile"), action)
        for number, call in enumerate(trace)
        if not call.locked
        for action in MEANWHILE
    ]
    for call, plan, action in plans[::every]:
        attack = Attack(base, workload)
        attack.lay()
        attack.attack(workload.script, plan, meanwhile=action)
        result.runs += 1
        attack.look()
        attack.recover()
        attack.settle(0 if action is not tear else 2)
        _check_nothing_raised(attack)
        site = f"{action.__name__} at {call.name} {call.file} in {call.site}"
        result.note(plan, site, attack.wrong)
    return result


_ONCE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EINTR)
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES)


def _error_plans(trace: list[Call]) -> Iterator[tuple[Call, Plan]]:
    for number, call in enumerate(trace):
        for error in _ONCE:
            if call.name in PRESENT_IN[error]:
                yield call, Plan(number, "error", error)
        for error in _LASTING:
            if call.name in PRESENT_IN[error]:
                yield call, Plan(number, "error", error, lasting=True)
        if call.name == "write":
            yield call, Plan(number, "short")
            yield call, Plan(number, "short", lasting=True)
            yield call, Plan(number, "short", errno.ENOSPC, lasting=True)
            yield call, Plan(number, "short", errno.EDQUOT, lasting=True)


def sweep_errors(base: str, workload: Workload, every: int) -> Result:
    """Refuse every call; check what was said, what was done, and that it works again."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    for call, plan in sample(list(_error_plans(trace)), every):
        site = f"{call.name} {call.file} in {call.site}"
        _refuse(base, workload, plan, site, result)
    return result


def _refuse(base: str, workload: Workload, plan: Plan, site: str, result: Result) -> None:
    attack = Attack(base, workload)
    attack.lay()
    attack.attack(workload.script, plan, error=True)
    result.runs += 1
    promises = attack.promises()
    met = [event[1] for event in attack.log.events()].count("error")
    result.errors += met
    result.unmet += not met
    attack.look()
    if "post" not in promises.kept or promises.starts.get("post") != 1:
        attack.wrong.append("P6: the queue does not work again when the cause is gone")
    attack.recover()
    disk = attack.settle(1)
    result.states.add(attack.state())
    numbers = tuple(number for number in (plan.error, plan.then_error) if number)
    attack.wrong += check_errors(disk, promises, attack.root, numbers, plan.lasting)
    result.note(plan, site, attack.wrong)


_SOON = ((errno.EIO, errno.EIO, 1), (errno.ENOSPC, errno.ENOSPC, 2))
"""First error, second, and how many calls later: a repair that is refused, and a retry."""


def _pair_plans(trace: list[Call], whole: bool) -> Iterator[tuple[Call, Plan]]:
    errors = (errno.EIO, errno.ENOSPC)
    pairs = tuple(itertools.product(errors, errors, range(1, REACH + 1))) if whole else _SOON
    for number, call in enumerate(trace):
        for phase in ("error", "broken") if call.name == "write" else ("error",):
            for first, then, after in pairs:
                if changes(call.name) and call.name in PRESENT_IN[first]:
                    yield call, Plan(number, phase, first, after=after, then_error=then)


def sweep_pairs(base: str, workload: Workload, every: int) -> Result:
    """Refuse a call, and then one that comes of that: a repair, a retry, whatever is next."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    for call, plan in sample(list(_pair_plans(trace, whole=every == 1)), every):
        _refuse(base, workload, plan, f"{call.name} {call.file} in {call.site}", result)
    return result


SWEEPS = {
    "kill": sweep_kills,
    "double": sweep_double_kills,
    "creations": sweep_creations,
    "meetings": sweep_meetings,
    "errors": sweep_errors,
    "pairs": sweep_pairs,
}


def main(kind: str, workload: str, every: str = "1") -> int:
    vars(dbbasic_queue.store.slots)["SLOTS"] = 6  # 64 looks for slots that are not there, less
    gc.freeze()  # what is never looked at is never copied by a child
    with scratch() as base:
        try:
            result = SWEEPS[kind](base, WORKLOADS[workload], int(every))
        except EnoughFound as found:
            result = found.result
    print(json.dumps(result.as_dict()))
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
