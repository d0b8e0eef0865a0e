"""Schedules as they are declared, and the instants that follow from them."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError
from helpers import Programs, python
from hypothesis import example, given
from hypothesis import strategies as st

from dbbasic_queue import Handlers, InvalidHandlers
from dbbasic_queue.schedules import (
    MOST_MISSED,
    Schedule,
    check_expression,
    due_instants,
    first_after,
)

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC") -> int:
    """Return a local time as Unix seconds; the first one if it occurs twice."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


def times(every: Any, start: str, end: str, timezone: str = BERLIN) -> list[str]:
    """Return a schedule's instants from `start` to `end`, all local, with their UTC offsets."""
    schedule = Schedule(every, "work", timezone=timezone)
    zone, last = ZoneInfo(timezone), at(end, timezone)
    found = []
    instant = first_after(schedule, at(start, timezone) - 1)
    while instant <= last:
        found.append(datetime.fromtimestamp(instant, zone).strftime("%d %H:%M%z"))
        instant = first_after(schedule, instant)
    return found


# -- daylight saving, as Debian's cron handles it (cron(8), "daylight saving time") ----------------
# In Berlin, 02:00 becomes 03:00 on 28 March 2027, and 03:00 becomes 02:00 on 31 October 2027.


def test_a_job_at_a_fixed_time_in_the_hour_that_is_skipped_runs_right_after_it() -> None:
    found = times("30 2 * * *", "2027-03-27 00:00", "2027-03-29 23:59")
    assert found == ["27 02:30+0100", "28 03:00+0200", "29 02:30+0200"]


def test_several_fixed_times_in_the_skipped_hour_run_once_right_after_it() -> None:
    found = times("10,30,50 2 * * *", "2027-03-28 00:00", "2027-03-28 23:59")
    assert found == ["28 03:00+0200"]


def test_a_job_at_a_fixed_time_in_the_hour_that_is_repeated_runs_only_the_first_time() -> None:
    found = times("30 2 * * *", "2027-10-30 00:00", "2027-11-01 23:59")
    assert found == ["30 02:30+0200", "31 02:30+0200", "01 02:30+0100"]


def test_a_job_with_a_wildcard_hour_runs_by_real_time_when_an_hour_is_skipped() -> None:
    found = times("30 * * * *", "2027-03-28 01:00", "2027-03-28 04:59")
    assert found == ["28 01:30+0100", "28 03:30+0200", "28 04:30+0200"]


def test_a_job_with_a_wildcard_hour_runs_by_real_time_when_an_hour_is_repeated() -> None:
    found = times("30 * * * *", "2027-10-31 01:00", "2027-10-31 03:59")
    assert found == ["31 01:30+0200", "31 02:30+0200", "31 02:30+0100", "31 03:30+0100"]


def test_a_job_with_a_wildcard_minute_counts_as_one_by_real_time() -> None:
    assert times("*/30 2 * * *", "2027-03-28 00:00", "2027-03-28 23:59") == []
    found = times("*/30 2 * * *", "2027-10-31 00:00", "2027-10-31 23:59")
    assert found == ["31 02:00+0200", "31 02:30+0200", "31 02:00+0100", "31 02:30+0100"]


def test_a_job_at_a_fixed_time_outside_of_the_change_keeps_its_local_time() -> None:
    found = times("0 3 * * *", "2027-03-27 00:00", "2027-03-29 23:59")
    assert found == ["27 03:00+0100", "28 03:00+0200", "29 03:00+0200"]


# -- instants --------------------------------------------------------------------------------------


@pytest.mark.parametrize("day", ["2027-03-28", "2027-10-31", "2027-06-01"])
@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "0,15,59 1-3 * * *", "*/7 * * * *", "10 */2 * * *", "5 2 * * sun"]
)
def test_the_instants_are_the_same_wherever_the_search_begins(day: str, expression: str) -> None:
    schedule = Schedule(expression, "work", timezone=BERLIN)
    start, end = at(day + " 00:00", BERLIN), at(day + " 06:00", BERLIN)
    found = []
    instant = first_after(schedule, start)
    while instant <= end:
        found.append(instant)
        instant = first_after(schedule, instant)
    for begin in range(start, end, 150):
        following = [instant for instant in found if instant > begin]
        if following:
            assert first_after(schedule, begin) == following[0]
            assert first_after(schedule, begin + 0.5) == following[0]


