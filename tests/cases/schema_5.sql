BEGIN TRANSACTION;
CREATE TABLE "assignment" ("id" INTEGER NOT NULL PRIMARY KEY, "experiment_id" TEXT NOT NULL, "user_id" TEXT NOT NULL, "variant" TEXT NOT NULL, "assigned_at" INTEGER NOT NULL, "received_at" INTEGER NOT NULL, FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"), FOREIGN KEY ("experiment_id", "variant") REFERENCES "variant" ("experiment_id", "key"));
INSERT INTO "assignment" VALUES(1,'exp_d0bd994fad6248bc7f6d','user-0','v1',1795745663727067,1795745663727067);
INSERT INTO "assignment" VALUES(2,'exp_d0bd994fad6248bc7f6d','user-1','v2',1795745663727067,1795745663727067);
INSERT INTO "assignment" VALUES(3,'exp_d0bd994fad6248bc7f6d','user-3','v1',1795745663727067,1795745663727067);
INSERT INTO "assignment" VALUES(4,'exp_d0bd994fad6248bc7f6d','user-4','v2',1795745663727067,1795745663727067);
INSERT INTO "assignment" VALUES(5,'exp_d0bd994fad6248bc7f6d','user-6','v1',1795745663727067,1795745663727067);
INSERT INTO "assignment" VALUES(6,'exp_d0bd994fad6248bc7f6d','user-7','v2',1795745663727067,1795745663727067);
CREATE TABLE "audience" ("id" TEXT NOT NULL PRIMARY KEY, "name" TEXT NOT NULL, "description" TEXT, "rule_tree" TEXT NOT NULL, "searched" TEXT NOT NULL, "created_at" INTEGER NOT NULL, "updated_at" INTEGER NOT NULL);
INSERT INTO "audience" VALUES('aud_pro','Payers',NULL,'{"field":"plan","operator":"eq","value":"pro"}','aud_pro
payers
',1795745663674668,1795745663674668);
CREATE TABLE "change" ("id" INTEGER NOT NULL PRIMARY KEY, "experiment_id" TEXT NOT NULL, "at" INTEGER NOT NULL, "actor" TEXT NOT NULL, "action" TEXT NOT NULL, "user_id" TEXT, "settings" TEXT NOT NULL, FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"));
INSERT INTO "change" VALUES(1,'exp_284917e7a28850a5145f',1795745663688928,'tester','create',NULL,'{"key":[null,"a-draft"],"name":[null,"A draft"],"type":[null,"ab_test"],"status":[null,"draft"],"primary_metric":[null,"conversion"],"traffic":[null,10000],"variants":[null,[{"key":"v1","name":"Control","split":5000,"flow_id":"flow_a","config":null},{"key":"v2","name":"Detailed","split":5000,"flow_id":"flow_b","config":null}]]}');
INSERT INTO "change" VALUES(2,'exp_d0bd994fad6248bc7f6d',1795745663698224,'tester','create',NULL,'{"key":[null,"a-running-one"],"name":[null,"A running one"],"type":[null,"ab_test"],"status":[null,"draft"],"audience_id":[null,"aud_pro"],"primary_metric":[null,"conversion"],"traffic":[null,8050],"exclusion_group":[null,"checkout"],"variants":[null,[{"key":"v1","name":"Control","split":5000,"flow_id":"flow_a","config":null},{"key":"v2","name":"Detailed","split":5000,"flow_id":"flow_b","config":null}]]}');
INSERT INTO "change" VALUES(3,'exp_d0bd994fad6248bc7f6d',1795745663709903,'tester','start',NULL,'{"status":["draft","running"],"start_date":[null,1795745663705477],"audience_snapshot_at":[null,1795745663705477]}');
INSERT INTO "change" VALUES(4,'exp_d0bd994fad6248bc7f6d',1795745663721215,'tester','override','tester-1','{"variant_id":[null,"v2"]}');
CREATE TABLE "conversion" ("id" INTEGER NOT NULL PRIMARY KEY, "experiment_id" TEXT NOT NULL, "assignment_id" INTEGER NOT NULL, "metric" TEXT NOT NULL, "value" TEXT, "occurred_at" INTEGER NOT NULL, "received_at" INTEGER NOT NULL, "idempotency_key" TEXT, FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"), FOREIGN KEY ("assignment_id") REFERENCES "assignment" ("id"));
INSERT INTO "conversion" VALUES(1,'exp_d0bd994fad6248bc7f6d',1,'signup','0.5',1795745663736321,1795745663736321,'signup-0');
INSERT INTO "conversion" VALUES(2,'exp_d0bd994fad6248bc7f6d',1,'conversion','0.5',1795745663751144,1795745663751144,'conversion-0');
INSERT INTO "conversion" VALUES(3,'exp_d0bd994fad6248bc7f6d',2,'signup','1.5',1795745663767504,1795745663767504,'signup-1');
INSERT INTO "conversion" VALUES(4,'exp_d0bd994fad6248bc7f6d',2,'conversion','1.5',1795745663780825,1795745663780825,'conversion-1');
INSERT INTO "conversion" VALUES(5,'exp_d0bd994fad6248bc7f6d',3,'signup','2.5',1795745663795093,1795745663795093,'signup-2');
INSERT INTO "conversion" VALUES(6,'exp_d0bd994fad6248bc7f6d',3,'conversion','2.5',1795745663807842,1795745663807842,'conversion-2');
INSERT INTO "conversion" VALUES(7,'exp_d0bd994fad6248bc7f6d',4,'signup','3.5',1795745663819203,1795745663819203,'signup-3');
INSERT INTO "conversion" VALUES(8,'exp_d0bd994fad6248bc7f6d',4,'conversion','3.5',1795745663827911,1795745663827911,'conversion-3');
INSERT INTO "conversion" VALUES(9,'exp_d0bd994fad6248bc7f6d',1,'signup',NULL,1795745663836018,1795745663836018,NULL);
INSERT INTO "conversion" VALUES(10,'exp_d0bd994fad6248bc7f6d',2,'opened',NULL,1795745663843390,1795745663843390,NULL);
INSERT INTO "conversion" VALUES(11,'exp_d0bd994fad6248bc7f6d',2,'paid','0',1795745663851134,1795745663851134,NULL);
INSERT INTO "conversion" VALUES(12,'exp_d0bd994fad6248bc7f6d',2,'paid','12.25',1795745663858755,1795745663858755,NULL);
CREATE TABLE "experiment" ("id" TEXT NOT NULL PRIMARY KEY, "key" TEXT NOT NULL, "name" TEXT NOT NULL, "description" TEXT, "hypothesis" TEXT, "type" TEXT NOT NULL, "status" TEXT NOT NULL, "audience_id" TEXT, "primary_metric" TEXT NOT NULL, "plan" TEXT, "traffic" INTEGER NOT NULL, "start_date" INTEGER, "end_date" INTEGER, "completed_at" INTEGER, "archived_at" INTEGER, "conclusion" TEXT, "winner_variant_id" TEXT, "note" TEXT, "variants_made" INTEGER NOT NULL, "created_at" INTEGER NOT NULL, "updated_at" INTEGER NOT NULL, "exclusion_group" TEXT, "audience_rules" TEXT, "audience_snapshot_at" INTEGER, CHECK (status IN ('draft', 'running', 'stopped', 'completed')), CHECK (traffic BETWEEN 1 AND 10000), CHECK (end_date >= start_date), CHECK ((start_date IS NULL) = (status = 'draft')));
INSERT INTO "experiment" VALUES('exp_284917e7a28850a5145f','a-draft','A draft',NULL,NULL,'ab_test','draft',NULL,'conversion',NULL,10000,NULL,NULL,NULL,NULL,NULL,NULL,NULL,2,1795745663685469,1795745663685469,NULL,NULL,NULL);
INSERT INTO "experiment" VALUES('exp_d0bd994fad6248bc7f6d','a-running-one','A running one',NULL,NULL,'ab_test','running','aud_pro','conversion',NULL,8050,1795745663705477,NULL,NULL,NULL,NULL,NULL,NULL,2,1795745663695344,1795745663705477,'checkout','{"field":"plan","operator":"eq","value":"pro"}',1795745663705477);
CREATE TABLE "group_share" ("experiment_id" TEXT NOT NULL, "held" TEXT, "first" INTEGER NOT NULL, "last" INTEGER NOT NULL, PRIMARY KEY ("experiment_id", "first"), FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"), CHECK (0 <= first AND first <= last AND last < 10000));
INSERT INTO "group_share" VALUES('exp_d0bd994fad6248bc7f6d','checkout',0,8049);
CREATE TABLE "identity" ("id" TEXT NOT NULL PRIMARY KEY, "schema_version" INTEGER NOT NULL, "created_at" INTEGER NOT NULL, "probed_at" INTEGER, "revision" INTEGER NOT NULL DEFAULT 0);
INSERT INTO "identity" VALUES('abacus_17357a81aaaf4e48da19',5,1795745663606348,NULL,4);
CREATE TABLE "metric" ("experiment_id" TEXT NOT NULL, "name" TEXT NOT NULL, "number" INTEGER NOT NULL, PRIMARY KEY ("experiment_id", "name"), FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"), CHECK (number BETWEEN 0 AND 1000));
INSERT INTO "metric" VALUES('exp_d0bd994fad6248bc7f6d','signup',1);
INSERT INTO "metric" VALUES('exp_d0bd994fad6248bc7f6d','conversion',2);
INSERT INTO "metric" VALUES('exp_d0bd994fad6248bc7f6d','opened',3);
INSERT INTO "metric" VALUES('exp_d0bd994fad6248bc7f6d','paid',4);
CREATE TABLE "outcome" ("assignment_id" INTEGER NOT NULL, "metric" TEXT NOT NULL, "events" INTEGER NOT NULL, "total" TEXT, "valued" INTEGER NOT NULL DEFAULT 0, PRIMARY KEY ("assignment_id", "metric"), FOREIGN KEY ("assignment_id") REFERENCES "assignment" ("id"));
INSERT INTO "outcome" VALUES(1,'signup',2,'0.5',1);
INSERT INTO "outcome" VALUES(1,'conversion',1,'0.5',1);
INSERT INTO "outcome" VALUES(2,'signup',1,'1.5',1);
INSERT INTO "outcome" VALUES(2,'conversion',1,'1.5',1);
INSERT INTO "outcome" VALUES(3,'signup',1,'2.5',1);
INSERT INTO "outcome" VALUES(3,'conversion',1,'2.5',1);
INSERT INTO "outcome" VALUES(4,'signup',1,'3.5',1);
INSERT INTO "outcome" VALUES(4,'conversion',1,'3.5',1);
INSERT INTO "outcome" VALUES(2,'opened',1,NULL,0);
INSERT INTO "outcome" VALUES(2,'paid',2,'12.25',2);
CREATE TABLE "override" ("experiment_id" TEXT NOT NULL, "user_id" TEXT NOT NULL, "variant" TEXT NOT NULL, "created_at" INTEGER NOT NULL, PRIMARY KEY ("experiment_id", "user_id"), FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"), FOREIGN KEY ("experiment_id", "variant") REFERENCES "variant" ("experiment_id", "key") DEFERRABLE INITIALLY DEFERRED);
INSERT INTO "override" VALUES('exp_d0bd994fad6248bc7f6d','tester-1','v2',1795745663720610);
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
INSERT INTO "participant_tally" VALUES('exp_d0bd994fad6248bc7f6d','v1',0,3);
INSERT INTO "participant_tally" VALUES('exp_d0bd994fad6248bc7f6d','v2',0,3);
CREATE TABLE "refusal" ("id" INTEGER NOT NULL PRIMARY KEY, "experiment_id" TEXT NOT NULL, "reason" TEXT NOT NULL, "received_at" INTEGER NOT NULL, FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"));
INSERT INTO "refusal" VALUES(1,'exp_d0bd994fad6248bc7f6d','NOT_ENROLLED',1795745663865428);
CREATE TABLE "refusal_tally" ("experiment_id" TEXT NOT NULL, "reason" TEXT NOT NULL, "count" INTEGER NOT NULL, PRIMARY KEY ("experiment_id", "reason"), FOREIGN KEY ("experiment_id") REFERENCES "experiment" ("id"));
INSERT INTO "refusal_tally" VALUES('exp_d0bd994fad6248bc7f6d','NOT_ENROLLED',1);
CREATE TABLE "tally" (
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
INSERT INTO "tally" VALUES('exp_d0bd994fad6248bc7f6d','v1','signup',0,2,3,2,'3.0','6.50',1795745663736321,1795745663836018);
INSERT INTO "tally" VALUES('exp_d0bd994fad6248bc7f6d','v1','conversion',0,2,2,2,'3.0','6.50',1795745663751144,1795745663807842);
INSERT INTO "tally" VALUES('exp_d0bd994fad6248bc7f6d','v2','signup',0,2,2,2,'5.0','14.50',1795745663767504,1795745663819203);
INSERT INTO "tally" VALUES('exp_d0bd994fad6248bc7f6d','v2','conversion',0,2,2,2,'5.0','14.50',1795745663780825,1795745663827911);
INSERT INTO "tally" VALUES('exp_d0bd994fad6248bc7f6d','v2','opened',0,1,1,0,'0','0',1795745663843390,1795745663843390);
INSERT INTO "tally" VALUES('exp_d0bd994fad6248bc7f6d','v2','paid',0,1,2,1,'12.25','150.0625',1795745663851134,1795745663858755);
CREATE TABLE "variant" (
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
INSERT INTO "variant" VALUES('exp_284917e7a28850a5145f','v1',0,'Control',5000,'flow_a',NULL);
INSERT INTO "variant" VALUES('exp_284917e7a28850a5145f','v2',1,'Detailed',5000,'flow_b',NULL);
INSERT INTO "variant" VALUES('exp_d0bd994fad6248bc7f6d','v1',0,'Control',5000,'flow_a',NULL);
INSERT INTO "variant" VALUES('exp_d0bd994fad6248bc7f6d','v2',1,'Detailed',5000,'flow_b',NULL);
CREATE UNIQUE INDEX "experiment_key" ON "experiment" ("key");
CREATE INDEX "experiment_created_at" ON "experiment" ("created_at");
CREATE INDEX "assignment_experiment_id" ON "assignment" ("experiment_id");
CREATE UNIQUE INDEX "assignment_user_id_experiment_id" ON "assignment" ("user_id", "experiment_id");
CREATE INDEX "audience_created_at" ON "audience" ("created_at");
CREATE INDEX "change_experiment_id" ON "change" ("experiment_id");
CREATE INDEX "conversion_assignment_id" ON "conversion" ("assignment_id");
CREATE UNIQUE INDEX "conversion_experiment_id_idempotency_key" ON "conversion" ("experiment_id", "idempotency_key");
CREATE UNIQUE INDEX "group_share_held_first" ON "group_share" ("held", "first");
CREATE UNIQUE INDEX "metric_experiment_id_number" ON "metric" ("experiment_id", "number");
CREATE INDEX "refusal_experiment_id" ON "refusal" ("experiment_id");
CREATE INDEX "variant_experiment_id" ON "variant" ("experiment_id");
CREATE UNIQUE INDEX "variant_experiment_id_name" ON "variant" ("experiment_id", "name");
COMMIT;
