"""A step of gradient matching against VICO-UoE/DatasetCondensation (shared/parity/README.md)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden import Golden, max_rel
from golden import golden as load_golden
from stillroom.data.benchmarks import from_arrays
from stillroom.methods.base import Synth
from stillroom.methods.gradient_matching import GradientMatching
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime
from test_dm_step import GivenNet

THEIRS = {"layerwise": "ours", "mse": "mse", "cos": "cos"}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("dc_step")


class OneClass(GivenNet):
    """The golden step is of one class."""

    label: int

    def share(self, n: int) -> range:
        return range(self.label, self.label + 1)


def step(
    golden: Golden, distance: str, numerics: str, compile: bool = False
) -> tuple[Tensor, Tensor, OneClass, Synth]:
    """(loss, gradient of the synthetic images) of one class through the method itself."""
    real, label = golden.take("real_u8"), int(golden.take("label"))
    labels = torch.arange(10).repeat_interleave(len(real))
    images = real.repeat(10, 1, 1, 1)  # only those of `label` are looked at
    bench = from_arrays(images, labels, images, labels, normalise="cifar10")
    rt = Runtime(device=torch.device("cpu"), numerics=numerics, compile=compile)
    ctx = OneClass(bench, 4, 0, rt, Nets(resolve("convnet3-w32"), 10, 3, 32, rt))
    ctx.label = label
    ctx.weights = {
        name: golden.take(f"net/{name}").to(rt.dtype)
        for name in (key.removeprefix("net/") for key in golden.keys("net/"))
    }
    syn = golden.take("syn").to(rt.dtype).clone().requires_grad_()
    of_class = torch.full((4,), label)
    synth = Synth(syn, of_class, of_class)
    method = GradientMatching(batch_real=16, distance=distance)
    (term,) = list(method.loss(ctx, synth, 0))
    term.backward()
    assert syn.grad is not None
    return term.detach(), syn.grad, ctx, synth


@pytest.mark.parametrize("distance", THEIRS)
def test_in_float64(golden: Golden, distance: str) -> None:
    loss, grad, *_ = step(golden, distance, "float64")
    name = THEIRS[distance]
    assert max_rel(loss, golden.take(f"{name}/loss_f64")) < 1e-10
    assert max_rel(grad.flatten(1).norm(dim=1), golden.take(f"{name}/grad_image_l2_f64")) < 1e-9
    assert max_rel(grad.flatten(1)[:, :16], golden.take(f"{name}/grad_first16_f64")) < 1e-9
    if distance == "layerwise":
        assert max_rel(grad, golden.take("ours/grad_syn_f64")) < 1e-9


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("distance", THEIRS)
def test_in_float32(golden: Golden, distance: str, compile: bool) -> None:
    loss, grad, *_ = step(golden, distance, "float32", compile)
    name = THEIRS[distance]
    assert max_rel(loss, golden.take(f"{name}/loss_f32")) < 1e-5
    if distance == "layerwise":
        assert max_rel(grad, golden.take("ours/grad_syn_f32")) < 2e-5


def test_the_parts(golden: Golden) -> None:
    """Cross-entropies of both sides, and the norms of both gradients, parameter by parameter."""
    *_, ctx, synth = step(golden, "layerwise", "float64")
    nets = ctx.nets(1)
    names = [n for n, _ in nets.nets.skeleton.named_parameters()]
    sides = {
        "real": ctx.real(ctx.label, 16, 0, ctx.label),
        "syn": synth.images.detach(),
    }
    for side, images in sides.items():
        labels = torch.full((len(images),), ctx.label)
        entropy = F.cross_entropy(nets.logits(images, train=True)[0], labels)
        assert max_rel(entropy, golden.take(f"ce_{side}_f64")) < 1e-10
        (slopes,) = nets.grads(images, labels)
        norms = torch.stack([slopes[n].norm() for n in names])
        assert max_rel(norms, golden.take(f"gw_{side}_norms_f64")) < 1e-9


def test_every_tensor_was_used(golden: Golden, request: pytest.FixtureRequest) -> None:
    golden.finish(request)
