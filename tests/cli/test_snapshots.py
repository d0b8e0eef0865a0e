"""What each command prints, on terminals of 80 and 160 columns and in a pipe: files in `screens/`.

After a change that is meant, write them again, and look at the difference:

    UPDATE_SCREENS=1 python -m pytest tests/cli/test_snapshots.py; git diff tests/cli/screens
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Clock, add_lines, line

from dbbasic_queue import Fail, Handlers, Queue
from dbbasic_queue.cli.main import argument_parser, main

if TYPE_CHECKING:
    from collections.abc import Iterator

SCREENS = Path(__file__).with_name("screens")
AGE = 11_400
"""How many seconds ago everything happened: for a minute from now on, that is 3 h 10 min."""
COMMANDS = {
    "cancel": ["cancel thumb-1 mail-1", "cancel --type sync --dry-run", "cancel --all --yes"],
    "check": ["check", "check --max-wait 10m --max-failed 5"],
    "clear": ["clear mail-1 nosuch", "clear --all --yes"],
    "crontab": ["crontab jobs.toml"],
    "due": ["due", "due --type nosuch"],
    "edit": ["""edit thumb-1 '{"file": "b.jpg"}'""", "edit mail-1 1"],
    "enqueue": [
        """enqueue mail '{"to": "eve@example.com"}' --id mail-9""",
        "enqueue mail @lines --lines",
        "enqueue mail 1 --id mail-1",
        "enqueue mail 1 --id mail-1 --exist-ok",
        "enqueue mail '{'",
    ],
    "export": ["export", "export --type sync jobs.jsonl"],
    "failed": ["failed", "failed --type nosuch"],
    "history": ["history", "history mail-1", "history --type nosuch"],
    "import": ["clear mail-1 mail-2", "import --dry-run jobs.tsv", "import jobs.tsv"],
    "init": ["init", "init --python", "init"],
    "list": ["list", "list --status pending --sort type", "list --type nosuch"],
    "metrics": ["metrics queue.prom"],
    "move": ["move --to new.tsv --dry-run", "move --to new.tsv --yes", "list"],
    "output": ["output video-1", "output mail-1", "output nosuch"],
    "pause": ["pause mail", "pause", "pause nosuch"],
    "plot": ["plot --window 1d", "plot --window 1d --out plot.svg"],
    "purge": ["purge --older-than 30d --yes", "purge --older-than 1h --dry-run"],
    "requeue": ["requeue crm-1 thumb-1", "requeue --failed --yes"],
    "resume": ["resume sync", "resume mail"],
    "run": [
        "run jobs.toml --job mail-2",
        "run jobs.toml --skip-unknown",
        "run jobs.toml --skip-unknown",
        "run nosuch.toml",
    ],
    "run-now": ["run-now later-1 mail-1", "run-now --type sync --dry-run"],
    "running": ["running"],
    "schedules": ["schedules"],
    "show": ["show crm-1", "show mail-1", "show import-1", "show later-1", "show sync-1"],
    "stats": ["stats --window 1d", "stats --window 1m"],
    "status": ["status"],
    "stop": ["stop thumb-1 mail-1", "stop --type sync --yes"],
    "unreadable": ["unreadable", "unreadable --remove --yes", "unreadable"],
    "wait": ["wait mail-1", "wait crm-1", "wait later-1 --timeout 0s", "wait nosuch"],
    "watch": ["watch --count 1"],
}
ELSEWHERE = {
    "bench": "test_bench.py",
    "demo": "test_demo.py",
    "doctor": "test_snapshots.py",
    "web": "test_at_a_terminal.py",
    "worker": "test_at_a_terminal.py",
}
"""command -> the file that tests what it prints: that depends on the machine, or has no end"""
ONLY_IN_A_PIPE = {"watch"}


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def fill(place: Path) -> None:
    """Make a queue with jobs of all kinds, an output, a schedule, and a line that isn't a job."""
    clock = Clock(int(time.time()) - AGE)
    jobs = Handlers()

    @jobs.handler
    def mail(payload: Any) -> dict[str, bool]:
        return {"sent": True}

    @jobs.handler(max_attempts=1)
    def crm(payload: Any) -> None:
        raise Fail("crm.example.com refused the connection: 421 too many connections from here")

    @jobs.handler(timeout=60)
    def video(payload: Any) -> None:
        os.write(1, b"frame 1 \x1b[31m\nframe 2\n")

    jobs.every(timedelta(days=3), "mail", name="letter")
    with Queue(place / "data/queue.tsv", clock=clock) as queue:
        queue.enqueue("video", {"file": "holiday.mov"}, job_id="video-1")
        queue.enqueue("mail", {"to": "渡辺@example.com", "text": "\x1b[31m"}, job_id="mail-1")
        queue.enqueue("crm", {"customer": 4711}, job_id="crm-1")
        queue.process_jobs(jobs)
        queue.enqueue("mail", {"to": "bob@example.com"}, job_id="mail-2")
        queue.enqueue("thumb", {"file": "a.jpg", "size": [640, 480]}, job_id="thumb-1")
        queue.enqueue("sync", [1, 2], job_id="sync-1")
        later = clock.now + AGE + 196_200  # in 2 d 6 h 30 min
        queue.enqueue("mail", {"to": "dan@example.com"}, job_id="later-1", run_at=later)
        queue.pause("sync")
    at = int(clock.now)
    lost = line("import-1", type="csv", status="processing", attempts=1, run_at=at, created_at=at)
    add_lines(place / "data/queue.tsv", lost, "send_email to ada\n")

    for name in ("history", "passes"):
        log = place / f"data/queue.tsv.{name}"
        text = log.read_text("utf-8").replace(__file__, "/srv/app/worker.py")
        text = re.sub(r"(?<=\t)\d{1,3}\.\d+(?=\t)", "0.250000", text)  # how long it took
        text = text.replace(f"\t{os.uname().nodename}.{os.getpid()}\t", "\tweb1.4711\t")
        log.write_text(re.sub(r"\bline \d+, in", "line 7, in", text), "utf-8")
    with redirect_stdout(io.StringIO()):
        main(["export", str(place / "jobs.tsv"), "--file", str(place / "data/queue.tsv")])
    (place / "lines").write_text('{"n": 1}\n{"n": 2}\n')
    (place / "jobs.toml").write_text('[mail]\ncommand = ["echo", "sent to {to}"]\n')


