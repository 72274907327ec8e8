"""Which variant a user gets, and why: one pure function of a definition and a user.

The API, the batch and the explanation decide here, and so can a client by itself.
What only the database knows (overrides, and who is enrolled already) comes before
this decision: see ``ledger/enrolment.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from targeting import assignment, audience

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

DRAFT, RUNNING, STOPPED, COMPLETED = "draft", "running", "stopped", "completed"

STATUSES = (DRAFT, RUNNING, STOPPED, COMPLETED)

# Reasons that come with a variant.
NEW, EXISTING = "NEW_ASSIGNMENT", "EXISTING_ASSIGNMENT"
OVERRIDE, WINNER = "OVERRIDE", "WINNER"

# Reasons that come without one.
NOT_STARTED, ENROLLMENT_CLOSED = "NOT_STARTED", "ENROLLMENT_CLOSED"
ARCHIVED, NOT_ENROLLED = "ARCHIVED", "NOT_ENROLLED"
NOT_IN_AUDIENCE, EXCLUDED, HELD_OUT = "NOT_IN_AUDIENCE", "EXCLUDED", "HELD_OUT"
NOT_FOUND = "NOT_FOUND"  # only where a call names several experiments


class User(NamedTuple):
    """A user, and what the caller knows about them."""

    user_id: str
    attributes: dict[str, Any] = {}
    covariate: Decimal | None = None
    """A number known before, such as last month's spending; it decides nothing."""


class DefinedVariant(NamedTuple):
    """What a share of the users gets; *split* is in hundredths of a percent."""

    id: str
    name: str
    split: int
    flow_id: str | None = None
    config: Any = None


class Definition(NamedTuple):
    """Everything that decides for an experiment, as an immutable value."""

    id: str
    key: str
    status: str
    is_archived: bool
    end_date: datetime | None
    """When a running experiment stops by itself."""
    variants: tuple[DefinedVariant, ...]
    traffic: int
    rules: dict[str, Any] | None
    """The audience's rules, frozen at the start; None admits everyone."""
    group: str | None
    share: tuple[assignment.Range, ...]
    """The buckets of the exclusion group that the experiment has."""
    winner: str | None

    def variant(self, id: str | None) -> DefinedVariant | None:
        """Return the variant with this id, if the experiment has it."""
        return next((one for one in self.variants if one.id == id), None)

    @property
    def splits(self) -> list[int]:
        """The splits of the variants, in their order."""
        return [variant.split for variant in self.variants]


class Decision(NamedTuple):
    """Which variant a user gets, if any, and why."""

    experiment_id: str
    user_id: str
    reason: str
    variant: DefinedVariant | None = None
    assigned_at: datetime | None = None


def state_at(now: datetime, status: str, end_date: datetime | None) -> str:
    """Return the status at a moment: a running experiment stops at its end date."""
    is_over = status == RUNNING and end_date is not None and end_date <= now
    return STOPPED if is_over else status


def decide(definition: Definition, user: User, now: datetime) -> Decision:
    """Return which variant a user who is not enrolled yet gets, and why.

    The first of these that has an answer: the winner, the state, the audience, the
    exclusion group or else the traffic, the split.
    """
    general = decide_for_all(definition, user.user_id, now)
    if general:
        return general
    if reason := _refusal(definition, user):
        return Decision(definition.id, user.user_id, reason)
    place = assignment.dealt(definition.id, user.user_id, definition.splits)
    return Decision(definition.id, user.user_id, NEW, definition.variants[place])


def decide_each(
    definition: Definition, users: Sequence[User], now: datetime
) -> list[Decision]:
    """Return the decision for each of these users, in order."""
    if len(users) > 1 and has_plain_entry(definition, now):
        variants = dealt_each(definition, [user.user_id for user in users])
        return [
            Decision(definition.id, user.user_id, NEW if variant else HELD_OUT, variant)
            for user, variant in zip(users, variants, strict=True)
        ]
    if definition.rules and len(users) > 1:
        definition = definition._replace(rules=audience.indexed(definition.rules))
    return [decide(definition, user, now) for user in users]


def has_plain_entry(definition: Definition, now: datetime) -> bool:
    """Tell whether only the traffic and the split decide now."""
    return not (
        definition.rules or definition.group or decide_for_all(definition, "", now)
    )


def dealt_each(
    definition: Definition, user_ids: Sequence[str]
) -> list[DefinedVariant | None]:
    """Return what each of these users gets if only traffic and split decide.

    None for those whom the traffic holds out.
    """
    id, variants, traffic = definition.id, definition.variants, definition.traffic
    places = assignment.dealt_each(id, user_ids, definition.splits, traffic)
    return [None if place is None else variants[place] for place in places]


def decide_for_all(
    definition: Definition, user_id: str, now: datetime
) -> Decision | None:
    """Return the decision that is the same for every user, if there is one now."""
    if definition.winner:
        winner = definition.variant(definition.winner)
        return Decision(definition.id, user_id, WINNER, winner)
    if definition.is_archived:
        return Decision(definition.id, user_id, ARCHIVED)
    state = state_at(now, definition.status, definition.end_date)
    if state == RUNNING:
        return None
    reason = NOT_STARTED if state == DRAFT else ENROLLMENT_CLOSED
    return Decision(definition.id, user_id, reason)


def _refusal(definition: Definition, user: User) -> str | None:
    """Return why an open experiment does not take this user, or None if it does."""
    rules = definition.rules
    if rules and not audience.matches(rules, user.user_id, user.attributes):
        return NOT_IN_AUDIENCE
    if definition.group:
        share = definition.share
        inside = assignment.in_share(definition.group, user.user_id, share)
        return None if inside else EXCLUDED
    inside = assignment.in_traffic(definition.id, user.user_id, definition.traffic)
    return None if inside else HELD_OUT


class Explanation(NamedTuple):
    """A decision with everything that is needed to repeat it."""

    decision: Decision
    draws: assignment.Draws
    variants: tuple[DefinedVariant, ...]
    rules: dict[str, Any] | None
    """The frozen rules, each with its result; None if there are no rules."""


def explain(definition: Definition, user: User, now: datetime) -> Explanation:
    """Return the decision for a user who is not enrolled, and how it came about.

    A user who would be enrolled is NOT_ENROLLED here: an explanation enrols nobody.
    """
    decision = decide(definition, user, now)
    if decision.reason == NEW:
        decision = decision._replace(reason=NOT_ENROLLED, variant=None)
    draws = assignment.draws(
        definition.id,
        user.user_id,
        definition.splits,
        definition.traffic,
        definition.group,
        definition.share,
    )
    rules = definition.rules
    trace = audience.trace(rules, user.user_id, user.attributes) if rules else None
    return Explanation(decision, draws, definition.variants, trace)