def test_an_interval_counts_whole_multiples_since_1970() -> None:
    schedule = Schedule(timedelta(minutes=5), "work")
    assert first_after(schedule, 0) == 300
    assert first_after(schedule, 299.9) == 300
    assert first_after(schedule, 300) == 600
    assert Schedule(7, "work").expression == "7s"
    assert first_after(Schedule(7, "work"), 1_800_000_000.5) % 7 == 0


def test_missed_once_is_only_the_latest_instant_however_long_the_outage() -> None:
    schedule = Schedule("* * * * *", "work", timezone="UTC")
    started = time.process_time()
    assert due_instants(schedule, 60, 1_800_000_059) == [1_800_000_000]
    assert time.process_time() - started < 1
    assert due_instants(Schedule(1, "work"), 60, 1_800_000_059.5) == [1_800_000_059]


def test_missed_skip_is_the_latest_instant_if_it_is_at_most_five_minutes_ago() -> None:
    schedule = Schedule("0 * * * *", "work", timezone="UTC", missed="skip")
    hour = 1_800_000_000
    assert due_instants(schedule, hour - 7200, hour + 300) == [hour]
    assert due_instants(schedule, hour - 7200, hour + 301) == []
    often = Schedule("* * * * *", "work", timezone="UTC", missed="skip")
    assert due_instants(often, hour - 7200, hour + 200) == [hour + 180]


@pytest.mark.parametrize("every", ["* * * * *", 60])
def test_missed_all_is_every_instant_but_at_most_the_latest_thousand(every: Any) -> None:
    schedule = Schedule(every, "work", timezone="UTC" if every != 60 else None, missed="all")
    now = 1_800_000_030
    assert due_instants(schedule, now - 30 - 180, now) == [now - 30 - n * 60 for n in (3, 2, 1, 0)]
    found = due_instants(schedule, 60, now)
    assert len(found) == MOST_MISSED
    assert (found[0], found[-1]) == (now - 30 - 999 * 60, now - 30)


def test_local_is_the_time_zone_of_the_machine_with_its_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local, berlin = Schedule("30 2 * * *", "a"), Schedule("30 2 * * *", "a", timezone=BERLIN)
    by_hour = Schedule("30 * * * *", "a"), Schedule("30 * * * *", "a", timezone=BERLIN)
    assert local.timezone == "local"
    monkeypatch.setenv("TZ", BERLIN)
    time.tzset()
    try:
        for start in (at("2027-03-27 12:00"), at("2027-10-30 12:00"), at("2027-10-31 00:10")):
            now = start
            for _ in range(30):
                assert first_after(local, now) == first_after(berlin, now)
                assert first_after(by_hour[0], now) == (now := first_after(by_hour[1], now))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_expression_without_any_instant_is_an_error_that_says_so() -> None:
    schedule = Schedule("0 0 */31 2 MON#5", "work", timezone="UTC")
    with pytest.raises(InvalidHandlers, match="no instant in the next 50 years"):
        first_after(schedule, 1_800_000_000)


# -- checks when it is declared --------------------------------------------------------------------


TEXTS = (
    "* */5 */0 0 1 2 5 7 8 29 30 31 59 60 L LW 5L L5 LL MON SUN JAN DEC XYZ MON#2 1#5 1#6 5#0 # / -"
    " 1-5 5-1 1-5/2 MON-FRI JAN-MAR */15 1/7 , 1,2 1,,2 ,1 L/2 LW/2 1/2/3 1-2-3 ² 01 +1 2,MON L,30"
    " 100 1/100 6-7 */31 30,31"
)
FIELDS = st.lists(
    st.sampled_from(TEXTS.split()) | st.text("0123456789*/,-#LWJANMO", max_size=6),
    min_size=4,
    max_size=7,
)


def is_valid(check: Any) -> bool:
    try:
        check()
    except (CronSimError, InvalidHandlers):
        return False
    return True


