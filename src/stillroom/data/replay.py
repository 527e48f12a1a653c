"""Draws of batches that labels are stored for, so that the same views can be made again.

Everything is drawn from the frozen generator, whole batches at once. What is made of a draw, and
from which images, is in `stillroom.data.views`.
Source: FKD (Shen and Xing 2021, arXiv:2112.01528) with a mix a batch, as SRe2L, G-VBSM and EDC
store it; specification of the decoupled methods, 4 and 7.4.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from stillroom.data.frozen import Integers, beta, coins, permutations, power, uniform
from stillroom.data.policy import MAGNITUDE, Mix, Policy
from stillroom.data.randaugment import OPERATIONS
from stillroom.errors import StillroomError

TRIES = 10  # boxes drawn for a crop before the central one is taken, as everybody does
Sides = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # first row, first column, and those after the last


def _unmoved() -> Tensor:
    return torch.zeros(1, 1, dtype=torch.int64)


def _unchanged(dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, 0, dtype=dtype)


@dataclass(frozen=True, eq=False)
class MixDraw:
    """What makes the views of one batch: tensors on the CPU, of B rows or of 1 that holds for all.

    source, the images that it is for; size, the views. In this order:
    ops int64 and signs bool [n,k], magnitude: operations of RandAugment on 8-bit pixels.
    cols, rows int64 [n,f]: patch shuffle, strip j comes from strip perm[j], columns before rows;
    the remainder of a side that f does not divide is dropped.
    crops int64 [n,4]: top, left, height, width in the shuffled image; what lies outside is 0.
    flips bool [n]: mirrored views.
    mix with partners int64 [B]: "cutmix" puts the box of view partners[i] into view i, "mixup"
    makes share * view i + (1 - share) * view partners[i].
    """

    source: Sides
    size: Sides
    crops: Tensor
    flips: Tensor
    cols: Tensor = field(default_factory=_unmoved)
    rows: Tensor = field(default_factory=_unmoved)
    mix: Mix = "none"
    partners: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    share: float = 1.0
    box: Box = (0, 0, 0, 0)
    ops: Tensor = field(default_factory=lambda: _unchanged(torch.int64))
    signs: Tensor = field(default_factory=lambda: _unchanged(torch.bool))
    magnitude: int = MAGNITUDE

    def digest(self) -> str:
        """Return the SHA-256 of all that is drawn: names, dtypes, shapes and bytes."""
        arrays = {
            "crops": self.crops.numpy().astype("<i8"),
            "flips": self.flips.numpy().astype("u1"),
            "cols": self.cols.numpy().astype("<i8"),
            "rows": self.rows.numpy().astype("<i8"),
            "partners": self.partners.numpy().astype("<i8"),
        }
        if self.ops.shape[1]:
            arrays["ops"] = self.ops.numpy().astype("<i8")
            arrays["signs"] = self.signs.numpy().astype("u1")
        shapes = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
        strength = [self.magnitude] if self.ops.shape[1] else []
        head = [self.source, self.size, self.mix, self.share.hex(), self.box, shapes, *strength]
        total = hashlib.sha256(json.dumps(head, separators=(",", ":")).encode())
        for array in arrays.values():
            total.update(array.tobytes())
        return total.hexdigest()


def draw(policy: Policy, n: int, source: Sides, seed: int, *key: str | int) -> MixDraw:
    """Draw the views of a batch of n images of `source` pixels.

    Randomness: the frozen generator under (seed, *key, purpose).
    Raises: StillroomError if a side has fewer pixels than patches are shuffled.
    """
    f = policy.shuffle
    if f > min(source):
        raise StillroomError(f"shuffle={f} patches a side of images of {source[0]}x{source[1]}")
    shuffled = (source[0] // f * f, source[1] // f * f)
    size = (policy.size, policy.size)
    cols, rows = (
        torch.from_numpy(permutations(n, f, seed, *key, axis)) if f > 1 else _unmoved()
        for axis in ("columns", "rows")
    )
    ops, signs = operations(n, policy.ops, seed, *key)
    drawn = MixDraw(
        source,
        size,
        crops=(
            padded_crops(n, shuffled, policy.padding, seed, *key)
            if policy.padding
            else resized_crops(n, shuffled, policy.scale, policy.ratio, seed, *key)
        ),
        flips=flips(n, seed, *key) if policy.flip else torch.zeros(1, dtype=torch.bool),
        cols=cols,
        rows=rows,
        ops=ops,
        signs=signs,
        magnitude=policy.magnitude,
    )
    return drawn if policy.mix == "none" else _mixed(drawn, policy, n, seed, *key)


def _mixed(drawn: MixDraw, policy: Policy, n: int, seed: int, *key: str | int) -> MixDraw:
    share = beta(policy.beta, seed, *key, "share")
    box: Box = (0, 0, 0, 0)
    if policy.mix == "cutmix":
        u = uniform((2,), seed, *key, "centre")
        centre = (math.floor(u[0] * drawn.size[0]), math.floor(u[1] * drawn.size[1]))
        box = cutmix_box(drawn.size, share, centre)
    partners = torch.from_numpy(permutations(1, n, seed, *key, "partners")[0])
    return replace(drawn, mix=policy.mix, partners=partners, share=share, box=box)


def epoch_draws(
    policy: Policy, n: int, batch: int, source: Sides, seed: int, epoch: int
) -> Iterator[tuple[Tensor, MixDraw]]:
    """The batches of one epoch over n images: (rows int64 [B], what to do with them).

    All n in a new order, `batch` of them at a time; the last batch holds what is left.
    """
    order = torch.from_numpy(permutations(1, n, seed, "order", epoch)[0])
    for i, rows in enumerate(order.split(batch)):
        yield rows, draw(policy, len(rows), source, seed, "batch", epoch, i)


def operations(n: int, k: int, seed: int, *key: str | int) -> tuple[Tensor, Tensor]:
    """k operations of RandAugment an image, int64 [n,k], and which go the other way, bool [n,k].

    Each uniform in the fourteen, with repetition; the signs are coins.
    """
    if not k:
        return _unchanged(torch.int64), _unchanged(torch.bool)
    u = uniform((n, k), seed, *key, "operations")
    ops = np.floor(u * len(OPERATIONS)).astype(np.int64)
    signs = coins(n * k, seed, *key, "signs").reshape(n, k)
    return torch.from_numpy(ops), torch.from_numpy(signs)


def resized_crops(
    n: int,
    source: Sides,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    seed: int,
    *key: str | int,
) -> Tensor:
    """Boxes of RandomResizedCrop, int64 [n,4]: top, left, height, width; n = 1 for a whole batch.

    The area is uniform in `scale` times the image's, width over height log-uniform in `ratio`,
    both sides rounded half to even, the place uniform. Ten boxes are drawn at once and the first
    that fits is taken; if none does, the largest central one whose ratio is allowed.
    """
    height, width = source
    u = uniform((n, TRIES, 4), seed, *key, "crop")
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[..., 0])
    aspect = ratio[0] * power(np.float64(ratio[1] / ratio[0]), u[..., 1])
    wide = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    tall = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    top = np.floor(u[..., 2] * (height - tall + 1))
    left = np.floor(u[..., 3] * (width - wide + 1))
    boxes = np.stack([top.astype(np.int64), left.astype(np.int64), tall, wide], -1)  # [n,tries,4]
    first = np.take_along_axis(boxes, fits.argmax(1)[:, None, None], 1)[:, 0]
    chosen = np.where(fits.any(axis=1, keepdims=True), first, _central(height, width, ratio))
    return torch.from_numpy(chosen)


def _central(height: int, width: int, ratio: tuple[float, float]) -> Integers:
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        wide = min(width, max(1, round(height * ratio[1])))
    return np.array([(height - tall) // 2, (width - wide) // 2, tall, wide])


def padded_crops(n: int, source: Sides, padding: int, seed: int, *key: str | int) -> Tensor:
    """Boxes of a padded RandomCrop, int64 [n,4]: of the image's size, moved by up to `padding`.

    They may lie partly outside, where views are 0, the mean colour in network space.
    """
    if padding < 0:
        raise StillroomError(f"padding={padding} must not be negative")
    u = uniform((n, 2), seed, *key, "crop")
    places = np.floor(u * (2 * padding + 1)).astype(np.int64) - padding
    sides = np.broadcast_to(np.array(source, dtype=np.int64), (n, 2))
    return torch.from_numpy(np.concatenate([places, sides], 1))


def flips(n: int, seed: int, *key: str | int) -> Tensor:
    """Which views are mirrored: bool [n], each with probability 1/2."""
    return torch.from_numpy(coins(n, seed, *key, "flip"))


def jitter(low: int, high: int, seed: int, *key: str | int) -> Sides:
    """How far an image is rolled down and to the right, each uniform in low..high, for a batch.

    Source: SRe2L, which rolls by 0..32 (ImageNet-1K), -4..4 (Tiny) or 0..4 (CIFAR-100) pixels.
    """
    if low > high:
        raise StillroomError(f"a roll of {low}..{high} pixels; the first must not be greater")
    u = uniform((2,), seed, *key, "jitter")
    return math.floor(u[0] * (high - low + 1)) + low, math.floor(u[1] * (high - low + 1)) + low


def cutmix_box(size: Sides, share: float, centre: Sides) -> Box:
    """The box that CutMix fills from another image: rows r1..r2-1, columns c1..c2-1.

    Its sides are 2 * floor(int(side * sqrt(1 - share)) / 2), so its area is 1 - share of the image
    only about (differs from the paper; as in every released code), and it is clipped.
    Source: Yun et al. 2019, arXiv:1905.04899.
    """
    spans = []
    for side, place in zip(size, centre, strict=True):
        half = int(side * math.sqrt(1 - share)) // 2
        spans.append((min(max(place - half, 0), side), min(max(place + half, 0), side)))
    (r1, r2), (c1, c2) = spans
    return r1, c1, r2, c2


def fractions(boxes: Tensor, size: Sides) -> Tensor:
    """Boxes in pixels -> what FKD stores, float32 [n,4]: top/H, left/W, height/H, width/W.

    The ImageNet branches of EDC divide by the other side: give them (W, H). On square images it
    makes no difference.
    """
    height, width = size
    sides = torch.tensor([height, width, height, width], dtype=torch.float32)
    return boxes.float() / sides


def pixels(parts: Tensor, size: Sides) -> Tensor:
    """The boxes of stored fractions [n,4], int64: times H, W, H, W, rounded half to even."""
    height, width = size
    sides = torch.tensor([height, width, height, width], dtype=torch.float32)
    return (parts.float() * sides).round().long()
