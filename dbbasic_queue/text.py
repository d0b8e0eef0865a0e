r"""What a value looks like on one line: free text escaped, JSON strict and without controls: pure.

Free text is escaped as PostgreSQL's COPY does it (`\t \n \r \\`,
https://www.postgresql.org/docs/current/sql-copy.html), every other control, format, surrogate and
line-separator character as `\xNN`, `\uNNNN` or `\UNNNNNNNN`; in JSON, as JSON's `\uNNNN`.
"""

from __future__ import annotations

import json
import re
from json import encoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MAX_PAYLOAD = 1_048_576
MAX_DEPTH = 100
MAX_ERROR = 500

_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LONG_NUMBER = re.compile(r"[0-9]{4301}")  # Python's own limit for an int from text
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

    return _ESCAPE.sub(character, text)


# -- JSON --------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant)
_scan_once: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once


def _made_once() -> Callable[[object, int], Iterable[str]] | None:
    """Return what `_encoder.encode` makes anew at each call, which takes longer than its work.

    None where this Python has no such thing. It does not look for circles: it raises there.
    """
    make: Any = getattr(encoder, "c_make_encoder", None)
    try:
        return make and make(  # type: ignore[no-any-return]
            None,
            _encoder.default,
            encoder.encode_basestring,
            _encoder.indent,
            _encoder.key_separator,
            _encoder.item_separator,
            _encoder.sort_keys,
            _encoder.skipkeys,
            _encoder.allow_nan,
        )
    except TypeError:
        return None


_encode_once = _made_once()


def _to_json(value: object) -> str:
    if _encode_once is not None:
        try:
            return "".join(_encode_once(value, 0))
        except Exception:  # noqa: BLE001, S110 - what is wrong is said below
            pass
    return _encoder.encode(value)


def _from_json(text: str) -> Any:
    try:
        value, end = _scan_once(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else _decoder.decode(text)  # space around it, or an error


def _depth(text: str) -> int:
    depth = deepest = 0
    for c in _STRING.sub("", text):
        if c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def _check_bounds(text: str) -> None:
    if len(text) <= MAX_DEPTH:
        return
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if len(text) > 4300 and _LONG_NUMBER.search(_STRING.sub("", text)):
        raise ValueError("it has a number of more than 4300 digits")


def encode_json(value: object, limit: int) -> str:
    """Return `value` as strict JSON on one line, at most `limit` bytes of UTF-8.

    Raises ValueError, in words that continue "the value is refused: ...", if it is not JSON
    (NaN and infinity are not), is nested over 100 deep, or is too long.
    """
    try:
        text = _to_json(value)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except TypeError as e:
        raise ValueError(str(e)) from None
    _check_bounds(text)
    if not text.isprintable():
        text = "".join(
            json.dumps(c)[1:-1] if not c.isprintable() and is_unsafe(c) else c for c in text
        )
    size = len(text) if text.isascii() else len(text.encode())
    if size > limit:
        raise ValueError(f"it takes {size} bytes, and {limit} are allowed")
    return text


def decode_json(text: str) -> Any:
    """Return the value of strict JSON text; raises ValueError where it is not that."""
    try:
        _check_bounds(text)
        return _from_json(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
