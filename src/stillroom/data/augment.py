"""Differentiable augmentation, in two halves: `draw` makes the parameters, `apply` uses them.

So two batches share one draw (Siamese), and a resumed run or a label replay repeats one. Everything
acts in network space; zero is the mean colour there.
Source: differentiable Siamese augmentation, Zhao and Bilen 2021, arXiv:2102.08259, in the
definitions of VICO-UoE/DatasetCondensation (spec of the matching methods, section 4).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.errors import StillroomError, suggest

Size = int | tuple[int, int]  # side of a square image, or (height, width)
Params = dict[str, Tensor]

BRIGHTNESS = 1.0  # full width of the shift: +-0.5
SATURATION = 2.0  # factor in [0, 2]
CONTRAST = 0.5  # factor in [0.5, 1.5]
CROP, WIDE = 0.125, 0.25  # largest shift, as a fraction of the side; of widecrop
CUTOUT = 0.5  # side of the zeroed square, as a fraction of the side
SCALE = 1.2  # zoom in [1/1.2, 1.2], each axis its own
ROTATE = 15.0  # degrees, either way


@dataclass(frozen=True)
class Draw:
    """One drawn augmentation: the operations in order, and their parameters.

    params: "<op>.<name>" -> [n] on the CPU as drawn; n is the batch, or 1 for a draw that holds for
    every image of any batch (Siamese). No operation = identity.
    """

    ops: tuple[str, ...] = ()
    params: Params = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The number of parameter rows: 1 (any batch) or the batch; 1 for the identity."""
        return next((len(value) for value in self.params.values()), 1)

    def to(self, device: torch.device | str) -> Draw:
        """Return the same draw on a device; rarely needed, `apply` moves what it must.

        A Siamese crop or flip is fastest left on the CPU: reading it there waits for no device.
        """
        return Draw(self.ops, {name: value.to(device) for name, value in self.params.items()})

    def digest(self) -> str:
        """Return the SHA-256 of operations and parameters: names, dtypes, shapes and bytes."""
        items = [(name, self.params[name].detach().cpu()) for name in sorted(self.params)]
        head = [[name, str(value.dtype), list(value.shape)] for name, value in items]
        text = json.dumps([list(self.ops), head], separators=(",", ":"))
        total = hashlib.sha256(text.encode())
        for _, value in items:
            total.update(value.contiguous().numpy().tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class Strategy:
    """What to draw from. Mode "S": one word, uniform, for the whole batch; "M": all, in order."""

    words: tuple[str, ...] = ()
    mode: Literal["S", "M"] = "S"

    @property
    def text(self) -> str:
        """The canonical text; `parse(strategy.text) == strategy`."""
        words = "_".join(self.words)
        if not words:
            return "none"
        if self.mode == "M":
            return words if words in _PLAIN else f"dsa-m:{words}"
        return f"dsa:{words}"


_PLAIN = ("flip", "crop", "crop_flip")


def parse(text: str) -> Strategy:
    """Read a strategy: `none`, `flip`, `crop`, `crop_flip`, `dsa:<words>` or `dsa-m:<words>`.

    Words are joined by underscores: color, crop, cutout, flip, scale, rotate, the parts of color
    (brightness, saturation, contrast) and widecrop, EDF's, which shifts twice as far. `dsa:` draws
    one word a batch, `dsa-m:` and the plain forms apply every word in order. `crop` is a shift of
    up to 4/32 of the side with zero fill: a padded random crop, filled with the mean colour.

    Raises: StillroomError for an unknown form or word, or a word given twice.
    """
    if text.strip().lower() in ("", "none"):
        return Strategy()
    prefix, colon, rest = text.strip().partition(":")
    if not colon:
        if prefix not in _PLAIN:
            near = suggest(prefix, (*_PLAIN, "none"))
            raise StillroomError(
                f"augment={text[:80]!r} is not known{near}; write none, {', '.join(_PLAIN)} or "
                "e.g. dsa:color_crop_cutout_flip_scale_rotate"
            )
        return Strategy(tuple(prefix.split("_")), "M")
    if prefix not in ("dsa", "dsa-m"):
        raise StillroomError(f"augment={text[:80]!r} must start with dsa: or dsa-m:")
    words = tuple(rest.split("_"))
    for word in words:
        if word not in _OPS:
            raise StillroomError(
                f"augment={text[:80]!r} has the unknown word {word!r}{suggest(word, _OPS)}; known "
                f"are {', '.join(_OPS)}"
            )
    if len(set(words)) != len(words):
        raise StillroomError(f"augment={text[:80]!r} gives a word twice; keep one of them")
    return Strategy(words, "M" if prefix == "dsa-m" else "S")


def draw(
    strategy: Strategy, n: int, size: Size, generator: torch.Generator, siamese: bool = False
) -> Draw:
    """Draw the operations and parameters for a batch of n images, or with `siamese` one for all.

    Randomness: `generator` only (a CPU one); a Siamese draw does not depend on n.
    Raises: StillroomError if n < 1 and the draw is not Siamese.
    """
    if n < 1 and not siamese:
        raise StillroomError(f"n={n} images to augment; n must be at least 1")
    if not strategy.words:
        return Draw()
    words = strategy.words
    if strategy.mode == "S":
        words = (words[int(torch.randint(len(words), (), generator=generator))],)
    params: Params = {}
    for op in words:
        u = torch.rand((1 if siamese else n, len(_OPS[op].params)), generator=generator)
        params.update(from_uniform(op, u, size))
    return Draw(words, params)


def from_uniform(op: str, u: Tensor, size: Size) -> Params:
    """Map numbers of U(0,1), float32 [n, number of parameters], to the parameters of one operation.

    Returns "<op>.<name>" -> [n]: float32, int64 (crop, cutout) or bool (flip). The ranges are in
    the table at the end of this module and in the constants at its head.
    Raises: StillroomError if `u` has another number of columns than the operation has parameters.
    """
    names = _OPS[op].params
    if u.ndim != 2 or u.shape[1] != len(names):
        raise StillroomError(f"u has shape {list(u.shape)}; {op} needs [n, {len(names)}]")
    height, width = (size, size) if isinstance(size, int) else size
    values = _OPS[op].values(u.unbind(1), height, width)
    return {f"{op}.{name}": value for name, value in zip(names, values, strict=True)}


def apply(x: Tensor, drawn: Draw) -> Tensor:
    """Apply a draw to a batch: float [B,ch,H,W] -> the same shape and dtype; pure.

    No operation returns `x` itself. uint8 works where no arithmetic is done (crop, cutout, flip).
    Gradient: through x; the parameters are constants.
    Raises: StillroomError if the draw has neither 1 nor B rows, or x has not four dimensions.
    """
    if not drawn.ops:
        return x
    if x.ndim != 4:
        raise StillroomError(f"images of shape {list(x.shape)}; augmentation needs [B,ch,H,W]")
    if drawn.n not in (1, len(x)):
        raise StillroomError(f"a draw for {drawn.n} images meets a batch of {len(x)}; draw again")
    for op in drawn.ops:
        if not (x.is_floating_point() or _OPS[op].exact):
            raise StillroomError(f"{op} of {x.dtype} images; convert them to float first")
        x = _OPS[op].apply(x, *(drawn.params[f"{op}.{name}"] for name in _OPS[op].params))
    return x


def apply_groups(x: Tensor, counts: Sequence[int], draws: Sequence[Draw]) -> Tensor:
    """Apply one draw to each group of a batch: float [sum(counts),ch,H,W] -> the same shape.

    Group g is the next counts[g] rows of x; its draw has 1 row (Siamese) or counts[g].
    Gradient: through x.
    Raises: StillroomError if counts, draws and rows of x do not fit.
    """
    if len(counts) != len(draws) or sum(counts) != len(x) or min(counts, default=0) < 0:
        raise StillroomError(
            f"{len(draws)} draws for {len(counts)} groups of {sum(counts)} images in a batch of "
            f"{len(x)}; one draw a group is needed"
        )
    if x.device.type == "cpu" and draws:
        # No launches to save, and a group fits the cache: 20 ms against 90 by operation for ten
        # groups of 256 images of 3x32x32 on 2 cores.
        return torch.cat(
            [apply(g, d) for g, d in zip(torch.split(x, list(counts)), draws, strict=True)]
        )
    return _by_operation(x, counts, draws)


def _by_operation(x: Tensor, counts: Sequence[int], draws: Sequence[Draw]) -> Tensor:
    """The twin of the loop over groups: one call for all groups that drew the same operations.

    So a hundred classes cost at most as many calls as there are words. Equal to the loop, bitwise
    for crop, cutout and flip.
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for group, drawn in enumerate(draws):
        alike.setdefault(drawn.ops, []).append(group)
    if len(alike) <= 1:
        return apply(x, _joined(draws, counts))
    ends = list(itertools.accumulate(counts))
    parts, order = [], []
    for groups in alike.values():
        mine = torch.cat([torch.arange(ends[g] - counts[g], ends[g]) for g in groups])
        drawn = _joined([draws[g] for g in groups], [counts[g] for g in groups])
        parts.append(apply(x.index_select(0, mine.to(x.device)), drawn))
        order.append(mine)
    return torch.cat(parts).index_select(0, torch.cat(order).argsort().to(x.device))


def _joined(draws: Sequence[Draw], counts: Sequence[int]) -> Draw:
    """Return one draw with a row for every image, from draws of the same operations."""
    if len(draws) == 1 or not draws:
        return draws[0] if draws else Draw()
    for drawn, count in zip(draws, counts, strict=True):
        if drawn.n not in (1, count):
            raise StillroomError(f"a draw for {drawn.n} images meets a group of {count}")
    params = {
        name: torch.cat(
            [d.params[name].expand(count) for d, count in zip(draws, counts, strict=True)]
        )
        for name in draws[0].params
    }
    return Draw(draws[0].ops, params)


# -- parameters from uniform numbers ---------------------------------------------------------------
Columns = tuple[Tensor, ...]


def _crop_values(u: Columns, height: int, width: int, share: float = CROP) -> Columns:
    most = [math.floor(share * side + 0.5) for side in (height, width)]
    return tuple(_whole(x, 2 * k + 1) - k for x, k in zip(u, most, strict=True))


def _cutout_values(u: Columns, height: int, width: int) -> Columns:
    # An even square has no middle pixel: one more place for its centre, up to `side` itself.
    places = [side + 1 - _hole(side) % 2 for side in (height, width)]
    return tuple(_whole(x, count) for x, count in zip(u, places, strict=True))


def _whole(u: Tensor, count: int) -> Tensor:
    """U[0,1) -> uniform int64 in 0..count-1; in float64, where u * count cannot round to count."""
    return (u.double() * count).floor().long()


def _hole(side: int) -> int:
    return math.floor(CUTOUT * side + 0.5)


# -- operations: x [B,ch,H,W] and parameters [B] or [1] --------------------------------------------
def _column(value: Tensor, x: Tensor) -> Tensor:
    return value.to(device=x.device, dtype=x.dtype).view(-1, 1, 1, 1)


def _brightness(x: Tensor, shift: Tensor) -> Tensor:
    return x + _column(shift, x)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(x.mean(1, keepdim=True), x, _column(factor, x))  # mean + f (x - mean)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, _column(factor, x))


def _color(x: Tensor, shift: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    return _contrast(_saturation(_brightness(x, shift), saturation), contrast)


def _crop(x: Tensor, shift_h: Tensor, shift_w: Tensor) -> Tensor:
    """out[r, c] = x[r + shift_h, c + shift_w], 0 outside."""
    height, width = x.shape[2:]
    if len(shift_h) == 1:
        down, right = int(shift_h), int(shift_w)
        return F.pad(x, (-right, right, -down, down))
    rows = torch.arange(height, device=x.device) + shift_h.to(x.device)[:, None]  # [B,H]
    cols = torch.arange(width, device=x.device) + shift_w.to(x.device)[:, None]  # [B,W]
    outside = ((rows < 0) | (rows >= height))[:, :, None] | ((cols < 0) | (cols >= width))[:, None]
    places = rows.clamp(0, height - 1)[:, :, None] * width + cols.clamp(0, width - 1)[:, None]
    places = places.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, places).view(x.shape).masked_fill(outside[:, None], 0)


def _cutout(x: Tensor, center_h: Tensor, center_w: Tensor) -> Tensor:
    """Zero rows center - hole//2 .. + hole - 1 and the columns likewise, clipped at the border."""
    inside = []
    for side, center in zip(x.shape[2:], (center_h, center_w), strict=True):
        start = (center.to(x.device) - _hole(side) // 2)[:, None]
        place = torch.arange(side, device=x.device)
        inside.append((place >= start) & (place < start + _hole(side)))
    hole = inside[0][:, :, None] & inside[1][:, None]  # [n,H,W]
    return x.masked_fill(hole[:, None], 0)


def _flip(x: Tensor, flip: Tensor) -> Tensor:
    if len(flip) == 1:
        return x.flip(3) if bool(flip) else x
    return torch.where(flip.to(device=x.device, dtype=torch.bool).view(-1, 1, 1, 1), x.flip(3), x)


def _scale(x: Tensor, sx: Tensor, sy: Tensor) -> Tensor:
    """Source row = centre + sy (r - centre), column = centre + sx (c - centre); s > 1 shrinks."""
    rows, cols = _centred(x)
    return _sample(x, _fine(sy, x) * rows, _fine(sx, x) * cols)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Source row = centre + sin a (c - centre) + cos a (r - centre), column likewise.

    In pixels, so that an image that is not square turns and does not shear
    (differs from the reference, which turns the unit square; the same for square images).
    """
    rows, cols = _centred(x)
    sin, cos = _fine(angle, x).sin(), _fine(angle, x).cos()
    return _sample(x, sin * cols + cos * rows, cos * cols - sin * rows)


def _fine(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.device, torch.promote_types(x.dtype, torch.float32)).view(-1, 1, 1)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel places measured from the centre: rows [1,H,1], columns [1,1,W]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, cols = (torch.arange(n, device=x.device, dtype=dtype) - (n - 1) / 2 for n in x.shape[2:])
    return rows[None, :, None], cols[None, None]


def _sample(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Bilinear values of x at places [n,H,W] measured from the centre in pixels, 0 outside."""
    height, width = x.shape[2:]
    rows, cols = rows.expand(-1, height, width), cols.expand(-1, height, width)
    if x.is_cuda and x.requires_grad and torch.are_deterministic_algorithms_enabled():
        return _sample_by_gather(x, rows, cols)  # the backward of grid_sample has no such kernel
    unit = (cols * (2 / max(1, width - 1)), rows * (2 / max(1, height - 1)))
    grid = torch.stack(unit, -1).expand(len(x), -1, -1, -1)
    y = F.grid_sample(x.to(grid.dtype), grid, padding_mode="zeros", align_corners=True)
    return y.to(x.dtype)


def _sample_by_gather(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """The twin of `_sample` from four gathers: slower, deterministic on every device."""
    height, width = x.shape[2:]
    rows, cols = rows + (height - 1) / 2, cols + (width - 1) / 2
    top, left = rows.floor(), cols.floor()
    total = torch.zeros_like(x, dtype=rows.dtype).flatten(2)
    for r, row_weight in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for c, col_weight in ((left, 1 - (cols - left)), (left + 1, cols - left)):
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            weight = (row_weight * col_weight * inside).flatten(1)[:, None]
            places = (r.clamp(0, height - 1) * width + c.clamp(0, width - 1)).long().flatten(1)
            places = places[:, None].expand(len(x), x.shape[1], -1)
            total = total + x.flatten(2).to(rows.dtype).gather(2, places) * weight
    return total.view(x.shape).to(x.dtype)


@dataclass(frozen=True)
class _Op:
    params: tuple[str, ...]
    values: Callable[[Columns, int, int], Columns]
    apply: Callable[..., Tensor]
    exact: bool = False  # moves or zeroes pixels, computes none


_OPS: dict[str, _Op] = {
    "color": _Op(
        ("shift", "saturation", "contrast"),
        lambda u, *_: ((u[0] - 0.5) * BRIGHTNESS, u[1] * SATURATION, u[2] + CONTRAST),
        _color,
    ),
    "crop": _Op(("shift_h", "shift_w"), _crop_values, _crop, exact=True),
    "widecrop": _Op(("shift_h", "shift_w"), partial(_crop_values, share=WIDE), _crop, exact=True),
    "cutout": _Op(("center_h", "center_w"), _cutout_values, _cutout, exact=True),
    "flip": _Op(("flip",), lambda u, *_: (u[0] < 0.5,), _flip, exact=True),
    "scale": _Op(
        ("sx", "sy"), lambda u, *_: tuple(v * (SCALE - 1 / SCALE) + 1 / SCALE for v in u), _scale
    ),
    "rotate": _Op(("angle",), lambda u, *_: ((u[0] - 0.5) * 2 * ROTATE * math.pi / 180,), _rotate),
    "brightness": _Op(("shift",), lambda u, *_: ((u[0] - 0.5) * BRIGHTNESS,), _brightness),
    "saturation": _Op(("factor",), lambda u, *_: (u[0] * SATURATION,), _saturation),
    "contrast": _Op(("factor",), lambda u, *_: (u[0] + CONTRAST,), _contrast),
}
