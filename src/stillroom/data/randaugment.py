"""RandAugment of a batch of 8-bit images: two operations of fourteen an image, all of one strength.

What Pillow makes of an image, to the grey level, by operations on the whole batch: a group of
images at most an operation, no loop over images.
Source: Cubuk et al. 2020, "RandAugment", arXiv:1909.13719, with the fourteen operations, the
strengths and the order of torchvision's `transforms.RandAugment`, whose defaults EDC trains with.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
MAGNITUDES = 31  # steps from no change to the strongest, which MAGNITUDES - 1 is
_MOVES = 1  # the index of the first operation that moves pixels
_ONE = 1 << 16  # Pillow moves pixels by whole multiples of 1/65536
Make = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # images, operations, signs, strength


def randaugmented(pixels: Tensor, ops: Tensor, signs: Tensor, magnitude: int) -> Tensor:
    """Apply k operations to each image: uint8 [B,ch,H,W], 1 or 3 channels -> the same.

    ops int64 [B,k] of indices into OPERATIONS, in their order; signs bool [B,k], the other way
    (of moves and blends); both on the CPU. magnitude 0..30. Pixels from outside are black.
    Randomness: none.
    """
    out = pixels
    for turn in range(ops.shape[1]):
        out = _once(out, ops[:, turn], signs[:, turn], magnitude / (MAGNITUDES - 1))
    return out


def _once(x: Tensor, ops: Tensor, signs: Tensor, strength: float) -> Tensor:
    """One operation an image: groups of images whose operation is of one kind."""
    out = x.clone()
    for first, last, make in _KINDS:
        rows = ((ops >= first) & (ops <= last)).nonzero()[:, 0]  # on the CPU: nothing to wait for
        if len(rows):
            there = rows.to(x.device)
            out[there] = make(x[there], ops[rows], signs[rows], strength)
    return out


def _affine(op: int, amount: float, height: int, width: int) -> tuple[float, ...]:
    """Where an operation finds the pixel (x, y): (a, b, c, d, e, f) of ax + by + c, dx + ey + f."""
    if op == 1:
        return (1, 0.3 * amount, 0, 0, 1, 0)
    if op == 2:
        return (1, 0, 0, 0.3 * amount, 1, 0)
    if op == 3:
        return (1, 0, -int(150 / 331 * width * amount), 0, 1, 0)
    if op == 4:
        return (1, 0, 0, 0, 1, -int(150 / 331 * height * amount))
    angle = -math.radians(30 * amount)
    cos, sin, x, y = math.cos(angle), math.sin(angle), width / 2, height / 2
    return (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def _moved(x: Tensor, ops: Tensor, signs: Tensor, strength: float) -> Tensor:
    """The nearest pixel of the place that each pixel comes from, in Pillow's fixed point."""
    ch, height, width = x.shape[1:]
    table = torch.zeros(5, 2, 6, dtype=torch.int64)
    for i in range(5):
        for way, sign in enumerate((1.0, -1.0)):
            p, q, r, s, t, u = _affine(i + _MOVES, sign * strength, height, width)
            parts = (p, q, r + (p + q) / 2, s, t, u + (s + t) / 2)  # from the centre of a pixel
            table[i, way] = torch.tensor([math.floor(part * _ONE + 0.5) for part in parts])
    coefficients = table[ops - _MOVES, signs.long()].to(x.device)[..., None, None]
    a, b, c, d, e, f = coefficients.unbind(1)  # [n,1,1] each
    across = torch.arange(width, device=x.device)
    down = torch.arange(height, device=x.device)[:, None]
    at_x, at_y = (c + a * across + b * down) >> 16, (f + d * across + e * down) >> 16  # [n,H,W]
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    place = (at_y * width + at_x).where(inside, 0).flatten(1)[:, None].expand(-1, ch, -1)
    found = x.flatten(2).gather(2, place).view_as(x)
    return found * inside[:, None]


