"""Runs the sweeps of `sweep.py`, each in a process of its own: a sweep forks thousands of times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dbbasic_queue

_PROGRAM = Path(__file__).parent / "sweep.py"
_PACKAGE = Path(dbbasic_queue.__file__).parent.parent


def sweep(kind: str, workload: str, *, every: int) -> None:
    """Make every `every`-th attack of a sweep, print how many there were, and check the result.

    Coverage isn't measured there: that would take longer than the sweep, and the other tests run
    the same code.
    """
    plain = {name: text for name, text in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-W", "error", str(_PROGRAM), kind, workload, str(every)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=plain | {"PYTHONPATH": str(_PACKAGE)},
        timeout=800 if every > 1 else 7200,
    )
    lines = done.stdout.splitlines()
    assert lines, f"the sweep itself failed:\n{done.stderr}"
    counts: dict[str, Any] = json.loads(lines[-1])
    wrong = counts.pop("wrong")
    shown = ", ".join(f"{n} {name}" for name, n in counts.items())
    print(f"{kind} {workload}: {shown}")
    assert not wrong, "\n".join(wrong) + "\n" + done.stderr
    assert done.returncode == 0, done.stderr
    assert counts["runs"] and not counts["missed"], counts
    assert kind != "kill" or every > 1 or counts["kills"] > counts["points"]
