"""Protocols of the decoupled papers: SRe2L, CDA, G-VBSM, RDED and EDC; rows of data, no torch here.

Students learn logits of trained networks. Specification of the decoupled methods, 4, 5 and 7;
evaluation specification, 4. Where paper and released code differ, each has a row.
"""

from __future__ import annotations

from typing import Any

from stillroom.evaluation.protocol import Protocol

_EDC: dict[str, Any] = {
    "version": 1,
    "batch": 100,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "schedule": "smoothing",
    "zeta": 2.0,
    "optimiser": "adamw",
    "decay": "matrices",
    "loss": "mse_gt",
    "ce_weight": 0.025,
    "ema": 0.99,
    "augment": "none",
    "labels": "relabels",
    "view": {"scale": (0.5, 1.0)},
    "checks": 10,
    "seeds": 3,
    "papers": ("shao2024edc",),
}
# As its code judges: the best of its tests, averaged weights with norms of the live ones.
_RELEASED: dict[str, Any] = {"select": "best", "quirks": ("live_norms", "best_on_test")}
_EDC_ONLINE: dict[str, Any] = {**_EDC, "labels": "teachers"}
_EDC_CIFAR10: dict[str, Any] = {
    **_EDC_ONLINE,
    "epochs": 1000,
    "batch": 25,
    "schedule": "steps",
    "zeta": 1.0,
    "milestones": (800, 900, 950),
    "factor": 0.5,
    "view": {"scale": (0.08, 1.0)},
}
_EDC_SGD: dict[str, Any] = {
    **_EDC_ONLINE,
    **_RELEASED,
    "optimiser": "sgd",
    "lr": 0.1,
    "momentum": 0.875,
    "weight_decay": 5e-4,
}
_GVBSM: dict[str, Any] = {
    **_EDC,
    "schedule": "cosine",
    "zeta": 1.0,
    "ema": None,
    "view": {"scale": (0.08, 1.0)},
    "papers": ("shao2024gvbsm",),
}
_GVBSM_SGD: dict[str, Any] = {**_GVBSM, "optimiser": "sgd", "lr": 0.1, "weight_decay": 5e-4}
_KL: dict[str, Any] = {**_GVBSM, "loss": "kl", "ce_weight": 0.0, "temperature": 20.0}
_SRE2L: dict[str, Any] = {**_KL, "epochs": 300, "batch": 1024, "papers": ("yin2023sre2l",)}
_RDED: dict[str, Any] = {
    **_KL,
    "epochs": 300,
    "schedule": "smoothing",
    "zeta": 2.0,
    "labels": "teachers",
    "view": {"scale": "cells", "shuffle": True},
    "select": "best",
    "checks": 6,
    "tail": 5,
    "quirks": ("best_on_test", "norms_twice"),
    "papers": ("sun2024rded",),
}


def _versions(row: dict[str, Any]) -> list[Protocol]:
    """A row; of EDC on small data, also with the RandAugment that its first version lacks."""
    found = [Protocol.model_validate(row)]
    if row["labels"] == "teachers" and row["papers"] == _EDC["papers"]:
        view = {**row["view"], "ops": 2}
        why = (
            f"As {row['name']}@1, with RandAugment before the crop, as paper and code have it: two "
            "operations an image at magnitude 9 of 30."
        )
        found += [Protocol.model_validate({**row, "version": 2, "view": view, "why": why})]
    return found


