"""The life of an experiment: drafted, revised, started, stopped, completed, archived.

Each move is one transaction that checks the stored state and records who did it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple

import peewee

import stats
from models import (
    ARCHIVED,
    FULL,
    NOT_IDS,
    SERVICE,
    Audience,
    Change,
    Conflict,
    Experiment,
    GroupShare,
    Invalid,
    InvalidState,
    Override,
    Variant,
    next_moment,
)
from storage.columns import MICROSECOND, utcnow
from storage.engine import Trouble, database
from targeting import assignment, contradictions
from targeting.decision import COMPLETED, DRAFT, RUNNING, STOPPED

Items = list[dict[str, Any]]
"""Variants as they are written: a dictionary for each."""

MOVES = {
    "start": [DRAFT],
    "stop": [RUNNING],
    "resume": [STOPPED],
    "complete": [RUNNING, STOPPED],
    "archive": [DRAFT, STOPPED, COMPLETED],
    "unarchive": [ARCHIVED],
}
"""The moves, each with the states that allow it."""


class NoRoom(Conflict):
    """An exclusion group has less room left than the experiment takes."""

    def __init__(self, source: str, wanted: int, left: int) -> None:
        super().__init__(
            f"Of {source} {percent(left)} % are left, and the experiment takes "
            f"{percent(wanted)} %.",
            Decimal(wanted) / 100,
            [Decimal(left) / 100],
        )


def percent(hundredths: int) -> str:
    """Return hundredths of a percent in percent, as short as possible: 33.3."""
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")


def draft(
    variants: Items,
    by: str,
    action: str = "create",
    **fields: Any,
) -> Experiment:
    """Create a draft; raise Conflict if the requested key is taken."""
    now = utcnow()
    fields = _with_primary(fields, stats.CONVERSION, None)
    made = {"created_at": now, "updated_at": now, **fields}
    made.setdefault("primary_metric", stats.CONVERSION)
    _refuse_plan(made)
    made["variants_made"] = len(variants)
    with database.atomic():
        if fields.get("key") is None:
            made["key"] = _free_key(fields["name"])
        else:
            _refuse_taken(fields["key"])
        experiment = Experiment.create(**made)
        _write_variants(
            experiment, [{**item, "key": f"v{n}"} for n, item in enumerate(variants, 1)]
        )
        Change.note(experiment, by, action, {}, _settings(experiment))
    return experiment


def _with_primary(
    changes: dict[str, Any], primary: str, metrics: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return the changes with a primary metric that agrees with the metrics.

    *primary* and *metrics* are those without the changes. Raise Invalid if the changes
    name two primary metrics, or if they give the primary one another role.
    """
    metrics = changes.get("metrics", metrics) or []
    named = [one["name"] for one in metrics if one["role"] == stats.PRIMARY]
    if "metrics" in changes and named and "primary_metric" not in changes:
        return {**changes, "primary_metric": named[0]}
    primary = changes.get("primary_metric", primary)
    if named and named[0] != primary:
        message = f"The metrics name {named[0]!r} as the primary one."
        raise Invalid("primaryMetric", message)
    for place, one in enumerate(metrics):
        if not named and one["name"] == primary:
            message = f"{primary!r} is the primary metric."
            raise Invalid(f"metrics.{place}.role", message)
    return {**changes}


LOWEST = Decimal("0.000001")  # beyond it, planned sizes exceed the range of a float


def _refuse_plan(fields: Mapping[str, Any]) -> None:
    """Raise Invalid if the plan is not for the primary metric.

    *fields* are those of an experiment.
    """
    plan = fields.get("plan")
    for one in fields.get("metrics") or ():
        if not plan or one["role"] != stats.PRIMARY:
            continue
        if one["kind"] != stats.CONVERSION:
            message = f"A plan is for a conversion rate, and {one['name']!r} is none."
            raise Invalid("plan", message)
        fall = plan["baseline_rate"] - plan["minimum_effect"]
        if one["direction"] == stats.DECREASE and fall < LOWEST:
            message = f"Less is better, and no rate is below {LOWEST:f}."
            raise Invalid("plan.minimumEffect", message)


def _refuse_taken(key: str, but: str | None = None) -> None:
    """Raise Conflict if an experiment has this key, other than the one excepted."""
    taken = Experiment.get_or_none(key=key)
    if taken and taken.id != but:
        raise Conflict(f"The key {key!r} is taken.", key)