@given(FIELDS)
@example(["0", "0", "30", "2", "*"])
@example(["0", "0", "30", "2", "1"])
@example(["0", "0", "31", "4,6", "*"])
@example(["0", "0", "L", "2", "*"])
@example(["0", "0", "*", "*", "7"])
def test_an_expression_is_accepted_exactly_if_cronsim_accepts_it(parts: list[str]) -> None:
    text = " ".join(parts)
    now = datetime(2027, 1, 1, tzinfo=UTC)
    assert is_valid(lambda: check_expression(text)) == is_valid(lambda: CronSim(text, now)), text


@pytest.mark.parametrize(
    ("every", "reason"),
    [
        ("0 3 * *", "must have 5 fields"),
        ("61 3 * * *", "the minute '61' must be from 0 to 59"),
        ("0 24 * * *", "the hour '24' must be from 0 to 23"),
        ("0 3 0 * *", "the day of the month '0' must be from 1 to 31"),
        ("0 3 * MAI *", "the month 'MAI' must be from 1 to 12"),
        ("0 3 * * fri-mon", "the day of the week 'FRI-MON' ends before it begins"),
        ("*/0 3 * * *", "must have a number from 1 after the /"),
        ("0 3 * * 1#6", "must have a number from 1 to 5 after the #"),
        ("0 3 30 2 *", "these months don't have that day"),
        ("@daily", "must have 5 fields"),
        (0.5, "must be whole seconds, at least 1 s"),
        (timedelta(0), "must be whole seconds, at least 1 s"),
        (1.5, "must be whole seconds, at least 1 s"),
        (math.inf, "must be whole seconds, at least 1 s"),
        (-5, "must be seconds or a timedelta, 0 or more"),
        (True, "must be seconds or a timedelta"),
        (None, "must be seconds or a timedelta"),
    ],
)
def test_an_invalid_expression_or_interval_is_refused_with_the_reason(
    every: Any, reason: str
) -> None:
    jobs = Handlers()
    with pytest.raises(InvalidHandlers) as caught:
        jobs.every(every, "work")
    assert reason in str(caught.value)
    assert jobs.schedules == {}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"timezone": "Europe/Berlln"}, "invalid timezone 'Europe/Berlln'"),
        ({"timezone": "Europe"}, "invalid timezone"),
        ({"timezone": "../zone.tab"}, "invalid timezone"),
        ({"timezone": "zone.tab"}, "invalid timezone"),
        ({"timezone": ""}, "invalid timezone"),
        ({"timezone": 5}, "invalid timezone"),
        ({"missed": "never"}, "must be one of once, skip, all"),
        ({"missed": "all", "overlap": False}, "leave out one of the two"),
        ({"overlap": "no"}, "must be True or False"),
        ({"name": "a b"}, "must be 1 to 47 characters"),
        ({"name": "x" * 48}, "must be 1 to 47 characters"),
        ({"name": "-x"}, "must be 1 to 47 characters"),
        ({"name": ""}, "must be 1 to 47 characters"),
        ({"name": 7}, "must be 1 to 47 characters"),
        ({"payload": {1: 2}}, "invalid payload of a schedule"),
        ({"payload": "x" * 1_100_000}, "at most 1048576 are allowed"),
    ],
)
def test_an_invalid_option_is_refused_with_the_reason(options: dict[str, Any], reason: str) -> None:
    jobs = Handlers()
    with pytest.raises(InvalidHandlers) as caught:
        jobs.every("0 3 * * *", "work", **options)
    assert reason in str(caught.value)
    assert jobs.schedules == {}


def test_an_interval_has_no_time_zone() -> None:
    with pytest.raises(InvalidHandlers, match="an interval has none"):
        Handlers().every(60, "work", timezone="UTC")


@pytest.mark.parametrize("job_type", ["reports:nightly", "r" * 48])
def test_a_type_that_cannot_be_a_name_needs_one(job_type: str) -> None:
    jobs = Handlers()
    with pytest.raises(InvalidHandlers, match="give the schedule another one"):
        jobs.every(60, job_type)
    jobs.every(60, job_type, name="nightly")
    assert jobs.schedules["nightly"].type == job_type


