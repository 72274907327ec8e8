"""Experiments, their variants, and what they give to whom."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from peewee import (
    SQL,
    BigIntegerField,
    Case,
    Check,
    CompositeKey,
    ForeignKeyField,
    IntegerField,
    TextField,
    fn,
)

from models.errors import ARCHIVED
from stats import PRIMARY, MetricSettings, Plan
from storage.columns import MICROSECOND, Json, Utc, new_id, utcnow
from storage.paging import Listing, Page
from storage.table import Statement, Table, one_of
from targeting import assignment, decision
from targeting.decision import DRAFT, RUNNING, STATUSES, STOPPED, Definition

CONCLUSIONS = ("won", "lost", "inconclusive", "invalid")

ID_PREFIX = "exp_"  # every experiment id has it, and no key may

# What programs send by mistake when they have no id, in lower case.
NOT_IDS = {"undefined", "null", "none", "nan", "[object object]"}

FULL = 10_000  # 100 % in hundredths of a percent, and the number of buckets


class Experiment(Table):
    """A test of variants against each other, from draft to conclusion."""

    id = TextField(primary_key=True, default=new_id("exp"))
    key = TextField(unique=True)
    name = TextField()
    description = TextField(null=True)
    hypothesis = TextField(null=True)
    type = TextField()
    status = TextField(default=DRAFT)
    audience_id = TextField(null=True)
    primary_metric = TextField()
    metrics = Json(null=True)
    plan = Json(null=True)
    traffic = IntegerField(default=FULL)
    start_date = Utc(null=True)
    end_date = Utc(null=True)
    completed_at = Utc(null=True)
    archived_at = Utc(null=True)
    conclusion = TextField(null=True)
    winner_variant_id = TextField(null=True)
    note = TextField(null=True)
    variants_made = IntegerField()
    created_at = Utc(default=utcnow, index=True)
    updated_at = Utc(default=utcnow)
    exclusion_group = TextField(null=True)
    audience_rules = Json(null=True)
    audience_snapshot_at = Utc(null=True)
    horizon = BigIntegerField(null=True)
    """For how many users its test is planned; frozen at the start, None without."""
    horizon_at = Utc(null=True)
    """When so many were enrolled, from the look at that moment on."""

    class Meta:
        constraints = [
            Check(f"status IN {STATUSES}"),
            Check(f"traffic BETWEEN 1 AND {FULL}"),
            Check("end_date >= start_date"),
            Check("(start_date IS NULL) = (status = 'draft')"),
        ]

    @classmethod
    def named(cls, name: str) -> Experiment | None:
        """Return the experiment with this id or this key, if there is one.

        An id begins with `exp_`, and a key may not, so that no key hides an id.
        """
        statement = BY_ID if name.startswith(ID_PREFIX) else BY_KEY
        return next(iter(statement.rows(cls, name)), None)

    @property
    def state(self) -> str:
        """The status now: a running experiment whose end has passed is stopped."""
        return decision.state_at(utcnow(), self.status, self.end_date)

    @property
    def state_or_archived(self) -> str:
        """The state, or "archived", which refuses every move but one."""
        return ARCHIVED if self.archived_at else self.state

    def is_open_at(self, now: datetime) -> bool:
        """Tell whether new users are enrolled at this moment."""
        state = decision.state_at(now, self.status, self.end_date)
        return self.archived_at is None and state == RUNNING

    @property
    def metric_settings(self) -> dict[str, MetricSettings]:
        """The settings of each metric that has some, the primary one first."""
        given = [MetricSettings(**one) for one in self.metrics or ()]
        primary = MetricSettings(self.primary_metric, PRIMARY)
        if not any(one.role == PRIMARY for one in given):
            given.insert(0, primary)
        given.sort(key=lambda one: one.role != PRIMARY)
        return {one.name: one for one in given}

    @property
    def directed_plan(self) -> Plan | None:
        """The plan, whose effect is a fall if less of the primary metric is better."""
        if self.plan is None:
            return None
        return Plan(**self.plan).towards(self.metric_settings[self.primary_metric])

    @property
    def own_sums(self) -> dict[str, MetricSettings]:
        """The settings of the metrics that need more than everyone's counts."""
        if not self.metrics:
            return {}
        settings = self.metric_settings
        return {name: one for name, one in settings.items() if one.has_own_sums}

    @property
    def definition(self) -> Definition:
        """What decides which variant a user gets, as an immutable value."""
        return Definition(
            id=self.id,
            key=self.key,
            status=self.status,
            is_archived=self.archived_at is not None,
            end_date=self.end_date,
            variants=tuple(
                decision.DefinedVariant(
                    row.key, row.name, row.split, row.flow_id, row.config
                )
                for row in self.variants
            ),
            traffic=self.traffic,
            rules=self.audience_rules,
            group=self.exclusion_group,
            share=tuple(GroupShare.of(self)) if self.exclusion_group else (),
            winner=self.winner_variant_id,
        )

    @classmethod
    def _status_at(cls, now: datetime) -> Case:
        over = (cls.status == RUNNING) & (cls.end_date <= now)
        return Case(None, [(over, STOPPED)], cls.status)

    @property
    def variants(self) -> list[Variant]:
        """The variants in their order; the first is the control."""
        if "_variants" not in self.__dict__:
            self._variants = VARIANTS.rows(Variant, self.id)
        return self._variants

    def forget_variants(self) -> None:
        """Read the variants from the database again at the next use."""
        self.__dict__.pop("_variants", None)

    def variant(self, id: str) -> Variant | None:
        """Return the variant with this id, if the experiment has it."""
        return next((item for item in self.variants if item.key == id), None)

    @property
    def participants(self) -> int:
        """The number of enrolled users, from the exact tallies of the variants."""
        return sum(variant.participants for variant in self.variants)


