"""`Relabels`: stored labels of a set, checked and given batch by batch with their draws.

A batch's logits are stored; its views are not, but drawn again from the frozen generator, and a
digest of the draw beside the logits says whether it is the same. Nothing is pickled, PyTorch's
loader is not involved, and a folder from elsewhere is checked before anything of it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from stillroom.artefacts.label_header import Header, batch_digest
from stillroom.artefacts.label_shards import (
    FORMAT,
    MANIFEST,
    Batch,
    Shard,
    inspect_shard,
    open_shard,
    shard_file,
)
from stillroom.data.frozen import FROZEN
from stillroom.errors import StillroomError
from stillroom.files import canonical, read_json, sha256, sha256_file, user_path

MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Relabels:
    """Stored labels of a set; `open` checks them, `epoch` gives them batch by batch."""

    folder: Path
    header: Header
    shards: tuple[Shard, ...]
    # Numbers of the shards whose SHA-256 was found right.
    _sound: set[int] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        images: int | None = None,
        classes: int | None = None,
        set_digest: str | None = None,
        batch: int | None = None,
        epochs: int | None = None,
    ) -> Relabels:
        """Read the manifest and the heads of all shards; what is given must be theirs.

        `epochs`, how long a student is to train, may be less than the labels are for.
        Raises: StillroomError with the reason if the labels are for another set, batch or length,
        of another version of the format or generator, or damaged.
        """
        folder = user_path(folder, "labels")
        manifest = _manifest(folder / MANIFEST)
        header = _header(folder / MANIFEST, manifest["header"])
        given = {"images": images, "classes": classes, "set_digest": set_digest, "batch": batch}
        for name, value in given.items():
            if value is not None and value != getattr(header, name):
                raise StillroomError(f"{folder}: {_WHY[name].format(getattr(header, name), value)}")
        if epochs is not None and epochs > header.epochs:
            raise StillroomError(f"{folder}: {_WHY['epochs'].format(header.epochs, epochs)}")
        return cls(folder, header, _shards(folder, header, manifest["shards"]))

    @property
    def nbytes(self) -> int:
        """Bytes on disk: manifest and shards."""
        paths = [self.folder / MANIFEST, *(shard.path for shard in self.shards)]
        return sum(path.stat().st_size for path in paths)

    def epoch(self, e: int) -> Iterator[Batch]:
        """The batches of epoch e: (rows int64 [B], how views are made, logits float32 [B,C]).

        Epochs beyond the kept ones are these again, from the first on.
        Raises: StillroomError if labels are damaged, or made for other draws than are drawn here.
        """
        e %= self.header.kept
        number, shard = next((i, s) for i, s in enumerate(self.shards) if e < s.first + s.epochs)
        self._verify(number)
        coder, begin = self.header.coder, 0
        with open_shard(shard.path) as archive:
            parts = {n: archive.get_slice(n) for n in coder.layout(self.header.classes)}
            digests = archive.get_slice("digests")[e - shard.first]
            for i, (rows, drawn) in enumerate(self.header.draws(e)):
                if not torch.equal(digests[i], batch_digest(rows, drawn)):
                    raise StillroomError(
                        f"{shard.path}: batch {i} of epoch {e} was labelled under another draw "
                        "than is drawn here; make the labels again"
                    )
                end = begin + len(rows)
                stored = {n: part[e - shard.first, begin:end] for n, part in parts.items()}
                try:
                    logits = coder.decode(stored, self.header.classes)
                except StillroomError as error:
                    raise StillroomError(f"{shard.path}: epoch {e}, batch {i}: {error}") from None
                yield rows, drawn, logits
                begin = end

    def _verify(self, number: int) -> None:
        """Read a whole shard once, at its first use: safetensors loads a flipped bit silently."""
        shard = self.shards[number]
        if number not in self._sound and sha256_file(shard.path) != shard.sha256:
            raise StillroomError(
                f"{shard.path}: was altered or damaged (its SHA-256 does not match); copy it again"
            )
        self._sound.add(number)


_WHY = {
    "images": "labels are for {} images and the set has {}; they belong to another set",
    "classes": "labels are of {} classes and the set has {}; they belong to another set",
    "set_digest": "labels are for the set {} and this one is {}; make the labels again",
    "batch": "labels are for batches of {} and not of {}, and a mix holds for its batch only; "
    "train with the former, or make the labels again",
    "epochs": "labels are for {} epochs and not for {}; train shorter, or make the labels again",
}


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path, MAX_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise StillroomError(f"{path}: not the manifest of stored labels (no 'format')")
    if manifest["format"] != FORMAT:
        raise StillroomError(
            f"{path}: format {str(manifest['format'])[:20]}, this version reads {FORMAT}; "
            "update stillroom or make the labels again"
        )
    kinds = {"header": dict, "shards": list, "digest": str}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise StillroomError(f"{path}: field {name!r} is absent or of the wrong type")
    digest = manifest.pop("digest")
    if sha256(canonical(manifest)) != digest:
        raise StillroomError(f"{path}: was altered or damaged (its digest does not match)")
    return manifest


def _header(path: Path, value: dict[str, Any]) -> Header:
    if value.get("frozen") != FROZEN:
        raise StillroomError(
            f"{path}: drawn by version {str(value.get('frozen'))[:20]} of the frozen generator, "
            f"this stillroom has version {FROZEN}; use the other stillroom or make the labels again"
        )
    try:
        return Header.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80] or "header"
        why = first["msg"].removeprefix("Value error, ")
        raise StillroomError(f"{path}: {where}: {why}; make the labels again") from None


def _shards(folder: Path, header: Header, told: list[Any]) -> tuple[Shard, ...]:
    found: list[Shard] = []
    reached = 0
    for one in told:
        if not isinstance(one, dict) or one.get("first") != reached or reached >= header.kept:
            raise StillroomError(f"{folder / MANIFEST}: its shards are not in a row")
        shard = inspect_shard(folder / shard_file(reached), header)
        if one.get("epochs") != shard.epochs or not isinstance(one.get("sha256"), str):
            raise StillroomError(
                f"{shard.path}: {shard.epochs} epochs, the manifest says otherwise"
            )
        found.append(Shard(shard.path, reached, shard.epochs, one["sha256"]))
        reached += shard.epochs
    if reached != header.kept:
        raise StillroomError(
            f"{folder / MANIFEST}: {header.kept} epochs are kept and its shards hold {reached}"
        )
    return tuple(found)
