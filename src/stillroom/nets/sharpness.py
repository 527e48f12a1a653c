"""Sharpness-aware steps: the gradient that an optimiser gets is one from uphill.

SAM: Foret et al. 2021, arXiv:2010.01412; ASAM, its adaptive form: Kwon et al. 2021,
arXiv:2102.11600; GSAM: Zhuang et al. 2022, arXiv:2203.08065. Specification of trajectory matching,
3.2; experts of FTD, DATM, PAD and EDF are trained so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EPS = 1e-12  # added to every norm that is divided by


@dataclass(frozen=True)
class Uphill:
    """How far uphill is looked (`rho`), in units of the weights where `adaptive`.

    `alpha` is GSAM's: so much of the part of the first gradient that is orthogonal to the second
    one is taken off it. 0 is plain (A)SAM.
    """

    rho: float
    alpha: float = 0.0
    adaptive: bool = True


def look_uphill(
    leaves: Sequence[Tensor], rule: Uphill, each: int | None = None
) -> Callable[[], None]:
    """Move weights uphill along their gradients, which they lose; return the way back.

    Called after a second backward pass there, it moves the weights back and leaves in `.grad` what
    the optimiser should step along. Leaves are of one network; or, with `each`, of so many that are
    stacked along the first dimension, every one of which has norms of its own. The way back is a
    subtraction: equal up to rounding, as in the reference.
    """
    first = [_taken(leaf) for leaf in leaves]
    moves = perturbation(leaves, first, rule, each)
    _move(leaves, moves, 1.0)

    def back() -> None:
        _move(leaves, moves, -1.0)
        second = [_taken(leaf) for leaf in leaves]
        for leaf, way in zip(leaves, direction(first, second, rule.alpha, each), strict=True):
            leaf.grad = way

    return back


@torch.no_grad()
def _move(leaves: Sequence[Tensor], moves: Sequence[Tensor], sign: float) -> None:
    for leaf, move in zip(leaves, moves, strict=True):
        leaf.add_(move, alpha=sign)


@torch.no_grad()
def perturbation(
    leaves: Sequence[Tensor], slopes: Sequence[Tensor], rule: Uphill, each: int | None = None
) -> list[Tensor]:
    """rho g / |g|, or with the adaptive rule rho w^2 g / ||w| g|."""
    if not rule.adaptive:
        scale = rule.rho / (_norm(slopes, each) + EPS)
        return [g * _over(scale, g) for g in slopes]
    scale = rule.rho / (
        _norm([w.abs() * g for w, g in zip(leaves, slopes, strict=True)], each) + EPS
    )
    return [w.square() * g * _over(scale, g) for w, g in zip(leaves, slopes, strict=True)]


@torch.no_grad()
def direction(
    first: Sequence[Tensor], second: Sequence[Tensor], alpha: float, each: int | None = None
) -> list[Tensor]:
    """The second gradient, minus alpha times the part of the first one that is orthogonal to it."""
    if not alpha:
        return list(second)
    norm, other = _norm(first, each), _norm(second, each)
    cosine = _dot(first, second, each) / (norm * other + EPS)
    along = cosine * norm / (other + EPS)
    return [g2 - alpha * (g1 - _over(along, g1) * g2) for g1, g2 in zip(first, second, strict=True)]


@contextlib.contextmanager
def still_norms(net: nn.Module) -> Iterator[None]:
    """BatchNorm layers do not move their running statistics; they go on counting batches."""
    layers = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    usual = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, old in zip(layers, usual, strict=True):
            layer.momentum = old


def _taken(leaf: Tensor) -> Tensor:
    """The gradient of a leaf, which has none from then on; zeros where nothing depends on it."""
    found, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if found is None else found.detach()


def _dot(a: Sequence[Tensor], b: Sequence[Tensor], each: int | None) -> Tensor:
    """Of all tensors together: a scalar, or [each]."""
    if each is None:
        return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
    parts = [(x * y).reshape(each, -1).sum(1) for x, y in zip(a, b, strict=True)]
    return torch.stack(parts).sum(0)


def _norm(a: Sequence[Tensor], each: int | None) -> Tensor:
    return _dot(a, a, each).sqrt()


def _over(scale: Tensor, like: Tensor) -> Tensor:
    """A factor a network, for a tensor that has the networks in its first dimension."""
    return scale if scale.ndim == 0 else scale.view(-1, *(1,) * (like.ndim - 1))
