"""What students learn from: a set's own labels, or what trained networks say of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stillroom.artefacts.labels import Relabels
from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.originals import Original
from stillroom.artefacts.relabels import Relabelled, Teacher, teachers_of
from stillroom.data.policy import Policy
from stillroom.data.replay import draw
from stillroom.data.views import apply
from stillroom.distilled import Distilled
from stillroom.nets.sources import Images, Source
from stillroom.nets.teaching import OnlineTeachers
from stillroom.runtime import Runtime
from stillroom.types import LabelKind, Preprocess


@dataclass(frozen=True)
class Taught:
    """What students learn from: images in network space, and how the set wants them used."""

    images: Source
    kind: LabelKind
    preprocess: Preprocess
    augment: str
    lr: float | None


def of_set(data: Distilled, rt: Runtime) -> Taught:
    """The images of a set with its own labels."""
    return Taught(_images(data, rt), data.label_kind, data.preprocess, data.augment, data.lr)


def relabelled(data: Distilled, stored: Relabels, rt: Runtime) -> Source:
    """The images of a set in the views that its stored labels are for."""
    return Relabelled(data.images.to(rt.device, rt.dtype), data.of_class.to(rt.device), stored)


def trained_teachers(
    stages: Sequence[Original],
    data: Distilled,
    described: dict[str, Any],
    store: Path,
    views: int,
    rt: Runtime,
) -> tuple[Teacher, ...]:
    """Teachers that label so many views of a set in float32, compiled where that repays itself.

    As everything else they are sized by what they alone do: a forward of every view.
    """
    exact = replace(rt, numerics="float32")
    bench = open_bench(described, store, exact)
    forward = sum(nets_for(stage.arch, bench, exact).forward_flops() for stage in stages)
    exact = exact.sized(float(views * forward), functions=len(stages))
    return teachers_of(stages, data.preprocess, described, store, exact)


def online(data: Distilled, policy: Policy, teachers: Sequence[Teacher], rt: Runtime) -> Source:
    """The images of a set in views that teachers label as they are drawn, for each student anew."""
    size = data.images.shape[-1]

    def view(x: Tensor, seed: int, epoch: int, step: int) -> Tensor:
        return apply(x, draw(policy, len(x), (size, size), seed, "student", epoch, step))

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
