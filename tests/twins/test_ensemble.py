"""Fast paths against their plain twins: the same numbers, by another road."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from stillroom.data.augment import parse
from stillroom.methods.context import RunContext
from stillroom.methods.distribution_matching import DistributionMatching, class_means
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.inner import Inner, flat, unrolled, views
from stillroom.nets.losses import hard_ce, loss_of
from stillroom.nets.train import Images, Training, predict, rate, train
from stillroom.nets.zoo import resolve
from stillroom.rng import rng
from stillroom.runtime import Runtime, can_compile

CPU = torch.device("cpu")


def nets_of(arch: str = "convnet1-w8", backend: str = "loop", **settings) -> Nets:
    rt = Runtime(device=CPU, **{"numerics": "float64", **settings})
    return Nets(resolve(arch), 2, 3, 8, rt, backend)


def images(n: int = 12, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=rng(0, "x"), dtype=dtype)


def squared(a, b):
    return torch.stack([(a[n] - b[n]).square().sum() for n in a]).sum()


def cosine(a, b):
    rows = []
    for name in a:
        if a[name].ndim > 1:
            x, y = a[name].flatten(1), b[name].flatten(1)
            rows.append((1 - (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-6)).sum())
    return torch.stack(rows).sum()


@pytest.mark.parametrize("arch", ["convnet1-w8", "convnet1-w8-bn", "mlp"])
@pytest.mark.parametrize("own", [False, True])
def test_vmap_equals_loop(arch, own):
    x = images()
    x = torch.stack([x, x.flip(0), 2 * x]) if own else x
    loop, stacked = (nets_of(arch, b).make(3, 7, "net") for b in ("loop", "vmap"))
    assert not loop.stacked
    assert stacked.stacked
    for what in ("features", "logits"):
        for mode in (True, False):
            ours = getattr(stacked, what)(x, train=mode)
            theirs = getattr(loop, what)(x, train=mode)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    for i in range(3):
        for ours, theirs in zip(stacked.member(i), loop.member(i), strict=True):
            for name in theirs:  # BatchNorm's running statistics moved alike
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-13)


def test_members_do_not_depend_on_how_many_there_are():
    nets = nets_of()
    one, three = nets.make(1, 5, "n"), nets.make(3, 5, "n")
    for name, value in one.member(0)[0].items():
        assert torch.equal(value, three.member(0)[0][name])
        assert value.ndim == 1 or not torch.equal(value, three.member(1)[0][name])


def test_pieces_equal_one_forward(monkeypatch):
    """Forwards without a graph run in padded pieces: the padding must not show."""
    nets = nets_of()
    ensemble = nets.make(2, 0, "n")
    x = images(13)
    with torch.no_grad():
        whole = ensemble.features(x)
        monkeypatch.setattr(Nets, "piece", lambda self: 4)
        pieces = ensemble.features(x)
    assert pieces.shape == whole.shape
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-13)


def test_batchnorm_batches_are_never_cut(monkeypatch):
    nets = nets_of("convnet1-w8-bn")
    x = images(13)
    with torch.no_grad():
        whole = nets.make(1, 0, "n").features(x, train=True)
        monkeypatch.setattr(Nets, "piece", lambda self: 4)
        again = nets.make(1, 0, "n").features(x, train=True)
    assert torch.equal(whole, again)


def test_grads_and_match_equal_autograd_by_hand():
    """The `match` door against double backward through a plain module."""
    nets = nets_of()
    ensemble = nets.make(2, 3, "n")
    x = images(6).requires_grad_()
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    targets = ensemble.grads(images(8), torch.arange(8) % 2)
    value = ensemble.match(x, y, targets, cosine)
    value.backward()

    by_hand, total = [], 0.0
    z = x.detach().clone().requires_grad_()
    for i in range(2):
        net = nets.build(3, "n", i)
        names = [n for n, _ in net.named_parameters()]
        slopes = torch.autograd.grad(
            F.cross_entropy(net(z), y), list(net.parameters()), create_graph=True
        )
        by_hand.append(cosine(dict(zip(names, slopes, strict=True)), targets[i]))
        real = torch.autograd.grad(
            F.cross_entropy(net(images(8)), torch.arange(8) % 2), list(net.parameters())
        )
        for name, g in zip(names, real, strict=True):
            torch.testing.assert_close(targets[i][name], g, rtol=1e-10, atol=1e-14)
    total = torch.stack(by_hand).mean()
    total.backward()
    torch.testing.assert_close(value, total.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-9, atol=1e-14)


def test_unroll_equals_sgd_and_finite_differences():
    nets = nets_of()
    ensemble = nets.make(1, 3, "n")
    x, y = images(4), torch.tensor([0, 1, 0, 1])
    rate_tensor = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    own = ensemble.member(0)[0]

    def end(rate: torch.Tensor) -> dict[str, torch.Tensor]:
        problem = Inner(ensemble, flat(own), 2, lambda t: (x, y), rate, hard_ce)
        return views(unrolled(problem), own)

    final = end(rate_tensor)
    net = nets.build(3, "n", 0)
    plain = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        plain.zero_grad()
        F.cross_entropy(net(x), y).backward()
        plain.step()
    for name, value in net.named_parameters():
        torch.testing.assert_close(final[name], value, rtol=1e-10, atol=1e-13)

    def loss(lr: float) -> torch.Tensor:
        params = end(torch.tensor(lr, dtype=torch.float64))
        return torch.stack([p.square().sum() for p in params.values()]).sum()

    torch.stack([p.square().sum() for p in final.values()]).sum().backward()
    slope = (loss(0.1 + 1e-6) - loss(0.1 - 1e-6)) / 2e-6
    torch.testing.assert_close(rate_tensor.grad, slope.detach(), rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(CPU), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("numerics", ["float32", "float64"])
def test_compiled_equals_eager(numerics):
    tolerance = {"float32": 2e-5, "float64": 1e-10}[numerics]
    eager, compiled = (nets_of(numerics=numerics, compile=c) for c in (False, True))
    dtype = eager.rt.dtype
    y = torch.arange(6) % 2
    results = []
    for nets in (eager, compiled):
        ensemble = nets.make(1, 3, "n")
        x = images(6, dtype).requires_grad_()
        features = ensemble.features(x, train=True)
        features.square().sum().backward()
        first, x.grad = x.grad.clone(), None
        targets = ensemble.grads(images(8, dtype), torch.arange(8) % 2)
        value = ensemble.match(x, y, targets, squared)
        value.backward()
        results.append((features.detach(), first, value.detach(), x.grad))
    for ours, theirs in zip(*results, strict=True):
        gap = float((ours - theirs).abs().max() / theirs.abs().max())
        assert gap < tolerance


def test_grouped_classes_equal_class_by_class(bench, monkeypatch):
    """DM with all classes in one forward against one forward a class: loss and gradient."""
    rt = Runtime(device=CPU, numerics="float64")
    results = []
    for groups in ([[0, 1]], [[0], [1]]):
        ctx = RunContext(bench, 2, 0, rt, Nets(resolve("convnet1-w8"), 2, 3, 8, rt))
        monkeypatch.setattr(ctx, "groups", lambda n, g=groups: g, raising=False)
        method = DistributionMatching(batch_real=8)
        synth = method.start(ctx, torch.arange(4))
        terms = list(method.loss(ctx, synth, 5))
        assert len(terms) == len(groups)
        loss = torch.stack(terms).sum()
        loss.backward()
        results.append((loss.detach(), synth.images.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-11, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)


def test_class_means_of_unequal_groups():
    features = torch.randn(2, 7, 3, dtype=torch.float64)
    unequal = class_means(features, [3, 4])
    by_hand = torch.stack([features[:, :3].mean(1), features[:, 3:].mean(1)], 1)
    torch.testing.assert_close(unequal, by_hand)
    equal = class_means(features[:, :6], [3, 3])
    torch.testing.assert_close(equal[:, 1], features[:, 3:6].mean(1))


# -- the trainer ---------------------------------------------------------------------------------

TRAINING = Training(
    epochs=6,
    batch=5,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    augment=parse("crop_flip"),
)


def data_of(dtype=torch.float64) -> Images:
    x, y = images(12, dtype), torch.arange(12) % 2
    return Images(lambda rows: x[rows], y, 8)


@pytest.mark.parametrize("arch", ["convnet1-w8", "convnet1-w8-bn"])
def test_students_together_equal_students_in_turn(arch):
    together = nets_of(arch, "vmap").seeded([0, 1, 2], "student")
    train(together, data_of(), TRAINING, [0, 1, 2])
    for i in range(3):
        alone = nets_of(arch).seeded([i], "student")
        train(alone, data_of(), TRAINING, [i])
        for name, value in alone.member(0)[0].items():
            torch.testing.assert_close(together.member(i)[0][name], value, rtol=1e-9, atol=1e-12)
        assert torch.equal(predict(together, data_of())[i], predict(alone, data_of())[0])


class Dropping(torch.nn.Sequential):
    """A user's network with dropout and batch norm."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            torch.nn.Flatten(),
            torch.nn.Linear(3 * 64, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(16, classes),
        )


