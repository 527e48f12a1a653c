"""`stillroom assess`: what can be said of a set without training a student on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stillroom
from stillroom.artefacts.features import RealFeatures, real_rows
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original, OriginalModel, opened
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.stage import COMMON, code_digest
from stillroom.artefacts.store import Store, obtain_all
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled, load, set_bytes, set_digest
from stillroom.errors import StillroomError
from stillroom.evaluation import assessments as measures
from stillroom.files import canonical, sha256
from stillroom.methods.distribution_matching import mean_feature_distance
from stillroom.methods.gradient_distance import layerwise
from stillroom.methods.original_loss import VERDICTS
from stillroom.methods.regularisers import WATCH
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.zoo import Arch, split_weights
from stillroom.records import LEDGER, add_records
from stillroom.run import machine as machines
from stillroom.run.asked import first_in_words, pool_in_words
from stillroom.run.exhibits import write_maps
from stillroom.run.fits import check_fits, check_read_alike
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals, obtain_originals, originals
from stillroom.run.publish import EXHIBITS
from stillroom.runtime import Runtime, refuse_too_large
from stillroom.session import Session
from stillroom.tables import plural
from stillroom.types import Record

REAL = 100  # real images a class that features are compared with
RANDOM_NETS = 3  # fresh networks that matching losses are averaged over
PIXELS = 2**24  # of real images that are held at once while the nearest is looked for
VERSION = "assess@1"
SOURCES = (  # what decides a number: networks, their training, every measure
    *COMMON,
    "artefacts/features.py",
    "artefacts/given.py",
    "artefacts/originals.py",
    "artefacts/schooling.py",
    "evaluation/assessments.py",
    "methods/distribution_matching.py",
    "methods/gradient_distance.py",
    "methods/original_loss.py",
    "nets/verdicts.py",
    "run/assess.py",
)
MOST_USED = 4000  # originals of one set: four architectures of a thousand
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


def held_out(
    made: Distilled,
    bench: Benchmark,
    archs: Sequence[str],
    num: int,
    schooling: Schooling,
    store: Store,
) -> list[Original]:
    """`num` models of every network, without those that the set was made with.

    What such a model says of the set is what was minimised. They are known by architecture and
    number: of one number, a model that was trained otherwise began with the same weights.
    """
    models = made.provenance.get("models")
    held = models.items() if isinstance(models, dict) else ()  # a foreign set may say anything
    used = [m for n, m in list(held)[:MOST_USED] if n != WATCH and isinstance(m, list)]
    return without(used, bench, archs, num, schooling, store)


def without(
    used: Sequence[list[Any]],
    bench: Benchmark,
    archs: Sequence[str],
    num: int,
    schooling: Schooling,
    store: Store,
) -> list[Original]:
    """`num` models of every network, none of which is [architecture, number] of `used`."""
    found = []
    for arch in archs:
        many = 1 if split_weights(arch)[1] else num + len(used)  # given weights are one model
        more = originals(bench, [arch], many, schooling, store)
        free = [stage for stage in more if [stage.name, stage.index] not in used][:num]
        if not free:
            raise StillroomError(
                f"{more[0].name}: the set was made with these weights, which say of it only that; "
                "name others"
            )
        found += free
    if len({(s.name, s.index) for s in found}) < len(found):
        raise StillroomError(f"{', '.join(archs)}: a network is named twice; name it once")
    return found


def assess(
    folder: Path,
    bench: Benchmark,
    stages: Sequence[Original],
    store: Store,
    machine: Machine,
    session: Session,
    ledger: Path | None = None,
) -> tuple[list[Measured], list[Record]]:
    """Every measure of a set; the pool of `stages` is trained now where it is not in the store.

    The numbers are added to `ledger` as records, if one is given; if it is the set's own, where one
    of the models sees the classes of images goes into the set's `exhibits/`.
    """
    found, records = measured(folder, bench, stages, store, machine, session)
    if ledger is not None:
        add_records(ledger, records)
    if ledger == folder / LEDGER:
        _draw(folder, bench, stages, store, machine, session)
    return found, records


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
        features = 16 * (real + n) * nets.feature_size() + 24 * measures.ROWS * max(real, n)
        most = max(most, shown, features)
    return 3 * n * pixels + most


def _draw(
    folder: Path,
    bench: Benchmark,
    stages: Sequence[Original],
    store: Store,
    machine: Machine,
    session: Session,
) -> None:
    """Write the maps of the first model of a network that has any."""
    first = {stage.name: stage for stage in reversed(stages)}
    chosen = [stage for stage in stages if stage is first[stage.name]]
    _, rt = cost_of_originals(chosen, bench, machine, session, store)
    rt = dataclasses.replace(rt, compile=False)
    made, key = load(folder), set_digest(folder)
    for (model,) in obtain_originals(chosen, machine, store, rt).values():
        with rt.activate():
            if write_maps(folder / EXHIBITS, made, key, model, bench, rt):
                return
    session.say(f"no activation maps: no layer of {', '.join(first)} is a map")


def measured(
    folder: Path,
    bench: Benchmark,
    stages: Sequence[Original],
    store: Store,
    machine: Machine,
    session: Session,
) -> tuple[list[Measured], list[Record]]:
    """Every measure of a set, and its record."""
    made = load(folder)
    check_fits(made, bench, folder.name)
    check_read_alike(made, bench, folder.name)
    cost, rt = cost_of_originals(stages, bench, machine, session, store)
    need, remedy = held_at_once(made, bench, stages, rt), "name smaller ones with --models-pool"
    refuse_too_large(need, "measuring on these networks needs about", rt.device, remedy)
    if cost.left:
        session.say(cost.in_words())
    pool = obtain_originals(stages, machine, store, rt)
    first = {stage.name: RealFeatures(stage, REAL) for stage in reversed(stages)}
    seen = obtain_all(store, list(first.values()), machines.executor(machine), rt)
    real = dict(zip(first, seen, strict=True))
    rt = dataclasses.replace(rt, compile=False)
    with rt.activate():
        found = [_told(m, stages) for m in _measures(made, bench, pool, real, rt)]
    key, size = set_digest(folder), set_bytes(folder)
    of = [(folder, key, size, _question(m.arch, stages)) for m in found]
    return found, [_record(m, made, bench, one, rt) for m, one in zip(found, of, strict=True)]


def _question(arch: str, stages: Sequence[Original]) -> str:
    """A digest of what decides the numbers of one network beside set and data.

    Not of all: the same question is the same one, whatever else was asked along with it.
    """
    same = [s for s in stages if s.name == arch]
    asked = [[s.schooling.model_dump(mode="json"), s.name, s.index] for s in same]
    return sha256(canonical([VERSION, REAL, RANDOM_NETS, asked]))[:12]


def _told(m: Measured, stages: Sequence[Original]) -> Measured:
    """The same number with what it was asked of, in words."""
    same = [s for s in stages if s.name == m.arch]
    asked = ""
    if m.name in VERDICTS:
        asked = pool_in_words(same)
    elif m.name.endswith("-matching-loss"):
        asked = plural(RANDOM_NETS, "fresh network")
    elif same:
        asked = first_in_words(same)
    return dataclasses.replace(m, asked=asked)


def _measures(
    made: Distilled,
    bench: Benchmark,
    pool: dict[str, list[OriginalModel]],
    real: dict[str, Tensor],
    rt: Runtime,
) -> Iterator[Measured]:
    rows = real_rows(bench, REAL)
    yield from _of_pixels(made, bench)
    for arch, models in pool.items():
        yield from _of_originals(arch, models, made, bench, rt)
        yield from _of_features(models[0], made, bench, real[arch], rt)
        yield from _of_matching(models[0].arch, made, bench, rows, rt, arch)


def _of_originals(
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


def _of_features(
    model: OriginalModel, made: Distilled, bench: Benchmark, theirs: Tensor, rt: Runtime
) -> Iterator[Measured]:
    """Distances of features to those of real images, and how far the set's own lie apart."""
    arch = model.name
    mine = opened(model, bench, rt).features(_space(model, made, bench, rt))[0].cpu()
    if len(mine) > 1:
        yield Measured("kernel-distance", arch, measures.kernel_distance(mine, theirs), "")
    yield Measured("frechet-distance", arch, measures.frechet(mine, theirs), "")
    yield Measured("effective-rank", arch, measures.effective_rank(mine), "directions")
    yield Measured("distance-within-class", arch, measures.distance_within(mine, made.of_class), "")


