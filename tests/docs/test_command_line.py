"""docs/command-line.md has every command and every option of the parser, and no others."""

from __future__ import annotations

import argparse
import re

import pytest
from blocks import PROJECT

from dbbasic_queue.cli.main import argument_parser

PAGE = (PROJECT / "docs/command-line.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^#{2,3} (?:`([a-z-]+)`|(.+))$", re.MULTILINE)
FIRST_CELL = re.compile(r"^\| (`.*?) \|", re.MULTILINE)
SHARED = {
    "[filters](#filters)": "Filters",
    "[order](#order)": "Order",
    "(#many-jobs-at-once).": "Many jobs at once",
}
"""what a command's section says -> the section with the options that it then has"""


def sections() -> dict[str, str]:
    """Return a command, or another heading -> the text below it."""
    headings = list(HEADING.finditer(PAGE))
    ends = [heading.start() for heading in headings[1:]] + [len(PAGE)]
    return {
        heading[1] or heading[2]: PAGE[heading.end() : end]
        for heading, end in zip(headings, ends, strict=True)
    }


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the name of each command -> its parser."""
    (found,) = [
        action
        for action in argument_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(found.choices)


def arguments_on_page(section: str) -> set[str]:
    """Return the options and arguments in the tables of a section."""
    found = set()
    for cell in FIRST_CELL.findall(section):
        for code in re.findall(r"`([^`]+)`", cell):
            word = code.split()[0].removesuffix("...")
            if re.fullmatch(r"--?[a-z][a-z-]*|[A-Z]+(\.[a-z]+)?", word):
                found.add(word)
    return found


def documented(command: str) -> set[str]:
    text = sections()[command]
    found = arguments_on_page(text)
    flat = " ".join(text.split())
    for link, name in SHARED.items():
        if link in flat:
            found |= arguments_on_page(sections()[name])
    return found


def existing(parser: argparse.ArgumentParser) -> set[str]:
    found: set[str] = set()
    for action in parser._actions:
        found |= {*action.option_strings} or {str(action.metavar)}
    return found


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    named = {heading[1] for heading in HEADING.finditer(PAGE) if heading[1]}
    assert named == commands().keys()


@pytest.mark.parametrize("command", sorted(commands()))
def test_the_section_of_a_command_has_its_options_and_no_others(command: str) -> None:
    everywhere = {"-h", "--help", "--file"}
    assert documented(command) == existing(commands()[command]) - everywhere


def test_the_options_before_a_command_are_on_the_page() -> None:
    options = {option for a in argument_parser()._actions for option in a.option_strings}
    assert arguments_on_page(sections()["Which queue"]) == options


def test_an_option_that_is_missing_on_the_page_is_noticed() -> None:
    parser = commands()["cancel"]
    parser.add_argument("--gently", action="store_true")
    assert documented("cancel") != existing(parser) - {"-h", "--help", "--file"}
