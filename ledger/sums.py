"""The sums of metrics with settings, and of the users that they are over.

A mean with a cap or a covariate, a ratio and a window need more than the counts that
every metric has. All of it is added up event by event and user by user, so that it
costs the same for any number of them, and several processes can add at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import reduce
from typing import Any, NamedTuple, TypeVar

from peewee import EXCLUDED

from models import Cohort, Sums
from stats import MetricSettings
from storage.columns import EPOCH, EXACT
from storage.engine import database
from storage.table import Insert, Statement, added

ZERO, DAY = Decimal(0), timedelta(days=1)


class Total(NamedTuple):
    """One participant's events in one metric; *total* is None without any value."""

    events: int = 0
    total: Decimal | None = None
    valued: int = 0
    """How many of the events have a value."""

    @classmethod
    def of(cls, values: Sequence[Decimal | None]) -> Total:
        """Return the total of events with these values."""
        held = [value for value in values if value is not None]
        total = reduce(EXACT.add, held, ZERO) if held else None  # minus 0 becomes 0
        return cls(len(values), total, len(held))

    def plus(self, value: Decimal | None) -> Total:
        """Return the total with one more event."""
        events, total, valued = self
        if value is None:
            return Total(events + 1, total, valued)
        return Total(events + 1, EXACT.add(total or ZERO, value), valued + 1)

    def minus(self, other: Total) -> Total:
        """Return what the total was before these events were added."""
        events, valued = self.events - other.events, self.valued - other.valued
        if self.total is None or not valued:
            return Total(events)
        return Total(events, EXACT.subtract(self.total, other.total or ZERO), valued)


class Joined(NamedTuple):
    """Users who got a variant, with the sums of their covariates."""

    participants: int = 0
    covariates: int = 0
    covariate_sum: Decimal = ZERO
    covariate_sum_squares: Decimal = ZERO

    @classmethod
    def one(cls, covariate: Decimal | None) -> Joined:
        """Return one user with this covariate."""
        if covariate is None:
            return cls(1)
        return cls(1, 1, covariate, EXACT.multiply(covariate, covariate))


class Gained(NamedTuple):
    """What some events add to the sums of a metric with settings."""

    users: int = 0
    events: int = 0
    event_squares: int = 0
    value_users: int = 0
    value_sum: Decimal = ZERO
    value_sum_squares: Decimal = ZERO
    value_events: Decimal = ZERO
    value_covariates: Decimal = ZERO

    @classmethod
    def one(
        cls,
        settings: MetricSettings,
        before: Total,
        after: Total,
        covariate: Decimal | None,
    ) -> Gained:
        """Return what events add that lead from one total to another."""
        start, end = capped(before.total, settings), capped(after.total, settings)
        rise = EXACT.subtract(end, start)
        return cls(
            users=int(before.events == 0),
            events=after.events - before.events,
            event_squares=after.events**2 - before.events**2,
            value_users=int(before.valued == 0 and after.valued > 0),
            value_sum=rise,
            value_sum_squares=EXACT.subtract(
                EXACT.multiply(end, end), EXACT.multiply(start, start)
            ),
            value_events=EXACT.subtract(
                EXACT.multiply(end, Decimal(after.events)),
                EXACT.multiply(start, Decimal(before.events)),
            ),
            value_covariates=EXACT.multiply(covariate, rise) if covariate else ZERO,
        )


Added = TypeVar("Added", Joined, Gained)


def _pairs(one: Any, other: Any) -> Iterable[tuple[Any, Any]]:
    return zip(one, other, strict=True)


def together(one: Added, other: Added) -> Added:
    """Return the sum of both, number by number."""
    numbers = [
        EXACT.add(left, right) if isinstance(left, Decimal) else left + right
        for left, right in _pairs(one, other)
    ]
    made: Any = type(one)
    whole: Added = made(*numbers)
    return whole


def add_to(sums: dict[Any, Added], key: Any, one: Added) -> None:
    """Add to the sum of a key, which may be the first one."""
    sums[key] = together(sums[key], one) if key in sums else one


def capped(total: Decimal | None, settings: MetricSettings) -> Decimal:
    """Return a user's total as it counts: at most the cap, and 0 without any value."""
    if total is None:
        return ZERO
    return total if settings.cap is None else min(total, settings.cap)


def day_of(moment: datetime) -> int:
    """Return the day of a time, in UTC, since 1970."""
    return (moment - EPOCH) // DAY


def last_complete_day(settings: MetricSettings, now: datetime) -> int | None:
    """Return the last day whose users' windows are all over; None without a window.

    A day's users count together, when the window of the last of them is over.
    """
    if settings.window is None:
        return None
    return day_of(now) - settings.window - 1


