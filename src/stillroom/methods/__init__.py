"""Methods by family, and presets: a family plus defaults under the name that people use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stillroom.methods.base import Method
from stillroom.methods.distribution_matching import DistributionMatching
from stillroom.methods.selection import Selection

METHODS: dict[str, type[Method]] = {
    "distribution_matching": DistributionMatching,
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


PRESETS: dict[str, Preset] = {
    "dm": Preset(
        "distribution_matching",
        "distribution matching: class means of random-network features",
        {},
        {"steps": 1000, "images": {"kind": "sgd", "lr": 1.0, "momentum": 0.5}},
    ),
    "random": _selection("random", "real images drawn at random, balanced"),
    "class-mean": _selection("class-mean", "the average image of a class (of parts, if ipc > 1)"),
    "herding": _selection("herding", "real images whose running mean follows the class mean"),
    "k-center": _selection("k-center", "real images by farthest-first traversal"),
    "k-means": _selection("k-means", "the real images nearest to the k-means centres"),
}
