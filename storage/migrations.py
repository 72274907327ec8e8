"""The SQL that migrates each schema version to the next, unchanged since then.

A change of the schema adds a script for each engine, under the same number.
"""

from __future__ import annotations

# From 1 to 2: audiences, overrides, exclusion groups, history; readiness is a write.
AUDIENCES = """
ALTER TABLE "identity" ADD COLUMN "probed_at" INTEGER;
ALTER TABLE "experiment" ADD COLUMN "exclusion_group" TEXT;
ALTER TABLE "experiment" ADD COLUMN "audience_rules" TEXT;
ALTER TABLE "experiment" ADD COLUMN "audience_snapshot_at" INTEGER;
CREATE TABLE "audience" (
    "id" TEXT NOT NULL PRIMARY KEY,
    "name" TEXT NOT NULL,
    "description" TEXT,
    "rule_tree" TEXT NOT NULL,
    "searched" TEXT NOT NULL,
    "created_at" INTEGER NOT NULL,
    "updated_at" INTEGER NOT NULL
);
CREATE INDEX "audience_created_at" ON "audience" ("created_at");
CREATE TABLE "override" (
    "experiment_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "variant" TEXT NOT NULL,
    "created_at" INTEGER NOT NULL,
    PRIMARY KEY ("experiment_id", "user_id"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    FOREIGN KEY ("experiment_id", "variant")
        REFERENCES "variant" ("experiment_id", "key") DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE "group_share" (
    "experiment_id" TEXT NOT NULL,
    "held" TEXT,
    "first" INTEGER NOT NULL,
    "last" INTEGER NOT NULL,
    PRIMARY KEY ("experiment_id", "first"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    CHECK (0 <= first AND first <= last AND last < 10000)
);
CREATE UNIQUE INDEX "group_share_held_first" ON "group_share" ("held", "first");
CREATE TABLE "change" (
    "id" INTEGER NOT NULL PRIMARY KEY,
    "experiment_id" TEXT NOT NULL,
    "at" INTEGER NOT NULL,
    "actor" TEXT NOT NULL,
    "action" TEXT NOT NULL,
    "user_id" TEXT,
    "settings" TEXT NOT NULL,
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id")
);
CREATE INDEX "change_experiment_id" ON "change" ("experiment_id")
"""

# From 2 to 3: the metrics of an experiment are numbered, which bounds them. Of one that
# has more than the bound already, the primary and the oldest are numbered: the others
# stay counted, and take no further events.
METRICS = """
CREATE TABLE "metric" (
    "experiment_id" TEXT NOT NULL,
    "name" TEXT NOT NULL,
    "number" INTEGER NOT NULL,
    PRIMARY KEY ("experiment_id", "name"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    CHECK (number BETWEEN 0 AND 1000)
);
CREATE UNIQUE INDEX "metric_experiment_id_number"
    ON "metric" ("experiment_id", "number");
INSERT INTO "metric" ("experiment_id", "name", "number")
SELECT "experiment_id", "name", "number" FROM (
    SELECT "tally"."experiment_id", "metric" AS "name", ROW_NUMBER() OVER (
        PARTITION BY "tally"."experiment_id"
        ORDER BY "metric" = "primary_metric" DESC, MIN("first_at"), "metric"
    ) AS "number"
    FROM "tally" JOIN "experiment" ON "experiment"."id" = "tally"."experiment_id"
    GROUP BY "tally"."experiment_id", "metric", "primary_metric"
) AS "numbered"
WHERE "number" <= 1000
"""

# From 3 to 4: a number that tells whether what is remembered still holds, and one index
# of assignments for two.
REVISION = """
ALTER TABLE "identity" ADD COLUMN "revision" INTEGER NOT NULL DEFAULT 0;
DROP INDEX "assignment_user_id";
DROP INDEX "assignment_experiment_id_user_id";
CREATE UNIQUE INDEX "assignment_user_id_experiment_id"
    ON "assignment" ("user_id", "experiment_id")
"""

