"""quick@1 is the cheapest schedule that judges as vico@1 does, by the ledger's own numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from stillroom.evaluation.protocol import find_protocol
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


def ledger(rows: dict[str, dict[str, float]]) -> list:
    """Three students a row, half a point apart."""
    return [
        record(
            value + 0.005 * (i - 1),
            i,
            row=row,
            draw=i if row == "random" else None,
            step=int(row.partition("@")[2]) if "@" in row else None,
            benchmark="cifar10",
            ipc=10,
            arch="convnet3",
            protocol=name,
            protocol_hash=find_protocol(name).digest(),
        )
        for name, values in rows.items()
        for row, value in values.items()
        for i in range(3)
    ]


TRUE = {"random": 0.3, "class-mean": 0.2, "k-means": 0.305, "dm@100": 0.4, "dm@300": 0.45}


def test_what_counts_as_judging_alike(script: Any) -> None:
    some = ledger(
        {
            "vico@1": TRUE,
            "quick@1+epochs=25": {**TRUE, "dm@100": 0.46},  # two rows that vico@1 separates
            "quick@1+epochs=50": {**TRUE, "dm@300": 0.475},  # the gap is 2.5 points off
            "quick@1+epochs=200": {**TRUE, "k-means": 0.295, "dm@300": 0.43},  # both within
        }
    )
    made = {c.protocol: c for c in script.calibration(some)}
    assert made["quick@1+epochs=25"].wrong == (("dm@100", "dm@300"),)
    assert made["quick@1+epochs=50"].off == pytest.approx(0.025)
    assert [c.alike for c in made.values()] == [False, False, True, True]
    assert made["quick@1+epochs=200"].pairs == 9, "all but random and k-means are separate"
    assert script.chosen(script.calibration(some)) == "quick@1+epochs=200"


def test_quick_is_the_cheapest_that_judges_alike(script: Any) -> None:
    made = script.calibration(read_records(ROOT / "results" / "records.jsonl"))
    assert [c.protocol for c in made][-1] == "vico@1"
    assert len(made) == len(script.EPOCHS) + 1, "a candidate lacks rows"
    assert script.chosen(made) == "quick@1"
    assert script.table(made) in (ROOT / "docs" / "protocols.md").read_text()
