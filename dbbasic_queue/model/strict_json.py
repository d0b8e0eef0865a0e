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


_LEAVES = frozenset({str, int, float, bool, type(None)})
_INSTEAD = {
    "datetime": "use its isoformat() or timestamp()",
    "date": "use its isoformat()",
    "Decimal": "use its text: str()",
    "UUID": "use its text: str()",
    "bytes": "decode it, or use base64",
    "set": "make it a list",
    "frozenset": "make it a list",
}
_JSON_TYPES = "give a dict, list, str, int, float, bool or None"
_WAYS_OUT = {
    "Out of range": "give None or a str instead of NaN or infinity",
    "Circular": "it contains itself",
    "Exceeds": "give the number as a str",
}


def _refuse_value(value: object) -> Any:
    name = type(value).__name__
    raise TypeError(f"{name} is not JSON ({_INSTEAD.get(name, _JSON_TYPES)})")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_refuse_value)
_decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant)
_scan_once: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once


def _made_once() -> Callable[[object, int], Iterable[str]]:
    """Return what `_encoder.encode` makes anew at each call, which takes longer than its work.

    It does not look for circles: it raises there. Where this Python has no such thing,
    `_encoder.encode` itself.
    """
    make: Any = getattr(encoder, "c_make_encoder", None)
    try:
        return make(  # type: ignore[no-any-return]
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
        return lambda value, _: _encoder.encode(value)


_encode_once = _made_once()


def to_json(value: object) -> str:
    """Return a value as JSON text.

    Raises ValueError, which says what to do, for a value that is not JSON or is nested too deep.
    """
    try:
        text = "".join(_encode_once(value, 0))
    except Exception:  # noqa: BLE001 - what is wrong is said below
        text = _encode_or_refuse(value)
    if len(text) > MAX_DEPTH:
        _check_bounds(text)
    if value.__class__ is dict and "{" not in text[1:]:  # the one dict, as in most payloads
        for key in value:
            if key.__class__ is not str:
                _check_keys(value)
    elif "{" in text:
        _check_keys(value)
    return text


def _check_keys(value: object) -> None:
    """Raise ValueError if a dict has a key that isn't a str: the encoder would convert it."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(_wrong_key(type(key).__name__))
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for member in value:
        if member.__class__ not in _LEAVES:
            _check_keys(member)


def _wrong_key(name: str) -> str:
    return f"a dict has a key of type {name}, and JSON keys are text (convert it with str())"


def _encode_or_refuse(value: object) -> str:
    try:
        return _encoder.encode(value)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except TypeError as e:
        _, is_key, name = str(e).partition("bool or None, not ")
        raise ValueError(_wrong_key(name) if is_key else str(e)) from None
    except ValueError as e:
        for beginning, way_out in _WAYS_OUT.items():
            if str(e).startswith(beginning):
                raise ValueError(f"{e} ({way_out})") from None
        raise


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
