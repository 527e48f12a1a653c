"""What stored labels are labels of: sizes, draws, teachers; and how many bytes they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

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

    def draws(self, epoch: int) -> Iterator[tuple[Tensor, MixDraw]]:
        """The batches of a kept epoch: (rows int64 [B], how their views are made)."""
        return epoch_draws(
            self.policy, self.images, self.batch, self.source, self.seed, epoch % self.kept
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


def batch_digest(rows: Tensor, drawn: MixDraw) -> Tensor:
    """uint8 [8], the head of a SHA-256 over rows int64 [B] and draw of a batch."""
    whole = sha256(rows.numpy().astype("<i8").tobytes() + drawn.digest().encode())
    return torch.tensor(list(bytes.fromhex(whole)[:DIGEST]), dtype=torch.uint8)
