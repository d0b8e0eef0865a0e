"""Schedules: what a program declares, and which instants follow from it. No clock, no file.

- An **instant** is a whole Unix second at which a schedule is due. Which instants a schedule has
  depends only on its expression and its time zone, never on when a pass has looked: so all passes
  agree, without any state.
- A cron expression is checked when it is declared, by the rules of `cronsim`, but without importing
  it: that would take longer than an idle pass. `cronsim` is imported only to compute instants: when
  one has come due, and when a schedule is new or was changed. `tests/test_schedules.py` compares
  the two checks.
- The instants of an interval are the whole multiples of it since 1970 (UTC).
"""

from __future__ import annotations

import math
import os

from dbbasic_queue.errors import InvalidHandlers, InvalidJob
from dbbasic_queue.model.checks import check_id, check_seconds, check_type
from dbbasic_queue.model.jsontext import MAX_PAYLOAD, encode_json
from dbbasic_queue.model.rows import new_row
from dbbasic_queue.model.states import LATEST
from dbbasic_queue.store.schedule_file import Change, ScheduleRow, job_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import datetime, timedelta, tzinfo
    from typing import Any, Literal

    Missed = Literal["once", "skip", "all"]

MISSED = ("once", "skip", "all")
LOCAL = "local"
"""the time zone of the machine, as cron sees it: `TZ`, or otherwise /etc/localtime"""
LONGEST_NAME = 47
"""characters of a name, so that an instant fits behind it into an id of 64"""
SKIPPED_AFTER_SECONDS = 300
"""how late a pass still adds an instant with `missed="skip"`"""
MOST_MISSED = 1000
"""how many missed instants `missed="all"` adds at most: the latest ones"""

_FIELDS = (
    ("second", range(60)),
    ("minute", range(60)),
    ("hour", range(24)),
    ("day of the month", range(1, 32)),
    ("month", range(1, 13)),
    ("day of the week", range(8)),
)
_DAY, _MONTH, _WEEKDAY = 3, 4, 5
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_NAMES = {_MONTH: ("", *_MONTHS), _WEEKDAY: _WEEKDAYS}
_LONGEST_MONTH = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_LAST = -1
"""the day `L` or `LW` of a month: every month has one"""
_FIRST_WINDOW_SECONDS = 3600
_ZONE_DIRECTORIES = ("/usr/share/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo")


class Schedule:
    """One declared schedule. Raises InvalidHandlers for an invalid argument.

    `every` is a cron expression, or an interval: whole seconds, or a `timedelta`, of at least 1 s.
    `timezone` is an IANA name such as `Europe/Berlin`, or `local`, the machine's; only for
    expressions. `missed` says which instants are added if no pass ran at their time: "once", only
    the latest; "skip", the latest if it is at most 5 minutes ago; "all", the latest 1,000. Without
    `overlap`, no job is added while the previous one is pending or running.
    """

    __slots__ = (
        "expression",
        "missed",
        "name",
        "overlap",
        "payload",
        "seconds",
        "timezone",
        "type",
    )

    def __init__(
        self,
        every: str | float | timedelta,
        job_type: str,
        payload: Any = None,
        *,
        name: str | None = None,
        timezone: str | None = None,
        missed: Missed = "once",
        overlap: bool = True,
    ) -> None:
        try:
            self.type = check_type(job_type)
            self.payload = "{}" if payload is None else encode_json(payload, MAX_PAYLOAD)
        except InvalidJob as e:
            raise InvalidHandlers(str(e)) from None
        except ValueError as e:
            raise InvalidHandlers(f"invalid payload of a schedule: {e}") from e
        self.name = _check_name(name, self.type)
        self.seconds = 0
        """the interval; 0 for a cron expression"""
        if isinstance(every, str):
            self.expression = check_expression(every)
            self.timezone = LOCAL if timezone is None else check_timezone(timezone)
        else:
            self.seconds = _check_interval(every)
            self.expression, self.timezone = f"{self.seconds}s", ""
            if timezone is not None:
                raise InvalidHandlers(
                    f"invalid timezone {timezone!r}: an interval has none, as it counts the "
                    'seconds since 1970 (for a time of day, give an expression such as "0 3 * * *")'
                )
        if missed not in MISSED:
            raise InvalidHandlers(f"invalid missed {missed!r}: must be one of {', '.join(MISSED)}")
        if not isinstance(overlap, bool):
            raise InvalidHandlers(f"invalid overlap {overlap!r}: must be True or False")
        if missed == "all" and not overlap:
            raise InvalidHandlers(
                'invalid schedule: missed="all" adds several jobs at once, and overlap=False only '
                "one (leave out one of the two)"
            )
        self.missed = missed
        self.overlap = overlap

    def __repr__(self) -> str:
        zone = f" {self.timezone}" if self.timezone else ""
        return f"<Schedule {self.name}: {self.expression}{zone}, {self.type}>"


# -- checks, when a schedule is declared -----------------------------------------------------------