def mask(text: str, place: str) -> str:
    """Replace what is different each time: directories, instants, ids, seconds, processes."""
    text = text.replace(place, "/srv/app/a-queue").replace(sys.executable, "/usr/bin/python3")
    text = text.replace(__file__, "/srv/app/worker.py")
    for pattern, constant in (
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-11-27T08:55:17Z"),
        (r"\b[0-9a-f]{16}\b", "0123456789abcdef"),
        (r"\b1[78]\d{8}\b", "1800000000"),  # Unix seconds
        (r"\b114[0-5]\d(\.\d+)?(?!\d)", str(AGE)),
        (r"(?m)^(.*\bletter .*)\bin \d.*", r"\1in 1 d 13 h"),  # every three days
        (r"(the last one ended )[^)]*", r"\1just now"),
        (r"[^\n]*\r", ""),  # progress, which is gone at the end
        (r"\x1b\[K", ""),
    ):
        text = re.sub(pattern, constant, text)
    return text


@pytest.fixture(scope="module")
def queues() -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory() as name:
        yield [Path(name)]


@pytest.fixture
def filled(queues: list[Path]) -> Path:
    """A directory with a queue that was filled less than 20 seconds ago: see AGE."""
    root, *made = queues
    if not made or time.time() - made[-1].stat().st_mtime > 20:
        made.append(root / str(len(queues)))
        made[-1].mkdir()
        fill(made[-1])
        queues.append(made[-1])
    return made[-1]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a name of a fixed length: lines are wrapped."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.chdir(name)
        for variable in ("DBBASIC_QUEUE_FILE", "DBBASIC_QUEUE_URL"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in (("NO_COLOR", "1"), ("LC_ALL", "C.UTF-8")):
            monkeypatch.setenv(variable, value)
        yield Path(name)


def typed(commands: list[str], columns: int | None) -> str:
    """Run commands one after the other; return what each one prints, and its exit code."""
    shown = ""
    for command in commands:
        out: io.StringIO = Terminal() if columns else io.StringIO()
        errors = out if columns else io.StringIO()
        with redirect_stdout(out), redirect_stderr(errors):
            try:
                code = main(shlex.split(command))
            except SystemExit as end:
                code = int(end.code or 0)
        shown += f"$ dbbasic-queue {command}\n{out.getvalue()}"
        if errors is not out:
            shown += "".join(f"stderr: {text}\n" for text in errors.getvalue().splitlines())
        shown += f"[exit code {code}]\n\n" if code else "\n"
    return shown


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_what_its_file_says(
    name: str, place: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = ""
    for columns in (80, 160, None):
        if columns and name in ONLY_IN_A_PIPE:
            continue
        for found in place.iterdir():
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        shutil.copytree(filled, place, dirs_exist_ok=True)
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        title = f"a terminal of {columns} columns" if columns else "a pipe"
        shown += f"# {title}\n\n{typed(COMMANDS[name], columns)}"
    shown = mask(shown, str(place))
    path = SCREENS / f"{name}.txt"
    if os.environ.get("UPDATE_SCREENS"):
        path.write_text(shown, "utf-8")
    assert shown == path.read_text("utf-8")


def test_doctor_says_the_same_at_a_terminal_and_in_a_pipe(
    place: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(filled, place, dirs_exist_ok=True)
    monkeypatch.setenv("COLUMNS", "80")
    on_screen, piped = (re.sub(r"\d+", "0", typed(["doctor"], c)) for c in (80, None))
    findings = [text.split("\t") for text in piped.splitlines() if "\t" in text]
    assert {"stalled", "lost", "unreadable"} <= {name for _, name, *_ in findings}
    words = " ".join(on_screen.split())
    for severity, _, text, remedy in findings:
        assert f"{severity} {' '.join(text.split())}" in words
        assert remedy == "-" or " ".join(remedy.split()) in words
    assert [t for t in on_screen.splitlines()[1:] if len(t) > 80 and "/tmp/" not in t] == []


def test_what_every_command_prints_is_tested() -> None:
    [commands] = [a for a in argument_parser()._actions if isinstance(a.choices, dict)]
    assert {*COMMANDS} | {*ELSEWHERE} == {*(commands.choices or ())}
    assert {path.stem for path in SCREENS.iterdir()} == {*COMMANDS}
    for name, file in ELSEWHERE.items():
        assert f'"{name}"' in Path(__file__).with_name(file).read_text("utf-8")
