"""Measures of a set that train no student, as plain functions of tensors.

Definitions are in docs/assessments.md; the list is that of "Which Assessment Should be Prioritized
in Dataset Distillation?", a seed of the project, and of what the field uses beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stillroom.data.source import ImageSource

EQUAL = 1e-12  # of the features' norm: no more than rounding tells images apart
ROWS = 1024  # of a kernel that are held at once
BLOCK_BYTES = 2**27  # of real pixels that are held at once


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features [N,D] and [M,D].

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)); the last trace is the sum of the singular
    values of the centred product, so no D x D root is taken. Biased upwards where N or M is small.
    """
    a, b = a.double(), b.double()
    mine, theirs = _short(a - a.mean(0)), _short(b - b.mean(0))
    n, m = max(1, len(a) - 1), max(1, len(b) - 1)
    spread = mine.square().sum() / n + theirs.square().sum() / m
    both = torch.linalg.svdvals(mine @ theirs.T).sum() / math.sqrt(n * m)
    return float((a.mean(0) - b.mean(0)).square().sum() + spread - 2 * both)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy, kernel (x y / D + 1)^3.

    Binkowski et al. 2018, arXiv:1801.01401. May be negative; needs two images on either side.
    """
    a, b = a.double(), b.double()

    def total(x: Tensor, y: Tensor) -> Tensor:
        parts = [((some @ y.T / x.shape[1] + 1) ** 3).sum() for some in x.split(ROWS)]
        return torch.stack(parts).sum()

    def within(x: Tensor) -> Tensor:
        same, n = ((x.square().sum(1) / x.shape[1] + 1) ** 3).sum(), len(x)
        return (total(x, x) - same) / (n * (n - 1))

    return float(within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b)))


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred features [N,D].

    Roy and Vetterli 2007. 1 where all differ along one line only, at most min(N - 1, D).
    """
    exact = features.double()
    values = torch.linalg.svdvals(_short(exact - exact.mean(0)))
    total = values.sum()
    if total <= EQUAL * exact.norm():  # all the same, but for rounding
        return 0.0
    share = values / total
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))


def _short(x: Tensor) -> Tensor:
    """A matrix of at most D rows with the singular values of x [N,D], also as a factor: R of QR."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


def distance_within(features: Tensor, of_class: Tensor) -> float:
    """Mean Euclidean distance of two images of one class; classes of one image are left out."""
    means = []
    for c in of_class.unique().tolist():
        some = features[of_class == c].double()
        if len(some) > 1:
            means.append(float(torch.pdist(some).mean()))
    return sum(means) / len(means) if means else 0.0


def nearest(
    mine: Tensor, source: ImageSource, tick: Callable[[], None] | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest real image of each of mine, float [N,ch,H,W] in [0, 1]: rows int64 [N], distance.

    Distance [N] is the root of the mean squared difference of pixels. tick() is called before every
    block of real images.
    """
    flat = mine.flatten(1)
    best = torch.full((len(flat),), torch.inf)
    rows = torch.zeros(len(flat), dtype=torch.int64)
    for block in torch.arange(len(source)).split(max(1, BLOCK_BYTES // (4 * flat.shape[1]))):
        if tick is not None:
            tick()
        real = source.take(block).flatten(1).float().cpu() / 255
        squares = flat.square().sum(1, keepdim=True) + real.square().sum(1) - 2 * flat @ real.T
        found, at = squares.min(1)
        closer = found < best
        best, rows = torch.where(closer, found, best), torch.where(closer, block[at], rows)
    # Exact for the one that was found: the expanded square above loses digits near zero.
    pairs = zip(flat.split(ROWS), rows.split(ROWS), strict=True)
    gaps = [(x - source.take(r).flatten(1).float().cpu() / 255).square().mean(1) for x, r in pairs]
    return rows, torch.cat(gaps).sqrt()
