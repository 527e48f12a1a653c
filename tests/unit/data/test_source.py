"""`ImageSource`: rows, classes, subsets, and where the images live."""

from __future__ import annotations

import pytest
import torch

from stillroom.data import source
from stillroom.data.source import ImageSource, row_blocks
from stillroom.errors import StillroomError


@pytest.fixture
def five() -> ImageSource:
    images = torch.arange(5 * 3 * 2 * 2).view(5, 3, 2, 2).to(torch.uint8)
    return ImageSource(images, torch.tensor([2, 0, 2, 0, 2]))


def test_take_and_sizes(five: ImageSource) -> None:
    assert len(five) == 5
    assert five.shape == (3, 2, 2)
    assert five.nbytes == 60
    taken = five.take(torch.tensor([3, 3, 0]))
    assert taken.dtype == torch.uint8
    assert torch.equal(taken, five.images[[3, 3, 0]])
    assert five.take(torch.tensor([0]), torch.device("cpu")).device.type == "cpu"


def test_rows_of_class(five: ImageSource) -> None:
    assert five.rows_of(2).tolist() == [0, 2, 4]
    assert five.rows_of(0).tolist() == [1, 3]
    assert five.rows_of(1).tolist() == five.rows_of(9).tolist() == []
    assert five.rows_of(9).dtype == torch.int64
    assert five.rows_of(2) is five.rows_of(2)
    with pytest.raises(StillroomError, match="class -1 must not be negative"):
        five.rows_of(-1)


def test_subset(five: ImageSource) -> None:
    part = five.subset(torch.tensor([4, 1]))
    assert part.labels.tolist() == [2, 0]
    assert torch.equal(part.images, five.images[[4, 1]])
    assert part.rows_of(0).tolist() == [1]


def test_frozen(five: ImageSource) -> None:
    with pytest.raises(AttributeError):
        five.labels = torch.zeros(5)  # type: ignore[misc]


def test_wrong_tensors_are_refused() -> None:
    good = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(StillroomError, match="images must be uint8"):
        ImageSource(good.float(), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(StillroomError, match=r"got torch\.uint8 \[2, 4, 4\]"):
        ImageSource(good[:, 0], torch.zeros(2, dtype=torch.int64))
    for labels in (torch.zeros(3, dtype=torch.int64), torch.zeros(2)):
        with pytest.raises(StillroomError, match=r"labels must be int64 \[2\]"):
            ImageSource(good, labels)


def test_a_device_takes_a_quarter_at_most(
    five: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = torch.device("meta")  # a device that every machine has
    monkeypatch.setattr(source, "total_memory", lambda device: 4 * 60)
    assert five.on(meta).stored.device == meta
    assert five.on(torch.device("cpu")) is five
    monkeypatch.setattr(source, "total_memory", lambda device: 4 * 60 - 1)
    assert five.on(meta) is five


def test_total_memory_is_plausible() -> None:
    assert source.total_memory(torch.device("cpu")) > 2**28


def test_row_blocks() -> None:
    assert [rows.tolist() for rows in row_blocks(5, 2)] == [[0, 1], [2, 3], [4]]
    assert list(row_blocks(0)) == []
