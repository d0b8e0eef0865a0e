"""What people see on a terminal of 80, 160 and 40 columns, and what a pipe gets."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from helpers import run_command
from screen import Screen, command, shown

from dbbasic_queue import Queue
from dbbasic_queue.cli.terminal import COLOURS_OF_256, Column, Terminal, table, text_width, wrapped

if TYPE_CHECKING:
    from pathlib import Path

LONG_ERROR = "smtp.example.com refused the connection: 421 too many connections from your host"
LONG_ID = "an_id_of_64_characters_" + "x" * 41


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A queue with jobs of most kinds."""

    def boom(_: object) -> None:
        raise ConnectionError(LONG_ERROR)

    with Queue(tmp_path / "data/queue.tsv") as queue:
        queue.enqueue("send_email", {"to": "渡辺@example.com"}, job_id="mail-0001")
        queue.enqueue("resize_image_to_all_sizes", {"path": "/srv/渡辺.png"}, job_id="image-0001")
        queue.process_jobs(
            {"send_email": boom, "resize_image_to_all_sizes": lambda _: {"sizes": 3}},
            max_attempts=1,
        )
        queue.enqueue("report", {"n": 1}, time.time() + 5050, job_id="report-0001")
        queue.enqueue("a", {"text": "\x1b[31mred\x07\u202e"}, job_id=LONG_ID)
        queue.pause("report")
    return tmp_path


STATUS_80 = """\
idle: 1 job is due: the next pass runs it (the last one ended AGO)

jobs      pending 2  processing 0  completed 1  failed 1  cancelled 0
due       1; the oldest,
          an_id_of_64_characters_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, for
          0 s
paused    report (1 job waits)
last pass AGO: 1 completed, 1 failed
kept      2 finished jobs, the oldest from 0 s ago
queue     /PATH

errors of the last day
  TIMES  TYPE        LAST  ERROR
      1  send_email  AGO   ConnectionError: smtp.example.com refused the connec…

dbbasic-queue failed, list, show ID, watch, doctor, --help"""


def fields_of(text: str) -> list[list[str]]:
    """Return the cells of each line, so that the width of a time doesn't matter."""
    return [re.split(r"  +", line.strip()) for line in text.split("\n")]


def same(text: str, wanted: str) -> None:
    """Compare two screens, without the times in them and the spaces that these move."""

    def form(screen: str) -> list[list[str]]:
        return [
            [re.sub(r"\d s( ago)?|(just )?now|AGO|/\S+|…|0\.\d\d s", "*", cell) for cell in cells]
            for cells in fields_of(screen)
        ]

    assert form(text) == form(wanted)


def test_the_status_at_80_columns(place: Path) -> None:
    text = re.sub(r"(LAST +ERROR\n.*?email +)(\S.*?)( +Conn).*", r"\1AGO\3*", shown([], place))
    wanted = re.sub(r"(Conn).*", r"\1*", STATUS_80)
    same(text, wanted)


def test_the_status_at_160_columns(place: Path) -> None:
    lines = shown([], place, 160).split("\n")
    assert f"due       1; the oldest, {LONG_ID}, for" in "\n".join(lines)
    (error,) = (line for line in lines if line.startswith("      1  send_email"))
    assert error.endswith(f"ConnectionError: {LONG_ERROR}")


@pytest.mark.parametrize(
    ("columns", "titles", "row"),
    [
        (
            80,
            ["ID", "TYPE", "STATUS", "DUE", "ERROR OR PAYLOAD"],
            ["mail-0001", "send_email", "failed", "*", "ConnectionError: …"],
        ),
        (
            160,
            ["ID", "TYPE", "STATUS", "DUE", "TRIES", "ERROR OR PAYLOAD"],
            ["mail-0001", "send_email", "failed", "*", "1", "ConnectionError: smtp.example.com"],
        ),
    ],
)
def test_the_list(place: Path, columns: int, titles: list[str], row: list[str]) -> None:
    text = shown(["list"], place, columns)
    head, first, *_ = fields_of(text)
    assert head == titles
    first[3] = "*"
    assert [a for a, b in zip(first, row, strict=True) if not a.startswith(b.rstrip("…"))] == []
    starts = {line.find("send_email") for line in text.split("\n") if "send_email" in line}
    assert starts == {text.find("TYPE")}


def test_a_very_narrow_terminal_still_has_the_essentials(place: Path) -> None:
    lines = shown(["list"], place, 40).split("\n")
    assert lines[0].split() == ["ID", "TYPE", "STATUS", "DUE"]
    assert len(lines) == 5
    assert lines[1].startswith("mail-00")


EVERY = [
    [],
    ["list"],
    ["failed"],
    ["due"],
    ["running"],
    ["history"],
    ["stats"],
    ["schedules"],
    ["unreadable"],
    ["plot"],
    ["show", "report"],
    ["cancel", "--dry-run", "--all"],
    ["requeue", "--dry-run", "--error", "smtp"],
]


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_no_table_is_wider_than_the_terminal(place: Path, columns: int) -> None:
    for arguments in EVERY if columns > 40 else EVERY[:-2]:
        with Screen(command(*arguments), place, columns=columns, lines=200) as screen:
            assert screen.wait() == 0
            plain = re.sub(rb"\x1b\[[0-9;]*m", b"", screen.raw).decode()
        for line in plain.replace("\r", "").split("\n"):
            assert text_width(line) <= columns or line.endswith("Z)"), (arguments, line)


