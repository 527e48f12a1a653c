"""Observers: trained networks in whose layers synthetic images are compared with real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import OriginalModel, opened
from stillroom.artefacts.statistics import Observed
from stillroom.data.curriculum import smallest_scale
from stillroom.data.replay import MixDraw, flips, jitter, padded_crops, resized_crops
from stillroom.data.views import apply
from stillroom.errors import StillroomError
from stillroom.methods.base import Context, Synth
from stillroom.methods.original_loss import shown_to
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.hooks import Layer, Stats, Sums, layers, of_batch, patch_side

if TYPE_CHECKING:
    from stillroom.methods.recover_options import Views
    from stillroom.methods.statistics_matching import StatisticsMatching

Aims = list[list[tuple[float, Stats]]]  # of the batch, then of every class: (weight, target)
RATIO = (3 / 4, 4 / 3)  # of the sides of a crop, as everybody has it
TOGETHER = 256  # real images of one forward


def view(views: Views, ctx: Context, images: Tensor, it: int) -> Tensor:
    """The images [N,ch,H,W] of a chunk as a step shows them; the same for all of them.

    Gradient: through `images`.
    """
    size, key = ctx.bench.size, ("recover", ctx.chunk, it)
    sides = (size, size)
    box, flip = torch.tensor([[0, 0, size, size]]), torch.zeros(1, dtype=torch.bool)
    if views.padding:
        box = padded_crops(1, sides, views.padding, ctx.seed, *key)
    elif views.crop < 1:
        low = views.crop
        if views.curriculum != "none":
            low = smallest_scale(views.curriculum, views.milestone, it, ctx.steps, low)
        box = resized_crops(1, sides, (low, 1.0), RATIO, ctx.seed, *key)
    if views.flip:
        flip = flips(1, ctx.seed, *key)
    shown = apply(images, MixDraw(sides, sides, box, flip))
    if views.jitter != (0, 0):
        shown = shown.roll(jitter(*views.jitter, ctx.seed, *key), (2, 3))
    return shown


@dataclass(frozen=True)
class Observer:
    """One trained network: number `number` of the pool, and the layers that are looked at."""

    number: int
    ctx: Context
    model: OriginalModel
    nets: Ensemble
    watched: tuple[Layer, ...]
    patch: int

    def logits(self, x: Tensor) -> Tensor:
        """Images [B,ch,H,W] in network space -> logits [B,C] in evaluation mode."""
        return self.nets.logits(shown_to(self.ctx, self.model, x))[0]

    def look(
        self, x: Tensor, dropped: set[str], of_class: Tensor | None
    ) -> tuple[Tensor, dict[str, list[Stats]]]:
        """Logits [B,C], and for every layer statistics of the batch.

        With `of_class` int64 [B] those of every class follow, in the order of classes.
        """
        groups = [] if of_class is None else [of_class == c for c in of_class.unique()]

        def looking(layer: Layer) -> Callable[[Tensor], list[Stats]]:
            patch = self.patch_of(layer)
            return lambda given: [
                of_batch(given, patch),
                *(of_batch(given[group], patch) for group in groups),
            ]

        shown = shown_to(self.ctx, self.model, x)
        if of_class is not None or not self.nets.nets.rt.compile:
            looks = {w.name: looking(w) for w in self.watched if w.name not in dropped}
            return self.nets.observed(shown, looks)
        # Compiled code is of one set of layers and no classes: what is drawn out is left out after.
        looks = {w.name: looking(w) for w in self.watched}
        key = (self.patch, *self.watched)
        logits, found = self.nets.observed(shown, looks, key)
        return logits, {name: stats for name, stats in found.items() if name not in dropped}

    def patch_of(self, layer: Layer) -> int | None:
        """The side of the patches whose statistics count; of norms none do."""
        return self.patch if layer.kind == "conv" else None

    def running(self, layer: Layer) -> Stats:
        """What a norm itself keeps of the real images."""
        weights = self.model.weights
        return {n: weights[f"{layer.name}.running_{n}"] for n in ("mean", "var")}


def observer(
    ctx: Context,
    number: int,
    which: Literal["all", "norms"],
    forwards: float = 0.0,
    functions: int = 1,
) -> Observer:
    """Observer `number` of the context's artefacts, opened once a chunk.

    forwards: images that it is shown in the run, a backward counted as two; where size decides it
    is compiled, all its `functions`, if these repay that.
    Raises: StillroomError if it has no layer of that kind.
    """

    def make() -> Observer:
        model: OriginalModel = ctx.artefacts[f"observer/{number}"]
        work = forwards * nets_for(model.arch, ctx.bench, ctx.rt).forward_flops()
        nets = opened(model, ctx.bench, ctx.rt.sized(work, functions))
        found = [w for w in layers(nets.nets.skeleton) if which == "all" or w.kind == "norm"]
        if not found:
            lacks = "BatchNorm" if which == "norms" else "convolution and no BatchNorm"
            remedy = ", or --layers all" if which == "norms" else ""
            raise StillroomError(
                f"arch={model.arch.name} has no {lacks} whose input could be compared; name "
                f"--observers that have (convnet-bn, resnet18-bn){remedy}"
            )
        return Observer(number, ctx, model, nets, tuple(found), patch_side(ctx.bench.size))

    made = ctx.once(f"observer/{number}", make)
    assert isinstance(made, Observer)
    return made


def aims(method: StatisticsMatching, ctx: Context, synth: Synth, seen: Observer) -> dict[str, Aims]:
    """What the statistics of every layer are drawn to, and with which weights; once a chunk."""

    def make() -> dict[str, Aims]:
        told: Observed | None = ctx.artefacts.get(f"statistics/{seen.number}")
        local = _local(method, ctx, synth, seen) if method.targets == "local" else {}
        share = 0.0 if method.targets == "whole" else method.share
        found: dict[str, Aims] = {}
        numbers = {} if told is None else {of.name: i for i, of in enumerate(told.layers)}
        for layer in seen.watched:
            stats = {} if told is None else told.of(numbers[layer.name])
            whole = seen.running(layer) if layer.kind == "norm" else _whole(method, stats)
            parts: Aims = [[(1 - share, whole)]]
            if method.targets == "local":
                parts[0].append((share, local[layer.name]))
            elif method.targets == "classes":
                parts[0].append((share, _classes(method, stats, synth.of_class)))
            elif method.targets == "each":
                every = _every(method, stats)
                parts += [
                    [(share, {n: v[c] for n, v in every.items()})] for c in synth.of_class.unique()
                ]
            found[layer.name] = [
                [(w, {n: v.to(ctx.device, ctx.rt.dtype) for n, v in s.items()}) for w, s in part]
                for part in parts
            ]
        return found

    made = ctx.once(f"aims/{seen.number}", make)
    assert isinstance(made, dict)
    return made


def _whole(method: StatisticsMatching, stats: Stats) -> Stats:
    """Targets of a convolution over all images."""
    released = method.variance == "released"
    return {
        f"{p}{n}": stats[f"batch_{p}var" if released and n == "var" else f"{p}{n}"]
        for p in _parts(stats)
        for n in ("mean", "var")
    }


def _every(method: StatisticsMatching, stats: Stats) -> Stats:
    """Targets of every class, [K,C] and [K,P]."""
    spread = "within" if method.variance == "released" else "var"
    return {
        f"{p}{n}": stats[f"class.{p}{spread if n == 'var' else n}"]
        for p in _parts(stats)
        for n in ("mean", "var")
    }


def _classes(method: StatisticsMatching, stats: Stats, of_class: Tensor) -> Stats:
    """Targets of a batch of these classes: those of the mixture that it is.

    Its variance is the mean of the variances plus the variance of the means; as released, it is
    the mean of the variances, inside an image.
    """
    rows = of_class.cpu()
    every = {n: v.double()[rows] for n, v in _every(method, stats).items()}
    found = {n: v.mean(0) for n, v in every.items()}
    if method.variance == "exact":
        for p in _parts(stats):
            found[f"{p}var"] = found[f"{p}var"] + every[f"{p}mean"].var(0, correction=0)
    return found


def _local(
    method: StatisticsMatching, ctx: Context, synth: Synth, seen: Observer
) -> dict[str, Stats]:
    """Targets from some real images of the chunk's classes, as many of each, seen as one batch."""
    sums = {layer.name: Sums(1) for layer in seen.watched}

    def adding(layer: Layer) -> Callable[[Tensor], None]:
        def add(given: Tensor) -> None:
            one = torch.zeros(len(given), dtype=torch.int64, device=given.device)
            sums[layer.name].add(given, one, seen.patch_of(layer))

        return add

    looks = {layer.name: adding(layer) for layer in seen.watched}
    with torch.no_grad():
        for c in synth.of_class.unique().tolist():
            real = ctx.real(c, method.local_real, "local", c)
            for some in real.split(TOGETHER):
                seen.nets.observed(shown_to(ctx, seen.model, some), looks)
    found = {name: one.statistics(by_class=False) for name, one in sums.items()}
    return {
        name: {n: v for n, v in stats.items() if not n.startswith("batch_")}
        for name, stats in found.items()
    }


def _parts(stats: Stats) -> Sequence[str]:
    """Prefixes of what there is: channels, and of convolutions patches."""
    return ("", "patch_") if "patch_mean" in stats else ("",)
