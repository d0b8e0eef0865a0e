"""JSON as the file holds it: no NaN, no infinity, and bounded in its depth: pure.

It is loaded with the first value: `json`, and `re` with it, take longer than an idle pass.
"""

from __future__ import annotations

import json
import re
from json import encoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MAX_DEPTH = 100

# Both take time in proportion to the text, whatever it is. An unclosed string ends with the text,
# so a failed match never sends the search back to each quote inside it.
_STRING = re.compile(r'(?s)"[^"\\]*(?:\\.[^"\\]*)*\\?(?:"|\Z)')
_LONG_NUMBER = re.compile(r"(?<![0-9])[0-9]{4301}")  # Python's own limit for an int from text


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


def to_json(value: object) -> str:
    """Return a value as JSON text; raises ValueError where it is none, or nested too deep."""
    try:
        text = _encode(value)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except TypeError as e:
        raise ValueError(str(e)) from None
    if len(text) > MAX_DEPTH:
        _check_bounds(text)
    return text


def _encode(value: object) -> str:
    if _encode_once is not None:
        try:
            return "".join(_encode_once(value, 0))
        except Exception:  # noqa: BLE001, S110 - what is wrong is said below
            pass
    return _encoder.encode(value)


def from_json(text: str) -> Any:
    """Return the value of JSON text; raises ValueError where it is none, or nested too deep."""
    if len(text) > MAX_DEPTH:
        _check_bounds(text)
    try:
        try:
            value, end = _scan_once(text, 0)
        except StopIteration:
            end = -1
        return value if end == len(text) else _decoder.decode(text)  # space around it, or an error
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None


def _check_bounds(text: str) -> None:
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(text):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if len(text) > 4300 and _LONG_NUMBER.search(_STRING.sub("", text)):
        raise ValueError("it has a number of more than 4300 digits")


def _is_too_deep(text: str) -> bool:
    depth = 0
    for c in _STRING.sub("", text):
        if c in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif c in "]}":
            depth -= 1
    return False