DECOUPLED: tuple[Protocol, ...] = tuple(
    protocol
    for row in (
        {
            **_EDC,
            "name": "edc",
            "epochs": 300,
            "why": "How EDC judges ImageNet-1K in its paper: stored logits of its teachers for "
            "crops of at least half the image, mixed; small batches, a rate that falls slowly, "
            "averaged weights, last epoch.",
        },
        {
            **_EDC,
            **_RELEASED,
            "name": "edc-released",
            "epochs": 300,
            "schedule": "linear",
            "why": "As edc, as the released code really runs it: a linear rate, averaged "
            "weights with the BatchNorm statistics of the live ones, best test.",
        },
        {
            **_EDC_CIFAR10,
            "name": "edc-cifar10",
            "why": "How EDC judges CIFAR-10 in its paper: teachers label as the student is "
            "trained, steps down near the end. Without its RandAugment.",
        },
        {
            **_EDC_CIFAR10,
            **_RELEASED,
            "name": "edc-cifar10-released",
            "checks": 20,
            "tail": 5,
            "why": "As edc-cifar10, as the released code tests it: after every ten of the last "
            "200 epochs, the best of them, BatchNorm statistics of the live weights.",
        },
        {
            **_EDC_ONLINE,
            "name": "edc-cifar100",
            "epochs": 1000,
            "batch": 50,
            "why": "How EDC judges CIFAR-100 in its paper: teachers label as the student is "
            "trained, AdamW, a rate that falls slowly. Without its RandAugment.",
        },
        {
            **_EDC_SGD,
            "name": "edc-cifar100-released",
            "epochs": 1000,
            "batch": 50,
            "schedule": "cos2",
            "why": "As edc-cifar100, as its script runs it: SGD, a rate that falls slowly for "
            "five sixths and then to zero, best of the tests after every hundred epochs.",
        },
        {
            **_EDC_ONLINE,
            "name": "edc-tiny",
            "epochs": 300,
            "why": "How EDC judges Tiny-ImageNet in its paper (one image a class: 1,000 epochs): "
            "as edc-cifar100, shorter and with larger batches. Without its RandAugment.",
        },
        {
            **_EDC_SGD,
            "name": "edc-tiny-released",
            "epochs": 300,
            "why": "As edc-tiny, as its script runs it: SGD, and the best of the tests after "
            "every thirty epochs.",
        },
        {
            **_EDC_ONLINE,
            "name": "edc-imagenet10",
            "epochs": 1000,
            "batch": 50,
            "why": "How EDC judges ImageNet-10 in its paper: as edc-cifar100, on images of "
            "224 pixels. Without its RandAugment.",
        },
        {
            **_EDC_ONLINE,
            **_RELEASED,
            "name": "edc-imagenet10-released",
            "epochs": 1000,
            "batch": 50,
            "schedule": "cos2",
            "checks": 33,
            "why": "As edc-imagenet10, as its script runs it: the rate falls to zero at the end, "
            "and the best of the tests after about every thirty epochs is quoted.",
        },
        {
            **_GVBSM,
            "name": "gvbsm",
            "epochs": 300,
            "batch": 1024,
            "ce_weight": 0.1,
            "why": "How G-VBSM judges ImageNet-1K: stored logits of its networks, distance of "
            "logits with hard labels beside it, cosine rate, last epoch (the paper quotes the "
            "best).",
        },
        {
            **_GVBSM,
            "name": "gvbsm-cifar10",
            "epochs": 1000,
            "weight_decay": 0.0,
            "decay": "all",
            "ce_weight": 0.15,
            "why": "How G-VBSM judges CIFAR-10: stored logits, distance of logits with hard "
            "labels beside it, cosine rate, last epoch (the paper quotes the best).",
        },
        {
            **_GVBSM_SGD,
            "name": "gvbsm-cifar100",
            "epochs": 1000,
            "batch": 64,
            "ce_weight": 0.15,
            "why": "How G-VBSM judges CIFAR-100: as gvbsm-cifar10, by SGD in smaller batches.",
        },
        {
            **_GVBSM_SGD,
            "name": "gvbsm-tiny",
            "epochs": 100,
            "ce_weight": 0.1,
            "why": "How G-VBSM judges Tiny-ImageNet: as gvbsm-cifar100, for a hundred epochs.",
        },
        {
            **_SRE2L,
            "name": "sre2l",
            "decay": "all",
            "why": "How SRe2L judges ImageNet-1K: stored logits of one teacher, divergence at "
            "temperature 20, cosine rate, last epoch.",
        },
        {
            **_SRE2L,
            "name": "sre2l",
            "version": 2,
            "why": "As sre2l@1, with weight decay of matrices alone, as its code has it: no bias "
            "decays and nothing of a norm.",
        },
        {
            **_SRE2L,
            "name": "sre2l-cifar100",
            "epochs": 400,
            "batch": 128,
            "decay": "all",
            "temperature": 30.0,
            "labels": "teachers",
            "view": {"scale": (1.0, 1.0), "padding": 4, "mix": "mixup"},
            "why": "How SRe2L judges CIFAR-100: one teacher labels as the student is trained, "
            "padded crops and MixUp, divergence at temperature 30. There the teacher's BatchNorm "
            "goes on moving; here it does not.",
        },
        {
            **_SRE2L,
            "name": "sre2l-tiny",
            "epochs": 100,
            "batch": 256,
            "optimiser": "sgd",
            "lr": 0.2,
            "weight_decay": 1e-4,
            "decay": "all",
            "warmup": 5,
            "t_squared": True,
            "labels": "teachers",
            "view": {"scale": (0.08, 1.0), "mix": "none"},
            "why": "How SRe2L judges Tiny-ImageNet: one teacher labels as the student is trained, "
            "nothing is mixed; SGD with a warm-up, divergence times the square of the temperature.",
        },
        {
            **_SRE2L,
            "name": "cda",
            "batch": 128,
            "papers": ("yin2024cda",),
            "why": "How CDA judges ImageNet-1K: as sre2l@2, in batches of 128, so in more steps.",
        },
        {
            **_RDED,
            "name": "rded",
            # Other images a class have no batch there; here that of the next smaller ones.
            "batches": {
                "by_ipc": ((1, 10), (10, 50), (50, 100)),
                "twice": (100, 1000),
                "fixed": ((200, 100),),
            },
            "by_arch": (
                ("efficientnetb0", 2e-3),
                ("mobilenetv2", 2.5e-3),
                ("vgg11", 5e-4),
                ("alexnet", 1e-4),
                ("vitb16", 1e-4),
                ("swinv2t", 1e-4),
            ),
            "why": "How RDED judges: a teacher labels shuffled and mixed mosaics as the student is "
            "trained, divergence at temperature 20; batches by images a class, rates by network; "
            "the best of six tests in the last fifth of the epochs.",
        },
        {
            **_RDED,
            "name": "rded-cifar100-convnet",
            "batch": 25,
            "lr": 2e-3,
            "why": "As rded, as its code judges convnet3 on CIFAR-100 where the teacher is one "
            "too: batches of 25, twice the rate.",
        },
    )
    for protocol in _versions(row)
)
