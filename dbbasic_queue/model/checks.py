"""Checks of ids, job types, times, durations and counts: an invalid value raises an error."""

from __future__ import annotations

import math

from dbbasic_queue.errors import InvalidArgument, InvalidHandlers, InvalidJob
from dbbasic_queue.model.escaping import escape
from dbbasic_queue.model.states import LATEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IN_AN_ID = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
_IN_A_TYPE = IN_AN_ID + ":"

ALL = "*"
"""Means all types in a list of paused types. No job type can have this name."""


def is_id(job_id: object) -> bool:
    """Return whether a job can have this id.

    >>> is_id("report-2027.01"), is_id("a b"), is_id("")
    (True, False, False)
    """
    if not isinstance(job_id, str) or not 0 < len(job_id) <= 64:
        return False
    return (job_id.isalnum() and job_id.isascii()) or not job_id.strip(IN_AN_ID)  # strip is slower


def check_id(job_id: str) -> str:
    """Return a new job's id as a plain str; raises InvalidJob if it isn't valid.

    Jobs that are already in the file may have an id that begins with "-".
    """
    if not is_id(job_id) or job_id[0] == "-":
        raise InvalidJob(
            f"invalid job_id {_shown(job_id)}: must be 1 to 64 characters from A-Z a-z 0-9 . _ - "
            'and must not begin with "-" (a command would read it as an option)'
        )
    return job_id if type(job_id) is str else _plain(job_id)


def check_once(job_id: object, exist_ok: object, unique: object) -> None:
    """Raise InvalidArgument unless these arguments of `enqueue` fit together."""
    if unique is not None and unique != "pending":
        raise InvalidArgument(f'invalid unique {_shown(unique)}: must be "pending" or None')
    if not isinstance(exist_ok, bool):
        raise InvalidArgument(f"invalid exist_ok {_shown(exist_ok)}: must be True or False")
    if unique is not None and (job_id is not None or exist_ok):
        raise InvalidArgument(
            'invalid unique "pending" with a job_id: a job is compared either by its id or by its '
            "type and payload (leave out one of them)"
        )
    if exist_ok and job_id is None:
        raise InvalidArgument(
            "invalid exist_ok without a job_id: only an id of your own can exist already "
            '(give a job_id, or use unique="pending")'
        )


def check_type(job_type: object) -> str:
    """Return `job_type` as a plain str; raises InvalidJob if it isn't valid."""
    if (  # true for most types; the full rule takes five times as long
        type(job_type) is str
        and job_type.isidentifier()
        and job_type.isascii()
        and len(job_type) <= 100
    ):
        return job_type
    if not isinstance(job_type, str) or not 0 < len(job_type) <= 100 or job_type.strip(_IN_A_TYPE):
        raise InvalidJob(
            f"invalid job type {_shown(job_type)}: must be 1 to 100 characters from "
            "A-Z a-z 0-9 _ . : -"
        )
    return job_type if type(job_type) is str else _plain(job_type)


def _plain(text: str) -> str:
    """Return an instance of a str subclass as a plain str; `str()` of an Enum returns its name."""
    return str.__str__(text)


def check_instant(instant: object, name: str = "run_at") -> int:
    """Return an instant in whole Unix seconds, rounded up; raises InvalidJob if it isn't valid.

    `instant` is Unix seconds, or a datetime with a time zone. `name` is for the error's message.

    >>> check_instant(1000.2)
    1001
    """
    if type(instant) is int:
        seconds: float = instant
    elif isinstance(instant, (int, float)) and not isinstance(instant, bool):
        seconds = float(instant) if isinstance(instant, float) else int(instant)
    else:
        seconds = _from_datetime(instant, name)
    if not 0 <= seconds <= LATEST:  # false for NaN too
        raise InvalidJob(
            f"invalid {name} {_shown(instant)}: must be between 0 and {LATEST} "
            "(Unix seconds; 1970 to 9999)"
        )
    return math.ceil(seconds)


