"""What a trajectory-matching set starts from where experts have a say: images and soft labels.

DATM: Guo et al. 2024, arXiv:2310.05773, and its code; specification of trajectory matching, 4.6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.artefacts.experts import Trajectory
from stillroom.errors import StillroomError
from stillroom.methods.base import Context
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.inner import views

AT_ONCE = 256  # real images that are looked at before the next ones are


def known_images(ctx: Context, rows: Tensor, experts: Sequence[Trajectory]) -> Tensor:
    """float [N,ch,H,W]: distinct real images that the first expert classifies rightly.

    In an order drawn by key; where a class has too few, the next experts are asked about the rest.
    Raises: StillroomError naming a class that has too few whatever expert is asked.
    """
    picked = []
    for c in (rows // ctx.ipc).unique().tolist():
        found = _known(ctx, c, experts)
        within = rows[rows // ctx.ipc == c] - c * ctx.ipc
        picked.append(found[within.to(found.device)])
    return torch.cat(picked)


def _known(ctx: Context, c: int, experts: Sequence[Trajectory]) -> Tensor:
    size = len(ctx.bench.train.rows_of(c))
    images = ctx.real(c, size, "known", c)
    left = torch.ones(size, dtype=torch.bool, device=images.device)
    chosen: list[int] = []
    for expert in experts:
        for begin in range(0, size, AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            right = logits_of(ctx, expert, images[some]).argmax(1) == c
            new = (right & left[some]).nonzero().squeeze(1) + begin
            chosen += new.tolist()
            left[new] = False
            if len(chosen) >= ctx.ipc:
                return images[chosen[: ctx.ipc]]
    raise StillroomError(
        f"of class {ctx.bench.classes[c]!r} only {len(chosen)} training images are classified "
        f"rightly by any of {len(experts)} experts, and ipc={ctx.ipc}; train them longer, or start "
        "from --init real"
    )


def first_labels(
    ctx: Context, images: Tensor, of_class: Tensor, experts: Sequence[Trajectory], known: bool
) -> Tensor:
    """Logits [N,C]: of the experts that classify an image rightly, averaged.

    With images that no expert was asked about (`known` false) those of the first expert, as they
    are.
    """
    if not known:
        return logits_of(ctx, experts[0], images)
    logits = torch.stack([logits_of(ctx, expert, images) for expert in experts])
    return agreed_logits(logits, of_class)


def agreed_logits(logits: Tensor, of_class: Tensor) -> Tensor:
    """The mean [N,C] over those experts of logits [E,N,C] that classify an image rightly.

    At least one must. So the mean classifies it rightly too.
    """
    right = (logits.argmax(2) == of_class).to(logits.dtype).unsqueeze(2)
    return (logits * right).sum(0) / right.sum(0)


@torch.no_grad()
def logits_of(ctx: Context, expert: Trajectory, images: Tensor) -> Tensor:
    """Logits [N,C] of the expert's last parameters for images in network space."""
    return with_parameters(ctx, expert.last().to(ctx.device, ctx.rt.dtype)).logits(images)[0]


def with_parameters(ctx: Context, theta: Tensor) -> Ensemble:
    """The one network of this run with parameters [P]; the next call gives it others."""
    nets: Ensemble = ctx.once("student", lambda: ctx.nets(1, "student"))
    params = nets.member(0)[0]
    with torch.no_grad():
        for name, value in views(theta, params).items():
            params[name].copy_(value)
    return nets
