"""Subset selection over points of one class: herding, greedy k-center, k-means."""

from __future__ import annotations

import torch
from torch import Tensor


def herding(points: Tensor, k: int) -> Tensor:
    """Greedy: each next point brings the mean of the chosen ones closest to the mean of all.

    points float [n,D], k <= n; returns int64 [k] distinct rows. Source: Welling 2009.
    """
    points = points.double()
    mean = points.mean(0)
    total = torch.zeros_like(mean)
    left = torch.ones(len(points), dtype=torch.bool, device=points.device)
    chosen: list[int] = []
    for i in range(k):
        distance = (mean - (total + points) / (i + 1)).square().sum(1)
        best = int(distance.masked_fill(~left, float("inf")).argmin())
        chosen.append(best)
        left[best] = False
        total += points[best]
    return torch.tensor(chosen)


def k_center(points: Tensor, k: int) -> Tensor:
    """Farthest-first traversal, from the point nearest to the mean.

    points float [n,D], k <= n; returns int64 [k] rows. Source: Sener and Savarese 2018, alg. 1.
    """
    x = points.double()
    chosen = [int((x - x.mean(0)).square().sum(1).argmin())]
    nearest = (x - x[chosen[0]]).square().sum(1)
    while len(chosen) < k:
        nearest[chosen[-1]] = -1.0  # duplicates of a chosen point have distance 0, not -1
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)


def k_means(points: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's k-means. points float [n,D] on CPU, k <= n.

    Returns (labels int64 [n], nearest int64 [k]: the real point nearest to each centre, distinct).
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # its threads add in any order, so several give other bytes
        fitted = KMeans(k, n_init=3, random_state=seed % 2**32).fit(points.double().numpy())
    centres = torch.from_numpy(fitted.cluster_centers_)
    distance = torch.cdist(centres, points.double())
    chosen: list[int] = []
    for row in distance:
        row[chosen] = float("inf")
        chosen.append(int(row.argmin()))
    return torch.from_numpy(fitted.labels_).long(), torch.tensor(chosen)
