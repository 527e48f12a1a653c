"""`vico-plain@1` beside a straight loop written from its table: same weights, same accuracies."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import Benchmark, DataSpec, load_benchmark
from stillroom.distilled import load
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.score import training_of
from stillroom.nets.ensemble import Nets
from stillroom.nets.train import Images, train
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.rng import rng
from stillroom.run.distil import distil, plan
from stillroom.run.judge import evaluate
from stillroom.run.judging import Asked
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session

ARCH = "convnet1-w16"


def naive(net: nn.Module, x: Tensor, y: Tensor, epochs: int, orders) -> None:
    """The table of the specification, line by line; orders(epoch) shuffles the images."""
    lr = 0.01
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs + 1):
        order = orders(epoch)
        for begin in range(0, len(x), 256):
            rows = order[begin : begin + 256]
            optimiser.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
        if epoch == epochs // 2 + 1:
            lr *= 0.1
            optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def test_same_weights_after_fifty_steps_across_the_drop() -> None:
    protocol = find_protocol("vico-plain@1+epochs=49")
    assert protocol.passes == 50
    rt = Runtime(device=torch.device("cpu"), numerics="float64", threads=1)
    nets = Nets(resolve(ARCH), 3, 1, 8, rt)
    x = torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = torch.arange(12) % 3
    by_hand = nets.build(5, "student")
    naive(by_hand, x, y, 49, lambda epoch: torch.randperm(12, generator=rng(5, "shuffle", epoch)))
    ours = nets.seeded([5], "student")
    training = training_of(protocol, 0.01)
    train(ours, Images(lambda rows: x[rows], y, 8), training, [5])
    for name, value in by_hand.named_parameters():
        torch.testing.assert_close(ours.member(0)[0][name], value, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_same_accuracy_in_distribution(store, tmp_path) -> None:
    """20 students each on one set: ours by the command's own path, the naive ones streamed.

    Measured when written: ours 65.2 %, naive 65.5 %, a difference of 0.5 standard errors.
    """
    bench = load_benchmark(DataSpec("digits"), store)
    machine = Machine(threads=1)
    recipe, _ = from_preset("random", "digits", 1, {})
    out = tmp_path / "set"
    distil(plan(recipe, bench, machine, Session(), store=Store(store), out=out), machine)
    asked = Asked(protocol=find_protocol("vico-plain@1"), archs=[ARCH], seeds=20)
    records = evaluate(out, bench, asked, Store(store), machine, Session())
    ours = torch.tensor([r.value for r in records if r.metric == "accuracy"])
    data = load(out)
    theirs = torch.tensor([one_naive(seed, data.images, data.labels, bench) for seed in range(20)])
    gap = float(ours.mean() - theirs.mean())
    error = math.sqrt(float(ours.var() + theirs.var()) / 20)
    print(f"ours {ours.mean():.4f} naive {theirs.mean():.4f} gap {gap / error:.2f} errors")
    assert len(ours) == 20
    assert abs(gap) < 3 * error
    # The spread is the students' own: a loop that trains the same one 20 times has none.
    assert 0.4 < float(ours.std() / theirs.std()) < 2.5


def one_naive(seed: int, x: Tensor, y: Tensor, bench: Benchmark) -> float:
    torch.manual_seed(1000 + seed)
    net = resolve(ARCH).build(10, 1, 8)
    naive(net, x, y, 300, lambda epoch: torch.randperm(len(x)))
    with torch.no_grad():
        real = bench.preprocess.apply(bench.test.images)
        return float((net(real).argmax(1) == bench.test.labels).double().mean())
