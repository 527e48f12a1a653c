"""Shards of stored labels: some epochs each, in one safetensors file, written whole or not at all.

`write_shard` and `stored_epochs` let a killed run go on; `finish` makes a container of them and of
the one soft label an image that `write_soft` wrote.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stillroom.artefacts.codecs import find_codec
from stillroom.artefacts.label_header import DIGEST, SOFT_CODEC, Header, Told, batch_digest
from stillroom.data.replay import MixDraw
from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256, sha256_file, write_atomic, write_json

FORMAT = 2  # 1 had no soft labels
MANIFEST = "relabels.json"
SOFT = "soft.safetensors"
MAX_SHARD_BYTES = 8 * 2**30
MAX_HEAD_BYTES = 2**16  # names, types and places of some tensors; a foreign one could fill memory
_DTYPES = {"F16": "float16", "I16": "int16", "I32": "int32", "U8": "uint8"}
Batch = tuple[Tensor, MixDraw, Tensor]


@dataclass(frozen=True)
class Shard:
    """One file: epochs first .. first + epochs - 1."""

    path: Path
    first: int
    epochs: int
    sha256: str = ""


def write_shard(folder: Path, header: Header, first: int, batches: Iterable[Batch]) -> int:
    """Store the labels of whole epochs from `first` on in one file; returns how many epochs.

    batches: (rows, draw, logits float32 [B,C]), those of `header.draws` of each epoch in turn.
    All are held in memory, then written at once or, if the process dies, not at all.
    Raises: StillroomError for batches of other sizes, a part of an epoch, more epochs than are
    kept, or logits that the codec refuses.
    """
    tensors: dict[str, list[Tensor]] = {}
    count = 0
    for rows, drawn, logits in batches:
        last = count % header.steps == header.steps - 1
        size = header.images - (header.steps - 1) * header.batch if last else header.batch
        if logits.shape != (size, header.classes) or len(rows) != size:
            raise StillroomError(
                f"batch {count} of labels has {len(rows)} images and logits {list(logits.shape)}; "
                f"[{size},{header.classes}] is its turn"
            )
        for name, value in header.coder.encode(logits).items():
            tensors.setdefault(name, []).append(value)
        tensors.setdefault("digests", []).append(batch_digest(rows, drawn)[None])
        count += 1
    epochs, left = divmod(count, header.steps)
    if left or not epochs or first < 0 or first + epochs > header.kept:
        raise StillroomError(
            f"{count} batches from epoch {first} on are not whole epochs of {header.steps} batches "
            f"below {header.kept}; give all batches of an epoch"
        )
    stored = {n: torch.cat(t).unflatten(0, (epochs, -1)) for n, t in sorted(tensors.items())}
    blob = save(stored, metadata={"stillroom": _told(header, first, epochs)})
    write_atomic(folder / shard_file(first), blob)
    return epochs


def write_soft(folder: Path, header: Header, logits: Tensor) -> None:
    """Store the one soft label an image: logits float32 [N,C] for the plain stored images.

    Raises: StillroomError for another shape, or logits that float16 cannot hold.
    """
    if logits.shape != (header.images, header.classes):
        raise StillroomError(
            f"soft labels are {list(logits.shape)}; [{header.images},{header.classes}] is theirs"
        )
    stored = find_codec(SOFT_CODEC).encode(logits)
    write_atomic(folder / SOFT, save(stored, metadata={"stillroom": _told_soft(header)}))


def inspect_soft(path: Path, header: Header) -> None:
    """Judge the one soft label an image from the head of its file.

    Raises: StillroomError if it is not that of `header`, or the file is no whole one.
    """
    layout = find_codec(SOFT_CODEC).layout(header.classes)
    wanted = {name: (dtype, [header.images, n]) for name, (dtype, n) in layout.items()}
    with open_shard(path) as archive:
        parts = {name: archive.get_slice(name) for name in sorted(archive.keys())[:2]}
        found = {n: (_DTYPES.get(p.get_dtype()), p.get_shape()) for n, p in parts.items()}
        if found != wanted:
            raise StillroomError(f"{path}: must hold {wanted} alone; make the labels again")
        if (archive.metadata() or {}).get("stillroom") != _told_soft(header):
            raise StillroomError(f"{path}: soft labels of another set; make the labels again")


def stored_epochs(folder: Path, header: Header) -> int:
    """How many epochs, from 0 on without a gap, the shards in `folder` hold: where to go on.

    Raises: StillroomError for a shard that is damaged or of other labels.
    """
    return sum(shard.epochs for shard in _stored(folder, header))


def finish(
    folder: Path, header: Header, parts: Sequence[Path] = (), told: Sequence[Told] = ()
) -> None:
    """Write the manifest of a folder that holds all shards; those in `parts` are moved there first.

    `told`: how the teachers were trained, in the order of their keys in the header. Called again
    after it was killed, it goes on.
    Raises: StillroomError if epochs or the soft labels are missing.
    """
    for part in parts:
        for path in sorted([*part.glob(shard_file("*")), *part.glob(SOFT)]):
            os.replace(path, folder / path.name)
    shards = _stored(folder, header)
    reached = sum(shard.epochs for shard in shards)
    if reached != header.kept:
        raise StillroomError(
            f"{folder}: labels of epoch {reached} are missing, {header.kept} epochs are to be "
            "kept; write them first"
        )
    inspect_soft(folder / SOFT, header)
    manifest = {
        "format": FORMAT,
        "header": header.model_dump(mode="json"),
        "told": [teacher.model_dump(mode="json") for teacher in told],
        "soft": sha256_file(folder / SOFT),
        "shards": [
            {"first": s.first, "epochs": s.epochs, "sha256": sha256_file(s.path)} for s in shards
        ],
    }
    write_json(folder / MANIFEST, manifest | {"digest": sha256(canonical(manifest))})


def _stored(folder: Path, header: Header) -> list[Shard]:
    """The shards from epoch 0 on without a gap."""
    shards: list[Shard] = []
    while (path := folder / shard_file(sum(s.epochs for s in shards))).exists():
        shards.append(inspect_shard(path, header))
    return shards


def shard_file(first: int | str) -> str:
    """The name of the shard that begins with epoch `first`, or a pattern of such names."""
    return f"labels-{first if isinstance(first, str) else f'{first:06d}'}.safetensors"


def _told(header: Header, first: int, epochs: int) -> str:
    """What a shard says of itself. One key only: of more, safetensors' bytes differ every time."""
    return canonical({"format": FORMAT, "header": header.digest, "first": first, "epochs": epochs})


