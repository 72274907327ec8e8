"""The SQL that migrates each schema version to the next, unchanged since then."""

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

MIGRATIONS = [AUDIENCES, METRICS, REVISION]
"""The first leads from version 1 to version 2, and so on."""