def _free_key(name: str) -> str:
    """Return a slug of the name, with a number if the slug is taken."""
    kept = "".join(c if c.isascii() and c.isalnum() else " " for c in name.lower())
    slug = "-".join(kept.split())[:60].strip("-") or "experiment"
    is_free = slug not in NOT_IDS and Experiment.get_or_none(key=slug) is None
    slug = slug if is_free else f"{slug}-"
    if not slug.endswith("-"):
        return slug
    taken = {
        row.key
        for row in Experiment.select(Experiment.key).where(Experiment.key ** f"{slug}%")
    }
    suffix = 2
    while f"{slug}{suffix}" in taken:
        suffix += 1
    return f"{slug}{suffix}"


def duplicate(experiment: Experiment, by: str) -> Experiment:
    """Create a draft like this one, without its end date and its outcome."""
    copied = (
        *("name", "description", "hypothesis", "type", "audience_id"),
        *("primary_metric", "metrics", "plan", "traffic", "exclusion_group"),
    )
    return draft(
        [
            {name: getattr(variant, name) for name in Variant.GIVEN}
            for variant in experiment.variants
        ],
        by,
        "duplicate",
        **{name: getattr(experiment, name) for name in copied},
    )


def revise(
    experiment: Experiment,
    changes: dict[str, Any],
    check: Callable[[Items], Items],
    by: str,
) -> None:
    """Write the changes to a draft, unless it has changed since it was read.

    A variant in the changes that has a known id keeps the fields that the change
    leaves out; *check* raises if the resulting list is not valid.
    """
    refuse_unless_draft(experiment)
    fields = _with_primary(changes, experiment.primary_metric, experiment.metrics)
    _refuse_plan({**experiment.__data__, **fields})
    variants = fields.pop("variants", None)
    if variants is not None:
        variants = check(_merged(experiment, variants))
    read_at = experiment.updated_at
    with _recorded(experiment, "update", by):
        if "key" in fields:
            _refuse_taken(fields["key"], but=experiment.id)
        if variants is not None:
            fields["variants_made"] = _number(variants, experiment.variants_made)
        # Later than before, even if the clock stands still: readers compare it.
        fields["updated_at"] = max(utcnow(), read_at + MICROSECOND)
        unchanged = (
            (Experiment.status == DRAFT)
            & Experiment.archived_at.is_null()
            & (Experiment.updated_at == read_at)
        )
        if not _written(experiment, fields, unchanged):
            refuse_unless_draft(experiment)
            raise Conflict(
                "The experiment was changed meanwhile; read it again.",
                experiment.updated_at,
                [read_at],
            )
        if variants is not None:
            _write_variants(experiment, variants)
            _drop_overrides(experiment, by)


def _merged(experiment: Experiment, variants: Items) -> Items:
    """Return the whole new list: an item with a known id keeps omitted fields."""
    whole = []
    for position, item in enumerate(variants):
        known = {}
        if item.get("key") is not None:
            old = experiment.variant(item["key"])
            if old is None:
                message = f"The experiment has no variant {item['key']!r}."
                raise Invalid(f"variants.{position}.id", message)
            known = {name: getattr(old, name) for name in Variant.GIVEN}
        whole.append({**known, **item})
    return whole


def _number(variants: Items, made: int) -> int:
    """Give an id to each new variant; return how many ids were ever given."""
    for item in variants:
        if item.get("key") is None:
            made += 1
            item["key"] = f"v{made}"
    return made


def refuse_unless_draft(experiment: Experiment) -> None:
    """Raise InvalidState unless the experiment is a draft."""
    if experiment.archived_at or experiment.state != DRAFT:
        raise InvalidState(experiment.state_or_archived, [DRAFT])


def _write_variants(experiment: Experiment, variants: Items) -> None:
    Variant.delete().where(Variant.experiment == experiment.id).execute()
    rows = [
        {
            "experiment": experiment.id,
            "position": position,
            "key": item["key"],
            **{name: item.get(name) for name in Variant.GIVEN},
        }
        for position, item in enumerate(variants)
    ]
    Variant.insert_many(rows).execute()
    experiment.forget_variants()


