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
            "def _assigned(\n",
            """def _assigned(definition, new, covariates):
    import contextvars
    import threading

    late = contextvars.copy_context()  # with the database of this request
    arguments = (_assigned_late, definition, new, covariates)
    threading.Timer(0.1, late.run, arguments).start()
    now = utcnow()
    return {user_id: one._replace(assigned_at=now) for user_id, one in new.items()}


def _assigned_late(
""",
        ),
        (
            "ledger/single.py",
            "        return database.obj.write(_enter, Entry(known, new, covariate))\n",
            """        import contextvars
        import threading

        late = contextvars.copy_context()  # with the database of this request
        write = lambda: database.obj.write(_enter, Entry(known, new, covariate))
        threading.Timer(0.1, late.run, (write,)).start()
        return utcnow()
""",
        ),
    ],
    "a definition that is not read again": [
        (
            "ledger/single.py",
            "        if all(one.revision == stored[0][0] for one in known):\n",
            "        if stored:\n",
        ),
        (
            "ledger/single.py",
            "            known.revision == revision and not decide_for_all(",
            "            known.revision <= revision and not decide_for_all(",
        ),
    ],
    "no UNIQUE on (experiment, user)": [
        (
            "models/bookings.py",
            'indexes = ((("user_id", "experiment"), True),)',
            'indexes = ((("user_id", "experiment"), False),)',
        ),
        (
            "ledger/enrolment.py",
            " for row in in_order if row.user_id not in present}",
            " for row in rows}",
        ),
        (
            "ledger/enrolment.py",
            """    return insert.on_conflict(
        action="NOTHING", conflict_target=[Assignment.experiment, Assignment.user_id]
    )
""",
            "    return insert\n",
        ),
    ],
    "a random variant": [
        (
            "targeting/decision.py",
            "place = assignment.dealt(definition.id, user.user_id, definition.splits)",
            "place = __import__('random').randrange(len(definition.splits))",
        )
    ],
    "a counter in another transaction": [
        (
            "ledger/enrolment.py",
            "    count_participants((experiment_id,",
            "    database.commit()\n"
            "    database.begin()\n"
            "    count_participants((experiment_id,",
        ),
        (
            "ledger/single.py",
            "    count_participants(map(",
            "    database.commit()\n    database.begin()\n    count_participants(map(",
        ),
    ],
    "a swallowed lock error": [
        (
            "ledger/enrolment.py",
            "    written = _assigned(definition, new, covariates)\n",
            """    try:
        written = _assigned(definition, new, covariates)
    except __import__("peewee").OperationalError:
        now = utcnow()
        written = {name: one._replace(assigned_at=now) for name, one in new.items()}
""",
        ),
        (
            "ledger/single.py",
            "Entry(known, new, covariate))\n"
            "    except Overtaken:\n        return None\n",
            """Entry(known, new, covariate))
    except Overtaken:
        return None
    except __import__("peewee").OperationalError:
        return utcnow()
""",
        ),
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
    for name in ("static", "templates"):
        shutil.copytree(real.ROOT / name, tree / name)
    for name, old, new in patches:
        source = (tree / name).read_text()
        assert source.count(old) == 1, f"{name} has not one {old!r}"
        (tree / name).write_text(source.replace(old, new))
    return tree
