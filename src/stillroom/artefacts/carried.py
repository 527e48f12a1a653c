"""Labels of teachers that a set carries: the folder `relabels/` beside its `meta.json`.

What the set itself is, its digest and its bytes, does not depend on them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from stillroom import distilled
from stillroom.artefacts.label_shards import MANIFEST, refuse_link
from stillroom.artefacts.labels import Relabels
from stillroom.distilled import RELABELS, Distilled, label_bytes, set_bytes, set_digest
from stillroom.errors import StillroomError
from stillroom.files import fresh_folder, user_path


def load(folder: str | Path) -> Distilled:
    """Read and verify a set, with the labels of teachers that it may carry.

    These stay on disk: `Distilled.relabels` gives them batch by batch, each shard verified when it
    is first read.
    Raises: StillroomError as `distilled.load`, or if the labels are damaged or of another set.
    """
    return replace(distilled.load(folder), relabels=carried(user_path(folder, "set")))


def carried(folder: Path) -> Relabels | None:
    """The labels that a set carries, checked to be its own; None if it carries none.

    Raises: StillroomError if they are damaged or of another set.
    """
    below = folder / RELABELS
    refuse_link(below)
    if not below.is_dir():
        return None
    found = Relabels.open(below)
    if found.header.set_digest != (own := set_digest(folder)):
        raise StillroomError(
            f"{below}: labels are for the set {found.header.set_digest} and this one is {own}; "
            "its images or own labels changed, so make the labels again"
        )
    return found


def carry(labels: Relabels, folder: Path) -> None:
    """Put labels into a set's folder, whole or not at all, in place of others."""
    with fresh_folder(folder / RELABELS) as fresh:
        labels.copy(fresh)


def holds_labels(folder: Path) -> bool:
    """Whether there are labels of some kind, read or not."""
    return (folder / RELABELS / MANIFEST).is_file()


class Sizes(NamedTuple):
    """Bytes on disk: of images with metadata and hard labels, and of soft labels of all kinds."""

    images: int
    labels: int

    @property
    def all(self) -> int:
        """Everything."""
        return self.images + self.labels


def sizes(folder: Path) -> Sizes:
    """What a set takes on disk, read off its files; pictures and records are for people.

    Raises: StillroomError if its labels are damaged.
    """
    found, own = carried(folder), label_bytes(folder)
    return Sizes(set_bytes(folder) - own, own + (0 if found is None else found.nbytes))
