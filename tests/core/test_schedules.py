"""Schedules against a brute force: every minute is asked whether the expression means it."""

from __future__ import annotations

import calendar
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import product, takewhile
from typing import Generic, TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.core.schedules import Cron, due_slots, next_slot, parse_schedule, slots
from trivet.errors import ValidationFailed

WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]

# Zones whose clocks change by an hour, by half an hour, at midnight, or moved to another day.
ZONES = [
    *("UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe"),
    *("Asia/Kathmandu", "Pacific/Apia", "Africa/Casablanca", "Asia/Tehran", "America/Havana"),
]
SCANNED = timedelta(days=2)

T = TypeVar("T")


def aws_weekday(day: date) -> int:
    return (day.weekday() + 1) % 7 + 1


def last_of(day: date) -> int:
    return calendar.monthrange(day.year, day.month)[1]


def is_working(day: date) -> bool:
    return day.weekday() < 5


def is_nearest_working(day: date, wanted: int) -> bool:
    """By looking at every day of the month, which the code under test does not do."""
    last = last_of(day)
    if not 1 <= wanted <= last or not is_working(day):
        return False
    days = [day.replace(day=n) for n in range(1, last + 1)]
    return day == min(
        filter(is_working, days), key=lambda d: (abs(d.day - wanted), d.day if wanted > 1 else -1)
    )


@dataclass
class Part(Generic[T]):
    """A field as it is written, and what it means."""

    text: str
    holds: Callable[[T], bool]

    def __repr__(self) -> str:
        return self.text


DayParts = st.SearchStrategy[Part[date]]


def numbers(low: int, high: int, names: list[str] | None = None) -> st.SearchStrategy[Part[int]]:
    """Any list of values, ranges and steps."""

    def named(n: int, wants_name: bool) -> str:
        return names[n - 1] if names and wants_name else str(n)

    @st.composite
    def one(draw: st.DrawFn) -> tuple[str, set[int]]:
        first, last = draw(st.integers(low, high)), draw(st.integers(low, high))
        step = draw(st.integers(1, high))
        a, b = named(first, draw(st.booleans())), named(last, draw(st.booleans()))
        around = [*range(low, high + 1)] * 2
        begin = first - low
        length = (last - first) % (high - low + 1) + 1
        spanned = around[begin : begin + length]
        forms = {
            "*": ("*", set(range(low, high + 1))),
            "*/": (f"*/{step}", set(range(low, high + 1, step))),
            "n": (a, {first}),
            "n/": (f"{a}/{step}", set(range(first, high + 1, step))),
            "n-n": (f"{a}-{b}", set(spanned)),
            "n-n/": (f"{a}-{b}/{step}", set(spanned[::step])),
        }
        return forms[draw(st.sampled_from(sorted(forms)))]

    def part(pieces: list[tuple[str, set[int]]]) -> Part[int]:
        meant = set().union(*(values for _, values in pieces))
        return Part(",".join(text for text, _ in pieces), lambda n: n in meant)

    return st.lists(one(), min_size=1, max_size=3).map(part)


def days_of_month() -> DayParts:
    plain: DayParts = numbers(1, 31).map(
        lambda part: Part(part.text, lambda day: part.holds(day.day))
    )
    last: DayParts = st.integers(0, 30).map(
        lambda n: Part(f"L-{n}" if n else "L", lambda day: day.day == last_of(day) - n)
    )
    last_working: DayParts = st.integers(0, 30).map(
        lambda n: Part(
            f"L-{n}W" if n else "LW", lambda day: is_nearest_working(day, last_of(day) - n)
        )
    )
    working: DayParts = st.integers(1, 31).map(
        lambda n: Part(f"{n}W", lambda day: is_nearest_working(day, n))
    )
    return plain | last | last_working | working


def days_of_week() -> DayParts:
    plain: DayParts = numbers(1, 7, WEEKDAYS).map(
        lambda part: Part(part.text, lambda day: part.holds(aws_weekday(day)))
    )
    kinds = st.tuples(st.integers(1, 7), st.booleans())
    last: DayParts = kinds.map(
        lambda kind: Part(
            f"{WEEKDAYS[kind[0] - 1] if kind[1] else kind[0]}L",
            lambda day: aws_weekday(day) == kind[0] and day.day + 7 > last_of(day),
        )
    )
    nth: DayParts = st.tuples(kinds, st.integers(1, 5)).map(
        lambda drawn: Part(
            f"{WEEKDAYS[drawn[0][0] - 1] if drawn[0][1] else drawn[0][0]}#{drawn[1]}",
            lambda day: aws_weekday(day) == drawn[0][0] and (day.day - 1) // 7 + 1 == drawn[1],
        )
    )
    saturday: DayParts = st.just(Part("L", lambda day: aws_weekday(day) == 7))
    return plain | last | nth | saturday


DAYS = days_of_month().map(lambda part: (part, "{} {} ?")) | days_of_week().map(
    lambda part: (part, "? {1} {0}")
)


