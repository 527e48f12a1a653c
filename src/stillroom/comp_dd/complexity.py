"""How complex images are: the share that a network does not look at to see the class.

Wang et al. 2025, arXiv:2410.17193, section 3; specification of trajectory matching, 8.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.special import stdtrit
from torch import Tensor

THRESHOLD = 0.5  # of a map in [0, 1]
WORTH_SAYING = 0.01  # of the images, above which empty maps get a line


def complexity(maps: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """float64 [...]: 1 minus the share of a map [...,H,W] that is at least the threshold."""
    return 1 - maps.ge(threshold).double().mean((-2, -1))


def empty(values: Tensor) -> float:
    """The share of images [M] of whose map no pixel is active: those are 100 % complex."""
    return float((values == 1).double().mean())


def of_classes(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """float64 [C]: the mean over the images of a class; NaN where there is none."""
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, values.double())
    return total / torch.bincount(labels, minlength=classes)


def mean_of_classes(values: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[float, float]:
    """The mean over some classes of the means of their images, and half of its 95 % interval.

    The interval is over images: that of other images of these very classes, by Student's t with
    the degrees of freedom of Welch and Satterthwaite. Every class needs two.
    """
    parts = [values[labels == c].double() for c in classes]
    mean = sum(float(part.mean()) for part in parts) / len(parts)
    each = [float(part.var() / len(part)) / len(parts) ** 2 for part in parts]
    variance = sum(each)
    if variance == 0:
        return mean, 0.0
    pairs = zip(each, parts, strict=True)
    freedom = variance**2 / sum(v**2 / (len(part) - 1) for v, part in pairs)
    return mean, float(stdtrit(freedom, 0.975)) * variance**0.5


def hard_first(values: Tensor) -> list[int]:
    """Classes by falling complexity; of equal ones the earlier class."""
    return values.argsort(descending=True, stable=True).tolist()
