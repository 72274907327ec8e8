"""Results as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from marshmallow import fields

import stats
from models import STATUSES, Variant
from storage.columns import utcnow
from web.fields import Answer, camel_case
from web.json import moment, plain


def Count() -> fields.Field[Any]:
    """Return a field for how many there are."""
    return fields.Raw(metadata={"type": "integer", "minimum": 0})


def Figure(type: str = "number", **options: Any) -> fields.Field[Any]:
    """Return a field for what stands in an answer as it is."""
    return fields.Raw(metadata={"type": type, **options.pop("metadata", {})}, **options)


TIME = {"format": "date-time"}


class Value(Answer):
    """What the users with a value have together."""

    sometimes = ("sumSquares",)  # a day's would not sum to the whole's

    count = Count()
    sum = Figure()
    sumSquares = Figure()


class DaysMetric(Answer):
    """What a variant gained in one metric on one day."""

    metric = Figure("string")
    conversions = Count()
    events = Count()
    value = fields.Nested(Value())


class Day(Answer):
    """What a variant gained on one day, in UTC."""

    date = Figure("string", metadata={"format": "date"})
    participants = Count()
    results = fields.List(fields.Nested(DaysMetric()))


class VariantsMetric(DaysMetric):
    """What a variant has in one metric."""

    primary = Figure("boolean")
    firstAt = Figure("string", metadata=TIME)
    lastAt = Figure("string", metadata=TIME)


class VariantsCounts(Answer):
    """What a variant has; day by day where that was asked for."""

    sometimes = ("series",)

    variantId = Figure("string")
    variantName = Figure("string")
    splitPercentage = Figure()
    participants = Count()
    results = fields.List(fields.Nested(VariantsMetric()))
    series = fields.List(fields.Nested(Day()))


class Quality(Answer):
    """What was received, and what became of it."""

    received = Count()
    counted = Count()
    duplicates = Count()
    beforeEnrollment = Count()
    notEnrolled = Count()


class Results(Answer):
    """The raw counts of an experiment."""

    sometimes = ("asOf",)

    experimentId = Figure("string")
    name = Figure("string")
    status = Figure("string", metadata={"enum": STATUSES})
    startDate = Figure("string", metadata=TIME, allow_none=True)
    endDate = Figure("string", metadata=TIME, allow_none=True)
    variants = fields.List(fields.Nested(VariantsCounts()))
    quality = fields.Nested(Quality())
    asOf = Figure("string", metadata=TIME)


def results(counts: Any, metric: str | None) -> dict[str, Any]:
    """Return the raw counts of an experiment as the wire has them."""
    experiment = counts.experiment
    whole = {
        "experimentId": experiment.id,
        "name": experiment.name,
        "status": experiment.state,
        "startDate": experiment.start_date and moment(experiment.start_date),
        "endDate": experiment.end_date and moment(experiment.end_date),
        "variants": [
            {
                "variantId": variant.key,
                "variantName": variant.name,
                "splitPercentage": plain(Decimal(variant.split) / 100),
                "participants": counts.participants[variant.key],
                "results": list(_metrics(counts, variant, metric)),
            }
            for variant in experiment.variants
        ],
        "quality": quality(counts),
    }
    if counts.as_of:
        whole["asOf"] = moment(counts.as_of)
    return whole


def daily_results(counts: Any, metric: str | None) -> dict[str, Any]:
    """Return the raw counts, and beside each variant's the days that sum to them."""
    whole = results(counts, metric)
    for shown in whole["variants"]:
        shown["series"] = list(_series(counts, shown["variantId"], metric))
    return whole


def _series(counts: Any, variant: str, metric: str | None) -> Iterator[dict[str, Any]]:
    metrics = [one for one in counts.metrics if metric in (None, one)]
    told = {day for key, day in counts.enrolled_on if key == variant} | {
        day for key, day, one in counts.days if key == variant and one in metrics
    }
    for day in sorted(told):
        gained = [(one, counts.days.get((variant, day, one))) for one in metrics]
        yield {
            "date": day.isoformat(),
            "participants": counts.enrolled_on[variant, day],
            "results": [
                {
                    "metric": one,
                    "conversions": its.users,
                    "events": its.events,
                    "value": {"count": its.value_users, "sum": plain(its.value_sum)},
                }
                for one, its in gained
                if its
            ],
        }


