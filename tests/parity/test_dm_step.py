"""Distribution matching against VICO-UoE/DatasetCondensation (origin: shared/parity/README.md)."""

from __future__ import annotations

import pytest
import torch

from golden import Golden, max_rel
from golden import golden as load_golden
from stillroom.data.benchmarks import from_arrays
from stillroom.methods.base import Synth
from stillroom.methods.context import RunContext
from stillroom.methods.distribution_matching import DistributionMatching
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime


class GivenNet(RunContext):
    """A context whose network has the golden weights, whatever the step."""

    weights: dict[str, torch.Tensor]

    def nets(self, k: int, *key: str | int, arch: str | None = None) -> Ensemble:
        net = self.networks.arch.build(10, 3, 32).to(self.rt.dtype)
        net.load_state_dict(self.weights, strict=False)
        return self.networks.wrap([net])


def step(golden: Golden, norm: str, numerics: str):
    """(loss, gradient of the synthetic images) of one step through the method itself."""
    real = golden.take("real_u8")
    labels = torch.arange(2).repeat_interleave(10)
    bench = from_arrays(real.flatten(0, 1), labels, real.flatten(0, 1), labels, normalise="cifar10")
    rt = Runtime(device=torch.device("cpu"), numerics=numerics)
    arch = resolve(f"convnet3-w32{norm}")
    ctx = GivenNet(bench, 2, 0, rt, Nets(arch, 10, 3, 32, rt))
    ctx.weights = {
        name: golden.take(f"net/{name}").to(rt.dtype)
        for name in (key.removeprefix("net/") for key in golden.keys("net/"))
    }
    images = golden.take("syn").to(rt.dtype).clone().requires_grad_()
    of_class = torch.tensor([0, 0, 1, 1])
    synth = Synth(images, of_class, of_class)
    method = DistributionMatching(batch_real=10, augment="none")
    terms = list(method.loss(ctx, synth, 0))
    loss = torch.stack(terms).sum()
    loss.backward()
    return loss.detach(), images.grad, method, ctx, synth


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("dm_step")


@pytest.mark.parametrize(
    ("numerics", "suffix", "loss_tol", "grad_tol"),
    [
        ("float64", "f64", 1e-10, 1e-9),
        ("float32", "f32", 1e-5, 1e-5),
    ],
)
def test_plain_networks(golden, numerics, suffix, loss_tol, grad_tol):
    loss, grad, *_ = step(golden, "", numerics)
    assert max_rel(loss, golden.take(f"loss_{suffix}")) < loss_tol
    assert max_rel(grad, golden.take(f"grad_syn_{suffix}")) < grad_tol
    if numerics == "float64":
        norms = grad.flatten(1).norm(dim=1)
        assert max_rel(norms, golden.take("grad_image_l2_f64")) < grad_tol


def test_terms_per_class(golden, monkeypatch):
    """With one class a group, the terms are those of the classes."""
    monkeypatch.setattr(GivenNet, "groups", lambda self, n: [[0], [1]])
    _, _, method, ctx, synth = step(golden, "", "float64")
    terms = torch.stack([t.detach() for t in method.loss(ctx, synth, 0)])
    assert max_rel(terms, golden.take("loss_per_class_f64")) < 1e-10


@pytest.mark.parametrize(
    ("numerics", "suffix", "loss_tol"),
    [
        ("float64", "f64", 1e-10),
        ("float32", "f32", 1e-5),
    ],
)
def test_batchnorm_networks_take_statistics_over_all_classes(golden, numerics, suffix, loss_tol):
    loss, grad, *_ = step(golden, "-bn", numerics)
    assert max_rel(loss, golden.take(f"bn/loss_{suffix}")) < loss_tol
    if numerics == "float64":
        assert max_rel(grad.flatten(1).norm(dim=1), golden.take("bn/grad_image_l2_f64")) < 1e-9
        assert max_rel(grad.flatten(1)[:, :16], golden.take("bn/grad_first16_f64")) < 1e-9


def test_every_tensor_was_used(golden, request):
    golden.finish(request)
