"""What flows between the parts: frozen dataclasses without behaviour of their own.

`Distilled` and its reader and writer are in `stillroom.distilled`.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from stillroom.errors import StillroomError

LabelKind = Literal["hard", "probs", "logits"]


@dataclass(frozen=True)
class Zca:
    """Whitening fitted on the training images: `(x.flatten(1) - mean) @ transform`.

    mean float32 [D], transform float32 [D,D] symmetric, D = channels * height * width.
    Source: spec of MTT and its successors; T = U (L + eps)^(-1/2) U^T with eps = 0.1.
    """

    mean: Tensor
    transform: Tensor

    @functools.cached_property
    def inverse(self) -> Tensor:
        """The inverse of the transform, float64 [D,D], made once.

        Raises: StillroomError if there is none.
        """
        try:
            found: Tensor = torch.linalg.inv(self.transform.double())
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise StillroomError(
                "the ZCA matrix of the set cannot be inverted, so it has no pixels to show"
            ) from None
        return found


@dataclass(frozen=True)
class Preprocess:
    """The map from pixels in [0, 1] to network space; real test images always go through it.

    `name` is where the constants come from ("cifar10", "imagenet", "fitted", ...).
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    zca: Zca | None = None

    def apply(self, images: Tensor) -> Tensor:
        """uint8 (0..255) or float ([0, 1]) [B,ch,H,W] -> float32 [B,ch,H,W] in network space."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        x = (x - self._row(self.mean, x)) / self._row(self.std, x)
        if self.zca is None:
            return x
        mean, transform = self.zca.mean.to(x.device), self.zca.transform.to(x.device)
        return ((x.flatten(1) - mean) @ transform).view_as(x)

    def invert(self, images: Tensor) -> Tensor:
        """Network space -> pixels, float32 [B,ch,H,W], *not* clamped to [0, 1]."""
        x = images.float()
        if self.zca is not None:
            back = x.flatten(1).double() @ self.zca.inverse.to(x.device)
            x = (back + self.zca.mean.double().to(x.device)).float().view_as(x)
        return x * self._row(self.std, x) + self._row(self.mean, x)

    def clamp(self, images: Tensor) -> Tensor:
        """The nearest images in network space that have pixels in [0, 1].

        Under ZCA by way of the pixels, so nearest there.
        """
        if self.zca is not None:
            return self.apply(self.invert(images).clamp(0, 1)).to(images.dtype)
        mean, std = self._row(self.mean, images), self._row(self.std, images)
        return images.maximum(-mean / std).minimum((1 - mean) / std)

    def describe(self) -> dict[str, Any]:
        """Return the JSON form; the two ZCA tensors travel beside it."""
        return {
            "name": self.name,
            "mean": list(self.mean),
            "std": list(self.std),
            "zca": self.zca is not None,
        }

    @staticmethod
    def _row(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Record:
    """One measured (or reported) number: a line of `records.jsonl`.

    `value` of the metric "accuracy" is a fraction in [0, 1]. `row` names what was trained on
    ("dm@300", "random", "full"), `draw` the random draw it is, `seed` the student's seed.
    `selection` is the rule that chose the number ("last", "best", "val"), `augment` what students
    were trained with, `family` a digest of the set's recipe but for its seed, `set_seed`: sets of
    one family are distillations of one thing. `labels` is the kind of label that students were
    trained with ("": not recorded): "hard", "probs" or "logits" of the set itself; or those of
    trained networks, "relabels:", "teachers:" or "soft:" with a digest of the networks, and of
    stored ones what is unusual about them. `numerics` names the back end too, where students
    were trained all at once ("float32/vmap"). `memory` is the peak in bytes (0: not known).
    What must be shipped is `bytes` of the images with their hard labels, `label_bytes` of soft
    labels, and `teacher_bytes` of networks that must be there while students are trained.
    """

    benchmark: str
    data_digest: str
    ipc: int
    row: str
    set_key: str
    step: int | None
    draw: int | None
    protocol: str
    protocol_hash: str
    arch: str
    seed: int
    metric: str
    value: float
    unit: str
    selection: str
    source: Literal["measured", "reported"]
    bytes: int
    seconds: float
    device: str
    numerics: str
    code: str
    split: str
    augment: str = ""
    family: str = ""
    set_seed: int | None = None
    labels: str = ""
    memory: int = 0
    label_bytes: int = 0
    teacher_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def taught(self) -> str:
        """Whose labels students had where they are not the set's own: rows must share them."""
        return self.labels if ":" in self.labels else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any, source: str) -> Record:
        """Read one line of a ledger.

        Raises: StillroomError naming `source` and the first missing, unknown or mistyped field.
        """
        if not isinstance(value, dict):
            raise StillroomError(f"{source}: a record must be a JSON object")
        known = {f.name: f for f in fields(cls)}
        for name in value:
            if name not in known:
                raise StillroomError(f"{source}: unknown field {str(name)[:80]!r} in a record")
        required = set(known) - {
            *("augment", "family", "set_seed", "labels", "memory", "label_bytes"),
            *("teacher_bytes", "versions", "note"),
        }
        missing = sorted(required - set(value))
        if missing:
            raise StillroomError(f"{source}: a record lacks the field {missing[0]!r}")
        number = value["value"]
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:
            raise StillroomError(f"{source}: value={str(number)[:40]} of a record is not a number")
        for name in ("benchmark", "row", "protocol", "arch", "metric", "selection", "numerics"):
            if not isinstance(value[name], str) or len(value[name]) > 300:
                raise StillroomError(f"{source}: {name} of a record must be text of <= 300 letters")
        return cls(**value)
