"""From undecoded splits to square uint8 blocks of one size and one number of channels."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stillroom.data.decode import Pixels, decode, probe, to_square
from stillroom.data.raw import Labels, Payload, RawSplit, RawSplits
from stillroom.errors import StillroomError

DEFAULT_SIZE = 64
MAX_OWN_SIZE = 256
_BLOCK = 256
_LARGE = 200


@dataclass(frozen=True)
class Plan:
    """What every image becomes: `size` x `size` with `channels` (1 or 3), on so many threads."""

    size: int
    channels: int
    threads: int


@dataclass(frozen=True)
class Block:
    """Some decoded rows: images uint8 [B,ch,size,size], labels int64 [B].

    `skipped` names what could not be read; `resized` counts images that had another shape.
    """

    images: Pixels
    labels: Labels
    skipped: tuple[str, ...]
    resized: int


def plan(raw: RawSplits, size: int | None) -> Plan:
    """Decide size and channels from headers alone, stopping as soon as both are certain.

    Channels: 1 if every image is grey, else 3. Size: `size`; else the images' own if all are one
    square of at most 256; else 64. Unreadable images are left for `blocks` to report.
    Raises: StillroomError if no image at all is readable.
    """
    colour = False
    shapes: set[tuple[int, int]] = set()
    for name, payload in itertools.chain.from_iterable(s.images() for s in raw.splits.values()):
        try:
            height, width, grey = _shape(payload, name)
        except StillroomError:
            continue
        colour = colour or not grey
        if len(shapes) < 2:
            shapes.add((height, width))
        if colour and (size is not None or len(shapes) > 1):
            break
    if not shapes:
        raise StillroomError("none of the images can be read; are they whole?")
    height, width = max(shapes)
    own = height if len(shapes) == 1 and height == width <= MAX_OWN_SIZE else DEFAULT_SIZE
    # Threads make small images slower: the interpreter lock outweighs the decoding.
    threads = min(8, os.cpu_count() or 1) if max(height, width) >= _LARGE else 1
    return Plan(size or own, 3 if colour else 1, threads)


def blocks(split: RawSplit, the_plan: Plan, skip_bad: bool) -> Iterator[Block]:
    """Decode a split in row order, a few hundred images at a time.

    Raises: StillroomError for the first unreadable image, unless `skip_bad`.
    """
    one = partial(_one, the_plan=the_plan, skip_bad=skip_bad)
    items = split.images()
    with ThreadPoolExecutor(the_plan.threads) as pool:
        mapper: Callable[..., Iterator[tuple[Pixels | None, bool]]] = (
            pool.map if the_plan.threads > 1 else map
        )
        for first in range(0, len(split), _BLOCK):
            part = list(itertools.islice(items, _BLOCK))
            done = list(mapper(one, part))
            kept = [row for row, (array, _) in enumerate(done) if array is not None]
            yield Block(
                images=_stack([a for a, _ in done if a is not None], the_plan),
                labels=split.labels[first : first + _BLOCK][kept],
                skipped=tuple(part[row][0] for row, (a, _) in enumerate(done) if a is None),
                resized=sum(resized for _, resized in done),
            )


def _shape(payload: Payload, name: str) -> tuple[int, int, bool]:
    if isinstance(payload, (bytes, Path)):
        return probe(payload, name)
    return payload.shape[0], payload.shape[1], payload.ndim == 2


def _one(item: tuple[str, Payload], the_plan: Plan, skip_bad: bool) -> tuple[Pixels | None, bool]:
    name, payload = item
    try:
        array = decode(payload, name) if isinstance(payload, (bytes, Path)) else payload
    except StillroomError:
        if skip_bad:
            return None, False
        raise
    size = the_plan.size
    return to_square(array, size), array.shape[:2] != (size, size)


def _stack(arrays: list[Pixels], the_plan: Plan) -> Pixels:
    shape = (len(arrays), the_plan.channels, the_plan.size, the_plan.size)
    out = np.empty(shape, dtype=np.uint8)
    for row, array in enumerate(arrays):
        out[row] = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return out
