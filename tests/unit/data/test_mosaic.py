"""Choosing crops by score and putting them together, beside naive loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom.data.mosaic import best_of_all, best_of_each, mosaics, padded
from stillroom.errors import StillroomError


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_padding_is_centred() -> None:
    x = numbers(2, 3, 4, 5)
    y = padded(x, 9)
    assert y.shape == (2, 3, 9, 9)
    assert torch.equal(y[:, :, 2:6, 2:7], x)  # 2 above and 3 below; 2 left and 2 right
    assert float(y.abs().sum()) == pytest.approx(float(x.abs().sum()))
    assert torch.equal(padded(x, (4, 5)), x)
    with pytest.raises(StillroomError, match="4x5 do not fit into 4x4"):
        padded(x, 4)


def test_one_crop_of_an_image() -> None:
    scores = numbers(30, 5)
    images, crops = best_of_each(scores, 12)
    best = [min(range(5), key=lambda m: float(scores[i, m])) for i in range(30)]
    ranked = sorted(range(30), key=lambda i: float(scores[i, best[i]]))[:12]
    assert images.tolist() == ranked
    assert crops.tolist() == [best[i] for i in ranked]
    kept = scores[images, crops]
    left = torch.tensor([i for i in range(30) if i not in ranked])
    assert float(kept.max()) <= float(scores[left].min())
    assert len(set(images.tolist())) == 12  # at most one crop a source
    with pytest.raises(StillroomError, match="31 crops of different images"):
        best_of_each(scores, 31)


def test_best_of_all() -> None:
    scores = numbers(10, 4)
    scores[3] -= 9  # all crops of one image win
    images, crops = best_of_all(scores, 6)
    pairs = sorted((float(scores[i, m]), i, m) for i in range(10) for m in range(4))[:6]
    assert list(zip(images.tolist(), crops.tolist(), strict=True)) == [p[1:] for p in pairs]
    assert images[:4].tolist() == [3] * 4
    with pytest.raises(StillroomError, match="41 crops are needed and there are 40"):
        best_of_all(scores, 41)


def test_of_equal_scores_the_earlier_one() -> None:
    scores = torch.zeros(6, 3)
    scores[4, 2] = -1
    assert [t.tolist() for t in best_of_each(scores, 3)] == [[4, 0, 1], [2, 0, 0]]
    assert [t.tolist() for t in best_of_all(scores, 4)] == [[4, 0, 0, 0], [2, 0, 1, 2]]


@pytest.mark.parametrize("grouping", ["spread", "ranked"])
@pytest.mark.parametrize(("side", "factor", "ipc"), [(8, 2, 3), (11, 3, 2), (6, 1, 4)])
def test_every_cell(side: int, factor: int, ipc: int, grouping) -> None:
    """Cell (r,c) is the resized crop of the rank that the rule names."""
    cells = factor**2
    crops = numbers(ipc * cells, 3, side // factor, side // factor)
    made = mosaics(crops, side, factor, grouping)
    assert made.shape == (ipc, 3, side, side)
    sides = [side // factor + (i < side % factor) for i in range(factor)]
    starts = [sum(sides[:i]) for i in range(factor)]
    for i in range(ipc):
        for cell in range(cells):
            r, c = divmod(cell, factor)
            rank = cell * ipc + i if grouping == "spread" else i * cells + cell
            fitted = F.interpolate(crops[rank][None], (sides[r], sides[c]), mode="nearest")[0]
            there = made[i, :, starts[r] : starts[r] + sides[r], starts[c] : starts[c] + sides[c]]
            assert torch.equal(there, fitted), (i, cell)


def test_larger_crops_shrink_with_antialias() -> None:
    crops = numbers(4, 3, 16, 16)
    made = mosaics(crops, 16, 2, "ranked")
    small = F.interpolate(crops, (8, 8), mode="bilinear", antialias=True)
    assert torch.equal(made[0, :, :8, 8:], small[1])


@pytest.mark.parametrize(("count", "side", "factor"), [(5, 8, 2), (4, 1, 2), (4, 8, 0)])
def test_refusals(count: int, side: int, factor: int) -> None:
    with pytest.raises(StillroomError, match=f"{count} crops make no mosaics"):
        mosaics(numbers(count, 1, 4, 4), side, factor, "spread")