def is_inside(
    settings: MetricSettings | None, assigned_at: datetime, occurred_at: datetime
) -> bool:
    """Tell whether an event is inside its metric's window, if that has one."""
    if settings is None or settings.window is None:
        return True
    return occurred_at < assigned_at + settings.window * DAY


class Tallied(NamedTuple):
    """What is added up for the metrics with settings of one experiment."""

    joined: dict[tuple[str, int], Joined]
    """By variant and day of the enrolment."""
    gained: dict[tuple[str, str, int], Gained]
    """By variant, metric and day; the day is 0 if the metric has no window."""

    @classmethod
    def empty(cls) -> Tallied:
        """Return nothing, to add to."""
        return cls({}, {})

    def join(self, variant: str, day: int, one: Joined) -> None:
        """Add users."""
        add_to(self.joined, (variant, day), one)

    def gain(
        self, settings: MetricSettings, row: Any, before: Total, after: Total
    ) -> Gained:
        """Add a user's events that lead from total to total; return what they add."""
        day = 0 if settings.window is None else day_of(row.assigned_at)
        one = Gained.one(settings, before, after, row.covariate)
        add_to(self.gained, (row.variant, row.metric, day), one)
        return one

    def joined_until(self, variant: str, last_day: int | None) -> Joined:
        """Return the users of a variant, up to this day."""
        whole = Joined()
        for (key, day), one in self.joined.items():
            if key == variant and (last_day is None or day <= last_day):
                whole = together(whole, one)
        return whole

    def gained_until(self, variant: str, metric: str, last_day: int | None) -> Gained:
        """Return the sums of a metric over those users."""
        whole = Gained()
        for (key, name, day), one in self.gained.items():
            is_over = last_day is None or day <= last_day
            if (key, name) == (variant, metric) and is_over:
                whole = together(whole, one)
        return whole


# ----------------------------------------------------------------------------
# Stored
# ----------------------------------------------------------------------------


def _adding(key: list[Any], counts: list[Any], exact: list[Any]) -> Insert:
    """Return the insert that adds to the row with the same key."""
    return Insert(
        [*key, *counts, *exact],
        lambda insert: insert.on_conflict(
            conflict_target=key,
            update={
                **added(counts),
                **{
                    one: database.obj.plus(one, getattr(EXCLUDED, one.column_name))
                    for one in exact
                },
            },
        ),
    )


COHORT_KEY: list[Any] = [Cohort.experiment, Cohort.variant, Cohort.day, Cohort.slot]

ADD_COHORTS = _adding(
    COHORT_KEY,
    [Cohort.participants, Cohort.covariates],
    [Cohort.covariate_sum, Cohort.covariate_sum_squares],
)

SUMS_KEY: list[Any] = [
    *(Sums.experiment, Sums.variant, Sums.metric),
    *(Sums.day, Sums.slot),
]

ADD_SUMS = _adding(
    SUMS_KEY,
    [Sums.users, Sums.events, Sums.event_squares, Sums.value_users],
    [
        *(Sums.value_sum, Sums.value_sum_squares),
        *(Sums.value_events, Sums.value_covariates),
    ],
)


def write_joined(
    rows: Iterable[tuple[str, str, datetime, Decimal | None]],
) -> None:
    """Add users, each with the experiment, the variant, the time and the covariate.

    Call it within the transaction that enrols them.
    """
    whole: dict[tuple[str, str, int], Joined] = {}
    for experiment_id, variant, assigned_at, covariate in rows:
        key = experiment_id, variant, day_of(assigned_at)
        add_to(whole, key, Joined.one(covariate))
    slot = database.obj.slot
    ADD_COHORTS.of((*key, slot, *one) for key, one in sorted(whole.items()))


def write_gained(tallied: Mapping[str, Tallied]) -> None:
    """Add what events gained, by experiment, in the transaction that books them."""
    slot = database.obj.slot
    ADD_SUMS.of(
        (id, *key, slot, *one)
        for id, each in sorted(tallied.items())
        for key, one in sorted(each.gained.items())
    )


COHORTS = Statement(lambda mark: Cohort.select().where(Cohort.experiment == mark))

SUMS = Statement(lambda mark: Sums.select().where(Sums.experiment == mark))


def stored(experiment_id: str) -> Tallied:
    """Return what is stored of an experiment, summed over the slots."""
    return gathered(COHORTS.rows(Cohort, experiment_id), SUMS.rows(Sums, experiment_id))


def gathered(cohorts: Iterable[Cohort], sums: Iterable[Sums]) -> Tallied:
    """Return the rows of one experiment, summed over the slots."""
    whole = Tallied.empty()
    for row in cohorts:
        whole.join(
            row.variant, row.day, Joined(*(getattr(row, n) for n in Joined._fields))
        )
    for each in sums:
        key = each.variant, each.metric, each.day
        one = Gained(*(getattr(each, name) for name in Gained._fields))
        add_to(whole.gained, key, one)
    return whole
