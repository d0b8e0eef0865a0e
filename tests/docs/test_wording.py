"""The project's text is in plain English: no phrase listed in `tests/wording.txt` occurs in it.

To work through the hits, all of them or those of some files:

    python tests/docs/test_wording.py
    python tests/docs/test_wording.py README.md dbbasic_queue/cli.py
"""

from __future__ import annotations

import io
import keyword
import re
import subprocess
import sys
import token
import tokenize
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDING = ROOT / "tests/wording.txt"
_SKIPPED_TOKENS = {token.NL, token.NEWLINE, token.INDENT, token.DEDENT, token.ENDMARKER}
# f-strings are tokens of these types since Python 3.12, and a STRING before that.
_FSTRING_START, _FSTRING_MIDDLE, _FSTRING_END = (
    getattr(token, name, -1) for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
)


class Phrase(NamedTuple):
    pattern: re.Pattern[str]
    instead: str


class Hit(NamedTuple):
    line: int
    found: str
    instead: str


class Text:
    """Words with their line numbers. A phrase matches inside a passage, across line breaks."""

    def __init__(self) -> None:
        self._passages: list[list[tuple[int, str]]] = []

    def passage(self) -> None:
        """Start a new passage."""
        self._passages.append([])

    def add(self, line: int, text: str) -> None:
        """Add text to the current passage; `line` is the number of its first line."""
        for number, part in enumerate(text.split("\n"), line):
            self._passages[-1] += [(number, word) for word in part.split()]

    def search(self, phrases: list[Phrase]) -> list[Hit]:
        """Return the hits in the order of their lines."""
        text = ""
        starts, lines = [], []  # of each word: its offset in `text`, its line
        for passage in self._passages:
            for number, word in passage:
                starts.append(len(text))
                lines.append(number)
                text += word + " "
            text = text[:-1] + "\n" if passage else text
        return sorted(
            Hit(lines[bisect_right(starts, match.start()) - 1], match[0].strip(), phrase.instead)
            for phrase in phrases
            for match in phrase.pattern.finditer(text)
        )


# -- which phrases, and where they may stand -------------------------------------------------------


def read_phrases(text: str) -> list[Phrase]:
    """Return the phrases of a list in the form that `wording.txt` explains."""
    phrases = []
    for line in text.splitlines():
        phrase, _, instead = line.partition(" -> ")
        phrase = phrase.strip()
        if not phrase or phrase.startswith("#"):
            continue
        if len(phrase) > 2 and phrase[0] == phrase[-1] == "/":
            pattern = phrase[1:-1]
        else:
            pattern = rf"\b{re.escape(phrase)}\b".replace(r"\ ", " ")
        compiled = re.compile(pattern, re.IGNORECASE | re.MULTILINE)
        phrases.append(Phrase(compiled, instead.strip()))
    return phrases


def project_files() -> list[Path]:
    """Return the project's Python and Markdown files: those of git, if this is a checkout."""
    git = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    names = git.stdout.split("\0")
    if git.returncode != 0 or "setup.py" not in names:  # a source distribution
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        built = {"build", "dist"}
        names = [str(p) for p in paths if p.parts[0] not in built and "/." not in f"/{p}"]
    paths = (ROOT / name for name in sorted(set(names)) if name.endswith((".py", ".md")))
    return [path for path in paths if path.is_file()]


def hits_in(path: Path, phrases: list[Phrase]) -> list[Hit]:
    source = path.read_text(encoding="utf-8")
    text = python_text(source) if path.suffix == ".py" else markdown_text(source)
    return text.search(phrases)


# -- what is text in a file ------------------------------------------------------------------------


def python_text(source: str) -> Text:
    """Return the comments, strings and names; `_` in a name separates words.

    Comments on consecutive lines, and strings that Python joins, are one passage.
    """
    text = Text()
    names = set()
    before = tokenize.TokenInfo(token.NEWLINE, "", (0, 0), (0, 0), "")
    depth = 0  # of f-strings
    for current in tokenize.generate_tokens(io.StringIO(source).readline):
        line = current.start[0]
        if current.type == token.COMMENT:
            if before.type != token.COMMENT or line != before.start[0] + 1:
                text.passage()
            text.add(line, current.string.lstrip("#!"))
        elif current.type in (token.STRING, _FSTRING_START) and not depth:
            if before.type not in (token.STRING, _FSTRING_END):
                text.passage()
            if current.type == token.STRING:
                text.add(line, _content(current.string))
        elif current.type == _FSTRING_MIDDLE and depth == 1:
            text.add(line, _unescaped(current.string) + "{}")
        depth += (current.type == _FSTRING_START) - (current.type == _FSTRING_END)
        if current.type == token.NAME and not keyword.iskeyword(current.string):
            if current.string not in names:
                text.passage()
                text.add(line, current.string.replace("_", " "))
            names.add(current.string)
        if current.type not in _SKIPPED_TOKENS and not depth:
            before = current
    return text


