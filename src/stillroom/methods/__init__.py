"""Methods by family, and presets: a family plus defaults under the name that people use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stillroom.config import DSA
from stillroom.methods.base import Method
from stillroom.methods.distribution_matching import DistributionMatching
from stillroom.methods.gradient_matching import GradientMatching
from stillroom.methods.selection import Selection

METHODS: dict[str, type[Method]] = {
    "distribution_matching": DistributionMatching,
    "gradient_matching": GradientMatching,
    "selection": Selection,
}


@dataclass(frozen=True)
class Preset:
    """What `stillroom distill NAME` stands for."""

    kind: str
    about: str
    method: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)


def _selection(rule: str, about: str) -> Preset:
    return Preset("selection", about, {"rule": rule}, {"steps": 0})


_MATCHING = {"steps": 1000, "images": {"kind": "sgd", "lr": 0.1, "momentum": 0.5}}
PRESETS: dict[str, Preset] = {
    "dm": Preset(
        "distribution_matching",
        "distribution matching: class means of random-network features",
        {},
        {"steps": 1000, "images": {"kind": "sgd", "lr": 1.0, "momentum": 0.5}},
    ),
    "dc": Preset(
        "gradient_matching",
        "gradient matching (DC): weight gradients of synthetic and real images, class by class",
        {"init": "noise"},
        _MATCHING,
    ),
    "dsa": Preset(
        "gradient_matching",
        "gradient matching under one augmentation for both sides (DSA)",
        {"augment": DSA},
        _MATCHING,
    ),
    "random": _selection("random", "real images drawn at random, balanced"),
    "class-mean": _selection("class-mean", "the average image of a class (of parts, if ipc > 1)"),
    "herding": _selection("herding", "real images whose running mean follows the class mean"),
    "k-center": _selection("k-center", "real images by farthest-first traversal"),
    "k-means": _selection("k-means", "the real images nearest to the k-means centres"),
}
