"""That every part of trajectory matching is read: one step against a loop that is written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from stillroom.artefacts.experts import Trajectory
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.store import Store
from stillroom.data.augment import apply, draw, parse
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import load
from stillroom.methods import areas, trajectory_start
from stillroom.methods.base import Synth
from stillroom.methods.trajectory_matching import LEAST_RATE, TrajectoryMatching
from stillroom.methods.trajectory_student import drawn
from stillroom.nets.inner import views
from stillroom.recipe import from_preset
from stillroom.rng import rng
from stillroom.run.distil import Plan, distil, plan
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session

MACHINE = Machine(threads=1)
LR = 100.0
USUAL: dict[str, Any] = {
    "experts": 3,
    "schooling": {"epochs": 4, "batch": 8, "momentum": 0.0, "schedule": "constant", "lr": 0.05},
    "window": {"last": 1, "epochs": 1},
    "inner": 3,
    "rate": 0.05,
    "init": "real",
    "augment": "none",
}


def planned(bench: Benchmark, store: Path, steps: int, lr: float, **method: Any) -> Plan:
    outer = {"steps": steps, "images": {"lr": lr, "momentum": 0.0}}
    given = {
        "arch": "convnet1-w4",
        "method": {**USUAL, **method},
        "outer": outer,
        "numerics": "float64",
    }
    recipe, _ = from_preset("mtt", "toy", 3, given)
    return plan(recipe, bench, MACHINE, Session(), store=Store(store))


def kept(made: Plan) -> Tensor:
    folder = made.store.folder(made.stage.key()) / "steps" / "1"
    return load(folder).images


def key(*what: str | int) -> torch.Generator:
    return rng(0, "distil", 0, *what)


def by_hand(made: Plan, bench: Benchmark, images: Tensor) -> tuple[Tensor, int, int]:
    """The gradient of a first step in the images; which expert was followed, and from where."""
    method = made.stage.method
    assert isinstance(method, TrajectoryMatching)
    number = int(torch.randperm(method.experts, generator=key("experts", 0))[0])
    stage = made.stage.wants()[f"expert/{number:04d}"]
    expert: Trajectory = stage.load(made.store.folder(stage.key()))
    w = method.window
    bound = w.begin if w.grow else w.last
    first = int(torch.randint(w.first, bound, (), generator=key("window", 0)))
    start, target = (expert.after(e).double() for e in (first, first + w.epochs))
    rt = Runtime(device=torch.device("cpu"), threads=1, numerics="float64")
    nets = nets_for(made.stage.arch, bench, rt).make(1, 0, "any")
    x = images.double().requires_grad_()
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    rows: list[list[int]] = []
    for turn in range(method.inner):
        order = torch.randperm(len(x), generator=key("rows", 0, turn)).tolist()
        rows += [order[i : i + method.batch] for i in range(0, len(x), method.batch)][::-1]
    theta = start.clone().requires_grad_()
    for t in range(method.inner):
        strategy = parse(method.augment)
        seen = apply(x[rows[t]], draw(strategy, len(rows[t]), 8, key("augment", 0, t)))
        out = functional_call(nets.nets.skeleton, dict(views(theta, nets.member(0)[0])), (seen,))
        (step,) = torch.autograd.grad(F.cross_entropy(out, y[rows[t]]), theta, create_graph=True)
        theta = theta - method.rate * step
    errors, whole = (theta - target).square(), (start - target).square()
    count = int(method.parameters.share * len(theta))
    left_out = torch.zeros(len(theta), dtype=torch.bool)
    if method.parameters.drop == "easy":
        left_out[errors.detach().argsort()[:count]] = True
    if method.parameters.drop == "shallow":
        left_out[:count] = True
    value = errors[~left_out].sum() / whole[~left_out].sum()
    return torch.autograd.grad(value, x)[0], number, first


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"engine": "unrolled"},
        {"parameters": {"drop": "easy", "share": 0.4}},
        {"parameters": {"drop": "shallow", "share": 0.4}},
        {"batch": 4, "inner": 5},
        {"augment": "dsa:color_crop_scale_rotate"},
        {"window": {"first": 0, "begin": 1, "last": 4, "grow": 100, "epochs": 1}},
        {"window": {"first": 1, "last": 3, "epochs": 1}},
    ],
)
def test_a_step_is_that_of_the_written_out_loop(
    bench: Benchmark, store: Path, method: dict[str, Any]
) -> None:
    begun, made = (planned(bench, store, 1, lr, **method) for lr in (1e-12, LR))
    for one in (begun, made):
        distil(one, MACHINE)
    images = kept(begun)
    gradient, number, first = by_hand(made, bench, images)
    assert number != 0  # else an expert that is always the first would pass
    scale = gradient.abs().max()
    assert scale > 1e-4
    moved = (kept(made) - images).double() / -LR
    torch.testing.assert_close(moved, gradient, rtol=1e-3, atol=1e-3 * float(scale))
    if "window" in method:
        unbound = int(torch.randint(0, 4, (), generator=key("window", 0)))
        assert (first == 0 != unbound) if "grow" in method["window"] else first >= 1


def test_tesla_leaves_a_part_of_the_gradient_out(bench: Benchmark, store: Path) -> None:
    begun, exact, tesla = (
        planned(bench, store, 1, lr, engine=engine, augment="dsa:color")
        for lr, engine in ((1e-12, "exact"), (LR, "exact"), (LR, "tesla"))
    )
    for one in (begun, exact, tesla):
        distil(one, MACHINE)
    gradient = by_hand(exact, bench, kept(begun))[0]
    moved = [(kept(one) - kept(begun)).double() / -LR for one in (exact, tesla)]
    errors = [float((one - gradient).norm() / gradient.norm()) for one in moved]
    assert errors[0] < 1e-3 < 1e-2 < errors[1] < 1


def test_every_expert_is_followed_before_any_comes_again() -> None:
    class Keyed:
        def rng(self, *what: str | int) -> torch.Generator:
            return key(*what)

    ctx: Any = Keyed()
    some = [drawn(ctx, 5, it) for it in range(15)]
    assert [sorted(some[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert some[:5] != some[5:10]


def test_the_rate_stays_positive() -> None:
    rate = torch.tensor(-0.3)
    unread: Any = None  # the context, at which it does not look
    synth = Synth(torch.zeros(1), torch.zeros(1), torch.zeros(1), rate)
    TrajectoryMatching().project(unread, synth)
    assert float(rate) == pytest.approx(LEAST_RATE)


def test_the_network_looks_where_and_how_it_is_told(
    bench: Benchmark, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    usual = areas.activation_maps

    def watched(nets: Any, layer: str, images: Tensor, of_class: Tensor, cam: Any, k: int) -> Any:
        seen.append((layer, cam))
        return usual(nets, layer, images, of_class, cam, k)

    monkeypatch.setattr(areas, "activation_maps", watched)
    told = {"beta": 1.0, "net": "convnet2-w8", "schooling": {"epochs": 1, "batch": 8}}
    for more in ({"layer": "features.0"}, {"cam": "smooth-grad-cam++"}):
        distil(planned(bench, store, 1, LR, areas={**told, **more}), MACHINE)
    assert seen[0] == ("features.0", "grad-cam")
    assert seen[1][0] != "features.0"
    assert seen[1][1] == "smooth-grad-cam++"


def names(number: int) -> Callable[[Tensor], Tensor]:
    """A labeller that says one class of every image, the surer the higher its number."""

    def logits(images: Tensor) -> Tensor:
        said = F.one_hot(torch.full((len(images),), number), 2)
        return said.to(images.dtype) * (1 + 2 * number)

    return logits


def test_all_experts_are_asked_one_after_another(
    bench: Benchmark, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is asked of what the first got wrong, and only those that are right label."""
    asked: list[int] = []
    usual, both = trajectory_start.known_images, [names(0), names(1)]

    def known(ctx: Any, rows: Tensor, labellers: Any) -> Tensor:
        asked.append(len(labellers))
        ones = usual(ctx, rows[rows // ctx.ipc == 1], both)
        of_class = torch.ones(len(ones), dtype=torch.long)
        labels = trajectory_start.first_labels(ones, of_class, both, known=True)
        assert labels.tolist() == [[0.0, 3.0]] * len(ones)
        return usual(ctx, rows, both)

    monkeypatch.setattr(trajectory_start, "known_images", known)
    made = planned(bench, store, 1, 1e-12, init="known")
    distil(made, MACHINE)
    assert asked == [3]
    assert len(kept(made).unique(dim=0)) == 6