def _content(literal: str) -> str:
    """Return what is between a literal's quotes, with {} for each expression of an f-string."""
    prefix, quotes = re.match(r"(\w*)(\"\"\"|'''|\"|')", literal).groups()  # type: ignore[union-attr]
    content = literal[len(prefix) + len(quotes) : -len(quotes)]
    if "f" in prefix.lower():
        content = re.sub(r"\{[^{}]*\}", lambda m: "{}" + "\n" * m[0].count("\n"), content)
    return content if "r" in prefix.lower() else _unescaped(content)


def _unescaped(content: str) -> str:
    return re.sub(r"\\[nrt]", "  ", content)


def markdown_text(source: str) -> Text:
    """Return everything, by paragraphs, without a table of phrases to avoid (`don't write`)."""
    text = Text()
    text.passage()
    in_table = False
    for number, line in enumerate(source.splitlines(), 1):
        in_table = line.startswith("|") and (in_table or re.match(r"\| *don't ", line) is not None)
        if not line.strip():
            text.passage()
        elif not in_table:
            text.add(number, line)
    return text


# -- tests -----------------------------------------------------------------------------------------


def found(text: Text, *phrases: str) -> list[tuple[int, str]]:
    return [(hit.line, hit.found) for hit in text.search(read_phrases("\n".join(phrases)))]


def test_no_phrase_of_the_list_occurs_in_the_project() -> None:
    phrases = read_phrases(WORDING.read_text(encoding="utf-8"))
    lines = [
        f"{path.relative_to(ROOT)}:{hit.line}: {hit.found} -> {hit.instead}"
        for path in project_files()
        for hit in hits_in(path, phrases)
    ]
    if lines:
        pytest.fail("\n".join([f"{len(lines)} hits:", *lines]), pytrace=False)


def test_comments_strings_and_names_are_searched_and_code_is_not() -> None:
    source = '''"""One red
    herring."""
x = red(herring)
# a red
# herring
def red_herring(): return "a red " \\
    "herring"
y = f"red {x} herring", f"a {x} red herring"
'''
    assert found(python_text(source), "red herring") == [
        (1, "red herring"),
        (4, "red herring"),
        (6, "red herring"),
        (6, "red herring"),
        (8, "red herring"),
    ]


def test_strings_and_comments_that_are_not_joined_are_searched_one_by_one() -> None:
    source = 'x = ["red", "herring"]\n# red\n\ny = 1  # herring'
    assert found(python_text(source), "red herring") == []


def test_a_phrase_is_found_in_markdown_across_lines_but_not_across_paragraphs() -> None:
    text = markdown_text("A red\nherring.\n\nred\n\nherring\n\nredherring\n")
    assert found(text, "red herring") == [(1, "red herring")]


def test_a_table_of_phrases_to_avoid_is_not_searched() -> None:
    table = "| don't write | write |\n|---|---|\n| red herring | distraction |\n"
    assert found(markdown_text(f"{table}\nred herring\n"), "red herring") == [(5, "red herring")]


def test_the_list_has_comments_phrases_and_regular_expressions() -> None:
    phrases = read_phrases("# a -> b\n\nred herring -> clue\n/ b+ / -> c\n/(?-i:Red)/ -> d\n")
    text = markdown_text("red Red Herring bb x")
    assert text.search(phrases) == [
        Hit(1, "Red", "d"),
        Hit(1, "Red Herring", "clue"),
        Hit(1, "bb", "c"),
    ]


def test_every_phrase_of_the_list_has_something_to_write_instead() -> None:
    assert all(phrase.instead for phrase in read_phrases(WORDING.read_text(encoding="utf-8")))


def main(names: list[str]) -> int:
    """Print the hits and the number per file; return 1 if there are any."""
    phrases = read_phrases(WORDING.read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    for path in [Path(name).resolve() for name in names] or project_files():
        shown = str(path.relative_to(ROOT))
        for hit in hits_in(path, phrases):
            print(f"{shown}:{hit.line}: {hit.found} -> {hit.instead}")
            counts[shown] += 1
    print()
    for name, count in counts.most_common():
        print(f"{count:6} {name}")
    print(f"{counts.total():6} in all")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
