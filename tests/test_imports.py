"""Modules only import from lower layers, nothing dangerous, and nothing before it is needed."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from helpers import HEADER, PROJECT, python

import dbbasic_queue
import pytest_dbbasic_queue

PACKAGE = Path(dbbasic_queue.__file__).parent
# The lowest layer first. A module imports from lower layers, or from its own folder.
LAYERS = [
    "errors forks",
    "lazy",
    "model signatures",
    "store",
    "handlers schedules moving",
    "passes monitoring waiting",
    "jobqueue",
    "operating",
    "engines",
    "opening",
    "queue",
    "commands",
    "toml_file notify opentelemetry",
    "registry pickles testing worker",
    "web",
    "__init__",
    "cli pytest_dbbasic_queue",
    "django flask",
    "__main__",
]
LAYER_OF = {folder: layer for layer, folders in enumerate(LAYERS) for folder in folders.split()}
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
    for file in sorted(PACKAGE.rglob("*.py"))
} | {"pytest_dbbasic_queue": Path(pytest_dbbasic_queue.__file__)}
TREES = {name: ast.parse(file.read_text("utf-8")) for name, file in MODULES.items()}


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """Return (line, full name) of every import, in functions and for type checkers too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports must be absolute"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def own_module(name: str) -> str | None:
    """Return the module of this package that an imported name is, or is in; otherwise None."""
    top, *parts = name.split(".")
    if top != "dbbasic_queue":
        return None
    for end in (len(parts), len(parts) - 1):
        module = ".".join(parts[:end])
        for candidate in (module, f"{module}.__init__".removeprefix(".")):
            if candidate in MODULES:
                return candidate
    raise AssertionError(f"{name} isn't in any module of the package")


def folder_of(module: str) -> str:
    """Return the folder of a module, or its name if it isn't in a folder."""
    return module.partition(".")[0]


def test_setup_py_names_every_folder_of_the_package() -> None:
    folders = {
        ".".join(file.parent.relative_to(PACKAGE.parent).parts) for file in PACKAGE.rglob("*.py")
    }
    source = (PROJECT / "setup.py").read_text("utf-8")
    assert {name for name in folders if f'"{name}",' not in source} == set()


def test_every_module_is_in_a_layer() -> None:
    assert {folder_of(module) for module in MODULES} == set(LAYER_OF)


def test_a_module_imports_only_from_lower_layers_or_its_own_folder() -> None:
    upward = [
        f"{name}, line {line}: {full}"
        for name, tree in TREES.items()
        for line, full in imported(tree)
        if (module := own_module(full)) is not None
        and folder_of(module) != folder_of(name)
        and LAYER_OF[folder_of(module)] >= LAYER_OF[folder_of(name)]
    ]
    assert upward == []


def test_there_are_no_circular_imports() -> None:
    arrows = {
        name: {module for _, full in imported(tree) if (module := own_module(full)) is not None}
        for name, tree in TREES.items()
    }
    left = set(arrows)
    while free := {
        n for n in left if not arrows[n] & left or not any(n in arrows[m] for m in left)
    }:
        left -= free
    assert left == set(), "these modules import each other"


def test_no_module_is_imported_by_a_string() -> None:
    importers = {
        name
        for name, tree in TREES.items()
        if any(full.split(".")[0] == "importlib" for _, full in imported(tree))
    }
    # The module that the user names, and those of a Django project.
    assert importers == {"cli.loading", "django.discovery"}


def extra(name: str) -> set[str]:
    """Return the packages that only this module can use, because they belong to an extra."""
    if name in ("engines.rq", "engines.rq_jobs", "engines.redis_client"):
        return {"redis", "rq"}
    if name == "pickles":
        return {"cloudpickle"}
    if name == "schedules":
        return {"cronsim"}
    if name == "opentelemetry":
        return {"opentelemetry"}
    if name == "flask":
        return {"flask", "click", "werkzeug"}
    if name.startswith("django."):
        return {"django", "django_tasks", "asgiref"}
    if name in ("engines.postgres_client", "engines.procrastinate_schema"):
        return {"procrastinate", "psycopg"}
    return {"pytest"} if name == "pytest_dbbasic_queue" else set()


def test_only_the_standard_library_and_filelock_are_used() -> None:
    everywhere = {*sys.stdlib_module_names, "filelock", "dbbasic_queue"}
    others = [
        f"{name}: {full}"
        for name, tree in TREES.items()
        for _, full in imported(tree)
        if full.split(".")[0] not in everywhere | extra(name)
    ]
    assert others == []


DANGEROUS_MODULES = {
    "pickle",
    "cloudpickle",
    "marshal",
    "shelve",
    "dill",
    "ctypes",
    "code",
    "runpy",
}
DANGEROUS_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell() -> None:
    # `guardian` can call prctl(2) only with ctypes; `pickles` only unpickles signed payloads.
    excepted = {"passes.guardian": {"ctypes"}, "pickles": {"cloudpickle"}}
    for name, tree in TREES.items():
        dangerous = DANGEROUS_MODULES - excepted.get(name, set())
        assert {full.split(".")[0] for _, full in imported(tree)}.isdisjoint(dangerous), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                check_call(name, node)


