"""What the documents claim of the embedded digits, run through the packaged recipes.

The margins are wider than what was measured (results/records.jsonl), because another processor
rounds otherwise and the test split has 359 images: one image is 0.3 points.
"""

from __future__ import annotations

import pytest

from stillroom.cli import run
from stillroom.records import read_records
from stillroom.tables import lines


def means(folder, ipc: int) -> dict[str, float]:
    made = ["distill", "dm", "--data", "digits", "--ipc", str(ipc), "--out", str(folder), "--quiet"]
    assert run(made) == 0
    assert run(["evaluate", str(folder), "--baselines", "--quiet"]) == 0
    found = {x.row: x.summary.mean for x in lines(read_records(folder / "records.jsonl"))}
    return {name.partition("@")[0]: value for name, value in found.items()}


@pytest.mark.slow
def test_one_digit_a_class(tmp_path):
    found = means(tmp_path / "one", 1)
    assert found["dm"] >= 0.88
    assert found["dm"] - found["class-mean"] >= 0.005
    assert found["dm"] - found["random"] >= 0.15


@pytest.mark.slow
def test_five_digits_a_class(tmp_path):
    found = means(tmp_path / "five", 5)
    assert found["dm"] - found["random"] >= 0.03
    assert found["dm"] - found["k-means"] >= -0.005
