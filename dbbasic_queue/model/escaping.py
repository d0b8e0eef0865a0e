r"""What a value looks like on one line: free text escaped, JSON strict and without controls: pure.

Free text is escaped as PostgreSQL's COPY does it (`\t \n \r \\`,
https://www.postgresql.org/docs/current/sql-copy.html), every other control, format, surrogate and
line-separator character as `\xNN`, `\uNNNN` or `\UNNNNNNNN`; in JSON, as JSON's `\uNNNN`.
"""

from __future__ import annotations

from dbbasic_queue.lazy import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable

MAX_ERROR = 500

_ESCAPE = r"(?s)\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))"
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}
_LONG = {"t": "\t", "n": "\n", "r": "\r"}

# -- free text ---------------------------------------------------------------------------------


def is_unsafe(character: str) -> bool:
    """Tell whether a character may not stand in the file as it is."""
    from unicodedata import category

    return category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def numbered(character: str) -> str:
    """Return a character as its escape by number."""
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def escape(text: str) -> str:
    r"""Return `text` as the file holds it: one line, no tab, no control character.

    >>> print(escape("no\tsuch\nuser \x1b[31m C:\\tmp"))
    no\tsuch\nuser \x1b[31m C:\\tmp
    """
    if "\\" not in text and text.isprintable():
        return text
    return "".join(
        _SHORT.get(c) or (numbered(c) if not c.isprintable() and is_unsafe(c) else c) for c in text
    )


def printable(text: str) -> str:
    r"""Return text that a file held as it is, but for what makes a line or drives a terminal.

    >>> print(printable("\\ stays, \x1b[31m doesn't"))
    \ stays, \x1b[31m doesn't
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\\" else escape(c) for c in text)


def unescape(text: str) -> str:
    r"""Return what `escape` was given; a backslash that begins no escape stands for itself.

    >>> unescape(escape("a\tb\\n\u2028")) == "a\tb\\n\u2028"
    True
    """
    if "\\" not in text:
        return text

    def character(match: re.Match[str]) -> str:
        x, u, wide, short = match.groups()
        if short is None:
            code = int(x or u or wide, 16)
            return chr(code) if code <= 0x10FFFF else match.group()
        return _LONG.get(short) or (short if short == "\\" else match.group())

    return load(_sub)(_ESCAPE, character, text)


def _sub() -> Callable[[str, Callable[[re.Match[str]], str], str], str]:
    import re

    return re.sub


# -- JSON --------------------------------------------------------------------------------------