class Variant(Table):
    """What a share of the users gets, and how many users have it."""

    GIVEN = ("name", "split", "flow_id", "config")

    experiment = ForeignKeyField(Experiment, on_delete="CASCADE")
    key = TextField()
    position = IntegerField()
    name = TextField()
    split = IntegerField()
    flow_id = TextField(null=True)
    config = Json(null=True)

    participants: int
    """How many users have it, in objects that `read` has made."""

    class Meta:
        primary_key = CompositeKey("experiment", "key")
        indexes = ((("experiment", "name"), True),)
        constraints = [Check(f"split BETWEEN 1 AND {FULL}")]

    @classmethod
    def of(cls, experiment_ids: Sequence[Any]) -> Any:
        """Return the query of the rows for `read`, each experiment's in order."""
        number = ParticipantTally.select(fn.SUM(ParticipantTally.participants)).where(
            ParticipantTally.experiment == cls.experiment,
            ParticipantTally.variant == cls.key,
        )
        return (
            cls.select(*cls._meta.sorted_fields, number)
            .where(cls.experiment.in_(experiment_ids))
            .order_by(cls.experiment, cls.position)
        )

    @classmethod
    def read(cls, stored: Sequence[Any]) -> Variant:
        *columns, number = stored
        variant = super().read(columns)
        variant.participants = int(number or 0)
        return variant


BY_ID = Statement(lambda mark: Experiment.select().where(Experiment.id == mark))
BY_KEY = Statement(lambda mark: Experiment.select().where(Experiment.key == mark))
VARIANTS = Statement(lambda mark: Variant.of([mark]))

# A table with this constraint says that it depends on Variant, which is made before it.
VARIANT_OF_THE_SAME_EXPERIMENT = SQL(
    'FOREIGN KEY ("experiment_id", "variant") REFERENCES "variant" '
    '("experiment_id", "key")'
)


def next_moment(column: Utc, condition: Any = True) -> datetime:
    """Return the time for a new row, later than that of every other row.

    So a walk through the list never meets a row that is newer than the walk, even if
    the clock was set back.
    """
    latest = column.model.select(fn.MAX(column)).where(condition).scalar()
    now = utcnow()
    return now if latest is None else max(now, latest + MICROSECOND)