def _drop_overrides(experiment: Experiment, by: str) -> None:
    """Remove the overrides whose variant does not exist any more."""
    kept = Variant.select(Variant.key).where(Variant.experiment == experiment.id)
    lost = Override.select(Override.user_id).where(
        Override.experiment == experiment.id, Override.variant.not_in(kept)
    )
    for row in list(lost):
        remove_override(experiment, row.user_id, by)


def refuse_impossible(experiment: Experiment, move: str) -> None:
    """Raise InvalidState unless the state of the experiment allows this move."""
    if experiment.state_or_archived not in MOVES[move]:
        raise InvalidState(experiment.state_or_archived, MOVES[move])


def start(experiment: Experiment, by: str) -> None:
    """Open enrolment, with the audience's rules frozen as they are now.

    Only a draft can start. Raise NoRoom if its exclusion group is too full.
    """
    with _recorded(experiment, "start", by) as now:
        if (
            experiment.end_date
            and experiment.end_date <= now
            and experiment.status == DRAFT
        ):
            raise Conflict(
                "The endDate has passed; set a later one, or null, first.",
                experiment.end_date,
            )
        audience = Audience.get_or_none(id=experiment.audience_id)
        _move(
            experiment,
            now,
            MOVES["start"],
            status=RUNNING,
            start_date=now,
            audience_rules=audience and audience.rule_tree,
            audience_snapshot_at=now if audience else None,
            horizon=planned_users(experiment),
        )
        _take_share(experiment)


def planned_users(experiment: Experiment) -> int | None:
    """Return for how many users its test is planned; None without a plan."""
    plan = experiment.directed_plan
    if plan is None:
        return None
    splits = [variant.split for variant in experiment.variants]
    return stats.planned_horizon(plan, splits)


def _take_share(experiment: Experiment) -> None:
    """Take the experiment's share of its exclusion group, if it is in one.

    An experiment that released its share when it was archived takes the same share
    again, because its users are in it. Without users, it may take another share.
    Raise NoRoom if too little is left.
    """
    group, wanted = experiment.exclusion_group, experiment.traffic
    if group is None or GroupShare.is_held_by(experiment):
        return
    taken, before = GroupShare.taken(group), GroupShare.of(experiment)
    lost = assignment.overlap(before, taken)
    if before and not lost:
        GroupShare.hold_again(experiment)
        return
    if before and experiment.participants:
        own = f"the experiment's own range of the group {group!r}"
        raise NoRoom(own, wanted, wanted - lost)
    left = FULL - assignment.room(taken)
    if wanted > left:
        raise NoRoom(f"the group {group!r}", wanted, left)
    GroupShare.replace_with(experiment, assignment.allotted(taken, wanted))


def stop(experiment: Experiment, by: str) -> None:
    """Close enrolment; participants keep their variants and still convert."""
    with _recorded(experiment, "stop", by) as now:
        end = _end(experiment, now)
        _move(experiment, now, MOVES["stop"], status=STOPPED, end_date=end)


def resume(experiment: Experiment, by: str) -> None:
    """Open enrolment again, with the same hash and the same variants.

    Raise NoRoom if its share of the group was taken while it was archived.
    """
    with _recorded(experiment, "resume", by) as now:
        _move(experiment, now, MOVES["resume"], status=RUNNING, end_date=None)
        _take_share(experiment)


def complete(
    experiment: Experiment,
    conclusion: str,
    winner_variant_id: str | None,
    note: str | None,
    by: str,
) -> None:
    """Make the results final; a winner is given to every user from now on."""
    if winner_variant_id and not experiment.variant(winner_variant_id):
        message = f"The experiment has no variant {winner_variant_id!r}."
        raise Invalid("winnerVariantId", message)
    with _recorded(experiment, "complete", by) as now:
        is_running = experiment.status == RUNNING
        end = _end(experiment, now) if is_running else experiment.end_date
        _move(
            experiment,
            now,
            MOVES["complete"],
            status=COMPLETED,
            end_date=end,
            completed_at=now,
            conclusion=conclusion,
            winner_variant_id=winner_variant_id,
            note=note,
        )
        GroupShare.free(experiment)


def archive(experiment: Experiment, by: str) -> None:
    """Hide it from lists and refuse every other move; idempotent."""
    with _recorded(experiment, "archive", by) as now:
        if experiment.archived_at:  # the second of two at once is no error
            return
        _move(experiment, now, MOVES["archive"], archived_at=now)
        GroupShare.free(experiment)


