"""The life of an experiment: drafted, revised, started, stopped, completed, archived.

Each move is one transaction that asks the stored state and writes down who did it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import peewee
from peewee import Case, fn

from models import (
    COMPLETED,
    DRAFT,
    NOT_IDS,
    RUNNING,
    SERVICE,
    STOPPED,
    Audience,
    Change,
    Conflict,
    Experiment,
    GroupShare,
    Invalid,
    InvalidState,
    Override,
    Variant,
)
from storage.columns import MICROSECOND, utcnow
from storage.engine import Trouble, database


def draft(
    variants: list[dict[str, Any]],
    by: str,
    action: str = "create",
    **fields: Any,
) -> Experiment:
    """Create a draft; raise Conflict where its explicit key is taken."""
    now = utcnow()
    made = {"created_at": now, "updated_at": now, **fields}
    made["variants_made"] = len(variants)
    with database.atomic():
        if fields.get("key") is None:
            made["key"] = _free_key(fields["name"])
        elif Experiment.select().where(Experiment.key == fields["key"]).exists():
            raise Conflict(f"The key {fields['key']!r} is taken.", fields["key"])
        experiment = Experiment.create(**made)
        _write_variants(
            experiment, [{**item, "key": f"v{n}"} for n, item in enumerate(variants, 1)]
        )
        Change.note(experiment, by, action, {}, _settings(experiment))
    return experiment


def _free_key(name: str) -> str:
    """Return a slug of the name, with a suffix where that is taken."""
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
    """Create a draft like this one; its end and its outcome are not copied."""
    copied = (
        *("name", "description", "hypothesis", "type", "audience_id"),
        *("primary_metric", "plan", "traffic", "exclusion_group"),
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


def merged(
    experiment: Experiment, variants: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the new whole list: an item with a known id keeps what it omits."""
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


def revise(
    experiment: Experiment,
    variants: list[dict[str, Any]] | None,
    by: str,
    **fields: Any,
) -> None:
    """Write the fields given; only a draft, and only as it was when read."""
    refuse_unless_draft(experiment)
    read_at = experiment.updated_at
    with _recorded(experiment, "update", by):
        if "key" in fields:
            taken = Experiment.get_or_none(key=fields["key"])
            if taken and taken.id != experiment.id:
                raise Conflict(f"The key {fields['key']!r} is taken.", fields["key"])
        if variants is not None:
            for item in variants:
                if item.get("key") is None:
                    experiment.variants_made += 1
                    item["key"] = f"v{experiment.variants_made}"
            fields["variants_made"] = experiment.variants_made
        # utcnow may stand still; what was read must not look unchanged.
        fields["updated_at"] = max(utcnow(), read_at + MICROSECOND)
        written = (
            Experiment.update(**fields)
            .where(
                Experiment.id == experiment.id,
                Experiment.status == DRAFT,
                Experiment.archived_at.is_null(),
                Experiment.updated_at == read_at,
            )
            .execute()
        )
        if not written:
            _reload(experiment)
            refuse_unless_draft(experiment)
            raise Conflict(
                "The experiment was changed meanwhile; read it again.",
                experiment.updated_at,
                [read_at],
            )
        if variants is not None:
            _write_variants(experiment, variants)
            _drop_overrides(experiment, by)


def refuse_unless_draft(experiment: Experiment) -> None:
    """Raise InvalidState where the experiment is no draft any more."""
    if experiment.archived_at or experiment.state != DRAFT:
        raise InvalidState(_told(experiment), [DRAFT])


def _write_variants(experiment: Experiment, variants: list[dict[str, Any]]) -> None:
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


def _drop_overrides(experiment: Experiment, by: str) -> None:
    """Remove those to a variant that the experiment has no more."""
    kept = Variant.select(Variant.key).where(Variant.experiment == experiment.id)
    lost = Override.select(Override.user_id).where(
        Override.experiment == experiment.id, Override.variant.not_in(kept)
    )
    for row in list(lost):
        remove_override(experiment, row.user_id, by)


