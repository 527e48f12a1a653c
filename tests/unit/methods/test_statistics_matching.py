"""Recover: its loss against a naive twin, its chunks, its order of networks, its limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.methods.base import Optim, Outer, Synth
from stillroom.methods.context import RunContext
from stillroom.methods.distil import Distil
from stillroom.methods.mosaics import Mosaics
from stillroom.methods.observers import aims, observer, view
from stillroom.methods.statistics_matching import StatisticsMatching
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.run.distil import distil, plan
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session

ARCHS = ("convnet2-w4-bn", "convnet1-w4")
ADAM = Optim(kind="adam", lr=0.05, momentum=0.5, beta2=0.9, schedule="cosine")
STILL = {"crop": 1.0, "flip": False}  # images as they are


def method(**given: Any) -> StatisticsMatching:
    schooling = Schooling(epochs=1, batch=8)
    usual = {"observers": ARCHS, "schooling": schooling, "views": STILL}
    return StatisticsMatching(**{**usual, **given})


def context(
    made: StatisticsMatching | Mosaics,
    bench: Benchmark,
    store: Path,
    chunk: int = 0,
    steps: int = 5,
) -> RunContext:
    rt = Runtime(device=torch.device("cpu"), threads=1)
    arch = resolve(ARCHS[0])
    stages = made.stages(bench.describe(), arch, store)
    artefacts = {n: obtain(Store(store), stage, Serial(), rt) for n, stage in stages.items()}
    nets = Nets(arch, len(bench.classes), bench.channels, bench.size, rt)
    return RunContext(bench, 3, 0, rt, nets, chunk, artefacts, steps)


def synth(bench: Benchmark, rows: Tensor | None = None) -> Synth:
    rows = torch.arange(3 * len(bench.classes)) if rows is None else rows
    shape = (len(rows), bench.channels, bench.size, bench.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return Synth(images.requires_grad_(), rows // 3, rows // 3)


def loss(made: StatisticsMatching, ctx: RunContext, state: Synth, it: int = 0) -> Tensor:
    (term,) = made.loss(ctx, state, it)
    return term


def modules(net: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    return [(n, m) for n, m in net.named_modules() if isinstance(m, kinds)]


def net_of(ctx: RunContext, k: int) -> nn.Module:
    model = ctx.artefacts[f"observer/{k}"]
    net = model.arch.build(len(ctx.bench.classes), ctx.bench.channels, ctx.bench.size).eval()
    net.load_state_dict(model.weights)
    return net


def inputs(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    for name, module in modules(net):
        module.register_forward_pre_hook(lambda _, i, name=name: seen.update({name: i[0]}))
    return net(x), seen


def numbers(x: Tensor, patched: bool) -> list[Tensor]:
    """Mean and variance of channels, and of 4 x 4 cells, pixel by pixel."""
    flat = x.transpose(0, 1).flatten(1)
    found = [flat.mean(1), flat.var(1, correction=0)]
    if patched:
        cells = [
            x[:, :, u : u + 4, v : v + 4].flatten()
            for u in range(0, x.shape[2], 4)
            for v in range(0, x.shape[3], 4)
        ]
        found += [torch.stack([c.mean() for c in cells])]
        found += [torch.stack([c.var(correction=0) for c in cells])]
    return found


def apart(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum((x - y).square().sum().sqrt() for x, y in zip(a, b, strict=True))


def real(ctx: RunContext, c: int | None = None) -> Tensor:
    train = ctx.bench.train
    rows = torch.arange(len(train)) if c is None else train.rows_of(c)
    return ctx.bench.preprocess.apply(train.take(rows))


@pytest.mark.parametrize("k", [0, 1])
def test_loss_of_all_data_and_of_classes(bench: Benchmark, store: Path, k: int) -> None:
    """Against hooks on plain modules: observer k at step k, running statistics for norms."""
    made = method(momentum=0.0, share=0.3, weight=0.5, first=7.0)
    ctx, state = context(made, bench, store), synth(bench)
    mine = loss(made, ctx, state, k)
    net = net_of(ctx, k)
    with torch.no_grad():
        whole = inputs(net_of(ctx, k), real(ctx))[1]
    x = state.images.detach().clone().requires_grad_()
    logits, seen = inputs(net, x)
    total = F.cross_entropy(logits, state.labels)
    for i, (name, module) in enumerate(modules(net)):
        patched = isinstance(module, nn.Conv2d)
        at = numbers(seen[name], patched)
        norm = not patched
        target = [module.running_mean, module.running_var] if norm else numbers(whole[name], True)
        # as many synthetic images of each class as real ones: the mixture is all the data
        near = numbers(whole[name], patched)
        r = 0.7 * apart(at, target) + 0.3 * apart(at, near)
        total = total + 0.5 * (7 if i == 0 else 1) * r
    assert float(mine) == pytest.approx(float(total), rel=1e-4)
    mine.backward()
    total.backward()
    assert torch.allclose(state.images.grad, x.grad, rtol=1e-3, atol=1e-6)


def test_class_by_class_and_local_targets(bench: Benchmark, store: Path) -> None:
    each = method(momentum=0.0, targets="each", share=1.0, weight=1.0, first=1.0)
    local = method(momentum=0.0, targets="local", share=1.0, weight=1.0, first=1.0)
    ctx, state = context(each, bench, store), synth(bench)
    net = net_of(ctx, 0)
    logits, seen = inputs(net, state.images.detach())
    ce = float(F.cross_entropy(logits, state.labels))
    with torch.no_grad():
        of = [inputs(net_of(ctx, 0), real(ctx, c))[1] for c in range(len(bench.classes))]
        whole = inputs(net_of(ctx, 0), real(ctx))[1]
    total_each = total_local = ce
    for name, module in modules(net):
        patched = isinstance(module, nn.Conv2d)
        for c, given in enumerate(of):
            mine = numbers(seen[name][state.of_class == c], patched)
            total_each += float(apart(mine, numbers(given[name], patched)))
        total_local += float(apart(numbers(seen[name], patched), numbers(whole[name], patched)))
    assert float(loss(each, ctx, state)) == pytest.approx(total_each, rel=1e-4)
    ctx = context(local, bench, store)
    assert float(loss(local, ctx, synth(bench))) == pytest.approx(total_local, rel=1e-4)


def test_one_class_alone_is_its_own_mixture(bench: Benchmark, store: Path) -> None:
    rows = torch.arange(3)
    found = []
    for targets in ("classes", "each"):
        made = method(momentum=0.0, targets=targets)
        found.append(float(loss(made, context(made, bench, store), synth(bench, rows))))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_released_targets(bench: Benchmark, store: Path) -> None:
    """Variances averaged over batches, and inside one image: smaller than those of all pixels."""
    exact, released = method(), method(variance="released")
    state = synth(bench)
    aim = []
    for made in (exact, released):
        ctx = context(made, bench, store)
        aim.append(aims(made, ctx, state, observer(ctx, 1, "all")))
    statistics = context(released, bench, store).artefacts["statistics/1"].of(0)
    name = observer(ctx, 1, "all").watched[0].name
    (_, whole), (_, near) = aim[1][name][0]
    assert torch.equal(whole["var"], statistics["batch_var"])
    assert torch.allclose(near["var"], statistics["class.within"].mean(0))
    (_, whole), (_, near) = aim[0][name][0]
    assert torch.equal(whole["var"], statistics["var"])
    assert bool((near["var"] > statistics["class.within"].mean(0)).all())


def test_norms_alone_are_drawn_to_what_they_keep(bench: Benchmark, store: Path) -> None:
    made = method(layers="norms", targets="whole", momentum=0.0, weight=1.0, first=10.0)
    assert sorted(made.stages(bench.describe(), resolve("mlp"), store)) == [
        "observer/0",
        "observer/1",
    ]
    ctx, state = context(made, bench, store), synth(bench)
    net = net_of(ctx, 0)
    logits, seen = inputs(net, state.images.detach())
    total = F.cross_entropy(logits, state.labels)
    norms = [(n, m) for n, m in modules(net) if isinstance(m, nn.BatchNorm2d)]
    for i, (name, module) in enumerate(norms):
        target = [module.running_mean, module.running_var]
        total = total + (10 if i == 0 else 1) * apart(numbers(seen[name], False), target)
    assert float(loss(made, ctx, state)) == pytest.approx(float(total), rel=1e-5)
    with pytest.raises(StillroomError, match="arch=convnet1-w4 has no BatchNorm"):
        loss(made, ctx, state, 1)


def test_networks_take_turns_and_chunks_begin_with_others(bench: Benchmark, store: Path) -> None:
    made = method(weight=0.0)
    for chunk in (0, 1):
        ctx, state = context(made, bench, store, chunk), synth(bench)
        for it in range(4):
            net = net_of(ctx, (chunk + it) % 2)
            theirs = F.cross_entropy(net(state.images), state.labels)
            assert float(loss(made, ctx, state, it)) == pytest.approx(float(theirs), rel=1e-6)


def test_moving_average_has_the_value_of_the_past_and_the_gradient_of_now(
    bench: Benchmark, store: Path
) -> None:
    """Of a constant it is that constant at once; from zero it is short by 1 - rate^n."""
    corrected = method(observers=ARCHS[1:], momentum=0.8, weight=1.0, targets="whole")
    zero = method(
        observers=ARCHS[1:], momentum=0.8, weight=1.0, targets="whole", average_start="zero"
    )
    plain = method(observers=ARCHS[1:], momentum=0.0, weight=1.0, targets="whole")
    losses = {}
    for name, made in (("corrected", corrected), ("zero", zero), ("plain", plain)):
        ctx, state = context(made, bench, store), synth(bench)
        losses[name] = [float(loss(made, ctx, state, it).detach()) for it in range(3)]
    assert losses["corrected"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["zero"][0] != pytest.approx(losses["plain"][0], rel=1e-3)


def test_dropped_convolutions(bench: Benchmark, store: Path) -> None:
    """All of them dropped: norms alone are left, at the weight of a later layer."""
    none = method(conv_drop=1.0, momentum=0.0, weight=1.0, targets="whole")
    ctx, state = context(none, bench, store), synth(bench)
    net = net_of(ctx, 0)
    logits, seen = inputs(net, state.images.detach())
    total = F.cross_entropy(logits, state.labels)
    for name, module in modules(net):
        if isinstance(module, nn.BatchNorm2d):
            target = [module.running_mean, module.running_var]
            total = total + apart(numbers(seen[name], False), target)
    assert float(loss(none, ctx, state)) == pytest.approx(float(total), rel=1e-5)
    bare = net_of(ctx, 1)(state.images)  # without norms: nothing but the labels is left
    alone = float(F.cross_entropy(bare, state.labels))
    assert float(loss(none, ctx, state, 1)) == pytest.approx(alone, rel=1e-5)
    half = method(conv_drop=0.5)
    ctx = context(half, bench, store)
    drawn = [half._dropped(ctx, observer(ctx, 0, "all"), it) for it in range(200)]
    assert drawn == [half._dropped(ctx, observer(ctx, 0, "all"), it) for it in range(200)]
    share = sum(map(len, drawn)) / (200 * 2)
    assert abs(share - 0.5) < 5 * math.sqrt(0.25 / 400)


def test_met_targets_cost_nothing_and_have_a_finite_gradient(bench: Benchmark, store: Path) -> None:
    made = method(targets="local", momentum=0.0, share=1.0, weight=1.0, local_real=10**6)
    ctx = context(made, bench, store)
    labels = bench.train.labels
    state = Synth(real(ctx).requires_grad_(), labels, labels)
    term = loss(made, ctx, state)
    ce = F.cross_entropy(net_of(ctx, 0)(state.images), labels)
    assert float(term) == pytest.approx(float(ce), abs=2e-3)
    term.backward()
    assert bool(state.images.grad.isfinite().all())


def test_the_term_for_flatness(bench: Benchmark, store: Path) -> None:
    """The average starts at the images, so the term is zero at first, and then is not."""
    flat = {"weight": 3.0, "rate": 0.5, "tau": 2.0}
    made = method(flat=flat, weight=0.0, observers=ARCHS[1:])
    ctx, state = context(made, bench, store), synth(bench)
    net = net_of(ctx, 0)
    first = state.images.detach().clone()
    plain = F.cross_entropy(net(first), state.labels)
    assert float(loss(made, ctx, state)) == pytest.approx(float(plain), rel=1e-5)
    moved = (first + 0.3).requires_grad_()
    state.images = moved
    p = (net(moved) / 2).log_softmax(1)
    q = (net(0.5 * first + 0.5 * moved.detach()) / 2).log_softmax(1)
    kl = (p.exp() * (p - q)).sum(1).mean()
    theirs = F.cross_entropy(net(moved), state.labels) + 3 * kl
    assert float(loss(made, ctx, state, 1)) == pytest.approx(float(theirs), rel=1e-5)


def test_terms_of_the_images_alone(bench: Benchmark, store: Path) -> None:
    state = synth(bench)
    x = state.images.detach()
    nothing = method(weight=0.0)
    ctx = context(nothing, bench, store)
    base = float(loss(nothing, ctx, state))
    norm = x.flatten(1).norm(dim=1).mean()
    for priors, theirs in (
        ({"l2": 2.0}, 2 * norm),
        ({"tv": 0.5}, None),
        ({"spectrum": 4.0}, None),
    ):
        value = float(loss(method(weight=0.0, priors=priors), ctx, state)) - base
        assert value > 1e-4, priors
        if theirs is not None:
            assert value == pytest.approx(float(theirs), rel=1e-4)
    released = method(weight=0.0, priors={"spectrum": 4.0, "spectrum_form": "released"})
    assert float(loss(released, ctx, state)) == pytest.approx(base, abs=1e-5), "inert, as released"


@pytest.mark.parametrize(("ipc", "batch"), [(1, 3), (4, 5), (3, 100), (7, 2)])
@pytest.mark.parametrize("order", ["class", "cycled"])
def test_every_image_is_in_one_chunk(ipc: int, batch: int, order: str) -> None:
    parts = method(batch=batch, order=order).chunks(6, ipc)
    rows = [row for part in parts for row in part]
    assert sorted(rows) == list(range(6 * ipc))
    assert all(len(part) <= batch for part in parts)
    if order == "cycled":
        assert all(len({row // ipc for row in part}) == len(part) for part in parts)
    else:
        assert rows == sorted(rows)


def test_views_are_one_for_the_whole_chunk(bench: Benchmark, store: Path) -> None:
    made = method(views={"crop": 0.08})
    ctx = context(made, bench, store)
    x = torch.rand(1, 3, 8, 8).expand(4, 3, 8, 8)
    seen = [view(made.views, ctx, x, it) for it in range(20)]
    for y in seen:
        assert torch.equal(y, y[:1].expand_as(y))
    assert len({y[0].sum().item() for y in seen}) > 10
    assert torch.equal(view(made.views, ctx, x, 3), seen[3])
    still = method().views
    assert torch.allclose(view(still, ctx, x, 0), x, atol=1e-6)
    rolled = method(views={**STILL, "jitter": (2, 2)}).views
    assert torch.allclose(view(rolled, ctx, x, 0), x.roll((2, 2), (2, 3)), atol=1e-6)
    padded = method(views={**STILL, "padding": 2}).views
    assert not torch.allclose(view(padded, ctx, x, 1), x)


def test_a_curriculum_begins_with_whole_images(bench: Benchmark, store: Path) -> None:
    made = method(views={"crop": 0.08, "flip": False, "curriculum": "cosine"})
    ctx = context(made, bench, store, steps=100)
    x = torch.rand(1, 3, 8, 8)
    assert torch.allclose(view(made.views, ctx, x, 0), x, atol=1e-6)
    late = [view(made.views, ctx, x, it) for it in range(90, 100)]
    assert sum(torch.allclose(y, x, atol=1e-2) for y in late) < 5


@pytest.mark.parametrize(
    ("views", "told"),
    [
        ({"crop": 0.5, "padding": 4}, "padding 4 is a crop of another kind"),
        ({"crop": 1.0, "curriculum": "linear"}, "a curriculum ends at a crop"),
        ({"jitter": (3, 1)}, "the first must not be greater"),
    ],
)
def test_views_that_contradict_themselves(views: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        method(views=views)


def test_from_noise_to_images_with_pixels(bench: Benchmark, store: Path) -> None:
    """End to end, in three chunks: the networks see the classes, and pixels stay in [0, 1]."""
    schooling = Schooling(epochs=20, batch=8, lr=0.05)
    made = method(init="noise", batch=2, views={"crop": 0.5}, schooling=schooling)
    stage = Distil(
        made,
        Outer(steps=80, images=ADAM),
        bench.describe(),
        3,
        0,
        resolve(ARCHS[0]),
        "float32",
        "float32",
        store,
    )
    assert stage.shards() == 3
    rt = Runtime(device=torch.device("cpu"), threads=1)
    for want in stage.wants().values():
        obtain(Store(store), want, Serial(), rt)
    found = obtain(Store(store), stage, Serial(), rt)
    raw = bench.preprocess.invert(found.images)
    assert float(raw.min()) >= -1e-5
    assert float(raw.max()) <= 1 + 1e-5
    ctx = context(made, bench, store)
    right = [(net_of(ctx, k)(found.images).argmax(1) == found.labels) for k in (0, 1)]
    assert float(torch.stack(right).double().mean()) > 0.8
    kept = load(Store(store).folder(stage.key()) / "steps" / "80")
    assert kept.augment == "crop_flip"


def test_mosaics_to_start_from_are_those_of_rded(bench: Benchmark, store: Path) -> None:
    """In whichever chunk an image lies; scored by networks of their own, or by the observers."""
    crops = {"factor": 2, "pool": 12, "crops": 2}
    for scorers in ((ARCHS[1],), ()):
        made = method(init="mosaics", scorers=scorers, crops=crops, layers="norms", targets="whole")
        whole = Mosaics(observers=scorers or ARCHS, schooling=made.schooling, crops=crops)
        ctx = context(whole, bench, store)
        wanted = whole.start(ctx, torch.arange(6)).images
        for chunk, rows in enumerate(torch.arange(6).split(2)):
            found = made.start(context(made, bench, store, chunk), rows).images
            assert torch.equal(found.detach(), wanted[rows])
    for unread in ({"scorers": ARCHS}, {"crops": crops}):
        with pytest.raises(ValidationError, match="scorers and crops belong to init mosaics"):
            method(**unread)


def test_a_given_start_asks_for_no_mosaics(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """No crop is scored and no scorer trained for images that others replace."""
    recipe, _ = from_preset("random", "toy", 1, {})
    machine, kept = Machine(threads=1), Store(store)
    distil(plan(recipe, bench, machine, Session(), store=kept, out=tmp_path / "given"), machine)
    own = {"init": "mosaics", "scorers": [ARCHS[1]], "crops": {"factor": 2},
           "observers": ARCHS[:1], "schooling": {"epochs": 1}}  # fmt: skip
    given = {"arch": ARCHS[0], "method": own, "outer": {"steps": 1, "images": {"lr": 1e-9}}}
    recipe, _ = from_preset("edc", "toy", 1, given)
    for start, scorers in ((None, 1), (tmp_path / "given", 0)):
        asked = plan(recipe, bench, machine, Session(), store=kept, init_from=start)
        models = {s.arch.name for s in asked.stage.wants().values() if isinstance(s, Original)}
        assert len(models) == 1 + scorers
    made = distil(asked, machine)
    torch.testing.assert_close(made.images, load(tmp_path / "given").images, atol=1e-5, rtol=0)
    recipe, _ = from_preset("rded", "toy", 1, {"arch": ARCHS[0]})
    with pytest.raises(StillroomError, match="--init-from: rded runs no steps"):
        plan(recipe, bench, machine, Session(), store=kept, init_from=tmp_path / "given")


def test_step_sizes_of_a_cosine() -> None:
    rates = [ADAM.rate(i, 100) for i in (0, 50, 99)]
    assert rates[0] == 0.05
    assert rates[1] == pytest.approx(0.025)
    assert 0 < rates[2] < 2e-5
    assert Optim(lr=3.0).rate(7, 10) == 3.0


def test_new_fields_leave_old_keys_alone() -> None:
    assert sorted(Optim().model_dump()) == ["kind", "lr", "momentum"]
    assert Optim(**ADAM.model_dump()) == ADAM
    plain = method().model_dump(mode="json")
    assert not {"scorers", "crops"} & set(plain)
    assert StatisticsMatching(**plain) == method()
    assert {"scorers", "crops"} <= set(
        method(init="mosaics", scorers=ARCHS, crops={"pool": 5}).model_dump()
    )


def test_every_network_of_a_recipe_can_be_given() -> None:
    """Observers and scorers alike go on under the names that settle their weights."""
    method = StatisticsMatching(observers=("a", "b"), init="mosaics", scorers=("c",))
    settled = method.renamed(lambda name: f"{name}=0")
    assert (settled.observers, settled.scorers) == (("a=0", "b=0"), ("c=0",))
