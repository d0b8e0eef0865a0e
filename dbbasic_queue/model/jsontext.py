"""Payloads and results: strict JSON on one line, without control characters."""

from __future__ import annotations

from dbbasic_queue.lazy import load
from dbbasic_queue.model.escaping import is_unsafe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_PAYLOAD = 1_048_576
LARGEST_PAYLOAD = 1 << 25
"""The most bytes that a queue may allow for a payload: a row has to hold it and a result."""


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
