"""The door between compiled code and autograd: values whose gradient is known already.

See docs/architecture.md, "Compiled second order".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stillroom.errors import StillroomError

APART = 0.05  # of the norm: compiled code adds up in another order, but no further off than this
LEAST = 1e-6  # an element: rounding, where the true gradient is zero


class Precomputed(torch.autograd.Function):
    """A scalar whose gradient is already known: the door between compiled code and autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return outputs[0] * slope, None, None


def precomputed(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """The scalar `value`, whose gradient with respect to x is `slope`."""
    result: Tensor = Precomputed.apply(x, value, slope)  # type: ignore[no-untyped-call]
    return result


def refuse_apart(found: Any, plain: Callable[[], Any], device: torch.device) -> None:
    """Refuse what compiled code gave where plain code gives something else.

    Both give tensors in any nesting, of the same shapes. A compiler that loses a graph does so
    without an error, and images would follow a gradient that is none. Where plain code draws
    (dropout), or finds NaN, there is nothing to compare with. No generator is moved.
    Raises: StillroomError telling by how much they differ.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        first, again = ([t.detach() for t in tree_leaves(plain())] for _ in range(2))
    for a, b, c in zip(tree_leaves(found), first, again, strict=True):
        size, gap = float(b.norm()), float((a.detach() - b).norm())
        nearest = APART * size + LEAST * b.numel() ** 0.5
        if not math.isfinite(size) or float((c - b).norm()) > nearest:
            return
        if not gap <= nearest:
            raise StillroomError(
                f"torch.compile {torch.__version__} gives another gradient than plain code here "
                f"({gap:.3g} apart, of {size:.3g}); go on with --compile off"
            )