def _of_matching(
    arch: Arch, made: Distilled, bench: Benchmark, rows: Tensor, rt: Runtime, name: str
) -> Iterator[Measured]:
    """Losses of distribution and gradient matching on fresh networks that no method saw."""
    images, of_class = made.images.to(rt.device, rt.dtype), made.of_class.to(rt.device)
    of_rows = bench.train.labels[rows]
    held = [c for c in range(len(bench.classes)) if bool((of_class == c).any())]
    fresh = [nets_for(arch, bench, rt).make(1, i, "assess") for i in range(RANDOM_NETS)]
    norms = nets_for(arch, bench, rt).has_batchnorm()
    features, slopes = 0.0, 0.0
    for classes in [held] if norms else [[c] for c in held]:  # one alone has no statistics
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


def _of_pixels(made: Distilled, bench: Benchmark) -> Iterator[Measured]:
    """The median distance to the nearest real image, root mean square of pixels in [0, 1]."""
    mine = made.pixels().flatten(1)
    best = torch.full((len(mine),), torch.inf)
    together = max(1, PIXELS // mine.shape[1])
    for rows in torch.arange(len(bench.train)).split(together):
        real = bench.train.take(rows).flatten(1).float().cpu() / 255
        best = torch.minimum(best, torch.cdist(mine, real).min(1).values)
    gap = best / mine.shape[1] ** 0.5
    yield Measured("nearest-real-distance", "none", float(gap.median()), "")


def _space(model: OriginalModel, made: Distilled, bench: Benchmark, rt: Runtime) -> Tensor:
    images = made.preprocess.invert(made.images)
    return model.space(bench).apply(images).to(rt.device, rt.dtype)


def _record(
    m: Measured, made: Distilled, bench: Benchmark, of: tuple[Path, str, int, str], rt: Runtime
) -> Record:
    folder, key, size, how = of
    step = made.provenance.get("step")
    return Record(
        benchmark=bench.name,
        data_digest=bench.digest,
        ipc=made.ipc,
        row=str(made.provenance.get("label") or folder.name)[:80],
        set_key=key,
        step=step if isinstance(step, int) and not isinstance(step, bool) else 0,
        draw=None,
        protocol=VERSION,
        protocol_hash=how,
        arch=m.arch,
        seed=0,
        metric=m.name,
        value=m.value,
        unit=m.unit,
        selection="last",
        source="measured",
        bytes=size,
        seconds=0.0,
        device=rt.device.type,
        numerics="float32",
        code=code_digest(SOURCES),
        split=bench.split,
        versions={"stillroom": stillroom.__version__, "torch": torch.__version__},
        note=m.asked,
    )
