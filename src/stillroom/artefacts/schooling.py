"""How an original model is trained: hyper-parameters alone; no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.config import Model


class Schooling(Model):
    """How an original model is trained; the fields are those of the trainer."""

    epochs: int = Field(30, ge=1, le=10**5, strict=True, description="passes over the data")
    batch: int = Field(256, ge=1, strict=True, description="images a step")
    lr: float = Field(0.02, gt=0, description="step size of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    schedule: Literal["constant", "cosine", "steps"] = Field("cosine", description="of the rate")
    milestones: tuple[int, ...] = Field((), description="of steps: a tenth from each epoch on")
    augment: str = Field("none", description="augmentation")
    raw_pixels: bool = Field(
        False, description="pixels in [0, 1] as they are, not in network space"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights that are kept: the last, or those best on the test images"
    )

    @model_validator(mode="after")
    def _read(self) -> Schooling:
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("milestones belong to schedule steps, which needs some")
        return self


# "clom" is the seed's recipe, as released: raw pixels, ten times the usual weight decay, and the
# epoch that is best on the test images.
SCHOOLINGS = {
    "default": Schooling(),
    "clom": Schooling(
        epochs=150,
        lr=0.01,
        weight_decay=5e-3,
        schedule="steps",
        milestones=(50, 100),
        raw_pixels=True,
        select="best",
    ),
}
