"""The crop curriculum of CDA: crops begin as whole images and become small ones. No torch here.

Source: Yin and Shen 2024, arXiv:2311.18838 (CDA); specification of the decoupled methods, 7.2.
"""

from __future__ import annotations

import math
from typing import Literal

from stillroom.errors import StillroomError

Curriculum = Literal["step", "linear", "cosine"]


def smallest_scale(
    kind: Curriculum, milestone: float, iteration: int, iterations: int, low: float = 0.08
) -> float:
    """The least area of a crop, a fraction of the image, at an iteration of 0..iterations-1.

    It falls from 1 to `low` over the first J = milestone * iterations: "step" stays at 1 until J,
    "linear" and "cosine" fall as they are called. From J on it is `low`; milestone 0 is no
    curriculum.
    Raises: StillroomError unless 0 <= milestone <= 1 and 0 < low <= 1.
    """
    if not 0 <= milestone <= 1:
        raise StillroomError(f"milestone={milestone:g} must lie in 0..1, a share of the iterations")
    if not 0 < low <= 1:
        raise StillroomError(f"the smallest crop {low:g} must lie in 0..1")
    end = milestone * iterations
    if iteration >= end:
        return low
    left = {
        "step": 1.0,
        "linear": 1 - iteration / end,
        "cosine": (1 + math.cos(math.pi * iteration / end)) / 2,
    }[kind]
    return low + (1 - low) * left
