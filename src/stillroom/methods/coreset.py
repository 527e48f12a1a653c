"""Subset selection over points of one class: herding, greedy k-center, k-means."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from stillroom.files import sha256


def distinct(images: Tensor) -> Tensor:
    """Number the distinct rows of [n,...]: int64 [n] from 0, the same number for equal rows."""
    seen: dict[str, int] = {}
    rows = images.detach().cpu().contiguous().numpy()
    return torch.tensor([seen.setdefault(sha256(row.tobytes()), len(seen)) for row in rows])


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


def k_means(points: Tensor, k: int, seed: int, same: Tensor) -> tuple[Tensor, Tensor]:
    """scikit-learn's k-means. points float [n,D] on CPU; same int64 [n] as `distinct` gives it,
    with at least k numbers.

    Returns (labels int64 [n], nearest int64 [k]: the real point nearest to each centre, no two of
    them the same). Where points lie too close together, clusters may be empty.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # Its threads add in any order, so several give other bytes.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of empty clusters
        fitted = KMeans(k, n_init=3, random_state=seed % 2**32).fit(points.double().numpy())
    centres = torch.from_numpy(fitted.cluster_centers_)
    distance = torch.cdist(centres, points.double())
    chosen: list[int] = []
    taken = torch.zeros(len(points), dtype=torch.bool)
    for row in distance:
        chosen.append(int(row.masked_fill(taken, float("inf")).argmin()))
        taken |= same == same[chosen[-1]]
    return torch.from_numpy(fitted.labels_).long(), torch.tensor(chosen)
