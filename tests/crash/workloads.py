"""What the attacked processes do: scripts over a queue.

To add a workload, write a function and add it to `WORKLOADS`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from bench import DAY, MAX_ATTEMPTS, START, Bench
from disk import FINAL, HEADER, read_disk

from dbbasic_queue import Handler


@dataclass(frozen=True)
class Workload:
    """A script, and the files that it starts with.

    `prepare` creates the files. If there is a `damage`, a partner process starts a job and waits in
    it, and then `damage` adds what dead processes leave behind. Then `script` is attacked.
    """

    name: str
    script: Callable[[Bench], None]
    prepare: Callable[[Bench], None] = lambda _: None
    damage: Callable[[Bench], None] | None = None
    junk: int = 0
    """number of invalid lines in these files"""
    folds_seem_expensive: bool = False
    """whether folds seem expensive, so that the journal grows"""


# -- A: calls of an application, from the first one ----------------------------------------------


def _application(bench: Bench) -> None:
    bench.enqueue("a1")
    bench.enqueue_many(["a2", "a3", "a4"], "text")
    bench.enqueue("a5", own_id="own.a5")
    bench.cancel("a2")
    bench.status("a2")
    bench.enqueue("a6", run_at=START + 50_000)
    bench.cancel("a5")
    bench.queue.close()
    bench.queue = bench.open()
    bench.enqueue("a7", "flaky")
    bench.cancel("a7")
    bench.enqueue("a8", own_id="own.a8")


# -- B: passes ------------------------------------------------------------------------------------


def _row(
    key: str, job_type: str, status: str = "pending", run_at: int = START, attempts: int = 0
) -> str:
    payload = json.dumps({"k": key})
    error, result = {"failed": ("no", ""), "completed": ("", "0")}.get(status, ("", ""))
    state = f"{status}\t{min(START, run_at)}\t{run_at}\t{attempts}\t{error}\t{result}"
    return f"{key}\t{job_type}\t{payload}\t{state}\n"


def _write_file(bench: Bench, rows: str) -> None:
    os.makedirs(os.path.dirname(bench.path))
    with open(bench.path, "w", encoding="utf-8") as file:
        file.write(HEADER + rows)
    _log_rows(bench, rows)


def _log_rows(bench: Bench, rows: str) -> None:
    """Log rows that a workload writes itself as if they had been enqueued."""
    for row in rows.splitlines():
        job_id, _, _, status, _, run_at, attempts, *_ = row.split("\t")
        bench.ids[job_id] = job_id
        bench.log.add("call", job_id, "enqueue", int(run_at))
        bench.log.add("done", job_id, "enqueue", job_id)
        bench.log.add("attempts", job_id, int(attempts))
        if status in FINAL:
            bench.log.add("final", job_id, status)


def _prepare_passes(bench: Bench) -> None:
    rows = [
        _row("b1", "ok", run_at=START - 9),
        _row("b2", "flaky", run_at=START - 8),
        _row("b3", "bad", run_at=START - 7, attempts=1),
        _row("b4", "nest", run_at=START - 6),
        _row("b5", "odd", run_at=START - 5),
        _row("b6", "cancels", run_at=START - 4),
        _row("b6.victim", "ok", run_at=START + 100),
        _row("b7", "text", run_at=START - 3),
        _row("b8", "nobody", run_at=START - 2, attempts=2),
        _row("b9", "ok", run_at=START + 50_000),
    ]
    _write_file(bench, "".join(rows))


def _passes(bench: Bench) -> None:
    bench.work()
    bench.set_clock(START + 1000)
    bench.work()
    bench.status("b1")


# -- C: two passes at a time, leftovers of dead processes, torn tails -----------------------------


def record(job_id: str, state: str) -> bytes:
    """Return a line of the journal; `state` is the six columns after the payload."""
    body = f"{job_id}\t{state}".encode()
    return b"%b\t%08x\n" % (body, zlib.crc32(body))


def _prepare_partner(bench: Bench) -> None:
    _write_file(bench, _row("c1", "waits", run_at=START - 99))


def _leave_dead_processes(bench: Bench) -> None:
    """Leave what two dead passes and two killed writers would leave."""
    rows = [
        _row("c2", "ok", run_at=START - 9),
        _row("c3", "ok", run_at=START - 8),
        _row("c4", "inner", run_at=START - 7),
        _row("c5", "text", run_at=START - 6),
        _row("c6", "flaky", run_at=START - 5),
    ]
    rows += [_row(f"c{n}", "ok", run_at=START - 4) for n in range(11, 18)]
    journal = [
        record("c2", f"processing\t{START - 9}\t{START - 9}\t1\t\t"),
        record("c3", f"processing\t{START - 8}\t{START - 8}\t{MAX_ATTEMPTS}\told\t"),
        record("c11", f"processing\t{START - 4}\t{START - 4}\t1\t\t"),
        record("own.c9", f"completed\t{START}\t{START}\t1\t\t7"),
        record("c5", f"completed\t{START}\t{START}\t1\t\t7")[:-4],
    ]
    _append(bench.path, "".join(rows).encode() + _row("c8", "ok").encode()[:30])
    _append(bench.path + ".journal", b"".join(journal))
    _append(bench.path + ".pass.2", b"pass\t99999\t1\nc2\t1\nc11\t1\n")
    _append(bench.path + ".pass.3", b"pass\t99998\t1\nc3\t3\nc12\t1\n")
    _log_rows(bench, "".join(rows))
    bench.log.add("attempts", "c2", 1)
    bench.log.add("attempts", "c3", MAX_ATTEMPTS)


def _append(path: str, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)


def _overlapping_passes(bench: Bench) -> None:
    bench.enqueue("c9", own_id="own.c9")
    bench.work()
    bench.enqueue("c10")
    bench.set_clock(START + 1000)
    bench.work()


# -- D: a job that takes long ---------------------------------------------------------------------


def _prepare_slow(bench: Bench) -> None:
    rows = [_row(f"d{n}", "ok", run_at=START - 20 + n) for n in range(3)]
    rows.append(_row("d3", "slow", run_at=START - 10))
    rows += [_row(f"d{n}", "ok", run_at=START - 20 + n) for n in range(11, 16)]
    _write_file(bench, "".join(rows))


def _one_pass(bench: Bench) -> None:
    bench.work()


# -- E: a long queue: the fold waits for the end of the pass --------------------------------------


def _calls_and_passes(bench: Bench) -> None:
    bench.enqueue("b10", "flaky")
    bench.cancel("b9")
    bench.cancel("b1")
    bench.work()
    bench.enqueue_many(["b11", "b12"], "text")
    bench.cancel("b11")
    bench.set_clock(START + 1000)
    bench.work()


# -- F: handlers with policies, with Delay and with Fail -------------------------------------------


def _prepare_policies(bench: Bench) -> None:
    rows = [
        _row("f1", "delays", run_at=START - 9),
        _row("f2", "fails", run_at=START - 8),
        _row("f3", "twice", run_at=START - 7),
        _row("f4", "often", run_at=START - 6),
        _row("f5", "delays", run_at=START - 5, attempts=1),
        # Their passes are dead: one was in its last attempt, the other was not.
        _row("f6", "twice", "processing", run_at=START - 4, attempts=2),
        _row("f7", "often", "processing", run_at=START - 3, attempts=3),
        _row("f8", "ok", run_at=START - 2),
    ]
    _write_file(bench, "".join(rows))


def _policies(bench: Bench) -> None:
    bench.pause("delays")
    bench.work()
    bench.pause("often")
    bench.resume("delays")
    bench.set_clock(START + 100)
    bench.work()
    bench.resume("often")
    bench.set_clock(START + 1000)
    bench.work()


# -- L: jobs that report progress, and that print -------------------------------------------------


def _prepare_observed(bench: Bench) -> None:
    rows = [
        _row("i1", "reports", run_at=START - 9),
        _row("i2", "prints", run_at=START - 8),
        _row("i3", "reports", run_at=START - 7),
    ]
    _write_file(bench, "".join(rows))


# -- G: failed and cancelled jobs are requeued ----------------------------------------------------


def _prepare_failed(bench: Bench) -> None:
    rows = [
        _row("g1", "ok", "failed", attempts=3),
        _row("g2", "ok", "cancelled"),
        _row("g3", "twice", "failed", attempts=2),
        _row("g4", "text", "failed", attempts=1),
        _row("g5", "text", run_at=START - 9, attempts=3),
        _row("g6", "ok", "completed", attempts=1),
        _row("g7", "fails", run_at=START - 8),
        _row("g8", "revives", run_at=START - 7),
        _row("g8.victim", "ok", "cancelled"),
        _row("g9", "flaky", run_at=START + 50_000),
    ]
    _write_file(bench, "".join(rows))
    # That this job has failed is only in the journal.
    _append(bench.path + ".journal", record("g5", f"failed\t{START - 9}\t{START - 9}\t3\tno\t"))
    bench.log.add("final", "g5", "failed")


def _requeue(bench: Bench) -> None:
    bench.requeue_failed("text")
    bench.requeue("g1")
    bench.requeue("g6")
    bench.cancel("g9")
    bench.requeue("g9")
    bench.work()
    bench.requeue_failed()
    bench.requeue("g2")
    bench.set_clock(START + 1000)
    bench.work()


# -- H: finished jobs are purged or archived, and their ids are used again -------------------------


def _prepare_finished(bench: Bench) -> None:
    old = START - 10 * DAY
    rows = [
        _row("h1", "ok", "completed", run_at=old, attempts=1),
        _row("h2", "bad", "failed", run_at=old, attempts=3),
        _row("h3", "ok", "cancelled", run_at=old),
        _row("h4", "ok", "completed", attempts=1),
        _row("h5", "bad", "failed", attempts=3),
        _row("h6", "ok", run_at=START - 9),
        _row("h7", "text", run_at=START - 8),
        _row("h8", "tidies", run_at=START - 7),
        _row("h9", "tidies", run_at=START + 50_000),
        _row("h10", "ok", run_at=old),
        _row("h11", "ok", run_at=START + 50_000),
    ]
    _write_file(bench, "".join(rows))
    state = f"cancelled\t{old}\t{old}\t0\tCancelled by user\t"
    _append(bench.path + ".journal", record("h10", state))
    bench.log.add("final", "h10", "cancelled")


def _purge(bench: Bench) -> None:
    bench.archive(DAY)
    bench.cancel("h11")
    bench.enqueue("h1.again", own_id="h1")
    bench.enqueue("h10.again", "text", own_id="h10")
    bench.clear_failed("bad")
    bench.cancel("h7")
    bench.remove_type("text")
    bench.enqueue("h7.again", own_id="h7")
    bench.work()
    bench.purge(DAY)
    bench.set_clock(START + 2 * DAY)
    bench.archive(DAY)
    bench.enqueue("h6.again", own_id="h6")
    bench.work()


# -- I: jobs are stopped: pending, claimed, running, and those of dead passes ----------------------


def _prepare_stops(bench: Bench) -> None:
    rows = [_row(f"i{n}", "ok", run_at=START - 60 + n) for n in range(3)]
    for n, how in enumerate(("raises", "returns", "delays")):
        rows.append(_row(f"i.{how}", "halts", run_at=START - 50 + 9 * n))
        rows.append(_row(f"i.{how}.next", "ok", run_at=START - 49 + 9 * n))
    rows += [
        _row("i4", "ok", "processing", run_at=START - 9, attempts=1),
        _row("i5", "bad", "processing", run_at=START - 8, attempts=1),
        _row("i6", "ok", run_at=START - 7),
        _row("i7", "ok", "completed", attempts=1),
        _row("i8", "flaky", run_at=START - 6),
        _row("i9", "ok", run_at=START + 50_000),
    ]
    _write_file(bench, "".join(rows))


def _stops(bench: Bench) -> None:
    for key in ("i4", "i6", "i7", "i9"):
        bench.stop(key)
    bench.work()
    bench.stop("i8")
    bench.set_clock(START + 1000)
    bench.work()


# -- J: handlers with priorities, and jobs that become due while a pass runs -----------------------


def _prepare_priorities(bench: Bench) -> None:
    rows = [_row(f"j{n}", "ok", run_at=START - 60 + n) for n in range(4)]
    rows.append(_row("j.calls", "calls", run_at=START - 50))
    rows += [_row(f"j{n}", "ok", run_at=START - 60 + n) for n in range(11, 24)]
    rows += [
        _row("j4", "urgent", run_at=START - 1),
        _row("j5", "urgent", run_at=START + 500),
        _row("j6", "flaky", run_at=START - 30),
        _row("j.calls.too", "calls", run_at=START - 20),
        _row("j7", "low", run_at=START - 99),
    ]
    _write_file(bench, "".join(rows))


def _priorities(bench: Bench) -> None:
    bench.handlers["urgent"] = Handler(bench.handlers["urgent"], priority=5)
    bench.handlers["low"] = Handler(bench.handlers["low"], priority=-5)
    bench.work()
    bench.enqueue("j8", "urgent")
    bench.set_clock(START + 1000)
    bench.work()


# -- M: jobs that are enqueued at most once -------------------------------------------------------


def _prepare_unique(bench: Bench) -> None:
    rows = [
        _row("i1", "ok", run_at=START + 50_000),
        _row("i2", "ok", "failed", attempts=3),
        _row("i3", "flaky", run_at=START - 9),
        _row("i6", "text", "failed", attempts=3),
        _row("i7", "bad", "failed", run_at=START - 10 * DAY, attempts=3),
    ]
    _write_file(bench, "".join(rows))


def _again(bench: Bench, key: str, job_type: str = "ok", run_at: float | None = None) -> None:
    """Enqueue a unique job that exists already, if it is pending: it must be found."""
    if any(job.status == "pending" for job in read_disk(bench.path).by_key(key)):
        bench.enqueue(key, job_type, run_at, unique="pending")


def _unique(bench: Bench) -> None:
    bench.enqueue("i0", unique="pending")
    bench.enqueue("i0", unique="pending")
    bench.enqueue("own.i5", own_id="own.i5", exist_ok=True)
    _again(bench, "i1", run_at=START + 50_000)
    bench.requeue("i2")
    _again(bench, "i2")
    bench.requeue_failed("text")
    _again(bench, "i6", "text")
    bench.work()
    _again(bench, "i3", "flaky")
    bench.enqueue("own.i5", own_id="own.i5", exist_ok=True)
    bench.purge(DAY)
    _again(bench, "i1", run_at=START + 50_000)
    bench.set_clock(START + 1000)
    bench.work()


# -- N: payloads of pending jobs are edited -------------------------------------------------------


def _prepare_edited(bench: Bench) -> None:
    rows = [
        _row("j1", "ok", run_at=START - 9),
        _row("j2", "flaky", run_at=START - 8),
        _row("j3", "edits", run_at=START - 7),
        _row("j3.victim", "text", run_at=START + 100),
        _row("j4", "ok", "completed", attempts=1),
        _row("j5", "ok", run_at=START + 50_000),
    ]
    _write_file(bench, "".join(rows))


def _edit(bench: Bench) -> None:
    bench.cancel("j5")
    bench.edit("j1", 1)
    bench.edit("j1", 2)
    bench.edit("j4", 1)
    bench.work()
    bench.edit("j2", 1)
    bench.edit("j1", 3)
    bench.set_clock(START + 1000)
    bench.work()


# -- O: passes remove old finished jobs -----------------------------------------------------------


def _prepare_old(bench: Bench) -> None:
    old = START - 10 * DAY
    rows = [
        _row("k1", "ok", "completed", run_at=old, attempts=1),
        _row("k2", "bad", "failed", run_at=old, attempts=3),
        _row("k3", "ok", "completed", attempts=1),
        _row("k4", "ok", run_at=START - 9),
        _row("k5", "text", run_at=old),
    ]
    _write_file(bench, "".join(rows))
    # A pass has removed old jobs of one type.
    _append(bench.path + ".purged", b"ok\t%d\n" % (START - 60))


def _keep(bench: Bench) -> None:
    bench.work_and_keep(DAY)
    bench.enqueue("k1.again", own_id="k1")
    bench.work_and_keep(DAY)
    bench.set_clock(START + 3 * DAY)
    bench.enqueue("k6")
    bench.work_and_keep(DAY)


# -- K: schedules add jobs, and finished ones are purged -------------------------------------------


def _prepare_schedules(bench: Bench) -> None:
    rows = [
        _row("k1", "ok", "completed", run_at=START - 10 * DAY, attempts=1),
        _row("k2", "ok", run_at=START - 9),
    ]
    _write_file(bench, "".join(rows))
    bench.declare_schedules()


def _schedules(bench: Bench) -> None:
    bench.work()
    bench.set_clock(START + 45_000)
    bench.work()
    # If that pass has failed after it had added jobs, they run, and must not be removed yet.
    bench.work_without_schedules()
    bench.set_clock(START + 45_500)
    bench.purge(100)
    bench.set_clock(START + 30_000)
    bench.work()
    bench.set_clock(START + 70_000)
    bench.work()


# -- what another process does at the same time ----------------------------------------------------


def cancel_all(bench: Bench) -> None:
    """Cancel all pending jobs."""
    queue, bench.queue = bench.queue, bench.open()
    for key in list(bench.ids):
        bench.cancel(key)
    bench.queue = queue


def stop_all(bench: Bench) -> None:
    """Stop all jobs that are pending or processing."""
    queue, bench.queue = bench.queue, bench.open()
    for key in list(bench.ids):
        bench.stop(key)
    bench.queue = queue


def make_a_pass(bench: Bench) -> None:
    """Run all due jobs."""
    queue, bench.queue = bench.queue, bench.open()
    bench.work()
    bench.queue = queue


def tear(bench: Bench) -> None:
    """Leave a torn line in the file and in the journal, as a killed writer would."""
    if os.path.exists(bench.path):
        _append(bench.path, b"torn\tok\t{")
        _append(bench.path + ".journal", b"torn\tcompl")


def tidy(bench: Bench) -> None:
    """Requeue all failed and cancelled jobs, and purge the completed ones."""
    queue, bench.queue = bench.queue, bench.open()
    bench.requeue_failed()
    for key in list(bench.ids):
        bench.requeue(key)
    bench.purge(0)
    bench.queue = queue


ACTS = (cancel_all, stop_all, make_a_pass, tear, tidy)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("application", _application),
        Workload("passes", _passes, _prepare_passes),
        Workload(
            "overlapping", _overlapping_passes, _prepare_partner, _leave_dead_processes, junk=1
        ),
        Workload("slow", _one_pass, _prepare_slow),
        Workload("unfolded", _calls_and_passes, _prepare_passes, folds_seem_expensive=True),
        Workload("policies", _policies, _prepare_policies),
        Workload("observed", _one_pass, _prepare_observed),
        Workload("requeue", _requeue, _prepare_failed, folds_seem_expensive=True),
        Workload("purge", _purge, _prepare_finished, folds_seem_expensive=True),
        Workload("unique", _unique, _prepare_unique, folds_seem_expensive=True),
        Workload("keep", _keep, _prepare_old, folds_seem_expensive=True),
        Workload("edit", _edit, _prepare_edited, folds_seem_expensive=True),
        Workload("stop", _stops, _prepare_stops),
        Workload("priorities", _priorities, _prepare_priorities),
        Workload("schedules", _schedules, _prepare_schedules),
    )
}
