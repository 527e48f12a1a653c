"""EDF's Discriminative Area Enhancement: pixels where the class is seen move more.

Wang et al. 2025, arXiv:2410.17193; specification of trajectory matching, 5.2.
"""

from __future__ import annotations

from torch import Tensor


def emphasis(maps: Tensor, beta: float, threshold: float | None) -> Tensor:
    """Factors [N,1,H,W] of the pixel gradients: beta + the map where it is active, 1 elsewhere.

    maps [N,H,W] in [0, 1]. Active is at least `threshold`, or the map's own mean where that is
    None. A constant map is active everywhere, as far as its mean is not rounded above it.
    """
    bound = maps.mean((1, 2), keepdim=True) if threshold is None else threshold
    return (beta + maps).where(maps >= bound, maps.new_ones(())).unsqueeze(1)
