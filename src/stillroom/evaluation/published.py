"""The protocols that there are: rows of data, frozen and versioned; no torch here."""

from __future__ import annotations

from typing import Any

from stillroom.config import DSA
from stillroom.errors import StillroomError, suggest
from stillroom.evaluation.protocol import MAX_EPOCHS, Protocol

_VICO: dict[str, Any] = {
    "version": 1,
    "batch": 256,
    "lr": 0.01,
    "schedule": "drop",
    "labels": "hard",
    "checks": 5,
    "seeds": 5,
    "quirks": ("one_extra_epoch", "optim_reset_at_drop"),
}
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
_CLOM: dict[str, Any] = {
    "version": 1,
    "epochs": 1000,
    "batch": 256,
    "lr": 0.01,
    "augment": DSA,
    "labels": "hard",
    "checks": 20,
    "papers": ("lu2023pretrained",),
}
PROTOCOLS: dict[str, Protocol] = {
    f"{p.name}@{p.version}": p
    for p in (
        Protocol(
            name="quick",
            version=1,
            epochs=100,  # chosen by benchmarks/calibration.py, and frozen since
            batch=256,
            lr=0.02,
            schedule="cosine",
            augment="set",
            checks=1,
            seeds=3,
            why="A short student for the loop of everyday work: the set's own augmentation (its "
            "baselines get the same), cosine rate, last epoch. Not a published protocol: it orders "
            "sets as vico@1 does, some points lower; compare its numbers with each other only.",
        ),
        Protocol.model_validate(
            {
                **_VICO,
                "name": "vico",
                "epochs": 1000,
                "augment": DSA,
                "papers": ("zhao2021dsa", "zhao2023dm"),
                "why": "How DSA and DM are judged in their papers: a long student with one "
                "kind of augmentation drawn a batch, fixed rate, hard labels, last epoch.",
            }
        ),
        Protocol.model_validate(
            {
                **_VICO,
                "name": "vico-plain",
                "epochs": 300,
                "augment": "none",
                "papers": ("zhao2021dc",),
                "why": "How DC is judged in its paper: as vico, shorter and without augmentation.",
            }
        ),
        Protocol.model_validate(
            {
                **_VICO,
                "name": "mtt",
                "epochs": 1000,
                "lr": "set",
                "rates": (0.01,),
                "augment": DSA,
                "papers": ("cazenavette2022mtt",),
                "why": "How trajectory matching is judged in its paper: as vico, with the rate "
                "that the set learned (0.01 for a set, or a baseline, that learned none).",
            }
        ),
        Protocol.model_validate(
            {
                **_VICO,
                "name": "datm",
                "epochs": 1000,
                "batch": 128,
                "lr": "set",
                "rates": (0.01,),
                "augment": DSA,
                "labels": "any",
                "papers": ("guo2024datm",),
                "why": "How DATM and PAD are judged: as mtt, with batches of 128 and soft "
                "labels where the set learned them. The papers quote the best of the checkpoints "
                "of a distillation, chosen on the test images; here a checkpoint is what it is.",
            }
        ),
        Protocol.model_validate(
            {
                **_CLOM,
                "name": "clom",
                "schedule": "steps",
                "milestones": (500,),
                "seeds": 5,
                "why": "How CLOM validates a set, as intended: 1,000 epochs with one kind of "
                "augmentation drawn a batch, a tenth of the rate from epoch 500 on, last epoch.",
            }
        ),
        Protocol.model_validate(
            {
                **_CLOM,
                "name": "clom-released",
                "schedule": "constant",
                "select": "best",
                "seeds": 1,
                "quirks": ("never_decays", "best_on_test"),
                "why": "How the released code of CLOM validates a set: the rate never drops, and "
                "the best of its twenty tests on the test images is quoted, of one student. Its "
                "numbers flatter every row; compare them with each other only.",
            }
        ),
        Protocol.model_validate(
            {
                **_CLOM,
                "name": "clom-plain",
                "augment": "none",
                "schedule": "steps",
                "milestones": (500,),
                "seeds": 5,
                "why": "As clom, without augmentation: how the code of CLOM validates a set where "
                "it is not told --dsa, as intended.",
            }
        ),
        Protocol.model_validate(
            {
                **_CLOM,
                "name": "clom-plain-released",
                "augment": "none",
                "schedule": "constant",
                "select": "best",
                "seeds": 1,
                "quirks": ("never_decays", "best_on_test"),
                "why": "As clom-released, without augmentation: how the released code of CLOM "
                "validates a set where it is not told --dsa. Compare its numbers with each other "
                "only.",
            }
        ),
        Protocol.model_validate(
            {
                **_EDC,
                "name": "edc",
                "epochs": 300,
                "why": "How EDC judges ImageNet-1K in its paper: stored logits of its teachers for "
                "crops of at least half the image, mixed; small batches, a rate that falls slowly, "
                "averaged weights, last epoch.",
            }
        ),
        Protocol.model_validate(
            {
                **_EDC,
                "name": "edc-released",
                "epochs": 300,
                "schedule": "linear",
                "select": "best",
                "quirks": ("live_norms", "best_on_test"),
                "why": "As edc, as the released code really runs it: a linear rate, averaged "
                "weights with the BatchNorm statistics of the live ones, best test.",
            }
        ),
        Protocol.model_validate(
            {
                **_EDC,
                "name": "edc-cifar10",
                "epochs": 1000,
                "batch": 25,
                "schedule": "steps",
                "zeta": 1.0,
                "milestones": (800, 900, 950),
                "factor": 0.5,
                "labels": "teachers",
                "view": {"scale": (0.08, 1.0)},
                "why": "How EDC judges CIFAR-10 in its paper: teachers label as the student is "
                "trained, steps down near the end. Without its RandAugment.",
            }
        ),
        Protocol.model_validate(
            {
                **_EDC,
                "name": "gvbsm-cifar10",
                "epochs": 1000,
                "schedule": "cosine",
                "zeta": 1.0,
                "weight_decay": 0.0,
                "decay": "all",
                "ce_weight": 0.15,
                "ema": None,
                "view": {"scale": (0.08, 1.0)},
                "papers": ("shao2024gvbsm",),
                "why": "How G-VBSM judges CIFAR-10: stored logits, distance of logits with hard "
                "labels beside it, cosine rate, last epoch (the paper quotes the best).",
            }
        ),
        Protocol.model_validate(
            {
                **_EDC,
                "name": "sre2l",
                "epochs": 300,
                "batch": 1024,
                "schedule": "cosine",
                "zeta": 1.0,
                "decay": "all",
                "loss": "kl",
                "ce_weight": 0.0,
                "temperature": 20.0,
                "ema": None,
                "view": {"scale": (0.08, 1.0)},
                "papers": ("yin2023sre2l",),
                "why": "How SRe2L judges ImageNet-1K: stored logits of one teacher, divergence at "
                "temperature 20, cosine rate, last epoch.",
            }
        ),
        Protocol(
            name="search",
            version=1,
            epochs=100,
            batch=256,
            lr="search",
            rates=(0.005, 0.01, 0.02, 0.05, 0.1),
            schedule="cosine",
            augment="set",
            select="val",
            checks=4,
            seeds=3,
            why="As quick, with the rate and the epoch chosen on validation images, for a set and "
            "its baselines alike, so that neither owes its place to a rate that suits it. A rate "
            "at which a student diverges is out of its search. It needs validation images "
            "(--val 0.1).",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """Look a protocol up by `name@version`, or by name for the newest version.

    `name@version+epochs=N` is that protocol with N epochs, its drops at the same shares of them:
    another hash, and another name.
    Raises: StillroomError with the known names.
    """
    if not isinstance(name, str):
        raise StillroomError(f"protocol={name!r} must be text, such as 'quick@1'")
    base, plus, change = name.partition("+")
    found = PROTOCOLS.get(base)
    if found is None:
        versions = [p for p in PROTOCOLS.values() if p.name == base]
        if not versions:
            raise StillroomError(
                f"protocol={name[:80]!r} is unknown; known: {', '.join(PROTOCOLS)}"
                f"{suggest(base, PROTOCOLS)}"
            )
        found = max(versions, key=lambda p: p.version)
    return _changed(found, name, change) if plus else found


def _changed(protocol: Protocol, name: str, change: str) -> Protocol:
    field, _, value = change.partition("=")
    count = int(value) if value.isascii() and value.isdigit() and len(value) < 7 else 0
    if field != "epochs" or not 1 <= count <= MAX_EPOCHS:
        raise StillroomError(
            f"protocol={name[:80]!r}: only +epochs=N can be changed, N in 1..{MAX_EPOCHS}"
        )
    share = count / protocol.epochs
    changed = {
        "epochs": count,
        "checks": min(protocol.checks, count),
        "milestones": tuple(round(m * share) for m in protocol.milestones),
        "warmup": round(protocol.warmup * share),
    }
    return protocol.model_copy(update=changed)
