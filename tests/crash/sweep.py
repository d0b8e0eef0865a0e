"""Runs the attacks: one forked process per point, from a parent that has imported everything.

    python tests/crash/sweep.py kill WORKLOAD [EVERY]      kill at each call
    python tests/crash/sweep.py double WORKLOAD [EVERY]    ... and again during the recovery
    python tests/crash/sweep.py creations WORKLOAD [EVERY] kill when files are created for a group
    python tests/crash/sweep.py meetings WORKLOAD [EVERY]  let others act at calls without the lock
    python tests/crash/sweep.py errors WORKLOAD [EVERY]    make each call fail
    python tests/crash/sweep.py pairs WORKLOAD [EVERY]     ... and one of the next calls

EVERY is the step through the points (1: all of them). Whatever it is, `kill` attacks each kind of
call (its name, its file and its callers) at least once per moment of a kill, and `errors` makes
each kind fail at least once; so does `pairs`, if the call changes something. The last line printed
is a JSON object with counts and mistakes; tests/crash/README.md explains it. With
DBBASIC_QUEUE_STOP=1 the sweep ends at the first mistake.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import math
import os
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from attack import Attack, patch_constant, scratch, trace_of
from bench import Bench
from checks import check_errors
from shim import CALLS_WITH, EARLIER, NEVER, Call, Plan, changes
from workloads import ACTS, WORKLOADS, Workload, tear, tidy

import dbbasic_queue.store.claiming.slots

REACH = 3
"""how many changing calls after the first error the second one may come"""
STOPS = os.environ.get("DBBASIC_QUEUE_STOP") == "1"
"""whether a sweep ends at the first mistake"""
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_TRIES = 5
"""how often a run is repeated that has ended before its planned call"""


class EnoughFound(Exception):
    """Raised at the first mistake, with DBBASIC_QUEUE_STOP=1."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


@dataclass
class Result:
    """What a sweep has done and found. `as_dict` returns what tests/crash/README.md explains."""

    points: int = 0
    runs: int = 0
    kills: int = 0
    errors: int = 0
    missed: int = 0
    repeated: int = 0
    states: set[str] = field(default_factory=set)
    """digests of the files after the attack"""
    recovered: set[str] = field(default_factory=set)
    """digests of the files and the log that a recovery was given"""
    wrong: Counter[str] = field(default_factory=Counter)
    """how often each kind of mistake was found; a kind is a sentence with N for ids and times"""
    first: dict[str, str] = field(default_factory=dict)
    """kind -> its first mistake, with the plan and the call"""

    def note(self, plan: object, site: str, sentences: list[str]) -> None:
        for sentence in sentences:
            kind = re.sub(r"\d{4,}|[0-9a-f]{16}", "N", sentence)[:300]
            self.wrong[kind] += 1
            self.first.setdefault(kind, f"{plan} ({site}): {sentence}")
        if sentences and STOPS:
            raise EnoughFound(self)

    def as_dict(self) -> dict[str, Any]:
        return {
            "points": self.points,
            "runs": self.runs,
            "kills": self.kills,
            "errors": self.errors,
            "missed": self.missed,
            "repeated": self.repeated,
            "states": len(self.states),
            "wrong": [f"{count} x {self.first[kind]}" for kind, count in self.wrong.most_common()],
        }


def attacked(
    base: str,
    workload: Workload,
    plan: Plan,
    *,
    root_mode: int = 0o700,
    error: bool = False,
    act: Callable[[Bench], None] = lambda _: None,
) -> Attack:
    """Run the workload; kill it, make a call fail, or let another process act."""
    attack = Attack(base, workload)
    os.chmod(attack.root, root_mode)
    attack.prepare()
    attack.attack(workload.script, plan, error, act)
    return attack


def recovered(attack: Attack, result: Result, *, torn: int, kills: int = 0) -> None:
    """Check the files, recover and settle: nothing may be wrong, and nothing may raise.

    If an earlier attack has left the same files and the same log, its recovery isn't repeated.
    `torn` is how many lines may be torn and attempts lost; `kills` is the planned number of kills.
    """
    result.runs += 1
    result.kills += attack.kills
    result.missed += attack.kills < kills
    attack.check(max(torn, 1))
    state, with_log = attack.state()
    result.states.add(state)
    if with_log in result.recovered:
        result.repeated += 1
        attack.end_partner()
        return
    result.recovered.add(with_log)
    attack.recover()
    attack.settle(torn)
    for keys, operation, (*_, text) in attack.promises().raised:
        attack.wrong.append(f"P3: after a kill, {operation} of {keys} raised {text}")


