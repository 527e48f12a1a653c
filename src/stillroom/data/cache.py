"""Decode once: a content-checked copy of a benchmark's pixels in the store.

`<store>/data-<key16>/` holds `train.images.u8` (uint8 [N,ch,size,size]), `train.labels.i64`, the
same of a test split where there is one, and `meta.json`. The key comes from the source's listing,
the digest `content` from the pixels: the same pictures read from folders, parquet or the hub have
the same content.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.data.pixels import Plan, blocks, plan
from stillroom.data.raw import Labels, RawSplit, RawSplits
from stillroom.data.source import ImageSource, open_source
from stillroom.errors import StillroomError
from stillroom.files import (
    canonical,
    fresh_folder,
    locked,
    read_json,
    sha256,
    sha256_file,
    write_json,
)

FORMAT = 1
MAX_HASHED_BYTES = 4 * 2**30
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A benchmark's pixels, before any split is drawn or pixel normalised.

    `content` is the SHA-256 of class names, size, and the digests of images and labels;
    `resized` counts images that had another shape; `skipped` names unreadable ones left out.
    """

    classes: tuple[str, ...]
    size: int
    channels: int
    resized: int
    skipped: tuple[str, ...]
    content: str
    train: ImageSource
    test: ImageSource | None


def cached(raw: RawSplits, store: Path, size: int | None, skip_bad: bool) -> Decoded:
    """Open the cache entry of `raw`, decoding it first if it is absent or damaged.

    Images go to disk while they are decoded, so memory does not limit the size. Two processes
    wait for one another; a killed one leaves no entry.
    Raises: StillroomError for an unreadable image (unless `skip_bad`) or a full disk.
    """
    key = sha256(canonical([FORMAT, raw.listing, size, skip_bad]))[:16]
    folder = store / f"data-{key}"
    with locked(store / ".locks" / folder.name):
        if folder.is_dir():
            try:
                return open_entry(folder)
            except StillroomError as error:
                _LOG.warning("%s; decoding the source again", error)
        for stale in store.glob(f".data-{key}-*"):  # left by a killed process: the lock is ours
            shutil.rmtree(stale, ignore_errors=True)
        with fresh_folder(folder) as temporary:
            _write(temporary, raw, plan(raw, size), skip_bad)
        return open_entry(folder)


def in_memory(raw: RawSplits, size: int | None) -> Decoded:
    """Decode `raw` without a cache; content and pixels equal those of `cached`."""
    the_plan = plan(raw, size)
    sources: dict[str, ImageSource] = {}
    digests: dict[str, Any] = {}
    resized = 0
    for name, split in raw.splits.items():
        parts = list(blocks(split, the_plan, skip_bad=False))
        images = np.concatenate([part.images for part in parts])
        labels = np.concatenate([part.labels for part in parts])
        resized += sum(part.resized for part in parts)
        digests[name] = [sha256(images.tobytes()), sha256(labels.astype("<i8").tobytes())]
        sources[name] = ImageSource(torch.from_numpy(images), torch.from_numpy(labels))
    return Decoded(
        classes=raw.classes,
        size=the_plan.size,
        channels=the_plan.channels,
        resized=resized,
        skipped=(),
        content=content_digest(raw.classes, the_plan.size, digests),
        train=sources["train"],
        test=sources.get("test"),
    )


def find_by_content(store: Path, content: str) -> Decoded:
    """Open the first sound cache entry in `store` with this content digest.

    Raises: StillroomError if there is none, with the remedy.
    """
    damaged = ""
    for meta in sorted(store.glob("data-*/meta.json")):
        try:
            if read_json(meta).get("content") == content:
                return open_entry(meta.parent)
        except (StillroomError, AttributeError) as error:
            damaged = damaged or f" (passed over: {str(error) or meta})"
    raise StillroomError(
        f"the store has no decoded copy of the data with content {content[:16]}; pass --data to "
        f"read it again{damaged}"
    )


def entry_damage(folder: Path) -> str:
    """What is wrong with a cache entry, or an empty string; every byte is read."""
    try:
        _open(folder, read_json(folder / "meta.json"), every_byte=True)
    except (StillroomError, KeyError, TypeError, ValueError, OSError) as error:
        known = isinstance(error, StillroomError)
        text = str(error).partition(";")[0].removeprefix(f"{folder}{os.sep}")
        return text if known else "meta.json is damaged"
    return ""


def entry_about(folder: Path) -> str:
    """What a cache entry holds, in a few words; nothing where it does not say."""
    try:
        meta = read_json(folder / "meta.json")
        count, classes = sum(meta["counts"].values()), len(meta["classes"])
        return f"{count} images of {classes} classes, {meta['size']} px"
    except (StillroomError, KeyError, TypeError, AttributeError):
        return ""


