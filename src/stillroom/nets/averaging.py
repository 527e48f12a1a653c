"""Moving averages of weights, and how networks are tested with them.

Averaged weights trail the live ones by 1 / (1 - decay) steps, BatchNorm statistics by about ten, so
that statistics of the live weights stop fitting averaged ones as the decay grows: at 0.999 EDC's
CIFAR-10 student is at 13 %, near 78 at 0.99 (arXiv:2404.13733, table 20). Therefore a test takes
the statistics anew; the released code leaves the live ones, which is the other choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from stillroom.nets.ensemble import Ensemble


@torch.no_grad()
def follow(average: Sequence[Tensor], live: Sequence[Tensor], decay: float) -> None:
    """Move an average in place: decay times itself plus (1 - decay) times the live tensors."""
    for mean, value in zip(average, live, strict=True):
        mean.mul_(decay).add_(value, alpha=1 - decay)


@contextlib.contextmanager
def averaged(
    nets: Ensemble, average: Sequence[Tensor], batches: Iterable[Tensor] | None
) -> Iterator[Ensemble]:
    """Within the block the networks have averaged weights; afterwards, to the bit, their own.

    average: a tensor a leaf, as `Progress.average` has them. batches of images [K,B,ch,H,W], from
    which BatchNorm statistics are taken anew; None: those of the live weights stay, as released.
    """
    params = [value for member in nets.params for value in member.values()]
    buffers = [value for member in nets.buffers for value in member.values()]
    live = [value.detach().clone() for value in (*params, *buffers)]
    try:
        _put(average, params)
        if batches is not None:
            nets.estimate_norms(batches)
        yield nets
    finally:
        _put(live, [*params, *buffers])


@torch.no_grad()
def _put(values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    for value, target in zip(values, into, strict=True):
        target.copy_(value)
