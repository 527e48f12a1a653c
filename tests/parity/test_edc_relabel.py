"""Crops, boxes and mixes of stored labels, as the released EDC code makes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from golden import golden, max_abs, max_rel
from stillroom.data.replay import MixDraw, cutmix_box, fractions, pixels
from stillroom.data.views import apply, mixed

data = golden("edc_relabel")
SIZE = (24, 32)


def whole(size: tuple[int, int], n: int = 1) -> tuple[Tensor, Tensor]:
    return torch.tensor([[0, 0, *size]]).expand(n, 4), torch.zeros(1, dtype=torch.bool)


def crops_of(image: Tensor) -> Tensor:
    """All six crops of one image [3,24,32] as a batch of views."""
    boxes = data.take("crop_pixels")
    drawn = MixDraw(SIZE, (16, 16), boxes, torch.zeros(1, dtype=torch.bool))
    return apply(image.expand(len(boxes), -1, -1, -1), drawn)


def test_box() -> None:
    sizes, shares = data.take("box_size").tolist(), data.take("box_lambda").tolist()
    centres, boxes = data.take("box_centre").tolist(), data.take("box").tolist()
    for size, share, centre, box in zip(sizes, shares, centres, boxes, strict=True):
        assert list(cutmix_box(tuple(size), share, tuple(centre))) == box


@pytest.mark.parametrize(("mix", "tolerance"), [("cutmix", 0), ("mixup", 1e-6)])
def test_mix(mix: str, tolerance: float) -> None:
    x, perm = data.take("mix_x"), data.take("mix_perm")
    share, centre = float(data.take("mix_lambda")), tuple(data.take("mix_centre").tolist())
    size = tuple(x.shape[2:])
    box = cutmix_box(size, share, centre)
    assert list(box) == data.take("mix_box").tolist()
    drawn = MixDraw(size, size, *whole(size), mix=mix, partners=perm, share=share, box=box)
    for ours in (mixed(x, drawn), apply(x, drawn)):  # a view of the whole image is that image
        assert max_rel(ours, data.take(mix)) <= tolerance


def test_fractions_of_both_branches() -> None:
    boxes = data.take("crop_pixels")
    assert max_rel(fractions(boxes, SIZE), data.take("crop_fraction")) <= 1e-7
    swapped = fractions(boxes, (SIZE[1], SIZE[0]))
    assert max_rel(swapped, data.take("crop_fraction_1k_branch")) <= 1e-7
    assert torch.equal(pixels(fractions(boxes, SIZE), SIZE), boxes)


def test_pixels_of_fractions() -> None:
    ours = pixels(data.take("fraction_in"), SIZE)
    assert torch.equal(ours, data.take("fraction_pixels_round"))


def test_crop_of_the_float_image() -> None:
    image = data.take("crop_image")
    assert tuple(image.shape[1:]) == SIZE
    assert max_rel(crops_of(image), data.take("crop_out")) <= 1e-6


def test_crop_of_the_byte_image() -> None:
    """PIL rounds to whole levels after each axis; ours only at the end."""
    image = data.take("crop_image_u8").permute(2, 0, 1).float()
    ours = crops_of(image).round().permute(0, 2, 3, 1)
    assert max_abs(ours, data.take("crop_out_pil").float()) <= 1


def test_every_tensor_was_checked(request: pytest.FixtureRequest) -> None:
    data.finish(request)
