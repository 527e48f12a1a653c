"""The only classifier training loop: students, originals, the networks of gradient matching.

K networks are trained at once (see `Ensemble`); network i draws from its own keyed generators, so
its weights do not depend on how many others train beside it: under "loop" to the bit, under "vmap"
up to rounding. One exception: the dropout of a user's network under "vmap" comes from one generator
for all, keyed by the first seed; so it is not that of "loop", and depends on who trains along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stillroom.data.augment import Strategy
from stillroom.errors import StillroomError
from stillroom.nets.averaging import follow
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.losses import CROSS_ENTROPY, Objective
from stillroom.nets.optimisers import Decay, Memory, Optimiser, memory_of, optimiser_of, remind
from stillroom.nets.schedules import Schedule, multiplier
from stillroom.nets.sharpness import Uphill, look_uphill, still_norms
from stillroom.nets.sources import Batch, Images, Source
from stillroom.rng import global_rng
from stillroom.types import LabelKind


@dataclass(frozen=True)
class Training:
    """How a classifier is trained: everything but the data and the seed.

    `epochs` is the nominal number E that schedules refer to; `one_extra_epoch` makes it E + 1
    passes, `stop` that many. Schedule "drop" is a tenth of the rate once, after the epoch of index
    E // 2 + 1; `reset_at_drop` does it as a new optimiser does, with momentum that starts at zero.
    The other schedules, `milestones`, `factor`, `zeta` and `warmup`: see `multiplier`.

    `momentum` is of sgd, `betas` and `eps` are of adamw; `decay` says which parameters decay (see
    `parameter_groups`). `ema` is the decay of a moving average of the weights, None: none is kept.
    `pieces` splits every batch into so many forward and backward passes with the same gradient.
    `norms_twice`: every batch moves the statistics of BatchNorm twice, as in the released code of
    RDED (arXiv:2312.03526), which makes an extra pass to print an accuracy.
    `uphill` makes every step a sharpness-aware one, of two passes.
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
    factor: float = 0.1
    zeta: float = 1.0
    warmup: int = 0
    stop: int | None = None
    objective: Objective = CROSS_ENTROPY
    optimiser: Optimiser = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: Decay = "all"
    ema: float | None = None
    pieces: int = 1
    norms_twice: bool = False
    uphill: Uphill | None = None

    @property
    def passes(self) -> int:
        """Passes over the data."""
        return self.epochs + self.one_extra_epoch if self.stop is None else self.stop


def rate(training: Training, epoch: int) -> float:
    """The learning rate of an epoch (0-based)."""
    drops = training.schedule == "drop"
    return training.lr * multiplier(
        training.schedule,
        epoch,
        training.epochs,
        zeta=training.zeta,
        milestones=(first_after_drop(training),) if drops else training.milestones,
        factor=training.factor,
        warmup=training.warmup,
    )


def first_after_drop(training: Training) -> int:
    """Index of the first epoch at the lower rate of schedule "drop".

    Source: `evaluate_synset` of DC, DSA and DM: 502 epochs before it where E is 1000.
    """
    return training.epochs // 2 + 2