def _kill_plans(trace: list[Call]) -> Iterator[tuple[Call, Plan]]:
    for number, call in enumerate(trace):
        for phase in call.phases():
            yield call, Plan(number, phase)


def sample(plans: list[tuple[Call, Plan]], every: int) -> list[tuple[Call, Plan]]:
    """Return about one in `every` plans, and at least one for each kind of call and attack.

    If the sweep ends at the first mistake, those that follow each other are far apart, because
    mistakes are close together.
    """
    kinds: dict[tuple[Call, str, int], list[int]] = {}
    for number, (call, plan) in enumerate(plans):
        phase = "" if plan.error and not plan.then_error else plan.phase
        kinds.setdefault((replace(call, locked=True), phase, plan.then_error), []).append(number)
    chosen: list[int] = []
    for turn, numbers in enumerate(kinds.values()):
        chosen += numbers[turn % min(every, len(numbers)) :: every]
    chosen.sort()
    if STOPS:
        place = {number: n * GOLDEN_RATIO % 1 for n, number in enumerate(chosen)}
        chosen.sort(key=place.__getitem__)
    return [plans[number] for number in chosen]


def _killed(base: str, workload: Workload, plan: Plan) -> Attack:
    """Run the workload, and kill it at a call.

    The ticker's thread makes its calls when it is scheduled, so a run may have fewer calls than the
    trace that was planned with, and end before its kill. Then the run is repeated, and killed at
    the last call of the one before.
    """
    for _ in range(_TRIES):
        attack = attacked(base, workload, plan)
        if attack.kills:
            break
        attack.end_partner()
        plan = replace(plan, number=len(attack.trace) - 1, phase="before")
    return attack


def _killed_twice(base: str, workload: Workload, plan: Plan, second: Plan) -> Attack:
    """Run the workload and kill it; recover, and kill the recovery."""
    for _ in range(_TRIES):
        attack = _killed(base, workload, plan)
        attack.log_interrupted_changes()
        attack.recover(second)
        if attack.kills == 2:
            break
        attack.end_partner()
        second = replace(second, number=len(attack.trace) - 1, phase="before")
    return attack


def sweep_kills(base: str, workload: Workload, every: int) -> Result:
    """Kill at every call; recover; check."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    for call, plan in sample(list(_kill_plans(trace)), every):
        attack = _killed(base, workload, plan)
        recovered(attack, result, torn=1, kills=1)
        result.note(plan, str(call), attack.wrong)
    return result


def sweep_double_kills(base: str, workload: Workload, every: int) -> Result:
    """Also kill the recovery from a sample of the crash states; then recover and check."""
    result = Result()
    trace = trace_of(base, workload)
    plans = list(_kill_plans(trace))[::every]
    for n, (call, plan) in enumerate(plans):
        attack = _killed(base, workload, plan)
        attack.recover(Plan(NEVER, "before"))  # counts the calls of this state's recovery
        attack.end_partner()
        recovery = list(_kill_plans(attack.trace))
        result.points += len(attack.trace)
        # A few points in each recovery, different ones each time: together they cover it.
        for call2, second in recovery[n % 7 :: max(1, len(recovery) // 4)]:
            attack = _killed_twice(base, workload, plan, second)
            recovered(attack, result, torn=2, kills=2)
            result.note(f"{plan}, then {second}", f"{call}; {call2}", attack.wrong)
    return result


def sweep_creations(base: str, workload: Workload, every: int) -> Result:
    """Kill while files are created in a group's directory; the group must be able to use them."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    plans = [
        (call, plan)
        for call, plan in _kill_plans(trace)
        if call.name in ("create", "mkdir", "fchmod", "fchown")
    ]
    for call, plan in plans[::every]:
        attack = attacked(base, workload, plan, root_mode=0o2770)
        result.runs += 1
        result.kills += attack.kills
        attack.settle(1)
        for directory, _, names in os.walk(os.path.join(attack.root, "web")):
            for path in (directory, *(os.path.join(directory, name) for name in names)):
                mode = os.stat(path).st_mode & 0o7777
                if mode & 0o060 != 0o060:
                    attack.wrong.append(f"P10: {os.path.basename(path)} is left at {mode:o}")
        result.note(plan, str(call), attack.wrong)
    return result