# From 4 to 5: sums of several rows, so that processes can add to them at the same time.
SLOTS = """
CREATE TABLE "participant_tally" (
    "experiment_id" TEXT NOT NULL,
    "variant" TEXT NOT NULL,
    "slot" INTEGER NOT NULL,
    "participants" INTEGER NOT NULL,
    PRIMARY KEY ("experiment_id", "variant", "slot"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    FOREIGN KEY ("experiment_id", "variant")
        REFERENCES "variant" ("experiment_id", "key"),
    CHECK (participants >= 1)
);
INSERT INTO "participant_tally"
SELECT "experiment_id", "key", 0, "participants" FROM "variant"
WHERE "participants" > 0;
CREATE TABLE "new_variant" (
    "experiment_id" TEXT NOT NULL,
    "key" TEXT NOT NULL,
    "position" INTEGER NOT NULL,
    "name" TEXT NOT NULL,
    "split" INTEGER NOT NULL,
    "flow_id" TEXT,
    "config" TEXT,
    PRIMARY KEY ("experiment_id", "key"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id") ON DELETE CASCADE,
    CHECK (split BETWEEN 1 AND 10000)
);
INSERT INTO "new_variant"
SELECT "experiment_id", "key", "position", "name", "split", "flow_id", "config"
FROM "variant";
DROP TABLE "variant";
ALTER TABLE "new_variant" RENAME TO "variant";
CREATE INDEX "variant_experiment_id" ON "variant" ("experiment_id");
CREATE UNIQUE INDEX "variant_experiment_id_name" ON "variant" ("experiment_id", "name");
CREATE TABLE "new_tally" (
    "experiment_id" TEXT NOT NULL,
    "variant" TEXT NOT NULL,
    "metric" TEXT NOT NULL,
    "slot" INTEGER NOT NULL,
    "users" INTEGER NOT NULL,
    "events" INTEGER NOT NULL,
    "value_users" INTEGER NOT NULL,
    "value_sum" TEXT NOT NULL,
    "value_sum_squares" TEXT NOT NULL,
    "first_at" INTEGER NOT NULL,
    "last_at" INTEGER NOT NULL,
    PRIMARY KEY ("experiment_id", "variant", "metric", "slot"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    FOREIGN KEY ("experiment_id", "variant")
        REFERENCES "variant" ("experiment_id", "key"),
    CHECK (users BETWEEN 0 AND events),
    CHECK (value_users BETWEEN 0 AND events)
);
INSERT INTO "new_tally"
SELECT "experiment_id", "variant", "metric", 0, "users", "events", "value_users",
    "value_sum", "value_sum_squares", "first_at", "last_at"
FROM "tally";
DROP TABLE "tally";
ALTER TABLE "new_tally" RENAME TO "tally";
ALTER TABLE "outcome" ADD COLUMN "valued" INTEGER NOT NULL DEFAULT 0;
UPDATE "outcome" SET "valued" = (
    SELECT COUNT("value") FROM "conversion"
    WHERE "conversion"."assignment_id" = "outcome"."assignment_id"
        AND "conversion"."metric" = "outcome"."metric"
) WHERE "total" IS NOT NULL
"""

# From 5 to 6: the users that an experiment is planned for, and the looks that decided.
HORIZON = """
ALTER TABLE "experiment" ADD COLUMN "horizon" {big};
ALTER TABLE "experiment" ADD COLUMN "horizon_at" {big};
CREATE TABLE "crossing" (
    "experiment_id" {text} NOT NULL,
    "variant" {text} NOT NULL,
    "at" {big} NOT NULL,
    "users" {big} NOT NULL,
    "control_sample_size" {big} NOT NULL,
    "control_conversions" {big} NOT NULL,
    "sample_size" {big} NOT NULL,
    "conversions" {big} NOT NULL,
    "p_value" {exact} NOT NULL,
    PRIMARY KEY ("experiment_id", "variant"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    FOREIGN KEY ("experiment_id", "variant")
        REFERENCES "variant" ("experiment_id", "key"),
    CHECK (control_conversions BETWEEN 0 AND control_sample_size),
    CHECK (conversions BETWEEN 0 AND sample_size),
    CHECK (users >= control_sample_size + sample_size)
)
"""

