"""The operations of the API by subject, in the order in which one reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Subject(NamedTuple):
    """A subject, and what each of its operations does, by operationId."""

    name: str
    description: str
    operations: Mapping[str, str]


INTRODUCTION = """\
Abacus runs A/B tests: it gives users their variants, counts what they do, and says
what the counts mean.

**A token.** Every operation needs the header `Authorization: Bearer <token>`. The
operator prints a token with `flask --app wsgi token NAME`. Press *Authorize* to use it
on this page. A token without scopes may do everything; `--scope` limits it to `read`
(reading), `write` (creating, changing and erasing) or `assign` (enrolling users and
reporting what they do; safe in a browser).

**The examples** are about one audience, `aud_new`, and one experiment, whose key is
`checkout-button`. Each is accepted as it stands: on a fresh installation, define the
audience, create the experiment and start it first.

**Answers** are `{"data": …}`, and lists have their position in `meta`. Every error has
the same shape, with all the fields that are wrong in `details`. Times are ISO-8601, in
UTC; shares and rates are numbers from 0 to 1, and percentages from 0 to 100.

`/healthz`, `/readyz` and `/metrics` are for the operator and need no token.
"""

ACCESS = (
    "A JSON Web Token. The operator prints one with `flask --app wsgi token NAME`; "
    "`--scope` limits what it may do, and `--days` how long. It can also come from an "
    "identity provider whose keys the settings name. `exp` and `sub` are required. The "
    "claim `scope` lists `read`, `write` or `assign`, separated by spaces; a token "
    "without it may do everything."
)

SUBJECTS = (
    Subject(
        "Experiments",
        "Their settings and their life: `draft`, `running`, `stopped`, `completed`.",
        {
            "listExperiments": "Archived experiments are left out unless "
            "`archived=true`, which shows both.",
            "createExperiment": "It enrols nobody until it is started. `warnings` has "
            "what you should know first; a warning prevents nothing.",
            "getExperiment": "An archived experiment can be read too.",
            "updateExperiment": "Only a draft can be changed. `variants`, if given, "
            "is the whole new list: an item with a known `id` keeps the fields that "
            "it leaves out, and an item without an `id` is a new variant.",
            "startExperiment": "The rules of the audience and the plan are frozen "
            "now. Only a draft can start, and in an exclusion group only if there is "
            "room.",
            "stopExperiment": "Enrolled users keep their variants. Once this is "
            "answered, no worker enrols anybody. Only a running experiment can stop.",
            "resumeExperiment": "The hash, the variants and the `startDate` stay, and "
            "`endDate` is null again. Only a stopped experiment can be resumed.",
            "completeExperiment": "Conversions are refused from now on. A running or "
            "a stopped experiment can be completed.",
            "archiveExperiment": "It is hidden from lists and refuses every move but "
            "`unarchive`. A running experiment must be stopped first. To archive an "
            "archived one again changes nothing.",
            "unarchiveExperiment": "The experiment has the state of before again.",
            "duplicateExperiment": "The copy has the same settings, and an `id` and a "
            "`key` of its own. The end date, users, counts and overrides are not "
            "copied.",
            "listHistory": "Every move, change, override and erasure, with the "
            "subject of the token that did it.",
        },
    ),
    Subject(
        "Users",
        "Which variant a user gets: enrolment, overrides for testers, and erasure.",
        {
            "enrol": "A user who is not enrolled gets 200 with null in the variant "
            "fields and the `reason`: show your default. A user's variant never "
            "changes.",
            "enrolBatch": "A wrong shape anywhere refuses the whole request.",
            "enrolInExperiments": "For a page with several tests: up to 100 ids or "
            "keys. An unknown one has the reason `NOT_FOUND` in its row.",
            "getAssignment": "Enrols nobody. Without `explain`, a user who is not "
            "enrolled is 404. With `explain=true`, anybody gets a receipt: the salt, "
            "the hash, the bucket, the ranges, and the truth of each rule.",
            "listAssignments": "Overrides and the users of a winner are not enrolled, "
            "and not in the list.",
            "listMemberships": "Across all experiments, archived ones too.",
            "setOverride": "Works in any state of the experiment. The user is never a "
            "participant, and conversions of the user are refused.",
            "listOverrides": "The users who are forced into a variant.",
            "removeOverride": "404 if no variant is forced for the user.",
            "eraseUser": "Rows, rules and the history have a tombstone instead of the "
            "id from now on. The counts `before` and `after` are equal.",
        },
    ),
    Subject(
        "Conversions",
        "What users did. The service knows their variants, and counts each event once.",
        {
            "convert": "201 if it is counted, 200 if its `idempotencyKey` was counted "
            "before. A user who is not enrolled is refused with 409.",
            "convertBatch": "The answer has one outcome for each row, in the same "
            "order. A wrong shape anywhere refuses the whole request.",
            "recordEvent": "For a backend that knows no experiments. The answer has "
            "one outcome for each experiment of the user, and none if there is none.",
            "recordEventsBatch": "At most 10,000 pairs of an event and an experiment. "
            "The answer has one list for each event, in the same order.",
        },
    ),
    Subject(
        "Results",
        "What was counted, and what the counts say.",
        {
            "getResults": "`quality` says what became of every event received. "
            "`Accept: text/plain`, `text/markdown` or `text/csv` asks for a table.",
            "computeResults": "Rates with their intervals, the comparison with the "
            "control, and a verdict that may be looked at every day. It changes no "
            "count. `Accept: text/plain`, `text/markdown` or `text/csv` asks for a "
            "table.",
            "getComputedResults": "The same as the POST, as an address that can be "
            "shared.",
            "exportExperiment": "The rows can be imported again. All of them show the "
            "same moment, and an erased user is a tombstone.",
        },
    ),
    Subject(
        "Planning",
        "How many users an experiment needs, before it is started.",
        {
            "planSampleSize": "Give either `minimumEffect` or `relativeEffect`, and "
            "either `variants` or `splits`.",
            "planMeanSampleSize": "Give either `minimumEffect` or `relativeEffect`, "
            "and either `variants` or `splits`.",
            "simulate": "Made-up users are dealt by the production hash and judged by "
            "the production statistics. Nothing is stored. The work is limited to "
            "about 5 seconds; `runs` in the answer says how many runs fitted.",
        },
    ),
    Subject(
        "Audiences",
        "Rules that decide which users an experiment is for.",
        {
            "listAudiences": "`search` finds a part of the id, the name or the "
            "description.",
            "createAudience": "The service chooses the id.",
            "getAudience": "Experiments that have started keep the rules of their "
            "start.",
            "defineAudience": "201 if it is new, 200 if it is replaced.",
            "updateAudience": "Only the fields that are given change.",
            "removeAudience": "409 if a draft or a running experiment uses it.",
            "tryAudience": "Nothing is stored.",
        },
    ),
    Subject(
        "Feature flags",
        "OpenFeature's protocol (OFREP 0.3), and the definitions with which a client "
        "decides by itself.",
        {
            "evaluateFlag": "The user is enrolled. The flag's value is the variant's "
            "`flowId`, or its name; a key that ends in `.config` has its `config`.",
            "evaluateFlags": 'Nobody is enrolled unless the context has `"enroll": '
            "true`. Flags of drafts and of archived experiments are left out.",
            "getDefinitions": "Up to 1,000 started experiments, without user ids: an "
            "override has the hash of its user. The `ETag` of an answer, sent back as "
            "`If-None-Match`, is answered with 304 as long as nothing has changed.",
        },
    ),
)
