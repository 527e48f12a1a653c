"""CLOM: a term that is added, its draws, its gradient; the original models that it needs."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.func import functional_call

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.originals import OriginalModel
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.files import read_json
from stillroom.methods.base import Optim, Outer, Synth
from stillroom.methods.context import RunContext
from stillroom.methods.distribution_matching import DistributionMatching
from stillroom.methods.original_loss import VERDICTS, contrast, cross_entropy
from stillroom.methods.outer import outer_loop
from stillroom.methods.regularisers import Clom, Regulariser, Watchable
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset, validate
from stillroom.run.assess import held_out, without
from stillroom.run.distil import distil, plan
from stillroom.run.measures import READ_AS, of_originals
from stillroom.run.options import Machine
from stillroom.run.prepare import originals
from stillroom.runtime import Runtime
from stillroom.session import Session

QUICK = Schooling(epochs=2, batch=8)


def model(seed: int, arch: str = "convnet1-w4-bn", raw: bool = False) -> OriginalModel:
    one = resolve(arch)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = one.build(2, 3, 8).double()
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return OriginalModel(one, {k: v.detach() for k, v in held.items()}, raw, 0.5, ((1, 0.5),), 0.0)


def context(bench: Benchmark, models: dict[str, OriginalModel]) -> RunContext:
    rt = Runtime(device=torch.device("cpu"), numerics="float64")
    nets = Nets(resolve("convnet1-w4"), 2, 3, 8, rt)
    return RunContext(bench, 2, 0, rt, nets, artefacts=models)


def synth(bench: Benchmark) -> Synth:
    gen = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, 8, 8, generator=gen, dtype=torch.float64)
    of_class = torch.tensor([0, 0, 1, 1])
    return Synth(images.requires_grad_(), of_class, of_class)


@pytest.mark.parametrize("raw", [False, True])
def test_the_gradient_is_alpha_times_that_of_the_cross_entropy(bench: Benchmark, raw: bool) -> None:
    """By hand, in evaluation mode; weights, statistics and mode of the model stay as they are."""
    original = model(1, raw=raw)
    ctx, made = context(bench, {"clom/0/0/0": original}), synth(bench)
    before = {k: v.clone() for k, v in original.weights.items()}
    term = Clom(weights=(300.0,), num=1).term(ctx, made, 5, 0)
    term.backward()
    found, made.images.grad = made.images.grad, None
    net = original.arch.build(2, 3, 8).double().eval()
    x = made.images
    if raw:
        mean, std = (torch.tensor(v).double().view(1, -1, 1, 1) for v in
                     (bench.preprocess.mean, bench.preprocess.std))  # fmt: skip
        x = x * std + mean
    loss = 300 * F.cross_entropy(functional_call(net, original.weights, (x,)), made.labels)
    loss.backward()
    torch.testing.assert_close(term, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, made.images.grad, rtol=1e-5, atol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in original.weights.items())


@pytest.mark.parametrize("raw", [False, True])
def test_the_contrastive_term_by_hand(bench: Benchmark, raw: bool) -> None:
    """Pair by pair, on the real images that the step's key draws; its gradient by autograd."""
    original, it, batch = model(1, raw=raw), 5, 30  # more than there are: with replacement
    ctx, made = context(bench, {"clom/0/0/0": original}), synth(bench)
    term = Clom(weights=(7.0,), num=1, distance="cos", batch_real=batch).term(ctx, made, it, 0)
    term.backward()
    found, made.images.grad = made.images.grad, None
    rows = torch.randint(len(bench.train), (batch,), generator=ctx.rng("clom real", 0, it))
    assert len(rows.unique()) < batch
    net = original.arch.build(2, 3, 8).double().eval()
    net.load_state_dict(original.weights)

    def seen(pixels):
        shown = pixels if raw else bench.preprocess.apply(pixels)
        return net.features(shown.double())

    theirs = seen(bench.train.take(rows).double() / 255).detach()
    mine = seen(bench.preprocess.invert(made.images))
    same = whole = torch.zeros((), dtype=torch.float64)
    for a, of_a in zip(mine, made.labels, strict=True):
        for b, row in zip(theirs, rows, strict=True):
            apart = 1 - (a @ b) / (a.norm() * b.norm())
            whole = whole + apart
            same = same + apart * (of_a == bench.train.labels[row])
    loss = 7 * same / whole
    loss.backward()
    torch.testing.assert_close(term, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, made.images.grad, rtol=1e-5, atol=1e-9)
    assert found.abs().sum() > 0


