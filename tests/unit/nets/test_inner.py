"""Engines of an inner loop: the same gradient by three ways, and what each of them holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from stillroom.data.augment import apply, draw, parse
from stillroom.errors import StillroomError
from stillroom.methods.trajectory_distance import apart, counted
from stillroom.nets.ensemble import Nets
from stillroom.nets.inner import PIECE, Inner, _loss, flat, in_pieces, through, unrolled
from stillroom.nets.losses import hard_ce, logit_ce
from stillroom.nets.zoo import resolve
from stillroom.rng import rng
from stillroom.runtime import Runtime, can_compile

CPU = torch.device("cpu")
STRATEGY = parse("dsa:color_crop_cutout_flip_scale_rotate")


class Problem:
    """12 images of three classes, soft labels, a rate, everything learned; DSA by key."""

    def __init__(
        self,
        steps: int,
        numerics: str = "float64",
        compile: bool = False,
        arch: str = "convnet2-w4",
    ) -> None:
        rt = Runtime(CPU, numerics, compile)
        self.nets = Nets(resolve(arch), 3, 3, 8, rt).make(1, 0, "student")
        draws = rng(0, "problem")
        shape = (12, 3, 8, 8)
        double = {"generator": draws, "dtype": torch.float64}  # the same numbers in float32
        self.images = torch.randn(shape, **double).to(rt.dtype).requires_grad_()
        self.labels = torch.randn((12, 3), **double).to(rt.dtype).requires_grad_()
        self.rate = torch.tensor(0.1, dtype=rt.dtype, requires_grad=True)
        self.start = flat(self.nets.member(0)[0])
        move = torch.randn(self.start.shape, **double).to(rt.dtype)
        self.target = self.start + 0.05 * move
        rows = [torch.randperm(12, generator=rng(0, "rows", t))[:5] for t in range(steps)]

        def shown(t: int) -> tuple[Tensor, Tensor]:
            drawn = draw(STRATEGY, 5, 8, rng(0, "augment", t))
            return apply(self.images[rows[t]], drawn), self.labels[rows[t]]

        self.inner = Inner(self.nets, self.start, steps, shown, self.rate, logit_ce)

    def distance(self, end: Tensor) -> Tensor:
        return apart(end, self.start, self.target, counted(end, self.target, 0.25, "easy"))

    def slopes(self, engine: str, theta: str = "device") -> tuple[Tensor, ...]:
        learned = [self.images, self.labels]
        value = through(self.inner, self.distance, learned, engine, theta)
        found = torch.autograd.grad(value, [*learned, self.rate])
        return (value.detach(), *found)


@pytest.mark.parametrize("theta", ["device", "host", "recompute"])
@pytest.mark.parametrize("steps", [1, 5])
def test_exact_is_the_unrolled_gradient(steps: int, theta: str) -> None:
    """To 1e-10 in float64, with augmentation, soft labels, a learned rate and a mask."""
    exact, plain = (Problem(steps).slopes(e, theta) for e in ("exact", "unrolled"))
    for mine, theirs in zip(exact, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_exact_in_float32() -> None:
    exact = Problem(5, "float32").slopes("exact")
    plain = Problem(5).slopes("unrolled")
    for mine, theirs in zip(exact, plain, strict=True):
        scale = float(theirs.abs().max())
        assert float((mine.double() - theirs).abs().max()) < 1e-3 * scale


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(CPU), reason="torch.compile needs a C++ compiler")
def test_compiled_is_eager() -> None:
    compiled = Problem(3, compile=True).slopes("exact")
    for mine, theirs in zip(compiled, Problem(3).slopes("exact"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)


def test_tesla_is_exact_of_one_step_and_of_no_more() -> None:
    """Beyond one it is the gradient of a loop whose parameters are constants at every step."""
    for mine, theirs in zip(Problem(1).slopes("tesla"), Problem(1).slopes("exact"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
    problem = Problem(5)
    found = problem.slopes("tesla")
    end = problem.start
    now = problem.start
    for t in range(5):  # the unroll with every step's parameters detached
        images, labels = problem.inner.shown(t)
        one = replace(problem.inner, start=now, steps=1, shown=lambda _, b=(images, labels): b)
        moved = unrolled(one) - now
        end = end + moved
        now = (now + moved).detach()
    plain = torch.autograd.grad(
        problem.distance(end), [problem.images, problem.labels, problem.rate]
    )
    for mine, theirs in zip(found[1:], plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
    exact = Problem(5).slopes("exact")
    error = (found[1] - exact[1]).norm() / exact[1].norm()
    assert error > 0.01


def test_finite_differences() -> None:
    problem = Problem(3)
    found = problem.slopes("exact")

    def value() -> float:
        return float(problem.distance(unrolled(problem.inner)).detach())

    step = 1e-6
    for tensor, slope in zip(
        (problem.images, problem.labels, problem.rate), found[1:], strict=True
    ):
        flat_of = tensor.data.view(-1)
        at = int(slope.abs().view(-1).argmax())
        old = float(flat_of[at])
        ends = []
        for sign in (1, -1):
            flat_of[at] = old + sign * step
            ends.append(value())
        flat_of[at] = old
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(
            float(slope.view(-1)[at]), rel=1e-4
        )


def peak(work: Callable[[], object]) -> int:
    """The most bytes of tensors that are alive at once, beside those that were before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most


