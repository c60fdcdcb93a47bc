"""Schedules: AWS's rate and cron expressions, and the slots in which they fire.

Slots are instants in UTC. A cron expression means wall time in its time zone: a wall time that a
change of the clocks leaves out has no slot, and one that comes twice has its first, as EventBridge
Scheduler documents it. Rates know no wall time.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import product, takewhile

from trivet.errors import ValidationFailed

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
_SATURDAY = 7

# Seconds are an extension of ours: AWS begins with the minute.
_UNITS_S = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_RATE = re.compile(r"rate\(([0-9]{1,10}) (second|minute|hour|day)(s?)\)", re.ASCII)
_CRON = re.compile(r"cron\(([!-~]+(?: +[!-~]+){5})\)", re.ASCII)
_FROM_LAST = re.compile(r"L(?:-([0-9]{1,2}))?(W?)", re.ASCII)
_NEAREST = re.compile(r"([0-9]{1,2})W", re.ASCII)
_LAST_OF_KIND = re.compile(r"([A-Z]{3}|[1-7])L", re.ASCII)
_NTH_OF_KIND = re.compile(r"([A-Z]{3}|[1-7])#([1-5])", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Field:
    """What one field of a cron expression may hold."""

    low: int
    high: int
    names: Mapping[str, int] = field(default_factory=dict)
    is_round: bool = True  # its ranges may pass the end: FRI-MON


_MINUTE = _Field(0, 59)
_HOUR = _Field(0, 23)
_DAY = _Field(1, 31)
_MONTH = _Field(1, 12, {name: i for i, name in enumerate(_MONTHS, start=1)})
_WEEKDAY = _Field(1, 7, {name: i for i, name in enumerate(_WEEKDAYS, start=1)})
_YEAR = _Field(1970, 2199, is_round=False)


@dataclass(frozen=True, slots=True)
class Rate:
    """Every so many seconds, counted from the schedule's start."""

    period_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Days:
    """Which days of a month: one of the ways to say it is used."""

    numbers: frozenset[int] = frozenset()  # days of the month
    weekdays: frozenset[int] = frozenset()  # 1 is Sunday
    nth: int = 0  # with `weekdays`: only the nth of its kind; -1: the last
    nearest: int = 0  # the working day nearest to this one, in the same month
    from_last: int | None = None  # so many days before the last
    is_working: bool = False  # with `from_last`: the working day nearest to that

    def of(self, year: int, month: int) -> Sequence[int]:
        """The days, in order."""
        first_weekday, last = calendar.monthrange(year, month)
        if self.from_last is not None:
            day = last - self.from_last
            if day < 1:
                return ()
            return (_working_day(first_weekday, last, day) if self.is_working else day,)
        if self.nearest:
            fits = self.nearest <= last
            return (_working_day(first_weekday, last, self.nearest),) if fits else ()
        if self.numbers:
            return [day for day in sorted(self.numbers) if day <= last]
        of_kind = [
            day for day in range(1, last + 1) if _weekday(first_weekday, day) in self.weekdays
        ]
        if self.nth == 0:
            return of_kind
        place = self.nth - 1 if self.nth > 0 else len(of_kind) - 1
        return of_kind[place : place + 1]


@dataclass(frozen=True, slots=True)
class Cron:
    """Wall times: every combination of these."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: Days
    months: tuple[int, ...]
    years: tuple[int, ...]


Expression = Rate | Cron


@dataclass(frozen=True, slots=True)
class Due:
    """Slots that came since a schedule was looked at last."""

    slots: tuple[datetime, ...]  # to be fired, in order
    is_late: bool = False  # others were too long ago


# ------------------------------------------------------------------------- reading


def parse_schedule(text: str) -> Expression:
    """The expression that `text` writes. Raises ValidationFailed in AWS's words."""
    try:
        if match := _RATE.fullmatch(text):
            return _rate(int(match[1]), match[2], is_plural=bool(match[3]))
        if match := _CRON.fullmatch(text):
            return _cron(match[1].upper().split())
    except ValueError:
        pass
    raise ValidationFailed("Parameter ScheduleExpression is not valid.")


def _rate(count: int, unit: str, *, is_plural: bool) -> Rate:
    # AWS is strict about the grammar: 1 minute, 2 minutes.
    if count < 1 or is_plural != (count > 1):
        raise ValueError(count)
    return Rate(count * _UNITS_S[unit])


def _cron(words: Sequence[str]) -> Cron:
    minutes, hours, days, months, weekdays, years = words
    if (days == "?") == (weekdays == "?"):
        raise ValueError("exactly one of the two kinds of day is left open")
    return Cron(
        minutes=_values(minutes, _MINUTE),
        hours=_values(hours, _HOUR),
        days=_days_of_month(days) if weekdays == "?" else _days_of_week(weekdays),
        months=_values(months, _MONTH),
        years=_values(years, _YEAR),
    )


