"""Protocols: how a student is trained and scored. Data, frozen and versioned; no torch here."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.config import Grown, Model
from stillroom.data.policy import Policy
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
TAUGHT = ("relabels", "teachers")  # labels that trained networks give, of drawn views
WHOLE = 64  # px: up to here RDED's mosaics are single crops
MAX_EPOCHS = 100_000


class View(Model):
    """How images are shown to a student that learns what teachers say of the very view."""

    scale: tuple[float, float] = Field(description="least and most area of a crop")
    flip: bool = True
    mix: Literal["none", "cutmix", "mixup"] = "cutmix"
    shuffle: bool = Field(False, description="shuffle the cells of a mosaic: 2 a side above 64 px")

    def policy(self, size: int) -> Policy:
        """How views of images of `size` pixels are drawn."""
        cells = 2 if self.shuffle and size > WHOLE else 1
        return Policy(size=size, scale=self.scale, flip=self.flip, mix=self.mix, shuffle=cells)


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
        "view",
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
    view: View | None = Field(None, description="of relabels and teachers")
    labels: Literal["any", "hard", "logits", "relabels", "teachers"] = Field(
        "any",
        description="kinds of labels that it takes; 'any': soft ones by cross-entropy; relabels: "
        "stored logits of teachers; teachers: their logits as the student is trained",
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
        if (self.loss == "ce") == (self.labels in ("logits", *TAUGHT)):
            raise ValueError("labels of teachers are for losses other than ce, which need them")
        if (self.labels in TAUGHT) != (self.view is not None):
            raise ValueError("view belongs to labels: relabels or teachers, which need one")
        if self.view is not None and self.augment != "none":
            raise ValueError("augment: none, where teachers see views")
        return self

    @property
    def id(self) -> str:
        """`name@version`, as records quote it, with what was changed of the published one."""
        from stillroom.evaluation.published import PROTOCOLS

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
