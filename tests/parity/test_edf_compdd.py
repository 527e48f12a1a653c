"""Complexity of constructed maps: the published formula, and the script's strict comparison."""

from __future__ import annotations

import pytest
import torch

from golden import golden
from stillroom.comp_dd.complexity import complexity, hard_first, of_classes

DATA = golden("edf_compdd")


def test_the_formula() -> None:
    maps, threshold = DATA.take("maps"), float(DATA.take("threshold"))
    found = complexity(maps, threshold)
    torch.testing.assert_close(found, DATA.take("complexity").double(), rtol=0, atol=1e-12)
    classes, images = found.shape
    labels = torch.arange(classes).repeat_interleave(images)
    means = of_classes(found.flatten(), labels, classes)
    torch.testing.assert_close(means, DATA.take("class_complexity").double(), rtol=0, atol=1e-12)
    assert hard_first(means) == DATA.take("class_order_descending").tolist()


def test_the_script_compares_strictly() -> None:
    """The next float above the threshold, as its bound: what is exactly half does not count."""
    maps, threshold = DATA.take("maps"), DATA.take("threshold").float()
    above = float(torch.nextafter(threshold, torch.tensor(1.0)))
    found = complexity(maps, above)
    torch.testing.assert_close(found, DATA.take("complexity_strict").double(), rtol=0, atol=1e-12)
    wanted = DATA.take("class_complexity_strict").double()
    torch.testing.assert_close(found.mean(1), wanted, rtol=0, atol=1e-12)


def test_constructed_maps() -> None:
    half = torch.zeros(4, 4)
    half[:2] = 1
    maps = torch.stack([torch.zeros(4, 4), torch.ones(4, 4), half, torch.full((4, 4), 0.5)])
    assert complexity(maps).tolist() == [1, 0, 0.5, 0]
    values = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.7, 0.2], dtype=torch.float64)
    assert torch.isnan(of_classes(values, torch.zeros(6, dtype=torch.int64), 2)[1])


def test_every_tensor_was_looked_at(request: pytest.FixtureRequest) -> None:
    DATA.finish(request)
