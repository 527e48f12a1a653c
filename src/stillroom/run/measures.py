"""What is measured of a set without training a student on it: numbers by name and network.

Definitions are in docs/assessments.md; what is measured of tensors alone is in
`evaluation/assessments.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.artefacts.features import real_rows
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original, OriginalModel, opened
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.evaluation import assessments
from stillroom.methods.distribution_matching import mean_feature_distance
from stillroom.methods.gradient_distance import layerwise
from stillroom.methods.original_loss import VERDICTS
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.zoo import Arch
from stillroom.runtime import Runtime

REAL = 100  # real images a class that features are compared with
RANDOM_NETS = 3  # fresh networks that matching losses are averaged over
READ_AS = {  # name -> what a person may take from it
    "original-model-accuracy": "higher: easier to recognise",
    "original-model-loss": "lower: easier to recognise",
    "original-model-calibration-error": "lower: as sure as right",
    "kernel-distance": "lower: features nearer to real ones",
    "frechet-distance": "lower: features nearer to real ones, for sets of one size",
    "effective-rank": "higher: more varied",
    "distance-within-class": "higher: more varied",
    "feature-matching-loss": "lower: matches better, what dm minimises",
    "gradient-matching-loss": "lower: matches better, what dc minimises",
    "nearest-real-distance": "0: copies of real images",
}


@dataclass(frozen=True)
class Measured:
    """One number of a set: on which network, in which unit, and `asked` of what."""

    name: str
    arch: str
    value: float
    unit: str
    asked: str = ""


def measure(
    made: Distilled,
    bench: Benchmark,
    pool: dict[str, list[OriginalModel]],
    real: dict[str, Tensor],
    rt: Runtime,
) -> Iterator[Measured]:
    """Every measure; `pool`: models by network, `real`: features of real images by network."""
    rows = real_rows(bench, REAL)
    yield from of_pixels(made, bench, rt)
    for arch, models in pool.items():
        rt.session.check()
        yield from of_originals(arch, models, made, bench, rt)
        yield from of_features(models[0], made, bench, real[arch], rt)
        yield from of_matching(models[0].arch, made, bench, rows, rt, arch)


def of_originals(
    arch: str, models: Sequence[OriginalModel], made: Distilled, bench: Benchmark, rt: Runtime
) -> Iterator[Measured]:
    """Means over the pool of what its models say of the set, with its own classes as labels."""
    logits = [opened(m, bench, rt).logits(_space(m, made, bench, rt))[0] for m in models]
    labels = made.of_class.to(rt.device)
    if not all(bool(some.isfinite().all()) for some in logits):
        raise StillroomError(
            f"{arch}: an original model answers the set with NaN; it may hold extreme values (look "
            "with: stillroom inspect)"
        )
    for name, (measure, unit) in VERDICTS.items():
        values = [measure(some, labels) for some in logits]
        yield Measured(name, arch, sum(values) / len(values), unit)


def of_features(
    model: OriginalModel, made: Distilled, bench: Benchmark, theirs: Tensor, rt: Runtime
) -> Iterator[Measured]:
    """Distances of features to those of real images, and how far the set's own lie apart."""
    arch = model.name
    mine = opened(model, bench, rt).features(_space(model, made, bench, rt))[0].cpu()
    if min(len(mine), len(theirs)) > 1:
        yield Measured("kernel-distance", arch, assessments.kernel_distance(mine, theirs), "")
    yield Measured("frechet-distance", arch, assessments.frechet(mine, theirs), "")
    yield Measured("effective-rank", arch, assessments.effective_rank(mine), "directions")
    yield Measured(
        "distance-within-class", arch, assessments.distance_within(mine, made.of_class), ""
    )


def of_matching(
    arch: Arch, made: Distilled, bench: Benchmark, rows: Tensor, rt: Runtime, name: str
) -> Iterator[Measured]:
    """Losses of distribution and gradient matching on fresh networks that no method saw."""
    pixels, of_class = made.preprocess.invert(made.images), made.of_class.to(rt.device)
    images = bench.preprocess.apply(pixels).to(rt.device, rt.dtype)  # as the real ones are
    of_rows = bench.train.labels[rows]
    held = [c for c in range(len(bench.classes)) if bool((of_class == c).any())]
    fresh = [nets_for(arch, bench, rt).make(1, i, "assess") for i in range(RANDOM_NETS)]
    norms = nets_for(arch, bench, rt).has_batchnorm()
    features, slopes = 0.0, 0.0
    for classes in [held] if norms else [[c] for c in held]:  # one alone has no statistics
        rt.session.check()
        some = torch.isin(of_rows, torch.tensor(classes))
        real = bench.preprocess.apply(bench.train.take(rows[some], rt.device)).to(rt.dtype)
        sides = ((images, of_class), (real, of_rows[some].to(rt.device)))
        for nets in fresh:
            with torch.no_grad():
                a, b = (_means_by_class(nets, x, of, classes) for x, of in sides)
                features += float(mean_feature_distance(a, b))
            if not norms:
                mine, theirs = (_slope(nets, x[of == classes[0]], classes[0]) for x, of in sides)
                slopes += float(layerwise(mine, theirs))
    yield Measured("feature-matching-loss", name, features / RANDOM_NETS, "")
    if not norms:
        yield Measured("gradient-matching-loss", name, slopes / RANDOM_NETS, "")


def _slope(nets: Ensemble, x: Tensor, c: int) -> dict[str, Tensor]:
    return nets.grads(x, torch.full((len(x),), c, device=x.device))[0]


def _means_by_class(nets: Ensemble, x: Tensor, of_class: Tensor, held: list[int]) -> Tensor:
    """Mean features [1,C,D] of classes; with BatchNorm all of them are one batch, as in dm."""
    if nets.nets.has_batchnorm():
        seen = nets.features(x, train=True)
        return torch.stack([seen[:, of_class == c].mean(1) for c in held], 1)
    seen_by = [nets.features(x[of_class == c], train=True).mean(1) for c in held]
    return torch.stack(seen_by, 1)


def of_pixels(made: Distilled, bench: Benchmark, rt: Runtime) -> Iterator[Measured]:
    """The median distance to the nearest real image, root mean square of pixels in [0, 1]."""
    _, gap = assessments.nearest(made.pixels(), bench.train, rt.session.check)
    yield Measured("nearest-real-distance", "none", float(gap.median()), "")


def _space(model: OriginalModel, made: Distilled, bench: Benchmark, rt: Runtime) -> Tensor:
    images = made.preprocess.invert(made.images)
    return model.space(bench).apply(images).to(rt.device, rt.dtype)


def held_at_once(made: Distilled, bench: Benchmark, stages: Sequence[Original], rt: Runtime) -> int:
    """Bytes that the measures take at most: a static estimate.

    Matching losses of networks with BatchNorm are of all classes at once, all others class by
    class.
    """
    pixels, n = bench.channels * bench.size**2 * 4, len(made.images)
    real = sum(min(REAL, len(bench.train.rows_of(c))) for c in range(len(bench.classes)))
    most = 0
    for nets in (nets_for(stage.arch, bench, rt) for stage in stages):
        if nets.has_batchnorm():
            shown = real * pixels + 2 * max(real, n) * nets.largest_activation()
        else:
            shown = max(REAL, made.ipc) * (pixels + nets.activation_bytes())
        # Features in double precision, twice, and a piece of the kernel, thrice.
        features = 16 * (real + n) * nets.feature_size() + 24 * assessments.ROWS * max(real, n)
        most = max(most, shown, features)
    return 3 * n * pixels + most
