"""The planner: a form that is filled in, and the users and days that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple

import schemas
import stats
from stats.planning import Size
from stats.wording import amounts, percentages, points
from views import planning
from web.json import dumps

FORMS = {"rate": schemas.RatePlanForm(), "mean": schemas.MeanPlanForm()}

SIZES = {"rate": schemas.SizeSchema(), "mean": schemas.MeanSizeSchema()}

FINEST = Decimal("0.000001")  # of a rate

DEFAULTS = {"variants": "2", "power": "80", "confidenceLevel": "95"}

EFFECT = "Smallest effect worth finding"

LABELS = {
    "rate": [
        ("baselineRate", "Conversion rate of today, in percent", ""),
        ("effect", EFFECT, ""),
        ("usersPerDay", "Users a day, of all variants", "Tells the days."),
        ("days", "Days", "Without an effect: the days that you have."),
    ],
    "mean": [
        ("baselineMean", "Mean of today", "Such as the revenue of a user."),
        ("standardDeviation", "Standard deviation", "Of the users' totals."),
        ("effect", EFFECT, ""),
        ("covariateCorrelation", "Correlation with a covariate", "From 0 to 0.99."),
        ("usersPerDay", "Users a day, of all variants", "Tells the days."),
    ],
}
"""The name, the label and the help of the fields of each kind."""

MORE = [
    ("variants", "Variants, with the control", ""),
    ("power", "Power, in percent", "How often an effect of this size is found."),
    ("confidenceLevel", "Confidence, in percent", "95 means 5 % of false alarms."),
]

UNITS = {
    "rate": [("absolute", "percentage points"), ("relative", "percent of the rate")],
    "mean": [("absolute", "in its unit"), ("relative", "percent of the mean")],
}

TOO_FEW = "So few users show no effect. Take more days, or more users a day."


class Field(NamedTuple):
    """A field of the form, as it was filled in."""

    name: str
    label: str
    help: str
    value: str
    problem: str


class Line(NamedTuple):
    """The users that one way of looking needs."""

    name: str
    each: str
    total: str
    days: str


class Answer(NamedTuple):
    """What a plan needs."""

    sentence: str
    lines: list[Line]
    body: str
    """The same request to the API, as JSON."""
    path: str
    plan: str
    """The plan of an experiment as JSON; an empty text if it can have none."""


class Screen(NamedTuple):
    """The planner."""

    kind: str
    fields: list[Field]
    units: list[tuple[str, str]]
    unit: str
    others: list[str]
    """Problems with no field beside which they could be."""
    answer: Answer | None


def screen(asked: Mapping[str, str]) -> Screen:
    """Return the planner; *asked* are the fields that were filled in, as text."""
    kind = "mean" if asked.get("kind") == "mean" else "rate"
    problems, answer = dict[str, Any](), None
    if asked.keys() - {"kind"} or asked.get("kind", kind) != kind:
        problems = FORMS[kind].validate(asked)
        if not problems:
            problems, answer = _answer(kind, FORMS[kind].load(asked))
    fields = [
        Field(
            name,
            label,
            help,
            asked.get(name, DEFAULTS.get(name, "")),
            " ".join(problems.pop(name, ())),
        )
        for name, label, help in (*LABELS[kind], *MORE)
    ]
    others = [f"{name}: {' '.join(texts)}" for name, texts in problems.items()]
    unit = asked.get("effectIs", "absolute")
    return Screen(kind, fields, UNITS[kind], unit, others, answer)


def _answer(kind: str, form: Mapping[str, Any]) -> tuple[dict[str, Any], Answer | None]:
    """Return what is wrong with the plan, or what it needs."""
    body = _body(kind, form)
    if "effect" not in form:
        effect = _found_in_time(body, int(form["days"] * form["users_per_day"]))
        if effect is None:
            return {"days": [TOO_FEW]}, None
        body["minimumEffect"] = effect
    if refused := SIZES[kind].validate(body):
        wrong = refused.get("baselineMean") or [
            "The effect is too small or too large for this plan."
            if kind == "mean"
            else "The effect is too small, or the rate would be above 100 % with it."
        ]
        return {"effect": wrong}, None
    sizes = planning.sample_sizes if kind == "rate" else planning.mean_sample_sizes
    size: Any = sizes(**SIZES[kind].load(body))
    return {}, _said(kind, form, body, size)


def _body(kind: str, form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of the same request to the API, whose rates are shares."""
    shares = {"confidenceLevel": "confidence_level", "power": "power"}
    same = {"usersPerDay": "users_per_day", "variants": "variants"}
    if kind == "rate":
        shares["baselineRate"] = "baseline_rate"
    else:
        same |= {
            "baselineMean": "baseline_mean",
            "standardDeviation": "standard_deviation",
            "covariateCorrelation": "covariate_correlation",
        }
    body = {wire: form[name] for wire, name in same.items() if name in form}
    body |= {wire: form[name] / 100 for wire, name in shares.items() if name in form}
    if "effect" in form:
        is_relative = form["effect_is"] == "relative"
        name = "relativeEffect" if is_relative else "minimumEffect"
        unit = 100 if is_relative or kind == "rate" else 1
        body[name] = form["effect"] / unit
    return body


