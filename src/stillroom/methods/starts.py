"""What synthetic images start from: real images, or noise."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stillroom.methods.base import Context


def start_images(ctx: Context, rows: Tensor, init: Literal["real", "noise"]) -> Tensor:
    """float [N,ch,H,W] in network space for rows int64 [N] of the whole set.

    "real": distinct real images of each class; "noise": Gaussian, keyed row by row.
    """
    if init == "real":
        return ctx.real_images(rows)
    shape = (ctx.bench.channels, ctx.bench.size, ctx.bench.size)
    noise = [torch.randn(shape, generator=ctx.rng("noise", r)) for r in rows.tolist()]
    return torch.stack(noise).to(ctx.device, ctx.rt.dtype)
