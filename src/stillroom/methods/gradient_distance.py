"""Distances between two weight gradients: what gradient matching minimises.

Every function takes two dicts {parameter name: gradient} with equal keys and shapes, the synthetic
one first, and returns a scalar. They are module-level functions, so that compiled code is kept by
function (`Ensemble.match`). Zhao, Mopuri and Bilen 2021, "Dataset Condensation with Gradient
Matching", arXiv:2006.05929, eq. 10 and the code that goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Gradients = Mapping[str, Tensor]
# Added to the product of norms, as in the reference code. Gradients of a first layer are about
# 0.01 a row, so that even D(g, g) is not zero; at a row of zeros the slope is finite.
ADDED = 1e-6


def layerwise(made: Gradients, real: Gradients) -> Tensor:
    """Sum over tensors and their rows of 1 - cosine.

    A row is an output unit: O rows of a convolution [O,I,kh,kw] or a linear layer [O,I], C rows of
    a layer norm [C,H,W]. Tensors of rank 1 (biases, scales and shifts) are left out, as the
    reference leaves them out: a bias before instance norm has a gradient of rounding errors.
    """
    terms = []
    for name, r in real.items():
        if r.ndim > 1:
            rows, other = made[name].flatten(1), r.flatten(1)
            norms = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(other, dim=1)
            terms.append((1 - (rows * other).sum(1) / (norms + ADDED)).sum())
    return torch.stack(terms).sum()


def squared(made: Gradients, real: Gradients) -> Tensor:
    """Squared Euclidean distance of all gradients, biases included ("mse" in the reference)."""
    return torch.stack([(made[name] - r).square().sum() for name, r in real.items()]).sum()


def cosine(made: Gradients, real: Gradients) -> Tensor:
    """1 - cosine of all gradients as one vector."""
    a = torch.cat([made[name].flatten() for name in real])
    b = torch.cat([r.flatten() for r in real.values()])
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    apart: Tensor = 1 - (a * b).sum() / (norms + ADDED)
    return apart


DISTANCES = {"layerwise": layerwise, "mse": squared, "cos": cosine}
