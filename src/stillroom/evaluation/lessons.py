"""What students learn from: a set's own labels, or what trained networks say of its images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from stillroom.artefacts.carried import carried
from stillroom.artefacts.codecs import find_codec
from stillroom.artefacts.label_header import SOFT_CODEC, epoch_bytes
from stillroom.artefacts.label_shards import SOFT
from stillroom.artefacts.labels import Relabels
from stillroom.artefacts.originals import WEIGHTS, Original
from stillroom.artefacts.relabels import (
    SEED,
    Relabel,
    Relabelled,
    RelabelSpec,
    Teacher,
    teachers_of,
)
from stillroom.artefacts.stage import Stage
from stillroom.artefacts.store import Store
from stillroom.data.policy import Policy
from stillroom.data.replay import draw
from stillroom.data.views import apply
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import Protocol
from stillroom.files import canonical, sha256, sha256_file
from stillroom.nets.sources import Images, Source
from stillroom.nets.teaching import OnlineTeachers
from stillroom.runtime import Runtime
from stillroom.types import LabelKind, Preprocess

Regime = Literal["relabels", "teachers", "soft"]
PLAIN_BATCH = 256  # of images that are labelled as they are


@dataclass(frozen=True)
class Taught:
    """What students learn from: images in network space, and how the set wants them used.

    `label_bytes` of stored labels beside the set's own, `teacher_bytes` of the weights of networks
    that must be there while students are trained: both as they are on disk.
    """

    images: Source
    kind: LabelKind
    preprocess: Preprocess
    augment: str
    lr: float | None
    label_bytes: int = 0
    teacher_bytes: int = 0


@dataclass(frozen=True)
class Labelling:
    """Whose labels students get in place of a set's own, and how those are kept.

    `regime`: "relabels", stored ones of drawn views; "teachers", said as students are trained;
    "soft", one stored label of every image as it is. `keys` are those of the teaching networks,
    `teachers` the networks themselves, none where they are not to be had here. `codec`, `keep` and
    `seed` are of relabels. `carried`: the digest of labels that the set brings along, and
    `set_digest` which set; other sets get labels of the same kind made for them.
    """

    regime: Regime
    keys: tuple[str, ...]
    teachers: tuple[Original, ...] = ()
    codec: str = "fp16"
    keep: int | None = None
    seed: int = SEED
    carried: str = ""
    set_digest: str = ""

    def of_set(self, digest: str) -> Labelling:
        """The same for one set: it alone takes what it brings along."""
        return self if digest == self.set_digest else replace(self, carried="", set_digest="")

    def identity(self) -> dict[str, Any]:
        """Everything that determines the labels, beside the set and the protocol."""
        if self.carried:
            return {"regime": self.regime, "carried": self.carried}
        stored = {"codec": self.codec, "keep": self.keep, "seed": self.seed}
        own = stored if self.regime == "relabels" else {}
        return {"regime": self.regime, "teachers": list(self.keys), **own}

    def told(self, passes: int) -> str:
        """What a record says: the regime, who taught, and what is unusual about stored labels.

        The same for every set that was labelled so, whatever its images, for students of so many
        passes; rows are compared only where it is equal. Raises: OSError where online teachers are
        not made yet.
        """
        return self._in_words(self._who(), passes)

    def kind(self, passes: int) -> str:
        """The same by the keys of the teachers, which are known before they are made."""
        return self._in_words(self.keys, passes)

    def _in_words(self, who: Sequence[str], passes: int) -> str:
        found = [f"{self.regime}:{sha256(canonical(list(who)))[:8]}"]
        if self.regime == "relabels":
            found += [self.codec] if self.codec != "fp16" else []
            fewer = self.keep is not None and self.keep < passes
            found += [f"{self.keep} epochs"] if fewer else []
            found += [f"seed {self.seed}"] if self.seed != SEED else []
        return ",".join(found)

    def _who(self) -> Sequence[str]:
        """The teaching networks: online ones by their weights, else by their keys.

        A key holds the version of the code, and two versions that train the same networks give the
        same labels.
        """
        if self.regime != "teachers":
            return self.keys
        return [_digest(t.key(), Store(t.store).folder(t.key())) for t in self.teachers]

    def nbytes(self, images: int, classes: int, protocol: Protocol) -> int:
        """Bytes that stored labels of so many images take, by the formula: to choose a size by."""
        soft = find_codec(SOFT_CODEC).batch_bytes(images, classes)
        if self.regime == "teachers":
            return 0
        if self.regime == "soft":
            return soft
        kept, batch = min(self.keep or protocol.passes, protocol.passes), protocol.batch
        return soft + kept * epoch_bytes(images, classes, min(batch, images), self.codec)


@dataclass(frozen=True)
class Lesson:
    """One set under a protocol, with the labels of trained networks."""

    labelling: Labelling
    protocol: Protocol
    bench: dict[str, Any]
    set_digest: str
    images: int
    set_folder: Path
    store: Path

    def needs(self) -> Sequence[Stage]:
        """Labels that must be made, or the teachers that say them; none that a set carries."""
        if self.labelling.regime == "teachers":
            return self.labelling.teachers
        return () if self.labelling.carried else (self.stage(),)

    def stage(self) -> Relabel:
        """The stage of the stored labels of this set.

        One soft label an image comes with labels of one epoch, for the images as they are.
        """
        p, how, size = self.protocol, self.labelling, int(self.bench["size"])
        if how.regime == "soft":
            plain = Policy(size=size, scale=(1, 1), ratio=(1, 1), flip=False, mix="none")
            spec = RelabelSpec(epochs=1, batch=PLAIN_BATCH, policy=plain)
        else:
            assert p.view is not None
            spec = RelabelSpec(
                epochs=p.passes,
                batch=p.batch,
                policy=p.view.policy(size),
                codec=how.codec,
                keep=None if how.keep is None else min(how.keep, p.passes),
                seed=how.seed,
            )
        return Relabel(
            spec=spec,
            teachers=how.teachers,
            bench=self.bench,
            set_digest=self.set_digest,
            images=self.images,
            numerics="float32",
            set_folder=self.set_folder,
            store=self.store,
        )

    def taught(self, data: Distilled, rt: Runtime, students: int) -> Taught:
        """What so many students learn from."""
        own = of_set(data, rt)
        if self.labelling.regime == "teachers":
            return self._online(data, own, rt, students)
        stored = self._stored()
        if self.labelling.regime == "soft":
            soft = of_set(replace(data, labels=stored.soft(), label_kind="logits"), rt)
            return replace(soft, label_bytes=(stored.folder / SOFT).stat().st_size)
        images = relabelled(data, stored, rt)
        return replace(own, images=images, kind="logits", label_bytes=stored.nbytes)

    def _online(self, data: Distilled, own: Taught, rt: Runtime, students: int) -> Taught:
        assert self.protocol.view is not None
        stages, views = self.labelling.teachers, self.protocol.passes * len(data) * students
        teachers = teachers_of(stages, data.preprocess, self.bench, self.store, views, rt)
        policy = self.protocol.view.policy(int(self.bench["size"]))
        source = online(data, policy, teachers, rt)
        weights = sum(weight_bytes(stage, self.store) for stage in stages)
        return replace(own, images=source, kind="logits", teacher_bytes=weights)

    def _stored(self) -> Relabels:
        if not self.labelling.carried:
            stage = self.stage()
            return stage.load(Store(self.store).folder(stage.key()))
        found = carried(self.set_folder)
        if found is None or found.digest != self.labelling.carried:
            raise StillroomError(
                f"{self.set_folder}: the labels that it carries changed while it was judged; judge "
                "it again"
            )
        return found


@functools.lru_cache(maxsize=64)
def _digest(key: str, folder: Path) -> str:
    """Of the weights of a published network, which never change under their key."""
    return sha256_file(folder / "0000" / WEIGHTS)


def weight_bytes(teacher: Original, store: Path) -> int:
    """Bytes of the weights of a network in the store."""
    folder = Store(store).folder(teacher.key())
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def of_set(data: Distilled, rt: Runtime) -> Taught:
    """The images of a set with its own labels."""
    return Taught(_images(data, rt), data.label_kind, data.preprocess, data.augment, data.lr)


def relabelled(data: Distilled, stored: Relabels, rt: Runtime) -> Source:
    """The images of a set in the views that its stored labels are for."""
    images, of_class = data.images.to(rt.device, rt.dtype), data.of_class.to(rt.device)
    return Relabelled(images, data.preprocess, of_class, stored)


def online(data: Distilled, policy: Policy, teachers: Sequence[Teacher], rt: Runtime) -> Source:
    """The images of a set in views that teachers label as they are drawn, for each student anew."""
    size = data.images.shape[-1]

    def view(x: Tensor, seed: int, epoch: int, step: int) -> Tensor:
        drawn = draw(policy, len(x), (size, size), seed, "student", epoch, step)
        return apply(x, drawn, data.preprocess)

    return OnlineTeachers(_images(data, rt), tuple(teachers), view)


def _images(data: Distilled, rt: Runtime) -> Images:
    images = data.images.to(rt.device, rt.dtype)
    labels = data.labels.to(rt.device)
    return Images(
        lambda rows: images[rows.to(images.device)],
        labels.to(rt.dtype) if labels.is_floating_point() else labels,
        data.images.shape[-1],
        data.of_class.to(rt.device),
    )
