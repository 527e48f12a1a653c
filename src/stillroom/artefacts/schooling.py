"""How an original model is trained: hyper-parameters alone; no torch here."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from stillroom.config import Grown
from stillroom.errors import StillroomError, suggest

MAX_EPOCHS = 10**5


class Schooling(Grown):
    """How an original model is trained; the fields are those of the trainer."""

    later: ClassVar[tuple[str, ...]] = ("warmup", "stop")

    epochs: int = Field(30, ge=1, le=MAX_EPOCHS, strict=True, description="passes over the data")
    batch: int = Field(256, ge=1, strict=True, description="images a step")
    lr: float = Field(0.02, gt=0, description="step size of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    schedule: Literal["constant", "cosine", "steps"] = Field("cosine", description="of the rate")
    milestones: tuple[int, ...] = Field((), description="of steps: a tenth from each epoch on")
    warmup: int = Field(0, ge=0, strict=True, description="epochs in which the rate climbs first")
    stop: int | None = Field(
        None, ge=1, strict=True, description="train only so many of the epochs of the schedule"
    )
    augment: str = Field("none", description="augmentation")
    raw_pixels: bool = Field(
        False, description="pixels in [0, 1] as they are, not in network space"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights that are kept: the last, or those best on the test images"
    )

    @field_validator("warmup", "stop")
    @classmethod
    def _within(cls, value: int | None, info: ValidationInfo) -> int | None:
        epochs = info.data.get("epochs", MAX_EPOCHS)
        if info.field_name == "stop" and value is not None and value > epochs:
            raise ValueError(f"cannot be more than the {epochs} epochs of the schedule")
        if info.field_name == "warmup" and value is not None and value >= epochs:
            raise ValueError(f"must be fewer than the {epochs} epochs of the schedule")
        return value

    @model_validator(mode="after")
    def _read(self) -> Schooling:
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("milestones belong to schedule steps, which needs some")
        return self

    @property
    def passes(self) -> int:
        """Passes over the data."""
        return self.epochs if self.stop is None else self.stop


_EDC: dict[str, Any] = {
    "epochs": 50,
    "batch": 64,
    "lr": 0.05,
    "weight_decay": 0.0,
    "schedule": "constant",
    "augment": "crop_flip",
}
_EDC_TINY = {**_EDC, "batch": 128, "lr": 0.1, "schedule": "cosine"}

# "clom" is the seed's recipe, as released: raw pixels, ten times the usual weight decay, and the
# epoch that is best on the test images.
# "edc" and its kin are the observers and teachers of EDC (arXiv:2404.13733), "edc" itself for
# CIFAR-10. "-released" is what its code saves, which is after every tenth epoch, counted from 0,
# and not after the last.
# "sre2l-..." are the teachers of SRe2L (arXiv:2306.13092).
# All pad their crops with black pixels there, and with the mean colour here (see `augment.parse`).
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
    "edc": Schooling(**{**_EDC, "epochs": 10}),
    "edc-released": Schooling(**{**_EDC, "epochs": 5, "stop": 1}),
    "edc-cifar100": Schooling(**_EDC),
    "edc-cifar100-released": Schooling(**_EDC, stop=41),
    "edc-tiny": Schooling(**_EDC_TINY),
    "edc-tiny-released": Schooling(**_EDC_TINY, stop=41),
    "sre2l-cifar100": Schooling(epochs=200, batch=128, lr=0.1, augment="crop_flip"),
    # differs from the released code: it draws random resized crops, which no augmentation of a
    # schooling does yet.
    "sre2l-tiny": Schooling(epochs=50, lr=0.2, weight_decay=1e-4, warmup=5, augment="crop_flip"),
}


def find_schooling(name: str) -> Schooling:
    """Look a schooling up by name; `name+epochs=N` is the same with N epochs, as of a protocol.

    Milestones, warm-up and stop lie at the same shares of them.
    Raises: StillroomError with the known names.
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
    share = count / named.epochs
    changed = {
        "epochs": count,
        "milestones": tuple(round(m * share) for m in named.milestones),
        "warmup": round(named.warmup * share),
        "stop": None if named.stop is None else max(1, round(named.stop * share)),
    }
    return named.model_copy(update=changed)


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return find_schooling(value)
    except StillroomError as error:
        raise ValueError(str(error)) from None


NamedSchooling = Annotated[Schooling, BeforeValidator(_named)]
"""A schooling by its fields, or by name as `find_schooling` takes it."""
