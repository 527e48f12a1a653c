"""Gradient matching: loops, what the network learns from, gradients against plain twins."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from stillroom.config import DSA
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.errors import StillroomError
from stillroom.methods.base import Synth
from stillroom.methods.context import RunContext
from stillroom.methods.gradient_distance import DISTANCES
from stillroom.methods.gradient_matching import PUBLISHED, GradientMatching, loops
from stillroom.nets import train as trainer
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime
from toy import toy_images

# ipc -> matches, epochs, network steps of one network on 10 and on 100 classes (spec 3.3).
TABLE = {
    1: (1, 1, 0, 0),
    10: (10, 50, 450, 1800),
    20: (20, 25, 475, 3800),
    30: (30, 20, 1160, 6960),
    40: (40, 15, 1170, 9360),
    50: (50, 10, 980, 9800),
}


@pytest.fixture(scope="module")
def bench() -> Benchmark:
    images, labels = toy_images(40)
    return from_arrays(images, labels, images, labels, name="toy")


def context(bench: Benchmark, arch: str = "convnet1-w4", **changes) -> RunContext:
    rt = Runtime(device=torch.device("cpu"), **{"numerics": "float64", **changes})
    nets = Nets(resolve(arch), len(bench.classes), bench.channels, bench.size, rt)
    return RunContext(bench, 2, 0, rt, nets)


def run(method: GradientMatching, ctx: RunContext, steps: int) -> list[float]:
    """Losses of steps without any update of the images."""
    synth = method.start(ctx, torch.arange(2 * len(ctx.bench.classes)))
    found = []
    for it in range(steps):
        found.append(sum(float(term.detach()) for term in method.loss(ctx, synth, it)))
    return found


@pytest.mark.parametrize("ipc", TABLE)
def test_the_published_table(ipc: int) -> None:
    matches, epochs, of_ten, of_hundred = TABLE[ipc]
    assert loops(ipc) == (matches, epochs)
    for classes, steps in ((10, of_ten), (100, of_hundred)):
        assert (matches - 1) * epochs * -(-classes * ipc // 256) == steps


@pytest.mark.parametrize("ipc", TABLE)
def test_updates_of_a_network_as_the_loop_makes_them(
    ipc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's count, of the batches that the trainer would step on (spec 12, DC a and b)."""
    images = torch.randint(256, (600, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(600) % 10
    ten = from_arrays(images.to(torch.uint8), labels, images[:10].to(torch.uint8), labels[:10])
    steps: list[int] = []

    def count(nets, data, training, seeds) -> None:
        epochs = range(training.passes)
        steps.append(sum(1 for e in epochs for _ in trainer.together(data, training, seeds, e)))

    monkeypatch.setattr(trainer, "train", count)
    ctx = context(ten)
    ctx.ipc = ipc
    method = GradientMatching(batch_real=1)
    synth = method.start(ctx, torch.arange(10 * ipc))
    monkeypatch.setattr(GradientMatching, "_matched", lambda *_: [])
    for it in range(method.loops(ipc)[0]):
        list(method.loss(ctx, synth, it))
    assert sum(steps) == TABLE[ipc][2]


@pytest.mark.parametrize("arch", ["convnet1-w4", "convnet1-w4-bn"])
def test_a_match_moves_no_network_and_no_label(bench: Benchmark, arch: str) -> None:
    """Spec 12, DC c to f: weights, statistics, labels and classes stay; real gradients are bare."""
    ctx = context(bench, arch)
    method = GradientMatching(batch_real=8, matches=2)
    synth = method.start(ctx, torch.arange(4))
    labels, of_class = synth.labels.clone(), synth.of_class.clone()
    terms = method.loss(ctx, synth, 0)
    next(terms).backward()  # the network is kept, its norms are settled, one class has matched
    kept = {name: value.clone() for name, value in synth.memory.items()}
    assert kept
    for term in terms:
        term.backward()
    assert all(torch.equal(kept[name], value) for name, value in synth.memory.items())
    assert torch.equal(synth.labels, labels)
    assert torch.equal(synth.of_class, of_class)
    assert not any(value.requires_grad for value in synth.memory.values())
    slopes = ctx.nets(1, "net", 0).grads(ctx.real(0, 8, 0), torch.zeros(8, dtype=torch.int64))
    assert not any(value.requires_grad for value in slopes[0].values())


PEAK = """
import sys, torch
from stillroom.data.benchmarks import from_arrays
from stillroom.methods.context import RunContext
from stillroom.methods.gradient_matching import GradientMatching
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime, peak_memory

classes = int(sys.argv[1])
images = torch.zeros(64 * classes, 3, 32, 32, dtype=torch.uint8)
labels = torch.arange(len(images)) % classes
bench = from_arrays(images, labels, images, labels)
rt = Runtime(device=torch.device("cpu"))
nets = Nets(resolve("convnet3"), classes, 3, 32, rt)
ctx, method = RunContext(bench, 1, 0, rt, nets), GradientMatching(batch_real=64)
synth = method.start(ctx, torch.arange(classes))
with rt.activate():
    for term in method.loss(ctx, synth, 0):
        term.backward()
print(peak_memory(rt.device), 64 * nets.activation_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_classes() -> None:
    """One class's graph is held at a time: twelve classes more take less than one of them."""

    def told(classes: int) -> list[int]:
        command = [sys.executable, "-c", PEAK, str(classes)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        return [int(word) for word in ran.stdout.split()]

    (few, one), (many, _) = told(4), told(16)
    assert few > one
    assert many - few < one


def test_the_rule_for_every_other_number_of_images() -> None:
    assert loops(2) == (2, 250)
    assert loops(5) == (5, 100)
    assert loops(100) == (50, 10)
    for ipc in range(1, 200):
        matches, epochs = loops(ipc)
        assert 1 <= matches <= 50
        assert epochs >= 1
        if ipc not in PUBLISHED:
            assert abs(matches * epochs - 500) <= matches / 2
    given = GradientMatching(matches=3, net_epochs=7)
    assert given.loops(10) == (3, 7)
    # The table's one epoch at one image a class is never run; other matches share out 500.
    assert GradientMatching(matches=2).loops(1) == (2, 250)
    assert GradientMatching(matches=1).loops(1) == (1, 1)
    assert GradientMatching(matches=10).loops(10) == (10, 50)
    assert GradientMatching(matches=5).loops(10) == (5, 100)


def test_a_network_is_trained_between_its_matches_only(
    bench: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after its last one, and a fresh one comes then."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        trainer,
        "train",
        lambda nets, data, training, seeds: seen.append((training.epochs, len(data))),
    )
    ctx = context(bench)
    method = GradientMatching(batch_real=8, matches=3, net_epochs=5)
    synth = method.start(ctx, torch.arange(4))
    held = []
    for it in range(7):
        list(method.loss(ctx, synth, it))
        held.append(bool(synth.memory))
    assert seen == [(5, 4)] * 4
    assert held == [True, True, False, True, True, False, True]


def test_one_match_trains_no_network(bench: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "train", lambda *a: pytest.fail("the network was trained"))
    run(GradientMatching(batch_real=8, matches=1), context(bench), 3)


def test_the_network_learns_the_images_as_they_are_now(bench: Benchmark) -> None:
    """Plain SGD on them, without momentum; the images get no gradient from it."""
    ctx = context(bench)
    method = GradientMatching(batch_real=8, matches=2, net_epochs=3, net_lr=0.05)
    synth = method.start(ctx, torch.arange(4))
    list(method.loss(ctx, synth, 0))
    before = {k.removeprefix("net."): v.clone() for k, v in synth.memory.items()}
    with torch.no_grad():
        synth.images.add_(0.1)  # the loop's update
    method = method.model_copy(update={"matches": 3})  # so that step 1 keeps its network
    list(method.loss(ctx, synth, 1))
    skeleton = ctx.networks.skeleton
    params = {k: v.clone().requires_grad_() for k, v in before.items()}
    images = synth.images.detach()
    for _ in range(3):
        loss = F.cross_entropy(functional_call(skeleton, params, (images,)), synth.labels)
        slopes = torch.autograd.grad(loss, list(params.values()))
        params = {
            k: (p - 0.05 * g).detach().requires_grad_()
            for (k, p), g in zip(params.items(), slopes, strict=True)
        }
    for name, value in params.items():
        torch.testing.assert_close(synth.memory[f"net.{name}"], value.detach())
    assert synth.images.grad is None


@pytest.mark.parametrize("augment", ["none", DSA])
def test_terms_are_those_of_plain_autograd(bench: Benchmark, augment: str) -> None:
    """Double backward by hand, one class after another, under the same draw on both sides."""
    from stillroom.data.augment import apply, draw, parse

    ctx = context(bench)
    method = GradientMatching(batch_real=8, matches=1, augment=augment)
    synth = method.start(ctx, torch.arange(4))
    for term in method.loss(ctx, synth, 3):
        term.backward()
    found, synth.images.grad = synth.images.grad, None
    net = ctx.networks.build(ctx.seed, "distil", ctx.chunk, "net", 3, 0)
    names = [n for n, _ in net.named_parameters()]
    for c in range(len(bench.classes)):
        drawn = draw(parse(augment), 1, bench.size, ctx.rng("augment", 3, c), siamese=True)

        def slopes(images: Tensor, label: int = c, graph: bool = False) -> dict[str, Tensor]:
            loss = F.cross_entropy(net(images), torch.full((len(images),), label))
            some = torch.autograd.grad(loss, list(net.parameters()), create_graph=graph)
            return dict(zip(names, some, strict=True))

        real = slopes(apply(ctx.real(c, 8, 3, c), drawn))
        mine = slopes(apply(synth.images[synth.of_class == c], drawn), graph=True)
        DISTANCES["layerwise"](mine, real).backward()
    torch.testing.assert_close(found, synth.images.grad, rtol=1e-8, atol=1e-12)


def test_a_class_at_a_time_gives_the_gradient_of_the_sum(bench: Benchmark) -> None:
    """Spec 12, DC d: backward on one term after another, against backward on all at once."""
    found = []
    for whole in (False, True):
        ctx, method = context(bench), GradientMatching(batch_real=8)
        synth = method.start(ctx, torch.arange(4))
        terms = method.loss(ctx, synth, 0)
        if whole:
            sum(terms).backward()
        else:
            for term in terms:
                term.backward()
        found.append(synth.images.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_is_that_of_finite_differences(bench: Benchmark, distance: str) -> None:
    ctx = context(bench)
    method = GradientMatching(batch_real=8, matches=1, distance=distance)
    synth = method.start(ctx, torch.arange(4))

    def value(images: Tensor) -> Tensor:
        other = Synth(images, synth.labels, synth.of_class)
        return torch.stack(list(method.loss(ctx, other, 0))).sum()

    value(synth.images).backward()
    gen = torch.Generator().manual_seed(1)
    direction = torch.randn(synth.images.shape, generator=gen, dtype=torch.float64)
    h = 1e-6
    up, down = (
        value((synth.images.detach() + s * h * direction).requires_grad_()).detach()
        for s in (1, -1)
    )
    slope = (synth.images.grad * direction).sum()
    assert float(slope) == pytest.approx(float((up - down) / (2 * h)), rel=1e-5)


def test_a_row_of_almost_nothing_has_a_finite_gradient() -> None:
    made = {"w": torch.full((3, 4), 1e-12, requires_grad=True)}
    real = {"w": torch.ones(3, 4)}
    DISTANCES["layerwise"](made, real).backward()
    assert made["w"].grad.isfinite().all()


def test_invariants_of_the_distance() -> None:
    gen = torch.Generator().manual_seed(0)
    g = {"conv": torch.randn(5, 2, 3, 3, generator=gen), "bias": torch.randn(5, generator=gen)}
    opposite = {k: -v for k, v in g.items()}
    other = {k: torch.randn(v.shape, generator=gen) for k, v in g.items()}
    layerwise, mse, cos = (DISTANCES[n] for n in ("layerwise", "mse", "cos"))
    assert float(layerwise(opposite, g)) == pytest.approx(10, abs=1e-4)  # 2 a row
    assert float(layerwise(other, g)) == pytest.approx(float(layerwise(g, other)))
    assert layerwise({**g, "bias": other["bias"]}, other) == layerwise(g, other)
    zero = {**g, "conv": torch.zeros_like(g["conv"])}
    assert float(layerwise(zero, g)) == 5
    assert float(mse(g, g)) == 0
    assert float(cos(g, g)) == pytest.approx(0, abs=1e-6)
    assert float(cos(opposite, g)) == pytest.approx(2, abs=1e-6)
    small = {k: 1e-3 * v for k, v in g.items()}
    assert float(layerwise(small, small)) > float(layerwise(g, g)), "1e-6 is added to the norms"


@pytest.mark.parametrize(
    ("arch", "rows"),
    [
        ("convnet3", 394),
        ("mlp", 266),
        ("lenet", 236),
        ("alexnet", 970),
        ("vgg11", 2762),
        ("resnet18", 4810),
        ("convnet3-ln", 1162),
    ],
)
def test_rows_that_count(arch: str, rows: int) -> None:
    """Spec 3.2: opposite gradients cost two a row."""
    net = resolve(arch).build(10, 3, 32)
    ones = {n: torch.ones_like(p) for n, p in net.named_parameters()}
    value = DISTANCES["layerwise"]({n: -v for n, v in ones.items()}, ones)
    assert float(value) / 2 == pytest.approx(rows, rel=1e-6)


@pytest.mark.parametrize("way", ["intended", "released"])
def test_batchnorm_takes_its_statistics_from_sixteen_real_images_a_class(
    bench: Benchmark, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a class's gradient does not depend on its own statistics: no update while matching."""
    ctx = context(bench, "convnet1-w4-bn")
    method = GradientMatching(batch_real=8, matches=2, net_epochs=1, batchnorm=way)
    synth = method.start(ctx, torch.arange(4))
    list(method.loss(ctx, synth, 0))
    batch = torch.cat([ctx.real(c, 16, "norm", 0, c) for c in (0, 1)])
    net = ctx.networks.build(ctx.seed, "distil", ctx.chunk, "net", 0, 0)
    outputs = net.features[0](batch)
    mean, var = outputs.mean((0, 2, 3)), outputs.var((0, 2, 3))
    share = 1.0 if way == "intended" else 0.1
    held = {k.rpartition(".")[2]: v for k, v in synth.memory.items() if "running" in k}
    torch.testing.assert_close(held["running_mean"], share * mean.detach())
    torch.testing.assert_close(held["running_var"], (share * var + 1 - share).detach())


@pytest.mark.parametrize(
    ("given", "arch", "ipc", "said"),
    [
        (
            {"net_epochs": 5},
            "convnet1-w4",
            1,
            "method.net_epochs: at ipc 1 and 100 steps a network",
        ),
        (
            {"net_lr": 0.1},
            "convnet1-w4",
            1,
            "method.net_lr: .* matches once and is never trained",
        ),
        ({"matches": 1, "net_batch": 8}, "convnet1-w4", 10, "method.net_batch: .*matches once"),
        ({"batchnorm": "released"}, "convnet1-w4", 10, "batchnorm: convnet1-w4 has no BatchNorm"),
        ({"matches": 2, "net_epochs": 5, "net_lr": 0.1}, "convnet1-w4", 1, ""),
        ({"net_epochs": 5}, "convnet1-w4", 10, ""),
        ({"batchnorm": "released"}, "convnet1-w4-bn", 1, ""),
    ],
)
def test_what_nothing_would_read_is_refused(
    bench: Benchmark, given: dict[str, object], arch: str, ipc: int, said: str
) -> None:
    method, nets = GradientMatching(**given), context(bench, arch).networks
    if not said:
        method.refuse_unread(ipc, lambda _: nets, 100)
        return
    with pytest.raises(StillroomError, match=said):
        method.refuse_unread(ipc, lambda _: nets, 100)


def test_too_few_steps_and_one_class_are_refused(bench: Benchmark) -> None:
    nets, method = context(bench).networks, GradientMatching(matches=10, net_lr=0.1)
    method.refuse_unread(1, lambda _: nets, 2)
    with pytest.raises(StillroomError, match="at ipc 1 and 1 steps a network matches once"):
        method.refuse_unread(1, lambda _: nets, 1)
    alone = Nets(nets.arch, 1, 3, 8, nets.rt)
    with pytest.raises(StillroomError, match="nothing of one class alone"):
        GradientMatching().refuse_unread(1, lambda _: alone, 5)


def test_a_frozen_batchnorm_is_that_of_evaluation(bench: Benchmark) -> None:
    ctx = context(bench, "convnet1-w4-bn")
    nets = ctx.nets(1, "net", 0)
    x = ctx.real(0, 8, 0)
    nets.freeze_norms(ctx.real(1, 16, 1), None)
    before = {k: v.clone() for k, v in nets.member(0)[1].items()}
    frozen = nets.logits(x, train=True)
    torch.testing.assert_close(frozen, nets.logits(x, train=False))
    nets.grads(x, torch.zeros(8, dtype=torch.int64))
    assert all(torch.equal(v, before[k]) for k, v in nets.member(0)[1].items())
    other = ctx.nets(1, "net", 0)  # shares the skeleton, not the mode
    assert not torch.allclose(other.logits(x, train=True), frozen)
