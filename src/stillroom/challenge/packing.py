"""Sets as a submission: what differs between the two is converted, or refused by name."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.challenge.parts import IPC, Part
from stillroom.challenge.truth import part_of, preprocess
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError


def packed(
    data: Distilled, name: str, bench: Benchmark | None = None
) -> tuple[Part, Tensor, list[str]]:
    """Convert a set to its part of a submission: the part, its images, what was converted.

    `bench` gives the order of classes by name, which is that of the test images; without it the
    set's own order is taken, and must be that of its data.
    Raises: StillroomError if the set has not ten images of each class, or other classes.
    """
    part = part_of(len(data.classes), data.images.shape[-1], name)
    notes = []
    if data.images.shape[1] != 3 or data.tiles > 1:
        raise StillroomError(f"{name}: canvases and grey images cannot be submitted")
    counts = torch.bincount(data.of_class, minlength=part.classes)
    if bool((counts != IPC).any()):
        c = int((counts != IPC).nonzero()[0])
        raise StillroomError(
            f"{name}: class {data.classes[c]!r} has {int(counts[c])} images; a submission has {IPC}"
        )
    order = _order(data, name, bench)
    if bench is None:
        notes.append(
            "classes in the set's own order, which must be that of the test images "
            f"(--{part.name} DATA puts them so by name)"
        )
    if order != list(range(part.classes)):
        notes.append("classes put into the order of the test images, by name")
    if data.label_kind != "hard":
        notes.append(
            f"its {data.label_kind} are left behind: students there get classes, so expect less "
            "than under its own protocol"
        )
    if data.lr is not None:
        notes.append(f"its learned rate {data.lr:g} is left behind: 0.01 there")
    space = preprocess(part)
    images = data.images
    if data.preprocess.zca is not None or data.preprocess != space:
        was = "whitening (ZCA)" if data.preprocess.zca else data.preprocess.name
        notes.append(f"from {was} to the constants of the challenge")
        images = space.apply(data.preprocess.invert(data.images))
    rows = [(data.of_class == c).nonzero().squeeze(1) for c in order]
    return part, images[torch.cat(rows)], notes


def _order(data: Distilled, name: str, bench: Benchmark | None) -> list[int]:
    """The set's class numbers in the order of the test images."""
    if bench is None or bench.classes == data.classes:
        return list(range(len(data.classes)))
    if sorted(bench.classes) != sorted(data.classes):
        odd = next(iter(set(data.classes) - set(bench.classes)), data.classes[0])
        raise StillroomError(
            f"{name}: class {odd!r} is none of {bench.name}, by whose names classes are ordered"
        )
    places = {label: c for c, label in enumerate(data.classes)}
    return [places[label] for label in bench.classes]
