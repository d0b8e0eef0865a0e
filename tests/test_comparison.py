"""docs/COMPARISON.md says nothing that is not so: its calls, commands and tests exist."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from test_imports import MODULES, TREES, imported

import dbbasic_queue
from dbbasic_queue import Handler, Queue
from dbbasic_queue.cli import argument_parser
from dbbasic_queue.commands import PROGRAM

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs/COMPARISON.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| its words")
]
CODE = re.compile(r"`([^`]+)`")
CALLS = sorted({code for row in ROWS for code in CODE.findall(row[1])})
NAMED_TESTS = sorted({code for row in ROWS for code in CODE.findall(row[3])})


def test_every_feature_has_its_call_and_its_test() -> None:
    assert {len(row) for row in ROWS} == {4}
    without = [row[0].split(";")[0] for row in ROWS if not row[1]]
    assert without == ["update check", "not for several servers"]
    assert all(CODE.findall(row[3]) for row in ROWS)


def test_each_rival_has_its_table() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert [heading.split()[0] for heading in headings] == [
        "simplepyq",
        "Pinion",
        "sitq",
        "dbbasic-queue",
    ]


@pytest.mark.parametrize("name", NAMED_TESTS)
def test_each_test_that_is_named_is_there(name: str) -> None:
    file, function = name.split("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_example_of_a_rival_is_named() -> None:
    examples = {
        f"rivals/{file.name}::{node.name}"
        for file in (TESTS / "rivals").glob("test_*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert len(examples) >= 40
    assert examples - set(NAMED_TESTS) == set()


def found(name: str) -> Any:
    """Return what a dotted name of the page stands for; a call stands for that of a queue."""
    first, *rest = name.split(".")
    if first == "dbbasic_queue":
        module, _, last = name.rpartition(".")
        return getattr(importlib.import_module(module), last)
    assert first in dbbasic_queue.__all__, first
    thing = getattr(Queue, first) if hasattr(Queue, first) else getattr(dbbasic_queue, first)
    for part in rest:
        thing = getattr(thing, part)
    return thing


def check(expression: ast.expr) -> None:
    """Look up what an expression names, and whether it takes the arguments that it is given."""
    if not isinstance(expression, ast.Call):
        assert found(ast.unparse(expression)) is not None
        return
    function = found(ast.unparse(expression.func))
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        parameters = inspect.signature(Handler).parameters  # a registry hands them on
    for keyword in expression.keywords:
        assert keyword.arg in parameters, keyword.arg
        if isinstance(keyword.value, ast.Call):
            check(keyword.value)
    assert len(expression.args) <= sum(p.kind is not p.KEYWORD_ONLY for p in parameters.values())


@pytest.mark.parametrize("code", CALLS)
def test_each_call_and_command_that_is_named_exists(code: str) -> None:
    program, *arguments = shlex.split(code)
    if program != PROGRAM:
        check(ast.parse(code, mode="eval").body)
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            argument_parser().parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0


@pytest.mark.parametrize("code", ["fly()", "enqueue(when=1)", "Handler(retries=3)", "Queue.fly"])
def test_a_call_that_is_not_there_is_noticed(code: str) -> None:
    with pytest.raises((AssertionError, AttributeError)):
        check(ast.parse(code, mode="eval").body)


# -- what no other file tests --------------------------------------------------------------------


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(dbbasic_queue.__file__).parent / "py.typed").is_file()


def test_a_queue_has_no_settings_but_these() -> None:
    assert list(inspect.signature(Queue).parameters) == ["path", "fsync", "max_payload", "clock"]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"demo"}))
def test_nothing_but_the_demo_can_reach_the_network(name: str) -> None:
    network = re.compile(r"(_?socket|socketserver|ssl|http|urllib\.request|ftplib|smtplib)\b")
    assert [full for _, full in imported(TREES[name]) if network.match(full)] == []
