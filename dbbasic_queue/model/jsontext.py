"""Payloads and results as text: strict JSON on one line, without control characters."""

from __future__ import annotations

from dbbasic_queue.lazy import load
from dbbasic_queue.model.escaping import is_unsafe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_PAYLOAD = 1_048_576
"""How many bytes the JSON of a payload, or of a result, may have by default."""

LARGEST_PAYLOAD = 1 << 25
"""The highest limit that a queue can set: a row must hold a payload and a result of that size."""


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


# `json` is imported with the first value: that takes longer than an idle pass. From then on these
# are the real functions, so no call has to check whether `json` is imported.
_to_json: Callable[[object], str] = _first_to_json
_from_json: Callable[[str], Any] = _first_from_json


def _numbered_in_json(character: str) -> str:
    r"""Return a character's JSON escape: one or two UTF-16 code units in hex.

    >>> _numbered_in_json("\x7f") == r"\u007f"
    True
    """
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def encode_json(value: object, limit: int) -> str:
    r"""Return `value` as strict JSON on one line, at most `limit` bytes of UTF-8.

    Raises ValueError if it isn't JSON (NaN, infinity and a dict key that isn't a str aren't), is
    nested more than 100 deep, has a number of more than 4,300 digits, or is too long. The message
    continues "invalid payload: ...".

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
        raise too_long(size, limit)
    return text


def too_long(size: int, limit: int) -> ValueError:
    """Return the error of a payload, or a result, of `size` bytes if `limit` are allowed."""
    return ValueError(
        f"it takes {size} bytes, and at most {limit} are allowed (store large data in a file, "
        "and pass the file's name)"
    )


def decode_json(text: str) -> Any:
    """Return the value of strict JSON text; raises ValueError if it isn't that.

    >>> decode_json('{"n": 1}')
    {'n': 1}
    """
    return _from_json(text)
