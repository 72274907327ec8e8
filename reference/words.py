"""What each parameter and each field of the API means, in words."""

from __future__ import annotations

PARAMETERS = {
    "user_id": "The user's id, as your program chose it. Percent-encode the whole id.",
    "audience_id": "The audience's id. Percent-encode the whole id.",
    "key": "The flag's key: the `key` or the `id` of an experiment, or either of them "
    "with `.config` at its end. Percent-encode the whole key.",
    "page": "The number of the page, from 1 (the default) on.",
    "limit": "The most rows of a page: 1 to 100, 20 by default.",
    "cursor": "`meta.next` of the previous page, to walk through the whole list. It "
    "comes without `page`, and with the same filters.",
    "status": "Only the experiments in this state.",
    "archived": "`true` shows archived experiments too; `false` by default.",
    "search": "Only audiences that have this text in the id, the name or the "
    "description.",
    "explain": "`true` adds the receipt of the decision; `false` by default.",
    "attributes": "What is known of the user, as a JSON object, for the rules.",
    "metric": "Only this metric. Without it, all metrics are counted, and the primary "
    "one is computed.",
    "asOf": "Only what had been received by this time, whenever it occurred.",
    "granularity": "`day` adds the figures of each day, in UTC.",
    "confidenceLevel": "The level of the intervals: 0.5 to 0.99, 0.95 by default. The "
    "verdict uses the level of the plan.",
    "format": "`csv` (the default) or `ndjson`: a JSON object in each line.",
    "If-None-Match": "The `ETag` of an earlier answer: 304 if nothing has changed.",
    "flagConfigEtag": "Part of the protocol, and ignored.",
    "flagConfigLastModified": "Part of the protocol, and ignored.",
}

PATH_EXAMPLES = {
    "id": "checkout-button",
    "user_id": "user-1",
    "audience_id": "aud_new",
    "key": "checkout-button",
}

HEADERS = {
    "ETag": "The tag of exactly this answer, for `If-None-Match`.",
    "Retry-After": "After how many seconds to try again.",
    "WWW-Authenticate": "How to prove who you are: with a bearer token.",
}

# The schemas whose fields mean the same as those of another one.
LIKE = {
    "AudienceChange": "Audience",
    "ComputedPlan": "Plan",
    "Explained": "Decision",
    "ExperimentChange": "Experiment",
    "ReceiptOfAssignment": "Draw",
    "VariantChange": "Variant",
    "WarnedExperiment": "Experiment",
}

