"""What an original model says of synthetic images: scalars that are differentiated or watched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import OriginalModel
from stillroom.distilled import WATCH
from stillroom.methods.base import Context, Synth
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.verdicts import accuracy, calibration_error, loss

# Assessment -> measure of (logits [N,C], labels int64 [N]), unit.
VERDICTS = {
    "original-model-accuracy": (accuracy, "fraction"),
    "original-model-loss": (loss, "nats"),
    "original-model-calibration-error": (calibration_error, "fraction"),
}


def cross_entropy(ctx: Context, model: OriginalModel, images: Tensor, labels: Tensor) -> Tensor:
    """Mean over images [N,ch,H,W] in network space; labels int64 [N] or logits [N,C].

    Gradient: to the images alone; labels that are learned do not follow the model.
    """
    logits = _network(ctx, model).logits(shown_to(ctx, model, images))[0]
    fixed = labels.detach()
    return F.cross_entropy(logits, fixed.softmax(1) if fixed.is_floating_point() else fixed)


def watched(
    ctx: Context, images: Tensor, of_class: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """The named assessments of images [N,ch,H,W], by the model that no term may use."""
    model = ctx.artefacts[WATCH]
    with torch.no_grad():
        logits = _network(ctx, model).logits(shown_to(ctx, model, images))[0]
    return {name: VERDICTS[name][0](logits, of_class) for name in names}


def contrast(
    ctx: Context, model: OriginalModel, synth: Synth, batch: int, key: tuple[int, ...]
) -> Tensor:
    """sum(M D) / sum(D) of synthetic images against real ones drawn by key, with replacement."""
    source = ctx.bench.train
    rows = torch.randint(len(source), (batch,), generator=ctx.rng("clom real", *key))
    real = ctx.bench.preprocess.apply(source.take(rows, ctx.device)).to(ctx.rt.dtype)
    nets = _network(ctx, model)
    with torch.no_grad():
        theirs = nets.features(shown_to(ctx, model, real))[0]
    mine = nets.features(shown_to(ctx, model, synth.images))[0]
    return ratio(mine, theirs, synth.of_class, source.labels[rows].to(ctx.device))


def ratio(mine: Tensor, theirs: Tensor, of_mine: Tensor, of_theirs: Tensor) -> Tensor:
    """sum(M D) / sum(D): D [N,B] = 1 - cosine of features [N,D] and [B,D], M where labels agree."""
    apart = 1 - F.normalize(mine, dim=1) @ F.normalize(theirs, dim=1).T
    same = (of_mine[:, None] == of_theirs[None, :]).to(apart.dtype)
    return (same * apart).sum() / apart.sum()


def _network(ctx: Context, model: OriginalModel) -> Ensemble:
    """The model as an ensemble of one, kept by the session: only its weights change."""
    factory = nets_for(model.arch, ctx.bench, ctx.rt)  # one a runtime, kept as long as the session
    name, cache = ("original", id(factory)), ctx.rt.session.cache
    if name not in cache:
        cache[name] = factory.make(1, 0, "original")
    nets = cache[name]
    assert isinstance(nets, Ensemble)
    model.put_into(nets)
    return nets


def shown_to(ctx: Context, model: OriginalModel, images: Tensor) -> Tensor:
    """Images in network space, in the space that the model was trained in."""
    return ctx.bench.preprocess.invert(images).to(images.dtype) if model.raw else images
