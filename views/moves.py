"""The moves that a person can make on a page, and in words what each of them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lifecycle
from lifecycle import percent
from models import FULL, Experiment
from targeting.decision import COMPLETED, RUNNING
from views.screens import minute


def possible(experiment: Experiment) -> list[str]:
    """Return the moves that the state of the experiment allows."""
    state = experiment.state_or_archived
    return [move for move, states in lifecycle.MOVES.items() if state in states]


def effects(experiment: Experiment, move: str) -> list[str]:
    """Return in sentences what a move will do."""
    return list(EFFECTS[move](experiment))


def warnings(experiment: Experiment, move: str) -> list[str]:
    """Return what the API would warn of if the move were made now."""
    if move != "start":
        return []
    return [one.message for one in lifecycle.warnings_of_start(experiment)]


def _start(experiment: Experiment) -> Iterator[str]:
    shares = ", ".join(
        f"{percent(variant.split)} % get {variant.name}"
        for variant in experiment.variants
    )
    who = "users who ask"
    if experiment.audience_id is not None:
        who += f" and match the audience {experiment.audience_id!r}"
    share = f"{percent(experiment.traffic)} % of the"
    if experiment.traffic == FULL:
        share = "All"
    yield f"{share} {who} are enrolled from now on. Of them, {shares}."
    if experiment.exclusion_group is not None:
        yield (
            f"The experiment takes {percent(experiment.traffic)} % of the exclusion "
            f"group {experiment.exclusion_group!r}, until it is completed or archived."
        )
    users = lifecycle.planned_users(experiment)
    if users is None:
        yield "There is no plan, so nothing will say how many users are enough."
    else:
        yield f"The plan needs {users:,} users."
    if experiment.end_date is not None:
        yield f"Enrolment ends by itself at {minute(experiment.end_date)}."
    yield (
        "The settings freeze: the name, the variants, the metrics, the plan, the "
        "traffic and the rules of the audience stay as they are now."
    )


def _stop(experiment: Experiment) -> Iterator[str]:
    yield "Nobody new is enrolled any more."
    yield f"{_participants(experiment)}, and their conversions still count."
    yield "You can resume the experiment later, or complete it."


def _resume(experiment: Experiment) -> Iterator[str]:
    yield "Users are enrolled again, by the same rules and into the same variants."
    yield f"{_participants(experiment)}."
    yield "There is no end date any more."


def _complete(experiment: Experiment) -> Iterator[str]:
    yield "The results are final: no conversion is counted any more."
    if experiment.state == RUNNING:
        yield "Nobody new is enrolled any more."
    yield (
        "With a winner, every user who asks is given its variant from now on. Without "
        f"one, nothing changes for participants: {_participants(experiment)}."
    )
    yield "A completed experiment cannot be resumed."


def _archive(experiment: Experiment) -> Iterator[str]:
    yield "The list leaves the experiment out, unless it is asked for archived ones."
    yield "All data stays, and no conversion is counted meanwhile."
    if experiment.exclusion_group is not None and experiment.start_date is not None:
        yield (
            "The experiment releases its share of the exclusion group "
            f"{experiment.exclusion_group!r}."
        )
    yield "Every other move is refused until the archiving is undone."


def _unarchive(experiment: Experiment) -> Iterator[str]:
    yield f"The list has the experiment again, and it is {experiment.state} as before."
    if experiment.exclusion_group is not None and experiment.state != COMPLETED:
        yield (
            "It takes its share of the exclusion group "
            f"{experiment.exclusion_group!r} only when it is running again."
        )


def _participants(experiment: Experiment) -> str:
    number = experiment.participants
    if number == 1:
        return "The 1 participant keeps the variant"
    return f"The {number:,} participants keep their variants"


EFFECTS: dict[str, Callable[[Experiment], Iterator[str]]] = {
    "start": _start,
    "stop": _stop,
    "resume": _resume,
    "complete": _complete,
    "archive": _archive,
    "unarchive": _unarchive,
}
