"""How a measured number stands to a paper's: one judgement, for the ledger and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.data.named import NAMED
from stillroom.errors import StillroomError
from stillroom.evaluation.published import changed, find_protocol
from stillroom.evaluation.statistics import Summary
from stillroom.methods import PRESETS
from stillroom.recipe import find_row, from_preset
from stillroom.reported import row_of
from stillroom.types import Record

TOLERANCE = {1: 0.025}  # of a mean, by images a class; the specification's, section 10
USUAL_TOLERANCE = 0.015
SPREAD = 0.015  # the largest deviation of students that a reproduction may have; likewise
LEARNED = ("images", "rate", "labels")  # of the outer loop: what is learned, and how
TESTS = ("reproduced", "not reproduced", "students too far apart")  # verdicts on equal terms


def near(a: float, b: float, ipc: int) -> bool:
    """Whether two means count as one number."""
    return abs(a - b) <= TOLERANCE.get(ipc, USUAL_TOLERANCE)


def verdict(
    paper: Record | None,
    protocol: str,
    measured: Summary,
    departure: str = "",
    drawn: bool = False,
) -> str:
    """Whether what was measured is the paper's number, in a word.

    `protocol` is the one it was measured under, with what was changed of it; `departure` says how
    the run differs from the published one. Of `drawn` images the deviation is that of draws too,
    for which no limit is set. One number has no deviation, so it is no test.
    """
    if paper is None:
        return "nothing reported"
    if paper.protocol != protocol:
        return _other(paper.protocol, protocol)
    if departure:
        return departure
    if measured.n == 1:
        return "one draw" if drawn else "one student"
    same = near(measured.mean, paper.value, paper.ipc)
    if same and measured.std > SPREAD and not drawn:
        return "students too far apart"
    return "reproduced" if same else "not reproduced"


def _other(paper: str, protocol: str) -> str:
    """How two protocols differ: the same but for fewer epochs, or otherwise."""
    if paper.partition("+")[0] != protocol.partition("+")[0]:
        return "other protocol"
    try:
        theirs, ours = find_protocol(paper), find_protocol(protocol)
    except StillroomError:  # a record of another version, that changed what this one does not
        return "other protocol"
    shorter = ours.epochs < theirs.epochs and changed(theirs, {"epochs": ours.epochs}) == ours
    return "fewer epochs" if shorter else "other protocol"


def departure(recipe: Any, data: Mapping[str, Any], paper: Record, step: int | None) -> str:
    """How a set differs from the published row of a paper's method: in steps, settings, or not.

    `recipe` and `data` are what the set says of itself, which of a foreign one may be anything;
    `step` is its own, None of a baseline, which this program chose itself.
    """
    if step is None:
        return ""
    names = [name for name in PRESETS if row_of(name) == paper.row]
    published = [n for n in names if find_row(n, paper.benchmark, paper.ipc) is not None]
    if not isinstance(recipe, dict) or not names or (step and not published):
        return "other settings"
    preset = (published or names)[0]
    row, _ = from_preset(preset, paper.benchmark, paper.ipc, {}, paper.benchmark)
    outer = recipe.get("outer")
    learned = {n: outer.get(n) for n in LEARNED} if isinstance(outer, dict) else None
    constants = NAMED[paper.benchmark].constants if paper.benchmark in NAMED else None
    same = (
        recipe.get("method") == row.method.keyed()
        and (not step or learned == {n: row.outer.model_dump(mode="json").get(n) for n in LEARNED})
        and recipe.get("arch") in (paper.arch, "none")
        and not recipe.get("regularisers")
        and not recipe.get("start")
        and bool(data.get("zca")) == row.zca
        and not data.get("val")
        and (row.zca or data.get("normalise") == (constants or "fitted"))
    )
    if not same:
        return "other settings"
    return "fewer steps" if step < row.method.steps(row.outer) else ""
