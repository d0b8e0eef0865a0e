"""A pytest plugin: the crash sweeps run beside the other tests, some at a time, as both wait a lot.

A test is marked with its sweep's kind and sampling, and is given what waits for it. All sweeps are
started before the first test. Then comes what is marked `waits`, which needs no processor, and at
last what needs a sweep's end.

As a program it runs the sweeps, apart from the tests' process with its forks, and what tests do to
its directory, its environment and its umask.
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
    """Sweeps in processes of their own: kind, workload, every."""

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
            assert line, "what runs the sweeps has ended"
            (kind, workload, every), code, output, errors = json.loads(line)
            self._results[kind, workload, every] = code, output, errors
        return self._results[key]

    def end(self) -> None:
        """End what nobody waits for any more."""
        with self._runner:
            os.killpg(self._runner.pid, signal.SIGINT)  # they remove their files, which are memory


def run(key: Key) -> tuple[Key, int, str, str]:
    command = [sys.executable, "-W", "error", str(SWEEP), *map(str, key)]
    done = subprocess.run(command, capture_output=True, text=True)
    return key, done.returncode, done.stdout, done.stderr


def main(wanted: list[Key]) -> None:
    """Run sweeps; print what comes of them, a line each, in their order."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for result in pool.map(run, wanted):
            print(json.dumps(result), flush=True)


def _environment() -> dict[str, str]:
    """Return this process's environment, with the package that it has imported.

    Coverage is not measured there: it would take longer than the sweeps, and nothing in the
    package is met by them alone.
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