def _found_in_time(body: Mapping[str, Any], users: int) -> Decimal | None:
    """Return the smallest rise of a rate that so many users show, rounded up."""
    effect = stats.smallest_planned_effect(
        body["baselineRate"],
        users,
        power=body.get("power", Decimal("0.8")),
        confidence_level=body.get("confidenceLevel", Decimal("0.95")),
        variants=int(body.get("variants", 2)),
    )
    if effect is None:
        return None
    return Decimal(effect).quantize(FINEST, ROUND_CEILING)


def _said(
    kind: str,
    form: Mapping[str, Any],
    body: Mapping[str, Any],
    size: stats.PlannedSize | stats.PlannedMeanSize,
) -> Answer:
    """Return what a plan needs, in words and as a table."""
    once = "One look, at the end", size.fixed_horizon
    always = "Looks at any time, and no plan", size.always_valid
    if isinstance(size, stats.PlannedSize):
        ways = [("Looks at any time, with this plan", size.horizon), once, always]
        ends = percentages([size.baseline_rate, size.target_rate])
        path, plan = "sample-size", dict(body)
        plan = {one: plan[one] for one in PLAN if one in plan}
        plan["minimumEffect"] = Decimal(str(size.target_rate)) - body["baselineRate"]
    else:
        ways, plan, path = [always, once], {}, "sample-size/mean"
        ends = amounts([size.baseline_mean, size.target_mean])
    needed = ways[0][1] or size.fixed_horizon
    sentence = (
        f"To find a rise from {ends[0]} to {ends[1]}, {needed.total:,} users are needed"
    )
    if len(set(needed.users_per_variant)) == 1:
        sentence += f", {needed.users_per_variant[0]:,} in each variant"
    if needed.days is not None:
        sentence += f": {needed.days:,} day{'' if needed.days == 1 else 's'}"
    if "effect" not in form and isinstance(size, stats.PlannedSize):
        rise = points([size.target_rate - size.baseline_rate])[0]
        sentence = (
            f"In {form['days']:,f} days, with {form['users_per_day']:,f} users a day, "
            f"the smallest rise that is found is one of {rise} points, "
            f"from {ends[0]} to {ends[1]}"
        )
    lines = [_line(name, one) for name, one in ways]
    return Answer(
        f"{sentence}.", lines, dumps(body), path, dumps({"plan": plan}) if plan else ""
    )


PLAN = ("baselineRate", "minimumEffect", "power", "confidenceLevel")


def _line(name: str, size: Size | None) -> Line:
    if size is None:
        return Line(name, "no number is enough", "", "")
    each = " and ".join(f"{one:,}" for one in sorted(set(size.users_per_variant)))
    days = "" if size.days is None else f"{size.days:,}"
    return Line(name, each, f"{size.total:,}", days)
