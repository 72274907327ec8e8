"""Copies of our own server with something broken, which the harness must notice."""

from __future__ import annotations

import shutil
from pathlib import Path

import service as real


def mutated(folder: Path, *patches: tuple[str, str, str]) -> Path:
    """Return a copy of the source tree with each (file, old, new) replaced."""
    tree = folder / "tree"
    tree.mkdir()
    for file in real.ROOT.glob("*.py"):
        shutil.copy(file, tree)
    shutil.copytree(real.ROOT / "stats", tree / "stats")
    for name, old, new in patches:
        source = (tree / name).read_text()
        assert source.count(old) == 1, f"{name} has not one {old!r}"
        (tree / name).write_text(source.replace(old, new))
    return tree
