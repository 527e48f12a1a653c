"""Gradients through an inner loop: a network trained by plain SGD, and how its end depends on data.

Three engines for one loss. "unrolled" keeps the graph of all steps. "exact" is the adjoint of the
loop by Hessian-vector products: activations of one step at a time, and the parameters of every
step, which `theta` keeps on the device, on the host, or makes again. "tesla" is the same with an
adjoint that stands still, which leaves out how a step depends on the data of earlier ones: exact of
one step only. Specification of trajectory matching, 4.2; TESLA: Cui et al. 2023, arXiv:2211.10586.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value

from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Ensemble, Params
from stillroom.nets.precomputed import precomputed

Engine = Literal["exact", "tesla", "unrolled"]
PIECE = 16  # images
Theta = Literal["device", "host", "recompute"]


def flat(params: Params) -> Tensor:
    """All parameters of a network, in its order, as one vector [P]."""
    return torch.cat([value.reshape(-1) for value in params.values()])


def views(theta: Tensor, like: Params) -> Params:
    """The parameters that a vector [P] holds, by name: views of it."""
    parts = theta.split([value.numel() for value in like.values()])
    return {n: part.view(v.shape) for (n, v), part in zip(like.items(), parts, strict=True)}


def put(theta: Tensor, params: Params) -> None:
    """Give a network the parameters that a vector [P] holds, in place, whatever its device."""
    with torch.no_grad():
        for name, value in views(theta, params).items():
            params[name].copy_(value)


@dataclass(frozen=True)
class Inner:
    """A network that is trained on learned images for some steps.

    `nets` is an ensemble of one, for its skeleton and buffers. `start` [P]. `shown(t)` gives the
    batch of step t: images [B,ch,H,W], and labels int64 [B] or float [B,C]; made of the learned
    tensors at every call, with the same draws. `rate` is a scalar. `loss` of (logits, labels) is a
    function of a module, by which compiled code is kept.
    """

    nets: Ensemble
    start: Tensor
    steps: int
    shown: Callable[[int], tuple[Tensor, Tensor]]
    rate: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]


def through(
    inner: Inner,
    distance: Callable[[Tensor], Tensor],
    learned: Sequence[Tensor],
    engine: Engine = "exact",
    theta: Theta = "device",
) -> Tensor:
    """distance(end [P]) as a scalar with gradients in `learned` and in the rate.

    `learned` are the tensors that the batches are made of. Always in the run's own dtype: bf16
    changes second derivatives by several percent.
    Raises: StillroomError for a network with dropout, whose draws could not be repeated.
    """
    _refuse_dropout(inner.nets)
    inner.nets.nets.skeleton.train()
    with _own_statistics(inner.nets.nets.skeleton):
        if engine == "unrolled":
            return distance(unrolled(inner))
        return _adjoint(inner, distance, learned, engine, theta)


def unrolled(inner: Inner) -> Tensor:
    """The end [P] of the loop with its graph: the plain twin, never compiled."""
    inner.nets.nets.skeleton.train()
    now = inner.start.detach().requires_grad_()
    for t in range(inner.steps):
        images, labels = inner.shown(t)
        value = _loss(inner)(now, inner.nets.member(0)[1], images, labels)
        (slope,) = torch.autograd.grad(value, now, create_graph=True)
        now = now - inner.rate * slope
    return now


def _adjoint(
    inner: Inner,
    distance: Callable[[Tensor], Tensor],
    learned: Sequence[Tensor],
    engine: Engine,
    theta: Theta,
) -> Tensor:
    path = _Path(inner, theta)
    end = path.end.requires_grad_()
    value = distance(end)
    (adjoint,) = torch.autograd.grad(value, end)
    rate = inner.rate.detach()
    slopes = [torch.zeros_like(one) for one in learned]
    of_rate = torch.zeros_like(rate)
    for t in reversed(range(inner.steps)):
        images, labels = inner.shown(t)
        pulled = _pull(inner, path[t], images.detach(), labels.detach(), adjoint)
        of_rate -= pulled[0]
        # Labels that are classes have no slope.
        pairs = zip((images, labels), pulled[2:], strict=False)
        outs = [(out, -rate * by) for out, by in pairs if out.requires_grad]
        shown, by = zip(*outs, strict=True)
        found = torch.autograd.grad(shown, learned, by, allow_unused=True)
        for slope, more in zip(slopes, found, strict=True):
            if more is not None:
                slope += more.view_as(slope)
        if engine == "exact":
            adjoint = adjoint - rate * pulled[1]
    total = value.detach()
    for one, slope in zip((*learned, inner.rate), (*slopes, of_rate), strict=True):
        if one.requires_grad:
            total = total + precomputed(one, torch.zeros_like(value), slope)
    return total


class _Path:
    """The parameters before every step, and at the end; nothing here has a graph."""

    def __init__(self, inner: Inner, theta: Theta) -> None:
        self.inner, self.theta = inner, theta
        # "recompute" keeps one in so many and makes a stretch of them again: 2 sqrt(T) at once.
        self.every = max(1, math.isqrt(inner.steps)) if theta == "recompute" else 1
        self.kept: dict[int, Tensor] = {}
        self.stretch: dict[int, Tensor] = {}
        now = inner.start.detach()
        for t in range(inner.steps):
            if t % self.every == 0:
                self.kept[t] = now.cpu() if theta == "host" else now
            now = self._next(now, t)
        self.end = now.detach()

    def __getitem__(self, t: int) -> Tensor:
        if t not in self.stretch:
            first = t - t % self.every
            now = self.kept[first].to(self.inner.start.device)
            self.stretch = {first: now}
            for s in range(first, t):
                now = self._next(now, s)
                self.stretch[s + 1] = now
        return self.stretch[t]

    def _next(self, now: Tensor, t: int) -> Tensor:
        images, labels = self.inner.shown(t)
        leaf = now.detach().requires_grad_()
        key = ("inner loss", self.inner.loss)
        compute = self.inner.nets.nets.function(key, lambda: _loss(self.inner))
        buffers = self.inner.nets.member(0)[1]
        value = compute(leaf, buffers, images.detach(), labels.detach())
        (slope,) = torch.autograd.grad(value, leaf)
        return now - self.inner.rate.detach() * slope


def _pull(
    inner: Inner, now: Tensor, images: Tensor, labels: Tensor, adjoint: Tensor
) -> tuple[Tensor, ...]:
    """s = <adjoint, gradient of the loss at `now`>, and its slopes in parameters, images, labels.

    Without the last where labels are classes. Value and slopes leave one function, compiled where
    the runtime says so (docs/architecture.md, "Compiled second order").
    """
    soft = labels.is_floating_point()

    def make() -> Callable[..., Any]:
        plain = _loss(inner)

        def dot(p: Tensor, x: Tensor, y: Tensor, b: Params, by: Tensor) -> Tensor:
            return torch.dot(by, grad(plain)(p, b, x, y))

        return grad_and_value(dot, argnums=(0, 1, 2) if soft else (0, 1))

    nets = inner.nets.nets
    plain = None if nets.has_batchnorm() else lambda *args: in_pieces(make(), *args)
    compute = nets.checked(("inner pull", inner.loss, soft), make, plain)
    slopes, value = compute(now, images, labels, inner.nets.member(0)[1], adjoint)
    return (value, *slopes)


def in_pieces(
    pull: Callable[..., Any], now: Tensor, images: Tensor, labels: Tensor, *rest: Any
) -> tuple[tuple[Tensor, ...], Tensor]:
    """What `pull` gives for a batch, some images at a time: of a mean over images that is the sum.

    Uncompiled a pull holds seven times a batch's activations, compiled a third of that.
    """
    parts, values = [], []
    for x, y in zip(images.split(PIECE), labels.split(PIECE), strict=True):
        slopes, value = pull(now, x, y, *rest)
        share = len(x) / len(images)
        parts.append([share * slope for slope in slopes])
        values.append(share * value)
    of_now, *others = zip(*parts, strict=True)
    return (torch.stack(of_now).sum(0), *map(torch.cat, others)), torch.stack(values).sum()


def _loss(inner: Inner) -> Callable[[Tensor, Params, Tensor, Tensor], Tensor]:
    like = {n: v.detach() for n, v in inner.nets.member(0)[0].items()}
    skeleton, loss = inner.nets.nets.skeleton, inner.loss

    def compute(theta: Tensor, buffers: Params, images: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(skeleton, (views(theta, like), buffers), (images,))
        return loss(logits.to(theta.dtype), labels)

    return compute


@contextlib.contextmanager
def _own_statistics(net: nn.Module) -> Iterator[None]:
    """BatchNorm layers take the statistics of the batch and keep none, as a loop that is replayed
    must."""
    layers = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    usual = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer, old in zip(layers, usual, strict=True):
            layer.track_running_stats = old


def _refuse_dropout(nets: Ensemble) -> None:
    for module in nets.nets.skeleton.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            raise StillroomError(
                f"arch={nets.nets.arch.name} has dropout, whose draws an inner loop cannot repeat; "
                "take a network without it"
            )