def changes(zone: ZoneInfo, year: int) -> list[datetime]:
    """Instants at which the clocks of a zone change in a year."""
    hours = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(366 * 24)]
    offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
    return [hours[n] for n in range(1, len(hours)) if offsets[n] != offsets[n - 1]]


@st.composite
def moments(draw: st.DrawFn) -> tuple[ZoneInfo, datetime]:
    """A zone, and an instant before a change of its clocks, before a year's end, or any."""
    zone = ZoneInfo(draw(st.sampled_from(ZONES)))
    year = draw(st.integers(2020, 2039))
    instants = [*changes(zone, year), datetime(year + 1, 1, 1, tzinfo=UTC)]
    if draw(st.booleans()):
        instants = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=draw(st.integers(0, 364)))]
    begin = draw(st.sampled_from(instants)) - timedelta(minutes=draw(st.integers(0, 1500)))
    return zone, begin + timedelta(seconds=draw(st.sampled_from([0, 0, 1, 59])))


@pytest.mark.slow
@settings(deadline=None)
@given(
    minutes=numbers(0, 59),
    hours=numbers(0, 23),
    days=DAYS,
    months=numbers(1, 12, MONTHS),
    moment=moments(),
)
def test_cron_slots_are_the_minutes_that_the_expression_means(
    minutes: Part[int],
    hours: Part[int],
    days: tuple[Part[date], str],
    months: Part[int],
    moment: tuple[ZoneInfo, datetime],
) -> None:
    zone, after = moment
    day_part, form = days
    expression = f"cron({minutes} {hours} {form.format(day_part, months)} *)"

    def is_meant(instant: datetime) -> bool:
        wall = instant.astimezone(zone)
        return (
            wall.fold == 0
            and minutes.holds(wall.minute)
            and hours.holds(wall.hour)
            and months.holds(wall.month)
            and day_part.holds(wall.date())
        )

    first = after.replace(second=0)
    every = (first + timedelta(minutes=n) for n in range(int(SCANNED.total_seconds()) // 60))
    expected = [instant for instant in every if instant > after and is_meant(instant)]
    end = first + SCANNED
    parsed = parse_schedule(expression)
    found = list(takewhile(lambda slot: slot < end, slots(parsed, after, zone)))
    assert found == expected, expression


@given(days=DAYS, month=st.integers(1, 12), year=st.integers(2020, 2040))
def test_the_days_of_a_month_are_those_that_the_expression_means(
    days: tuple[Part[date], str], month: int, year: int
) -> None:
    part, form = days
    parsed = parse_schedule(f"cron(0 0 {form.format(part, '*')} *)")
    assert isinstance(parsed, Cron)
    all_days = [date(year, month, n) for n in range(1, calendar.monthrange(year, month)[1] + 1)]
    assert list(parsed.days.of(year, month)) == [day.day for day in all_days if part.holds(day)]


@pytest.mark.parametrize("year", range(2024, 2031))
def test_the_working_day_nearest_to_any_day_lies_in_its_month(year: int) -> None:
    for month, wanted in product(range(1, 13), range(1, 32)):
        last = calendar.monthrange(year, month)[1]
        days = [date(year, month, n) for n in range(1, last + 1)]
        expected = [day.day for day in days if is_nearest_working(day, wanted)]
        parsed = parse_schedule(f"cron(0 0 {wanted}W * ? *)")
        assert isinstance(parsed, Cron)
        assert list(parsed.days.of(year, month)) == expected, (month, wanted)
        assert len(expected) == (wanted <= last)


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("cron(15 10 * * ? *)", "2026-11-23T10:15", "2026-11-24T10:15"),
        ("cron(0 18 ? * MON-FRI *)", "2026-11-27T18:00", "2026-11-30T18:00"),
        ("cron(0/15 10-16 ? * mon-fri *)", "2026-11-23T16:45", "2026-11-24T10:00"),
        ("cron(0 8 1 * ? *)", "2026-11-23T00:00", "2026-12-01T08:00"),
        ("cron(0 0 29 2 ? *)", "2026-11-23T00:00", "2028-02-29T00:00"),
        ("cron(0 12 ? * 6#3 *)", "2026-11-23T00:00", "2026-12-18T12:00"),
        ("cron(0 12 ? * 6L *)", "2026-11-23T00:00", "2026-11-27T12:00"),
        ("cron(0 12 LW * ? *)", "2026-02-01T00:00", "2026-02-27T12:00"),
        ("cron(0 12 1W * ? *)", "2026-07-31T13:00", "2026-08-03T12:00"),
        ("cron(0 12 1 1 ? 2028-2030)", "2026-01-01T00:00", "2028-01-01T12:00"),
        ("cron(0 22-2 1 1 ? *)", "2027-01-01T02:00", "2027-01-01T22:00"),
    ],
)
def test_expressions_as_awss_pages_explain_them(expression: str, after: str, expected: str) -> None:
    after_utc, expected_utc = (
        datetime.fromisoformat(text + "+00:00") for text in (after, expected)
    )
    assert next_slot(parse_schedule(expression), after_utc) == expected_utc


