"""Class activation maps: where a network sees the class of an image.

Grad-CAM: Selvaraju et al. 2017, arXiv:1610.02391; Smooth Grad-CAM++: Omeiza et al. 2019,
arXiv:1908.01224, as EDF's released code takes it from a library (specification of trajectory
matching, 5.2). All of it on the device; nothing here is differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Ensemble
from stillroom.rng import rng

Cam = Literal["grad-cam", "smooth-grad-cam++"]
AT_ONCE = 64  # images that are shown to the network together
SAMPLES, NOISE = 4, 0.3  # of Smooth Grad-CAM++: noisy passes, and their deviation
EPS = 1e-8  # added to a divisor of Smooth Grad-CAM++
FINE = 4  # places a side from which on a map tells where something is, as in EDF's 128-pixel images


def activation_maps(
    nets: Ensemble,
    layer: str,
    images: Tensor,
    of_class: Tensor,
    cam: Cam = "grad-cam",
    key: int = 0,
) -> Tensor:
    """Maps [N,H,W] in [0, 1], of the size of the images [N,ch,H,W], for a class of each int64 [N].

    `layer` is a module of network 0 by name, whose output is a map [N,C,h,w]; `key` keys the noise
    of the smooth variant. Where a map is constant it is 0.
    Raises: StillroomError if there is no such layer.
    """
    raw = (
        _raw(nets, layer, images, of_class)[2]
        if cam == "grad-cam"
        else _smooth(nets, layer, images, of_class, key)
    )
    return resized(normalised(raw), images.shape[-1])


def deepest(nets: Ensemble) -> str:
    """The module that is called last among those whose output is a map of at least 4 x 4.

    Small images leave the last layers of a network of stride 32 with 2 x 2 places or one. Where no
    map is as fine, it is the last of more than one place.
    Raises: StillroomError if there is none.
    """
    found = deepest_map(nets)
    if found is None:
        raise StillroomError(f"arch={nets.nets.arch.name} has no layer that is a map; name another")
    return found


def deepest_map(nets: Ensemble) -> str | None:
    """The same; None if there is none."""
    found = _map_sides(nets)
    fine = [name for name, side in found if side >= FINE] or [name for name, _ in found]
    return fine[-1] if fine else None


def map_layers(nets: Ensemble) -> list[str]:
    """The modules whose output is a map of more than one place, in the order of their calls."""
    return [name for name, _ in _map_sides(nets)]


def _map_sides(nets: Ensemble) -> list[tuple[str, int]]:
    """The same, with the places along the shorter side of each map."""
    found: list[tuple[str, int]] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == 4 and min(out.shape[-2:]) > 1:
                found.append((name, min(out.shape[-2:])))

        return hook

    skeleton = nets.nets.skeleton
    hooks = [m.register_forward_hook(look(n)) for n, m in skeleton.named_modules() if n]
    try:
        nets.observed(nets.nets.zeros(1), {})
    finally:
        for one in hooks:
            one.remove()
    return found


def normalised(raw: Tensor) -> Tensor:
    """Every map [N,h,w] stretched to [0, 1]; a constant one is 0."""
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    width = high - low
    return torch.where(width > 0, (raw - low) / width.clamp_min(torch.finfo(raw.dtype).tiny), 0.0)


def resized(maps: Tensor, size: int) -> Tensor:
    """Maps [N,h,w], bilinear to [N,size,size]."""
    shape = (size, size)
    return F.interpolate(maps.unsqueeze(1), shape, mode="bilinear", align_corners=False).squeeze(1)


def slopes(nets: Ensemble, layer: str, images: Tensor, of_class: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output A [N,C,h,w], and the slopes in it of each image's logit of its class.

    Some images at a time, whose graph is what memory holds.
    """
    parts = [
        _slopes(nets, layer, images[i : i + AT_ONCE], of_class[i : i + AT_ONCE])
        for i in range(0, len(images), AT_ONCE)
    ]
    values, found = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(found)


def _slopes(nets: Ensemble, layer: str, images: Tensor, of_class: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        # Of the input: every parameter may be frozen, and the graph must begin somewhere.
        logits, seen = nets.observed(
            images.detach().requires_grad_(), {layer: lambda out: out}, output=True
        )
        chosen = logits.gather(1, of_class.view(-1, 1)).sum()
        (found,) = torch.autograd.grad(chosen, seen[layer])
    return seen[layer].detach(), found


def _raw(
    nets: Ensemble, layer: str, images: Tensor, of_class: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Grad-CAM before it is stretched: A, the weight [N,C] of every channel, the map [N,h,w]."""
    activation, slope = slopes(nets, layer, images, of_class)
    weights = slope.mean((2, 3))
    return activation, weights, (weights[:, :, None, None] * activation).sum(1).relu()


def _smooth(nets: Ensemble, layer: str, images: Tensor, of_class: Tensor, key: int) -> Tensor:
    """Smooth Grad-CAM++ before it is stretched [N,h,w].

    As released, the slopes and the activation that make the map are those of the last noisy pass.
    """
    clean, _ = slopes(nets, layer, images, of_class)
    squares, cubes = torch.zeros_like(clean), torch.zeros_like(clean)
    activation = slope = clean
    for sample in range(SAMPLES):
        noise = torch.randn(images.shape, generator=rng(key, "smooth", sample))
        noisy = images + NOISE * noise.to(images.device, images.dtype)
        activation, slope = slopes(nets, layer, noisy, of_class)
        squares += slope.square() / SAMPLES
        cubes += slope**3 / SAMPLES
    below = 2 * squares + (cubes * clean).sum((2, 3), keepdim=True) + EPS
    weights = (squares / below * slope.relu()).sum((2, 3))
    return (weights[:, :, None, None] * activation).sum(1).relu()
