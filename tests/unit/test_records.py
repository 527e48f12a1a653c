"""The ledger and the table made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillroom.errors import StillroomError
from stillroom.records import read_records
from stillroom.tables import lines
from toy import record


def test_a_set_named_random_is_not_mixed_with_random_draws() -> None:
    own = [record(v, i, row="random") for i, v in enumerate((0.6, 0.61))]
    draws = [record(v, i, row="random", draw=i, step=None) for i, v in enumerate((0.5, 0.52, 0.54))]
    table = lines([*own, *draws])
    assert [(x.counts, x.summary.n) for x in table] == [("seeds", 2), ("draws", 3)]
    assert table[0].gap == pytest.approx(0.085)
    assert table[1].gap is None


def test_a_set_stands_beside_the_best_coreset() -> None:
    own = [record(v, i) for i, v in enumerate((0.6, 0.61, 0.62))]
    means = [record(v, i, row="class-mean", step=None) for i, v in enumerate((0.3, 0.31, 0.32))]
    kmeans = [record(v, i, row="k-means", step=None) for i, v in enumerate((0.5, 0.51, 0.52))]
    found = {line.row: line.rival for line in lines([*own, *means, *kmeans])}
    assert found["k-means"] is None
    assert found["class-mean"] is None
    rival = found["dm@30"]
    assert rival is not None
    assert (rival.row, rival.separate) == ("k-means", True)
    assert rival.gap == pytest.approx(0.1)
    # A k-means set under judgement is not averaged with the k-means baseline beside it.
    same = lines([record(0.5, i, row="k-means", step=0) for i in range(3)] + kmeans)
    assert [(x.step, x.summary.n, x.rival is None) for x in same] == [
        (None, 3, True),
        (0, 3, False),
    ]


@pytest.mark.parametrize(
    "field", ["data_digest", "selection", "split", "protocol_hash", "numerics", "arch", "benchmark"]
)
def test_numbers_of_other_conditions_are_never_averaged(field: str) -> None:
    assert len(lines([record(0.5), record(0.6, 1, **{field: "other"})])) == 2
    assert len(lines([record(0.5), record(0.6, 1)])) == 1
    assert len(lines([record(0.5), record(0.6, 1, source="reported")])) == 2


def test_a_ledger_comes_back_as_written(tmp_path: Path) -> None:
    records = [record(0.5), record(0.6, 1, draw=3, step=None, note="n")]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r.to_dict()) + "\n" for r in records))
    assert read_records(path) == records


@pytest.mark.parametrize(
    "field",
    [
        {"bytes": "many"},
        {"seconds": float("inf")},
        {"seconds": -1},
        {"step": "x"},
        {"draw": True},
        {"source": "dreamt"},
        {"value": 89.2},
        {"value": float("inf")},
        {"unit": None},
        {"versions": []},
        {"seed": 1.5},
        {"note": "n" * 5000},
        {"value": 10**400},
    ],
)
def test_a_mistyped_record_is_named_with_its_line(tmp_path: Path, field: dict[str, Any]) -> None:
    path = tmp_path / "records.jsonl"
    good = json.dumps(record(0.9).to_dict())
    path.write_text(good + "\n" + json.dumps({**record(0.9).to_dict(), **field}) + "\n")
    with pytest.raises(StillroomError, match=r"records\.jsonl:2: "):
        read_records(path)
