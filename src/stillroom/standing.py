"""How a measured number stands to a paper's: one judgement, for the ledger and for the page."""

from __future__ import annotations

from typing import Any

from stillroom.recipe import find_row, from_preset
from stillroom.types import Record

TOLERANCE = {1: 0.025}  # of a mean, by images a class; the specification's, section 10
USUAL_TOLERANCE = 0.015
SPREAD = 0.015  # the largest deviation of students that a reproduction may have; likewise
TESTS = ("reproduced", "not reproduced", "students too far apart")  # verdicts on equal terms


def near(a: float, b: float, ipc: int) -> bool:
    """Whether two means count as one number."""
    return abs(a - b) <= TOLERANCE.get(ipc, USUAL_TOLERANCE)


def verdict(
    paper: Record | None,
    protocol: str,
    mean: float,
    std: float = 0.0,
    departure: str = "",
    drawn: bool = False,
) -> str:
    """Whether a mean is the paper's, in a word; `std` is that of the students behind it.

    `protocol` is the one it was measured under, with what was changed of it; `departure` says how
    the run differs from the published one. Of `drawn` images the deviation is that of draws too,
    for which no limit is set.
    """
    if paper is None:
        return "nothing reported"
    named, _, changed = protocol.partition("+")
    if paper.protocol != named:
        return "other protocol"
    if changed:
        return "fewer epochs"
    if departure:
        return departure
    if near(mean, paper.value, paper.ipc) and std > SPREAD and not drawn:
        return "students too far apart"
    return "reproduced" if near(mean, paper.value, paper.ipc) else "not reproduced"


def departure(recipe: Any, preset: str, benchmark: str, ipc: int, step: int | None) -> str:
    """How a set differs from the published row of its method: in steps, in settings, or not.

    `recipe` is what the set says of itself, which of a foreign one may be anything.
    """
    if step is None or not isinstance(recipe, dict) or find_row(preset, benchmark, ipc) is None:
        return ""
    row, _ = from_preset(preset, benchmark, ipc, {}, benchmark)
    outer = recipe.get("outer")
    images = outer.get("images") if isinstance(outer, dict) else None
    same = (
        recipe.get("method") == row.method.model_dump(mode="json")
        and images == row.outer.images.model_dump(mode="json")
        and not recipe.get("regularisers")
        and not recipe.get("start")
    )
    if not same:
        return "other settings"
    return "fewer steps" if step < row.method.steps(row.outer) else ""