# From 6 to 7: metrics with settings, covariates, and the sums that they need.
SETTINGS = """
ALTER TABLE "experiment" ADD COLUMN "metrics" {text};
ALTER TABLE "assignment" ADD COLUMN "covariate" {exact};
CREATE TABLE "cohort" (
    "experiment_id" {text} NOT NULL,
    "variant" {text} NOT NULL,
    "day" INTEGER NOT NULL,
    "slot" INTEGER NOT NULL,
    "participants" {big} NOT NULL,
    "covariates" {big} NOT NULL,
    "covariate_sum" {exact} NOT NULL,
    "covariate_sum_squares" {exact} NOT NULL,
    PRIMARY KEY ("experiment_id", "variant", "day", "slot"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    FOREIGN KEY ("experiment_id", "variant")
        REFERENCES "variant" ("experiment_id", "key"),
    CHECK (participants >= 1),
    CHECK (covariates BETWEEN 0 AND participants)
);
CREATE TABLE "sums" (
    "experiment_id" {text} NOT NULL,
    "variant" {text} NOT NULL,
    "metric" {text} NOT NULL,
    "day" INTEGER NOT NULL,
    "slot" INTEGER NOT NULL,
    "users" {big} NOT NULL,
    "events" {big} NOT NULL,
    "event_squares" {big} NOT NULL,
    "value_users" {big} NOT NULL,
    "value_sum" {exact} NOT NULL,
    "value_sum_squares" {exact} NOT NULL,
    "value_events" {exact} NOT NULL,
    "value_covariates" {exact} NOT NULL,
    PRIMARY KEY ("experiment_id", "variant", "metric", "day", "slot"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    FOREIGN KEY ("experiment_id", "variant")
        REFERENCES "variant" ("experiment_id", "key"),
    CHECK (users BETWEEN 0 AND events),
    CHECK (value_users BETWEEN 0 AND events)
)
"""

# From 7 to 8: the figures of a mean at a look that decided, which SQLite cannot add
# together with their rule.
CROSSED = """
CREATE TABLE "new_crossing" (
    "experiment_id" TEXT NOT NULL,
    "variant" TEXT NOT NULL,
    "at" INTEGER NOT NULL,
    "users" INTEGER NOT NULL,
    "control_sample_size" INTEGER NOT NULL,
    "control_conversions" INTEGER NOT NULL,
    "sample_size" INTEGER NOT NULL,
    "conversions" INTEGER NOT NULL,
    "p_value" TEXT NOT NULL,
    "control_mean" TEXT,
    "difference" TEXT,
    PRIMARY KEY ("experiment_id", "variant"),
    FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"),
    FOREIGN KEY ("experiment_id", "variant")
        REFERENCES "variant" ("experiment_id", "key"),
    CHECK (control_conversions BETWEEN 0 AND control_sample_size),
    CHECK (conversions BETWEEN 0 AND sample_size),
    CHECK (users >= control_sample_size + sample_size),
    CHECK ((control_mean IS NULL) = (difference IS NULL))
);
INSERT INTO "new_crossing" SELECT *, NULL, NULL FROM "crossing";
DROP TABLE "crossing";
ALTER TABLE "new_crossing" RENAME TO "crossing"
"""
CROSSED_ON_POSTGRES = """
ALTER TABLE "crossing"
    ADD COLUMN "control_mean" NUMERIC,
    ADD COLUMN "difference" NUMERIC,
    ADD CHECK ((control_mean IS NULL) = (difference IS NULL))
"""

ON_SQLITE = {"big": "INTEGER", "text": "TEXT", "exact": "TEXT"}
ON_POSTGRES = {"big": "BIGINT", "text": 'TEXT COLLATE "C"', "exact": "NUMERIC"}

SQLITE = {
    1: AUDIENCES,
    2: METRICS,
    3: REVISION,
    4: SLOTS,
    5: HORIZON.format(**ON_SQLITE),
    6: SETTINGS.format(**ON_SQLITE),
    7: CROSSED,
}
"""The script that leads from a version to the next one."""

POSTGRES = {
    5: HORIZON.format(**ON_POSTGRES),
    6: SETTINGS.format(**ON_POSTGRES),
    7: CROSSED_ON_POSTGRES,
}
"""The same; the first schema on PostgreSQL was version 5."""

SCHEMA_VERSION = 1 + max(SQLITE)
