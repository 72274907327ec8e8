"""The counts of an experiment as the statistics take them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import stats
from ledger import sums
from ledger.counts import Counts
from ledger.sums import Gained, Joined
from models import Variant
from storage.columns import EPOCH, utcnow


def arms_of(counts: Counts, settings: stats.MetricSettings) -> tuple[stats.Arm, ...]:
    """Return the counts of each variant, as the kind of the metric needs them."""
    if not settings.has_own_sums:
        return tuple(_arm(counts, variant, settings) for variant in counts.variants)
    last = sums.last_complete_day(settings, counts.as_of or utcnow())
    return tuple(
        _own_arm(
            variant,
            settings,
            counts.own.joined_until(variant.key, last),
            counts.own.gained_until(variant.key, settings.name, last),
        )
        for variant in counts.variants
    )


def days_of(counts: Counts) -> list[date]:
    """Return every day from the first enrolment to the last thing that was counted."""
    enrolled, gained = counts.enrolled_on or {}, counts.days or {}
    found = {day for _, day in enrolled} | {day for _, day, _ in gained}
    if not found:
        return []
    first, last = min(found), max(found)
    number = (last - first).days + 1
    return [date.fromordinal(first.toordinal() + place) for place in range(number)]


class Course:
    """The cumulative counts of a metric at the end of each day, in turn."""

    def __init__(self, counts: Counts, settings: stats.MetricSettings) -> None:
        self._counts, self._settings = counts, settings
        self._participants = dict.fromkeys((one.key for one in counts.variants), 0)
        self._users = dict(self._participants)
        self._gained = dict.fromkeys(self._participants, Gained())
        self._joined = dict.fromkeys(self._participants, Joined())

    def after(self, day: date) -> tuple[stats.Arm, ...]:
        """Return the counts at the end of a day, which is the one after the last."""
        counts, settings = self._counts, self._settings
        number = (day - EPOCH.date()).days
        if settings.window is not None:
            number -= settings.window
        for variant in self._participants:
            self._add(variant, day, number)
        if settings.has_own_sums:
            return tuple(
                _own_arm(one, settings, self._joined[one.key], self._gained[one.key])
                for one in counts.variants
            )
        return tuple(
            _bare_arm(one, self._participants[one.key], self._users[one.key])
            for one in counts.variants
        )

    def _add(self, variant: str, day: date, number: int) -> None:
        """Add what a variant gained; *number* is the day whose users count now."""
        counts, name = self._counts, self._settings.name
        self._participants[variant] += (counts.enrolled_on or {}).get((variant, day), 0)
        gained = (counts.days or {}).get((variant, day, name))
        self._users[variant] += gained.users if gained else 0
        own: Gained | None = (counts.own_days or {}).get((variant, name, day))
        if self._settings.window is not None:
            own = counts.own.gained.get((variant, name, number))
        if own:
            sums.add_to(self._gained, variant, own)
        joined = counts.own.joined.get((variant, number))
        if joined:
            sums.add_to(self._joined, variant, joined)


def _bare_arm(variant: Variant, participants: int, users: int) -> stats.Arm:
    return stats.Arm(
        variant.key,
        variant.name,
        Decimal(variant.split) / 100,
        participants,
        users,
    )


def _arm(counts: Counts, variant: Variant, settings: stats.MetricSettings) -> stats.Arm:
    """Return a variant's counts in a metric that everyone's counts are enough for."""
    metric = settings.name
    tally = counts.tallies.get((variant.key, metric))
    none = stats.ValueSums(0, Decimal(0), Decimal(0))
    value = none if counts.has_values(metric) else None
    if tally and value:
        value = stats.ValueSums(
            tally.value_users, tally.value_sum, tally.value_sum_squares
        )
    users = tally.users if tally else 0
    arm = _bare_arm(variant, counts.participants[variant.key], users)
    return arm._replace(value=value)


def _own_arm(
    variant: Variant, settings: stats.MetricSettings, joined: Joined, gained: Gained
) -> stats.Arm:
    """Return a variant's counts in a metric that has sums of its own."""
    arm = _bare_arm(variant, joined.participants, gained.users)
    if settings.kind == stats.CONVERSION:
        return arm
    values = gained.value_users, gained.value_sum, gained.value_sum_squares
    arm = arm._replace(value=stats.ValueSums(*values))
    if settings.kind == stats.RATIO:
        events = gained.events, gained.event_squares, gained.value_events
        return arm._replace(events=stats.EventSums(*events))
    return arm._replace(
        covariate=stats.CovariateSums(*joined[1:], gained.value_covariates)
    )
