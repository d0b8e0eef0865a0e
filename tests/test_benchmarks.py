"""The benchmarks work: no figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from conftest import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

MEASURES = ["bare", "enqueue", "enqueue_beside", "run", "find_due", "look_up", "contention"]


def test_the_benchmarks_measure_this_queue_and_write_a_table_and_plots(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "benchmarks" / "run.py"), "--small", "--no-peers"]
    command += ["--dir", str(tmp_path / "queues"), "--out", str(tmp_path / "docs")]
    command += [f"--only={measure}" for measure in MEASURES]

    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "docs/benchmarks/results.json").read_text("utf-8"))
    figures = results["figures"]
    assert {figure["cell"] for figure in figures} == set(MEASURES)
    assert [figure for figure in figures if "error" in figure] == []
    races = [figure for figure in figures if figure["cell"] == "contention"]
    assert [(race["enqueued"], race["lost"], race["doubled"]) for race in races] == [(80, 0, 0)] * 2
    page = (tmp_path / "docs/BENCHMARKS.md").read_text("utf-8")
    assert "| enqueue, fsync on |" in page
    beside = [figure["subject"] for figure in figures if figure["cell"] == "enqueue_beside"]
    assert sum(subject.startswith("floor, open and close") for subject in beside) == 2
    for name in ("enqueue", "jobs", "look_up"):
        assert (tmp_path / f"docs/benchmarks/{name}.svg").read_text("utf-8").startswith("<svg ")
        assert f"(benchmarks/{name}.svg)" in page
