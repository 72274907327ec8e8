"""The tables, the rules that guard them, and the life of an experiment."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar

import peewee
import simplejson
from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    Case,
    Check,
    CompositeKey,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
    Value,
    fn,
)

import assignment
import audience
from engine import (
    PASSING,
    NotReady,
    Shape,
    Sqlite,
    alone,
    connect,
    database,
    differences,
    examine,
    identity,
    refuse_affected,
    shape,
    trouble,
    using,
)
from migrations import MIGRATIONS
from paging import Fence, Listing, Page

SCHEMA_VERSION = 1 + len(MIGRATIONS)
DRAFT, RUNNING, STOPPED, COMPLETED = "draft", "running", "stopped", "completed"
STATUSES = (DRAFT, RUNNING, STOPPED, COMPLETED)
SERVICE = "abacus"  # who made an entry of the history that nobody asked for
CONCLUSIONS = ("won", "lost", "inconclusive", "invalid")
ID_PREFIX = "exp_"  # of an experiment's id, and of no key
# What programs send where they have no id, in lower case.
NOT_IDS = {"undefined", "null", "none", "nan", "[object object]"}
FULL = 10_000  # hundredths of a percent, and the hash's buckets
MOST_METRICS = 1_000  # of an experiment
CHUNK = 500  # rows a statement: far below any engine's limit of parameters


class Conflict(Exception):
    """What was asked for contradicts something that is stored.

    *current* is what is stored, or asked for; *allowed* what would do instead. Both
    are values: a time is a datetime, and whoever answers writes it down.
    """

    code = "CONFLICT"

    def __init__(self, message: str, current: Any, allowed: Iterable[Any] = ()) -> None:
        self.current, self.allowed = current, list(allowed)
        super().__init__(message)


class NotEnrolled(Conflict):
    """The user is not a participant of the experiment."""

    code = "NOT_ENROLLED"


class BeforeEnrollment(Conflict):
    """The conversion happened before the user was enrolled."""

    code = "BEFORE_ENROLLMENT"


class TooManyMetrics(Conflict):
    """The experiment has as many metrics as one may have, and this is another."""

    code = "TOO_MANY_METRICS"

    def __init__(self, metric: str) -> None:
        super().__init__(
            f"The experiment has {MOST_METRICS:,} metrics already, and {metric!r} is "
            "none of them.",
            metric,
        )


class InvalidState(Conflict):
    """The move is not allowed now."""

    code = "INVALID_STATE"

    def __init__(self, current: str, allowed: Iterable[str]) -> None:
        wanted = sorted(allowed, key=STATUSES.index)
        told = f"The experiment is {current}; it must be {' or '.join(wanted)}."
        super().__init__(told, current, wanted)


class NoRoom(Conflict):
    """What the experiment takes its users from has less room than it takes."""

    def __init__(self, source: str, wanted: int, left: int) -> None:
        super().__init__(
            f"Of {source} {percent(left)} % are left, and the experiment takes "
            f"{percent(wanted)} %.",
            Decimal(wanted) / 100,
            [Decimal(left) / 100],
        )


class Invalid(Exception):
    """A value refers to something that the experiment does not have."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(message)


def utcnow() -> datetime:
    """Return the present moment, to the microsecond, in UTC."""
    return datetime.now(timezone.utc)


def _after(latest: datetime | None, now: datetime) -> datetime:
    """Return now, or the next moment after the latest where that is not earlier."""
    return now if latest is None else max(now, latest + MICROSECOND)


def percent(hundredths: int) -> str:
    """Return hundredths of a percent in percent, as short as it goes: 33.3."""
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")


def new_id(prefix: str) -> Callable[[], str]:
    """Return a maker of ids such as ``exp_4f0c9ba2d17e86b35a10``."""
    return lambda: f"{prefix}_{secrets.token_hex(10)}"


# ----------------------------------------------------------------------------
# Columns
# ----------------------------------------------------------------------------

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)


class Utc(BigIntegerField):
    """A moment, kept as microseconds since 1970: exact, and days are a division."""

    def db_value(self, value: datetime | None) -> int | None:
        return value if value is None else (value - EPOCH) // MICROSECOND

    def python_value(self, value: int | None) -> datetime | None:
        return value if value is None else EPOCH + value * MICROSECOND


class Json(TextField):
    """A JSON value kept as text, so that keys stay in order and numbers exact."""

    def db_value(self, value: Any) -> str | None:
        if value is None:
            return None
        return simplejson.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def python_value(self, value: str | None) -> Any:
        return value if value is None else simplejson.loads(value, use_decimal=True)


class Exact(TextField):
    """A decimal number kept as text: no engine of ours rounds it."""

    def db_value(self, value: Decimal | None) -> str | None:
        return value if value is None else format(value, "f")

    def python_value(self, value: str | None) -> Decimal | None:
        return value if value is None else Decimal(value)


# ----------------------------------------------------------------------------
# Tables
# ----------------------------------------------------------------------------


Row = TypeVar("Row", bound="Table")


