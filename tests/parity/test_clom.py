"""The CLOM term against yaolu-zjut/DDInterpreter (origin: shared/parity/README.md)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from golden import Golden, max_rel
from golden import golden as load_golden
from stillroom.artefacts.originals import OriginalModel
from stillroom.data.benchmarks import from_arrays
from stillroom.methods.base import Synth
from stillroom.methods.context import RunContext
from stillroom.methods.regularisers import Clom
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("clom")


def context(golden: Golden, numerics: str) -> tuple[RunContext, Synth]:
    """Four classes of real images, the golden model as the pool, the golden synthetic images."""
    rt = Runtime(device=torch.device("cpu"), numerics=numerics)
    real, labels = golden.take("real_u8"), golden.take("real_labels")
    bench = from_arrays(real, labels, real, labels, normalise="cifar10")
    arch = resolve("convnet3-w16")
    weights = {k.removeprefix("net/"): golden.take(k).to(rt.dtype) for k in golden.keys("net/")}
    model = OriginalModel(arch, weights, False, 0.5, ((1, 0.5),), 0.0)
    nets = Nets(arch, 4, 3, 32, rt)
    ctx = RunContext(bench, 1, 0, rt, nets, artefacts={"clom/0/0/0": model})
    images = golden.take("syn").to(rt.dtype).clone().requires_grad_()
    labels = golden.take("labels")
    return ctx, Synth(images, labels, labels)


def term(golden: Golden, numerics: str, **fields) -> tuple[Tensor, Tensor]:
    ctx, synth = context(golden, numerics)
    clom = Clom(weights=(float(golden.take("alpha")),), num=1, **fields)
    value = clom.term(ctx, synth, 0, 0)
    assert value is not None
    value.backward()
    assert synth.images.grad is not None
    return value.detach(), synth.images.grad


@pytest.mark.parametrize(
    ("numerics", "suffix", "loss_tol", "grad_tol"),
    [("float64", "f64", 1e-10, 1e-9), ("float32", "f32", 1e-5, 1e-5)],
)
def test_cross_entropy(golden, numerics, suffix, loss_tol, grad_tol):
    loss, grad = term(golden, numerics)
    assert max_rel(loss, golden.take(f"g1/loss_{suffix}")) < loss_tol
    assert max_rel(grad, golden.take(f"g1/grad_syn_{suffix}")) < grad_tol
    if numerics == "float64":
        alpha = golden.take("alpha").double()
        assert max_rel(loss / alpha, golden.take("g1/ce_f64")) < loss_tol
        assert max_rel(loss, golden.take("g3_ce/loss_f64")) < loss_tol


def test_logits(golden):
    ctx, synth = context(golden, "float64")
    nets = ctx.networks.make(1, 0, "x")
    ctx.artefacts["clom/0/0/0"].put_into(nets)
    assert max_rel(nets.logits(synth.images.detach())[0], golden.take("g1/logits_f64")) < 1e-10


@pytest.mark.parametrize(
    ("numerics", "suffix", "loss_tol"), [("float64", "f64", 1e-10), ("float32", "f32", 1e-5)]
)
def test_contrast(golden, numerics, suffix, loss_tol, monkeypatch):
    """The term itself, with the real images that the reference drew."""
    rows, draw = golden.take("g3_cos/real_index"), torch.randint

    def drawn(high, size, **how):
        return rows.clone() if tuple(size) == (len(rows),) else draw(high, size, **how)

    monkeypatch.setattr(torch, "randint", drawn)
    loss, grad = term(golden, numerics, distance="cos", batch_real=len(rows))
    assert max_rel(loss, golden.take(f"g3_cos/loss_{suffix}")) < loss_tol
    if numerics == "float64":
        assert max_rel(grad, golden.take("g3_cos/grad_syn_f32")) < 1e-6
        norms = grad.flatten(1).norm(dim=1)
        assert max_rel(norms, golden.take("g3_cos/grad_image_l2_f64")) < 1e-9


def test_every_tensor_was_used(golden, request):
    golden.finish(request)
