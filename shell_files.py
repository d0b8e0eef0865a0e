"""Writes the completion of the three shells and the man page; `setup.py` calls it at each build.

Both are made from the command line's parser, so they can't differ from `--help`. `shtab` and
`argparse-manpage` are needed only for a build: pyproject.toml names them, and pip fetches them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
PLACES = {
    "bash": "share/bash-completion/completions/dbbasic-queue",
    "zsh": "share/zsh/site-functions/_dbbasic-queue",
    "fish": "share/fish/vendor_completions.d/dbbasic-queue.fish",
    "man": "share/man/man1/dbbasic-queue.1",
}
"""what -> where it is installed, below the prefix; and where it is written, below this folder"""
_DIRECTORIES = ("DIR", "DIRECTORY")


def write() -> list[tuple[str, list[str]]]:
    """Write the files, and return them as setup's `data_files`.

    Without the two packages (a build without isolation), the files of an earlier build, or of the
    source distribution, are used; if there are none, the build goes on without them.
    """
    try:
        contents = _contents()
    except ModuleNotFoundError as e:
        print(f"warning: no completion and man page are made ({e})", file=sys.stderr)
    else:
        for what, content in contents.items():
            path = HERE / PLACES[what]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    return [(str(Path(p).parent), [p]) for p in PLACES.values() if (HERE / p).exists()]


def _contents() -> dict[str, str]:
    """Return the content of each file. Raises ModuleNotFoundError if a package isn't there."""
    import shtab

    os.environ["COLUMNS"] = "80"  # the width of argparse's text, on every machine
    found = {
        shell: shtab.complete(_parser(file=shtab.FILE, directory=shtab.DIRECTORY), shell)
        for shell in ("bash", "zsh", "fish")
    }
    return found | {"man": man_page()}


def man_page() -> str:
    """Return the man page. Raises ModuleNotFoundError without argparse-manpage."""
    from argparse_manpage.manpage import Manpage

    parser = _parser()
    epilog, parser.epilog = parser.epilog, None
    page = Manpage(
        parser,
        format="single-commands-section",
        _data={"description": "job queue in a plain text file", "manual_title": "User Commands"},
    )
    page.add_section("exit status", "=", epilog.removeprefix("Exit codes: ") if epilog else "")
    return str(page).replace("show program's version number", "show the version")


def _parser(file: object = None, directory: object = None) -> ArgumentParser:
    """Return the command line's parser.

    With `file` and `directory`, arguments that take these have them as their completion, and the
    commands have short descriptions.
    """
    sys.path.insert(0, str(HERE))
    try:
        from dbbasic_queue.cli.main import argument_parser
    finally:
        sys.path.pop(0)
    parser = argument_parser()
    if file is not None:
        for found in _parsers(parser):
            found.description = (found.description or "").split(". ")[0].removesuffix(".")
            for action in found._actions:
                what = _completion_of(action.metavar or action.dest.upper())
                if what and action.choices is None:
                    action.complete = file if what == "file" else directory  # type: ignore[attr-defined]
    return parser


def _parsers(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """Yield the program's parser, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            yield from action.choices.values()


def _completion_of(name: object) -> str:
    """Return which paths an argument takes, by its name in the help: file, directory or none ("").

    >>> [_completion_of(name) for name in ("FILE.svg", "DIRECTORY", "N")]
    ['file', 'directory', '']
    """
    if name in _DIRECTORIES:
        return "directory"
    is_file = str(name).startswith(("FILE", "PATH", "HANDLERS", "URL"))
    return "file" if is_file else ""


if __name__ == "__main__":
    print(*(files[0] for _, files in write()), sep="\n")
