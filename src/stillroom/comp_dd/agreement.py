"""How far an order of classes is theirs: that of their other images, and of other networks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from stillroom.comp_dd.build import first_half
from stillroom.comp_dd.complexity import of_classes
from stillroom.evaluation.statistics import rank_correlation

FEWEST = 4  # classes whose order says anything
HALVES = "the other half of the images"


@dataclass(frozen=True)
class Agreement:
    """Spearman's rho of two orders of the classes, and its 95 % interval, (-1, 1) if of none.

    `first`: a network; `second`: another one, or `HALVES`, the same on other images.
    """

    first: str
    second: str
    rho: float
    low: float
    high: float


def agreements(found: Mapping[str, Tensor], labels: Tensor, classes: int) -> list[Agreement]:
    """Every network with itself on either half of the images, then every two networks.

    found: by network the complexity float64 [M] of images, labels int64 [M] their classes. Of fewer
    than four classes nothing; of classes with one image no halves.
    """
    if classes < FEWEST:
        return []
    half = first_half(labels)

    def agree(first: str, second: str, one: Tensor, other: Tensor) -> Agreement:
        return Agreement(first, second, *rank_correlation(one.tolist(), other.tolist()))

    found_by = list(found.items()) if int(labels.bincount().min()) > 1 else []
    own = [
        agree(name, HALVES, *(of_classes(value[s], labels[s], classes) for s in (half, ~half)))
        for name, value in found_by
    ]
    means = {name: of_classes(value, labels, classes) for name, value in found.items()}
    pairs = itertools.combinations(means.items(), 2)
    return own + [agree(first, second, one, its) for (first, one), (second, its) in pairs]
