"""Write BENCHMARKS.md and its plots from the results of a run.

As a program, it writes them again from saved results:

    python benchmarks/report.py docs/benchmarks/results.json docs
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from peers import BEFORE, FLOORS, OURS, PEERS, SUBJECTS, syncs

FLOOR, FLOOR_SYNC, FLOOR_OPEN, FLOOR_OPEN_SYNC = FLOORS
OFF, ON = OURS

At = tuple[str, str, str]
"""Which figure: cell, subject, name."""


class Run:
    """The figures of one run."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.machine: dict[str, Any] = results["machine"]
        self.sizes: dict[str, Any] = results["sizes"]
        self.subjects: dict[str, dict[str, str]] = results["subjects"]
        self._figures: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for figure in results["figures"]:
            by_round = self._figures.setdefault((figure["cell"], figure["subject"]), {})
            by_round[figure["round"]] = figure

    def by_round(self, at: At) -> dict[int, float]:
        rounds = self._figures.get(at[:2], {})
        return {n: f[at[2]] for n, f in rounds.items() if f.get(at[2]) is not None}

    def values(self, at: At) -> list[float]:
        return list(self.by_round(at).values())

    def median(self, at: At) -> float | None:
        return median(values) if (values := self.values(at)) else None

    def worst(self, at: At) -> float | None:
        return max(self.values(at), default=None)

    def ratio(self, at: At, to: At) -> float | None:
        """The median of the rounds' own ratios: anything that slows a round slows both."""
        ours, theirs = self.by_round(at), self.by_round(to)
        both = [ours[n] / theirs[n] for n in ours if theirs.get(n)]
        return median(both) if both else None

    def everywhere(self, name: str) -> list[float]:
        """Return the values of a figure in all processes, lowest first."""
        figures = [f for by_round in self._figures.values() for f in by_round.values()]
        return sorted(f[name] for f in figures if name in f)

    def error(self, cell: str, subject: str) -> str:
        for figure in self._figures.get((cell, subject), {}).values():
            if "error" in figure:
                return str(figure["error"])
        return ""


# -- the goals ---------------------------------------------------------------------------------

Check = Callable[["Run", "Line"], bool | None]


@dataclass(frozen=True)
class Line:
    """A row of the first table."""

    title: str
    at: At
    unit: str
    goals: tuple[tuple[str, Check], ...]
    floor: At | None = None
    higher: bool = False
    compare: bool = True

    def best_peer(self, run: Run) -> At | None:
        """The best of the peers that sync like this line's subject."""
        cell, subject, name = self.at
        if not self.compare:
            return None
        alike = name in ("median_us", "us_a_job", "jobs_a_second")
        found = {
            (cell, peer, name): value
            for peer in PEERS
            if not alike or syncs(peer, cell) == syncs(subject, cell)
            if (value := run.median((cell, peer, name))) is not None
        }
        if not found:
            return None
        return (max if self.higher else min)(found, key=lambda at: found[at])


def _at_most(limit: float) -> Check:
    def check(run: Run, line: Line) -> bool | None:
        value = run.median(line.at)
        return None if value is None else value <= limit

    return check


def _at_least(limit: float) -> Check:
    def check(run: Run, line: Line) -> bool | None:
        value = run.median(line.at)
        return None if value is None else value >= limit

    return check


def _times(limit: float, to: At | None = None) -> Check:
    def check(run: Run, line: Line) -> bool | None:
        reference = to or line.floor
        ratio = run.ratio(line.at, reference) if reference else None
        return None if ratio is None else ratio <= limit

    return check


def _figure(name: str, limit: float) -> Check:
    """Check another figure of the same cell, in every round."""

    def check(run: Run, line: Line) -> bool | None:
        value = run.worst((line.at[0], line.at[1], name))
        return None if value is None else value <= limit

    return check


