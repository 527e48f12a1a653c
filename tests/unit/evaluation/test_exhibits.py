"""What a page shows of students, against counting one image at a time."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from stillroom.run.exhibits import write_exhibit
from toy import record


def test_confusion_by_counting(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (50,), generator=generator)
    students = [
        {
            "seed": seed,
            "rate": 0.1,
            "curve": [{"epoch": 1, "test": 0.5, "val": None}],
            "labels": labels,
            "predicted": torch.randint(3, (50,), generator=generator),
        }
        for seed in (0, 1)
    ]
    write_exhibit(tmp_path, record(0.5), ("a", "b", "c"), students)
    (path,) = tmp_path.glob("students-*.json")
    found = json.loads(path.read_text())
    counted = [[0] * 3 for _ in range(3)]
    for student in students:
        for true, seen in zip(labels.tolist(), student["predicted"].tolist(), strict=True):
            counted[true][seen] += 1
    assert found["confusion"] == counted
    assert found["per_class"] == [row[i] / sum(row) for i, row in enumerate(counted)]
    assert [s["seed"] for s in found["students"]] == [0, 1]