def content_digest(classes: tuple[str, ...], size: int, digests: dict[str, Any]) -> str:
    """SHA-256 over class names, size, and [images, labels] digests of every split."""
    return sha256(canonical({"classes": list(classes), "size": size, "splits": digests}))


def open_entry(folder: Path) -> Decoded:
    """Open a cache entry: sizes are checked always, SHA-256 where it is at most 4 GiB in all.

    Raises: StillroomError naming the damaged file and the remedy.
    """
    meta = read_json(folder / "meta.json")
    try:
        return _open(folder, meta)
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, StillroomError):
            raise
        raise _damaged(folder / "meta.json", "is not the metadata of cached data") from error


def _open(folder: Path, meta: dict[str, Any], every_byte: bool = False) -> Decoded:
    if meta["format"] != FORMAT:
        raise _damaged(folder / "meta.json", f"has format {meta['format']}, not {FORMAT}")
    if meta.pop("digest") != sha256(canonical(meta)):
        raise _damaged(folder / "meta.json", "was altered (its digest does not match)")
    total = sum(file["bytes"] for file in meta["files"].values())
    hashed = every_byte or total <= MAX_HASHED_BYTES
    for name in [f"{split}.{kind}" for split in meta["counts"] for kind in ("images", "labels")]:
        path, file = _file(folder, name), meta["files"][name]
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            raise _damaged(path, "is missing or cut off")
        if hashed and sha256_file(path) != file["sha256"]:
            raise _damaged(path, "was altered (its SHA-256 does not match)")
    shape = (meta["channels"], meta["size"], meta["size"])
    sources: dict[str, ImageSource] = {}
    for split in meta["counts"]:
        images, labels = _file(folder, f"{split}.images"), _file(folder, f"{split}.labels")
        sources[split] = open_source(images, labels, shape)
    return Decoded(
        classes=tuple(meta["classes"]),
        size=meta["size"],
        channels=meta["channels"],
        resized=meta["resized"],
        skipped=tuple(meta["skipped"]),
        content=meta["content"],
        train=sources["train"],
        test=sources.get("test"),
    )


def _write(folder: Path, raw: RawSplits, the_plan: Plan, skip_bad: bool) -> None:
    meta: dict[str, Any] = {
        "format": FORMAT,
        "classes": list(raw.classes),
        "size": the_plan.size,
        "channels": the_plan.channels,
        "resized": 0,
        "skipped": [],
        "counts": {},
        "files": {},
    }
    digests: dict[str, Any] = {}
    for name, split in raw.splits.items():
        digests[name], labels = _write_split(folder, name, split, the_plan, skip_bad, meta)
        meta["counts"][name] = len(labels)
        if name == "train":
            _check_filled(labels, raw)
        elif len(labels) == 0:
            raise StillroomError(f"no image of the {name} split can be read; repair or remove it")
    meta["content"] = content_digest(raw.classes, the_plan.size, digests)
    write_json(folder / "meta.json", meta | {"digest": sha256(canonical(meta))})


def _write_split(
    folder: Path, name: str, split: RawSplit, the_plan: Plan, skip_bad: bool, meta: dict[str, Any]
) -> tuple[list[str], Labels]:
    digest = hashlib.sha256()
    found = []
    path = _file(folder, f"{name}.images")
    with path.open("wb") as stream:
        for block in blocks(split, the_plan, skip_bad):
            encoded = block.images.tobytes()
            stream.write(encoded)
            digest.update(encoded)
            found.append(block.labels)
            meta["skipped"] += block.skipped
            meta["resized"] += block.resized
    labels = np.concatenate(found)
    encoded = labels.astype("<i8").tobytes()
    _file(folder, f"{name}.labels").write_bytes(encoded)
    sums = [digest.hexdigest(), sha256(encoded)]
    meta["files"][f"{name}.images"] = {"bytes": path.stat().st_size, "sha256": sums[0]}
    meta["files"][f"{name}.labels"] = {"bytes": len(encoded), "sha256": sums[1]}
    return sums, labels


def _check_filled(labels: Labels, raw: RawSplits) -> None:
    if missing := raw.unfilled(labels):
        raise StillroomError(f"no training image of class {missing[0]!r} can be read; add some")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.{'u8' if name.endswith('images') else 'i64'}"


def _damaged(path: Path, what: str) -> StillroomError:
    return StillroomError(f"{path}: {what}; delete the folder or run: stillroom store gc")
