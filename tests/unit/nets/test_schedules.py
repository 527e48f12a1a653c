"""Learning rates by epoch: published values, and torch's own schedulers where it has them."""

from __future__ import annotations

import pytest
import torch

from stillroom.nets.schedules import Schedule, multiplier


@pytest.mark.parametrize(
    ("schedule", "values"),
    [("smoothing", [1, 0.962, 0.854, 0.691]), ("linear", [1, 0.875, 0.75, 0.625])],
)
def test_slowed_by_two(schedule: Schedule, values: list[float]) -> None:
    found = [multiplier(schedule, epoch, 300, zeta=2.0) for epoch in (0, 75, 150, 225)]
    assert found == pytest.approx(values, abs=5e-4)


def test_cos2_jumps_at_five_sixths_and_ends_near_zero() -> None:
    found = [multiplier("cos2", epoch, 300, zeta=2.0) for epoch in (250, 251, 299)]
    assert found == pytest.approx([0.629, 0.103, 0.0021], abs=5e-4)


def test_smoothing_is_a_cosine_where_nothing_is_slowed() -> None:
    for epoch in range(7):
        assert multiplier("smoothing", epoch, 7) == multiplier("cosine", epoch, 7)


@pytest.mark.parametrize("epochs", [10, 50])
def test_warm_up_and_cosine_are_those_of_torch(epochs: int) -> None:
    """As SRe2L's recipe for Tiny-ImageNet chains them."""
    sgd = torch.optim.SGD([torch.zeros(())], lr=0.2)
    rise = torch.optim.lr_scheduler.LinearLR(sgd, start_factor=0.01, total_iters=5)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=epochs - 5)
    both = torch.optim.lr_scheduler.SequentialLR(sgd, [rise, fall], milestones=[5])
    for epoch in range(epochs):
        ours = 0.2 * multiplier("cosine", epoch, epochs, warmup=5)
        assert ours == pytest.approx(both.get_last_lr()[0], rel=1e-9), epoch
        sgd.step()
        both.step()


def test_steps_count_from_the_start_also_after_a_warm_up() -> None:
    plain = {"milestones": (4, 6), "factor": 0.5}
    found = [multiplier("steps", epoch, 8, warmup=2, **plain) for epoch in range(8)]
    assert found == pytest.approx([0.01, 0.505, 1, 1, 0.5, 0.5, 0.25, 0.25])
