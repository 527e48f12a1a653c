"""Means, intervals and comparisons. Every mean says what its n counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (ddof 1) and 95 % t-interval of n numbers.

    For n = 1 the deviation is 0 and the interval is unknown: `half` is None.
    """

    n: int
    mean: float
    std: float
    half: float | None

    @property
    def low(self) -> float:
        """Lower end of the interval (minus infinity if unknown)."""
        return -math.inf if self.half is None else self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval (infinity if unknown)."""
        return math.inf if self.half is None else self.mean + self.half

    def separate_from(self, other: Summary) -> bool:
        """Whether the two 95 % intervals do not touch."""
        return self.low > other.high or self.high < other.low


def summarise(values: Sequence[float]) -> Summary:
    """Summary of at least one number."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, 0.0, None)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Summary(n, mean, std, t_quantile(n - 1) * std / math.sqrt(n))


def t_quantile(freedom: int, level: float = 0.975) -> float:
    """Student's t quantile."""
    from scipy.stats import t

    return float(t.ppf(level, freedom))
