"""The traceback of what a handler raised, as the history holds it."""

from __future__ import annotations

from dbbasic_queue.text import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

MAX_TRACEBACK = 8192
_MOST_CHARACTERS = 8000
_MANY_FRAMES = 30
_LEFT_OUT = "\n  [... {} characters are left out ...]\n"
_OURS = frozenset(
    f"dbbasic_queue.{name}" for name in ("attempt", "child", "event_loop", "handlers")
)


def format_traceback(error: BaseException) -> str:
    """Return an exception's traceback on one line, escaped; at most 8,192 bytes of UTF-8.

    It begins where the handler does: how the pass got there is left out. Of a longer one the middle
    is left out. Empty where it cannot be had: the text of an exception may raise another.
    """
    try:
        text = "".join(_lines(error, _from_the_handler_on(error.__traceback__))).rstrip("\n")
    except BaseException:  # noqa: BLE001 - whatever it is, the pass must go on
        return ""
    kept = _MOST_CHARACTERS
    while len((escaped := _escape_lines(_shortened(text, kept))).encode()) > MAX_TRACEBACK:
        kept = kept * 3 // 4
    return escaped


def _from_the_handler_on(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the first frames, which are ours or the event loop's."""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module not in _OURS and not module.startswith("asyncio."):
            break
        trace = trace.tb_next
    return trace


def _lines(error: BaseException, trace: TracebackType | None) -> list[str]:
    """Return what `traceback` makes of it, in a plain case at a tenth of the cost.

    Most of that goes into the marks below a line, which are left out then.
    """
    from linecache import getline
    from traceback import format_exception, format_exception_only

    lines = ["Traceback (most recent call last):\n"] if trace else []
    at = trace
    while at is not None and len(lines) <= _MANY_FRAMES:
        frame, code = at.tb_frame, at.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {at.tb_lineno}, in {code.co_name}\n')
        if source := getline(code.co_filename, at.tb_lineno, frame.f_globals).strip():
            lines[-1] += f"    {source}\n"
        at = at.tb_next
    is_plain = error.__cause__ is None and error.__context__ is None
    if at is not None or not is_plain or hasattr(error, "exceptions"):
        return format_exception(type(error), error, trace)
    return lines + format_exception_only(type(error), error)


def _shortened(text: str, most: int) -> str:
    """Return the beginning and, since that says most, three times as much of the end."""
    if len(text) <= most:
        return text
    end = most * 3 // 4
    return text[: most - end] + _LEFT_OUT.format(len(text) - most) + text[-end:]


def _escape_lines(text: str) -> str:
    return r"\n".join([escape(line) for line in text.split("\n")])
