"""Online teachers: they say what a view is, learn nothing, and move nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stillroom.data.augment import apply, draw, parse
from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.losses import Objective, kl, mse_gt
from stillroom.nets.sources import Images
from stillroom.nets.teaching import OnlineTeachers
from stillroom.nets.train import Training, train
from stillroom.nets.zoo import resolve
from stillroom.rng import rng
from stillroom.runtime import Runtime

IMAGES = 12
X = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(IMAGES) % 2
TRAINING = Training(
    epochs=2,
    batch=5,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="smoothing",
    augment=parse("none"),
    zeta=2.0,
    objective=Objective("mse_gt", ce_weight=0.025),
)


def nets_of(arch: str, backend="loop") -> Nets:
    rt = Runtime(device=torch.device("cpu"), numerics="float64")
    return Nets(resolve(arch), 2, 3, 8, rt, backend)


def view(x: Tensor, seed: int, epoch: int, step: int) -> Tensor:
    """Shifts and flips, and every image mixed with another."""
    moved = apply(x, draw(parse("crop_flip"), len(x), 8, rng(seed, "view", epoch, step)))
    other = torch.randperm(len(x), generator=rng(seed, "mix", epoch, step))
    return 0.7 * moved + 0.3 * moved[other]


def taught(*teachers: Ensemble, look: Callable[..., Tensor] = view) -> OnlineTeachers:
    return OnlineTeachers(Images(lambda rows: X[rows], Y, 8), teachers, look)


def everything(nets: Ensemble) -> list[Tensor]:
    parts = [part for i in range(nets.k) for part in nets.member(i)]
    return [value.detach().clone() for part in parts for value in part.values()]


def both(backend="loop") -> tuple[Ensemble, Ensemble]:
    first = nets_of("convnet1-w8-bn").make(1, 5, "teacher")
    second = nets_of("convnet2-w8-bn", backend).make(2, 6, "teacher")
    return first, second


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_the_label_of_a_view_is_the_mean_over_all_networks(backend: str) -> None:
    first, second = both(backend)
    source = taught(first, second)
    for step, batch in enumerate(source.batches(TRAINING, 3, 1)):
        rows = torch.randperm(IMAGES, generator=rng(3, "shuffle", 1))[5 * step : 5 * step + 5]
        seen = view(X[rows], 3, 1, step)
        torch.testing.assert_close(batch.images, seen)
        parts = [first.logits(seen)[0], *second.logits(seen)]
        torch.testing.assert_close(batch.target.labels, sum(parts) / 3)
        assert batch.target.kind == "logits"
        assert torch.equal(batch.target.of_class, Y[rows])  # not that of what is mixed in


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_teachers_learn_nothing_and_keep_their_statistics(backend: str) -> None:
    teachers = both(backend)
    leaves = [leaf for teacher in teachers for leaf in teacher.leaves()]  # even if they could
    before = [value for teacher in teachers for value in everything(teacher)]
    student = nets_of("convnet1-w8-bn").make(1, 0, "student")
    start = everything(student)
    train(student, taught(*teachers), TRAINING, [0])
    after = [value for teacher in teachers for value in everything(teacher)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(leaf.grad is None for leaf in leaves)
    assert not torch.equal(everything(student)[0], start[0])


def test_a_student_of_its_teachers_own_factory_is_taught_in_evaluation_mode() -> None:
    """One module serves both, so its mode changes with every call."""
    nets = nets_of("convnet1-w8-bn")
    teacher, student = nets.make(1, 5, "teacher"), nets.make(1, 0, "student")
    alone = [batch.target.labels for batch in taught(teacher).batches(TRAINING, 0, 0)]
    seen = []

    class Noting(OnlineTeachers):
        def logits(self, x: Tensor) -> Tensor:
            seen.append(super().logits(x))
            return seen[-1]

    train(student, Noting(*_fields(taught(teacher))), TRAINING, [0])
    assert len(seen) == 6
    for ours, theirs in zip(seen, alone, strict=False):
        torch.testing.assert_close(ours, theirs)


def _fields(source: OnlineTeachers) -> tuple[Images, tuple[Ensemble, ...], Callable[..., Tensor]]:
    return source.images, source.teachers, source.view


@pytest.mark.parametrize("loss", ["kl", "mse_gt"])
def test_a_taught_student_equals_a_naive_loop(loss: str) -> None:
    """Written out with modules; only the draws are shared."""
    nets, (first, second) = nets_of("convnet1-w8"), both()
    objective = Objective(loss, temperature=4.0 if loss == "kl" else 1.0, ce_weight=0.1)
    training = replace(TRAINING, objective=objective)
    ours = nets.seeded([2], "student")
    train(ours, taught(first, second), training, [2])
    net = nets.build(2, "student")
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(2):
        for group in sgd.param_groups:
            group["lr"] = (0.05, 0.05 * (1 + 0.5**0.5) / 2)[epoch]  # cos(pi / 4)
        order = torch.randperm(IMAGES, generator=rng(2, "shuffle", epoch))
        for step, rows in enumerate(order.split(5)):
            x = view(X[rows], 2, epoch, step)
            logits = (first.logits(x)[0] + second.logits(x).sum(0)) / 3
            sgd.zero_grad()
            z = net(x)
            (kl(z, logits, 4.0) if loss == "kl" else mse_gt(z, logits, Y[rows], 0.1)).backward()
            sgd.step()
    for name, value in net.named_parameters():
        torch.testing.assert_close(ours.member(0)[0][name], value, rtol=1e-9, atol=1e-12)


def test_an_augmentation_after_the_teachers_is_refused() -> None:
    cropped = replace(TRAINING, augment=parse("crop_flip"))
    with pytest.raises(StillroomError, match=r"^augment=crop_flip would change images after"):
        next(taught(*both()).batches(cropped, 0, 0))
