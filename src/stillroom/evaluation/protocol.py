"""Protocols: how a student is trained and scored. Data, frozen and versioned; no torch here."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.config import Grown, Model
from stillroom.data.policy import MAX_OPS, Policy
from stillroom.files import canonical, sha256
from stillroom.nets.schedules import SLOWED, Schedule

Quirk = Literal[
    "one_extra_epoch",
    "optim_reset_at_drop",
    "never_decays",
    "best_on_test",
    "live_norms",
    "norms_twice",
]
Selection = Literal["last", "best", "val"]
SELECTIONS: tuple[Selection, ...] = ("last", "best", "val")
QUIRKS: dict[Quirk, str] = {
    "one_extra_epoch": "the loop runs over 0..E inclusive, E + 1 epochs",
    "optim_reset_at_drop": "the rate drops by a new optimiser, whose momentum starts at zero",
    "never_decays": "the epochs at which the rate should drop are read as text and never met",
    "best_on_test": "the headline is the best of the checks on the test images",
    "live_norms": "averaged weights are tested with the BatchNorm statistics of the live ones",
    "norms_twice": "every batch moves the BatchNorm statistics twice: an extra pass prints of it",
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
LOSSES = ("soft_ce", "kl", "mse_gt", "dist")  # of labels that trained networks give
WHOLES = ("epochs", "batch", "pieces")
LIMITS = {
    **dict.fromkeys(WHOLES, (1.0, float(MAX_EPOCHS))),
    "lr": (1e-9, 1e3),
    "momentum": (0.0, 0.999),
    "weight_decay": (0.0, 1e3),
    "temperature": (0.01, 1e3),
    "ce_weight": (0.0, 1e3),
}
CHANGEABLE = (*WHOLES, "lr", "momentum", "weight_decay", "loss", "temperature", "ce_weight")
"""What may be changed behind a name, in this order: what a change takes along comes first."""


class View(Grown):
    """How images are shown to a student that learns what teachers say of the very view."""

    later: ClassVar[tuple[str, ...]] = ("padding", "ops")

    scale: tuple[float, float] | Literal["cells"] = Field(
        description="least and most area of a crop; cells: from one over the cells a side of a "
        "mosaic, 2 above 64 px and 1 up to there, to the whole"
    )
    padding: int = Field(0, description="or a crop after so many pixels of padding")
    flip: bool = True
    mix: Literal["none", "cutmix", "mixup"] = "cutmix"
    shuffle: bool = Field(False, description="shuffle the cells of a mosaic: 2 a side above 64 px")
    ops: int = Field(
        0, ge=0, le=MAX_OPS, description="operations of RandAugment first, of its usual strength"
    )

    def policy(self, size: int) -> Policy:
        """How views of images of `size` pixels are drawn."""
        cells = 2 if size > WHOLE else 1
        return Policy(
            size=size,
            scale=(1 / cells, 1.0) if self.scale == "cells" else self.scale,
            padding=self.padding,
            flip=self.flip,
            mix=self.mix,
            shuffle=cells if self.shuffle else 1,
            ops=self.ops,
        )


class Batches(Model):
    """Batches that depend on the set: by images a class, for some numbers of classes twice that.

    Between the listed images a class, the next smaller one holds: theirs is a rule for three.
    """

    by_ipc: tuple[tuple[int, int], ...] = Field(description="(images a class, batch), ascending")
    twice: tuple[int, ...] = Field(description="numbers of classes whose batches are twice that")
    fixed: tuple[tuple[int, int], ...] = Field(description="(classes, batch whatever the images)")

    def of(self, images: int, classes: int) -> int:
        """The batch for a set of so many images in all."""
        if classes in dict(self.fixed):
            return dict(self.fixed)[classes]
        ipc = images // classes
        batch = next((b for least, b in reversed(self.by_ipc) if least <= ipc), self.by_ipc[0][1])
        return batch * 2 if classes in self.twice else batch


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
        "tail",
        "batches",
        "by_arch",
    )

    name: str
    version: int
    epochs: int = Field(description="nominal epochs E")
    batch: int
    batches: Batches | None = Field(None, description="batches that depend on the set instead")
    lr: float | Literal["set", "search"] = Field(
        description="a rate; 'set': the one that the set learned; 'search': the best of rates"
    )
    by_arch: tuple[tuple[str, float], ...] = Field(
        (), description="other rates, of networks whose names begin so, without - _ and library"
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
    tail: int = Field(1, description="tests are in the last of so many equal parts of the epochs")
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
        if self.pieces > 1 and self.loss == "dist":
            raise ValueError("pieces of a batch belong to losses other than dist, which compares")
        if (self.loss == "ce") == (self.labels in ("logits", *TAUGHT)):
            raise ValueError("labels of teachers are for losses other than ce, which need them")
        if (self.labels in TAUGHT) != (self.view is not None):
            raise ValueError("view belongs to labels: relabels or teachers, which need one")
        if self.view is not None and self.augment != "none":
            raise ValueError("augment: none, where teachers see views")
        if self.batches is not None and self.labels not in TAUGHT:
            raise ValueError("batches belong to labels relabels or teachers")
        if self.by_arch and not isinstance(self.lr, float):
            raise ValueError("by_arch belongs to a rate that is a number")
        return self

    @property
    def id(self) -> str:
        """`name@version`, as records quote it, with what was changed of the published one."""
        from stillroom.evaluation.published import PROTOCOLS, spelled

        base = f"{self.name}@{self.version}"
        return base + (spelled(PROTOCOLS[base], self) if base in PROTOCOLS else "")

    @property
    def ruled(self) -> tuple[str, ...]:
        """Fields that follow from the set or the student, and that nobody names."""
        rate = self.by_arch or not isinstance(self.lr, float)
        return (*(("batch",) if self.batches else ()), *(("lr",) if rate else ()))

    @property
    def passes(self) -> int:
        """Passes over the set that a student makes."""
        return self.epochs + ("one_extra_epoch" in self.quirks)

    def check_epochs(self) -> list[int]:
        """After how many passes a student is tested."""
        parts = self.tail * self.checks
        first = parts - self.checks
        return sorted({-(-self.passes * (first + k) // parts) for k in range(1, self.checks + 1)})

    def rates_of(self, learned: float | None) -> tuple[float, ...]:
        """The rates that a student is trained at; several only where they are searched.

        `learned` is that of the set, if it learned one.
        """
        if self.lr == "search":
            return self.rates
        if self.lr == "set":
            return (self.rates[0] if learned is None else learned,)
        return (self.lr,)

    def settled(self, images: int, classes: int, arch: str = "") -> Protocol:
        """The protocol with the batch of a set of so many images, and the rate of a student."""
        name = arch.rpartition("/")[2].replace("-", "").replace("_", "")
        batch = self.batch if self.batches is None else self.batches.of(images, classes)
        lr = next((rate for begin, rate in self.by_arch if name.startswith(begin)), self.lr)
        return self.model_copy(update={"batch": batch, "lr": lr})

    def digest(self) -> str:
        """Twelve hex digits over every field that changes a number."""
        fields = self.model_dump(mode="json")
        if not self.milestones:  # a field that came later; without it a protocol is what it was
            del fields["milestones"]
        return sha256(canonical(fields))[:12]
