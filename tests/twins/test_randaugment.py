"""RandAugment beside Pillow, which it must equal to the grey level, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from stillroom.data.policy import Policy
from stillroom.data.randaugment import MAGNITUDES, OPERATIONS, randaugmented
from stillroom.data.replay import MixDraw, draw, operations
from stillroom.data.views import apply
from stillroom.errors import StillroomError
from stillroom.types import Preprocess

PREPROCESS = Preprocess("some", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SIZES = [(3, 32, 32), (3, 21, 40), (1, 28, 28), (3, 2, 5)]


def pixels(n: int, channels: int, height: int, width: int) -> Tensor:
    """Smooth images of many ranges; the first three are flat, nearly flat and full of contrast."""
    gen = torch.Generator().manual_seed(height)
    small = torch.rand(n, channels, 4, 4, generator=gen)
    x = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    low, high = torch.rand(n, 1, 1, 1, generator=gen) * 80, torch.rand(n, 1, 1, 1, generator=gen)
    x = (low + (255 - low) * high * x).round()
    x[0], x[1] = 77, x[1].clamp(120, 122)
    x[2] = (x[2] > x[2].mean()) * 255
    return x.to(torch.uint8)


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0
    )


def pillow(image: Image.Image, op: str, way: int, magnitude: int) -> Image.Image:
    """One operation as torchvision has Pillow do it, strengths from its float32 tables."""

    def told(most: float) -> float:
        return way * float(torch.linspace(0, most, MAGNITUDES)[magnitude])

    width, height = image.size
    moves = {
        "shear_x": (1, told(0.3), 0, 0, 1, 0),
        "shear_y": (1, 0, 0, told(0.3), 1, 0),
        "translate_x": (1, 0, -int(told(150 / 331 * width)), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -int(told(150 / 331 * height))),
    }
    if op in moves:
        return affine(image, *moves[op])
    others: dict[str, Callable[[], Image.Image]] = {
        "identity": lambda: image,
        "rotate": lambda: image.rotate(told(30), Image.Resampling.NEAREST),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + told(0.9)),
        "color": lambda: ImageEnhance.Color(image).enhance(1 + told(0.9)),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + told(0.9)),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + told(0.9)),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(magnitude / 7.5)),
        "solarize": lambda: ImageOps.solarize(image, 255 - 8.5 * magnitude),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }
    return others[op]()


def one_by_one(x: Tensor, ops: Tensor, signs: Tensor, magnitude: int) -> Tensor:
    made = []
    for image, some, ways in zip(x, ops.tolist(), signs.tolist(), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
        for op, sign in zip(some, ways, strict=True):
            picture = pillow(picture, OPERATIONS[op], -1 if sign else 1, magnitude)
        array = torch.from_numpy(np.array(picture))
        made.append(array.permute(2, 0, 1) if array.ndim == 3 else array[None])
    return torch.stack(made)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_operation_is_pillows(op: str, size: tuple[int, int, int]) -> None:
    x = pixels(8, *size)
    for magnitude in range(MAGNITUDES):
        for sign in (False, True):
            ops, signs = torch.full((8, 1), OPERATIONS.index(op)), torch.full((8, 1), sign)
            made = randaugmented(x, ops, signs, magnitude)
            assert torch.equal(made, one_by_one(x, ops, signs, magnitude)), (magnitude, sign)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_drawn_operations_are_pillows_in_their_order(size: tuple[int, int, int]) -> None:
    x = pixels(64, *size)
    before = x.clone()
    ops, signs = operations(64, 3, 0, "batch", 1)
    made = randaugmented(x, ops, signs, 9)
    assert torch.equal(made, one_by_one(x, ops, signs, 9))
    assert not torch.equal(made, one_by_one(x, ops.flip(1), signs.flip(1), 9))
    assert torch.equal(x, before)


def test_every_operation_is_drawn_as_often() -> None:
    """Counts of 14,000 draws within five standard deviations of 1,000; signs are coins."""
    ops, signs = operations(7000, 2, 3, "x")
    counts = ops.flatten().bincount(minlength=len(OPERATIONS))
    assert float((counts - 1000).abs().max()) < 5 * (1000 * 13 / 14) ** 0.5
    assert abs(float(signs.double().mean()) - 0.5) < 5 * 0.5 / 14000**0.5
    assert not torch.equal(ops[:, 0], ops[:, 1])


def test_views_begin_with_it() -> None:
    """RandAugment of the pixels, then the crop, flip and mix of the same draw."""
    x = pixels(16, 3, 24, 24)
    drawn = draw(Policy(size=24, ops=2), 16, (24, 24), 5, "student")
    before = replace(drawn, ops=drawn.ops[:, :0], signs=drawn.signs[:, :0])
    plain = draw(Policy(size=24), 16, (24, 24), 5, "student")
    assert before.digest() == plain.digest() != drawn.digest()
    changed = PREPROCESS.apply(one_by_one(x, drawn.ops, drawn.signs, 9))
    made = apply(PREPROCESS.apply(x), drawn, PREPROCESS)
    assert torch.equal(made, apply(changed, plain))
    assert made.dtype == torch.float32
    assert drawn.digest() != replace(drawn, magnitude=8).digest()
    assert drawn.digest() != replace(drawn, signs=~drawn.signs).digest()
    one = replace(drawn, ops=drawn.ops[:1], signs=drawn.signs[:1])  # holds for all
    every = replace(drawn, ops=one.ops.expand(16, 2), signs=one.signs.expand(16, 2))
    x = PREPROCESS.apply(x)
    assert torch.equal(apply(x, one, PREPROCESS), apply(x, every, PREPROCESS))
    with pytest.raises(StillroomError, match="a draw for 16 images meets a batch of 9"):
        apply(x[:9], replace(drawn, ops=drawn.ops[:9]), PREPROCESS)


def test_what_it_cannot_change_is_refused() -> None:
    x, drawn = torch.zeros(2, 3, 8, 8), draw(Policy(size=8, ops=1, mix="none"), 2, (8, 8), 0)
    with pytest.raises(StillroomError, match="give `preprocess` as well"):
        apply(x, drawn)
    with pytest.raises(StillroomError, match="1 or 3 channels, not 2"):
        apply(x[:, :2], drawn, Preprocess("two", (0.0,) * 2, (1.0,) * 2))
    with pytest.raises(StillroomError, match="a draw for 2 images meets a batch of 5"):
        apply(torch.zeros(5, 3, 8, 8), MixDraw(
            (8, 8), (8, 8), drawn.crops[:1], drawn.flips[:1], ops=drawn.ops, signs=drawn.signs
        ), PREPROCESS)  # fmt: skip
    with pytest.raises(ValueError, match="magnitude=3 is of RandAugment"):
        Policy(size=8, magnitude=3)
