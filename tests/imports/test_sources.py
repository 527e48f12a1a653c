"""What a result depends on is in its stage's `sources`, so that changed code never answers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import stillroom
from stillroom.artefacts.buffers import GivenExpert
from stillroom.artefacts.difficulty import Difficulty
from stillroom.artefacts.experts import Expert
from stillroom.artefacts.features import RealFeatures
from stillroom.artefacts.originals import Original
from stillroom.artefacts.relabels import Relabel
from stillroom.artefacts.released import ReleasedStatistics
from stillroom.artefacts.stage import Stage
from stillroom.artefacts.statistics import Statistics
from stillroom.comp_dd.measure import Complexities
from stillroom.evaluation.score import Score
from stillroom.methods.distil import Distil

ROOT = Path(stillroom.__file__).parent
# Parts that decide no number: who works, where it is kept, what is said and refused.
INDIFFERENT = {
    "__init__.py",
    "errors.py",
    "files.py",
    "session.py",
    "code.py",
    "artefacts/__init__.py",
    "artefacts/executor.py",
    "artefacts/stage.py",
    "artefacts/store.py",
    "artefacts/snapshot.py",
    "artefacts/starts.py",  # in a key by the digest of what it brings
    "artefacts/difficulty.py",  # likewise
    "artefacts/originals.py",  # likewise, where it is not the stage itself
    "artefacts/experts.py",  # likewise
    "artefacts/buffers.py",  # likewise
    "artefacts/training.py",  # of these two
    "artefacts/schooling.py",
    "artefacts/statistics.py",  # likewise
    "artefacts/released.py",  # likewise
    "artefacts/released_names.py",  # of repairs, which are in the method's fields
    "evaluation/__init__.py",
    "methods/__init__.py",
    "nets/__init__.py",
}


def file_of(module: str) -> str | None:
    """The file below the package that a dotted name is, or lies in."""
    parts = module.split(".")[1:]
    while parts:
        for name in ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"])):
            if (ROOT / name).is_file():
                return name
        parts = parts[:-1]
    return "__init__.py"


def imported(name: str) -> set[str]:
    """Files of the package that one imports at any depth of its code, type checking left out."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {file_of(a.name) for a in node.names if a.name.startswith("stillroom")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stillroom"):
            found |= {file_of(f"{node.module}.{a.name}") for a in node.names}
    return {f for f in found if f}


def covered(stage: type[Stage]) -> set[str]:
    """The files that a stage's `sources` name."""
    found = set()
    for source in stage.sources:
        path = ROOT / source
        some = path.rglob("*.py") if path.is_dir() else [path]
        found |= {p.relative_to(ROOT).as_posix() for p in some}
    return found


STAGES = [
    Complexities,
    Difficulty,
    Distil,
    Score,
    Original,
    Expert,
    GivenExpert,
    RealFeatures,
    Statistics,
    ReleasedStatistics,
    Relabel,
]


@pytest.mark.parametrize("stage", STAGES)
def test_everything_that_is_imported_is_a_source(stage: type[Stage]) -> None:
    own = covered(stage)
    assert all((ROOT / name).is_file() for name in own)
    seen, left = set(), set(own)
    while left:
        name = left.pop()
        seen.add(name)
        left |= imported(name) - seen - INDIFFERENT
    assert seen == own, "name them in `sources`, or say above why they decide no number"
