"""Distances of gradients against VICO-UoE/DatasetCondensation (origin: shared/parity/README.md)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from golden import Golden
from golden import golden as load_golden
from stillroom.methods.gradient_distance import DISTANCES

NAMES = (
    *("conv_weight", "conv_bias", "ln_weight", "ln_bias"),
    *("bn_weight", "bn_bias", "linear_weight", "linear_bias"),
)
CASES = ("random", "near", "small", "zero_rows", "identical", "opposite")
THEIRS = {"layerwise": "ours", "mse": "mse", "cos": "cos"}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("dc_distance")


def pair(golden: Golden, case: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], ...]:
    return tuple(
        {n: golden.take(f"{case}/{side}/{n}").to(dtype) for n in NAMES} for side in ("syn", "real")
    )


def close(name: str, a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Relative to the value for `mse`, whose values may be small; else to max(1, value)."""
    size = b.double().abs() if name == "mse" else b.double().abs().clamp(min=1)
    return bool(((a.double() - b.double()).abs() <= tolerance * size).all())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", DISTANCES)
def test_whole_distance(golden: Golden, name: str, case: str) -> None:
    for dtype, suffix, tolerance in (
        (torch.float64, "", 1e-10),
        (torch.float32, "_f32", 1e-5),
    ):
        found = DISTANCES[name](*pair(golden, case, dtype))
        assert close(name, found, golden.take(f"{case}/{THEIRS[name]}/total{suffix}"), tolerance)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", DISTANCES)
def test_tensor_by_tensor(golden: Golden, name: str, case: str) -> None:
    syn, real = pair(golden, case, torch.float64)
    expected = golden.take(f"{case}/{THEIRS[name]}/per_tensor")
    for i, tensor in enumerate(NAMES):
        if name == "layerwise" and real[tensor].ndim == 1:
            assert expected[i] == 0
            continue
        found = DISTANCES[name]({tensor: syn[tensor]}, {tensor: real[tensor]})
        assert close(name, found, expected[i], 1e-10), tensor


@pytest.mark.parametrize("case", ["random", "small", "zero_rows"])
def test_slope(golden: Golden, case: str) -> None:
    """Also at a row of zeros, where it is |real row| / 1e-6."""
    syn, real = pair(golden, case, torch.float64)
    for tensor in syn.values():
        tensor.requires_grad_()
    DISTANCES["layerwise"](syn, real).backward()
    for name, tensor in syn.items():
        if tensor.ndim == 1:
            assert tensor.grad is None
            continue
        expected = golden.take(f"{case}/ours/grad_syn/{name}")
        assert tensor.grad is not None
        worst = (tensor.grad - expected).abs().max() / expected.abs().max()
        assert worst < 1e-9, name
    if case == "zero_rows":
        row = syn["conv_weight"].grad[0].norm()
        assert row == pytest.approx(float(real["conv_weight"][0].norm()) / 1e-6)


def test_every_tensor_was_used(golden: Golden, request: pytest.FixtureRequest) -> None:
    golden.finish(request)