class Override(Table):
    """A variant that is forced for one user, which counts nowhere."""

    experiment = ForeignKeyField(Experiment, index=False)
    user_id = TextField()
    variant = TextField()
    created_at = Utc(default=utcnow)

    class Meta:
        primary_key = CompositeKey("experiment", "user_id")
        depends_on = [Variant]
        # Deferred: a draft's variants are replaced, and exist again at the commit.
        constraints = [
            SQL(f"{VARIANT_OF_THE_SAME_EXPERIMENT.sql} DEFERRABLE INITIALLY DEFERRED")
        ]

    @classmethod
    def of(cls, experiment_id: str, user_ids: Sequence[str]) -> dict[str, str]:
        """Return the forced variant of each of these users who has one."""
        rows: Any = cls.select(cls.user_id, cls.variant).where(
            cls.experiment == experiment_id, one_of(cls.user_id, user_ids)
        )
        return dict(rows.tuples())

    @classmethod
    def page(cls, experiment: Experiment, page: Page) -> Listing:
        """Return a page of an experiment's overrides, newest first."""
        rows = cls.select().where(cls.experiment == experiment.id)
        order, listed = (cls.created_at, cls.user_id), ("overrides", experiment.id)
        return page.of(lambda _: rows, order, listed)


class GroupShare(Table):
    """A range of an exclusion group's buckets, and the experiment that has it.

    `held` is the group while the experiment holds the range, and null afterwards.
    Every range begins where a gap begins, so two ranges that overlap have the same
    first bucket, and the unique index refuses the second one.
    """

    experiment = ForeignKeyField(Experiment, index=False)
    held = TextField(null=True)
    first = IntegerField()
    last = IntegerField()

    class Meta:
        primary_key = CompositeKey("experiment", "first")
        indexes = ((("held", "first"), True),)
        constraints = [Check(f"0 <= first AND first <= last AND last < {FULL}")]

    @classmethod
    def of(cls, experiment: Experiment) -> list[assignment.Range]:
        """Return the ranges that the experiment has, or had, in order."""
        rows = cls.select().where(cls.experiment == experiment.id).order_by(cls.first)
        return [assignment.Range(row.first, row.last) for row in rows]

    @classmethod
    def others(cls, experiment_id: str, group: str | None) -> list[str]:
        """Return the other experiments that hold a share of this exclusion group."""
        if group is None:
            return []
        rows = cls.select(cls.experiment).where(
            cls.held == group, cls.experiment != experiment_id
        )
        return sorted({row.experiment_id for row in rows})

    @classmethod
    def is_held_by(cls, experiment: Experiment) -> bool:
        """Tell whether the experiment holds its share now."""
        held = cls.held.is_null(False)
        return cls.get_or_none(cls.experiment == experiment.id, held) is not None

    @classmethod
    def taken(cls, group: str) -> list[assignment.Range]:
        """Return the ranges of this group that any experiment holds."""
        rows = cls.select().where(cls.held == group)
        return [assignment.Range(row.first, row.last) for row in rows]

    @classmethod
    def hold_again(cls, experiment: Experiment) -> None:
        """Let the experiment hold the share again that it had."""
        group = experiment.exclusion_group
        cls.update(held=group).where(cls.experiment == experiment.id).execute()

    @classmethod
    def replace_with(
        cls, experiment: Experiment, share: list[assignment.Range]
    ) -> None:
        """Let the experiment hold this share, and forget the one that it had."""
        cls.delete().where(cls.experiment == experiment.id).execute()
        group = experiment.exclusion_group
        for first, last in share:
            cls.create(experiment=experiment.id, held=group, first=first, last=last)

    @classmethod
    def free(cls, experiment: Experiment) -> None:
        """Release the experiment's share; its ranges can still be read."""
        cls.update(held=None).where(cls.experiment == experiment.id).execute()


class ParticipantTally(Table):
    """How many users have a variant: the sum over all slots.

    Each writer adds to the row of its slot, with the rows that it counts.
    """

    experiment = ForeignKeyField(Experiment, index=False)
    variant = TextField()
    slot = IntegerField()
    participants = BigIntegerField()

    class Meta:
        primary_key = CompositeKey("experiment", "variant", "slot")
        depends_on = [Variant]
        constraints = [VARIANT_OF_THE_SAME_EXPERIMENT, Check("participants >= 1")]