def test_the_contrastive_term_draws_by_step_and_is_linear_in_alpha(bench: Benchmark) -> None:
    ctx, made = context(bench, {"clom/0/0/0": model(1)}), synth(bench)

    def value(weight: float, it: int) -> float:
        clom = Clom(weights=(weight,), num=1, distance="cos", batch_real=6)
        return float(clom.term(ctx, made, it, 0).detach())

    alone = float(contrast(ctx, ctx.artefacts["clom/0/0/0"], made, 6, (0, 2)).detach())
    assert value(1.0, 2) == alone
    assert value(40.0, 2) == pytest.approx(40 * alone, rel=1e-12)
    assert 0 < alone < 1
    assert len({value(1.0, it) for it in range(4)}) == 4
    assert value(1.0, 3) == value(1.0, 3)


def foreign(bench: Benchmark, store: Path) -> dict[str, Benchmark]:
    """Benchmarks that differ from it in one thing each."""
    from stillroom.data.benchmarks import from_arrays
    from toy import toy_images

    of = {"classes": bench.classes, "name": bench.name, "store": store}
    tests = toy_images(seed=1)
    one, labels = toy_images()
    one[0, 0, 0, 0] ^= 1  # a pixel by one
    return {
        "images": from_arrays(*toy_images(seed=7), *tests, **of),
        "one pixel": from_arrays(one, labels, *tests, **of),
        "normalisation": from_arrays(*toy_images(), *tests, normalise="half", **of),
        "none": from_arrays(*toy_images(), *tests, normalise="none", **of),
        "size": from_arrays(*toy_images(), *tests, size=16, **of),
    }


