"""The benchmarks run and write their files. Their numbers aren't judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from helpers import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

MEASURES = ["bare", "enqueue", "enqueue_during_pass", "run", "find_due", "look_up", "contention"]
HELD = ["pass", "purge", "archive", "own_id", "requeue", "cancel"]


def run(*options: object) -> str:
    command = [sys.executable, PROJECT / "benchmarks" / "run.py", "--small", *options]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_benchmarks_measure_this_queue_and_write_a_table_and_plots(tmp_path: Path) -> None:
    only = [f"--only={measure}" for measure in MEASURES]
    run("--no-peers", "--dir", tmp_path / "queues", "--out", tmp_path / "docs", *only)

    results = json.loads((tmp_path / "docs/benchmarks/results.json").read_text("utf-8"))
    figures = results["figures"]
    assert {figure["cell"] for figure in figures} == set(MEASURES)
    assert [figure for figure in figures if "error" in figure] == []
    races = [figure for figure in figures if figure["cell"] == "contention"]
    assert [(race["enqueued"], race["lost"], race["doubled"]) for race in races] == [(80, 0, 0)] * 2
    page = (tmp_path / "docs/BENCHMARKS.md").read_text("utf-8")
    assert "| enqueue, fsync on |" in page
    during = [figure["subject"] for figure in figures if figure["cell"] == "enqueue_during_pass"]
    assert sum(subject.startswith("floor, open and close") for subject in during) == 2
    for name in ("enqueue", "jobs", "look_up"):
        assert (tmp_path / f"docs/benchmarks/{name}.svg").read_text("utf-8").startswith("<svg ")
        assert f"(benchmarks/{name}.svg)" in page


def test_the_benchmarks_measure_unique_enqueues_next_to_plain_ones(tmp_path: Path) -> None:
    only = ["--only=unique_few", "--only=unique_many"]
    page = run("--no-peers", "--dir", tmp_path / "queues", "--out", tmp_path / "docs", *only)
    results = json.loads((tmp_path / "docs/benchmarks/results.json").read_text("utf-8"))
    for figure in results["figures"]:
        assert min(figure[name] for name in ("median_us", "found_us", "plain_us", "first_ms")) > 0
    assert page.count("| enqueue, unique, fsync ") == 4


def test_the_benchmarks_measure_how_long_each_call_holds_the_lock(
    tmp_path: Path,
) -> None:
    only = [f"--only=held_{call}" for call in HELD]
    page = run("--no-peers", "--dir", tmp_path / "queues", "--out", tmp_path / "docs", *only)
    results = json.loads((tmp_path / "docs/benchmarks/results.json").read_text("utf-8"))
    for figure in results["figures"]:
        assert figure["held_ms"] < 1000
        assert figure["copy_ms"] > 0
    # A call that is short may be over before the process that watches the lock looks at it.
    assert max(figure["held_ms"] for figure in results["figures"]) > 0
    assert page.count("| others wait for the lock: ") == len(HELD)


def test_the_benchmarks_compare_two_checkouts_in_one_run(tmp_path: Path) -> None:
    only = ["--only=enqueue", "--only=run"]
    table = run("--against", PROJECT, "--dir", tmp_path / "queues", *only)
    rows = [line.split(" | ") for line in table.splitlines() if "this" in line]
    names = {(row[0].removeprefix("| "), row[1]) for row in rows}
    for subject in ("this", "this, fsync=False"):
        assert {("enqueue, median_us", subject), ("run, us_a_job", subject)} < names
    assert all(0.01 < float(row[-1].removesuffix(" |")) < 100 for row in rows)