def _blend(plainer: Callable[[Tensor], Tensor]) -> Make:
    """plain + factor * (x - plain), cut off to whole grey levels as Pillow does."""

    def make(x: Tensor, _: Tensor, signs: Tensor, strength: float) -> Tensor:
        amounts = torch.linspace(0, 0.9, MAGNITUDES)  # float32 there: its last bit moves a level
        amount = amounts[round(strength * (MAGNITUDES - 1))].double()
        factors = torch.where(signs, 1 - amount, 1 + amount).float()
        factors, plain = factors.to(x.device)[:, None, None, None], plainer(x)
        return (plain + factors * (x.float() - plain)).clamp_(0, 255).to(torch.uint8)

    return make


def _black(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.float32)


def _grey(x: Tensor) -> Tensor:
    """Luma of ITU-R 601, as integers: float [n,1,H,W]; one channel is its own."""
    if x.shape[1] == 1:
        return x.float()
    weights = torch.tensor([19595, 38470, 7471], device=x.device)[:, None, None]
    return (((x.long() * weights).sum(1, keepdim=True) + (1 << 15)) >> 16).float()


def _mean_grey(x: Tensor) -> Tensor:
    """The mean luma of each image, rounded half up: float [n,1,1,1]."""
    total, n = _grey(x).long().sum((1, 2, 3), keepdim=True), x.shape[2] * x.shape[3]
    return ((2 * total + n) // (2 * n)).float()  # integers: exact on every device


def _smooth(x: Tensor) -> Tensor:
    """A mean over 3x3 pixels, the middle one five times; pixels at the border stay."""
    out = x.float()
    if min(x.shape[2:]) < 3:
        return out
    sums = 4 * out[:, :, 1:-1, 1:-1]
    for i in range(3):
        for j in range(3):
            sums += out[:, :, i : i + x.shape[2] - 2, j : j + x.shape[3] - 2]
    out = out.clone()
    out[:, :, 1:-1, 1:-1] = (sums / 13 + 0.5).floor()
    return out


def _posterized(x: Tensor, _: Tensor, __: Tensor, strength: float) -> Tensor:
    """The upper 8 - round(4 * strength) bits of a pixel."""
    return x & (256 - (1 << round(4 * strength)))


def _solarized(x: Tensor, _: Tensor, __: Tensor, strength: float) -> Tensor:
    """Pixels of 255 * (1 - strength) and above turned into their negative."""
    return torch.where(x < 255 * (1 - strength), x, 255 - x)


def _stretched(x: Tensor, *_: object) -> Tensor:
    """Each channel's darkest pixel to 0 and its brightest to 255; of one grey it stays."""
    low, high = (t.double()[..., None, None] for t in x.flatten(2).aminmax(dim=2))
    scale = torch.full_like(low, 255) / (high - low)  # 255 / t would be 255 times its inverse
    out = (x.double() * scale - low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, out, x)


def _equalized(x: Tensor, *_: object) -> Tensor:
    """Each channel's grey levels spread evenly by rank.

    A level with `below` pixels below it goes to (step // 2 + below) // step, step being the pixels
    that are not of the brightest level // 255; with step 0 the channel stays.
    """
    flat = x.flatten(2)
    ordered = flat.sort(2).values.to(torch.int16)
    levels = torch.arange(256, dtype=torch.int16, device=x.device).expand(*flat.shape[:2], 256)
    below = torch.searchsorted(ordered, levels.contiguous())  # [n,ch,256]
    step = below.gather(2, ordered[:, :, -1:].long()) // 255
    spread = ((step // 2 + below) // step.clamp_min(1)).clamp_(max=255).to(torch.uint8)
    return torch.where(step > 0, spread.gather(2, flat.long()), flat).view_as(x)


_KINDS: tuple[tuple[int, int, Make], ...] = (  # first and last operation, and what it does
    (_MOVES, 5, _moved),
    (6, 6, _blend(_black)),
    (7, 7, _blend(_grey)),
    (8, 8, _blend(_mean_grey)),
    (9, 9, _blend(_smooth)),
    (10, 10, _posterized),
    (11, 11, _solarized),
    (12, 12, _stretched),
    (13, 13, _equalized),
)