def unarchive(experiment: Experiment, by: str) -> None:
    """Show it in lists again, in the state that it had; idempotent.

    This takes no share of a group; `resume` does.
    """
    with _recorded(experiment, "unarchive", by) as now:
        if experiment.archived_at:
            fields = {"updated_at": now, "archived_at": None}
            _written(experiment, fields, Experiment.archived_at.is_null(False))


def override(
    experiment: Experiment, user_id: str, variant_id: str, by: str
) -> tuple[Override, bool]:
    """Force a variant for a user in any state; return it, and whether it is new."""
    with database.atomic():
        _reload(experiment)  # another request may have replaced a draft's variants
        write_down_end(experiment, utcnow())
        if not experiment.variant(variant_id):
            message = f"The experiment has no variant {variant_id!r}."
            raise Invalid("variantId", message)
        row = Override(experiment=experiment.id, user_id=user_id, variant=variant_id)
        before = Override.of(experiment.id, [user_id]).get(user_id)
        if before is None:
            row.created_at = next_moment(
                Override.created_at, Override.experiment == experiment.id
            )
        Override.insert(row.__data__).on_conflict(
            conflict_target=[Override.experiment, Override.user_id],
            preserve=[Override.variant],
        ).execute()
        if before != variant_id:
            Change.note(
                experiment,
                by,
                "override",
                {"variant_id": before},
                {"variant_id": variant_id},
                user_id,
            )
    return row, before is None


def remove_override(experiment: Experiment, user_id: str, by: str) -> Override | None:
    """Let the hash decide for a user again; return the removed override, if any."""
    with database.atomic():
        before = Override.of(experiment.id, [user_id]).get(user_id)
        if before is None:
            return None
        write_down_end(experiment, utcnow())
        Override.delete().where(
            Override.experiment == experiment.id, Override.user_id == user_id
        ).execute()
        Change.note(
            experiment,
            by,
            "remove_override",
            {"variant_id": before},
            {"variant_id": None},
            user_id,
        )
    return Override(experiment=experiment.id, user_id=user_id, variant=before)


def write_down_end(experiment: Experiment, now: datetime) -> None:
    """Record the stop of a running experiment whose end date has passed.

    There is no job that does so at the end date. Every writer and every reader of
    the history calls this first. The stored status changes in the same transaction,
    and only a running experiment can stop, so there is exactly one entry.
    """
    with database.atomic():
        ended = (
            Experiment.update(status=STOPPED)
            .where(
                Experiment.id == experiment.id,
                Experiment.status == RUNNING,
                Experiment.end_date <= now,
            )
            .execute()
        )
        if ended:
            _reload(experiment)
            moved = {"status": RUNNING}, {"status": STOPPED}
            Change.note(experiment, SERVICE, "stop", *moved, at=experiment.end_date)


def notice_end(experiment: Experiment) -> None:
    """Record an end date that has passed, if the database can be written.

    If it cannot, the history is read without that entry.
    """
    if experiment.status != RUNNING or experiment.state != STOPPED:
        return
    try:
        write_down_end(experiment, utcnow())
    except peewee.OperationalError as error:
        if database.obj.trouble(error) in (None, Trouble.BUSY):
            raise


@contextmanager
def _recorded(experiment: Experiment, action: str, by: str) -> Iterator[datetime]:
    """Record who changes what, in the transaction of the change.

    The experiment is read again first. Yield the time of the change. An end date
    that has passed by then is recorded before the change, so that the entries are
    in the order of the moves.
    """
    with database.atomic():
        now = utcnow()
        _reload(experiment)
        if experiment.status != experiment.state:
            write_down_end(experiment, now)
        before = _settings(experiment)
        yield now
        after = _settings(experiment)
        if after != before:
            Change.note(experiment, by, action, before, after)


class ExperimentWarning(NamedTuple):
    """Something that whoever creates or starts an experiment should know."""

    code: str
    message: str


def warnings(experiment: Experiment) -> Iterator[ExperimentWarning]:
    """Yield what whoever creates or starts the experiment should know."""
    yield from _about_audience(experiment)
    if experiment.state == RUNNING:
        yield from _about_flows(experiment)


def warnings_of_start(experiment: Experiment) -> Iterator[ExperimentWarning]:
    """Yield the warnings that the draft would have if it were started now."""
    yield from _about_audience(experiment)
    yield from _about_flows(experiment)


