"""The documents, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FILES = sorted(
    file
    for folder in (ROOT, ROOT / "docs", ROOT / "demo", *(ROOT / "clients").iterdir())
    for file in folder.glob("*.md")
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code of a document."""

    document: str
    """Its path in the repository."""
    language: str
    text: str


def blocks(file: Path) -> list[Block]:
    """Return the blocks of code of a document, in their order."""
    name = str(file.relative_to(ROOT))
    return [Block(name, *found) for found in FENCED.findall(file.read_text())]


def prose(file: Path) -> str:
    """Return the text of a document without its blocks of code."""
    return FENCED.sub("", file.read_text())


def commands(name: str) -> list[Block]:
    """Return the blocks of shell commands of a document."""
    return [one for one in blocks(ROOT / name) if one.language == "sh"]


SHELL = {
    name: commands(name)
    for name in (str(file.relative_to(ROOT)) for file in FILES)
    if commands(name)
}
"""The documents that have commands, each with its blocks of them."""


class LeftOut(NamedTuple):
    """Blocks of a document that the tests do not paste."""

    document: str
    begins: str
    reason: str
    times: int = 1
    """How many blocks of the document begin so."""

    def is_about(self, block: Block) -> bool:
        """Tell whether a block is one of these."""
        return block.document == self.document and block.text.startswith(self.begins)


PACKAGES = "it installs from the network"
SYSTEM = "it changes the system: users, packages, services"
ROLE = "it needs a PostgreSQL server with a role for Abacus"
RECOVERY = "tests/test_recovery.py runs it, on a server of its own"
LEFT_OUT = [
    LeftOut(
        "README.md", "git clone URL", "tests/test_first_run.py runs its `make run`"
    ),
    LeftOut("clients/javascript/README.md", "npm install ", PACKAGES, 2),
    LeftOut("clients/javascript/README.md", "CORS_ORIGINS=", "it does not end"),
    LeftOut("clients/python/README.md", "pip install ", PACKAGES, 2),
    LeftOut("clients/python/README.md", "make example", "test_client_examples.py does"),
    LeftOut("docs/deploying.md", "apt-get install ", SYSTEM, 3),
    LeftOut("docs/deploying.md", "useradd ", SYSTEM),
    LeftOut("docs/deploying.md", "install --mode=644 /opt/abacus/deploy/ab", SYSTEM),
    LeftOut("docs/deploying.md", "install --mode=600 /dev/null /etc/", SYSTEM),
    LeftOut("docs/deploying.md", ".venv/bin/flask --app wsgi init", "it does not end"),
    LeftOut(
        "docs/deploying.md",
        "curl --fail-with-body --silent --show-error -H "
        '"Authorization: Bearer $TOKEN" http://abacus.example:8080/',
        "tests/test_deploy.py asks nginx on a port of its own",
    ),
    LeftOut("docs/deploying.md", "install --directory --owner=abacus ", SYSTEM),
    LeftOut("docs/deploying.md", "systemctl stop abacus", SYSTEM),
    LeftOut("docs/deploying.md", "docker compose ", "Docker may be missing"),
    LeftOut("docs/deploying.md", "litestream ", "test_replication.py restores one"),
    LeftOut("docs/operating.md", "INSTANCE=/tmp/older ", "it needs an older backup"),
    LeftOut("docs/postgresql.md", "createuser ", ROLE),
    LeftOut("docs/postgresql.md", "export DATABASE_URL=", ROLE),
    LeftOut("docs/postgresql.md", "pg_dump ", ROLE),
    LeftOut("docs/postgresql.md", "createdb ", ROLE),
    LeftOut("docs/postgresql.md", "export PGDATA=", RECOVERY, 4),
    LeftOut("docs/postgresql.md", "pg_basebackup ", RECOVERY),
    LeftOut("docs/postgresql.md", ".venv/bin/flask --app wsgi check", RECOVERY),
]


def pasted(name: str) -> list[Block]:
    """Return the blocks of commands of a document that the tests paste."""
    return [
        block
        for block in SHELL[name]
        if not any(one.is_about(block) for one in LEFT_OUT)
    ]
