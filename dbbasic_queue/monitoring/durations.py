"""Durations, instants and numbers as text for people."""

from __future__ import annotations

import math
import time

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_DAYS_AS_DATE = 30


def duration(seconds: float, *, units: int = 2) -> str:
    """Return a duration as text in its largest unit, or two below a factor of ten.

    With 1 as `units`, in its largest unit only.

    >>> [duration(s) for s in (0.2, 59, 60, 3700, 90_000, 864_000)]
    ['0 s', '59 s', '1 min', '1 h 1 min', '1 d 1 h', '10 d']
    """
    left = max(int(seconds), 0)
    for place, (unit, size) in enumerate(_UNITS):
        count = left // size
        if not count:
            continue
        text = f"{count} {unit}"
        if units > 1 and count < 10 and place + 1 < len(_UNITS):
            smaller, smaller_size = _UNITS[place + 1]
            rest = left % size // smaller_size
            return f"{text} {rest} {smaller}" if rest else text
        return text
    return "0 s"


def took(seconds: float | None) -> str:
    """Return how long an attempt ran as text, a dash if that is unknown.

    >>> took(0.25), took(75), took(None)
    ('0.25 s', '1 min 15 s', '-')
    """
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds < 10 else duration(seconds)


def rule(expression: str) -> str:
    """Return when a schedule's jobs are due: a cron expression, or an interval for a person.

    >>> rule("0 3 * * *"), rule("259200s"), rule("5400s")
    ('0 3 * * *', 'every 3 d', 'every 1 h 30 min')
    """
    seconds = expression.removesuffix("s")
    return f"every {duration(int(seconds))}" if seconds.isdigit() else expression


def ago(seconds: float, *, units: int = 2) -> str:
    """Return how long ago something was, or in how long it will be if `seconds` is below 0.

    `units` is as in `duration`.

    >>> ago(200), ago(-200), ago(0.4)
    ('3 min 20 s ago', 'in 3 min 20 s', 'just now')
    >>> ago(-0.0004)  # the end of an attempt or a pass is rounded to a millisecond
    'just now'
    """
    if -0.001 < seconds < 1:
        return "just now"
    if seconds < 0:
        return f"in {duration(math.ceil(-seconds), units=units)}"
    return f"{duration(seconds, units=units)} ago"


def relative(at: float, now: float, *, units: int = 2) -> str:
    """Return an instant as text for people: relative to now, or a date if that is far away.

    `units` is as in `duration`: 1 for the rows of a table.

    >>> relative(1_800_000_000, 1_800_000_090), relative(1_800_000_000, 1_800_000_090, units=1)
    ('1 min 30 s ago', '1 min ago')
    """
    if abs(now - at) > _DAYS_AS_DATE * 86400:
        return time.strftime("%Y-%m-%d", time.localtime(at))
    return ago(now - at, units=units)


def instant(at: float) -> str:
    """Return an instant in Unix seconds as text: in UTC, rounded down to a second.

    >>> instant(1_800_000_000)
    '2027-01-15T08:00:00Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def number_of(count: int, one: str, many: str) -> str:
    """Return a number with its noun.

    >>> number_of(1, "job is due", "jobs are due"), number_of(1200, "job", "jobs")
    ('1 job is due', '1,200 jobs')
    """
    return f"{count:,} {one if count == 1 else many}"
