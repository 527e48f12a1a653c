"""Online teachers: networks that say, during training, what each drawn view of an image is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stillroom.errors import StillroomError
from stillroom.nets.losses import Target
from stillroom.nets.sources import Batch, Images
from stillroom.nets.train import Training

View = Callable[[Tensor, int, int, int], Tensor]
"""view(x [B,ch,H,W], seed, epoch, step) -> [B,ch,H,W]: augmented and mixed, by keyed draws alone.

Image i of what it gives is image i of what it takes, with others mixed in where it mixes.
"""


class Teaching(Protocol):
    """Whoever says what an image is, an `Ensemble` for one."""

    def logits(self, x: Tensor) -> Tensor:
        """x [B,ch,H,W] -> logits [K,B,C] of K networks."""


@dataclass(frozen=True)
class OnlineTeachers:
    """Images in drawn views, labelled by teachers: the mean of their logits for the very view.

    The teachers are in evaluation mode and get no gradient. The class beside the logits is that of
    the image itself, not of what is mixed into it, as in the released code of EDC and G-VBSM.
    Source of the mean over networks: EDC, arXiv:2404.13733, and G-VBSM, arXiv:2311.17950.
    """

    images: Images
    teachers: tuple[Teaching, ...]
    view: View

    def batches(self, training: Training, seed: int, epoch: int) -> Iterator[Batch]:
        """Shuffled by epoch as plain images are, in views drawn by step.

        Raises: StillroomError if the training has an augmentation of its own.
        """
        if training.augment.words:
            raise StillroomError(
                f"augment={training.augment.text} would change images after their teachers saw "
                "them; leave it at none, the view draws them"
            )
        for step, rows in enumerate(self.images.rows(training.batch, seed, epoch)):
            x = self.view(self.images.take(rows), seed, epoch, step)
            yield Batch(x, Target(self.logits(x), "logits", self.images.classes(rows)))

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Mean over all teaching networks of their logits for x [B,ch,H,W] -> [B,C]."""
        return torch.cat([teacher.logits(x) for teacher in self.teachers]).mean(0)
