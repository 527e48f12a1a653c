"""What the layers of a network are given: statistics of the inputs of convolutions and norms.

Source: G-VBSM (Shao et al. 2024, arXiv:2311.17950) and EDC (arXiv:2404.13733), spec of the
decoupled methods, section 2.3. Variances are biased everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["conv", "norm"]
Stats = dict[str, Tensor]  # "mean", "var" [C]; of convolutions also "patch_mean", "patch_var" [P]

SMALL = 64  # px: up to here patches of 4 x 4, above it 16 x 16


@dataclass(frozen=True)
class Layer:
    """A module whose input is looked at."""

    name: str
    kind: Kind


def layers(net: nn.Module) -> list[Layer]:
    """Every Conv2d and BatchNorm2d, in module order; a first convolution precedes its norm."""
    found: list[Layer] = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            found.append(Layer(name, "conv"))
        elif isinstance(module, nn.BatchNorm2d):
            found.append(Layer(name, "norm"))
    return found


def patch_side(size: int) -> int:
    """The side of a patch by that of the network's input: 4 up to 64 px, else 16."""
    return 4 if size <= SMALL else 16


def of_batch(x: Tensor, patch: int | None) -> Stats:
    """Statistics of a batch x [B,C,H,W], differentiable: channels [C], cells [P] if `patch`.

    Cell p = u * V + v holds `patch` x `patch` pixels of all images and channels; see `cells`.
    """
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    found = {"mean": mean, "var": var}
    if patch is not None:
        var, mean = torch.var_mean(cells(x, patch), dim=(0, 1, 3, 5), correction=0)
        found |= {"patch_mean": mean.flatten(), "patch_var": var.flatten()}
    return found


def of_images(x: Tensor, patch: int | None) -> Stats:
    """The same of every image by itself: channels [B,C], cells [B,P]."""
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    found = {"mean": mean, "var": var}
    if patch is not None:
        var, mean = torch.var_mean(cells(x, patch), dim=(1, 3, 5), correction=0)
        found |= {"patch_mean": mean.flatten(1), "patch_var": var.flatten(1)}
    return found


def cells(x: Tensor, patch: int) -> Tensor:
    """x [B,C,H,W] -> [B,C,U,patch,V,patch], resized up to multiples of `patch` first.

    Bilinear, with pixel centres as they are (align_corners False), as in the reference.
    """
    height, width = (-(-side // patch) * patch for side in x.shape[2:])
    if (height, width) != x.shape[2:]:
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    batch, channels = x.shape[:2]
    return x.reshape(batch, channels, height // patch, patch, width // patch, patch)


class Sums:
    """Running sums of image statistics, by class; batches may come in any order and size.

    Sums of every image's means, variances and squared means give all of it exactly: the variance of
    a union is the mean of the variances plus the variance of the means. `batch_var` is the one
    statistic that depends on the batches: the mean of their variances, which the released code
    takes for the variance of the data. Everything in float64.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.tensors: Stats = {}

    def add(self, x: Tensor, labels: Tensor, patch: int | None) -> None:
        """Count a batch x [B,C,H,W] with labels int64 [B]."""
        mine = {name: value.double() for name, value in of_images(x, patch).items()}
        for name in [n for n in mine if n.endswith("mean")]:
            mine[name.removesuffix("mean") + "square"] = mine[name].square()
        for name, value in mine.items():
            self._sum(name, labels, value)
        self._sum("count", labels, torch.ones(len(x), 1, device=x.device, dtype=torch.float64))
        for name, value in of_batch(x, patch).items():
            if name.endswith("var"):
                self._plus(f"batch_{name}", value.double() * len(x))

    def merge(self, tensors: Stats) -> None:
        """Add the sums of another part of the data."""
        for name, value in tensors.items():
            self._plus(name, value)

    def statistics(self, by_class: bool) -> Stats:
        """Of all images "mean", "var", "batch_var"; of every class "class.mean" [K,C], "class.var",
        "class.within", the mean of the variances inside an image; the same for patches.
        """
        count = self.tensors["count"]
        found: Stats = {}
        for prefix in ("", "patch_"):
            if f"{prefix}mean" not in self.tensors:
                continue
            mean, var, square = (self.tensors[prefix + n] for n in ("mean", "var", "square"))
            n = count.sum()
            whole = mean.sum(0) / n
            found[f"{prefix}mean"] = whole
            found[f"{prefix}var"] = (var + square).sum(0) / n - whole.square()
            found[f"batch_{prefix}var"] = self.tensors[f"batch_{prefix}var"] / n
            if by_class:
                each = mean / count
                found[f"class.{prefix}mean"] = each
                found[f"class.{prefix}var"] = (var + square) / count - each.square()
                found[f"class.{prefix}within"] = var / count
        return {k: v.clamp_min(0) if not k.endswith("mean") else v for k, v in found.items()}

    def _sum(self, name: str, labels: Tensor, value: Tensor) -> None:
        if name not in self.tensors:
            shape = (self.classes, value.shape[1])
            self.tensors[name] = torch.zeros(shape, device=value.device, dtype=torch.float64)
        self.tensors[name].index_add_(0, labels, value)

    def _plus(self, name: str, value: Tensor) -> None:
        self.tensors[name] = value if name not in self.tensors else self.tensors[name] + value
