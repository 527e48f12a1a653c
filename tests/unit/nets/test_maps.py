"""Which layer of a network is asked where it looks, and the map by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.artefacts.opened import nets_for
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.maps import (
    EPS,
    NOISE,
    SAMPLES,
    activation_maps,
    deepest,
    deepest_map,
    map_layers,
)
from stillroom.nets.zoo import resolve
from stillroom.rng import rng
from stillroom.runtime import Runtime


def net(arch: Any, size: int) -> Ensemble:
    rt = Runtime(device=torch.device("cpu"), threads=1)
    return Nets(resolve(arch), 3, 3, size, rt).make(1, 0, "net")


class Halving(nn.Module):
    """Maps of half, a quarter, an eighth and a sixteenth of the side, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 2, 2), nn.Conv2d(2, 2, 2, 2)
        self.third, self.fourth = nn.Conv2d(2, 2, 2, 2), nn.Conv2d(2, 2, 2, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fourth(self.third(self.second(self.first(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("size", "there", "chosen"),
    [
        (64, ["first", "second", "third", "fourth"], "fourth"),
        (32, ["first", "second", "third", "fourth"], "third"),
        (16, ["first", "second", "third"], "second"),
    ],
)
def test_the_deepest_map_that_is_fine_enough(size: int, there: list[str], chosen: str) -> None:
    nets = net(lambda num_classes, **_: Halving(), size)
    assert map_layers(nets) == there
    assert deepest(nets) == chosen


@pytest.mark.parametrize(
    ("size", "chosen"), [(128, "layer4"), (64, "layer3"), (32, "layer2"), (17, "layer1")]
)
def test_a_network_of_stride_32_is_asked_where_its_map_has_four_places_a_side(
    size: int, chosen: str
) -> None:
    assert deepest(net("imagenet/resnet18", size)) == chosen


def test_without_a_fine_map_the_last_coarse_one() -> None:
    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only, self.head = nn.Conv2d(3, 2, 3, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.only(x).mean((2, 3)))

    assert deepest(net(lambda num_classes, **_: Coarse(), 9)) == "only"


def test_a_network_without_maps_has_none() -> None:
    nets = net("mlp", 8)
    assert deepest_map(nets) is None
    with pytest.raises(StillroomError, match="has no layer that is a map"):
        deepest(nets)


def noisy(images: Tensor, key: int) -> Iterator[Tensor]:
    for sample in range(SAMPLES):
        yield images + NOISE * torch.randn(images.shape, generator=rng(key, "smooth", sample))


def test_smooth_grad_cam_plus_plus_by_hand(bench: Benchmark) -> None:
    """Image by image and channel by channel, as the specification has it (5.2)."""
    rt = Runtime(device=torch.device("cpu"), threads=1)
    nets = nets_for(resolve("convnet2-w4"), bench, rt).make(1, 3, "any")
    images = torch.randn((3, 3, 8, 8), generator=rng(0, "images"))
    of_class, key, layer = torch.tensor([0, 1, 1]), 11, deepest(nets)
    found = activation_maps(nets, layer, images, of_class, "smooth-grad-cam++", key)
    net = nets.nets.build(0, "shape").eval()
    net.load_state_dict({k: v for part in nets.member(0) for k, v in part.items()})
    module, held = dict(net.named_modules())[layer], list[Tensor]()
    module.register_forward_hook(lambda _, __, out: held.append(out))

    def slope(image: Tensor, c: int) -> tuple[Tensor, Tensor]:
        held.clear()
        score = net(image[None].requires_grad_())[0, c]
        (gradient,) = torch.autograd.grad(score, held[0])
        return held[0][0].detach(), gradient[0]

    for i, c in enumerate(of_class.tolist()):
        clean, _ = slope(images[i], c)
        passes = [slope(some[i], c) for some in noisy(images, key)]
        wanted = torch.zeros(clean.shape[1:])
        for k in range(len(clean)):
            second = torch.stack([g[k] ** 2 for _, g in passes]).mean(0)
            third = torch.stack([g[k] ** 3 for _, g in passes]).mean(0)
            alpha = second / (2 * second + (third * clean[k]).sum() + EPS)
            activation, gradient = passes[-1]
            wanted += (alpha * gradient[k].clamp_min(0)).sum() * activation[k]
        wanted = wanted.clamp_min(0)
        wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min())
        wanted = torch.nn.functional.interpolate(wanted[None, None], (8, 8), mode="bilinear")[0, 0]
        assert wanted.std() > 0.05
        torch.testing.assert_close(found[i], wanted, rtol=1e-4, atol=1e-4)
