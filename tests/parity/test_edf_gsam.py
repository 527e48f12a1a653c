"""GSAM's steps against recorded ones of EDF's copy of it, in float64.

Golden file and tolerances: ../shared/parity/README-edc-edf.md, "edf_gsam".
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golden import golden, max_abs
from stillroom.nets.sharpness import Uphill, look_uphill, perturbation, still_norms

DATA = golden("edf_gsam")


def network() -> nn.Sequential:
    norm = nn.BatchNorm1d(5)
    net = nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(DATA.take(f"init.{name}"))
    return net


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


@pytest.mark.parametrize("name", ["adaptive", "plain", "momentum"])
def test_three_steps(name: str) -> None:
    """Perturbation, direction, weights and BatchNorm statistics of every step."""
    net = network()
    leaves = list(net.parameters())
    told = {k: float(DATA.take(f"{name}.{k}")) for k in ("rho", "alpha", "momentum")}
    rule = Uphill(told["rho"], told["alpha"], adaptive=name != "plain")
    sgd = torch.optim.SGD(leaves, lr=float(DATA.take("lr")), momentum=told["momentum"])
    norm = net[1]
    for step, (x, y) in enumerate(zip(DATA.take("inputs"), DATA.take("labels"), strict=True)):

        def close(ours: Tensor, key: str, step: int = step) -> None:
            assert max_abs(ours, DATA.take(f"{name}.{key}")[step]) < 1e-9, (key, step)

        sgd.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        close(loss, "loss")
        slopes = [leaf.grad for leaf in leaves]
        close(flat(perturbation(leaves, slopes, rule)), "perturbation")
        back = look_uphill(leaves, rule)
        with still_norms(net):
            F.cross_entropy(net(x), y).backward()
        back()
        close(flat([leaf.grad for leaf in leaves]), "direction")
        sgd.step()
        close(flat(leaves), "weights")
        close(norm.running_mean, "bn_running_mean")
        close(norm.running_var, "bn_running_var")
    assert int(norm.num_batches_tracked) == int(DATA.take(f"{name}.bn_num_batches"))


def test_nothing_was_left_out(request: pytest.FixtureRequest) -> None:
    DATA.finish(request)