def test_activations_of_one_step() -> None:
    """`exact` holds the parameters of every step and no more; `unrolled` all activations."""
    few, many = Problem(4), Problem(20)
    parameters = few.start.numel() * few.start.element_size()
    exact = [peak(lambda p=p: p.slopes("exact")) for p in (few, many)]
    plain = [peak(lambda p=p: p.slopes("unrolled")) for p in (few, many)]
    again = peak(lambda: many.slopes("exact", "recompute"))
    assert plain[1] > 4 * plain[0]
    assert exact[1] - exact[0] < 1.1 * (20 - 4) * parameters + 4096
    assert again < exact[1] - 8 * parameters
    assert 4 * exact[1] < plain[1]


def test_hard_labels_have_no_slope() -> None:
    problem = Problem(3)
    classes = torch.arange(12) % 3
    old = problem.inner.shown
    inner = replace(problem.inner, shown=lambda t: (old(t)[0], classes[:5]), loss=hard_ce)
    for engine in ("exact", "unrolled"):
        value = through(inner, problem.distance, [problem.images], engine)
        (slope,) = torch.autograd.grad(value, [problem.images])
        assert float(slope.abs().max()) > 0
        if engine == "exact":
            exact = slope
    torch.testing.assert_close(exact, slope, rtol=1e-10, atol=1e-14)


def test_batchnorm_takes_the_statistics_of_its_batch() -> None:
    problem = Problem(3, arch="convnet2-w4-bn")
    before = {n: b.clone() for n, b in problem.nets.member(0)[1].items()}
    exact = problem.slopes("exact")
    for mine, theirs in zip(exact, problem.slopes("unrolled"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)
    for name, value in problem.nets.member(0)[1].items():
        assert torch.equal(value, before[name])


def test_dropout_is_refused() -> None:
    rt = Runtime(CPU)
    nets = Nets(resolve("alexnet"), 3, 3, 32, rt).make(1, 0, "student")
    if not any(isinstance(m, torch.nn.Dropout) for m in nets.nets.skeleton.modules()):
        nets.nets.skeleton.add_module("drop", torch.nn.Dropout(0.5))
    problem = Problem(1)
    inner = replace(problem.inner, nets=nets)
    with pytest.raises(StillroomError, match="has dropout"):
        through(inner, problem.distance, [problem.images])


@pytest.mark.parametrize("drop", ["easy", "shallow"])
def test_what_counts(drop: str) -> None:
    """At a share of 0 everything does, to the bit; a student that did not move is at 1."""
    draws = rng(0, "vectors")
    start, target, end = torch.randn((3, 53), generator=draws, dtype=torch.float64)
    assert counted(end, target, 0.0, drop) is None
    mask = counted(end, target, 0.3, drop)
    assert mask is not None
    assert int(mask.sum()) == 53 - 15
    errors = (end - target).square()
    if drop == "easy":
        assert float(errors[mask].min()) >= float(errors[~mask].max())
    else:
        assert not mask[:15].any()
    assert float(apart(start, start, target, mask)) == 1
    assert float(apart(target, start, target, mask)) == 0
    scaled = apart(3 * end, 3 * start, 3 * target, mask)
    torch.testing.assert_close(scaled, apart(end, start, target, mask))


@pytest.mark.parametrize("soft", [False, True])
def test_a_pull_in_pieces_is_that_of_the_batch(soft: bool) -> None:
    """Of more images than a piece, and a ragged rest: value, and slopes in all it depends on."""
    count = 2 * PIECE + 5
    rt = Runtime(torch.device("cpu"), "float64", threads=1)
    nets = Nets(resolve("convnet2-w4"), 3, 3, 8, rt).make(1, 0, "student")
    plain = _loss(Inner(nets, flat(nets.member(0)[0]), 1, lambda t: (None, None), torch.tensor(0.1),
                        logit_ce if soft else hard_ce))  # fmt: skip

    def dot(p, x, y, b, by):
        return torch.dot(by, torch.func.grad(plain)(p, b, x, y))

    pull = torch.func.grad_and_value(dot, argnums=(0, 1, 2) if soft else (0, 1))
    x = torch.randn((count, 3, 8, 8), generator=rng(0, "x"), dtype=torch.float64)
    y = torch.arange(count) % 3
    if soft:
        y = torch.randn((count, 3), generator=rng(0, "y"), dtype=torch.float64)
    now = flat(nets.member(0)[0]).detach()
    by = torch.randn(now.shape, generator=rng(0, "by"), dtype=torch.float64)
    given = (now, x, y, nets.member(0)[1], by)
    whole, parts = pull(*given), in_pieces(pull, *given)
    assert len(whole[0]) == len(parts[0]) == 2 + soft
    for one, other in zip((whole[1], *whole[0]), (parts[1], *parts[0]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
