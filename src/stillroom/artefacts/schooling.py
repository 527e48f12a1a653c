"""How an original model is trained: hyper-parameters alone; no torch here."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stillroom.config import DSA, Grown, Model
from stillroom.errors import StillroomError, suggest

MAX_EPOCHS = 10**5
MOST_MODELS = 1000  # of one network


class Order(Model):
    """Which images of every class an epoch sees, by how difficult they are (PAD, of experts).

    Source: Li et al. 2024, arXiv:2408.03360; specification of trajectory matching, 3.6.
    """

    scores: Literal["none", "grand", "el2n"] = Field(
        "none", description="what difficulty is; none: every epoch sees all images"
    )
    models: int = Field(10, ge=1, le=1000, strict=True, description="networks that are asked")
    epochs: int = Field(10, ge=1, le=MAX_EPOCHS, strict=True, description="how long they train")
    first: float = Field(
        0.75, gt=0, le=1, description="share of a class, the easiest, that the first epoch sees"
    )
    grow: int = Field(20, ge=0, strict=True, description="epochs in which it climbs to all")
    after: tuple[int, ...] = Field(
        (40, 60), description="after each of these epochs, counted from 0, some are left out"
    )
    without: tuple[float, ...] = Field(
        (0.1, 0.2), description="these shares of a class, the easiest"
    )

    @model_validator(mode="after")
    def _read(self) -> Order:
        if self.scores == "none" and self != Order.model_construct():
            raise ValueError(
                "order.first, .grow, .after and .without belong to order.scores grand or el2n"
            )
        if len(self.after) != len(self.without):
            raise ValueError(
                f"after names {len(self.after)} epochs and without {len(self.without)} shares"
            )
        if list(self.after) != sorted(set(self.after)) or min((*self.after, self.grow)) < self.grow:
            raise ValueError(f"after must climb from {self.grow}, the end of grow, on")
        if self.first < 1 and not self.grow:
            raise ValueError("first belongs to grow, the epochs in which it climbs to all")
        if not all(0 <= share < 1 for share in self.without):
            raise ValueError("without must lie from 0 to below 1")
        return self

    def seen(self, epoch: int, size: int) -> range:
        """Places, the easiest being 0, of the images of a class of `size` that an epoch sees.

        Epochs count from 0. Up to `grow` the easiest, more and more of them; then all; after the
        epochs `after`, all but the easiest.
        """
        if epoch <= self.grow:
            climbed = epoch / self.grow if self.grow else 1.0
            return range(max(1, int(size * min(1.0, self.first + (1 - self.first) * climbed))))
        gone = [share for last, share in zip(self.after, self.without, strict=True) if epoch > last]
        return range(int(size * gone[-1]) if gone else 0, size)


class Schooling(Grown):
    """How an original model is trained; the fields are those of the trainer."""

    later: ClassVar[tuple[str, ...]] = (
        "warmup", "stop", "rho", "alpha", "adaptive", "order", "numerics"
    )  # fmt: skip

    by_name: ClassVar[str] = (
        "how they are trained, by name: NAME or NAME+field=value, as of prepare"
    )

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
    rho: float = Field(
        0.0, ge=0, description="how far GSAM looks uphill before a step; 0: plain SGD"
    )
    alpha: float = Field(0.0, ge=0, description="GSAM's share of the part across; 0: SAM")
    adaptive: bool = Field(True, description="GSAM looks farther where weights are large")
    order: Order = Field(Order.model_construct(), description="images by difficulty, of experts")
    augment: str = Field("none", description="augmentation")
    raw_pixels: bool = Field(
        False, description="pixels in [0, 1] as they are, not in network space"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights that are kept: the last, or those best on the test images"
    )
    numerics: Literal["float32", "tf32", "bf16"] = Field(
        "float32", description="of its passes; bf16 is about twice as fast where it is compiled"
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
        rising = sorted(set(self.milestones)) == list(self.milestones)
        if self.milestones and not (rising and self.milestones[0] >= 1):
            raise ValueError("milestones must ascend, from epoch 1 on")
        if not self.rho and (self.alpha or not self.adaptive):
            raise ValueError("alpha and adaptive are of GSAM; give rho too")
        return self

    @model_validator(mode="after")
    def _reached(self) -> Schooling:
        last = max((*self.order.after, self.order.grow), default=0)
        if self.order.scores != "none" and last >= self.epochs:
            raise ValueError(
                f"order changes what is seen up to epoch {last} of {self.epochs}; give order.grow, "
                "order.after and order.without that fit"
            )
        return self

    @property
    def passes(self) -> int:
        """Passes over the data."""
        return self.epochs if self.stop is None else self.stop

    @property
    def looks(self) -> int:
        """Gradients a step."""
        return 2 if self.rho else 1


# Experts of trajectory matching; the augmentation is that of their students.
_MTT: dict[str, Any] = {
    "epochs": 50,
    "lr": 0.01,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "augment": DSA,
}
GSAM: dict[str, Any] = {"rho": 0.01, "alpha": 0.3}
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
# "edc-imagenet10" starts from nothing, as the paper says; its code starts from published weights.
# "sre2l-..." are the teachers of SRe2L (arXiv:2306.13092).
# "torchvision" is how its ResNet-18 of ImageNet-1K was trained, whose published weights those
# papers take; its AlexNet and the small networks had recipes of their own.
# All pad their crops with black pixels there, and with the mean colour here (see `augment.parse`).
SCHOOLINGS = {
    "default": Schooling.model_construct(),
    "clom": Schooling.model_construct(
        epochs=150,
        lr=0.01,
        weight_decay=5e-3,
        schedule="steps",
        milestones=(50, 100),
        raw_pixels=True,
        select="best",
    ),
    # MTT (arXiv:2203.11932); FTD (arXiv:2211.11004), "-small" at 1 and 10 images a class of
    # CIFAR-10; DATM (arXiv:2310.05773), PAD and EDF.
    "mtt": Schooling.model_construct(**_MTT),
    "ftd": Schooling.model_construct(**{**_MTT, "rho": 0.01, "alpha": 1.0}),
    "ftd-small": Schooling.model_construct(**_MTT, **GSAM),
    "datm": Schooling.model_construct(**{**_MTT, "epochs": 100}, **GSAM),
    # differs from the released code: it reads difficulties that others computed (GraNd) and counts
    # 5,000 images a class whatever the data.
    "pad": Schooling.model_construct(
        **{**_MTT, "epochs": 100}, **GSAM, order=Order.model_construct(scores="grand")
    ),
    "edc": Schooling.model_construct(**{**_EDC, "epochs": 10}),
    "edc-released": Schooling.model_construct(**{**_EDC, "epochs": 5, "stop": 1}),
    "edc-cifar100": Schooling.model_construct(**_EDC),
    "edc-cifar100-released": Schooling.model_construct(**_EDC, stop=41),
    "edc-tiny": Schooling.model_construct(**_EDC_TINY),
    "edc-tiny-released": Schooling.model_construct(**_EDC_TINY, stop=41),
    # differs from the released code: random resized crops there, as in "torchvision".
    "edc-imagenet10": Schooling.model_construct(
        **{**_EDC, "epochs": 60, "batch": 128, "lr": 0.01, "schedule": "cosine"}, stop=20
    ),
    "sre2l-cifar100": Schooling.model_construct(epochs=200, batch=128, lr=0.1, augment="crop_flip"),
    # differs from the released code: it draws random resized crops, which no augmentation of a
    # schooling does yet.
    "sre2l-tiny": Schooling.model_construct(
        epochs=50, lr=0.2, weight_decay=1e-4, warmup=5, augment="crop_flip"
    ),
    "torchvision": Schooling.model_construct(
        epochs=90,
        lr=0.1,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(30, 60),
        augment="crop_flip",
    ),
}


def find_schooling(name: str, known: str | None = None) -> Schooling:
    """Look a schooling up by name; `name+epochs=N+lr=0.1` is the same with some fields changed.

    known: the data whose augmentation it has by `as_students`, unless that is what is changed.
    Raises: StillroomError with the known names or fields.
    """
    base, *changes = name.split("+")
    if base not in SCHOOLINGS:
        raise StillroomError(
            f"schooling={name[:80]!r} is unknown; known: {', '.join(SCHOOLINGS)}"
            f"{suggest(base, SCHOOLINGS)}"
        )
    values: dict[str, Any] = {}
    for change in changes:
        field, equals, text = change.partition("=")
        if not equals or field not in Schooling.model_fields:
            raise StillroomError(
                f"schooling={name[:80]!r}: {change[:40]!r} must be FIELD=VALUE, FIELD one of "
                f"{', '.join(Schooling.model_fields)}{suggest(field, Schooling.model_fields)}"
            )
        try:
            values[field] = json.loads(text)
        except ValueError:
            values[field] = text
    try:
        return changed(as_students(SCHOOLINGS[base], known), values)
    except StillroomError as error:
        raise StillroomError(f"schooling={name[:80]!r}: {error}") from None


def changed(base: Schooling, values: dict[str, Any]) -> Schooling:
    """The same with other values; of other epochs, milestones, warm-up and stop keep their shares.

    Milestones go where another schedule is named. Raises: StillroomError naming the field.
    """
    if isinstance(values.get("augment"), str):
        from stillroom.data.augment import parse  # imports torch, which --help does without

        values = {**values, "augment": parse(values["augment"]).text}
    share = values["epochs"] / base.epochs if isinstance(values.get("epochs"), int) else 1.0
    scaled = {
        "milestones": tuple(sorted({max(1, round(m * share)) for m in base.milestones})),
        "warmup": round(base.warmup * share),
        "stop": None if base.stop is None else max(1, round(base.stop * share)),
    }
    if values.get("schedule", "steps") != "steps":
        scaled["milestones"] = ()
    order = _scaled_order(base.order, share, values.get("epochs", base.epochs))
    if isinstance(values.get("order"), dict):
        order |= values["order"]
    values = {**values, "order": order}
    try:
        return Schooling(**{**base.model_dump(), **scaled, **values})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        plain = where and not isinstance(first["input"], dict)  # a group's dump says nothing
        got = f" (got {str(first['input'])[:40]!r})" if plain else ""
        why = first["msg"].removeprefix("Value error, ")
        raise StillroomError(f"{where + ': ' if where else ''}{why}{got}") from None


def _scaled_order(order: Order, share: float, epochs: Any) -> dict[str, Any]:
    """The same order of other epochs; what so few have no room for goes."""
    found = order.model_dump()
    if order.scores == "none" or share == 1:
        return found
    grow = round(order.grow * share)
    pairs = zip(order.after, order.without, strict=True)
    left = {max(1, grow, round(last * share)): gone for last, gone in pairs}
    left = {last: gone for last, gone in left.items() if last < epochs}
    more = {"grow": grow, "after": tuple(left), "without": tuple(left.values())}
    return {**found, **more, **({} if grow else {"first": 1.0})}


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return find_schooling(value)
    except StillroomError as error:
        raise ValueError(str(error)) from None


NamedSchooling = Annotated[Schooling, BeforeValidator(_named)]
"""A schooling by its fields, or by name as `find_schooling` takes it."""


def as_students(schooling: Schooling, known: str | None) -> Schooling:
    """The same with the augmentation that students of known data see, where it has theirs."""
    from stillroom.data.named import NAMED

    named = NAMED.get(known or "")
    if named is None or schooling.augment != DSA:
        return schooling
    return schooling.model_copy(update={"augment": named.augment})
