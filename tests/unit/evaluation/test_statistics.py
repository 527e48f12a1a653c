"""Means and intervals against closed forms and scipy's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stillroom.evaluation.statistics import correlation, summarise, t_quantile


def test_three_numbers_by_hand():
    s = summarise([0.1, 0.2, 0.6])
    assert s.n == 3
    assert s.mean == pytest.approx(0.3)
    assert s.std == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))  # ddof 1
    assert s.half == pytest.approx(4.302652729911275 * s.std / math.sqrt(3))


def test_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=7)
    s = summarise(values.tolist())
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    assert (s.low, s.high) == pytest.approx((low, high))


def test_one_number_has_no_interval_and_is_never_separate():
    one = summarise([0.9])
    assert one.half is None
    assert (one.low, one.high) == (-math.inf, math.inf)
    assert not one.separate_from(summarise([0.1, 0.1, 0.1]))


def test_equal_numbers_have_no_interval():
    """Of a small test set accuracies are coarse: no spread is no certainty."""
    equal = summarise([0.1 + 0.2, 0.3, 0.3])
    assert (equal.std, equal.half) == (0.0, None)
    assert not equal.separate_from(summarise([0.9, 0.91]))
    assert summarise([0.3, 0.3001, 0.3]).half > 0


def test_coverage_is_95_percent():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        s = summarise(generator.normal(size=5).tolist())
        hits += s.low <= 0 <= s.high
    assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_quantiles():
    assert t_quantile(1) == pytest.approx(12.706204736)
    assert t_quantile(10**6) == pytest.approx(1.9599664, rel=1e-5)


def test_separate_intervals():
    low, high = summarise([0.1, 0.11, 0.12]), summarise([0.5, 0.51, 0.52])
    assert low.separate_from(high)
    assert high.separate_from(low)
    assert not low.separate_from(summarise([0.09, 0.1, 0.11]))


def test_correlation_is_scipys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=9)
    y = 0.6 * x + rng.normal(size=9)
    theirs = stats.pearsonr(x, y)
    low, high = theirs.confidence_interval(0.95)
    assert correlation(x.tolist(), y.tolist()) == pytest.approx((theirs.statistic, low, high))
    assert correlation([1.0, 1, 1, 1], [1.0, 2, 3, 4]) == (0.0, -1.0, 1.0)
    assert correlation([1.0, 2, 3, 4], [2.0, 4, 6, 8])[0] == pytest.approx(1)
