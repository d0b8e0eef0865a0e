"""The files of a queue, and how findings name files."""

from __future__ import annotations

import glob
import re
import shlex

_SHOWN = 3
_OURS = re.compile(
    r"\.(lock|journal|pass\.\d+|(history|output|passes)(\.1)?|progress|paused|schedule|moved|purged|"
    r"rejected)"
)
"""the endings of the queue's own files; others may be anybody's, such as a backup"""


def files_of(path: str) -> list[str]:
    """Return the files of a queue that exist, its own first."""
    others = sorted(glob.glob(glob.escape(path) + ".*"))
    return [path, *(name for name in others if _OURS.fullmatch(name.removeprefix(path)))]


def listed(names: list[str]) -> str:
    """Return the first names, and how many others there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def quoted(names: list[str]) -> str:
    """Return the names as arguments for a shell."""
    return " ".join(map(shlex.quote, names))
