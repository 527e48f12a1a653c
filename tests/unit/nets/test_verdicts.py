"""Measures of logits against closed forms and a naive loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillroom.nets.verdicts import accuracy, calibration_error, loss


def draws(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_accuracy_loss_and_calibration_of_known_predictions() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    sure = torch.tensor([[9.0, 0], [9, 0], [0, 9], [9, 0]])  # three of four right, very sure
    assert accuracy(sure, labels) == 0.75
    p = 1 / (1 + math.exp(-9))
    assert loss(sure, labels) == pytest.approx((-3 * math.log(p) - math.log(1 - p)) / 4)
    assert calibration_error(sure, labels) == pytest.approx(p - 0.75)
    unsure = torch.zeros(4, 2)  # half sure, half right: calibrated
    assert calibration_error(unsure, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)


def test_calibration_against_a_naive_loop() -> None:
    logits, labels = 3 * draws(200, 5), torch.arange(200) % 5
    p = logits.softmax(1)
    total = 0.0
    for b in range(15):
        rows = [i for i in range(200) if min(14, int(float(p[i].max()) * 15)) == b]
        if rows:
            confidence = sum(float(p[i].max()) for i in rows) / len(rows)
            right = sum(int(p[i].argmax() == labels[i]) for i in rows) / len(rows)
            total += len(rows) / 200 * abs(confidence - right)
    assert calibration_error(logits, labels) == pytest.approx(total)
