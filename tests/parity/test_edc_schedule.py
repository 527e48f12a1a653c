"""Learning rates of EDC's released trainers and of its image optimiser, epoch by epoch."""

from __future__ import annotations

import pytest
import torch

from golden import golden, max_abs
from stillroom.nets.schedules import Schedule, multiplier

DATA = golden("edc_schedule")
TOLERANCE = 1e-9  # absolute: the README's
CASES = range(len(DATA.tensors["epochs"]))
# The multiplier that each golden curve is. The released ImageNet-1K trainer runs the line where its
# option says cosine.
CURVES: dict[str, Schedule] = {
    "cos_intended": "smoothing",
    "cos_released_1k": "linear",
    "cos2": "cos2",
    "cos2_1k_branch": "cos2",
    "linear": "linear",
}


def ours(schedule: Schedule, epochs: int, **more) -> torch.Tensor:
    found = [multiplier(schedule, epoch, epochs, **more) for epoch in range(epochs)]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("curve", CURVES)
def test_every_epoch(curve: str, case: int) -> None:
    epochs, zeta = int(DATA.take("epochs")[case]), float(DATA.take("zeta")[case])
    theirs = DATA.take(f"case{case}.{curve}")
    assert theirs.shape == (epochs,)
    assert max_abs(ours(CURVES[curve], epochs, zeta=zeta), theirs) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_the_cosine_is_not_the_line_that_was_released(case: int) -> None:
    intended, released = DATA.take(f"case{case}.cos_intended"), DATA.take(f"case{case}.linear")
    assert max_abs(intended, released) > 0.05


def test_multistep() -> None:
    theirs = DATA.take("multistep_1000")
    steps = {"milestones": (800, 900, 950), "factor": 0.5}
    assert max_abs(ours("steps", len(theirs), **steps), theirs) <= TOLERANCE


def test_the_rate_of_the_image_optimiser() -> None:
    theirs = DATA.take("recover_lr")
    rates = float(DATA.take("recover_lr_base")) * ours("cosine", len(theirs))
    assert max_abs(rates, theirs) <= TOLERANCE


def test_what_is_not_built() -> None:
    """ALRS lowers the rate by what the loss does, which no recipe here does and no table gains by.

    The golden curve does not follow from the epoch: equal epochs would need equal steps.
    """
    rates, losses = DATA.take("alrs_lr"), DATA.take("alrs_loss")
    assert rates.shape == losses.shape
    steps = (rates[1:] / rates[:-1]).round(decimals=9).unique()
    assert sorted(steps.tolist()) == [float(DATA.take("alrs_decay")), 1.0]
    assert float(rates[0]) == float(DATA.take("alrs_lr0"))


def test_nothing_was_left_out(request: pytest.FixtureRequest) -> None:
    DATA.finish(request)
