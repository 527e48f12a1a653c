"""What a network says of labelled images, as plain functions of its logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images [N,C] whose largest logit is their label int64 [N]."""
    return float((logits.argmax(1) == labels).double().mean())


def loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return float(F.cross_entropy(logits.double(), labels))


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error: |confidence - accuracy| by 15 equal bins of confidence.

    Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    confidence, taken = logits.double().softmax(1).max(1)
    right = (taken == labels).double()
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64, device=logits.device)
    gaps.index_add_(0, bins, confidence - right)
    return float(gaps.abs().sum() / len(labels))
