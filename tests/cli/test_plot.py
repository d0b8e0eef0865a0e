"""`plot`: the figures of known histories, and an image that nothing in a queue can break."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import pytest
from helpers import NOW, Clock, add_lines, line, run_command, sibling
from screen import shown

from dbbasic_queue import Queue
from dbbasic_queue.monitoring.figures import Figures, svg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HISTORY = (
    "id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback\tworker\texception"
    "\toutput_offset\n"
)


def attempt(
    ended: float,
    *,
    waited: float = 0,
    seconds: float | None = 1,
    outcome: str = "completed",
    job_type: str = "mail",
) -> str:
    """Return a row of the history; `ended` is seconds before NOW."""
    at = NOW - ended
    took = "" if seconds is None else f"{seconds:.6f}"
    due_at = int(at - (seconds or 0) - waited)
    return f"a\t{job_type}\t1\t{outcome}\t{due_at}\t{at:.3f}\t{took}\t\t\tw\t\t\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "queue.tsv"
    add_lines(path)
    return path


def figures(
    path: Path, *attempts: str, window: float = 100, count: int = 10, job_type: str | None = None
) -> Iterator[list[float]]:
    sibling(path, "history").write_text(HISTORY + "".join(attempts))
    with Queue(path, clock=Clock()) as queue:
        found = Figures(queue.store, queue.now(), window, count, job_type)
    return (series.values for series in found.series())


def test_attempts_are_counted_in_the_interval_in_which_they_ended(path: Path) -> None:
    ended, failed, waiting, waited = figures(
        path,
        attempt(101),
        attempt(99, outcome="failed"),
        attempt(91),
        attempt(89, outcome="retried"),
        attempt(45),
        attempt(45, outcome="died", seconds=None),
        attempt(1, outcome="stopped"),
    )
    assert ended == [2, 1, 0, 0, 0, 2, 0, 0, 0, 1]
    assert failed == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert waiting == [0] * 10
    assert waited == [0] * 10


def test_a_job_waits_from_when_it_is_due_until_it_starts(path: Path) -> None:
    ended, _, waiting, waited = figures(
        path, attempt(34, waited=40, seconds=2), attempt(36, waited=25, seconds=2)
    )
    # due 76 and 63 seconds before now, started 36 and 38 seconds before
    assert waiting == [0, 0, 1, 2, 2, 2, 0, 0, 0, 0]
    assert ended == [0, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert waited == [0, 0, 0, 0, 0, 0, 40, 0, 0, 0]


def test_jobs_that_are_due_now_wait_until_now(path: Path) -> None:
    add_lines(
        path,
        line("old", run_at=NOW - 5000),
        line("due", run_at=NOW - 35),
        line("late", created_at=NOW - 15, run_at=NOW - 500),
        line("later", run_at=NOW + 50),
        line("done", run_at=NOW - 35, status="completed"),
        line("paused", type="other", run_at=NOW - 35),
    )
    with Queue(path) as queue:
        queue.pause("other")
    _, _, waiting, _ = figures(path)
    assert waiting == [1, 1, 1, 1, 1, 1, 2, 2, 3, 3]
    _, _, waiting, _ = figures(path, job_type="other")
    assert waiting == [0] * 10


def test_only_jobs_of_one_type(path: Path) -> None:
    ended, *_ = figures(path, attempt(5), attempt(5, job_type="other"), job_type="other")
    assert sum(ended) == 1


def test_the_terminal_shows_bars_with_their_scale(path: Path, tmp_path: Path) -> None:
    with Queue(path) as queue:
        queue.enqueue("mail", {})
        queue.process_jobs({"mail": lambda _: None})
    lines = shown(["plot"], tmp_path).split("\n")
    assert [line.split()[0] for line in lines] == [
        "ended",
        "failed",
        "waiting",
        "longest",
        "1",
    ]
    assert re.fullmatch(r"ended +█  max 1", lines[0])
    assert re.fullmatch(r"failed +  max 0", lines[1])
    assert lines[4].split() == ["1", "h", "ago", "now"]
    assert len({line.find("max") for line in lines[:4]}) == 1
    assert re.search(r"ended +8  max 1", shown(["plot"], tmp_path, LC_ALL="C"))


def test_a_pipe_gets_one_line_per_interval(path: Path, tmp_path: Path) -> None:
    with Queue(path) as queue:
        queue.enqueue("mail", {})
        queue.process_jobs({"mail": lambda _: None})
    ran = run_command("plot", "--window", "1d", cwd=tmp_path)
    lines = [line.split("\t") for line in ran.stdout.splitlines()]
    assert len(lines) == 60
    assert lines[-1][1:4] == ["1", "0", "0"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line[0]) for line in lines)


@pytest.mark.parametrize("window", ["5m", "1h", "1d", "7d"])
def test_the_image_is_xml_whatever_the_queue_is_called(tmp_path: Path, window: str) -> None:
    name = 'data/<&"]]>\x1b\x01-\udcff-渡辺.tsv'
    with Queue(tmp_path / name) as queue:
        queue.enqueue("mail", {"x": "</svg>"})
        queue.process_jobs({"mail": lambda _: None})
    ran = run_command(
        "plot",
        "--file",
        name,
        "--window",
        window,
        "--type",
        "<b>\x02",
        "--out",
        "a.svg",
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    content = (tmp_path / "a.svg").read_text("utf-8")
    texts = [e.text or "" for e in ElementTree.fromstring(content).iter() if e.tag.endswith("text")]
    assert any("渡辺" in text and "only <b>" in text for text in texts)
    assert "\x1b" not in content
    assert list(tmp_path.glob("a.svg.*")) == []


def test_an_image_that_cannot_be_written_is_named_as_the_person_named_it(path: Path) -> None:
    done = run_command("plot", "--out", "nowhere/a.svg", cwd=path.parents[1])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dbbasic-queue: nowhere/a.svg: No such file or directory\n"


def test_the_image_has_a_bar_per_value_and_labels(path: Path) -> None:
    sibling(path, "history").write_text(
        HISTORY + attempt(34, waited=40, seconds=2) + attempt(5, outcome="failed")
    )
    with Queue(path, clock=Clock()) as queue:
        root = ElementTree.fromstring(
            svg(Figures(queue.store, queue.now(), 100, 10, None), "title")
        )
    place = "{http://www.w3.org/2000/svg}"
    bars = [e for e in root.iter(f"{place}rect") if e.get("fill") != "white"]
    colours = [bar.get("fill") for bar in bars]
    assert [colours.count(c) for c in dict.fromkeys(colours)] == [2, 1, 4, 1]
    texts = [e.text for e in root.iter(f"{place}text")]
    assert {"attempts that ended, per 10 s", "at most 40 s", "at most 1", "0"} <= set(texts)


def test_wrong_arguments_are_refused(path: Path, tmp_path: Path) -> None:
    for arguments in (["--out", "a.png"], ["--window", "0s"]):
        ran = run_command("plot", *arguments, cwd=tmp_path)
        assert ran.returncode == 2
        assert "invalid" in ran.stderr
