"""The student of trajectory matching: its network, where its stretch may start, its batches.

Specification of trajectory matching, 4.1 and 4.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stillroom.errors import StillroomError

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.artefacts.experts import Trajectory
    from stillroom.methods.base import Context
    from stillroom.methods.trajectory_options import Window
    from stillroom.nets.ensemble import Ensemble

AT_ONCE = 64  # images that are looked at without a graph before the next ones are


def with_parameters(ctx: Context, theta: Tensor) -> Ensemble:
    """The one network of this run with parameters [P]; the next call gives it others."""
    from stillroom.nets.inner import put

    nets: Ensemble = ctx.once("student", lambda: ctx.nets(1, "student"))
    put(theta, nets.member(0)[0])
    return nets


def said_with(ctx: Context, theta: Tensor, images: Tensor) -> Tensor:
    """Logits [N,C] of that network with parameters [P] for images [N,ch,H,W]; no graph."""
    import torch

    with torch.no_grad():
        return in_parts(with_parameters(ctx, theta), images.detach())


def in_parts(nets: Ensemble, images: Tensor) -> Tensor:
    """Logits [N,C] of network 0 for images [N,ch,H,W], some at a time; for use without a graph."""
    import torch

    return torch.cat([nets.logits(some)[0] for some in images.split(AT_ONCE)])


def batches(
    ctx: Context, images: Tensor, labels: Tensor, it: int, inner: int, batch: int, augment: str
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The batch of every one of `inner` steps of the student: the same at every call."""
    import torch

    from stillroom.data.augment import apply, draw, parse

    strategy = parse(augment)
    count = len(images)
    each = -(-count // batch)
    orders = [
        torch.randperm(count, generator=ctx.rng("rows", it, turn)).tolist()
        for turn in range(-(-inner // each))
    ]
    chunks = chunks_of(orders, batch)

    def shown(t: int) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(chunks[t], device=images.device)
        drawn = draw(strategy, len(rows), ctx.bench.size, ctx.rng("augment", it, t))
        return apply(images[rows], drawn), labels[rows]

    return shown


def drawn(ctx: Context, experts: int, it: int) -> int:
    """The expert of a step: every one once, in an order drawn by key, before any comes again."""
    import torch

    turn, place = divmod(it, experts)
    order = torch.randperm(experts, generator=ctx.rng("experts", turn))
    return int(order[place])


def stretch(ctx: Context, expert: Trajectory, window: Window, it: int) -> tuple[Tensor, Tensor]:
    """Parameters [P] of the expert where the student starts, and where it should end.

    Raises: StillroomError if it stood still between them.
    """
    import torch

    bound = latest_start(it, window.begin, window.last, window.grow)
    first = int(torch.randint(window.first, bound, (), generator=ctx.rng("window", it)))
    last = first + window.epochs
    start, target = (expert.after(epoch).to(ctx.device, ctx.rt.dtype) for epoch in (first, last))
    if torch.equal(start, target):
        raise StillroomError(
            f"an expert stood still from epoch {first} to {last}, so there is no "
            "way to follow; give a longer --window.epochs, or other experts"
        )
    return start, target


def latest_start(it: int, begin: int, last: int, grow: int) -> int:
    """The bound below which a stretch starts at step `it`: from `begin` to `last` in `grow` steps.

    DATM's sequential generation; `grow` 0: it stands.
    """
    return min(last, begin + (last - begin) * it // grow) if grow else last


def chunks_of(orders: Sequence[Sequence[int]], batch: int) -> list[list[int]]:
    """The rows of every step: each order in turn, cut into batches and taken from the end.

    So the ragged rest of an order comes first, as in the reference.
    """
    found = []
    for order in orders:
        cut = [list(order[i : i + batch]) for i in range(0, len(order), batch)]
        found += cut[::-1]
    return found
