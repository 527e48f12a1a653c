"""Protocols: how a student is trained and scored. Data, frozen and versioned; no torch here."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.config import DSA, Grown
from stillroom.errors import StillroomError, suggest
from stillroom.files import canonical, sha256
from stillroom.nets.schedules import SLOWED, Schedule

Quirk = Literal[
    "one_extra_epoch", "optim_reset_at_drop", "never_decays", "best_on_test", "live_norms"
]
Selection = Literal["last", "best", "val"]
SELECTIONS: tuple[Selection, ...] = ("last", "best", "val")
QUIRKS: dict[Quirk, str] = {
    "one_extra_epoch": "the loop runs over 0..E inclusive, E + 1 epochs",
    "optim_reset_at_drop": "the rate drops by a new optimiser, whose momentum starts at zero",
    "never_decays": "the epochs at which the rate should drop are read as text and never met",
    "best_on_test": "the headline is the best of the checks on the test images",
    "live_norms": "averaged weights are tested with the BatchNorm statistics of the live ones",
}
_BELONGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "zeta": ("schedule", SLOWED),
    "factor": ("schedule", ("steps",)),
    "temperature": ("loss", ("soft_ce", "kl", "dist")),
    "ce_weight": ("loss", ("mse_gt",)),
    "t_squared": ("loss", ("kl",)),
}
"""Fields that something reads only under some values of another field."""
MAX_EPOCHS = 100_000


class Protocol(Grown):
    """One way to judge a set. Two numbers of different hashes never share a column unmarked.

    `schedule` "drop": a tenth of the rate once, after the epoch of index E // 2 + 1; "steps":
    `factor` of it from each of `milestones` (epochs, 0-based) on; the others, with `zeta` and
    `warmup`, are those of `nets.schedules.multiplier`.
    """

    later: ClassVar[tuple[str, ...]] = (
        "factor",
        "zeta",
        "warmup",
        "optimiser",
        "decay",
        "loss",
        "temperature",
        "ce_weight",
        "t_squared",
        "ema",
        "pieces",
    )

    name: str
    version: int
    epochs: int = Field(description="nominal epochs E")
    batch: int
    lr: float | Literal["set", "search"] = Field(
        description="a rate; 'set': the one that the set learned; 'search': the best of rates"
    )
    rates: tuple[float, ...] = Field(
        (), description="'set': the rate of sets that learned none; 'search': what is searched"
    )
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    zeta: float = 1.0
    warmup: int = Field(0, description="epochs in which the rate climbs first")
    optimiser: Literal["sgd", "adamw"] = Field("sgd", description="momentum is of sgd")
    decay: Literal["all", "matrices"] = Field("all", description="parameters that decay")
    loss: Literal["ce", "soft_ce", "kl", "mse_gt", "dist"] = "ce"
    temperature: float = 1.0
    ce_weight: float = 0.0
    t_squared: bool = False
    ema: float | None = Field(None, description="decay of averaged weights, which are tested")
    pieces: int = Field(1, description="forward passes that a batch is split into")
    augment: str = Field(description="a strategy, or 'set': the one that the set names")
    labels: Literal["any", "hard", "logits"] = Field(
        "any", description="kinds of labels that it takes; 'any': soft ones by cross-entropy"
    )
    select: Selection = "last"
    checks: int = Field(description="times that a student is tested, evenly spaced, last included")
    seeds: int
    quirks: tuple[Quirk, ...] = ()
    papers: tuple[str, ...] = Field((), exclude=True)
    why: str = Field(exclude=True)

    @model_validator(mode="after")
    def _quirks_are_true(self) -> Protocol:
        """A quirk is the name of what the fields do, so it must be what they do."""
        if ("best_on_test" in self.quirks) != (self.select == "best"):
            raise ValueError("quirk best_on_test is select: best")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("milestones belong to schedule steps, which needs some")
        if "never_decays" in self.quirks and self.schedule != "constant":
            raise ValueError("quirk never_decays is schedule: constant")
        if not isinstance(self.lr, float) and not self.rates:
            raise ValueError(f"lr: {self.lr} needs rates")
        if "live_norms" in self.quirks and self.ema is None:
            raise ValueError("quirk live_norms is of averaged weights, which ema asks for")
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must be fewer than the {self.epochs} epochs")
        return self

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Protocol:
        for name, (by, values) in _BELONGS.items():
            default = type(self).model_fields[name].default
            if getattr(self, name) != default and getattr(self, by) not in values:
                raise ValueError(f"{name} belongs to {by} {', '.join(values)}")
        if (self.loss == "ce") == (self.labels == "logits"):
            raise ValueError("labels: logits is for losses other than ce, which need them")
        return self

    @property
    def id(self) -> str:
        """`name@version`, as records quote it, with what was changed of the published one."""
        published = PROTOCOLS.get(f"{self.name}@{self.version}")
        changed = published is not None and published.epochs != self.epochs
        return f"{self.name}@{self.version}" + (f"+epochs={self.epochs}" if changed else "")

    @property
    def passes(self) -> int:
        """Passes over the set that a student makes."""
        return self.epochs + ("one_extra_epoch" in self.quirks)

    def check_epochs(self) -> list[int]:
        """After how many passes a student is tested."""
        return sorted({math.ceil(self.passes * k / self.checks) for k in range(1, self.checks + 1)})

    def digest(self) -> str:
        """Twelve hex digits over every field that changes a number."""
        fields = self.model_dump(mode="json")
        if not self.milestones:  # a field that came later; without it a protocol is what it was
            del fields["milestones"]
        return sha256(canonical(fields))[:12]


_VICO = {
    "version": 1,
    "batch": 256,
    "lr": 0.01,
    "schedule": "drop",
    "labels": "hard",
    "checks": 5,
    "seeds": 5,
    "quirks": ("one_extra_epoch", "optim_reset_at_drop"),
}
_CLOM = {
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
