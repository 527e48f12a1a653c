"""`Relabel`: the stage in which trained networks label drawn views of a set, epoch by epoch.

Source: FKD (Shen and Xing 2021, arXiv:2112.01528) as SRe2L (arXiv:2306.13092), G-VBSM
(arXiv:2311.17950) and EDC (arXiv:2404.13733) use it; spec of the decoupled methods, section 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from stillroom.artefacts.codecs import find_codec
from stillroom.artefacts.label_header import SHARD_BYTES, Header, Told
from stillroom.artefacts.label_shards import Batch as Stored
from stillroom.artefacts.label_shards import finish, write_shard, write_soft
from stillroom.artefacts.labels import Relabels
from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.originals import Original, OriginalModel, opened
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.store import Store
from stillroom.config import Model
from stillroom.data.policy import Policy
from stillroom.data.views import apply
from stillroom.distilled import load, set_digest
from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.losses import Target
from stillroom.nets.sources import Batch
from stillroom.nets.train import Training
from stillroom.runtime import Runtime
from stillroom.types import Preprocess

TOGETHER = 256  # views of one forward
SEED = 42  # of the draws, where nobody names another; that of the released code


class RelabelSpec(Model):
    """How many labels, of which views, stored how; teachers and set are given beside it."""

    epochs: int = Field(ge=1, strict=True, description="epochs that a student is to train")
    batch: int = Field(ge=1, strict=True, description="images a batch, which is mixed in itself")
    policy: Policy = Field(description="crops, flips, patch shuffle and mix")
    codec: str = Field("fp16", description="how logits are stored: fp16, int8 or topk:K")
    keep: int | None = Field(
        None, ge=1, strict=True, description="epochs of labels; of fewer they are used again"
    )
    seed: int = Field(SEED, ge=-(2**63), lt=2**63, strict=True, description="of the draws")


@dataclass(frozen=True)
class Relabel(Stage):
    """Labels of one set by the mean of the teachers' logits, for views that are drawn again.

    `set_folder` is where the set lies now, `set_digest` what it must be. Shards are epochs.
    """

    kind: ClassVar[str] = "relabels"
    version: ClassVar[int] = 2  # with the soft labels
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/relabels.py",
        "artefacts/codecs.py",
        "artefacts/label_header.py",
        "artefacts/label_shards.py",
        "artefacts/labels.py",
    )

    spec: RelabelSpec
    teachers: tuple[Original, ...]
    bench: dict[str, Any]
    set_digest: str
    images: int
    numerics: str
    set_folder: Path = field(compare=False)
    store: Path = field(compare=False)

    def identity(self) -> dict[str, Any]:
        """Everything that determines the labels; the header says it all."""
        return {"header": self.header().model_dump(mode="json"), "numerics": self.numerics}

    def about(self) -> str:
        """What it is, for a listing."""
        names = ", ".join(t.arch.name for t in self.teachers)
        return f"{self.spec.epochs} epochs of set {self.set_digest[:8]} by {names}"[:120]

    def header(self) -> Header:
        """What the labels are labels of.

        Raises: StillroomError if no such labels can be stored.
        """
        try:
            return self._header()
        except ValidationError as error:
            why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise StillroomError(f"no labels for views of this set can be stored: {why}") from None

    def _header(self) -> Header:
        spec, side = self.spec, int(self.bench["size"])
        return Header(
            images=self.images,
            classes=len(self.bench["classes"]),
            source=(side, side),
            epochs=spec.epochs,
            kept=min(spec.epochs, spec.keep or spec.epochs),
            batch=min(spec.batch, self.images),
            codec=spec.codec,
            policy=spec.policy,
            seed=spec.seed,
            set_digest=self.set_digest,
            teachers=tuple(t.key() for t in self.teachers),
        )

    def needs(self) -> Sequence[Stage]:
        """The teachers."""
        return self.teachers

    def shards(self) -> int:
        """As many as keep one below some megabytes."""
        header = self.header()
        return -(-header.kept // self._epochs_a_shard(header))

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Label the epochs of one shard; with the first, the images as they are.

        Raises: StillroomError if the set is not the one of `set_digest` any more.
        """
        if set_digest(self.set_folder) != self.set_digest:
            raise StillroomError(
                f"{self.set_folder}: the set changed while it was labelled; label it again"
            )
        header = self.header()
        each = self._epochs_a_shard(header)
        first = shard * each
        epochs = range(first, min(first + each, header.kept))
        made = load(self.set_folder)
        views = header.kept * header.images
        teachers = teachers_of(self.teachers, made.preprocess, self.bench, self.store, views, rt)
        images = made.images.to(rt.device)
        if shard == 0:
            write_soft(out, header, mean_logits(teachers, images).float().cpu())
        rt.session.begin("relabels", header.kept, first)
        write_shard(
            out,
            header,
            first,
            self._labelled(header, epochs, images, made.preprocess, teachers, rt),
        )
        rt.session.end()

    def finish(self, parts: list[Path], folder: Path) -> None:
        """Put the shards together under one manifest."""
        finish(folder, self.header(), parts, [told_of(teacher) for teacher in self.teachers])

    def load(self, folder: Path) -> Relabels:
        """The labels, checked."""
        return Relabels.open(folder, images=self.images, set_digest=self.set_digest)

    def _epochs_a_shard(self, header: Header) -> int:
        each = header.coder.batch_bytes(header.images, header.classes)
        return max(1, min(header.kept, SHARD_BYTES // each))

    def _labelled(
        self,
        header: Header,
        epochs: range,
        images: Tensor,
        preprocess: Preprocess,
        teachers: Sequence[Teacher],
        rt: Runtime,
    ) -> Iterator[Stored]:
        for epoch in epochs:
            for rows, drawn in header.draws(epoch):
                views = apply(images[rows.to(images.device)], drawn, preprocess)
                yield rows, drawn, mean_logits(teachers, views).float().cpu()
            rt.session.update(epoch + 1)
            rt.session.check()


def told_of(teacher: Original) -> Told:
    """How a teacher was trained, for the manifest."""
    schooling = teacher.schooling.model_dump(mode="json")
    return Told(
        arch=teacher.arch.name,
        index=teacher.index,
        schooling=schooling,
        weights=teacher.weights,
    )


@dataclass(frozen=True)
class Teacher:
    """A trained network that is shown images of a set, in its own space; without gradient."""

    nets: Ensemble
    space: Preprocess
    preprocess: Preprocess

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """x [B,ch,H,W] in the set's space -> logits [1,B,C]."""
        if not _same(self.space, self.preprocess):
            x = self.space.apply(self.preprocess.invert(x)).to(x)
        return self.nets.logits(x.to(self.nets.nets.rt.dtype))


def teachers_of(
    stages: Sequence[Original],
    preprocess: Preprocess,
    described: dict[str, Any],
    store: Path,
    views: int,
    rt: Runtime,
) -> tuple[Teacher, ...]:
    """The networks of the store, for so many images in the space of `preprocess`.

    In float32, whatever students are trained in. Compiled where that repays itself: as everything
    else they are sized by what they alone do, a forward of every view.
    """
    rt = dataclasses.replace(rt, numerics="float32")
    bench = open_bench(described, store, rt)
    forward = sum(nets_for(stage.arch, bench, rt).forward_flops() for stage in stages)
    rt = rt.sized(float(views * forward), functions=len(stages))
    models: list[OriginalModel] = [s.load(Store(store).folder(s.key())) for s in stages]
    return tuple(Teacher(opened(m, bench, rt), m.space(bench), preprocess) for m in models)


def mean_logits(teachers: Sequence[Teacher], views: Tensor) -> Tensor:
    """The mean over teachers of their logits for views [B,ch,H,W]: [B,C]."""
    parts = [
        torch.cat([teacher.logits(some) for teacher in teachers]).mean(0)
        for some in views.split(TOGETHER)
    ]
    return torch.cat(parts)


def _same(a: Preprocess, b: Preprocess) -> bool:
    return a.zca is None and b.zca is None and (a.mean, a.std) == (b.mean, b.std)


def unlike(codec: str, loss: str) -> str:
    """Why a loss cannot be computed from what a codec gives back, or nothing."""
    if loss != "mse_gt" or find_codec(codec).keeps_logits:
        return ""
    return (
        f"loss=mse_gt compares logits and codec={codec} keeps probabilities of the largest; make "
        "labels in fp16 or int8, or train by a loss of softmax, such as kl (sre2l@1)"
    )


@dataclass(frozen=True)
class Relabelled:
    """A set with stored labels, as the trainer takes it: the same views for every student.

    images float [N,ch,H,W] in network space, which `preprocess` leads to, and of_class int64 [N],
    on the device.
    """

    images: Tensor
    preprocess: Preprocess
    of_class: Tensor
    relabels: Relabels

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, training: Training, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches that were labelled, in their order, whatever the seed.

        Raises: StillroomError if the training has other batches, an augmentation of its own, or a
        loss that needs logits where the codec kept none.
        """
        header = self.relabels.header
        if wrong := unlike(header.codec, training.objective.loss):
            raise StillroomError(wrong)
        if training.augment.words or min(training.batch, len(self)) != header.batch:
            raise StillroomError(
                f"labels are for batches of {header.batch} in views of their own; train with that "
                f"batch, now {training.batch}, and without augmentation"
            )
        for rows, drawn, logits in self.relabels.epoch(epoch):
            rows = rows.to(self.images.device)
            target = Target(logits.to(self.images), "logits", self.of_class[rows])
            yield Batch(apply(self.images[rows], drawn, self.preprocess), target)