@pytest.mark.parametrize("expression", ["cron(0 0 31 2 ? *)", "cron(0 0 1 1 ? 1999)"])
def test_an_expression_may_have_no_slot_left(expression: str) -> None:
    after = datetime(2026, 11, 23, tzinfo=UTC)
    assert next_slot(parse_schedule(expression), after) is None


def test_a_wall_time_that_is_left_out_has_no_slot_and_one_that_comes_twice_has_one() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    expression = parse_schedule("cron(30 2 * * ? *)")
    spring = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert next_slot(expression, spring, berlin) == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)
    autumn = datetime(2026, 10, 24, 12, tzinfo=UTC)
    once = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert next_slot(expression, autumn, berlin) == once
    assert next_slot(expression, once, berlin) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


@given(
    count=st.integers(1, 10_000_000_000 - 1),
    unit=st.sampled_from(["second", "minute", "hour", "day"]),
    start=st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
    seconds=st.integers(-100_000, 10_000_000),
)
def test_a_rate_counts_from_its_start(count: int, unit: str, start: datetime, seconds: int) -> None:
    rate = parse_schedule(f"rate({count} {unit}{'s' if count > 1 else ''})")
    period_s = count * {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}[unit]
    after = start + timedelta(seconds=seconds)
    slot = next_slot(rate, after, start=start)
    past = max(0, seconds) // period_s
    try:
        expected = start + timedelta(seconds=(past + 1) * period_s)
    except OverflowError:
        assert slot is None
    else:
        assert slot == expected


@pytest.mark.parametrize(
    "expression",
    [
        *("", "rate()", "rate(0 minutes)", "rate(1 minutes)", "rate(5 minute)", "rate(-1 minutes)"),
        *("rate(1.5 hours)", "rate(5 weeks)", "rate(5  minutes)", "Rate(5 minutes)", "5 minutes"),
        *("cron()", "cron(* * * * *)", "cron(* * * * * *)", "cron(* * ? * ? *)", "* * * * ? *"),
        *("cron(60 * * * ? *)", "cron(* 24 * * ? *)", "cron(* * 0 * ? *)", "cron(* * 32 * ? *)"),
        *("cron(* * * 13 ? *)", "cron(* * ? * 8 *)", "cron(* * ? * 0 *)", "cron(* * * * ? 1969)"),
        *("cron(* * * * ? 2200)", "cron(* * * * ? 2030-2020)", "cron(*/0 * * * ? *)"),
        *("cron(? * * * ? *)", "cron(* * ? * MON#6 *)", "cron(* * ? * MON#0 *)"),
        *("cron(* * 32W * ? *)", "cron(* * L-31 * ? *)", "cron(* * L-0 * ? *)"),
        *("cron(* * 1,L * ? *)", "cron(* * ? * 2#1,3#1 *)", "cron(* * * FOO ? *)"),
        *("cron(1- * * * ? *)", "cron(-1 * * * ? *)", "cron(, * * * ? *)", "cron(1,,2 * * * ? *)"),
        *(
            "cron(\u0661 * * * ? *)",
            "cron(* * * * ? *) ",
            "cron(*\t* * * ? *)",
            "rate(\u0665 minutes)",
        ),
    ],
)
def test_what_aws_refuses_is_refused_in_its_words(expression: str) -> None:
    with pytest.raises(ValidationFailed, match=r"^Parameter ScheduleExpression is not valid\.$"):
        parse_schedule(expression)


@given(st.text(alphabet="cronate()0123456789*?/-,#LW MONFRIJ", max_size=40))
def test_nonsense_is_refused_and_nothing_else_is_raised(text: str) -> None:
    for expression in (text, f"cron({text})", f"rate({text})"):
        try:
            parsed = parse_schedule(expression)
        except ValidationFailed:
            continue
        next_slot(parsed, datetime(2026, 11, 23, tzinfo=UTC))


def test_slots_missed_within_the_window_are_due_and_older_ones_are_late() -> None:
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    rate = parse_schedule("rate(1 minute)")
    window = timedelta(minutes=5)

    recent = due_slots(rate, last=now - timedelta(minutes=3), now=now, window=window)
    assert recent.slots == tuple(now - timedelta(minutes=n) for n in (2, 1, 0))
    assert not recent.is_late

    long_ago = due_slots(rate, last=now - timedelta(days=3650), now=now, window=window)
    assert long_ago.slots == tuple(now - timedelta(minutes=n) for n in (4, 3, 2, 1, 0))
    assert long_ago.is_late

    hourly = parse_schedule("cron(0 * * * ? *)")
    assert due_slots(hourly, last=now, now=now + timedelta(minutes=59), window=window).slots == ()
