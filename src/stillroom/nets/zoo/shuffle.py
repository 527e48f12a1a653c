"""ShuffleNetV2 0.5 of ImageNet, with torchvision's keys, and with the stem of small images.

Source: Ma et al. 2018 (arXiv:1807.11164). The small form is that of EDC (arXiv:2404.13733;
spec/decoupled.md 2.1): a 1x1 stem without stride and no max pooling; all that follows is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.nets.zoo.convnet import check_halvings, conv_bn
from stillroom.nets.zoo.names import Spec

_STAGES = ((48, 4), (96, 8), (192, 4))  # width and units
LAST = 1024


class Unit(nn.Module):
    """Two branches side by side, their channels interleaved. [B,I,H,W] -> [B,O,H',W'].

    With stride 2 both see the whole input; else `branch1` is the first half of the channels as it
    is, and `branch2` sees the second.
    """

    def __init__(self, wide: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.split = stride == 1
        self.branch1 = nn.Sequential()
        if not self.split:
            self.branch1 = nn.Sequential(
                *conv_bn(wide, wide, 3, stride, groups=wide, act=None), *conv_bn(wide, half, 1)
            )
        self.branch2 = nn.Sequential(
            *conv_bn(half if self.split else wide, half, 1),
            *conv_bn(half, half, 3, stride, groups=half, act=None),
            *conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """float [B,I,H,W] -> [B,O,H',W']."""
        left, right = x.chunk(2, dim=1) if self.split else (x, x)
        out: Tensor = torch.cat((self.branch1(left), self.branch2(right)), dim=1)
        # channel i of the left half and channel i of the right become neighbours
        mixed: Tensor = out.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return mixed


class ShuffleNet(nn.Module):
    """Stem, pooling if any, three stages, a wide 1x1 convolution, global pooling, `fc`.

    Keys conv1.0, stage2.0.branch1.0, ..., stage4.3.branch2.6, conv5.0, fc.
    """

    def __init__(self, stem: nn.Sequential, maxpool: nn.Module | None, classes: int) -> None:
        super().__init__()
        self.conv1 = stem
        self.maxpool = maxpool
        stages = []
        wide = 24
        for width, units in _STAGES:
            rest = [Unit(width, width, 1) for _ in range(units - 1)]
            stages.append(nn.Sequential(Unit(wide, width, 2), *rest))
            wide = width
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = nn.Sequential(*conv_bn(wide, LAST, 1))
        self.fc = nn.Linear(LAST, classes)

    def features(self, x: Tensor) -> Tensor:
        """float [B,ch,H,W] -> features [B,1024]."""
        x = self.conv1(x)
        if self.maxpool is not None:
            x = self.maxpool(x)
        out: Tensor = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return out.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """float [B,ch,H,W] -> logits [B,C]."""
        logits: Tensor = self.fc(self.features(x))
        return logits


def shufflenet_v2_x0_5(spec: Spec, classes: int, channels: int, size: int) -> ShuffleNet:
    """Return torchvision's ShuffleNetV2 0.5; features [B,1024].

    Raises: StillroomError below 17 px.
    """
    check_halvings(5, spec.text, size)
    stem = nn.Sequential(*conv_bn(channels, 24, 3, 2))
    return ShuffleNet(stem, nn.MaxPool2d(3, 2, padding=1), classes)


def shufflenetv2_half(spec: Spec, classes: int, channels: int, size: int) -> ShuffleNet:
    """Return EDC's ShuffleNetV2 0.5 of small images; features [B,1024].

    Raises: StillroomError below 5 px.
    """
    check_halvings(3, spec.text, size)
    return ShuffleNet(nn.Sequential(*conv_bn(channels, 24, 1)), None, classes)
