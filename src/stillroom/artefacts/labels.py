"""`Relabels`: stored labels of a set, checked and given batch by batch with their draws.

A batch's logits are stored; its views are not, but drawn again from the frozen generator, and a
digest of the draw beside the logits says whether it is the same. Beside them lies one soft label an
image, for who has no use for views. Nothing is pickled, PyTorch's loader is not involved, and a
folder from elsewhere is checked before anything of it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from stillroom.artefacts.codecs import find_codec
from stillroom.artefacts.label_header import SOFT_CODEC, Header, Told, batch_digest
from stillroom.artefacts.label_shards import (
    FORMAT,
    MANIFEST,
    SOFT,
    Batch,
    Shard,
    inspect_shard,
    inspect_soft,
    open_shard,
    refuse_link,
    shard_file,
)
from stillroom.config import Model
from stillroom.data.frozen import FROZEN
from stillroom.data.policy import Policy
from stillroom.errors import StillroomError
from stillroom.files import canonical, read_json, sha256, sha256_file, user_path

MAX_MANIFEST_BYTES = 16 * 2**20
M = TypeVar("M", bound=Model)


@dataclass(frozen=True, eq=False)
class Relabels:
    """Stored labels of a set; `open` checks them, `epoch` gives them batch by batch.

    `digest` is over all of them, `told` how the teachers were trained, in the order of their keys
    in the header; empty where nobody says.
    """

    folder: Path
    header: Header
    shards: tuple[Shard, ...]
    soft_sha256: str
    digest: str
    told: tuple[Told, ...] = ()
    # Files whose SHA-256 was found right.
    _sound: set[Path] = field(default_factory=set, init=False, repr=False)

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
        policy: Policy | None = None,
    ) -> Relabels:
        """Read the manifest and the heads of all shards; what is given must be theirs.

        `epochs`, how long a student is to train, may be less than the labels are for.
        Raises: StillroomError with the reason if the labels are for another set, batch, length or
        other views, of another version of the format or generator, or damaged.
        """
        folder = user_path(folder, "labels")
        manifest, digest = _manifest(folder / MANIFEST)
        header = _valid(Header, folder / MANIFEST, manifest["header"])
        of_set = {"images": images, "classes": classes, "set_digest": set_digest}
        wrong = misfit(header, **of_set, batch=batch, epochs=epochs, policy=policy)
        if wrong:
            raise StillroomError(f"{folder}: {wrong}; make the labels again")
        if len(manifest["told"]) not in (0, len(header.teachers)):
            raise StillroomError(f"{folder / MANIFEST}: tells of other teachers than it has")
        told = [_valid(Told, folder / MANIFEST, one) for one in manifest["told"]]
        shards = _shards(folder, header, manifest["shards"])
        inspect_soft(folder / SOFT, header)
        return cls(folder, header, shards, manifest["soft"], digest, tuple(told))

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that the labels are made of."""
        return (
            self.folder / MANIFEST,
            self.folder / SOFT,
            *(shard.path for shard in self.shards),
        )

    @property
    def nbytes(self) -> int:
        """Bytes on disk: manifest, soft labels and shards."""
        return sum(path.stat().st_size for path in self.files)

    def verify(self) -> None:
        """Read every file once. Raises: StillroomError naming the one that is damaged."""
        self._verify(self.folder / SOFT, self.soft_sha256)
        for shard in self.shards:
            self._verify(shard.path, shard.sha256)

    def copy(self, folder: Path) -> None:
        """Copy the files into a folder, which may exist; into their own nothing is to be done.

        Raises: StillroomError naming a file that is damaged.
        """
        self.verify()
        folder.mkdir(parents=True, exist_ok=True)
        if folder.samefile(self.folder):
            return
        for path in self.files:
            shutil.copyfile(path, folder / path.name)

    def soft(self) -> Tensor:
        """The one soft label an image: the mean of the teachers' logits for it as it is stored.

        float32 [N,C], rounded to float16.
        Raises: StillroomError if it is damaged.
        """
        path = self.folder / SOFT
        self._verify(path, self.soft_sha256)
        coder = find_codec(SOFT_CODEC)
        with open_shard(path) as archive:
            stored = {name: archive.get_tensor(name) for name in coder.layout(self.header.classes)}
        try:
            return coder.decode(stored, self.header.classes)
        except StillroomError as error:
            raise StillroomError(f"{path}: {error}") from None

    def epoch(self, e: int) -> Iterator[Batch]:
        """The batches of epoch e: (rows int64 [B], how views are made, logits float32 [B,C]).

        Epochs beyond the kept ones are these again, from the first on.
        Raises: StillroomError if labels are damaged, or made for other draws than are drawn here.
        """
        e %= self.header.kept
        shard = next(s for s in self.shards if e < s.first + s.epochs)
        self._verify(shard.path, shard.sha256)
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

    def _verify(self, path: Path, wanted: str) -> None:
        """Read a whole file once, at its first use: safetensors loads a flipped bit silently."""
        refuse_link(path)
        if path not in self._sound and sha256_file(path) != wanted:
            raise StillroomError(
                f"{path}: was altered or damaged (its SHA-256 does not match); copy it again"
            )
        self._sound.add(path)


_WHY = {
    "images": "labels are for {} images and the set has {}; they belong to another set",
    "classes": "labels are of {} classes and the set has {}; they belong to another set",
    "set_digest": "labels are for the set {} and this one is {}; its images or own labels changed",
    "batch": "labels are for batches of {} and not of {}, and a mix holds for its batch only",
    "epochs": "labels are for {} epochs and not for {}",
    "policy": "labels are for views by {} and not by {}",
}


def misfit(header: Header, **given: Any) -> str:
    """Why labels are not those that are asked for, or nothing; None asks for nothing.

    given: fields of the header, and `epochs` that may be fewer than the labels are for.
    """
    for name, value in given.items():
        own = getattr(header, name)
        if value is None or value == own or (name == "epochs" and value < own):
            continue
        return _WHY[name].format(*_differing(own, value) if name == "policy" else (own, value))
    return ""


def _differing(a: Policy, b: Policy) -> tuple[str, str]:
    """The fields in which two policies differ, as each has them."""
    names = [n for n in Policy.model_fields if getattr(a, n) != getattr(b, n)]
    first, second = (", ".join(f"{n} {getattr(p, n)}" for n in names) for p in (a, b))
    return first, second


def _manifest(path: Path) -> tuple[dict[str, Any], str]:
    refuse_link(path)
    manifest = read_json(path, MAX_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise StillroomError(f"{path}: not the manifest of stored labels (no 'format')")
    if manifest["format"] != FORMAT:
        raise StillroomError(
            f"{path}: format {str(manifest['format'])[:20]}, this version reads {FORMAT}; "
            "update stillroom or make the labels again"
        )
    kinds = {"header": dict, "told": list, "soft": str, "shards": list, "digest": str}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise StillroomError(f"{path}: field {name!r} is absent or of the wrong type")
    digest = str(manifest.pop("digest"))
    if sha256(canonical(manifest)) != digest:
        raise StillroomError(f"{path}: was altered or damaged (its digest does not match)")
    if (frozen := manifest["header"].get("frozen")) != FROZEN:
        raise StillroomError(
            f"{path}: drawn by version {str(frozen)[:20]} of the frozen generator, "
            f"this stillroom has version {FROZEN}; use the other stillroom or make the labels again"
        )
    return manifest, digest[:16]


def _valid(model: type[M], path: Path, value: Any) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80] or model.__name__.lower()
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
