"""Distances between what layers are given by synthetic and by real images, and image priors.

Source: SRe2L (Yin et al. 2023, arXiv:2306.13092), G-VBSM (Shao et al. 2024, arXiv:2311.17950) and
EDC (Shao et al. 2024, arXiv:2404.13733); spec of the decoupled methods, sections 3.3 to 3.8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.nets.hooks import Stats

Memory = dict[str, Tensor | float]
GRAM_SIDE = 32  # px that images are pooled to before their Gram matrix is taken


def apart(mine: Stats, target: Stats) -> Tensor:
    """Sum over statistics of the Euclidean distance to `target`: neither squared nor divided.

    So a layer with more channels counts for more, as in the reference. Gradient: through `mine`;
    zero, not NaN, where a statistic is met exactly.
    """
    return torch.stack([torch.linalg.vector_norm(mine[n] - target[n]) for n in mine]).sum()


def smoothed(memory: Memory, name: str, mine: Stats, rate: float, corrected: bool) -> Stats:
    """The moving average of `mine` in value, with the gradient of `mine` itself.

    e <- rate * e + (1 - rate) * mine, kept in `memory` under `name`; returned is
    e + mine - stopgrad(mine). e starts at zero; `corrected` divides by 1 - rate^n after n updates,
    without which the first averages are too small (the released code: by a factor 0.2 at first).
    """
    if rate == 0:
        return mine
    count = float(memory.get(f"{name}.n", 0.0)) + 1
    memory[f"{name}.n"] = count
    found: Stats = {}
    for key, value in mine.items():
        now = value.detach()
        old = memory.get(f"{name}.{key}")
        average = (1 - rate) * now if old is None else rate * old + (1 - rate) * now
        assert isinstance(average, Tensor)
        memory[f"{name}.{key}"] = average
        shown = average / (1 - rate**count) if corrected else average
        found[key] = shown + value - now
    return found


def differences(x: Tensor) -> list[Tensor]:
    """Differences of neighbours in four directions, of images x [B,ch,H,W]."""
    return [
        x[:, :, :, :-1] - x[:, :, :, 1:],
        x[:, :, :-1] - x[:, :, 1:],
        x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
    ]


def total_variation(x: Tensor) -> Tensor:
    """Sum over four directions of the norm, over the whole batch, of neighbours' differences."""
    return torch.stack([torch.linalg.vector_norm(d) for d in differences(x)]).sum()


def image_norm(x: Tensor) -> Tensor:
    """Mean over images [B,ch,H,W] of their Euclidean norm."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.mean()


def spectrum(x: Tensor, of_class: Tensor, tau: float, scaled: bool) -> Tensor:
    """G-VBSM's term for variety: the Gram spectrum of every class, drawn towards a flatter one.

    For each class KL(softmax(l / tau), detached, against softmax(l)), l the eigenvalues of Z Z^T,
    Z the class's images pooled to 32 x 32 and flattened; zero for a single image.
    `scaled` divides the Gram matrix by its mean diagonal. Differs from the released code: there l
    is about 1e4 for real images, both softmaxes are one-hot, and the term is exactly zero.
    """
    flat = F.adaptive_avg_pool2d(x, GRAM_SIDE).flatten(1)
    terms = []
    for c in of_class.unique():
        mine = flat[of_class == c]
        gram = mine @ mine.T
        if scaled:
            gram = gram / gram.diagonal().mean().clamp_min(1e-12)
        values = torch.linalg.eigvalsh(gram)
        target = (values.detach() / tau).softmax(0)
        terms.append(F.kl_div(values.log_softmax(0), target, reduction="sum"))
    return torch.stack(terms).sum()


def flatness(logits: Tensor, averaged: Tensor, tau: float, released: bool) -> Tensor:
    """How far what a network says of images is from what it says of their moving average.

    logits, averaged [B,C]. KL(p || p_averaged) at temperature tau, mean over the batch (EDC, Eq.
    7); `released`: the other direction, and the mean over all B * C elements.
    """
    p, q = (logits / tau).log_softmax(1), (averaged / tau).log_softmax(1)
    if released:
        return F.kl_div(p, q, reduction="none", log_target=True).mean()
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def weighted(values: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The weighted sum of scalar terms; those of weight zero are left out."""
    return torch.stack([weight * value for weight, value in values if weight]).sum()
