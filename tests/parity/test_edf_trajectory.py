"""The trajectory loss, its inner loop and its engines against recorded values of EDF, DATM, MTT.

Golden file and tolerances: ../shared/parity/README-edc-edf.md, "edf_trajectory".
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golden import golden, max_abs
from stillroom.methods.trajectory_distance import apart, counted
from stillroom.methods.trajectory_start import agreed_logits
from stillroom.methods.trajectory_student import chunks_of, latest_start
from stillroom.nets.ensemble import Nets
from stillroom.nets.inner import Inner, flat, through, unrolled, views
from stillroom.nets.losses import soft_ce
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime

DATA = golden("edf_trajectory")
RATIOS = {"0": 0, "25": 1, "375": 2}


def soft(logits: Tensor, labels: Tensor) -> Tensor:
    return soft_ce(logits, labels, 1.0)


def hard(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = float(theirs.double().abs().max()) or 1.0
    assert max_abs(ours, theirs) < tolerance * scale


@pytest.fixture(scope="module")
def rt() -> Runtime:
    return Runtime(torch.device("cpu"), "float64")


@pytest.fixture
def nets(rt: Runtime):
    made = Nets(resolve("convnet2-w4"), 3, 3, 8, rt)
    return made.make(1, 0, "parity")


def inner(nets, labels: Tensor, images: Tensor, rate: Tensor, loss) -> Inner:
    index = DATA.take("chunk_index")

    def shown(t: int) -> tuple[Tensor, Tensor]:
        rows = index[t][index[t] >= 0]
        return images[rows], labels[rows]

    steps = int(DATA.take("steps"))
    return Inner(nets, DATA.take("start"), steps, shown, rate, loss)


def learned(*names: str) -> list[Tensor]:
    return [DATA.take(name).clone().requires_grad_() for name in names]


def test_parameters_in_order(nets) -> None:
    params = nets.member(0)[0]
    shapes = [list(v.shape) for v in params.values()]
    theirs = [[n for n in row if n] for row in DATA.take("flat_order_shapes").tolist()]
    assert shapes == theirs
    start = DATA.take("start")
    assert torch.equal(flat(views(start, params)), start)
    for name, value in views(start, params).items():
        params[name].copy_(value)
    logits = nets.logits(DATA.take("images"), train=True)[0]
    close(logits, DATA.take("forward_start"), 1e-12)


@pytest.mark.parametrize("name", RATIOS)
def test_distance_and_what_counts(name: str) -> None:
    end = DATA.take("vec_end").clone().requires_grad_()
    start, target = DATA.take("vec_start"), DATA.take("vec_target")
    share = float(DATA.take("ratios")[RATIOS[name]])
    mask = counted(end, target, share, "easy")
    theirs = DATA.take(f"vec_keep_{name}")
    assert torch.equal(theirs, torch.ones_like(theirs) if mask is None else mask)
    loss = apart(end, start, target, mask)
    close(loss, DATA.take(f"vec_loss_{name}"), 1e-12)
    loss.backward()
    assert end.grad is not None
    close(end.grad, DATA.take(f"vec_grad_end_{name}"), 1e-12)
    if name == "0":
        close(loss, DATA.take("vec_loss_mtt"), 1e-12)


def test_chunks_are_popped_from_the_end() -> None:
    """Of every permutation the ragged rest comes first."""
    batch, steps = int(DATA.take("batch_syn")), int(DATA.take("steps"))
    rows = [list(p) for p in DATA.take("permutations").tolist()]
    found = chunks_of(rows, batch)[:steps]
    theirs = [[i for i in row if i >= 0] for row in DATA.take("chunk_index").tolist()]
    assert found == theirs


@pytest.mark.parametrize("engine", ["exact", "unrolled"])
@pytest.mark.parametrize("theta", ["device", "host", "recompute"])
@pytest.mark.parametrize("name", RATIOS)
def test_soft_labels_and_dropped_parameters(nets, name: str, theta: str, engine: str) -> None:
    images, labels, rate = learned("images", "label_logits", "lr")
    start, target = DATA.take("start"), DATA.take("target")
    share = float(DATA.take("ratios")[RATIOS[name]])
    problem = inner(nets, labels, images, rate, soft)
    loss = through(
        problem,
        lambda end: apart(end, start, target, counted(end, target, share, "easy")),
        [images, labels],
        engine,
        theta,
    )
    close(loss, DATA.take(f"edf_{name}.loss"), 1e-9)
    loss.backward()
    for ours, key in ((images, "images"), (labels, "labels"), (rate, "lr")):
        assert ours.grad is not None
        close(ours.grad, DATA.take(f"edf_{name}.grad_{key}"), 1e-9)


def test_every_step_of_the_loop(nets) -> None:
    images, labels, rate = learned("images", "label_logits", "lr")
    theirs = DATA.take("theta_steps")
    for steps in range(len(theirs)):
        problem = inner(nets, labels, images, rate, soft)
        end = unrolled(Inner(nets, problem.start, steps, problem.shown, rate, soft))
        close(end, theirs[steps], 1e-12)


@pytest.mark.parametrize("engine", ["exact", "unrolled"])
def test_hard_labels(nets, engine: str) -> None:
    images, rate = learned("images", "lr")
    problem = inner(nets, DATA.take("hard_labels"), images, rate, hard)
    start, target = DATA.take("start"), DATA.take("target")
    close(unrolled(problem), DATA.take("mtt.theta_end"), 1e-12)
    loss = through(problem, lambda end: apart(end, start, target), [images], engine)
    close(loss, DATA.take("mtt.loss"), 1e-9)
    loss.backward()
    assert images.grad is not None
    assert rate.grad is not None
    close(images.grad, DATA.take("mtt.grad_images"), 1e-9)
    close(rate.grad, DATA.take("mtt.grad_lr"), 1e-9)


def test_tesla_as_released_is_another_gradient(nets) -> None:
    images, labels, rate = learned("images", "label_logits", "lr")
    start, target = DATA.take("start"), DATA.take("target")
    problem = inner(nets, labels, images, rate, soft)
    loss = through(problem, lambda end: apart(end, start, target), [images, labels], "tesla")
    close(loss, DATA.take("tesla.loss"), 1e-9)
    loss.backward()
    for ours, key in ((images, "images"), (labels, "labels"), (rate, "lr")):
        assert ours.grad is not None
        close(ours.grad, DATA.take(f"tesla.grad_{key}"), 1e-9)
    assert max_abs(images.grad, DATA.take("edf_0.grad_images")) > 0.01 * float(
        images.grad.abs().max()
    )


def test_soft_cross_entropy() -> None:
    student, labels = learned("sce_student", "sce_label_logits")
    loss = soft(student, labels)
    close(loss, DATA.take("sce_loss"), 1e-12)
    loss.backward()
    assert student.grad is not None
    assert labels.grad is not None
    close(student.grad, DATA.take("sce_grad_student"), 1e-12)
    close(labels.grad, DATA.take("sce_grad_labels"), 1e-12)


def test_latest_start_grows() -> None:
    iterations = DATA.take("ub_iteration").tolist()
    for (first, last, until), row in zip(
        DATA.take("ub_config").tolist(), DATA.take("ub_value").tolist(), strict=True
    ):
        assert [latest_start(it, first, last, until) for it in iterations] == row


def test_labels_of_the_experts_that_are_right() -> None:
    logits, classes = DATA.take("label_init_logits"), DATA.take("label_init_class")
    close(agreed_logits(logits, classes), DATA.take("label_init"), 1e-6)


def test_nothing_was_left_out(request: pytest.FixtureRequest) -> None:
    DATA.finish(request)
