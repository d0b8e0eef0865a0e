"""Completion works in the three shells; it and the man page have all that --help has."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from helpers import PROJECT
from screen import Screen

from dbbasic_queue.cli.main import argument_parser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACES = {
    "bash": "share/bash-completion/completions/dbbasic-queue",
    "zsh": "share/zsh/site-functions/_dbbasic-queue",
    "fish": "share/fish/vendor_completions.d/dbbasic-queue.fish",
    "man": "share/man/man1/dbbasic-queue.1",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the files as a build does, in a copy of what that needs."""
    place = tmp_path_factory.mktemp("source")
    shutil.copy(PROJECT / "shell_files.py", place)
    shutil.copytree(
        PROJECT / "dbbasic_queue",
        place / "dbbasic_queue",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "shell_files.py"], cwd=place, env=env, check=True, timeout=60)
    return {name: place / path for name, path in PLACES.items()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with files to complete."""
    (tmp_path / "handlers.toml").touch()
    (tmp_path / "queue.tsv").touch()
    (tmp_path / "units").mkdir()
    return tmp_path


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} isn't installed")
    return found


def verbs() -> dict[str, argparse.ArgumentParser]:
    """Return the commands, with their parsers."""
    parser = argument_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def own_options(parser: argparse.ArgumentParser) -> set[str]:
    return {o for a in parser._actions for o in a.option_strings if o.startswith("--")}


# -- what can be completed --

BASH = """
source "$1"
words=("${@:2}")
COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); COMP_LINE="${words[*]}"
COMP_POINT=${#COMP_LINE}
handler=$(complete -p dbbasic-queue | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$handler" dbbasic-queue "${words[-1]}" "${words[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def in_bash(files: dict[str, Path], place: Path, *words: str) -> set[str]:
    ran = subprocess.run(
        [program("bash"), "--norc", "-c", BASH, "bash", str(files["bash"]), *words],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stderr == ""
    return set(ran.stdout.split())


def in_fish(files: dict[str, Path], place: Path, *words: str) -> set[str]:
    code = 'source $argv[1]; complete -C "$argv[2]"'
    ran = subprocess.run(
        [program("fish"), "--no-config", "-c", code, str(files["fish"]), " ".join(words)],
        cwd=place,
        env={**os.environ, "HOME": str(place), "XDG_CONFIG_HOME": str(place / "units")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stderr == ""
    return {line.split("\t")[0] for line in ran.stdout.splitlines()}


def in_zsh(files: dict[str, Path], place: Path, *words: str) -> set[str]:
    """Press the Tab key after the words, in a terminal; return the words that are then there."""
    zsh = [program("zsh"), "-f", "-i"]
    directory = files["zsh"].parent
    shell = {"PS1": "READY ", "HOME": str(place)}
    with Screen(zsh, place, columns=160, lines=100, more=shell) as screen:
        screen.wait_for("READY")
        screen.press(f"fpath=({directory} $fpath); autoload -Uz compinit; compinit -u -D; ")
        screen.press("setopt LIST_ROWS_FIRST; LISTMAX=999; PS1='DONE '; clear\n")
        screen.wait_for(r"^DONE")
        screen.press(" ".join(words) + "\t\t\t")
        screen.wait_for(r"(?s)DONE dbbasic-queue .*")
        seen = ""
        while screen.text() != seen or not seen:
            seen = screen.text()
            screen.read(0.5)
        return set(re.findall(r"[\w.+/-]+", screen.text()))


SHELLS = {"bash": in_bash, "fish": in_fish, "zsh": in_zsh}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def complete(shell: str, files: dict[str, Path], place: Path, *words: str) -> set[str]:
    return SHELLS[shell](files, place, *words)


def test_a_command_is_completed(shell: str, files: dict[str, Path], place: Path) -> None:
    assert "unreadable" in complete(shell, files, place, "dbbasic-queue", "unr")


def test_every_command_is_offered(shell: str, files: dict[str, Path], place: Path) -> None:
    assert complete(shell, files, place, "dbbasic-queue", "") >= set(verbs())


def test_the_options_of_a_command_are_offered(
    shell: str, files: dict[str, Path], place: Path
) -> None:
    offered = complete(shell, files, place, "dbbasic-queue", "list", "--")
    assert offered >= own_options(verbs()["list"])
    assert "--linger" not in offered


def test_a_choice_is_completed(shell: str, files: dict[str, Path], place: Path) -> None:
    offered = complete(shell, files, place, "dbbasic-queue", "list", "--status", "p")
    assert offered >= {"pending", "processing"}
    assert "failed" not in offered


def test_a_file_is_completed(shell: str, files: dict[str, Path], place: Path) -> None:
    assert "handlers.toml" in complete(shell, files, place, "dbbasic-queue", "run", "hand")
    assert "queue.tsv" in complete(shell, files, place, "dbbasic-queue", "list", "--file", "que")


def test_a_directory_is_completed(shell: str, files: dict[str, Path], place: Path) -> None:
    offered = complete(shell, files, place, "dbbasic-queue", "crontab", "--out", "un")
    assert {"units", "units/"} & offered


# -- all that --help has, and nothing else --


def sections(page: str) -> Iterator[tuple[str, str]]:
    """Yield each command's name and the text about it."""
    for part in page.split("\n   dbbasic-queue ")[1:]:
        yield part.split("\n")[0].split()[0], part.split("EXIT STATUS")[0]


@pytest.fixture(scope="module")
def page(files: dict[str, Path]) -> str:
    """The man page as a person reads it. Rendering it may print no warning."""
    ran = subprocess.run(
        [program("man"), "--warnings", "-l", str(files["man"])],
        env={**os.environ, "MANWIDTH": "400", "LC_ALL": "C.UTF-8", "MANOPT": "--no-hyphenation"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stderr == ""
    return re.sub(r".\x08|\x1b\[[0-9;]*m", "", ran.stdout)


def test_the_man_page_has_every_command_and_option_and_no_others(page: str) -> None:
    found = dict(sections(page))
    assert set(found) == set(verbs())
    for name, parser in verbs().items():
        listed = re.findall(r"(?m)^ +(-\w[^\n]*|--[^\n]*)$", found[name])
        entries = {o for text in listed for o in re.findall(r"--[a-z][a-z-]+", text)}
        assert entries == own_options(parser) - {"--help"}, name


def test_the_man_page_says_what_it_is_about(page: str) -> None:
    assert "dbbasic-queue - job queue in a plain text file" in page
    assert re.search(r"EXIT STATUS\n +0 done, 1 not done", page)


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_every_option_of_every_command_is_offered_and_no_others(
    shell: str, files: dict[str, Path], place: Path
) -> None:
    for name, parser in verbs().items():
        offered = complete(shell, files, place, "dbbasic-queue", name, "--")
        assert {word for word in offered if word[:2] == "--"} == own_options(parser), name


def test_zsh_has_every_option_of_every_command_and_no_others(files: dict[str, Path]) -> None:
    text = files["zsh"].read_text("utf-8")
    blocks = re.findall(r"(?ms)^_shtab_dbbasic_queue_(\w+)_options=\((.*?)^\)", text)
    assert {name for name, _ in blocks} == {name.replace("-", "_") for name in verbs()}
    for name, block in blocks:
        heads = re.findall(r'(?m)^  (?:"\([^"]*?\)")?(.*?)\[', block)
        found = {option for head in heads for option in re.findall(r"--[a-z][a-z-]+", head)}
        assert found == own_options(verbs()[name.replace("_", "-")]), name


def test_every_option_has_a_help_text_that_argparse_can_print() -> None:
    for name, parser in verbs().items():
        assert parser.format_help()
        for action in parser._actions:
            assert action.help or not action.option_strings, f"{name} {action.option_strings}"