def test_a_handler_declares_its_own_schedule() -> None:
    jobs = Handlers()

    @jobs.handler(every="0 3 * * *", timezone=BERLIN, missed="skip", overlap=False)
    def report(payload: Any) -> None: ...

    @jobs.handler("a:b", every=60, schedule_name="short")
    def other(payload: Any) -> None: ...

    found = jobs.schedules["report"]
    assert (found.type, found.expression, found.timezone) == ("report", "0 3 * * *", BERLIN)
    assert (found.missed, found.overlap, found.payload) == ("skip", False, "{}")
    assert jobs.schedules["short"].type == "a:b"


@pytest.mark.parametrize(
    "options", [{"timezone": "UTC"}, {"missed": "all"}, {"overlap": False}, {"schedule_name": "x"}]
)
def test_options_of_a_schedule_without_one_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidHandlers, match="give every="):
        Handlers().handler(**options)


def test_a_handler_with_an_invalid_schedule_is_not_registered() -> None:
    jobs = Handlers()
    with pytest.raises(InvalidHandlers):

        @jobs.handler(every="0 25 * * *")
        def report(payload: Any) -> None: ...

    assert dict(jobs) == {}


def test_declaring_a_schedule_twice_is_an_error() -> None:
    jobs = Handlers()
    for name in (None, "x"):
        jobs.every(60, "work", name=name)
        with pytest.raises(InvalidHandlers, match="is declared twice"):
            jobs.every("0 3 * * *", "work", name=name)
        assert jobs.schedules[name or "work"].expression == "60s"
    with pytest.raises(InvalidHandlers, match="is declared twice"):

        @jobs.handler(every=60)
        def work(payload: Any) -> None: ...


def test_a_reloaded_module_declares_its_schedules_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "the_registry.py").write_text(
        "from dbbasic_queue import Handlers\njobs = Handlers()\n"
    )
    tasks = tmp_path / "the_tasks.py"
    text = (
        "from the_registry import jobs\n"
        "@jobs.handler(every=60)\n"
        "def work(payload): ...\n"
        "jobs.every(60, 'other')\n"
    )
    tasks.write_text(text)
    module = importlib.import_module("the_tasks")
    jobs: Handlers = module.jobs
    assert {name: s.seconds for name, s in jobs.schedules.items()} == {"work": 60, "other": 60}
    tasks.write_text(text.replace("60", "90"))
    importlib.reload(module)
    assert {name: s.seconds for name, s in jobs.schedules.items()} == {"work": 90, "other": 90}
    tasks.write_text(text.replace("every=60", ""))
    importlib.reload(module)
    assert {name: s.seconds for name, s in jobs.schedules.items()} == {"other": 60}
    assert jobs.retired(["work", "other"]) == ["work"]


# -- the program -----------------------------------------------------------------------------------


def test_a_registry_is_named_after_the_file_that_makes_it(programs: Programs) -> None:
    assert Handlers().name == os.path.abspath(__file__)
    assert Handlers(name="mail").name == "mail"
    for name in ("", 5):
        with pytest.raises(InvalidHandlers, match="invalid name"):
            Handlers(name=name)  # type: ignore[arg-type] # on purpose


def test_code_that_is_not_in_a_file_needs_a_name_for_its_schedules() -> None:
    done = python(
        "from dbbasic_queue import Handlers, InvalidHandlers\n"
        "Handlers(name='mail').every(60, 'work')\n"
        "try:\n"
        "    Handlers().every(60, 'work')\n"
        "except InvalidHandlers as e:\n"
        "    print(e)\n"
    )
    assert 'give one, Handlers(name="...")' in done.stdout


def test_a_registry_with_schedules_can_be_pickled() -> None:
    jobs = Handlers(name="mail")
    jobs.every("0 3 * * *", "work", payload={"a": 1}, timezone=BERLIN)
    copy = pickle.loads(pickle.dumps(jobs))
    assert copy.name == "mail"
    assert repr(copy.schedules["work"]) == "<Schedule work: 0 3 * * * Europe/Berlin, work>"
