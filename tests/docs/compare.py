"""Does a command's output say what the page says?

`...` matches any text, as in doctest; alone on its line, it matches any number of lines. What
differs at each run matches anything of its kind: job ids of 16 hex digits, Unix seconds, dates,
times and durations. An id that a page shows stands for the same job from then on, in outputs and in
commands. A page may align columns with spaces.
"""

from __future__ import annotations

import difflib
import re

_ID = r"\b[0-9a-f]{16}\b"
_ANY = {r"^\.\.\.\n": r"(?:.*?\n)?", r"\n\.\.\.\Z": r"(?:\n.*)?", r"\.\.\.": ".*?"}
_VARYING = [
    _ID,
    r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[,.]\d{3}|Z)?",
    r"\b\d\d/\w{3}/\d{4} \d\d:\d\d:\d\d\b",
    r"\b1[789]\d{8}(?:\.\d+)?\b",
    r"\b\d+\.\d{3}\b",
]
_TOKEN = re.compile("|".join(f"({pattern})" for pattern in [*_ANY, *_VARYING]), re.MULTILINE)
_MATCHES = [*_ANY.values(), *_VARYING]
IDS = re.compile(_ID)


def difference(expected: str, actual: str, ids: dict[str, str], *, more: bool = False) -> str:
    """Return how the two differ, "" if they don't; adds to `ids` what the page's ids stand for.

    With `more`, there may be more lines after those that are expected.
    """
    expected, actual = _normalise(expected), _normalise(actual)
    new: dict[str, str] = {}
    end = r"(\n.*)?" if more else ""
    match = re.fullmatch(_pattern(expected, ids, new) + end, actual, re.DOTALL)
    if match is None:
        return "\n".join(difflib.ndiff(expected.splitlines(), actual.splitlines()))
    found = {shown: match[group] for shown, group in new.items()}
    both = [*ids.values(), *found.values()]
    if len({*both}) != len(both):
        return f"the page shows two ids for one job: {found}"
    ids.update(found)
    return ""


def _pattern(expected: str, ids: dict[str, str], new: dict[str, str]) -> str:
    pattern = ""
    end = 0
    for token in _TOKEN.finditer(expected):
        pattern += re.escape(expected[end : token.start()])
        end = token.end()
        text = token[0]
        if not IDS.fullmatch(text):
            pattern += _MATCHES[(token.lastindex or 1) - 1]
        elif text in ids:
            pattern += re.escape(ids[text])
        elif text in new:
            pattern += f"(?P={new[text]})"
        else:
            new[text] = f"id{len(new)}"
            pattern += f"(?P<{new[text]}>{_ID})"
    return pattern + re.escape(expected[end:])


def _normalise(text: str) -> str:
    lines = [re.sub(r"[ \t]+", " ", line).rstrip() for line in text.splitlines()]
    return "\n".join(lines).strip("\n")
