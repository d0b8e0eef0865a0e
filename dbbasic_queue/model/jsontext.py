"""Payloads and results as text: strict JSON on one line, without control characters."""

from __future__ import annotations

from dbbasic_queue.lazy import load
from dbbasic_queue.model.escaping import is_unsafe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_PAYLOAD = 1_048_576
"""How many bytes a payload may have by default."""

LARGEST_PAYLOAD = 1 << 25
"""How many bytes a queue can allow for a payload: a row must hold it and a result of that size."""


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


# The first value imports `json`, which takes longer than an idle pass. Later ones don't check.
_to_json: Callable[[object], str] = _first_to_json
_from_json: Callable[[str], Any] = _first_from_json


def _numbered_in_json(character: str) -> str:
    r"""Return the JSON escape of a character by its number.

    >>> _numbered_in_json("\x7f") == r"\u007f"
    True
    """
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def encode_json(value: object, limit: int) -> str:
    r"""Return `value` as strict JSON on one line, at most `limit` bytes of UTF-8.

    Raises ValueError if it isn't JSON (NaN, infinity and a dict key that isn't a str aren't), is
    nested more than 100 deep, or is too long. The message continues "invalid payload: ...".

    >>> encode_json({"to": "ada\x1b"}, 100) == r'{"to": "ada\u001b"}'
    True
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
            f"it takes {size} bytes, and at most {limit} are allowed (store large data in a file, "
            "and pass the file's name)"
        )
    return text


def decode_json(text: str) -> Any:
    """Return the value of strict JSON text; raises ValueError if it isn't that.

    >>> decode_json('{"n": 1}')
    {'n': 1}
    """
    return _from_json(text)