@pytest.mark.parametrize(
    ("variables", "has_colour", "has_unicode"),
    [
        ({"COLORTERM": ""}, True, True),
        ({"NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, True),
        ({"LC_ALL": "C", "COLORTERM": ""}, True, False),
    ],
)
def test_colours_and_marks(
    place: Path, variables: dict[str, str], has_colour: bool, has_unicode: bool
) -> None:
    with Screen(command("failed"), place, more=variables) as screen:
        screen.wait()
        assert (b"\x1b[1;31mConnectionError" in screen.raw) == has_colour
        assert (b"\x1b" in screen.raw) == has_colour
        assert ("…" in screen.text()) == has_unicode
        assert "send_email" in screen.text()  # never only by colour


def luminance(number: int) -> float:
    """Return the relative luminance (WCAG 2.2) of one of the 216 colours of xterm's cube."""
    light = 0.0
    for size, weight in ((36, 0.2126), (6, 0.7152), (1, 0.0722)):
        level = (0, 95, 135, 175, 215, 255)[(number - 16) // size % 6]
        light += weight * ((level / 255 + 0.055) / 1.055) ** 2.4 if level else 0.0
    return light


def test_colours_are_readable_on_white_and_on_black(place: Path) -> None:
    for number in COLOURS_OF_256.values():
        assert (luminance(number) + 0.05) / 0.05 >= 4.5
        assert 1.05 / (luminance(number) + 0.05) >= 4.5
    for arguments in (["failed"], ["watch", "--count", "1"]):
        with Screen(command(*arguments), place, more={"TERM": "xterm-256color"}) as screen:
            screen.wait()
            assert b"38;5;131m" in screen.raw
            others = set(re.findall(rb"\x1b\[(?:\d+;)*((?:3|4|9|10)[0-7])m", screen.raw))
            assert not others
    with Screen(command("failed"), place, more={"COLORTERM": "truecolor"}) as screen:
        screen.wait()
        assert b"38;5;131m" in screen.raw


def test_text_from_jobs_does_not_control_the_terminal(place: Path) -> None:
    for arguments in (["list"], ["show", LONG_ID], []):
        with Screen(command(*arguments), place, more={"NO_COLOR": "1"}) as screen:
            screen.wait()
            assert b"\x1b" not in screen.raw
            assert b"\x07" not in screen.raw
            assert "\u202e".encode() not in screen.raw


def test_a_pipe_gets_the_nine_columns(place: Path) -> None:
    ran = run_command("list", cwd=place)
    rows = [line.split("\t") for line in ran.stdout.splitlines()]
    assert [len(row) for row in rows] == [9] * 4
    assert rows[0][:4] == ["mail-0001", "send_email", '{"to": "渡辺@example.com"}', "failed"]
    assert rows[0][7] == f"ConnectionError: {LONG_ERROR}"
    assert rows[3][0] == LONG_ID


def test_a_pipe_gets_the_status_in_fields(place: Path) -> None:
    ran = run_command(cwd=place)
    found = {line.split("\t")[0]: line.split("\t")[1:] for line in ran.stdout.splitlines()}
    assert found["verdict"][0] == "idle"
    assert found["failed"] == ["1"]
    assert found["due"][::2] == ["1", LONG_ID]
    assert found["paused"] == ["1", "report"]
    assert found["failures"][:3] == ["1", "send_email", f"ConnectionError: {LONG_ERROR}"]
    assert "\x1b" not in ran.stdout


def test_an_empty_queue_says_so_in_words(tmp_path: Path) -> None:
    with Queue(tmp_path / "data/queue.tsv") as queue:
        queue.enqueue("a", {}, job_id="job-0001")
        queue.cancel_job("job-0001")
        queue.purge(0)
    for arguments, text in {
        ("list",): "There is no such job.",
        ("failed",): "No job has failed.",
        ("due",): "No job is due.",
        ("running",): "No job is running.",
        ("unreadable",): "Every line is a job.",
    }.items():
        assert shown(arguments, tmp_path) == text
        assert run_command(*arguments, cwd=tmp_path).stdout == ""
    assert shown([], tmp_path).startswith("idle: nothing is due\n")


# -- the parts --


class Wide(Terminal):
    """A terminal of a given width, without colours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.dots = "…"


def test_columns_are_cut_and_left_out_as_little_as_needed() -> None:
    row = ["x" * 30, "渡辺" * 5, "12", "an error that is rather long"]
    columns = [
        Column("ID", lambda r: r[0]),
        Column("NAME", lambda r: r[1]),
        Column("N", lambda r: r[2], right=True, optional=True),
        Column("ERROR", lambda r: r[3], flexible=True),
    ]
    for width in range(20, 100):
        titles, line = table(Wide(width), columns, [row])
        assert text_width(line) <= width
        assert text_width(titles) <= width
        assert ("ERROR" in titles) >= (width >= 45)
    assert list(table(Wide(100), columns, [row]))[1].split() == " ".join(row).split()
    assert list(table(Wide(70), columns, [row]))[1].startswith("x" * 23)


def test_lines_are_wrapped_between_words_if_possible() -> None:
    assert list(wrapped(Wide(20), "one two three four five six", "  ")) == [
        "one two three four",
        "  five six",
    ]
    assert list(wrapped(Wide(20), "x" * 45, "  ")) == ["x" * 20, "  " + "x" * 18, "  " + "x" * 7]
    assert all(text_width(line) <= 20 for line in wrapped(Wide(20), "渡辺 " * 30))
    assert list(wrapped(Wide(20), "")) == [""]
    indented = list(wrapped(Wide(20), "        one two three four", "        "))
    assert indented == ["        one two", "        three four"]
