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

    def scored(self, images: int) -> int:
        """Forwards that scoring a class of so many images takes, of each network.

        By EDC's rule all images are scored before some are cropped.
        """
        cropped = min(self.pool, images) * self.crops
        return cropped if self.rule == "rded" else cropped + images

    def held(self, images: int) -> int:
        """Images of that class in memory then: whole ones, crops, and of "rded" padded crops."""
        cropped = min(self.pool, images) * self.crops
        return 3 * cropped if self.rule == "rded" else images + 2 * cropped

    def too_few(self, images: int, ipc: int, size: int) -> str:
        """Why a class of so many images gives too few crops, and the remedy; or nothing."""
        best = 1 if self.rule == "rded" else self.crops  # crops of an image that may be taken
        there, wanted = min(self.pool, images) * best, ipc * self.cells(size) ** 2
        if there >= wanted:
            return ""
        more = [name for name, helps in (
            ("--crops.pool", self.pool < images), ("--crops.crops", self.rule == "edc"),
        ) if helps]  # fmt: skip
        remedy = f", or raise {' or '.join(more)}" if more else ""
        return f"gives {there} crops and {wanted} are needed; lower --ipc{remedy}"