@dataclass(frozen=True)
class Progress:
    """Where a training is, beside the weights and buffers: all that the next epoch depends on.

    Epochs done; what the optimiser remembers of every leaf; the moving average of every leaf. The
    tensors are those that the training goes on changing: copy what must stay.
    """

    epochs: int = 0
    memory: tuple[Memory, ...] = ()
    average: tuple[Tensor, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for a snapshot."""
        found = {f"average.{i:04d}": mean for i, mean in enumerate(self.average)}
        for i, own in enumerate(self.memory):
            found |= {f"memory.{i:04d}.{slot}": value for slot, value in own.items()}
        return found

    @classmethod
    def of(cls, epochs: int, tensors: Mapping[str, Tensor], leaves: int) -> Progress:
        """What `tensors` gave, for a training of so many leaves.

        Scalars, which are counts of steps, belong on the CPU, the others where the leaves are.
        """
        memory: tuple[Memory, ...] = tuple({} for _ in range(leaves))
        for name, value in tensors.items():
            kind, number, *slot = name.split(".")
            if kind == "memory":
                memory[int(number)][slot[0]] = value
        average = tuple(tensors[name] for name in sorted(tensors) if name.startswith("average."))
        return cls(epochs, memory, average)


def train(
    nets: Ensemble,
    data: Source,
    training: Training,
    seeds: Sequence[int],
    on_epoch: Callable[[int, float], None] | None = None,
    since: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> None:
    """Train all networks in place; seeds[i] keys every draw of net i.

    Where networks are stacked ("vmap", several), seeds[0] keys the dropout of all.
    on_epoch(epochs done, mean loss over networks of the last batch) is called after every epoch;
    it may test the networks, also as `averaged`. keep(progress) is called before it: with the
    weights of that moment, `since` goes on from there, to the same weights as an unbroken training.
    tick() is called before every step; what it raises ends the training.
    Raises: StillroomError if batches cannot be split (`pieces`) or lack what the loss needs.
    """
    _refuse_pieces(nets, training)
    leaves = nets.leaves()
    optimiser = optimiser_of(nets, training)
    since = since or Progress()
    if since.memory:
        remind(optimiser, leaves, since.memory)
    average = since.average
    if training.ema is not None and not average:
        average = tuple(leaf.detach().clone() for leaf in leaves)
    parts = [nets] if nets.stacked else _one_by_one(nets)
    last = torch.zeros(())
    for epoch in range(since.epochs, training.passes):
        if training.reset_at_drop and epoch == first_after_drop(training):
            optimiser = optimiser_of(nets, training)
        for group in optimiser.param_groups:
            group["lr"] = rate(training, epoch)
        for step, batches in enumerate(together(data, training, seeds, epoch)):
            if tick is not None:
                tick()
            optimiser.zero_grad(set_to_none=True)
            backward = partial(_backward, parts, batches, training, seeds, epoch, step)
            last = backward()
            if training.uphill is not None:
                _look_uphill(nets, parts, training.uphill, backward)
            optimiser.step()
            if training.ema is not None:
                follow(average, leaves, training.ema)
        if keep is not None:
            keep(Progress(epoch + 1, memory_of(optimiser, leaves), average))
        if on_epoch is not None:
            on_epoch(epoch + 1, float(last))
    for leaf in leaves:
        leaf.requires_grad_(False)


def together(
    data: Source, training: Training, seeds: Sequence[int], epoch: int
) -> Iterator[tuple[Batch, ...]]:
    """The batches of an epoch, step by step, each step with one a seed."""
    return zip(*(data.batches(training, seed, epoch) for seed in seeds), strict=True)


def _refuse_pieces(nets: Ensemble, training: Training) -> None:
    if training.pieces == 1:
        return
    if nets.nets.has_batchnorm() and not nets.frozen:
        raise StillroomError(
            f"pieces={training.pieces}: {nets.nets.arch.name} has BatchNorm, whose statistics are "
            "those of a whole batch; train with pieces=1 and, if memory is short, smaller batches"
        )
    if not training.objective.splits:
        raise StillroomError(
            f"pieces={training.pieces}: loss {training.objective.loss} compares the images of a "
            "batch with each other; train with pieces=1"
        )


def _backward(
    parts: list[Ensemble],
    batches: Sequence[Batch],
    training: Training,
    seeds: Sequence[int],
    epoch: int,
    step: int,
) -> Tensor:
    """Leave the gradient of a step in the leaves, piece by piece; the mean loss over networks."""
    size = len(batches[0].images)
    width = -(-size // training.pieces)
    means = []
    for begin in range(0, size, width):
        rows = slice(begin, begin + width)
        pieces = [batch.part(rows) for batch in batches]
        share = len(pieces[0].images) / size
        # The first piece draws as a whole batch does.
        key = ("forward", epoch, step, *((begin,) if begin else ()))
        images = [piece.images for piece in pieces]
        if training.norms_twice and parts[0].nets.has_batchnorm():
            with torch.no_grad():  # of the images as they are learned from, mixed in place there
                _logits(parts, images, seeds, key)
        logits = _logits(parts, images, seeds, key)
        losses = [
            share * training.objective(out, piece.target)
            for out, piece in zip(logits, pieces, strict=True)
        ]
        torch.stack(losses).sum().backward()
        means.append(torch.stack([loss.detach() for loss in losses]).mean())
    return torch.stack(means).sum()


def _look_uphill(
    nets: Ensemble, parts: list[Ensemble], rule: Uphill, backward: Callable[[], Tensor]
) -> None:
    """Replace the gradients by those that sharpness-aware training steps along: a second pass.

    Over the same batch with the same draws. All networks go uphill together, each by norms of its
    own.
    """
    each = nets.k if nets.stacked else None
    moved = [look_uphill(list(part.params[0].values()), rule, each) for part in parts]
    with still_norms(nets.nets.skeleton):
        backward()
    for back in moved:
        back()


def _one_by_one(nets: Ensemble) -> list[Ensemble]:
    """Every network as an ensemble of its own that shares its tensors with `nets`."""
    parts = []
    for params, buffers in zip(nets.params, nets.buffers, strict=True):
        one = copy.copy(nets)
        one.k, one.params, one.buffers = 1, [params], [buffers]
        parts.append(one)
    return parts


def _logits(
    parts: list[Ensemble], images: list[Tensor], seeds: Sequence[int], key: Sequence[str | int]
) -> list[Tensor]:
    """Logits [B,C] of every network on its own images, part by part."""
    x = torch.stack(images)
    found: list[Tensor] = []
    for part in parts:
        first = len(found)
        # Dropout in a user's network draws from the global generator, so that is keyed too.
        with global_rng(seeds[first], *key):
            found += part.logits(x[first : first + part.k], train=True)
    return found


@torch.no_grad()
def predict(nets: Ensemble, data: Images, batch: int = 1024) -> Tensor:
    """Predicted classes int64 [K,N] on CPU, in evaluation mode, without augmentation."""
    parts = [
        nets.logits(data.take(torch.arange(i, min(i + batch, len(data))))).argmax(2).cpu()
        for i in range(0, len(data), batch)
    ]
    return torch.cat(parts, dim=1)
