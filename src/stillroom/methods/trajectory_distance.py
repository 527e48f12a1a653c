"""How far a student's parameters end from an expert's, and which parameters count.

Parameters are one vector [P], in the order of the network. MTT: Cazenavette et al. 2022,
arXiv:2203.11932, eq. 2; EDF's Common Pattern Dropout: Wang et al. 2025, arXiv:2410.17193; PAD's
choice of layers: Li et al. 2024, arXiv:2408.03360. Specification of trajectory matching, 4.1, 5.1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Drop = Literal["none", "easy", "shallow"]


def counted(end: Tensor, target: Tensor, share: float, drop: Drop) -> Tensor | None:
    """bool [P]: the parameters that count, all but floor(share * P); None where all do.

    "easy": those with the smallest squared errors are left out, which depends on where the student
    ended but has no gradient (EDF). "shallow": the first ones are, which are of the first layers
    (PAD, the paper's rule).
    """
    count = int(share * end.numel())
    if drop == "none" or not count:
        return None
    mask = torch.ones(end.numel(), dtype=torch.bool, device=end.device)
    if drop == "shallow":
        mask[:count] = False
    else:
        errors = (end.detach() - target).square()
        mask[errors.topk(count, largest=False, sorted=False).indices] = False
    return mask


def apart(end: Tensor, start: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared distance of `end` from the target, in units of that of `start`: a scalar.

    Both are over the parameters of the mask, so that it is 1 where nothing moved.
    """
    error, whole = (end - target).square(), (start - target).square()
    if mask is not None:
        error, whole = error * mask, whole * mask
    return error.sum() / whole.sum()
