"""How complex images are: the share that a network does not look at to see the class.

Wang et al. 2025, arXiv:2410.17193, section 3; specification of trajectory matching, 8.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THRESHOLD = 0.5  # of a map in [0, 1]


def complexity(maps: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """float64 [...]: 1 minus the share of a map [...,H,W] that is at least the threshold."""
    return 1 - maps.ge(threshold).double().mean((-2, -1))


def of_classes(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """float64 [C]: the mean over the images of a class; NaN where there is none."""
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, values.double())
    return total / torch.bincount(labels, minlength=classes)


def hard_first(values: Tensor) -> list[int]:
    """Classes by falling complexity; of equal ones the earlier class."""
    return values.argsort(descending=True, stable=True).tolist()


def extremes(values: Tensor, members: Sequence[int], size: int) -> tuple[list[int], list[int]]:
    """Of the classes of a category the `size` least and the `size` most complex, as many of each.

    Raises: ValueError if there are fewer than twice as many.
    """
    if len(members) < 2 * size:
        raise ValueError(f"{len(members)} classes hold no {size} easy and {size} hard ones")
    order = [members[i] for i in hard_first(values[torch.tensor(list(members))])]
    return order[::-1][:size], order[:size]
