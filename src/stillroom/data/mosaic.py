"""Mosaics of scored crops: what RDED makes of real images, without optimisation and networks.

Who scores is not told here: scores are a matrix, and lower is better (the loss of a teacher).
Source: Sun et al. 2024, arXiv:2312.03526 (RDED); EDC's own rule, arXiv:2404.13733, as released.
Specification of the decoupled methods, 3.1 and 7.4.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.augment import Size
from stillroom.errors import StillroomError

Grouping = Literal["spread", "ranked"]


def padded(crops: Tensor, size: Size) -> Tensor:
    """Zeros around images [B,ch,h,w] up to [B,ch,*size]; of an odd number, one more after them.

    RDED scores crops so: small in the middle of an image of the teacher's size.
    Raises: StillroomError if they are larger than that.
    """
    height, width = (size, size) if isinstance(size, int) else size
    down, right = height - crops.shape[2], width - crops.shape[3]
    if min(down, right) < 0:
        raise StillroomError(
            f"crops of {crops.shape[2]}x{crops.shape[3]} do not fit into {height}x{width}"
        )
    top, left = down // 2, right // 2
    return F.pad(crops, (left, right - left, top, down - top))


def best_of_each(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """RDED's rule: the best crop of every image, then the `count` best images, the best first.

    scores float [I,m]. Returns (images int64 [count], the crop of each int64 [count]); of equal
    scores the earlier one wins. Raises: StillroomError if there are fewer images.
    """
    if len(scores) < count:
        raise StillroomError(
            f"{count} crops of different images are needed and there are {len(scores)} images; "
            "lower ipc or the factor"
        )
    lowest = scores.min(1).values
    crop = (scores == lowest[:, None]).int().argmax(1)  # the first: torch's argmin promises none
    images = lowest.sort(stable=True).indices[:count]
    return images, crop[images]


def best_of_all(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """EDC's rule: the `count` best crops, the best first, however many come from one image.

    scores float [I,m]. Returns (images int64 [count], the crop of each int64 [count]); of equal
    scores the earlier one wins. Raises: StillroomError if there are fewer crops.
    """
    if scores.numel() < count:
        raise StillroomError(
            f"{count} crops are needed and there are {scores.numel()}; draw more an image, or "
            "lower ipc or the factor"
        )
    order = scores.flatten().sort(stable=True).indices[:count]
    return order // scores.shape[1], order % scores.shape[1]


def mosaics(chosen: Tensor, side: int, factor: int, grouping: Grouping) -> Tensor:
    """Put ranked crops [ipc*factor^2,ch,h,w], the best first, together: [ipc,ch,side,side].

    Each mosaic is a grid of factor x factor cells, row by row; where `factor` does not divide
    `side`, the first `side mod factor` rows and columns of cells are a pixel larger.
    "spread" is RDED's: cell k of all mosaics holds ranks k*ipc..(k+1)*ipc-1, so that each mixes
    ranks. "ranked" is EDC's: mosaic i holds ranks i*factor^2 onwards, so that the first is easiest.
    Crops that are smaller than a cell grow by nearest, as RDED's do by one pixel; larger ones
    shrink bilinearly with antialias, as EDC's do.
    Raises: StillroomError if the number of crops is no multiple of factor^2, or a side is smaller
    than `factor`.
    """
    cells = factor * factor
    if factor < 1 or side < factor or len(chosen) % cells:
        raise StillroomError(
            f"{len(chosen)} crops make no mosaics of {factor}x{factor} cells and {side} pixels a "
            "side; their number must be a multiple of the cells"
        )
    ipc = len(chosen) // cells
    order = torch.arange(len(chosen), device=chosen.device)
    place = order.view(cells, ipc) if grouping == "spread" else order.view(ipc, cells).T
    sides = [side // factor + (i < side % factor) for i in range(factor)]
    rows = []
    for r, height in enumerate(sides):
        line = [
            _fitted(chosen[place[r * factor + c]], height, width) for c, width in enumerate(sides)
        ]
        rows.append(torch.cat(line, 3))
    return torch.cat(rows, 2)


def _fitted(crops: Tensor, height: int, width: int) -> Tensor:
    """Crops [ipc,ch,h,w] in the size of their cell."""
    if crops.shape[2:] == (height, width):
        return crops
    if crops.shape[2] > height or crops.shape[3] > width:
        size = (height, width)
        return F.interpolate(crops, size, mode="bilinear", align_corners=False, antialias=True)
    return F.interpolate(crops, (height, width), mode="nearest")
