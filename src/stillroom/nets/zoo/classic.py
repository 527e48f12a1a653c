"""MLP, LeNet, AlexNet and VGG-11 in the small-image form of the matching papers; a large AlexNet.

Source: VICO-UoE/DatasetCondensation, spec section 2.2. Deviations, all of them where the
reference fails: heads follow the image size (there they are fixed to 28 and 32 px); MLP and LeNet
have features (128 and 84; there they have no `embed`). The large one is that of
ImageNet, with torchvision's keys.
"""

from __future__ import annotations

from torch import nn

from stillroom.nets.zoo.convnet import FeatureNet, after, check_side, grown, norm_layer
from stillroom.nets.zoo.names import Spec

_VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # 0: max pooling


def mlp(_: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return two hidden layers of 128 with ReLU; features [B,128]."""
    features = nn.Sequential(
        nn.Flatten(), nn.Linear(channels * size * size, 128), nn.ReLU(), nn.Linear(128, 128),
        nn.ReLU(),
    )  # fmt: skip
    return FeatureNet(features, nn.Linear(128, classes))


def lenet(spec: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return LeNet-5 with ReLU and max pooling; features [B,84].

    Raises: StillroomError below 16 px.
    """
    padding = grown(size, 0, 2)  # here 28 px stay 28, the map that 32 px reach without padding
    side = after(after(size, 5, padding) // 2, 5, 0) // 2
    side = check_side(side, spec.text, size)
    features = nn.Sequential(
        nn.Conv2d(channels, 6, kernel_size=5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
    )  # fmt: skip
    return FeatureNet(features, nn.Linear(84, classes))


def alexnet(spec: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return the five-convolution AlexNet of small images; features [B, 192 * side * side].

    A norm follows each convolution if the name has one (-bn); 3072 features at 32 px.

    Raises: StillroomError below 8 px.
    """
    layers: list[nn.Module] = []
    side, wide = size, channels
    plan = ((128, 5, grown(size, 2, 4), True), (192, 5, 2, True), (256, 3, 1, False),
            (192, 3, 1, False), (192, 3, 1, True))  # fmt: skip
    for width, kernel, padding, pooled in plan:
        side = check_side(after(side, kernel, padding), spec.text, size)
        layers.append(nn.Conv2d(wide, width, kernel_size=kernel, padding=padding))
        layers += _norm(spec.norm, width, side)
        layers.append(nn.ReLU())
        if pooled:
            layers.append(nn.MaxPool2d(2))
            side = check_side(side // 2, spec.text, size)
        wide = width
    features = nn.Sequential(*layers, nn.Flatten())
    return FeatureNet(features, nn.Linear(wide * side * side, classes))


def vgg11(spec: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return VGG-11 with global average pooling and one linear layer; features [B,512].

    The pooling is the identity at 32 px, where the last map is 1x1; the reference has none and so
    works at 32 px only.

    Raises: StillroomError below 32 px (28 px grow to 32).
    """
    layers: list[nn.Module] = []
    side, wide = size, channels
    for index, width in enumerate(_VGG11):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            side = check_side(side // 2, spec.text, size)
            continue
        padding = grown(size, 1, 3) if index == 0 else 1
        side = after(side, 3, padding)
        layers.append(nn.Conv2d(wide, width, kernel_size=3, padding=padding))
        layers += _norm(spec.norm, width, side)
        layers.append(nn.ReLU())
        wide = width
    features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FeatureNet(features, nn.Linear(wide, classes))


def imagenet_alexnet(spec: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return AlexNet of ImageNet with torchvision's keys; features [B,9216], a map of 6x6.

    The head is three layers with dropout 0.5 before the first two: `features` is a part of its
    keys, so what is behind it is the head.
    Source: Krizhevsky 2014 (arXiv:1404.5997).

    Raises: StillroomError below 63 px.
    """
    side = after(size, 11, 2, stride=4)
    for _ in range(3):
        side = check_side(after(side, 3, 0, stride=2), spec.text, size)
    features = nn.Sequential(
        nn.Conv2d(channels, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(6), nn.Flatten(),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes),
    )  # fmt: skip
    return FeatureNet(features, classifier)


def _norm(kind: str, channels: int, side: int) -> list[nn.Module]:
    return [] if kind == "nn" else [norm_layer(kind, channels, side)]
