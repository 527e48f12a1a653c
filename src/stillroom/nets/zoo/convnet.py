"""The ConvNet family of the matching papers, and the parts that its neighbours share.

Source: Gidaris and Komodakis 2018 (arXiv:1804.09458) as used by Zhao et al. 2021 (DC,
arXiv:2006.05929); variants as in VICO-UoE/DatasetCondensation, spec section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from stillroom.errors import StillroomError
from stillroom.nets.zoo.names import Spec, depth_for


class FeatureNet(nn.Module):
    """`classifier(features(x))`: a Sequential that ends in flat features, then the head.

    Shapes: x float [B,ch,H,W] (any memory format) -> features [B,D] -> logits [B,C].
    """

    def __init__(self, features: nn.Sequential, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """float [B,ch,H,W] -> logits [B,C]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def grown(size: int, normal: int, at_28: int) -> int:
    """Return the padding of the first convolution: `at_28` where the images are 28 px.

    28 px grow to 32, so that the poolings below meet the sizes that the network was made for.
    The reference decides by `channels == 1`, which is wrong for grey 32 px and for colour 28 px
    images (spec 9.2, trap 5); for MNIST and CIFAR the two rules agree.
    """
    return at_28 if size == 28 else normal


def after(side: int, kernel: int = 3, padding: int = 1, stride: int = 1) -> int:
    """Return the side of a feature map after a convolution or pooling, 0 if nothing is left."""
    return max(0, (side + 2 * padding - kernel) // stride + 1)


def check_side(side: int, name: str, size: int) -> int:
    """Return `side`; raise StillroomError if `size` was too small for the network `name`."""
    if side < 1:
        raise StillroomError(
            f"size={size} is too small for {name}; use '{_fits(size)}' or larger images"
        )
    return side


def check_halvings(times: int, name: str, size: int) -> None:
    """Refuse images if one of so many strides of two met a map of one pixel, and else padding.

    Raises: StillroomError as `check_side`.
    """
    side = size
    for _ in range(times):
        check_side(side - 1, name, size)
        side = after(side, 3, 1, stride=2)


def conv_bn(
    wide: int,
    width: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> list[nn.Module]:
    """Return a convolution without bias that keeps the side, BatchNorm, and an activation if any.

    A list, because torchvision puts the three into a Sequential of their own in some places and
    into a longer one in others, and keys are numbered by that.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(wide, width, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
    ]
    return layers if act is None else [*layers, act()]


def he_normal(net: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / (output channels * kernel area)), grouped or not; no bias.

    Source: He et al. 2015 (arXiv:1502.01852), fan-out form, as in torchvision and in the
    small-image networks of EDC. Randomness: the global generator.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def norm_layer(kind: str, channels: int, side: int) -> nn.Module:
    """Return the norm `kind` for a [B,channels,side,side] map.

    "in" is GroupNorm with one channel a group: affine, no running statistics, the same in train
    and eval mode. "ln" normalises over and scales every element of [channels,side,side].
    "nn" is an Identity, not an absent layer, so that keys keep their numbers
    (differs from the reference, whose later keys move up).

    Raises: StillroomError if "gn" meets channels that do not divide by 4.
    """
    if kind == "in":
        return nn.GroupNorm(channels, channels)
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "ln":
        return nn.LayerNorm([channels, side, side])
    if kind == "gn":
        if channels % 4:
            raise StillroomError(f"width {channels} with norm gn; use a multiple of 4, or -in")
        return nn.GroupNorm(4, channels)
    return nn.Identity()


_ACTS: dict[str, Callable[[], nn.Module]] = {
    "ar": nn.ReLU,
    "as": nn.Sigmoid,
    "al": lambda: nn.LeakyReLU(0.01),
    "aswish": nn.SiLU,
}
_POOLS: dict[str, Callable[[], nn.Module]] = {
    "ap": lambda: nn.AvgPool2d(2),
    "mp": lambda: nn.MaxPool2d(2),
    "np": nn.Identity,  # holds the place: block d is at features 4d .. 4d + 3 in every variant
}


def convnet(spec: Spec, classes: int, channels: int, size: int) -> FeatureNet:
    """Return `depth` blocks of 3x3 convolution, norm, activation, pooling, and a linear layer.

    Keys: `features.{4d}` convolution and `features.{4d+1}` norm of block d, `classifier`.
    Features: [B, width * side * side], 2048 for depth 3, width 128, 32 px.

    Raises: StillroomError if `size` is too small for the depth.
    """
    depth = depth_for(size) if spec.depth is None else spec.depth
    layers: list[nn.Module] = []
    side, wide = size, channels
    for block in range(depth):
        padding = grown(size, 1, 3) if block == 0 else 1
        side = check_side(after(side, 3, padding), spec.text, size)
        layers += [
            nn.Conv2d(wide, spec.width, kernel_size=3, padding=padding),
            norm_layer(spec.norm, spec.width, side),
            _ACTS[spec.act](),
            _POOLS[spec.pool](),
        ]
        wide = spec.width
        if spec.pool != "np":
            side = check_side(side // 2, spec.text, size)
    features = nn.Sequential(*layers, nn.Flatten())
    return FeatureNet(features, nn.Linear(wide * side * side, classes))


def _fits(size: int) -> str:
    return f"convnet{depth_for(size)}"
