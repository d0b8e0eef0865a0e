"""`kill -9` before, during and after each file call: no job is lost, no recorded job runs again.

By default a sample of the points, with each kind of call; all of them with DBBASIC_QUEUE_LONG=1.
`checks.py` says what is promised, and checks it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from attack import Attack, scratch
from bench import START, Bench
from checks import check_crashed, check_settled
from disk import HEADER, read_disk
from helpers import environment
from sweeps import sweep
from workloads import WORKLOADS, record

LONG = os.environ.get("DBBASIC_QUEUE_LONG") == "1"
HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_kill_at_any_file_call_loses_no_job_and_runs_no_recorded_job_again(workload: str) -> None:
    sweep("kill", workload, every=1 if LONG else 8)


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_second_kill_during_the_recovery_loses_nothing_either(workload: str) -> None:
    sweep("double", workload, every=3 if LONG else 299)


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["application"])
def test_a_kill_while_a_file_is_created_locks_no_other_user_out(workload: str) -> None:
    sweep("creations", workload, every=1)


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["application", "passes", "overlapping"])
def test_changes_by_others_at_any_moment_without_the_lock_are_respected(workload: str) -> None:
    sweep("meetings", workload, every=1 if LONG else 5)  # not 4: there are four actions


# -- writes torn at any byte by a kill or a power cut --------------------------------------------


def test_a_row_torn_at_any_byte_neither_runs_early_nor_damages_the_next_one(tmp_path: Path) -> None:
    later = START + 50_000
    row = f'0123456789abcdef\tok\t{{"k": "torn"}}\tpending\t{START}\t{later}\t0\t\t\n'
    for end in range(len(row) + 1):
        attack = Attack(str(tmp_path), WORKLOADS["application"])
        bench = attack.bench
        os.makedirs(os.path.dirname(bench.path))
        Path(bench.path).write_bytes((HEADER + row[:end]).encode())
        bench.log.add("call", "torn", "enqueue", later)
        bench.enqueue("next")
        bench.work()
        bench.set_clock(later)
        bench.work()
        disk = read_disk(bench.path)
        promises = attack.promises()
        wrong = check_crashed(disk, promises, 0, 1) + check_settled(disk, promises, 0, 1)
        assert not wrong, f"torn at byte {end}: {wrong}"
        assert promises.starts.get("torn", 0) == (end >= len(row) - 1) or end >= _cut(row, 6)
        bench.queue.close()
    print(f"torn rows: {len(row) + 1} cuts")


def _cut(row: str, tabs: int) -> int:
    """Return the length of the row up to and including tab number `tabs`."""
    return len("\t".join(row.split("\t")[:tabs])) + 1


def test_a_journal_record_torn_at_any_byte_is_applied_completely_or_not_at_all(
    tmp_path: Path,
) -> None:
    cuts = 0
    for operation in ("cancel", "outcome"):
        end = 0
        size = 1
        while end <= size:
            attack = Attack(str(tmp_path), WORKLOADS["unfolded"])
            bench = attack.bench
            bench.enqueue("victim", run_at=START if operation == "outcome" else START + 9)
            journal = Path(bench.path + ".journal")
            line = _record_of(bench, operation)
            size = len(line)
            journal.write_bytes(line[:end])
            bench.queue = bench.open()
            bench.set_clock(START + 1000)
            bench.work()
            status = read_disk(bench.path).by_key("victim")[0].status
            whole = end >= size - 1
            expected = "cancelled" if operation == "cancel" and whole else "completed"
            assert status == expected, f"{operation} torn at byte {end}: {status}"
            assert attack.promises().starts.get("victim", 0) == (not whole)
            cuts += 1
            end += 1
            bench.queue.close()
    print(f"torn journal records: {cuts} cuts")


def _record_of(bench: Bench, operation: str) -> bytes:
    state = {
        "cancel": f"cancelled\t{START}\t{START + 9}\t0\tCancelled by user\t",
        "outcome": f"completed\t{START}\t{START}\t1\t\t0",
    }[operation]
    return record(bench.ids["victim"], state)


# -- kills from outside, at system calls that a shim in Python can't see -------------------------

FROM_OUTSIDE = """
import sys
sys.path.insert(0, {here!r})
from bench import Bench, Log
from sweeps import sweep
from workloads import WORKLOADS
bench = Bench({path!r}, Log({log!r}))
bench.ids = {ids!r}
WORKLOADS["passes"].script(bench)
"""


def _why_no_strace() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    command = ["strace", "-qq", "-e", "inject=getpid:signal=SIGKILL:when=1", "true"]
    process = subprocess.run(command, capture_output=True, text=True)
    return f"strace cannot be used here: {process.stderr}" if process.returncode == 1 else ""


def test_a_kill_from_outside_at_any_system_call_loses_nothing() -> None:
    if reason := _why_no_strace():
        pytest.skip(reason)
    kills = runs = 0
    with scratch() as base:
        for name in ("write", "ftruncate", "rename", "fdatasync", "fsync"):
            for number in range(1, 400 if LONG else 100, 1 if LONG else 9):
                attack = Attack(base, WORKLOADS["passes"])
                attack.prepare()
                program = FROM_OUTSIDE.format(
                    here=str(HERE),
                    path=attack.path,
                    log=attack.log.path,
                    ids=attack.bench.ids,
                )
                inject = f"inject={name}:signal=SIGKILL:when={number}"
                command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}"]
                command += ["-e", inject, sys.executable, "-c", program]
                code = subprocess.run(command, env=environment(), timeout=60).returncode
                runs += 1
                killed = code in (-9, 137)
                assert killed or code == 0, code
                kills += killed
                attack.log.add("dead", _attacked(attack))
                attack.check()
                attack.recover()
                attack.settle(1)
                assert not attack.wrong, f"killed at {name} number {number}: {attack.wrong}"
                if not killed:
                    break
    print(f"strace: {runs} runs, {kills} kills")
    assert kills > 10


def _attacked(attack: Attack) -> int:
    others = [event[0] for event in attack.log.events() if event[0] != os.getpid()]
    return others[-1] if others else 0


def test_the_shim_sees_every_system_call_that_changes_a_file() -> None:
    """Otherwise the sweep would miss points."""
    if reason := _why_no_strace():
        pytest.skip(reason)
    program = (
        "import sys; sys.path.insert(0, {here!r})\n"
        "import attack\n"
        "from workloads import WORKLOADS\n"
        "trace = attack.trace_of({base!r}, WORKLOADS['passes'])\n"
        "print(*[call.name for call in trace])\n"
    )
    with scratch() as base:
        output = os.path.join(base, "strace")
        changing = ("ftruncate", "rename", "fdatasync", "fsync", "unlink", "fchmod", "fchown")
        command = ["strace", "-ff", "-qq", "-y", "-o", output]
        command += ["-e", "trace=" + ",".join(changing), sys.executable, "-c"]
        command.append(program.format(here=str(HERE), base=base))
        process = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True, timeout=60
        )
        seen = process.stdout.split()
        # strace writes one file per thread. The attacked process touches the queue first.
        files = sorted(Path(base).glob("strace.*"), key=lambda file: int(file.suffix[1:]))
        texts = [file.read_text() for file in files]
        attacked = next(text for text in texts if "/queue/web" in text)
        lines = [line for line in attacked.splitlines() if "/queue/web" in line]
    for name in changing:
        system = [line for line in lines if line.startswith(name + "(")]
        assert len(system) == seen.count(name), (name, len(system), seen.count(name))
    print(f"{len(lines)} changing system calls, all of them seen by the shim")
