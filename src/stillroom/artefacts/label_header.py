"""What stored labels are labels of: sizes, draws, teachers; and how many bytes they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stillroom.artefacts.codecs import Codec, find_codec
from stillroom.config import Model
from stillroom.data.frozen import FROZEN
from stillroom.data.policy import MAX_SIDE, Policy
from stillroom.data.replay import MixDraw, epoch_draws
from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256

DIGEST = 8  # bytes of a batch's digest: it meets accidents, and a batch of labels may be as small
MAX_EPOCHS = 999_999
# A foreign header cannot ask for more memory than this: few bytes on disk may become many.
MAX_IMAGES = 2**24
MAX_BATCH = 2**16
MAX_DECODED = 2**26  # logits of a batch
MAX_VIEWED = 2**27  # pixels of the views of a batch
SHARD_BYTES = 2**24  # of labels, about: what a killed run loses, and what is held in memory
HEADS, HEAD = 2**12, 2**10  # bytes of a manifest, and more for a teacher or a shard of labels
SOFT_CODEC = "fp16"  # of the one soft label an image, whatever that of the views is
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE, strict=True)]
_Short = Annotated[str, Field(max_length=300)]


class Header(Model):
    """All that decides the draws and what labels mean; the head of every container.

    `epochs` are those that a student may train for, `kept` those whose labels are stored and used
    again and again. `set_digest` is `stillroom.distilled.set_digest` of the set, `teachers` the
    keys of the networks whose logits were averaged.
    """

    images: int = Field(ge=1, le=MAX_IMAGES, strict=True, description="images of the set")
    classes: int = Field(ge=1, le=MAX_DECODED, strict=True, description="logits an image")
    source: tuple[_Side, _Side] = Field(description="height and width of the images")
    epochs: int = Field(ge=1, le=MAX_EPOCHS, strict=True, description="epochs of training")
    kept: int = Field(ge=1, le=MAX_EPOCHS, strict=True, description="epochs of labels")
    batch: int = Field(ge=1, le=MAX_BATCH, strict=True, description="images a batch")
    codec: str = Field(max_length=40, description="how logits are stored")
    policy: Policy
    seed: int = Field(ge=-(2**63), lt=2**63, strict=True, description="of the draws")
    set_digest: str = Field(pattern="^[0-9a-f]{16}$", description="of what a student sees")
    teachers: tuple[_Short, ...] = Field(max_length=100, description="keys of the teachers")
    frozen: int = Field(FROZEN, strict=True, description="version of the generator")

    @model_validator(mode="after")
    def _possible(self) -> Header:
        if self.kept > self.epochs:
            raise ValueError(f"kept={self.kept} epochs of labels for {self.epochs}; keep no more")
        if self.batch > self.images:
            raise ValueError(f"batch={self.batch} of {self.images} images; lower the batch")
        if self.batch * self.classes > MAX_DECODED:
            raise ValueError(f"batch={self.batch} of {self.classes} classes; at most 2^26 logits")
        if self.batch * self.policy.size**2 > MAX_VIEWED:
            raise ValueError(f"batch={self.batch} of size {self.policy.size}; at most 2^27 pixels")
        if self.policy.shuffle > min(self.source):
            raise ValueError(f"shuffle={self.policy.shuffle} patches of {list(self.source)} pixels")
        self.coder.layout(self.classes)
        return self

    @property
    def coder(self) -> Codec:
        """How logits are stored."""
        return find_codec(self.codec)

    @property
    def steps(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return -(-self.images // self.batch)

    @property
    def digest(self) -> str:
        """Sixteen hex digits over every field."""
        return sha256(canonical(self.model_dump(mode="json")))[:16]

    @property
    def nbytes(self) -> int:
        """Bytes of all labels with the one soft label an image, without the heads of files."""
        views = self.kept * epoch_bytes(self.images, self.classes, self.batch, self.codec)
        return views + find_codec(SOFT_CODEC).batch_bytes(self.images, self.classes)

    def draws(self, epoch: int) -> Iterator[tuple[Tensor, MixDraw]]:
        """The batches of a kept epoch: (rows int64 [B], how their views are made)."""
        return epoch_draws(
            self.policy, self.images, self.batch, self.source, self.seed, epoch % self.kept
        )


class Told(Model):
    """How one of the teachers was trained, so that others can be labelled by the same.

    All of it is text until somebody makes that network again and finds that it has the same key.
    """

    arch: _Short
    index: int = Field(ge=0, lt=1000, strict=True, description="which of its kind")
    schooling: dict[str, Any] = Field(description="fields of a `Schooling`")
    weights: str = Field(
        "",
        pattern=r"^([0-9a-f]{16})?$",
        description="digest of given weights, if it was not trained",
    )


def epoch_bytes(images: int, classes: int, batch: int, codec: str) -> int:
    """Bytes of an epoch of labels with the digests of its batches, without the heads of files."""
    return find_codec(codec).batch_bytes(images, classes) + DIGEST * -(-images // batch)


def epochs_within(
    budget: int, images: int, classes: int, batch: int, codec: str, epochs: int
) -> int:
    """How many of `epochs` can be kept in `budget` bytes, the others using them again in turn.

    Raises: StillroomError if not even one fits.
    Source: Xiao and He 2024, "Are large-scale soft labels necessary?" (LPLD), whose labels pruned
    to a fortieth train as well.
    """
    each = epoch_bytes(images, classes, batch, codec)
    if budget < each:
        raise StillroomError(
            f"{budget} bytes hold no epoch of labels, which takes {each}; raise the budget, or "
            "take another codec"
        )
    return min(epochs, budget // each)


def fit(
    budget: int,
    images: int,
    classes: int,
    batch: int,
    epochs: int,
    codec: str | None = None,
    teachers: int = 1,
) -> tuple[str, int]:
    """Choose a codec and how many epochs are kept, so that a folder of labels has `budget` bytes.

    The first of fp16 and int8 (where it is smaller) in which all epochs fit, else the smaller of
    them with as many epochs as fit, which are used again in turn. A codec that is named is taken.
    Never by itself top-k: it loses what `mse_gt` compares, and more of the distribution than epochs
    do. What is set aside for heads and manifest is at least what they take.
    Raises: StillroomError if not even one epoch fits.
    """
    shape = (images, classes, batch)
    soft = find_codec(SOFT_CODEC).batch_bytes(images, classes)
    heads = HEADS + HEAD * (teachers + -(-budget // SHARD_BYTES))
    left = budget - soft - heads
    some = [codec] if codec else ["fp16", "int8"]
    some = [c for c in some if c == some[0] or epoch_bytes(*shape, c) < epoch_bytes(*shape, "fp16")]
    for name in some:
        if epochs * epoch_bytes(*shape, name) <= left:
            return name, epochs
    each = epoch_bytes(*shape, some[-1])
    if left < each:
        raise StillroomError(
            f"a budget of {budget} bytes holds no epoch of labels: one takes {each} in "
            f"{some[-1]}, the soft label of every image {soft}, heads of files {heads}; raise it"
        )
    return some[-1], epochs_within(left, *shape, some[-1], epochs)


def batch_digest(rows: Tensor, drawn: MixDraw) -> Tensor:
    """uint8 [8], the head of a SHA-256 over rows int64 [B] and draw of a batch."""
    whole = sha256(rows.numpy().astype("<i8").tobytes() + drawn.digest().encode())
    return torch.tensor(list(bytes.fromhex(whole)[:DIGEST]), dtype=torch.uint8)
