"""What a check has found."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal

    Level = Literal["ok", "note", "warning", "wrong"]

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "wrong")
"""the worst last; a note is something that can't be checked here"""


class Finding:
    """One fact about a queue.

    `level`   ok, note, warning or wrong
    `name`    what was found, in a word for programs, such as `world-writable`
    `text`    a sentence
    `remedy`  what to do, mostly a command; "" if nothing
    `repair`  does that, and returns what it has done; None if it isn't safe without a person
    """

    __slots__ = ("level", "name", "remedy", "repair", "text")

    def __init__(
        self,
        level: Level,
        name: str,
        text: str,
        remedy: str = "",
        repair: Callable[[], str] | None = None,
    ) -> None:
        self.level = level
        self.name = name
        self.text = text
        self.remedy = remedy
        self.repair = repair

    def as_dict(self) -> dict[str, Any]:
        """Return all but the function."""
        return {
            "level": self.level,
            "name": self.name,
            "text": self.text,
            "remedy": self.remedy or None,
            "can_repair": self.repair is not None,
        }
