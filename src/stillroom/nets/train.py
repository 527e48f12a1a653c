"""The only classifier training loop: students, originals, the networks of gradient matching.

K networks are trained at once (see `Ensemble`); network i draws from its own keyed generators, so
its weights do not depend on how many others train beside it: under "loop" to the bit, under "vmap"
up to rounding. One exception: the dropout of a user's network under "vmap" comes from one generator
for all, keyed by the first seed; so it is not that of "loop", and depends on who trains along.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.augment import Strategy, apply, draw
from stillroom.nets.ensemble import Ensemble
from stillroom.rng import global_rng, rng
from stillroom.types import LabelKind

Schedule = Literal["constant", "cosine", "drop", "steps"]


@dataclass(frozen=True)
class Training:
    """How a classifier is trained: everything but the data and the seed.

    `epochs` is the nominal number E that schedules refer to; `one_extra_epoch` makes it E + 1
    passes. Schedule "drop" is a tenth of the rate once, after the epoch of index E // 2 + 1;
    `reset_at_drop` does it as a new optimiser does, with momentum that starts at zero. Schedule
    "steps" is a tenth of the rate from each of `milestones` (epochs, 0-based) on.
    """

    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    augment: Strategy
    labels: LabelKind = "hard"
    one_extra_epoch: bool = False
    reset_at_drop: bool = False
    milestones: tuple[int, ...] = ()

    @property
    def passes(self) -> int:
        """Passes over the data."""
        return self.epochs + self.one_extra_epoch


@dataclass(frozen=True)
class Images:
    """Training images, given by a function of rows so that a full data set need not be float.

    take(rows int64 [B] on CPU) -> float [B,ch,H,W] in network space; labels int64 [N] or
    float [N,C], on the same device as the images.
    """

    take: Callable[[Tensor], Tensor]
    labels: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.labels)


def rate(training: Training, epoch: int) -> float:
    """The learning rate of an epoch (0-based)."""
    if training.schedule == "cosine":
        return training.lr * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    if training.schedule == "drop" and epoch >= first_after_drop(training):
        return training.lr * 0.1
    if training.schedule == "steps":
        return training.lr * 0.1 ** sum(epoch >= m for m in training.milestones)
    return training.lr


def first_after_drop(training: Training) -> int:
    """Index of the first epoch at the lower rate of schedule "drop".

    Source: `evaluate_synset` of DC, DSA and DM: 502 epochs before it where E is 1000.
    """
    return training.epochs // 2 + 2


def loss_of(logits: Tensor, labels: Tensor, kind: LabelKind) -> Tensor:
    """Cross-entropy of logits [B,C] with labels int64 [B], probabilities or logits [B,C]."""
    return F.cross_entropy(logits, labels.softmax(1) if kind == "logits" else labels)


@dataclass(frozen=True)
class Progress:
    """Where a training is, beside the weights: epochs done, and the momentum of every leaf."""

    epochs: int = 0
    momenta: tuple[Tensor, ...] = ()


def train(
    nets: Ensemble,
    data: Images,
    training: Training,
    seeds: Sequence[int],
    on_epoch: Callable[[int, float], None] | None = None,
    since: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
) -> None:
    """Train all networks in place by SGD; seeds[i] keys every draw of net i.

    Where networks are stacked ("vmap", several), seeds[0] keys the dropout of all.
    on_epoch(epochs done, mean loss over networks of the last batch) is called after every epoch;
    it may test the networks. keep(progress) is called before it: with the weights of that moment,
    `since` goes on from there, to the same weights as an unbroken training.
    """
    leaves = nets.leaves()
    optimiser = _sgd(leaves, training)
    since = since or Progress()
    for leaf, momentum in zip(leaves, since.momenta, strict=False):
        optimiser.state[leaf]["momentum_buffer"] = momentum
    parts = [nets] if nets.stacked else _one_by_one(nets)
    last = torch.zeros(())
    for epoch in range(since.epochs, training.passes):
        if training.reset_at_drop and epoch == first_after_drop(training):
            optimiser = _sgd(leaves, training)
        for group in optimiser.param_groups:
            group["lr"] = rate(training, epoch)
        orders = [torch.randperm(len(data), generator=rng(s, "shuffle", epoch)) for s in seeds]
        for step, begin in enumerate(range(0, len(data), training.batch)):
            rows = [order[begin : begin + training.batch] for order in orders]
            batches = [
                _augmented(data, r, training.augment, seed, epoch, step)
                for r, seed in zip(rows, seeds, strict=True)
            ]
            optimiser.zero_grad(set_to_none=True)
            logits = _logits(parts, batches, seeds, epoch, step)
            losses = [
                loss_of(out, data.labels[r.to(data.labels.device)], training.labels)
                for out, r in zip(logits, rows, strict=True)
            ]
            torch.stack(losses).sum().backward()
            optimiser.step()
            last = torch.stack([loss.detach() for loss in losses]).mean()
        if keep is not None:
            held = (optimiser.state[leaf].get("momentum_buffer") for leaf in leaves)
            keep(Progress(epoch + 1, tuple(m for m in held if m is not None)))
        if on_epoch is not None:
            on_epoch(epoch + 1, float(last))
    for leaf in leaves:
        leaf.requires_grad_(False)


def _sgd(leaves: list[Tensor], training: Training) -> torch.optim.SGD:
    return torch.optim.SGD(
        leaves, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )


def _one_by_one(nets: Ensemble) -> list[Ensemble]:
    """Every network as an ensemble of its own that shares its tensors with `nets`."""
    parts = []
    for params, buffers in zip(nets.params, nets.buffers, strict=True):
        one = copy.copy(nets)
        one.k, one.params, one.buffers = 1, [params], [buffers]
        parts.append(one)
    return parts


def _logits(
    parts: list[Ensemble], batches: list[Tensor], seeds: Sequence[int], epoch: int, step: int
) -> list[Tensor]:
    """Logits [B,C] of every network on its own batch, part by part."""
    x = torch.stack(batches)
    found: list[Tensor] = []
    for part in parts:
        first = len(found)
        # Dropout in a user's network draws from the global generator, so that is keyed too.
        with global_rng(seeds[first], "forward", epoch, step):
            found += part.logits(x[first : first + part.k], train=True)
    return found


def _augmented(
    data: Images, rows: Tensor, strategy: Strategy, seed: int, epoch: int, step: int
) -> Tensor:
    drawn = draw(strategy, len(rows), data.size, rng(seed, "augment", epoch, step))
    return apply(data.take(rows), drawn)


@torch.no_grad()
def predict(nets: Ensemble, data: Images, batch: int = 1024) -> Tensor:
    """Predicted classes int64 [K,N] on CPU, in evaluation mode, without augmentation."""
    parts = [
        nets.logits(data.take(torch.arange(i, min(i + batch, len(data))))).argmax(2).cpu()
        for i in range(0, len(data), batch)
    ]
    return torch.cat(parts, dim=1)
