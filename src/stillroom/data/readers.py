"""Readers of the two general forms: a folder of class folders, and a folder of parquet files."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.data.raw import (
    TEST_NAMES,
    Labels,
    Payload,
    RawSplit,
    RawSplits,
    file_split,
    stamp,
)
from stillroom.errors import StillroomError, optional_import

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
BATCH = 256


def read_folder(root: Path, only: Collection[str] | None = None) -> RawSplits:
    """Read a folder of either form, parquet files first, or Tiny-ImageNet's original layout.

    `only` restricts a class folder to these class names, so that ten classes of ImageNet do not
    cost a walk through a million files.
    Raises: StillroomError if the folder is absent, unreadable, or of neither form.
    """
    if not root.is_dir():
        raise StillroomError(f"{root}: no such folder")
    try:
        if (root / "val" / "val_annotations.txt").is_file():
            return annotated_folder(root)
        if any(_parquet_files(root).values()):
            return parquet_folder(root)
        return class_folder(root, only)
    except OSError as error:
        raise StillroomError(f"{error.filename or root}: {error.strerror or error}") from error


def class_folder(root: Path, only: Collection[str] | None = None) -> RawSplits:
    """Read `root/<class>/...` or `root/{train,test|val|valid|validation}/<class>/...`.

    Classes are the sorted folder names; images may be nested; hidden names are skipped. Of several
    test folders the first of test, val, valid, validation that holds class folders is taken.
    Raises: StillroomError for no image at all, an empty class, or classes that differ.
    """
    holders = {name: root / name for name in ("train", *TEST_NAMES) if _holds_classes(root / name)}
    if not holders:
        files, names = _scan(root, only)
        return RawSplits(
            names,
            {"train": file_split(files, root)},
            ["classes", *stamp(root, (f for f, _ in files))],
        )
    if "train" not in holders:
        found = next(iter(holders))
        raise StillroomError(f"{root}: has {found}/ with classes but no train/; add train/<class>/")
    train, names = _scan(root / "train", only)
    splits = {"train": file_split(train, root)}
    listed = [f for f, _ in train]
    test_name = next((name for name in TEST_NAMES if name in holders), None)
    if test_name is not None:
        test, test_names = _scan(root / test_name, only)
        _same_classes(root, test_name, names, test_names)
        splits["test"] = file_split(test, root)
        listed += [f for f, _ in test]
    return RawSplits(names, splits, ["classes", *stamp(root, listed)])


def annotated_folder(root: Path) -> RawSplits:
    """Read Tiny-ImageNet as released: `train/<wnid>/images/`, `val/val_annotations.txt`.

    Classes are the sorted WordNet ids. `test/`, which has no labels, is not read.
    Raises: StillroomError if an annotation names an unknown class or is not two columns.
    """
    train, names = _scan(root / "train", None)
    label_of = {name: label for label, name in enumerate(names)}
    annotations = root / "val" / "val_annotations.txt"
    test: list[tuple[Path, int]] = []
    for number, line in enumerate(annotations.read_text("utf-8", "replace").splitlines(), 1):
        cells = line.split("\t")
        if len(cells) < 2 or Path(cells[0]).name != cells[0]:
            raise StillroomError(f"{annotations}: line {number} is not 'file<TAB>class<TAB>...'")
        if cells[1] not in label_of:
            raise StillroomError(
                f"{annotations}: line {number} names class {cells[1][:40]!r}, which train/ lacks"
            )
        test.append((root / "val" / "images" / cells[0], label_of[cells[1]]))
    for path, _ in test:
        if not path.is_file():
            raise StillroomError(f"{path}: named in {annotations.name} but absent; extract again")
    splits = {"train": file_split(train, root), "test": file_split(test, root)}
    listed = [f for f, _ in train] + [f for f, _ in test] + [annotations]
    return RawSplits(names, splits, ["annotated", *stamp(root, listed)])


def parquet_folder(root: Path) -> RawSplits:
    """Read `train.parquet` or `train-*.parquet`, and likewise a test split, also inside `data/`.

    Needs an image column (`image` or `img`: struct with bytes, or binary) and an integer label
    column (`label`, `labels` or `fine_label`). Class names are those of the Hugging Face schema
    metadata, else the label numbers. A test split without labels (all negative) is passed over.
    Raises: StillroomError for a missing train split or column, paths without bytes, bad files.
    """
    files = _parquet_files(root)
    if not files["train"]:
        raise StillroomError(f"{root}: no train.parquet or train-*.parquet there or in data/")
    train, names = _parquet_split(files["train"], root)
    splits, listed = {"train": train}, [*files["train"]]
    for test_name in TEST_NAMES:
        if not files[test_name]:
            continue
        test, test_names = _parquet_split(files[test_name], root)
        if names and test_names:
            _same_classes(root, test_name, names, test_names)
        if len(test) and int(test.labels.max()) < 0:
            continue
        splits["test"] = test
        listed += files[test_name]
        break
    highest = max((int(split.labels.max()) for split in splits.values() if len(split)), default=-1)
    return RawSplits(
        names or tuple(str(label) for label in range(highest + 1)),
        splits,
        ["parquet", *stamp(root, listed)],
    )


def payloads(column: Any, first: int, source: str) -> Iterator[tuple[str, Payload | str]]:
    """Yield (name, encoded bytes) of an Arrow image column, or (name, path) where it has no bytes.

    `first` is the row number of the column's first entry in `source`.
    """
    for row, value in enumerate(column.to_pylist(), first):
        name = f"{source} row {row}"
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise StillroomError(f"{name}: the image is empty; remove the row")
        yield name, value


def column_of(names: Sequence[str], known: Sequence[str], what: str, source: str) -> str:
    """Return the first of `known` among `names`.

    Raises: StillroomError naming `source`, what it needs and what it has.
    """
    for name in known:
        if name in names:
            return name
    raise StillroomError(
        f"{source}: no {what} column; needs one of {', '.join(known)}, has {', '.join(names)[:200]}"
    )


def _holds_classes(folder: Path) -> bool:
    """Whether a folder is a split: it has folders, and no image of its own.

    A class that is itself called "train" holds images, so it is not mistaken for a split.
    """
    if not folder.is_dir():
        return False
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return any(entry.is_dir() for entry in entries) and not any(
        entry.is_file() and _is_image(entry.name) for entry in entries
    )


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _scan(
    root: Path, only: Collection[str] | None
) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    names = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."
    )
    if only is not None:
        names = [name for name in names if name in only]
    if not names:
        raise StillroomError(f"{root}: no class folders; put images in {root.name}/<class>/")
    found = [_images_under(root / name) for name in names]
    if not any(found):
        raise StillroomError(
            f"{root}: no images in its {len(names)} folders; expected .jpg, .png, .bmp, .gif, "
            ".webp, .tif, .ppm or .pgm files"
        )
    for name, images in zip(names, found, strict=True):
        if not images:
            raise StillroomError(
                f"{root}: class {name!r} has no images; add some or remove the folder"
            )
    files = [(path, label) for label, images in enumerate(found) for path in images]
    return files, tuple(names)


def _images_under(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if _is_image(name)]
    return sorted(found, key=lambda path: path.as_posix())


def _same_classes(
    root: Path, test_name: str, train: tuple[str, ...], test: tuple[str, ...]
) -> None:
    if train == test:
        return
    odd = sorted(set(train) ^ set(test))
    what = f"differ in {', '.join(map(repr, odd[:3]))}" if odd else "are in another order"
    raise StillroomError(f"{root}: the classes of train and {test_name} {what}; make them equal")


def _parquet_files(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in ("train", *TEST_NAMES):
        found[name] = []
        for folder in (root, root / "data"):
            whole = folder / f"{name}.parquet"
            found[name] = [whole] if whole.is_file() else sorted(folder.glob(f"{name}-*.parquet"))
            if found[name]:
                break
    return found


def _parquet_split(files: list[Path], root: Path) -> tuple[RawSplit, tuple[str, ...]]:
    parquet: Any = optional_import("pyarrow.parquet", "data", "reading parquet files")
    labels: list[Labels] = []
    names: tuple[str, ...] = ()
    for path in files:
        try:
            schema = parquet.read_schema(path)
            label_column = column_of(schema.names, LABEL_COLUMNS, "label", path.name)
            image_column = column_of(schema.names, IMAGE_COLUMNS, "image", path.name)
            column = parquet.read_table(path, columns=[label_column]).column(0)
        except StillroomError:
            raise
        except (OSError, ValueError) as error:
            raise _bad_parquet(path, error) from error
        labels.append(integer_labels(column, path.name))
        names = names or _class_names(schema.metadata, label_column)

    def images() -> Iterator[tuple[str, Payload]]:
        for path in files:
            first = 0
            source = path.relative_to(root).as_posix()
            for column in _columns(parquet, path, image_column):
                for name, value in payloads(column, first, source):
                    if not isinstance(value, bytes):
                        raise StillroomError(
                            f"{name}: holds a path but no image bytes; embed them with "
                            "datasets.table.embed_table_storage before to_parquet"
                        )
                    yield name, value
                first += len(column)

    return RawSplit(np.concatenate(labels), images), names


def _columns(parquet: Any, path: Path, name: str) -> Iterator[Any]:
    try:
        with parquet.ParquetFile(path) as opened:
            for batch in opened.iter_batches(batch_size=BATCH, columns=[name]):
                yield batch.column(0)
    except (OSError, ValueError) as error:
        raise _bad_parquet(path, error) from error


def _bad_parquet(path: Path, error: Exception) -> StillroomError:
    why = " ".join(str(error).split())[:120]
    return StillroomError(f"{path}: not a readable parquet file ({why}); download it again")


def integer_labels(column: Any, source: str) -> Labels:
    """Arrow column -> int64 [N].

    Raises: StillroomError if it holds anything but integers, or is empty in places.
    """
    if column.null_count:
        raise StillroomError(f"{source}: {column.null_count} rows have no label; remove them")
    if not str(column.type).startswith(("int", "uint")):
        raise StillroomError(
            f"{source}: labels are of type {column.type}; they must be integers from 0"
        )
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _class_names(metadata: dict[bytes, bytes] | None, label_column: str) -> tuple[str, ...]:
    try:
        described = json.loads((metadata or {})[b"huggingface"])
        names = described["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)
