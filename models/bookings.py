"""Who is enrolled, what they did, and the tallies that count both."""

from __future__ import annotations

from datetime import datetime

from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    Check,
    CompositeKey,
    ForeignKeyField,
    IntegerField,
    TextField,
)

from models.experiments import VARIANT_OF_THE_SAME_EXPERIMENT, Experiment, Variant
from storage.columns import Exact, Utc
from storage.table import Table

MOST_METRICS = 1_000  # in one experiment


class Assignment(Table):
    """One user in one experiment: at most one row, ever."""

    id = BigAutoField()
    experiment = ForeignKeyField(Experiment)
    user_id = TextField()
    variant = TextField()
    assigned_at = Utc()
    received_at = Utc()
    covariate = Exact(null=True)
    """A number that was known of the user before."""

    class Meta:
        # The user first: this index also finds all experiments of a user.
        indexes = ((("user_id", "experiment"), True),)
        depends_on = [Variant]
        constraints = [VARIANT_OF_THE_SAME_EXPERIMENT]


class Conversion(Table):
    """One event of a participant; every event is kept."""

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
    """One participant's total in one metric, so that each user counts once."""

    assignment = ForeignKeyField(Assignment, index=False)
    metric = TextField()
    events = BigIntegerField()
    total = Exact(null=True)
    valued = BigIntegerField(constraints=[SQL("DEFAULT 0")])
    """How many of the events have a value."""

    class Meta:
        primary_key = CompositeKey("assignment", "metric")


class Tally(Table):
    """The counts of one variant in one metric: the sum over all slots.

    Each writer adds to the row of its slot, with the rows that it counts. A user may
    have the first event in one slot and the first value in another one.
    """

    experiment = ForeignKeyField(Experiment, index=False)
    variant = TextField()
    metric = TextField()
    slot = IntegerField()
    users = BigIntegerField()
    events = BigIntegerField()
    value_users = BigIntegerField()
    value_sum = Exact()
    value_sum_squares = Exact()
    first_at = Utc()
    last_at = Utc()

    class Meta:
        primary_key = CompositeKey("experiment", "variant", "metric", "slot")
        depends_on = [Variant]
        constraints = [
            VARIANT_OF_THE_SAME_EXPERIMENT,
            Check("users BETWEEN 0 AND events"),
            Check("value_users BETWEEN 0 AND events"),
        ]


class Cohort(Table):
    """The users who got a variant on one day, with the sums of their covariates.

    Only an experiment with a metric that needs them has these. Days are those of the
    enrolment, in UTC, since 1970. Each writer adds to the row of its slot.
    """

    experiment = ForeignKeyField(Experiment, index=False)
    variant = TextField()
    day = IntegerField()
    slot = IntegerField()
    participants = BigIntegerField()
    covariates = BigIntegerField()
    covariate_sum = Exact()
    covariate_sum_squares = Exact()

    class Meta:
        primary_key = CompositeKey("experiment", "variant", "day", "slot")
        depends_on = [Variant]
        constraints = [
            VARIANT_OF_THE_SAME_EXPERIMENT,
            Check("participants >= 1"),
            Check("covariates BETWEEN 0 AND participants"),
        ]


class Sums(Table):
    """The sums of a metric with settings, over the users of a cohort.

    The day is that of the enrolment if the metric has a window, else 0. Totals count up
    to the cap. Each writer adds to the row of its slot.
    """

    experiment = ForeignKeyField(Experiment, index=False)
    variant = TextField()
    metric = TextField()
    day = IntegerField()
    slot = IntegerField()
    users = BigIntegerField()
    events = BigIntegerField()
    event_squares = BigIntegerField()
    value_users = BigIntegerField()
    value_sum = Exact()
    value_sum_squares = Exact()
    value_events = Exact()
    """The sum of each user's total times the user's events."""
    value_covariates = Exact()
    """The sum of each user's total times the user's covariate."""

    class Meta:
        primary_key = CompositeKey("experiment", "variant", "metric", "day", "slot")
        depends_on = [Variant]
        constraints = [
            VARIANT_OF_THE_SAME_EXPERIMENT,
            Check("users BETWEEN 0 AND events"),
            Check("value_users BETWEEN 0 AND events"),
        ]


class Crossing(Table):
    """The first look at which a variant differed significantly, with its counts.

    It is of the primary metric, and stays, whatever later looks say. The counts of a
    rate tell which variant was higher. Those of a mean or a ratio do not, so such a
    row has the control's figure and the difference too.
    """

    COUNTS = (
        *("users", "control_sample_size", "control_conversions"),
        *("sample_size", "conversions", "p_value"),
    )
    MEANS = ("control_mean", "difference")

    experiment = ForeignKeyField(Experiment, index=False)
    variant = TextField()
    at = Utc()
    users = BigIntegerField()
    control_sample_size = BigIntegerField()
    control_conversions = BigIntegerField()
    sample_size = BigIntegerField()
    conversions = BigIntegerField()
    p_value = Exact()
    control_mean = Exact(null=True)
    difference = Exact(null=True)

    class Meta:
        primary_key = CompositeKey("experiment", "variant")
        depends_on = [Variant]
        constraints = [
            VARIANT_OF_THE_SAME_EXPERIMENT,
            Check("control_conversions BETWEEN 0 AND control_sample_size"),
            Check("conversions BETWEEN 0 AND sample_size"),
            Check("users >= control_sample_size + sample_size"),
            Check("(control_mean IS NULL) = (difference IS NULL)"),
        ]

    @classmethod
    def of(cls, experiment: Experiment, as_of: datetime | None) -> dict[str, Crossing]:
        """Return the crossings until a moment, by default now, by their variants."""
        rows = cls.select().where(cls.experiment == experiment.id)
        if as_of:
            rows = rows.where(cls.at <= as_of)
        return {row.variant: row for row in rows}


class Metric(Table):
    """One metric that an experiment has counted.

    The unique number bounds the metrics however many writers there are: it is at
    most MOST_METRICS. Number 0 is reserved for the primary metric, so that many
    other metrics cannot keep it out.
    """

    experiment = ForeignKeyField(Experiment, index=False)
    name = TextField()
    number = IntegerField()

    class Meta:
        primary_key = CompositeKey("experiment", "name")
        indexes = ((("experiment", "number"), True),)
        constraints = [Check(f"number BETWEEN 0 AND {MOST_METRICS}")]


class Refusal(Table):
    """One conversion that was received and was not counted."""

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
