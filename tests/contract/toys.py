"""Three methods that no user sees: they prove the contract for what comes after DM.

A second-order one through the `match` door, a chunked one with `memory`, and one that learns a rate
and soft labels through an unrolled inner loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import Schooling
from stillroom.methods.base import Context, Method, Synth
from stillroom.nets.inner import Inner, flat, unrolled, views
from stillroom.nets.losses import hard_ce
from stillroom.nets.zoo import resolve


def squared(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    return torch.stack([(a[n] - b[n]).square().sum() for n in a]).sum()


def start_real(ctx: Context, rows: Tensor) -> Synth:
    of_class = (rows // ctx.ipc).to(ctx.device)
    return Synth(ctx.real_images(rows).requires_grad_(), of_class, of_class)


class SecondOrder(Method):
    kind: Literal["toy_second_order"] = "toy_second_order"

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        return start_real(ctx, rows)

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        nets = ctx.nets(2, "net", it)
        for c in ctx.share(len(ctx.bench.classes)):
            real = ctx.real(c, 8, it, c)
            target = nets.grads(real, torch.full((len(real),), c))
            rows = (synth.of_class == c).nonzero().squeeze(1)
            yield nets.match(synth.images[rows], synth.labels[rows], target, squared)


class Chunked(Method):
    kind: Literal["toy_chunked"] = "toy_chunked"

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        return start_real(ctx, rows)

    def chunks(self, classes: int, ipc: int) -> Sequence[range]:
        return [range(c * ipc, (c + 1) * ipc) for c in range(classes)]

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        assert it > 0 or not synth.memory, "memory must be empty at the start of a chunk"
        features = ctx.nets(1, "net", it).features(synth.images)[0]
        mean = features.mean(0)
        old = synth.memory.get("mean", mean.detach())
        synth.memory["mean"] = (0.9 * old + 0.1 * mean).detach()
        synth.memory["count"] = float(synth.memory.get("count", 0.0)) + 1.0
        yield (0.9 * old + 0.1 * mean).square().sum() / synth.memory["count"]


class Guided(SecondOrder):
    """It asks for a stage before it, as methods with experts or teachers do."""

    kind: Literal["toy_guided"] = "toy_guided"

    def stages(self, bench, arch, store):
        one = Schooling(epochs=1, batch=8)
        return {"expert": Original(one, bench, resolve("convnet1-w4"), 0, store)}

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        weights = ctx.artefacts["expert"].weights
        yield weights["classifier.bias"].square().sum() * synth.images.square().sum()


class Unrolled(Method):
    kind: Literal["toy_unrolled"] = "toy_unrolled"

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        synth = start_real(ctx, rows)
        classes = len(ctx.bench.classes)
        synth.labels = (4.0 * F.one_hot(synth.of_class, classes)).to(ctx.rt.dtype).requires_grad_()
        synth.lr = torch.tensor(0.05, dtype=ctx.rt.dtype, requires_grad=True)
        return synth

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        nets = ctx.nets(1, "net", it)
        own = nets.member(0)[0]
        batch = (synth.images, synth.labels.softmax(1))
        end = unrolled(Inner(nets, flat(own), 2, lambda t: batch, synth.lr, hard_ce))
        params = views(end, own)
        real = torch.cat([ctx.real(c, 8, it, c) for c in range(len(ctx.bench.classes))])
        labels = torch.arange(len(ctx.bench.classes)).repeat_interleave(8)[: len(real)]
        logits = functional_call(nets.nets.skeleton, (params, nets.buffers[0]), (real,))
        yield F.cross_entropy(logits, labels)
