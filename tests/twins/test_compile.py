"""Compiled code: every network of a command gets its own, however many there are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from stillroom.errors import StillroomError
from stillroom.methods.gradient_distance import DISTANCES
from stillroom.nets.ensemble import Nets, Params
from stillroom.nets.zoo import resolve
from stillroom.rng import rng
from stillroom.runtime import MOST_COMPILATIONS, Runtime

NETWORKS = 10  # more than torch compiles of one piece of code unless told otherwise: 8
RT = Runtime(device=torch.device("cpu"), compile=True)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What reached the compiler's back end, which here only counts: all of it runs as traced."""
    import torch._dynamo

    found: list[object] = []

    def counted(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
    torch._dynamo.reset()  # torch counts by code, which other tests have compiled before
    yield found
    torch._dynamo.reset()


def limits() -> list[int]:
    import torch._dynamo

    config = torch._dynamo.config
    names = ("recompile_limit", "cache_size_limit")
    return [getattr(config, name) for name in names if hasattr(config, name)]


def forwards_of_many_networks() -> None:
    x = torch.randn(4, 3, 8, 8, generator=rng(0, "x"))
    for width in range(1, NETWORKS + 1):
        nets = Nets(resolve(f"convnet1-w{width}"), 2, 3, 8, RT)
        with torch.no_grad():
            nets.make(1, 0, "n").logits(x, train=True)


@pytest.mark.slow
def test_every_network_of_a_command_is_compiled(graphs: list[object]) -> None:
    before = limits()
    with RT.activate():
        assert set(limits()) == {MOST_COMPILATIONS}
        forwards_of_many_networks()
    assert len(graphs) == NETWORKS
    assert limits() == before


@pytest.mark.slow
def test_torch_by_itself_would_give_up(graphs: list[object]) -> None:
    """What `activate` is for: eight networks compiled, and the others not, without an error."""
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch({name: 8}):
        forwards_of_many_networks()
    assert len(graphs) == 8


def test_the_limit_stays_where_nothing_is_compiled() -> None:
    before = limits()
    with Runtime(device=torch.device("cpu")).activate():
        assert limits() == before


@pytest.mark.slow
def test_students_together_do_not_end_compilation_in_turn(graphs: list[object]) -> None:
    """A compiled function that vmap calls would make dynamo skip its code from then on."""
    x = torch.randn(4, 3, 8, 8, generator=rng(0, "x"))
    with RT.activate(), torch.no_grad():
        for backend, compiled in (("vmap", 0), ("loop", 1)):
            nets = Nets(resolve("convnet1-w8"), 2, 3, 8, RT, backend)
            nets.make(2, 0, "n").logits(x)
            assert len(graphs) == compiled


@pytest.mark.parametrize("broken", [False, True])
def test_the_first_gradient_of_a_gradient_is_compared_with_plain_code(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that loses the graph is found in the first step, and asked once only."""

    def compiled(made: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found = made(*args)
            if not isinstance(found, tuple):
                return found
            slope, value = found
            return (torch.zeros_like(slope) if broken else slope * (1 + 1e-3)), value

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    asked: list[int] = []
    distance = DISTANCES["layerwise"]

    def counted(mine: Params, theirs: Params) -> torch.Tensor:
        asked.append(1)
        return distance(mine, theirs)

    nets = Nets(resolve("convnet1-w4"), 2, 3, 8, RT).make(1, 0, "n")
    x = torch.randn(4, 3, 8, 8, generator=rng(0, "x"))
    y = torch.tensor([0, 1, 0, 1])
    target = nets.grads(x.flip(0), y)
    x.requires_grad_()
    if broken:
        with pytest.raises(
            StillroomError, match=r"another gradient than plain code.*--compile off"
        ):
            nets.match(x, y, target, counted)
        return
    for _ in range(3):
        nets.match(x, y, target, counted)
    assert len(asked) == 5  # thrice as compiled, twice plain


def test_a_network_that_draws_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout has another mask in every call; and the comparison moves no generator."""

    def factory(classes: int) -> torch.nn.Module:
        layers = (torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(192, classes))
        return torch.nn.Sequential(*layers)

    monkeypatch.setattr(torch, "compile", lambda made, **_: made)
    x = torch.randn(4, 3, 8, 8, generator=rng(0, "x")).requires_grad_()
    y = torch.tensor([0, 1, 0, 1])
    after = []
    for compiled in (True, False):
        rt = Runtime(device=torch.device("cpu"), compile=compiled)
        nets = Nets(resolve(factory), 2, 3, 8, rt).make(1, 0, "n")
        torch.manual_seed(0)
        target = nets.grads(x.flip(0), y)
        nets.match(x, y, target, DISTANCES["layerwise"])
        after.append(torch.rand(1))
    assert torch.equal(*after)
