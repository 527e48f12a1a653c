"""Learning rates by epoch, as multiples of the base rate. No torch here."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "drop", "steps", "smoothing", "linear", "cos2"]
SLOWED: tuple[Schedule, ...] = ("smoothing", "linear", "cos2")
"""Schedules that zeta slows down: they refer to zeta times the epochs."""
WARMUP_START = 0.01  # SRe2L's recipe for Tiny-ImageNet; nobody else here warms up


def multiplier(
    schedule: Schedule,
    epoch: int,
    epochs: int,
    *,
    zeta: float = 1.0,
    milestones: tuple[int, ...] = (),
    factor: float = 0.1,
    warmup: int = 0,
) -> float:
    """What the base rate is multiplied by in an epoch (0-based) of `epochs`.

    constant: 1. cosine: to 0. drop, steps: `factor` from each of `milestones` on. smoothing: a
    cosine of zeta times the length. linear: its straight line, which EDC's released ImageNet-1K
    trainer runs where its option says cosine. cos2: smoothing, then, after 5/6 of the epochs, a
    line to 0. The first `warmup` epochs climb from 0.01 to 1, and what falls smoothly falls in the
    rest; milestones count from the start.
    Source: EDC, arXiv:2404.13733; its eq. 33 is cos2.
    """
    if epoch < warmup:
        return WARMUP_START + (1 - WARMUP_START) * epoch / warmup
    if schedule in ("drop", "steps"):
        return factor ** sum(epoch >= milestone for milestone in milestones)
    at, of = epoch - warmup, epochs - warmup
    if schedule == "cosine":
        return _cosine(at, of)
    if schedule == "smoothing":
        return _cosine(at, zeta * of)
    if schedule == "linear":
        return 1 - at / (zeta * of)
    if schedule == "cos2":
        # The two parts do not meet (zeta 2: 0.629, then 0.103), in the paper's equation neither.
        late = 6 * at > 5 * of
        return _cosine(5, 6 * zeta) * (of - at) / of if late else _cosine(at, zeta * of)
    return 1.0


def _cosine(at: float, of: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * at / of))
