"""A look at an experiment: its figures, and what is stored when one decides.

The first look at which a variant differs significantly in the primary metric is stored
as a crossing, and no later one withdraws it, with a plan or without. Abacus looks when
somebody asks for the results, and once at the moment at which the users of a horizon
were complete, which it replays if nobody asked then. The error rate holds for any
choice of moments, so it holds for these (by Ville's inequality for an experiment
without a plan).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import peewee

import stats
from ledger.counts import Counts, at, replayed
from models import Assignment, Crossing, Experiment
from stats.results import VariantFigures
from storage.engine import database
from views.figures import Computed, computed_results, with_days

LEVEL = Decimal("0.95")
"""The level of the intervals where nobody asks for another."""


def look(
    experiment: Experiment,
    as_of: datetime | None,
    metric: str | None,
    confidence_level: Decimal,
    granularity: str | None = None,
) -> Computed:
    """Return the figures of a metric at a moment, by default now.

    With a granularity, they have the days that led to them.
    """
    has_days = granularity is not None
    counts = replayed(experiment, as_of) if has_days else at(experiment, as_of, metric)
    computed = look_at(counts, metric, confidence_level)
    return with_days(computed, counts, confidence_level) if has_days else computed


def look_at(counts: Counts, metric: str | None, confidence_level: Decimal) -> Computed:
    """Return the figures of a metric in counts that were read already.

    They are all counts, or those of this metric, as `at` returns them.
    """
    current, as_of = counts.experiment, counts.as_of
    if metric not in (None, current.primary_metric):
        return computed_results(counts, metric, confidence_level, {})
    crossings = Crossing.of(current, as_of)
    if as_of is None and len(crossings) < len(counts.variants) - 1:
        crossings = _with_new(counts, crossings, confidence_level)
    return computed_results(counts, metric, confidence_level, crossings)


def _with_new(
    counts: Counts, crossings: dict[str, Crossing], level: Decimal
) -> dict[str, Crossing]:
    """Return the crossings with those of this look, which are stored if possible.

    No decision depends on the level of the intervals. It is the one that is asked for,
    so that the analysis is remembered for the answer.
    """
    experiment, now = counts.experiment, database.obj.now()
    rows: list[dict[str, Any]] = []
    reached = experiment.horizon_at or _reached(counts)
    if reached and not experiment.horizon_at:
        then = replayed(experiment, reached)
        # The users of a batch come at one moment, so the look is at all of them.
        then.experiment.horizon = max(then.users, experiment.horizon or 0)
        rows += _decided(then, reached, crossings, level)
    known = {**crossings, **{row["variant"]: None for row in rows}}
    rows += _decided(counts, now, known, level)
    new = {row["variant"]: Crossing(**row) for row in rows}
    if rows or reached != experiment.horizon_at:
        new |= _stored(experiment, reached, rows)
    return {**new, **crossings}


def _reached(counts: Counts) -> datetime | None:
    """Return when the users of the horizon were complete; None before that."""
    experiment = counts.experiment
    horizon = experiment.horizon
    if not horizon or counts.users <= horizon:
        return None
    last = (
        Assignment.select(Assignment.received_at)
        .where(Assignment.experiment == experiment.id)
        .order_by(Assignment.received_at)
        .limit(1)
        .offset(horizon - 1)
    )
    moment: datetime | None = last.scalar()
    return moment


def _decided(
    counts: Counts, moment: datetime, known: Any, level: Decimal
) -> Iterator[dict[str, Any]]:
    """Yield the crossings at these counts of the variants that have none."""
    analysis = computed_results(counts, None, level, {}).analysis
    if not analysis.trustworthy:
        return
    control, *variants = analysis.variants
    for variant in variants:
        compared = variant.compared(analysis.analysis.kind)
        test = compared and compared.sequential
        if test and test.is_significant and variant.variant_id not in known:
            yield {
                "experiment": counts.experiment.id,
                "variant": variant.variant_id,
                "at": moment,
                "users": counts.users,
                "control_sample_size": control.sample_size,
                "control_conversions": control.conversions,
                "sample_size": variant.sample_size,
                "conversions": variant.conversions,
                "p_value": _exact(test.adjusted_p_value),
                **_means(control, variant, analysis.analysis.kind),
            }


def _means(
    control: VariantFigures, variant: VariantFigures, kind: str
) -> dict[str, Decimal | None]:
    """Return the figures that a crossing has of a mean or a ratio; None of a rate.

    The difference is stored, because it is rounded once: two means of which one is
    higher may be the same float.
    """
    if kind == stats.CONVERSION:
        return dict.fromkeys(Crossing.MEANS)
    value, compared = control.value, variant.compared(kind)
    return {
        "control_mean": _exact(value and value.mean),
        "difference": _exact(compared and compared.difference),
    }


def _exact(figure: float | None) -> Decimal | None:
    """Return all digits of a figure."""
    return None if figure is None else Decimal(repr(figure))


def _stored(
    experiment: Experiment, reached: datetime | None, rows: list[dict[str, Any]]
) -> dict[str, Crossing]:
    """Store a look, if the database can be written; if not, the next one is.

    Return what is stored now: of two looks at once, both answer with the first one.
    """
    try:
        with database.atomic():
            if rows:
                Crossing.insert_many(rows).on_conflict_ignore().execute()
            Experiment.update(horizon_at=reached).where(
                Experiment.id == experiment.id
            ).execute()
        return Crossing.of(experiment, None)
    except peewee.OperationalError as error:
        if database.obj.trouble(error) is None:
            raise
        return {}