def _days_of_month(text: str) -> Days:
    if match := _FROM_LAST.fullmatch(text):
        before = int(match[1] or 0)
        if match[1] is not None and not 1 <= before <= 30:
            raise ValueError(text)
        return Days(from_last=before, is_working=bool(match[2]))
    if match := _NEAREST.fullmatch(text):
        return Days(nearest=_number(match[1], _DAY))
    return Days(numbers=frozenset(_values(text, _DAY)))


def _days_of_week(text: str) -> Days:
    if text == "L":  # the last day of a week
        return Days(weekdays=frozenset({_SATURDAY}))
    if match := _LAST_OF_KIND.fullmatch(text):
        return Days(weekdays=frozenset({_number(match[1], _WEEKDAY)}), nth=-1)
    if match := _NTH_OF_KIND.fullmatch(text):
        return Days(weekdays=frozenset({_number(match[1], _WEEKDAY)}), nth=int(match[2]))
    return Days(weekdays=frozenset(_values(text, _WEEKDAY)))


def _values(text: str, of: _Field) -> tuple[int, ...]:
    """What a list of values, ranges and steps means, in order."""
    return tuple(sorted({value for part in text.split(",") for value in _part(part, of)}))


def _part(text: str, of: _Field) -> Sequence[int]:
    span, slash, step_text = text.partition("/")
    step = _digits(step_text) if slash else 1
    if not 1 <= step <= of.high:
        raise ValueError(text)
    if span == "*":
        return range(of.low, of.high + 1, step)
    first_text, dash, last_text = span.partition("-")
    first = _number(first_text, of)
    if not dash:
        return range(first, of.high + 1, step) if slash else (first,)
    last = _number(last_text, of)
    if last >= first:
        return range(first, last + 1, step)
    if not of.is_round:
        raise ValueError(text)
    around = [*range(first, of.high + 1), *range(of.low, last + 1)]
    return around[::step]


def _number(text: str, of: _Field) -> int:
    value = of.names.get(text)
    if value is None:
        value = _digits(text)
    if not of.low <= value <= of.high:
        raise ValueError(text)
    return value


def _digits(text: str) -> int:
    if not 1 <= len(text) <= 4 or not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


# --------------------------------------------------------------------------- slots


def next_slot(
    expression: Expression, after: datetime, zone: tzinfo = UTC, *, start: datetime = EPOCH
) -> datetime | None:
    """The first slot after an instant, or None if there is none. Rates count from `start`."""
    return next(slots(expression, after, zone, start=start), None)


def slots(
    expression: Expression, after: datetime, zone: tzinfo = UTC, *, start: datetime = EPOCH
) -> Iterator[datetime]:
    """All slots after an instant, in order."""
    if isinstance(expression, Rate):
        return _rate_slots(expression, after, start)
    return _cron_slots(expression, after, zone)


def due_slots(
    expression: Expression,
    *,
    last: datetime,
    now: datetime,
    window: timedelta,
    zone: tzinfo = UTC,
    start: datetime = EPOCH,
) -> Due:
    """The slots after `last` and up to `now` that are not older than `window`."""
    since = max(last, now - window)
    due = tuple(takewhile(lambda slot: slot <= now, slots(expression, since, zone, start=start)))
    if since == last:
        return Due(due)
    first = next_slot(expression, last, zone, start=start)
    return Due(due, is_late=first is not None and first <= since)


def _rate_slots(rate: Rate, after: datetime, start: datetime) -> Iterator[datetime]:
    try:
        period = timedelta(seconds=rate.period_s)
        slot = start + max(1, (after - start) // period + 1) * period
        while True:
            yield slot
            slot += period
    except OverflowError:  # beyond the last year that there is
        return


def _cron_slots(cron: Cron, after: datetime, zone: tzinfo) -> Iterator[datetime]:
    local = after.astimezone(zone).replace(tzinfo=None)
    for day in _days_from(cron, local.date()):
        for hour, minute in product(cron.hours, cron.minutes):
            wall = datetime(day.year, day.month, day.day, hour, minute)
            # A wall time that has passed already comes a second time at most.
            if wall < local - timedelta(minutes=1):
                continue
            slot = wall.replace(tzinfo=zone).astimezone(UTC)
            if slot > after and slot.astimezone(zone).replace(tzinfo=None) == wall:
                yield slot


def _days_from(cron: Cron, first: date) -> Iterator[date]:
    for year, month in product(cron.years, cron.months):
        if (year, month) < (first.year, first.month):
            continue
        for number in cron.days.of(year, month):
            day = date(year, month, number)
            if day >= first:
                yield day


def _weekday(first_weekday: int, day: int) -> int:
    """AWS's number of a day's weekday. `first_weekday` is the first day's, 0 a Monday."""
    return (first_weekday + day) % 7 + 1


def _working_day(first_weekday: int, last: int, day: int) -> int:
    """The Monday to Friday nearest to a day, without leaving its month."""
    weekday = _weekday(first_weekday, day)
    if weekday == _SATURDAY:
        return day - 1 if day > 1 else day + 2
    if weekday == 1:
        return day + 1 if day < last else day - 2
    return day
