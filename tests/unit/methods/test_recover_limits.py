"""Recover: options that nothing would read, what a start costs and what it cannot start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError, TooFewImagesError
from stillroom.methods import scored
from stillroom.methods.base import Synth
from stillroom.methods.context import RunContext
from stillroom.methods.crops import Crops
from stillroom.methods.mosaics import Mosaics
from stillroom.methods.observers import aims, observer
from stillroom.methods.statistics_matching import StatisticsMatching
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.run.distil import plan
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session

SCHOOLING = Schooling(epochs=1, batch=8)
OBSERVER = "convnet2-w4-bn"


def method(**given: Any) -> StatisticsMatching:
    return StatisticsMatching(**{"observers": (OBSERVER,), "schooling": SCHOOLING, **given})


def context(
    made: StatisticsMatching | Mosaics, bench: Benchmark, store: Path, chunk: int = 0, ipc: int = 3
) -> RunContext:
    rt = Runtime(device=torch.device("cpu"), threads=1)
    arch = resolve(OBSERVER)
    stages = made.stages(bench.describe(), arch, store)
    artefacts = {n: obtain(Store(store), stage, Serial(), rt) for n, stage in stages.items()}
    nets = Nets(arch, len(bench.classes), bench.channels, bench.size, rt)
    return RunContext(bench, ipc, 0, rt, nets, chunk, artefacts, 5)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"targets": "whole", "share": 0.7}, "share belongs to targets by class"),
        ({"local_real": 7}, "local_real belongs to targets local"),
        ({"share": 0.0}, "share 0 of targets classes: that is targets whole"),
        ({"views": {"curriculum": "cosine", "milestone": 0.0}}, "milestone 0 is no curriculum"),
        ({"layers": "norms", "conv_drop": 0.4}, "conv_drop belongs to layers all"),
        ({"layers": "norms", "targets": "whole", "variance": "released"}, "variance belongs to"),
        ({"seen_batch": 9}, "seen_batch belongs to variance released"),
        ({"layers": "norms", "targets": "local", "seen_augment": "crop_flip"}, "seen_augment"),
        ({"views": {"milestone": 0.5}}, "milestone belongs to a curriculum"),
        ({"priors": {"spectrum_tau": 2.0}}, "belong to spectrum"),
        ({"priors": {"spectrum_form": "released"}}, "belong to spectrum"),
        ({"flat": {"tau": 2.0}}, "term for flat minima"),
        ({"crops": {"pool": 7}}, "belong to init mosaics"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        method(**given)


def test_norms_alone_have_targets_by_class(bench: Benchmark, store: Path) -> None:
    """The same as those of the norms among all layers, and a gradient from them."""
    ctx = context(method(targets="classes"), bench, store)
    rows = torch.arange(3 * len(bench.classes))
    images = torch.randn(len(rows), bench.channels, bench.size, bench.size)
    state = Synth(images.requires_grad_(), rows // 3, rows // 3)
    every = aims(method(targets="classes"), ctx, state, observer(ctx, 0, "all"))
    for targets in ("classes", "each"):
        norms = method(layers="norms", targets=targets)
        alone = context(norms, bench, store)
        found = aims(norms, alone, state, observer(alone, 0, "norms"))
        assert 0 < len(found) < len(every)
        if targets == "classes":
            for name, ((whole, mixture),) in found.items():
                for mine, theirs in zip((whole, mixture), every[name][0], strict=True):
                    assert mine[0] == theirs[0]
                    assert all(torch.equal(mine[1][n], theirs[1][n]) for n in ("mean", "var"))
        (term,) = norms.loss(alone, state, 0)
        (slope,) = torch.autograd.grad(term, state.images)
        assert bool(slope.isfinite().all())
        assert float(slope.abs().max()) > 0


def test_released_variances_are_of_the_batches_that_are_asked_for(
    bench: Benchmark, store: Path
) -> None:
    """Batches of all images have the variance of all; smaller ones a smaller mean variance."""
    n = len(bench.train)
    found: dict[int, list[Tensor]] = {}
    for batch in (n, 4):
        made = method(variance="released", seen_batch=batch)
        told = context(made, bench, store).artefacts["statistics/0"].tensors
        means = [k for k in told if k.endswith(".batch_var")]
        found[batch] = [told[k] for k in means]
        if batch == n:
            exact = [told[k.replace("batch_var", "var")] for k in means]
    for whole, small, var in zip(found[n], found[4], exact, strict=True):
        assert torch.allclose(whole, var, rtol=1e-4, atol=1e-6)
        assert float(small.sum()) < float(whole.sum())
    plain, mirrored = (
        method(seen_augment=a).stages(bench.describe(), resolve(OBSERVER), store)["statistics/0"]
        for a in ("none", "crop_flip")
    )
    assert plain.key() != mirrored.key()


@pytest.mark.parametrize("rule", ["rded", "edc"])
@pytest.mark.parametrize("own", [True, False])
def test_scoring_of_mosaics_is_counted(
    bench: Benchmark, store: Path, monkeypatch: pytest.MonkeyPatch, rule: str, own: bool
) -> None:
    """Every image that a network scores, in every chunk that its class lies in."""
    crops = Crops(rule=rule, pool=6, crops=2, factor=1)  # type: ignore[arg-type]
    made: StatisticsMatching | Mosaics = Mosaics(
        observers=(OBSERVER,), schooling=SCHOOLING, crops=crops
    )
    if own:
        made = method(init="mosaics", crops=crops, batch=4, observers=(OBSERVER,))
    seen = 0
    whole = scored._scores

    def counting(ctx: Any, networks: Any, images: Tensor, c: int) -> Tensor:
        nonlocal seen
        seen += len(images)
        return whole(ctx, networks, images, c)

    monkeypatch.setattr(scored, "_scores", counting)
    classes = len(bench.classes)
    parts = made.chunks(classes, 3)
    for chunk, part in enumerate(parts):
        made.start(context(made, bench, store, chunk), torch.tensor(list(part)))
    sizes = [len(bench.train.rows_of(c)) for c in range(classes)]
    shown, held = made.start_cost(sizes, 3)
    assert shown == seen > 0
    assert held >= max(sizes) * (rule == "edc")
    if own:
        assert len(parts) > 1


@pytest.mark.parametrize(
    ("preset", "given", "told"),
    [
        ("rded", {"crops": {"factor": 8}}, r"gives \d+ crops and 64 are needed; lower --ipc$"),
        ("rded", {"crops": {"pool": 1, "factor": 2}}, r"gives 1 crops .* or raise --crops.pool$"),
        ("edc", {"init": "mosaics", "crops": {"rule": "edc", "pool": 1, "crops": 1, "factor": 2}},
         r"gives 1 crops .* raise --crops.pool or --crops.crops$"),
    ],
)  # fmt: skip
def test_too_few_crops_are_refused_before_a_network_is_trained(
    bench: Benchmark, store: Path, preset: str, given: dict[str, Any], told: str
) -> None:
    recipe, _ = from_preset(preset, "toy", 1, {"method": given, "arch": OBSERVER})
    with pytest.raises(StillroomError, match=told):
        plan(recipe, bench, Machine(threads=1), Session(), store=Store(store))
    assert not list(Path(store).glob("original-*"))
    context_ = context(Mosaics(observers=(OBSERVER,), schooling=SCHOOLING), bench, store, ipc=1)
    with pytest.raises(TooFewImagesError, match="crops and 64 are needed"):
        scored.mosaics_of(Crops(factor=8), context_, torch.tensor([0]))