def _check_name(name: str | None, job_type: str) -> str:
    given = job_type if name is None else name
    try:
        if len(given) <= LONGEST_NAME:
            return check_id(given)
    except (InvalidJob, TypeError):
        pass
    advice = " (give the schedule another one)" if name is None else ""
    raise InvalidHandlers(
        f"invalid name {given!r} of a schedule: must be 1 to {LONGEST_NAME} characters from "
        f'A-Z a-z 0-9 . _ - and must not begin with "-"{advice}'
    )


def _check_interval(every: object) -> int:
    seconds = check_seconds(every, "every", error=InvalidHandlers)
    if not 1 <= seconds <= LATEST or seconds != math.floor(seconds):
        raise InvalidHandlers(
            f"invalid every {every!r}: must be whole seconds, at least 1 s and not infinite"
        )
    return int(seconds)


def check_timezone(name: object) -> str:
    """Return the name of a time zone; raises InvalidHandlers if this machine doesn't know it.

    The usual places are looked at first, because importing `zoneinfo` takes longer than that.
    """
    if name in (LOCAL, "UTC"):
        return str(name)
    if isinstance(name, str) and name and name[0] != "/" and ".." not in name.split("/"):
        for directory in _ZONE_DIRECTORIES:
            try:
                with open(os.path.join(directory, name), "rb") as file:
                    if file.read(4) == b"TZif":
                        return name
            except (OSError, ValueError):
                pass
    _zone(name)
    return str(name)


def check_expression(text: str) -> str:
    """Return a cron expression with single spaces; raises InvalidHandlers if it isn't valid.

    >>> check_expression("*/15  8-17 * * mon-fri")
    '*/15 8-17 * * mon-fri'
    """
    expression = " ".join(text.split())
    parts = text.upper().split()
    try:
        if len(parts) not in (5, 6):
            raise ValueError(
                "must have 5 fields (minute, hour, day of the month, month, day of the week) or, "
                "with seconds first, 6"
            )
        first = 6 - len(parts)
        values = dict(enumerate((_values(n, part) for n, part in enumerate(parts, first)), first))
        days, months = values[_DAY], values[_MONTH]
        both = parts[-3].startswith("*") or parts[-1].startswith("*")
        if both and min(days) > max(_LONGEST_MONTH[month] for month in months):
            raise ValueError("these months don't have that day")
    except ValueError as e:
        raise InvalidHandlers(f"invalid schedule {text!r}: {e}") from None
    return expression


def _values(field: int, text: str) -> set[int]:
    """Return the values that a field's text allows; for days of the week, not all of them.

    Raises ValueError for the texts that cronsim's `Field.parse` refuses.
    """
    name, allowed = _FIELDS[field]
    if text == "*":
        return set(allowed)
    if "," in text:
        return {value for term in text.split(",") for value in _values(field, term)}
    if field == _WEEKDAY and "L" in text:
        return {_number(field, text[:-1])}
    if field == _WEEKDAY and "#" in text:
        term, _, nth = text.partition("#")
        if not _is_number(nth) or not 1 <= int(nth) <= 5:
            raise ValueError(f"the {name} {text!r} must have a number from 1 to 5 after the #")
        return {_value(field, term)}
    if "/" in text:
        term, _, step = text.partition("/")
        if not _is_number(step) or not int(step):
            raise ValueError(f"the {name} {text!r} must have a number from 1 after the /")
        values = sorted(_values(field, term))
        if values == [_LAST]:
            return {_LAST}
        if len(values) == 1:
            values = list(range(values[0], max(allowed) + 1))
        return set(values[:: int(step)])
    if "-" in text:
        first, _, last = text.partition("-")
        start, end = _value(field, first), _value(field, last)
        if end < start:
            raise ValueError(f"the {name} {text!r} ends before it begins")
        return set(range(start, end + 1))
    if field == _DAY and text in ("L", "LW"):
        return {_LAST}
    return {_value(field, text)}


def _value(field: int, text: str) -> int:
    names = _NAMES.get(field, ())
    return names.index(text) if text and text in names else _number(field, text)


def _number(field: int, text: str) -> int:
    name, allowed = _FIELDS[field]
    if not _is_number(text) or int(text) not in allowed:
        raise ValueError(f"the {name} {text!r} must be from {allowed[0]} to {allowed[-1]}")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


# -- instants --------------------------------------------------------------------------------------


def first_after(schedule: Schedule, after: float) -> int:
    """Return the first instant after `after`, in Unix seconds.

    Raises InvalidHandlers if there is none within 50 years, or if the instants can't be computed.
    """
    for instant in _instants(schedule, after):
        return instant
    raise InvalidHandlers(
        f"invalid schedule {schedule.expression!r}: it has no instant in the next 50 years"
    )


def due_instants(schedule: Schedule, start: int, now: float) -> list[int]:
    """Return the instants from `start` to `now` that `missed` asks for, the earliest first."""
    most = MOST_MISSED if schedule.missed == "all" else 1
    window = _FIRST_WINDOW_SECONDS
    # Look back step by step: after a long outage, only the latest instants are wanted.
    while True:
        after = max(start - 1, math.floor(now) - window)
        found: list[int] = []
        for instant in _instants(schedule, after):
            if instant > now:
                break
            found.append(instant)
        if len(found) >= most or after == start - 1:
            break
        window *= 4
    if schedule.missed == "skip":
        found = [instant for instant in found if now - instant <= SKIPPED_AFTER_SECONDS]
    return found[-most:]


