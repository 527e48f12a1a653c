"""What a trajectory-matching set starts from where experts have a say: images and soft labels.

DATM: Guo et al. 2024, arXiv:2310.05773, and its code; specification of trajectory matching, 4.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stillroom.artefacts.originals import OriginalModel, opened
from stillroom.errors import StillroomError
from stillroom.methods.base import Context
from stillroom.methods.original_loss import shown_to
from stillroom.methods.trajectory_student import AT_ONCE, in_parts, said_with

Logits = Callable[[Tensor], Tensor]  # of images [N,ch,H,W] in network space: [N,C], no graph


def known_images(ctx: Context, rows: Tensor, asked: Sequence[Logits]) -> Tensor:
    """float [N,ch,H,W]: distinct real images that the first of `asked` classifies rightly.

    In an order drawn by key; where a class has too few, the next ones are asked about the rest.
    Raises: StillroomError naming a class that has too few whoever is asked.
    """
    picked = []
    for c in (rows // ctx.ipc).unique().tolist():
        found = _known(ctx, c, asked)
        within = rows[rows // ctx.ipc == c] - c * ctx.ipc
        picked.append(found[within.to(found.device)])
    return torch.cat(picked)


def _known(ctx: Context, c: int, asked: Sequence[Logits]) -> Tensor:
    rows = ctx.real_rows(c, "known", c)
    left = torch.ones(len(rows), dtype=torch.bool, device=ctx.device)
    chosen: list[Tensor] = []
    for logits in asked:
        for begin in range(0, len(rows), AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            images = ctx.take(rows[some])
            new = ((logits(images).argmax(1) == c) & left[some]).nonzero().squeeze(1)
            chosen += images[new].unbind()
            left[new + begin] = False
            if len(chosen) >= ctx.ipc:
                return torch.stack(chosen[: ctx.ipc])
    raise StillroomError(
        f"of class {ctx.bench.classes[c]!r} only {len(chosen)} training images are classified "
        f"rightly by one of the {len(asked)} that are asked, and ipc={ctx.ipc}; train longer, or "
        "start from --init real"
    )


def first_labels(images: Tensor, of_class: Tensor, asked: Sequence[Logits], known: bool) -> Tensor:
    """Logits [N,C]: of those of `asked` that classify an image rightly, averaged.

    With images that nobody was asked about (`known` false) those of the first, as they are.
    """
    if not known:
        return asked[0](images)
    return agreed_logits(torch.stack([logits(images) for logits in asked]), of_class)


def agreed_logits(logits: Tensor, of_class: Tensor) -> Tensor:
    """The mean [N,C] over those experts of logits [E,N,C] that classify an image rightly.

    At least one must. So the mean classifies it rightly too.
    """
    right = (logits.argmax(2) == of_class).to(logits.dtype).unsqueeze(2)
    return (logits * right).sum(0) / right.sum(0)


def logits_of(ctx: Context, read: Callable[[], Tensor]) -> Logits:
    """What the network of this run says with the parameters [P] that `read` gives when asked."""

    return lambda images: said_with(ctx, read().to(ctx.device, ctx.rt.dtype), images)


def logits_of_original(ctx: Context, model: OriginalModel) -> Logits:
    """What an original model says, in the space of pixels that it takes."""
    nets = opened(model, ctx.bench, ctx.rt)

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return in_parts(nets, shown_to(ctx, model, images))

    return logits


def misjudged(labels: Tensor, of_class: Tensor) -> str:
    """What to say of first labels [N,C] that name other classes than those of the images."""
    wrong = int((labels.argmax(1) != of_class).sum())
    if not wrong:
        return ""
    return (
        f"{wrong} of {len(labels)} first labels name another class than the image is of; with "
        "--init known an expert classifies every image"
    )
