"""Protocols of the matching papers: DC, DSA, DM, MTT, DATM, CLOM; rows of data, no torch here."""

from __future__ import annotations

from typing import Any

from stillroom.config import DSA, DSA_WIDE
from stillroom.evaluation.protocol import Protocol

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
MATCHING: tuple[Protocol, ...] = (
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
            **_VICO,
            "name": "edf",
            "epochs": 1000,
            "batch": 128,
            "lr": "set",
            "rates": (0.01,),
            "augment": DSA_WIDE,
            "labels": "any",
            "papers": ("wang2025edf",),
            "why": "How EDF is judged: as datm, with crops that shift twice as far, as its code "
            "has them. The paper quotes the best of the checkpoints, chosen on the test images.",
        }
    ),
    Protocol.model_validate(
        {
            **_VICO,
            "name": "edf-plain",
            "epochs": 1000,
            "batch": 128,
            "lr": "set",
            "rates": (0.01,),
            "augment": "none",
            "labels": "any",
            "papers": ("wang2025edf",),
            "why": "As edf, without augmentation: how Comp-DD's script judges with --dsa False.",
        }
    ),
    Protocol.model_validate(
        {
            **_VICO,
            "name": "eccv24",
            "epochs": 1000,
            "augment": DSA,
            "seeds": 3,
            "why": "How the ECCV 2024 challenge judges ten images a class: as vico, three students "
            "of the three-layer ConvNet, for images of 64 pixels too (say --arch convnet3).",
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
)
