"""Keyed, stratified splits, the validation carve, and images found on both sides."""

from __future__ import annotations

import pytest
import torch

from stillroom.data import splits
from stillroom.data.source import ImageSource
from stillroom.data.splits import carve_val, shared_images, split_off_test
from stillroom.errors import StillroomError

NAMES = ("a", "b", "c")


def numbered(counts: list[int]) -> ImageSource:
    """Images whose only pixel is their row, classes one after another."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1)
    return ImageSource(images, labels)


def rows(source: ImageSource) -> list[int]:
    return source.images.flatten().tolist()


def test_every_class_gives_a_fifth() -> None:
    train, test = split_off_test(numbered([10, 25, 2]), NAMES, 0)
    assert torch.bincount(test.labels).tolist() == [2, 5, 1]
    assert torch.bincount(train.labels).tolist() == [8, 20, 1]
    assert sorted(rows(train) + rows(test)) == list(range(37))
    assert rows(train) == sorted(rows(train))


def test_the_draw_depends_on_seed_and_class_only() -> None:
    data = numbered([50, 50, 50])
    first = split_off_test(data, NAMES, 0)[1]
    assert rows(split_off_test(data, NAMES, 0)[1]) == rows(first)
    assert rows(split_off_test(data, NAMES, 1)[1]) != rows(first)
    in_class = [[row - 50 * c for row in rows(first) if row // 50 == c] for c in range(3)]
    assert in_class[0] != in_class[1]
    fewer = split_off_test(numbered([50, 7, 50]), NAMES, 0)[1]
    assert [row for row in rows(fewer) if row < 50] == in_class[0]
    assert [row - 57 for row in rows(fewer) if row >= 57] == in_class[2]
    swapped = split_off_test(data, ("b", "a", "c"), 0)[1]
    assert [row for row in rows(swapped) if row < 50] == in_class[1]


def test_a_single_image_cannot_be_split() -> None:
    with pytest.raises(StillroomError, match="class 'b' has 1 image, too few to split"):
        split_off_test(numbered([5, 1, 5]), NAMES, 0)


def test_val_is_carved_per_class() -> None:
    data = numbered([10, 20, 1])
    train, val = carve_val(data, NAMES, 0.3, 0)
    assert val is not None
    assert torch.bincount(val.labels, minlength=3).tolist() == [3, 6, 0]
    assert sorted(rows(train) + rows(val)) == list(range(31))
    other = carve_val(data, NAMES, 0.3, 1)[1]
    assert other is not None
    assert rows(other) != rows(val)
    assert carve_val(data, NAMES, 0.0, 0) == (data, None)


def test_val_bounds() -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(StillroomError, match="must be at least 0 and less than 1"):
            carve_val(numbered([5]), ("a",), share, 0)
    with pytest.raises(StillroomError, match="leaves no training image of class 'b', which has 1"):
        carve_val(numbered([10, 1]), ("a", "b"), 0.6, 0)
    with pytest.raises(StillroomError, match="carves no image"):
        carve_val(numbered([5]), ("a",), 0.01, 0)


def test_shared_images_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = numbered([10]), numbered([5])
    assert shared_images(train, test) == 5
    assert shared_images(train.subset(torch.tensor([1, 9])), test) == 1
    monkeypatch.setattr(splits, "MAX_COMPARED_BYTES", 14)
    assert shared_images(train, test) is None
