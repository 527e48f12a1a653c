"""Losses of EDC's students and its moving average of weights, with gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from golden import golden, max_abs, max_rel
from stillroom.nets.averaging import averaged, follow
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.losses import Objective, Target, kl, mse_gt
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime

DATA = golden("edc_train")
TOLERANCES = {  # value, gradient: the README's
    "mse_gt": (1e-6, 1e-5),
    "kl": (1e-4, 1e-4),
    "dist": (1e-4, 1e-3),
    "dist_T4": (1e-4, 1e-3),
    "mse_gt_sam": (1e-5, 1e-5),
}
SAM_WEIGHT = 0.4  # of the divergence from the averaged student


def target() -> Target:
    return Target(DATA.take("teacher"), "logits", DATA.take("labels"))


def weight() -> float:
    return float(DATA.take("ce_weight"))


def with_average(student: Tensor) -> Tensor:
    """Not an option of the trainer, for no script asks for it; its two parts are."""
    plain = mse_gt(student, DATA.take("teacher"), DATA.take("labels"), weight())
    return plain + SAM_WEIGHT * kl(student, DATA.take("ema_student"), 1.0)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse_gt": lambda z: Objective("mse_gt", ce_weight=weight())(z, target()),
    "kl": lambda z: Objective("kl", float(DATA.take("temperature")))(z, target()),
    "dist": lambda z: Objective("dist", float(DATA.take("temperature")))(z, target()),
    "dist_T4": lambda z: Objective("dist", 4.0)(z, target()),
    "mse_gt_sam": with_average,
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(name: str) -> None:
    student = DATA.take("student").clone().requires_grad_()
    value = LOSSES[name](student)
    (slope,) = torch.autograd.grad(value, student)
    for_value, for_gradient = TOLERANCES[name]
    assert max_rel(value, DATA.take(name)) <= for_value
    assert max_rel(slope, DATA.take(f"{name}_grad")) <= for_gradient


# -- the moving average --------------------------------------------------------------------------

NAMES = [key.removeprefix("ema.init.") for key in DATA.keys("ema.init.")]


class Golden(nn.Sequential):
    def __init__(self, classes: int) -> None:
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


@functools.cache
def ensemble() -> Ensemble:
    nets = Nets(resolve(Golden), 2, 3, 1, Runtime(device=torch.device("cpu")))
    return nets.make(1, 0, "any")


def path() -> list[list[Tensor]]:
    """The average after each golden step, in the order of NAMES."""
    average = [DATA.take(f"ema.init.{name}").clone() for name in NAMES]
    live = [DATA.take(f"ema.live.{name}") for name in NAMES]
    found = []
    for step in range(len(live[0])):
        follow(average, [values[step] for values in live], float(DATA.take("ema_decay")))
        found.append([mean.clone() for mean in average])
    return found


def test_every_step_of_the_average() -> None:
    found = path()
    for i, name in enumerate(NAMES):
        ours = torch.stack([averages[i] for averages in found])
        assert max_rel(ours, DATA.take(f"ema.value.{name}")) <= 1e-6, name


def test_what_is_tested_has_averaged_weights_and_live_statistics() -> None:
    """The golden swap leaves BatchNorm buffers; afterwards everything is what it was."""
    nets = ensemble()
    params, buffers = nets.member(0)
    average = {name: DATA.take(f"ema.value.{name}")[-1] for name in NAMES}
    buffers["1.running_mean"].fill_(0.5)
    before = {name: value.detach().clone() for name, value in {**params, **buffers}.items()}
    with averaged(nets, [average[name] for name in params], None):
        theirs = DATA.take("ema.swapped_live.0.weight")
        assert max_abs(params["0.weight"], theirs) == 0
        assert float(buffers["1.running_mean"][0]) == 0.5
    for name, value in {**params, **buffers}.items():
        assert torch.equal(value, before[name]), name


def test_nothing_was_left_out(request: pytest.FixtureRequest) -> None:
    DATA.finish(request)