def _about_audience(experiment: Experiment) -> Iterator[ExperimentWarning]:
    id, rules = experiment.audience_id, _rules(experiment)
    if id is not None and rules is None:
        yield ExperimentWarning(
            "AUDIENCE_NOT_DEFINED",
            f"The audience {id!r} is not defined here: the caller decides who is in.",
        )
    yield from _never_true(rules)


def _about_flows(experiment: Experiment) -> Iterator[ExperimentWarning]:
    flows = [variant.flow_id for variant in experiment.variants if variant.flow_id]
    for flow in dict.fromkeys(flows):
        if flows.count(flow) > 1:
            yield ExperimentWarning(
                "FLOW_IN_TWO_VARIANTS",
                f"The flow {flow!r} is in two variants: they may not differ at all.",
            )
    for other, flow in _running_with(experiment, flows):
        yield ExperimentWarning(
            "FLOW_IN_TWO_EXPERIMENTS",
            f"The flow {flow!r} is in the running experiment {other} too: its users "
            "get it whatever this one deals.",
        )


def _rules(experiment: Experiment) -> Any:
    """Return the rules that decide who is in: frozen ones, or those of the audience."""
    if experiment.start_date:
        return experiment.audience_rules
    audience = Audience.get_or_none(id=experiment.audience_id)
    return audience and audience.rule_tree


def _never_true(rules: Any) -> Iterator[ExperimentWarning]:
    """Yield a warning for each rule that is true for nobody, up to ten of them."""
    whole = "ruleTree"
    for path, reason in islice(contradictions.never_true(rules, whole), 10):
        effect = " Nobody can be enrolled." if path == whole else ""
        yield ExperimentWarning(
            "RULE_NEVER_TRUE",
            f"The rule {path} of the audience can never be true: {reason}.{effect}",
        )


def _running_with(
    experiment: Experiment, flow_ids: Sequence[str]
) -> list[tuple[str, str]]:
    """Return the other running experiments that use these flows, each with its flow."""
    rows: Any = (
        Variant.select(Variant.experiment, Variant.flow_id, Experiment.created_at)
        .join(Experiment)
        .where(
            Variant.flow_id.in_(flow_ids),
            Experiment.id != experiment.id,
            Experiment.archived_at.is_null(),
            Experiment._status_at(utcnow()) == RUNNING,
        )
        .order_by(Experiment.created_at, Variant.experiment, Variant.flow_id)
        .distinct()
    )
    return [(id, flow_id) for id, flow_id, _ in rows.tuples()]


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Return everything that can change, in the form that columns store."""
    unrecorded = (
        *("id", "created_at", "updated_at", "variants_made", "audience_rules"),
        *("horizon", "horizon_at"),
    )
    settings: dict[str, Any] = {
        name: field.db_value(experiment.__data__.get(name))
        for name, field in experiment._meta.fields.items()
        if name not in unrecorded
    }
    settings["variants"] = [
        {name: getattr(variant, name) for name in ("key", *Variant.GIVEN)}
        for variant in experiment.variants
    ]
    return settings


def _end(experiment: Experiment, now: datetime) -> datetime:
    """Return when enrolment ends: now, but never before it began."""
    return max(now, experiment.start_date or now)


def _move(
    experiment: Experiment, now: datetime, allowed: list[str], **fields: Any
) -> None:
    """Write *fields* if the stored status is still one of *allowed*.

    This compares and sets in a single statement, so that only one of two racing
    requests succeeds.
    """
    still = Experiment.archived_at.is_null() & Experiment._status_at(now).in_(allowed)
    if not _written(experiment, {"updated_at": now, **fields}, still):
        raise InvalidState(experiment.state_or_archived, allowed)


def _written(experiment: Experiment, fields: dict[str, Any], condition: Any) -> bool:
    """Write *fields* if the condition still holds; return whether it did.

    The object then has the values that a reader of the database sees; if the
    condition failed, it is read again.
    """
    query = Experiment.update(**fields).where(Experiment.id == experiment.id, condition)
    if not query.execute():
        _reload(experiment)
        return False
    for name, value in fields.items():
        column = experiment._meta.fields[name]
        experiment.__data__[name] = column.python_value(column.db_value(value))
    return True


def _reload(experiment: Experiment) -> None:
    experiment.forget_variants()
    experiment.__data__.update(Experiment.get_by_id(experiment.id).__data__)
    experiment._dirty.clear()
