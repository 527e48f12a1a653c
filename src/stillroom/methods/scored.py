"""Crops of real images, scored by trained networks and put together to mosaics.

Source: RDED (Sun et al. 2024, arXiv:2312.03526) and EDC (arXiv:2404.13733).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.artefacts.originals import OriginalModel, opened
from stillroom.data.mosaic import best_of_all, best_of_each, mosaics, padded
from stillroom.data.replay import MixDraw, Sides, flips, resized_crops
from stillroom.data.views import apply
from stillroom.errors import TooFewImagesError
from stillroom.methods.base import Context
from stillroom.methods.original_loss import shown_to
from stillroom.nets.ensemble import Ensemble
from stillroom.rng import rng

if TYPE_CHECKING:
    from stillroom.methods.crops import Crops

TOGETHER = 256  # images of one forward
SQUARE = (1.0, 1.0)
USUAL = (3 / 4, 4 / 3)
SHARED_BOX = 64  # images that share a crop in EDC's code


def mosaics_of(crops: Crops, ctx: Context, rows: Tensor) -> Tensor:
    """float [N,ch,H,W] in network space for rows int64 [N] of the whole set.

    The networks that score are the artefacts "scorer/...", or where there are none "observer/...".
    A class that lies in several chunks is scored in each, with the same draws.
    Raises: StillroomError if a class has too few images.
    """
    for c in (rows // ctx.ipc).unique().tolist():
        if why := crops.too_few(len(ctx.bench.train.rows_of(c)), ctx.ipc, ctx.bench.size):
            raise TooFewImagesError(f"ipc={ctx.ipc} but class {ctx.bench.classes[c]!r} {why}")
    networks = _networks(ctx)
    make = _rded if crops.rule == "rded" else _edc
    found = []
    for c in (rows // ctx.ipc).unique().tolist():
        whole = make(crops, ctx, networks, c)
        found.append(whole[(rows[rows // ctx.ipc == c] % ctx.ipc).to(whole.device)])
    return torch.cat(found)


def _rded(crops: Crops, ctx: Context, networks: list[tuple[OriginalModel, Ensemble]], c: int
          ) -> Tensor:  # fmt: skip
    """The best crop of each image, the best images; every mosaic mixes ranks.

    A crop is scored small, in the middle of an image of zeros, as RDED does.
    """
    size, cells = ctx.bench.size, crops.cells(ctx.bench.size)
    side, wanted = size // cells, ctx.ipc * cells**2
    real = _drawn(ctx, c, crops.pool)
    count, key = len(real) * crops.crops, ("mosaics", c)
    drawn = MixDraw(
        (size, size),
        (side, side),
        resized_crops(count, (size, size), (crops.scale, 1.0), SQUARE, ctx.seed, *key),
        torch.zeros(1, dtype=torch.bool),
    )
    made = apply(real.repeat_interleave(crops.crops, 0), drawn)
    scores = _scores(ctx, networks, padded(made, size), c).view(len(real), crops.crops)
    images, best = best_of_each(scores, wanted)
    chosen = made.unflatten(0, scores.shape)[images, best]
    return mosaics(chosen, size, cells, "spread")


def _edc(crops: Crops, ctx: Context, networks: list[tuple[OriginalModel, Ensemble]], c: int
         ) -> Tensor:  # fmt: skip
    """The easiest images of the class, crops of them at full size, the best together by rank."""
    size, cells = ctx.bench.size, crops.cells(ctx.bench.size)
    wanted, sides = ctx.ipc * cells**2, (size, size)
    every = _drawn(ctx, c, None)
    easiest = _scores(ctx, networks, every, c).sort(stable=True).indices[: crops.pool]
    real = every[easiest]
    rounds = torch.cat([_round(crops, ctx, real, sides, c, r)[None] for r in range(crops.crops)])
    made = rounds.transpose(0, 1)  # [images,rounds,ch,H,W]
    scores = _scores(ctx, networks, made.flatten(0, 1), c).view(len(real), crops.crops)
    images, best = best_of_all(scores, wanted)
    return mosaics(made[images, best], size, cells, "ranked")


def _round(crops: Crops, ctx: Context, real: Tensor, sides: Sides, c: int, r: int) -> Tensor:
    """One crop of every image; 64 of them share a box and a flip."""
    parts = []
    for i, some in enumerate(real.split(SHARED_BOX)):
        key = ("mosaics", c, r, i)
        box = resized_crops(1, sides, (crops.scale, 1.0), USUAL, ctx.seed, *key)
        parts.append(apply(some, MixDraw(sides, sides, box, flips(1, ctx.seed, *key))))
    return torch.cat(parts)


def _networks(ctx: Context) -> list[tuple[OriginalModel, Ensemble]]:
    def make() -> list[tuple[OriginalModel, Ensemble]]:
        scorers = [n for n in ctx.artefacts if n.startswith("scorer/")]
        names = scorers or [n for n in ctx.artefacts if n.startswith("observer/")]
        models: list[OriginalModel] = [ctx.artefacts[name] for name in names]
        return [(model, opened(model, ctx.bench, ctx.rt)) for model in models]

    made = ctx.once("scorers", make)
    assert isinstance(made, list)
    return made


@torch.no_grad()
def _scores(
    ctx: Context, networks: list[tuple[OriginalModel, Ensemble]], images: Tensor, c: int
) -> Tensor:
    """Cross-entropy [N] of the mean logits of all networks with class c: lower is easier."""
    found = []
    for some in images.split(TOGETHER):
        logits = torch.stack([n.logits(shown_to(ctx, m, some))[0] for m, n in networks]).mean(0)
        wanted = torch.full((len(some),), c, device=logits.device)
        found.append(F.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(found)


def _drawn(ctx: Context, c: int, count: int | None) -> Tensor:
    """Some real images of a class, or all: the same for every chunk, unlike those of `ctx.real`."""
    rows = ctx.bench.train.rows_of(c)
    order = torch.randperm(len(rows), generator=rng(ctx.seed, "mosaics", c))[:count]
    pixels = ctx.bench.train.take(rows[order], ctx.device)
    return ctx.bench.preprocess.apply(pixels).to(ctx.rt.dtype)
