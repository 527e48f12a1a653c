"""quick@1 is the cheapest schedule that judges as vico@1 does, by the ledger's own numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from stillroom.evaluation.published import find_protocol
from stillroom.records import read_records
from toy import record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("calibration", ROOT / "benchmarks/calibration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TRUE = {"random": 0.3, "class-mean": 0.2, "k-means": 0.305, "dm@100": 0.4, "dm@300": 0.45}


def ledger(rows: dict[str, dict[tuple[str, int], dict[str, float]]]) -> list:
    """Three students a row, half a point apart; what a case is not given is as under vico@1."""
    cases = (("cifar10", 10), ("digits", 1), ("digits", 5))
    return [
        record(
            value + 0.005 * (i - 1),
            i,
            row=row,
            draw=i if row == "random" else None,
            step=int(row.partition("@")[2]) if "@" in row else None,
            benchmark=case[0],
            ipc=case[1],
            set_key=f"{case}",
            protocol=name,
            protocol_hash=find_protocol(name).digest(),
        )
        for name, changes in rows.items()
        for case in cases
        for row, value in {**TRUE, **changes.get(case, {})}.items()
        for i in range(3)
    ]


def test_what_counts_as_judging_alike(script: Any) -> None:
    cifar = ("cifar10", 10)
    some = {"vico@1": {}, "quick@1+epochs=25": {}, "quick@1+epochs=50": {}, "quick@1": {}}

    def alike(changes: dict) -> list[bool]:
        return [c.alike for c in script.calibration(ledger({**some, **changes}))]

    assert alike({}) == [True] * 4
    # Two rows that vico@1 separates, the other way round; a gap that is 2.5 points off.
    assert alike({"quick@1+epochs=25": {cifar: {"dm@100": 0.46}}}) == [False, True, True, True]
    assert alike({"quick@1+epochs=50": {cifar: {"dm@300": 0.475}}}) == [True, False, True, True]
    # Two rows that vico@1 does not separate may swap, and a gap may be 2 points off.
    assert alike({"quick@1": {cifar: {"k-means": 0.295, "dm@300": 0.431}}}) == [True] * 4
    # On the digits the order counts, not the gap.
    digits = ("digits", 5)
    assert alike({"quick@1": {digits: {"dm@300": 0.55}}}) == [True] * 4
    made = script.calibration(ledger({**some, "quick@1": {digits: {"dm@300": 0.3}}}))
    wrong = {frozenset(pair) for pair in made[2].on[digits].wrong}
    assert wrong == {frozenset({"random", "dm@300"}), frozenset({"k-means", "dm@300"})}
    assert made[2].on[digits].pairs == 5, "all but random and k-means are separate"
    assert script.chosen(made) == "quick@1+epochs=25"


def test_quick_is_the_cheapest_that_judges_alike(script: Any) -> None:
    made = script.calibration(read_records(ROOT / "results" / "records.jsonl"))
    assert [c.protocol for c in made][-1] == "vico@1"
    assert len(made) == len(script.EPOCHS) + 1, "a candidate lacks rows"
    assert script.chosen(made) == "quick@1"
    text = (ROOT / "docs" / "protocols.md").read_text()
    for case in script.CASES:
        assert script.table(made, case) in text, case
