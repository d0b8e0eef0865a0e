"""Planted bugs: the tests must catch each of them, or they prove nothing.

    python tests/crash/mutants.py [WORD ...]     all of them, or those with a word in their name
    python tests/crash/mutants.py --list         print the name, file and first test of each
    python tests/crash/mutants.py --no-bug       the same tests on a copy without a bug

Each bug is one replacement in a copy of the package. Without it, the same tests pass: in the test
suite, and with --no-bug. Prints which test has caught which bug; exits with 1 if a bug survived.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from planted import MUTANTS, Mutant

PROJECT = Path(__file__).resolve().parent.parent.parent
AT_A_TIME = 3
TIMEOUT = 150
"""seconds for one call of pytest"""
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["hypothesis", "pytest"])  # half of a short test's time
_COPIED = (
    "dbbasic_queue",
    "pytest_dbbasic_queue",
    "dbbasic_queue_program.py",
    "docs",
    "examples",
    "tests",
    "workers",
    "pyproject.toml",
    "setup.py",
    "README.md",
)


def lay_out(place: Path) -> None:
    """Copy the project."""
    place.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis", ".venv")
    for name in _COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, place / name)


def run_tests(place: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run the tests in a copy until one fails; return pytest's exit code and what it printed.

    The code is -1 if the tests took too long.
    """
    output = place / "output"
    process = _PROCESSES.Process(target=_pytest, args=(place, tests, output))
    process.start()
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        process.join()
        return -1, f"it took over {TIMEOUT} s"  # the machine may just be slow: it proves nothing
    return process.exitcode, output.read_text("utf-8", "replace")


def _pytest(place: Path, tests: tuple[str, ...], output: Path) -> None:
    """Run pytest in this process, which was forked from one that has imported it already."""
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(place)
    os.environ |= {
        "PYTHONPATH": str(place),
        "DBBASIC_QUEUE_STOP": "1",
        "DBBASIC_QUEUE_LONG": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # other packages' plugins take over a second to load
    }
    sys.path.insert(0, str(place))
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_dbbasic_queue"]
    sys.exit(pytest.main([*options, f"--basetemp={place / 'tmp'}", *tests]))


def judge(base: Path, mutant: Mutant) -> tuple[Mutant, str, float]:
    """Return the bug, the test that has caught it ("" if none has), and the seconds it took.

    If the bug couldn't be planted, or pytest itself failed, "!! " and the reason replace the test.
    Each thread has a copy of its own. It is used again, so that it is compiled once.
    """
    place = base / threading.current_thread().name
    if not place.exists():
        lay_out(place)
    file = place / "dbbasic_queue" / mutant.file
    compiled = Path(importlib.util.cache_from_source(str(file)))
    original = file.read_bytes()
    started = time.monotonic()
    try:
        mutant.apply(place / "dbbasic_queue")
        compiled.unlink(missing_ok=True)  # Python may take it for the new file's
        caught = catch(place, mutant)
    except ValueError as e:
        caught = f"!! {e}"
    finally:
        file.write_bytes(original)
        compiled.unlink(missing_ok=True)
    return mutant, caught, time.monotonic() - started


def catch(place: Path, mutant: Mutant) -> str:
    """Return the first test that fails, as `judge` does."""
    for test in mutant.tests:
        code, output = run_tests(place, (test,))
        if code == 1:
            failed = re.search(r"^(?:FAILED|ERROR) (\S*::\S+)", output, re.MULTILINE)
            return failed.group(1) if failed else test
        if code:
            return f"!! pytest itself failed ({code}): {output[-300:]}"
    return ""


def judge_unharmed(base: Path) -> int:
    """Run all tests that must catch bugs on a copy without a bug: they must pass."""
    place = base / "unharmed"
    lay_out(place)
    failed = 0
    for test in sorted({test for mutant in MUTANTS for test in mutant.tests}):
        code, output = run_tests(place, (test,))
        failed += code != 0
        print(
            f"{'FAILS' if code else 'passes'}  {test}\n{output[-1000:] if code else ''}", flush=True
        )
    return 1 if failed else 0


def main(words: list[str]) -> int:
    """Plant each bug in turn, three at a time; return the exit code."""
    if words == ["--list"]:
        for mutant in MUTANTS:
            print(f"{mutant.name}\t{mutant.file}\t{mutant.tests[0]}")
        return 0
    started = time.monotonic()
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="queue-mutants-") as directory:
        base = Path(directory)
        if words == ["--no-bug"]:
            return judge_unharmed(base)
        chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            jobs = [threads.submit(judge, base, mutant) for mutant in chosen]
            for job in jobs:
                mutant, caught, seconds = job.result()
                survivors += not caught or caught.startswith("!!")
                print(f"{mutant.name:<55} {seconds:5.1f} s  {caught or 'SURVIVED'}", flush=True)
    seconds = time.monotonic() - started
    print(f"{len(chosen)} mutants, {survivors} survived, in {seconds:.0f} seconds")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
