"""EDF's Discriminative Area Enhancement: pixels where the class is seen move more.

Wang et al. 2025, arXiv:2410.17193; specification of trajectory matching, 5.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.artefacts.originals import opened
from stillroom.methods.base import Context, Synth
from stillroom.methods.original_loss import shown_to
from stillroom.methods.trajectory_options import Areas
from stillroom.nets.maps import activation_maps, deepest


def look(ctx: Context, areas: Areas, synth: Synth, it: int) -> Tensor:
    """Where the network that looks sees the class of each image now: [N,H,W] in [0, 1].

    Says once, at the first step, if it sees the class of many nowhere.
    """
    nets = ctx.once("looks", lambda: opened(ctx.artefacts["looks"], ctx.bench, ctx.rt))
    layer = areas.layer if areas.layer != "auto" else deepest(nets)
    key = int(torch.randint(2**62, (), generator=ctx.rng("maps", it)))
    images = shown_to(ctx, ctx.artefacts["looks"], synth.images.detach())
    maps = activation_maps(nets, layer, images, synth.of_class, areas.cam, key)
    highest = maps.amax((1, 2))
    empty = int((highest == 0).sum())
    if it == 0 and areas.threshold is not None and bool((highest < areas.threshold).all()):
        ctx.rt.session.say(
            f"no map reaches --areas.threshold {areas.threshold:g} (the highest value is "
            f"{float(highest.max()):.2f}), so nothing is emphasised; lower it"
        )
    if it == 0 and 10 * empty > len(maps):
        ctx.rt.session.say(
            f"{nets.nets.arch.name} sees the class nowhere in {empty} of {len(maps)} images, whose "
            "pixels then all count alike; another --areas.net or longer --areas.schooling may help"
        )
    return maps


def emphasis(maps: Tensor, beta: float, threshold: float | None) -> Tensor:
    """Factors [N,1,H,W] of the pixel gradients: beta + the map where it is active, 1 elsewhere.

    maps [N,H,W] in [0, 1]. Active is at least `threshold`, or the map's own mean where that is
    None. A constant map is active everywhere, as far as its mean is not rounded above it.
    """
    bound = maps.mean((1, 2), keepdim=True) if threshold is None else threshold
    return (beta + maps).where(maps >= bound, maps.new_ones(())).unsqueeze(1)
