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
    from typing import Any

MAX_PAYLOAD = 1_048_576
LARGEST_PAYLOAD = 1 << 25
"""The most bytes that a queue may allow for a payload: a row has to hold it and a result."""
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


def _load_json() -> None:
    global _to_json, _from_json
    _to_json, _from_json = load(_strict_json)


def _strict_json() -> tuple[Callable[[object], str], Callable[[str], Any]]:
    from dbbasic_queue.model.strict_json import from_json, to_json

    return to_json, from_json


def _first_to_json(value: object) -> str:
    _load_json()
    return _to_json(value)


def _first_from_json(text: str) -> Any:
    _load_json()
    return _from_json(text)


# The first value loads `json`, which takes longer than an idle pass; the next ones do not ask.
_to_json: Callable[[object], str] = _first_to_json
_from_json: Callable[[str], Any] = _first_from_json


def _numbered_in_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def encode_json(value: object, limit: int) -> str:
    """Return `value` as strict JSON on one line, at most `limit` bytes of UTF-8.

    Raises ValueError, in words that continue "invalid payload: ...", if it is not JSON (NaN,
    infinity and dict keys other than str are not), is nested over 100 deep, or is too long.
    """
    text = _to_json(value)
    if not text.isascii():
        if not text.isprintable():
            text = "".join(
                _numbered_in_json(c) if not c.isprintable() and is_unsafe(c) else c for c in text
            )
        size = len(text.encode())
    else:  # the encoder escapes every ASCII control character except DEL
        if "\x7f" in text:
            text = text.replace("\x7f", "\\u007f")
        size = len(text)
    if size > limit:
        raise ValueError(
            f"it takes {size} bytes, and {limit} are allowed (keep what is large in a file and "
            "give the file's name)"
        )
    return text


def decode_json(text: str) -> Any:
    """Return the value of strict JSON text; raises ValueError where it is not that."""
    return _from_json(text)
