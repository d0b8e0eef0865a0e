"""docs/comparison.md is complete and true: its tables, links, calls, commands and tests exist."""

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
from test_imports import TREES, imported

import dbbasic_queue
from dbbasic_queue import Handler, Queue
from dbbasic_queue.cli.main import argument_parser
from dbbasic_queue.cli.messages import PROGRAM

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
PAGE = (DOCS / "comparison.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")
NOT_HERE = "not here"
RIVALS = ["simplepyq 0.1.3", "Pinion 0.1 and 0.2", "sitq", "dbbasic-queue 1.0.0"]
PROJECTS = [
    "dbbasic_queue",
    "huey",
    "tinyjobs",
    "RQ",
    "Procrastinate",
    "django-tasks-db",
    "django-ox",
    "spoolctl",
    "pueue",
    "Oban",
    "Solid Queue",
]
# Rows of the large table that no test can show.
FACTS = {
    "Version compared",
    "Started in",
    "People with commits",
    "Maturity, as its authors put it",
    "Web framework integration",
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def read_tables() -> list[list[list[str]]]:
    """Return the page's tables, each a list of rows of cells, without the line of dashes."""
    blocks = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    return [
        [cells(line) for number, line in enumerate(block.splitlines()) if number != 1]
        for block in blocks
    ]


def shown(cell: str) -> str:
    """Return what a reader sees of a cell: the text of its links."""
    return re.sub(r"\[([^\]]+)\]\[[^\]]+\]", r"\1", cell)


FEATURES, OURS, MEASURED, *RIVAL_TABLES = read_tables()
ROWS = [row for table in RIVAL_TABLES for row in table[1:]]
CALLS = sorted({code for row in ROWS for code in CODE.findall(row[1])})
NAMED_TESTS = sorted(
    {code for row in ROWS for code in CODE.findall(row[3])}
    | {code for row in OURS[1:] for code in CODE.findall(row[1])}
)


# -- the tables ------------------------------------------------------------------------------------


def test_each_table_is_complete() -> None:
    for header, *rows in read_tables():
        assert len(rows) > 1, header
        for row in rows:
            assert len(row) == len(header), row
            assert all(row), row


def test_the_large_table_compares_these_projects_by_version() -> None:
    header, versions, *_ = FEATURES
    assert [shown(cell) for cell in header] == ["Feature", *PROJECTS]
    assert versions[0] == "Version compared"
    assert all(re.match(r"\d+\.\d+", version) for version in versions[1:])
    assert dbbasic_queue.__version__.startswith(versions[1].split(",")[0])


def test_the_large_table_is_dated() -> None:
    assert re.search(r"^As of [A-Z][a-z]+ 20\d\d\.", PAGE, re.MULTILINE)


def test_the_large_table_has_rows_where_others_are_better() -> None:
    ours = {row[0]: row[1] for row in FEATURES[1:]}
    behind = {feature for feature, answer in ours.items() if re.match(r"no\b", answer)}
    assert len(behind) >= 4
    for row in FEATURES[1:]:
        if row[0] in behind:
            assert any(not re.match(r"(no|n/a|\?)\b|\?", shown(cell)) for cell in row[2:]), row[0]


def test_each_answer_in_our_column_but_a_no_has_its_test() -> None:
    answers = [(row[0], row[1]) for row in FEATURES[1:] if row[0] not in FACTS]
    claimed = [feature for feature, answer in answers if not re.match(r"no\b", answer)]
    assert [row[0] for row in OURS[1:]] == claimed
    assert {row[0] for row in FEATURES[1:]} >= FACTS


def test_features_that_the_page_says_are_missing_are_missing() -> None:
    """If one of these fails, the feature has arrived: change its row."""
    ours = {row[0]: row[1] for row in FEATURES[1:]}
    assert ours["Priorities"] == "by job type"
    assert "priority" not in inspect.signature(Queue.enqueue).parameters


def test_each_rival_has_its_table() -> None:
    headings = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    assert [heading for heading in headings if heading in RIVALS] == RIVALS
    assert len(RIVAL_TABLES) == len(RIVALS) + 1  # sitq has two
    assert all(t[0] == ["Feature there", "Here", "Difference", "Test"] for t in RIVAL_TABLES)


def test_each_feature_of_a_rival_has_its_call_and_its_test() -> None:
    without = [row[0].split(";")[0] for row in ROWS if not CODE.findall(row[1])]
    assert without == [
        "`Storage` protocol, for a storage of your own",
        "Update check",
    ]
    assert {row[1] for row in ROWS if not CODE.findall(row[1])} == {NOT_HERE}
    assert all(CODE.findall(row[3]) for row in ROWS)


def test_the_measured_figures_are_those_of_the_benchmarks() -> None:
    benchmarks = (DOCS / "BENCHMARKS.md").read_text(encoding="utf-8")
    (date,) = re.findall(r"^(20\d\d-\d\d-\d\d);", benchmarks, re.MULTILINE)
    assert f"in one run on {date}" in re.sub(r"\s+", " ", PAGE)
    summary = benchmarks.partition("## All queues")[2].partition("## How each is used")[0]
    names = {
        "dbbasic_queue": "this",
        "dbbasic_queue, `fsync=False`": "this, fsync=False",
        "huey 3.5.4 on SQLite, `fsync=True`": "huey, fsync on (3.5.4)",
        "huey 3.5.4 on SQLite, `fsync=False`": "huey, fsync off (3.5.4)",
        "RQ 3.0.0 on Valkey, append-only file": "rq (3.0.0)",
    }
    measured = {cells(line)[0]: cells(line) for line in summary.splitlines() if line[:1] == "|"}
    assert [row[0] for row in MEASURED[1:]] == list(names)
    for name, _, add, jobs, _ in MEASURED[1:]:
        row = measured[names[name]]
        assert round(float(row[2].split()[0].replace(",", ""))) == int(add.replace(",", ""))
        assert row[4].split()[0] == jobs


# -- the links -------------------------------------------------------------------------------------

DEFINED = re.findall(r"^\[([^\]]+)\]: (.*)$", PAGE, re.MULTILINE)
INLINE = re.findall(r"\]\(([^)]*)\)", PAGE)


def test_each_link_label_is_defined_once_and_used() -> None:
    labels = [label for label, _ in DEFINED]
    assert len(labels) == len(set(labels))
    assert set(labels) == set(re.findall(r"\]\[([^\]]*)\]", PAGE))


def test_each_address_is_a_whole_https_url() -> None:
    urls = [url for _, url in DEFINED]
    assert len(urls) == len(set(urls))
    for url in urls:
        assert re.fullmatch(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[\w./-]*)?(#[\w-]+)?", url), url


def test_each_link_to_a_file_or_heading_of_ours_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    for target in INLINE:
        file, _, anchor = target.partition("#")
        if file:
            assert (DOCS / file).is_file(), target
        else:
            assert anchor in headings, target


# -- the tests and calls ---------------------------------------------------------------------------


def test_each_test_that_is_named_exists() -> None:
    bodies = {
        file: ast.parse((TESTS / file).read_text(encoding="utf-8")).body
        for file in {name.partition("::")[0] for name in NAMED_TESTS}
    }
    for name in NAMED_TESTS:
        file, *parts = name.split("::")
        body = bodies[file]
        for part in parts:  # a function, or a class and its method
            definitions = {
                node.name: node.body
                for node in body
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
            }
            assert part in definitions, name
            body = definitions[part]


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
    """Return the object that a dotted name of the page means: a queue's method or a public name."""
    first, *rest = name.split(".")
    if first == "dbbasic_queue":
        module, _, last = name.rpartition(".")
        return getattr(importlib.import_module(module), last)
    if hasattr(Queue, first):
        thing = getattr(Queue, first)
    else:
        assert first in dbbasic_queue.__all__, first
        thing = getattr(dbbasic_queue, first)
    for part in rest:
        thing = getattr(thing, part)
    return thing


def check(expression: ast.expr) -> None:
    """Look up what an expression names, and check that it takes the given arguments."""
    if not isinstance(expression, ast.Call):
        assert found(ast.unparse(expression)) is not None
        return
    function = found(ast.unparse(expression.func))
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        parameters = inspect.signature(Handler).parameters  # a registry passes them on
    for keyword in expression.keywords:
        assert keyword.arg in parameters, keyword.arg
        if isinstance(keyword.value, ast.Call):
            check(keyword.value)
    assert len(expression.args) <= sum(p.kind is not p.KEYWORD_ONLY for p in parameters.values())


def test_each_call_and_command_that_is_named_exists() -> None:
    parser = argument_parser()
    for code in CALLS:
        program, *arguments = shlex.split(code)
        if program != PROGRAM:
            check(ast.parse(code, mode="eval").body)
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                parser.parse_args(arguments)
        except SystemExit as end:
            assert end.code == 0, code


@pytest.mark.parametrize("code", ["fly()", "enqueue(when=1)", "Handler(retries=3)", "Queue.fly"])
def test_a_call_that_does_not_exist_is_noticed(code: str) -> None:
    with pytest.raises((AssertionError, AttributeError)):
        check(ast.parse(code, mode="eval").body)


# -- what no other file tests ----------------------------------------------------------------------


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(dbbasic_queue.__file__).parent / "py.typed").is_file()


def test_a_queue_has_no_settings_but_these() -> None:
    _, *settings = inspect.signature(Queue).parameters
    assert settings == ["fsync", "even_if_moved", "max_payload", "clock"]


ON_THE_NETWORK = {"cli.demo", "cli.service", "notify", "passes.http", "web.server"}
"""the demo's own server, systemd's socket, the page on this machine, and what a program asks for:
mails, webhooks and the ping"""


def test_nothing_but_the_demo_and_notifications_can_reach_the_network() -> None:
    network = re.compile(r"(_?socket|socketserver|ssl|http|urllib\.request|ftplib|smtplib)\b")
    users = {
        name
        for name, tree in TREES.items()
        if any(network.match(full) for _, full in imported(tree))
    }
    assert users == ON_THE_NETWORK


def test_no_module_imports_the_one_that_sends_mails() -> None:
    importers = [
        name
        for name, tree in TREES.items()
        if any(full.startswith("dbbasic_queue.notify") for _, full in imported(tree))
    ]
    assert importers == ["registry"]  # for what a handlers.toml declares
