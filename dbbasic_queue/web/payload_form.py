"""The part of a form in which a person writes a payload as JSON, and what was written."""

from __future__ import annotations

import json

from dbbasic_queue.model.escaping import is_unsafe
from dbbasic_queue.web.html import tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.web.html import Content, Markup

_FEWEST_LINES, _MOST_LINES = 8, 30


def as_text(value: Any) -> str:
    """Return a payload as text to be edited."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def area(text: str, help_: str, problem: str = "") -> Content:
    """Return the field `payload` with its label, and help below it."""
    return [
        tag("label", "Payload, as JSON", for_="payload"),
        _textarea(
            text,
            name="payload",
            aria_describedby="payload-help",
            aria_invalid="true" if problem else None,
        ),
        tag("p", help_, id="payload-help", class_="note"),
    ]


def written(text: str) -> Content:
    """Return what a person wrote in vain, so that it can be copied."""
    return [tag("label", "This is what you wrote:", for_="payload"), _textarea(text, readonly=True)]


def _textarea(text: str, **attributes: str | bool | None) -> Markup:
    return tag(
        "textarea",
        # A browser drops the first line break.
        "\n" + _valid(text),
        id="payload",
        rows=max(min(text.count("\n") + 3, _MOST_LINES), _FEWEST_LINES),
        spellcheck="false",
        **attributes,
    )


def _valid(text: str) -> str:
    r"""Return JSON with JSON's own escapes for the characters that `html.escape` would escape.

    >>> print(_valid('{"soft": "a\u00adb", "flag": "\U000e0067"}'))
    {"soft": "a\u00adb", "flag": "\udb40\udc67"}
    """
    if text.isprintable():
        return text
    return "".join(
        json.dumps(c)[1:-1] if c not in "\t\n" and not c.isprintable() and is_unsafe(c) else c
        for c in text
    )