def _ahead(run: Run, line: Line) -> bool | None:
    peer = line.best_peer(run)
    ratio = run.ratio(line.at, peer) if peer else None
    if ratio is None:
        return None
    return ratio >= 1 if line.higher else ratio <= 1


def lines(sizes: dict[str, Any]) -> list[Line]:
    """The rows of the table of goals, in order."""
    jobs, many, most = sizes["jobs"], sizes["many"], sizes["most"]
    found: list[Line] = []

    def add(*arguments: Any, **more: Any) -> None:
        found.append(Line(*arguments, **more))

    pairs = ((ON, FLOOR_SYNC, "on"), (OFF, FLOOR, "off"))
    opening = ((ON, FLOOR_OPEN_SYNC, "on"), (OFF, FLOOR_OPEN, "off"))
    limits = {ON: 1.2, OFF: 4.5}
    for ours, floor, fsync in opening:
        add(
            f"enqueue, fsync {fsync}",
            ("enqueue", ours, "median_us"),
            "µs",
            (
                (f"≤ {limits[ours]} x floor", _times(limits[ours])),
                ("faster than the peers", _ahead),
            ),
            floor=("enqueue", floor, "median_us"),
        )
    stalls = (
        ("p99 < 10 ms", _figure("p99_us", 10_000)),
        ("worst < 50 ms", _figure("worst_us", 50_000)),
    )
    for ours, floor, fsync in opening:
        short = ("≤ 1.1 x a short queue", _times(1.1, ("enqueue", ours, "median_us")))
        like = (f"≤ {limits[ours]} x floor", _times(limits[ours]))
        for cell, what, floored, wanted in (
            ("enqueue_waiting", f"{many:,} rows waiting", "enqueue", (short,)),
            (
                "enqueue_during_pass",
                f"{many:,} rows, next to a pass",
                "enqueue_during_pass",
                (short, like),
            ),
        ):
            add(
                f"enqueue, fsync {fsync}, {what}",
                (cell, ours, "median_us"),
                "µs",
                (*wanted, *stalls),
                floor=(floored, floor, "median_us"),
                compare=False,
            )
    for ours, floor, fsync in opening:
        few = ("unique_few", ours, "median_us")
        short = ("≤ 1.2 x with 100 rows", _times(1.2, few))
        for cell, rows in (("unique_few", 100), ("unique_many", many)):
            limit = {ON: 2, OFF: 6}[ours]
            plain = (f"≤ {limit} x a plain enqueue", _times(limit, (cell, ours, "plain_us")))
            add(
                f"enqueue, unique, fsync {fsync}, {rows:,} rows waiting",
                (cell, ours, "median_us"),
                "µs",
                (plain, short) if cell == "unique_many" else (plain,),
                floor=("enqueue", floor, "median_us"),
                compare=False,
            )
    for ours, floor, fsync in pairs:
        add(
            f"{jobs:,} in bulk, per job, fsync {fsync}",
            ("bulk", ours, "us_a_job"),
            "µs",
            (("≤ 1.5 x floor", _times(1.5)), ("faster than the peers", _ahead)),
            floor=("bulk", floor, "us_a_job"),
        )
    for ours, floor, fsync in reversed(pairs):
        limit = {ON: 8_500, OFF: 45_000}[ours]
        add(
            f"{jobs:,} no-op jobs, fsync {fsync}",
            ("run", ours, "jobs_a_second"),
            "jobs/s",
            ((f"≥ {limit:,}", _at_least(limit)), ("faster than the peers", _ahead)),
            floor=("run", floor, "jobs_a_second"),
            higher=True,
        )
    for cell, rows in (("run_many", many), ("run_most", most)):
        add(
            f"one of {rows:,} jobs, fsync off",
            (cell, OFF, "us_a_job"),
            "µs",
            ((f"≤ 1.2 x one of {jobs:,}", _times(1.2, ("run", OFF, "us_a_job"))),),
            floor=("run_many", FLOOR, "us_a_job"),
            compare=False,
        )
    for ours, fsync in ((OFF, "off"), (ON, "on")):
        add(
            f"one pass, 10 due among {most:,}, fsync {fsync}",
            ("find_due", ours, "seconds"),
            "s",
            (("≤ 3 x reading and splitting", _times(3)),),
            floor=("find_due", FLOOR, "seconds"),
            compare=False,
        )
    look_ups = (("look_up", jobs), ("look_up_many", many), ("look_up_most", most))
    for cell, rows in look_ups:
        add(
            f"look-up, first, {rows:,} rows",
            (cell, ON, "first_us"),
            "µs",
            (("≤ 1.5 x floor", _times(1.5)),),
            floor=(cell, FLOOR, "first_us"),
        )
    for name, what in (("again_us", "again"), ("growing_us", "again, while the file grows")):
        for cell, rows in look_ups:
            title = f"look-up, {what}, {rows:,} rows"
            add(title, (cell, ON, name), "µs", (("< 20 µs", _at_most(20)),))
    calls = {
        "pass": "a pass with its fold",
        "purge": "a purge of half the rows",
        "archive": "a purge into an archive",
        "own_id": "the first enqueue with a job_id",
        "requeue": "the first requeue",
        "cancel": "the first cancel",
    }
    for call, what in calls.items():
        cell = f"held_{call}"
        copying = (cell, ON, "copy_ms")
        folds = ("≤ 4 x copying and syncing", _times(4, copying))
        add(
            f"others wait for the lock: {what}, {most:,} rows",
            (cell, ON, "held_ms"),
            "ms",
            (folds if call in ("pass", "purge", "archive") else ("≤ 100 ms", _at_most(100)),),
            floor=copying,
            compare=False,
        )
    whole = (("none lost", _figure("lost", 0)), ("none doubled", _figure("doubled", 0)))
    for ours, fsync in ((OFF, "off"), (ON, "on")):
        goals = [("≥ 15,000", _at_least(15_000)), *whole] if ours == OFF else list(whole)
        add(
            f"4 producers, 2 workers, {4 * sizes['produced']:,} jobs, fsync {fsync}",
            ("contention", ours, "jobs_a_second"),
            "jobs/s",
            tuple(goals),
            higher=True,
        )
    bare = ("bare", FLOOR, "peak_mib")
    add(
        f"memory: a pass over {jobs:,} rows",
        ("run", OFF, "peak_mib"),
        "MiB",
        (("< 28 MiB", _at_most(28)),),
        floor=bare,
    )
    by_file: tuple[tuple[str, Check], ...] = (
        ("< 2.5 x the file", _times(2.5, ("run_most", OFF, "file_mib"))),
    )
    for cell, rows in (("run_many", many), ("run_most", most)):
        add(
            f"memory: a pass over {rows:,} rows",
            (cell, OFF, "peak_mib"),
            "MiB",
            by_file if cell == "run_most" else (),  # for a short file, Python itself takes the most
            floor=bare,
            compare=False,
        )
    for name, what, limit in (("idle_ms", "an idle pass", 25), ("import_ms", "import", 15)):
        add(
            f"{what}, on top of starting Python",
            ("start_up", ON, name),
            "ms",
            ((f"< {limit} ms", _at_most(limit)),),
            floor=("start_up", ON, "bare_ms"),
        )
    return found


