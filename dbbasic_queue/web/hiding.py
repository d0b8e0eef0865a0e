"""Members of payloads and results that nobody is to see, such as passwords.

A member is hidden if its name contains one of the words, whatever the case, and without the
characters `_`, `-`, `.` and space: "key" hides `apiKey`, `API_KEY` and `key`, and also `keyboard`.
"""

from __future__ import annotations

import json

from dbbasic_queue.model.jsontext import decode_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

WORDS = (
    "password",
    "passwd",
    "passphrase",
    "token",
    "secret",
    "key",
    "credential",
    "authorization",
    "cookie",
    "pickle",  # base64 of an object that may have secrets: see `dbbasic_queue.pickles`
)
HIDDEN = "hidden"
_IGNORED = str.maketrans("", "", "_-. ")


class Hiding:
    """Hides the members whose names contain one of the words."""

    def __init__(self, words: Iterable[str] = WORDS) -> None:
        if isinstance(words, str):
            raise ValueError(f"invalid hide {words!r}: must be a tuple of words")
        self._words = tuple(_plain(word) for word in words)

    def hides(self, name: str) -> bool:
        """Return whether a member of this name is hidden.

        >>> Hiding().hides("smtp_passWord"), Hiding(["pin"]).hides("token")
        (True, False)
        """
        plain = _plain(name)
        return any(word in plain for word in self._words)

    def _map(self, value: Any, change: Callable[[Any], Any]) -> Any:
        """Return a copy of a value in which `change` was applied to each hidden member."""
        if isinstance(value, dict):
            return {
                name: change(member) if self.hides(name) else self._map(member, change)
                for name, member in value.items()
            }
        if isinstance(value, list):
            return [self._map(item, change) for item in value]
        return value

    def shown(self, value: Any) -> Any:
        """Return a value for people to see.

        >>> Hiding().shown({"to": "ada", "smtp": [{"password": {"old": 1}}]})
        {'to': 'ada', 'smtp': [{'password': 'hidden'}]}
        """
        return self._map(value, lambda _: HIDDEN)

    def text(self, encoded: str, *, indent: int | None = None) -> str | None:
        """Return JSON text for people to see; None if it isn't JSON."""
        try:
            value = decode_json(encoded or "{}")
        except ValueError:
            return None
        return json.dumps(self.shown(value), ensure_ascii=False, indent=indent)

    def has(self, encoded: str, text: str) -> bool:
        """Return whether what is shown of JSON text contains a text.

        Otherwise a search would find out what is hidden.
        """
        if text not in encoded:  # quicker, and the other way round it can't be
            return False
        return text in (self.text(encoded) or "")

    def editable(self, value: Any) -> Any:
        """Return a value to be edited: each hidden member has a number.

        >>> Hiding().editable({"token": "a", "n": {"key": "b"}})
        {'token': 'hidden 1', 'n': {'key': 'hidden 2'}}
        """
        numbers: list[Any] = []

        def number(member: Any) -> str:
            numbers.append(member)
            return f"{HIDDEN} {len(numbers)}"

        return self._map(value, number)

    def edited(self, value: Any, before: Any) -> Any:
        """Return an edited value, in which numbers of hidden members stand for those in `before`.

        >>> Hiding().edited({"to": "ada", "token": "hidden 1"}, {"token": "a"})
        {'to': 'ada', 'token': 'a'}

        Raises ValueError if there is no such member.
        """
        members: list[Any] = []
        self._map(before, members.append)

        def restored(member: Any) -> Any:
            if not isinstance(member, str) or not member.startswith(f"{HIDDEN} "):
                return member
            number = member.removeprefix(f"{HIDDEN} ")
            if not (number.isascii() and number.isdecimal() and len(number) < 9):
                return member
            if not 0 < int(number) <= len(members):
                raise ValueError(f"nothing is hidden as {member!r}")
            return members[int(number) - 1]

        return self._map(value, restored)


def _plain(name: str) -> str:
    return name.translate(_IGNORED).lower()
