"""Copies of our own server with something broken, which the harness must notice."""

from __future__ import annotations

import shutil
from pathlib import Path

import service as real

# What a power cut must show, and a kill cannot.
FLUSHES_LATE = [
    ("storage/sqlite.py", '"synchronous": "full"', '"synchronous": "normal"'),
    ("storage/sqlite.py", "and synchronous == 2:", "and synchronous == 1:"),
]
MUTANTS = {
    "acknowledge before commit": [
        (
            "ledger/enrolment.py",
            "def _seated(experiment: Experiment, dealt: dict[str, Variant])",
            """def _seated(experiment, dealt):
    import contextvars
    import threading

    late = contextvars.copy_context()  # with the database of this request
    threading.Timer(0.1, late.run, (_seated_late, experiment, dealt)).start()
    now = utcnow()
    return {one: Decision(experiment.id, one, NEW, dealt[one], now) for one in dealt}


def _seated_late(experiment: Experiment, dealt: dict[str, Variant])""",
        )
    ],
    "no UNIQUE on (experiment, user)": [
        (
            "models.py",
            'indexes = ((("experiment", "user_id"), True),)',
            'indexes = ((("experiment", "user_id"), False),)',
        ),
        (
            "ledger/enrolment.py",
            """            .on_conflict(
                action="NOTHING",
                conflict_target=[Assignment.experiment, Assignment.user_id],
            )
""",
            "",
        ),
    ],
    "a random variant": [
        (
            "ledger/enrolment.py",
            "position = assignment.dealt(experiment.id, user.user_id, splits)",
            "position = __import__('random').randrange(len(splits))",
        )
    ],
    "a counter in another transaction": [
        (
            "ledger/enrolment.py",
            "    for key, number in Counter(variants[user_id] for user_id in written)",
            "    database.commit()\n"
            "    database.begin()\n"
            "    for key, number in Counter(variants[user_id] for user_id in written)",
        )
    ],
    "a swallowed lock error": [
        (
            "ledger/enrolment.py",
            "    decided |= _seated(experiment, dealt)\n",
            """    try:
        decided |= _seated(experiment, dealt)
    except __import__("peewee").OperationalError:
        now = utcnow()
        for one, variant in dealt.items():
            decided[one] = Decision(experiment.id, one, NEW, variant, now)
""",
        )
    ],
}


def mutated(folder: Path, *patches: tuple[str, str, str]) -> Path:
    """Return a copy of the source tree with each (file, old, new) replaced."""
    tree = folder / "tree"
    for file in (*real.ROOT.glob("*.py"), *real.ROOT.glob("*/__init__.py")):
        copy = tree / file.relative_to(real.ROOT).parent
        if file.name == "__init__.py":
            shutil.copytree(file.parent, copy)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(file, copy)
    for name, old, new in patches:
        source = (tree / name).read_text()
        assert source.count(old) == 1, f"{name} has not one {old!r}"
        (tree / name).write_text(source.replace(old, new))
    return tree