COMPARED = {
    **dict.fromkeys(("median_us", "us_a_job", "first_us", "again_us", "growing_us"), "µs"),
    **dict.fromkeys(("idle_ms", "import_ms", "held_ms"), "ms"),
    "seconds": "s",
    "jobs_a_second": "jobs/s",
    "peak_mib": "MiB",
}
"""The figures that are compared between two checkouts."""


def comparison(results: dict[str, Any]) -> str:
    """Return a table: each figure before and now, and the median of the rounds' own ratios.

    Over 1 is worse, for every figure.
    """
    run = Run(results)
    cells = dict.fromkeys((f["cell"], f["subject"]) for f in results["figures"])
    rows = []
    for cell, subject in cells:
        for name, unit in COMPARED.items() if subject in OURS else ():
            now, before = (cell, subject, name), (cell, BEFORE[OURS.index(subject)], name)
            if cell == "bulk" and name == "seconds":
                continue  # the same as the figure per job
            if (name == "jobs_a_second") != (cell == "contention") and name in (
                "jobs_a_second",
                "us_a_job",
            ):
                continue
            ratio = run.ratio(before, now) if name == "jobs_a_second" else run.ratio(now, before)
            if ratio is not None:
                spreads = [f"{with_spread(run, at)} {unit}" for at in (before, now)]
                rows.append([f"{cell}, {name}", subject, *spreads, f"{ratio:.2f}"])
    rows.sort(key=lambda row: -float(row[-1]))
    return table(["", "", "before", "now", "now / before"], rows)


