"""How logits of teachers are stored: `fp16`, `int8` or `topk:K`. torch only where it computes.

Source: fp16 is what SRe2L, G-VBSM and EDC store; the k largest probabilities are FKD's, Shen and
Xing 2021, arXiv:2112.01528.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import StillroomError, suggest

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("fp16", "int8", "topk:K")
WIDTH = {"float16": 2, "int16": 2, "int32": 4, "uint8": 1}
MOST_HALF = 65504.0
Stored = Mapping[str, "Tensor"]


class Codec(ABC):
    """Logits [B,C] float32 to tensors with a row an image, and back.

    `keeps_logits`: what comes back are the teachers' logits themselves, rounded, so that a student
    may be compared with them number by number.
    """

    keeps_logits: ClassVar[bool] = True

    @property
    @abstractmethod
    def text(self) -> str:
        """The canonical name; `find_codec(codec.text) == codec`."""

    @abstractmethod
    def layout(self, classes: int) -> dict[str, tuple[str, int]]:
        """The stored tensors: name -> (dtype, columns).

        Raises: StillroomError if it cannot store so few classes.
        """

    @abstractmethod
    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """float32 [B,C] -> name -> [B,columns], on the CPU.

        Raises: StillroomError for NaN, or numbers that are too large to store.
        """

    @abstractmethod
    def decode(self, stored: Stored, classes: int) -> Tensor:
        """The tensors of some rows, perhaps foreign ones, -> finite logits float32 [B,C].

        Raises: StillroomError if they are none that `encode` makes.
        """

    def batch_bytes(self, batch: int, classes: int) -> int:
        """Bytes of the tensors of a batch, exactly."""
        return batch * sum(WIDTH[dtype] * n for dtype, n in self.layout(classes).values())


@dataclass(frozen=True)
class Half(Codec):
    """Every logit in float16: relative error at most 2^-11 (absolute 2^-25 near 0); 2C bytes."""

    @property
    def text(self) -> str:
        """Its name."""
        return "fp16"

    def layout(self, classes: int) -> dict[str, tuple[str, int]]:
        """One tensor."""
        return {"logits": ("float16", classes)}

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """Rounded to the nearest."""
        return {"logits": _storable(logits).half()}

    def decode(self, stored: Stored, classes: int) -> Tensor:
        """As stored."""
        return _finite(stored["logits"].float())


@dataclass(frozen=True)
class Byte(Codec):
    """Every row in 256 even steps between its least and greatest logit; C + 4 bytes.

    Error at most half a step. The least value is rounded down to float16 and the step up, so that
    both ends are inside.
    For a squared distance of logits (`mse_gt`) that is little: the mean square of the error is
    about a twelfth of a squared step, range^2 / (12 * 255^2), and logits of that range have a
    variance of at least range^2 / (2C); so it is at most about C / 390,150 of what a student has to
    learn, 0.3 % of 1000 classes and 0.003 % of 10.
    """

    @property
    def text(self) -> str:
        """Its name."""
        return "int8"

    def layout(self, classes: int) -> dict[str, tuple[str, int]]:
        """Steps of each logit; zero and size of a step of each row."""
        return {"codes": ("uint8", classes), "affine": ("float16", 2)}

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """The nearest step."""
        import torch

        x = _storable(logits).double().numpy()
        zero = _half(x.min(1), up=False)
        step = _half((x.max(1) - zero) / 255, up=True)
        steps = (x - zero[:, None]) / np.where(step > 0, step, 1.0)[:, None]
        codes = torch.from_numpy(steps).round().clamp(0, 255).to(torch.uint8)
        affine = torch.from_numpy(np.stack([zero, step], 1)).half()
        if not bool(affine.isfinite().all()):
            raise StillroomError(
                "logits near 65504 do not fit into int8's float16 ends; scale them"
            )
        return {"codes": codes, "affine": affine}

    def decode(self, stored: Stored, classes: int) -> Tensor:
        """Zero plus so many steps."""
        zero, step = stored["affine"].float().unbind(1)
        return _finite(zero[:, None] + stored["codes"].float() * step[:, None])


@dataclass(frozen=True)
class TopK(Codec):
    """The logarithms of the k largest probabilities and of the other mass, which is spread evenly.

    4k + 2 bytes (6k + 2 of more than 32767 classes). What comes back are log-probabilities: logits
    less a number a row that nobody kept, and all but k of them one and the same. Losses of softmax
    do not see the number, and at temperature 1 they see the kept probabilities and the mass of the
    rest; at a temperature T above 1 the rest gets more than its own, because the mean of p^(1/T) is
    at most the mean of p to the 1/T. A squared distance of logits (`mse_gt`) would pull C - k of C
    numbers to one made up, so those who ask for it are refused.
    Probabilities are kept as logarithms because a small one would be 0 in float16; the relative
    error of a kept p, and of the rest, is at most |log p| 2^-11. The rest is kept too: of a sure
    teacher it is less than the rounding of the others, and at a high temperature it counts.
    """

    keeps_logits: ClassVar[bool] = False

    k: int

    @property
    def text(self) -> str:
        """Its name."""
        return f"topk:{self.k}"

    def layout(self, classes: int) -> dict[str, tuple[str, int]]:
        """Which classes, and their log-probabilities."""
        if self.k > classes:
            raise StillroomError(f"codec={self.text!r} of {classes} classes; k must not be larger")
        index = "int16" if classes <= 2**15 - 1 else "int32"
        return {"indices": (index, self.k), "log_probs": ("float16", self.k + 1)}

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """The k largest at temperature 1, falling; of equal ones the first class first."""
        import torch

        log_probs = _storable(logits).double().log_softmax(1)
        largest, indices = log_probs.sort(dim=1, descending=True, stable=True)
        dtype = getattr(torch, self.layout(logits.shape[1])["indices"][0])
        rest = largest[:, self.k :].logsumexp(1, keepdim=True)  # -inf where none is left
        kept = torch.cat([largest[:, : self.k], rest], 1).clamp(-MOST_HALF, 0).half()
        return {"indices": indices[:, : self.k].to(dtype), "log_probs": kept}

    def decode(self, stored: Stored, classes: int) -> Tensor:
        """Log-probabilities: the kept ones, and that of the rest less log(C - k) for all others."""
        import torch

        kept, indices = stored["log_probs"].double(), stored["indices"].long()
        if not bool(((indices >= 0) & (indices < classes)).all()):
            raise StillroomError(f"an index of a class is not in 0..{classes - 1}")
        if not bool((kept <= 0).all()):  # also of NaN
            raise StillroomError("a stored log-probability is above 0 or NaN")
        spread = kept[:, self.k :] - math.log(max(1, classes - self.k))
        out = spread.expand(-1, classes).clone().scatter_(1, indices, kept[:, : self.k])
        return _finite(out.to(torch.float32))


def find_codec(text: str) -> Codec:
    """Read the name of a codec: `fp16`, `int8` or `topk:K` with K >= 1.

    Raises: StillroomError with the known names.
    """
    if text in ("fp16", "int8"):
        return Half() if text == "fp16" else Byte()
    head, _, k = text.partition(":")
    if head == "topk" and k.isascii() and k.isdigit() and len(k) < 8 and k[0] != "0":
        return TopK(int(k))
    raise StillroomError(
        f"codec={text[:40]!r} is unknown; known: {', '.join(NAMES)}{suggest(text, NAMES)}"
    )


def _storable(logits: Tensor) -> Tensor:
    """Logits on the CPU, float32; refused where float16 has no such number."""
    kept = logits.detach().float().cpu()
    if not bool((kept.abs() <= MOST_HALF).all()):  # also of NaN
        raise StillroomError(
            "logits to be stored are NaN or beyond 65504, the largest float16; check the teachers"
        )
    return kept


def _finite(logits: Tensor) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise StillroomError("stored logits are NaN or infinite")
    return logits


def _half(x: NDArray[np.float64], up: bool) -> NDArray[np.float64]:
    """The nearest float16 numbers that are not below (`up`) or not above x."""
    with np.errstate(over="ignore"):
        near: Any = x.astype(np.float16)
        wrong = near < x if up else near > x
        to = np.float16(np.inf if up else -np.inf)
        return np.asarray(np.where(wrong, np.nextafter(near, to), near), dtype=np.float64)
