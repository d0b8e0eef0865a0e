r"""Free text on one line: without tabs, line ends and control characters.

`\t`, `\n`, `\r` and `\\` are escaped like in PostgreSQL's COPY
(https://www.postgresql.org/docs/current/sql-copy.html); every other control, format, surrogate or
line-separator character is `\xNN`, `\uNNNN` or `\UNNNNNNNN`.
"""

from __future__ import annotations

from dbbasic_queue.lazy import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable

MAX_ERROR = 500
"""How many characters of an error are kept."""

_ESCAPE = r"(?s)\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))"
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}
_LONG = {"t": "\t", "n": "\n", "r": "\r"}


def is_unsafe(character: str) -> bool:
    """Return whether a character must be escaped in the file."""
    from unicodedata import category

    return category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def numbered(character: str) -> str:
    r"""Return a character's escape with its code point in hex.

    >>> numbered("\x1b") == r"\x1b", numbered("\u2028") == r"\u2028"
    (True, True)
    """
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def escape(text: str) -> str:
    r"""Return `text` as it is in the file: one line, no tab, no control character.

    >>> print(escape("no\tsuch\nuser \x1b[31m C:\\tmp"))
    no\tsuch\nuser \x1b[31m C:\\tmp
    """
    if "\\" not in text and text.isprintable():
        return text
    return "".join(
        _SHORT.get(c) or (numbered(c) if not c.isprintable() and is_unsafe(c) else c) for c in text
    )


def escape_lines(text: str) -> str:
    r"""Return what `escape` returns; quicker for a text of several lines.

    >>> escape_lines("one\ntwo\t") == escape("one\ntwo\t")
    True
    """
    return r"\n".join([escape(line) for line in text.split("\n")])


def printable(text: str) -> str:
    r"""Return text for a terminal: everything is escaped that `escape` escapes, except backslashes.

    >>> print(printable("\\ stays, \x1b[31m doesn't"))
    \ stays, \x1b[31m doesn't
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\\" else escape(c) for c in text)


def unescape(text: str) -> str:
    r"""Return the text that `escape` has escaped. A backslash that isn't part of an escape stays.

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
