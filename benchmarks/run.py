"""Installs the peers, measures in interleaved rounds, and writes the table and plots.

    python benchmarks/run.py [--quick] [--only MEASURE] [--rounds N] [--dir DIR]

Each figure is measured by a new process running `measures.py`, in a new directory, on a queue that
another process has filled. A round measures every subject once: A B C, and in the next round
A B C again. So other load on the machine affects all subjects.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import report
from peers import BEFORE, FLOORS, OURS, PEERS, SUBJECTS

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
WORK = HERE / ".work"
SLOW = 6.0
"""Seconds per figure. Slower ones are measured only in the first SLOW_ROUNDS rounds."""
SLOW_ROUNDS = 3
TIMEOUT = 240
HELD = ("pass", "purge", "archive", "own_id", "requeue", "cancel")
"""The calls for which we measure how long they block other processes."""


@dataclass(frozen=True)
class Sizes:
    calls: int
    jobs: int
    many: int
    most: int
    produced: int
    starts: int
    rounds: int
    minutes: float


FULL = Sizes(2000, 10_000, 100_000, 1_000_000, 2000, 11, rounds=5, minutes=15)
QUICK = Sizes(2000, 10_000, 100_000, 100_000, 1000, 7, rounds=3, minutes=2)
SMALL = Sizes(20, 50, 100, 200, 20, 1, rounds=1, minutes=1)


@dataclass(frozen=True)
class Cell:
    """One figure of the table: a measure of a subject."""

    name: str
    measure: str
    subject: str
    options: dict[str, Any] = field(hash=False, default_factory=dict)
    due: int = 0
    waiting: int = 0
    finished: int = 0
    run: bool = False


def plan(sizes: Sizes) -> list[Cell]:
    """Return the cells of a round, in order."""
    s = sizes
    floors = ["floor", "floor, fdatasync"]
    cells = [Cell("fdatasync", "fdatasync", "floor", {"calls": s.calls})]
    cells.append(Cell("bare", "bare", "floor"))

    def add(name: str, measure: str, subjects: list[str], **more: Any) -> None:
        cells.extend(Cell(name, measure, subject, **more) for subject in subjects)

    calls = {"calls": s.calls}
    add("enqueue", "enqueue", FLOORS + OURS + PEERS, options=calls, due=200)
    add("enqueue_waiting", "enqueue", OURS, options=calls, waiting=s.many)
    add("unique_few", "enqueue_unique", OURS, options=calls, waiting=min(s.many, 100))
    add("unique_many", "enqueue_unique", OURS, options=calls, waiting=s.many)
    pairs = zip(FLOORS[2:], (1, 10), OURS, (3, 10), strict=True)
    for floor, floor_share, ours, share in pairs:
        options = {"due": s.many // floor_share}
        add("enqueue_during_pass", "enqueue_during_pass", [floor], options=options)
        due = s.many // share
        rows = {"due": due, "waiting": s.many - due}
        add("enqueue_during_pass", "enqueue_during_pass", [ours], options={"due": due}, **rows)
    for subject in floors + OURS + PEERS:
        jobs = min(s.jobs, SUBJECTS[subject].few or s.jobs)
        add("bulk", "bulk", [subject], options={"jobs": jobs})
        add("run", "run_all", [subject], options={"jobs": jobs, "seconds": 4}, due=jobs)
    long = {"seconds": 600}
    add("run_many", "run_all", ["floor", *OURS], options=long | {"jobs": s.many}, due=s.many)
    if s.most > s.many:
        add("run_most", "run_all", OURS[:1], options=long | {"jobs": s.most}, due=s.most)
    add("find_due", "find_due", ["floor", *OURS], options={"due": 10}, due=10, waiting=s.most - 10)
    finders = [name for name in PEERS if SUBJECTS[name].finds and name != "huey, fsync on"]
    for subject in ["floor", "this", *finders]:
        run = SUBJECTS[subject].finds_results_only
        add("look_up", "look_up", [subject], due=s.jobs, run=run)
    add("look_up_many", "look_up", ["floor", "this"], due=s.many)
    if s.most > s.many:
        add("look_up_most", "look_up", ["floor", "this"], due=s.most)
    half = {"due": 10, "waiting": s.most - s.most // 2 - 10, "finished": s.most // 2}
    for call in HELD:
        add(f"held_{call}", "held", ["this"], options={"call": call, "rows": s.most}, **half)
    race = {"producers": 4, "workers": 2, "seconds": 15}
    for subject in [*OURS, *(name for name in PEERS if SUBJECTS[name].processes)]:
        jobs = min(s.produced, SUBJECTS[subject].few or s.produced)
        add("contention", "contention", [subject], options=race | {"jobs": jobs})
    modules = {SUBJECTS[name].package: name for name in PEERS}
    add("start_up", "start_up", ["this", *modules.values()], options={"times": s.starts}, due=0)
    return cells


class Environments:
    """The virtual environments: one for us and the floors, one for each peer's package."""

    def __init__(self, snapshot: Path, *, peers: bool, against: Path | None = None) -> None:
        self.peers = peers
        self.compares = against is not None
        self.errors: dict[str, str] = {}
        self.paths = dict.fromkeys(FLOORS + OURS, snapshot / "this")
        if against is not None:
            self.paths |= dict.fromkeys(BEFORE, snapshot / "before")
        for source, name in ((PROJECT, "this"), (against, "before")):
            if source is not None:
                shutil.copytree(
                    source / "dbbasic_queue",
                    snapshot / name / "dbbasic_queue",
                    ignore=shutil.ignore_patterns("__pycache__"),
                )
        compileall.compile_dir(snapshot, quiet=1)

    def python(self, subject: str) -> str | None:
        """Return the Python to use; None if the package can't be installed."""
        kind = SUBJECTS[subject]
        ours = subject in self.paths
        if not self.peers:
            return sys.executable if ours else None
        package = SUBJECTS["this"].package if ours else kind.package
        if package in self.errors:
            return None
        slug = re.sub(r"[^a-z0-9.]+", "-", package)
        place = WORK / "venvs" / f"{slug}-{sys.version_info.major}.{sys.version_info.minor}"
        python = place / "bin" / "python"
        if not (place / "installed").exists():
            print(f"installing {package}", file=sys.stderr, flush=True)
            shutil.rmtree(place, ignore_errors=True)
            venv.create(place, with_pip=True)
            pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            done = subprocess.run([*pip, *package.split()], capture_output=True, check=False)
            if done.returncode:
                self.errors[package] = f"pip install {package} failed"
                return None
            (place / "installed").touch()
        return str(python)

    def variables(self, subject: str) -> dict[str, str]:
        """Return the environment variables: none of the caller's that change how Python runs."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DBBASIC"))}
        path = self.paths.get(subject)
        return kept | {"PYTHONPATH": str(path)} if path else kept

    def about(self, subject: str) -> dict[str, str]:
        """Return a subject's description for the report."""
        kind = SUBJECTS[subject]
        about = {"about": " ".join((kind.__doc__ or "").split()), "recorded": kind.recorded}

        python = self.python(subject)
        if python is None:
            return about | {"error": self.errors.get(kind.package, "not asked for")}
        if subject in FLOORS:
            return about
        if subject in OURS + BEFORE:
            code = "import dbbasic_queue; print(dbbasic_queue.__version__)"
        else:
            package = kind.package.split("=")[0].split()[0]
            code = f"from importlib.metadata import version; print(version({package!r}))"
        done = subprocess.run(
            [python, "-c", code],
            env=self.variables(subject),
            cwd=WORK,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return about | {"version": done.stdout.strip()}


def measure(cell: Cell, environments: Environments, place: Path) -> dict[str, Any]:
    """Take one figure in a new directory. An error becomes a figure named `error`."""
    python = environments.python(cell.subject)
    assert python
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as directory:
        arguments = [python, str(HERE / "measures.py")]
        env = environments.variables(cell.subject)
        if cell.due or cell.waiting:
            names = ("due", "waiting", "finished", "run")
            filling = json.dumps({name: getattr(cell, name) for name in names})
            figures = _run([*arguments, "fill", cell.subject, directory, filling], env)
            if "error" in figures:
                return figures
        options = json.dumps(cell.options)
        return _run([*arguments, cell.measure, cell.subject, directory, options], env)


def _run(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    with subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except BaseException as e:
            os.killpg(process.pid, signal.SIGKILL)  # and its child processes
            if isinstance(e, subprocess.TimeoutExpired):
                return {"error": f"not done after {TIMEOUT} seconds"}
            raise
    if process.returncode:
        print(errors, file=sys.stderr)
        last = (errors.strip() or f"exit code {process.returncode}").splitlines()[-1]
        return {"error": last[:200]}
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def take(
    cells: list[Cell], sizes: Sizes, environments: Environments, place: Path, rounds: int | None
) -> dict[str, Any]:
    """Take all figures, round by round."""
    results: dict[str, Any] = {"machine": machine(place), "sizes": vars(sizes), "figures": []}
    if results["machine"]["file_system"] in ("tmpfs", "ramfs", "overlay"):
        print(f"warning: {place} isn't on a real disk (use --dir)", file=sys.stderr)
    subjects = [name for name in SUBJECTS if any(cell.subject == name for cell in cells)]
    results["subjects"] = {name: environments.about(name) for name in subjects}
    cells = [cell for cell in cells if environments.python(cell.subject)]

    began = time.monotonic()
    took: dict[Cell, float] = {}
    most = rounds or sizes.rounds
    for number in range(1, most + 1):
        round_began = time.monotonic()
        # When two checkouts are compared, each comes first in every other round.
        swapped = number % 2 == 0 and environments.compares
        for cell in reversed(cells) if swapped else cells:
            if number > SLOW_ROUNDS and took.get(cell, 0) > SLOW:
                continue
            cell_began = time.monotonic()
            figures = measure(cell, environments, place)
            took[cell] = time.monotonic() - cell_began
            results["figures"].append(
                {"cell": cell.name, "subject": cell.subject, "round": number, **figures}
            )
            shown = ", ".join(f"{k} {v:.5g}" for k, v in figures.items() if isinstance(v, float))
            line = f"{number}/{most} {cell.name}: {cell.subject}: {shown or figures}"
            print(line, file=sys.stderr, flush=True)
        spent = (time.monotonic() - began) / 60
        last = (time.monotonic() - round_began) / 60
        if rounds is None and spent + last * 0.7 > sizes.minutes:
            break
    results["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    results["machine"]["minutes"] = round((time.monotonic() - began) / 60, 1)
    return results


def machine(place: Path) -> dict[str, Any]:
    """Describe the machine, for the report."""
    model = ""
    memory = 0.0
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        model = found[1] if found else ""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "system": platform.system() + " " + ".".join(platform.release().split(".")[:2]),
        "file_system": file_system(place),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def file_system(place: Path) -> str:
    """Return the type of the file system of a directory."""
    best = ("", "unknown")
    mounts = Path("/proc/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else []:
        _, point, kind, *_ = line.split()
        if place.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this queue, the floors and the peers.")
    parser.add_argument("--quick", action="store_true", help="two minutes: us, floors, 1.0.0")
    parser.add_argument("--small", action="store_true", help="a few seconds: check that it works")
    parser.add_argument("--no-peers", action="store_true", help="us and floors; installs nothing")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="another checkout: measure only both, and print the ratios",
    )
    parser.add_argument("--only", action="append", metavar="MEASURE", help="may be repeated")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="for the queues: on a real disk")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the table and the plots")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    sizes = SMALL if options.small else QUICK if options.quick else FULL
    cells = plan(sizes)
    if options.quick:
        cells = [c for c in cells if c.subject not in PEERS or c.subject == "dbbasic-queue 1.0.0"]
    if options.no_peers or options.against:
        cells = [c for c in cells if c.subject not in PEERS]
    if options.against:
        cells = [
            replace(cell, subject=subject)
            for cell in cells
            if cell.subject in OURS
            for subject in (BEFORE[OURS.index(cell.subject)], cell.subject)
        ]
    if options.only:
        names = {cell.name for cell in cells}
        if unknown := set(options.only) - names:
            raise SystemExit(f"no measure {sorted(unknown)}: choose from {sorted(names)}")
        cells = [cell for cell in cells if cell.name in options.only]
    WORK.mkdir(exist_ok=True)
    (WORK / ".gitignore").write_text("*\n")
    place = (options.dir or WORK / "queues").resolve()
    place.mkdir(parents=True, exist_ok=True)
    whole = not (options.quick or options.small or options.only or options.no_peers)
    out = options.out or (PROJECT / "docs" if whole else WORK / "docs")

    with tempfile.TemporaryDirectory(dir=WORK, prefix="this-") as snapshot:
        peers = not (options.no_peers or options.against)
        environments = Environments(Path(snapshot), peers=peers, against=options.against)
        results = take(cells, sizes, environments, place, options.rounds)
    if options.against:
        print(report.comparison(results))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    print(report.write(results, out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