def check_call(name: str, node: ast.Call) -> None:
    function = node.func
    where = f"{name}: {ast.unparse(node)}"
    called = getattr(function, "id", None) or getattr(function, "attr", "")
    is_of_re = isinstance(function, ast.Attribute) and ast.unparse(function) == "re.compile"
    assert called not in DANGEROUS_CALLS or is_of_re, where
    assert not [keyword for keyword in node.keywords if keyword.arg == "shell"], where
    if called == "open" and ast.unparse(function) == "open":
        modes = [
            ast.unparse(value) for value in [*node.args[1:2], *(k.value for k in node.keywords)]
        ]
        is_binary = any("b" in mode.strip("'") for mode in modes)
        assert is_binary or any(k.arg == "encoding" for k in node.keywords), where


def test_no_module_imports_the_one_that_unpickles() -> None:
    assert "pickles" in MODULES
    importers = [
        name
        for name, tree in TREES.items()
        if any(own_module(full) == "pickles" for _, full in imported(tree))
        or "pickles" in {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    ]
    assert importers == []


# Most of these are imported by `threading` and `array`.
LOADED_FROM_THE_STANDARD_LIBRARY = {
    "array",
    "bisect",
    "collections",
    "collections.abc",
    "errno",
    "fcntl",
    "functools",  # until Python 3.12, by threading
    "itertools",
    "keyword",
    "math",
    "operator",
    "reprlib",
    "threading",
    "types",
    "warnings",  # since Python 3.13, by threading
    "weakref",
    "zlib",
}
NOW = 1000
WAITING = "".join(f"later-{n}\tgreet\t{{}}\tpending\t900\t2000\t0\t\t\n" for n in range(100))
RETRYING = "".join(f"again-{n}\tgreet\t{{}}\tpending\t900\t1100\t1\tno\t\n" for n in range(100))
DONE = "".join(f"done-{n}\tgreet\t{{}}\tcompleted\t900\t900\t1\t\t[{n}]\n" for n in range(100))


def loaded_by(code: str) -> tuple[set[str], set[str]]:
    """Return our modules that a program imports, and the public ones of others.

    It runs without `site`, because modules that are imported at startup would hide ours.
    """
    code = (
        "import os, sys; before = set(sys.modules)\n"
        f"{code}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = python(code, flags=("-S",))
    assert done.stderr == ""
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    ours = {name for name in loaded if name.split(".")[0] == "dbbasic_queue"}
    return {name.removeprefix("dbbasic_queue.") for name in ours}, loaded - ours


def test_importing_the_package_loads_only_modules_that_most_calls_need() -> None:
    ours, others = loaded_by("import dbbasic_queue")
    assert "queue" in ours
    assert ours.isdisjoint(
        {
            "passes.base",
            "store.claiming.claims",
            "model.strict_json",
            "engines",
            "cli",
            "commands",
            "toml_file",
        }
    )
    assert others <= LOADED_FROM_THE_STANDARD_LIBRARY


@pytest.mark.parametrize("rows", [None, "", WAITING, DONE + RETRYING + WAITING])
def test_an_idle_pass_imports_nothing_more_from_the_standard_library(
    tmp_path: Path, rows: str | None
) -> None:
    path = tmp_path / "queue.tsv"
    if rows is not None:
        path.write_text(HEADER + rows)
    ours, others = loaded_by(
        "from dbbasic_queue import Queue\n"
        f"queue = Queue({str(path)!r}, clock=lambda: {NOW})\n"
        "queue.process_jobs({'greet': lambda payload: None})"
    )
    assert "passes.base" in ours
    assert ours.isdisjoint(
        {
            "cli",
            "commands",
            "engines",
            "model.strict_json",
            "monitoring",
            "passes.attempt",
            "passes.concurrent",
            "passes.event_loop",
            "passes.executor",
            "passes.forked",
            "passes.guardian",
            "passes.program",
            "passes.keeping",
            "passes.sequential",
            "passes.signals",
            "passes.supervisor",
            "passes.ticker",
            "passes.time_limit",
            "passes.tracebacks",
            "store.claiming.claims",
            "store.claiming.slots",
            "store.protocol",
            "toml_file",
            "store.purged",
            "store.reading.unique",
            "store.writing.edit",
            "store.writing.once",
            "worker",
        }
    )
    assert others <= LOADED_FROM_THE_STANDARD_LIBRARY


def test_neither_a_web_app_nor_a_pass_imports_filelock(tmp_path: Path) -> None:
    """filelock's hooks run in every fork of the program, and some forks fail in them."""
    path = tmp_path / "queue.tsv"
    _, others = loaded_by(
        "from dbbasic_queue import Handler, Queue\n"
        f"queue = Queue({str(path)!r})\n"
        "queue.cancel_job(queue.enqueue('greet', {}))\n"
        "queue.enqueue_many('greet', range(3))\n"
        "queue.process_jobs({'greet': Handler(lambda _: None, timeout=9)}, workers=2)\n"
        "assert queue.counts()['completed'] == 3\n"
        "queue.metrics(), queue.requeue_failed(), queue.purge(0)"
    )
    assert {"fcntl", "json"} <= others
    assert "filelock" not in others