def _metrics(
    counts: Any, variant: Variant, wanted: str | None
) -> Iterator[dict[str, Any]]:
    for metric in counts.metrics:
        tally = counts.tallies.get((variant.key, metric))
        if tally is None or wanted not in (None, metric):
            continue
        yield {
            "metric": metric,
            "primary": metric == counts.experiment.primary_metric,
            "conversions": tally.users,
            "events": tally.events,
            "value": {
                "count": tally.value_users,
                "sum": plain(tally.value_sum),
                "sumSquares": plain(tally.value_sum_squares),
            },
            "firstAt": moment(tally.first_at),
            "lastAt": moment(tally.last_at),
        }


def quality(counts: Any) -> dict[str, int]:
    """Return what was received and what became of it; the sum closes."""
    became = {
        "counted": sum(tally.events for tally in counts.tallies.values()),
        "duplicates": counts.refusals.get("duplicate", 0),
        "beforeEnrollment": counts.refusals.get("BEFORE_ENROLLMENT", 0),
        "notEnrolled": counts.refusals.get("NOT_ENROLLED", 0),
    }
    return {"received": sum(became.values()), **became}


def computed_results(
    counts: Any, metric: str | None, confidence_level: Decimal
) -> dict[str, Any]:
    """Return every figure of one metric, with the verdict and what it rests on."""
    experiment = counts.experiment
    metric = metric or experiment.primary_metric
    analysis = stats.analyse(
        [_arm(counts, variant, metric) for variant in experiment.variants],
        plan=stats.Plan(**experiment.plan) if experiment.plan else None,
        confidence_level=confidence_level,
        metric=metric,
        received=stats.Received(counts.metrics, _refused(counts)),
        computed_at=moment(utcnow()),
    )
    whole = {"experimentId": experiment.id, **camel(analysis)}
    if counts.as_of:
        whole["asOf"] = moment(counts.as_of)
    return whole


def _refused(counts: Any) -> dict[str, int]:
    """Return how many events were refused for each reason; a duplicate was not."""
    return {
        reason: number
        for reason, number in counts.refusals.items()
        if reason != "duplicate" and number
    }


def _arm(counts: Any, variant: Variant, metric: str) -> stats.Arm:
    tally = counts.tallies.get((variant.key, metric))
    none = stats.ValueSums(0, Decimal(0), Decimal(0))
    value = none if counts.has_values(metric) else None
    if tally and value:
        value = stats.ValueSums(
            tally.value_users, tally.value_sum, tally.value_sum_squares
        )
    return stats.Arm(
        variant.key,
        variant.name,
        Decimal(variant.split) / 100,
        counts.participants[variant.key],
        tally.users if tally else 0,
        value,
    )


def camel(value: Any) -> Any:
    """Return a tree of named tuples as the wire has it: dicts, in camel case."""
    if hasattr(value, "_asdict"):
        return {camel_case(name): camel(item) for name, item in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [camel(item) for item in value]
    return value


TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}


@cache
def shape(kind: Any) -> type[Answer]:
    """Return the schema of a named tuple on the wire, read off its annotations."""
    hints = get_type_hints(kind)
    its = {camel_case(name): _field(hint) for name, hint in hints.items()}
    return Answer.from_dict(its, name=f"Computed{kind.__name__}")  # type: ignore


def _field(hint: Any) -> fields.Field[Any]:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    null, kind = NoneType in kinds, kinds[0]
    if get_origin(kind) is list:
        return fields.List(_field(*get_args(kind)), allow_none=null)
    if hasattr(kind, "_fields"):
        return fields.Nested(shape(kind), allow_none=null)
    return Figure("number" if float in kinds else TYPES[kind], allow_none=null)


class Computed(shape(stats.Analysis)):  # type: ignore[misc]
    """Every figure of one metric of an experiment."""

    sometimes = ("asOf",)

    experimentId = Figure("string")
    asOf = Figure("string", metadata=TIME)


COMPUTED = Computed()
