"""A pytest plugin that runs the crash sweeps in the background, while the other tests run.

A sweep is slow but mostly waits, so several run at the same time. A test for a sweep has the mark
`sweep(kind, every)` and calls its fixture `sweep`, which waits for the result. All sweeps start
before the first test. Tests marked `waits` come first, because they need no CPU time; tests for
sweeps come last.

Started as a program, this file runs the sweeps. They have their own process because tests fork, and
change the working directory, the environment and the umask.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import dbbasic_queue

SWEEP = Path(__file__).parent / "crash" / "sweep.py"
PACKAGE = str(Path(dbbasic_queue.__file__).parent.parent)
AT_A_TIME = 1 + (os.cpu_count() or 1)

Key = tuple[str, str, int]


class Sweeps:
    """Runs sweeps in other processes. A sweep's key is its kind, workload and step."""

    def __init__(self, wanted: list[Key]) -> None:
        self._results: dict[Key, tuple[int, str, str]] = {}
        self._runner = subprocess.Popen(
            [sys.executable, __file__, json.dumps(wanted)],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
            start_new_session=True,
        )

    def result(self, key: Key) -> tuple[int, str, str]:
        """Wait for a sweep; return its exit code, output and errors."""
        assert self._runner.stdout
        while key not in self._results:
            line = self._runner.stdout.readline()
            assert line, "the process that runs the sweeps has ended"
            (kind, workload, every), code, output, errors = json.loads(line)
            self._results[kind, workload, every] = code, output, errors
        return self._results[key]

    def end(self) -> None:
        """Stop the sweeps that are still running."""
        with self._runner:
            os.killpg(self._runner.pid, signal.SIGINT)  # they remove their files in /dev/shm


def run(key: Key) -> tuple[Key, int, str, str]:
    command = [sys.executable, "-W", "error", str(SWEEP), *map(str, key)]
    done = subprocess.run(command, capture_output=True, text=True)
    return key, done.returncode, done.stdout, done.stderr


def main(wanted: list[Key]) -> None:
    """Run sweeps; print one line with the result of each, in their order."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for result in pool.map(run, wanted):
            print(json.dumps(result), flush=True)


def _environment() -> dict[str, str]:
    """Return this process's environment, extended so that the sweeps import the same package.

    Coverage isn't measured there: it would take longer than the sweeps, and the other tests run
    the same code.
    """
    plain = {name: text for name, text in os.environ.items() if not name.startswith("COV")}
    return plain | {"PYTHONPATH": PACKAGE}


def _key(item: pytest.Item) -> Key:
    mark = item.get_closest_marker("sweep")
    assert mark is not None and isinstance(item, pytest.Function)
    kind, every = mark.args
    return str(kind), str(item.callspec.params["workload"]), int(every)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        return 2 if item.get_closest_marker("sweep") else not item.get_closest_marker("waits")

    items.sort(key=turn)


@pytest.fixture(scope="session", name="sweeps", autouse=True)
def all_sweeps(request: pytest.FixtureRequest) -> Iterator[Sweeps | None]:
    items = [item for item in request.session.items if item.get_closest_marker("sweep")]
    sweeps = Sweeps([_key(item) for item in items]) if items else None
    yield sweeps
    if sweeps:
        sweeps.end()


@pytest.fixture(name="sweep")
def one_sweep(
    request: pytest.FixtureRequest,
    sweeps: Sweeps,
    workload: str,
) -> Callable[[], None]:
    """Return a function that prints the counts of this test's sweep, and fails if it found bugs."""
    kind, _, every = key = _key(request.node)

    def check() -> None:
        code, output, errors = sweeps.result(key)
        lines = output.splitlines()
        assert lines, f"the sweep itself failed:\n{errors}"
        counts: dict[str, Any] = json.loads(lines[-1])
        wrong = counts.pop("wrong")
        shown = ", ".join(f"{n} {name}" for name, n in counts.items())
        print(f"{kind} {workload}: {shown}")
        assert not wrong, "\n".join(wrong) + "\n" + errors
        assert code == 0, errors
        assert counts["runs"] and not counts["missed"], counts
        assert kind != "kill" or every > 1 or counts["kills"] > counts["points"]

    return check


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(json.loads(sys.argv[1]))