# Fields that mean the same in every schema that has no words of its own for them.
FIELDS = {
    "adjustedPValue": "The p-value after the correction for several comparisons. Null "
    "if it cannot be computed.",
    "alwaysValid": "For looks at any time, without a plan. Null if the effect is too "
    "small for any number of users.",
    "alwaysValidInterval": "The interval that is valid however often it is looked at.",
    "analysis": "How the figures were computed.",
    "asOf": "The time of the replay: only what had been received by then counts.",
    "assignedAt": "When the user was enrolled. Null if no row was written.",
    "attributes": "What is known of the user: any JSON object. The rules of the "
    "audience are applied to it, and it is not stored. `{}` by default.",
    "audienceId": "The id of the audience, or null. If no audience with this id is "
    "defined here, the caller decides which users take part.",
    "audienceSnapshotAt": "When the rules of the audience were frozen: at the start.",
    "baselineRate": "The conversion rate of the control that is expected, as a share: "
    "0.1 is 10 %.",
    "chiSquare": "The statistic of the ordinary chi-square test, for comparison.",
    "code": "A word for programs, which does not change.",
    "comparison": "Against the control. Null for the control itself.",
    "confidenceInterval": "The interval for a single look, at the planned end.",
    "confidenceLevel": "The level of the intervals: 0.5 to 0.99, 0.95 by default.",
    "config": "Any JSON object of up to 16 KiB, which comes back unchanged. Null "
    "without one.",
    "controlVariantId": "The control: the first variant.",
    "conversionRate": "`conversions` as a share of `sampleSize`; 0 if nobody is "
    "enrolled.",
    "conversions": "How many users have an event of the metric. Each counts once.",
    "createdAt": "When it was created.",
    "data": "What was asked for.",
    "date": "The day, in UTC.",
    "days": "The days that this takes, if `usersPerDay` users come each day; else "
    "null.",
    "description": "Up to 10,000 characters for people, or null.",
    "difference": "The variant's figure minus the control's, in the unit of the "
    "figure. Null if it cannot be computed.",
    "differenceInterval": "The interval of the difference.",
    "direction": "Which one is better: `increase` (the default) or `decrease`.",
    "endDate": "When enrolment ends or has ended. Null if no end is set.",
    "events": "How many events were counted.",
    "experimentId": "The id of the experiment.",
    "fixedHorizon": "For a single look, at the planned end.",
    "flowId": "Your own name for what the variant shows: up to 255 characters. Null "
    "without one.",
    "granularity": "`day` adds the figures of each day, in UTC. Null without them.",
    "idempotencyKey": "A key of your choice, unique within the experiment: an event "
    "with the same key and the same body is counted once. Null without one.",
    "isSignificant": "Whether the adjusted p-value is below the error rate, now or at "
    "an earlier look that is stored.",
    "key": "The experiment's slug, which stands wherever its id does.",
    "kind": "`conversion` (the default): whether a user has an event. `mean`: the "
    "mean of the users' totals. `ratio`: the value of an event.",
    "lift": "The difference as a share of the control's figure: 0.25 is 25 % more. "
    "Null if it cannot be computed.",
    "liftInterval": "The interval of the lift.",
    "logEValue": "The natural logarithm of the evidence against equality.",
    "margin": "How much worse a guardrail may be, in the unit of its differences: "
    "0.01 is one percentage point of a rate. Null without a margin.",
    "message": "A sentence for people.",
    "meta": "The position of the page in the list.",
    "method": "The name of the method.",
    "metric": "The name of the metric, as the events give it.",
    "minimumEffect": "The smallest effect that is to be found, as an absolute "
    "difference: 0.02 on a rate of 0.1 means 0.12.",
    "name": "1 to 200 characters for people.",
    "operator": "How the field is compared with the value.",
    "pValue": "The p-value. Null if it cannot be computed.",
    "participants": "How many users are enrolled.",
    "power": "How likely an effect of this size is found: 0.01 to 0.999, 0.8 by "
    "default.",
    "relativeEffect": "The smallest effect that is to be found, as a share of the "
    "baseline: 0.2 is 20 % more.",
    "role": "`primary` decides, a `guardrail` can stop a win, and a `secondary` one "
    "(the default) is only shown.",
    "rules": "The rules of the audience as they were frozen. Null without any.",
    "sampleSize": "How many users are counted for this metric.",
    "sequential": "For looks at any time; it decides.",
    "splitPercentage": "The variant's share of the users, in percent: above 0, with "
    "at most 2 decimals. All splits sum to exactly 100.",
    "startDate": "When the experiment was started. Null before.",
    "status": "The state.",
    "sum": "The sum of the values.",
    "updatedAt": "When it was last changed.",
    "userId": "The user's id, as your program chose it: 1 to 255 characters.",
    "value": "The values of the events; their unit is your own.",
    "variantId": "The id of the variant: `v1` is the control. Null if there is none.",
    "variantName": "The name of the variant. Null if there is none.",
    "variants": "The variants; the first one is the control.",
    "warnings": "What you should know first. A warning prevents nothing.",
}

EXPERIMENT = {
    "id": "The experiment's id, which begins with `exp_`.",
    "key": "A unique slug of 1 to 100 characters of a-z, 0-9, `_`, `.` and `-`, which "
    "stands wherever the id does. Left out, it is made from the name.",
    "hypothesis": "What you expect and why: up to 10,000 characters, or null.",
    "type": "Always `ab_test`.",
    "exclusionGroup": "The name of a group whose running experiments never share a "
    "user, or null.",
    "primaryMetric": "The metric that decides, and that of an event that names none. "
    "`conversion` by default.",
    "metrics": "What up to 20 metrics measure, and what for. Frozen at the start. "
    "Null: each metric is a conversion rate.",
    "plan": "What the experiment should be able to find. Frozen at the start. Null "
    "without a plan.",
    "trafficPercentage": "How many percent of the users who ask are enrolled: above "
    "0, with at most 2 decimals; 100 by default.",
    "completedAt": "When the results became final. Null before.",
    "archivedAt": "When it was archived. Null if it is not.",
    "conclusion": "How it ended. Null before.",
    "winnerVariantId": "The variant that everyone gets since the end. Null without "
    "one.",
    "note": "What was written at the end. Null without a note.",
    "variants": "2 to 20 variants with different names. The first one is the control.",
    "_count": "Counts that are always exact.",
    "assignments": "How many users are enrolled.",
}

