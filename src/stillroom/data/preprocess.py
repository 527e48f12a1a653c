"""Normalisation constants under their own names, fitted ones, and ZCA whitening."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data.source import ImageSource, row_blocks
from stillroom.errors import StillroomError, suggest
from stillroom.types import Preprocess, Zca

ZCA_EPS = 0.1
MIN_STD = 1e-6
MAX_ZCA_DIMENSIONS = 16384
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# The std of cifar10 and svhn is the mean of the images' own std, not that of all pixels: kept, so
# that numbers compare with the literature.
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": _IMAGENET,
    "tiny-imagenet": _IMAGENET,
}
PLAIN = {"half": (0.5, 0.5), "none": (0.0, 1.0)}
NAMES = ("auto", "fitted", *CONSTANTS, *PLAIN)


def choose(name: str, train: ImageSource, benchmark_default: str | None) -> Preprocess:
    """Return the normalisation called `name`.

    "auto" is the benchmark's own constants (`benchmark_default`), or "fitted" where it has none;
    "fitted" measures mean and std of `train`; "half" and "none" suit any number of channels.
    Raises: StillroomError for an unknown name, or constants of another number of channels.
    """
    channels = train.shape[0]
    if name == "auto":
        name = benchmark_default or "fitted"
    if name == "fitted":
        return fit(train)
    if name in PLAIN:
        mean, std = PLAIN[name]
        return Preprocess(name, (mean,) * channels, (std,) * channels)
    if name not in CONSTANTS:
        raise StillroomError(
            f"normalise={name[:40]!r} is not one of {', '.join(NAMES)}{suggest(name, NAMES)}"
        )
    means, stds = CONSTANTS[name]
    if len(means) != channels:
        raise StillroomError(
            f"normalise={name!r} has {len(means)} channel(s) but the images have {channels}; "
            "use --normalise fitted"
        )
    return Preprocess(name, means, stds)


def fit(train: ImageSource) -> Preprocess:
    """Mean and std of every channel over all pixels of `train`, in [0, 1].

    The sums are of integers and therefore exact: no order of blocks, machine or thread count
    changes them. A std below 1e-6 (a constant channel) becomes 1e-6.
    """
    channels, height, width = train.shape
    total, squares = [0] * channels, [0] * channels
    for rows in row_blocks(len(train)):
        block = train.take(rows).transpose(0, 1).flatten(1).long()
        total = [a + b for a, b in zip(total, block.sum(1).tolist(), strict=True)]
        squares = [a + b for a, b in zip(squares, block.square().sum(1).tolist(), strict=True)]
    n = len(train) * height * width
    mean = tuple(s / (255 * n) for s in total)
    std = tuple(
        max(MIN_STD, ((n * sq - s * s) / (n * n)) ** 0.5 / 255)
        for s, sq in zip(total, squares, strict=True)
    )
    return Preprocess("fitted", mean, std)


def whitened(train: ImageSource, zca: Zca) -> Preprocess:
    """The preprocessing under ZCA: raw pixels in [0, 1], no mean or std, then the whitening."""
    channels = train.shape[0]
    return Preprocess("none", (0.0,) * channels, (1.0,) * channels, zca)


def fit_zca(images_u8: Tensor, eps: float = ZCA_EPS) -> Zca:
    """Fit ZCA whitening on training images uint8 [N,ch,H,W], N >= 2, read as [0, 1].

    With the covariance S = X^T X / (N-1) = U L U^T of the centred rows, T = U (L + eps)^(-1/2) U^T.
    Everything is float64 until the result, float32 [D] and [D,D], D = ch*H*W.
    Raises: StillroomError for fewer than two images, or D over 16384.
    Source: specification of MTT and its successors; numerically the fit of kornia 0.7.
    """
    if len(images_u8) < 2:
        raise StillroomError(f"zca needs at least 2 training images, got {len(images_u8)}")
    flat = images_u8.flatten(1)
    if flat.shape[1] > MAX_ZCA_DIMENSIONS:
        raise StillroomError(
            f"zca of {flat.shape[1]} values an image needs a matrix of "
            f"{flat.shape[1] ** 2 * 8 / 2**30:.0f} GiB; lower --size to 64 or drop --zca"
        )
    sums = [flat[rows].long().sum(0) for rows in row_blocks(len(flat))]
    mean = torch.stack(sums).sum(0).double() / (255 * len(flat))
    covariance = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64, device=flat.device)
    for rows in row_blocks(len(flat)):
        centred = flat[rows].double().div_(255).sub_(mean)
        covariance.addmm_(centred.T, centred)
    covariance /= len(flat) - 1
    values, vectors = torch.linalg.eigh(covariance)
    scale = (values.clamp_min(0) + eps).rsqrt()  # rounding makes empty directions slightly negative
    transform = (vectors * scale) @ vectors.T
    return Zca(mean.float(), ((transform + transform.T) / 2).float())
