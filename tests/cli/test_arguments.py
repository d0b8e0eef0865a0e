"""Where options may stand, and what happens to arguments that are left over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import run_command

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with Queue(tmp_path / "data/queue.tsv") as queue:
        queue.enqueue("mail", {}, job_id="mail-one")
        queue.enqueue("mail", {}, job_id="mail-two")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["enqueue", "mail", "--in", "5m", '{"n": 1}'], {"n": 1}),
        (["enqueue", "mail", "--in", "5m", "-5"], -5),
        (["enqueue", "mail", "--in", "5m", "--", "-5"], -5),
        (["enqueue", "--in", "5m", "mail", "7"], 7),
        (["enqueue", "mail", "--lines", "@lines"], {"line": 1}),
        (["edit", "mail-one", "--file", "data/queue.tsv", "[3]"], [3]),
    ],
)
def test_options_may_stand_between_arguments(
    place: Path, words: list[str], expected: object
) -> None:
    (place / "lines").write_text('{"line": 1}\n')
    done = run_command(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    with Queue(place / "data/queue.tsv") as queue:
        assert expected in [job["payload"] for job in queue.jobs()]


def test_ids_may_stand_before_and_after_an_option(place: Path) -> None:
    done = run_command("cancel", "mail-one", "-y", "mail-two", cwd=place)
    assert done.stdout == "cancelled\tmail-one\ncancelled\tmail-two\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("list mail", "unexpected argument 'mail'"),
        ("enqueue mail --in 5m {} more", "unexpected argument 'more'"),
        ("enqueue mail --in 5m {} --unknown 3", "there is no option --unknown"),
        ("cancel mail-one --unknown", "there is no option --unknown"),
        ("demo /tmp", "unexpected argument '/tmp'"),
    ],
)
def test_what_is_left_over_is_wrong_usage_of_the_command(
    place: Path, words: str, error: str
) -> None:
    done = run_command(*words.split(), cwd=place)
    name = words.split()[0]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"dbbasic-queue {name}: {error} (see dbbasic-queue {name} --help)\n"
    with Queue(place / "data/queue.tsv") as queue:
        assert queue.counts()["pending"] == 2
