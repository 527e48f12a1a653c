"""Methods by family, and presets: a family plus defaults under the name that people use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stillroom.artefacts.schooling import SCHOOLINGS
from stillroom.config import DSA, DSA_WIDE
from stillroom.methods.base import Method
from stillroom.methods.distribution_matching import DistributionMatching
from stillroom.methods.gradient_matching import GradientMatching
from stillroom.methods.mosaics import Mosaics
from stillroom.methods.selection import Selection
from stillroom.methods.statistics_matching import StatisticsMatching
from stillroom.methods.trajectory_matching import TrajectoryMatching

METHODS: dict[str, type[Method]] = {
    "distribution_matching": DistributionMatching,
    "gradient_matching": GradientMatching,
    "mosaics": Mosaics,
    "selection": Selection,
    "statistics_matching": StatisticsMatching,
    "trajectory_matching": TrajectoryMatching,
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
_ADAM = {"kind": "adam", "lr": 0.05, "momentum": 0.5, "beta2": 0.9, "schedule": "cosine"}
_NORMS = {
    "observers": ("convnet-bn",),
    "layers": "norms",
    "targets": "whole",
    "momentum": 0.0,
    "init": "noise",
    "order": "cycled",
}
_RATE = {"kind": "sgd", "lr": 1e-5, "momentum": 0.5}
_TRAJECTORY = {
    "steps": 5000,
    "images": {"kind": "sgd", "lr": 100.0, "momentum": 0.5},
    "rate": _RATE,
}
_LABELLED = {**_TRAJECTORY, "labels": {"kind": "sgd", "lr": 2.0, "momentum": 0.9}}
_DATM = {
    "schooling": dict(SCHOOLINGS["datm"]),
    "labels": "learned",
    "init": "known",
    "gate": 1.0,
}
# The order as a mapping, so that one field of it can be changed.
_ORDERED = {**dict(SCHOOLINGS["pad"]), "order": dict(SCHOOLINGS["pad"].order)}
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
    "sre2l": Preset(
        "statistics_matching",
        "recover (SRe2L): noise that a network classifies and whose norms see real statistics",
        {**_NORMS, "views": {"crop": 0.08}},
        {"steps": 1000, "images": {**_ADAM, "lr": 0.25}},
    ),
    "cda": Preset(
        "statistics_matching",
        "recover (CDA): as sre2l, with crops that begin as whole images",
        {**_NORMS, "views": {"crop": 0.08, "curriculum": "cosine"}},
        {"steps": 1000, "images": {**_ADAM, "lr": 0.25}},
    ),
    "gvbsm": Preset(
        "statistics_matching",
        "recover (G-VBSM): statistics of norms, convolutions and patches, several networks in turn",
        {
            "targets": "whole",
            "init": "noise",
            "conv_drop": 0.4,
            "priors": {"spectrum": 1.0},
            "views": {"crop": 1.0, "padding": 4},
        },
        {"steps": 1000, "images": _ADAM},
    ),
    "rded": Preset(
        "mosaics", "real crops that a trained network finds easy (RDED)", {}, {"steps": 0}
    ),
    "edc": Preset(
        "statistics_matching",
        "recover (EDC): as gvbsm from real images, with statistics by class and flat minima",
        {"flat": {"weight": 0.25}},
        {"steps": 1000, "images": _ADAM},
    ),
    "edc-paper": Preset(
        "statistics_matching",
        "recover (EDC as its paper says): edc with the paper's 2,000 steps, and its rows",
        {"flat": {"weight": 0.25}},
        {"steps": 2000, "images": _ADAM},
    ),
    "edc-released": Preset(
        "statistics_matching",
        "recover (EDC as its code runs): statistics as released, no term for flat minima; its rows",
        {"variance": "released", "average_start": "zero"},
        {"steps": 1000, "images": _ADAM},
    ),
    "mtt": Preset(
        "trajectory_matching",
        "trajectory matching (MTT): a student ends where a network of the real data does",
        {},
        _TRAJECTORY,
    ),
    "ftd": Preset(
        "trajectory_matching",
        "trajectory matching (FTD): flat experts, and an average of the images",
        {"schooling": dict(SCHOOLINGS["ftd-small"]), "ema": 0.9995},
        _TRAJECTORY,
    ),
    "tesla": Preset(
        "trajectory_matching",
        "trajectory matching (TESLA): approximate gradients; --labels assigned: what experts say",
        {"engine": "tesla"},
        _TRAJECTORY,
    ),
    "datm": Preset(
        "trajectory_matching",
        "trajectory matching (DATM): learned labels; its rows take later stretches for larger sets",
        _DATM,
        _LABELLED,
    ),
    "pad": Preset(
        "trajectory_matching",
        "trajectory matching (PAD): as datm, experts see easy images first, first layers left out",
        {**_DATM, "schooling": _ORDERED, "parameters": {"drop": "shallow", "share": 0.5}},
        _LABELLED,
    ),
    "edf": Preset(
        "trajectory_matching",
        "trajectory matching (EDF): as datm, without what fits anyway, more where classes are seen",
        {
            **_DATM,
            "gate": 1.5,  # without what fits anyway the distance is larger
            "parameters": {"drop": "easy", "share": 0.25},
            "areas": {"beta": 1.0},
            "augment": DSA_WIDE,
        },
        _LABELLED,
    ),
    "random": _selection("random", "real images drawn at random, balanced"),
    "class-mean": _selection("class-mean", "the average image of a class (of parts, if ipc > 1)"),
    "herding": _selection("herding", "real images whose running mean follows the class mean"),
    "k-center": _selection("k-center", "real images by farthest-first traversal"),
    "k-means": _selection("k-means", "the real images nearest to the k-means centres"),
}
