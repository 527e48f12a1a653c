"""Views by two matrix products beside a plain loop over images, and exact cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.policy import Policy
from stillroom.data.replay import MixDraw, draw, flips, padded_crops, resized_crops
from stillroom.data.views import _grows, _looked_up, _multiplied, apply, mixed
from stillroom.errors import StillroomError

FLOAT32 = 1e-5  # of values around 1: rounding of weights and of interpolate's own places


def images(n: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    gen = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, height, width, generator=gen, dtype=torch.float64).to(dtype)


def row(value: Tensor, i: int) -> list[int]:
    return value[i if len(value) > 1 else 0].tolist()


def strips(x: Tensor, perm: list[int], dim: int) -> Tensor:
    size = x.shape[dim] // len(perm)
    return torch.cat([x.narrow(dim, p * size, size) for p in perm], dim)


def twin(x: Tensor, drawn: MixDraw) -> Tensor:
    """Image by image, step by step: cut strips, pad, cut, interpolate, mirror; then mix."""
    views = []
    for i, image in enumerate(x):
        image = strips(strips(image, row(drawn.cols, i), 2), row(drawn.rows, i), 1)
        top, left, height, width = row(drawn.crops, i)
        pad = 64
        image = F.pad(image, (pad, pad, pad, pad))
        image = image[:, pad + top : pad + top + height, pad + left : pad + left + width]
        view = F.interpolate(image[None], drawn.size, mode="bilinear", antialias=True)[0]
        views.append(view.flip(2) if drawn.flips[i if len(drawn.flips) > 1 else 0] else view)
    y = torch.stack(views)
    if drawn.mix == "mixup":
        return torch.stack([
            drawn.share * y[i] + (1 - drawn.share) * y[j] for i, j in enumerate(drawn.partners)
        ])  # fmt: skip
    if drawn.mix == "cutmix":
        out = []
        for i, j in enumerate(drawn.partners):
            mask = torch.zeros(drawn.size, dtype=torch.bool)
            mask[drawn.box[0] : drawn.box[2], drawn.box[1] : drawn.box[3]] = True
            out.append(torch.where(mask, y[j], y[i]))
        return torch.stack(out)
    return y


CASES = {
    "same size": (Policy(size=32), (32, 32)),
    "smaller": (Policy(size=11, mix="mixup"), (32, 32)),
    "larger": (Policy(size=40, mix="none"), (20, 20)),
    "not square": (Policy(size=16, scale=(0.3, 1)), (24, 40)),
    "shuffled": (Policy(size=14, shuffle=3, mix="mixup"), (20, 22)),
    "one pixel": (Policy(size=1, mix="none"), (9, 9)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_agree(name: str, dtype: torch.dtype) -> None:
    """Values, and gradients of a weighted sum: the weights are another random batch."""
    policy, source = CASES[name]
    drawn = draw(policy, 9, source, 4, name)
    limit = 1e-12 if dtype == torch.float64 else FLOAT32
    found = []
    for way in (apply, twin):
        x = images(9, *source, dtype).requires_grad_()
        y = way(x, drawn)
        assert y.dtype == dtype
        weights = images(9, *y.shape[2:], dtype)
        (y * weights).sum().backward()
        found.append((y.detach(), x.grad))
    (ours, our_grad), (theirs, their_grad) = found
    assert ours.shape == (9, 3, policy.size, policy.size)
    assert float((ours - theirs).abs().max()) <= limit * float(theirs.abs().max())
    assert float((our_grad - their_grad).abs().max()) <= limit * float(their_grad.abs().max())


def test_padded_crops_agree() -> None:
    """Boxes that lie partly outside: zeros, also where they are resized, on either side."""
    x = images(8, 12, 16)
    boxes = padded_crops(8, (12, 16), 5, 0)
    for size in ((12, 16), (7, 9)):
        drawn = MixDraw((12, 16), size, boxes, flips(8, 0))
        assert float((apply(x, drawn) - twin(x, drawn)).abs().max()) <= 1e-12
    drawn = MixDraw((12, 16), (12, 16), boxes, torch.zeros(1, dtype=torch.bool))
    shifted = F.pad(x[0], (5, 5, 5, 5))
    top, left = boxes[0, :2].tolist()
    assert torch.equal(apply(x, drawn)[0], shifted[:, 5 + top : 17 + top, 5 + left : 21 + left])


def test_one_box_for_a_whole_batch() -> None:
    x = images(6, 20, 20)
    one = MixDraw((20, 20), (9, 9), resized_crops(1, (20, 20), (0.1, 0.9), (1, 1), 5), flips(1, 5))
    each = replace(one, crops=one.crops.expand(6, 4), flips=one.flips.expand(6))
    assert float((apply(x, one) - twin(x, one)).abs().max()) <= 1e-12
    assert float((apply(x, one) - apply(x, each)).abs().max()) <= 1e-12
    some = replace(one, flips=flips(6, 1))  # one box, each its own flip
    assert float((apply(x, some) - twin(x, some)).abs().max()) <= 1e-12


def test_whole_images_are_themselves() -> None:
    """To the bit, mirrored or not, shuffled or not."""
    x = images(5, 12, 12, torch.float32)
    whole = torch.tensor([[0, 0, 12, 12]])
    flip = torch.tensor([True, False, True, False, True])
    drawn = MixDraw((12, 12), (12, 12), whole, flip)
    assert torch.equal(apply(x, drawn), torch.where(flip[:, None, None, None], x.flip(3), x))
    cols, rows = torch.tensor([[2, 0, 1]]), torch.tensor([[1, 2, 0]])
    shuffled = apply(x, replace(drawn, cols=cols, rows=rows, flips=flip[1:2]))
    assert torch.equal(shuffled, twin(x, replace(drawn, cols=cols, rows=rows, flips=flip[1:2])))
    assert not torch.equal(shuffled, x)


def test_a_constant_stays_constant() -> None:
    x = torch.full((7, 2, 30, 30), 0.7, dtype=torch.float64)
    y = apply(x, draw(Policy(size=13, mix="mixup"), 7, (30, 30), 1))
    assert float((y - 0.7).abs().max()) <= 1e-15 * 8


def test_cutmix_of_share_one_changes_nothing() -> None:
    x = images(4, 8, 8)
    drawn = draw(Policy(size=8), 4, (8, 8), 0)
    assert torch.equal(mixed(x, replace(drawn, share=1.0, box=(3, 3, 3, 3))), x)
    before = x.clone()
    assert not torch.equal(mixed(x, replace(drawn, box=(0, 0, 8, 8))), x)
    assert torch.equal(x, before)  # not in place, as RDED's is
    drawn = replace(drawn, mix="mixup", share=1.0)
    assert torch.equal(mixed(x, drawn), x)


def test_low_precision_is_computed_in_float32() -> None:
    x = images(4, 16, 16, torch.bfloat16)
    drawn = draw(Policy(size=10, mix="none"), 4, (16, 16), 0)
    exact = apply(x.float(), drawn)
    assert apply(x, drawn).dtype == torch.bfloat16
    assert torch.equal(apply(x, drawn), exact.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(apply(x.float(), drawn), exact)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), "views need float"),
        (torch.zeros(3, 16, 16), "views need float"),
        (torch.zeros(4, 3, 16, 17), "16x17 meet a draw for 16x16"),
        (torch.zeros(5, 3, 16, 16), "a draw for 4 images meets a batch of 5"),
        (torch.zeros(1, 3, 16, 16), "a draw for 4 images meets a batch of 1"),
    ],
)
def test_refusals(x: Tensor, words: str) -> None:
    with pytest.raises(StillroomError, match=words):
        apply(x, draw(Policy(size=8), 4, (16, 16), 0))


@pytest.mark.parametrize("outside", [False, True])
def test_pixels_that_are_looked_up_are_those_of_the_product(outside: bool) -> None:
    """The product has a gradient, so that is how it is asked for; crops reach beyond the border."""
    x = images(8, 20, 24)
    boxes = resized_crops(8, (20, 24), (0.05, 0.9), (3 / 4, 4 / 3), 3)
    if outside:
        boxes[:, :2] += torch.tensor([[-3, 4], [2, -6], [30, 0], [0, 0]]).repeat(2, 1)
    for n in (8, 1):
        drawn = MixDraw((20, 24), (24, 24), boxes[:n], flips(8, 2))
        assert _grows(drawn)
        assert not torch.equal(_looked_up(x, drawn), _multiplied(x, drawn))  # two ways indeed
        assert torch.equal(apply(x, drawn), _looked_up(x, drawn))
        product = apply(x.clone().requires_grad_(), drawn)
        assert product.requires_grad
        assert float((apply(x, drawn) - product.detach()).abs().max()) <= 1e-12
        assert float((apply(x, drawn) - twin(x, drawn)).abs().max()) <= 1e-12
        rough = apply(x.float(), drawn)  # places are rounded: to 24 * 2^-23 of a pixel
        assert float((rough - product.detach()).abs().max()) <= 1e-4
    strips = torch.tensor([[1, 0]])
    for other in (
        replace(drawn, cols=strips),
        replace(drawn, rows=strips),
        replace(drawn, size=(9, 24)),
        replace(drawn, crops=torch.tensor([[3, -2, 24, 24]])),
    ):
        assert not _grows(other)
        assert torch.equal(apply(x, other), _multiplied(x, other))
