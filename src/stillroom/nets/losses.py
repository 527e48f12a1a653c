"""What a student minimises: cross-entropy with the labels, or a distance to a teacher's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.errors import StillroomError
from stillroom.types import LabelKind

Loss = Literal["ce", "soft_ce", "kl", "mse_gt", "dist"]
DIST_EPS = 1e-5  # added to the product of norms in a correlation


@dataclass(frozen=True)
class Target:
    """What a batch should be taken for.

    labels int64 [B] ("hard"), or float [B,C]: "probs", or "logits", of a teacher for the very
    images, mixed as they are. of_class int64 [B]: the class that each image was made for, also
    where another image is mixed in; None where nobody says.
    """

    labels: Tensor
    kind: LabelKind = "hard"
    of_class: Tensor | None = None

    def part(self, rows: slice) -> Target:
        """The targets of some images of the batch."""
        of_class = None if self.of_class is None else self.of_class[rows]
        return Target(self.labels[rows], self.kind, of_class)


@dataclass(frozen=True)
class Objective:
    """A loss and its constants.

    `ce` takes labels of every kind, the others a teacher's logits. `temperature` is of soft_ce, kl
    and dist, `ce_weight` of mse_gt; `t_squared` multiplies kl by the square of its temperature.
    """

    loss: Loss = "ce"
    temperature: float = 1.0
    ce_weight: float = 0.0
    t_squared: bool = False

    @property
    def splits(self) -> bool:
        """Whether the loss of a batch is the mean of those of its images."""
        return self.loss != "dist"

    def __call__(self, logits: Tensor, target: Target) -> Tensor:
        """The loss of a student's logits [B,C].

        Raises: StillroomError if the target lacks what the loss compares with.
        """
        if self.loss == "ce":
            return loss_of(logits, target.labels, target.kind)
        if target.kind != "logits":
            raise StillroomError(
                f"loss={self.loss} compares with a teacher's logits and the labels are "
                f"{target.kind}; train on relabels or on a set with logits, or by loss ce"
            )
        if self.loss == "soft_ce":
            return soft_ce(logits, target.labels, self.temperature)
        if self.loss == "dist":
            return dist(logits, target.labels, self.temperature)
        if self.loss == "mse_gt":
            if target.of_class is None:
                raise StillroomError("loss=mse_gt needs the class of every image beside its logits")
            return mse_gt(logits, target.labels, target.of_class, self.ce_weight)
        divergence = kl(logits, target.labels, self.temperature)
        return self.temperature**2 * divergence if self.t_squared else divergence


CROSS_ENTROPY = Objective()


def loss_of(logits: Tensor, labels: Tensor, kind: LabelKind) -> Tensor:
    """Cross-entropy of logits [B,C] with labels int64 [B], probabilities or logits [B,C]."""
    return F.cross_entropy(logits, labels.softmax(1) if kind == "logits" else labels)


def hard_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [B,C] with classes int64 [B]."""
    return F.cross_entropy(logits, labels)


def logit_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [B,C] with the softmax of labels [B,C], which are logits too."""
    return soft_ce(logits, labels, 1.0)


def soft_ce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of two logits [B,C], both at a temperature: `kl` plus the teacher's entropy."""
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(1))


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over images of KL(teacher || student) of two logits [B,C] at a temperature.

    Not multiplied by its square, as in SRe2L's ImageNet-1K code, RDED and EDC.
    """
    log_p = (student / temperature).log_softmax(1)
    log_q = (teacher / temperature).log_softmax(1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def mse_gt(student: Tensor, teacher: Tensor, of_class: Tensor, ce_weight: float) -> Tensor:
    """Mean over all logits [B,C] of the squared difference, plus cross-entropy with the class.

    of_class int64 [B]. As released, it is the class of the image itself where another is mixed in.
    Source: G-VBSM, arXiv:2311.17950; EDC, arXiv:2404.13733.
    """
    return F.mse_loss(student, teacher) + ce_weight * F.cross_entropy(student, of_class)


def dist(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Correlations within images and within classes of probabilities at a temperature.

    T^2 (2 inter + 2 intra), each one minus the mean Pearson correlation of the two matrices
    [B,C], by rows and by columns. Source: DIST, Huang et al. 2022, arXiv:2205.10536.
    """
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    inter = 1 - _correlations(p, q).mean()
    intra = 1 - _correlations(p.T, q.T).mean()
    return temperature**2 * (2 * inter + 2 * intra)


def _correlations(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of every row of a with that of b [R,D] -> [R]."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / (norms + DIST_EPS)
