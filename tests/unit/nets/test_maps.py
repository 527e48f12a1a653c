"""Which layer of a network is asked where it looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.maps import deepest, deepest_map, map_layers
from stillroom.nets.zoo import resolve
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
