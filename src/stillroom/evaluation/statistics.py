"""Means, intervals and comparisons. Every mean says what its n counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EQUAL = 1e-9  # a deviation below this is rounding
FEWEST_RANKS = 10  # pairs, below which the interval of a rank correlation covers too little


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (ddof 1) and 95 % t-interval of n numbers.

    For n = 1 the deviation is 0 and the interval is unknown: `half` is None. So it is of equal
    numbers: accuracies of a small test set are coarse, and no interval has no width.
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
    if std < EQUAL:
        return Summary(n, mean, 0.0, None)
    return Summary(n, mean, std, t_quantile(n - 1) * std / math.sqrt(n))


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Pearson's r of at least four pairs, and its 95 % interval by Fisher's z transform.

    Of a constant side r is 0 and the interval (-1, 1): nothing is known.
    """
    n = len(x)
    mx, my = math.fsum(x) / n, math.fsum(y) / n
    spread = math.sqrt(math.fsum((a - mx) ** 2 for a in x) * math.fsum((b - my) ** 2 for b in y))
    if spread == 0:
        return 0.0, -1.0, 1.0
    r = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / spread
    z, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r))), 1.959964 / math.sqrt(n - 3)
    return r, math.tanh(z - half), math.tanh(z + half)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's rho, and its 95 % interval; of fewer than ten pairs that is (-1, 1).

    By Fisher's z transform with the variance of Bonett and Wright 2000, (1 + rho^2 / 2) / (n - 3).
    """
    r, _, _ = correlation(ranks(x), ranks(y))
    if len(x) < FEWEST_RANKS or abs(r) > 1 - EQUAL:
        return r, -1.0, 1.0
    z, half = math.atanh(r), 1.959964 * math.sqrt((1 + r * r / 2) / (len(x) - 3))
    return r, math.tanh(z - half), math.tanh(z + half)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share their mean rank."""
    return [
        sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2
        for value in values
    ]


@dataclass(frozen=True)
class Paired:
    """Differences a - b of students that share a seed, and the two-sided p of a paired t test.

    Students of one seed start from the same weights and draw the same augmentations (and, for sets
    of one size, the same orders), which takes their shared luck out of the difference. It is about
    these two sets, not about the methods that made them. Of fewer than three pairs, or of equal
    differences (accuracies of a small test set are coarse), nothing is said: p is None.
    """

    difference: Summary
    p: float | None


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired | None:
    """Compare accuracies by seed, over the seeds that both have; None if they share none."""
    shared = sorted(set(a) & set(b))
    if not shared:
        return None
    difference = summarise([a[seed] - b[seed] for seed in shared])
    if difference.n < 3 or difference.half is None:
        return Paired(difference, None)
    from scipy.stats import t

    value = abs(difference.mean) / (difference.std / math.sqrt(difference.n))
    return Paired(difference, float(2 * t.sf(value, difference.n - 1)))


def t_quantile(freedom: int, level: float = 0.975) -> float:
    """Student's t quantile."""
    from scipy.stats import t

    return float(t.ppf(level, freedom))
