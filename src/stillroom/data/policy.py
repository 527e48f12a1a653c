"""`Policy`: how views are drawn: RandAugment, patch shuffle, crop, flip and mix. No torch here."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.config import Grown
from stillroom.data.frozen import BETA

Mix = Literal["none", "cutmix", "mixup"]
MAX_SIDE = 2048  # of an image or a view; a foreign manifest cannot ask for more memory than that
MAX_SHUFFLE = 64
MAX_OPS = 16
MAGNITUDE = 9  # of 0..30, as `transforms.RandAugment()` has it
ALPHA: dict[Mix, float] = {"none": 1.0, "cutmix": 1.0, "mixup": 0.8}


class Policy(Grown):
    """In this order: RandAugment, patch shuffle, a crop, flip, an image its own; one mix a batch.

    Source: FKD with mixing as SRe2L, G-VBSM and EDC store it (specification of the decoupled
    methods, 4.1); patch shuffle is of RDED (7.4), RandAugment of EDC on small data (5.5).
    """

    later: ClassVar[tuple[str, ...]] = ("padding", "ops", "magnitude")

    size: int = Field(ge=1, le=MAX_SIDE, strict=True, description="side of a view in pixels")
    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="smallest and largest area of a crop, as fractions of the image"
    )
    ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="least and greatest width over height of a crop"
    )
    padding: int = Field(
        0,
        ge=0,
        le=MAX_SIDE,
        strict=True,
        description="or a crop of the image's size after so many pixels of padding",
    )
    flip: bool = Field(True, description="half of the views are mirrored")
    shuffle: int = Field(
        1, ge=1, le=MAX_SHUFFLE, strict=True, description="patches a side that are shuffled; 1: no"
    )
    ops: int = Field(
        0, ge=0, le=MAX_OPS, strict=True, description="operations of RandAugment an image; 0: none"
    )
    magnitude: int = Field(
        MAGNITUDE, ge=0, le=30, strict=True, description="of RandAugment, 30 the strongest"
    )
    mix: Mix = Field("cutmix", description="how images of a batch are mixed")
    alpha: float | None = Field(
        None,
        ge=BETA[0],
        le=BETA[1],
        description="of Beta(alpha, alpha), the share of an image; by default 1 and, mixup, 0.8",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Policy:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale={list(self.scale)} must be two numbers, 0 < least <= most <= 1"
            )
        if not 1 / 16 <= self.ratio[0] <= self.ratio[1] <= 16:
            raise ValueError(f"ratio={list(self.ratio)} must be two numbers in 1/16..16, in order")
        if self.padding and self.scale != (1.0, 1.0):
            raise ValueError(f"padding={self.padding} is a crop of another kind; set scale to 1, 1")
        if not self.ops and self.magnitude != MAGNITUDE:
            raise ValueError(f"magnitude={self.magnitude} is of RandAugment, and ops is 0; drop it")
        if self.mix == "none" and self.alpha is not None:
            raise ValueError("alpha is of a mix, and mix is none; drop it")
        return self

    @property
    def beta(self) -> float:
        """The parameter of Beta: `alpha`, or what the papers use for this mix."""
        return ALPHA[self.mix] if self.alpha is None else self.alpha
