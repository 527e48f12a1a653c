"""A compiled recover step is the eager one, and is compiled where that repays itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain_all
from stillroom.data.benchmarks import Benchmark
from stillroom.methods.base import Synth
from stillroom.methods.context import RunContext
from stillroom.methods.observers import observer
from stillroom.methods.statistics_matching import StatisticsMatching
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.runtime import COMPILE_FLOPS, Runtime

ARCH = "convnet2-w4-bn"
EAGER = Runtime(device=torch.device("cpu"), threads=1)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Graphs that reach the compiler; forward and backward are traced apart, as for the real one.

    Without code in C++, so that it takes a second.
    """
    import torch._dynamo
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import nop

    found: list[object] = []

    def counted(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        found.append(graph)
        return nop(graph, inputs)  # type: ignore[no-any-return]

    backend = aot_autograd(fw_compiler=counted, bw_compiler=nop)
    whole = functools.partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def context(made: StatisticsMatching, bench: Benchmark, store: Path, rt: Runtime) -> RunContext:
    stages = made.stages(bench.describe(), resolve(ARCH), store)
    found = obtain_all(Store(store), list(stages.values()), Serial(), EAGER)
    nets = Nets(resolve(ARCH), len(bench.classes), bench.channels, bench.size, rt)
    artefacts = dict(zip(stages, found, strict=True))
    return RunContext(bench, 3, 0, rt, nets, artefacts=artefacts, steps=4)


def method(**given: Any) -> StatisticsMatching:
    schooling = Schooling(epochs=1, batch=8)
    return StatisticsMatching(observers=(ARCH,), schooling=schooling, **given)


def steps(made: StatisticsMatching, ctx: RunContext, count: int) -> list[torch.Tensor]:
    """Loss and gradient of some steps on images that stay."""
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    state = Synth(images.requires_grad_(), torch.arange(6) // 3, torch.arange(6) // 3)
    found = []
    for it in range(count):
        (term,) = made.loss(ctx, state, it)
        (slope,) = torch.autograd.grad(term, state.images)
        found += [term.detach(), slope]
    return found


@pytest.mark.slow
def test_compiled_is_eager(bench: Benchmark, store: Path, graphs: list[object]) -> None:
    """One graph for all steps, whichever convolutions are drawn out; values and gradients."""
    made = method(conv_drop=0.5, flat={"weight": 0.25})
    rt = Runtime(device=torch.device("cpu"), threads=1, compile=True)
    eager = steps(made, context(made, bench, store, EAGER), 4)
    assert graphs == []
    ctx = context(made, bench, store, rt)
    with rt.activate():
        compiled = steps(made, ctx, 4)
    assert len(graphs) == 2, "the step, and the logits of the average"
    for mine, theirs in zip(compiled, eager, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_class_by_class_stays_eager(bench: Benchmark, store: Path, graphs: list[object]) -> None:
    """Which images are of a class is another shape in every chunk."""
    made = method(targets="each")
    rt = Runtime(device=torch.device("cpu"), threads=1, compile=True)
    with rt.activate():
        steps(made, context(made, bench, store, rt), 2)
    assert graphs == []


def test_it_is_compiled_where_that_pays(bench: Benchmark, store: Path) -> None:
    """By what one observer alone is shown in the whole run, for every function that is compiled."""
    rt = Runtime(device=torch.device("cpu"), threads=1, by_size=True)
    made = method()
    ctx = context(made, bench, store, rt)
    forward = Nets(resolve(ARCH), 2, 3, 8, EAGER).forward_flops()
    images = 3 * 2 * 3  # forward and backward of three images of each of two classes
    enough = int(COMPILE_FLOPS / (images * forward)) + 1

    def compiled(steps: int, made: StatisticsMatching = made, names: int = 1) -> bool:
        one = context(made, bench, store, rt)
        one.steps = steps
        one.artefacts = {f"observer/{k}": ctx.artefacts["observer/0"] for k in range(names)}
        return observer(one, 0, "all", *made._work(one)).nets.nets.rt.compile

    assert compiled(enough)
    assert not compiled(enough - 2)
    assert not compiled(enough, names=2), "two in turn: each is shown half of it"
    assert compiled(2 * enough, names=2)
    odd = method(batch=4)
    assert not compiled(enough, odd), "chunks of four and of two: two functions"
    assert compiled(2 * enough, odd)
    flat = method(flat={"weight": 0.25})
    assert not compiled(int(1.4 * enough), flat), "and the logits of the average"
    assert compiled(int(1.6 * enough), flat)
    asked = Runtime(device=torch.device("cpu"), threads=1, compile=True)
    assert observer(context(made, bench, store, asked), 0, "all", 1.0).nets.nets.rt.compile