class Table(Model):
    class Meta:
        database = database
        legacy_table_names = False

    @classmethod
    def insert_many(cls, rows: Iterable[Mapping[str, Any]], fields: Any = None) -> Any:
        """Return the insert of these rows; raise ValueError where their columns differ.

        peewee takes the columns from the first row, and what only a later row has
        would be stored as null without a word.
        """
        rows = list(rows)
        for row in rows[1:]:
            if row.keys() != rows[0].keys():
                differing = sorted(map(str, row.keys() ^ rows[0].keys()))
                raise ValueError(f"Not every row has the columns {differing}.")
        return super().insert_many(rows, fields)

    @classmethod
    def write_rows(
        cls,
        fields: Sequence[peewee.Field],
        rows: Iterable[Sequence[Any]],
        over: Sequence[peewee.Field] = (),
    ) -> None:
        """Insert rows, whose values are those of *fields*, in this order.

        With *over*, a row that is there with the same values of those is replaced.
        The statement is made once and run for each row. insert_many() makes one that
        spells every row, which takes most of the time that a batch holds the write
        lock.
        """
        rows = [
            [field.db_value(value) for field, value in zip(fields, row, strict=True)]
            for row in rows
        ]
        if not rows:
            return
        query = super().insert_many([[None] * len(fields)], fields)
        if over:
            names = {field.name for field in over}
            kept = [field for field in fields if field.name not in names]
            query = query.on_conflict(conflict_target=over, preserve=kept)
        statement, _ = query.sql()
        with peewee.__exception_wrapper__:
            database.connection().executemany(statement, rows)

    @classmethod
    def named(cls: type[Row], name: str) -> Row | None:
        """Return the row with this id, if there is one."""
        row: Row | None = cls.get_or_none(id=name)
        return row


def one_of(field: peewee.Field, values: Sequence[str] | Sequence[int]) -> Any:
    """Return the condition that a field has one of these values, as stored.

    It says what field.in_() says, without a node for each value: those take longer
    than the query, and a batch asks for its users under the write lock.
    """
    marks = ",".join([database.param] * len(values))
    return peewee.NodeList((field, SQL(f"IN ({marks})", values)))


