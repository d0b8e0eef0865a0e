"""The planted bugs of `planted.py` still fit the code. `mutants.py` checks that they are caught."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from attack import patch_constant
from mutants import PROJECT, main
from planted import MUTANTS


def test_each_planted_bug_fits_the_code_exactly_once_and_leaves_valid_python(
    tmp_path: Path,
) -> None:
    package = tmp_path / "dbbasic_queue"
    shutil.copytree(PROJECT / "dbbasic_queue", package)
    for mutant in MUTANTS:
        file = package / mutant.file
        original = file.read_bytes()
        mutant.apply(package)
        if mutant.file.endswith(".py"):
            ast.parse(file.read_text(encoding="utf-8"), mutant.name)
        file.write_bytes(original)


def test_the_tests_that_must_catch_a_planted_bug_exist() -> None:
    texts = {
        file: (PROJECT / file).read_text(encoding="utf-8")
        for file in {test.partition("::")[0] for mutant in MUTANTS for test in mutant.tests}
    }
    for mutant in MUTANTS:
        for test in mutant.tests:
            file, _, name = test.partition("::")
            function = name.partition("[")[0].rpartition("::")[2]
            assert not name or f"def {function}(" in texts[file], test


def test_planted_bugs_have_unique_names() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_all_planted_bugs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = [text.split("\t") for text in capsys.readouterr().out.splitlines()]
    assert [name for name, _, _ in listed] == [mutant.name for mutant in MUTANTS]
    assert all((PROJECT / "dbbasic_queue" / file).is_file() for _, file, _ in listed)


def test_patch_constant_raises_if_the_constant_is_gone() -> None:
    module = ModuleType("module")
    with pytest.raises(AttributeError):
        patch_constant(module, "_GONE", 1)
    assert not hasattr(module, "_GONE")


def test_a_test_that_sets_a_constant_fails_if_the_constant_is_gone() -> None:
    """`monkeypatch.setattr`, `patch` and `patch_constant` raise; an assignment would do nothing."""
    silent = re.compile(
        r"^\s*(?:\w+\.)+(?!QUEUE_FILE)_?[A-Z][A-Z_]+ = "
        r"|\bvars\(.+\)\[.+\] = |\bsetattr\([^)]*\braising=False",
        re.MULTILINE,
    )
    for file in (PROJECT / "tests").rglob("*.py"):
        assert not (found := silent.findall(file.read_text(encoding="utf-8"))), (file, found)
