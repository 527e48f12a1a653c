"""What a student learns from, a batch at a time: plain images here, others by the same protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from stillroom.data.augment import apply, draw
from stillroom.nets.losses import Target
from stillroom.rng import rng
from stillroom.types import LabelKind

if TYPE_CHECKING:
    from stillroom.nets.train import Training


@dataclass(frozen=True)
class Batch:
    """Images float [B,ch,H,W] in network space, augmented, and their target."""

    images: Tensor
    target: Target

    def part(self, rows: slice) -> Batch:
        """Some images of the batch."""
        return Batch(self.images[rows], self.target.part(rows))


class Source(Protocol):
    """Where the trainer takes its batches from.

    An epoch is a function of (training, seed, epoch) alone, with every draw keyed, so that a
    resumed training sees what a straight one does and no student depends on its neighbours. All
    seeds get as many batches, of the same sizes.
    """

    def batches(self, training: Training, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch (0-based) of the student of a seed, in order."""


@dataclass(frozen=True)
class Images:
    """Images with labels of their own, given by a function of rows so that none need be float.

    take(rows int64 [B] on CPU) -> float [B,ch,H,W] in network space; labels int64 [N] or
    float [N,C], on the same device as the images. of_class int64 [N]: the class that each image
    was made for, where labels are float and somebody knows. seen(epoch) -> rows int64 that an epoch
    sees; None: all.
    """

    take: Callable[[Tensor], Tensor]
    labels: Tensor
    size: int
    of_class: Tensor | None = None
    seen: Callable[[int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
        """Rows int64 [B] of every batch of an epoch, in an order drawn for it."""
        some = None if self.seen is None else self.seen(epoch)
        count = len(self if some is None else some)
        order = torch.randperm(count, generator=rng(seed, "shuffle", epoch))
        order = order if some is None else some[order]
        for begin in range(0, count, batch):
            yield order[begin : begin + batch]

    def classes(self, rows: Tensor) -> Tensor | None:
        """The class int64 [B] of some rows, None where nobody says."""
        known = self.of_class if self.labels.is_floating_point() else self.labels
        return None if known is None else known[rows.to(known.device)]

    def target(self, rows: Tensor, kind: LabelKind) -> Target:
        """What some rows should be taken for, with float labels read as `kind`."""
        return Target(self.labels[rows.to(self.labels.device)], kind, self.classes(rows))

    def batches(self, training: Training, seed: int, epoch: int) -> Iterator[Batch]:
        """Shuffled by epoch, augmented by step."""
        for step, rows in enumerate(self.rows(training.batch, seed, epoch)):
            drawn = draw(training.augment, len(rows), self.size, rng(seed, "augment", epoch, step))
            images = apply(self.take(rows), drawn)
            yield Batch(images, self.target(rows, training.labels))