def start(experiment: Experiment, by: str) -> None:
    """Open enrolment, by the audience's rules of this moment, from now on.

    Only a draft can start. Raise NoRoom where its exclusion group is too full.
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
        meant = Audience.get_or_none(id=experiment.audience_id)
        _move(
            experiment,
            now,
            [DRAFT],
            status=RUNNING,
            start_date=now,
            audience_rules=meant and meant.rule_tree,
            audience_snapshot_at=now if meant else None,
        )
        if experiment.exclusion_group:
            GroupShare.take(experiment)


def stop(experiment: Experiment, by: str) -> None:
    """Close enrolment; who is enrolled keeps the variant, and still converts."""
    with _recorded(experiment, "stop", by) as now:
        end = max(now, experiment.start_date) if experiment.start_date else now
        _move(experiment, now, [RUNNING], status=STOPPED, end_date=end)


def resume(experiment: Experiment, by: str) -> None:
    """Open enrolment again, with the same hash and the same variants.

    Raise NoRoom where an archiving gave its room in the group away.
    """
    with _recorded(experiment, "resume", by) as now:
        _move(experiment, now, [STOPPED], status=RUNNING, end_date=None)
        if experiment.exclusion_group:
            GroupShare.take(experiment)


def complete(
    experiment: Experiment,
    conclusion: str,
    winner_variant_id: str | None,
    note: str | None,
    by: str,
) -> None:
    """Make the results final; with a winner, everyone is given it from now on."""
    if winner_variant_id and not experiment.variant(winner_variant_id):
        message = f"The experiment has no variant {winner_variant_id!r}."
        raise Invalid("winnerVariantId", message)
    with _recorded(experiment, "complete", by) as now:
        running = Experiment.status == RUNNING
        ends = fn.MAX(Experiment.start_date, Experiment.end_date.db_value(now))
        over = Case(None, [(running, ends)], Experiment.end_date)
        _move(
            experiment,
            now,
            [RUNNING, STOPPED],
            status=COMPLETED,
            end_date=over,
            completed_at=now,
            conclusion=conclusion,
            winner_variant_id=winner_variant_id,
            note=note,
        )
        GroupShare.free(experiment)


def archive(experiment: Experiment, by: str) -> None:
    """Hide from lists and refuse every other move; twice is once."""
    with _recorded(experiment, "archive", by) as now:
        if experiment.archived_at:  # asked here: of two at once, the second is no error
            return
        _move(experiment, now, [DRAFT, STOPPED, COMPLETED], archived_at=now)
        GroupShare.free(experiment)


def unarchive(experiment: Experiment, by: str) -> None:
    """Show in lists again, in the state that was archived; twice is once.

    No room in a group is taken by that: a resume takes it.
    """
    with _recorded(experiment, "unarchive", by) as now:
        if experiment.archived_at:
            Experiment.update(updated_at=now, archived_at=None).where(
                Experiment.id == experiment.id
            ).execute()


def override(
    experiment: Experiment, user_id: str, variant_id: str, by: str
) -> tuple[Override, bool]:
    """Force a variant for a user, in any state; return it, and if it is new."""
    with database.atomic():
        _reload(experiment)  # a draft's variants may have been replaced meanwhile
        write_down_end(experiment, utcnow())
        if not experiment.variant(variant_id):
            message = f"The experiment has no variant {variant_id!r}."
            raise Invalid("variantId", message)
        row = Override(experiment=experiment.id, user_id=user_id, variant=variant_id)
        before = Override.of(experiment.id, [user_id]).get(user_id)
        if before is None:
            row.created_at = Override.next_moment(experiment.id)
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
    """Let the hash decide for a user again; return what was forced, if it was."""
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
    """Write down the stop of a running experiment whose end date has passed.

    Nobody does that at the end date itself, so everybody who writes to the
    history does it first, and who reads the history does it too. The stored
    status changes in the same transaction, and only a running experiment can be
    stopped, so the entry is there once, whoever comes first.
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
    """Write down an end date that has passed, if the database can be written.

    Where it cannot, the history is read as it stands, without that entry.
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
    """Write down who changes what, in the transaction that changes it.

    Yield the moment of the change. An end date that has passed by then is
    written down before it, so that the entries are in the order of the moves.
    """
    with database.atomic():
        now = utcnow()
        _reload(experiment)
        write_down_end(experiment, now)
        before = _settings(experiment)
        yield now
        _reload(experiment)
        after = _settings(experiment)
        if after != before:
            Change.note(experiment, by, action, before, after)


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Return what can be changed, as the columns keep it."""
    untold = ("id", "created_at", "updated_at", "variants_made", "audience_rules")
    settings: dict[str, Any] = {
        name: field.db_value(experiment.__data__.get(name))
        for name, field in experiment._meta.fields.items()
        if name not in untold
    }
    settings["variants"] = [
        {name: getattr(variant, name) for name in ("key", *Variant.GIVEN)}
        for variant in experiment.variants
    ]
    return settings


def _told(experiment: Experiment) -> str:
    return "archived" if experiment.archived_at else experiment.state


def _move(
    experiment: Experiment, now: datetime, allowed: list[str], **fields: Any
) -> None:
    """Write *fields* if the stored status is still one of *allowed*.

    Compare and set in a single statement, so of two racing requests one
    wins and the other is told so.
    """
    with database.atomic():
        moved = (
            Experiment.update(updated_at=now, **fields)
            .where(
                Experiment.id == experiment.id,
                Experiment.archived_at.is_null(),
                Experiment._status_at(now).in_(allowed),
            )
            .execute()
        )
    _reload(experiment)
    if not moved:
        raise InvalidState(_told(experiment), allowed)


def _reload(experiment: Experiment) -> None:
    experiment.__dict__.pop("_variants", None)
    experiment.__data__.update(Experiment.get_by_id(experiment.id).__data__)
    experiment._dirty.clear()
