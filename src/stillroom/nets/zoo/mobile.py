"""MobileNetV2 of ImageNet, with torchvision's keys, and at half width of small images.

Source: Sandler et al. 2018 (arXiv:1801.04381). The small form is that of EDC (arXiv:2404.13733;
spec/decoupled.md 2.1): every width halved but the last, no stride in the second stage, ReLU in
place of ReLU6, a first 1x1 convolution even where nothing is widened, no dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from stillroom.nets.zoo.convnet import FeatureNet, check_halvings, conv_bn, he_normal
from stillroom.nets.zoo.names import Spec

Row = tuple[int, int, int, int]  # of a stage: expansion, width, blocks, stride of the first
_IMAGENET: tuple[Row, ...] = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
_SMALL: tuple[Row, ...] = (
    (1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2),
    (6, 160, 1, 1),
)  # fmt: skip
LAST = 1280


class InvertedResidual(nn.Module):
    """Widen, convolve depthwise, narrow; a shortcut where the shape stays.

    [B,I,H,W] -> [B,O,H',W']. `widen`: whether the first 1x1 convolution is there; without it,
    `expansion` is 1.
    """

    def __init__(
        self,
        wide: int,
        width: int,
        stride: int,
        expansion: int,
        act: Callable[[], nn.Module],
        widen: bool,
    ) -> None:
        super().__init__()
        hidden = wide * expansion
        first = [nn.Sequential(*conv_bn(wide, hidden, 1, act=act))] if widen else []
        self.conv = nn.Sequential(
            *first,
            nn.Sequential(*conv_bn(hidden, hidden, 3, stride, groups=hidden, act=act)),
            *conv_bn(hidden, width, 1, act=None),
        )
        self.shortcut = stride == 1 and wide == width

    def forward(self, x: Tensor) -> Tensor:
        """float [B,I,H,W] -> [B,O,H',W']."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


def mobilenet_v2(spec: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return torchvision's MobileNetV2, with dropout 0.2 before its last layer; features [B,1280].

    Raises: StillroomError below 17 px.
    """
    check_halvings(5, spec.text, size)
    features = _features(channels, 32, _IMAGENET, nn.ReLU6, always=False)
    return _initialised(
        FeatureNet(features, nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, classes)))
    )


def mobilenetv2_half(spec: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return EDC's MobileNetV2 of half width; features [B,1280].

    Global pooling follows the map's side: there it is fixed to 2x2, the side at 32 px, but for
    Tiny-ImageNet.

    Raises: StillroomError below 9 px.
    """
    check_halvings(4, spec.text, size)
    features = _features(channels, 16, _SMALL, nn.ReLU, always=True)
    return _initialised(FeatureNet(features, nn.Linear(LAST, classes)))


def _features(
    channels: int, stem: int, rows: Sequence[Row], act: Callable[[], nn.Module], always: bool
) -> nn.Sequential:
    """Stem, blocks, a wide 1x1 convolution, global pooling; `always`: every block widens first."""
    layers: list[nn.Module] = [nn.Sequential(*conv_bn(channels, stem, 3, 2, act=act))]
    wide = stem
    for expansion, width, blocks, first in rows:
        for stride in (first, *(1,) * (blocks - 1)):
            widen = always or expansion > 1
            layers.append(InvertedResidual(wide, width, stride, expansion, act, widen))
            wide = width
    layers.append(nn.Sequential(*conv_bn(wide, LAST, 1, act=act)))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _initialised(net: FeatureNet) -> FeatureNet:
    """Both forms draw their weights alike."""
    he_normal(net)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
    return net
