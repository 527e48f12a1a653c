"""Splits drawn from keys: the test part of data that come without one, and the validation part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stillroom.data.source import ImageSource, row_blocks
from stillroom.errors import StillroomError
from stillroom.rng import rng

TEST_SHARE = 0.2
MAX_COMPARED_BYTES = 4 * 2**30


def split_off_test(
    source: ImageSource, classes: tuple[str, ...], seed: int
) -> tuple[ImageSource, ImageSource]:
    """Return (train, test): of every class, a keyed 20 % (at least one image) goes to test.

    A class's draw is keyed by (seed, "split", its name), so it does not depend on other classes.
    Raises: StillroomError naming a class with a single image.
    """

    def count(name: str, n: int) -> int:
        if n < 2:
            raise StillroomError(
                f"class {name!r} has {n} image, too few to split into train and test; add images "
                "or a test folder"
            )
        return max(1, round(n * TEST_SHARE))

    return _part(source, classes, seed, "split", count)


def carve_val(
    train: ImageSource, classes: tuple[str, ...], share: float, seed: int
) -> tuple[ImageSource, ImageSource | None]:
    """Return (train, val): of every class, the keyed nearest whole number to `share` goes to val.

    A share of 0 carves nothing and returns val = None.
    Raises: StillroomError if share is outside [0, 1), a class would be left without a training
    image, or no image at all would be carved.
    """
    if not 0 <= share < 1:
        raise StillroomError(f"val={share} must be at least 0 and less than 1")
    if share == 0:
        return train, None

    def count(name: str, n: int) -> int:
        taken = round(n * share)
        if taken >= n:
            raise StillroomError(
                f"val={share} leaves no training image of class {name!r}, which has {n}; lower val"
            )
        return taken

    rest, val = _part(train, classes, seed, "val", count)
    if len(val) == 0:
        raise StillroomError(f"val={share} carves no image from classes this small; raise val")
    return rest, val


def shared_images(train: ImageSource, test: ImageSource) -> int | None:
    """Count test images that are byte for byte a training image; None above 4 GiB of pixels."""
    if train.nbytes + test.nbytes > MAX_COMPARED_BYTES:
        return None
    known = set(_digests(train))
    return sum(digest in known for digest in _digests(test))


def _digests(source: ImageSource) -> Iterator[bytes]:
    for rows in row_blocks(len(source)):
        for image in source.take(rows).cpu().contiguous().numpy():
            yield hashlib.blake2b(image, digest_size=16).digest()


def _part(
    source: ImageSource,
    classes: tuple[str, ...],
    seed: int,
    purpose: str,
    count: Callable[[str, int], int],
) -> tuple[ImageSource, ImageSource]:
    kept: list[Tensor] = []
    taken: list[Tensor] = []
    for c, name in enumerate(classes):
        rows = source.rows_of(c)
        n = count(name, len(rows))
        order = rows[torch.randperm(len(rows), generator=rng(seed, purpose, name))]
        taken.append(order[:n])
        kept.append(order[n:])
    rest, part = (torch.cat(rows).sort().values for rows in (kept, taken))
    return source.subset(rest), source.subset(part)
