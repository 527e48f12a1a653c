"""Assessments on constructed sets, against closed forms and naive loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import linalg

from stillroom.evaluation.assessments import (
    ROWS,
    distance_within,
    effective_rank,
    frechet,
    kernel_distance,
)


def draws(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_against_a_matrix_root() -> None:
    a, b = draws(50, 6), 2 * draws(40, 6, 1) + 1
    ca, cb = (torch.cov(x.T).numpy() for x in (a, b))
    root = linalg.sqrtm(ca @ cb).real
    gap = float((a.mean(0) - b.mean(0)).square().sum())
    expected = gap + ca.trace() + cb.trace() - 2 * root.trace()
    assert frechet(a, b) == pytest.approx(expected)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + 3) == pytest.approx(6 * 9)
    few = draws(3, 60)  # fewer images than features
    assert frechet(few, few + 1) == pytest.approx(60)


def test_kernel_distance_against_a_naive_loop() -> None:
    a, b = draws(7, 3), draws(5, 3, 1) + 0.5

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    aa = sum(k(a[i], a[j]) for i, j in itertools.permutations(range(7), 2)) / 42
    bb = sum(k(b[i], b[j]) for i, j in itertools.permutations(range(5), 2)) / 20
    ab = sum(k(x, y) for x in a for y in b) / 35
    assert kernel_distance(a, b) == pytest.approx(aa + bb - 2 * ab)
    same = [kernel_distance(draws(40, 3, 2 * i), draws(40, 3, 2 * i + 1)) for i in range(40)]
    assert abs(sum(same) / 40) < 0.05, "unbiased"


def test_pieces_of_a_kernel_and_short_factors_change_nothing() -> None:
    """More images than rows of a piece, and more than features: against whole matrices."""
    a, b = draws(ROWS + 500, 5), 1.5 * draws(ROWS + 300, 5, 1)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / 5 + 1) ** 3

    off = [kernel(x, x).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    whole = float(off[0] + off[1] - 2 * kernel(a, b).mean())
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-9)
    share = torch.linalg.svdvals(a - a.mean(0))
    share /= share.sum()
    assert effective_rank(a) == pytest.approx(float(torch.exp(-(share * share.log()).sum())))


def test_effective_rank_counts_directions() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    spread = torch.cat([eye, -eye])  # four equal directions
    assert effective_rank(spread) == pytest.approx(4)
    line = torch.tensor([[0.0, 0], [1, 1], [2, 2]])
    assert effective_rank(line) == pytest.approx(1)
    assert effective_rank(torch.ones(5, 3)) == 0
    assert effective_rank(torch.rand(1, 7).expand(10, 7)) == 0  # whose float32 mean is another
    assert effective_rank(draws(10, 50)) <= 9 + 1e-9


def test_distance_within_classes() -> None:
    points = torch.tensor([[0.0, 0], [3, 4], [0, 0], [0, 2], [7, 7]])
    assert distance_within(points, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx((5 + 2) / 2)
    assert distance_within(points, torch.arange(5)) == 0
