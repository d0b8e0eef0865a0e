"""The traceback of a handler's exception, and its class, as the history holds them."""

from __future__ import annotations

from dbbasic_queue.handlers import Fail
from dbbasic_queue.model.escaping import escape, escape_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

MAX_TRACEBACK = 8192
"""bytes of UTF-8 that are kept of a traceback, after it is escaped"""
_MOST_CHARACTERS = 8000
_LONGEST_CLASS_PATH = 200
_UNNAMED = ("builtins", "__main__")
_LEFT_OUT = "\n  [... {} characters left out ...]\n"
_NOT_THE_HANDLERS = (
    "dbbasic_queue.passes.",
    "dbbasic_queue.handlers",
    "dbbasic_queue.commands",
    "dbbasic_queue.django.",
    "asyncio.",
)
"""how the names of modules begin whose frames come before the handler's"""


def format_traceback(error: BaseException) -> str:
    """Return an exception's traceback on one line, escaped; at most 8,192 bytes of UTF-8.

    It starts in the handler: the frames of the pass are left out. If it is too long, its middle is
    left out. Returns "" if formatting it raises, as `str(error)` may, and for the error of a
    command: it has no frames, and says nothing that the job's error doesn't.
    """
    from traceback import format_exception

    try:
        trace = _from_the_handler_on(error.__traceback__)
        if trace is None and type(error) in (Exception, Fail):
            return ""
        text = "".join(format_exception(type(error), error, trace)).rstrip("\n")
    except BaseException:  # noqa: BLE001 - whatever it is, the pass must go on
        return ""
    kept = _MOST_CHARACTERS
    while len((escaped := escape_lines(_shortened(text, kept))).encode()) > MAX_TRACEBACK:
        kept = kept * 3 // 4
    return escaped


def _from_the_handler_on(trace: TracebackType | None) -> TracebackType | None:
    """Skip the first frames, which are ours or the event loop's."""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if not module.startswith(_NOT_THE_HANDLERS):
            break
        trace = trace.tb_next
    return trace


def _shortened(text: str, most: int) -> str:
    """Cut text to `most` characters: a quarter from its beginning, the rest from its end."""
    if len(text) <= most:
        return text
    end = most * 3 // 4
    return text[: most - end] + _LEFT_OUT.format(len(text) - most) + text[-end:]


def class_path(error: BaseException) -> str:
    """Return the path of an exception's class, escaped: `smtplib.SMTPServerDisconnected`.

    As in a traceback, the modules `builtins` and `__main__` are left out. Returns "" if the class
    has no such path. It is cut after 200 characters.

    >>> class_path(ValueError()), class_path(UnicodeDecodeError("utf-8", b"", 0, 1, ""))
    ('ValueError', 'UnicodeDecodeError')
    """
    kind = type(error)
    try:
        module = kind.__module__
        path = kind.__qualname__ if module in _UNNAMED else f"{module}.{kind.__qualname__}"
        return escape(path[:_LONGEST_CLASS_PATH])
    except Exception:  # noqa: BLE001 - a metaclass may do anything; the pass must go on
        return ""