# -- tables ------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits; commas between thousands."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def with_spread(run: Run, at: At) -> str:
    values = run.values(at)
    if not values:
        return "failed" if run.error(*at[:2]) else "-"
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}-{number(max(values))})"


def times(value: float | None) -> str:
    return "" if value is None else f"{number(value)} x"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def goals_table(run: Run) -> str:
    rows = []
    for line in lines(run.sizes):
        if not run.values(line.at):
            continue
        peer = line.best_peer(run)
        verdicts = []
        for text, check in line.goals:
            met = check(run, line)
            if met is not None:
                verdicts.append(text + (": met" if met else ": **not met**"))
        value = f"{with_spread(run, line.at)} {line.unit}"
        cell, subject, name = line.at
        if name == "median_us" and cell != "enqueue":
            p99, worst = (run.worst((cell, subject, n)) for n in ("p99_us", "worst_us"))
            value += f"; p99 {number(p99)}, worst {number(worst)}"
        if cell == "contention":
            lost, doubled = (run.worst((cell, subject, n)) for n in ("lost", "doubled"))
            value += f"; lost {number(lost)}, doubled {number(doubled)}"
        floor = f"{with_spread(run, line.floor)}" if line.floor else ""
        rows.append(
            [
                line.title,
                value,
                floor,
                times(run.ratio(line.at, line.floor)) if line.floor else "",
                f"{with_spread(run, peer)} {peer[1]}" if peer else "",
                times(run.ratio(line.at, peer)) if peer else "",
                "; ".join(verdicts),
            ]
        )
    head = ["measure", "this", "floor", "this / floor", "best peer", "this / peer", "goal"]
    return table(head, rows)


COLUMNS: list[tuple[str, str, str]] = [
    ("enqueue, µs", "enqueue", "median_us"),
    ("in bulk, µs per job", "bulk", "us_a_job"),
    ("no-op jobs/s", "run", "jobs_a_second"),
    ("pass, MiB", "run", "peak_mib"),
    ("look-up, first, µs", "look_up", "first_us"),
    ("again, µs", "look_up", "again_us"),
    ("4 + 2 processes, jobs/s", "contention", "jobs_a_second"),
    ("import, ms", "start_up", "import_ms"),
]


def peers_table(run: Run) -> str:
    rows = []
    for name, about in run.subjects.items():
        version = about.get("version", "") if name in PEERS else ""
        cells = [name if version in name else f"{name} ({version})"]
        alike = syncs(name, "run") == syncs(name, "enqueue")
        cells.append("no" if not syncs(name, "enqueue") else "yes" if alike else "enqueue")
        for _, cell, figure in COLUMNS:
            at = (cell, name, figure)
            text = "not installed" if "error" in about else with_spread(run, at)
            floor = (cell, FLOOR_SYNC if syncs(name, cell) else FLOOR, figure)
            if cell in ("enqueue", "bulk", "run") and figure != "peak_mib" and name not in FLOORS:
                ratio = times(run.ratio(at, floor))
                text += f", {ratio}" if ratio else ""
            if cell == "contention" and run.values(at):
                ends = [run.worst((cell, name, n)) for n in ("lost", "doubled", "errors")]
                text += "; {} lost, {} twice, {} errors".format(*map(number, ends))
            cells.append(text)
        rows.append(cells)
    return table(["", "synced", *[title for title, _, _ in COLUMNS]], rows)


