"""Strict JSON: no NaN, no infinity, no keys other than text, and not nested more than 100 deep.

Imported when the first value is encoded or decoded: importing `json` and `re` takes longer than an
idle pass.
"""

from __future__ import annotations

import json
import os
import re
from json import encoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

MAX_DEPTH = 100

_LONGEST_SIMPLE_BYTES = 4300
"""Shorter text can't have a number that is too long."""

# Both take time in proportion to the text's length, whatever the text is. A string without an end
# matches to the end of the text; otherwise the search would start again at each quote inside it.
_STRING = re.compile(r'(?s)"[^"\\]*(?:\\.[^"\\]*)*\\?(?:"|\Z)')
_LONG_NUMBER = re.compile(r"(?<![0-9])[0-9]{4301}")  # Python's own limit is 4,300 digits


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
_sorting_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True)
_decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant)
_scan_once: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once


def _made_once() -> Callable[[object, int], Iterable[str]]:
    """Return the encoder in C that `_encoder.encode` creates again at each call.

    Creating it takes longer than encoding a small value. It doesn't look for circular references:
    for them it raises RecursionError. If this Python doesn't have it, return a function that calls
    `_encoder.encode`.
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

    Raises ValueError if the value isn't JSON, is nested too deep, or has a number of more than
    4,300 digits. If possible, the message suggests what to give instead.

    >>> to_json({"to": ["ada", 1.5, None]})
    '{"to": ["ada", 1.5, null]}'
    """
    try:
        text = "".join(_encode_once(value, 0))
    except Exception:  # noqa: BLE001 - the call below raises what is wrong
        text = _encode_or_explain(value)
    if len(text) > MAX_DEPTH:
        _check_bounds(text)
    if value.__class__ is dict and "{" not in text[1:]:  # the only dict, as in most payloads
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
    return f"a dict has a key of type {name}, but JSON keys must be str (convert it with str())"


def _encode_or_explain(value: object) -> str:
    """Return a value as JSON text; raises the ValueError that `to_json` documents."""
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
    """Return the value of JSON text; raises ValueError for the same reasons as `to_json`."""
    if len(text) > MAX_DEPTH:
        _check_bounds(text)
    try:
        try:
            value, end = _scan_once(text, 0)
        except StopIteration:
            end = -1
        if end == len(text):
            return value
        return _decoder.decode(text)  # it has spaces around it, or isn't JSON
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None


_BETWEEN = f'"{os.urandom(8).hex()}"'
"""JSON text that no payload contains, because nobody can guess it"""


def all_json(texts: Sequence[bytes]) -> bool:
    """Return True if all texts are JSON, or empty. False means that one may not be.

    They are decoded in one call, as the members of a list. Between them are members that no text
    can imitate. So if these are where they must be, nothing but one value is between any two.

    >>> all_json([b"[1]", b"", b'"a"']), all_json([b"1, 2"]), all_json([b"[1", b"2]"])
    (True, False, False)
    """
    for text in texts:
        size = len(text)
        if size > MAX_DEPTH and (
            text.count(b"[") + text.count(b"{") > MAX_DEPTH or size > _LONGEST_SIMPLE_BYTES
        ):
            return False
    try:
        joined = (b",%b," % _BETWEEN.encode()).join([text or b"{}" for text in texts]).decode()
        members, _ = _scan_once(f"[{joined}]", 0)
    except (ValueError, StopIteration, RecursionError):
        return False
    marks = members[1::2]
    return len(members) == 2 * len(texts) - 1 and marks.count(_BETWEEN[1:-1]) == len(marks)


def canonical_json(text: str) -> str:
    """Return JSON text in the one form that all texts with the same meaning have.

    Spaces, escapes and the order of an object's members don't matter; 1 and 1.0 differ. Raises
    ValueError if the text isn't JSON.

    >>> canonical_json('{"b":1, "a":"\\u00e9"}')
    '{"a": "é", "b": 1}'
    """
    return _sorting_encoder.encode(from_json(text))


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