def test_models_of_other_data_or_another_normalisation_are_never_taken(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """Though architecture, number and schooling agree: a set wants its own, and trains them."""
    clom = Clom(weights=(1.0,), pool=("convnet1-w4",), num=2, schooling=QUICK)
    arch = resolve("convnet1-w4")

    def keys(one: Benchmark) -> set[str]:
        return {stage.key() for stage in clom.stages(one.describe(), arch, store, 0).values()}

    others = foreign(bench, store)
    held = [keys(one) for one in (bench, *others.values())]
    assert len(set().union(*held)) == 2 * (1 + len(others))
    run(bench, store, tmp_path / "own", weights=[1.0])
    assert {p.name for p in store.glob("original-*")} == keys(bench)
    for name in ("one pixel", "normalisation"):
        made = run(others[name], store, tmp_path / name, weights=[1.0])
        assert set(made.provenance["recipe"]["wants"].values()) == keys(others[name])
    trained = {p.name for p in store.glob("original-*")}
    assert trained == keys(bench) | keys(others["one pixel"]) | keys(others["normalisation"])


def test_one_weight_for_all_or_one_each(bench: Benchmark) -> None:
    models = {"clom/0/0/0": model(1), "clom/0/1/0": model(1)}  # the same model twice
    ctx, made = context(bench, models), synth(bench)
    one, each = (Clom(weights=w, pool=("a", "b"), num=1) for w in ((2.0,), (2.0, 6.0)))
    for it in range(8):
        arch, _ = each.drawn(ctx, it, 0)
        a, b = (float(c.term(ctx, made, it, 0).detach()) for c in (one, each))
        assert b == pytest.approx(a * (3.0 if arch else 1.0))
    with pytest.raises(ValidationError, match="2 weights for 3 architectures"):
        Clom(weights=(1.0, 2.0), pool=("a", "b", "c"))
    with pytest.raises(ValidationError, match="names no architecture"):
        Clom(weights=(1.0,), pool=())


def test_architectures_and_models_are_drawn_evenly(bench: Benchmark) -> None:
    ctx = context(bench, {})
    clom = Clom(weights=(1.0, 5.0, 9.0), pool=("a", "b", "c"), num=4)
    drawn = collections.Counter(clom.drawn(ctx, it, 0) for it in range(6000))
    assert len(drawn) == 12
    expected = 500
    chi = sum((n - expected) ** 2 / expected for n in drawn.values())
    assert chi < 31.3  # 0.1 % of chi-square with 11 degrees of freedom
    again = [[clom.drawn(ctx, it, slot) for it in range(9)] for slot in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def run(bench: Benchmark, store: Path, out: Path, watch=None, **clom):
    given = {"outer": {"steps": 3, "images": {"lr": 0.1}}, "arch": "convnet1-w4"}
    if clom:
        given["regularisers"] = [{"kind": "clom", "num": 2, "schooling": QUICK, **clom}]
    if watch:
        given["watch"] = watch
    recipe, _ = from_preset("dm", "toy", 2, given)
    machine = Machine(threads=1)
    return distil(plan(recipe, bench, machine, Session(), store=Store(store), out=out), machine)


def test_a_weight_of_zero_changes_no_byte(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    plain = run(bench, store, tmp_path / "plain")
    none = run(bench, store, tmp_path / "none", weights=[0.0])
    some = run(bench, store, tmp_path / "some", weights=[100.0])
    assert torch.equal(plain.images, none.images)
    assert (none.provenance["key"], none.provenance["label"]) == (plain.provenance["key"], "dm")
    assert not torch.equal(plain.images, some.images)


def test_originals_are_made_first_and_once(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    run(bench, store, tmp_path / "a", weights=[1.0], pool=["convnet1-w4", "mlp"])
    first = {p.name: (p / "stage.json").stat().st_mtime_ns for p in store.glob("original-*")}
    assert len(first) == 4
    run(bench, store, tmp_path / "b", weights=[2.0], pool=["mlp"])
    again = {p.name: (p / "stage.json").stat().st_mtime_ns for p in store.glob("original-*")}
    assert again == first


def test_a_recipe_names_its_regularisers() -> None:
    base = {"benchmark": "digits", "ipc": 1, "method": {"kind": "distribution_matching"}}
    made = validate({**base, "regularisers": [{"kind": "clom", "weights": [1000]}]}, "r.yaml")
    assert made.regularisers[0].weights == (1000.0,)
    for wrong, told in (
        ([{"kind": "clam", "weights": [1]}], "kind 'clam' is none of: clom"),
        ([{"kind": "clom"}], "weights"),
        ({"kind": "clom"}, "must be a list"),
        ([{"kind": "clom", "weights": [1], "numb": 3}], "numb"),
    ):
        with pytest.raises(StillroomError, match=told):
            validate({**base, "regularisers": wrong}, "r.yaml")


def test_flags_of_the_command(bench: Benchmark, tmp_path: Path) -> None:
    from stillroom.cli import run as command
    from stillroom.distilled import load

    line = ["distill", "dm", "--data", "digits", "--ipc", "1", "--steps", "1", "--quiet"]
    line += ["--arch", "convnet1-w4", "--store", f"{tmp_path}/store", "--threads", "1"]
    assert command([*line, "--models-pool", "mlp"]) == 2
    clom = ["--alphas", "10", "20", "--models-pool", "convnet1-w4", "mlp", "--model-num", "1"]
    assert command([*line, *clom, "--plan"]) == 0
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(
        "benchmark: digits\nipc: 1\narch: convnet1-w4\nmethod: {kind: distribution_matching}\n"
        "outer: {steps: 1}\nregularisers: [{kind: clom, weights: [10, 20], num: 1, "
        "pool: [convnet1-w4, mlp], schooling: {epochs: 1}}]\n"
    )
    rest = ["--out", f"{tmp_path}/out", "--store", f"{tmp_path}/store", "--threads", "1"]
    assert command(["distill", str(recipe), *rest]) == 0
    told = load(tmp_path / "out").provenance["recipe"]["regularisers"]
    assert told[0]["weights"] == [10.0, 20.0]


def test_the_term_sees_the_images_as_they_are(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """Un-augmented, whatever the method does (spec 12, CLOM i): those that the run starts from."""
    given = {"outer": {"steps": 1, "images": {"lr": 1e-30}}, "arch": "convnet1-w4"}
    given["regularisers"] = [{"kind": "clom", "num": 1, "weights": 3, "schooling": QUICK}]
    recipe, _ = from_preset("dm", "toy", 2, given)
    assert recipe.method.augment != "none"
    machine = Machine(threads=1)
    planned = plan(recipe, bench, machine, Session(), store=Store(store), out=tmp_path / "a")
    made = distil(planned, machine)
    stage = planned.stage.wants()["clom/0/0/0"]
    nets = Nets(resolve("convnet1-w4"), 2, 3, 8, Runtime(device=torch.device("cpu"))).make(1, 0)
    stage.load(Store(store).folder(stage.key())).put_into(nets)
    loss = F.cross_entropy(nets.logits(made.images)[0], made.labels)
    (line,) = (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["clom"] == pytest.approx(3 * float(loss), rel=1e-5)


def test_the_term_alone_makes_images_that_the_model_knows(bench: Benchmark, store: Path) -> None:
    """Spec 12, CLOM g and j: from noise its loss falls and accuracy is 1; of the real training
    images the model is as accurate as its own predictions of them."""
    stage = originals(bench, ["convnet1-w4"], 1, Schooling(epochs=20, batch=8), Store(store))[0]
    rt = Runtime(device=torch.device("cpu"))
    model = obtain(Store(store), stage, Serial(), rt)
    nets = Nets(resolve("convnet1-w4"), 2, 3, 8, rt)
    ctx = RunContext(bench, 8, 0, rt, nets, artefacts={"clom/0/0/0": model})
    of_class = torch.arange(16) // 8
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3)).requires_grad_()
    made, clom = Synth(images, of_class, of_class), Clom(weights=(1.0,), num=1)
    losses = []
    for it in range(60):
        loss = clom.term(ctx, made, it, 0)
        (slope,) = torch.autograd.grad(loss, images)
        losses.append(loss.item())
        with torch.no_grad():
            images -= 20 * slope
    assert losses[0] > 0.3
    assert losses[-1] < 0.1 * losses[0]

    def accuracy(x: torch.Tensor, labels: torch.Tensor) -> float:
        one = Distilled(x.detach(), labels, "hard", labels, bench.classes, bench.preprocess)
        found = of_originals("convnet1-w4", [model], one, bench, rt)
        return next(m.value for m in found if m.name == "original-model-accuracy")

    assert accuracy(images, of_class) == 1
    real = bench.preprocess.apply(bench.train.take(torch.arange(len(bench.train))))
    own = nets.make(1, 0)
    model.put_into(own)
    right = own.logits(real)[0].argmax(1) == bench.train.labels
    assert accuracy(real, bench.train.labels) == pytest.approx(float(right.double().mean()))


def test_watching_changes_no_pixel_and_logs_a_model_that_no_term_uses(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    clom = {"weights": [5.0], "num": 2}
    watch = {"measures": ["original-model-accuracy", "original-model-loss"], "schooling": QUICK}
    plain = run(bench, store, tmp_path / "plain", **clom)
    seen = run(bench, store, tmp_path / "seen", watch=watch, **clom)
    assert torch.equal(plain.images, seen.images)
    models = {p.name: read_json(p / "stage.json")["identity"] for p in store.glob("original-*")}
    assert sorted(m["index"] for m in models.values()) == [0, 1, 2]
    key = next(k for k, m in models.items() if m["index"] == 2)
    told = [json.loads(x) for x in (tmp_path / "seen/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["original-model-accuracy"] <= 1 for line in told)
    bare = [json.loads(x) for x in (tmp_path / "plain/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in told] == [line["loss"] for line in bare]
    assert not any("original-model-accuracy" in line for line in bare)
    # What was logged last is what the model says of the set that was published.
    weights = load_file(store / key / "0000" / "weights.safetensors")
    nets = Nets(resolve("convnet1-w4"), 2, 3, 8, Runtime(device=torch.device("cpu"))).make(1, 0)
    OriginalModel(resolve("convnet1-w4"), weights, False, 0, (), 0).put_into(nets)
    logits = nets.logits(seen.images)[0]
    right = F.cross_entropy(logits.double(), seen.of_class)
    assert told[-1]["original-model-loss"] == pytest.approx(float(right), rel=1e-6)


def test_two_terms_have_models_and_draws_of_their_own(bench: Benchmark, store: Path) -> None:
    """One value each, and not twice that of the last."""
    terms = [
        {"kind": "clom", "weights": [2.0], "num": 1, "pool": ["convnet1-w4"], "schooling": QUICK},
        {"kind": "clom", "weights": [3.0], "num": 2, "pool": ["mlp"], "schooling": QUICK},
    ]
    losses = []
    for some in ([], terms[:1], terms[1:], terms):
        recipe, _ = from_preset("dm", "toy", 2, {"outer": {"steps": 1}, "regularisers": some})
        planned = plan(recipe, bench, Machine(threads=1), Session(), store=Store(store))
        wants = {n: s.arch.name for n, s in planned.stage.wants().items()}
        assert len(wants) == sum(term["num"] for term in some)
        distil(planned, Machine(threads=1))
        curve = Store(store).folder(planned.stage.key()) / "metrics.jsonl"
        losses.append(json.loads(curve.read_text().splitlines()[0]))
    assert wants == {"clom/0/0/0": "convnet1-w4", "clom/1/0/0": "mlp", "clom/1/0/1": "mlp"}
    plain, first, _, both = losses
    assert both["clom"] == pytest.approx(first["clom"], rel=1e-6)
    assert both["loss"] == pytest.approx(plain["loss"] + both["clom"] + both["clom.1"], rel=1e-5)


def test_a_term_that_is_off_wants_nothing(bench: Benchmark, store: Path) -> None:
    some = Clom(weights=(0.0, 5.0), pool=("mlp", "convnet1-w4"), num=2)
    found = some.stages(bench.describe(), resolve("mlp"), store, 0)
    assert sorted(found) == ["clom/0/1/0", "clom/0/1/1"]
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Clom(weights=(-5.0,))


def test_learned_labels_do_not_follow_the_model(bench: Benchmark) -> None:
    """The term's gradient goes to the images alone (specification, 7.1)."""
    ctx = context(bench, {"clom/0/0000": model(0)})
    own = synth(bench)
    labels = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    value = cross_entropy(ctx, model(0), own.images, labels)
    (slope,) = torch.autograd.grad(value, own.images, retain_graph=True)
    assert float(slope.abs().max()) > 0
    assert torch.autograd.grad(value, labels, allow_unused=True) == (None,)


def test_a_network_counts_once(bench: Benchmark, store: Path) -> None:
    with pytest.raises(ValidationError, match="mlp is named twice in the pool"):
        Clom(weights=(1.0,), pool=("mlp", "convnet1-w4", "mlp"))
    with pytest.raises(StillroomError, match="a network is named twice"):
        without([], bench, ["mlp", "mlp"], 2, QUICK, Store(store))


@pytest.mark.parametrize("pool", [["auto", "convnet1-w4"], ["mlp", "MLP"]])
def test_one_network_has_one_name(
    bench: Benchmark, store: Path, tmp_path: Path, pool: list[str]
) -> None:
    with pytest.raises(StillroomError, match="are one network; name it once"):
        run(bench, store, tmp_path / "a", weights=[1.0], pool=pool)


def test_one_run_has_one_key(bench: Benchmark, store: Path) -> None:
    """However its networks are spelled, and one weight each that are all the same."""

    def key(weights: list[float], *pool: str) -> str:
        term = {"kind": "clom", "num": 1, "schooling": QUICK, "weights": weights}
        given = {"arch": "convnet2-w8", "regularisers": [{**term, "pool": pool}]}
        recipe, _ = from_preset("dm", "toy", 2, given)
        machine = Machine(threads=1)
        return plan(recipe, bench, machine, Session(), store=Store(store)).stage.key()

    assert key([1.0], "auto") == key([1.0], "convnet2-w8") == key([1.0], "ConvNetD2W8")
    assert key([1.0], "auto", "mlp") == key([1.0, 1.0], "convnet2-w8", "MLP")
    assert key([1.0], "auto") != key([1.0], "mlp") != key([2.0], "mlp")


def test_models_of_the_start_are_models_of_the_set(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """What a term minimised before is no held-out model, nor one that watches."""
    first = run(bench, store, tmp_path / "a", weights=[5.0])
    assert first.models == (("convnet1-w4", 0), ("convnet1-w4", 1))
    given = {"outer": {"steps": 1, "images": {"lr": 1e-9}}, "arch": "convnet1-w4"}
    given["watch"] = {"measures": ["original-model-loss"], "schooling": QUICK}
    recipe, _ = from_preset("dm", "toy", 2, given)
    machine, kept = Machine(threads=1), Store(store)
    asked = plan(recipe, bench, machine, Session(), store=kept, init_from=tmp_path / "a")
    assert asked.stage.wants()["watch"].index == 2
    again = distil(asked, machine)
    assert again.models == first.models
    held = held_out(again, bench, ["convnet1-w4"], 1, QUICK, kept)
    assert [stage.index for stage in held] == [2]


def test_what_is_watched_is_what_is_published(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """Also where the set holds a moving average of the images."""
    own = {"experts": 1, "inner": 2, "batch": 4, "ema": 0.9, "augment": "none",
           "window": {"last": 1, "epochs": 1}, "schooling": {"epochs": 2, "batch": 8}}  # fmt: skip
    optim = {"lr": 50.0}
    given = {"method": own, "outer": {"steps": 3, "images": optim, "rate": {"lr": 1e-6}},
             "arch": "convnet1-w4", "watch": {"measures": ["original-model-loss"],
             "schooling": QUICK}}  # fmt: skip
    recipe, _ = from_preset("ftd", "toy", 2, given)
    machine = Machine(threads=1)
    asked = plan(recipe, bench, machine, Session(), store=Store(store), out=tmp_path / "a")
    made = distil(asked, machine)
    stage = asked.stage.wants()["watch"]
    nets = Nets(resolve("convnet1-w4"), 2, 3, 8, Runtime(device=torch.device("cpu"))).make(1, 0)
    stage.load(Store(store).folder(stage.key())).put_into(nets)
    loss = F.cross_entropy(nets.logits(made.images)[0].double(), made.of_class)
    lines = (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["original-model-loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_dropped_step_drops_the_term_and_nothing_scales_it(bench: Benchmark, store: Path) -> None:
    """A method adjusts its own gradient alone; what it drops is not logged either."""

    class Scaled(DistributionMatching):
        keeps: bool = True

        def adjust(self, ctx, synth, it):
            synth.images.grad.zero_()
            return self.keeps

    stages = Clom(weights=(3.0,), num=1, schooling=QUICK)
    for keeps in (True, False):
        original = model(1)
        ctx = context(bench, {"clom/0/0/0": original})
        method = Scaled(batch_real=4, keeps=keeps)
        rate = Optim(lr=1.0, momentum=0.0)
        before = method.start(ctx, torch.arange(4)).images.detach().clone()
        outcome = outer_loop(
            method, ctx, Outer(steps=1, images=rate), torch.arange(4), store, None, (stages,)
        )
        moved = before - outcome.synth.images
        images = before.clone().requires_grad_()
        loss = 3 * cross_entropy(ctx, original, images, outcome.synth.labels)
        (slope,) = torch.autograd.grad(loss, images)
        torch.testing.assert_close(moved, slope if keeps else torch.zeros_like(slope))
        assert ("clom" in outcome.metrics[-1]) == keeps


class Brighter(Regulariser):
    """A term of one's own that asks no network."""

    def networks(self):
        return ()

    def stages(self, bench, arch, store, slot):
        return {}

    def term(self, ctx, synth, it, slot):
        return -synth.images.sum()


def test_a_term_without_networks_is_not_dropped(bench: Benchmark, store: Path) -> None:
    kind = f"{__name__}:Brighter"
    given = {"outer": {"steps": 1, "images": {"lr": 0.1}}, "arch": "convnet1-w4"}
    machine, made = Machine(threads=1), []
    for terms in ([], [{"kind": kind}]):
        recipe, _ = from_preset("dm", "toy", 2, {**given, "regularisers": terms})
        made.append(distil(plan(recipe, bench, machine, Session(), store=Store(store)), machine))
    torch.testing.assert_close(made[1].images - made[0].images, torch.full((4, 3, 8, 8), 0.1))


def test_names_of_measures_are_one_list() -> None:
    """What can be watched, what is measured, and what a person may read of it."""
    assert get_args(Watchable) == tuple(VERDICTS)
    assert set(VERDICTS) < set(READ_AS)