@pytest.mark.parametrize("arch", ["convnet1-w8", "convnet1-w8-bn", Dropping])
@pytest.mark.parametrize("numerics", ["float32", "bf16"])
def test_students_in_turn_are_bit_for_bit_those_alone(arch, numerics):
    """Dropout too: a student's draws are those of its seed, whoever is trained beside it."""
    nets = nets_of(arch, numerics=numerics)
    data = data_of(torch.float32)
    together = nets.seeded([0, 1, 2], "student")
    train(together, data, TRAINING, [0, 1, 2])
    for i in range(3):
        alone = nets.seeded([i], "student")
        train(alone, data, TRAINING, [i])
        for ours, theirs in zip(together.member(i), alone.member(0), strict=True):
            for name, value in theirs.items():
                assert torch.equal(ours[name], value), name


def test_trainer_equals_a_naive_loop():
    """Written out with a module, torch.optim.SGD and plain indexing; only the draws are shared."""
    from stillroom.data.augment import apply, draw

    nets = nets_of()
    ensemble: Ensemble = nets.seeded([4], "student")
    train(ensemble, data_of(), TRAINING, [4])
    net = copy.deepcopy(nets.build(4, "student"))
    x, y = images(12), torch.arange(12) % 2
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(6):
        for group in sgd.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * epoch / 6)) / 2
        order = torch.randperm(12, generator=rng(4, "shuffle", epoch))
        for step in range(3):
            rows = order[5 * step : 5 * step + 5]
            drawn = draw(TRAINING.augment, len(rows), 8, rng(4, "augment", epoch, step))
            sgd.zero_grad()
            F.cross_entropy(net(apply(x[rows], drawn)), y[rows]).backward()
            sgd.step()
    for name, value in net.named_parameters():
        torch.testing.assert_close(ensemble.member(0)[0][name], value, rtol=1e-10, atol=1e-13)


def test_rates():
    from dataclasses import replace

    assert rate(TRAINING, 0) == 0.05
    assert rate(TRAINING, 3) == pytest.approx(0.025)
    drop = replace(TRAINING, schedule="drop", epochs=1000, one_extra_epoch=True)
    assert drop.passes == 1001
    assert [rate(drop, e) for e in (0, 501, 502, 1000)] == pytest.approx([0.05] * 2 + [0.005] * 2)
    assert rate(replace(TRAINING, schedule="constant"), 5) == 0.05


def test_losses_of_every_label_kind_agree_on_one_hot():
    logits = torch.randn(4, 3, dtype=torch.float64)
    hard = torch.tensor([0, 2, 1, 1])
    one_hot = F.one_hot(hard, 3).double()
    expected = -logits.log_softmax(1)[range(4), hard].mean()
    torch.testing.assert_close(loss_of(logits, hard, "hard"), expected)
    torch.testing.assert_close(loss_of(logits, one_hot, "probs"), expected)
    torch.testing.assert_close(loss_of(logits, 40 * one_hot, "logits"), expected)
