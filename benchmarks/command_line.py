"""Measures the command line with long queues: time and memory beyond those of starting Python.

    python benchmarks/command_line.py [--rows N]... [--rounds N] [--dir DIR]

Each command is a new process of a package that is compiled, as pip leaves it. The best of the
rounds counts, for the wall clock, the CPU time and the peak of the resident memory. Nothing is
asserted.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
HEADER = "id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"
MIXED = {"completed": 60, "pending": 30, "failed": 8, "cancelled": 2}
"""status -> percent of the rows"""
MEASURE = """
import json, os, resource, sys, time
started = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(pid, 0)
seconds = time.perf_counter() - started
figures = [seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, status]
os.write(2, json.dumps(figures).encode())
"""
"""A small process starts each command: a child's peak memory begins with that of its parent."""


def fill(path: Path, rows: int) -> list[str]:
    """Write a queue of that many rows; return the ids of its pending jobs."""
    chance = random.Random(1)
    now = int(time.time())
    statuses = chance.choices(list(MIXED), list(MIXED.values()), k=rows)
    pending = []
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER)
        for n, status in enumerate(statuses):
            job_id = f"{chance.getrandbits(64):016x}"
            created_at = now - 86_400 + n * 86_400 // rows
            run_at = created_at + (172_800 if status == "pending" and n % 2 else 0)
            error = "SMTPServerDisconnected: unexpectedly closed" if status == "failed" else ""
            attempts = int(status in ("completed", "failed"))
            result = "true" if status == "completed" else ""
            job_type = chance.choice(["send_email", "resize_image", "report"])
            payload = f'{{"to": "user{n}@example.com", "n": {n}}}'
            file.write(
                f"{job_id}\t{job_type}\t{payload}\t{status}\t{created_at}\t{run_at}\t{attempts}"
                f"\t{error}\t{result}\n"
            )
            if status == "pending":
                pending.append(job_id)
    return pending


def measure(command: list[str], place: Path) -> tuple[float, float, float]:
    """Run a command once; return its seconds, its CPU seconds, and its peak memory in MiB."""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, *command],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, cpu, memory, status = json.loads(ran.stderr.splitlines()[-1])
    if status:
        raise SystemExit(f"{command} failed: {ran.stderr}")
    return seconds, cpu, memory


def best(commands: list[list[str]], place: Path) -> tuple[float, ...]:
    """Run each command once; return the lowest figures."""
    figures = [measure(command, place) for command in commands]
    return tuple(min(figure[place] for figure in figures) for place in range(3))


def table(rows: int, rounds: int, place: Path) -> None:
    """Print the figures of a queue with that many rows."""
    path = place / "data" / "queue.tsv"
    path.parent.mkdir()
    pending = fill(path, rows)
    size = path.stat().st_size / 2**20
    python = best([["-c", "pass"]] * rounds, place)
    print(f"{rows:,} rows, {size:.0f} MiB; starting Python: {python[0]:.3f} s, {python[2]:.0f} MiB")
    print(f"{'':<22}{'wall':>9}{'CPU':>9}{'memory':>10}")
    shown = pending[-1]
    commands: dict[str, list[list[str]]] = {
        "(none)": [[]] * rounds,
        "list --limit 20": [["list", "--limit", "20"]] * rounds,
        "failed --limit 20": [["failed", "--limit", "20"]] * rounds,
        "show ID": [["show", shown]] * rounds,
        "show, 8 of its ID": [["show", shown[:8]]] * rounds,
        "cancel ID": [["cancel", pending.pop(0)] for _ in range(rounds)],
        "cancel, 8 of its ID": [["cancel", pending.pop(0)[:8]] for _ in range(rounds)],
    }
    for name, runs in commands.items():
        figures = best([["-m", "dbbasic_queue", *arguments] for arguments in runs], place)
        wall, cpu, memory = (a - b for a, b in zip(figures, python, strict=True))
        print(f"{name:<22}{wall:>7.3f} s{cpu:>7.3f} s{memory:>6.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--rows", type=int, action="append", help="(default: 100,000 and 1,000,000)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", help="where the queues are written (default: a temporary one)")
    arguments = parser.parse_args()
    compileall.compile_dir(PROJECT / "dbbasic_queue", quiet=1)
    for rows in arguments.rows or [100_000, 1_000_000]:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as place:
            table(rows, arguments.rounds, Path(place))


if __name__ == "__main__":
    main()