def check_seconds(
    seconds: object,
    name: str,
    *,
    above: float | None = None,
    error: type[Exception] = InvalidArgument,
) -> float:
    """Return a duration in seconds; infinity is allowed, NaN isn't.

    `seconds` is a number, or a `timedelta`. Raises `error` unless it is 0 or more; if `above` is
    given, unless it is more than that. `name` is for the error. With `above=-math.inf`, negative
    numbers are valid, too.

    >>> from datetime import timedelta
    >>> check_seconds(timedelta(minutes=2), "timeout")
    120.0
    """
    total = getattr(seconds, "total_seconds", None)
    number = seconds if total is None else total()
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not (number >= 0 if above is None else number > above)
    ):
        rule = "0 or more" if above is None else f"more than {above}"
        rule = "" if above == -math.inf else f", {rule}"
        raise error(f"invalid {name} {_shown(seconds)}: must be seconds or a timedelta{rule}")
    return number


_SECONDS_PER = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_seconds(text: str) -> float:
    """Parse a duration with a unit; return its seconds. Raises ValueError for other text.

    >>> [parse_seconds(text) for text in ("90s", "15m", "1.5h", "30d")]
    [90.0, 900.0, 5400.0, 2592000.0]
    """
    try:
        number = float(text[:-1]) * _SECONDS_PER[text[-1:]]
    except (ValueError, KeyError):
        number = math.nan
    if " " in text or not 0 <= number < math.inf:
        raise ValueError(
            f"invalid duration {text!r}: must be a number with a unit, such as 90s, 15m, 12h or 30d"
        )
    return number


class CheckedClock:
    """A clock that raises InvalidJob for a time that no row can hold."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def __call__(self) -> float:
        now = self.clock()
        if not 0 <= now <= LATEST:  # false for NaN too
            raise InvalidJob(
                f"invalid time {_shown(now)} of the queue's clock: must be between 0 and {LATEST} "
                "(Unix seconds; 1970 to 9999)"
            )
        return now


def _from_datetime(instant: object, name: str) -> float:
    from datetime import datetime

    if not isinstance(instant, datetime):
        raise InvalidJob(
            f"invalid {name} {_shown(instant)}: must be Unix seconds (int or float) or a datetime "
            "with a time zone"
        )
    if instant.utcoffset() is None:
        raise InvalidJob(
            f"invalid {name} {_shown(instant)}: must have a time zone "
            "(use datetime.now(timezone.utc) or .astimezone())"
        )
    return instant.timestamp()


def _shown(value: object) -> str:
    """Return a value's `repr` for an error message: on one line, cut after 80 characters."""
    try:
        text = repr(value)
    except Exception as e:  # noqa: BLE001 - an int of 5,000 digits, or any class's own
        text = f"<{type(value).__name__}: {type(e).__name__}>"
    return escape(text if len(text) <= 80 else text[:77] + "...")


def check_count(count: object, name: str, error: type[Exception] = InvalidHandlers) -> None:
    """Raise `error` unless it is an int of 1 or more."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise error(f"invalid {name} {count!r}: must be an int of 1 or more")


LARGEST_AMOUNT = 10**15


def check_amount(number: object, name: str, *, above: int = -1) -> float:
    """Return a number as a plain int or float; raises InvalidArgument if it isn't valid.

    It must be above `above`, and at most 10**15. `name` is for the error's message.

    >>> check_amount(40, "done"), check_amount(0.5, "done")
    (40, 0.5)
    """
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not max(above, 0) <= number <= LARGEST_AMOUNT  # false for NaN too
        or number == above
    ):
        rule = "0 or more" if above < 0 else f"more than {above}"
        raise InvalidArgument(
            f"invalid {name} {_shown(number)}: must be a number, {rule}, at most 10**15"
        )
    return int(number) if isinstance(number, int) else float(number)


def check_text(text: object, name: str, most: int) -> str:
    """Return the first `most` characters of a str, escaped; raises InvalidArgument for others."""
    if not isinstance(text, str):
        raise InvalidArgument(f"invalid {name} {_shown(text)}: must be a str")
    return escape(_plain(text)[:most])
