"""Recover: images that trained networks classify, and in whose layers they look like real ones.

SRe2L: Yin, Xing and Shen 2023, arXiv:2306.13092; CDA: Yin and Shen 2024, arXiv:2311.18838; G-VBSM:
Shao et al. 2024, arXiv:2311.17950; EDC: Shao et al. 2024, arXiv:2404.13733. One method, four
settings of it; specification of the decoupled methods, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.artefacts.released_names import Repair
from stillroom.artefacts.schooling import MOST_MODELS, NamedSchooling, Schooling
from stillroom.config import Grown
from stillroom.methods.base import Context, Method, Synth
from stillroom.methods.crops import Crops
from stillroom.methods.recover_options import Flatness, Priors, Views

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.artefacts.stage import Stage
    from stillroom.methods.observers import Observer
    from stillroom.nets.hooks import Stats
    from stillroom.nets.zoo import Arch


class StatisticsMatching(Method, Grown):
    """Cross-entropy of a trained network, plus distances of layer statistics to real ones."""

    later: ClassVar[tuple[str, ...]] = ("scorers", "crops", "seen_batch", "seen_augment")
    of_init: ClassVar[tuple[str, ...]] = ("scorers", "crops")

    kind: Literal["statistics_matching"] = "statistics_matching"
    observers: tuple[str, ...] = Field(
        ("auto",), min_length=1, description="networks, in turn; auto: the distiller's"
    )
    num: int = Field(1, ge=1, le=MOST_MODELS, strict=True, description="models of each")
    schooling: NamedSchooling = Field(
        Schooling.model_construct(), description="how they are trained"
    )
    layers: Literal["all", "norms"] = Field(
        "all", description="whose input is compared: convolutions and norms, or norms alone (SRe2L)"
    )
    statistics: str = Field(
        "", description="folder or zip of released statistics, in place of collected ones"
    )
    repair: tuple[Repair, ...] = Field(
        (),
        description="of those: swapped-patch, doubled, colliding (found too), variance, or none",
    )
    weight: float = Field(0.01, ge=0, description="of the distance of statistics")
    first: float = Field(10.0, ge=0, description="of the first layer among them")
    targets: Literal["whole", "classes", "each", "local"] = Field(
        "classes",
        description="statistics of all data; with those of the chunk's classes, averaged (EDC) or "
        "class by class; with those of some images of these classes",
    )
    share: float = Field(0.5, ge=0, le=1, description="of the targets by class, where there are")
    local_real: int = Field(500, ge=1, strict=True, description="images a class of local targets")
    variance: Literal["exact", "released"] = Field(
        "exact",
        description="of all pixels, or as released: averaged over batches (all data), inside one "
        "image (classes)",
    )
    seen_batch: int = Field(
        64, ge=1, strict=True, description="images a batch of the pass over the real images"
    )
    seen_augment: str = Field("none", description="augmentation in that pass")
    momentum: float = Field(0.8, ge=0, lt=1, description="of the moving average of statistics")
    average_start: Literal["corrected", "zero"] = Field(
        "corrected", description="of that average: right from the first step, or as released"
    )
    conv_drop: float = Field(
        0.0, ge=0, le=1, description="share of convolutions left out, drawn a step"
    )
    views: Views = Field(Views.model_construct(), description="crops and flips")
    priors: Priors = Field(Priors.model_construct(), description="terms of the images alone")
    flat: Flatness = Field(Flatness.model_construct(), description="the term for flat minima")
    init: Literal["real", "noise", "mosaics"] = Field(
        "real", description="first images: real, noise, or mosaics of real crops (RDED)"
    )
    scorers: tuple[str, ...] = Field(
        (), description="networks that score the crops of mosaics [default: the observers]"
    )
    crops: Crops = Field(Crops.model_construct(), description="of mosaics: what is scored")
    batch: int = Field(100, ge=1, strict=True, description="images optimised together")
    order: Literal["class", "cycled"] = Field(
        "class", description="of images in batches: class by class, or one of each class in turn"
    )
    augment: str = Field("crop_flip", description="what students should be trained with")
    papers: ClassVar[tuple[str, ...]] = (
        "shao2024edc",
        "shao2024gvbsm",
        "yin2023sre2l",
        "yin2024cda",
    )

    @model_validator(mode="after")
    def _every_field_is_read(self) -> StatisticsMatching:
        if self.init != "mosaics" and (self.scorers or self.crops != Crops()):
            raise ValueError("scorers and crops belong to init mosaics")
        convs, collected = self.layers == "all", self._looks_up and not self.statistics
        for name, read, of in (
            ("share", self.targets != "whole", "targets by class"),
            ("local_real", self.targets == "local", "targets local"),
            ("conv_drop", convs, "layers all"),
            ("variance", self._looks_up, "layers all or targets classes, each"),
            ("seen_batch", convs and collected and self.variance == "released", "variance "
             "released of layers all, collected here"),
            ("seen_augment", collected, "statistics that are collected here"),
        ):  # fmt: skip
            if not read and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} belongs to {of}; leave it out")
        if self.targets != "whole" and not self.share:
            raise ValueError(f"share 0 of targets {self.targets}: that is targets whole")
        return self

    @property
    def _by_class(self) -> bool:
        """Whether targets are statistics of every class, from the pass over the real images."""
        return self.targets in ("classes", "each")

    @property
    def _looks_up(self) -> bool:
        """Whether that pass is needed: a norm keeps those of all images itself."""
        return self.layers == "all" or self._by_class

    @model_validator(mode="after")
    def _released(self) -> StatisticsMatching:
        if self.repair and not self.statistics:
            raise ValueError("repair mends released statistics; name them with statistics")
        if not self.statistics:
            return self
        if not self._looks_up:
            raise ValueError("statistics are not looked at with layers norms; leave them out")
        if self.variance == "exact" and "variance" not in self.repair:
            raise ValueError(
                "released statistics hold no exact variances; set variance to released, or have "
                "them estimated: repair variance"
            )
        return self

    def renamed(self, rename: Callable[[str], str]) -> StatisticsMatching:
        """Observers and scorers under other names."""
        names = {"observers": self.observers, "scorers": self.scorers}
        return self.model_copy(update={k: tuple(map(rename, some)) for k, some in names.items()})

    def name(self) -> str:
        """The preset that it is nearest to."""
        if self.layers == "norms":
            return "sre2l" if self.views.curriculum == "none" else "cda"
        return "gvbsm" if self.targets == "whole" else "edc"

    def chunks(self, classes: int, ipc: int) -> Sequence[range]:
        """Consecutive rows, `batch` at a time; "cycled": one image of every class, then the next.

        Class by class is what makes targets by class mean something. Differs from the reference:
        no image is lost where `batch` does not divide their number, and a batch is not split over
        devices, so statistics do not depend on how many there are.
        """
        rows = classes * ipc
        if self.order == "class":
            return [range(i, min(i + self.batch, rows)) for i in range(0, rows, self.batch)]
        found = []
        for image in range(ipc):
            cycle = range(image, rows, ipc)
            found += [cycle[i : i + self.batch] for i in range(0, classes, self.batch)]
        return found

    def stages(self, bench: dict[str, Any], arch: Arch, store: Path) -> dict[str, Stage]:
        """The observers, what their layers are given by real images, and the scorers of mosaics."""
        from stillroom.artefacts.originals import pool_of
        from stillroom.artefacts.released import ReleasedStatistics
        from stillroom.artefacts.statistics import Statistics

        models = pool_of(self.observers, self.num, self.schooling, bench, arch, store)
        found: dict[str, Stage] = {f"observer/{k}": model for k, model in enumerate(models)}
        if self._looks_up and self.weight:
            for k, model in enumerate(models):
                found[f"statistics/{k}"] = (
                    ReleasedStatistics(model, self.statistics, self.repair, self._by_class)
                    if self.statistics
                    else Statistics(model, self._by_class, self.seen_batch, self.seen_augment)
                )
        if self.init == "mosaics":
            scorers = pool_of(self.scorers, 1, self.schooling, bench, arch, store)
            found |= {f"scorer/{k}": model for k, model in enumerate(scorers)}
        return found

    def image_forwards(self, classes: int, ipc: int) -> float:
        """A forward and a backward of all images; with the term for flatness a forward more."""
        return (3.0 + (self.flat.weight > 0)) * classes * ipc

    def networks(self) -> tuple[str, ...]:
        """The observers."""
        return self.observers

    def start_cost(self, sizes: Sequence[int], ipc: int) -> tuple[float, int]:
        """Local targets: some images of the classes of every chunk, for every observer.

        Mosaics: scoring, of a class in every chunk that it lies in; scorers that are others are
        sized as the observers.
        """
        each, held = [0] * len(sizes), 0
        if self.targets == "local":
            each = [min(self.local_real, size) * self.num for size in sizes]
            held = max(each) // self.num
        if self.init == "mosaics":
            models = 1 if self.scorers else self.num
            scored = [models * self.crops.scored(size) for size in sizes]
            each = [a + b for a, b in zip(each, scored, strict=True)]
            held = max(held, max(self.crops.held(size) for size in sizes))
        parts = self.chunks(len(sizes), ipc)
        return float(sum(each[c] for part in parts for c in {row // ipc for row in part})), held

    def judged_by(self) -> str:
        """Students of its paper learn what trained networks say of the images."""
        return {"edc": "edc@1", "gvbsm": "gvbsm@1", "sre2l": "sre2l@2", "cda": "cda@1"}[self.name()]

    def too_few(self, images: int, ipc: int, size: int) -> str:
        """Of mosaics: why no class of so many images gives enough crops."""
        if self.init == "mosaics":
            return self.crops.too_few(images, ipc, size)
        return super().too_few(images, ipc, size) if self.init == "real" else ""

    def images_held(self, classes: int, ipc: int) -> int:
        """A chunk."""
        return min(self.batch, classes * ipc)

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Real images of each class, mosaics of crops of them, or Gaussian noise."""
        from stillroom.methods.scored import mosaics_of
        from stillroom.methods.starts import start_images

        of_class = (rows // ctx.ipc).to(ctx.device)
        if self.init == "mosaics":
            images = mosaics_of(self.crops, ctx, rows)
        else:
            images = start_images(ctx, rows, self.init)
        return Synth(images.requires_grad_(), of_class, of_class)

    def project(self, ctx: Context, synth: Synth) -> None:
        """Pixels stay in [0, 1]."""
        synth.images.copy_(ctx.bench.preprocess.clamp(synth.images))

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """One scalar: every step shows all images of the chunk to one observer.

        Statistics are of all of them, so one rank makes it; work is shared out chunk by chunk.
        """
        import torch
        import torch.nn.functional as F

        from stillroom.methods import statistics_distance as distances
        from stillroom.methods.observers import observer, view

        if ctx.rt.rank:
            return
        which = (ctx.chunk + it) % self._count(ctx)
        seen = observer(ctx, which, self.layers, *self._work(ctx))
        by_class = synth.of_class if self.targets == "each" else None
        shown = view(self.views, ctx, synth.images, it)
        logits, stats = seen.look(shown, self._dropped(ctx, seen, it), by_class)
        terms = [(1.0, F.cross_entropy(logits, synth.labels))]
        if self.weight and stats:  # all convolutions of a network without norms may be dropped
            terms.append((self.weight, self._distance(ctx, synth, seen, stats)))
        if self.flat.weight:
            average = self._average(synth)
            with torch.no_grad():
                theirs = seen.logits(view(self.views, ctx, average, it))
            released = self.flat.form == "released"
            term = distances.flatness(logits, theirs, self.flat.tau, released)
            terms.append((self.flat.weight, term))
        yield distances.weighted(terms + self._priors(synth))

    def _work(self, ctx: Context) -> tuple[float, int]:
        """Image forwards of one observer in the whole run, and functions that compiling it makes.

        Static, so that a resumed run and every chunk decide alike. One function a chunk size, and
        as many again for the logits of the term for flatness.
        """
        classes = len(ctx.bench.classes)
        forwards = self.image_forwards(classes, ctx.ipc) * ctx.steps / self._count(ctx)
        sizes = {len(part) for part in self.chunks(classes, ctx.ipc)}
        return forwards, len(sizes) * (2 if self.flat.weight else 1)

    def _count(self, ctx: Context) -> int:
        return sum(name.startswith("observer/") for name in ctx.artefacts)

    def _dropped(self, ctx: Context, seen: Observer, it: int) -> set[str]:
        """Convolutions that are not looked at in a step; norms always are."""
        import torch

        if not self.conv_drop:
            return set()
        draws = torch.rand(len(seen.watched), generator=ctx.rng("drop", it))
        return {
            layer.name
            for layer, u in zip(seen.watched, draws.tolist(), strict=True)
            if layer.kind == "conv" and u < self.conv_drop
        }

    def _distance(
        self, ctx: Context, synth: Synth, seen: Observer, stats: dict[str, list[Stats]]
    ) -> Tensor:
        """Sum over the layers that were looked at; the first of all counts `first` times."""
        from stillroom.methods import statistics_distance as distances
        from stillroom.methods.observers import aims

        wanted = aims(self, ctx, synth, seen)
        corrected = self.average_start == "corrected"
        terms = []
        for name, found in stats.items():
            weight = self.first if name == seen.watched[0].name else 1.0
            for part, mine in enumerate(found):
                key = f"{seen.number}/{name}/{part}"
                shown = distances.smoothed(synth.memory, key, mine, self.momentum, corrected)
                terms += [
                    (weight * share, distances.apart(shown, target))
                    for share, target in wanted[name][part]
                ]
        return distances.weighted(terms)

    def _average(self, synth: Synth) -> Tensor:
        """The moving average of the images, which starts at the first ones."""
        now = synth.images.detach()
        old = synth.memory.get("images", now)
        average = now + self.flat.rate * (old - now)
        synth.memory["images"] = average
        return average

    def _priors(self, synth: Synth) -> list[tuple[float, Tensor]]:
        from stillroom.methods import statistics_distance as distances

        p, x = self.priors, synth.images
        found: list[tuple[float, Tensor]] = []
        if p.tv:
            found.append((p.tv, distances.total_variation(x)))
        if p.l2:
            found.append((p.l2, distances.image_norm(x)))
        if p.spectrum:
            scaled = p.spectrum_form == "scaled"
            term = distances.spectrum(x, synth.of_class, p.spectrum_tau, scaled)
            found.append((p.spectrum, term))
        return found
