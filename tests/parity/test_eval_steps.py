"""Every step of the reference's evaluation loops, in float64, and the two mistakes told apart."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import golden, normalise
from stillroom.evaluation.published import PROTOCOLS
from stillroom.evaluation.score import training_of
from stillroom.nets import train as trainer
from stillroom.nets.ensemble import Nets
from stillroom.nets.train import Images, Training, train
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime

DATA = golden("eval_steps")
RUNS = {"vico1000": "vico@1", "vico300": "vico-plain@1", "challenge": "eccv24@1"}
WRONG_STEPS = 510
# The README's tolerances, relative; a rate is a product of two decimals.
TRACES = {
    "lr": 1e-15,
    "loss": 1e-9,
    "update_l2": 1e-9,
    "momentum_l2_before": 1e-9,
    "weight_l2": 1e-11,
    "weight_sum": 1e-11,
}


def plain(name: str) -> Training:
    """The protocol's own schedule; the golden runs leave augmentation out."""
    return training_of(PROTOCOLS[name].model_copy(update={"augment": "none"}), 0.01)


class EnoughError(Exception):
    """Ends a run early."""


class Traced:
    """A run of the trainer from the golden weights on the golden images, watched step by step."""

    def __init__(self, training: Training, steps: int) -> None:
        self.lists: dict[str, list[float]] = {name: [] for name in TRACES}
        rt = Runtime(device=torch.device("cpu"), numerics="float64", threads=1)
        nets = Nets(resolve("convnet3-w8"), 2, 3, 32, rt)
        module = nets.build(0, "any")
        module.load_state_dict({k.removeprefix("net/"): DATA.take(k) for k in DATA.keys("net/")})
        images = normalise(DATA.take("images_u8")).double()
        data = Images(lambda rows: images[rows], DATA.take("labels"), 32)
        ensemble = nets.wrap([module])

        def on_epoch(done: int, loss: float) -> None:
            self.lists["loss"].append(loss)
            if done == steps:
                raise EnoughError

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(EnoughError):
            patch.setattr(torch.optim, "SGD", self.watched())
            train(ensemble, data, training, [0], on_epoch)
        self.final = ensemble.member(0)[0]
        self.traces = {k: torch.tensor(v, dtype=torch.float64) for k, v in self.lists.items()}

    def watched(self) -> type[torch.optim.SGD]:
        lists = self.lists

        class Watched(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                buffers = [state["momentum_buffer"] for state in self.state.values()]
                params = self.param_groups[0]["params"]
                before = [p.detach().clone() for p in params]
                lists["momentum_l2_before"].append(norm(buffers))
                lists["lr"].append(self.param_groups[0]["lr"])
                super().step(closure)
                change = [p.detach() - b for p, b in zip(params, before, strict=True)]
                lists["update_l2"].append(norm(change))
                lists["weight_l2"].append(norm(params))
                lists["weight_sum"].append(float(sum(p.detach().sum() for p in params)))

        return Watched


@functools.cache
def right(name: str) -> Traced:
    """The whole run of a protocol; the golden steps are all that it makes."""
    return Traced(plain(name), plain(name).passes)


def norm(tensors: list[Tensor]) -> float:
    if not tensors:
        return 0.0
    return float(torch.stack([t.detach().square().sum() for t in tensors]).sum().sqrt())


@pytest.mark.parametrize("run", RUNS)
def test_every_step(run: str) -> None:
    protocol = PROTOCOLS[RUNS[run]]
    ours = right(RUNS[run])
    for name, tolerance in TRACES.items():
        theirs = DATA.take(f"{run}/{name}")
        assert theirs.shape == (protocol.passes,)
        torch.testing.assert_close(ours.traces[name], theirs, rtol=tolerance, atol=0)
    for key in DATA.keys(f"{run}/final/"):
        final = ours.final[key.removeprefix(f"{run}/final/")]
        torch.testing.assert_close(final, DATA.take(key), rtol=1e-9, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["no_momentum_reset", "drop_one_step_early"])
def test_the_mistakes_are_told_apart(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong loop, made on purpose, is the golden wrong one, and the right one is neither."""
    training = plain("vico@1")
    if wrong == "no_momentum_reset":
        training = replace(training, reset_at_drop=False)
    else:
        late = trainer.first_after_drop
        monkeypatch.setattr(trainer, "first_after_drop", lambda training: late(training) - 1)
    theirs = DATA.take(f"wrong/{wrong}/weight_l2_first510")
    ours = Traced(training, WRONG_STEPS).traces["weight_l2"]
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=0)
    truth = right("vico@1").traces["weight_l2"][:WRONG_STEPS]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(truth, theirs, rtol=1e-11, atol=0)


def test_steps_of_interest() -> None:
    """The steps that the golden README lists stand on both sides of the drop."""
    steps = DATA.take("steps_of_interest").tolist()
    lr = DATA.take("vico1000/lr")
    assert [float(lr[s - 1]) for s in steps] == [0.01] * 4 + [0.001] * 4


def test_nothing_was_left_out(request: pytest.FixtureRequest) -> None:
    for key in DATA.keys("wrong/"):  # of the mistakes, which slow tests look at
        DATA.take(key)
    DATA.finish(request)