METRIC = {
    "name": "The name of the metric, as the events give it.",
    "cap": "The most that one user's total counts, in the unit of the values; only of "
    "a mean or a ratio. Null without a cap.",
    "window": "An event counts in so many days from the user's enrolment: 1 to 365. "
    "Null: always.",
}

SIZES = {
    "variants": "How many variants share the users equally: 2 to 20, 2 by default.",
    "splits": "The share of each variant, in percent, in place of `variants`. They "
    "sum to exactly 100.",
    "usersPerDay": "How many users come each day, to say how many days are needed.",
}

# The words of a schema's own.
OWN: dict[str, dict[str, str]] = {
    "Audience": {
        "ruleTree": "One rule, or a group of rules.",
        "id": "The audience's id.",
    },
    "Change": {
        "at": "When it was done.",
        "subject": "The subject of the token that did it; `abacus` is the service.",
        "action": "What was done, such as `create`, `start` or `override`.",
        "userId": "The user of an override; else null.",
        "changes": "Each field that was changed, `from` its old value `to` its new "
        "one.",
    },
    "Computed": {
        "variants": "The figures of each variant; the first one is the control.",
        "sampleRatioMismatch": "Whether the users were split as planned.",
        "verdict": "One conclusion from all figures.",
        "trustworthy": "False if the figures should not be believed.",
        "metrics": "The guardrails and the secondary metrics.",
        "progress": "How far the experiment is from the users of its plan.",
        "usersInWindow": "How many users are counted later, when their window is over.",
        "days": "The estimates at the end of each day, with all that occurred by then.",
    },
    "ComputedAdjustment": {
        "users": "How many users have a covariate.",
        "theta": "By how much a total rises with the covariate.",
        "varianceExplained": "The share of the variance that the covariate takes away.",
    },
    "ComputedComparison": {
        "probabilityToBeatControl": "The probability, from 0 to 1, that the variant's "
        "rate is better than the control's: higher, or lower where less is better.",
        "crossing": "The first look at which it was significant. No later look "
        "withdraws it.",
    },
    "ComputedCrossing": {
        "at": "When it was looked at.",
        "users": "How many users all variants had then.",
        "controlSampleSize": "How many users the control had then.",
        "controlConversions": "How many users of the control had converted then.",
        "sampleSize": "How many users the variant had then.",
        "conversions": "How many users of the variant had converted then.",
        "pValue": "The adjusted p-value of that look.",
        "controlMean": "The control's mean or ratio then. Left out of a rate.",
        "difference": "The variant's mean or ratio minus the control's then. Left out "
        "of a rate.",
    },
    "ComputedHorizon": {
        "users": "How many users the experiment is planned for.",
        "boundaryAlpha": "The error rate of the boundary, which decides up to them.",
        "evidenceAlpha": "The error rate of the e-process, which decides later too.",
    },
    "ComputedInterval": {
        "lower": "The lower end. Null if it is unbounded or unknown.",
        "upper": "The upper end. Null if it is unbounded or unknown.",
        "level": "The level of the interval, from 0 to 1.",
    },
    "ComputedMethod": {
        "verdictConfidenceLevel": "The level of the verdict: that of the plan.",
        "correction": "The correction for several comparisons.",
        "prior": "The prior of the probabilities.",
        "centre": "The log odds ratio on which the bets of the e-process are centred.",
        "plan": "The plan of the experiment. Null without one.",
        "computedAt": "When the figures were computed. Null if that is not known.",
        "inputHash": "The SHA-256 of everything that the figures follow from.",
        "smallestEffect": "The smallest difference that so many users would show, "
        "with the planned power. Null if none.",
        "horizon": "The users that the experiment is planned for. Null without a plan.",
        "adjustment": "How a covariate has adjusted the means.",
    },
    "ComputedMetricComparison": {
        "adjustedPValue": "The p-value after the correction for all secondary "
        "metrics. Null for a guardrail.",
        "status": "Of a guardrail `harmed`, `harmless` or `not_shown`; of a secondary "
        "metric `better`, `worse` or `not_shown`; `not_counted` without any event.",
    },
    "ComputedMetricFigures": {
        "exploratory": "Whether it is only shown, and never decides.",
        "variants": "The figure of each variant.",
    },
    "ComputedMetricOfVariant": {
        "estimate": "The rate, the mean or the ratio, by the kind of the metric. Null "
        "without users.",
    },
    "ComputedPlannedMeanSize": {
        "baselineMean": "The mean of the users' totals that is expected of the "
        "control.",
        "targetMean": "The mean with the effect.",
    },
    "ComputedPlannedSize": {
        "targetRate": "The rate with the effect, as a share.",
        "horizon": "For looks at any time, of an experiment with this plan.",
    },
    "ComputedSampleRatioMismatch": {
        "pValue": "The p-value that is valid at any look.",
        "chiSquarePValue": "The p-value of that test, valid for a single look.",
        "expected": "How many users each variant should have.",
        "detected": "Whether the split is broken. Then no winner is named.",
    },
    "ComputedShare": {
        "value": "The share of the runs, from 0 to 1.",
        "standardError": "The standard error of that share.",
    },
    "ComputedSimulation": {
        "runs": "How many whole experiments were simulated.",
        "evaluations": "How many looks were taken in all of them.",
        "achievedSplit": "The share of the users that each variant got, from 0 to 1.",
        "falseAlarms": "The runs without an effect in which any look named a winner.",
        "naiveFalseAlarms": "The same, by an ordinary z-test at every look.",
        "singleLookFalseAlarms": "The same, by an ordinary z-test at the last look.",
        "power": "The runs with the effect in which any look found it.",
        "naivePower": "The same, by an ordinary z-test at every look.",
        "singleLookPower": "The same, by an ordinary z-test at the last look.",
        "meanStop": "How many users a run with the effect has, on average, when a "
        "look finds it or the run ends.",
    },
    "ComputedSize": {
        "usersPerVariant": "The users of each variant, in their order.",
        "total": "The users of all variants together.",
    },
    "ComputedValueComparison": {
        "crossing": "The first look at which it was significant, if the primary metric "
        "is a mean or a ratio. No later look withdraws it.",
    },
    "ComputedValueFigures": {
        "count": "How many users have a value.",
        "sum": "The sum of the users' totals.",
        "mean": "The mean of the totals of all users; one without a value counts as "
        "0. Of a ratio, the value of an event. Null without users.",
    },
    "ComputedValueFixedHorizon": {
        "t": "The statistic of Welch's test.",
        "degreesOfFreedom": "The degrees of freedom of Welch's test.",
    },
    "ComputedVariantFigures": {
        "isControl": "Whether this is the control.",
        "probabilityBest": "The probability, from 0 to 1, that this is the best "
        "variant.",
        "expectedLoss": "The rate that is lost on average if this variant is chosen "
        "and is not the best one.",
        "value": "The mean values. Null if the metric has no values.",
    },
    "ComputedVerdict": {
        "status": "`variant_wins`, `control_wins`, `no_difference`, `inconclusive`, "
        "`harm`, `keep_running`, `not_enough_data` or `broken_split`.",
        "variantId": "The variant that the verdict names. Null if it names none.",
        "sentence": "The verdict in words.",
    },
    "Conclusion": {
        "conclusion": "How the experiment ended.",
        "winnerVariantId": "The variant that everyone gets from now on, or null.",
        "note": "Why: up to 10,000 characters, or null.",
    },
    "Conversions": {"conversions": "1 to 10,000 conversions."},
    "Counted": {"conversions": "The users who converted, summed over all metrics."},
    "Day": {
        "participants": "How many users were enrolled on this day.",
        "results": "What was gained on this day, one row for each metric.",
    },
    "DayOfCourse": {"variants": "The estimate of each variant at the end of the day."},
    "DayOfVariant": {
        "sampleSize": "How many users were counted by the end of the day.",
        "conversions": "How many of them had an event by the end of the day.",
        "estimate": "The rate, the mean or the ratio, by the kind of the metric. Null "
        "without users.",
        "differenceInterval": "The interval of the difference. Null for the control.",
        "liftInterval": "The interval of the lift. Null for the control.",
    },
    "DaysMetric": {"conversions": "How many users converted first on this day."},
    "Decision": {
        "enrolled": "Whether the user has a variant. If not, show your default.",
        "reason": "`NEW_ASSIGNMENT`, `EXISTING_ASSIGNMENT`, `OVERRIDE` or `WINNER`; "
        "or why there is no variant, such as `NOT_IN_AUDIENCE` or `NOT_STARTED`.",
        "receipt": "How the decision was made, if `explain=true` asks for it.",
    },
    "Definition": {
        "id": "The experiment's id.",
        "status": "The state. A draft is not published.",
        "salts": "What stands before `:` and the user id in each hash.",
        "ranges": "The buckets of the exclusion group, each range as its two ends. "
        "Null without a group.",
        "overrides": "The forced variants, by the hashes of their users.",
        "traffic": "The buckets below this number take part: 0 to 10,000.",
        "winner": "The id of the variant that everyone gets. Null without one.",
    },
    "DefinedVariant": {
        "id": "The variant's id.",
        "split": "How many of the 10,000 buckets the variant has.",
    },
    "Definitions": {
        "version": "The version of this format.",
        "revision": "Changes whenever anything in the answer does; it is the `ETag`.",
        "omitted": "How many experiments did not fit into this answer.",
        "experiments": "The experiments that have started, up to 1,000.",
    },
    "Draw": {
        "salt": "What stands before `:` and the user id in the hash.",
        "hash": "The SHA-256 of `salt:userId`, in hex.",
        "bucket": "The bucket that the hash gives: 0 to 9,999.",
        "ranges": "The buckets that count, and what they give.",
        "inside": "Whether the bucket is in one of the ranges.",
        "command": "A line for any shell that prints the bucket.",
        "entry": "The draw that let the user in: the traffic, or the share of a group.",
    },
    "Erased": {
        "before": "The counts before the erasure.",
        "after": "The counts after it: the same.",
    },
    "Erasure": {
        "before": "The counts of all these experiments before the erasure.",
        "after": "The counts after it: the same.",
        "experiments": "The experiments that the person was in.",
        "mentions": "Up to 100 texts of people that have the id in them. Change these "
        "yourself.",
        "fileRewritten": "Whether the database file was written anew. If not, `flask "
        "--app wsgi vacuum` does it.",
        "logEmptied": "Whether the database's log was emptied. If not, `flask --app "
        "wsgi vacuum` does it.",
    },
    "Error": {"error": "What is wrong."},
    "ErrorBody": {
        "statusCode": "The status of the answer.",
        "message": "What is wrong, in a sentence.",
        "details": "Up to 100 problems, one row for each; empty if there is no more "
        "to say.",
        "requestId": "The id of the request, as in the header `X-Request-ID` and in "
        "the log.",
    },
    "ErrorDetail": {
        "path": "The field that is wrong, such as `variants.0.name`.",
        "message": "What is wrong with it.",
        "current": "The present value, in a conflict.",
        "allowed": "The values with which the request would be accepted.",
    },
    "Evaluation": {
        "context": "Whom the flag is for: `targetingKey` and any attributes.",
        "targetingKey": "The user's id: 1 to 255 characters.",
    },
    "Event": {
        "metric": "The name of the metric: 1 to 255 characters. The primary metric of "
        "the experiment by default.",
        "value": "What it is worth, in your own unit: -1e12 to 1e12. Null without one.",
        "occurredAt": "When it happened: at most 5 minutes ahead. Now by default.",
    },
    "Enrollment": {"experiment": "The id or the key of a running experiment."},
    "Events": {
        "events": "1 to 10,000 events.",
        "enrollments": "Up to 100 enrolments, which are made before the events are "
        "booked: for a page that ends and waits for no answer.",
    },
    "Experiment": EXPERIMENT,
    "ExperimentsOfUser": {
        "experiments": "The ids or the keys of 1 to 100 experiments.",
    },
    "Failure": {
        "key": "The flag that was asked for; empty if none was named.",
        "reason": "Always `ERROR`.",
        "variant": "Always `not_enrolled`: the application's default holds.",
        "errorCode": "OpenFeature's code for the error.",
        "errorDetails": "What is wrong, in a sentence.",
    },
    "Flag": {
        "key": "The flag's key.",
        "value": "The variant's `flowId`, its name, or its `config`. Left out if the "
        "application's default holds.",
        "variant": "The id of the variant, or `not_enrolled`.",
        "reason": "OpenFeature's reason. `SPLIT` is that of an enrolled user.",
        "metadata": "The experiment, and the decision if it is not the split's.",
    },
    "Flags": {
        "flags": "The flags, two for each experiment.",
        "metadata": "Where events are sent.",
    },
    "MeanSize": {
        **SIZES,
        "baselineMean": "The mean of the users' totals that is expected of the "
        "control.",
        "standardDeviation": "The standard deviation of the users' totals.",
        "minimumEffect": "The smallest effect that is to be found, as a difference of "
        "the means.",
        "covariateCorrelation": "How well a number that is known before goes with the "
        "totals: 0 (the default) to 0.99. It saves users.",
    },
    "Membership": {
        "experimentKey": "The key of the experiment.",
        "experimentName": "The name of the experiment.",
        "assignedAt": "When the user was enrolled.",
    },
    "Mention": {
        "resource": "What has the text: an `audience` or an `experiment`.",
        "id": "The id of it.",
        "field": "The field whose text has the id in it.",
    },
    "Meta": {
        "total": "How many rows the list has.",
        "page": "The number of this page.",
        "limit": "The most rows of a page.",
        "totalPages": "How many pages the list has.",
        "next": "The `cursor` of the next page. Null on the last one.",
    },
    "Metric": METRIC,
    "Override": {"variantId": "The id of the variant that is forced."},
    "Progress": {
        "usersLeft": "How many users are left of the plan's.",
        "usersPerDay": "How many users came each day on average. Null on the first "
        "day.",
        "daysLeft": "How many days that takes at this pace. Null if nobody is "
        "enrolled any more.",
    },
    "Quality": {
        "received": "How many events were received: the sum of the others.",
        "counted": "How many of them were counted.",
        "duplicates": "How many had a key that was counted before.",
        "beforeEnrollment": "How many happened before their users were enrolled.",
        "notEnrolled": "How many came from users who are not enrolled.",
        "afterWindow": "How many happened after the window of their metric.",
    },
    "Range": {
        "first": "The first bucket of the range.",
        "last": "The last bucket of the range.",
    },
    "Receipt": {
        "status": "`accepted` if it is counted, `duplicate` if it was counted before, "
        "or `rejected`.",
        "reason": "Why it is rejected; else null.",
        "value": "What it is worth. Null without a value.",
        "occurredAt": "When it happened, as it is counted.",
    },
    "Rehearsal": {
        "participants": "How many users each run has: 2 to 1,000,000.",
        "baselineRate": "The rate of the control, as a share: 0 to 1.",
        "effect": "What the other variants add to it, as an absolute difference: 0 by "
        "default.",
        "looks": "How often a run is looked at, evenly spaced: 1 to 1,000, 20 by "
        "default.",
        "runs": "How many whole experiments are simulated: 1 to 10,000, 200 by "
        "default.",
        "seed": "Where the made-up users begin: the same seed gives the same answer. "
        "0 by default.",
    },
    "Results": {
        "name": "The experiment's name.",
        "quality": "What became of every event that was received.",
        "variants": "What was counted in each variant.",
    },
    "RuleTree": {
        "field": "`userId`, or a path into the attributes, such as `traits.plan`.",
        "value": "What the field is compared with.",
        "logicalOperator": "Whether all rules of the group must be true, or any of "
        "them.",
        "rules": "The rules and groups of the group.",
    },
    "Salts": {
        "variant": "The salt of the variant.",
        "traffic": "The salt of the traffic draw.",
        "group": "The salt of the exclusion group. Null without a group.",
        "userId": "The salt of the hashes that stand for user ids.",
    },
    "Size": SIZES,
    "Trial": {"userId": "The id of the user, for rules about `userId`."},
    "TrialResult": {
        "matches": "Whether the user is in the audience.",
        "trace": "The rules, each with its `result`.",
    },
    "User": {
        "covariate": "A number that is known of the user before the enrolment and "
        "goes with a mean: -1e12 to 1e12. The first one is kept. Null without one.",
    },
    "Users": {"users": "1 to 10,000 users."},
    "Value": {
        "count": "How many users have a value.",
        "sumSquares": "The sum of the squares of the users' totals.",
    },
    "Variant": {
        "id": "`v1`, `v2` and so on, in the order given. It stays with its variant.",
    },
    "VariantsCounts": {
        "results": "What was counted, one row for each metric; empty until something "
        "is.",
        "series": "What was gained on each day, if `granularity=day` asks for it.",
    },
    "VariantsMetric": {
        "primary": "Whether this is the primary metric.",
        "firstAt": "When the first event happened.",
        "lastAt": "When the last event happened.",
    },
}


def meaning(schema: str, field: str) -> str:
    """Return what a field of a schema means; raise KeyError if no word says it."""
    own = OWN.get(LIKE.get(schema, schema), {})
    return own.get(field) or FIELDS[field]
