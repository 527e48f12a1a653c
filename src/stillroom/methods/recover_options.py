"""Groups of options of recover: how images are shown, and its terms. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.config import Model


class Views(Model):
    """How the images of a chunk are shown to a network: one crop and one flip for all of them."""

    crop: float = Field(0.5, gt=0, le=1, description="least area of a resized crop; 1: none")
    padding: int = Field(0, ge=0, le=512, description="or a crop after so much padding (G-VBSM)")
    curriculum: Literal["none", "step", "linear", "cosine"] = Field(
        "none", description="crops begin as whole images and shrink to that (CDA)"
    )
    milestone: float = Field(1.0, ge=0, le=1, description="share of the steps that takes")
    flip: bool = Field(True, description="mirror at random")
    jitter: tuple[int, int] = Field(
        (0, 0), description="then roll by so many pixels, least and most, down and right (SRe2L)"
    )

    @model_validator(mode="after")
    def _one_crop(self) -> Views:
        if self.padding and self.crop < 1:
            raise ValueError(f"padding {self.padding} is a crop of another kind; set crop to 1")
        if self.curriculum == "none" and self.milestone != 1:
            raise ValueError("milestone belongs to a curriculum; name one or leave it out")
        if self.curriculum != "none" and not self.milestone:
            raise ValueError("milestone 0 is no curriculum; set curriculum to none")
        if self.curriculum != "none" and self.crop == 1:
            raise ValueError("a curriculum ends at a crop; set crop below 1")
        if self.jitter[0] > self.jitter[1]:
            raise ValueError(f"jitter {self.jitter}: the first must not be greater")
        return self


class Priors(Model):
    """Terms of the images alone, by weight."""

    tv: float = Field(0.0, ge=0, description="weight of their total variation")
    l2: float = Field(0.0, ge=0, description="weight of their norm")
    spectrum: float = Field(0.0, ge=0, description="weight of G-VBSM's term for variety")
    spectrum_tau: float = Field(4.0, gt=0, description="its temperature")
    spectrum_form: Literal["scaled", "released"] = Field(
        "scaled", description="Gram matrix by its mean diagonal, or as released: no effect"
    )

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Priors:
        if not self.spectrum and (self.spectrum_tau, self.spectrum_form) != (4.0, "scaled"):
            raise ValueError("spectrum_tau and spectrum_form belong to spectrum; give its weight")
        return self


class Flatness(Model):
    """EDC's term for flat minima: stay where the moving average of the images is understood."""

    weight: float = Field(0.0, ge=0, description="0: no such term; the paper has 0.25")
    rate: float = Field(0.99, ge=0, lt=1, description="of the moving average of the images")
    tau: float = Field(4.0, gt=0, description="temperature")
    form: Literal["intended", "released"] = Field(
        "intended", description="KL from images to average, or as released the other way"
    )

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Flatness:
        if not self.weight and (self.rate, self.tau, self.form) != (0.99, 4.0, "intended"):
            raise ValueError("rate, tau and form belong to the term for flat minima; give weight")
        return self
