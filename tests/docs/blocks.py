"""The fenced blocks of README.md and docs/*.md: which there are, and what is done with each.

| block | what the tests do |
|---|---|
| ```python | run it as a script |
| ```sh | run it by `bash -euo pipefail` |
| ```console | type the lines after "$ " (and "> "), compare what follows each with its output |
| any other language in SHOWN | nothing: it is there to be read |

Words after the language change that:

| word | meaning |
|---|---|
| `file=NAME` | write the block to NAME first, for later blocks; pytest runs a test_*.py |
| `norun` | don't run it |
| `last` | run it after all other blocks of the page |
| `background` | let the block's command run until the page ends, then compare what it printed |
| `root`, `needs=PROGRAM` | the page is skipped without root, or without that program |
| `demo`, `test` | a command of the README that .ci/run runs as it stands, in a fresh clone |

Any other language or word fails the test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]

RUN = {"python", "sh", "console"}
SHOWN = {"apache", "awk", "caddy", "crontab", "dockerfile", "html", "ini", "json", "nginx", "text"}
SHOWN |= {"php", "toml", "tsv", "yaml"}
WORDS = {
    "python": {"norun", "last"},
    "sh": {"norun", "last", "root", "demo", "test"},
    "console": {"norun", "last", "root", "background"},
}
BY_CI = {"demo", "test"}

_FENCE = re.compile(r"( *)(`{3,}|~{3,})([^`]*)")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    words: tuple[str, ...]
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ```{' '.join((self.language, *self.words))}"

    @property
    def file(self) -> str | None:
        return self._value("file")

    @property
    def needs(self) -> str | None:
        return "root" if "root" in self.words else self._value("needs")

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not {"norun", *BY_CI} & {*self.words}

    def _value(self, name: str) -> str | None:
        return next((w.partition("=")[2] for w in self.words if w.startswith(f"{name}=")), None)

    def check(self) -> None:
        """Raise AssertionError if the runner doesn't know what to do with this block."""
        known = RUN | SHOWN
        assert self.language in known, f"{self}: unknown language (known: {sorted(known)})"
        words = {word for word in self.words if not re.fullmatch(r"(file|needs)=\S+", word)}
        unknown = words - WORDS.get(self.language, set())
        assert not unknown, f"{self}: unknown words {sorted(unknown)} (see tests/docs/blocks.py)"
        if self.language == "console":
            commands_of(self)
        if self.is_run:
            installs = re.search(r"pip install|-m venv|apt(-get)? install|systemctl", self.code)
            assert not installs, f"{self}: this block installs something: mark it norun"


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """Return the blocks of a page in its order. Raises AssertionError for an unclear fence."""
    name = page.name if page.parent == PROJECT else f"{page.parent.name}/{page.name}"
    found = []
    lines = (page.read_text(encoding="utf-8") if text is None else text).splitlines()
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        fence = _FENCE.fullmatch(line)
        if fence is None:
            assert "```" not in line, f"{name}:{number}: a fence must be alone on its line"
            continue
        indent, ticks, info = fence.groups()
        code = []
        for _, inner in numbered:
            if inner.strip() == ticks:
                break
            code.append(inner.removeprefix(indent))
        else:
            raise AssertionError(f"{name}:{number}: this block has no end")
        language, *words = info.split() or [""]
        found.append(Block(name, number, language, tuple(words), "\n".join([*code, ""])))
    return found


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]


def commands_of(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with the output that the page shows."""
    commands: list[tuple[list[str], list[str]]] = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            commands.append(([line[2:]], []))
        elif commands and line.startswith("> ") and not commands[-1][1]:
            commands[-1][0].append(line[2:])
        else:
            assert commands, f"{block}: must begin with a command, '$ ...'"
            commands[-1][1].append(line)
    assert commands, f"{block}: has no command"
    if "background" in block.words:
        assert len(commands) == 1, f"{block}: must have one command"
    return [("\n".join(command), "\n".join(output)) for command, output in commands]
