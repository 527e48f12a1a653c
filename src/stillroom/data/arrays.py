"""Data that the user already has in Python: arrays, and any map-style dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stillroom.data.decode import Pixels, from_pil, to_square
from stillroom.data.raw import Labels, RawSplit, RawSplits, array_split, check
from stillroom.errors import StillroomError

Array = NDArray[Any] | Tensor


class MapDataset(Protocol):
    """What is asked of a dataset: a length, and pairs (image, label)."""

    def __len__(self) -> int:
        """Return the number of items."""

    def __getitem__(self, index: int) -> Any:
        """Return the pair (image, label) of row `index`."""


def raw_arrays(
    train: tuple[Array, Array | Sequence[int]],
    test: tuple[Array, Array | Sequence[int]] | None,
    classes: Sequence[str] | None,
    name: str,
    empty: Collection[str] = (),
) -> RawSplits:
    """Splits of (images, labels): uint8 [N,H,W], [N,H,W,ch] or [N,ch,H,W] with ch 1 or 3.

    `empty`: classes that have no image.

    Raises: StillroomError for other dtypes or shapes, or labels that do not fit the images.
    """
    splits: dict[str, tuple[Sequence[Pixels] | Pixels, Labels]] = {}
    for split, pair in (("train", train), ("test", test)):
        if pair is not None:
            what = f"{name} {split}"
            images, labels = _channels_last(_numpy(pair[0]), what), _labels(pair[1], what)
            if len(images) != len(labels):
                raise StillroomError(f"{what}: {len(images)} images but {len(labels)} labels")
            splits[split] = (images, labels)
    return _raw(splits, classes, name, empty)


def raw_dataset(
    train: MapDataset,
    test: MapDataset | None,
    classes: Sequence[str] | None,
    size: int | None,
    name: str,
) -> RawSplits:
    """Splits of map-style datasets of (image, label), each read once from end to end.

    An image is a Pillow image, uint8 numpy [H,W] or [H,W,ch], or a tensor [H,W] or [ch,H,W], uint8
    or float in [0, 1]. Without `classes`, names are `train.classes` if it has them.
    Raises: StillroomError for anything else, for pixels outside [0, 1] (normalised images), and
    for a dataset that gives another image each time (random augmentation).
    """
    splits: dict[str, tuple[Sequence[Pixels] | Pixels, Labels]] = {}
    for split, dataset in (("train", train), ("test", test)):
        if dataset is not None:
            splits[split] = _read(dataset, size, f"{name} {split}")
    if classes is None:
        own = getattr(train, "classes", None)
        if isinstance(own, (list, tuple)) and own and all(isinstance(c, str) for c in own):
            classes = own
    return _raw(splits, classes, name)


def _raw(
    splits: dict[str, tuple[Sequence[Pixels] | Pixels, Labels]],
    classes: Sequence[str] | None,
    name: str,
    empty: Collection[str] = (),
) -> RawSplits:
    digest = hashlib.sha256()
    made: dict[str, RawSplit] = {}
    highest = -1
    for split, (images, labels) in splits.items():
        if len(labels) == 0:
            raise StillroomError(f"{name} {split}: has no images")
        for image in images:
            digest.update(str(image.shape).encode() + image.tobytes())
        digest.update(split.encode() + labels.tobytes())
        made[split] = array_split(images, labels, f"{name} {split}")
        highest = max(highest, int(labels.max()))
    names = tuple(classes) if classes is not None else tuple(map(str, range(highest + 1)))
    listing = ["arrays", digest.hexdigest(), list(names)]
    return check(RawSplits(names, made, listing, tuple(empty)), name)


def _numpy(array: Array) -> NDArray[Any]:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _labels(labels: Array | Sequence[int], what: str) -> Labels:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise StillroomError(
            f"{what}: labels must be integers [N], got {array.dtype} {list(array.shape)}"
        )
    return array.astype(np.int64)


def _channels_last(images: NDArray[Any], what: str) -> Pixels:
    shape = list(images.shape)
    if images.dtype != np.uint8:
        raise StillroomError(
            f"{what}: images are {images.dtype}, must be uint8 of raw pixels (0..255)"
        )
    if images.ndim == 4:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first and last:
            raise StillroomError(f"{what}: shape {shape} is ambiguous; enlarge images of <= 3 px")
        if first:
            images = images.transpose(0, 2, 3, 1)
        if first or last:
            return images[..., 0] if images.shape[3] == 1 else images
    if images.ndim != 3 or 0 in shape:
        raise StillroomError(
            f"{what}: images have shape {shape}; must be [N,H,W], [N,H,W,ch] or [N,ch,H,W] with "
            "ch 1 or 3"
        )
    return images


def _read(dataset: MapDataset, size: int | None, what: str) -> tuple[list[Pixels], Labels]:
    images: list[Pixels] = []
    labels: list[int] = []
    try:
        n = len(dataset)
    except TypeError:
        raise StillroomError(f"{what}: has no length; give a map-style dataset") from None
    for row in range(n):
        image, label = _item(dataset, row, what)
        images.append(image if size is None else to_square(image, size))
        labels.append(label)
    if images:
        again, _ = _item(dataset, 0, what)
        again = again if size is None else to_square(again, size)
        if again.shape != images[0].shape or (again != images[0]).any():
            raise StillroomError(
                f"{what}: item 0 is another image each time it is read; remove random transforms"
            )
    return images, np.array(labels, dtype=np.int64)


def _item(dataset: MapDataset, row: int, what: str) -> tuple[Pixels, int]:
    item = dataset[row]
    name = f"{what} item {row}"
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise StillroomError(
            f"{name}: must be a pair (image, label), got {type(item).__name__}; wrap the dataset"
        )
    label = np.asarray(item[1])
    if label.ndim != 0 or label.dtype.kind not in "iu":
        raise StillroomError(f"{name}: label {str(item[1])[:40]!r} must be one integer")
    return _image(item[0], name), int(label)


def _image(image: Any, name: str) -> Pixels:
    if isinstance(image, Image.Image):
        return from_pil(image, name)
    if isinstance(image, Tensor):
        array = image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        if array.dtype.kind == "f":
            # Written so that NaN fails too.
            if not (array.size and array.min() >= 0 and array.max() <= 1):
                raise StillroomError(
                    f"{name}: float pixels outside [0, 1]; this looks normalised; pass raw pixels"
                )
            array = np.rint(array * 255).astype(np.uint8)
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise StillroomError(
            f"{name}: a {type(image).__name__} is not an image; give Pillow, numpy or tensor"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    sound = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not sound or 0 in array.shape:
        raise StillroomError(
            f"{name}: {array.dtype} of shape {list(np.shape(image))} is not an image; give uint8 "
            "[H,W,ch] (numpy) or [ch,H,W] (tensor) with ch 1 or 3"
        )
    return np.ascontiguousarray(array)
