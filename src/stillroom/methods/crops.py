"""`Crops`: which crops of real images are looked at and become images. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.config import Model

WHOLE = 64  # px: up to here a crop is an image of its own, above it four make a mosaic


class Crops(Model):
    """Which crops are looked at, who scores them, and how the best become images."""

    rule: Literal["rded", "edc"] = Field(
        "rded",
        description="rded: the best crop of each of some images, mixed over ranks; edc: the best "
        "crops of the easiest images, easiest together",
    )
    pool: int = Field(300, ge=1, strict=True, description="images a class that are cropped")
    crops: int = Field(5, ge=1, le=1000, strict=True, description="crops of each")
    factor: int | None = Field(
        None,
        ge=1,
        le=16,
        strict=True,
        description="crops a side of a mosaic; default 1 up to 64 px, 2 above",
    )
    scale: float = Field(0.08, gt=0, le=1, description="least area of a crop")

    def cells(self, size: int) -> int:
        """Crops a side of a mosaic of `size` pixels."""
        return self.factor or (1 if size <= WHOLE else 2)
