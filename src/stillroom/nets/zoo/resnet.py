"""ResNet-18 of ImageNet, and with the stem of small images; keys named as torchvision's.

Source: He et al. 2016 (arXiv:1512.03385); the small form as in VICO-UoE/DatasetCondensation, spec
section 2.2.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from stillroom.nets.zoo.convnet import after, check_halvings, check_side, he_normal, norm_layer
from stillroom.nets.zoo.names import Spec

_WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut. [B,I,H,W] -> [B,O,H/stride,W/stride].

    With `pooled`, a stride is replaced by 2x2 average pooling: on the main path after conv1, norm
    and ReLU, on the shortcut between its convolution and its norm (the AP variants).
    """

    def __init__(self, wide: int, width: int, stride: int, norm: str, pooled: bool) -> None:
        super().__init__()
        step = 1 if pooled else stride
        shrink = nn.AvgPool2d(2) if pooled and stride == 2 else nn.Identity()
        self.conv1 = nn.Conv2d(wide, width, 3, stride=step, padding=1, bias=False)
        self.bn1 = norm_layer(norm, width, 0)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm_layer(norm, width, 0)
        self.relu = nn.ReLU()
        self.shrink = shrink
        self.downsample: nn.Module | None = None
        if stride != 1 or wide != width:
            # named, not numbered: the pooling between them must not move the norm's key from 1
            self.downsample = nn.Sequential(
                OrderedDict[str, nn.Module](
                    [
                        ("0", nn.Conv2d(wide, width, 1, stride=step, bias=False)),
                        ("pool", nn.AvgPool2d(2) if pooled and stride == 2 else nn.Identity()),
                        ("1", norm_layer(norm, width, 0)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """float [B,I,H,W] -> [B,O,H',W']."""
        out = self.shrink(self.relu(self.bn1(self.conv1(x))))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(out + shortcut)
        return y


class ResNet(nn.Module):
    """Stem, four stages of two blocks, `fc`; keys conv1, bn1, layer1.0.conv1, ..., fc.

    Instance norm keeps the key `bn1`: it is the norm's place, whatever the norm is. `maxpool`, if
    any, ends the stem. With the side of the last map, there is no global pooling before `fc`.
    """

    def __init__(
        self,
        stem: nn.Conv2d,
        maxpool: nn.Module | None,
        norm: str,
        pooled: bool,
        classes: int,
        side: int | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = stem
        self.bn1 = norm_layer(norm, 64, 0)
        self.relu = nn.ReLU()
        self.maxpool = maxpool
        self.layer1 = _stage(64, 64, 1, norm, pooled)
        self.layer2 = _stage(64, 128, 2, norm, pooled)
        self.layer3 = _stage(128, 256, 2, norm, pooled)
        self.layer4 = _stage(256, 512, 2, norm, pooled)
        self.avgpool = nn.AdaptiveAvgPool2d(1) if side is None else nn.Identity()
        self.fc = nn.Linear(512 if side is None else 512 * side * side, classes)

    def features(self, x: Tensor) -> Tensor:
        """float [B,ch,H,W] -> flat features [B,512], or [B, 512 * side * side] for AP."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = self.avgpool(x)
        return pooled.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """float [B,ch,H,W] -> logits [B,C]."""
        logits: Tensor = self.fc(self.features(x))
        return logits


def resnet18(spec: Spec, classes: int, channels: int, size: int) -> ResNet:
    """Return ResNet-18 with a 3x3 stem of stride 1; instance norm unless the name says -bn.

    Raises: StillroomError if images are below 9 px, or below 8 px for an AP variant with BatchNorm.
    """
    pooled = spec.pool == "ap"
    side = size
    for _ in _WIDTHS[1:]:
        side = side // 2 if pooled else after(side, 3, 1, stride=2)
        # A channel of one pixel has nothing to normalise over, alone in its image.
        check_side(side if spec.norm != "in" or side > 1 else 0, spec.text, size)
    stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    # The AP variants have no global pooling, as in the reference: 8192 features at 32 px,
    # 4608 at 28 px. The others pool what is there, which at 32 px is the reference's 4x4.
    return ResNet(stem, None, spec.norm, pooled, classes, side if pooled else None)


def imagenet_resnet18(spec: Spec, classes: int, channels: int, size: int) -> ResNet:
    """Return torchvision's ResNet-18; features [B,512].

    Raises: StillroomError below 17 px.
    """
    check_halvings(5, spec.text, size)
    stem = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    net = ResNet(stem, nn.MaxPool2d(3, 2, padding=1), "bn", False, classes)
    he_normal(net)
    return net


def _stage(wide: int, width: int, stride: int, norm: str, pooled: bool) -> nn.Sequential:
    return nn.Sequential(
        Block(wide, width, stride, norm, pooled), Block(width, width, 1, norm, pooled)
    )
