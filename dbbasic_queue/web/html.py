"""HTML that is safe by construction: every text is escaped, only `Markup` isn't.

Control and format characters, such as those that reverse the direction of text, are shown as
escapes: no value can make a page look like something it isn't.
"""

from __future__ import annotations

from dbbasic_queue.model.escaping import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    Content: TypeAlias = "Markup | str | int | Iterable[Content] | None"
    """What an element can contain; None is nothing."""
    Value: TypeAlias = "str | int | float | bool | None"
    """An attribute's value: True is one without a value, False and None leave it out."""

_VOID = frozenset(("input", "meta", "link", "br", "hr"))
_ADDRESSES = frozenset(("href", "action", "src"))
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})


class Markup:
    """HTML that was built here. It has no other source than `tag`, `join` and `doctype`."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Markup({self.text!r})"


def escape(text: str) -> str:
    r"""Return a text as HTML: with entities, and with control characters as escapes.

    >>> escape("<b>\x1b[31m & 'q'")
    '&lt;b&gt;\\x1b[31m &amp; &#39;q&#39;'
    >>> escape("one\n\ttwo")
    'one\n\ttwo'
    """
    if not text.isprintable():
        text = "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
    return text.translate(_ENTITIES)


def join(*content: Content) -> Markup:
    """Return several contents, one after the other.

    >>> join("a<", None, [tag("b", 1), "c"]).text
    'a&lt;<b>1</b>c'
    """
    return Markup("".join(_parts(content)))


def _parts(content: Iterable[Content]) -> Iterable[str]:
    for part in content:
        if isinstance(part, Markup):
            yield part.text
        elif isinstance(part, str):
            yield escape(part)
        elif isinstance(part, int):
            yield str(part)
        elif part is not None:
            yield from _parts(part)


def tag(name: str, /, *content: Content, **attributes: Value) -> Markup:
    """Return an element. A `_` at the end of an attribute's name is left out, others are `-`.

    >>> tag("a", "<3", href="/jobs?a=1&b=2", class_="x", hidden=True, title=None).text
    '<a href="/jobs?a=1&amp;b=2" class="x" hidden>&lt;3</a>'
    >>> tag("input", name="id").text
    '<input name="id">'

    Raises ValueError for an address that leads away from this page, such as `javascript:`.
    """
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{''.join(_parts(content))}</{name}>")


def _attribute(key: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = str(value)
    if name in _ADDRESSES and (text[:1] not in ("/", "?", "#") or text[:2] in ("//", "/\\")):
        raise ValueError(f"invalid address {text!r}: must be a path on this server")
    return f' {name}="{escape(text)}"'


def document(root: Markup) -> bytes:
    """Return a whole page as bytes, given its `html` element."""
    return b"<!DOCTYPE html>\n" + root.text.encode()