def about_table(run: Run) -> str:
    rows = []
    for name, about in run.subjects.items():
        text = about["about"]
        if "error" in about:
            text += f" **Not measured: {about['error']}.**"
        errors = {run.error(cell, name) for cell in sorted({c for c, _ in run._figures})} - {""}
        text += "".join(f" **Failed: {escape(error, quote=False)}.**" for error in sorted(errors))
        rows.append([name, text, about["recorded"]])
    return table(["", "how it is used", "what it records when a job has run"], rows)


def pace(run: Run) -> str:
    """Return a sentence on how much the speed of the processor changed between processes."""
    found = run.everywhere("pace_ms")
    if not found:
        return ""
    tenth = len(found) // 10
    low, middle, high = (number(found[n]) for n in (tenth, len(found) // 2, -1 - tenth))
    return (
        f"An empty loop of 100,000 turns took {middle} ms; in a tenth of the processes under {low} "
        f"ms, in a tenth over {high} ms: the speed of the processor changed by that much. "
    )


def document(run: Run, plots: list[str]) -> str:
    m = run.machine
    sync = ("fdatasync", FLOOR, "median_us")
    worst = run.worst(("fdatasync", FLOOR, "worst_us"))
    rounds = max((n for f in run._figures.values() for n in f), default=0)
    parts = [
        "# Benchmarks\n",
        f"{m['date']}; {m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB; "
        f"{m['system']}, {m['file_system']}; Python {m['python']}. "
        f"An append of 100 bytes with fdatasync takes {with_spread(run, sync)} µs here, at worst "
        f"{number(worst)} µs. {pace(run)}The load average was {m['load_before']} before the run "
        f"and {m['load_after']} after {m['minutes']} minutes.\n",
        f"Each figure is the median of {rounds} rounds (lowest-highest), and comes from a process "
        "of its own. A ratio is the median of the ratios within each round. p99 and worst are from "
        "the worst round. A floor is the same work by bare system calls, a peer is another queue. "
        "Compare figures on this page only: another machine, or the same one an hour later, has "
        "others. [benchmarks/README.md](../benchmarks/README.md) says how they are measured, "
        "[performance.md](performance.md) explains them.\n",
        "## The goals\n",
        goals_table(run),
        *(f"![{Path(plot).stem}]({plot})\n" for plot in plots),
        "## All queues\n",
        "x is the ratio to the floor: the one with fdatasync for queues that sync, otherwise the "
        "one without. A dash means that the queue has no such call, or that it wasn't measured.\n",
        peers_table(run),
        "## How each is used\n",
        about_table(run),
    ]
    return "\n".join(parts)


# -- plots -------------------------------------------------------------------------------------

WIDTH, LABELS, BAR, GAP = 760, 220, 16, 8
COLOURS = {"floor": "#9aa5b1", "this": "#1f77b4", "peer": "#d9a441"}


def bars(run: Run, title: str, unit: str, ats: list[tuple[str, At]]) -> str:
    """Horizontal bars on a logarithmic axis; a thin line from the lowest round to the highest."""
    found = [(label, at, run.values(at)) for label, at in ats if run.values(at)]
    if not found:
        return ""
    low = 10 ** math.floor(math.log10(min(min(values) for *_, values in found)) - 0.05)
    high = 10 ** math.ceil(math.log10(max(max(values) for *_, values in found)))
    room = WIDTH - LABELS - 90

    def x(value: float) -> float:
        return LABELS + room * math.log(value / low) / math.log(high / low)

    bottom = 40 + len(found) * (BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 30}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{bottom + 30}" fill="white"/>',
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at_x = x(10.0**power)
        parts.append(
            f'<line x1="{at_x:.1f}" y1="32" x2="{at_x:.1f}" y2="{bottom}" stroke="#ddd"/>'
            f'<text x="{at_x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">'
            f"{number(10.0**power) if power < 0 else f'{10**power:,}'}</text>"
        )
    for i, (label, (_, subject, _), values) in enumerate(found):
        y = 38 + i * (BAR + GAP)
        kind = "floor" if subject in FLOORS else "this" if subject in OURS else "peer"
        middle = median(values)
        parts.append(
            f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{LABELS}" y="{y}" width="{x(middle) - LABELS:.1f}" height="{BAR}" '
            f'fill="{COLOURS[kind]}"/>'
            f'<line x1="{x(min(values)):.1f}" y1="{y + BAR / 2}" x2="{x(max(values)):.1f}" '
            f'y2="{y + BAR / 2}" stroke="black"/>'
            f'<text x="{x(max(values)) + 5:.1f}" y="{y + 12}">{number(middle)} {unit}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def plots(run: Run) -> dict[str, str]:
    sizes = run.sizes
    everybody = [name for name in SUBJECTS if "open" not in name]

    def each(cell: str, name: str) -> list[tuple[str, At]]:
        ordered = sorted(everybody, key=lambda subject: syncs(subject, cell))
        return [(s + (" (synced)" if syncs(s, cell) else ""), (cell, s, name)) for s in ordered]

    grown = [("run", sizes["jobs"]), ("run_many", sizes["many"]), ("run_most", sizes["most"])]
    found = [("look_up", sizes["jobs"]), ("look_up_many", sizes["many"])]
    found += [("look_up_most", sizes["most"])]
    per_job = [
        (f"{subject}, {rows:,} rows", (cell, subject, "us_a_job"))
        for subject in ("floor", OFF, ON)
        for cell, rows in grown
    ]
    look_up: list[tuple[str, At]] = []
    for cell, rows in found:
        look_up.append((f"floor: read, find; {rows:,}", (cell, FLOOR, "first_us")))
        look_up.append((f"this, first; {rows:,}", (cell, ON, "first_us")))
        look_up.append((f"this, again; {rows:,}", (cell, ON, "again_us")))
        look_up.append((f"this, again, growing; {rows:,}", (cell, ON, "growing_us")))
    return {
        "enqueue": bars(run, "Enqueue: median time per call", "µs", each("enqueue", "median_us")),
        "jobs": bars(run, "No-op jobs per second", "jobs/s", each("run", "jobs_a_second")),
        "contention": bars(
            run, "4 producers, 2 workers", "jobs/s", each("contention", "jobs_a_second")
        ),
        "growth": bars(run, "Time per job as the queue grows", "µs", per_job),
        "look_up": bars(run, "Look up a job by its id", "µs", look_up),
    }


def write(results: dict[str, Any], out: Path) -> str:
    """Write BENCHMARKS.md, and the plots and raw results in benchmarks/; return the page."""
    run = Run(results)
    folder = out / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(dump(results), "utf-8")
    names = []
    for name, svg in plots(run).items():
        if svg:
            (folder / f"{name}.svg").write_text(svg, "utf-8")
            names.append(f"benchmarks/{name}.svg")
    page = document(run, names)
    (out / "BENCHMARKS.md").write_text(page, "utf-8")
    return page


def dump(results: dict[str, Any]) -> str:
    """Return JSON with one line per figure, so that a diff of two runs is readable."""
    figures = ",\n".join(json.dumps(figure) for figure in results["figures"])
    rest = json.dumps({k: v for k, v in results.items() if k != "figures"}, indent=1)
    return rest[:-2] + ',\n "figures": [\n' + figures + "\n ]\n}\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    write(json.loads(source.read_text("utf-8")), target)
