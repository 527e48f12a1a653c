"""The ledger's table and summary are what the ledger says."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from stillroom.records import read_records
from stillroom.run.ledger import MEASURED, measured_json, reproduction

ROOT = Path(__file__).resolve().parents[2]
REMEDY = "run: stillroom reproduce --ledger results/records.jsonl --out {}"


def test_reproduction_is_up_to_date() -> None:
    made = reproduction(read_records(ROOT / "results" / "records.jsonl"))
    assert (ROOT / "REPRODUCTION.md").read_text() == made, REMEDY.format("REPRODUCTION.md")


def test_the_packaged_summary_is_up_to_date() -> None:
    made = measured_json(read_records(ROOT / "results" / "records.jsonl"))
    path = resources.files("stillroom") / "recipes" / MEASURED
    assert path.read_text() == made, REMEDY.format(f"src/stillroom/recipes/{MEASURED}")
