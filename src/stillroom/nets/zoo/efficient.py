"""EfficientNet-B0 of ImageNet, with torchvision's keys.

Source: Tan and Le 2019 (arXiv:1905.11946), table 1; stochastic depth: Huang et al. 2016
(arXiv:1603.09382), its rates as in torchvision.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.nets.zoo.convnet import FeatureNet, check_halvings, conv_bn, he_normal
from stillroom.nets.zoo.names import Spec

_ROWS = (  # of a stage: expansion, kernel, stride of the first block, width, blocks
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip
LAST = 1280
DROPPED = 0.2  # rate of the classifier's dropout, and that which stochastic depth would end at


class StochasticDepth(nn.Module):
    """In train mode, drop a branch for each image with probability `rate`; scale what is kept.

    Randomness: one draw an image from the global generator, which trainers key.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """float [B,C,H,W] -> the same shape."""
        if not self.training:
            return x
        # Dropout of ones is 0 or 1 / (1 - rate); unlike a draw in place, vmap knows it.
        return x * F.dropout(x.new_ones((len(x), 1, 1, 1)), self.rate)


class SqueezeExcitation(nn.Module):
    """Scale the channels of [B,C,H,W] by what their means over the pixels say."""

    def __init__(self, wide: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(wide, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, wide, 1)
        self.activation = nn.SiLU()
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """float [B,C,H,W] -> the same shape."""
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        y: Tensor = x * self.scale_activation(scale)
        return y


class MBConv(nn.Module):
    """Widen, convolve depthwise, squeeze and excite, narrow. [B,I,H,W] -> [B,O,H',W']."""

    def __init__(
        self, wide: int, width: int, kernel: int, stride: int, expansion: int, rate: float
    ) -> None:
        super().__init__()
        hidden = wide * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(nn.Sequential(*conv_bn(wide, hidden, 1, act=nn.SiLU)))
        layers += [
            nn.Sequential(*conv_bn(hidden, hidden, kernel, stride, groups=hidden, act=nn.SiLU)),
            SqueezeExcitation(hidden, max(1, wide // 4)),
            nn.Sequential(*conv_bn(hidden, width, 1, act=None)),
        ]
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(rate)
        self.shortcut = stride == 1 and wide == width

    def forward(self, x: Tensor) -> Tensor:
        """float [B,I,H,W] -> [B,O,H',W']."""
        out: Tensor = self.block(x)
        return x + self.stochastic_depth(out) if self.shortcut else out


def efficientnet_b0(spec: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return torchvision's EfficientNet-B0; features [B,1280].

    In train mode block i of 16 is dropped at the rate 0.2 * i / 16 (where it has a shortcut), and
    the last layer sees dropout 0.2.

    Raises: StillroomError below 17 px.
    """
    check_halvings(5, spec.text, size)
    layers: list[nn.Module] = [nn.Sequential(*conv_bn(channels, 32, 3, 2, act=nn.SiLU))]
    wide, index, total = 32, 0, sum(blocks for *_, blocks in _ROWS)
    for expansion, kernel, first, width, blocks in _ROWS:
        stage: list[nn.Module] = []
        for stride in (first, *(1,) * (blocks - 1)):
            rate = DROPPED * index / total
            stage.append(MBConv(wide, width, kernel, stride, expansion, rate))
            wide, index = width, index + 1
        layers.append(nn.Sequential(*stage))
    layers.append(nn.Sequential(*conv_bn(wide, LAST, 1, act=nn.SiLU)))
    features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(LAST, classes)
    net = FeatureNet(features, nn.Sequential(nn.Dropout(DROPPED), head))
    he_normal(net)
    nn.init.uniform_(head.weight, -1 / math.sqrt(classes), 1 / math.sqrt(classes))
    nn.init.zeros_(head.bias)
    return net
