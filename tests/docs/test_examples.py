"""Every example of README.md and docs/*.md is run, page by page, in a fresh directory per page.

The README of each directory in examples/ is run in a copy of that directory.

blocks.py says what is done with which block, running.py how, and compare.py what an output may be.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blocks import PAGES, PROJECT, RUN, Block, blocks_of
from running import Page

if TYPE_CHECKING:
    from collections.abc import Iterator


def what_is_missing(blocks: list[Block]) -> Iterator[str]:
    for block in blocks:
        if block.needs == "root":
            if os.geteuid() != 0:
                yield f"{block} needs root"
        elif block.needs is not None and shutil.which(block.needs) is None:
            yield f"{block} needs {block.needs}"


EXAMPLES = sorted((PROJECT / "examples").glob("*/README.md"))


@pytest.mark.parametrize(
    "page", [*PAGES, *EXAMPLES], ids=lambda page: str(page.relative_to(PROJECT))
)
def test_every_example_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    blocks = blocks_of(page)
    for block in blocks:
        block.check()
    if missing := list(what_is_missing(blocks)):
        pytest.skip("; ".join(missing))
    run = Page(tmp_path / "app", blocks)
    if page in EXAMPLES:
        without_data = shutil.ignore_patterns("data", "instance", "__pycache__")
        shutil.copytree(page.parent, run.directory, ignore=without_data, dirs_exist_ok=True)
        run.adapt()
    ran = run.run()
    assert ran == sum(block.is_run for block in blocks)
    assert ran > 0 or not any(block.language in RUN for block in blocks)
