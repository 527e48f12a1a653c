"""What EDC's code calls the layers of networks that have other names here: facts, for its files.

Those of ImageNet have torchvision's names in both. A test compares every name with the reference's.
No torch here.
"""

from __future__ import annotations

import re
from typing import Literal

Repair = Literal["swapped-patch", "doubled", "colliding", "variance", "none"]
"""Repairs of its files by name: see `artefacts/released.py`."""

# network -> (a name here, what it is there), in turn; of each name the first that fits
_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "resnet18-bn": ((r"(.*)\.downsample\.(\d)", r"\1.shortcut.\2"),),
    "wrn16-2": (
        (r"layer(\d)\.(\d)\.shortcut", r"block\1.layer.\2.convShortcut"),
        (r"layer(\d)\.(\d)\.(.*)", r"block\1.layer.\2.\3"),
        (r"bn", "bn1"),
    ),
}
_STAGES = {  # of MobileNetV2 at half width: blocks of each stage
    "mobilenetv2-x0.5": (1, 2, 3, 4, 3, 3, 1),
}
_INSIDE = {"0.0": 0, "0.1": 1, "1.0": 3, "1.1": 4, "2": 6, "3": 7}  # of an inverted residual
_LEFT = {0: "conv1", 1: "bn1", 2: "conv2", 3: "bn2"}  # of a unit of ShuffleNetV2, branch 1
_RIGHT = {0: ("conv", 1), 1: ("bn", 1), 3: ("conv", 2), 4: ("bn", 2), 5: ("conv", 3), 6: ("bn", 3)}
_ENDS = {"conv1.0": "conv1", "conv1.1": "bn1", "conv5.0": "conv2", "conv5.1": "bn2"}


def released_name(arch: str, layer: str) -> str:
    """The name in EDC's code of a layer of the network `arch`; where it has no other, its own."""
    if arch == "mobilenetv2-x0.5":
        return _mobile(arch, layer)
    if arch == "shufflenetv2-x0.5":
        return _shuffle(layer)
    for pattern, there in _RULES.get(arch, ()):
        if found := re.fullmatch(pattern, layer):
            return found.expand(there)
    return layer


def _mobile(arch: str, layer: str) -> str:
    _, number, *rest = layer.split(".")
    if rest[0] != "conv":  # the first layer and the last
        return f"{'conv1' if number == '0' else 'conv2'}.{rest[0]}"
    stage, block = 0, int(number) - 1
    while block >= _STAGES[arch][stage]:
        block -= _STAGES[arch][stage]
        stage += 1
    return f"blocks.{stage}.{block}.conv.{_INSIDE['.'.join(rest[1:])]}"


def _shuffle(layer: str) -> str:
    if layer in _ENDS:
        return _ENDS[layer]
    stage, unit, branch, number = layer.split(".")
    head = f"layer{int(stage.removeprefix('stage')) - 1}.{unit}"
    if branch == "branch1":
        return f"{head}.{_LEFT[int(number)]}"
    kind, place = _RIGHT[int(number)]
    return f"{head}.{kind}{place + (2 if unit == '0' else 0)}"