def sweep_meetings(base: str, workload: Workload, every: int) -> Result:
    """Let another process act before each call that is made without the lock."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    plans = [
        (call, Plan(number, "act"), action)
        for number, call in enumerate(trace)
        # Not between a change and its report: a requeue there would be reported before the outcome.
        # This unlock is an outcome's second one; the first one comes before its sync.
        if not call.locked and call.name not in ("close", "unlock")
        for action in ACTS
        if action is not tidy or call.name != "fdatasync"
    ]
    for call, plan, action in plans[::every]:
        attack = attacked(base, workload, plan, act=action)
        recovered(attack, result, torn=2 if action is tear else 0)
        result.note(plan, f"{action.__name__} at {call}", attack.wrong)
    return result


_ONCE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EINTR)
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES)


def _error_plans(trace: list[Call]) -> Iterator[tuple[Call, Plan]]:
    for number, call in enumerate(trace):
        for error in _ONCE:
            if call.name in CALLS_WITH[error]:
                yield call, Plan(number, "error", error)
        for error in _LASTING:
            if call.name in CALLS_WITH[error]:
                yield call, Plan(number, "error", error, lasting=True)
        if call.name == "write":
            yield call, Plan(number, "short")
            yield call, Plan(number, "short", lasting=True)
            yield call, Plan(number, "short", errno.ENOSPC, lasting=True)
            yield call, Plan(number, "short", errno.EDQUOT, lasting=True)


def sweep_errors(base: str, workload: Workload, every: int) -> Result:
    """Make each call fail; check the error, the files, and that everything works afterwards."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    for call, plan in sample(list(_error_plans(trace)), every):
        _refuse(base, workload, call, plan, result)
    return result


def _refuse(base: str, workload: Workload, call: Call, plan: Plan, result: Result) -> None:
    """Run the workload, make a call fail, and check; add what was found to the result.

    As in `_killed`, a run may have fewer calls than the trace. Then the run is repeated, and the
    call is found by counting from the end.
    """
    from_the_end = result.points - plan.number
    for _ in range(_TRIES):
        attack = attacked(base, workload, plan, error=True)
        met = [event[1] for event in attack.log.events()].count("error")
        if met:
            break
        attack.end_partner()
        plan = replace(plan, number=attack.trace.count(EARLIER) - from_the_end)
    promises = attack.promises()
    result.errors += met
    result.missed += not met
    if "post" not in promises.kept or promises.starts.get("post") != 1:
        attack.wrong.append("P6: the queue doesn't work again after the error")
    result.runs += 1
    attack.check()
    attack.recover()
    disk = attack.settle(1)
    result.states.add(attack.state()[0])
    numbers = tuple(number for number in (plan.error, plan.then_error) if number)
    # The promises now, not before the recovery: a job may have run again, and stopped itself.
    attack.wrong += check_errors(disk, attack.promises(), attack.root, numbers, plan.lasting)
    result.note(plan, str(call), attack.wrong)


_SOON = ((errno.EIO, errno.EIO, 1), (errno.ENOSPC, errno.ENOSPC, 2))
"""first error, second error, how many calls later: a failing repair, and a failing retry"""


def _pair_plans(trace: list[Call], whole: bool) -> Iterator[tuple[Call, Plan]]:
    """Yield the plans with every pair of errors within REACH if `whole`, otherwise with _SOON."""
    errors = (errno.EIO, errno.ENOSPC)
    pairs = tuple(itertools.product(errors, errors, range(1, REACH + 1))) if whole else _SOON
    for number, call in enumerate(trace):
        for phase in ("error", "broken") if call.name == "write" else ("error",):
            for first, then, after in pairs:
                if changes(call.name) and call.name in CALLS_WITH[first]:
                    yield call, Plan(number, phase, first, after=after, then_error=then)


def sweep_pairs(base: str, workload: Workload, every: int) -> Result:
    """Make a call fail, and then one of the next: a repair, a retry, or whatever follows."""
    result = Result()
    trace = trace_of(base, workload)
    result.points = len(trace)
    for call, plan in sample(list(_pair_plans(trace, whole=every == 1)), every):
        _refuse(base, workload, call, plan, result)
    return result


SWEEPS = {
    "kill": sweep_kills,
    "double": sweep_double_kills,
    "creations": sweep_creations,
    "meetings": sweep_meetings,
    "errors": sweep_errors,
    "pairs": sweep_pairs,
}


def load_package() -> None:
    """Import what attacked processes use, so that none of thousands has to."""
    for package in ("model", "monitoring", "passes", "store"):
        place = f"dbbasic_queue.{package}"
        for module in pkgutil.walk_packages(importlib.import_module(place).__path__, f"{place}."):
            importlib.import_module(module.name)


def main(kind: str, workload: str, every: str = "1") -> int:
    """Run a sweep and print its result; return the exit code."""
    # 64 slots would mean 64 calls for missing files.
    patch_constant(dbbasic_queue.store.claiming.slots, "SLOTS", 6)
    load_package()
    with scratch() as base:
        try:
            result = SWEEPS[kind](base, WORKLOADS[workload], int(every))
        except EnoughFound as found:
            result = found.result
    print(json.dumps(result.as_dict()))
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
