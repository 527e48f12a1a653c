"""WRN-16-2: a wide residual network of pre-activation blocks for small images.

Source: Zagoruyko and Komodakis 2016 (arXiv:1605.07146), depth 16 and width 2, in the form of EDC
(arXiv:2404.13733; spec/decoupled.md 2.1): where a block changes the width, its shortcut leaves
after the block's first norm and ReLU.
"""

from __future__ import annotations

from torch import Tensor, nn

from stillroom.nets.zoo.convnet import check_halvings, he_normal
from stillroom.nets.zoo.names import Spec


class Block(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, and a shortcut. [B,I,H,W] -> [B,O,H',W']."""

    def __init__(self, wide: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv1 = nn.Conv2d(wide, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if wide != width:
            self.shortcut = nn.Conv2d(wide, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float [B,I,H,W] -> [B,O,H',W']."""
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        y: Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return y


class WideResNet(nn.Module):
    """Stem, three stages of two blocks, norm, global pooling, `fc`; features [B,128]."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(Block(16, 32, 1), Block(32, 32, 1))
        self.layer2 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.layer3 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.bn = nn.BatchNorm2d(128)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, classes)

    def features(self, x: Tensor) -> Tensor:
        """float [B,ch,H,W] -> features [B,128]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        pooled: Tensor = self.avgpool(self.relu(self.bn(x)))
        return pooled.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """float [B,ch,H,W] -> logits [B,C]."""
        logits: Tensor = self.fc(self.features(x))
        return logits


def wrn16_2(spec: Spec, classes: int, channels: int, size: int) -> WideResNet:
    """Return WRN-16-2 without dropout, initialised as EDC does; features [B,128].

    Raises: StillroomError below 3 px.
    """
    check_halvings(2, spec.text, size)
    net = WideResNet(classes, channels)
    he_normal(net)
    nn.init.zeros_(net.fc.bias)
    return net