class Identity(Table):
    """One row: this is a database of Abacus, and its schema has this version."""

    id = TextField(primary_key=True, default=new_id("abacus"))
    schema_version = IntegerField()
    created_at = Utc(default=utcnow)
    probed_at = Utc(null=True)


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

    class Meta:
        constraints = [
            Check(f"status IN {STATUSES}"),
            Check(f"traffic BETWEEN 1 AND {FULL}"),
            Check("end_date >= start_date"),
            Check("(start_date IS NULL) = (status = 'draft')"),
        ]

    # -- reading

    @classmethod
    def named(cls, name: str) -> Experiment | None:
        """Return the experiment with this id or this key, if there is one.

        An id begins with `exp_`, and a key may not, so that no key hides an id.
        """
        column = cls.id if name.startswith(ID_PREFIX) else cls.key
        row: Experiment | None = cls.get_or_none(column == name)
        return row

    @classmethod
    def page(cls, page: Page, status: str | None, archived: bool) -> Listing:
        """Return a page of experiments, newest first.

        A walk by cursor shows those that passed the filters when it began, each as
        it is now.
        """

        def query(fence: Fence | None) -> Any:
            found = cls.select()
            if fence:
                found = found.where(~cls._was_made_after(fence))
            if status:
                found = found.where(cls._status_as_of(fence) == status)
            if not archived:
                found = found.where(cls._column_as_of(fence, cls.archived_at).is_null())
            return found

        order, listed = (cls.created_at, cls.id), ("experiments", status, archived)
        found = page.of(query, order, listed, Change.fence)
        of: dict[str, list[Variant]] = {row.id: [] for row in found.rows}
        for variant in Variant.of(list(of)):
            of[variant.experiment_id].append(variant)
        for row in found.rows:
            row._variants = of[row.id]
        return found

    @classmethod
    def _was_made_after(cls, fence: Fence) -> Any:
        """Tell of an experiment whether its history begins after the fence.

        The time of its making is not asked: two that are made at once may be
        written in the other order, and a clock may be set back.
        """
        return fn.EXISTS(
            Change.select(SQL("1")).where(
                Change.experiment == cls.id,
                Change.id > fence.change,
                Change.action.in_(["create", "duplicate"]),
            )
        )

    @classmethod
    def _column_as_of(cls, fence: Fence | None, column: Any) -> Any:
        """Return a column as it was at the fence, by the history; without one, now.

        The first change after the fence has the value of before.
        """
        if fence is None:
            return column
        path = f"$.{column.name}"
        changed = (
            Change.select(fn.json_extract(Change.settings, path))
            .where(
                Change.experiment == cls.id,
                Change.id > fence.change,
                fn.json_type(Change.settings, path).is_null(False),
            )
            .order_by(Change.id)
            .limit(1)
        )
        # A pair of before and after, or the one value that has not changed.
        return fn.json_extract(fn.COALESCE(changed, fn.json_array(column)), "$[0]")

    @classmethod
    def _status_as_of(cls, fence: Fence | None) -> Case:
        if fence is None:
            return cls._status_at(utcnow())
        status = cls._column_as_of(fence, cls.status)
        end_date = cls._column_as_of(fence, cls.end_date)
        over = (status == RUNNING) & (end_date <= fence.microseconds)
        return Case(None, [(over, STOPPED)], status)

    @property
    def state(self) -> str:
        """The status now: a running experiment whose end has passed is stopped."""
        over = self.end_date is not None and self.end_date <= utcnow()
        return STOPPED if self.status == RUNNING and over else self.status

    @classmethod
    def _status_at(cls, now: datetime) -> Case:
        over = (cls.status == RUNNING) & (cls.end_date <= now)
        return Case(None, [(over, STOPPED)], cls.status)

    @property
    def variants(self) -> list[Variant]:
        """The variants in their order; the first is the control."""
        if "_variants" not in self.__dict__:
            self._variants = list(Variant.of([self.id]))
        return self._variants

    def variant(self, id: str) -> Variant | None:
        """Return the variant with this id, if the experiment has it."""
        return next((item for item in self.variants if item.key == id), None)

    @property
    def winner(self) -> Variant | None:
        """The variant that everyone is given now that the experiment is over."""
        chosen = self.winner_variant_id
        return self.variant(chosen) if chosen else None

    @property
    def has_audience(self) -> bool:
        """Whether rules decide who is in: those frozen at the start, or to be."""
        if self.start_date:
            return self.audience_snapshot_at is not None
        return Audience.get_or_none(id=self.audience_id) is not None

    def running_with(self, flow_ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return the other running experiments that use these flows, each with it."""
        found = (
            Variant.select(Variant.experiment, Variant.flow_id)
            .join(Experiment)
            .where(
                Variant.flow_id.in_(flow_ids),
                Experiment.id != self.id,
                Experiment.archived_at.is_null(),
                Experiment._status_at(utcnow()) == RUNNING,
            )
            .order_by(Experiment.created_at, Experiment.id, Variant.flow_id)
            .distinct()
        )
        return [(row.experiment_id, str(row.flow_id)) for row in found]

    @property
    def participants(self) -> int:
        """How many users are enrolled: exact, from the variants' tallies."""
        return sum(variant.participants for variant in self.variants)

    # -- writing

    @classmethod
    def draft(
        cls,
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
                made["key"] = cls._free_key(fields["name"])
            elif cls.select().where(cls.key == fields["key"]).exists():
                raise Conflict(f"The key {fields['key']!r} is taken.", fields["key"])
            experiment = cls.create(**made)
            experiment._write_variants(
                [{**item, "key": f"v{n}"} for n, item in enumerate(variants, 1)]
            )
            Change.note(experiment, by, action, {}, experiment._settings())
        return experiment

    @classmethod
    def _free_key(cls, name: str) -> str:
        """Return a slug of the name, with a suffix where that is taken."""
        kept = "".join(c if c.isascii() and c.isalnum() else " " for c in name.lower())
        slug = "-".join(kept.split())[:60].strip("-") or "experiment"
        is_free = slug not in NOT_IDS and cls.get_or_none(key=slug) is None
        slug = slug if is_free else f"{slug}-"
        if not slug.endswith("-"):
            return slug
        taken = {row.key for row in cls.select(cls.key).where(cls.key ** f"{slug}%")}
        suffix = 2
        while f"{slug}{suffix}" in taken:
            suffix += 1
        return f"{slug}{suffix}"

    def duplicate(self, by: str) -> Experiment:
        """Create a draft like this one; its end and its outcome are not copied."""
        copied = (
            *("name", "description", "hypothesis", "type", "audience_id"),
            *("primary_metric", "plan", "traffic", "exclusion_group"),
        )
        return Experiment.draft(
            [
                {name: getattr(variant, name) for name in Variant.GIVEN}
                for variant in self.variants
            ],
            by,
            "duplicate",
            **{name: getattr(self, name) for name in copied},
        )

    def merged(self, variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the new whole list: an item with a known id keeps what it omits."""
        whole = []
        for position, item in enumerate(variants):
            known = {}
            if item.get("key") is not None:
                old = self.variant(item["key"])
                if old is None:
                    message = f"The experiment has no variant {item['key']!r}."
                    raise Invalid(f"variants.{position}.id", message)
                known = {name: getattr(old, name) for name in Variant.GIVEN}
            whole.append({**known, **item})
        return whole

    def revise(
        self, variants: list[dict[str, Any]] | None, by: str, **fields: Any
    ) -> None:
        """Write the fields given; only a draft, and only as it was when read."""
        self.refuse_unless_draft()
        read_at = self.updated_at
        with self._recorded("update", by):
            if "key" in fields:
                taken = Experiment.get_or_none(key=fields["key"])
                if taken and taken.id != self.id:
                    raise Conflict(
                        f"The key {fields['key']!r} is taken.", fields["key"]
                    )
            if variants is not None:
                for item in variants:
                    if item.get("key") is None:
                        self.variants_made += 1
                        item["key"] = f"v{self.variants_made}"
                fields["variants_made"] = self.variants_made
            # utcnow may stand still; what was read must not look unchanged.
            fields["updated_at"] = max(utcnow(), read_at + MICROSECOND)
            written = (
                Experiment.update(**fields)
                .where(
                    Experiment.id == self.id,
                    Experiment.status == DRAFT,
                    Experiment.archived_at.is_null(),
                    Experiment.updated_at == read_at,
                )
                .execute()
            )
            if not written:
                self._reload()
                self.refuse_unless_draft()
                raise Conflict(
                    "The experiment was changed meanwhile; read it again.",
                    self.updated_at,
                    [read_at],
                )
            if variants is not None:
                self._write_variants(variants)
                self._drop_overrides(by)

    def refuse_unless_draft(self) -> None:
        """Raise InvalidState where the experiment is no draft any more."""
        if self.archived_at or self.state != DRAFT:
            raise InvalidState(self._told, [DRAFT])

    def _write_variants(self, variants: list[dict[str, Any]]) -> None:
        Variant.delete().where(Variant.experiment == self.id).execute()
        rows = [
            {
                "experiment": self.id,
                "position": position,
                "key": item["key"],
                **{name: item.get(name) for name in Variant.GIVEN},
            }
            for position, item in enumerate(variants)
        ]
        Variant.insert_many(rows).execute()

    def _drop_overrides(self, by: str) -> None:
        """Remove those to a variant that the experiment has no more."""
        kept = Variant.select(Variant.key).where(Variant.experiment == self.id)
        lost = Override.select(Override.user_id).where(
            Override.experiment == self.id, Override.variant.not_in(kept)
        )
        for row in list(lost):
            self.remove_override(row.user_id, by)

    def start(self, by: str) -> None:
        """Open enrolment, by the audience's rules of this moment, from now on.

        Only a draft can start. Raise NoRoom where its exclusion group is too full.
        """
        with self._recorded("start", by) as now:
            if self.end_date and self.end_date <= now and self.status == DRAFT:
                raise Conflict(
                    "The endDate has passed; set a later one, or null, first.",
                    self.end_date,
                )
            meant = Audience.get_or_none(id=self.audience_id)
            self._move(
                now,
                [DRAFT],
                status=RUNNING,
                start_date=now,
                audience_rules=meant and meant.rule_tree,
                audience_snapshot_at=now if meant else None,
            )
            if self.exclusion_group:
                GroupShare.take(self)

    def stop(self, by: str) -> None:
        """Close enrolment; who is enrolled keeps the variant, and still converts."""
        with self._recorded("stop", by) as now:
            end = max(now, self.start_date) if self.start_date else now
            self._move(now, [RUNNING], status=STOPPED, end_date=end)

    def resume(self, by: str) -> None:
        """Open enrolment again, with the same hash and the same variants.

        Raise NoRoom where an archiving gave its room in the group away.
        """
        with self._recorded("resume", by) as now:
            self._move(now, [STOPPED], status=RUNNING, end_date=None)
            if self.exclusion_group:
                GroupShare.take(self)

    def complete(
        self,
        conclusion: str,
        winner_variant_id: str | None,
        note: str | None,
        by: str,
    ) -> None:
        """Make the results final; with a winner, everyone is given it from now on."""
        if winner_variant_id and not self.variant(winner_variant_id):
            message = f"The experiment has no variant {winner_variant_id!r}."
            raise Invalid("winnerVariantId", message)
        with self._recorded("complete", by) as now:
            running = Experiment.status == RUNNING
            ends = fn.MAX(Experiment.start_date, Experiment.end_date.db_value(now))
            over = Case(None, [(running, ends)], Experiment.end_date)
            self._move(
                now,
                [RUNNING, STOPPED],
                status=COMPLETED,
                end_date=over,
                completed_at=now,
                conclusion=conclusion,
                winner_variant_id=winner_variant_id,
                note=note,
            )
            GroupShare.free(self)

    def archive(self, by: str) -> None:
        """Hide from lists and refuse every other move; twice is once."""
        with self._recorded("archive", by) as now:
            if self.archived_at:  # asked here: of two at once, the second is no error
                return
            self._move(now, [DRAFT, STOPPED, COMPLETED], archived_at=now)
            GroupShare.free(self)

    def unarchive(self, by: str) -> None:
        """Show in lists again, in the state that was archived; twice is once.

        No room in a group is taken by that: a resume takes it.
        """
        with self._recorded("unarchive", by) as now:
            if self.archived_at:
                Experiment.update(updated_at=now, archived_at=None).where(
                    Experiment.id == self.id
                ).execute()

    def override(self, user_id: str, variant_id: str, by: str) -> tuple[Override, bool]:
        """Force a variant for a user, in any state; return it, and if it is new."""
        with database.atomic():
            self._reload()  # a draft's variants may have been replaced meanwhile
            self.write_down_end(utcnow())
            if not self.variant(variant_id):
                message = f"The experiment has no variant {variant_id!r}."
                raise Invalid("variantId", message)
            row = Override(experiment=self.id, user_id=user_id, variant=variant_id)
            before = Override.of(self.id, [user_id]).get(user_id)
            if before is None:
                row.created_at = Override.next_moment(self.id)
            Override.insert(row.__data__).on_conflict(
                conflict_target=[Override.experiment, Override.user_id],
                preserve=[Override.variant],
            ).execute()
            if before != variant_id:
                Change.note(
                    self,
                    by,
                    "override",
                    {"variant_id": before},
                    {"variant_id": variant_id},
                    user_id,
                )
        return row, before is None

    def remove_override(self, user_id: str, by: str) -> Override | None:
        """Let the hash decide for a user again; return what was forced, if it was."""
        with database.atomic():
            before = Override.of(self.id, [user_id]).get(user_id)
            if before is None:
                return None
            self.write_down_end(utcnow())
            Override.delete().where(
                Override.experiment == self.id, Override.user_id == user_id
            ).execute()
            Change.note(
                self,
                by,
                "remove_override",
                {"variant_id": before},
                {"variant_id": None},
                user_id,
            )
        return Override(experiment=self.id, user_id=user_id, variant=before)

    def write_down_end(self, now: datetime) -> None:
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
                    Experiment.id == self.id,
                    Experiment.status == RUNNING,
                    Experiment.end_date <= now,
                )
                .execute()
            )
            if ended:
                self._reload()
                moved = {"status": RUNNING}, {"status": STOPPED}
                Change.note(self, SERVICE, "stop", *moved, at=self.end_date)

    def notice_end(self) -> None:
        """Write down an end date that has passed, if the database can be written.

        Where it cannot, the history is read as it stands, without that entry.
        """
        if self.status != RUNNING or self.state != STOPPED:
            return
        try:
            self.write_down_end(utcnow())
        except peewee.OperationalError as error:
            if trouble(error) in (None, "SQLITE_BUSY"):
                raise

    # -- the private means

    @contextmanager
    def _recorded(self, action: str, by: str) -> Iterator[datetime]:
        """Write down who changes what, in the transaction that changes it.

        Yield the moment of the change. An end date that has passed by then is
        written down before it, so that the entries are in the order of the moves.
        """
        with database.atomic():
            now = utcnow()
            self._reload()
            self.write_down_end(now)
            before = self._settings()
            yield now
            self._reload()
            after = self._settings()
            if after != before:
                Change.note(self, by, action, before, after)

    def _settings(self) -> dict[str, Any]:
        """Return what can be changed, as the columns keep it."""
        untold = ("id", "created_at", "updated_at", "variants_made", "audience_rules")
        settings: dict[str, Any] = {
            name: field.db_value(self.__data__.get(name))
            for name, field in self._meta.fields.items()
            if name not in untold
        }
        settings["variants"] = [
            {name: getattr(variant, name) for name in ("key", *Variant.GIVEN)}
            for variant in self.variants
        ]
        return settings

    @property
    def _told(self) -> str:
        return "archived" if self.archived_at else self.state

    def _move(self, now: datetime, allowed: list[str], **fields: Any) -> None:
        """Write *fields* if the stored status is still one of *allowed*.

        Compare and set in a single statement, so of two racing requests one
        wins and the other is told so.
        """
        with database.atomic():
            moved = (
                Experiment.update(updated_at=now, **fields)
                .where(
                    Experiment.id == self.id,
                    Experiment.archived_at.is_null(),
                    Experiment._status_at(now).in_(allowed),
                )
                .execute()
            )
        self._reload()
        if not moved:
            raise InvalidState(self._told, allowed)

    def _reload(self) -> None:
        self.__dict__.pop("_variants", None)
        self.__data__.update(Experiment.get_by_id(self.id).__data__)
        self._dirty.clear()


class Variant(Table):
    """What some of the users get, and how many of them there are."""

    GIVEN = ("name", "split", "flow_id", "config")

    experiment = ForeignKeyField(Experiment, on_delete="CASCADE")
    key = TextField()
    position = IntegerField()
    name = TextField()
    split = IntegerField()
    flow_id = TextField(null=True)
    config = Json(null=True)
    participants = BigIntegerField(default=0, constraints=[SQL("DEFAULT 0")])

    class Meta:
        primary_key = CompositeKey("experiment", "key")
        indexes = ((("experiment", "name"), True),)
        constraints = [
            Check(f"split BETWEEN 1 AND {FULL}"),
            Check("participants >= 0"),
        ]

    @classmethod
    def of(cls, experiment_ids: Sequence[str]) -> Iterable[Variant]:
        """Return the variants of these experiments, each experiment's in order."""
        return (
            cls.select()
            .where(cls.experiment.in_(experiment_ids))
            .order_by(cls.experiment, cls.position)
        )


_VARIANT_OF_THE_SAME_EXPERIMENT = SQL(
    'FOREIGN KEY ("experiment_id", "variant") REFERENCES "variant" '
    '("experiment_id", "key")'
)


class Audience(Table):
    """Whom an experiment is for: the rules that users are asked."""

    id = TextField(primary_key=True, default=new_id("aud"))
    name = TextField()
    description = TextField(null=True)
    rule_tree = Json()
    searched = TextField()
    created_at = Utc(default=utcnow, index=True)
    updated_at = Utc(default=utcnow)

    @classmethod
    def page(cls, page: Page, search: str | None) -> Listing:
        """Return a page of audiences, newest first.

        A search is for a part of the id, the name or the description, whatever its
        case. A walk by cursor also shows what was written since it began, because
        nobody knows any more whether that had the search in it then.
        """

        def query(fence: Fence | None) -> Any:
            found = cls.select()
            if not search:
                return found
            matches = cls.searched.contains(search.casefold())
            if fence:
                began = Value(fence.microseconds, converter=False)
                matches |= cls.updated_at >= began
            return found.where(matches)

        order, listed = (cls.created_at, cls.id), ("audiences", search)
        return page.of(query, order, listed, Change.fence)

    @classmethod
    def define(
        cls, id: str, name: str, rule_tree: Any, description: str | None = None
    ) -> tuple[Audience, bool]:
        """Write the audience with this id, whole; return it and whether it is new."""
        with database.atomic():
            there = cls.get_or_none(id=id)
            defined = there or cls(id=id)
            defined._set(name=name, description=description, rule_tree=rule_tree)
            if there is None:
                # Later than all others also where the clock was set back: a walk
                # through the list must not meet a row that is newer than itself.
                latest = cls.select(fn.MAX(cls.created_at)).scalar()
                defined.created_at = _after(latest, defined.updated_at)
                defined.updated_at = defined.created_at
            defined.save(force_insert=there is None)
        return defined, there is None

    def revise(self, **fields: Any) -> None:
        """Write the fields given; experiments that have started keep their rules."""
        with database.atomic():
            self.__data__.update(Audience.get_by_id(self.id).__data__)
            self._set(**fields)
            self.save()

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        texts = (self.id, self.name, self.description or "")
        self.searched = "\n".join(texts).casefold()
        self.updated_at = utcnow()

    def tried(self, user_id: str | None, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return whether somebody is meant, and the rules, each with its truth."""
        trace = audience.trace(self.rule_tree, user_id, attributes)
        return {"matches": trace["result"], "trace": trace}

    def remove(self) -> None:
        """Delete the audience; raise Conflict while an experiment needs it."""
        with database.atomic():
            using = Experiment.get_or_none(
                Experiment.audience_id == self.id,
                Experiment.archived_at.is_null(),
                Experiment._status_at(utcnow()).in_([DRAFT, RUNNING]),
            )
            if using:
                raise Conflict(
                    f"The {using.state} experiment {using.id} uses it.",
                    using.state,
                    [STOPPED, COMPLETED],
                )
            Audience.delete().where(Audience.id == self.id).execute()


class Override(Table):
    """A variant forced for one user, who is no participant by it."""

    experiment = ForeignKeyField(Experiment, index=False)
    user_id = TextField()
    variant = TextField()
    created_at = Utc(default=utcnow)

    class Meta:
        primary_key = CompositeKey("experiment", "user_id")
        # Deferred: a draft's variants are written anew, and are there at the end.
        constraints = [
            SQL(f"{_VARIANT_OF_THE_SAME_EXPERIMENT.sql} DEFERRABLE INITIALLY DEFERRED")
        ]

    @classmethod
    def of(cls, experiment_id: str, user_ids: Sequence[str]) -> dict[str, str]:
        """Return the variant of each of these users who has one forced."""
        found: Any = cls.select(cls.user_id, cls.variant).where(
            cls.experiment == experiment_id, one_of(cls.user_id, user_ids)
        )
        return dict(found.tuples())

    @classmethod
    def next_moment(cls, experiment_id: str) -> datetime:
        """Return the time of a new override, later than all others of the experiment.

        A walk through the list must not meet a row that is newer than itself, also
        where the clock was set back.
        """
        mine = cls.experiment == experiment_id
        latest = cls.select(fn.MAX(cls.created_at)).where(mine).scalar()
        return _after(latest, utcnow())

    @classmethod
    def page(cls, experiment: Experiment, page: Page) -> Listing:
        """Return a page of an experiment's overrides, newest first."""
        found = cls.select().where(cls.experiment == experiment.id)
        order, listed = (cls.created_at, cls.user_id), ("overrides", experiment.id)
        return page.of(lambda _: found, order, listed)


class GroupShare(Table):
    """A range of an exclusion group's buckets, and the experiment that has it.

    `held` is the group while the experiment holds the range, and null afterwards.
    Every range begins where a gap begins, so two that overlap begin alike, and the
    unique index refuses the second.
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
        found = cls.select().where(cls.experiment == experiment.id).order_by(cls.first)
        return [assignment.Range(row.first, row.last) for row in found]

    @classmethod
    def others(cls, experiment: Experiment) -> list[str]:
        """Return the other experiments that hold a share of an experiment's group."""
        if experiment.exclusion_group is None:
            return []
        found = cls.select(cls.experiment).where(
            cls.held == experiment.exclusion_group, cls.experiment != experiment.id
        )
        return sorted({row.experiment_id for row in found})

    @classmethod
    def take(cls, experiment: Experiment) -> None:
        """Take an experiment's room in its group, unless it has it already.

        What it gave back at its archiving it takes again, for its users belong there.
        Only one without users takes another range instead. Raise NoRoom where there
        is too little.
        """
        group, wanted = str(experiment.exclusion_group), experiment.traffic
        if cls.get_or_none(cls.experiment == experiment.id, cls.held.is_null(False)):
            return
        taken = [
            assignment.Range(row.first, row.last)
            for row in cls.select().where(cls.held == group)
        ]
        before = cls.of(experiment)
        lost = assignment.overlap(before, taken)
        if before and not lost:
            cls.update(held=group).where(cls.experiment == experiment.id).execute()
            return
        if before and experiment.participants:
            own = f"the experiment's own range of the group {group!r}"
            raise NoRoom(own, wanted, wanted - lost)
        left = FULL - assignment.room(taken)
        if wanted > left:
            raise NoRoom(f"the group {group!r}", wanted, left)
        cls.delete().where(cls.experiment == experiment.id).execute()
        for first, last in assignment.allotted(taken, wanted):
            cls.create(experiment=experiment.id, held=group, first=first, last=last)

    @classmethod
    def free(cls, experiment: Experiment) -> None:
        """Give an experiment's room back; what it was can still be read."""
        cls.update(held=None).where(cls.experiment == experiment.id).execute()


class Change(Table):
    """One thing that was done to an experiment: who did what, and when."""

    id = BigAutoField()
    experiment = ForeignKeyField(Experiment)
    at = Utc()
    actor = TextField()
    action = TextField()
    user_id = TextField(null=True)
    settings = Json()

    @classmethod
    def note(
        cls,
        experiment: Experiment,
        by: str,
        action: str,
        before: dict[str, Any],
        after: dict[str, Any],
        user_id: str | None = None,
        at: datetime | None = None,
    ) -> None:
        """Write down what differs, [before, after], as the columns keep it.

        To be called within the transaction that does it.
        """
        cls.create(
            experiment=experiment.id,
            at=at or utcnow(),
            actor=by,
            action=action,
            user_id=user_id,
            settings={
                name: [before.get(name), value]
                for name, value in after.items()
                if before.get(name) != value
            },
        )

    @classmethod
    def page(cls, experiment: Experiment, page: Page) -> Listing:
        """Return a page of what was done to an experiment, newest first."""
        found = cls.select().where(cls.experiment == experiment.id)
        return page.of(lambda _: found, (cls.id,), ("history", experiment.id))

    @classmethod
    def fence(cls) -> Fence:
        """Return the present moment: the last entry so far, and the time."""
        last = cls.select(fn.MAX(cls.id)).scalar() or 0
        return Fence(last, (utcnow() - EPOCH) // MICROSECOND)

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What differs, (before, after), as an experiment has it."""
        columns = Experiment._meta.fields

        def read(name: str, value: Any) -> Any:
            return columns[name].python_value(value) if name in columns else value

        return {
            name: (read(name, before), read(name, after))
            for name, (before, after) in self.settings.items()
        }


class Assignment(Table):
    """One user in one experiment: at most one row, ever."""

    id = BigAutoField()
    experiment = ForeignKeyField(Experiment)
    user_id = TextField(index=True)
    variant = TextField()
    assigned_at = Utc()
    received_at = Utc()

    class Meta:
        indexes = ((("experiment", "user_id"), True),)
        constraints = [_VARIANT_OF_THE_SAME_EXPERIMENT]


class Conversion(Table):
    """One thing that a participant did: every event is kept."""

    id = BigAutoField()
    experiment = ForeignKeyField(Experiment, index=False)
    assignment = ForeignKeyField(Assignment)
    metric = TextField()
    value = Exact(null=True)
    occurred_at = Utc()
    received_at = Utc()
    idempotency_key = TextField(null=True)

    class Meta:
        indexes = ((("experiment", "idempotency_key"), True),)


class Outcome(Table):
    """One participant's total in one metric: what makes a user count once."""

    assignment = ForeignKeyField(Assignment, index=False)
    metric = TextField()
    events = BigIntegerField()
    total = Exact(null=True)

    class Meta:
        primary_key = CompositeKey("assignment", "metric")


class Tally(Table):
    """What one variant has in one metric, kept with the rows that it counts."""

    experiment = ForeignKeyField(Experiment, index=False)
    variant = TextField()
    metric = TextField()
    users = BigIntegerField()
    events = BigIntegerField()
    value_users = BigIntegerField()
    value_sum = Exact()
    value_sum_squares = Exact()
    first_at = Utc()
    last_at = Utc()

    class Meta:
        primary_key = CompositeKey("experiment", "variant", "metric")
        constraints = [
            _VARIANT_OF_THE_SAME_EXPERIMENT,
            Check("users BETWEEN 1 AND events"),
            Check("value_users BETWEEN 0 AND users"),
        ]


class Metric(Table):
    """One metric that an experiment has counted something in.

    The numbers are what bounds the metrics, whoever writes at once: there are
    MOST_METRICS of them, each given once. Number 0 is for the primary metric alone,
    where so many others came first: they must not keep it out.
    """

    experiment = ForeignKeyField(Experiment, index=False)
    name = TextField()
    number = IntegerField()

    class Meta:
        primary_key = CompositeKey("experiment", "name")
        indexes = ((("experiment", "number"), True),)
        constraints = [Check(f"number BETWEEN 0 AND {MOST_METRICS}")]

    @classmethod
    def of(cls, experiment_id: str, names: Iterable[str]) -> set[str]:
        """Return those of these metrics that the experiment has."""
        found: set[str] = set()
        for some in peewee.chunked(names, CHUNK):
            query: Any = cls.select(cls.name).where(
                cls.experiment == experiment_id, one_of(cls.name, some)
            )
            found.update(name for (name,) in query.tuples())
        return found

    @classmethod
    def all_of(cls, experiment_id: str) -> list[str]:
        """Return every metric of the experiment: MOST_METRICS and one at most."""
        rows: Any = cls.select(cls.name).where(cls.experiment == experiment_id)
        return [name for (name,) in rows.tuples()]

    @classmethod
    def taken(cls, experiment_id: str) -> int:
        """Return how many numbers are taken, at the same cost for few and many."""
        last = cls.select(fn.MAX(cls.number)).where(cls.experiment == experiment_id)
        return last.scalar() or 0


class Refusal(Table):
    """One conversion that was received and not counted."""

    id = BigAutoField()
    experiment = ForeignKeyField(Experiment)
    reason = TextField()
    received_at = Utc()


class RefusalTally(Table):
    """How many conversions an experiment refused for one reason."""

    experiment = ForeignKeyField(Experiment, index=False)
    reason = TextField()
    count = BigIntegerField()

    class Meta:
        primary_key = CompositeKey("experiment", "reason")


TABLES = [
    Identity,
    Experiment,
    Variant,
    Audience,
    Override,
    GroupShare,
    Change,
    Assignment,
    Conversion,
    Outcome,
    Tally,
    Metric,
    Refusal,
    RefusalTally,
]


# ----------------------------------------------------------------------------
# The making
# ----------------------------------------------------------------------------


def create(made: Sqlite) -> str:
    """Create this database, or bring it to this schema; return which: `made`,
    `migrated`, or `there` where nothing was to be done.

    Safe when several start at once. Raise NotReady where the file is something
    else, or of a version that this program does not know.
    """
    file = made.file
    with alone(file), using(made):
        if file is not None and not file.exists():
            file.touch(mode=0o600)
        connect()
        try:
            if database.get_tables():
                did = "migrated" if _migrate() else "there"
                verify()
                refuse_altered()
                examine("quick_check")
                return did
            database.pragma("journal_mode", "wal")
            with database.atomic():
                database.create_tables(TABLES)
                Identity.create(schema_version=SCHEMA_VERSION)
            return "made"
        finally:
            if file is not None:
                database.close()


def _found_version() -> int | None:
    """Return the schema version of the open database, None where it is not ours."""
    # That column alone: of another version it may have others.
    if not Identity.table_exists():
        return None
    return Identity.select(Identity.schema_version).scalar()


def _migrate() -> bool:
    """Bring a database of ours to this schema, whole or not at all; say if it was."""
    with database.atomic():
        found = _found_version()
        if found is None or not 1 <= found < SCHEMA_VERSION:
            return False
        for script in MIGRATIONS[found - 1 :]:
            for statement in script.split(";"):
                database.execute_sql(statement)
        Identity.update(schema_version=SCHEMA_VERSION).execute()
    return True


def probe() -> None:
    """Raise Refused where a write does not get through now."""
    database.probe(lambda: Identity.update(probed_at=utcnow()).execute())


@cache
def _shape_of_new() -> Shape:
    """Return the schema of a database that is made now."""
    with using(Sqlite(None, "")) as new:
        new.create_tables(TABLES)
        made = shape()
        new.close()
    return made


def alterations() -> list[str]:
    """Return how the schema differs from that of a new database, in words.

    What is not ours (a trigger, a view, another table) comes first.
    """
    return list(differences(_shape_of_new(), shape()))


def refuse_altered() -> None:
    """Raise NotReady where the schema is not that of a new database.

    A trigger would run with every write, and a rule that is missing would hold
    nothing: neither is seen in the rows.
    """
    if found := alterations():
        raise NotReady(
            f"The schema was altered: {sentence(found)}. "
            "Undo that, or restore a backup."
        )


def sentence(found: list[str]) -> str:
    """Return the first three of these, and how many more there are."""
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def verify() -> None:
    """Raise NotReady unless this is a database of ours that is safe to write."""
    refuse_affected(peewee.sqlite3.sqlite_version_info)
    try:
        connect()
        found = _found_version()
        mode = database.pragma("journal_mode")
        synchronous = database.pragma("synchronous")
    except peewee.DatabaseError as error:
        name = trouble(error) or ""
        if name.startswith(PASSING) and identity():
            raise
        raise NotReady(
            f"The database cannot be read: {error}. Create it with "
            "`flask --app wsgi init`, or restore a backup."
        ) from error
    if found is None:
        raise NotReady("The database is not one of Abacus, or was never created.")
    if found != SCHEMA_VERSION:
        raise NotReady(
            f"The database has schema {found}, this program "
            f"{SCHEMA_VERSION}: run `flask --app wsgi init` of the right version."
        )
    if mode not in ("wal", "memory") or synchronous != 2:
        raise NotReady(f"journal_mode is {mode}, synchronous {synchronous}.")
