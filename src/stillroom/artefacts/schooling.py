"""How an original model is trained: hyper-parameters alone; no torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from stillroom.config import Model
from stillroom.errors import StillroomError, suggest

MAX_EPOCHS = 10**5


class Schooling(Model):
    """How an original model is trained; the fields are those of the trainer."""

    epochs: int = Field(30, ge=1, le=MAX_EPOCHS, strict=True, description="passes over the data")
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


def find_schooling(name: str) -> Schooling:
    """Look a schooling up by name; `name+epochs=N` is the same with N epochs, as of a protocol.

    Milestones lie at the same shares of them. Raises: StillroomError with the known names.
    """
    base, plus, change = name.partition("+")
    if base not in SCHOOLINGS:
        raise StillroomError(
            f"originals={name[:80]!r} is unknown; known: {', '.join(SCHOOLINGS)}"
            f"{suggest(base, SCHOOLINGS)}"
        )
    field, _, value = change.partition("=")
    count = int(value) if value.isascii() and value.isdigit() and len(value) < 7 else 0
    if plus and (field != "epochs" or not 1 <= count <= MAX_EPOCHS):
        raise StillroomError(
            f"originals={name[:80]!r}: only +epochs=N can be changed, N in 1..{MAX_EPOCHS}"
        )
    if not plus:
        return SCHOOLINGS[base]
    named = SCHOOLINGS[base]
    scaled = tuple(round(m * count / named.epochs) for m in named.milestones)
    return named.model_copy(update={"epochs": count, "milestones": scaled})


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return find_schooling(value)
    except StillroomError as error:
        raise ValueError(str(error)) from None


NamedSchooling = Annotated[Schooling, BeforeValidator(_named)]
"""A schooling by its fields, or by name as `find_schooling` takes it."""