def _instants(schedule: Schedule, after: float) -> Iterator[int]:
    """Yield the instants after `after`, in order."""
    seconds = schedule.seconds
    if not seconds:
        return _by_expression(schedule.expression, schedule.timezone, math.floor(after))
    return iter(range((math.floor(after) // seconds + 1) * seconds, LATEST + 1, seconds))


def _by_expression(expression: str, timezone: str, after: int) -> Iterator[int]:
    from datetime import datetime

    try:
        from cronsim import CronSim
    except ImportError as e:
        raise InvalidHandlers(
            f"schedule {expression!r} needs the package cronsim: "
            'pip install "dbbasic-queue[schedule]"'
        ) from e

    try:
        for moment in CronSim(expression, datetime.fromtimestamp(after, _zone(timezone))):
            instant = int(moment.timestamp())
            # In the hour that is repeated in autumn, it also finds times of the first time round.
            if instant > after:
                after = instant
                yield instant
    except (OverflowError, ValueError):  # after the year 9999
        return


def _zone(name: object) -> tzinfo:
    """Return a time zone; raises InvalidHandlers if this machine doesn't know it."""
    if name == "UTC":
        from datetime import UTC

        return UTC
    if name == LOCAL:
        return _local_zone()
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)  # type: ignore[arg-type] # the error is for whatever it is
    except Exception as e:
        raise InvalidHandlers(
            f"invalid timezone {name!r}: must be {LOCAL!r} or a name that this machine knows, such "
            'as "Europe/Berlin" (without tzdata on the machine: pip install tzdata)'
        ) from e


def _local_zone() -> tzinfo:
    """Return the machine's time zone, with its past and future changes, as the C library knows it.

    A program can't get its IANA name everywhere, and `datetime.astimezone` only knows one offset.
    """
    from datetime import UTC, datetime, tzinfo

    class Local(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta:
            assert moment is not None
            naive = moment.replace(tzinfo=None)
            in_utc = datetime.fromtimestamp(naive.timestamp(), UTC).replace(tzinfo=None)
            return naive.replace(fold=0) - in_utc

        def fromutc(self, moment: datetime) -> datetime:
            seconds = moment.replace(tzinfo=UTC).timestamp()
            return datetime.fromtimestamp(seconds).replace(tzinfo=self)

        def dst(self, moment: datetime | None) -> timedelta | None:
            return None

        def tzname(self, moment: datetime | None) -> str:
            return LOCAL

    return Local()


# -- what a pass has to do -------------------------------------------------------------------------


def changes(
    declared: Mapping[str, Schedule],
    program: str,
    rows: Mapping[str, ScheduleRow],
    now: float,
    *,
    undeclared: Collection[str] = (),
    only_due: bool = False,
) -> list[Change]:
    """Return what has to be changed, given the rows of the file; nothing if no instant is due.

    A new or changed schedule starts with its first instant after `now`, so nothing is made up for;
    nor is an instant added again that was added before the clock was set back. The schedules of
    `program` that are `undeclared` are removed. With `only_due`, rows that differ from their
    declaration are left alone: a newer version of the program may have changed them.

    Raises InvalidHandlers if a name belongs to another program, or if instants can't be computed.
    """
    found = []
    for schedule in declared.values():
        row = rows.get(schedule.name)
        if row is not None and row.program != program and not only_due:
            raise InvalidHandlers(
                f"schedule {schedule.name!r} belongs to the program {row.program}: give one of the "
                "two another name (or, if that program is gone, remove its schedule: "
                f"dbbasic-queue schedules --remove {schedule.name})"
            )
        change = _change(schedule, program, row, now, only_due=only_due)
        if change is not None:
            found.append(change)
    found += [Change(name, None) for name in undeclared if name in rows]
    return found


def _change(
    schedule: Schedule, program: str, row: ScheduleRow | None, now: float, *, only_due: bool
) -> Change | None:
    name, rule = schedule.name, (schedule.expression, schedule.timezone)
    last = None if row is None else row.last
    is_same = row is not None and (row.expression, row.timezone) == rule
    if row is not None and only_due and (not is_same or row.program != program):
        return None
    if row is None or not is_same:
        following = first_after(schedule, now if last is None else max(now, last))
        return Change(name, ScheduleRow(name, program, schedule.type, *rule, last, following))
    instants: list[int] = []
    following = row.next
    if row.next <= now:
        instants = due_instants(schedule, row.next, now)
        following = first_after(schedule, now)
    elif row.type == schedule.type:
        return None
    new = ScheduleRow(name, program, schedule.type, *rule, last, following)
    jobs = [
        (at, new_row(job_id(name, at), schedule.type, schedule.payload, int(now), at))
        for at in instants
    ]
    return Change(name, new, jobs, overlap=schedule.overlap)