def _told_soft(header: Header) -> str:
    return canonical({"format": FORMAT, "header": header.digest, "soft": True})


def inspect_shard(path: Path, header: Header) -> Shard:
    """What a shard holds, from its head alone: names, types and shapes are those of `header`.

    Raises: StillroomError if they are not, or the file is no whole one.
    """
    first = int(path.name[len("labels-") :].split(".")[0])
    layout = header.coder.layout(header.classes)
    rows = {name: (dtype, [header.images, n]) for name, (dtype, n) in layout.items()}
    rows["digests"] = ("uint8", [header.steps, DIGEST])
    with open_shard(path) as archive:
        if set(archive.keys()) != set(rows):
            raise StillroomError(f"{path}: its tensors are not those of codec {header.codec!r}")
        epochs = max(archive.get_slice("digests").get_shape()[:1], default=0)
        for name, (dtype, shape) in rows.items():
            part = archive.get_slice(name)
            if _DTYPES.get(part.get_dtype()) != dtype or part.get_shape() != [epochs, *shape]:
                raise StillroomError(
                    f"{path}: {name!r} is {part.get_dtype()} {part.get_shape()}, expected {dtype} "
                    f"{[epochs, *shape]}"
                )
        if (archive.metadata() or {}).get("stillroom") != _told(header, first, epochs):
            raise StillroomError(f"{path}: a shard of other labels; make the labels again")
    if not 1 <= epochs <= header.kept - first:
        raise StillroomError(f"{path}: holds epochs {first}..{first + epochs - 1}, too many")
    return Shard(path, first, epochs)


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A shard as `safe_open` gives it.

    Raises: StillroomError if there is none, or it is cut off, a link, no safetensors file or too
    large.
    """
    refuse_link(path)
    if not path.is_file():
        raise StillroomError(f"{path}: no such file; the labels are incomplete")
    if path.stat().st_size > MAX_SHARD_BYTES:
        raise StillroomError(f"{path}: larger than 8 GiB; not read")
    with path.open("rb") as stream:
        head = int.from_bytes(stream.read(8), "little")
    if MAX_HEAD_BYTES < head <= path.stat().st_size:
        raise StillroomError(f"{path}: a head of {head} bytes is not of stored labels; not read")
    try:
        with safe_open(path, framework="pt") as archive:
            yield archive
    except (SafetensorError, OSError) as error:
        raise StillroomError(
            f"{path}: not a whole safetensors file ({str(error)[:120]}); copy it again"
        ) from None


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link: whoever copies labels of others would copy what it leads to.

    Raises: StillroomError naming it.
    """
    if path.is_symlink():
        raise StillroomError(
            f"{path}: a symbolic link, which no labels have; put the file itself there"
        )
