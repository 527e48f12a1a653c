"""What a page shows of students, against counting one image at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillroom.data.benchmarks import from_arrays
from stillroom.distilled import Distilled
from stillroom.run.exhibits import write_exhibit, write_neighbours
from stillroom.session import Session
from toy import record, toy_images


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
    write_exhibit(tmp_path, record(0.5), ("a", "b", "c"), students[:1])
    assert json.loads(path.read_text()) == found, "fewer students of the same say less"
    path.write_text("{")
    write_exhibit(tmp_path, record(0.5), ("a", "b", "c"), students[:1])
    assert [s["seed"] for s in json.loads(path.read_text())["students"]] == [0]


def test_nearest_real_image_by_looking_at_all(tmp_path: Path) -> None:
    pixels, labels = toy_images(40)
    bench = from_arrays(pixels, labels, pixels[:4], labels[:4], name="toy")
    data = Distilled(
        images=bench.preprocess.apply(torch.cat([pixels[7:8], 255 - pixels[3:4]])),
        labels=torch.tensor([0, 1]),
        label_kind="hard",
        of_class=torch.tensor([0, 1]),
        classes=bench.classes,
        preprocess=bench.preprocess,
    )
    write_neighbours(tmp_path, data, bench, Session())
    found = load_file(tmp_path / "neighbours.safetensors")
    for i, image in enumerate(data.pixels()):
        gaps = [float((image - real.float() / 255).square().mean().sqrt()) for real in pixels]
        assert float(found["distance"][i]) == pytest.approx(min(gaps), abs=1e-6)
        assert torch.equal(found["images"][i], pixels[gaps.index(min(gaps))])
    assert float(found["distance"][0]) < 1e-6, "a copy of a real image is found to be one"
